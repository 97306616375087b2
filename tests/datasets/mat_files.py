"""Annotations of PASCAL-Part, as small as can be, for the tests."""

import numpy as np
import pytest

scipy_io = pytest.importorskip("scipy.io")
SIZE = (4, 6)


def grid(text):
    """A mask or a label map from rows of digits."""
    return np.array([[int(digit) for digit in row] for row in text.split()], np.uint8)


def structs(*records):
    """A MATLAB struct array of one row, as SciPy reads and writes it."""
    array = np.empty((1, len(records)), [(name, object) for name in records[0]])
    for column, record in enumerate(records):
        array[0, column] = tuple(record.values())
    return array


def part(name, mask):
    return {"part_name": name, "mask": grid(mask) if isinstance(mask, str) else mask}


def thing(*parts, name="person", index=15, mask=None):
    whole = np.ones(SIZE, np.uint8) if mask is None else mask
    return {
        "class": name,
        "class_ind": np.array([[index]], np.uint8),
        "mask": whole,
        "parts": structs(*parts) if parts else np.zeros((0, 0)),
    }


def write_mat(path, *things, **fields):
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = structs(*things) if things else np.zeros((0, 0))
    scipy_io.savemat(path, {"anno": structs({"imname": path.stem, "objects": objects, **fields})}, do_compression=True)
    return str(path)
