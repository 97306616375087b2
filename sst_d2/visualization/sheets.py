"""Sheets: several pictures side by side, each with its title above, legends below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sst_d2.label_domains import LabelDomain, get_label_domain
from sst_d2.visualization.label_maps import (
    background_ids,
    check_size,
    checked_image,
    checked_labels,
    color_map,
    legend,
    overlay,
)
from sst_d2.visualization.lettering import MAX_FONT, MIN_FONT, PAPER, font_of, text_width, write

_MIN_SIDE = 320  # a smaller photo is enlarged to this longer side, so that its legend can be read
_MIN_COLUMN = 200
_Column = tuple[np.ndarray, str, np.ndarray]  # picture, title, what stands below it


def side_by_side(
    image: np.ndarray,
    labels_by_domain: Mapping[str | LabelDomain, np.ndarray],
    alpha: float = 0.6,
    min_side: int = _MIN_SIDE,
    max_side: int | None = None,
) -> np.ndarray:
    """The photo, then one overlay per label domain, each with its title above and the classes present below.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels_by_domain: label domain, or its name -> (H, W) ids of that domain.
        alpha: weight of the colours, as in `overlay`.
        min_side: a photo whose longer side is smaller is enlarged to it (photo bicubic, labels nearest).
        max_side: a photo whose longer side is larger is shrunk to it; None: none is.

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: as `overlay`.
        LabelDomainError: a name is not known.
    """
    image = checked_image(image)
    photo = fitted(image, min_side, max_side)
    width = max(photo.shape[1], _MIN_COLUMN)
    font_size = _font_size(width)
    columns = [(photo, "photo", _nothing())]
    for key, labels in labels_by_domain.items():
        domain = key if isinstance(key, LabelDomain) else get_label_domain(key)
        labels = checked_labels(labels, domain)
        if labels.shape == image.shape[:2]:  # another size is `overlay`'s error
            labels = fitted(labels, min_side, max_side)
        present = np.setdiff1d(np.unique(labels), background_ids(domain))
        columns.append((overlay(photo, labels, domain, alpha), domain.name, legend(domain, present, width, font_size)))
    return _joined(columns, font_size)


def compared(
    image: np.ndarray, label_maps: Mapping[str, np.ndarray], domain: LabelDomain, side: int = _MIN_SIDE
) -> np.ndarray:
    """The photo, then label maps of one domain in plain colours, with one legend of the classes that occur in any.

    Args:
        image: (H, W, 3) uint8, RGB.
        label_maps: title -> (H, W) ids of that domain.
        domain: the label domain of the ids.
        side: the photo's longer side in the picture, in pixels (photo bicubic, labels nearest).

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: no picture, no label map, one of another size, or an id that the domain does not have.
    """
    image = checked_image(image)
    pictures, present = {"photo": fitted(image, side, side)}, set()
    for title, labels in label_maps.items():
        labels = checked_labels(labels, domain)
        check_size(image, labels, title)
        labels = fitted(labels, side, side)
        present.update(np.unique(labels).tolist())
        pictures[title] = color_map(labels, domain)
    return sheet(pictures, domain, present)


def sheet(
    pictures: Mapping[str, np.ndarray], domain: LabelDomain, present_ids: Sequence[int] | set[int], title: str = ""
) -> np.ndarray:
    """Pictures side by side, each with its title above, and one legend below all of them.

    Args:
        pictures: title -> (H, W, 3) uint8, of any sizes.
        domain: the label domain of the legend.
        present_ids: ids that the legend shows.
        title: written above all; "": none.

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: no picture, or an id that the domain does not have.
    """
    font_size = _font_size(max(_MIN_COLUMN, *(picture.shape[1] for picture in pictures.values())))
    row = _joined([(checked_image(picture), name, _nothing()) for name, picture in pictures.items()], font_size)
    gap, below = _gap(font_size), legend(domain, present_ids, row.shape[1] - 2 * _gap(font_size), font_size)
    font, top = font_of(font_size), 2 * font_size if title else 0
    width = max(row.shape[1], below.shape[1] + 2 * gap, text_width(title, font) + 2 * gap)
    canvas = Image.new("RGB", (width, top + row.shape[0] + below.shape[0] + gap), PAPER)
    write(ImageDraw.Draw(canvas), (gap, 0), top, title, font)
    canvas.paste(Image.fromarray(row), (0, top))
    canvas.paste(Image.fromarray(below), (gap, top + row.shape[0]))
    return np.asarray(canvas).copy()


def fitted(array: np.ndarray, min_side: int, max_side: int | None = None) -> np.ndarray:
    """A photo or a label map with its longer side brought to between the two (photo bicubic, labels nearest).

    Args:
        array: (H, W, 3) uint8, or (H, W) uint8 ids.
        min_side, max_side: in pixels; a ``max_side`` of None shrinks none.
    """
    height, width = array.shape[:2]
    longer = max(height, width)
    wanted = max(longer, min_side)
    wanted = wanted if max_side is None else min(wanted, max_side)
    if wanted == longer:
        return array
    size = (max(1, round(width * wanted / longer)), max(1, round(height * wanted / longer)))
    resample = Image.Resampling.NEAREST if array.ndim == 2 else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(array).resize(size, resample))


def _nothing() -> np.ndarray:
    return np.full((1, 1, 3), PAPER, dtype=np.uint8)


def _font_size(column: int) -> int:
    """Height of the letters that go with a column of so many pixels; beside a panorama they stay letters."""
    return min(MAX_FONT, max(MIN_FONT, column // 32))


def _gap(font_size: int) -> int:
    """Between pictures, and around them."""
    return max(6, font_size // 2)


def _joined(columns: Sequence[_Column], font_size: int) -> np.ndarray:
    """One picture of columns: titles on one line, what stands below on one height."""
    gap, title_height = _gap(font_size), 2 * font_size
    font = font_of(font_size)
    widths = [max(picture.shape[1], below.shape[1], text_width(title, font)) for picture, title, below in columns]
    height = max(picture.shape[0] for picture, _, _ in columns)
    below_height = max(below.shape[0] for _, _, below in columns)
    size = (sum(widths) + gap * (len(columns) + 1), title_height + height + gap + below_height)
    canvas = Image.new("RGB", size, PAPER)
    draw, x = ImageDraw.Draw(canvas), gap
    for (picture, title, below), width in zip(columns, widths, strict=True):
        left = x + (width - picture.shape[1]) // 2
        # Above the picture's left edge; further left where it would not fit.
        write(draw, (min(left, x + width - text_width(title, font)), 0), title_height, title, font)
        canvas.paste(Image.fromarray(picture), (left, title_height))
        canvas.paste(Image.fromarray(below), (x, title_height + height + gap))
        x += width + gap
    return np.asarray(canvas).copy()
