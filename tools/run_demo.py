#!/usr/bin/env python
"""The project in a few minutes: synthetic people, a short SST training in three label domains, scores and pictures.

    python tools/run_demo.py [--output output/demo] [KEY VALUE …]

`make demo` runs it. A second call trains no second time. KEY VALUE pairs change the training's configuration: with
another --output and MODEL.SST.AUXILIARY.ENABLED False the same people are learnt without SST.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import CN, inference_config, load_config
from sst_d2.data import SSTDatasetMapper
from sst_d2.data.label_io import read_sample_labels
from sst_d2.data.loader import load_datasets
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTError
from sst_d2.evaluation import scores_from_confusion
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import report_user_error
from sst_d2.visualization import save_image, side_by_side

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs/quick_schedules/synthetic_people.yaml"
PEOPLE = ("--size", "128", "--train", "60", "300", "450", "--val", "30", "--heldout", "12")
# What the demo promises of every head: times the best constant prediction, and classes above an IoU of 15 %.
FACTOR, GOOD_IOU, GOOD_CLASSES = 1.5, 15.0, {"pascal_person_part": 3, "atr": 3, "cihp": 2}
PICTURES = 6


def run(*command: str) -> None:
    """Print a command and run it; the demo ends where it fails."""
    print(f"\n$ {' '.join(command)}", flush=True)
    result = subprocess.run([sys.executable, *command], cwd=ROOT)
    if result.returncode:
        sys.exit(result.returncode)


def described(cfg: CN) -> str:
    """One sentence about the training."""
    node, domains = cfg.MODEL.SST.AUXILIARY, f"one network, {len(cfg.MODEL.SST.DOMAINS)} label systems"
    if not node.ENABLED:
        return f"Multi-datasets: {domains}, no SST."
    if node.STRATEGY == "none":
        return f"SST without transfer: {domains}; MSA and MSE take part in training only."
    return (
        f"SST, universal: {domains}; MSA, MSE and MST (strategy {node.STRATEGY}, preset {node.PRESET}) take part in "
        "training only."
    )


def evaluated(cfg: CN, folder: Path) -> dict[str, np.ndarray]:
    """The confusion matrix of every data set, as an evaluation has left it below ``folder``."""
    matrices = {}
    for name in cfg.DATASETS.TEST:
        record = json.loads((folder / "inference" / name / "sem_seg_evaluation.json").read_text(encoding="utf-8"))
        matrices[record["label_domain"]] = np.array(record["confusion_matrix"])
    return matrices


def best_constant_miou(confusion: np.ndarray) -> float:
    """mIoU, in percent, of predicting one class everywhere, for the best such class."""
    truth = confusion.sum(axis=1)
    return max(
        scores_from_confusion(np.outer(truth, np.eye(len(truth), dtype=np.int64)[k]))["mIoU"] for k in range(len(truth))
    )


def report(trained: dict[str, np.ndarray], untrained: dict[str, np.ndarray]) -> bool:
    """Print the table; True where every head keeps its promise."""
    rows, kept = [], True
    for name, confusion in trained.items():
        scores, domain = scores_from_confusion(confusion), get_label_domain(name)
        iou = np.nan_to_num(scores["IoU"][1:])
        good = [domain.classes[k + 1] for k in np.argsort(-iou) if iou[k] > GOOD_IOU]
        constant = best_constant_miou(confusion)
        kept &= scores["mIoU"] >= FACTOR * constant and len(good) >= GOOD_CLASSES[name]
        before = scores_from_confusion(untrained[name])["mIoU"]
        rows.append([name, domain.num_classes, constant, before, scores["mIoU"], f"{len(good)}: {', '.join(good[:6])}"])
    headers = [
        "head",
        "classes",
        "best constant",
        "untrained",
        "trained",
        f"classes above {GOOD_IOU:.0f} % (best first)",
    ]
    print("\nmIoU in percent on the validation people of each label system:")
    print(tabulate(rows, headers=headers, floatfmt=".1f"))
    return kept


def draw(cfg: CN, model: torch.nn.Module, folder: Path) -> None:
    """Write pictures: photo and the truth in all label systems above, the prediction in all of them below."""
    mapper = SSTDatasetMapper(cfg, is_train=False)
    domains = list(model.domains.values())
    truths = {d.name: load_datasets([f"synthetic_heldout_{d.name}_sem_seg_val"], [d.name]) for d in domains}
    print("\nPictures (above: the truth; below: the prediction of every head):")
    for number in range(PICTURES):
        sample = mapper(truths[domains[0].name][number])
        with torch.no_grad():
            logits = model([{**sample, "label_domain": "all"}])[0]["sem_seg_by_domain"]
        image = sample["image"].permute(1, 2, 0).numpy()
        truth = {d.name: read_sample_labels(truths[d.name][number], d) for d in domains}
        above = side_by_side(image, truth)
        below = side_by_side(image, {name: scores.argmax(0).cpu().numpy() for name, scores in logits.items()})
        save_image(folder / f"people_{number}.png", np.concatenate([above, below]))
        print(f"  {folder / f'people_{number}.png'}")


def main() -> None:
    """Run the steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("output/demo"), help="folder of everything that is written")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for the training")
    arguments = parser.parse_args()
    start, output = time.perf_counter(), arguments.output.resolve()
    os.environ["DETECTRON2_DATASETS"] = str(output / "datasets")
    run("datasets/make_synthetic_people.py", "--output", str(output / "datasets/synthetic_people"), *PEOPLE)
    training = output / "training"
    print(f"\n{described(load_config(str(CONFIG), arguments.opts))}")
    if (training / "model_final.pth").is_file():
        print(f"The training in {training} is finished; to train anew, remove this folder.")
    # An interrupted demo goes on where its last checkpoint was written.
    run("train_net.py", "--config-file", str(CONFIG), "--resume", *arguments.opts, "OUTPUT_DIR", str(training))

    cfg = load_config(str(CONFIG), [*arguments.opts, "OUTPUT_DIR", str(output / "untrained")])
    torch.manual_seed(0)
    model = SSTTrainer.build_model(inference_config(cfg))  # what serves training alone stays behind
    SSTTrainer.evaluate(cfg, model)
    kept = report(evaluated(cfg, training), evaluated(cfg, output / "untrained"))
    trained = training / "model_inference.pth"
    SSTCheckpointer(model).load(str(trained))
    draw(cfg, model.eval(), output / "pictures")
    print(f"\nTrained network, without what serves training only: {trained}")
    print(f"All of this took {time.perf_counter() - start:.0f} s.")
    if not kept:
        print(f"A head stays below the demo's promise: {FACTOR} times the best constant, {GOOD_CLASSES} classes.")
        sys.exit(1)


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
