"""Promises of `sst_d2.visualization`: right colours, untouched background, readable legends, whole files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageFont

from sst_d2.data.label_io import read_label_map
from sst_d2.errors import LabelDomainError, SSTDataError
from sst_d2.label_domains import LabelDomain, get_label_domain
from sst_d2.visualization import (
    CONTOUR_COLOR,
    IGNORE_COLOR,
    color_map,
    compared,
    fitted,
    legend,
    matrix_picture,
    overlay,
    save_image,
    save_label_png,
    sheet,
    side_by_side,
)
from sst_d2.visualization.files import PictureFormatError

PASCAL = get_label_domain("pascal_person_part")


def photo(height=40, width=60):
    return np.random.default_rng(0).integers(30, 200, (height, width, 3)).astype(np.uint8)


def labels_with_square(height=40, width=60, identifier=2):
    labels = np.zeros((height, width), dtype=np.int64)
    labels[height // 4 : height // 2, width // 4 : width // 2] = identifier
    return labels


def colors_in(picture):
    return {tuple(color) for color in np.unique(picture.reshape(-1, 3), axis=0).tolist()}


def test_color_map_takes_the_domains_colours():
    labels = np.array([[0, 1, 6, 255]])
    assert color_map(labels, PASCAL)[0].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 128], list(IGNORE_COLOR)]


def test_overlay_blends_classes_and_leaves_the_background():
    image, labels = photo(), labels_with_square()
    before = image.copy()
    picture = overlay(image, labels, PASCAL, alpha=0.5)
    assert np.array_equal(image, before) and picture.dtype == np.uint8
    inside = picture[12:18, 17:28]
    expected = np.rint(0.5 * image[12:18, 17:28] + 0.5 * np.array(PASCAL.colors[2]))
    assert np.abs(inside.astype(int) - expected).max() <= 1
    assert np.array_equal(picture[25:, 35:], image[25:, 35:])
    assert np.array_equal(overlay(image, labels, PASCAL, alpha=0), image)


def test_background_is_known_by_name_not_by_id():
    domain = LabelDomain("no_background", ("skin", "null"), ((9, 9, 9), (200, 0, 0)))
    image = photo(4, 4)
    assert np.array_equal(overlay(image, np.ones((4, 4), int), domain), image)
    assert not np.array_equal(overlay(image, np.zeros((4, 4), int), domain), image)


def test_contours_are_thin_and_between_classes_only():
    picture = overlay(photo(), labels_with_square(), PASCAL)
    white = (picture == CONTOUR_COLOR).all(axis=2)
    assert white[10:20, 14].all() and white[10:20, 29].all() and white[9, 15:30].all() and white[19, 15:30].all()
    assert white[12].sum() == 2 and white[:, 20].sum() == 2  # one pixel wide
    assert not white[:9].any() and not white[20:].any()
    assert not (overlay(photo(), np.full((40, 60), 2), PASCAL) == CONTOUR_COLOR).all(axis=2).any()


def test_pixels_without_label_are_seen():
    image = photo()
    picture = overlay(image, np.full((40, 60), 255), PASCAL, alpha=1.0)
    assert colors_in(picture) == {IGNORE_COLOR}


@pytest.mark.parametrize(
    ("image", "labels", "alpha", "words"),
    [
        (photo(), np.zeros((40, 61), int), 0.6, "40 x 60 pixels .* label map 40 x 61"),
        (photo(), np.full((40, 60), 7), 0.6, r"ids \[7\] .*'pascal_person_part'; allowed are 0 to 6 and 255"),
        (photo(), np.full((40, 60), -1), 0.6, r"ids \[-1\]"),
        (photo(), np.zeros((40, 60)), 0.6, "float64.*whole numbers"),
        (photo().astype(np.float32), np.zeros((40, 60), int), 0.6, "uint8, RGB, is expected"),
        (photo()[..., 0], np.zeros((40, 60), int), 0.6, "uint8, RGB, is expected"),
        (photo(), np.zeros((40, 60), int), 1.5, "alpha is 1.5; allowed are 0"),
    ],
)
def test_what_does_not_fit_is_refused(image, labels, alpha, words):
    with pytest.raises(SSTDataError, match=words):
        overlay(image, labels, PASCAL, alpha)


def test_legend_shows_the_classes_present_and_no_others():
    shown = colors_in(legend(PASCAL, present_ids=[6, 2, 2]))
    assert {PASCAL.colors[2], PASCAL.colors[6]} <= shown
    assert not {PASCAL.colors[1], PASCAL.colors[3], PASCAL.colors[5]} & shown
    assert set(PASCAL.colors) <= colors_in(legend(PASCAL))
    assert IGNORE_COLOR in colors_in(legend(PASCAL, present_ids=[255]))
    with pytest.raises(SSTDataError, match=r"legend: the ids \[8\]"):
        legend(PASCAL, present_ids=[8])


def test_legend_writes_names_and_wraps():
    def ink(picture):
        return (picture.max(axis=2) < 64).sum()

    other = LabelDomain("other", ("background", "iiii"), PASCAL.colors[:2])
    longer = LabelDomain("longer", ("background", "mmmm"), PASCAL.colors[:2])
    assert ink(legend(longer, [1])) > ink(legend(other, [1])) > 0
    wide, narrow = legend(PASCAL, width=600), legend(PASCAL, width=120)
    assert wide.shape[1] == 600 and narrow.shape[0] > 3 * wide.shape[0]
    assert legend(longer, [1], width=10).shape[1] > 40  # a name is never cut
    assert legend(PASCAL, [1], font_size=28).shape[0] >= 2 * legend(PASCAL, [1], font_size=14).shape[0]
    assert ink(legend(PASCAL, [1], font_size=28)) > 2 * ink(legend(PASCAL, [1], font_size=14))


def test_legend_works_with_a_pillow_without_scalable_font(monkeypatch):
    def old(*arguments, **options):
        if options:
            raise TypeError("load_default() got an unexpected keyword argument 'size'")
        return ImageFont.load_default_imagefont()

    if not hasattr(ImageFont, "load_default_imagefont"):
        pytest.skip("this Pillow is itself the old one")
    monkeypatch.setattr(ImageFont, "load_default", old)
    assert PASCAL.colors[1] in colors_in(legend(PASCAL, [1]))
    assert len(darkest(matrix_picture(np.ones((1, 2)), ["head"], ["face", "hat"]))[0]) > 100


def test_letters_beside_a_panorama_do_not_grow_with_it():
    picture = side_by_side(photo(4, 12000), {"pascal_person_part": labels_with_square(4, 12000)})
    assert picture.shape[0] < 1000  # it would be 1,566 with letters of a 32nd of the width


def test_side_by_side_has_the_photo_and_one_overlay_per_domain():
    image = photo(330, 400)
    labels = {"pascal_person_part": labels_with_square(330, 400), "atr": labels_with_square(330, 400, 16)}
    picture = side_by_side(image, labels)
    height, width = picture.shape[:2]
    assert width >= 3 * 400 and height > 330
    assert np.array_equal(picture[28 : 28 + 330, 7 : 7 + 400], image)
    for name in labels:
        one = side_by_side(image, {name: labels[name]})
        shown = overlay(image, labels[name], get_label_domain(name))
        assert np.array_equal(one[28 : 28 + 330, 7 + 400 + 7 : 7 + 400 + 7 + 400], shown)
    # swatches of both legends, below the pictures
    assert {get_label_domain("pascal_person_part").colors[2], get_label_domain("atr").colors[16]} <= colors_in(
        picture[365:]
    )


def test_small_pictures_are_enlarged_so_that_legends_can_be_read():
    picture = side_by_side(photo(96, 64), {"pascal_person_part": labels_with_square(96, 64)})
    assert picture.shape[0] > 320 and picture.shape[1] >= 2 * 200
    side_by_side(photo(96, 64), {"atr": labels_with_square(96, 64, 255)})  # any mixed id between 0 and 255 is refused
    raw = side_by_side(photo(96, 64), {"pascal_person_part": labels_with_square(96, 64)}, min_side=96)
    assert raw.shape[0] < 200


def test_side_by_side_refuses_what_does_not_fit():
    with pytest.raises(SSTDataError, match="label map 41 x 60"):
        side_by_side(photo(), {"atr": np.zeros((41, 60), int)})
    with pytest.raises(LabelDomainError, match="unknown label domain 'nowhere'"):
        side_by_side(photo(), {"nowhere": np.zeros((40, 60), int)})


def test_label_domains_of_ones_own_need_no_name():
    own = LabelDomain("own", ("background", "cape"), ((0, 0, 0), (10, 200, 30)))
    picture = side_by_side(photo(), {own: labels_with_square(identifier=1)})
    assert (10, 200, 30) in colors_in(picture)


def test_side_by_side_shrinks_what_is_too_large():
    labels = labels_with_square(500, 250)
    assert side_by_side(photo(500, 250), {PASCAL: labels}, max_side=400).shape[0] < 500
    raw = side_by_side(photo(500, 250), {PASCAL: labels})
    assert np.array_equal(side_by_side(photo(500, 250), {PASCAL: labels}, max_side=500), raw)


def test_fitted_keeps_the_shape_and_mixes_no_ids():
    assert fitted(photo(100, 50), 320).shape == (320, 160, 3) and fitted(photo(100, 50), 20, 40).shape == (40, 20, 3)
    image, labels = photo(100, 50), labels_with_square(100, 50, 255).astype(np.uint8)
    assert fitted(image, 50, 200) is image
    assert set(np.unique(fitted(labels, 333))) == {0, 255}


def test_compared_shows_photo_and_label_maps_of_one_size_in_plain_colours():
    image, truth = photo(320, 200), labels_with_square(320, 200, 4)
    guess = truth.copy()
    guess[0] = 6
    picture = compared(image, {"ground truth": truth, "prediction": guess}, PASCAL)
    assert np.array_equal(picture[28 : 28 + 320, 7 : 7 + 200], image)
    assert np.array_equal(picture[28 : 28 + 320, 214 : 214 + 200], color_map(truth, PASCAL))
    assert np.array_equal(picture[28 : 28 + 320, 421 : 421 + 200], color_map(guess, PASCAL))
    below = colors_in(picture[28 + 320 :])
    assert {PASCAL.colors[i] for i in (0, 4, 6)} <= below and PASCAL.colors[1] not in below
    assert compared(photo(32, 20), {"a": labels_with_square(32, 20)}, PASCAL).shape[0] > 320
    assert compared(photo(900, 20), {"a": labels_with_square(900, 20)}, PASCAL).shape[0] < 500
    with pytest.raises(SSTDataError, match="prediction: the image has 320 x 200 pixels .* label map 10 x 10"):
        compared(image, {"prediction": np.zeros((10, 10), int)}, PASCAL)


def test_a_sheet_takes_pictures_of_any_sizes_and_cuts_nothing():
    pictures = {"small": photo(50, 60), "a name that is wider than its picture": photo(90, 80)}
    plain, titled = (sheet(pictures, PASCAL, range(7), title) for title in ("", "a title " * 40))
    assert titled.shape[0] == plain.shape[0] + 28 and titled.shape[1] > plain.shape[1]
    assert np.array_equal(plain[28 : 28 + 50, 7 : 7 + 60], pictures["small"])
    assert set(PASCAL.colors) <= colors_in(plain[28 + 90 :])
    assert (plain[:, -4:] == 255).all()  # a margin: nothing reaches over the edge


def darkest(picture):
    """(rows, columns) of the pixels that have the colour of 1."""
    return np.nonzero((picture == (12, 58, 130)).all(axis=2))


def test_matrix_picture_shows_each_value_in_its_row_and_column():
    rows, columns = ["head", "torso"], ["face", "hat", "bag"]
    centres = {}
    for i in range(2):
        for j in range(3):
            values = np.zeros((2, 3))
            values[i, j] = 1
            ys, xs = darkest(matrix_picture(values, rows, columns))
            assert len(ys) > 100 and ys.max() - ys.min() < 30 and xs.max() - xs.min() < 60  # one cell
            centres[i, j] = (ys.min(), xs.min())
    assert all(centres[0, j][0] + 22 == centres[1, j][0] for j in range(3))
    steps = {centres[i, j + 1][1] - centres[i, j][1] for i in range(2) for j in range(2)}
    assert len(steps) == 1 and steps.pop() > 22
    assert all(centres[0, j][1] == centres[1, j][1] for j in range(3))


def test_matrix_picture_grows_with_the_matrix_and_its_names():
    def shape(rows, columns, **options):
        return matrix_picture(np.full((len(rows), len(columns)), 0.5), rows, columns, **options).shape

    height, width, _ = shape(["a", "b"], ["c", "d"])
    assert shape(["a", "b", "c"], ["c", "d"]) == (height + 22, width, 3)
    assert shape(["a", "b"], ["c", "d", "e"])[1] > width + 22
    assert (
        shape(["a", "right-shoe"], ["c", "d"])[1] > width + 40
        and shape(["a", "b"], ["c", "right-shoe"])[0] > height + 40
    )
    assert shape(["a", "b"], ["c", "d"], title="a title")[0] == height + 22
    assert shape(["a", "b"], ["c", "d"], title="a title that is longer than all of the rest")[1] > 2 * width
    assert shape(["a", "b"], ["c", "d"], font_size=28)[0] > 1.8 * height


def test_matrix_picture_is_the_same_every_time_and_clips_colours_only():
    values = np.linspace(-1, 2, 12).reshape(3, 4)
    picture = matrix_picture(values, "abc", "wxyz", "title")
    assert picture.dtype == np.uint8 and np.array_equal(picture, matrix_picture(values.copy(), "abc", "wxyz", "title"))
    clipped = matrix_picture(np.clip(values, 0, 1), "abc", "wxyz", "title")
    assert not np.array_equal(picture, clipped) and len(darkest(picture)[0]) > 100  # the text is the true value
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 6


def test_matrix_picture_tells_negative_and_missing_values_from_zero():
    def cell(value, **options):
        """The colours of the only cell, without its letters."""
        return matrix_picture(np.array([[value]]), ["a"], ["b"], cell_text=lambda value: "", **options)[
            -10, -10
        ].tolist()

    assert cell(0.0) == [255, 255, 255] and cell(1.0) == [12, 58, 130] == cell(7.0)
    red, _, blue = cell(-0.5)
    assert red > blue + 40 and cell(-1.0) == cell(-7.0)
    assert len({tuple(cell(value)) for value in (0.0, 1.0, -1.0, np.nan)}) == 4


def test_matrix_picture_writes_what_it_is_told_and_no_minus_in_front_of_zero():
    def shown(value, **options):
        return matrix_picture(np.array([[value]]), ["a"], ["b"], **options)

    assert np.array_equal(shown(-1e-6), shown(0.0)) or np.abs(shown(-1e-6).astype(int) - shown(0.0)).max() <= 1
    assert np.array_equal(shown(0.3), shown(0.3, cell_text="{:.2f}".format))
    assert not np.array_equal(shown(0.3), shown(0.3, cell_text=lambda value: "30"))
    assert shown(0.3, title="one\ntwo\nthree").shape[0] == shown(0.3, title="one").shape[0] + 2 * 22


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((2, 2)), r"shape \(2, 2\) for 1 rows and 2 columns"),
        (np.zeros(2), r"shape \(2,\)"),
        (np.array([[0, np.inf]]), "one finite number, or NaN, for each pair"),
    ],
)
def test_matrix_picture_refuses_what_does_not_fit(values, words):
    with pytest.raises(SSTDataError, match=words):
        matrix_picture(values, ["a"], ["b", "c"])


def test_save_image_writes_whole_files_or_none(tmp_path):
    image, path = photo(), tmp_path / "new" / "a.PNG"
    save_image(path, image)
    assert np.array_equal(np.asarray(Image.open(path)), image)
    save_image(tmp_path / "b.jpg", image)
    assert Image.open(tmp_path / "b.jpg").format == "JPEG"
    with pytest.raises(SSTDataError, match=r"ending '\.xyz'; use \.png"):
        save_image(tmp_path / "c.xyz", image)
    (tmp_path / "d.png").mkdir()
    with pytest.raises(SSTDataError, match=r"d\.png: cannot be written"):
        save_image(tmp_path / "d.png", image)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.jpg", "d.png", "new"]


@pytest.mark.parametrize("name", ["n" * 251 + ".png", "長" * 80 + ".jpg"])
def test_pictures_of_any_legal_name_are_written(tmp_path, name):
    save_image(tmp_path / name, photo())
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("ending", "limit"), [("jpg", 65_500), ("webp", 16_383)])
def test_a_picture_that_its_format_cannot_hold_is_no_fault_of_the_disk(tmp_path, ending, limit):
    picture = np.zeros((1, limit + 1, 3), np.uint8)
    words = rf"{limit + 1} x 1 pixels .* \(it holds at most {limit:,} pixels a side\); scale it down, or name a \.png"
    with pytest.raises(PictureFormatError, match=rf"a\.{ending}: a picture of {words}"):
        save_image(tmp_path / f"a.{ending}", picture)
    assert not list(tmp_path.iterdir())
    save_image(tmp_path / f"a.{ending}", picture[:, 1:])
    save_image(tmp_path / "a.png", picture)


def test_label_png_keeps_ids_and_shows_colours(tmp_path):
    labels = np.array([[0, 1, 2], [6, 255, 3]], dtype=np.uint8)
    path = tmp_path / "labels.png"
    save_label_png(path, labels, PASCAL)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture.convert("RGB")), color_map(labels, PASCAL))
    assert np.array_equal(read_label_map(path, PASCAL), labels)
    with pytest.raises(SSTDataError, match=r"written as \.png"):
        save_label_png(tmp_path / "labels.jpg", labels, PASCAL)
