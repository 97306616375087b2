"""Label maps in the colours of their label domain, alone and over the photo, and the legend of the colours."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageDraw

from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain
from sst_d2.visualization.lettering import FRAME, MIN_FONT, PAPER, font_of, text_width, write

IGNORE_COLOR = (224, 224, 192)  # what PASCAL VOC's palette has at 255
CONTOUR_COLOR = (255, 255, 255)
# Classes that mean "nothing here": an overlay leaves the photo as it is there.
BACKGROUND_NAMES = ("background", "null")


def color_map(labels: np.ndarray, domain: LabelDomain) -> np.ndarray:
    """The label map in the domain's colours; pixels without a label in `IGNORE_COLOR`.

    Args:
        labels: (H, W) ids in [0, K) or ignore.
        domain: the label domain of the ids.

    Returns:
        (H, W, 3) uint8.

    Raises:
        SSTDataError: not a label map, or an id that the domain does not have.
    """
    return palette(domain)[checked_labels(labels, domain)]


def overlay(image: np.ndarray, labels: np.ndarray, domain: LabelDomain, alpha: float = 0.6) -> np.ndarray:
    """Lay the classes' colours over a photo, with thin white contours. The background stays as it is.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels: (H, W) ids in [0, K) or ignore.
        domain: the label domain of the ids.
        alpha: weight of the colours, 0 (photo alone) to 1 (colours alone).

    Returns:
        (H, W, 3) uint8, a new array.

    Raises:
        SSTDataError: image and labels do not fit each other or the domain, or ``alpha`` lies outside [0, 1].
    """
    image, labels = checked_image(image), checked_labels(labels, domain)
    check_size(image, labels, "overlay")
    if not 0 <= alpha <= 1:
        raise SSTDataError(f"overlay: alpha is {alpha}; allowed are 0 (photo alone) to 1 (colours alone)")
    colored = ~np.isin(labels, background_ids(domain))
    picture = image.astype(np.float32)
    picture[colored] += alpha * (palette(domain)[labels[colored]] - picture[colored])
    picture = np.rint(picture).astype(np.uint8)
    if alpha > 0:
        picture[_contours(labels)] = CONTOUR_COLOR
    return picture


def legend(
    domain: LabelDomain, present_ids: Iterable[int] | None = None, width: int = 512, font_size: int = MIN_FONT
) -> np.ndarray:
    """Swatches with class names, in rows of at most ``width`` pixels.

    Args:
        domain: the label domain.
        present_ids: ids to show, in [0, K) or ignore; None: all classes.
        width: width of the picture in pixels; a longer name widens it.
        font_size: height of the letters in pixels.

    Returns:
        (h, w, 3) uint8, w >= ``width``; one empty row where no id is to be shown.

    Raises:
        SSTDataError: an id that the domain does not have.
    """
    ids = range(domain.num_classes) if present_ids is None else sorted({int(i) for i in present_ids})
    _check_ids(ids, domain, "legend")
    names = {domain.ignore_label: "(no label)", **dict(enumerate(domain.classes))}
    font, pad, swatch = font_of(font_size), max(3, font_size // 3), font_size
    row_height = font_size + 2 * pad
    places: list[tuple[int, int, int]] = []  # id, x, row
    x = row = 0
    for i in ids:
        item = pad + swatch + pad + text_width(names[i], font) + pad
        if x > 0 and x + item > width:
            x, row = 0, row + 1
        places.append((i, x, row))
        x += item
        width = max(width, item)
    canvas = Image.new("RGB", (width, (row + 1) * row_height), PAPER)
    draw, colors = ImageDraw.Draw(canvas), palette(domain)
    for i, x, row in places:
        left, top = x + pad, row * row_height + pad
        draw.rectangle((left, top, left + swatch, top + swatch), fill=tuple(colors[i].tolist()), outline=FRAME)
        write(draw, (left + swatch + pad, row * row_height), row_height, names[i], font)
    return np.asarray(canvas).copy()


def palette(domain: LabelDomain) -> np.ndarray:
    """(256, 3) uint8: the colour of every 8-bit id."""
    colors = np.zeros((256, 3), dtype=np.uint8)
    colors[: domain.num_classes] = domain.colors
    colors[domain.ignore_label] = IGNORE_COLOR
    return colors


def background_ids(domain: LabelDomain) -> list[int]:
    """Ids of the classes that mean "nothing here"."""
    return [i for i, name in enumerate(domain.classes) if name.lower() in BACKGROUND_NAMES]


def _contours(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another id."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def checked_image(image: np.ndarray) -> np.ndarray:
    """The picture, (H, W, 3) uint8; of anything else an SSTDataError."""
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise SSTDataError(f"a picture of shape {image.shape}, {image.dtype}; (H, W, 3) uint8, RGB, is expected")
    return image


def checked_labels(labels: np.ndarray, domain: LabelDomain) -> np.ndarray:
    """The label map as (H, W) uint8, contiguous; of what is none, or not of the domain, an SSTDataError."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise SSTDataError(f"a label map of shape {labels.shape}, {labels.dtype}; (H, W) whole numbers are expected")
    _check_ids(np.unique(labels).tolist(), domain, "label map")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def check_size(image: np.ndarray, labels: np.ndarray, what: str) -> None:
    """Of a label map that has another size than its photo an SSTDataError, which begins with ``what``."""
    if image.shape[:2] != labels.shape:
        raise SSTDataError(
            f"{what}: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width) and the label map "
            f"{labels.shape[0]} x {labels.shape[1]}; resize the label map by nearest neighbour first"
        )


def _check_ids(ids: Iterable[int], domain: LabelDomain, what: str) -> None:
    strange = [i for i in ids if not (0 <= i < domain.num_classes or i == domain.ignore_label)]
    if strange:
        raise SSTDataError(
            f"{what}: the ids {strange} do not belong to label domain '{domain.name}'; allowed are 0 to "
            f"{domain.num_classes - 1} and {domain.ignore_label} (ignore)"
        )
