"""Files of weights: written whole or not at all, and read without executing anything that they hold."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from sst_d2.errors import SSTCheckpointError

SST_FORMAT = 1
# What torch and pickle raise for files that are cut off, altered or of another kind.
_UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError),
    *(EOFError, OverflowError, MemoryError, OSError, pickle.UnpicklingError, SafetensorError),
)


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a file of weights: ``.safetensors``, Detectron2's ``.pkl``, else torch's own format.

    Args:
        path: a local file.

    Returns:
        the file's content; "model" is a dict of named tensors or arrays.

    Raises:
        SSTCheckpointError: the file is damaged, of another program or another format, or asks to execute something.
    """
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as stream:
                loaded = _ArrayUnpickler(stream, encoding="latin1").load()
        elif path.endswith(".safetensors"):
            loaded = load_safetensors(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except SSTCheckpointError:
        raise
    except _UNREADABLE as reason:
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise SSTCheckpointError(
            f"cannot be read as a checkpoint ({first_line}).\nThe file is damaged, cut off or of another "
            "program; take another checkpoint, or fetch it again"
        ) from reason
    content = dict(loaded) if isinstance(loaded, dict) else {}
    # Detectron2 keeps weights under "model", many other programs under "state_dict"; torchvision's are bare.
    weights = content.setdefault("model", content.get("state_dict", loaded))
    if not isinstance(weights, dict) or not all(
        isinstance(key, str) and isinstance(value, (torch.Tensor, np.ndarray)) for key, value in weights.items()
    ):
        raise SSTCheckpointError("the file holds no dict of named tensors, as weights are kept")
    if content.get("sst_format", SST_FORMAT) != SST_FORMAT:
        raise SSTCheckpointError(
            f"written in format {content['sst_format']!r} by another sst_d2; this one reads {SST_FORMAT!r}"
        )
    return content


def write_whole(path: str, write: Callable[[BinaryIO], Any]) -> None:
    """Write under another name, on to the disk, then rename: under ``path`` there is never a part of a file.

    Args:
        path: the file.
        write: writes its content to the stream that it is given.

    Raises:
        SSTCheckpointError: it cannot be written; what lay under ``path`` is as it was.
    """
    partial = f"{path}.partial"
    try:
        with open(partial, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as reason:  # torch's writer raises the second when a disk is full
        with contextlib.suppress(OSError):
            os.remove(partial)
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise SSTCheckpointError(
            f"{path}: cannot be written ({first_line}). Earlier checkpoints are whole: make room, or choose another "
            "OUTPUT_DIR, and go on with --resume"
        ) from reason


class _TorchvisionWeights(PathHandler):
    """``torchvision://resnet50``: torchvision's ImageNet weights of that network (RGB), fetched once and kept."""

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        name = path.removeprefix(self.PREFIX)
        try:
            weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        except (KeyError, ValueError) as reason:
            raise SSTCheckpointError(f"torchvision has no ImageNet weights of a network '{name}'") from reason
        return PathManager.get_local_path(weights.url, force=force)


PathManager.register_handler(_TorchvisionWeights(), allow_override=True)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads arrays in plain containers, the form of Detectron2's model zoo, and refuses the rest."""

    _ALLOWED = frozenset(
        {
            ("collections", "OrderedDict"),
            ("_codecs", "encode"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "scalar"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """The few constructors that arrays need."""
        if (module, name) not in self._ALLOWED:
            raise SSTCheckpointError(
                f"the file asks to load {module}.{name}; only arrays in plain containers are read from a .pkl file, "
                "since others can execute code. Convert the weights to a .pth file of tensors"
            )
        if name in ("_reconstruct", "scalar"):
            # NumPy 1 and 2 name this module differently.
            module = np.ndarray.__reduce__(np.zeros(0))[0].__module__
        return super().find_class(module, name)
