"""Swin's window attention in a form whose trace holds for images of every size.

torchvision's computes window padding, shifts and masks in Python: a trace would keep those of the traced image, and be
silently wrong for others. Here they are computed by operations on sizes, which a trace records. Values are the same.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.swin_transformer import ShiftedWindowAttention

_MASKED = -100.0  # what Swin adds to the logits of places that do not belong together


@contextmanager
def traceable_windows(network: nn.Module) -> Iterator[None]:
    """Within, the network's window attention is computed by `attend`."""
    modules = [module for module in network.modules() if type(module) is ShiftedWindowAttention]
    for module in modules:
        module.forward = functools.partial(attend, module)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def attend(module: ShiftedWindowAttention, features: torch.Tensor) -> torch.Tensor:
    """As ``module(features)`` in evaluation mode, (B, H, W, C) to (B, H, W, C)."""
    batch, height, width, dim = features.shape
    window, heads = module.window_size, module.num_heads
    area = window[0] * window[1]
    # Numbers of windows, and sides filled up to whole windows.
    down, across = (height + window[0] - 1) // window[0], (width + window[1] - 1) // window[1]
    rows, columns = _Places(down, window[0], features), _Places(across, window[1], features)
    padded = F.pad(features, (0, 0, 0, columns.length - width, 0, rows.length - height))
    shifted = sum(module.shift_size) > 0
    if shifted:
        rows.shift_by(module.shift_size[0])
        columns.shift_by(module.shift_size[1])
        padded = padded.index_select(1, rows.source).index_select(2, columns.source)
    parts = padded.view(batch, down, window[0], across, window[1], dim).permute(0, 1, 3, 2, 4, 5)
    parts = parts.reshape(batch * down * across, area, dim)
    query, key, value = module.qkv(parts).unflatten(2, (3, heads, dim // heads)).permute(2, 0, 3, 1, 4).unbind(0)
    logits = (query * (dim // heads) ** -0.5).matmul(key.transpose(-2, -1)) + module.get_relative_position_bias()
    if shifted:
        region = rows.region[:, None] * 3 + columns.region
        region = region.view(down, window[0], across, window[1]).permute(0, 2, 1, 3).reshape(down * across, area)
        mask = (region[:, None] != region[:, :, None]).to(logits.dtype) * _MASKED
        logits = (logits.view(batch, down * across, heads, area, area) + mask[:, None]).flatten(0, 1)
    parts = module.proj(logits.softmax(-1).matmul(value).transpose(1, 2).flatten(2))
    parts = parts.view(batch, down, across, window[0], window[1], dim).permute(0, 1, 3, 2, 4, 5)
    padded = parts.reshape(batch, rows.length, columns.length, dim)
    if shifted:
        padded = padded.index_select(1, rows.target).index_select(2, columns.target)
    return padded[:, :height, :width].contiguous()


class _Places:
    """Places along one side of a map in whole windows.

    Args:
        windows: how many there are, an integer or what a trace has in its place.
        window: places of a window.
        like: a tensor, for its device.
    """

    def __init__(self, windows: int, window: int, like: torch.Tensor) -> None:
        self.length, self.window = windows * window, window
        self._places = torch.arange(self.length, device=like.device)

    def shift_by(self, shift: int) -> None:
        """Compute where places come from and go to, and which of Swin's three regions they belong to after the shift.

        Swin does not shift where there is but one window.
        """
        places = self._places
        shift = shift * (places[-1] >= self.window).to(places.dtype)
        self.source = (places + shift) % self.length
        self.target = (places + self.length - shift) % self.length
        in_last_window = places >= self.length - self.window
        self.region = in_last_window.to(places.dtype) + (places >= self.length - shift).to(places.dtype)
