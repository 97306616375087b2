"""The one reader of photos."""

import struct
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from sst_d2.data.image_io import image_size, inspect_photo, is_turned_sideways, picture_colours, read_image
from sst_d2.errors import SSTDataError

PHOTO = np.random.default_rng(0).integers(256, size=(40, 48, 3)).astype(np.uint8)


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_becomes_upright_as_pillow_would_turn_it(tmp_path, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(PHOTO).save(tmp_path / "x.png", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "x.png")))
    image = read_image(str(tmp_path / "x.png"), "RGB")
    assert np.array_equal(image, expected) and image_size(str(tmp_path / "x.png")) == image.shape[:2]
    facts = inspect_photo(str(tmp_path / "x.png"))
    assert (facts.size, facts.orientation) == (image.shape[:2], tag)
    assert is_turned_sideways(str(tmp_path / "x.png")) == (image.shape[:2] != PHOTO.shape[:2])
    assert np.array_equal(read_image(str(tmp_path / "x.png"), "BGR"), expected[..., ::-1])


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the damage
def test_damaged_exif_data_never_end_in_anything_but_an_image_or_a_named_error(tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x011A] = 6, "a photo", (72, 1)
    Image.fromarray(PHOTO).save(tmp_path / "x.jpg", exif=exif)
    whole = (tmp_path / "x.jpg").read_bytes()
    generator = np.random.default_rng(1)
    for _ in range(400):
        content = bytearray(whole)
        for place in generator.integers(20, 140, size=2):
            content[place] = generator.integers(256)
        (tmp_path / "y.jpg").write_bytes(bytes(content))
        image_size(str(tmp_path / "y.jpg"))
        try:
            assert read_image(str(tmp_path / "y.jpg"), "RGB").dtype == np.uint8
        except SSTDataError as error:
            assert "y.jpg" in str(error)


def test_absurdly_large_headers_are_refused_by_name(tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(SSTDataError, match=r"x\.png: the image cannot be read"):
        read_image(str(tmp_path / "x.png"), "RGB")
    assert image_size(str(tmp_path / "x.png")) is None


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGB", "png"), ("L", "jpg"), ("P", "png"), ("CMYK", "jpg"), ("RGB", "webp")]
)
def test_an_opened_picture_becomes_what_its_file_becomes(tmp_path, mode, ending):
    exif = Image.Exif()
    exif[0x0112] = 8
    path = str(tmp_path / f"x.{ending}")
    Image.fromarray(PHOTO).convert(mode).save(path, exif=exif)
    for order in ("RGB", "BGR"):
        assert np.array_equal(picture_colours(Image.open(path), order), read_image(path, order))


def test_a_limit_of_pixels_counts_before_anything_is_decoded(tmp_path, monkeypatch):
    path = str(tmp_path / "x.png")
    Image.fromarray(PHOTO).save(path)
    assert read_image(path, "RGB", max_pixels=40 * 48).shape == (40, 48, 3)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", None)
    with pytest.raises(SSTDataError, match=r"x\.png: 40 x 48 pixels.*MAX_PIXELS 1919 allows"):
        read_image(path, "RGB", max_pixels=40 * 48 - 1)


def test_a_bmp_that_packs_its_channels_in_16_bits_is_read_and_16_bits_per_channel_are_refused(tmp_path):
    pixels = np.array([[0xF800, 0x07E0], [0x001F, 0x0000]], "<u2")  # red, green; blue, black: the last row comes first
    masks = struct.pack("<3I", 0xF800, 0x07E0, 0x001F)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    content = b"BM" + struct.pack("<IHHI", 14 + 40 + 12 + 8, 0, 0, 14 + 40 + 12) + header + masks
    (tmp_path / "565.bmp").write_bytes(content + pixels[::-1].tobytes())
    expected = [[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]
    assert read_image(str(tmp_path / "565.bmp"), "RGB").tolist() == expected
    Image.fromarray(PHOTO[..., 0].astype(np.uint16)).save(tmp_path / "deep.tif")
    for name in ("deep.tif", *DEEP_PNGS):
        (tmp_path / name).write_bytes(DEEP_PNGS.get(name) or (tmp_path / name).read_bytes())
        with pytest.raises(SSTDataError, match=f"{name}: .*more than 8 bits per channel"):
            read_image(str(tmp_path / name), "RGB")


def deep_png(colour_type, channels):
    """One pixel of 16 bits per channel."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    pixel = zlib.compress(bytes(1 + 2 * channels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixel) + chunk(b"IEND", b"")


DEEP_PNGS = {"rgb.png": deep_png(2, 3), "la.png": deep_png(4, 2), "rgba.png": deep_png(6, 4), "l.png": deep_png(0, 1)}


@pytest.fixture
def without_heif(monkeypatch):
    """Pillow without pillow-heif, whatever is installed."""
    Image.init()
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in Image.OPEN.items() if name != "HEIF"})
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "HEIF"])
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


def test_a_heic_file_is_refused_with_the_remedy_and_read_where_pillow_heif_is_installed(
    tmp_path, monkeypatch, without_heif
):
    for name in ("x.heic", "X.HEIF"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypheic" + PHOTO.tobytes())
        words = f"{name}: is by its name a HEIC file.*convert it to JPEG.* pip install pillow-heif$"
        with pytest.raises(SSTDataError, match=words):
            read_image(str(tmp_path / name), "RGB")
        assert image_size(str(tmp_path / name)) is None

    def opener(stream, filename):
        return Image.frombytes("RGB", (48, 40), stream.read()[12:])

    def register():
        Image.register_open("HEIF", opener, lambda prefix: prefix[4:12] == b"ftypheic")

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    assert image_size(str(tmp_path / "x.heic")) == (40, 48)
    assert np.array_equal(read_image(str(tmp_path / "x.heic"), "RGB"), PHOTO)
    (tmp_path / "text.heic").write_text("no photo")
    with pytest.raises(SSTDataError, match=r"text\.heic: is no image file that Pillow can open"):
        read_image(str(tmp_path / "text.heic"), "RGB")


def test_a_damaged_png_is_named_and_never_read_as_other_pixels(tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    whole = (tmp_path / "x.png").read_bytes()
    for place in range(60, len(whole) - 60, 97):
        content = bytearray(whole)
        content[place] ^= 0x55
        (tmp_path / "y.png").write_bytes(bytes(content))
        with pytest.raises(SSTDataError, match=r"y\.png: "):
            read_image(str(tmp_path / "y.png"), "RGB")


FORMATS = {"jpg": {}, "prog.jpg": {"progressive": True}, "png": {}, "webp": {}, "tif": {}, "gif": {}, "bmp": {}}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_inspected_without_a_fault_can_be_read_and_the_other_way_round(tmp_path, ending):
    smooth = np.asarray(Image.fromarray(PHOTO[:5, :6]).resize((96, 80)))
    Image.fromarray(smooth).save(tmp_path / f"x.{ending}", **FORMATS[ending])
    whole = (tmp_path / f"x.{ending}").read_bytes()
    generator = np.random.default_rng(2)
    contents = [whole[:-count] for count in (*range(1, 30), *generator.integers(30, len(whole), size=30))]
    for _ in range(150):
        content = bytearray(whole)
        for place in generator.integers(len(whole), size=2):
            content[place] = generator.integers(256)
        contents.append(bytes(content))
    refused = 0
    for content in contents:
        (tmp_path / "y").write_bytes(content)
        faults = []
        for reader in (inspect_photo, lambda path: read_image(path, "RGB")):
            try:
                reader(str(tmp_path / "y"))
                faults.append(None)
            except SSTDataError as fault:
                faults.append(str(fault))
        assert (faults[0] is None) == (faults[1] is None), faults
        refused += faults[0] is not None
    assert refused > 5


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_transparency_and_further_frames_are_told(tmp_path):
    path = str(tmp_path / "x.webp")
    alpha = np.concatenate([PHOTO, np.full((40, 48, 1), 255, np.uint8)], axis=2)
    Image.fromarray(alpha).save(path, lossless=True)
    assert not inspect_photo(path).transparent
    alpha[3, 4, 3] = 254
    Image.fromarray(alpha).save(path, lossless=True)
    assert inspect_photo(path).transparent and inspect_photo(path).frames == 1
    palette = Image.fromarray(PHOTO).quantize(8)
    for clear, told in ((7, True), (8, False)):  # there is no pixel of colour 8
        palette.save(tmp_path / "p.png", transparency=clear)
        assert inspect_photo(str(tmp_path / "p.png")).transparent == told
    frames = [Image.fromarray(np.roll(PHOTO, shift, 0)) for shift in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    assert inspect_photo(path).frames == 3 and np.array_equal(read_image(path, "RGB"), PHOTO)
