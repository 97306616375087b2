"""The counts of `tools/analyze_model.py`: by hand where a hand can, and the cost that the design promises."""

import importlib.util
import json
import math

import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from torch import nn

from sst_d2.config import inference_config
from sst_d2.errors import SSTConfigError

spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools/analyze_model.py")
analyze_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(analyze_model)

CONFIGS = [path for path in sorted((ROOT / "configs").rglob("*.yaml")) if not path.name.startswith("Base")]
SYNTHETIC = str(ROOT / "configs/quick_schedules/synthetic_people.yaml")


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["analyze_model.py", *arguments])
    analyze_model.main()
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def model():
    return build_model(inference_config(tiny_cfg())).eval()


@pytest.fixture(scope="module")
def table(model):
    return analyze_model.count(model, (64, 96))


def test_the_heads_cost_what_1x1_convolutions_cost(table):
    classes, channels, pixels = 7 + 18 + 20, 32, 16 * 24
    assert table["heads"] == {
        "parameters": classes * (channels + 1),
        "macs": classes * channels * pixels,
        "activations": classes * pixels,
    }


def test_the_backbone_costs_what_its_convolutions_cost(model, table):
    convolutions, macs, activations = [], 0, 0

    def hook(conv, _inputs, output):
        convolutions.append((conv, output))

    handles = [m.register_forward_hook(hook) for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]
    with torch.no_grad():
        model.backbone(torch.zeros(1, 3, 64, 96))
    for handle in handles:
        handle.remove()
    for conv, output in convolutions:
        activations += output.numel()
        macs += output.numel() * conv.in_channels * math.prod(conv.kernel_size)
    assert table["backbone"]["activations"] == activations and len(convolutions) > 10
    assert macs <= table["backbone"]["macs"] <= 1.05 * macs  # fvcore counts group norm as well


def test_deformable_attention_is_counted_by_hand(table):
    dim, heads, levels, points, ffn = 32, 4, 3, 4, 32
    tokens = 8 * 12 + 4 * 6 + 2 * 3
    projections = dim * (heads * levels * points * 2 + heads * levels * points + dim + dim)
    sampling = 5 * levels * points * dim  # four corners and a weight, for each channel, whatever the number of heads
    layer = tokens * (projections + sampling + 2 * dim * ffn)
    inputs = 8 * 12 * 64 * dim + 4 * 6 * 128 * dim + 2 * 3 * 256 * dim
    exact = layer + inputs
    assert exact <= table["encoder"]["macs"] <= 1.05 * exact  # fvcore counts the norms as well


def test_parts_add_up_to_the_whole_and_parameters_are_the_models(model, table):
    whole = table["all"]
    assert list(table) == ["backbone", "encoder", "decoder", "heads", "all"]
    for key, value in whole.items():
        assert value == sum(values[key] for part, values in table.items() if part != "all")
    assert whole["parameters"] == sum(p.numel() for p in model.parameters())
    assert table["encoder"]["parameters"] == sum(p.numel() for p in model.decoder.pixel_decoder.parameters())


def test_images_are_padded_as_the_model_pads_them(model, table):
    assert analyze_model.count(model, (33, 65)) == table
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    with torch.no_grad():
        model([{"image": torch.zeros(3, 33, 65)}])
    assert sizes == [analyze_model.padded((33, 65))]


def test_modules_for_training_only_are_a_part_that_costs_nothing(table):
    model = build_model(tiny_cfg()).eval()
    with_branch = analyze_model.count(model, (64, 96))
    assert list(with_branch)[-2:] == ["auxiliary", "all"]
    parameters = sum(p.numel() for p in model.auxiliary.parameters())
    assert with_branch["auxiliary"] == {"parameters": parameters, "macs": 0, "activations": 0}
    assert all(with_branch[part] == values for part, values in table.items() if part != "all")
    assert with_branch["all"] == {**table["all"], "parameters": table["all"]["parameters"] + parameters}


def test_what_is_built_for_counting_is_the_network_of_evaluation():
    model = analyze_model.build(SYNTHETIC)
    assert model.auxiliary is None and "auxiliary" not in analyze_model.count(model, (32, 32))


def test_table_and_json_of_a_command(monkeypatch, capsys):
    arguments = ["--config-file", SYNTHETIC, "--size", "60", "64"]
    printed = run(monkeypatch, capsys, *arguments, "MODEL.WEIGHTS", "nowhere.pth", "MODEL.SST.DOMAINS", "['atr']")
    assert "60 x 64 pixels, padded to 64 x 64; heads: atr\n" in printed
    assert [line.split()[0] for line in printed.splitlines()[3:]] == ["backbone", "encoder", "decoder", "heads", "all"]
    record = json.loads(run(monkeypatch, capsys, *arguments, "--json"))
    assert (record["size"], record["padded_size"]) == ([60, 64], [64, 64])
    assert record["heads"] == ["pascal_person_part", "atr", "cihp"]
    assert all(isinstance(value, int) for part in record["parts"].values() for value in part.values())
    row = next(line.split() for line in printed.splitlines() if line.startswith("backbone"))
    backbone = record["parts"]["backbone"]
    assert row[1:] == [f"{backbone[key] / unit:.2f}" for key, unit in zip(backbone, (1e6, 1e9, 1e6), strict=True)]


def test_mistakes_are_one_sentence(monkeypatch, capsys):
    with pytest.raises(SSTConfigError, match="there is no file"):
        run(monkeypatch, capsys, "--config-file", "nowhere.yaml")
    with pytest.raises(SSTConfigError, match="META_ARCHITECTURE: 'SemanticSegmentor'; 'SST' alone"):
        run(monkeypatch, capsys, "--config-file", SYNTHETIC, "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, capsys, "--config-file", SYNTHETIC, "--size", "0", "5")
    assert end.value.code == 2 and "--size 0 5: height and width in pixels" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_configuration_can_be_analysed(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = analyze_model.count(analyze_model.build(str(path)), (64, 64))
    assert {"backbone", "decoder", "heads", "all"} <= set(table) <= {*analyze_model._PARTS, "auxiliary", "all"}
    assert all(table[part]["macs"] > 0 for part in table if part != "auxiliary")


@pytest.mark.slow
def test_r50_at_512_with_one_head_costs_at_most_73_gmacs():
    model = analyze_model.build(str(ROOT / "configs/single/cihp_R50.yaml"))
    whole = analyze_model.count(model, (512, 512))["all"]
    assert 70e9 < whole["macs"] <= 73e9 and whole["parameters"] == pytest.approx(32.0e6, abs=0.1e6)
