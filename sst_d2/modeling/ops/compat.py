"""For code of the Mask2Former family: the names and arguments of Deformable DETR's extension, computed by our operator.

`install` makes ``import MultiScaleDeformableAttention`` work without building that extension; or put our
`MSDeformAttnFunction` in the place of theirs. Both take the levels' sizes as a tensor. Where that lies on a GPU, each
call waits for the GPU to copy it: a tensor's content cannot be remembered safely by its address. Code that has the
sizes as Python integers calls `sst_d2.modeling.ops.ms_deform_attn` and does not wait; nor does it where the two
tensors are kept on the CPU.

``im2col_step`` is ignored: any batch goes, at once.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

import torch

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.ops.deform_attn import check_tensors, ms_deform_attn, samples_of

_NAME = "MultiScaleDeformableAttention"


class MSDeformAttnFunction:
    """Takes the place of the class of that name; differentiable as often as one likes."""

    @staticmethod
    def apply(
        value: torch.Tensor,
        value_spatial_shapes: torch.Tensor,
        value_level_start_index: torch.Tensor,
        sampling_locations: torch.Tensor,
        attention_weights: torch.Tensor,
        im2col_step: int = 64,
    ) -> torch.Tensor:
        """(B, Q, M * D); see `sst_d2.modeling.ops.ms_deform_attn`.

        Args:
            value: (B, S, M, D).
            value_spatial_shapes: (L, 2) integers, height and width.
            value_level_start_index: (L,) integers, first pixel of each level.
            sampling_locations: (B, Q, M, L, P, 2).
            attention_weights: (B, Q, M, L, P).
            im2col_step: ignored.

        Raises:
            ValueError: the sizes do not go together.
        """
        shapes = _shapes(value_spatial_shapes, value_level_start_index)
        return ms_deform_attn(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_forward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    im2col_step: int = 64,
) -> torch.Tensor:
    """As `MSDeformAttnFunction.apply`, which documents the arguments."""
    args = (value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights, im2col_step)
    return MSDeformAttnFunction.apply(*args)


def ms_deform_attn_backward(
    value: torch.Tensor,
    value_spatial_shapes: torch.Tensor,
    value_level_start_index: torch.Tensor,
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
    grad_output: torch.Tensor,
    im2col_step: int = 64,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, locations and weights, each in its tensor's type, from ``grad_output`` (B, Q, M * D).

    Raises:
        ValueError: the sizes do not go together.
    """
    name = "ms_deform_attn_backward"
    shapes = _shapes(value_spatial_shapes, value_level_start_index)
    samples = samples_of(name, value, shapes, "sampling_locations", sampling_locations)
    check_tensors(name, value, sampling_locations=(sampling_locations, (*samples, 2)))
    check_tensors(name, value, attention_weights=(attention_weights, samples))
    check_tensors(name, value, grad_output=(grad_output, (*samples[:2], value.shape[2] * value.shape[3])))
    working = torch.promote_types(value.dtype, torch.float32)
    others = [sampling_locations, attention_weights]
    gradients = torch.ops.sst_d2.ms_deform_attn_backward(
        grad_output.to(value.dtype),
        value,
        [side for shape in shapes for side in shape],
        *(tensor.to(working) for tensor in others),
    )
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, (value, *others)))


def install(replace: bool = False) -> ModuleType:
    """Make ``import MultiScaleDeformableAttention`` give a module with our two functions.

    Args:
        replace: also where the real extension is there, or another stand-in.

    Raises:
        SSTConfigError: there is one and ``replace`` is false.
    """
    found = sys.modules.get(_NAME)
    if found is not None and getattr(found, "ms_deform_attn_forward", None) is ms_deform_attn_forward:
        return found
    if not replace and (found is not None or importlib.util.find_spec(_NAME) is not None):
        place = getattr(found, "__file__", None) or getattr(importlib.util.find_spec(_NAME), "origin", "in memory")
        raise SSTConfigError(f"the module {_NAME} is there already ({place}); install(replace=True) takes its place")
    module = ModuleType(_NAME, "Multi-scale deformable attention, computed by sst_d2.modeling.ops.")
    module.__spec__ = ModuleSpec(_NAME, None)
    module.ms_deform_attn_forward = ms_deform_attn_forward
    module.ms_deform_attn_backward = ms_deform_attn_backward
    sys.modules[_NAME] = module
    return module


def _shapes(
    spatial_shapes: torch.Tensor | Sequence[Sequence[int]], level_start_index: torch.Tensor | Sequence[int]
) -> list[tuple[int, int]]:
    """The levels' sizes as integers, in one copy from the GPU."""
    sizes, begins = torch.as_tensor(spatial_shapes), torch.as_tensor(level_start_index)
    if sizes.dim() != 2 or sizes.shape[1] != 2 or sizes.is_floating_point():
        raise ValueError(
            f"ms_deform_attn: value_spatial_shapes has the shape {tuple(sizes.shape)} and type {sizes.dtype}; "
            "expected are (L, 2) integers, height and width of each level"
        )
    levels = sizes.shape[0]
    numbers = torch.cat([sizes.flatten(), begins.flatten().to(sizes)]).tolist()
    shapes, starts = list(zip(numbers[: 2 * levels : 2], numbers[1 : 2 * levels : 2])), numbers[2 * levels :]
    expected = [sum(height * width for height, width in shapes[:level]) for level in range(levels)]
    if starts != expected:
        raise ValueError(
            f"ms_deform_attn: value_level_start_index is {starts}, but levels of {shapes} one after the other begin at "
            f"{expected}"
        )
    return shapes
