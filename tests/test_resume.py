"""A run that was stopped, killed or moved goes on as if nothing had happened."""

import json
import multiprocessing
import random
from pathlib import Path

import pytest
import torch
from conftest import tiny_cfg

from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTCheckpointError
from sst_d2.hooks import drop_later_lines


@pytest.fixture
def cfg(make_dataset, tmp_path):
    sets = [("p", "pascal_person_part"), ("a", "atr")]
    cards = [str(make_dataset(name, domain=domain)) for name, domain in sets]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=("p",),
        MODEL__SST__PIXEL_DECODER__DROPOUT=0.3,  # random numbers of torch's own are drawn in every step
        SOLVER__MAX_ITER=26,
        SOLVER__STEPS=(18,),
        SOLVER__IMS_PER_BATCH=2,
        SOLVER__CHECKPOINT_PERIOD=5,
        TEST__EVAL_PERIOD=10,
        OUTPUT_DIR=str(tmp_path / "whole"),
    )


CLOCK = {"time", "data_time", "eta_seconds", "config", "scalars"}


def train(cfg, resume=True):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def train_elsewhere(cfg):
    """In a process that knows no data set yet."""
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    train(cfg)


def content(cfg, name="model_final"):
    return torch.load(Path(cfg.OUTPUT_DIR) / f"{name}.pth", weights_only=True)


def log(cfg):
    """By iteration what does not depend on the clock."""
    lines = [json.loads(line) for line in open(f"{cfg.OUTPUT_DIR}/metrics.json")]
    own = ("loss", "lr", "sem_seg")
    return [
        {key: value for key, value in line.items() if key == "iteration" or any(word in key for word in own)}
        for line in lines
    ]


def differences(first, second, path=""):
    """Where two nested states differ in a bit, but for what depends on the clock."""
    if isinstance(first, torch.Tensor):
        return [] if torch.equal(first, second) else [path]
    if isinstance(first, dict) and first.keys() - CLOCK == second.keys() - CLOCK:
        keys = first.keys() - CLOCK
        return [place for key in keys for place in differences(first[key], second[key], f"{path}.{key}")]
    if isinstance(first, (list, tuple)) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return [place for i, pair in enumerate(pairs) for place in differences(*pair, f"{path}.{i}")]
    return [] if first == second or (first != first and second != second) else [f"{path}: {first} / {second}"]


class Killed(BaseException):
    """Ends a run where it stands, as a kill would; the hooks' ends are left out."""


def train_until(cfg, iteration, where):
    """Train and end without a word: before a step, behind its checkpoint, or behind its evaluation."""
    torch.manual_seed(0)
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(True)
    trainer.after_train = lambda: None

    def end(original):
        def call(*args, **kwargs):
            if where != "step":
                original(*args, **kwargs)
            if trainer.iter == iteration:
                raise Killed
            if where == "step":
                original(*args, **kwargs)

        return call

    if where == "step":
        trainer.run_step = end(trainer.run_step)
    elif where == "checkpoint":
        trainer.checkpointer.save = end(trainer.checkpointer.save)
    else:
        trainer._hooks[-2].after_step = end(trainer._hooks[-2].after_step)
    with pytest.raises(Killed):
        trainer.train()


def check_cases(cfg, folder, cases):
    train(cfg, resume=False)
    whole = content(cfg), content(cfg, "model_best"), log(cfg)
    assert {line["iteration"] for line in whole[2]} >= {19, 25}
    for iteration, where in cases:
        cfg.OUTPUT_DIR = str(folder / f"{iteration}_{where}")
        train_until(cfg, iteration, where)
        assert train(cfg).start_iter in (iteration // 5 * 5, iteration + 1)
        assert differences(whole[0], content(cfg)) == differences(whole[1], content(cfg, "model_best")) == []
        assert log(cfg) == whole[2], (iteration, where)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(cfg, tmp_path):
    check_cases(cfg, tmp_path, [(9, "checkpoint"), (23, "step")])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_wherever_in_a_step_a_run_is_killed_it_goes_on_exactly(cfg, tmp_path, workers):
    cfg.DATALOADER.NUM_WORKERS = workers
    check_cases(cfg, tmp_path, [(13, "step"), (19, "checkpoint"), (19, "log"), (24, "checkpoint"), (25, "checkpoint")])


def test_a_longer_schedule_goes_on_like_one_that_was_long_from_the_start(cfg, tmp_path):
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 7, ()
    train(cfg, resume=False)
    cfg.SOLVER.MAX_ITER = 22
    train(cfg)
    extended = content(cfg), log(cfg)
    cfg.OUTPUT_DIR = str(tmp_path / "other")
    train(cfg, resume=False)
    assert differences(content(cfg), extended[0]) == []
    assert [line for line in extended[1] if line["iteration"] != 6] == log(cfg)  # 6: where the first schedule ended


def test_a_new_run_in_the_same_folder_lays_the_old_one_aside(cfg, caplog):
    cfg.SOLVER.MAX_ITER, out = 1, Path(cfg.OUTPUT_DIR)
    for seed in (0, 1, 2):
        cfg.SEED = seed
        train(cfg, resume=False)
    assert {path.name for path in (out / "previous_run_2").iterdir()} == {
        "metrics.json",
        "model_best.pth",
        "last_checkpoint",
    }
    lines = [(out / name / "metrics.json").read_text() for name in ("previous_run_1", "previous_run_2", "")]
    assert len(set(lines)) == 3 and caplog.text.count("holds an earlier run, and this one starts anew") == 2
    cfg.SEED, cfg.SOLVER.CHECKPOINT_PERIOD, cfg.SOLVER.MAX_ITER = 3, 100, 9
    torch.manual_seed(0)
    killed = SSTTrainer(cfg)
    killed.resume_or_load(False)
    killed.after_train = lambda: None
    killed.run_step = lambda: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        killed.train()
    resumed = SSTTrainer(cfg)
    resumed.resume_or_load(True)  # nothing of the older runs is taken for this one's
    assert resumed.start_iter == 0 and "has no last_checkpoint, so this run starts anew" in caplog.text


def test_resuming_a_finished_run_changes_nothing(cfg, caplog):
    cfg.SOLVER.MAX_ITER = 12
    train(cfg, resume=False)
    before = log(cfg), content(cfg)
    for _ in range(2):
        train(cfg)
    assert log(cfg) == before[0] and differences(content(cfg), before[1]) == []
    cfg.SOLVER.MAX_ITER = 8
    trainer = SSTTrainer(cfg)
    trainer.resume_or_load(True)
    assert "has 12 iterations behind it, and SOLVER.MAX_ITER is 8: nothing is left to train" in caplog.text


def test_a_resumed_run_says_what_has_changed(cfg, caplog):
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 1, ()
    train(cfg, resume=False)
    cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 77, 2, 0.5
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    state = torch.load(path, weights_only=True)
    state["trainer"]["processes"] = 4
    torch.save(state, path)
    SSTTrainer(cfg).resume_or_load(True)
    assert "not the run that was interrupted any more: SEED was 0 and is 77; SOLVER.BASE_LR was" in caplog.text
    assert "the run had 4 processes and now has 1" in caplog.text and "MAX_ITER was" not in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        {"trainer": 5},
        {"trainer": {"hooks": 3}},
        {"trainer": {"iteration": "x"}},
        {"trainer": {"iteration": -50}},
        {"trainer": {"hooks": {"FinishStep": {"scalars": 7}}}},
    ],
)
def test_a_damaged_state_of_training_is_refused_with_the_path(cfg, damage):
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 1, ()
    train(cfg, resume=False)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    state = torch.load(path, weights_only=True)
    trainer = damage["trainer"]
    state["trainer"] = {**state["trainer"], **trainer} if isinstance(trainer, dict) else trainer
    torch.save(state, path)
    with pytest.raises(SSTCheckpointError, match=r"model_final\.pth: the state of training in it is damaged"):
        SSTTrainer(cfg).resume_or_load(True)


def test_an_empty_note_of_the_last_checkpoint_is_named(cfg):
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 1, ()
    train(cfg, resume=False)
    (Path(cfg.OUTPUT_DIR) / "last_checkpoint").write_text("")
    with pytest.raises(SSTCheckpointError, match="last_checkpoint: is empty; write the name of the last whole"):
        SSTTrainer(cfg).resume_or_load(True)


def test_a_log_line_that_was_cut_off_is_dropped(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"note": 1}\n{"iteration": 3}\n{"iteration": 7}\n{"iteration": 9, "loss"')
    assert drop_later_lines(str(path), 8, False) == [-1, 3, 7] and path.read_text().count("\n") == 3
    assert drop_later_lines(str(path), 7, False) == [-1, 3, 7] and path.read_text().count("\n") == 3
    assert drop_later_lines(str(path), 7, True) == [-1, 3] and path.read_text().endswith('{"iteration": 3}\n')
    assert drop_later_lines(str(tmp_path / "none"), 7, True) == []


def test_a_checkpoint_of_another_detectron2_is_refused_by_name(cfg):
    cfg.SOLVER.MAX_ITER, cfg.DATASETS.TEST = 1, ()
    train(cfg, resume=False)
    path = Path(cfg.OUTPUT_DIR) / "model_final.pth"
    state = torch.load(path, weights_only=True)
    state["trainer"]["detectron2"] = "0.4"
    torch.save(state, path)
    with pytest.raises(SSTCheckpointError, match=r"model_final.pth: .* with Detectron2 0\.4, and this is 0\.\d"):
        train(cfg)
    cfg.MODEL.WEIGHTS = str(path)
    train(cfg, resume=False)  # the weights serve


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_twenty_kills_at_random_moments_change_nothing(cfg, tmp_path, workers):
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 60, 2
    train(cfg, resume=False)
    whole = content(cfg), log(cfg)
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = str(tmp_path / "killed"), workers
    moments, kills = random.Random(workers), 0
    # Not forked from this process, which may have threads of PyTorch's that a fork does not survive.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sst_d2.engine"])
    first = context.Process(target=print)
    first.start()
    first.join()
    while True:
        process = context.Process(target=train_elsewhere, args=(cfg,))
        process.start()
        process.join(moments.uniform(0.0, 1.2) if kills < 20 else 300)
        if process.exitcode is None and kills < 20:
            process.kill()
            process.join()
            kills += 1
            checkpoint = Path(cfg.OUTPUT_DIR, "last_checkpoint")
            if checkpoint.exists():  # it names a file that loads
                torch.load(checkpoint.with_name(checkpoint.read_text()), weights_only=True)
        elif kills == 20:
            break
        else:
            cfg.SOLVER.MAX_ITER += 20  # too fast for twenty kills
    assert process.exitcode == 0
    if cfg.SOLVER.MAX_ITER != 60:
        reference = cfg.clone()
        reference.OUTPUT_DIR = str(tmp_path / "longer")
        train(reference, resume=False)
        whole = content(reference), log(reference)
    assert differences(whole[0], content(cfg)) == [] and log(cfg) == whole[1]
