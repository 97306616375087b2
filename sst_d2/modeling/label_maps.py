"""Label maps from coarse logits, without the logits of all pixels in memory.

Between neighbouring coarse pixels bilinear logits are weighted means of theirs. Where one class leads in all of them it
leads everywhere between them, so only what lies between pixels of different classes, the borders, is computed. Letters:
K classes; (h, w) the coarse logits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

# Squares between coarse pixels, and pixels, that are computed at a time: little memory, and it stays in a cache.
_CELLS_AT_ONCE = 2048
_PIXELS_AT_ONCE = 1 << 14


def label_map(
    logits: torch.Tensor, padded: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """What the arg-max over the classes is after the logits went bilinearly to ``padded``, to ``crop``, to ``size``.

    Of classes that lead together the lowest id counts. The results differ only where two logits are equal within
    rounding.

    Args:
        logits: (K, h, w), finite, K <= 255.
        padded: (height, width) of the network's input, the same multiple of h and of w.
        crop: (height, width) of the part at the upper left that is no padding.
        size: (height, width) of the result.

    Returns:
        (height, width) uint8.

    Raises:
        ValueError: ``padded`` is no such multiple.
    """
    logits = logits.float()
    with torch.autocast(logits.device.type, enabled=False):
        labels = _cropped_labels(logits, padded, crop)
        return labels if tuple(size) == tuple(crop) else _resized_labels(labels, logits, padded, crop, size)


def leading_class(values: torch.Tensor) -> torch.Tensor:
    """The arg-max of (K, …) over the first axis as uint8, the lowest id of equals; several times as fast on a CPU."""
    highest = values.amax(0)
    seen = values[0] == highest
    labels = torch.zeros(seen.shape, dtype=torch.uint8, device=values.device)
    for value in values[1:]:  # a class counts up where the leading one has not come yet
        labels += ~seen
        seen |= value == highest
    return labels


def _cropped_labels(logits: torch.Tensor, padded: tuple[int, int], crop: tuple[int, int]) -> torch.Tensor:
    """(H, W) of ``crop``: cell by cell, a cell being the square between the centres of four coarse pixels."""
    height, width = logits.shape[1:]
    step = padded[0] // height
    if (height * step, width * step) != tuple(padded):
        raise ValueError(f"logits of {height} x {width} do not go evenly into {padded[0]} x {padded[1]} pixels")
    coarse = leading_class(logits)
    around = F.pad(coarse[None].float(), (1, 1, 1, 1), mode="replicate")[0].to(torch.uint8)
    first = around[:-1, :-1]
    mixed = (first != around[:-1, 1:]) | (first != around[1:, :-1]) | (first != around[1:, 1:])
    cells = first[:, None, :, None].repeat(1, step, 1, step)
    rows, columns = mixed.nonzero().unbind(1)
    # Cells at the edge lie half outside; there the coarse pixels repeat.
    tops, bottoms = (rows - 1).clamp(min=0) * width, rows.clamp(max=height - 1) * width
    lefts, rights = (columns - 1).clamp(min=0), columns.clamp(max=width - 1)
    corners = torch.stack([tops + lefts, tops + rights, bottoms + lefts, bottoms + rights], dim=1)
    weights, flat = _cell_weights(step, logits.device), logits.flatten(1)
    parts = (part.split(_CELLS_AT_ONCE) for part in (corners, rows, columns))
    for some_corners, some_rows, some_columns in zip(*parts, strict=True):
        values = (flat[:, some_corners] @ weights).flatten(1)  # (K, cells · step²)
        cells[some_rows, :, some_columns] = leading_class(values).view(-1, step, step)
    start = step // 2
    whole = cells.view(step * (height + 1), step * (width + 1))
    return whole[start : start + crop[0], start : start + crop[1]].contiguous()


def _cell_weights(step: int, device: torch.device) -> torch.Tensor:
    """(4, step²): what each corner of a cell weighs at each of its pixels."""
    second = (torch.arange(step, device=device) + 0.5 - step // 2) / step + 0.5
    pair = torch.stack([1 - second, second])
    return (pair[:, None, :, None] * pair[None, :, None, :]).reshape(4, step * step)


def _resized_labels(
    labels: torch.Tensor, logits: torch.Tensor, padded: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """(H, W) of ``size``: as between coarse pixels, so between pixels of ``labels``, the map of ``crop``."""
    rows, columns = (_neighbours(size[axis], crop[axis], labels.device) for axis in (0, 1))
    wide = labels[:, columns[0]]
    mixed = wide != labels[:, columns[1]]
    result, below = (wide.index_select(0, rows[side]) for side in (0, 1))  # whole rows, which is fast
    mixed = mixed.index_select(0, rows[0]) | mixed.index_select(0, rows[1]) | (result != below)
    del wide, below
    row_taps, column_taps = (
        _taps(logits.shape[axis + 1], padded[axis], crop[axis], size[axis], labels.device) for axis in (0, 1)
    )
    flat = logits.flatten(1).t().contiguous()
    pixels = result.view(-1)
    for some in mixed.view(-1).nonzero()[:, 0].split(_PIXELS_AT_ONCE):
        i, j = some // size[1], some % size[1]
        values = torch.zeros(len(some), flat.shape[1], device=flat.device)
        for row, row_weight in zip(*row_taps, strict=True):
            for column, column_weight in zip(*column_taps, strict=True):
                place = row[i] * logits.shape[2] + column[j]
                values.addcmul_(flat.index_select(0, place), (row_weight[i] * column_weight[j])[:, None])
        pixels[some] = leading_class(values.t().contiguous())
    return result


def _neighbours(size: int, source: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bilinear interpolation along one axis: two neighbours of each of ``size`` pixels, and the second's weight."""
    place = ((torch.arange(size, device=device) + 0.5) * (source / size) - 0.5).clamp(min=0)
    first = place.long().clamp(max=source - 1)
    return first, (first + 1).clamp(max=source - 1), place - first


def _taps(
    coarse: int, padded: int, crop: int, size: int, device: torch.device
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Both interpolations along one axis as one: three coarse neighbours of each pixel, and their weights.

    Two neighbours of a neighbour are less than a coarse pixel apart, so together they have three.
    """
    first, second, share = _neighbours(padded, coarse, device)
    inner = torch.stack([first, second]), torch.stack([1 - share, share])
    left, right, weight = _neighbours(size, crop, device)
    base = first[left]
    weights = torch.zeros(3, size, device=device)
    for neighbour, outer_weight in ((left, 1 - weight), (right, weight)):
        for index, inner_weight in zip(*inner, strict=True):
            offset = (index[neighbour] - base)[None]
            weights.scatter_add_(0, offset, (outer_weight * inner_weight[neighbour])[None])
    return [(base + offset).clamp(max=coarse - 1) for offset in range(3)], list(weights)
