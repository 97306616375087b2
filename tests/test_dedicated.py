"""Dedicated training as a user runs it: step one, step two, a stop in between; a mistake is one sentence."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, tiny_cfg
from test_resume import content, differences, log, train, train_until
from test_train_cli import run

from sst_d2.checkpoint import strip_auxiliary
from sst_d2.config import load_config
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTError

SETS = {"p": "pascal_person_part", "a": "atr", "c": "cihp"}
TRUNK = ("backbone.", "decoder.")


@pytest.fixture
def make_cfg(make_dataset, tmp_path):
    """A function that makes the configuration of a short run on toy data sets."""
    cards = {name: str(make_dataset(name, domain=domain)) for name, domain in SETS.items()}
    register_dataset_cards(list(cards.values()))

    def make(sets, out, **overrides):
        return tiny_cfg(
            domains=[SETS[name] for name in sets],
            **{
                "DATASETS__SST__CARDS": list(cards.values()),
                "DATASETS__TRAIN": tuple(sets),
                "DATASETS__TEST": (),
                "MODEL__SST__PIXEL_DECODER__DROPOUT": 0.3,  # the source draws no random numbers
                "SOLVER__MAX_ITER": 2,
                "SOLVER__STEPS": (),
                "SOLVER__IMS_PER_BATCH": 2,
                "OUTPUT_DIR": str(tmp_path / out),
                **overrides,
            },
        )

    return make


@pytest.fixture
def step_two(make_cfg, tmp_path):
    """Step one, on two data sets, is trained; the configuration of step two, on the third."""
    train(make_cfg("pa", "step1"), resume=False)
    source = {"WEIGHTS": str(tmp_path / "step1" / "model_final.pth"), "DOMAINS": ["pascal_person_part", "atr"]}
    source = {f"MODEL__SST__SOURCE__{key}": value for key, value in source.items()}
    return make_cfg("c", "whole", SOLVER__MAX_ITER=1, **source)


def test_the_target_starts_from_the_sources_trunk_and_all_else_is_fresh(step_two):
    trainer = SSTTrainer(step_two)
    fresh = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.resume_or_load(False)
    source = torch.load(step_two.MODEL.SST.SOURCE.WEIGHTS, weights_only=True)["model"]
    for key, value in trainer.model.state_dict().items():
        assert torch.equal(value, source[key] if key.startswith(TRUNK) else fresh[key]), key
    assert not torch.equal(source["decoder.res2_proj.weight"], fresh["decoder.res2_proj.weight"])


def test_weights_of_ones_own_go_before_the_sources_trunk(step_two, make_cfg, tmp_path, caplog):
    torch.manual_seed(5)
    train(make_cfg("c", "other", MODEL__SST__AUXILIARY__ENABLED=False), resume=False)
    step_two.MODEL.WEIGHTS = str(tmp_path / "other" / "model_final.pth")
    trainer = SSTTrainer(step_two)
    trainer.resume_or_load(False)
    other = torch.load(step_two.MODEL.WEIGHTS, weights_only=True)["model"]
    assert all(torch.equal(trainer.model.state_dict()[key], other[key]) for key in other)
    assert f"starts from MODEL.WEIGHTS ({step_two.MODEL.WEIGHTS}), not from the trunk of its source" in caplog.text


def test_a_source_without_the_branch_is_refused_where_training_starts(step_two):
    step_two.MODEL.SST.AUXILIARY.ENABLED = False
    with pytest.raises(SSTConfigError, match="SOURCE.WEIGHTS: .*ENABLED is False.*To finetune, .*MODEL.WEIGHTS"):
        SSTTrainer(step_two).resume_or_load(False)


def test_a_source_of_another_shape_needs_weights_to_start_from(step_two, make_cfg, tmp_path):
    step_two.MODEL.SST.DECODER.BLOCKS = [1, 1, 1]
    with pytest.raises(SSTCheckpointError, match="step1/model_final.pth: the checkpoint does not fit the network"):
        SSTTrainer(step_two).resume_or_load(False)
    small = {"MODEL__SST__AUXILIARY__ENABLED": False, "MODEL__SST__DECODER__BLOCKS": [1, 1, 1]}
    train(make_cfg("c", "other", **small), resume=False)
    step_two.MODEL.WEIGHTS = str(tmp_path / "other" / "model_final.pth")
    train(step_two, resume=False)


def check_resuming(cfg, folder, cases):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.SST.ACCUMULATE = 8, 3, 2
    cfg.DATASETS.TEST, cfg.TEST.EVAL_PERIOD = ("c",), 6
    train(cfg, resume=False)
    whole = content(cfg), content(cfg, "model_best"), log(cfg)
    assert not any("source" in key for key in whole[0]["model"])
    for iteration, where in cases:
        cfg.OUTPUT_DIR = str(folder / f"{iteration}_{where}")
        train_until(cfg, iteration, where)
        moved = shutil.move(cfg.MODEL.SST.SOURCE.WEIGHTS, folder / f"moved_{iteration}_{where}.pth")
        cfg.MODEL.SST.SOURCE.WEIGHTS = str(moved)
        assert train(cfg).start_iter in (iteration // 3 * 3, iteration + 1)
        assert differences(whole[0], content(cfg)) == differences(whole[1], content(cfg, "model_best")) == []
        assert log(cfg) == whole[2]


def test_a_killed_run_goes_on_exactly_also_where_the_source_was_moved(step_two, tmp_path, caplog):
    check_resuming(step_two, tmp_path, [(4, "step")])
    assert "this is not the run that was interrupted any more" not in caplog.text


@pytest.mark.slow
def test_wherever_in_a_step_a_run_is_killed_it_goes_on_exactly(step_two, tmp_path):
    check_resuming(step_two, tmp_path, [(1, "step"), (5, "checkpoint"), (5, "log"), (6, "step"), (7, "checkpoint")])


def test_a_source_that_was_changed_is_refused_on_resuming(step_two):
    train(step_two, resume=False)
    path = step_two.MODEL.SST.SOURCE.WEIGHTS
    state = torch.load(path, weights_only=True)
    state["model"]["backbone.stem.conv1.weight"] += 1e-3
    torch.save(state, path)
    before = Path(step_two.OUTPUT_DIR, "model_final.pth").read_bytes()
    step_two.SOLVER.MAX_ITER = 2
    with pytest.raises(
        SSTCheckpointError, match=r"whole/model_final.pth: the run .*another source: .* was \w{64}, .* is \w{64}\."
    ):
        train(step_two)
    assert Path(step_two.OUTPUT_DIR, "model_final.pth").read_bytes() == before


@pytest.fixture
def config(make_cfg, tmp_path):
    """A function that writes a configuration file, with paths relative to the temporary folder."""

    def write(sets, name, **overrides):
        cfg = make_cfg(sets, name, **overrides)
        cfg.OUTPUT_DIR = name
        path = tmp_path / f"{name}.yaml"
        path.write_text(cfg.dump())
        return path

    return write


def typed(path, *arguments):
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(path), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=path.parent, timeout=240)


@pytest.mark.slow
def test_both_steps_from_the_command_line(config, tmp_path, monkeypatch):
    first = config("a", "step1", MODEL__SST__AUXILIARY__STRATEGY="none")
    second = config("c", "step2", MODEL__SST__SOURCE__WEIGHTS="step1/model_final.pth", DATASETS__TEST=("c",))
    asked = ["MODEL.SST.SOURCE.DOMAINS", "['atr']"]
    result = typed(second, *asked)
    assert result.returncode == 1 and "Traceback" not in result.stdout + result.stderr
    assert "step1/model_final.pth: cannot be read (No such file or directory); train step one first" in result.stderr
    for result in (typed(first), typed(second, *asked), typed(second, "--resume", *asked, "SOLVER.MAX_ITER", "4")):
        assert result.returncode == 0, result.stderr
    saved = yaml.safe_load((tmp_path / "step2" / "config.yaml").read_text())["MODEL"]["SST"]
    assert saved["SOURCE"]["WEIGHTS"] == str(tmp_path / "step1" / "model_final.pth")
    final = torch.load(tmp_path / "step2" / "model_final.pth", weights_only=True)
    assert final["trainer"]["iteration"] == 3 and len(final["trainer"]["source"]) == 64
    lines = (tmp_path / "step2" / "metrics.json").read_text()
    assert all(f'"{name}"' in lines for name in ("loss_scr_image/atr-cihp", "loss_aux/cihp", "sem_seg/mIoU"))
    # What was trained needs its source no more; to go on it does.
    shutil.rmtree(tmp_path / "step1")
    monkeypatch.chdir(tmp_path)
    run("step2/config.yaml", "--eval-only", "MODEL.WEIGHTS", "step2/model_final.pth")
    with pytest.raises(SSTError, match="train step one first, or check the path"):
        run("step2/config.yaml", "--resume", "SOLVER.MAX_ITER", "5")


def test_step_two_reads_what_step_one_writes():
    loaded = {path: load_config(str(path)) for path in (ROOT / "configs").rglob("*.yaml")}
    writers = {cfg.OUTPUT_DIR: cfg for path, cfg in loaded.items() if not path.name.startswith("Base")}
    seconds = [cfg for path, cfg in loaded.items() if path.name.endswith("_step2.yaml")]
    finetuned = [cfg for path, cfg in loaded.items() if path.name.startswith("finetune")]
    assert len(seconds) == 2 * 6 + 3 and len(finetuned) == 3
    for cfg in seconds:
        source, node = cfg.MODEL.SST.SOURCE, writers[os.path.dirname(cfg.MODEL.SST.SOURCE.WEIGHTS)].MODEL
        assert os.path.basename(source.WEIGHTS) == "model_final.pth" and cfg.MODEL.WEIGHTS == ""
        assert source.DOMAINS == node.SST.DOMAINS and node.RESNETS.DEPTH == cfg.MODEL.RESNETS.DEPTH
        assert node.SST.AUXILIARY.ENABLED and node.SST.SOURCE.WEIGHTS == ""
        assert (node.SST.AUXILIARY.STRATEGY == "none") == (len(source.DOMAINS) == 1)
        assert cfg.MODEL.SST.AUXILIARY.STRATEGY == "full" and set(cfg.MODEL.SST.DOMAINS).isdisjoint(source.DOMAINS)
    for cfg in finetuned:
        node = writers[os.path.dirname(cfg.MODEL.WEIGHTS)].MODEL
        assert node.RESNETS.DEPTH == cfg.MODEL.RESNETS.DEPTH and not cfg.MODEL.SST.AUXILIARY.ENABLED
        assert not node.SST.AUXILIARY.ENABLED and set(cfg.MODEL.SST.DOMAINS).isdisjoint(node.SST.DOMAINS)


MISTAKES = {
    "no weights": (["MODEL.SST.SOURCE.WEIGHTS", ""], "SOURCE.WEIGHTS is empty, and MODEL.SST.SOURCE.DOMAINS asks for"),
    "stripped": (["MODEL.SST.SOURCE.WEIGHTS", "step1/stripped.pth"], "stripped.pth: its MSA and MSE were removed"),
    "the file for prediction": (
        ["MODEL.SST.SOURCE.WEIGHTS", "step1/model_inference.pth"],
        "model_inference.pth: its MSA and MSE were removed",
    ),
    "its own folder": (["OUTPUT_DIR", "step1"], "model_final.pth lies in OUTPUT_DIR; choose another"),
    "other domains": (
        ["MODEL.SST.SOURCE.DOMAINS", "['cihp']"],
        "label domains are pascal_person_part, atr; .*for cihp",
    ),
    "unknown domain": (["MODEL.SST.SOURCE.DOMAINS", "['art']"], "label domains are pascal_person_part, atr; .*for art"),
    "a name alone": (["MODEL.SST.SOURCE.DOMAINS", "cihp"], "MODEL.SST.SOURCE.DOMAINS"),
    "numbers": (["MODEL.SST.SOURCE.DOMAINS", "[7]"], "MODEL.SST.SOURCE.DOMAINS"),
    "unknown pair": (
        ["MODEL.SST.AUXILIARY.STRATEGY", "pairs", "MODEL.SST.AUXILIARY.PAIRS", "[['atr', 'lip']]"],
        "PAIRS: .* none of the pairs that there are: pascal_person_part-cihp; atr-cihp",
    ),
    "no mst": (["MODEL.SST.AUXILIARY.STRATEGY", "none"], "STRATEGY: 'none', and MODEL.SST.SOURCE.WEIGHTS is set"),
    "another format": (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT was RGB in step one and is BGR here"),
}


@pytest.mark.slow
def test_mistakes_are_refused_with_a_sentence(config, make_cfg, tmp_path, monkeypatch):
    train(make_cfg("pa", "step1"), resume=False)
    monkeypatch.chdir(tmp_path)
    source = Path("step1/model_final.pth").read_bytes()
    strip_auxiliary("step1/model_final.pth", "step1/stripped.pth")
    second = config("c", "step2", MODEL__SST__SOURCE__WEIGHTS="step1/model_final.pth")
    for arguments, message in MISTAKES.values():
        asked = (
            []
            if "MODEL.SST.SOURCE.DOMAINS" in arguments
            else ["MODEL.SST.SOURCE.DOMAINS", "['atr', 'pascal_person_part']"]
        )
        with pytest.raises(SSTError, match=message):
            run(second, *arguments, *asked)
    assert not list((tmp_path / "step2").glob("*.pth"))
    assert Path("step1/model_final.pth").read_bytes() == source
    run(second)
