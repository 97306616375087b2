"""Detectron2's weight files: read as they were written, and nothing in them is believed or called."""

import io
import pickle
from collections import OrderedDict

import numpy as np
import pytest

from sst_d2.array_pickle import read_array_pickle
from sst_d2.checkpoint_io import read_checkpoint
from sst_d2.errors import SSTCheckpointError


def read(content):
    return read_array_pickle(io.BytesIO(content))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8", "i8", "u1", "?"])
def test_arrays_come_back_as_they_were(kind, protocol):
    array = (np.arange(24).reshape(2, 3, 4) % 2).astype(kind)
    content = {
        "model": OrderedDict(a=array, b=np.asfortranarray(array), empty=array[:0], one=array[0, 0, 0]),
        "list": [1, 2.5, "text", None, (True, b"bytes")],
    }
    back = read(pickle.dumps(content, protocol=protocol))
    for name, value in content["model"].items():
        assert np.array_equal(back["model"][name], value) and back["model"][name].dtype == np.dtype(kind).newbyteorder(
            "="
        )
    assert back["model"]["a"].flags.writeable and back["list"] == [1, 2.5, "text", None, [True, b"bytes"]]


class Reduced:
    """Pickles as a call, and as the state that follows."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def type_of(code, *state):
    return Reduced(np.dtype, (code, False, True), (3, "<", *state, -1, -1, 0))


RECONSTRUCT = np.ndarray.__reduce__(np.zeros(0))[0]


def array_of(kind, shape, data):
    return Reduced(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, False, data))


PLAIN = (None, None, None)


@pytest.mark.parametrize(
    "hostile",
    [
        # Bytes that would be taken for pointers to objects.
        array_of(type_of("V8", None, ("o",), {"o": (np.dtype("O"), 0)}), (1,), b"\x01" * 8),
        array_of(type_of("O8", *PLAIN), (1,), b"\x01" * 8),
        array_of(type_of("S8", *PLAIN), (1,), b"\x01" * 8),
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("x", "f4")]),
        # Shapes beyond the data.
        array_of(type_of("f4", *PLAIN), (10**12,), b"1234"),
        array_of(type_of("f4", *PLAIN), (-1,), b"1234"),
        array_of(type_of("f4", *PLAIN), ("x",), b"1234"),
        array_of(type_of("f4", *PLAIN), (1,), [1.0]),
        array_of(7, (1,), b"1234"),
        Reduced(np.ndarray, ((10**15,),)),
        Reduced(np.dtype, (Reduced(np.dtype, ("f4",)),)),
    ],
)
def test_what_lies_about_memory_is_refused(hostile):
    with pytest.raises(SSTCheckpointError, match="the file holds an array"):
        read(pickle.dumps({"model": {"a": hostile}}))


def test_altered_files_give_an_error_or_arrays(tmp_path):
    good = pickle.dumps({"model": {"a": np.arange(6, dtype=np.float32), "b": np.ones((2, 2))}}, protocol=2)
    generator, path = np.random.default_rng(0), tmp_path / "altered.pkl"
    for _ in range(1500):
        altered = bytearray(good)
        for place in generator.integers(len(good), size=generator.integers(1, 4)):
            altered[place] = generator.integers(256)
        path.write_bytes(altered)
        try:
            weights = read_checkpoint(str(path))["model"]
        except SSTCheckpointError:
            continue
        assert all(isinstance(value, np.ndarray) and value.dtype.kind in "biuf" for value in weights.values())
        sum(float(value.sum()) for value in weights.values())
