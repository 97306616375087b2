"""What a user may call a photo, as red, green and blue."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from PIL import Image

from sst_d2.data.image_io import check_pixels, picture_colours, read_image
from sst_d2.errors import SSTDataError

CHANNEL_ORDERS = ("RGB", "BGR")


def as_photo(image: Any, channel_order: str, max_pixels: int, name: str = "the image") -> np.ndarray:
    """Read or check a photo. Files and PIL images are turned upright by their EXIF tag.

    Args:
        image: a path; a PIL image of any mode of 8 bits per channel; or an array, (H, W, 3) uint8 in
            ``channel_order``, or grey, (H, W) or (H, W, 1) uint8.
        channel_order: of an array, "RGB" or "BGR"; files and PIL images know their own.
        max_pixels: the most that are allowed.
        name: of an image without a path, for messages.

    Returns:
        (H, W, 3) uint8, RGB, contiguous; never the user's own array.

    Raises:
        SSTDataError: it is none of these, cannot be read, or has too many pixels.
    """
    if channel_order not in CHANNEL_ORDERS:
        raise SSTDataError(f"channel_order: {channel_order!r}; allowed: 'RGB', 'BGR' (as OpenCV reads)")
    if isinstance(image, (str, os.PathLike)):
        if os.path.isdir(image):
            raise SSTDataError(f"{os.fspath(image)}: is a folder; give a photo in it, or a list of them")
        if os.path.exists(image) and not os.path.isfile(image):  # of a pipe, reading might never end
            raise SSTDataError(f"{os.fspath(image)}: is no file")
        return read_image(os.fspath(image), "RGB", max_pixels)
    if isinstance(image, Image.Image):
        return picture_colours(image, "RGB", max_pixels, name)
    if not isinstance(image, np.ndarray):
        kind = f"{type(image).__module__}.{type(image).__qualname__}".removeprefix("builtins.")
        raise SSTDataError(f"{name}: a {kind}; a path, a PIL image, a NumPy array or a list of them is expected")
    _check_array(image, name)
    check_pixels(name, image.shape[:2], max_pixels)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return np.array(image if channel_order == "RGB" else image[:, :, ::-1], order="C")


def _check_array(array: np.ndarray, name: str) -> None:
    """Refuse what would have to be guessed at, with the line that makes it right."""
    shape, remedy = array.shape, ""
    if array.ndim == 4:
        remedy = "give several images as a list: list(images)"
    elif array.ndim == 3 and shape[2] == 4:
        remedy = "leave the transparency out: image[:, :, :3]"
    elif array.ndim == 3 and shape[2] not in (1, 3) and shape[0] in (1, 3):
        remedy = "bring the channels to the end: image.transpose(1, 2, 0)"
    elif array.dtype == np.uint16:
        remedy = "more than 8 bits per channel would be clipped; of 16 bits: (image // 257).astype('uint8')"
    elif np.issubdtype(array.dtype, np.floating):
        remedy = "of values from 0 to 1: (255 * image).round().astype('uint8'); to 255: image.round().astype('uint8')"
    elif array.dtype != np.uint8:
        remedy = "convert it to 0..255 first"
    elif array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3)):
        remedy = "with at least one pixel"
    if remedy:
        raise SSTDataError(
            f"{name}: an array of shape {shape}, {array.dtype}; (H, W, 3) or grey (H, W), uint8, is expected; {remedy}"
        )
