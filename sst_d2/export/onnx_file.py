"""ONNX: the network for onnxruntime and whatever else reads the format."""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sst_d2.errors import SSTConfigError
from sst_d2.export.network import INPUT, TRACED_SIZE, ExportedNetwork, tracing
from sst_d2.files import write_whole

# From the first that has GridSample to the last that PyTorch's exporter by traces writes.
OPSETS = (16, 20)
DEFAULT_OPSET = 17
_PACKAGES = {"onnx": "onnx>=1.16", "onnxruntime": "onnxruntime>=1.18"}
TYPES = {"uint8": torch.uint8, "float32": torch.float32}


def check_packages() -> None:
    """Look for the packages of the extra ``export``.

    Raises:
        SSTConfigError: one is not installed.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        wanted = " ".join(f'"{_PACKAGES[name]}"' for name in missing)
        raise SSTConfigError(
            f"ONNX files are written and compared with the package{'s' if len(missing) > 1 else ''} "
            f"{' and '.join(missing)}, not installed here: python -m pip install {wanted}"
        )


def write_onnx(
    path: Path,
    network: ExportedNetwork,
    size: tuple[int, int] | None,
    metadata: Mapping[str, Any],
    *,
    opset: int = DEFAULT_OPSET,
    input_type: str = "uint8",
) -> None:
    """Write an ONNX file with one input, ``image``.

    Args:
        path: the file.
        network: what to write.
        size: the only height and width that the file shall take; None: all.
        metadata: kept in the file's ``metadata_props``; what is no text, as JSON.
        opset: ONNX's version of operations, one of `OPSETS` and those between.
        input_type: "uint8" or "float32".

    Raises:
        SSTConfigError: the packages are not there, or this PyTorch cannot write it.
        OSError: it cannot be written; nothing is left.
    """
    check_packages()
    import onnx

    names, photo = network.output_names, torch.zeros(1, 3, *(size or TRACED_SIZE), dtype=TYPES[input_type])
    height = 1 if network.labels else 2  # axis of the outputs
    sides = {INPUT: {2: "height", 3: "width"}, **{name: {height: "height", height + 1: "width"} for name in names}}
    stream = io.BytesIO()
    with tracing(network):
        try:
            torch.onnx.export(
                network,
                (photo,),
                stream,
                input_names=[INPUT],
                output_names=names,
                dynamic_axes=None if size else sides,
                opset_version=opset,
                **_by_trace(),
            )
        except torch.onnx.errors.OnnxExporterError as reason:
            first_line = str(reason).strip().splitlines()[0]  # behind it comes the whole graph
            raise SSTConfigError(f"PyTorch {torch.__version__} cannot write it as ONNX: {first_line}") from reason
    written = onnx.load_from_string(stream.getvalue())
    onnx.checker.check_model(written)
    onnx.helper.set_model_props(written, {key: _text(value) for key, value in metadata.items()})
    content = written.SerializeToString()
    write_whole(path, lambda file: file.write(content))


def open_onnx(path: Path, threads: int = 0) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """The file's network in onnxruntime, on the CPU: a photo (1, 3, H, W) to its outputs by name.

    Args:
        path: the file.
        threads: how many may compute; 0: onnxruntime decides.

    Raises:
        SSTConfigError: (also the function that is returned) onnxruntime cannot run it.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.NotImplemented, state.RuntimeException)
    cannot = f"onnxruntime {onnxruntime.__version__} cannot run what was written"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except failures as reason:
        raise SSTConfigError(f"{cannot}: {reason}") from reason
    names = [output.name for output in session.get_outputs()]
    dtype = np.uint8 if session.get_inputs()[0].type == "tensor(uint8)" else np.float32

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        """One photo."""
        try:
            outputs = session.run(None, {INPUT: image.numpy().astype(dtype)})
        except failures as reason:
            raise SSTConfigError(f"{cannot} on {image.shape[2]} x {image.shape[3]} pixels: {reason}") from reason
        return {name: torch.from_numpy(output) for name, output in zip(names, outputs, strict=True)}

    return run


def _by_trace() -> dict[str, bool]:
    """Newer versions of PyTorch take another exporter, which cannot write this network, unless told so."""
    return {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
