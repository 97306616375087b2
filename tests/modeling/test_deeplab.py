"""`DeepLabV3PlusDecoder`: Detectron2's own head, and where its three maps come from."""

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_cfg
from detectron2.layers import ShapeSpec
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.modeling import DeepLabV3PlusDecoder, build_sst_decoder

NAME = "DeepLabV3PlusDecoder"


def shapes(last_stride):
    strides = {"res2": 4, "res3": 8, "res4": 16, "res5": last_stride}
    return {name: ShapeSpec(channels=8 * int(name[-1]), stride=stride) for name, stride in strides.items()}


def random_features(last_stride, size=(64, 96), images=2):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(images, shape.channels, size[0] // shape.stride, size[1] // shape.stride, generator=generator)
        for name, shape in shapes(last_stride).items()
    }


def decoder_of(last_stride, project_channels):
    return DeepLabV3PlusDecoder(input_shape=shapes(last_stride), dim=16, project_channels=project_channels).eval()


def upsampled(features, factor):
    return F.interpolate(features, scale_factor=factor, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (160, 32)])
@pytest.mark.parametrize("last_stride", [16, 32])
@pytest.mark.parametrize("project_channels", [[48], [32, 64], [32, 64, 128]])
def test_strides_16_8_and_4_with_d_channels_the_finest_as_detectron2_gives_it(size, last_stride, project_channels):
    decoder = decoder_of(last_stride, project_channels)
    features = random_features(last_stride, size)
    pyramid = decoder(features)
    assert decoder.out_channels == 16
    assert {s: tuple(h.shape) for s, h in pyramid.items()} == {
        s: (2, 16, size[0] // s, size[1] // s) for s in (16, 8, 4)
    }
    assert torch.equal(pyramid[4], decoder.head(features))


def test_the_coarser_maps_are_those_of_the_docstrings_table():
    stages = {}

    def maps_of(last_stride, project_channels):
        decoder = decoder_of(last_stride, project_channels)
        stages.clear()
        for name, stage in decoder.head.decoder.items():
            part = stage["project_conv"] if name == "res5" else stage["fuse_conv"]
            part.register_forward_hook(lambda _module, _inputs, output, name=name: stages.update({name: output}))
        return decoder(random_features(last_stride))

    pyramid = maps_of(16, [48])
    assert torch.equal(pyramid[16], stages["res5"]) and torch.equal(pyramid[8], upsampled(stages["res5"], 2))
    pyramid = maps_of(32, [48])
    assert torch.equal(pyramid[16], upsampled(stages["res5"], 2))
    assert torch.equal(pyramid[8], upsampled(stages["res5"], 4))
    pyramid = maps_of(16, [32, 64])
    assert torch.equal(pyramid[16], stages["res5"]) and torch.equal(pyramid[8], stages["res3"])
    for last_stride in (16, 32):
        pyramid = maps_of(last_stride, [32, 64, 128])
        assert torch.equal(pyramid[16], stages["res4"]) and torch.equal(pyramid[8], stages["res3"])


@pytest.mark.parametrize("project_channels", [[48], [32, 64, 128]])
def test_every_parameter_lies_on_the_way_to_the_finest_map(project_channels):
    decoder = decoder_of(32, project_channels)
    decoder(random_features(32))[4].square().sum().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_one_image_of_one_pixel_at_stride_32_trains():
    decoder = build_sst_decoder(tiny_cfg(MODEL__SST__DECODER__NAME=NAME), shapes(32)).train()
    assert torch.isfinite(decoder(random_features(32, size=(32, 32), images=1))[4]).all()


def test_keys_of_the_configuration_arrive():
    cfg = tiny_cfg(
        MODEL__SST__DECODER__NAME=NAME,
        MODEL__SST__DECODER__NORM="BN",
        MODEL__SST__DECODER__DEEPLAB__PROJECT_CHANNELS=[12, 20],
        MODEL__SST__DECODER__DEEPLAB__ASPP_DILATIONS=[2, 3, 5],
        MODEL__SST__DECODER__DEEPLAB__ASPP_DROPOUT=0.3,
    )
    head = build_sst_decoder(cfg, shapes(16)).head
    assert head.in_features == ["res2", "res3", "res5"] and not hasattr(head, "predictor")
    assert [head.decoder[name]["project_conv"].out_channels for name in head.in_features[:2]] == [12, 20]
    aspp = head.decoder["res5"]["project_conv"]
    assert [conv.dilation[0] for conv in aspp.convs[1:4]] == [2, 3, 5] and aspp.dropout == 0.3
    assert isinstance(aspp.project.norm, nn.BatchNorm2d) and aspp.project.out_channels == 32


def test_a_backbone_that_does_not_fit_is_refused():
    with pytest.raises(SSTConfigError, match=r"DeepLabV3PlusDecoder: .*without \['res2'\].*OUT_FEATURES"):
        DeepLabV3PlusDecoder(input_shape={"res5": ShapeSpec(channels=8, stride=32)})
    with pytest.raises(SSTConfigError, match=r"res5 has stride 8; allowed: 16 or 32\."):
        DeepLabV3PlusDecoder(input_shape=shapes(8))
