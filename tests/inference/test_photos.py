"""What a user may call a photo: red, green and blue, upright, or a sentence that says what to do."""

import contextlib
import io
import os
import threading
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from sst_d2.errors import SSTDataError
from sst_d2.inference.photos import as_photo

PHOTO = np.random.default_rng(0).integers(256, size=(10, 14, 3)).astype(np.uint8)
GREY = PHOTO[:, :, 0]
ALL = 10**9


def as_rgb(picture):
    return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK", "YCbCr", "HSV"])
def test_pictures_of_every_kind_of_8_bits_become_colours(mode, tmp_path):
    picture = Image.fromarray(PHOTO).convert(mode)
    assert np.array_equal(as_photo(picture, "RGB", ALL), as_rgb(picture))
    ending = {"CMYK": "tif", "YCbCr": "tif"}.get(mode, "png")
    if mode != "HSV":  # no file format has it
        picture.save(tmp_path / f"x.{ending}")
        expected = as_rgb(Image.open(tmp_path / f"x.{ending}"))
        for path in (tmp_path / f"x.{ending}", str(tmp_path / f"x.{ending}")):
            assert np.array_equal(as_photo(path, "BGR", ALL), expected)  # the order is of arrays alone
        assert np.array_equal(as_photo(Image.open(tmp_path / f"x.{ending}"), "BGR", ALL), expected)


def test_a_cmyk_jpeg_is_read_as_pillow_shows_it(tmp_path):
    Image.fromarray(PHOTO).convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    assert np.array_equal(as_photo(tmp_path / "x.jpg", "RGB", ALL), as_rgb(Image.open(tmp_path / "x.jpg")))


@pytest.mark.parametrize("tag", range(1, 9))
def test_files_and_pictures_are_turned_upright(tag, tmp_path):
    turned = {2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.transpose(1, 0, 2)}
    turned |= {6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).transpose(1, 0, 2), 8: np.rot90}
    expected = turned.get(tag, np.asarray)(PHOTO)
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.fromarray(PHOTO).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(as_photo(tmp_path / "x.png", "RGB", ALL), expected)
    assert np.array_equal(as_photo(Image.open(tmp_path / "x.png"), "RGB", ALL), expected)


def test_arrays_are_taken_as_they_are_said_to_be():
    assert np.array_equal(as_photo(PHOTO, "RGB", ALL), PHOTO)
    assert np.array_equal(as_photo(PHOTO, "BGR", ALL), PHOTO[:, :, ::-1])
    for grey in (GREY, GREY[:, :, None]):
        assert np.array_equal(as_photo(grey, "BGR", ALL), np.stack([GREY] * 3, axis=2))


@pytest.mark.parametrize("view", [PHOTO, PHOTO[::-1, ::2], np.asfortranarray(PHOTO), PHOTO[:, :, ::-1], PHOTO[:1, :1]])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_the_result_is_contiguous_and_never_the_users_own_memory(view, order):
    view = view.view()
    view.flags.writeable = False
    photo = as_photo(view, order, ALL)
    assert photo.flags.c_contiguous and photo.flags.writeable and not np.shares_memory(photo, view)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.dstack([PHOTO, GREY]), r"shape \(10, 14, 4\).*leave the transparency out: image\[:, :, :3\]"),
        (PHOTO.transpose(2, 0, 1), r"channels to the end: image\.transpose\(1, 2, 0\)"),
        (GREY[None], r"channels to the end"),
        (PHOTO[None], r"as a list: list\(images\)"),
        (PHOTO.astype(np.uint16), r"uint16.*clipped; of 16 bits: \(image // 257\)\.astype\('uint8'\)"),
        (PHOTO / 255, r"float64.*\(255 \* image\)\.round\(\)\.astype\('uint8'\)"),
        (GREY.astype(np.float32), r"float32.*image\.round\(\)\.astype\('uint8'\)"),
        (GREY > 100, r"bool; .*uint8, is expected"),
        (PHOTO.astype(np.int64), r"int64; .*uint8, is expected"),
        (PHOTO[:0], r"shape \(0, 14, 3\)"),
        (PHOTO[:, :, :2], r"shape \(10, 14, 2\)"),
        (PHOTO[0, 0], r"shape \(3,\)"),
        (np.array(["a"]), r"<U1"),
    ],
)
def test_arrays_that_would_have_to_be_guessed_at_are_refused_with_the_remedy(array, words):
    with pytest.raises(SSTDataError, match=f"^image 3 of the list: an array of .*{words}"):
        as_photo(array, "RGB", ALL, "image 3 of the list")


@pytest.mark.parametrize("thing", [None, 3, torch.zeros(3, 4, 4), b"photo.jpg", {"image": PHOTO}])
def test_other_things_are_refused_by_their_type(thing):
    with pytest.raises(SSTDataError, match=r"^the image: a [\w.]+; a path, a PIL image, a NumPy array or a list"):
        as_photo(thing, "RGB", ALL)


def test_a_wrong_order_of_channels_is_refused():
    with pytest.raises(SSTDataError, match="channel_order: 'rgb'; allowed: 'RGB', 'BGR'"):
        as_photo(PHOTO, "rgb", ALL)


def test_files_and_pictures_of_more_than_8_bits_are_refused_by_name(tmp_path):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for image in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png")):
        with pytest.raises(SSTDataError, match=r"deep\.png: an image of mode I.*more than 8 bits.*convert it"):
            as_photo(image, "RGB", ALL)
    for picture in (deep, Image.fromarray(GREY.astype(np.float32)), Image.fromarray(GREY.astype(np.int32))):
        with pytest.raises(SSTDataError, match="^image 2 of the list: an image of mode"):
            as_photo(picture, "RGB", ALL, "image 2 of the list")


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused_as_an_array_without_any_is(size):
    words = f"^image 2 of the list: an image of {size[1]} x {size[0]} pixels .*; at least one is expected"
    with pytest.raises(SSTDataError, match=words):
        as_photo(Image.new("RGB", size), "RGB", ALL, "image 2 of the list")


def test_what_cannot_be_read_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = io.BytesIO()
    Image.fromarray(PHOTO).save(whole, "png")
    (tmp_path / "half.png").write_bytes(whole.getvalue()[:200])
    (tmp_path / "folder.jpg").mkdir()
    for name, words in (
        ("text.jpg", "is no image file"),
        ("empty.jpg", "is no image file that Pillow can open, or an empty one"),
        ("half.png", "cannot be read, it may be damaged or cut off"),
        ("folder.jpg", "is a folder; give a photo in it, or a list of them"),
        ("pipe.jpg", "is no file"),
        ("absent.jpg", "does not exist"),
    ):
        with pytest.raises(SSTDataError, match=rf"{name}: .*{words}"):
            as_photo(tmp_path / name, "RGB", ALL)
    Image.fromarray(PHOTO).resize((300, 200)).save(tmp_path / "x.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "x.jpg").read_bytes()[:2000])
    with pytest.raises(SSTDataError, match=r"cut\.jpg: the image cannot be read"):
        as_photo(Image.open(tmp_path / "cut.jpg"), "RGB", ALL)


def test_large_photos_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    for ending in ("png", "jpg", "webp"):
        Image.fromarray(PHOTO).save(tmp_path / f"x.{ending}")
        assert as_photo(tmp_path / f"x.{ending}", "RGB", 140).shape == (10, 14, 3)
        picture = Image.open(tmp_path / f"x.{ending}")
        monkeypatch.setattr(type(picture), "load", None)  # decoding would fail
        for image in (tmp_path / f"x.{ending}", picture):
            words = rf"x\.{ending}: 10 x 14 pixels \(height x width\).*TEST\.SST\.MAX_PIXELS 139 allows; scale"
            with pytest.raises(SSTDataError, match=words):
                as_photo(image, "RGB", 139)
        monkeypatch.undo()
    for array in (PHOTO, GREY):
        with pytest.raises(SSTDataError, match="^the image: 10 x 14 pixels"):
            as_photo(array, "RGB", 139)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "gif", "tif", "bmp", "ppm"])
def test_the_limit_counts_in_the_place_of_pillows(ending, tmp_path, monkeypatch):
    path = tmp_path / f"x.{ending}"
    Image.fromarray(PHOTO).save(path)
    expected = as_rgb(Image.open(path))
    for pillows in (60, 100):  # an error, a warning
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillows)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert np.array_equal(as_photo(path, "RGB", 140), expected)
            with pytest.raises(SSTDataError, match=r": 10 x 14 pixels .*more than TEST\.SST\.MAX_PIXELS 139 allows"):
                as_photo(path, "RGB", 139)
        assert pillows == Image.MAX_IMAGE_PIXELS
        (tmp_path / "cut").write_bytes(path.read_bytes()[:-20])
        with contextlib.suppress(SSTDataError):
            as_photo(tmp_path / "cut", "RGB", 140)
        assert pillows == Image.MAX_IMAGE_PIXELS


def test_a_photo_whose_tiles_are_larger_than_it_is_does_not_pass_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    path = tmp_path / "x.tif"
    Image.fromarray(PHOTO).save(path)
    check = Image._decompression_bomb_check
    monkeypatch.setattr(Image, "_decompression_bomb_check", lambda size, **keys: check((20, 20), **keys))
    with pytest.raises(SSTDataError, match=r"x\.tif: .*more pixels than Pillow opens"):
        as_photo(path, "RGB", 150)
    monkeypatch.undo()


def test_threads_leave_pillows_limit_as_it_was(tmp_path, monkeypatch):
    Image.fromarray(PHOTO).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    barrier, answers = threading.Barrier(4), []

    def work():
        barrier.wait()
        answers.extend(as_photo(tmp_path / "x.png", "RGB", ALL) for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80 and all(np.array_equal(answer, PHOTO) for answer in answers)
    assert Image.MAX_IMAGE_PIXELS == 60


def test_an_address_that_does_not_answer_is_named_with_the_cause():
    for address in ("http://localhost:1/x.jpg", "http://[half/x.jpg"):
        with pytest.raises(SSTDataError) as caught:
            as_photo(address, "RGB", ALL)
        assert str(caught.value).startswith(f"{address}: the image cannot be had (")
        assert "damaged" not in str(caught.value) and "fetch the file and give its path" in str(caught.value)
