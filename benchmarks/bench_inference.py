#!/usr/bin/env python
"""What the prediction of one photo costs: network, heads, ONNX beside PyTorch, reading and writing, memory. Not a test:
nothing fails here when a machine is slow.

    python benchmarks/bench_inference.py                             all sections, R50 with three heads, 512 x 512
    python benchmarks/bench_inference.py processing memory --json    some, as JSON
    python benchmarks/bench_inference.py --config-file configs/quick_schedules/synthetic_people.yaml --size 64

Weights are random, the photo is of synthetic people. Where label maps are made, the heads run, and then give logits as
of a trained network: regions with borders, not noise. "One head" is the one with the most classes; in `heads` the one
with the fewest, which is the harder to stand beside. ONNX files are made by tools/export.py, for photos of every size.

Candidates take turns in one process, after one round to warm up. Reported are each one's shortest time, its ratio to
the shortest of what it stands beside, and the median of the ratios within a round: the former is disturbed least on a
busy machine, and where the two differ, it was busy. With one thread on the CPU the seconds are the processor's, so that
other programs do not count; else they are those of the clock on the wall. Memory is what tensors take, as in
bench_step.py, but in `memory`, which looks at whole processes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import detectron2
import numpy as np
import torch
import torch.nn.functional as F
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent))
import resident_memory
from bench_step import interleaved, peak_on_cpu, peak_on_gpu
from inference_subject import (
    ALL,
    PHOTO,
    Run,
    Subject,
    back_ends,
    classified,
    computed_by,
    exported,
    from_image,
    make_subject,
    normalised,
    trained_logits,
    trunk,
    why_no_onnx,
)
from inference_subject import NETWORK as BUNDLE

from sst_d2 import SSTError, export
from sst_d2.arguments import positive_number
from sst_d2.config import get_config_file, load_config
from sst_d2.inference.photos import as_photo
from sst_d2.launch import report_user_error
from sst_d2.modeling.label_maps import label_map
from sst_d2.visualization import save_label_png

CONFIG = "universal/full_R50.yaml"
STRIDE, SMALLEST = 32, 64  # sides of whole multiples need no padding
ONE_HEAD, ALL_HEADS = "one head", "all heads"
READ, TENSOR, NETWORK, LABEL_MAP, PNG = "read the JPEG", "tensor", "network, heads", "label map", "palette PNG"
NAIVE, WHOLE = "up-sampling, arg-max", "SSTPredictor, from file to file"


class Pass(NamedTuple):
    """What `bench_step` measures."""

    run_step: Run


# ---- sections ----


def bench_heads(subject: Subject) -> dict[str, Any]:
    """From the normalised image to the logits at a quarter of its size: all heads beside one, by operator back end.

    Returns:
        by candidate: see `compared`; the last two are heads without the trunk.
    """
    model, image, candidates, beside = subject.model, normalised(subject), {}, {}
    names = {ONE_HEAD: subject.by_classes[:1], ALL_HEADS: subject.by_classes}
    with torch.inference_mode():
        features = trunk(model, image)
    for back_end in (*back_ends(subject.device), "heads alone"):
        for heads, domains in names.items():
            name = f"{back_end}, {heads}"
            candidates[name] = partial(classified, model, features, domains)
            if back_end != "heads alone":
                candidates[name] = computed_by(back_end, partial(from_image, model, image, domains))
            beside[name] = f"{back_end}, {ONE_HEAD}"
    return compared(subject, candidates, beside)


def bench_forms(subject: Subject) -> dict[str, Any]:
    """From the photo's tensor to logits, or label maps, of its size: PyTorch by operator back end, and onnxruntime.

    Returns:
        by candidate: see `compared`; each stands beside PyTorch's own operators with as many heads. "left_out": the
        reason why there is no onnxruntime.
    """
    model, image, candidates, beside = subject.model, subject.image, {}, {}
    names, missing = back_ends(subject.device), why_no_onnx(subject.device)
    for heads, domain in ((ONE_HEAD, subject.by_classes[-1]), (ALL_HEADS, ALL)):
        sample = {"image": image, "label_domain": domain}
        found = {f"eager, {name}, {heads}": computed_by(name, partial(model, [sample])) for name in names}
        wants_labels = {**sample, "output": "labels"}
        found[f"eager, {names[0]}, {heads}, label map"] = computed_by(names[0], partial(model, [wants_labels]))
        if not missing:
            session = export.open_onnx(exported(subject, domain), torch.get_num_threads())
            found[f"onnxruntime, {heads}"] = partial(session, image[None])
        candidates.update(found)
        beside.update(dict.fromkeys(found, f"eager, torch, {heads}"))
    with trained_logits(subject):
        report = compared(subject, candidates, beside)
    return {**report, "left_out": missing} if missing else report


def bench_processing(subject: Subject) -> dict[str, Any]:
    """From a JPEG file to palette PNG files, step by step: what surrounds the network, as a part of the whole.

    Returns:
        for one head and for all: ``ms`` {step: time}; ``share`` of the steps around the network in the sum of all,
        its ``median_share`` over the rounds, and ``naive_share``, with label maps by up-sampling and arg-max; of our
        label map over those ``time_ratio``, ``median_time_ratio``, ``memory_ratio``; ``label_map_mb``.
    """
    report = {}
    for heads, domains in ((ONE_HEAD, subject.by_classes[-1:]), (ALL_HEADS, subject.by_classes)):
        steps = processing_steps(subject, domains)
        with trained_logits(subject):
            times = timed(subject, steps)
        peaks = {name: peak_bytes(subject, steps[name]) for name in (LABEL_MAP, NAIVE)}
        best = {name: min(seconds) for name, seconds in times.items()}
        rounds = [dict(zip(times, seconds, strict=True)) for seconds in zip(*times.values(), strict=True)]
        report[heads] = {
            "ms": {name: 1000 * seconds for name, seconds in best.items()},
            "share": share_around(best, LABEL_MAP),
            "median_share": statistics.median(share_around(seconds, LABEL_MAP) for seconds in rounds),
            "naive_share": share_around(best, NAIVE),
            "time_ratio": best[LABEL_MAP] / best[NAIVE],
            "median_time_ratio": statistics.median(seconds[LABEL_MAP] / seconds[NAIVE] for seconds in rounds),
            "memory_ratio": peaks[LABEL_MAP] / peaks[NAIVE],
            "label_map_mb": peaks[LABEL_MAP] / 1e6,
        }
    return report


def bench_memory(subject: Subject) -> dict[str, Any]:
    """Resident memory of a new process that predicts the label maps of all heads.

    Returns:
        by way to them: ``peak_mb`` (10^6 bytes), and ``more_mb``, how much of it came on top of the opened network.
        "left_out": the reason why some or all are missing.
    """
    missing = resident_memory.why_not() if subject.device == "cpu" else "it is the CPU's memory"
    if missing:
        return {"left_out": missing}
    ways = {
        "label maps from small logits": (resident_memory.label_maps_by, BUNDLE),
        "full logits, arg-max": (resident_memory.full_logits_by, BUNDLE),
    }
    missing = why_no_onnx(subject.device)
    if not missing:
        ways["onnxruntime, full logits, arg-max"] = (resident_memory.onnx_logits_by, exported(subject, ALL).name)
    report: dict[str, Any] = {"left_out": missing} if missing else {}
    for name, (opener, file) in ways.items():
        before, peak = resident_memory.of_a_prediction(
            opener, subject.folder / file, subject.image, torch.get_num_threads()
        )
        report[name] = {"peak_mb": peak / 1e6, "more_mb": (peak - before) / 1e6}
    return report


SECTIONS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "heads": bench_heads,
    "forms": bench_forms,
    "processing": bench_processing,
    "memory": bench_memory,
}


# ---- what runs ----


def processing_steps(subject: Subject, domains: Sequence[str]) -> dict[str, Run]:
    """The steps of a prediction, each on its own; the naive label map; `SSTPredictor` and writing, in one."""
    predictor, folder, size = subject.predictor, subject.folder, subject.photo.shape[:2]
    photo, image, logits = folder / PHOTO, normalised(subject), [subject.logits[name] for name in domains]
    maps = [label_map(values, size, size, size).cpu().numpy() for values in logits]

    def write(labels: Sequence[np.ndarray]) -> None:
        for name, values in zip(domains, labels, strict=True):
            save_label_png(folder / f"{name}.png", values, predictor.domains[name])

    def whole() -> None:
        answer = predictor(photo, ALL if len(domains) > 1 else domains[0])
        write([answer[name].labels for name in domains] if len(domains) > 1 else [answer.labels])

    return {
        READ: lambda: as_photo(photo, "RGB", predictor.max_pixels),
        TENSOR: lambda: normalised(subject),
        NETWORK: lambda: from_image(subject.model, image, domains),
        LABEL_MAP: lambda: [label_map(values, size, size, size).cpu() for values in logits],
        PNG: lambda: write(maps),
        NAIVE: lambda: [naive_label_map(values, size).cpu() for values in logits],
        WHOLE: whole,
    }


def share_around(seconds: Mapping[str, float], labels: str) -> float:
    """What the steps around the network are of the whole, with one of the two ways to label maps."""
    around = sum(seconds[name] for name in (READ, TENSOR, labels, PNG))
    return around / (around + seconds[NETWORK])


def naive_label_map(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(H, W) uint8, by way of the logits of all pixels."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0].argmax(0).to(torch.uint8)


# ---- measuring ----


def compared(subject: Subject, candidates: Mapping[str, Run], beside: Mapping[str, str]) -> dict[str, Any]:
    """Time and memory.

    Args:
        subject: says how to measure.
        candidates: what to run.
        beside: for each the name of the one that it is compared with.

    Returns:
        by candidate: ``ms``, ``images_per_s``, ``ratio``, ``median_ratio``, ``peak_mb`` (10^6 bytes: weights, and the
        most that tensors take besides; None: not PyTorch's).
    """
    times, report = timed(subject, candidates), {}
    for name, run in candidates.items():
        in_turn = [own / other for own, other in zip(times[name], times[beside[name]], strict=True)]
        report[name] = {
            "ms": 1000 * min(times[name]),
            "images_per_s": 1 / min(times[name]),
            "ratio": min(times[name]) / min(times[beside[name]]),
            "median_ratio": statistics.median(in_turn),
            "peak_mb": None if name.startswith("onnx") else (weight_bytes(subject) + peak_bytes(subject, run)) / 1e6,
        }
    return report


def timed(subject: Subject, candidates: Mapping[str, Run]) -> dict[str, list[float]]:
    """Seconds of each candidate's runs, which take turns."""
    passes = {name: Pass(torch.inference_mode()(run)) for name, run in candidates.items()}
    return interleaved(passes, subject.rounds, subject.device)


def weight_bytes(subject: Subject) -> int:
    """Of the network."""
    return sum(tensor.nbytes for tensor in (*subject.model.parameters(), *subject.model.buffers()))


def peak_bytes(subject: Subject, run: Run) -> int:
    """The most that tensors of one run take at once."""
    one = Pass(torch.inference_mode()(run))
    return peak_on_cpu(one) if subject.device == "cpu" else peak_on_gpu(one)


# ---- what is shown ----


def print_section(name: str, result: Mapping[str, Any]) -> None:
    """One section as a table."""
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
    rows = {candidate: values for candidate, values in result.items() if candidate != "left_out"}
    if name == "processing":
        print_steps(rows)
    elif name == "memory":
        cells = [[way, *values.values()] for way, values in rows.items()]
        print(tabulate(cells, headers=["way", "peak MB", "on top of the network"], floatfmt=".1f"))
    else:
        cells = [[candidate, *values.values()] for candidate, values in rows.items()]
        headers = ["candidate", "ms", "images/s", "ratio", "median ratio", "peak MB"]
        print(tabulate(cells, headers=headers, floatfmt=("", ".1f", ".2f", ".3f", ".3f", ".1f")))
    if "left_out" in result:
        print(f"left out: {result['left_out']}")
    sys.stdout.flush()


def print_steps(result: Mapping[str, Any]) -> None:
    """The steps around the network, and what they are of the whole."""
    one, every = result.values()
    rows = [[step, *(values["ms"][step] for values in (one, every))] for step in one["ms"]]
    print(tabulate(rows, headers=["milliseconds", *result], floatfmt=".2f"))
    for heads, values in result.items():
        print(
            f"{heads}: {values['share']:.1%} of the whole lie around the network (median {values['median_share']:.1%}; "
            f"{values['naive_share']:.1%} with up-sampling and arg-max). Of these, label maps take the "
            f"{values['time_ratio']:.3f}-fold time (median {values['median_time_ratio']:.3f}) and the "
            f"{values['memory_ratio']:.3f}-fold memory, {values['label_map_mb']:.1f} MB"
        )


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    add("--config-file", metavar="FILE", help=f"a configuration (.yaml); default: the project's {CONFIG}")
    add("--size", type=positive_number, default=512, help="side of the photo in pixels (default 512)")
    add("--rounds", type=positive_number, default=7, help="rounds, at least 3 (default 7)")
    add("--threads", type=positive_number, default=1, help="threads of torch and onnxruntime (default 1)")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the network runs (default cpu)")
    add("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; sections: {', '.join(SECTIONS)}")
    if args.size < SMALLEST or args.size % STRIDE:
        parser.error(f"--size {args.size}: a multiple of {STRIDE} from {SMALLEST} on is expected")
    if args.rounds < 3:
        parser.error(f"--rounds {args.rounds}: at least 3 rounds are needed")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    return args


def main() -> None:
    """Read the command line, run the sections, print tables or JSON."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    cfg = load_config(args.config_file or get_config_file(CONFIG), ["MODEL.DEVICE", args.device])
    report: dict[str, Any] = {
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
        "back_ends": back_ends(args.device),
        "config_file": args.config_file or CONFIG,
        "size": args.size,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "rounds": args.rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
    with tempfile.TemporaryDirectory() as folder:
        subject = make_subject(cfg, Path(folder), args.size, args.rounds)
        if not args.json:
            print(", ".join(f"{key} {value}" for key, value in report.items()), flush=True)
        for name in args.sections or SECTIONS:
            report[name] = SECTIONS[name](subject)
            if not args.json:
                print_section(name, report[name])
    if args.json:
        print(json.dumps(report, indent=1))


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
