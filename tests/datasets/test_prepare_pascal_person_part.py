"""Preparing PASCAL-Person-Part from each of its three kinds of labels: which are taken, lists, photos, what is told."""

import numpy as np
import pytest
from downloads import contents, label_of, read_list, script, write_labels, write_photo
from mat_files import SIZE, grid, part, thing, write_mat
from PIL import Image

pascal = script("prepare_pascal_person_part")
TRAIN, VAL = ["2008_000003", "2008_000008"], ["2008_000023"]


def prepare(download, output, *more):
    return pascal.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def download(tmp_path):
    """Photos as in VOC2010's archive, and lists; the tests add labels."""
    root = tmp_path / "download"
    for name in [*TRAIN, *VAL]:
        write_photo(root / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{name}.jpg", SIZE)
    (root / "list").mkdir()
    (root / "list" / "train_id.txt").write_text("\n".join(TRAIN))
    (root / "list" / "val_id.txt").write_text("\n".join(VAL))
    return root


def write_mats(folder):
    for name in [*TRAIN, *VAL]:
        write_mat(
            folder / f"{name}.mat",
            thing(part("head", "110000 000000 000000 000000"), part("rlleg", "000000 000000 000000 110000")),
        )
    return grid("110000 000000 000000 660000")


def test_from_annotations(download, output, capsys):
    truth = write_mats(download / "trainval" / "Annotations_Part")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    for name in [*TRAIN, *VAL]:
        assert np.array_equal(label_of(output, name), truth)
        assert not (output / "labels" / f"{name}.png").is_symlink()
        assert (output / "images" / f"{name}.jpg").is_symlink()
    assert "the published number is 1,716" in capsys.readouterr().out
    assert prepare(download, output) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_from_index_files_and_the_lists_that_come_with_them(download, output):
    """The zip of the index PNGs holds path lists; 255 stays 'ignore'."""
    root = download / "pascal_person_part"
    for name in [*TRAIN, *VAL]:
        write_labels(root / "pascal_person_part_gt" / f"{name}.png", (0, 6, 255, 3), SIZE, palette=True)
    (root / "pascal_person_part_trainval_list").mkdir()
    for split, names in (("train", TRAIN), ("val", VAL)):
        (download / "list" / f"{split}_id.txt").unlink()
        lines = [f"/JPEGImages/{name}.jpg /pascal_person_part_gt/{name}.png\n" for name in names]
        (root / "pascal_person_part_trainval_list" / f"{split}.txt").write_text("".join(lines))
    (download / "VOCdevkit" / "VOC2010" / "ImageSets" / "Segmentation").mkdir(parents=True)
    (download / "VOCdevkit" / "VOC2010" / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_000032\n")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    assert label_of(output, VAL[0])[:, 0].tolist() == [0, 6, 255, 3]


def test_from_colour_files(download, output):
    for name in [*TRAIN, *VAL]:
        pixels = np.zeros((*SIZE, 4), np.uint8) + np.array([126, 126, 1, 255], np.uint8)
        (download / "pascal" / "SegmentationPart").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(download / "pascal" / "SegmentationPart" / f"{name}.png")
    assert prepare(download, output) == 0
    assert (label_of(output, VAL[0]) == 4).all()


def test_colours_of_the_voc_palette_itself_need_a_word(download, output, capsys):
    for name in [*TRAIN, *VAL]:
        pixels = np.zeros((*SIZE, 3), np.uint8) + np.array([128, 128, 0], np.uint8)
        (download / "SegmentationPart").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(download / "SegmentationPart" / f"{name}.png")
    assert prepare(download, output) == 1
    assert "the order of arms and legs is not certain" in capsys.readouterr().err
    assert prepare(download, output, "--labels-from", "grapy-colours") == 0
    assert (label_of(output, VAL[0]) == 4).all()


def test_several_labels_need_a_choice(download, output, capsys):
    truth = write_mats(download / "Annotations_Part")
    for name in [*TRAIN, *VAL]:
        write_labels(download / "pascal_person_part_gt" / f"{name}.png", (1,), SIZE)
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "--labels-from" in error and "(mat)" in error and "(index)" in error
    assert prepare(download, output, "--labels-from", "mat") == 0
    assert np.array_equal(label_of(output, VAL[0]), truth)
    assert prepare(download, output, "--labels-from", "index") == 1  # another source: --force
    assert prepare(download, output, "--labels", download / "pascal_person_part_gt", "--force") == 0
    assert (label_of(output, VAL[0]) == 1).all()


def test_bad_annotations_are_named_by_their_own_path(download, output, capsys):
    write_mats(download / "Annotations_Part")
    bad = download / "Annotations_Part" / f"{TRAIN[0]}.mat"
    write_mat(bad, thing(part("tail", "110000 000000 000000 000000")))
    write_photo(download / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{TRAIN[1]}.jpg", (5, 6))
    for more in ([], ["--check-only"]):
        assert prepare(download, output, *more) == 1
        error = capsys.readouterr().err
        assert f"error: {bad}: a person has the part 'tail'" in error
        assert f"error: {bad.with_stem(TRAIN[1])}: its masks have 4 x 6 pixels" in error
    assert not list(output.rglob(f"{TRAIN[0]}.*"))


def test_labels_are_made_anew_from_corrected_annotations(download, output, capsys):
    write_mats(download / "Annotations_Part")
    assert prepare(download, output) == 0
    corrected = download / "Annotations_Part" / f"{TRAIN[0]}.mat"
    write_mat(corrected, thing(part("torso", "000000 111111 000000 000000")))
    assert prepare(download, output) == 0
    assert f"the files of 1 pairs have changed since they were prepared ({TRAIN[0]} …)" in capsys.readouterr().out
    assert np.array_equal(label_of(output, TRAIN[0]), grid("000000 222222 000000 000000"))
    write_mat(corrected, thing(part("tail", "110000 000000 000000 000000")))
    assert prepare(download, output) == 1
    assert not (output / "labels" / f"{TRAIN[0]}.png").exists()


def test_check_only_reads_annotations_and_writes_nothing(download, output, capsys):
    write_mats(download / "Annotations_Part")
    before = contents(download)
    assert prepare(download, output, "--check-only") == 0
    assert "head 8.3%" in capsys.readouterr().out
    assert contents(download) == before
    assert not output.exists()


def test_listed_images_without_persons_stay_and_are_told(download, output, capsys):
    write_mats(download / "Annotations_Part")
    write_mat(download / "Annotations_Part" / f"{VAL[0]}.mat", thing(name="cow", index=10))
    assert prepare(download, output) == 0
    assert f"{VAL[0]}.mat: shows no person" in capsys.readouterr().err
    assert not label_of(output, VAL[0]).any()


def test_without_lists_the_remedy_is_named(download, output, tmp_path, capsys):
    write_mats(download / "Annotations_Part")
    for split in ("train", "val"):
        (download / "list" / f"{split}_id.txt").rename(tmp_path / f"{split}.txt")
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "--train-ids FILE --val-ids FILE" in error and "1,716" in error and "1,817" in error
    assert prepare(download, output, "--train-ids", tmp_path / "train.txt", "--val-ids", tmp_path / "val.txt") == 0
    assert read_list(output, "train") == TRAIN


def test_photos_elsewhere(download, output, tmp_path, capsys):
    write_mats(download / "Annotations_Part")
    (download / "VOCdevkit").rename(tmp_path / "elsewhere")
    assert prepare(download, output) == 1
    assert "--images DIR" in capsys.readouterr().err
    assert prepare(download, output, "--images", tmp_path / "elsewhere" / "VOC2010" / "JPEGImages") == 0


def test_of_several_years_voc2010_counts(download, output):
    write_mats(download / "Annotations_Part")
    (download / "VOCdevkit" / "VOC2012" / "JPEGImages").mkdir(parents=True)
    assert prepare(download, output) == 0
    assert "VOC2010" in str((output / "images" / f"{VAL[0]}.jpg").resolve())


def test_nothing_there_says_what_was_looked_for(download, output, capsys):
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert "Annotations_Part" in error and "VOCdevkit" in error


def test_the_list_of_grapy_ml_is_not_the_canonical_one(capsys):
    report = script("preparation.report")
    text = report._published(pascal.PASCAL, "val", 1831, 1831)
    assert "the published number is 1,817" in text and "Grapy-ML's list" in text
    assert report._published(pascal.PASCAL, "val", 1817, 1817) == ", as published"


# ------------------------------------------------------------------ real data


@pytest.mark.parametrize(
    ("name", "more", "count"),
    [
        ("pascal_part", [], 5),
        ("pascal_person_part", ["--labels-from", "grapy-colours"], 5),
        ("pascal_person_part", ["--labels-from", "index"], 18),
    ],
)
def test_real_labels_agree_with_the_index_files(real_data, tmp_path, output, name, more, count):
    before = contents(real_data / name)
    photos = (real_data / name / "JPEGImages").iterdir()
    (tmp_path / "ids.txt").write_text("\n".join(path.stem for path in photos))
    assert prepare(real_data / name, output, "--train-ids", tmp_path / "ids.txt", "--skip-bad", *more) == 0
    written = {path.name: np.array(Image.open(path)) for path in (output / "labels").iterdir()}
    truth = {
        path.name: np.array(Image.open(path))
        for path in (real_data / "pascal_person_part" / "pascal_person_part_gt").iterdir()
    }
    compared = sorted(set(written) & set(truth))
    assert len(compared) == count
    assert [file for file in compared if not np.array_equal(written[file], truth[file])] == []
    assert contents(real_data / name) == before
