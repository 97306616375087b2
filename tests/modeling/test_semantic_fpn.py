"""`SemanticFPNDecoder`: Detectron2's own classes, on features that are given."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_cfg
from detectron2.layers import ShapeSpec
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.modeling import SemanticFPNDecoder, build_sst_decoder

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


def random_features(size=(64, 96), images=2):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(images, shape.channels, size[0] // shape.stride, size[1] // shape.stride, generator=generator)
        for name, shape in SHAPES.items()
    }


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
def test_the_decoder_gives_strides_16_8_and_4_with_d_channels(size):
    decoder = build_sst_decoder(tiny_cfg(MODEL__SST__DECODER__NAME="SemanticFPNDecoder"), SHAPES)
    pyramid = decoder(random_features(size))
    assert isinstance(decoder, SemanticFPNDecoder) and decoder.out_channels == 32
    assert {s: tuple(h.shape) for s, h in pyramid.items()} == {
        s: (2, 32, size[0] // s, size[1] // s) for s in (16, 8, 4)
    }


def test_the_maps_are_those_of_the_two_papers_in_plain_steps():
    decoder = SemanticFPNDecoder(input_shape=SHAPES, dim=8, convs_dim=4, norm="").eval()
    features, fpn, merge = random_features(), decoder.fpn, decoder.merge
    pyramid, above = {}, 0
    for level in (5, 4, 3, 2):
        above = getattr(fpn, f"fpn_lateral{level}")(features[f"res{level}"]) + above
        pyramid[level] = getattr(fpn, f"fpn_output{level}")(above)
        above = above.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    merged = 0
    for level, steps in ((2, 1), (3, 1), (4, 2), (5, 3)):
        current = pyramid[level]
        for conv in [part for part in getattr(merge, f"p{level}") if isinstance(part, nn.Conv2d)]:
            current = F.relu(F.conv2d(current, conv.weight, conv.bias, padding=1))
            if level > 2:
                current = F.interpolate(current, scale_factor=2, mode="bilinear", align_corners=False)
            steps -= 1
        assert steps == 0
        merged = merged + current
    result = decoder(features)
    assert torch.allclose(result[16], pyramid[4], atol=1e-5) and torch.allclose(result[8], pyramid[3], atol=1e-5)
    assert torch.allclose(result[4], merge.predictor(merged), atol=1e-5)


def test_every_parameter_lies_on_the_way_to_the_finest_map():
    decoder = build_sst_decoder(tiny_cfg(MODEL__SST__DECODER__NAME="SemanticFPNDecoder"), SHAPES)
    decoder(random_features())[4].square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_keys_of_the_configuration_arrive():
    cfg = tiny_cfg(MODEL__SST__DECODER__NAME="SemanticFPNDecoder", MODEL__SST__DECODER__SEMANTIC_FPN__CONVS_DIM=12)
    decoder = build_sst_decoder(cfg, SHAPES)
    assert decoder.merge.predictor.in_channels == 12 and decoder.fpn.fpn_lateral5.out_channels == 32
    kinds = {"GN": nn.GroupNorm, "BN": nn.BatchNorm2d, "": type(None)}
    for name, kind in kinds.items():
        cfg.MODEL.SST.DECODER.NORM = name
        assert isinstance(build_sst_decoder(cfg, SHAPES).merge.p2[0].norm, kind)


def test_a_backbone_that_does_not_fit_is_refused():
    lacking = {name: SHAPES[name] for name in ("res4", "res5")}
    with pytest.raises(SSTConfigError, match=r"SemanticFPNDecoder: .*without \['res2', 'res3'\].*OUT_FEATURES"):
        SemanticFPNDecoder(input_shape=lacking)
    dilated = {**SHAPES, "res5": ShapeSpec(channels=40, stride=16)}
    with pytest.raises(SSTConfigError, match=r"res5 has stride 16; allowed: 32\. .*RES5_DILATION 1 gives 32"):
        SemanticFPNDecoder(input_shape=dilated)
