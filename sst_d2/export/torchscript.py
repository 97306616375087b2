"""TorchScript: a trace of the network inside a script that refuses what the trace is not made for."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.export.network import TRACED_SIZE, ExportedNetwork, tracing
from sst_d2.files import write_whole

METADATA = "metadata.json"


class _Checked(nn.Module):
    """Looks at the photo, then calls the trace.

    Args:
        trace: of an `ExportedNetwork`, for float32.
        names: of its outputs.
        size: the only height and width that are allowed; (0, 0): all are.
    """

    def __init__(self, trace: nn.Module, names: list[str], size: tuple[int, int]) -> None:
        super().__init__()
        self.trace = trace
        self.names = names
        self.height, self.width = size

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """(1, 3, H, W) uint8 or float32 to the outputs by name."""
        if image.dim() != 4 or image.size(0) != 1 or image.size(1) != 3 or image.numel() == 0:
            raise ValueError(f"image has the shape {list(image.shape)}; expected is (1, 3, H, W), one photo in RGB")
        if image.dtype != torch.uint8 and image.dtype != torch.float32:
            raise ValueError("image is neither uint8 nor float32; expected are values in 0..255 of one of these types")
        if self.height > 0 and (image.size(2) != self.height or image.size(3) != self.width):
            raise ValueError(
                f"image has {image.size(2)} x {image.size(3)} pixels (height x width); this network was exported for "
                f"{self.height} x {self.width} alone. Resize the photo, or export without --size"
            )
        with torch.no_grad():  # or every call would keep what a backward pass needs
            outputs: list[torch.Tensor] = self.trace(image.to(torch.float32))
        return dict(zip(self.names, outputs))


def write_torchscript(
    path: Path, network: ExportedNetwork, size: tuple[int, int] | None, metadata: Mapping[str, Any]
) -> None:
    """Write a file that ``torch.jit.load`` opens, without sst_d2 or Detectron2.

    Args:
        path: the file.
        network: what to write.
        size: the only height and width that the file shall take; None: all.
        metadata: kept as JSON in the file ``metadata.json`` inside (``torch.jit.load``'s ``_extra_files``).

    Raises:
        OSError: it cannot be written; nothing is left.
    """
    with tracing(network):
        trace = torch.jit.trace(_AsList(network), torch.zeros(1, 3, *(size or TRACED_SIZE)), check_trace=False)
        _follow_input(trace)
        script = torch.jit.script(_Checked(trace, network.output_names, size or (0, 0)).eval())
        extra = {METADATA: json.dumps(metadata, ensure_ascii=False)}
        write_whole(path, lambda stream: torch.jit.save(script, stream, _extra_files=extra))


class _AsList(nn.Module):
    """The outputs as a list, which a script can go through whatever their number.

    Args:
        network: what gives a tuple.
    """

    def __init__(self, network: ExportedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """As the network."""
        return list(self.network(image))


def _follow_input(trace: torch.jit.ScriptModule) -> None:
    """Make tensors that the trace makes anew lie where its input lies, not where it lay while tracing."""
    for module in trace.modules():
        if not module._c._has_method("forward"):
            continue
        graph = module._c._get_method("forward").graph
        fixed = [node for node in graph.findAllNodes("prim::Constant") if _kind(node.output()) == "DeviceObjType"]
        if fixed:
            tensor = next(value for value in graph.inputs() if _kind(value) == "TensorType")
            device = graph.create("prim::device", [tensor], 1)
            device.output().setType(torch._C.DeviceObjType.get())
            graph.prependNode(device)
            for node in fixed:
                node.output().replaceAllUsesWith(device.output())


def _kind(value: torch._C.Value) -> str:
    return value.type().kind()


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a file that `write_torchscript` has written."""
    extra = {METADATA: ""}
    torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    return json.loads(extra[METADATA])


def open_torchscript(path: Path) -> Callable[[torch.Tensor], dict[str, torch.Tensor]]:
    """The file's network, on the CPU: a photo (1, 3, H, W) to its outputs by name.

    Raises:
        SSTConfigError: (by the function that is returned) it cannot be run.
    """
    script = torch.jit.load(str(path), map_location="cpu")

    def run(image: torch.Tensor) -> dict[str, torch.Tensor]:
        """One photo."""
        try:
            return script(image)
        except RuntimeError as reason:  # also torch.jit.Error
            size = f"{image.shape[2]} x {image.shape[3]} pixels"
            last_line = str(reason).strip().splitlines()[-1]  # before it comes code of the trace
            raise SSTConfigError(f"TorchScript cannot run what was written on {size}: {last_line}") from reason

    return run
