"""The attention operator of the pixel decoder's layers: weighted sums of features sampled at a few learned places.

Letters: B images, S pixels of all levels together, M heads, C channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F


def ms_deform_attn(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: torch.Tensor,
    attention_weights: torch.Tensor,
) -> torch.Tensor:
    """Sample every level bilinearly and sum with the weights (Deformable DETR, Eq. 3). Outside of a level lie zeros.

    Args:
        value: (B, S, M, C) float, the levels one after the other, each row by row.
        spatial_shapes: L pairs (height, width), Python ints; their areas sum to S.
        sampling_locations: (B, Q, M, L, P, 2) float, x and y; 0 and 1 are the outer edges of a level.
        attention_weights: (B, Q, M, L, P) float.

    Returns:
        (B, Q, M * C), in the type of ``value``.

    Raises:
        ValueError: the areas of ``spatial_shapes`` do not sum to S.
    """
    batch, total, heads, channels = value.shape
    areas = [height * width for height, width in spatial_shapes]
    if sum(areas) != total:
        raise ValueError(
            f"ms_deform_attn: the levels {list(spatial_shapes)} have {sum(areas)} pixels, value has {total}"
        )
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    # Half precision would move places by a tenth of a pixel: everything here is float32 at least.
    working = torch.promote_types(value.dtype, torch.float32)
    grids = 2 * sampling_locations.to(working) - 1
    sampled = []
    for level, (pixels, (height, width)) in enumerate(zip(value.split(areas, dim=1), spatial_shapes, strict=True)):
        image = pixels.to(working).permute(0, 2, 3, 1).reshape(batch * heads, channels, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.to(working).transpose(1, 2).reshape(batch * heads, 1, queries, len(areas) * points)
    summed = (torch.cat(sampled, dim=-1) * weights).sum(-1)
    return summed.view(batch, heads * channels, queries).transpose(1, 2).to(value.dtype)


def ms_deform_attn_fused(
    value: torch.Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    reference_points: torch.Tensor,
    sampling_offsets: torch.Tensor,
    attention_logits: torch.Tensor,
) -> torch.Tensor:
    """`ms_deform_attn` from what the layer's projections give: offsets from reference points, logits before softmax.

    Softmax and places are computed in float32 whatever the type of ``value``.

    Args:
        value: (B, S, M, C) float.
        spatial_shapes: L pairs (height, width), Python ints.
        reference_points: (B or 1, Q, L or 1, 2) float, x and y in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2) float, x and y in pixels of each level.
        attention_logits: (B, Q, M, L * P) float; softmax runs over L * P.

    Returns:
        (B, Q, M * C), in the type of ``value``.
    """
    sizes = sampling_offsets.new_tensor([(width, height) for height, width in spatial_shapes], dtype=torch.float32)
    offsets = sampling_offsets.float() / sizes[:, None]
    locations = reference_points.float()[:, :, None, :, None] + offsets
    weights = attention_logits.float().softmax(-1).view(sampling_offsets.shape[:-1])
    return ms_deform_attn(value, spatial_shapes, locations, weights)
