"""Pictures as files: written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

from sst_d2.errors import SSTDataError
from sst_d2.files import partial_path
from sst_d2.label_domains import LabelDomain
from sst_d2.visualization.label_maps import checked_image, checked_labels, palette

# Most pixels a side, where a format has a limit that a panorama or a sheet may reach.
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}


class PictureFormatError(SSTDataError):
    """One picture cannot be had in the format that was asked for; others can be written to the same place."""


def save_image(path: str | os.PathLike, array: np.ndarray) -> None:
    """Write a picture; its format follows the file's ending. Folders are made, and no half file is ever left.

    Args:
        path: ends with .png, .jpg or any other ending that Pillow can write.
        array: (H, W, 3) uint8, RGB.

    Raises:
        PictureFormatError: the format cannot hold the picture.
        SSTDataError: not a picture, an unknown ending, or the file cannot be written.
    """
    _save(Image.fromarray(checked_image(array)), Path(path))


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
    picture = Image.fromarray(checked_labels(labels, domain))
    picture.putpalette(palette(domain).tobytes())  # makes it mode P
    _save(picture, path)


def _save(picture: Image.Image, path: Path) -> None:
    known = Image.registered_extensions()
    if known.get(path.suffix.lower()) not in Image.SAVE:
        raise SSTDataError(f"{path}: no picture format has the ending '{path.suffix}'; use .png or .jpg")
    content = _encoded(picture, known[path.suffix.lower()], path)
    temporary = partial_path(path, f"{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except BaseException as reason:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(reason, OSError):
            raise SSTDataError(f"{path}: cannot be written ({reason})") from reason
        raise


def _encoded(picture: Image.Image, picture_format: str, path: Path) -> memoryview:
    """The file's content, made in memory: what fails here is the picture's fault, not the disk's."""
    stream, problem = io.BytesIO(), ""
    limit = _LONGEST_SIDE.get(picture_format, max(picture.size))
    if max(picture.size) > limit:  # libjpeg would print a line of its own
        problem = f"it holds at most {limit:,} pixels a side"
    else:
        try:
            # Thin lines between regions of flat colours do not survive Pillow's usual JPEG.
            picture.save(stream, format=picture_format, quality=92, subsampling=0)
        except (OSError, ValueError) as reason:
            problem = str(reason)
    if problem:
        raise PictureFormatError(
            f"{path}: a picture of {picture.width} x {picture.height} pixels (width x height) cannot be written as "
            f"{picture_format} ({problem}); scale it down, or name a .png"
        )
    return stream.getbuffer()
