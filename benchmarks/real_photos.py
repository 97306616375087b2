#!/usr/bin/env python
"""SST on real photos in three label systems: one network per data set, one for all, and SST, with several seeds.

    export SST_REAL_DATA=/your/folder     # docs/RESULTS.md says what lies there
    python benchmarks/real_photos.py run --seeds 0 1 2 --work /large/folder
    python benchmarks/real_photos.py report      # from benchmarks/results/real_photos/ alone

`run` trains what is missing, one training after the other; it may be interrupted, and the same command goes on. Every
row starts from random weights by seed, and trains as configs/quick_schedules/real_photos.yaml says.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2.arguments import whole_number
from sst_d2.errors import SSTError
from sst_d2.launch import report_user_error

sys.path.insert(0, str(Path(__file__).resolve().parent))
from reproduction.places import FINAL, ReproductionError, locked, read_json, write_json
from reproduction.records import branch_figures, read_lines, scores_of, versions
from reproduction.report import difference_text, markdown, printed, summary
from reproduction.settings import ROOT, as_options
from reproduction.statistics import paired

RESULTS = ROOT / "benchmarks/results/real_photos"
PROGRAM = (sys.executable, "train_net.py")
SST, BASELINE = "real_photos.yaml", "real_photos_multi_datasets.yaml"
# Label domain below tests/label_domains: training set, test set.
SETS = {
    "fashionista7": ("fashionista7_sem_seg_train", "fashionista7_sem_seg_test"),
    "ccp14": ("ccp14_sem_seg_train", "ccp14_sem_seg_val"),
    "ccp59": ("ccp59_sem_seg_train", "ccp59_sem_seg_val"),
}


def _single(domain: str) -> tuple[str, dict[str, Any]]:
    train, test = SETS[domain]
    own = {"MODEL.SST.DOMAINS": [f"tests/label_domains/{domain}.yaml"]}
    return BASELINE, {**own, "DATASETS.TRAIN": (train,), "DATASETS.TEST": (test,)}


# Row: configuration below configs/quick_schedules, and what is laid over it.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"single_{domain}": _single(domain) for domain in SETS},
    "multi_datasets": (BASELINE, {}),
    "mse": (SST, {"MODEL.SST.AUXILIARY.STRATEGY": "none"}),
    "universal": (SST, {"MODEL.SST.AUXILIARY.PRESET": "paper"}),
    "universal_stable": (SST, {}),
}


def train(row: str, seed: int, work: Path) -> dict[str, Any]:
    """Train a row, and return its record; a training that was begun is gone on with.

    Raises:
        ReproductionError: the training fails.
    """
    config, overrides = ROWS[row]
    output = work / row / f"seed{seed}"
    output.mkdir(parents=True, exist_ok=True)
    options = as_options({**overrides, "SEED": seed, "OUTPUT_DIR": output})
    command = [*PROGRAM, "--config-file", f"configs/quick_schedules/{config}", "--resume", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    with open(output / "console.log", "a", encoding="utf-8") as console:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=console, stderr=console).returncode
    if status or not (output / FINAL).is_file():
        raise ReproductionError(f"{row} seed {seed}: the training ended with status {status}; see {console.name}")
    test = overrides.get("DATASETS.TEST", [test for _, test in SETS.values()])
    lines = read_lines(output / "metrics.json")
    return {
        "row": row,
        "seed": seed,
        "scores": {name: scores_of(output / "inference" / name) for name in test},
        "branch": branch_figures(lines),
        "steps": 1 + max(line["iteration"] for line in lines if "total_loss" in line),
        "minutes": round((time.monotonic() - begun) / 60, 2),
        "versions": versions(),
    }


def run(args: argparse.Namespace) -> None:
    """Train what is missing, seed by seed."""
    if not os.path.isdir(os.environ.get("SST_REAL_DATA", "")):
        raise ReproductionError("SST_REAL_DATA names no folder; docs/RESULTS.md says what lies there")
    with locked(args.work):
        for seed in args.seeds:
            for row in args.rows:
                place = args.results / row / f"seed{seed}.json"
                if not place.is_file():
                    record = train(row, seed, args.work)
                    write_json(place, record)
                    found = ", ".join(f"{scores['mIoU']:.1f}" for scores in record["scores"].values())
                    print(f"{row} seed {seed}: mIoU {found}, {record['minutes']:.1f} min", flush=True)


def report(args: argparse.Namespace) -> None:
    """Print the table."""
    print(table(args.results))


def table(results: Path) -> str:
    """mIoU by row and data set, and what is more than Multi-datasets, paired over seeds, as Markdown.

    Raises:
        ReproductionError: a record is damaged.
    """
    scores = {(row, test): by_seed(results / row, test) for row in ROWS for _, test in SETS.values()}
    lines = []
    for row in ROWS:
        cells = [printed(summary(scores[row, test])) for _, test in SETS.values()]
        others = [_difference(scores, row, test) for _, test in SETS.values()]
        lines.append([row, *cells, *others])
    headers = ["row", *SETS, *(f"{domain}: minus Multi-datasets" for domain in SETS)]
    return markdown(lines, headers)


def _difference(scores: Mapping[tuple[str, str], dict[int, float]], row: str, test: str) -> str:
    own, base = scores[row, test], scores["multi_datasets", test]
    if row == "multi_datasets" or not own:
        return ""
    difference = paired(own, base)
    return " ".join(difference_text(difference)) if difference.low is not None else difference_text(difference)[0]


def by_seed(folder: Path, test: str) -> dict[int, float]:
    """mIoU of a row on a test set by seed; {} of rows without it."""
    records = [read_json(path) for path in sorted(folder.glob("seed*.json"))]
    return {record["seed"]: record["scores"][test]["mIoU"] for record in records if test in record["scores"]}


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, then run or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, function in (("run", run), ("report", report)):
        part = parts.add_parser(name, help=function.__doc__.splitlines()[0])
        part.set_defaults(function=function)
        part.add_argument("--results", type=Path, default=RESULTS, help="folder of the records (default: %(default)s)")
        if name == "run":
            part.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
            part.add_argument("--seeds", type=whole_number, nargs="+", default=[0, 1, 2])
            part.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW")
    args = parser.parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
