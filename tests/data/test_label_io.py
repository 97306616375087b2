"""The one reader of label maps: right ids or an error by name, never something in between."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from sst_d2.data.label_io import check_remap, read_label_map, read_sample_labels
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import get_label_domain

ATR = get_label_domain("atr")
IDS = np.array([[0, 1, 17], [255, 5, 9]], dtype=np.uint8)


def save(path, array, mode=None, palette=None):
    image = Image.fromarray(array, mode) if mode is None else Image.fromarray(array).convert(mode)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)
    return path


def test_grey_and_palette_images_give_their_raw_ids(tmp_path):
    grey = read_label_map(save(tmp_path / "l.png", IDS), ATR)
    palette = Image.fromarray(IDS)
    palette.putpalette(list(range(255, -1, -1)) * 3)
    palette.save(tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").mode == "P"
    for labels in (grey, read_label_map(tmp_path / "p.png", ATR)):
        assert labels.dtype == np.uint8 and np.array_equal(labels, IDS)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "1", "LA"])
def test_other_modes_are_refused_by_name(tmp_path, mode):
    path = tmp_path / "m.png"
    if mode == "I;16":
        Image.fromarray(IDS.astype(np.uint16)).save(path)
    else:
        Image.fromarray(IDS).convert(mode).save(path)
    with pytest.raises(SSTDataError, match=f"m.png: a label map of mode {mode}; allowed.*L and P"):
        read_label_map(path, ATR)


def test_lossy_formats_and_stretched_grey_values_are_refused(tmp_path):
    Image.fromarray(IDS).save(tmp_path / "x.jpg")
    with pytest.raises(SSTDataError, match=r"x\.jpg: a label map in the format JPEG; PNG is allowed"):
        read_label_map(tmp_path / "x.jpg", ATR)
    # A grey PNG of four bits, which Pillow cannot write: header, one row of two pixels, end.
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 1, 4, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0\x12")),
        (b"IEND", b""),
    ]
    parts = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    (tmp_path / "four.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(SSTDataError, match="fewer than 8 bits"):
        read_label_map(tmp_path / "four.png", ATR)


@pytest.mark.parametrize("strange", [18, 200, 254])
def test_every_id_outside_of_the_domain_is_reported(tmp_path, strange):
    path = save(tmp_path / "x.png", np.where(IDS == 9, strange, IDS).astype(np.uint8))
    with pytest.raises(SSTDataError, match=rf"x.png: the ids \[{strange}\].*'atr'; allowed are 0 to 17 and 255"):
        read_label_map(path, ATR)


def test_a_size_that_differs_from_the_image_is_refused(tmp_path):
    path = save(tmp_path / "x.png", IDS)
    assert read_label_map(path, ATR, size=(2, 3)).shape == (2, 3)
    with pytest.raises(SSTDataError, match=r"2 x 3 pixels \(height x width\) and its image 3 x 2"):
        read_label_map(path, ATR, size=(3, 2))


def test_absent_empty_and_cut_off_files_are_named(tmp_path):
    with pytest.raises(SSTDataError, match=r"no\.png: the label map does not exist"):
        read_label_map(tmp_path / "no.png", ATR)
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(SSTDataError, match=r"empty\.png: is no image file"):
        read_label_map(tmp_path / "empty.png", ATR)
    noise = np.random.default_rng(0).integers(18, size=(64, 64)).astype(np.uint8)
    whole = save(tmp_path / "whole.png", noise).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SSTDataError, match=r"cut\.png: the label map cannot be read"):
        read_label_map(tmp_path / "cut.png", ATR)


def test_remap_translates_and_refuses_ids_that_it_does_not_name(tmp_path):
    path = save(tmp_path / "x.png", np.array([[30, 31], [32, 30]], dtype=np.uint8))
    labels = read_label_map(path, ATR, remap={30: 4, 31: 255, 32: 0})
    assert labels.tolist() == [[4, 255], [0, 4]] and labels.dtype == np.uint8
    with pytest.raises(SSTDataError, match=r"the ids \[32\].*remap table names: \[30, 31\]"):
        read_label_map(path, ATR, remap={30: 4, 31: 255})


@pytest.mark.parametrize("entry", [{300: 1}, {1: 18}, {1: -1}, {"1": 1}, {1: True}])
def test_wrong_remap_entries_are_refused(entry):
    with pytest.raises(SSTDataError, match="remap entry.*0 to 17, or 255"):
        check_remap(entry, ATR)


def test_a_sample_without_a_label_file_is_refused_and_named():
    with pytest.raises(SSTDataError, match=r"photo\.jpg: no label map is named.*`sem_seg_file_name`"):
        read_sample_labels({"file_name": "photo.jpg"}, ATR)
    with pytest.raises(SSTDataError, match="no label map is named"):  # never raw, where a remap is meant
        read_sample_labels({"file_name": "photo.jpg", "remapped_label_file_name": "x.png"}, ATR)


def test_a_label_map_with_any_bit_altered_is_refused_and_never_read_as_other_ids(tmp_path):
    labels = np.random.default_rng(0).integers(18, size=(6, 8)).repeat(9, 0).repeat(9, 1).astype(np.uint8)
    whole = save(tmp_path / "whole.png", labels).read_bytes()
    for place in range(8, len(whole) - 12):  # the last twelve bytes only mark the end
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        (tmp_path / "x.png").write_bytes(bytes(content))
        with pytest.raises(SSTDataError, match=r"x\.png: "):
            read_label_map(tmp_path / "x.png", ATR)


def test_without_a_given_size_that_of_the_sample_counts(tmp_path):
    sample = {"file_name": "absent.jpg", "sem_seg_file_name": save(tmp_path / "x.png", IDS), "height": 2, "width": 3}
    assert read_sample_labels(sample, ATR).shape == (2, 3)
    with pytest.raises(SSTDataError, match=r"x\.png: .*2 x 3 pixels.*its image 2 x 4; both must agree$"):
        read_sample_labels({**sample, "width": 4}, ATR)


@pytest.mark.parametrize("tag", range(1, 9))
def test_labels_that_follow_a_photo_as_it_is_stored_are_refused_by_that_name(tmp_path, tag):
    exif = Image.Exif()
    exif[0x0112] = tag
    Image.new("RGB", (3, 2)).save(tmp_path / "x.jpg", exif=exif)
    sample = {"file_name": str(tmp_path / "x.jpg"), "sem_seg_file_name": save(tmp_path / "x.png", IDS)}
    if tag < 5:
        assert read_sample_labels(sample, ATR, (2, 3)).shape == (2, 3)
        with pytest.raises(SSTDataError, match="both must agree$"):  # lying, but not for the tag's sake
            read_sample_labels(sample, ATR, (3, 2))
        return
    with pytest.raises(SSTDataError, match=r"2 x 3 pixels.*its image 3 x 2.*EXIF tag of .*x\.jpg turns the photo"):
        read_sample_labels(sample, ATR, (3, 2))
    with pytest.raises(SSTDataError, match="both must agree$"):  # another size is no matter of the tag
        read_sample_labels(sample, ATR, (3, 4))
