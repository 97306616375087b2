"""The queue: what runs when, what an interruption or a failure leaves, and one command at a time in a folder.

The trainings are small programs of the tests' own; the last test trains.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import reproduce_tables
from reproduction import runner as runner_module
from reproduction.inventory import Inventory
from reproduction.places import Places, ReproductionError, locked, read_json, write_json
from reproduction.records import branch_figures, curve, losses, parameters, record_of
from reproduction.rows import ROWS
from reproduction.runner import Runner, environment
from reproduction.scales import load_scale
from reproduction.settings import Run

TINY = load_scale("tiny")

# Takes the arguments of train_net.py; what it does depends on the row, the folder's name.
PROGRAM = """
import os, sys, time
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
output = options["OUTPUT_DIR"]
row = os.path.basename(os.path.dirname(output))
with open(os.environ["JOURNAL"], "a") as journal:
    journal.write(f"begin {row} {sys.argv[3]} {options.get('MODEL.WEIGHTS')}\\n")
if row == "single_atr":
    print("line one\\n\\x1b[38;5;255mthe reason\\x1b[39m")
    sys.exit(3)
if row in os.environ.get("SLOW", ""):
    open(os.path.join(output, "model_0000399.pth"), "w").close()
    open(os.path.join(output, "model_0000799.pth"), "w").close()
    open(os.path.join(output, "model_best.pth"), "w").close()
    with open(os.path.join(output, "last_checkpoint"), "w") as pointer:
        pointer.write("model_0000799.pth")
    time.sleep(600)
together, until = os.environ.get("TOGETHER", "").split(), time.monotonic() + 60
while row in together and time.monotonic() < until:  # the busiest machine lets them meet
    if all(f"begin {other} " in open(os.environ["JOURNAL"]).read() for other in together):
        break
    time.sleep(0.02)
time.sleep(0.3)
open(os.path.join(output, "model_final.pth"), "w").close()
with open(os.environ["JOURNAL"], "a") as journal:
    journal.write(f"end {row}\\n")
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A function that trains rows with the tests' program; it returns the outcome and what was said."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    monkeypatch.setenv("JOURNAL", str(tmp_path / "journal"))
    monkeypatch.setattr(runner_module, "record_of", lambda run, places: {"minutes": 1.0, "scores": {}, "row": run.row})
    places = Places(tmp_path / "work", tmp_path / "results")

    def train(*rows, parallel=1, deadline=None):
        said = []
        with locked(places.work) as lock:
            runner = Runner(
                places, ("trunk.pth", "digest"), parallel, deadline, lock, said.append, lambda run: 1.0,
                [sys.executable, str(program)],
            )  # fmt: skip
            return runner.train([Run(row, 0, TINY) for row in rows]), "\n".join(said)

    train.places = places
    train.journal = lambda: (tmp_path / "journal").read_text().splitlines()
    return train


def test_what_a_row_needs_is_finished_before_it_begins(queue, monkeypatch):
    monkeypatch.setenv("TOGETHER", "single_cihp multi_datasets")
    outcome, _ = queue("single_cihp", "finetune_100", "multi_datasets", parallel=3)
    lines = [line.split()[:2] for line in queue.journal()]
    assert lines.index(["begin", "finetune_100"]) > lines.index(["end", "single_cihp"])
    assert lines.index(["begin", "multi_datasets"]) < lines.index(["end", "single_cihp"])  # meanwhile
    assert [run.row for run in outcome.finished][-1] == "finetune_100" and len(outcome.finished) == 3
    begun = {line.split()[1]: line.split()[2:] for line in queue.journal() if line.startswith("begin")}
    source = queue.places.weights(Run("single_cihp", 0, TINY))
    assert begun["finetune_100"] == ["--resume", str(source)] and begun["multi_datasets"] == ["--resume", "trunk.pth"]


def test_no_more_trainings_than_asked_for_run_at_a_time(queue):
    queue("single_cihp", "multi_datasets", "universal_full")
    assert [line.split()[0] for line in queue.journal()] == ["begin", "end"] * 3


def test_a_failure_is_told_with_its_last_lines_and_only_what_needs_it_is_skipped(queue, monkeypatch):
    monkeypatch.setitem(ROWS, "finetune_100", ROWS["finetune_100"]._replace(needs="single_atr"))
    outcome, said = queue("single_atr", "finetune_100", "single_cihp")
    assert [[run.row for run in runs] for runs in (outcome.finished, outcome.failed, outcome.skipped)] == [
        ["single_cihp"],
        ["single_atr"],
        ["finetune_100"],
    ]
    assert "single_atr seed 0: FAILED, status 3" in said and "    the reason" in said
    assert "finetune_100 seed 0: skipped" in said
    assert not queue.places.result(Run("single_atr", 0, TINY)).exists()


def test_a_run_without_what_it_should_have_left_has_failed(queue, monkeypatch):
    def nothing(run, places):
        raise ReproductionError("there is no metrics.json")

    monkeypatch.setattr(runner_module, "record_of", nothing)
    outcome, said = queue("single_cihp")
    assert [run.row for run in outcome.failed] == ["single_cihp"] and "no result: there is no metrics.json" in said


def test_the_deadline_ends_trainings_and_keeps_their_last_checkpoint_alone(queue, monkeypatch):
    monkeypatch.setenv("SLOW", "single_cihp")
    start = time.monotonic()
    outcome, said = queue("single_cihp", "multi_datasets", deadline=start + 1.5)
    assert time.monotonic() - start < 20
    assert outcome.stopped == "the time is over (--hours)" and not outcome.finished and not outcome.failed
    assert "single_cihp seed 0: ended; 800 steps are kept" in said
    run = Run("single_cihp", 0, TINY)
    assert not (queue.places.output(run) / "model_0000399.pth").exists()
    inventory = Inventory(TINY, queue.places)
    assert inventory.state(run) == "part" and inventory.minutes(run) == pytest.approx(
        TINY.minutes * (1 - 800 / TINY.steps)
    )
    effort = read_json(queue.places.output(run) / "run.json")
    assert effort["seconds"] > 0.5 and effort["memory_mb"] > 1 and effort["trunk_sha256"] == "digest"
    outcome, said = queue("single_cihp", deadline=time.monotonic() + 1)
    assert "goes on after step 800" in said
    assert read_json(queue.places.output(run) / "run.json")["seconds"] > effort["seconds"]  # the parts add up


def test_a_signal_ends_trainings_that_do_not_listen_too(queue, monkeypatch, tmp_path):
    monkeypatch.setenv("SLOW", "single_cihp")
    monkeypatch.setattr(runner_module, "PATIENCE", 0.5)
    deaf = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    (tmp_path / "program.py").write_text(deaf + PROGRAM)
    threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
    outcome, said = queue("single_cihp")
    assert outcome.signal == signal.SIGTERM and outcome.stopped == "ended by SIGTERM" and "ended; 800" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # as it was


def test_a_finished_run_keeps_its_final_weights_alone(queue):
    run = Run("single_cihp", 0, TINY)
    queue.places.output(run).mkdir(parents=True)
    for name in ("model_0000399.pth", "model_best.pth", "model_inference.pth"):
        (queue.places.output(run) / name).touch()
    queue("single_cihp")
    assert [path.name for path in queue.places.output(run).glob("*.pth")] == ["model_final.pth"]
    assert read_json(queue.places.result(run))["row"] == "single_cihp"


def leave_checkpoint(places, run):
    (places.output(run) / "last_checkpoint").write_text("model_0000399.pth")
    (places.output(run) / "model_0000399.pth").touch()


def settings(run):
    return {"overrides": json.loads(json.dumps(runner_module.values(run))), "trunk_sha256": "digest", "minutes": 3.0}


def test_finished_runs_are_not_repeated_but_where_their_weights_are_needed_and_gone(tmp_path):
    places = Places(tmp_path / "work", tmp_path / "results")
    inventory = Inventory(TINY, places)
    runs = inventory.runs(["multi_datasets", "sst_50"], [0])
    assert [run.row for run in runs] == ["multi_datasets", "step1_cihp", "sst_50"]
    assert inventory.unfinished(runs, "digest") == runs
    for run in runs[:2]:
        write_json(places.result(run), settings(run))
    assert inventory.unfinished(runs, "digest") == runs[1:]  # sst_50 learns from step1_cihp
    places.output(runs[1]).mkdir(parents=True)
    places.weights(runs[1]).touch()
    assert inventory.unfinished(runs, "digest") == runs[2:]
    assert inventory.minutes(runs[2]) == 3.0
    write_json(places.result(runs[2]), settings(runs[2]))
    assert inventory.unfinished(runs, "digest") == []


def test_a_run_whose_checkpoint_is_gone_begins_anew(queue):
    run = Run("single_cihp", 0, TINY)
    queue.places.output(run).mkdir(parents=True)
    pointer = queue.places.output(run) / "last_checkpoint"
    pointer.write_text("model_final.pth")
    assert Inventory(TINY, queue.places).state(run) == "missing"
    outcome, said = queue("single_cihp")
    assert outcome.finished == [run] and "goes on" not in said and not pointer.exists()


def test_what_was_made_with_other_settings_or_from_another_start_is_refused(tmp_path):
    places = Places(tmp_path / "work", tmp_path / "results")
    run = Run("multi_datasets", 0, TINY)
    record = settings(run)
    write_json(places.result(run), {**record, "overrides": {**record["overrides"], "SOLVER.MAX_ITER": 17}})
    with pytest.raises(ReproductionError, match=rf"made with SOLVER.MAX_ITER 17, and now it is {TINY.steps}"):
        Inventory(TINY, places).unfinished([run], "digest")
    write_json(places.result(run), record)
    with pytest.raises(ReproductionError, match="was digest, and is other now"):
        Inventory(TINY, places).unfinished([run], "other")
    places.result(run).unlink()
    places.output(run).mkdir(parents=True)
    leave_checkpoint(places, run)
    write_json(places.output(run) / "run.json", record)
    with pytest.raises(ReproductionError, match="another start"):
        Inventory(TINY, places).unfinished([run], "other")


def test_one_command_at_a_time_works_in_a_folder_and_a_dead_one_leaves_it_free(tmp_path):
    code = f"""
        import fcntl, os, time
        lock = open({str(tmp_path / "lock")!r}, "w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(f"{{os.getpid()}}\\n"); lock.flush()
        print("locked", flush=True); time.sleep(600)
    """
    other = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ReproductionError, match=f"process {other.pid}, or a training"), locked(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a system call of Linux")
def test_trainings_end_with_a_command_that_is_killed(tmp_path):
    code = f"""
        import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
        from pathlib import Path
        from reproduction.places import Places, locked
        from reproduction.runner import Runner
        from reproduction.settings import Run, ROOT
        from reproduction.scales import load_scale
        places = Places(Path({str(tmp_path / "work")!r}), Path({str(tmp_path)!r}))
        program = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        with locked(places.work) as lock:
            runner = Runner(places, ("", ""), 1, None, lock, print, lambda run: 1.0, [sys.executable, "-c", program])
            runner.train([Run("single_cihp", 0, load_scale("tiny"))])
    """
    command = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])
    console = tmp_path / "work/runs/single_cihp/seed0/console.log"
    try:
        limit = time.monotonic() + 60
        while not (console.is_file() and console.read_text().splitlines()[-1:][0].isdigit()):
            assert time.monotonic() < limit and command.poll() is None
            time.sleep(0.1)
    finally:
        command.kill()
        command.wait()
    limit = time.monotonic() + 20
    while True:  # the lock is free when the training, which holds it too, has ended
        try:
            with locked(tmp_path / "work"):
                return
        except ReproductionError:
            assert time.monotonic() < limit
            time.sleep(0.1)


def test_a_training_reads_the_scales_data_on_the_scales_threads(tmp_path):
    places = Places(tmp_path, tmp_path)
    tiny = environment(Run("single_cihp", 0, TINY), places, {"PYTHONPATH": "/own", "DETECTRON2_DATASETS": "/real"})
    assert tiny["OMP_NUM_THREADS"] == "1" and tiny["DETECTRON2_DATASETS"] == str(tmp_path / "datasets")
    assert tiny["PYTHONPATH"] == f"{ROOT}{os.pathsep}/own"
    paper = environment(Run("single_cihp", 0, load_scale("paper")), places, {"DETECTRON2_DATASETS": "/real"})
    assert paper["DETECTRON2_DATASETS"] == "/real" and "OMP_NUM_THREADS" not in paper


def test_a_curve_has_the_steps_behind_each_evaluation():
    lines = [
        {"iteration": 19, "total_loss": 9.0, "a/sem_seg/mIoU": 1.0, "b/sem_seg/mIoU": 2.0},
        {"iteration": 39, "total_loss": 8.0},
        {"iteration": 40, "a/sem_seg/mIoU": 3.0, "b/sem_seg/mIoU": 4.0, "a/sem_seg_TTA/mIoU": 9.0},
    ]
    assert curve(lines, ["a", "b"], 40) == [[20, {"a": 1.0, "b": 2.0}], [40, {"a": 3.0, "b": 4.0}]]
    assert curve([{"iteration": 39, "sem_seg/mIoU": 5.0}], ["a"], 40) == [[40, {"a": 5.0}]]


def test_losses_are_ten_evenly_spread_sums_over_domains():
    lines = [
        {
            "iteration": 20 * n + 19,
            "total_loss": 0.0,
            "loss_seg/atr": float(n),
            "loss_seg/cihp": 1.0,
            "loss_aux/atr": 2.0,
        }
        for n in range(40)
    ]
    points = losses([*lines, {"iteration": 800, "a/sem_seg/mIoU": 1.0}])
    assert [step for step, _ in points] == [80 * n for n in range(1, 11)]
    assert points[0][1] == {"total_loss": 0.0, "loss_seg": 3.0 + 1.0, "loss_aux": 2.0}
    assert [step for step, _ in losses(lines[:3])] == [20, 40, 60]


def test_figures_of_the_branch_are_kept_by_step():
    lines = [
        {"iteration": 19, "total_loss": 2.0},
        {"iteration": 39, "sst/cosine_x0/atr": 0.1, "sst/gradient/loss_seg": 4.0, "lr": 1.0},
        {"iteration": 79, "sst/cosine_x0/atr": 0.20004, "sst/alignment/loss_aux": -0.5},
    ]
    last = {"sst/cosine_x0/atr": 0.2, "sst/alignment/loss_aux": -0.5}
    assert branch_figures(lines) == [[40, {"sst/cosine_x0/atr": 0.1, "sst/gradient/loss_seg": 4.0}], [80, last]]
    assert branch_figures(lines[:1]) == []


def test_parameters_of_the_branch_are_told_apart(tmp_path):
    network = {"backbone.a": torch.zeros(3, 4), "auxiliary.b": torch.zeros(5)}
    torch.save({"model": network, "trainer": {"iteration": 3}}, tmp_path / "model.pth")
    assert parameters(tmp_path / "model.pth") == {"all": 17, "branch": 5}


@pytest.mark.parametrize("augmented", [False, True])
def test_a_record_holds_what_counts_and_no_path(tmp_path, augmented):
    scale = dataclasses.replace(TINY, test_time_augmentation=augmented)
    run, places = Run("single_atr", 2, scale), Places(tmp_path / "work", tmp_path / "results")
    output = places.output(run)
    output.mkdir(parents=True)
    metrics = {"mIoU": 41.23456, "mACC": 50.0, "pACC": None, "IoU-hat": 1.0, "IoU-bag": None}
    for folder, miou in (("inference", 41.23456), ("inference_TTA", 43.0)):
        for name in ("synthetic_atr_sem_seg_val", "synthetic_heldout_atr_sem_seg_val"):
            document = {
                "label_domain": "atr",
                "images": 3,
                "classes": ["hat", "bag"],
                "confusion_matrix": [[1, 2], [3, 4]],
            }
            write_json(
                output / folder / name / "sem_seg_evaluation.json", {**document, "sem_seg": {**metrics, "mIoU": miou}}
            )
    lines = [{"iteration": n, "total_loss": 3.0, "time": time} for n, time in ((19, 0.2), (39, 0.9), (59, 0.3))]
    (output / "metrics.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (output / "config.yaml").write_text("MODEL: {DEVICE: cpu}\n")
    (output / "log.txt").write_text("… max_mem: 20M\n… max_mem: 31M\n")
    torch.save({"model": {"heads.w": torch.zeros(2)}}, places.weights(run))
    begun = {**runner_module.begun(run, "digest"), "seconds": 90.0, "processor_seconds": 60.0, "memory_mb": 7.0}
    write_json(output / "run.json", begun)
    record = record_of(run, places)
    scores = record["scores"]["synthetic_atr_sem_seg_val"]
    assert scores == {
        **{"label_domain": "atr", "images": 3, "mIoU": 43.0 if augmented else 41.2346, "mACC": 50.0, "pACC": None},
        "IoU": {"hat": 1.0, "bag": None},
    }
    assert (record["steps"], record["seconds_per_step"], record["minutes"], record["processor_minutes"]) == (
        60,
        0.3,
        1.5,
        1,
    )
    assert (record["gpu_memory_mb"], record["device"], record["trunk_sha256"]) == (31, "cpu", "digest")
    assert record["config"] == "single/atr_R50.yaml" and record["overrides"]["SEED"] == 2
    assert set(record["versions"]) == {"sst_d2", "commit", "torch", "detectron2"}
    write_json(places.result(run), record)
    text = places.result(run).read_text()
    assert str(tmp_path) not in text and "OUTPUT_DIR" not in text and len(text) < 4000
    (output / "metrics.json").unlink()
    with pytest.raises(ReproductionError, match="metrics.json: cannot be read"):
        record_of(run, places)


@pytest.mark.parametrize(
    "arguments", [[], ["run", "--parallel", "0"], ["run", "--seeds", "-1"], ["report", "--rows", "core"], ["train"]]
)
def test_wrong_arguments_are_refused(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        reproduce_tables.main(arguments)
    assert end.value.code == 2 and "usage:" in capsys.readouterr().err


def test_the_list_tells_the_state_and_the_time_of_every_run(tmp_path, capsys):
    places = Places(tmp_path / "work/tiny", tmp_path / "results/tiny")
    done, part = Run("multi_datasets", 0, TINY), Run("multi_datasets", 1, TINY)
    write_json(places.result(done), {**settings(done), "minutes": 20.0})
    places.output(part).mkdir(parents=True)
    leave_checkpoint(places, part)
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert reproduce_tables.main(["list", "--rows", "multi_datasets", "--seeds", "0", "1", "2", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    rest = 20 * (1 - 400 / TINY.steps)
    assert [line.split(None, 3)[3] for line in lines[:3]] == [
        "done",
        f"part, 400 of {TINY.steps} steps, about {rest:.0f} min",
        "missing, about 20 min",
    ]
    assert lines[3].startswith(f"about {(rest + 20) / TINY.parallel:.0f} min are left")


def small_scale(folder):
    """A scale of few steps on few small people, in a file."""
    record = yaml.safe_load((ROOT / "benchmarks/reproduction/scales/tiny.yaml").read_text())
    record["overrides"]["INPUT"]["SST"] = {"CROP_SIZE": [32, 32]}
    record["overrides"]["SOLVER"].update({"CHECKPOINT_PERIOD": 10, "IMS_PER_BATCH": 2})
    record["overrides"]["MODEL"] = {"RESNETS": {"NORM": "GN"}}
    record.update({"steps": 40, "evaluation_period": 20, "trunk": None})
    record["people"] = {"size": [48], "train": [4, 4, 4], "val": [2], "heldout": [2], "seed": [0]}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


@pytest.mark.slow
def test_two_rows_train_one_from_the_other_through_an_interruption_and_are_reported(tmp_path, capfd):
    folders = ["--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    shared = ["--scale", str(small_scale(tmp_path)), *folders]
    script = [sys.executable, str(ROOT / "benchmarks/reproduce_tables.py")]
    command = [*script, "run", "--rows", "sst_50", "--seeds", "3", *shared]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "work/small/runs/step1_cihp/seed3/last_checkpoint"
    while not checkpoint.is_file() and first.poll() is None:
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    said = first.communicate(timeout=60)[0]
    assert first.returncode == 128 + signal.SIGINT and "2 left: ended by SIGINT" in said

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stdout
    assert "step1_cihp seed 3: started, goes on after step" in again.stdout and "2 finished" in again.stdout
    record = read_json(tmp_path / "results/small/sst_50/seed3.json")
    assert list(record["scores"]) == [f"synthetic_{held}pascal_person_part_sem_seg_val" for held in ("", "heldout_")]
    assert record["steps"] == 40 and [step for step, _ in record["curve"]] == [20, 40]
    assert {"loss_seg", "loss_aux", "loss_scr_image"} <= set(record["losses"][-1][1])
    assert "sst/cosine_x3/pascal_person_part" in record["branch"][-1][1] and record["parameters"]["branch"] > 0
    assert record["seconds_per_step"] > 0 and record["memory_mb"] > 100
    assert str(tmp_path) not in json.dumps(record) and str(ROOT) not in json.dumps(record)
    subset = json.loads((tmp_path / "work/small/runs/sst_50/seed3/train_subset.json").read_text())
    assert len(subset["images"]["synthetic_pascal_person_part_sem_seg_train"]) == 2  # of 4

    capfd.readouterr()
    assert reproduce_tables.main(command[2:]) == 0
    said = capfd.readouterr().out
    assert "2 of 2 runs are done" in said and "started" not in said
    counted = {"+".join(row.domains): {"gmacs": 1.0} for row in ROWS.values()}  # has a test of its own
    write_json(tmp_path / "results/small/networks.json", {"size": [48, 48], "networks": counted})
    assert reproduce_tables.main(["report", *shared]) == 0
    tables = json.loads((tmp_path / "results/small/tables.json").read_text())
    assert tables["runs"] == {"step1_cihp": [3], "sst_50": [3]}
