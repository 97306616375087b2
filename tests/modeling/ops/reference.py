"""Multi-scale deformable attention in loops over NumPy's float64, forwards and backwards, and inputs of odd sizes.

Letters: B images, S pixels of all levels, M heads, D channels per head, Q queries, L levels, P points. A shape that
ends in (L, P) may also come flattened. Gradients are written out by hand, with no automatic differentiation behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

Shapes = list[tuple[int, int]]


def differing(result, truth, absolute, relative=0.0):
    """Where two arrays differ: one is NaN, or infinite, and the other not so, or they are not within a tolerance.

    Args:
        absolute: tolerance as a part of the largest finite number of ``truth``, which counts as 1 at least.
        relative: further tolerance as a part of each number.
    """
    result, truth = (np.asarray(array, dtype=np.float64) for array in (result, truth))
    finite = np.isfinite(truth)
    largest = np.abs(truth[finite]).max(initial=1)
    with np.errstate(invalid="ignore"):
        near = np.abs(result - truth) <= absolute * largest + relative * np.abs(truth)
        return ~np.where(finite, near, (result == truth) | (np.isnan(result) & np.isnan(truth)))


def forward(value, shapes, locations, weights):
    """(B, S, M, D), (B, Q, M, L, P, 2), (B, Q, M, L, P) to (B, Q, M * D)."""
    return in_pixels(value, shapes, _to_pixels(locations, shapes), weights)


def backward(grad_output, value, shapes, locations, weights):
    """Gradients of value, locations and weights."""
    places = _to_pixels(locations, shapes)
    of_value, of_places, of_weights = in_pixels_backward(grad_output, value, shapes, places, weights)
    return of_value, of_places * _sizes(shapes), of_weights


def fused_forward(value, shapes, references, offsets, logits):
    """(B, S, M, D), (B or 1, Q, L or 1, 2), (B, Q, M, L, P, 2), (B, Q, M, L * P) to (B, Q, M * D)."""
    places, weights = _fused_inputs(shapes, references, offsets, logits)
    return in_pixels(value, shapes, places, weights)


def fused_backward(grad_output, value, shapes, references, offsets, logits):
    """Gradients of value, offsets and logits."""
    places, weights = _fused_inputs(shapes, references, offsets, logits)
    of_value, of_places, of_weights = in_pixels_backward(grad_output, value, shapes, places, weights)
    shares, pulls = weights.reshape(np.shape(logits)), of_weights.reshape(np.shape(logits))
    of_logits = shares * (pulls - (shares * pulls).sum(-1, keepdims=True))
    return of_value, of_places, of_logits


def in_pixels(value, shapes, places, weights):
    """The sum of samples, ``places`` in pixels: pixel centres have whole numbers."""
    value, places, weights = (np.asarray(array, dtype=np.float64) for array in (value, places, weights))
    batch, queries, heads = places.shape[:3]
    out = np.zeros((batch, queries, heads, value.shape[3]))
    for (b, q, m, _, _), row, factor, share, _, _ in _corners(shapes, places, weights):
        out[b, q, m] += share * factor * value[b, row, m]
    return out.reshape(batch, queries, heads * value.shape[3])


def in_pixels_backward(grad_output, value, shapes, places, weights):
    """Gradients of value, places (per pixel) and weights."""
    value, places, weights = (np.asarray(array, dtype=np.float64) for array in (value, places, weights))
    grad_output = np.asarray(grad_output, dtype=np.float64).reshape(*places.shape[:3], value.shape[3])
    of_value, of_places, of_weights = np.zeros_like(value), np.zeros_like(places), np.zeros_like(weights)
    for (b, q, m, level, point), row, factor, share, along_x, along_y in _corners(shapes, places, weights):
        pull = float(grad_output[b, q, m] @ value[b, row, m])
        of_value[b, row, m] += share * factor * grad_output[b, q, m]
        of_places[b, q, m, level, point] += share * pull * np.array([along_x, along_y])
        of_weights[b, q, m, level, point] += factor * pull
    return of_value, of_places, of_weights


def _corners(shapes, places, weights):
    """Every corner that counts: index of the sample, row of value, factor, weight, the factor's slopes in x and y."""
    starts = np.concatenate([[0], np.cumsum([height * width for height, width in shapes])])
    for index in np.ndindex(*places.shape[:5]):
        (height, width), (x, y) = shapes[index[3]], places[index]
        if not (-1 < x < width and -1 < y < height):  # nor where it is no number
            continue
        left, top = int(np.floor(x)), int(np.floor(y))
        for column, share_x, slope_x in ((left, left + 1 - x, -1.0), (left + 1, x - left, 1.0)):
            for line, share_y, slope_y in ((top, top + 1 - y, -1.0), (top + 1, y - top, 1.0)):
                if 0 <= column < width and 0 <= line < height:
                    row = starts[index[3]] + line * width + column
                    yield index, row, share_x * share_y, weights[index], slope_x * share_y, share_x * slope_y


def _sizes(shapes):
    return np.array([(width, height) for height, width in shapes], dtype=np.float64)[:, None]


def _to_pixels(locations, shapes):
    return np.asarray(locations, dtype=np.float64) * _sizes(shapes) - 0.5


def _fused_inputs(shapes, references, offsets, logits):
    references, offsets, logits = (np.asarray(array, dtype=np.float64) for array in (references, offsets, logits))
    places = references[:, :, None, :, None] * _sizes(shapes) - 0.5 + offsets
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return places, (powers / powers.sum(-1, keepdims=True)).reshape(offsets.shape[:-1])


@dataclass
class Inputs:
    """Tensors in float64, rounded to float32 so that single precision starts from the same numbers.

    Attributes:
        value, locations, weights, references, offsets, logits: see `forward` and `fused_forward`.
        grad_output: (B, Q, M * D).
        shapes: (height, width) per level.
    """

    value: torch.Tensor
    locations: torch.Tensor
    weights: torch.Tensor
    references: torch.Tensor
    offsets: torch.Tensor
    logits: torch.Tensor
    grad_output: torch.Tensor
    shapes: Shapes

    @property
    def flat(self) -> list[int]:
        """The shapes as the operations of `torch.ops` take them: height, width, height, …"""
        return [number for shape in self.shapes for number in shape]

    def plain(self, dtype=None, value_dtype=None):
        """Value, locations, weights."""
        return self._cast((self.value, self.locations, self.weights), dtype, value_dtype)

    def fused(self, dtype=None, value_dtype=None):
        """Value, references, offsets, logits."""
        return self._cast((self.value, self.references, self.offsets, self.logits), dtype, value_dtype)

    def _cast(self, tensors, dtype, value_dtype):
        kinds = [value_dtype or dtype, *[dtype] * (len(tensors) - 1)]
        return [tensor.to(kind or tensor.dtype) for tensor, kind in zip(tensors, kinds)]


def make_inputs(
    shapes: Shapes,
    batch: int = 2,
    queries: int = 5,
    heads: int = 2,
    channels: int = 8,
    points: int = 2,
    seed: int = 0,
    shared_references: bool = False,
) -> Inputs:
    """Random inputs whose places reach past every edge; ``shared_references``: one for all images and levels."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=generator).double()

    def uniform(low, high, *size):
        return (torch.rand(*size, generator=generator) * (high - low) + low).double()

    samples = (batch, queries, heads, len(shapes), points)
    return Inputs(
        value=normal(batch, sum(height * width for height, width in shapes), heads, channels),
        locations=uniform(-0.3, 1.3, *samples, 2),
        weights=uniform(-0.5, 1, *samples),
        references=uniform(0, 1, *((1, queries, 1) if shared_references else (batch, queries, len(shapes))), 2),
        offsets=normal(*samples, 2) * 1.5,
        logits=normal(batch, queries, heads, len(shapes) * points) * 2,
        grad_output=normal(batch, queries, heads * channels),
        shapes=shapes,
    )


def with_infinite_numbers(inputs: Inputs) -> Inputs:
    """Puts infinite numbers and NaN into corner pixels of the first level, one channel, and into ``grad_output``."""
    (height, width), channels = inputs.shapes[0], inputs.value.shape[-1]
    last_row = (height - 1) * width
    for pixel, number in ((last_row + width - 1, np.nan), (width - 1, -np.inf), (last_row, np.inf), (0, np.inf)):
        inputs.value[:, pixel, :, 0] = number
    inputs.grad_output[:, -1, 1::channels] = np.inf
    return inputs


# Names and arguments of `make_inputs`: what a kernel with blocks, lanes and edges can get wrong.
ODD_SIZES: dict[str, dict] = {
    "usual": {"shapes": [(6, 5), (3, 3), (2, 1)], "channels": 32, "points": 4, "heads": 4},
    "one_pixel": {"shapes": [(1, 1)], "points": 3},
    "one_column": {"shapes": [(5, 1), (1, 4), (2, 2)], "channels": 16},
    "one_query": {"shapes": [(4, 5), (2, 3)], "queries": 1, "batch": 1},
    "many_queries": {"shapes": [(7, 9), (3, 4)], "queries": 131, "batch": 1, "channels": 16, "shared_references": True},
    "one_point": {"shapes": [(4, 5), (2, 3), (2, 2)], "points": 1, "channels": 24},
    "eight_points": {"shapes": [(4, 5), (2, 3)], "points": 8, "channels": 40},
    "sixteen_points": {"shapes": [(4, 3)], "points": 16, "channels": 64, "heads": 1},
    "five_levels": {"shapes": [(4, 5), (3, 3), (2, 3), (1, 2), (1, 1)], "points": 5},
    "eight_levels": {"shapes": [(2, 2)] * 8, "points": 16, "queries": 2, "batch": 1},
    "128_channels": {"shapes": [(3, 4), (2, 2)], "channels": 128, "queries": 3, "shared_references": True},
    "5_channels": {"shapes": [(4, 5), (2, 3)], "channels": 5, "heads": 3, "points": 3},
    "1_channel": {"shapes": [(4, 5), (2, 3)], "channels": 1, "heads": 1},
    "90_channels": {"shapes": [(3, 4)], "channels": 90, "heads": 1, "queries": 17},
    "few_queries": {"shapes": [(16, 16), (8, 8)], "channels": 64, "queries": 3, "points": 4},
    "no_image": {"shapes": [(4, 5)], "batch": 0},
    "no_query": {"shapes": [(4, 5)], "queries": 0},
}


def odd_inputs(name: str) -> Inputs:
    """Inputs of the sizes named in `ODD_SIZES`."""
    return make_inputs(**ODD_SIZES[name])
