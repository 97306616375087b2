"""`train_net.py` as a user types it: train, resume, evaluate, override; a mistake is one sentence, no traceback."""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

from sst_d2.errors import SSTError
from sst_d2.run_setup import argument_parser


@pytest.fixture
def config(make_dataset, tmp_path):
    """A configuration file of the smallest network on two small data sets."""
    cards = [str(make_dataset(name, domain=domain)) for name, domain in (("p", "pascal_person_part"), ("a", "atr"))]
    record = {
        "_BASE_": str(ROOT / "configs/quick_schedules/Base-tiny.yaml"),
        "MODEL": {
            "DEVICE": "cpu",
            "RESNETS": {"NORM": "GN"},
            "SST": {
                "DOMAINS": ["pascal_person_part", "atr"],
                "DECODER": {"DIM": 32, "HEADS": 2, "BLOCKS": [1, 1, 1]},
                "PIXEL_DECODER": {"LAYERS": 1},
            },
        },
        "DATASETS": {"SST": {"CARDS": cards}, "TRAIN": ["p", "a"], "TEST": ["p", "a"]},
        "INPUT": {"SST": {"CROP_SIZE": [32, 32]}},
        "DATALOADER": {"NUM_WORKERS": 0},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": []},
        "OUTPUT_DIR": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(record))
    return path


def run(config, *arguments):
    """`main` of train_net.py in this process."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "train_net.py")
    train_net = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train_net)
    train_net.main(argument_parser().parse_args(["--config-file", str(config), *arguments]))


def typed(config, *arguments, **environment):
    """The command in a process of its own."""
    command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(config), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=600)


def test_train_resume_and_evaluate(config, tmp_path, capfd):
    run(config)
    out = tmp_path / "out"
    written = {"model_final.pth", "model_inference.pth", "last_checkpoint", "config.yaml", "metrics.json", "log.txt"}
    assert written <= set(os.listdir(out))
    assert "running on the CPU (MODEL.DEVICE cpu)" in (out / "log.txt").read_text()
    run(config, "--resume", "SOLVER.MAX_ITER", "4")
    assert torch.load(out / "model_final.pth", weights_only=True)["trainer"]["iteration"] == 3
    capfd.readouterr()
    run(config, "--eval-only", "MODEL.WEIGHTS", str(out / "model_inference.pth"))
    run(config, "--eval-only", "--resume")
    printed = capfd.readouterr().out
    assert "upper-clothes" in printed and "lower-leg" in printed and "mIoU" in printed
    assert (out / "inference" / "a" / "sem_seg_evaluation.json").is_file()


def test_the_saved_configuration_repeats_the_run(config, tmp_path):
    run(config)
    run(tmp_path / "out" / "config.yaml", "OUTPUT_DIR", str(tmp_path / "again"))
    first, second = (torch.load(tmp_path / d / "model_final.pth", weights_only=True)["model"] for d in ("out", "again"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_schedule_in_epochs_is_turned_into_iterations(config, tmp_path):
    run(config, "SOLVER.SST.MAX_EPOCHS", "1", "DATASETS.TEST", "()")
    assert torch.load(tmp_path / "out" / "model_final.pth", weights_only=True)["trainer"]["iteration"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MODEL.SST.DOMAIN", "[]"], "did you mean MODEL.SST.DOMAINS"),
        (["DATASETS.TRAIN", "('nowhere',)"], "data set 'nowhere' is not registered"),
        (["DATASETS.SST.CARDS", "['none.yaml']"], "no file matches .*none.yaml"),
        (
            ["DATASETS.TRAIN", "('cihp_sem_seg_train',)", "MODEL.SST.DOMAINS", "['cihp', 'atr', 'pascal_person_part']"],
            "list of ids",
        ),
        (["SOLVER.IMS_PER_BATCH", "0", "SOLVER.SST.MAX_EPOCHS", "2"], "SOLVER.IMS_PER_BATCH"),
        (
            ["DATASETS.TEST", "('cihp_sem_seg_val',)", "MODEL.SST.DOMAINS", "['cihp', 'atr', 'pascal_person_part']"],
            "list of ids",
        ),
        (["MODEL.WEIGHTS", "none.pth"], "none.pth: there is no such file"),
        (["--eval-only"], "MODEL.WEIGHTS is empty"),
        (["--eval-only", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["SOLVER.AMP.ENABLED", "True"], "needs a GPU"),
        (["MODEL.META_ARCHITECTURE", "Nothing"], "Nothing"),
        (["MODEL.BACKBONE.NAME", "Nothing"], "Nothing"),
    ],
)
def test_mistakes_are_refused_with_a_sentence(config, arguments, message):
    with pytest.raises(SSTError, match=message):
        run(config, *arguments)


def test_a_mistake_prints_one_sentence_and_ends_with_1(config, tmp_path):
    result = typed(config, "SOLVER.IMS_PER_BATCHES", "4")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert (
        result.stderr.strip().splitlines()[-1].startswith("error: ")
        and "did you mean SOLVER.IMS_PER_BATCH " in result.stderr
    )
    assert not (tmp_path / "out").exists()


def test_a_label_out_of_range_in_training_is_one_sentence_that_names_the_file(config, tmp_path):
    bad = tmp_path / "a" / "labels" / "a_1.png"
    Image.new("L", (48, 40), 77).save(bad)
    result = typed(config, "SOLVER.MAX_ITER", "20")
    assert result.returncode == 1 and "Traceback" not in result.stderr + result.stdout
    assert (
        f"error: {bad}: the ids [77] do not belong to label domain 'atr'; allowed are 0 to 17 and 255" in result.stderr
    )


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one(config, tmp_path):
    (tmp_path / "a" / "ids.txt").write_text("a_0\na_1\na_2\n")  # an odd number for two processes
    losses, scores = [], []
    for count in ("1", "2"):
        out = ["--num-gpus", count, "OUTPUT_DIR", str(tmp_path / count)]
        # Pairs of images form within a process: with two of them, there are none.
        short = ["SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()", "MODEL.SST.AUXILIARY.IMAGE_LEVEL", "0.0"]
        assert typed(config, *out, *short).returncode == 0
        metrics = json.loads((tmp_path / count / "metrics.json").read_text().splitlines()[-1])
        losses.append([value for name, value in metrics.items() if "loss" in name])
        result = typed(config, "--eval-only", *out, "MODEL.WEIGHTS", str(tmp_path / "1" / "model_final.pth"))
        assert result.returncode == 0, result.stderr
        scores.append((tmp_path / count / "inference/a/sem_seg_evaluation.json").read_text())
    assert len(losses[0]) == 6 and losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert scores[0] == scores[1] and json.loads(scores[0])["images"] == 3


@pytest.mark.parametrize("missing", ["detectron2", "cv2"])
def test_what_cannot_be_imported_is_said_with_its_remedy(config, tmp_path, missing):
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / f"{missing}.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    result = typed(config, "SOLVER.NOTHING", "1", PYTHONPATH=f"{tmp_path / 'stub'}{os.pathsep}{ROOT}")
    remedy = {"detectron2": "tools/install_detectron2.py", "cv2": "opencv-python-headless"}[missing]
    assert remedy in result.stderr and result.returncode == 1
    assert missing == "detectron2" or result.stderr.strip().splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_a_mistake_in_several_processes_ends_all_of_them(config, tmp_path):
    Image.new("L", (48, 40), 77).save(tmp_path / "a" / "labels" / "a_0.png")
    result = typed(config, "--num-gpus", "2", "SOLVER.MAX_ITER", "20")
    assert result.returncode == 1 and result.stderr.count("error: ") == 1 and "the ids [77]" in result.stderr
    assert "Traceback" not in result.stdout


@pytest.mark.slow
def test_real_photos_train_in_three_label_domains(real_data, tmp_path):
    config = ROOT / "configs/quick_schedules/real_photos.yaml"
    short = ["SOLVER.MAX_ITER", "160", "SOLVER.STEPS", "()", "DATASETS.TEST", "('fashionista7_sem_seg_test',)"]
    result = typed(config, *short, "OUTPUT_DIR", str(tmp_path / "out"), SST_REAL_DATA=str(real_data))
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.json").read_text().splitlines()]
    last = [line for line in lines if "total_loss" in line][-1]
    guessing = math.log(7 * 14 * 59)
    for kind, weight in (("loss_seg", 10), ("loss_aux", 1)):
        assert sum(value for name, value in last.items() if name.startswith(kind)) < weight * guessing / 2
    assert "tshirt" in result.stdout
