"""Ways to spoil the files of a sample, or to write them unusually; `test_faults.py` says what must come of each."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 48
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
PHOTO = np.stack([ROWS * 5, COLUMNS * 4, 200 - ROWS - COLUMNS], axis=2).astype(np.uint8)
LABELS = np.random.default_rng(0).integers(18, size=(5, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
LABELS[:3, :4] = 255


@dataclass
class Pair:
    """The files of one sample, and what a reader should find in them."""

    photo: Path
    labels: Path
    keys: dict
    true_photo: np.ndarray
    true_labels: np.ndarray

    def sample(self):
        return {"image_id": "x", "file_name": str(self.photo), "label_domain": "atr", **self.keys}

    def save_photo(self, picture, ending="png", **options):
        """Write a photo in another format; what is written is also the truth."""
        self.photo = self.photo.with_suffix(f".{ending}")
        picture.save(self.photo, **options)

    def save_labels(self, picture, **options):
        picture.save(self.labels, **options)


def chunked_png(width, height, bits, rows):
    """A grey PNG of few bits, of no pixels or (``rows`` None) of no data, which Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = [] if rows is None else [(b"IDAT", zlib.compress(rows))]
    chunks = [(b"IHDR", header), *data, (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def cut(name, share):
    def change(pair):
        path = getattr(pair, name)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(len(whole) * share)])

    return change


def without_end(name, count):
    def change(pair):
        path = getattr(pair, name)
        path.write_bytes(path.read_bytes()[:-count])

    return change


def altered(name, place):
    """One bit of another byte; ``place`` is counted from the end."""

    def change(pair):
        path = getattr(pair, name)
        content = bytearray(path.read_bytes())
        content[-place] ^= 4
        path.write_bytes(bytes(content))

    return change


def with_bytes(name, content):
    return lambda pair: getattr(pair, name).write_bytes(content)


def with_tail(name):
    return lambda pair: getattr(pair, name).write_bytes(getattr(pair, name).read_bytes() + b"rubbish" * 9)


def absent(name):
    return lambda pair: getattr(pair, name).unlink()


def folder(name):
    def change(pair):
        getattr(pair, name).unlink()
        getattr(pair, name).mkdir()

    return change


def key(**values):
    """Another value of a key; None and absent are the same."""

    def change(pair):
        pair.keys = {name: value for name, value in {**pair.keys, **values}.items() if value is not ...}

    return change


def jpeg(change=None, mode="RGB"):
    def made(pair):
        pair.save_photo(Image.fromarray(PHOTO).convert(mode), "jpg", quality=95, subsampling=0)
        if mode == "L":
            pair.true_photo = np.asarray(Image.fromarray(PHOTO).convert("L"))[..., None].repeat(3, 2)
        if change is not None:
            change(pair)

    return made


def photo(ending, mode="RGB", truth=None, **options):
    """The photo in another format and mode; ``truth`` of the written picture, if it is not the photo itself."""

    def change(pair):
        picture = Image.fromarray(PHOTO).convert(mode)
        pair.save_photo(picture, ending, **options)
        pair.true_photo = PHOTO if truth is None else truth(picture)

    return change


def photo_16_bit(pair):
    pair.save_photo(Image.fromarray((ROWS * 1000).astype(np.uint16)))


def transparent_photo(pair):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[5:20] = 0
    pair.save_photo(Image.fromarray(np.concatenate([PHOTO, alpha], axis=2)))


def animated_photo(pair):
    frames = [Image.fromarray(np.roll(PHOTO, shift, 0)) for shift in (0, 9)]
    pair.save_photo(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True)


def palette_photo_without_palette(pair):
    """The palette's chunk gets another name, and the checksum of that name."""
    pair.save_photo(Image.fromarray(PHOTO).quantize(16))
    content = pair.photo.read_bytes()
    begin = content.index(b"PLTE")
    end = begin + 4 + struct.unpack(">I", content[begin - 4 : begin])[0]
    chunk = b"pLTE" + content[begin + 4 : end]
    pair.photo.write_bytes(content[:begin] + chunk + struct.pack(">I", zlib.crc32(chunk)) + content[end + 4 :])


def photo_with_preview(pair):
    """As phones write them: a JPEG file that holds a small picture too."""
    pair.photo = pair.photo.with_suffix(".jpg")
    preview = Image.fromarray(PHOTO[::4, ::4].copy())
    options = {"quality": 95, "subsampling": 0, "save_all": True, "append_images": [preview]}
    Image.fromarray(PHOTO).save(pair.photo, format="MPO", **options)
    assert Image.open(pair.photo).n_frames == 2


def turned(tag, labels_as_stored=False):
    """A photo whose EXIF tag turns it; the truth is written out by hand for two of the tags."""

    def change(pair):
        exif = Image.Exif()
        exif[0x0112] = tag
        pair.save_photo(Image.fromarray(PHOTO), exif=exif)
        turn = {3: lambda a: a[::-1, ::-1], 6: lambda a: np.rot90(a, -1)}[tag]
        pair.true_photo = turn(PHOTO)
        if not labels_as_stored:
            pair.true_labels = turn(LABELS)
            pair.save_labels(Image.fromarray(np.ascontiguousarray(pair.true_labels)))

    return change


def palette_labels(bits=8, **options):
    """As mode P, with a palette that no grey value would lead back from."""

    def change(pair):
        count = 1 << bits
        pair.true_labels = LABELS if bits == 8 else (LABELS % count).astype(np.uint8)
        picture = Image.fromarray(pair.true_labels)
        picture.putpalette([(7 * i + c) % 256 for i in range(count) for c in (90, 17, 200)])
        pair.save_labels(picture, **options)
        assert pair.labels.read_bytes()[24] == bits  # of the header

    return change


def labels_as(mode=None, **options):
    def change(pair):
        picture = Image.fromarray(LABELS)
        pair.save_labels(picture if mode is None else picture.convert(mode), **options)

    return change


def labels_16_bit(pair):
    pair.save_labels(Image.fromarray(LABELS.astype(np.uint16)))


def animated_labels(pair):
    frames = [Image.fromarray(LABELS), Image.fromarray(LABELS[::-1].copy())]
    pair.save_labels(frames[0], save_all=True, append_images=frames[1:])


def turned_labels(pair):
    exif = Image.Exif()
    exif[0x0112] = 6
    pair.save_labels(Image.fromarray(LABELS), exif=exif)


def other_size(pair):
    pair.save_labels(Image.fromarray(LABELS[:, :-1].copy()))


def strange_id(pair):
    labels = LABELS.copy()
    labels[20, 30] = 18
    pair.save_labels(Image.fromarray(labels))


def grey(picture):
    return np.asarray(picture.convert("L"))[..., None].repeat(3, 2)
