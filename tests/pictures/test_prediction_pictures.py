"""`PredictionPictures`: the same images at every evaluation, in TensorBoard; training does not notice."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_cfg
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from test_resume import content, differences, log, train, train_until

from sst_d2.config import changed_values
from sst_d2.config_checks import check_values
from sst_d2.data import register_dataset_cards
from sst_d2.data.label_io import read_label_map
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import launch
from sst_d2.pictures import PredictionPictures
from sst_d2.visualization import compared

SETS = {"p": "pascal_person_part", "a": "atr"}


def configuration(folder, cards, **overrides):
    settings = {
        "MODEL__RESNETS__NORM": "BN",  # whose statistics a picture must not change
        "MODEL__SST__PIXEL_DECODER__DROPOUT": 0.3,
        "DATASETS__SST__CARDS": cards,
        "DATASETS__TRAIN": ("p", "a"),
        "DATASETS__TEST": ("a", "p"),
        "INPUT__SST__CROP_SIZE": [64, 64],
        "SOLVER__STEPS": (),
        "SOLVER__MAX_ITER": 4,
        "SOLVER__IMS_PER_BATCH": 2,
        "SOLVER__CHECKPOINT_PERIOD": 5,
        "TEST__EVAL_PERIOD": 2,
        "OUTPUT_DIR": str(folder / "whole"),
    }
    return tiny_cfg(domains=list(SETS.values()), **{**settings, **overrides})


@pytest.fixture
def cfg(make_dataset, tmp_path):
    cards = [str(make_dataset(name, domain=domain)) for name, domain in SETS.items()]
    register_dataset_cards(cards)
    return configuration(tmp_path, cards)


def pictures(cfg):
    """By tag and step, the pictures that TensorBoard would show."""
    events = EventAccumulator(cfg.OUTPUT_DIR, size_guidance={IMAGES: 0})
    events.Reload()
    return {
        (tag, event.step): np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        for tag in events.Tags()["images"]
        for event in events.Images(tag)
    }


def test_tensorboard_gets_the_first_images_of_every_test_set_at_every_evaluation(cfg):
    trainer = train(cfg)
    shown = pictures(cfg)
    tags = [f"predictions/{name}/{name}_{number}" for name in ("a", "p") for number in (0, 1)]
    assert set(shown) == {(tag, step) for tag in tags for step in (1, 4)}
    folder = Path(cfg.DATASETS.SST.CARDS[1]).parent
    atr, image = get_label_domain("atr"), np.asarray(Image.open(folder / "images/a_1.png"))
    sample = {"image": torch.from_numpy(image.transpose(2, 0, 1).copy()), "label_domain": "atr"}
    with torch.no_grad():
        prediction = trainer.model.eval()([sample])[0]["sem_seg"].argmax(0).numpy()
    maps = {"ground truth": read_label_map(folder / "labels/a_1.png", atr), "prediction": prediction}
    assert np.array_equal(shown["predictions/a/a_1", 4], compared(image, maps, atr))


def test_training_is_the_same_with_and_without_pictures_bit_by_bit(cfg, tmp_path):
    cfg.TEST.SST.PICTURES = 3
    train(cfg)
    watched, generator = (content(cfg), content(cfg, "model_best"), log(cfg)), torch.get_rng_state()
    assert len(pictures(cfg)) == 12
    cfg.OUTPUT_DIR, cfg.TEST.SST.PICTURES = str(tmp_path / "unwatched"), 0
    train(cfg)
    assert pictures(cfg) == {} and torch.equal(generator, torch.get_rng_state())
    assert differences(watched[0], content(cfg)) == differences(watched[1], content(cfg, "model_best")) == []
    assert watched[2] == log(cfg)


@pytest.mark.parametrize(("iteration", "where"), [(1, "checkpoint"), pytest.param(2, "step", marks=pytest.mark.slow)])
def test_a_resumed_run_draws_what_the_killed_one_has_missed(cfg, tmp_path, iteration, where):
    cfg.SOLVER.CHECKPOINT_PERIOD = 2
    train(cfg)
    whole = pictures(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "killed")
    train_until(cfg, iteration, where)
    train(cfg)
    resumed = pictures(cfg)
    assert resumed.keys() == whole.keys() and all(np.array_equal(resumed[key], whole[key]) for key in whole)
    assert log(cfg) == log(tiny_cfg(OUTPUT_DIR=str(tmp_path / "whole")))


def test_without_evaluations_there_are_no_pictures_before_the_end(cfg):
    cfg.TEST.EVAL_PERIOD = 0
    train(cfg)
    assert {step for _, step in pictures(cfg)} == {4}
    cfg.DATASETS.TEST = ()
    assert not any(isinstance(hook, PredictionPictures) for hook in SSTTrainer(cfg)._hooks)


def test_the_number_is_checked_and_may_change_when_a_run_goes_on(cfg):
    saved = cfg.dump()
    cfg.TEST.SST.PICTURES = 7
    check_values(cfg)
    assert changed_values(saved, cfg) == []
    for wrong in (-1, 1.5, True):
        cfg.TEST.SST.PICTURES = wrong
        with pytest.raises(SSTConfigError, match=r"TEST.SST.PICTURES: .*; allowed: a whole number from 0 on; 0: none"):
            check_values(cfg)


def train_in_two_processes(folder):
    torch.set_num_threads(1)
    cards = [f"{folder}/{name}/card.yaml" for name in SETS]
    register_dataset_cards(cards)
    for out, number in (("watched", 2), ("unwatched", 0)):
        overrides = {"SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_ITER": 3, "TEST__EVAL_PERIOD": 1}
        cfg = configuration(Path(folder), cards, OUTPUT_DIR=f"{folder}/{out}", TEST__SST__PICTURES=number, **overrides)
        torch.manual_seed(0)
        SSTTrainer(cfg).train()


@pytest.mark.slow
def test_two_processes_train_the_same_and_the_first_draws(make_dataset, tmp_path):
    for name, domain in SETS.items():
        make_dataset(name, domain=domain)
    launch(train_in_two_processes, 2, args=(str(tmp_path),))
    runs = [tiny_cfg(OUTPUT_DIR=str(tmp_path / out)) for out in ("watched", "unwatched")]
    assert differences(content(runs[0])["model"], content(runs[1])["model"]) == [] and log(runs[0]) == log(runs[1])
    assert len(pictures(runs[0])) == 3 * 4 and pictures(runs[1]) == {}
    assert sum("events" in name for name in os.listdir(runs[0].OUTPUT_DIR)) == 1
