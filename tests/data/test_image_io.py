"""The one reader of photos."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from sst_d2.data.image_io import image_size, read_image
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
