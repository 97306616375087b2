"""The four operations on tensors without gradients, each computed by the back end of its device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sst_d2.modeling.ops import backends, cuda_launch, torch_ops

_Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Shapes as `sst_d2.modeling.ops.ms_deform_attn`; ``spatial_shapes`` height, width, height, …"""
    return _run("ms_deform_attn", _plain_forward, value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: Sequence[int],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> _Gradients:
    """Gradients of value, locations and weights, from that of the output, (B, Q, M * D)."""
    others = (sampling_locations, attention_weights)
    return _run("ms_deform_attn_backward", _plain_backward, value, spatial_shapes, *others, grad_output=grad_output)


def ms_deform_attn_fused(
    value: torch.Tensor,
    spatial_shapes: Sequence[int],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> torch.Tensor:
    """Shapes as `sst_d2.modeling.ops.ms_deform_attn_fused`; ``spatial_shapes`` height, width, height, …"""
    others = (reference_points, sampling_offsets, attention_logits)
    return _run("ms_deform_attn_fused", _fused_forward, value, spatial_shapes, *others)


def ms_deform_attn_fused_backward(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    spatial_shapes: Sequence[int],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> _Gradients:
    """Gradients of value, offsets and logits; that of the reference points follows from the offsets'."""
    others = (reference_points, sampling_offsets, attention_logits)
    return _run(
        "ms_deform_attn_fused_backward", _fused_backward, value, spatial_shapes, *others, grad_output=grad_output
    )


def _run(
    name: str,
    plain: Callable[..., Any],
    value: torch.Tensor,
    flat: Sequence[int],
    *others: torch.Tensor,
    grad_output: torch.Tensor | None = None,
) -> Any:
    device, shape = value.device.type, tuple(flat)
    chosen = backends.for_call(device, value.dtype, tuple(value.shape), shape, tuple(others[-2].shape))
    tensors = [tensor.contiguous() for tensor in (value, *others)]
    before = () if grad_output is None else (grad_output.contiguous(),)
    if before and device == "cuda" and chosen != "torch":
        backends.check_determinism(name, chosen)
    if chosen == "ext":
        return getattr(getattr(torch.ops, f"sst_d2_{device}"), name)(*before, tensors[0], list(flat), *tensors[1:])
    if chosen == "nvrtc":
        return cuda_launch.launch(name, tensors, shape, *before)
    return plain(list(zip(flat[::2], flat[1::2])), *before, *tensors)


def _plain_forward(
    shapes: torch_ops.Shapes, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    places = torch_ops.to_pixels(locations, shapes)
    return torch_ops.by_bags(value, shapes, places, weights).to(value.dtype)


def _fused_forward(
    shapes: torch_ops.Shapes,
    value: torch.Tensor,
    references: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    places, weights = torch_ops.to_places(references, offsets, logits, shapes)
    return torch_ops.by_bags(value, shapes, places, weights).to(value.dtype)


def _plain_backward(
    shapes: torch_ops.Shapes,
    grad_output: torch.Tensor,
    value: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> _Gradients:
    places = torch_ops.to_pixels(locations, shapes)
    of_value, of_places, of_weights = _gradients(grad_output, value, shapes, places, weights)
    of_locations = of_places * torch_ops.sizes(shapes, places)[:, None]
    return of_value.to(value.dtype), of_locations, of_weights


def _fused_backward(
    shapes: torch_ops.Shapes,
    grad_output: torch.Tensor,
    value: torch.Tensor,
    references: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
) -> _Gradients:
    places, weights = torch_ops.to_places(references, offsets, logits, shapes)
    of_value, of_places, of_weights = _gradients(grad_output, value, shapes, places, weights)
    pulls = (weights * of_weights).flatten(3)
    of_logits = pulls - weights.flatten(3) * pulls.sum(-1, keepdim=True)
    return of_value.to(value.dtype), of_places, of_logits


def _gradients(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    shapes: torch_ops.Shapes,
    places: torch.Tensor,
    weights: torch.Tensor,
) -> _Gradients:
    """`torch_ops.gradients`; in one order of additions where that is asked for."""
    if value.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return _ordered_gradients(grad_output, value, shapes, places, weights)
    return torch_ops.gradients(grad_output, value, shapes, places, weights)


def _ordered_gradients(
    grad_output: torch.Tensor,
    value: torch.Tensor,
    shapes: torch_ops.Shapes,
    places: torch.Tensor,
    weights: torch.Tensor,
) -> _Gradients:
    """On CUDA ``grid_sample`` adds gradients in any order; indexing sorts them first."""
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value.to(places.dtype), places, weights)]
        output = torch_ops.by_rows(inputs[0], shapes, *inputs[1:])
    return torch.autograd.grad(output, inputs, grad_output.to(output.dtype))
