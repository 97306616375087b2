"""Pictures: label maps in colours, overlays with contours and legends, all domains side by side, matrices over classes.

Pillow and NumPy only.

Letters: H, W height and width, K the classes of a label domain. A label map is (H, W), integers, each in [0, K) or the
domain's ignore label. Pictures are (H, W, 3) uint8, red, green, blue.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain, get_label_domain

IGNORE_COLOR = (224, 224, 192)  # what PASCAL VOC's palette has at 255
CONTOUR_COLOR = (255, 255, 255)
# Classes that mean "nothing here": an overlay leaves the photo as it is there.
BACKGROUND_NAMES = ("background", "null")

_PAPER, _INK, _FRAME = (255, 255, 255), (24, 24, 24), (128, 128, 128)
_MIN_SIDE = 320  # a smaller photo is enlarged to this longer side, so that its legend can be read
_MIN_COLUMN = 200
_MIN_FONT = 14
_DARKEST_CELL = (12, 58, 130)  # of a matrix's picture: the colour of 1; 0 is paper


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
    return _palette(domain)[_checked_labels(labels, domain)]


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
    image, labels = _checked_image(image), _checked_labels(labels, domain)
    if image.shape[:2] != labels.shape:
        raise SSTDataError(
            f"overlay: the image has {image.shape[0]} x {image.shape[1]} pixels (height x width) and the label map "
            f"{labels.shape[0]} x {labels.shape[1]}; resize the label map by nearest neighbour first"
        )
    if not 0 <= alpha <= 1:
        raise SSTDataError(f"overlay: alpha is {alpha}; allowed are 0 (photo alone) to 1 (colours alone)")
    colored = ~np.isin(labels, _background_ids(domain))
    picture = image.astype(np.float32)
    picture[colored] += alpha * (_palette(domain)[labels[colored]] - picture[colored])
    picture = np.rint(picture).astype(np.uint8)
    if alpha > 0:
        picture[_contours(labels)] = CONTOUR_COLOR
    return picture


def legend(
    domain: LabelDomain, present_ids: Iterable[int] | None = None, width: int = 512, font_size: int = _MIN_FONT
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
    font, pad, swatch = _font(font_size), max(3, font_size // 3), font_size
    row_height = font_size + 2 * pad
    places: list[tuple[int, int, int]] = []  # id, x, row
    x = row = 0
    for i in ids:
        item = pad + swatch + pad + _text_width(names[i], font) + pad
        if x > 0 and x + item > width:
            x, row = 0, row + 1
        places.append((i, x, row))
        x += item
        width = max(width, item)
    canvas = Image.new("RGB", (width, (row + 1) * row_height), _PAPER)
    draw, palette = ImageDraw.Draw(canvas), _palette(domain)
    for i, x, row in places:
        left, top = x + pad, row * row_height + pad
        draw.rectangle((left, top, left + swatch, top + swatch), fill=tuple(palette[i].tolist()), outline=_FRAME)
        _write(draw, (left + swatch + pad, row * row_height), row_height, names[i], font)
    return np.asarray(canvas).copy()


def side_by_side(
    image: np.ndarray, labels_by_domain: Mapping[str, np.ndarray], alpha: float = 0.6, min_side: int = _MIN_SIDE
) -> np.ndarray:
    """The photo, then one overlay per label domain, each with its title above and the classes present below.

    Args:
        image: (H, W, 3) uint8, RGB.
        labels_by_domain: name of a label domain -> (H, W) ids of that domain.
        alpha: weight of the colours, as in `overlay`.
        min_side: a photo whose longer side is smaller is enlarged to it (photo bicubic, labels nearest).

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: as `overlay`.
        LabelDomainError: a name is not known.
    """
    image = _checked_image(image)
    photo = _enlarged(image, min_side, Image.Resampling.BICUBIC)
    width = max(photo.shape[1], _MIN_COLUMN)
    font_size = max(_MIN_FONT, width // 32)
    columns = [(photo, "photo", np.full((1, 1, 3), _PAPER, dtype=np.uint8))]
    for name, labels in labels_by_domain.items():
        domain = get_label_domain(name)
        labels = _checked_labels(labels, domain)
        if labels.shape == image.shape[:2]:  # another size is `overlay`'s error
            labels = _enlarged(labels, min_side, Image.Resampling.NEAREST)
        present = np.setdiff1d(np.unique(labels), _background_ids(domain))
        columns.append((overlay(photo, labels, domain, alpha), domain.name, legend(domain, present, width, font_size)))
    return _joined(columns, font_size)


def matrix_picture(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], title: str = "", font_size: int = _MIN_FONT
) -> np.ndarray:
    """A matrix as a table: its values in the cells, the darker the nearer to 1, row names left, column names above.

    Args:
        values: (M, N) finite numbers; below 0 a cell has the colour of 0, above 1 that of 1.
        rows: M names.
        columns: N names, written upwards.
        title: written above all; "": none.
        font_size: height of the letters in pixels.

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: the values are no such matrix, or do not fit the names.
    """
    values = np.asarray(values)
    if values.shape != (len(rows), len(columns)) or values.size == 0 or not np.isfinite(values.astype(float)).all():
        raise SSTDataError(
            f"matrix picture: values of shape {values.shape} for {len(rows)} rows and {len(columns)} columns; one "
            "finite number for each pair of names is expected"
        )
    font, pad = _font(font_size), max(3, font_size // 3)
    texts = [[f"{value:.2f}" for value in row] for row in values]
    height = font_size + 2 * pad
    width = max(height, max(_text_width(text, font) for row in texts for text in row) + 2 * pad)
    left = max(_text_width(name, font) for name in rows) + 2 * pad
    title_height = height if title else 0
    top = title_height + max(_text_width(name, font) for name in columns) + 2 * pad
    size = (max(left + width * len(columns), _text_width(title, font) + 2 * pad), top + height * len(rows))
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    _write(draw, (pad, 0), title_height, title, font)
    for j, name in enumerate(columns):
        upwards = Image.new("RGB", (top - title_height, height), _PAPER)
        _write(ImageDraw.Draw(upwards), (pad, 0), height, name, font)
        canvas.paste(
            upwards.transpose(Image.Transpose.ROTATE_90), (left + j * width + (width - height) // 2, title_height)
        )
    for i, name in enumerate(rows):
        y = top + i * height
        _write(draw, (left - pad - _text_width(name, font), y), height, name, font)
        for j, text in enumerate(texts[i]):
            _draw_cell(draw, (left + j * width, y, width, height), float(values[i, j]), text, font)
    return np.asarray(canvas).copy()


def save_image(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a picture; its format follows the file's ending. Folders are made, and no half file is ever left.

    Args:
        path: ends with .png, .jpg or any other ending that Pillow can write.
        array: (H, W, 3) uint8, RGB.

    Raises:
        SSTDataError: not a picture, an unknown ending, or the file cannot be written.
    """
    _save(Image.fromarray(_checked_image(array)), Path(path))


def save_label_png(path: str | os.PathLike, labels: np.ndarray, domain: LabelDomain) -> None:
    """Write a label map as a palette PNG: the pixel values are the ids, the palette shows the domain's colours.

    Args:
        path: ends with .png.
        labels: (H, W) ids in [0, K) or ignore.
        domain: the label domain of the ids.

    Raises:
        SSTDataError: not a label map of the domain, another ending, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise SSTDataError(f"{path}: label maps are written as .png; other formats may change the ids")
    picture = Image.fromarray(_checked_labels(labels, domain))
    picture.putpalette(_palette(domain).tobytes())  # makes it mode P
    _save(picture, path)


def _palette(domain: LabelDomain) -> np.ndarray:
    """(256, 3) uint8: the colour of every 8-bit id."""
    palette = np.zeros((256, 3), dtype=np.uint8)
    palette[: domain.num_classes] = domain.colors
    palette[domain.ignore_label] = IGNORE_COLOR
    return palette


def _background_ids(domain: LabelDomain) -> list[int]:
    return [i for i, name in enumerate(domain.classes) if name.lower() in BACKGROUND_NAMES]


def _contours(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose right or lower neighbour has another id."""
    edge = np.zeros(labels.shape, dtype=bool)
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    edge[:-1] |= labels[:-1] != labels[1:]
    return edge


def _checked_image(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise SSTDataError(f"a picture of shape {image.shape}, {image.dtype}; (H, W, 3) uint8, RGB, is expected")
    return image


def _checked_labels(labels: np.ndarray, domain: LabelDomain) -> np.ndarray:
    """The label map as (H, W) uint8, contiguous."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise SSTDataError(f"a label map of shape {labels.shape}, {labels.dtype}; (H, W) whole numbers are expected")
    _check_ids(np.unique(labels).tolist(), domain, "label map")
    return np.ascontiguousarray(labels, dtype=np.uint8)


def _check_ids(ids: Iterable[int], domain: LabelDomain, what: str) -> None:
    strange = [i for i in ids if not (0 <= i < domain.num_classes or i == domain.ignore_label)]
    if strange:
        raise SSTDataError(
            f"{what}: the ids {strange} do not belong to label domain '{domain.name}'; allowed are 0 to "
            f"{domain.num_classes - 1} and {domain.ignore_label} (ignore)"
        )


def _enlarged(array: np.ndarray, min_side: int, resample: Image.Resampling) -> np.ndarray:
    height, width = array.shape[:2]
    factor = min_side / max(height, width)
    if factor <= 1:
        return array
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(array).resize(size, resample))


def _joined(columns: list[tuple[np.ndarray, str, np.ndarray]], font_size: int) -> np.ndarray:
    """One picture of columns (picture, title, legend): titles on one line, legends on one height."""
    gap, title_height = max(6, font_size // 2), 2 * font_size
    font = _font(font_size)
    widths = [max(picture.shape[1], below.shape[1], _text_width(title, font)) for picture, title, below in columns]
    height = columns[0][0].shape[0]
    below_height = max(below.shape[0] for _, _, below in columns)
    size = (sum(widths) + gap * (len(columns) + 1), title_height + height + gap + below_height)
    canvas = Image.new("RGB", size, _PAPER)
    draw, x = ImageDraw.Draw(canvas), gap
    for (picture, title, below), width in zip(columns, widths, strict=True):
        left = x + (width - picture.shape[1]) // 2
        _write(draw, (left, 0), title_height, title, font)
        canvas.paste(Image.fromarray(picture), (left, title_height))
        canvas.paste(Image.fromarray(below), (x, title_height + height + gap))
        x += width + gap
    return np.asarray(canvas).copy()


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    box: tuple[int, int, int, int],
    value: float,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    """One cell of a matrix: ``box`` is (x, y, width, height); its text stands in the middle."""
    x, y, width, height = box
    share = min(max(value, 0.0), 1.0)
    color = tuple(round(light + share * (dark - light)) for light, dark in zip(_PAPER, _DARKEST_CELL, strict=True))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color, outline=_PAPER)
    ink = _PAPER if share > 0.5 else _INK
    _write(draw, (x + (width - _text_width(text, font)) // 2, y), height, text, font, ink)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; a Pillow before 10.1 or without FreeType has it in one small size only."""
    try:
        return ImageFont.load_default(size=size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def _text_width(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> int:
    return int(np.ceil(font.getbbox(text)[2]))


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    row_height: int,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    ink: tuple[int, int, int] = _INK,
) -> None:
    """Write ``text`` from the left of ``place`` (x, y), its capitals centred in a row of ``row_height`` pixels."""
    _, top, _, bottom = font.getbbox("H")
    draw.text((place[0], place[1] + (row_height - top - bottom) / 2), text, fill=ink, font=font)


def _save(picture: Image.Image, path: Path) -> None:
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise SSTDataError(f"{path}: no picture format has the ending '{path.suffix}'; use .png or .jpg")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(temporary, format=known[path.suffix.lower()])
        temporary.replace(path)
    except OSError as reason:
        temporary.unlink(missing_ok=True)
        raise SSTDataError(f"{path}: cannot be written ({reason})") from reason
