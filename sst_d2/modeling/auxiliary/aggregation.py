"""MSA, Multi-scale Semantics Aggregation (Eq. 2–4): one vector per category from the pixels of its region.

Letters: B images, K categories, D channels, h × w pixels of a feature map.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sst_d2.modeling.losses import IGNORE

# A map is gone through in parts of at least so many pixels.
_PIXELS = 64


class SemanticAggregation(nn.Module):
    """Pool features inside each category's region, by mean and by maximum, and project both together (Eq. 2–4).

    One per label domain; the projection W_s serves all scales (A11) and has no bias, so that a category that is absent
    in an image gives the zero vector (A7).

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, average: torch.Tensor, maximum: torch.Tensor) -> torch.Tensor:
        """Pooled features, (B, K, D) each, to S_l, (B, K, D) (Eq. 4)."""
        return self.projection(torch.cat([average, maximum], dim=-1))


def regions_at(labels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Label maps at the size of a feature map, by the nearest pixel: (B, H, W) int64 to (B, *size) int64."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    return F.interpolate(labels[:, None].float(), size=size, mode="nearest")[:, 0].long()


def pool_categories(
    features: torch.Tensor, regions: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mean and maximum of the features over each category's pixels (Eq. 2, 3); zero where a category has none.

    The maximum is taken inside the region only, so it may be negative. Sums are made in float32 at least. Neither
    images nor categories are gone through one by one, and nothing of the size B × K × D × h × w is made: on the way to
    the results, a map of many pixels takes at most as much memory again as the features.

    Args:
        features: (B, D, h, w) float.
        regions: (B, h, w) int64, ids in [0, K) or `IGNORE`.
        num_classes: K; of images of several label domains the largest.

    Returns:
        mean (B, K, D), maximum (B, K, D), and whether the category occurs (B, K) bool.
    """
    with torch.autocast(features.device.type, enabled=False):
        average, maximum, counts = _Pooling.apply(features.flatten(2), regions.flatten(1), num_classes)
    return average, maximum, counts > 0


class _Pooling(torch.autograd.Function):
    """Mean and maximum by bin, with gradients by hand: PyTorch's own take twice as long.

    Equal maxima share the gradient.
    """

    @staticmethod
    def forward(
        ctx: Any, features: torch.Tensor, regions: torch.Tensor, num_classes: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, D, N) and (B, N) to (B, K, D) twice, and the number of pixels (B, K)."""
        images, dim, _ = features.shape
        precise = torch.promote_types(features.dtype, torch.float32)
        totals = features.new_zeros(images, num_classes + 1, dim, dtype=precise)
        counts = features.new_zeros(images, num_classes + 1, dtype=precise)
        maxima = features.new_full((images * (num_classes + 1), dim), -torch.inf, dtype=precise)
        size = _part_size(features, num_classes)
        for part, ids in zip(features.split(size, dim=2), regions.split(size, dim=1), strict=True):
            _add_pixels(part, ids, totals, counts, maxima)
        maxima.masked_fill_(counts.view(-1, 1) == 0, 0)
        counts, totals = counts[:, :num_classes], totals[:, :num_classes]
        ctx.save_for_backward(features, regions, maxima, counts)
        ctx.mark_non_differentiable(counts)
        maximum = maxima.view(images, num_classes + 1, dim)[:, :num_classes]
        return totals.div_(counts.clamp(min=1)[..., None]), maximum, counts

    @staticmethod
    def backward(
        ctx: Any, of_average: torch.Tensor, of_maximum: torch.Tensor, of_counts: None
    ) -> tuple[torch.Tensor, None, None]:
        """Gradients (B, K, D) to (B, D, N)."""
        features, regions, maxima, counts = ctx.saved_tensors
        places = _places(_bins(regions, counts.shape[1]), counts.shape[1])
        # Pixel by pixel in memory, (B, N, D): comparing, PyTorch keeps the order of the first.
        hits = maxima.index_select(0, places).unflatten(0, regions.shape) == features.transpose(1, 2)
        hits = hits.to(maxima.dtype).flatten(0, 1)
        ties = torch.zeros_like(maxima).index_add_(0, places, hits)
        shares = _with_last_bin(of_maximum) / ties.clamp_(min=1)
        means = _with_last_bin(of_average / counts.clamp(min=1)[..., None])
        gradient = hits.mul_(shares.index_select(0, places)).add_(means.index_select(0, places))
        return gradient.to(features.dtype).unflatten(0, regions.shape).transpose(1, 2), None, None


def _part_size(features: torch.Tensor, num_classes: int) -> int:
    """How many pixels of (B, D, N) features go through at once.

    Their copy, in float32 at least, and their bins then take as much memory as the features at most: narrow features
    and half precision need more parts. Parts of a few pixels would take longer to start than to compute.
    """
    _, dim, pixels = features.shape
    copied = (dim + num_classes + 1) * max(4, features.element_size())
    parts = math.ceil(copied / (dim * features.element_size()))
    return max(_PIXELS, math.ceil(pixels / parts))


def _add_pixels(
    features: torch.Tensor, regions: torch.Tensor, totals: torch.Tensor, counts: torch.Tensor, maxima: torch.Tensor
) -> None:
    """Take (B, D, n) features with (B, n) ids into sums (B, K + 1, D), counts (B, K + 1), maxima (B (K + 1), D)."""
    pixels = totals.new_empty(*regions.shape, features.shape[1]).copy_(features.transpose(1, 2))
    bins = _bins(regions, counts.shape[1] - 1)
    members = counts.new_zeros(*bins.shape, counts.shape[1]).scatter_(2, bins[..., None], 1)
    totals.baddbmm_(members.transpose(1, 2), pixels)
    counts += members.sum(dim=1)
    pixels = pixels.flatten(0, 1)
    places = _places(bins, counts.shape[1] - 1)
    maxima.scatter_reduce_(0, places[:, None].expand_as(pixels), pixels, "amax")


def _bins(regions: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Pixels that do not count fall into a bin of their own, the last: (B, N) ids to (B, N) in [0, K]."""
    return regions.masked_fill(regions == IGNORE, num_classes)


def _places(bins: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Each image has bins of its own: (B, N) in [0, K] to (B N,) in [0, B (K + 1))."""
    return (bins + torch.arange(len(bins), device=bins.device)[:, None] * (num_classes + 1)).flatten()


def _with_last_bin(gradients: torch.Tensor) -> torch.Tensor:
    """(B, K, D) to (B (K + 1), D): what falls into the last bin has none."""
    return F.pad(gradients, (0, 0, 0, 1)).flatten(0, 1)
