"""The attention operator of the pixel decoder's layers: weighted sums of features sampled at a few learned places.

Registered with ``torch.library`` as ``sst_d2::ms_deform_attn`` and ``sst_d2::ms_deform_attn_fused``; `backends` says
which code computes them. Letters: B images, S pixels of all levels together, M heads, D channels per head, Q queries,
L levels, P points.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad

from sst_d2.modeling.ops import kernels, torch_ops

_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_PLAIN = "Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, Tensor attention_weights"
_FUSED = (
    "Tensor value, SymInt[] spatial_shapes, Tensor reference_points, Tensor sampling_offsets, Tensor attention_logits"
)


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sample every level bilinearly and sum with the weights (Deformable DETR, Eq. 3). Outside of a level lie zeros.

    Places that are out of range, infinite or no numbers contribute zero and get no gradient. Only corners inside a
    level count: an infinite number or NaN in ``value`` reaches only the samples that read its pixel. Each tensor may
    have a type and strides of its own. Places, weights and sums are computed in float32; in float64 where ``value``
    is. Gradients of gradients, and forward-mode ones, are computed in plain PyTorch.

    Args:
        value: (B, S, M, D) float, the levels one after the other, each row by row.
        spatial_shapes: L pairs (height, width), Python integers; their areas sum to S.
        sampling_locations: (B, Q, M, L, P, 2) float, x and y; 0 and 1 are the outer edges of a level.
        attention_weights: (B, Q, M, L, P) float.

    Returns:
        (B, Q, M * D), in the type of ``value``.

    Raises:
        TypeError: ``spatial_shapes`` holds anything but pairs of integers, or a tensor no floating-point numbers.
        ValueError: the sizes or devices do not go together.
    """
    shapes = _levels("ms_deform_attn", spatial_shapes)
    samples = samples_of("ms_deform_attn", value, shapes, "sampling_locations", sampling_locations)
    check_tensors("ms_deform_attn", value, sampling_locations=(sampling_locations, (*samples, 2)))
    check_tensors("ms_deform_attn", value, attention_weights=(attention_weights, samples))
    locations, weights = _typed(value, sampling_locations, attention_weights)
    form = _form_in_pytorch()
    if form:
        return _plain_form(form, shapes, value, locations, weights)
    return torch.ops.sst_d2.ms_deform_attn(value, _flat(shapes), locations, weights)


def ms_deform_attn_fused(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> torch.Tensor:
    """`ms_deform_attn` from what the layer's projections give: offsets from reference points, logits before softmax.

    Args:
        value: (B, S, M, D) float.
        spatial_shapes: L pairs (height, width), Python integers.
        reference_points: (B or 1, Q, L or 1, 2) float, x and y in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2) float, x and y in pixels of each level.
        attention_logits: (B, Q, M, L * P) float; softmax runs over L * P.

    Returns:
        (B, Q, M * D), in the type of ``value``.

    Raises:
        TypeError, ValueError: as `ms_deform_attn`.
    """
    name = "ms_deform_attn_fused"
    shapes = _levels(name, spatial_shapes)
    samples = samples_of(name, value, shapes, "sampling_offsets", sampling_offsets)
    check_tensors(name, value, reference_points=(reference_points, None))
    batch, queries, heads, levels, points = samples
    found = reference_points.shape if reference_points.dim() == 4 else (batch, 0, levels)
    references = (1 if found[0] == 1 else batch, queries, 1 if found[2] == 1 else levels, 2)
    check_tensors(name, value, reference_points=(reference_points, references))
    check_tensors(name, value, sampling_offsets=(sampling_offsets, (*samples, 2)))
    check_tensors(name, value, attention_logits=(attention_logits, (batch, queries, heads, levels * points)))
    others = _typed(value, reference_points, sampling_offsets, attention_logits)
    form = _form_in_pytorch()
    if form:
        return _fused_form(form, shapes, value, *others)
    return torch.ops.sst_d2.ms_deform_attn_fused(value, _flat(shapes), *others)


# ---- arguments ----


def _levels(name: str, spatial_shapes: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The levels' sizes. A tensor is refused, since it may lie on a GPU, which would have to be waited for."""
    try:
        if isinstance(spatial_shapes, torch.Tensor):
            raise TypeError
        return [(_integer(height), _integer(width)) for height, width in spatial_shapes]
    except (TypeError, ValueError):
        found = "a tensor" if isinstance(spatial_shapes, torch.Tensor) else repr(spatial_shapes)
        raise TypeError(
            f"{name}: spatial_shapes is {found}; expected are pairs (height, width) of Python integers, such as "
            "[(64, 64), (32, 32)]"
        ) from None


def _integer(side: Any) -> int:
    """A side; symbols stay symbols, and traced tensors, which stand for sizes in a trace, tensors."""
    if isinstance(side, (int, torch.SymInt)) or (isinstance(side, torch.Tensor) and torch.jit.is_tracing()):
        return side
    if isinstance(side, torch.Tensor):
        raise TypeError
    return operator.index(side)


def samples_of(
    name: str, value: torch.Tensor, shapes: Sequence[tuple[int, int]], places_name: str, places: torch.Tensor
) -> tuple[int, int, int, int, int]:
    """(B, Q, M, L, P), as value, levels and places say; whether they agree is `check_tensors`' matter."""
    check_tensors(name, value, value=(value, None), **{places_name: (places, None)})
    for wanted, tensor, letters in (("value", value, "(B, S, M, D)"), (places_name, places, "(B, Q, M, L, P, 2)")):
        if tensor.dim() != letters.count(",") + 1:
            raise ValueError(f"{name}: {wanted} has the shape {tuple(tensor.shape)}; expected is {letters}")
    if places.shape[4] < 1:
        raise ValueError(f"{name}: {places_name} has the shape {tuple(places.shape)}; at least one point is expected")
    areas = [height * width for height, width in shapes]
    if not areas or sum(areas) != value.shape[1] or any(height < 1 for height, _ in shapes):
        raise ValueError(
            f"{name}: the levels {list(shapes)} have {sum(areas)} pixels, value has {value.shape[1]}; "
            "expected are pairs (height, width) of positive numbers whose areas sum to value's second size"
        )
    return value.shape[0], places.shape[1], value.shape[2], len(areas), places.shape[4]


def check_tensors(name: str, value: torch.Tensor, /, **tensors: tuple[torch.Tensor, tuple[int, ...] | None]) -> None:
    """That each is a tensor, has its shape (None: any), lies where value lies, and is floating-point, as value is."""
    for argument, (tensor, expected) in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"{name}: {argument} is a {type(tensor).__name__}; expected is a PyTorch tensor")
        if expected is not None and tuple(tensor.shape) != expected:
            raise ValueError(
                f"{name}: {argument} has the shape {tuple(tensor.shape)}; value {tuple(value.shape)} and the other "
                f"arguments ask for {expected}"
            )
        if tensor.device != value.device:
            raise ValueError(f"{name}: {argument} is on {tensor.device}, value on {value.device}; move one of them")
        for what, dtype in (("value", value.dtype), (argument, tensor.dtype)):
            if dtype not in _TYPES:
                raise TypeError(f"{name}: {what} is {dtype}; float32, float64, bfloat16 and float16 are supported")


def _typed(value: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """Kernels read every type but float64, which goes with value; they compute in float32 whatever they read."""
    double = torch.float64
    if value.dtype == double:
        return [other.to(double) for other in others]
    return [other.float() if other.dtype == double else other for other in others]


def _flat(shapes: Sequence[tuple[int, int]]) -> list[int]:
    return [side for shape in shapes for side in shape]


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2]))


# ---- in operations of PyTorch ----

_Form = Callable[[torch.Tensor, torch_ops.Shapes, torch.Tensor, torch.Tensor], torch.Tensor]


def _form_in_pytorch() -> _Form | None:
    """What PyTorch's own operations must compute; None: our operation does."""
    exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # PyTorch 2.7
    if torch.jit.is_tracing() or torch.onnx.is_in_onnx_export() or exporting():
        return torch_ops.by_grids  # other runtimes know no other operations
    # In forward mode an operation of torch.library has a derivative of zero, without a word.
    return torch_ops.by_rows if getattr(forward_ad, "_current_level", -1) >= 0 else None


def _plain_form(
    form: _Form, shapes: torch_ops.Shapes, value: torch.Tensor, locations: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    return form(value, shapes, torch_ops.to_pixels(locations, shapes), weights).to(value.dtype)


def _fused_form(
    form: _Form,
    shapes: torch_ops.Shapes,
    value: torch.Tensor,
    references: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor:
    places, weights = torch_ops.to_places(references, offsets, logits, shapes)
    return form(value, shapes, places, weights).to(value.dtype)


# ---- gradients ----


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    value, ctx.shapes, *others = inputs
    ctx.save_for_backward(value, *others)


def _backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    if torch.is_grad_enabled():
        return _differentiable(_plain_form, ctx, grad_output)
    value, *others = ctx.saved_tensors
    of_value, *of_others = torch.ops.sst_d2.ms_deform_attn_backward(grad_output, value, ctx.shapes, *others)
    return of_value, None, *of_others


def _fused_backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    if torch.is_grad_enabled():
        return _differentiable(_fused_form, ctx, grad_output)
    value, references, offsets, logits = ctx.saved_tensors
    of_references, kind = None, offsets.dtype
    if ctx.needs_input_grad[2]:  # their gradient sums those of the offsets, which have an offset's type
        offsets = offsets.to(torch.promote_types(kind, torch.float32))
    of_value, of_offsets, of_logits = torch.ops.sst_d2.ms_deform_attn_fused_backward(
        grad_output, value, ctx.shapes, references, offsets, logits
    )
    if ctx.needs_input_grad[2]:
        # A reference point moves all heads and points along, by whole widths and heights.
        moved = of_offsets.sum(dim=(2, 4))
        of_references = moved * torch_ops.sizes(_pairs(ctx.shapes), moved)
        of_references = of_references.sum_to_size(references.shape).to(references.dtype)
    return of_value, None, of_references, of_offsets.to(kind), of_logits


def _differentiable(
    form: Callable[..., torch.Tensor], ctx: Any, grad_output: torch.Tensor
) -> tuple[torch.Tensor | None, ...]:
    """Gradients that can be differentiated again: of operations that can be differentiated as often as one likes."""
    # As nodes of their own: only what depends on them directly counts.
    inputs = [tensor.view_as(tensor) for tensor in ctx.saved_tensors]
    output = form(torch_ops.by_rows, _pairs(ctx.shapes), *inputs)
    wanted = [i for i, needed in enumerate(ctx.needs_input_grad[:1] + ctx.needs_input_grad[2:]) if needed]
    found = torch.autograd.grad(output, [inputs[i] for i in wanted], grad_output, create_graph=True)
    gradients: list[torch.Tensor | None] = [None] * len(inputs)
    for i, gradient in zip(wanted, found):
        gradients[i] = gradient
    return gradients[0], None, *gradients[1:]


# ---- registration ----


def _forward_kernel(kernel: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The kernel, with strides as `_fake` says: compiled code counts on them."""
    return lambda *arguments: kernel(*arguments).contiguous()


def _backward_kernel(kernel: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The kernel, with types and strides as `_fake_backward` says."""

    def run(
        grad_output: torch.Tensor, value: torch.Tensor, shapes: Sequence[int], *others: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Gradients of value and of the last two tensors."""
        found = kernel(grad_output, value, shapes, *others)
        return tuple(one.to(tensor.dtype).contiguous() for one, tensor in zip(found, (value, *others[-2:])))

    return run


def _fake(value: torch.Tensor, spatial_shapes: Sequence[int], *others: torch.Tensor) -> torch.Tensor:
    queries = others[-1].shape[1]
    return value.new_empty(value.shape[0], queries, value.shape[2] * value.shape[3])


def _fake_backward(
    grad_output: torch.Tensor, value: torch.Tensor, spatial_shapes: Sequence[int], *others: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    return tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (value, *others[-2:]))


def _register() -> torch.library.Library:
    """Define the four operations, each with one function for every device: `kernels` asks which code is to run."""
    library = torch.library.Library("sst_d2", "DEF")
    for name, arguments, backward in (
        ("ms_deform_attn", _PLAIN, _backward),
        ("ms_deform_attn_fused", _FUSED, _fused_backward),
    ):
        library.define(f"{name}({arguments}) -> Tensor")
        library.define(f"{name}_backward(Tensor grad_output, {arguments}) -> (Tensor, Tensor, Tensor)")
        library.impl(name, _forward_kernel(getattr(kernels, name)), "CompositeExplicitAutograd")
        kernel = _backward_kernel(getattr(kernels, f"{name}_backward"))
        library.impl(f"{name}_backward", kernel, "CompositeExplicitAutograd")
        torch.library.register_fake(f"sst_d2::{name}", _fake, lib=library)
        torch.library.register_fake(f"sst_d2::{name}_backward", _fake_backward, lib=library)
        torch.library.register_autograd(f"sst_d2::{name}", backward, setup_context=_save, lib=library)
    return library


# PyTorch takes a name once per process: after a reload, or for a second copy of this module, the first one serves.
if not hasattr(torch.ops.sst_d2, "ms_deform_attn"):
    _LIBRARY = _register()
