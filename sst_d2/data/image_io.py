"""The one reader of photos: their pixels for the mapper, their size for the cards, both upright."""

from __future__ import annotations

import logging
import struct

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from sst_d2.errors import SSTDataError

# What Pillow raises for files that are cut off, altered or absurdly large.
DAMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_PNG_EXIF = {"exif", "Raw profile type exif"}
_UPRIGHT = {
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False),
    3: (Image.Transpose.ROTATE_180, False),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False),
    5: (Image.Transpose.TRANSPOSE, True),
    6: (Image.Transpose.ROTATE_270, True),
    7: (Image.Transpose.TRANSVERSE, True),
    8: (Image.Transpose.ROTATE_90, True),
}


def read_image(path: str, image_format: str) -> np.ndarray:
    """Read a photo of 8 bits per channel, turned upright by its EXIF tag. Grey, palette and CMYK photos become colours.

    Args:
        path: a file, or a URI that Detectron2 knows.
        image_format: order of the channels, "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        SSTDataError: the file is absent, empty, damaged, no image, or has more than 8 bits per channel.
    """
    try:
        with PathManager.open(path, "rb") as stream, Image.open(stream) as image:
            if image.mode.startswith(("I", "F")) or any(";16" in str(tile[3]) for tile in image.tile):
                raise SSTDataError(
                    f"{path}: an image of mode {image.mode} with more than 8 bits per channel would be clipped; "
                    "convert it to 8 bits first"
                )
            # Decoded here, so that damage is named: Pillow decodes PNG files for their EXIF data too, and its second
            # attempt after a failed one would give what has been decoded so far.
            image.load()
            method, _ = _UPRIGHT.get(_orientation(image), (None, False))
            upright = image if method is None else image.transpose(method)
            return np.ascontiguousarray(convert_PIL_to_numpy(upright, image_format))
    except SSTDataError:
        raise
    except FileNotFoundError as reason:
        raise SSTDataError(f"{path}: the image does not exist") from reason
    except UnidentifiedImageError as reason:
        raise SSTDataError(f"{path}: is no image file, or an empty one") from reason
    except DAMAGE as reason:
        raise SSTDataError(f"{path}: the image cannot be read, it may be damaged or cut off ({reason})") from reason


def image_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an upright photo, from its header; None where the header cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            _, sideways = _UPRIGHT.get(_orientation(image), (None, False))
    except DAMAGE as reason:
        logging.getLogger(__name__).debug("%s: the image's header cannot be read: %s", path, reason)
        return None
    return (width, height) if sideways else (height, width)


def _orientation(image: Image.Image) -> object:
    """The EXIF tag as it stands; of damaged EXIF data None: the photo is then taken as it lies, as Detectron2 does."""
    if image.format == "PNG" and not _PNG_EXIF & set(image.info):
        return None  # Pillow would decode the whole image to look for it
    try:
        return image.getexif().get(_ORIENTATION)
    except (*DAMAGE, AttributeError, IndexError, KeyError, OverflowError, TypeError, struct.error) as reason:
        logging.getLogger(__name__).debug("damaged EXIF data are passed over: %s", reason)
        return None
