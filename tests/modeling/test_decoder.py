"""`SSTDecoder` and the registry of decoders."""

import pytest
import torch
from conftest import tiny_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.modeling import SST_DECODER_REGISTRY, SSTDecoder, SSTPixelDecoder, build_sst_decoder
from sst_d2.modeling.decoder import SwinStage

SHAPES = {f"res{i}": ShapeSpec(channels=8 * i, stride=2**i) for i in (2, 3, 4, 5)}


def random_features(size=(64, 96)):
    return {n: torch.randn(2, s.channels, size[0] // s.stride, size[1] // s.stride) for n, s in SHAPES.items()}


def test_the_decoder_gives_strides_16_8_and_4_with_d_channels():
    decoder = build_sst_decoder(tiny_cfg(), SHAPES)
    pyramid = decoder(random_features())
    assert list(pyramid) == [16, 8, 4] and decoder.out_channels == 32
    assert all(tuple(h.shape) == (2, 32, 64 // s, 96 // s) for s, h in pyramid.items())


def test_plain_arguments_work_as_well_as_a_configuration():
    encoder = SSTPixelDecoder({8: 24, 16: 32, 32: 40}, dim=16, layers=1, heads=2, points=1, ffn_dim=8)
    decoder = SSTDecoder(pixel_decoder=encoder, res2_channels=16, dim=16, blocks=(1, 1, 1), heads=2, window=4)
    assert decoder(random_features())[4].shape == (2, 16, 16, 24)


def test_every_input_map_matters_for_the_finest_output():
    decoder = build_sst_decoder(tiny_cfg(), SHAPES).eval()
    features = random_features()
    base = decoder(features)[4]
    for name in features:
        changed = {**features, name: features[name] + torch.randn_like(features[name])}
        assert not torch.allclose(base, decoder(changed)[4]), name


def test_every_second_swin_block_shifts_its_windows():
    stage = SwinStage(8, blocks=4, heads=2, window=4, mlp_ratio=1.0)
    assert [block.attn.shift_size for block in stage.blocks] == [[0, 0], [2, 2], [0, 0], [2, 2]]


def test_a_registered_decoder_of_a_users_own_carries_the_network():
    class Plain(nn.Module):
        def __init__(self, cfg, input_shape):
            super().__init__()
            self.out_channels = 12
            self.proj = nn.ModuleDict({n: nn.Conv2d(input_shape[n].channels, 12, 1) for n in ("res2", "res3", "res4")})

        def forward(self, features):
            return {
                16: self.proj["res4"](features["res4"]),
                8: self.proj["res3"](features["res3"]),
                4: self.proj["res2"](features["res2"]),
            }

    if "Plain" not in SST_DECODER_REGISTRY:
        SST_DECODER_REGISTRY.register(Plain)
    model = build_model(tiny_cfg(MODEL__SST__DECODER__NAME="Plain")).eval()
    with torch.no_grad():
        assert model([{"image": torch.zeros(3, 40, 50)}])[0]["sem_seg"].shape == (7, 40, 50)


def test_an_unknown_decoder_is_refused_with_the_known_ones():
    with pytest.raises(SSTConfigError, match="'Nothing' is not in SST_DECODER_REGISTRY; known: .*SSTDecoder"):
        build_sst_decoder(tiny_cfg(MODEL__SST__DECODER__NAME="Nothing"), SHAPES)


def test_a_backbone_without_the_four_maps_is_refused():
    with pytest.raises(SSTConfigError, match=r"gives \['res4', 'res5'\], without \['res2', 'res3'\].*OUT_FEATURES"):
        build_sst_decoder(tiny_cfg(), {name: SHAPES[name] for name in ("res4", "res5")})
