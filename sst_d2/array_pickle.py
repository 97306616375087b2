"""Detectron2's ``.pkl`` weights, read without trusting them: nothing that a file names is called.

Such a file asks the reader to call NumPy's own constructors, and NumPy takes the file's word for what memory holds.
Here stand-ins take their places; they collect plain facts, and arrays of plain numbers are built from these at the end.
"""

from __future__ import annotations

import math
import pickle
from collections import OrderedDict
from typing import Any, BinaryIO

import numpy as np

from sst_d2.errors import SSTCheckpointError

# Kinds and sizes of numbers: bool, integers, floats.
_NUMBERS = frozenset({"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"})


def read_array_pickle(stream: BinaryIO) -> Any:
    """Read dicts, lists, tuples, text, numbers, and arrays of numbers.

    Args:
        stream: of the file, from its beginning.

    Raises:
        SSTCheckpointError: the file asks for anything else.
        pickle.UnpicklingError, EOFError, ValueError: (or another error) it is damaged or no pickle.
    """
    return _built(_ArrayUnpickler(stream, encoding="latin1").load())


class _Type:
    """In the place of ``numpy.dtype``."""

    def __init__(self, code: Any, *_: Any) -> None:
        if not isinstance(code, str) or code not in _NUMBERS:
            raise SSTCheckpointError(f"the file holds an array of the type {code!r}; arrays of plain numbers are read")
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, names, fields, …): of plain numbers only the order says anything.
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in "<>|=" or any(state[2:5]):
            raise SSTCheckpointError("the file holds an array of no plain numbers")
        self.order = state[1]

    def built(self) -> np.dtype:
        """The type itself."""
        return np.dtype(self.order + self.code)


class _Array:
    """In the place of ``numpy.ndarray`` and what reconstructs one."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def built(self) -> np.ndarray:
        """The array itself, in the machine's byte order."""
        try:
            shape, kind, fortran, data = self.state[-4:]
            if isinstance(data, str):  # of Python 2
                data = data.encode("latin1")
            kind, shape = kind.built(), tuple(int(side) for side in shape)
            whole = isinstance(data, bytes) and min(shape, default=0) >= 0
            if not whole or len(data) != math.prod(shape) * kind.itemsize:
                raise ValueError("size")
            array = np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")
            return array.astype(kind.newbyteorder("="))  # a copy, which may be written to
        except (TypeError, ValueError, AttributeError) as reason:
            raise SSTCheckpointError("the file holds an array whose data do not fit its shape and type") from reason


def _scalar(kind: Any, data: Any) -> Any:
    """In the place of ``numpy.core.multiarray.scalar``."""
    array = _Array()
    array.__setstate__(((), kind, False, data))
    return array.built()[()]


def _from_buffer(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """In the place of ``numpy.core.numeric._frombuffer``, by which newer files keep arrays."""
    array = _Array()
    array.__setstate__((shape, kind, order == "F", bytes(data) if isinstance(data, bytearray) else data))
    return array


def _no_bytes(*arguments: Any) -> bytes:
    """In the place of ``bytes``, by which older files keep empty ones."""
    if arguments:
        raise SSTCheckpointError("the file asks to make bytes of something; none at all are made so")
    return b""


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """In the place of ``_codecs.encode``, by which bytes are kept as text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise SSTCheckpointError(f"the file asks to encode something by {encoding!r}; bytes as latin1 text are read")
    return text.encode("latin1")


_STAND_INS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    # NumPy 1 and 2 name these modules differently.
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Gives a stand-in for each name that arrays need, and refuses the rest."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in."""
        if (module, name) not in _STAND_INS:
            raise SSTCheckpointError(
                f"the file asks to load {module}.{name}; only arrays in plain containers are read from a .pkl file, "
                "since others can execute code. Convert the weights to a .pth file of tensors"
            )
        return _STAND_INS[module, name]


def _built(value: Any) -> Any:
    """The value with arrays in the places of their stand-ins."""
    if isinstance(value, _Array):
        return value.built()
    if isinstance(value, dict):
        return {key: _built(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_built(entry) for entry in value]
    return value
