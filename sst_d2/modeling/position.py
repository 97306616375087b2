"""Sine position encoding of feature maps, as in DETR."""

from __future__ import annotations

import math

import torch

_TEMPERATURE = 10000.0


def sine_position_encoding(height: int, width: int, dim: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Encode each pixel's place: the first half of the channels by its row, the second by its column.

    Args:
        height, width: size of the map, in feature pixels.
        dim: number of channels, a multiple of 4.
        device: where the result lies.

    Returns:
        (height * width, dim) float32 in [-1, 1], rows of the map one after the other.
    """
    if dim % 4:
        raise ValueError(
            f"sine_position_encoding: dim {dim}; a multiple of 4 is expected (sine and cosine, row and column)"
        )
    frequencies = _TEMPERATURE ** (torch.arange(dim // 4, device=device, dtype=torch.float32) * 4 / dim)
    rows = _encode(height, frequencies)[:, None].expand(height, width, dim // 2)
    columns = _encode(width, frequencies)[None].expand(height, width, dim // 2)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


def _encode(length: int, frequencies: torch.Tensor) -> torch.Tensor:
    """(length, 2 * len(frequencies)): sines and cosines in turn of places scaled to (0, 2 pi]."""
    places = torch.arange(1, length + 1, device=frequencies.device, dtype=torch.float32) / length * 2 * math.pi
    phases = places[:, None] / frequencies
    return torch.stack([phases.sin(), phases.cos()], dim=-1).flatten(1)
