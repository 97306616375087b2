"""Matrices over classes, as tables whose cells are the darker the larger their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from sst_d2.errors import SSTDataError
from sst_d2.visualization.lettering import INK, MIN_FONT, PAPER, Font, font_of, text_width, write

# The colours of 1, of -1, and of a cell without a value; 0 is paper.
_HIGHEST, _LOWEST, _NO_VALUE = (12, 58, 130), (150, 60, 20), (232, 232, 232)
_LINE = (225, 225, 225)


def matrix_picture(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str = "",
    font_size: int = MIN_FONT,
    cell_text: Callable[[float], str] | None = None,
) -> np.ndarray:
    """A matrix as a table: its values in the cells, the darker the nearer to 1, row names left, column names above.

    Args:
        values: (M, N) numbers; negative ones are brown, the darker the nearer to -1; NaN: a grey cell without text.
        rows: M names.
        columns: N names, written upwards.
        title: written above all, line by line; "": none.
        font_size: height of the letters in pixels.
        cell_text: what stands in the cell of a value; None: two decimal places.

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: the values are no such matrix, or do not fit the names.
    """
    values = np.asarray(values)
    if values.shape != (len(rows), len(columns)) or values.size == 0 or np.isinf(values.astype(float)).any():
        raise SSTDataError(
            f"matrix picture: values of shape {values.shape} for {len(rows)} rows and {len(columns)} columns; one "
            "finite number, or NaN, for each pair of names is expected"
        )
    font, pad, lines = font_of(font_size), max(3, font_size // 3), title.splitlines()
    texts = [["" if np.isnan(value) else (cell_text or _two_places)(value) for value in row] for row in values]
    height = font_size + 2 * pad
    width = max(height, max(text_width(text, font) for row in texts for text in row) + 2 * pad)
    left = max(text_width(name, font) for name in rows) + 2 * pad
    title_height = height * len(lines)
    top = title_height + max(text_width(name, font) for name in columns) + 2 * pad
    widest = max((text_width(line, font) for line in lines), default=0) + 2 * pad
    canvas = Image.new("RGB", (max(left + width * len(columns), widest), top + height * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        write(draw, (pad, number * height), height, line, font)
    for j, name in enumerate(columns):
        upwards = Image.new("RGB", (top - title_height, height), PAPER)
        write(ImageDraw.Draw(upwards), (pad, 0), height, name, font)
        place = (left + j * width + (width - height) // 2, title_height)
        canvas.paste(upwards.transpose(Image.Transpose.ROTATE_90), place)
    for i, name in enumerate(rows):
        y = top + i * height
        write(draw, (left - pad - text_width(name, font), y), height, name, font)
        for j, text in enumerate(texts[i]):
            _draw_cell(draw, (left + j * width, y, width, height), float(values[i, j]), text, font)
    return np.asarray(canvas).copy()


def _two_places(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text


def _draw_cell(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], value: float, text: str, font: Font) -> None:
    """One cell of a matrix: ``box`` is (x, y, width, height); its text stands in the middle."""
    x, y, width, height = box
    missing = np.isnan(value)
    share = 0.0 if missing else min(abs(value), 1.0)
    darkest = _LOWEST if value < 0 else _HIGHEST
    color = tuple(round(light + share * (dark - light)) for light, dark in zip(PAPER, darkest, strict=True))
    draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_NO_VALUE if missing else color, outline=_LINE)
    ink = PAPER if share > 0.5 else INK
    write(draw, (x + (width - text_width(text, font)) // 2, y), height, text, font, ink)
