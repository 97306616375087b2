"""`SwinBackbone`: torchvision's network, its weights and its place in the optimiser."""

import pytest
import torch
import torchvision
from conftest import tiny_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.utils.file_io import PathManager
from torchvision.models import SwinTransformer

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.errors import SSTCheckpointError
from sst_d2.modeling import SwinBackbone, build_sst_swin_t_backbone
from sst_d2.optimizer import build_optimizer

SWIN_T = {"MODEL__BACKBONE__NAME": "build_sst_swin_t_backbone"}


def small_swin(**arguments):
    network = SwinTransformer([4, 4], 12, [1, 1, 2, 1], [1, 2, 3, 4], [7, 7], stochastic_depth_prob=0.0)
    return SwinBackbone(network, **arguments)


@pytest.fixture(scope="module")
def torchvision_swin():
    torch.manual_seed(3)
    network = torchvision.models.swin_t()
    with torch.no_grad():
        network.norm.weight.uniform_(0.5, 1.5), network.norm.bias.normal_()
    return network.eval()


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (288, 32)])
def test_four_maps_at_their_strides(size):
    backbone = small_swin()
    shapes = backbone.output_shape()
    expected = {"res2": (12, 4), "res3": (24, 8), "res4": (48, 16), "res5": (96, 32)}
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == expected
    maps = backbone(torch.randn(2, 3, *size))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        name: (2, channels, size[0] // stride, size[1] // stride) for name, (channels, stride) in expected.items()
    }


def test_every_map_is_normalised_and_every_parameter_learns():
    backbone = small_swin()
    maps = backbone(torch.randn(2, 3, 64, 96))
    for tokens in maps.values():
        assert torch.allclose(tokens.mean(1), torch.zeros_like(tokens[:, 0]), atol=1e-5)
        assert torch.allclose(tokens.var(1, unbiased=False), torch.ones_like(tokens[:, 0]), atol=1e-2)
    sum((tokens * torch.randn_like(tokens)).sum() for tokens in maps.values()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_torchvisions_file_fills_the_backbone_and_computes_the_same(torchvision_swin, tmp_path, monkeypatch):
    torch.save(torchvision_swin.state_dict(), tmp_path / "swin_t.pth")
    asked, original = [], PathManager.get_local_path

    def local(path, force=False, **kwargs):
        if path.startswith("https:"):
            asked.append(path)
            return str(tmp_path / "swin_t.pth")
        return original(path, force, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", local)
    model = build_model(tiny_cfg(**SWIN_T)).eval()
    SSTCheckpointer(model).load_start("torchvision://swin_t")
    assert asked == [torchvision.models.Swin_T_Weights.IMAGENET1K_V1.url]
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = torchvision_swin.norm(torchvision_swin.features(image)).permute(0, 3, 1, 2)
        assert torch.equal(model.backbone(image)["res5"], expected)


def test_a_file_that_fills_only_a_part_is_refused(torchvision_swin, tmp_path):
    weights = {key: value for key, value in torchvision_swin.state_dict().items() if not key.startswith("features.7.1")}
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(
        SSTCheckpointError, match=r"(?s)missing: backbone\.features\.7\.1.*a file of the backbone alone"
    ):
        SSTCheckpointer(build_model(tiny_cfg(**SWIN_T))).load_start(str(tmp_path / "part.pth"))


def test_the_configured_backbone_is_swin_t_without_its_classifier():
    backbone = build_backbone(tiny_cfg(**SWIN_T))
    assert {name: shape.channels for name, shape in backbone.output_shape().items()} == {
        "res2": 96,
        "res3": 192,
        "res4": 384,
        "res5": 768,
    }
    assert sum(p.numel() for p in backbone.parameters()) == 28_288_354 - (768 * 1000 + 1000)  # torchvision's count


@pytest.mark.parametrize(("freeze_at", "frozen"), [(-1, 0), (0, 0), (1, 1), (2, 2), (3, 4), (5, 8)])
def test_so_many_parts_are_frozen_from_the_first_on(freeze_at, frozen):
    backbone = small_swin(freeze_at=freeze_at)
    learning = [all(p.requires_grad for p in part.parameters()) for part in backbone.features]
    assert [index for index, learns in enumerate(learning) if not learns] == list(range(frozen))


def test_freeze_at_of_the_configuration_arrives():
    cfg = tiny_cfg(MODEL__BACKBONE__FREEZE_AT=1)
    backbone = build_sst_swin_t_backbone(cfg, ShapeSpec(channels=3))
    assert [p.requires_grad for p in (backbone.features[0][0].weight, backbone.features[1][0].norm1.weight)] == [
        False,
        True,
    ]


def test_norms_and_position_tables_have_no_weight_decay():
    cfg = tiny_cfg(**SWIN_T, SOLVER__BASE_LR=0.1, SOLVER__SST__BACKBONE_MULTIPLIER=0.5)
    model = build_model(cfg)
    found = {p: (g["lr"], g["weight_decay"]) for g in build_optimizer(cfg, model).param_groups for p in g["params"]}
    names = {name: found[p] for name, p in model.backbone.named_parameters()}
    tables = [name for name in names if name.endswith("relative_position_bias_table")]
    norms = [name for name in names if ".norm" in name or name.startswith("norm") or name.startswith("features.0.2")]
    assert len(tables) == 12 and len(norms) == 2 * (2 * 12 + 3 + 1 + 1)
    assert {names[name] for name in tables + norms} == {(0.05, 0.0)}
    assert {lr_and_decay for name, lr_and_decay in names.items() if name not in {*tables, *norms}} == {(0.05, 0.05)}
