"""What counts of a finished run, from the files that the training has left, as one small record."""

from __future__ import annotations

import datetime
import json
import re
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import detectron2
import torch
import yaml

import sst_d2
from reproduction.places import FINAL, RUN_RECORD, Places, ReproductionError, read_json
from reproduction.rows import ROWS
from reproduction.settings import ROOT, Run, values

LOSS_POINTS = 10
_FIGURES = (
    *("sst/cosine_x0/", "sst/cosine_x3/", "sst/miou_aux/", "sst/scr_image_present/"),
    *("sst/miou_mapped/", "sst/certainty/", "sst/gradient/", "sst/alignment/"),
)
_MAX_MEM = re.compile(r"max_mem: (\d+)M")


def record_of(run: Run, places: Places) -> dict[str, Any]:
    """The record of a run that has ended well.

    Args:
        run: the training.
        places: where its files lie.

    Returns:
        ``scores`` {data set: mIoU, mACC, pACC, IoU by class; percent, None where nothing can be said}, ``curve`` [step,
        {data set: mIoU}], ``losses`` [step, {kind: sum over domains or pairs}], ``branch`` [step, figures of
        `BranchLog`], ``seconds_per_step`` (median), ``minutes``, ``processor_minutes``, ``memory_mb`` (largest resident
        set; with a GPU also ``gpu_memory_mb``), ``parameters`` (in training, and of the branch), and what was run.

    Raises:
        ReproductionError: a file is missing or damaged.
    """
    output = places.output(run)
    lines = read_lines(output / "metrics.json")
    settings = values(run)
    folder = "inference_TTA" if settings.get("TEST.AUG.ENABLED") else "inference"
    begun = read_json(output / RUN_RECORD)
    steps = 1 + max(line["iteration"] for line in lines if "total_loss" in line)
    times = [line["time"] for line in lines if "time" in line]
    device = yaml.safe_load((output / "config.yaml").read_text(encoding="utf-8"))["MODEL"]["DEVICE"]
    return {
        "row": run.row,
        "seed": run.seed,
        "scale": run.scale.name,
        "scores": {name: scores_of(output / folder / name) for name in settings["DATASETS.TEST"]},
        "curve": curve(lines, settings["DATASETS.TEST"], steps),
        "losses": losses(lines),
        "branch": branch_figures(lines),
        "steps": steps,
        "seconds_per_step": _rounded(statistics.median(times)) if times else None,
        "minutes": _rounded(begun["seconds"] / 60),
        "processor_minutes": _rounded(begun["processor_seconds"] / 60),
        "memory_mb": _rounded(begun["memory_mb"]),
        "gpu_memory_mb": gpu_memory(output / "log.txt"),
        "parameters": parameters(output / FINAL),
        "config": ROWS[run.row].config if run.row in ROWS else "",
        "overrides": begun["overrides"],
        "trunk_sha256": begun["trunk_sha256"],
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a training's ``metrics.json``.

    Raises:
        ReproductionError: there is none.
    """
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as reason:
        raise ReproductionError(f"{path}: cannot be read ({reason})") from reason


def scores_of(folder: Path) -> dict[str, Any]:
    """The last evaluation of one data set."""
    document = read_json(folder / "sem_seg_evaluation.json")
    metrics = document["sem_seg"]
    return {
        "label_domain": document["label_domain"],
        "images": document["images"],
        **{key: _rounded(metrics[key]) for key in ("mIoU", "mACC", "pACC")},
        "IoU": {name: _rounded(metrics[f"IoU-{name}"]) for name in document["classes"]},
    }


def curve(lines: Iterable[Mapping[str, Any]], names: Sequence[str], steps: int) -> list[list[Any]]:
    """[step, {data set: mIoU}] of every evaluation in ``steps``; Detectron2 leaves a single data set's name out."""
    keys = {name: f"{name}/sem_seg/mIoU" if len(names) > 1 else "sem_seg/mIoU" for name in names}
    points: dict[int, dict[str, float]] = {}
    for line in lines:
        found = {name: _rounded(line[key]) for name, key in keys.items() if key in line}
        if found:
            # Iterations count from 0; the evaluation behind the last one is logged under the number of them.
            points[min(line["iteration"] + 1, steps)] = found
    return [[step, scores] for step, scores in sorted(points.items())]


def losses(lines: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """[step, {kind of loss: weighed sum over domains or pairs}] at `LOSS_POINTS` places, evenly spread.

    "total_loss" is always there; Detectron2 logs it alone where there is one loss only.
    """
    logged = [line for line in lines if "total_loss" in line]
    count = min(LOSS_POINTS, len(logged))
    points = []
    for line in (logged[(index + 1) * len(logged) // count - 1] for index in range(count)):
        sums = {"total_loss": line["total_loss"]}
        for key, value in line.items():
            if key.startswith("loss_"):
                kind = key.split("/")[0]
                sums[kind] = sums.get(kind, 0.0) + value
        points.append([line["iteration"] + 1, {kind: _rounded(value) for kind, value in sums.items()}])
    return points


def branch_figures(lines: Iterable[Mapping[str, Any]]) -> list[list[Any]]:
    """[step, figures of `BranchLog`] of every evaluation; [] of runs without the branch."""
    points: dict[int, dict[str, float]] = {}
    for line in lines:
        figures = {key: _rounded(value) for key, value in line.items() if key.startswith(_FIGURES)}
        if figures:
            points.setdefault(line["iteration"] + 1, {}).update(figures)
    return [[step, figures] for step, figures in sorted(points.items())]


def gpu_memory(log: Path) -> int | None:
    """The most that PyTorch has allocated on the GPU, in MiB, from a training's log; None on the CPU."""
    found = _MAX_MEM.findall(log.read_text(encoding="utf-8")) if log.is_file() else []
    return max(map(int, found)) if found else None


def parameters(checkpoint: Path) -> dict[str, int]:
    """Numbers in a checkpoint's network: ``all``, and ``branch``: those that serve training only."""
    network = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
    sizes = {name: tensor.numel() for name, tensor in network.items()}
    return {
        "all": sum(sizes.values()),
        "branch": sum(size for name, size in sizes.items() if name.startswith("auxiliary.")),
    }


def versions() -> dict[str, str]:
    """Of what the figures may depend on."""
    return {
        "sst_d2": sst_d2.__version__,
        "commit": commit(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }


def commit() -> str:
    """The checkout's commit, with "+" where files have changed; "" outside of one."""
    if not (ROOT / ".git").exists():
        return ""
    said = [
        subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True)
        for arguments in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    ]
    if said[0].returncode:
        return ""
    return said[0].stdout.strip() + ("+" if said[1].stdout.strip() else "")


def _rounded(value: float | None) -> float | None:
    """Four places behind the point suffice, and keep the files small."""
    return None if value is None else round(value, 4)
