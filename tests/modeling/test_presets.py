"""Presets reach the model, and a key of one's own goes before them."""

import pytest
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.modeling.presets import PRESETS

KEY = "MODEL__SST__AUXILIARY__"


def settings(**overrides):
    model = build_model(tiny_cfg(**{KEY + name: value for name, value in overrides.items()}))
    stopped = {transfer.stop_gradient for transfer in model.auxiliary.transfer.values()}
    return stopped, model.losses.present_only, model.losses.mean, model.losses.ramp


def test_the_papers_setting_is_the_default():
    assert settings() == settings(PRESET="paper") == ({False}, False, False, 0)


def test_the_stable_setting():
    assert settings(PRESET="stable") == ({True}, True, True, 300)


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"STOP_GRADIENT": "none"}, ({False}, True, True, 300)),
        ({"NORMALIZE": "classes"}, ({True}, False, True, 300)),
        ({"REDUCE": "sum"}, ({True}, True, False, 300)),
        ({"RAMP": 0}, ({True}, True, True, 0)),
        ({"RAMP": 20}, ({True}, True, True, 20)),
    ],
    ids=str,
)
def test_a_key_of_ones_own_goes_before_the_preset(own, expected):
    assert settings(PRESET="stable", **own) == expected


@pytest.mark.parametrize("preset", PRESETS)
def test_what_a_preset_says_may_be_written_out(preset):
    assert settings(**PRESETS[preset]) == settings(PRESET=preset)


def test_weights_and_shares_reach_the_losses():
    weights = dict(zip(("SEG", "AUX", "SCR"), (4.0, 0.5, 2.0)))
    overrides = {f"MODEL__SST__LOSS_WEIGHTS__{name}": value for name, value in weights.items()}
    losses = build_model(tiny_cfg(**overrides, **{KEY + "DATASET_LEVEL": 0.5, KEY + "IMAGE_LEVEL": 0.25})).losses
    assert (losses.seg_weight, losses.aux_weight, losses.scr_weight) == (4.0, 0.5, 2.0)
    assert (losses.dataset_share, losses.image_share) == (0.5, 0.25)
    paper = build_model(tiny_cfg()).losses
    assert (paper.seg_weight, paper.aux_weight, paper.scr_weight) == (10.0, 1.0, 5.0)
    assert paper.dataset_share == paper.image_share == 1.0
