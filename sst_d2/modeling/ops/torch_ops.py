"""The operator in plain PyTorch: on every device, for export, and where gradients of gradients are asked for.

Letters: B images, S pixels of all levels together, M heads, D channels per head, Q queries, L levels, P points. Places
are in pixels of their level, whose centres have whole numbers. Positions, weights and logits may have any type; they
are used in float32 at least. No number is copied from the host to a device, which would make it wait.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F

Shapes = Sequence[tuple[int, int]]

# Pixels of zeros around each level: all corners of a place that is outside lie there.
_FRAME = 2


def to_pixels(locations: torch.Tensor, shapes: Shapes) -> torch.Tensor:
    """Places (B, Q, M, L, P, 2), x and y, 0 and 1 the outer edges of a level, to pixels."""
    locations = locations.to(_working_type(locations))
    return locations * _for_samples(sizes(shapes, locations), locations) - 0.5


def to_places(
    reference_points: torch.Tensor, sampling_offsets: torch.Tensor, attention_logits: torch.Tensor, shapes: Shapes
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the projections of a layer give, to places in pixels (B, Q, M, L, P, 2) and weights (B, Q, M, L, P).

    Args:
        reference_points: (B or 1, Q, L or 1, 2), x and y in [0, 1].
        sampling_offsets: (B, Q, M, L, P, 2), in pixels of each level.
        attention_logits: (B, Q, M, L * P).
        shapes: L pairs (height, width).
    """
    working = _working_type(reference_points, sampling_offsets, attention_logits)
    references = reference_points.to(working)
    references = (references * sizes(shapes, references) - 0.5)[:, :, None, :, None]
    # Once per point: long runs of memory are added faster.
    references = references.expand(-1, -1, -1, -1, sampling_offsets.shape[4], -1).contiguous()
    weights = attention_logits.softmax(-1, dtype=working)
    return sampling_offsets + references, weights.view(sampling_offsets.shape[:-1])


def by_bags(value: torch.Tensor, shapes: Shapes, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, S, M, D) to (B, Q, M D), in the type of ``places``: the fastest without gradients.

    One weighted sum of rows per query and head; by `by_grids` on devices that may lack ``embedding_bag``.
    """
    if places.device.type not in ("cpu", "cuda"):
        return by_grids(value, shapes, places, weights)
    table = _framed(value, shapes, places.dtype)
    rows, factors = (corners.flatten(0, 2) for corners in _corners(table, shapes, places, weights))
    summed = F.embedding_bag(rows, table.flatten(0, 2), per_sample_weights=factors, mode="sum")
    return summed.view(*places.shape[:2], value.shape[2] * value.shape[3])


def by_rows(value: torch.Tensor, shapes: Shapes, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As `by_bags`, of operations that can be differentiated as often as one likes; large and slow."""
    table = _framed(value, shapes, places.dtype)
    rows, factors = _corners(table, shapes, places, weights)
    return (table.flatten(0, 2)[rows.long()] * factors[..., None]).sum(-2).flatten(2)


def by_grids(value: torch.Tensor, shapes: Shapes, places: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """As `by_bags`, by ``grid_sample``, which other runtimes know."""
    places, weights = _harmless(places, weights, shapes)
    total = 0.0
    for image, grid, level in _levels(value, shapes, places):
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        total = total + (sampled * _by_head(weights[:, :, :, level])[:, None]).sum(-1)
    return total.unflatten(0, (value.shape[0], value.shape[2])).flatten(1, 2).transpose(1, 2)


def gradients(
    grad_output: torch.Tensor, value: torch.Tensor, shapes: Shapes, places: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of value (B, S, M, D), places (B, Q, M, L, P, 2) and weights (B, Q, M, L, P), in the type of ``places``."""
    places, weights = _harmless(places, weights, shapes)
    batch, queries, heads = places.shape[:3]
    grad = grad_output.to(places.dtype).transpose(1, 2).reshape(batch * heads, value.shape[3], queries, 1)
    of_value, of_places, of_weights = [], [], []
    for image, grid, level in _levels(value, shapes, places):
        sampled = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        of_weights.append(sampled.mul_(grad).sum(1))
        of_sampled = grad * _by_head(weights[:, :, :, level])[:, None]
        # Bilinear, zeros outside, corners not aligned; the gradients of both.
        of_image, of_grid = torch.ops.aten.grid_sampler_2d_backward(of_sampled, image, grid, 0, 0, False, [True, True])
        of_value.append(of_image.flatten(2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2))
        of_places.append(of_grid * (2 / sizes([shapes[level]], places)))
    by_query = [torch.stack(parts, 2).unflatten(0, (batch, heads)).transpose(1, 2) for parts in (of_places, of_weights)]
    return torch.cat(of_value, 1), *by_query


def sizes(shapes: Shapes, like: torch.Tensor) -> torch.Tensor:
    """(L, 2), width and height of each level, in the type of ``like``."""
    return _numbers([side for height, width in shapes for side in (width, height)], like).view(-1, 2)


def _numbers(numbers: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    return torch.cat([like.new_full((1,), number) for number in numbers])


def _working_type(*tensors: torch.Tensor) -> torch.dtype:
    """Half precision would move places by a tenth of a pixel."""
    found = torch.float32
    for tensor in tensors:
        found = torch.promote_types(found, tensor.dtype)
    return found


def _for_samples(per_level: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
    """(L, …) to (M, L, P, …) for samples (B, Q, M, L, P, …): with long runs of memory an operation is faster."""
    heads, _, points = samples.shape[2:5]
    return per_level[:, None].expand(heads, -1, points, *per_level.shape[1:]).contiguous()


def _levels(
    value: torch.Tensor, shapes: Shapes, places: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, int]]:
    """Level by level its image (B M, D, H, W), its places as ``grid_sample`` wants them (B M, Q, P, 2), its number."""
    for level, pixels in enumerate(value.split([height * width for height, width in shapes], dim=1)):
        image = pixels.to(places.dtype).permute(0, 2, 3, 1).flatten(0, 1).unflatten(2, shapes[level])
        grid = (2 * places[:, :, :, level] + 1) / sizes([shapes[level]], places) - 1
        yield image, _by_head(grid), level


def _by_head(parts: torch.Tensor) -> torch.Tensor:
    """(B, Q, M, …) to (B M, Q, …)."""
    return parts.transpose(1, 2).flatten(0, 1)


def _harmless(places: torch.Tensor, weights: torch.Tensor, shapes: Shapes) -> tuple[torch.Tensor, torch.Tensor]:
    """Places outside, and those that are no numbers, without gradient to where all their corners are outside.

    Their weights, which may be no numbers either, become 0.
    """
    counts = (places > -1).logical_and_(places < _for_samples(sizes(shapes, places), places))
    weights = torch.where(counts.all(-1), weights.to(places.dtype), 0.0)
    return torch.where(counts, places, float(-_FRAME)), weights


def _framed(value: torch.Tensor, shapes: Shapes, dtype: torch.dtype) -> torch.Tensor:
    """(B, S, M, D) to (B, S', M, D): every level with its frame."""
    framed = [(height + 2 * _FRAME, width + 2 * _FRAME) for height, width in shapes]
    table = value.new_zeros(value.shape[0], sum(h * w for h, w in framed), *value.shape[2:], dtype=dtype)
    start = first = 0
    for size, (height, width) in zip(framed, shapes):
        stop, last = start + size[0] * size[1], first + height * width
        inner = table[:, start:stop].unflatten(1, size)[:, _FRAME:-_FRAME, _FRAME:-_FRAME]
        inner.copy_(value[:, first:last].unflatten(1, (height, width)))
        start, first = stop, last
    return table


def _corners(
    table: torch.Tensor, shapes: Shapes, places: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The four pixels around each place: rows of (B S' M, D), and what each weighs, (B, Q, M, 4 L P) both."""
    places, weights = _harmless(places, weights, shapes)
    corners = places.detach().floor()
    right, down = (places - corners).unbind(-1)
    lower = weights * down
    upper = weights - lower
    lower_right, upper_right = lower * right, upper * right
    factors = torch.stack([upper - upper_right, upper_right, lower - lower_right, lower_right], 3)
    return _rows(table, shapes, corners).flatten(3), factors.flatten(3)


def _rows(table: torch.Tensor, shapes: Shapes, corners: torch.Tensor) -> torch.Tensor:
    """Rows of (B S' M, D), (B, Q, M, 4, L P), for the upper left corners (B, Q, M, L, P, 2), x and y."""
    batch, pixels, heads = table.shape[:3]
    x, y = corners.to(torch.int32 if batch * pixels * heads < 2**31 else torch.int64).unbind(-1)
    begin, begins, lines = 0, [], []  # of each level: the row of its pixel (0, 0), and rows from line to line
    for height, width in shapes:
        lines.append((width + 2 * _FRAME) * heads)
        begins.append(begin + _FRAME * (lines[-1] + heads))
        begin += (height + 2 * _FRAME) * lines[-1]
    line = _for_samples(_numbers(lines, x), corners[..., 0])
    head = torch.arange(heads, dtype=x.dtype, device=x.device)[:, None, None]
    image = torch.arange(batch, dtype=x.dtype, device=x.device)[:, None, None, None, None] * (pixels * heads)
    rows = (y * line).add_(x, alpha=heads).add_(_for_samples(_numbers(begins, x), corners[..., 0]) + head + image)
    around = torch.stack([torch.zeros_like(line), torch.full_like(line, heads), line, line + heads], 1)
    return rows.flatten(3).unsqueeze(3) + around.flatten(2)
