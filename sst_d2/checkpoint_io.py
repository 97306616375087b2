"""Files of weights: written whole or not at all, read without executing anything that they hold, stripped."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
import torchvision
from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors

from sst_d2.array_pickle import read_array_pickle
from sst_d2.errors import SSTCheckpointError
from sst_d2.files import write_whole

SST_FORMAT = 1
# What evaluation and prediction need of a checkpoint, besides no weights of the training-only branch.
_FOR_INFERENCE = ("model", "label_domains", "config", "sst_format")
_GO_ON = "Earlier checkpoints are whole: make room, or choose another OUTPUT_DIR, and go on with --resume"
# What torch and pickle raise for files that are cut off, altered or of another kind.
_UNREADABLE = (
    *(RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError, ImportError),
    *(EOFError, OverflowError, MemoryError, OSError, AssertionError, SystemError, RecursionError),
    *(pickle.UnpicklingError, struct.error, SafetensorError, zipfile.BadZipFile),
)


def _is_exported(path: str) -> bool:
    """Whether the file is an ONNX graph, by its name, or a TorchScript archive, by what it holds."""
    if path.endswith(".onnx"):
        return True
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.split("/")[1:2] == ["code"] for name in archive.namelist())


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
                loaded = read_array_pickle(stream)
        elif path.endswith(".safetensors"):
            loaded = load_safetensors(path)
        elif _is_exported(path):
            raise SSTCheckpointError(
                "is a network exported as ONNX or TorchScript, which runs elsewhere and cannot be opened again; give "
                "the checkpoint (.pth) or the bundle that it was made from"
            )
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except SSTCheckpointError:
        raise
    except _UNREADABLE as reason:
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        if "weights_only" in first_line:  # what PyTorch advises there would execute the file
            first_line = "it holds no weights, or more than weights, and nothing in it is ever executed"
        raise SSTCheckpointError(
            f"cannot be read as a checkpoint ({first_line}).\nThe file is damaged, cut off or of another "
            "program; take another checkpoint, or fetch it again"
        ) from reason
    content = dict(loaded) if isinstance(loaded, dict) else {}
    # Detectron2 keeps weights under "model", many other programs under "state_dict"; torchvision's are bare.
    weights = content.setdefault("model", content.get("state_dict", loaded))
    if not isinstance(weights, dict) or not all(isinstance(key, str) and _is_plain(weights[key]) for key in weights):
        raise SSTCheckpointError("the file holds no dict of named tensors of real numbers, as weights are kept")
    written = content.get("sst_format", SST_FORMAT)
    if not isinstance(written, int) or written != SST_FORMAT:
        raise SSTCheckpointError(f"written in format {written!r} by another sst_d2; this one reads {SST_FORMAT!r}")
    return content


def write_checkpoint(path: str, write: Callable[[BinaryIO], Any], remedy: str = _GO_ON) -> None:
    """`write_whole`, with the sentence for those whose disk is full.

    Args:
        path, write: as `write_whole`.
        remedy: what to do then.

    Raises:
        SSTCheckpointError: it cannot be written; what lay under ``path`` is as it was.
    """
    try:
        write_whole(path, write)
    except (OSError, RuntimeError) as reason:  # torch's writer raises the second when a disk is full
        first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise SSTCheckpointError(f"{path}: cannot be written ({first_line}). {remedy}") from reason


def strip_auxiliary(source: str, target: str) -> dict[str, str]:
    """Write a checkpoint that holds what evaluation and prediction need: neither branch nor state of training.

    Args:
        source: a checkpoint of a training.
        target: the file to write, ``.pth``; a file of that name is replaced.

    Returns:
        what was removed, and how much of it; empty where there was nothing.

    Raises:
        SSTCheckpointError: ``source`` cannot be read or is none of ours, or ``target`` cannot be written, is the same
            file, has another ending or lies in no folder.
    """
    if os.path.realpath(source) == os.path.realpath(target):
        raise SSTCheckpointError(f"{target}: is the checkpoint itself, which stays as it is; name another file")
    if not target.endswith(".pth"):
        raise SSTCheckpointError(f"{target}: is written in torch's format, whose name ends in .pth; call it so")
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise SSTCheckpointError(f"{target}: there is no folder {folder}; make it first")
    if not os.path.isfile(source):
        raise SSTCheckpointError(f"{source}: there is no such file; name a checkpoint of a training")
    try:
        content = read_checkpoint(source)
    except SSTCheckpointError as reason:
        raise SSTCheckpointError(f"{source}: {reason}") from reason
    if "label_domains" not in content or "config" not in content:
        raise SSTCheckpointError(
            f"{source}: is no checkpoint of a training of sst_d2, which keeps its label domains and its configuration"
        )
    branch = {key: value for key, value in content["model"].items() if key.startswith("auxiliary.")}
    weights = {key: value for key, value in content["model"].items() if key not in branch}
    if not weights:
        raise SSTCheckpointError(f"{source}: holds no weights of a network")
    removed = {}
    if branch:
        numbers = sum(torch.as_tensor(value).numel() for value in branch.values())
        removed["auxiliary, the training-only branch"] = f"{len(branch)} tensors, {numbers / 1e6:.2f} M parameters"
    removed.update({key: "state of training" for key in content if key not in _FOR_INFERENCE})
    kept = {**{key: content[key] for key in _FOR_INFERENCE if key in content}, "model": weights}
    write_checkpoint(target, lambda stream: torch.save(kept, stream), "Make room there, or name another place")
    return removed


def _is_plain(value: object) -> bool:
    """Whether a tensor or an array holds its numbers as weights do."""
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and not (value.is_meta or value.is_complex() or value.is_quantized)
    return isinstance(value, np.ndarray)


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
