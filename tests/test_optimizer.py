"""Parameter groups and clipping of the optimiser."""

import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.optimizer import build_optimizer, full_model_clip


def test_every_parameter_is_in_one_group_with_its_learning_rate_and_decay():
    cfg = tiny_cfg(SOLVER__BASE_LR=0.1, SOLVER__SST__BACKBONE_MULTIPLIER=0.5, SOLVER__WEIGHT_DECAY_BIAS=0.02)
    cfg.MODEL.SST.AUXILIARY.PREDICTION = 1.0
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert parameter not in found
            found[parameter] = (group["lr"], group["weight_decay"])
    names = dict(model.named_parameters())
    assert len(found) == len(names)
    assert found[names["backbone.stem.conv1.weight"]] == (0.05, 0.05)
    assert found[names["heads.atr.weight"]] == (0.1, 0.05)
    assert found[names["heads.atr.bias"]] == (0.1, 0.02)
    assert found[names["decoder.stages.4.norm.weight"]] == found[names["decoder.stages.4.norm.bias"]] == (0.1, 0.0)
    assert found[names["decoder.pixel_decoder.level_embedding"]] == (0.1, 0.0)
    assert found[names["decoder.stages.4.blocks.0.attn.relative_position_bias_table"]] == (0.1, 0.0)
    assert found[names["auxiliary.prediction.maps.atr-cihp.relation_logits"]] == (1.0, 0.0)


def test_frozen_parameters_are_left_out():
    cfg = tiny_cfg()
    model = build_model(cfg)
    model.backbone.requires_grad_(False)
    count = sum(len(group["params"]) for group in build_optimizer(cfg, model).param_groups)
    assert count == sum(1 for parameter in model.parameters() if parameter.requires_grad)


def test_full_model_clipping_is_the_trainers_and_other_types_are_detectron2s():
    cfg = tiny_cfg(SOLVER__CLIP_GRADIENTS__CLIP_VALUE=0.25)
    assert full_model_clip(cfg) == 0.25
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "value"
    assert full_model_clip(cfg) is None
    layer = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(cfg, layer)
    layer.weight.grad, layer.bias.grad = torch.full((1, 2), 9.0), torch.full((1,), -9.0)
    optimizer.step()
    assert layer.weight.grad.max().item() == pytest.approx(0.25) and layer.bias.grad.item() == pytest.approx(-0.25)
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    assert full_model_clip(cfg) is None
