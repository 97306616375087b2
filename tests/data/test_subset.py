"""A part of the training data: the same for the same seed, written down, and the same when a run goes on."""

import json
import os

import pytest
from conftest import tiny_cfg
from detectron2.utils import comm

from sst_d2.data import register_dataset_cards
from sst_d2.data.loader import fraction_size, load_datasets
from sst_d2.data.subset import images_by_set, keep_subset
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.run_setup import epochs_to_iterations


@pytest.fixture
def cfg(make_dataset, tmp_path):
    cards = [str(make_dataset("a", count=5)), str(make_dataset("c", domain="cihp", count=10))]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["atr", "cihp"],
        DATASETS__SST__CARDS=cards,
        DATASETS__SST__TRAIN_FRACTION=0.8,
        DATASETS__TRAIN=("a", "c"),
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__MAX_ITER=1,
        OUTPUT_DIR=str(tmp_path / "out"),
    )


def train(cfg, resume=False):
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()


def subset_file(cfg):
    return os.path.join(cfg.OUTPUT_DIR, "train_subset.json")


def ids(fraction, seed=0, names=("a", "c")):
    return [sample["image_id"] for sample in load_datasets(names, ["atr", "cihp"], fraction, seed)]


@pytest.mark.parametrize(
    ("size", "fraction", "expected"),
    [
        (5, 0.8, 4),
        (100, 0.07, 7),
        (10, 0.3, 3),
        (3, 0.5, 2),
        (1716, 0.5, 858),
        (1716, 0.8, 1373),
        (7, 1, 7),
        (5, 1e-9, 1),
    ],
)
def test_sizes_are_those_of_the_decimal_number(size, fraction, expected):
    assert fraction_size(size, fraction) == expected


def test_each_data_set_gives_its_share_in_its_own_order(cfg):
    chosen = ids(0.8)
    assert [identifier[0] for identifier in chosen] == ["a"] * 4 + ["c"] * 8
    assert [entry for entry in ids(1) if entry in chosen] == chosen and len(set(chosen)) == 12
    assert ids(0.8, names=["c"]) == chosen[4:]  # whatever other data sets there are


def test_the_seed_decides(cfg):
    assert ids(0.5) == ids(0.5)
    assert len({tuple(ids(0.5, seed)) for seed in range(5)}) == 5


def test_a_smaller_share_lies_within_a_larger_one(cfg):
    assert set(ids(0.2)) < set(ids(0.5)) < set(ids(0.8)) < set(ids(1))


def test_epochs_count_the_share(cfg):
    cfg.SOLVER.SST.MAX_EPOCHS, cfg.SOLVER.SST.EPOCH_STEPS, cfg.SOLVER.STEPS = 3, [2], ()
    epochs_to_iterations(cfg)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (18, (12,))  # 4 + 8 images, 2 a batch


def test_the_images_are_written_down_and_a_new_run_replaces_them(cfg):
    train(cfg)
    content = json.loads(open(subset_file(cfg)).read())
    assert (content["fraction"], content["seed"]) == (0.8, 0)
    assert [*content["images"]["a"], *content["images"]["c"]] == ids(0.8)
    cfg.SEED = 1
    train(cfg)
    content = json.loads(open(subset_file(cfg)).read())
    assert [*content["images"]["a"], *content["images"]["c"]] == ids(0.8, 1) != ids(0.8)
    cfg.DATASETS.SST.TRAIN_FRACTION = 1.0
    train(cfg)
    assert not os.path.exists(subset_file(cfg))


def test_building_a_trainer_writes_nothing(cfg):
    SSTTrainer(cfg)
    assert not os.path.exists(subset_file(cfg))


def test_a_run_goes_on_with_its_own_images_only(cfg):
    train(cfg)
    before = open(subset_file(cfg)).read()
    cfg.SOLVER.MAX_ITER = 2
    train(cfg, resume=True)
    cfg.SOLVER.MAX_ITER = 3
    for key, value, images in (
        ("SEED", 1, r"8 images of 'c' .* are not the 8"),
        ("DATASETS.SST.TRAIN_FRACTION", 1.0, r"4 images of 'a' .* are not the 5"),
    ):
        other = cfg.clone()
        other.merge_from_list([key, value])
        with pytest.raises(SSTConfigError, match=f"{images} .*TRAIN_FRACTION 0.8 and SEED 0"):
            train(other, resume=True)
    assert open(subset_file(cfg)).read() == before
    lines = open(os.path.join(cfg.OUTPUT_DIR, "metrics.json")).readlines()
    assert len(lines) == 2  # nothing is written where a run is refused


@pytest.mark.parametrize("content", ["", "[]", '{"images": {"a": 3}}', "\x00"])
def test_a_damaged_file_stops_a_resumed_run_and_a_lost_one_is_written_again(cfg, content):
    train(cfg)
    before = open(subset_file(cfg)).read()
    cfg.SOLVER.MAX_ITER = 2
    open(subset_file(cfg), "w").write(content)
    with pytest.raises(SSTDataError, match="train_subset.json: cannot be read .*; remove the file"):
        train(cfg, resume=True)
    os.remove(subset_file(cfg))
    train(cfg, resume=True)
    assert open(subset_file(cfg)).read() == before


def test_other_processes_write_nothing_and_stop_as_well(cfg, monkeypatch):
    train(cfg)
    before = open(subset_file(cfg)).read()
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    keep_subset(cfg.OUTPUT_DIR, 0.8, 0, json.loads(before)["images"], resumed=True)
    keep_subset(cfg.OUTPUT_DIR, 0.5, 1, {"a": ["a_1"]}, resumed=False)
    assert open(subset_file(cfg)).read() == before
    with pytest.raises(SSTConfigError, match="4 images of 'a'"):
        keep_subset(cfg.OUTPUT_DIR, 0.5, 1, {"a": ["a_1"]}, resumed=True)


def test_images_without_an_id_go_by_their_file(cfg):
    samples = [{"file_name": f"{number}.png"} for number in range(12)]
    assert images_by_set(samples, ("a", "c"), 0.8) == {
        "a": [f"{number}.png" for number in range(4)],
        "c": [f"{number}.png" for number in range(4, 12)],
    }
