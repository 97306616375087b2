"""How the CUDA kernels are to be launched: the arithmetic of ``csrc/msda_cuda_launch.cuh``, which gives the reasons.

Letters: B images, S pixels of all levels together, M heads, D channels per head, Q queries, L levels, P points.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MAX_LEVELS = 8
MAX_POINTS = 16
MAX_CHANNELS = 128
MAX_IMAGES = 65535  # of one launch, and heads: limits of the grid
_MAX_SIDE = 2**24 - 1
_MAX_INT = 2**31 - 1
_PLANNERS = 4  # threads that plan a row together
_FORWARD_BYTES, _BACKWARD_BYTES = 24, 28  # of shared memory, for a sample

_NUMBERS = (
    *("queries", "heads", "channels", "pixels", "levels", "points", "samples", "pixel_steps", "level_factor"),
    *("position_kind", "reference_kind", "weight_kind", "reference_images", "reference_levels"),
    *("rows_log2", "tile_width_log2", "gridded", "first_image"),
)


class Problem(ctypes.Structure):
    """The kernels' last argument, struct ``Problem`` of ``csrc/msda_cuda_plan.cuh``: 32-bit integers."""

    _fields_ = [
        *((name, ctypes.c_int) for name in _NUMBERS),
        *((name, ctypes.c_int * MAX_LEVELS) for name in ("height", "width", "start", "first_tile")),
    ]


class Sizes(NamedTuple):
    """Sizes of a call; ``value_bytes``: of a number of the value."""

    images: int
    pixels: int
    heads: int
    channels: int
    queries: int
    points: int
    shapes: tuple[tuple[int, int], ...]  # height, width
    value_bytes: int


@dataclass(frozen=True)
class Launch:
    """A launch. The grid is (tiles, heads, images).

    Attributes:
        lanes: threads that share the channels of a row; the kernels are compiled for this number.
        threads: of a block.
        tiles: blocks per head and image.
        shared_bytes: dynamic shared memory of a block.
        problem: without types, references and ``first_image``.
    """

    lanes: int
    threads: int
    tiles: int
    shared_bytes: int
    problem: Problem


def sizes_of(value: Sequence[int], flat: Sequence[int], positions: Sequence[int], value_bytes: int) -> Sizes:
    """Sizes from the shapes of value (B, S, M, D) and positions (B, Q, M, L, P, 2), and height, width, height, …

    Raises:
        ValueError: these have another number of dimensions.
    """
    if len(value) != 4 or len(positions) != 6 or len(flat) % 2:
        raise ValueError(
            f"ms_deform_attn: value is {tuple(value)}, positions are {tuple(positions)}, spatial_shapes {list(flat)}; "
            "expected are (B, S, M, D), (B, Q, M, L, P, 2) and height, width of each level"
        )
    return Sizes(*value, positions[1], positions[4], tuple(zip(flat[::2], flat[1::2])), value_bytes)


def unsupported_levels(sizes: Sizes) -> str:
    """What of levels and points no compiled code can do, on any device, as the end of a sentence; "": it can."""
    if not 1 <= len(sizes.shapes) <= MAX_LEVELS:
        return f"between 1 and {MAX_LEVELS} levels are supported"
    if not 1 <= sizes.points <= MAX_POINTS:
        return f"between 1 and {MAX_POINTS} points are supported"
    if not all(1 <= side <= _MAX_SIDE for shape in sizes.shapes for side in shape):
        return "height and width of each level must be positive and below 2^24"
    return ""


def unsupported(sizes: Sizes) -> str:
    """What of these sizes the CUDA kernels cannot do, as the end of a sentence; "": they can do it."""
    reason = unsupported_levels(sizes)
    if reason:
        return reason
    if sizes.channels % 8 or not 8 <= sizes.channels <= MAX_CHANNELS:
        return f"channels per head must be a multiple of 8, at most {MAX_CHANNELS}"
    if sizes.heads > MAX_IMAGES:
        return f"at most {MAX_IMAGES} heads are supported"
    if sizes.images * sizes.pixels > _MAX_INT:
        return "batch * pixels must be below 2^31"
    if sizes.images * sizes.queries * max(sizes.heads, 1) > _MAX_INT:
        return "batch * queries * heads must be below 2^31"
    widest = max(width for _, width in sizes.shapes)
    steps = sizes.heads * sizes.channels * sizes.value_bytes // 16
    if (sizes.pixels + widest + 1) * steps > _MAX_INT or sizes.pixels + 2 * widest + 2 > _MAX_INT >> 4:
        return "the value of one image must be smaller than 32 GiB and have fewer than 2^27 pixels"
    return ""


def make_launch(sizes: Sizes, backward: bool) -> Launch:
    """The launch for sizes that are supported and have images, queries and heads."""
    samples = len(sizes.shapes) * sizes.points
    row_bytes = sizes.channels * sizes.value_bytes
    lanes = next(lanes for lanes in (2, 4, 8, 16, 32) if 16 * lanes >= row_bytes)
    rows_log2 = next((log2 for log2 in (6, 5, 4) if samples << log2 <= 1024), 3)
    problem = Problem(
        queries=sizes.queries,
        heads=sizes.heads,
        channels=sizes.channels,
        pixels=sizes.pixels,
        levels=len(sizes.shapes),
        points=sizes.points,
        samples=samples,
        pixel_steps=sizes.heads * row_bytes // 16,
        level_factor=65536 // sizes.points + 1,
        rows_log2=rows_log2,
        gridded=sizes.queries == sizes.pixels,
    )
    start = 0
    for level, (height, width) in enumerate(sizes.shapes):
        problem.height[level], problem.width[level], problem.start[level] = height, width, start
        start += height * width
    tiles = _lay_tiles(problem)
    per_sample = _BACKWARD_BYTES if backward else _FORWARD_BYTES
    return Launch(lanes, _PLANNERS << rows_log2, tiles, ((samples | 1) << rows_log2) * per_sample, problem)


def _lay_tiles(problem: Problem) -> int:
    """Lay tiles over the queries, or where these are the pixels, over the levels; their number."""
    rows_log2 = problem.rows_log2
    if not problem.gridded:
        problem.tile_width_log2 = rows_log2
        return -(-problem.queries >> rows_log2)
    problem.tile_width_log2 = (rows_log2 + 1) // 2
    tile_width, tile_height = 1 << problem.tile_width_log2, 1 << (rows_log2 - problem.tile_width_log2)
    tiles = 0
    for level in range(problem.levels):
        problem.first_tile[level] = tiles
        tiles += -(-problem.height[level] // tile_height) * -(-problem.width[level] // tile_width)
    return tiles
