"""Letters in pictures: one font in any size, text on the middle of a row."""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw, ImageFont

PAPER, INK, FRAME = (255, 255, 255), (24, 24, 24), (128, 128, 128)
MIN_FONT, MAX_FONT = 14, 160
Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def font_of(size: int) -> Font:
    """Pillow's own font; a Pillow before 10.1 or without FreeType has it in one small size only."""
    try:
        return ImageFont.load_default(size=size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def text_width(text: str, font: Font) -> int:
    """In whole pixels."""
    return int(np.ceil(font.getbbox(text)[2]))


def write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    row_height: int,
    text: str,
    font: Font,
    ink: tuple[int, int, int] = INK,
) -> None:
    """Write ``text`` from the left of ``place`` (x, y), its capitals centred in a row of ``row_height`` pixels."""
    _, top, _, bottom = font.getbbox("H")
    draw.text((place[0], place[1] + (row_height - top - bottom) / 2), text, fill=ink, font=font)
