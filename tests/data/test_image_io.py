"""The one reader of photos."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from sst_d2.data.image_io import image_size, inspect_photo, is_turned_sideways, read_image
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
