"""`BranchLog` in whole trainings: they do not notice it, and a resumed run logs the same."""

import json
import logging

import pytest
import torch
from conftest import tiny_cfg
from test_resume import content, differences, train, train_until

from sst_d2.branch_log import BranchLog
from sst_d2.config import changed_values
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.launch import launch


@pytest.fixture
def cfg(make_dataset, tmp_path):
    cards = [str(make_dataset(name, domain=domain)) for name, domain in (("p", "pascal_person_part"), ("a", "atr"))]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=("p",),
        MODEL__SST__PIXEL_DECODER__DROPOUT=0.3,
        MODEL__SST__AUXILIARY__LOG_GRADIENTS=True,
        SOLVER__STEPS=(),
        SOLVER__MAX_ITER=6,
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__CHECKPOINT_PERIOD=5,
        TEST__EVAL_PERIOD=2,
        OUTPUT_DIR=str(tmp_path / "whole"),
    )


def log(cfg):
    """By iteration all figures that do not depend on the clock."""
    lines = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    clock = ("time", "eta_seconds")
    return [{key: value for key, value in line.items() if not key.endswith(clock)} for line in lines]


def test_figures_and_losses_stand_in_the_log_and_in_tensorboard(cfg, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        train(cfg)
    pair, domains = "pascal_person_part-atr", ["pascal_person_part", "atr"]
    losses = [f"{kind}/{name}" for kind in ("loss_seg", "loss_aux") for name in domains]
    losses += [f"loss_scr_dataset/{pair}", f"loss_scr_image/{pair}"]
    figures = [f"sst/{kind}/{name}" for kind in ("cosine_x0", "cosine_x3", "miou_aux") for name in domains]
    figures += [f"sst/scr_image_present/{pair}", *(f"sst/gradient/{name}" for name in losses)]
    figures += ["sst/alignment/loss_aux", "sst/alignment/loss_scr_image"]
    last = {key: value for line in log(cfg) if line["iteration"] == 5 for key, value in line.items()}
    assert {*losses, *figures} <= set(last)
    lines = [record.getMessage() for record in caplog.records if "mean cosine of X_0" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == [f"SST, iteration {n}" for n in (1, 3, 5)]
    assert "of X_3: pascal_person_part 0." in lines[0] and f"where categories occur: {pair} " in lines[0]
    # This iteration's own, no median.
    assert f"loss_aux/atr {last['sst/gradient/loss_aux/atr']:.2g}" in lines[2].split("gradient on F")[1]
    written = b"".join(path.read_bytes() for path in (tmp_path / "whole").glob("events.out.tfevents*"))
    assert all(name.encode() in written for name in figures)


def test_training_is_the_same_with_and_without_the_hook_bit_by_bit(cfg, tmp_path, monkeypatch):
    train(cfg)
    watched, generator = content(cfg), torch.get_rng_state()
    assert any(key.startswith("sst/") for line in log(cfg) for key in line)
    cfg.OUTPUT_DIR = str(tmp_path / "unwatched")
    monkeypatch.setattr(BranchLog, "before_step", lambda hook: None)
    train(cfg)
    assert not any(key.startswith("sst/") for line in log(cfg) for key in line)
    unwatched = content(cfg)
    for key in ("model", "optimizer"):
        state = [run["trainer"]["_trainer"][key] if key == "optimizer" else run[key] for run in (watched, unwatched)]
        assert differences(*state) == []
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(("period", "expected"), [(2, [1, 3, 5]), (4, [3, 5]), (0, [5])])
@pytest.mark.parametrize("parts", [1, 2])
def test_other_iterations_and_other_parts_go_unseen(cfg, period, expected, parts, monkeypatch):
    cfg.TEST.EVAL_PERIOD, cfg.DATASETS.TEST, cfg.SOLVER.SST.ACCUMULATE = period, (), parts
    seen, hooks = [], []
    original = BranchLog._see_terms
    monkeypatch.setattr(
        BranchLog, "_see_terms", lambda hook, *rest: (seen.append(hook.trainer.iter), original(hook, *rest))[0]
    )
    torch.manual_seed(0)
    trainer = SSTTrainer(cfg)
    network = trainer.model
    step = trainer.run_step

    def count():
        hooks.append(sum(len(m._forward_hooks) for m in network.modules()) > 0)
        step()

    trainer.run_step = count
    trainer.train()
    assert seen == expected == [iteration for iteration, any_hooks in enumerate(hooks) if any_hooks]
    assert not any(module._forward_hooks for module in network.modules())


def test_a_failing_step_leaves_no_hooks_behind(cfg):
    trainer = SSTTrainer(cfg)
    trainer.run_step = lambda: 1 / 0 if trainer.iter == 1 else None
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_without_the_branch_there_is_no_hook(cfg):
    assert any(isinstance(hook, BranchLog) for hook in SSTTrainer(cfg)._hooks)
    cfg.MODEL.SST.AUXILIARY.ENABLED = False
    assert not any(isinstance(hook, BranchLog) for hook in SSTTrainer(cfg)._hooks)


def check_resumed(cfg, tmp_path, length, cases):
    cfg.SOLVER.MAX_ITER, cfg.TEST.EVAL_PERIOD = length, 10
    train(cfg)
    whole = content(cfg), log(cfg)
    assert {line["iteration"] for line in whole[1] if "sst/cosine_x3/atr" in line} == {19, length - 1}
    for iteration, where in cases:
        cfg.OUTPUT_DIR = str(tmp_path / f"{iteration}_{where}")
        train_until(cfg, iteration, where)
        train(cfg)
        assert log(cfg) == whole[1], (iteration, where)
        assert differences(whole[0], content(cfg)) == []


def test_a_resumed_run_logs_the_same_figures(cfg, tmp_path):
    check_resumed(cfg, tmp_path, 21, [(19, "checkpoint")])


@pytest.mark.slow
def test_wherever_a_run_is_killed_it_logs_the_same_figures(cfg, tmp_path):
    cases = [(9, "checkpoint"), (13, "step"), (19, "log"), (23, "step"), (25, "checkpoint")]
    check_resumed(cfg, tmp_path, 26, cases)


def test_asking_for_gradients_is_no_change_of_the_run(cfg):
    saved = cfg.dump()
    cfg.MODEL.SST.AUXILIARY.LOG_GRADIENTS = False
    assert changed_values(saved, cfg) == []


def test_in_dedicated_training_the_figures_are_the_targets_and_the_pairs(cfg, tmp_path):
    cfg.MODEL.SST.DOMAINS, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ["atr"], ("a",), ()
    cfg.MODEL.SST.AUXILIARY.STRATEGY, cfg.SOLVER.MAX_ITER = "none", 1
    train(cfg)
    assert not any("scr" in key for line in log(cfg) for key in line)
    cfg.MODEL.SST.SOURCE.WEIGHTS, cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/model_final.pth", str(tmp_path / "second")
    cfg.MODEL.SST.DOMAINS, cfg.DATASETS.TRAIN = ["pascal_person_part"], ("p",)
    cfg.MODEL.SST.AUXILIARY.STRATEGY, cfg.MODEL.SST.AUXILIARY.LOG_GRADIENTS = "full", False
    train(cfg)
    target = [f"sst/{kind}/pascal_person_part" for kind in ("cosine_x0", "cosine_x3", "miou_aux")]
    found = [key for line in log(cfg) for key in line if key.startswith("sst/")]
    assert sorted(found) == sorted([*target, "sst/scr_image_present/atr-pascal_person_part"])


def train_in_two_processes(folder):
    torch.set_num_threads(1)
    cards = [f"{folder}/{name}/card.yaml" for name in ("p", "a")]
    register_dataset_cards(cards)
    for out, hooked in (("watched", True), ("unwatched", False)):
        cfg = tiny_cfg(
            domains=["pascal_person_part", "atr"],
            DATASETS__SST__CARDS=cards,
            DATASETS__TRAIN=("p", "a"),
            MODEL__SST__AUXILIARY__LOG_GRADIENTS=True,
            SOLVER__STEPS=(),
            SOLVER__MAX_ITER=3,
            SOLVER__IMS_PER_BATCH=4,
            TEST__EVAL_PERIOD=1,
            OUTPUT_DIR=f"{folder}/{out}",
        )
        torch.manual_seed(0)
        trainer = SSTTrainer(cfg)
        if not hooked:
            trainer._hooks = [hook for hook in trainer._hooks if not isinstance(hook, BranchLog)]
        trainer.train()


@pytest.mark.slow
def test_two_processes_train_the_same_and_the_first_logs(make_dataset, tmp_path):
    for name, domain in (("p", "pascal_person_part"), ("a", "atr")):
        make_dataset(name, domain=domain)
    launch(train_in_two_processes, 2, args=(str(tmp_path),))
    outs = [tmp_path / out / "model_final.pth" for out in ("watched", "unwatched")]
    watched, unwatched = (torch.load(path, weights_only=True)["model"] for path in outs)
    assert differences(watched, unwatched) == []
    names = {key for line in open(tmp_path / "watched" / "metrics.json") for key in json.loads(line)}
    assert {"sst/cosine_x3/atr", "sst/gradient/loss_seg/atr", "sst/scr_image_present/pascal_person_part-atr"} <= names
    assert "sst/" not in (tmp_path / "unwatched" / "metrics.json").read_text()
