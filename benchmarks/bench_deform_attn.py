#!/usr/bin/env python
"""Time of multi-scale deformable attention against its usual form in PyTorch, level by level by ``grid_sample``, and
on a GPU also against its usual kernels (`one_channel_a_thread.cu`). Not a test: nothing fails here on a slow machine.

    python benchmarks/bench_deform_attn.py                    all sections
    python benchmarks/bench_deform_attn.py operator --json    one section, as JSON

Measured is one layer for a 512 x 512 image: levels of 64 x 64, 32 x 32 and 16 x 16 pixels, a query for each, 8 heads
of 32 channels, 4 points. Both sides are compared first, then they take turns in one process, and the best of the
repeats counts: on a busy machine the best is what disturbs least. Times on a GPU are those of its own work, without
Python's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate

from sst_d2.modeling import pixel_decoder
from sst_d2.modeling.ops import backends, ms_deform_attn, ms_deform_attn_fused, torch_ops

SHAPES = [(64, 64), (32, 32), (16, 16)]
HEADS, CHANNELS, POINTS, FFN = 8, 32, 4, 1024
GPU_CALLS = 20  # of a candidate in one measurement on a GPU
KERNELS = Path(__file__).with_name("one_channel_a_thread.cu")
Timer = Callable[[], float]


@dataclass
class Row:
    """Two candidates that compute the same.

    Attributes:
        what: what they compute.
        theirs, ours: functions that return their seconds.
        must, aim: ratios that the project asks of itself; 0: none.
    """

    what: str
    theirs: Timer
    ours: Timer
    must: float = 0
    aim: float = 0


# ---- the other side ----


def grid_sample_form(
    value: torch.Tensor, shapes: torch_ops.Shapes, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The operator as Mask2Former computes it without its extension: samples of all levels side by side, then a sum."""
    batch, _, heads, channels = value.shape
    grids, queries, found = 2 * locations - 1, locations.shape[1], []
    for level, pixels in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        image = pixels.flatten(2).transpose(1, 2).reshape(batch * heads, channels, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        found.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    factors = weights.transpose(1, 2).reshape(batch * heads, 1, queries, -1)
    summed = (torch.stack(found, dim=-2).flatten(-2) * factors).sum(-1)
    return summed.view(batch, heads * channels, queries).transpose(1, 2).contiguous()


def unfused_form(value: torch.Tensor, shapes: torch_ops.Shapes, *others: torch.Tensor) -> torch.Tensor:
    """Softmax and arithmetic of places as modules write them, then `grid_sample_form`; as `ms_deform_attn_fused`."""
    references, offsets, logits = others
    sizes = torch.tensor([(width, height) for height, width in shapes], dtype=offsets.dtype, device=offsets.device)
    locations = references[:, :, None, :, None] + offsets / sizes[:, None]
    return grid_sample_form(value, shapes, locations, logits.softmax(-1).view(offsets.shape[:-1]))


class OneChannelKernels:
    """The kernels of ``one_channel_a_thread.cu``, with the zeroed results that go with them."""

    def __init__(self) -> None:
        text = KERNELS.read_text(encoding="utf-8")
        self._forward = torch.cuda._compile_kernel(text, "one_channel_forward")
        self._backward = torch.cuda._compile_kernel(text, "one_channel_backward")
        self._sides = torch.tensor(SHAPES, dtype=torch.int32, device="cuda")

    def forward(self, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """(B, Q, M D), float32."""
        (batch, pixels, heads, channels), (_, queries, _, levels, points) = value.shape, weights.shape
        output = value.new_zeros(batch, queries, heads * channels)
        numbers = [batch, pixels, heads, channels, levels, queries, points]
        blocks = -(-output.numel() // 1024)
        self._forward((blocks, 1, 1), (1024, 1, 1), [value, self._sides, locations, weights, output, *numbers])
        return output

    def backward(
        self, grad_output: torch.Tensor, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
    ) -> list[torch.Tensor]:
        """Gradients of value, locations and weights."""
        (batch, pixels, heads, channels), (_, queries, _, levels, points) = value.shape, weights.shape
        gradients = [torch.zeros_like(tensor) for tensor in (value, locations, weights)]
        numbers = [pixels, heads, channels, levels, queries, points]
        arguments = [grad_output, value, self._sides, locations, weights, *gradients, *numbers]
        self._backward((batch * queries * heads, 1, 1), (channels, 1, 1), arguments, shared_mem=12 * channels)
        return gradients


# ---- inputs ----


@dataclass
class Inputs:
    """What one layer computes with. Offsets are those of a new network, give or take a pixel.

    Attributes:
        value, locations, weights: of `ms_deform_attn`.
        references, offsets, logits: of `ms_deform_attn_fused`.
        grad_output: (B, Q, M * D).
    """

    value: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    references: torch.Tensor
    offsets: torch.Tensor
    logits: torch.Tensor
    grad_output: torch.Tensor

    @property
    def plain(self) -> list[torch.Tensor]:
        """Value, locations, weights."""
        return [self.value, self.locations, self.weights]


def make_inputs(batch: int, device: str) -> Inputs:
    """Random ones, the same every time."""
    generator = torch.Generator().manual_seed(0)
    queries, levels = sum(height * width for height, width in SHAPES), len(SHAPES)
    centres = torch.cat([pixel_decoder._pixel_centres(*shape, torch.device("cpu")) for shape in SHAPES])
    angles = torch.arange(HEADS) * (2 * math.pi / HEADS)
    directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
    directions = directions / directions.abs().amax(-1, keepdim=True)
    steps = directions[:, None, None] * torch.arange(1, POINTS + 1)[:, None]
    offsets = steps + torch.randn(batch, queries, HEADS, levels, POINTS, 2, generator=generator)
    sizes = torch.tensor([(width, height) for height, width in SHAPES])
    logits = torch.randn(batch, queries, HEADS, levels * POINTS, generator=generator)
    tensors = [
        torch.randn(batch, queries, HEADS, CHANNELS, generator=generator),
        centres[:, None, None, None] + offsets / sizes[:, None],
        logits.softmax(-1).view(batch, queries, HEADS, levels, POINTS),
        centres[None, :, None],
        offsets,
        logits,
        torch.randn(batch, queries, HEADS * CHANNELS, generator=generator),
    ]
    return Inputs(*(tensor.contiguous().to(device) for tensor in tensors))


# ---- sections ----


def operator_rows() -> Iterator[Row]:
    """The operator on the CPU."""
    for batch, goals in ((1, (10, 25, 8, 14)), (4, (8, 15, 7, 11))):
        inputs = make_inputs(batch, "cpu")
        yield forward_row(f"forward, batch {batch}", inputs, *goals[:2])
        yield both_ways_row(f"forward and backward, batch {batch}", inputs, *goals[2:])
    inputs = make_inputs(1, "cpu")
    value, *others = inputs.plain
    exact = grid_sample_form(value, SHAPES, *others)
    fused = (value, SHAPES, inputs.references, inputs.offsets, inputs.logits)
    theirs, ours = (call(form, *fused) for form in (unfused_form, ms_deform_attn_fused))
    yield row("softmax, places, forward, batch 1", theirs, ours, exact, 15, 30)
    theirs, ours = call(grid_sample_form, value, SHAPES, *others), call(plain_pytorch, *inputs.plain)
    yield row("forward, ours in plain PyTorch, batch 1", theirs, ours, exact, 2, 4)
    theirs, ours = both_ways(grid_sample_form, inputs), call(plain_pytorch_both_ways, inputs)
    yield row("forward and backward, ours in plain PyTorch, batch 1", theirs, ours, theirs()[0], 0, 0)


def half_rows() -> Iterator[Row]:
    """The operator on the CPU in bfloat16; ours with places in float32."""
    value, *others = make_inputs(1, "cpu").plain
    theirs = call(grid_sample_form, value.bfloat16(), SHAPES, *(tensor.bfloat16() for tensor in others))
    ours = call(ms_deform_attn, value.bfloat16(), SHAPES, *others)
    yield row("forward, bfloat16, batch 1", theirs, ours, grid_sample_form(value, SHAPES, *others), 25, 50)


def layer_rows() -> Iterator[Row]:
    """A whole encoder layer on the CPU: projections, attention, feed-forward network of width 1024."""
    inputs, dim = make_inputs(1, "cpu"), HEADS * CHANNELS
    attention = pixel_decoder.DeformableAttention(dim, len(SHAPES), HEADS, POINTS)
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=dim**-0.5)  # a pixel: not all on pixels' centres
    layer = pixel_decoder.DeformableEncoderLayer(attention, dim, FFN, 0.0)
    features, positions = inputs.value.flatten(2), torch.randn_like(inputs.value[0].flatten(1))

    def forward(operator: Callable[..., torch.Tensor]) -> torch.Tensor:
        pixel_decoder.ms_deform_attn_fused = operator
        output = layer(features, positions, SHAPES, inputs.references)
        pixel_decoder.ms_deform_attn_fused = ms_deform_attn_fused
        return output

    def with_gradients(operator: Callable[..., torch.Tensor]) -> torch.Tensor:
        output = forward(operator)
        return torch.autograd.grad(output, features_and_weights, inputs.grad_output)[0]

    features_and_weights = [features.requires_grad_(), *layer.parameters()]
    theirs, ours = call(forward, unfused_form), call(forward, ms_deform_attn_fused)
    yield row("encoder layer, forward, batch 1", theirs, ours, theirs(), 2, 2.6)
    theirs, ours = (lambda: with_gradients(unfused_form)), (lambda: with_gradients(ms_deform_attn_fused))
    yield row("encoder layer, forward and backward, batch 1", theirs, ours, theirs(), 0, 0)


def gpu_rows() -> Iterator[Row]:
    """The operator on a GPU, against ``grid_sample``, then against one channel a thread."""
    kernels, flat = OneChannelKernels(), [side for shape in SHAPES for side in shape]
    backward = torch.ops.sst_d2.ms_deform_attn_backward
    for batch in (1, 4):
        inputs = make_inputs(batch, "cuda")
        value, *others = inputs.plain
        yield forward_row(f"GPU, forward, batch {batch}", inputs, 8, 15)
        yield both_ways_row(f"GPU, forward and backward, batch {batch}", inputs, 6, 10)
        theirs, exact = call(kernels.forward, *inputs.plain), grid_sample_form(value, SHAPES, *others)
        other_side = f"against one channel a thread in float32, batch {batch}"
        ours = call(ms_deform_attn, value, SHAPES, *others)
        yield row(f"GPU, forward {other_side}", theirs, ours, exact, 2.5, 4)
        ours = call(ms_deform_attn, value.bfloat16(), SHAPES, *others)
        yield row(f"GPU, forward in bfloat16 {other_side}", theirs, ours, exact, 4, 6)
        theirs = call(kernels.backward, inputs.grad_output, *inputs.plain)
        ours = call(backward, inputs.grad_output, value, flat, *others)
        yield row(f"GPU, backward {other_side}", theirs, ours, theirs(), 2, 3)


SECTIONS = {"operator": operator_rows, "half": half_rows, "layer": layer_rows, "gpu": gpu_rows}


def forward_row(what: str, inputs: Inputs, must: float, aim: float) -> Row:
    """Forward without gradients."""
    value, *others = inputs.plain
    theirs, ours = (call(form, value, SHAPES, *others) for form in (grid_sample_form, ms_deform_attn))
    return row(what, theirs, ours, theirs(), must, aim)


def both_ways_row(what: str, inputs: Inputs, must: float, aim: float) -> Row:
    """Forward and backward, gradients of all inputs."""
    theirs, ours = both_ways(grid_sample_form, inputs), both_ways(ms_deform_attn, inputs)
    return row(what, theirs, ours, theirs(), must, aim)


def both_ways(form: Callable[..., torch.Tensor], inputs: Inputs) -> Callable[[], tuple[torch.Tensor, ...]]:
    """Forward and backward of a form."""
    value, *others = tensors = [tensor.clone().requires_grad_() for tensor in inputs.plain]
    return lambda: torch.autograd.grad(form(value, SHAPES, *others), tensors, inputs.grad_output)


def plain_pytorch(value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Ours, forward, where there is no compiled code."""
    return torch_ops.by_bags(value, SHAPES, torch_ops.to_pixels(locations, SHAPES), weights)


def plain_pytorch_both_ways(inputs: Inputs) -> torch.Tensor:
    """Ours, forward and backward, where there is no compiled code; the gradient of value."""
    plain_pytorch(*inputs.plain)
    places = torch_ops.to_pixels(inputs.locations, SHAPES)
    return torch_ops.gradients(inputs.grad_output, inputs.value, SHAPES, places, inputs.weights)[0]


def call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call, without gradients."""
    return lambda: torch.no_grad()(function)(*arguments)


# ---- measuring ----


def stopwatch(run: Callable[[], Any]) -> Timer:
    """The run, returning its seconds."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def gpu_stopwatch(run: Callable[[], Any]) -> Timer:
    """Seconds of the GPU's own work in one run: the work is recorded once, and played without Python."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GPU_CALLS):
            run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def timed() -> float:
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / GPU_CALLS

    return timed


def row(what: str, theirs: Callable[[], Any], ours: Callable[[], Any], exact: Any, must: float, aim: float) -> Row:
    """A row, after a look whether ours gives what it must give: other times could not be compared."""
    found = ours()
    pairs = [(exact, found)] if isinstance(found, torch.Tensor) else zip(exact, found, strict=True)
    for expected, result in pairs:
        # In the mean: the gradient of a place jumps where it meets a pixel, on this side of rounding or on that.
        error = ((result.double() - expected.double()).norm() / expected.double().norm()).item()
        if not error < 0.005:
            raise RuntimeError(f"{what}: results differ by {error:.2%}; their times cannot be compared")
    timer = gpu_stopwatch if result.is_cuda else stopwatch
    return Row(what, timer(theirs), timer(ours), must, aim)


def measure(pair: Row, repeats: int) -> dict[str, Any]:
    """Milliseconds of both sides' fastest runs and their ratio; the sides take turns, after one run each."""
    best = {"theirs_ms": math.inf, "ours_ms": math.inf}
    for turn in range(repeats + 1):
        for name, run in (("theirs_ms", pair.theirs), ("ours_ms", pair.ours)):
            seconds = run()
            if turn > 0:
                best[name] = min(best[name], 1000 * seconds)
    return {"what": pair.what, **best, "ratio": best["theirs_ms"] / best["ours_ms"], "must": pair.must, "aim": pair.aim}


def absent(section: str) -> str:
    """Why a section cannot be measured here; "": it can."""
    if section == "half":
        nothing = torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16)
        try:
            F.grid_sample(nothing, nothing, align_corners=False)
        except RuntimeError as reason:  # before PyTorch 2.6
            return str(reason)
    if section == "gpu" and not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    if section == "gpu" and not hasattr(torch.cuda, "_compile_kernel"):
        return f"PyTorch {torch.__version__} cannot compile the kernels to compare with; a newer one can"
    return ""


def main() -> None:
    """Read the command line, measure, print one table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--repeats", type=int, default=9, help="rounds, at least 7 (default 9)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch on the CPU")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; sections: {', '.join(SECTIONS)}")
    if args.repeats < 7 or args.threads < 1:
        parser.error(f"--repeats {args.repeats} --threads {args.threads}: at least 7 repeats and 1 thread are needed")
    torch.set_num_threads(args.threads)
    wanted = args.sections or list(SECTIONS)
    missing = {name: absent(name) for name in wanted if absent(name)}
    rows = []
    for section in (name for name in wanted if name not in missing):
        for pair in SECTIONS[section]():
            rows.append(measure(pair, args.repeats))
            print(f"{pair.what}: {rows[-1]['ratio']:.1f}", file=sys.stderr)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    report = {
        "back_ends": {device: backends.choice(device).name for device in (["cpu", "cuda"] if gpu else ["cpu"])},
        "gpu": gpu or "none",
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "repeats": args.repeats,
        "torch": torch.__version__,
        "left_out": missing,
        "rows": rows,
    }
    print(json.dumps(report, indent=1) if args.json else as_table(report))


def as_table(report: dict[str, Any]) -> str:
    """The report for a person."""
    rows = [[cell or None for cell in row.values()] for row in report["rows"]]
    lines = [", ".join(f"{key} {value}" for key, value in report.items() if key not in ("rows", "left_out"))]
    lines.append(tabulate(rows, headers=["", "theirs, ms", "ours, ms", "ratio", "must", "aim"], floatfmt=".3g"))
    lines += [f"{name}: left out, {reason}" for name, reason in report["left_out"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
