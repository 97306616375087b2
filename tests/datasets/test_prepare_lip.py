"""Preparing LIP: its trees, its lists, and what is not LIP."""

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from downloads import contents, label_of, read_list, script, write_pairs
from PIL import Image

from sst_d2.data import register_dataset_card

lip = script("prepare_lip")
TRAIN, VAL = ["77_471474", "8_1"], ["36_453991"]


def prepare(download, output, *more):
    return lip.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


def write_lip(root, nested=False):
    images, labels = root / "TrainVal_images", root / "TrainVal_parsing_annotations"
    for split, names in (("train", TRAIN), ("val", VAL)):
        write_pairs(
            (images / images.name if nested else images) / f"{split}_images",
            (labels / labels.name if nested else labels) / f"{split}_segmentations",
            names,
        )
    return root


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


@pytest.mark.parametrize("nested", [False, True])
def test_the_archives_side_by_side(tmp_path, output, nested):
    download = write_lip(tmp_path / "LIP", nested)
    write_pairs(tmp_path / "LIP" / "Testing_images", tmp_path / "LIP" / "none", ["315_462476"])
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)
    assert {name["image_id"] for name in _samples(output, "train")} == set(TRAIN)


def _samples(output, split):
    register_dataset_card(output / "card.yaml")
    return DatasetCatalog.get(f"lip_sem_seg_{split}")


@pytest.mark.parametrize("nested", [False, True])
def test_list_files_are_found_beside_the_photos(tmp_path, output, nested):
    download = write_lip(tmp_path / "LIP", nested)
    (download / "TrainVal_images" / "train_id.txt").write_text("8_1\n")
    assert prepare(download, output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (["8_1"], VAL)


def test_lists_of_another_data_set_beside_are_not_taken(tmp_path, output):
    write_lip(tmp_path / "data" / "LIP")
    (tmp_path / "data" / "CIHP_4w" / "lists").mkdir(parents=True)
    (tmp_path / "data" / "CIHP_4w" / "lists" / "train_id.txt").write_text("0000006\n")
    assert prepare(tmp_path / "data", output) == 0
    assert read_list(output, "train") == TRAIN


def test_mirrored_labels_are_not_used(tmp_path, output):
    download = write_lip(tmp_path / "LIP")
    mirrored = download / "Train_parsing_reversed_labels" / "TrainVal_parsing_reversed_labels"
    write_pairs(tmp_path / "none", mirrored / "train_segmentations_reversed", TRAIN, ids=(3, 4))
    assert prepare(download, output) == 0
    assert set(np.unique(label_of(output, "8_1"))) == {0, 1, 2}


def test_the_tree_of_m2fp(tmp_path, output):
    for name, ids in (("Training", TRAIN), ("Validation", VAL)):
        write_pairs(tmp_path / "lip" / name / "Images", tmp_path / "lip" / name / "Category_ids", ids)
    assert prepare(tmp_path / "lip", output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (TRAIN, VAL)


def test_cihp_is_not_taken_for_lip(tmp_path, output, capsys):
    write_pairs(tmp_path / "d" / "Training" / "Images", tmp_path / "d" / "Training" / "Category_ids", ["0000006"])
    assert prepare(tmp_path / "d", output) == 1
    assert "prepare_cihp.py" in capsys.readouterr().err
    assert not output.exists()


def test_cihp_with_an_odd_file_is_not_taken_for_lip(tmp_path, output, capsys):
    names = ["0000006", "0000007", "an_odd_one"]
    write_pairs(tmp_path / "d" / "Training" / "Images", tmp_path / "d" / "Training" / "Category_ids", names)
    assert prepare(tmp_path / "d", output) == 1
    assert "2 of 3 ids have seven digits (0000006 …)" in capsys.readouterr().err


def test_lip_under_other_names_needs_a_word(tmp_path, output, capsys):
    images, labels = tmp_path / "LIP" / "TrainVal_images", tmp_path / "LIP" / "TrainVal_parsing_annotations"
    write_pairs(images / "train_images", labels / "train_segmentations", ["0000001", "0000002"])
    assert prepare(tmp_path / "LIP", output) == 1
    assert "If it is LIP under other names: --renumbered" in capsys.readouterr().err
    assert prepare(tmp_path / "LIP", output, "--renumbered") == 0
    assert read_list(output, "train") == ["0000001", "0000002"]


def test_some_ids_of_seven_digits_are_lips_all_the_same(tmp_path, output):
    images, labels = tmp_path / "LIP" / "TrainVal_images", tmp_path / "LIP" / "TrainVal_parsing_annotations"
    write_pairs(images / "train_images", labels / "train_segmentations", ["0000001", *TRAIN])
    assert prepare(tmp_path / "LIP", output) == 0
    assert read_list(output, "train") == ["0000001", *TRAIN]


def test_a_split_without_labels_is_told(tmp_path, output, capsys):
    download = write_lip(tmp_path / "LIP")
    (download / "TrainVal_parsing_annotations" / "val_segmentations").rename(download / "elsewhere")
    assert prepare(download, output) == 0
    assert "no split 'val': val_images is there, its partner is not" in capsys.readouterr().out


def test_photos_without_labels_are_counted(tmp_path, output, capsys):
    download = write_lip(tmp_path / "LIP")
    (download / "TrainVal_parsing_annotations" / "train_segmentations" / "8_1.png").unlink()
    assert prepare(download, output) == 0
    assert "train_images: 1 files belong to no split and are left out (8_1 …)" in capsys.readouterr().out


def test_the_next_command_names_the_configuration(tmp_path, output, capsys):
    assert prepare(write_lip(tmp_path / "LIP"), output) == 0
    assert "--config-file configs/single/lip_R50.yaml DATASETS.SST.CARDS" in capsys.readouterr().out


def test_real_data(real_data, output):
    before = contents(real_data / "lip")
    assert prepare(real_data / "lip", output) == 0
    assert (read_list(output, "train"), read_list(output, "val")) == (["77_471474"], ["36_453991"])
    truth = real_data / "lip" / "TrainVal_parsing_annotations" / "val_segmentations" / "36_453991.png"
    assert np.array_equal(label_of(output, "36_453991"), np.array(Image.open(truth)))
    assert contents(real_data / "lip") == before
