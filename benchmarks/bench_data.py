"""What evaluation costs, measured. Not a test: nothing fails here when a machine is slow.

    python benchmarks/bench_data.py                    all sections
    python benchmarks/bench_data.py evaluator --json   one section, as JSON

Each section makes its own data in a temporary folder, runs its candidates in turns in one process, and reports the
minimum over the repeats: on a busy machine the minimum is what disturbs least.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.label_domains import get_label_domain

SIZE = 512
NUM_IMAGES = 4  # logits of (20, 512, 512) take 20 MiB each: together more than a processor's cache holds
DATASET = "sst_bench_data_cihp"


def bench_evaluator(repeats: int, folder: Path) -> dict[str, Any]:
    """Milliseconds per 512x512 image at K = 20: from logits and a label file to a confusion matrix.

    Args:
        repeats: rounds; in each, both evaluators see all images once.
        folder: an empty folder for the label files.

    Returns:
        ``ms_per_image`` {name: minimum}, ``ratio`` (Detectron2's over ours).
    """
    domain = get_label_domain("cihp")
    records, outputs = make_labels_and_logits(folder, domain.num_classes)
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        label_domain=domain.name, stuff_classes=list(domain.classes), ignore_label=domain.ignore_label
    )
    ours = SSTSemSegEvaluator(DATASET, distributed=False)
    theirs = SemSegEvaluator(DATASET, distributed=False)

    def run(evaluator: SSTSemSegEvaluator | SemSegEvaluator) -> Callable[[], None]:
        def all_images() -> None:
            evaluator.reset()
            for record, output in zip(records, outputs, strict=True):
                evaluator.process([record], [output])

        return all_images

    best = interleaved_minima({"SSTSemSegEvaluator": run(ours), "detectron2 SemSegEvaluator": run(theirs)}, repeats)
    milliseconds = {name: 1000 * seconds / NUM_IMAGES for name, seconds in best.items()}
    if ours.evaluate()["sem_seg"]["pACC"] != theirs.evaluate()["sem_seg"]["pACC"]:
        raise RuntimeError("the two evaluators counted differently; their times cannot be compared")
    return {
        "ms_per_image": milliseconds,
        "ratio": milliseconds["detectron2 SemSegEvaluator"] / milliseconds["SSTSemSegEvaluator"],
    }


def make_labels_and_logits(
    folder: Path, num_classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Label maps with smooth regions, and logits that are right on most pixels.

    Returns:
        dataset dicts that name the label files (and images that do not exist: no evaluator opens them), and as many
        outputs {"sem_seg": (K, 512, 512) float32}.
    """
    generator = torch.Generator().manual_seed(0)
    records, outputs = [], []
    for i in range(NUM_IMAGES):
        coarse = torch.randn((1, num_classes, 12, 12), generator=generator)
        field = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")[0]
        path = folder / f"{i}.png"
        Image.fromarray(field.argmax(dim=0).to(torch.uint8).numpy()).save(path)
        records.append({"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(path), "image_id": i})
        noise = torch.randn(field.shape, generator=generator)
        outputs.append({"sem_seg": (field + 0.1 * noise).contiguous()})
    return records, outputs


def interleaved_minima(candidates: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Seconds of each candidate's fastest run; the candidates take turns, after one run each to warm up."""
    best = {name: float("inf") for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            if turn > 0:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


SECTIONS: dict[str, Callable[[int, Path], dict[str, Any]]] = {"evaluator": bench_evaluator}


def print_section(name: str, result: dict[str, Any]) -> None:
    """One section as a small table."""
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
    for candidate, milliseconds in result["ms_per_image"].items():
        print(f"  {candidate:<32} {milliseconds:8.2f} ms")
    if "ratio" in result:
        print(f"  {'ratio':<32} {result['ratio']:8.2f}")


def main() -> None:
    """Read the command line, run the sections, print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--repeats", type=int, default=9, help="rounds, at least 7 (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; sections: {', '.join(SECTIONS)}")
    if args.repeats < 7 or args.threads < 1:
        parser.error(f"--repeats {args.repeats} --threads {args.threads}: at least 7 repeats and 1 thread are needed")
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "repeats": args.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    for name in args.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            report[name] = SECTIONS[name](args.repeats, Path(folder))
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict)))
    for name in args.sections or SECTIONS:
        print_section(name, report[name])


if __name__ == "__main__":
    main()
