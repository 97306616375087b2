"""Preparing CIHP, and with it what all preparations share: layouts, the result, bad pairs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from downloads import (
    DATASETS,
    contents,
    read_list,
    script,
    write_cihp,
    write_labels,
    write_pairs,
    write_photo,
)
from PIL import Image

from sst_d2.data import read_label_map, register_dataset_card
from sst_d2.label_domains import get_label_domain

cihp = script("prepare_cihp")
TRAIN, VAL = ["0000006", "0000007", "0000008"], ["0000001", "0000003"]


def prepare(download, output, *more):
    return cihp.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


@pytest.fixture
def download(tmp_path):
    return write_cihp(tmp_path / "downloads" / "CIHP" / "instance-level_human_parsing")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


# ------------------------------------------------------------------ layouts


@pytest.mark.parametrize("above", [0, 1, 2])
def test_the_download_may_be_named_itself_or_a_folder_above(download, output, above):
    named = [download, *download.parents][above]
    assert prepare(named, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    for name in TRAIN:
        assert (output / "images" / f"{name}.jpg").resolve() == download / "Training" / "Images" / f"{name}.jpg"
        assert (output / "labels" / f"{name}.png").resolve() == download / "Training" / "Category_ids" / f"{name}.png"


def test_list_files_of_the_download_count(download, output):
    (download / "Training" / "train_id.txt").write_text("0000008\n0000006")
    (download / "val_id.txt").write_bytes(b"\xef\xbb\xbf0000003\r\n\r\n")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (["0000008", "0000006"], ["0000003"])


def test_the_tree_of_graphonomy(tmp_path, output):
    root = tmp_path / "data" / "CIHP_4w"
    write_pairs(root / "Images", root / "Category_ids", [*TRAIN, *VAL])
    write_pairs(root / "Images", root / "Category_rev_ids", [*TRAIN, *VAL])
    (root / "lists").mkdir()
    (root / "lists" / "train_id.txt").write_text("\n".join(TRAIN))
    (root / "lists" / "val_id.txt").write_text("\n".join(VAL))
    assert prepare(tmp_path / "data", output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)


def test_shared_folders_need_lists(tmp_path, output, capsys):
    write_pairs(tmp_path / "x" / "Images", tmp_path / "x" / "Category_ids", TRAIN)
    assert prepare(tmp_path / "x", output) == 1
    assert "train_id.txt" in capsys.readouterr().err


def test_folder_names_may_have_other_capitals(tmp_path, output):
    write_pairs(tmp_path / "d" / "training" / "images", tmp_path / "d" / "training" / "category_ids", TRAIN)
    assert prepare(tmp_path / "d", output) == 0
    assert read_list(output, "train") == TRAIN
    assert not (output / "ids" / "val.txt").exists()


def test_nothing_that_fits_says_what_was_looked_for_and_what_is_there(tmp_path, output, capsys):
    (tmp_path / "d" / "Trainig" / "Images").mkdir(parents=True)
    assert prepare(tmp_path / "d", output) == 1
    error = capsys.readouterr().err
    assert "Training/Images with Training/Category_ids" in error
    assert "Trainig" in error


def test_two_copies_in_one_folder_are_refused(download, output, capsys):
    other = write_cihp(download.parent / "copy")
    assert prepare(download.parent, output) == 1
    error = capsys.readouterr().err
    assert str(other / "Training" / "Images") in error
    assert str(download / "Training" / "Images") in error


def test_testing_is_no_split_unless_asked(download, output, capsys):
    write_pairs(download / "Testing" / "Images", download / "Testing" / "Category_ids", ["0000002"])
    assert prepare(download, output) == 0
    assert "--with-testing" in capsys.readouterr().out
    assert not (output / "ids" / "test.txt").exists()
    assert prepare(download, output, "--with-testing", "--force") == 0
    assert read_list(output, "test") == ["0000002"]
    assert "cihp_sem_seg_test" in register_dataset_card(output / "card.yaml")


def test_names_of_photos_become_jpg(download, output):
    images = download / "Training" / "Images"
    (images / "0000006.jpg").rename(images / "0000006.JPG")
    (images / "0000007.jpg").rename(images / "0000007.jpeg")
    (images / "0000008.jpg").unlink()
    write_photo(images / "0000008.png")
    (images / "._0000006.jpg").write_bytes(b"left by another system")
    assert prepare(download, output) == 0
    assert sorted(path.name for path in (output / "images").iterdir())[2:] == [f"{name}.jpg" for name in TRAIN]
    assert (output / "images" / "0000007.jpg").resolve().name == "0000007.jpeg"


# ------------------------------------------------------------------ the result


def test_the_built_in_card_reads_the_default_place(download, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    write_labels(download / "Training" / "Category_ids" / "0000006.png", (19, 0, 255), palette=True)
    assert cihp.main([str(download), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "python datasets/check_dataset.py cihp_sem_seg_train cihp_sem_seg_val" in printed
    assert "--config-file configs/single/cihp_R50.yaml\n" in printed
    assert not (tmp_path / "sets" / "cihp" / "card.yaml").exists()
    samples = DatasetCatalog.get("cihp_sem_seg_train")
    assert [sample["image_id"] for sample in samples] == TRAIN
    assert [(sample["height"], sample["width"]) for sample in samples] == [(6, 8)] * 3
    labels = read_label_map(samples[0]["sem_seg_file_name"], get_label_domain("cihp"), (6, 8))
    assert labels[:, 0].tolist() == [19, 0, 255, 19, 0, 255]


def test_elsewhere_a_card_takes_the_place_of_the_built_in_one(download, output, capsys):
    assert prepare(download, output) == 0
    assert f"DATASETS.SST.CARDS \"['{output / 'card.yaml'}']\"" in capsys.readouterr().out
    assert register_dataset_card(output / "card.yaml") == ["cihp_sem_seg_train", "cihp_sem_seg_val"]
    assert [sample["image_id"] for sample in DatasetCatalog.get("cihp_sem_seg_val")] == VAL


def test_counts_and_shares_are_told(download, output, capsys):
    assert prepare(download, output) == 0
    printed = capsys.readouterr().out
    assert "train       3 images; warning: the published number is 28,280" in printed
    assert "background 33.3%, hat 33.3%, hair 33.3%, glove none" in printed


def test_two_processes_give_what_one_gives(download, tmp_path):
    for workers in ("1", "2"):
        assert cihp.main([str(download), "--output", str(tmp_path / workers), "--workers", workers]) == 0
    one, two = (contents(tmp_path / workers) for workers in ("1", "2"))
    assert {name: content for name, (content, _) in one.items()} == {
        name: content for name, (content, _) in two.items()
    }


# ------------------------------------------------------------------ bad pairs


def _cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def _save(image):
    return lambda path: image.save(path)


GREY = np.zeros((6, 8), np.uint8)
BAD = {
    "photo cut off": ("Images/0000007.jpg", _cut),
    "photo empty": ("Images/0000007.jpg", lambda path: path.write_bytes(b"")),
    "photo missing": ("Images/0000007.jpg", lambda path: path.unlink()),
    "label cut off": ("Category_ids/0000007.png", _cut),
    "label of another size": ("Category_ids/0000007.png", _save(Image.fromarray(GREY[:5]))),
    "label in colours": ("Category_ids/0000007.png", _save(Image.fromarray(GREY).convert("RGB"))),
    "label of 16 bits": ("Category_ids/0000007.png", _save(Image.fromarray(GREY.astype(np.uint16)))),
    "id 20": ("Category_ids/0000007.png", _save(Image.fromarray(GREY + 20))),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pairs_are_named_and_no_list_is_written(download, output, kind, capsys):
    name, spoil = BAD[kind]
    path = download / "Training" / name
    spoil(path)
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    assert f"error: {path}: " in error
    assert "1 of 5 pairs cannot be used" in error
    assert not list(output.rglob("*.txt")) + list(output.rglob("*.yaml"))
    assert not (output / "images" / "0000007.jpg").exists()
    assert prepare(download, output, "--skip-bad") == 0
    assert f"left out: {path}: " in capsys.readouterr().err
    assert (read_list(output, "train"), read_list(output, "val")) == (["0000006", "0000008"], VAL)


def test_a_split_that_would_lose_every_pair_is_an_error(download, output, capsys):
    for name in VAL:
        _cut(download / "Validation" / "Category_ids" / f"{name}.png")
    assert prepare(download, output, "--skip-bad") == 1
    printed = capsys.readouterr()
    assert "--skip-bad would leave nothing of the split 'val' (2 pairs), so no list was written" in printed.err
    assert "Train:" not in printed.out
    assert not list(output.rglob("*.txt")) + list(output.rglob("*.yaml"))
    for name in TRAIN:
        _cut(download / "Training" / "Images" / f"{name}.jpg")
    assert prepare(download, output, "--skip-bad") == 1
    assert "of the split 'train' (3 pairs) and of 'val' (2 pairs)" in capsys.readouterr().err


def test_a_missing_label_of_a_list_is_named(download, output, capsys):
    (download / "Training" / "train_id.txt").write_text("\n".join(TRAIN))
    (download / "Training" / "Category_ids" / "0000008.png").unlink()
    assert prepare(download, output) == 1
    assert "Category_ids/0000008.png: the label map does not exist; split 'train' names it" in capsys.readouterr().err


def test_two_photos_of_one_id_are_named(download, output, capsys):
    write_photo(download / "Training" / "Images" / "0000006.png")
    assert prepare(download, output) == 1
    assert "images of one id: 0000006.jpg, 0000006.png" in capsys.readouterr().err


def test_the_screen_shows_the_first_ones_and_a_file_all(tmp_path, output, capsys):
    names = [f"{number:07d}" for number in range(100, 130)]
    write_cihp(tmp_path / "d", train=names)
    for name in names[:25]:
        (tmp_path / "d" / "Training" / "Category_ids" / f"{name}.png").write_bytes(b"no image")
    assert prepare(tmp_path / "d", output, "--report", tmp_path / "report.txt") == 1
    error = capsys.readouterr().err
    assert error.count("error: ") == 20 + 1 + 1
    assert "and 5 more" in error
    lines = (tmp_path / "report.txt").read_text().splitlines()
    assert len(lines) == 25
    assert all(f"Category_ids/{name}.png" in line for name, line in zip(names, lines))


def test_a_list_of_another_data_set_is_doubted(download, output, capsys):
    (download / "Training" / "train_id.txt").write_text("77_471474\n")
    assert prepare(download, output) == 1
    printed = capsys.readouterr()
    assert "does the list belong to this data set?" in printed.out
    assert "77_471474.jpg: the image and the label map do not exist" in printed.err


def test_an_image_in_two_splits_is_refused(tmp_path, output, capsys):
    write_cihp(tmp_path / "d", train=TRAIN, val=[*VAL, TRAIN[1]])
    assert prepare(tmp_path / "d", output) == 1
    error = capsys.readouterr().err
    assert "'train' and 'val' share 1 images: 0000007" in error


def test_labels_that_put_the_feet_on_top_are_doubted(tmp_path, output, capsys):
    """What only a whole split shows is told as well."""
    names = [f"{number:07d}" for number in range(100, 130)]
    write_cihp(tmp_path / "d", train=names)
    for name in names:
        write_labels(tmp_path / "d" / "Training" / "Category_ids" / f"{name}.png", (18, 19, 5, 5, 2, 13))
    assert prepare(tmp_path / "d", output) == 0
    assert "warning: CIHP train: head" in capsys.readouterr().err


# ------------------------------------------------------------------ the command line


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--workers", "two"], ["--what"]])
def test_wrong_arguments_exit_with_two(download, arguments):
    with pytest.raises(SystemExit) as stop:
        cihp.main([str(download), *arguments])
    assert stop.value.code == 2


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere", "is no folder"), ("file.zip", "is an archive: unpack it"), ("file.txt", "is no folder")],
)
def test_a_wrong_path_is_one_line(tmp_path, name, words, capsys):
    for file in ("file.zip", "file.txt"):
        (tmp_path / file).write_bytes(b"x")
    assert prepare(tmp_path / name, tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_the_command_runs_from_any_folder_and_prints_no_traceback(download, tmp_path):
    root = str(DATASETS.parent)
    environment = {**os.environ, "PYTHONPATH": root, "DETECTRON2_DATASETS": str(tmp_path / "sets")}
    command = [sys.executable, str(DATASETS / "prepare_cihp.py"), str(download)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert read_list(tmp_path / "sets" / "cihp", "train") == TRAIN
    (tmp_path / "sets" / "cihp" / "preparation.json").write_text("nonsense")
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_real_data(real_data, output):
    before = contents(real_data / "cihp")
    assert prepare(real_data / "cihp", output) == 0
    assert read_list(output, "train") == ["0002190", "0005008", "0026375"]
    assert register_dataset_card(output / "card.yaml") == ["cihp_sem_seg_train"]
    for sample in DatasetCatalog.get("cihp_sem_seg_train"):
        truth = np.array(Image.open(real_data / "cihp" / "Training" / "Category_ids" / f"{sample['image_id']}.png"))
        assert np.array_equal(read_label_map(sample["sem_seg_file_name"], get_label_domain("cihp")), truth)
    assert contents(real_data / "cihp") == before
