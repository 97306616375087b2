"""The demo: what it trains, the best constant prediction, and the promise that every head keeps or breaks."""

import importlib.util
import sys

import numpy as np
import pytest
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2.config import load_config
from sst_d2.data import register_dataset_card

spec = importlib.util.spec_from_file_location("run_demo", ROOT / "tools/run_demo.py")
run_demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run_demo)


def perfect(name, pixels=1000):
    classes = {"pascal_person_part": 7, "atr": 18, "cihp": 20}[name]
    return np.diag(np.full(classes, pixels))


def test_the_demo_trains_sst_and_predicts_without_it(tmp_path, monkeypatch, capsys):
    commands, built = [], []
    monkeypatch.setenv("DETECTRON2_DATASETS", "the demo names its own")
    monkeypatch.setattr(sys, "argv", ["run_demo.py", "--output", str(tmp_path)])
    monkeypatch.setattr(run_demo, "run", lambda *command: commands.append(command))
    monkeypatch.setattr(run_demo.SSTTrainer, "build_model", lambda cfg: built.append(cfg) or sys.exit())
    with pytest.raises(SystemExit):
        run_demo.main()
    training = commands[-1]
    trained = load_config(training[training.index("--config-file") + 1])
    assert trained.MODEL.SST.AUXILIARY.ENABLED and trained.MODEL.SST.AUXILIARY.STRATEGY == "full"
    assert not built[0].MODEL.SST.AUXILIARY.ENABLED
    assert "SST, universal: one network, 3 label systems" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("ENABLED", "False", "Multi-datasets: one network, 3 label systems, no SST."),
        ("STRATEGY", "none", "MSA and MSE take part"),
        ("STRATEGY", "progressive", "strategy progressive"),
        ("PRESET", "stable", "preset stable"),
    ],
)
def test_the_demo_says_what_it_trains(key, value, sentence):
    cfg = load_config(str(run_demo.CONFIG), [f"MODEL.SST.AUXILIARY.{key}", value])
    assert sentence in run_demo.described(cfg)


@pytest.mark.parametrize("name", ["synthetic_people", "real_photos"])
def test_the_baseline_beside_a_schedule_differs_in_the_branch_alone(name):
    with_sst, baseline = (
        load_config(str(run_demo.CONFIG.parent / f"{file}.yaml")) for file in (name, f"{name}_multi_datasets")
    )
    assert with_sst.MODEL.SST.AUXILIARY.ENABLED and not baseline.MODEL.SST.AUXILIARY.ENABLED
    assert with_sst.OUTPUT_DIR != baseline.OUTPUT_DIR
    with_sst.MODEL.SST.AUXILIARY.ENABLED, with_sst.OUTPUT_DIR = False, baseline.OUTPUT_DIR
    assert with_sst == baseline


def test_the_best_constant_prediction_is_found_by_trying_all():
    confusion = np.array([[6, 0, 0], [1, 2, 0], [0, 0, 1]])  # 6, 3 and 1 pixels of three classes
    assert run_demo.best_constant_miou(confusion) == pytest.approx(100 * 6 / 10 / 3)


def test_the_promise_needs_the_factor_and_the_classes_of_every_head(capsys):
    domains = ("pascal_person_part", "atr", "cihp")
    good = {name: perfect(name) for name in domains}
    assert run_demo.report(good, good)
    background = {name: np.outer(np.ones(len(m)), np.eye(len(m))[0]).astype(int) * 1000 for name, m in good.items()}
    assert not run_demo.report({**good, "cihp": background["cihp"]}, good)
    two_classes = perfect("atr")
    two_classes[3:] = 0
    two_classes[3:, 0] = 10
    assert not run_demo.report({**good, "atr": two_classes}, good)
    printed = capsys.readouterr().out
    assert "best constant" in printed and "untrained" in printed


def test_pictures_show_the_truth_above_the_prediction_of_every_head(make_dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_demo, "PICTURES", 2)
    domains = ["pascal_person_part", "atr"]
    for name in domains:
        register_dataset_card(make_dataset(f"held_{name}", domain=name, name=f"synthetic_heldout_{name}_sem_seg_val"))
    cfg = tiny_cfg(domains=domains)
    run_demo.draw(cfg, build_model(cfg).eval(), tmp_path / "pictures")
    files = sorted((tmp_path / "pictures").iterdir())
    assert [file.name for file in files] == ["people_0.png", "people_1.png"]
    assert Image.open(files[0]).height > Image.open(files[0]).width / 3
    assert str(files[1]) in capsys.readouterr().out
