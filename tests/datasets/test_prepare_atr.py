"""Preparing ATR, which has no official split: lists that the user gives or the download holds, or chance."""

import pytest
from downloads import contents, read_list, script, write_pairs

from sst_d2.data import register_dataset_card

atr = script("prepare_atr")
NAMES = ["2500_1", "2500_2", "997_3", "Multi4", "dataset10k_5", "fash_6"]


def prepare(download, output, *more):
    return atr.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


@pytest.fixture
def download(tmp_path):
    root = tmp_path / "download" / "humanparsing"
    write_pairs(root / "JPEGImages", root / "SegmentationClassAug", NAMES)
    write_pairs(root / "JPEGImages", root / "SegmentationClassAug_rev", NAMES, ids=(5, 6))
    return root


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def ids(tmp_path):
    """A function that writes a list file."""

    def write(name, *names, text=None):
        (tmp_path / name).write_text("\n".join(names) if text is None else text)
        return tmp_path / name

    return write


def test_lists_that_the_user_gives(download, output, ids):
    train = ids("train.txt", text="/images/2500_1.jpg /labels/2500_1.png\r\n/images/997_3.jpg /labels/997_3.png")
    lists = [
        "--train-ids",
        train,
        "--val-ids",
        ids("val.txt", "2500_2"),
        "--test-ids",
        ids("t.txt", "fash_6", "Multi4"),
    ]
    assert prepare(download.parent, output, *lists) == 0
    assert read_list(output, "train") == ["2500_1", "997_3"]
    assert read_list(output, "val") == ["2500_2"]
    assert read_list(output, "test") == ["fash_6", "Multi4"]
    assert len(register_dataset_card(output / "card.yaml")) == 3


def test_lists_inside_the_download(download, output, capsys):
    (download / "list").mkdir()
    (download / "list" / "train_id.txt").write_text("2500_1\n2500_2")
    (download / "list" / "val_id.txt").write_text("997_3")
    (download / "list" / "test_id.txt").write_text("2500_189\n2500_1899")  # a stub, as Grapy-ML's
    assert prepare(download, output) == 0
    printed = capsys.readouterr().out
    assert f"train from {download / 'list' / 'train_id.txt'}" in printed
    assert "SegmentationClassAug: 3 files belong to no split" in printed
    assert "DATASETS.TEST \"('atr_sem_seg_val',)\"" in printed
    assert (read_list(output, "train"), read_list(output, "val")) == (["2500_1", "2500_2"], ["997_3"])


def test_without_lists_the_remedies_are_named(download, output, capsys):
    assert prepare(download, output) == 1
    error = capsys.readouterr().err
    for words in ("no official split", "--train-ids FILE --val-ids FILE", "--random-split SEED", "cannot be compared"):
        assert words in error


def test_a_random_split_does_not_depend_on_the_order_on_disk(download, output, tmp_path, capsys):
    assert prepare(download, output, "--random-split", 3, "--val", 2, "--test", 1) == 0
    assert "not comparable with published ones" in capsys.readouterr().out
    other = tmp_path / "other"
    write_pairs(other / "JPEGImages", other / "SegmentationClassAug", NAMES[::-1])
    assert prepare(other, tmp_path / "two", "--random-split", 3, "--val", 2, "--test", 1) == 0
    splits = [[read_list(place, split) for split in ("train", "val", "test")] for place in (output, tmp_path / "two")]
    assert splits[0] == splits[1]
    assert [len(names) for names in splits[0]] == [3, 2, 1]
    assert sorted(name for names in splits[0] for name in names) == NAMES


def test_another_seed_is_another_split(download, output, capsys):
    assert prepare(download, output, "--random-split", 0) == 0
    assert prepare(download, output, "--random-split", 0) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert prepare(download, output, "--random-split", 1) == 1
    assert "--force" in capsys.readouterr().err


def test_lists_that_overlap_are_refused(download, output, ids, capsys):
    lists = ["--train-ids", ids("a.txt", "2500_1", "997_3"), "--val-ids", ids("b.txt", "997_3")]
    assert prepare(download, output, *lists) == 1
    assert "'train' and 'val' share 1 images: 997_3" in capsys.readouterr().err


def test_ids_without_files_are_reported(download, output, ids, capsys):
    lists = ["--train-ids", ids("a.txt", "2500_1", "gone_1"), "--val-ids", ids("b.txt", "997_3")]
    assert prepare(download, output, *lists) == 1
    assert "gone_1.jpg: the image and the label map do not exist; split 'train' names it" in capsys.readouterr().err
    assert not (output / "ids").exists()
    assert prepare(download, output, *lists, "--skip-bad") == 0
    assert read_list(output, "train") == ["2500_1"]


def test_folders_of_other_names(download, output, ids):
    (download / "JPEGImages").rename(download / "photos")
    assert prepare(download, output, "--random-split", 0) == 1
    folders = ["--images", download / "photos", "--labels", download / "SegmentationClassAug"]
    assert prepare(download, output, "--random-split", 0, *folders) == 0


def test_photos_and_label_maps_in_one_folder_are_refused(download, output, capsys):
    folder = download / "SegmentationClassAug"
    assert prepare(download, output, "--random-split", 0, "--images", folder, "--labels", folder) == 1
    assert "two folders are expected" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--random-split", "0", "--train-ids", "x"], ["--val", "3"], ["--random-split", "-1"]]
)
def test_wrong_arguments_exit_with_two(download, arguments):
    with pytest.raises(SystemExit) as stop:
        atr.main([str(download), *arguments])
    assert stop.value.code == 2


def test_too_large_a_share_is_refused(download, output, capsys):
    assert prepare(download, output, "--random-split", 0, "--val", 6) == 1
    assert "leave none of the 6 images" in capsys.readouterr().err


def test_real_data(real_data, output, tmp_path, capsys):
    before = contents(real_data / "atr")
    assert prepare(real_data / "atr", output, "--random-split", 0) == 0
    assert [len(read_list(output, split)) for split in ("train", "val", "test")] == [1, 1, 1]
    lists = real_data / "lists" / "atr"
    arguments = ["--train-ids", lists / "graphonomy_train_id.txt", "--val-ids", lists / "grapy_val_id.txt"]
    assert prepare(real_data / "atr", tmp_path / "two", *arguments, "--skip-bad") == 0
    assert (read_list(tmp_path / "two", "train"), read_list(tmp_path / "two", "val")) == (
        ["997_2", "dataset10k_9"],
        ["2500_1899"],
    )
    assert "17,703 pairs" not in capsys.readouterr().err
    assert contents(real_data / "atr") == before
