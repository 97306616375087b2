"""The one reader of photos: their pixels for the mapper, their size for the cards, both upright."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from typing import IO

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from PIL import Image, UnidentifiedImageError

from sst_d2.errors import SSTDataError

# Pillow's guard against files that unpack to absurdly many pixels; a warning may be an error.
_GUARD = (Image.DecompressionBombError, Image.DecompressionBombWarning)
_guard_lock = threading.Lock()
# What Pillow raises for files that are cut off, altered or absurdly large: found by altering files of fifteen formats.
DAMAGE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    *(AssertionError, RuntimeError, struct.error, zlib.error, *_GUARD),
)
_ORIENTATION = 0x0112
_PNG_EXIF = {"exif", "Raw profile type exif"}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_COLOUR_MODES = ("1", "L", "LA", "RGB", "RGBA", "CMYK")  # the usual ones, which always become colours
# Pillow's names of raw pixels with 16 bits per channel. "BGR;16" and "RGB;16" pack all three channels in 16 bits.
_DEEP = re.compile(r";16[BLN]|(?<!RGB|BGR);16")
_HEIF_ENDINGS = (".heic", ".heif")


class FileFault(SSTDataError):
    """A photo or a label map that is refused.

    Attributes:
        kind: one word of the checker's list (`sst_d2.data.inspection.KINDS`).
        ids: of a label map that is refused for its ids, all that occur in the file.
    """

    def __init__(self, message: str, kind: str = "damaged", ids: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.kind = kind
        self.ids = ids


@dataclass(frozen=True)
class PhotoFacts:
    """What can be said of a photo that was decoded to its end.

    Attributes:
        size: (height, width) in pixels, upright.
        orientation: the EXIF tag, 1 to 8; 1 where there is none.
        mode: Pillow's name of the pixels' kind before they become colours ("RGB", "CMYK", "L", "P" …).
        frames: pictures in the file; the first one counts. 1 for the JPEG files of phones that hold a preview too.
        transparent: some of its pixels are; their stored colours count.
    """

    size: tuple[int, int]
    orientation: int
    mode: str
    frames: int
    transparent: bool


def read_image(path: str, image_format: str, max_pixels: int | None = None) -> np.ndarray:
    """Read a photo of 8 bits per channel, turned upright by its EXIF tag. Grey, palette and CMYK photos become colours.

    Of several frames the first one counts; transparency is left out, so that the stored colours count, as in
    Detectron2 and OpenCV.

    Args:
        path: a file, or a URI that Detectron2 knows.
        image_format: order of the channels, "RGB" or "BGR".
        max_pixels: refuse a photo of more pixels before it is decoded; None: Pillow's own limit alone. A higher one
            than Pillow's counts in its place, for as long as such a photo is read.

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        FileFault: the file is absent, empty, damaged, no image, or has more than 8 bits per channel.
        SSTDataError: it has more than ``max_pixels``.
    """
    try:
        with _photo(path, max_pixels) as image:
            return _upright_colours(image, image_format)
    except FileFault as fault:
        if max_pixels is None or not isinstance(fault.__cause__, _GUARD):
            raise
    # First the header alone, so that a photo that is too large is refused by its size.
    with _guarding(path, None), _opened(path) as stream, Image.open(stream) as image:
        size = (image.height, image.width)
    check_pixels(path, size, max_pixels)
    with _guarding(path, max_pixels), _photo(path, max_pixels) as image:
        return _upright_colours(image, image_format)


@contextlib.contextmanager
def _guarding(path: str, limit: int | None) -> Iterator[None]:
    """Let Pillow's guard take another limit, None: none. Pillow has one for the whole process: one photo at a time."""
    with _guard_lock, naming_faults(path, "image", "missing_image"):
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, limit
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def picture_colours(
    image: Image.Image, image_format: str, max_pixels: int | None = None, name: str = "a PIL image"
) -> np.ndarray:
    """As `read_image`, of a picture that Pillow has opened already; its file, if any, may not have been decoded yet.

    Args:
        image: the picture.
        image_format, max_pixels: as `read_image`.
        name: of a picture that was not opened from a named file, for messages.

    Raises:
        FileFault, SSTDataError: as `read_image`.
    """
    name = getattr(image, "filename", "") or name
    with naming_faults(name, "image", "missing_image"):
        _check_picture(name, image, max_pixels)
        return _upright_colours(image, image_format)


def check_pixels(name: str, size: tuple[int, int], max_pixels: int | None) -> None:
    """Refuse a photo of too many pixels.

    Args:
        name: of the photo, for the message.
        size: (height, width).
        max_pixels: the most that are allowed; None: any number.

    Raises:
        SSTDataError: there are more.
    """
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        raise SSTDataError(
            f"{name}: {size[0]} x {size[1]} pixels (height x width), {size[0] * size[1] / 1e6:.1f} million, are more "
            f"than TEST.SST.MAX_PIXELS {max_pixels} allows; scale the photo down, or raise that limit"
        )


def _upright_colours(image: Image.Image, image_format: str) -> np.ndarray:
    # Decoded here, so that damage is named: Pillow decodes PNG files for their EXIF data too, and its second
    # attempt after a failed one would give what has been decoded so far.
    image.load()
    tag = orientation(image)
    upright = image if tag == 1 else image.transpose(_UPRIGHT[tag])
    return np.ascontiguousarray(convert_PIL_to_numpy(upright, image_format))


def inspect_photo(path: str) -> PhotoFacts:
    """Decode a photo to its end, as `read_image` does but cheaper, and say what it is.

    A JPEG file is decoded at an eighth of its size: all of its data are read, and what cannot be read is found.

    Raises:
        FileFault: as `read_image`, for the same files.
    """
    with _photo(path) as image:
        width, height = image.size
        mode = image.mode
        if image.format in ("JPEG", "MPO"):
            image.draft(mode, (1, 1))
        image.load()
        if mode not in _COLOUR_MODES:
            image.convert("RGB")  # an error where there is no way to colours
        tag = orientation(image)
        return PhotoFacts(
            size=(width, height) if tag in _SIDEWAYS else (height, width),
            orientation=tag,
            mode=mode,
            frames=_frames(image),
            transparent=_is_transparent(image),
        )


def open_whole(stream: IO[bytes]) -> Image.Image:
    """Open an image. Of a PNG file the checksums are compared first, which Pillow's decoder leaves out.

    Raises:
        OSError, SyntaxError: (or another of `DAMAGE`) the file cannot be read.
    """
    image = Image.open(stream)
    if image.format != "PNG":
        return image
    image.verify()
    stream.seek(0)
    return Image.open(stream, formats=("PNG",))


@contextlib.contextmanager
def naming_faults(path: str | os.PathLike, what: str, missing_kind: str) -> Iterator[None]:
    """Turn what opening and decoding may raise into a `FileFault` that names the file.

    Args:
        path: the file.
        what: what it should be, for the message.
        missing_kind: kind of the fault where it does not exist.
    """
    try:
        yield
    except SSTDataError:
        raise
    except FileNotFoundError as reason:
        raise FileFault(f"{path}: the {what} does not exist", missing_kind) from reason
    except UnidentifiedImageError as reason:
        problem = "is no image file that Pillow can open, or an empty one"
        if _is_heif(path) and "HEIF" not in Image.OPEN:
            problem = "is by its name a HEIC file, which Pillow alone cannot open; convert it to JPEG, or: "
            problem += "pip install pillow-heif"
        raise FileFault(f"{path}: {problem}") from reason
    except _GUARD as reason:
        raise FileFault(
            f"{path}: the {what} cannot be read, it has more pixels than Pillow opens ({reason}); scale it down"
        ) from reason
    except DAMAGE as reason:
        why = str(reason) or type(reason).__name__
        raise FileFault(f"{path}: the {what} cannot be read, it may be damaged or cut off ({why})") from reason


@contextlib.contextmanager
def _photo(path: str, max_pixels: int | None = None) -> Iterator[Image.Image]:
    """The opened photo, its pixels not decoded yet; what goes wrong meanwhile becomes a `FileFault`."""
    with (
        naming_faults(path, "image", "missing_image"),
        _opened(path) as stream,
        open_whole(stream) as image,
    ):
        _check_picture(path, image, max_pixels)
        yield image


def _opened(path: str) -> IO[bytes]:
    """The file, fetched where ``path`` is an address; of HEIC files Pillow learns to read them, where it can."""
    _learn_heif(path)
    try:
        return PathManager.open(path, "rb")
    except (OSError, ValueError, HTTPException) as reason:
        if "://" not in path:
            raise  # `naming_faults` knows what files suffer from
        raise FileFault(
            f"{path}: the image cannot be had ({reason}); check the address, or fetch the file and give its path",
            "missing_image",
        ) from reason


def _is_heif(path: str | os.PathLike) -> bool:
    return str(path).lower().endswith(_HEIF_ENDINGS)


def _learn_heif(path: str | os.PathLike) -> None:
    """Register pillow-heif, where it is installed, before the first HEIC file is opened."""
    if _is_heif(path) and "HEIF" not in Image.OPEN:
        with contextlib.suppress(ImportError):  # `naming_faults` says how to get it
            importlib.import_module("pillow_heif").register_heif_opener()


def _check_picture(name: str, image: Image.Image, max_pixels: int | None) -> None:
    """Refuse what would be clipped, what is too large and what cannot become colours, before it is decoded."""
    if 0 in image.size:
        raise FileFault(
            f"{name}: an image of {image.height} x {image.width} pixels (height x width); at least one is expected"
        )
    tiles = getattr(image, "tile", [])  # of a picture that was opened from a file
    if image.mode.startswith(("I", "F")) or any(_DEEP.search(str(tile[3])) for tile in tiles):
        raise FileFault(
            f"{name}: an image of mode {image.mode} with more than 8 bits per channel would be clipped; "
            "convert it to 8 bits first",
            "wrong_mode",
        )
    if image.format == "PNG" and image.mode == "P" and image.palette is None:
        raise FileFault(f"{name}: a palette image without its palette; the file is damaged")
    check_pixels(name, (image.height, image.width), max_pixels)


def image_size(path: str) -> tuple[int, int] | None:
    """(height, width) of an upright photo, from its header; None where the header cannot be read."""
    header = _header(path)
    if header is None:
        return None
    (width, height), tag = header
    return (width, height) if tag in _SIDEWAYS else (height, width)


def is_turned_sideways(path: str) -> bool:
    """Whether a photo's EXIF tag exchanges its height and width; False where the header cannot be read."""
    header = _header(path)
    return header is not None and header[1] in _SIDEWAYS


def orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 to 8. 1 where there is none; of damaged EXIF data too, as Detectron2 takes them."""
    if image.format == "PNG" and not _PNG_EXIF & set(image.info):
        return 1  # Pillow would decode the whole image to look for it
    try:
        tag = image.getexif().get(_ORIENTATION)
    except DAMAGE as reason:
        logging.getLogger(__name__).debug("damaged EXIF data are passed over: %s", reason)
        return 1
    return tag if tag in _UPRIGHT else 1


def _header(path: str) -> tuple[tuple[int, int], int] | None:
    """((width, height) as stored, EXIF tag); None where the file is no readable image."""
    _learn_heif(path)
    try:
        with Image.open(path) as image:
            return image.size, orientation(image)
    except DAMAGE as reason:
        logging.getLogger(__name__).debug("%s: the image's header cannot be read: %s", path, reason)
        return None


def _frames(image: Image.Image) -> int:
    """Pictures in the file; 1 where all but the first cannot be read, and for phones' photos with a preview (MPO)."""
    if image.format == "MPO":
        return 1
    try:
        return getattr(image, "n_frames", 1)
    except DAMAGE as reason:
        logging.getLogger(__name__).debug("damaged further pictures are passed over: %s", reason)
        return 1


def _is_transparent(image: Image.Image) -> bool:
    """Whether a decoded image has pixels that are not opaque."""
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.mode.endswith(("A", "a")) and image.getextrema()[-1][0] < 255
