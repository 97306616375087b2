#!/usr/bin/env python
"""What a step of training costs with SST and without: forward, backward, clipping, optimiser. Not a test: nothing fails
here when a machine is slow.

    python benchmarks/bench_step.py                          all sections
    python benchmarks/bench_step.py tiny domains --json      some, as JSON

Candidates: Multi-datasets (no training-only branch), SST progressive, SST full; the same trunk and batch, two images
of each label domain. They take turns in one process, after one round to warm up. Reported are each one's shortest step,
its ratio to the shortest of Multi-datasets, and the median of the ratios within a round: the former is disturbed least
on a busy machine, and where the two differ, it was busy. With one thread on the CPU the seconds are the processor's, so
that other programs do not count; else they are those of the clock on the wall.

Memory is what tensors take: weights and the optimiser's state, and the most that a step has allocated on top at once.
On the CPU PyTorch's profiler records every allocation and release of a step of its own; the resident set of the process
would depend on what ran before, and on what the C library gives back. On a GPU it is the allocator's count.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import detectron2
import numpy as np
import torch
import yaml
from detectron2.utils.events import EventStorage
from tabulate import tabulate

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from people_generator import draw_sample, to_label

from sst_d2.config import get_config_file, load_config
from sst_d2.engine import SSTTrainer
from sst_d2.label_domains import get_label_domain
from sst_d2.optimizer import full_model_clip
from sst_d2.train_step import TrainStep

DOMAINS = ("pascal_person_part", "atr", "cihp")
IMAGES_PER_DOMAIN = 2
BASELINE = "Multi-datasets"
CANDIDATES = {
    BASELINE: ["MODEL.SST.AUXILIARY.ENABLED", "False"],
    "SST progressive": ["MODEL.SST.AUXILIARY.ENABLED", "True", "MODEL.SST.AUXILIARY.STRATEGY", "progressive"],
    "SST full": ["MODEL.SST.AUXILIARY.ENABLED", "True", "MODEL.SST.AUXILIARY.STRATEGY", "full"],
}
COUNTS = range(2, 9)  # of label domains


class Network(NamedTuple):
    """A configuration below ``configs/``, and the side of the square images in pixels."""

    config: str
    size: int


R50 = Network("universal/full_R50.yaml", 256)
TINY = Network("quick_schedules/Base-tiny.yaml", 96)


def bench_r50(rounds: int, device: str) -> dict[str, Any]:
    """A step of the paper's network, R50, 256x256, three label domains, batch 6.

    Args:
        rounds: steps of each candidate.
        device: "cpu" or "cuda".

    Returns:
        by candidate: see `compared`.
    """
    return compared(steps(R50, DOMAINS, device), rounds, device)


def bench_tiny(rounds: int, device: str) -> dict[str, Any]:
    """A step of the smallest network, 96x96, three label domains, batch 6: many operations, each of them short.

    Args and what is returned: as `bench_r50`.
    """
    return compared(steps(TINY, DOMAINS, device), rounds, device)


def bench_domains(rounds: int, device: str) -> dict[str, Any]:
    """A step of the smallest network, 96x96, by number of label domains: 20 classes and two images each.

    Args:
        rounds, device: as `bench_r50`.

    Returns:
        by candidate: ``ms`` {number of domains: time}, ``per_domain_ms``: slope of the straight line through them,
        ``off_line``: its largest distance from one of them, as a part of that; but for Multi-datasets ``ratio``
        {number of domains: time over that of Multi-datasets}.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [made_up_domain(Path(folder), number) for number in range(max(COUNTS))]
        candidates = {
            (name, count): step for count in COUNTS for name, step in steps(TINY, files[:count], device).items()
        }
    times = interleaved(candidates, rounds, device)
    best = {name: {count: min(times[name, count]) for count in COUNTS} for name in CANDIDATES}
    report: dict[str, Any] = {}
    for name, by_count in best.items():
        slope, off_line = straight_line(list(by_count), list(by_count.values()))
        report[name] = {
            "ms": {count: 1000 * seconds for count, seconds in by_count.items()},
            "per_domain_ms": 1000 * slope,
            "off_line": off_line,
        }
        if name != BASELINE:
            report[name]["ratio"] = {count: by_count[count] / best[BASELINE][count] for count in COUNTS}
    return report


def straight_line(counts: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Slope of the straight line nearest to the times, and its largest distance from one of them, as a part of that."""
    slope, start = np.polyfit(counts, seconds, 1)
    return float(slope), float(np.abs((start + slope * np.array(counts)) / np.array(seconds) - 1).max())


def compared(candidates: dict[str, TrainStep], rounds: int, device: str) -> dict[str, Any]:
    """Time and memory of the candidates.

    Returns:
        by candidate: ``ms``, ``ratio``, ``median_ratio``, ``peak_mb`` (10^6 bytes), ``peak_ratio``.
    """
    times = interleaved(candidates, rounds, device)
    peaks = {name: peak_bytes(step, device) for name, step in candidates.items()}
    report = {}
    for name in candidates:
        in_turn = [own / other for own, other in zip(times[name], times[BASELINE], strict=True)]
        report[name] = {
            "ms": 1000 * min(times[name]),
            "ratio": min(times[name]) / min(times[BASELINE]),
            "median_ratio": statistics.median(in_turn),
            "peak_mb": peaks[name] / 1e6,
            "peak_ratio": peaks[name] / peaks[BASELINE],
        }
    return report


def steps(network: Network, domains: Sequence[str], device: str) -> dict[str, TrainStep]:
    """A step of training for each candidate.

    Args:
        network: what is trained.
        domains: names or files of label domains.
        device: "cpu" or "cuda".
    """
    batch = make_batch(domains, network.size)
    common = ["MODEL.DEVICE", device, "MODEL.SST.DOMAINS", list(domains)]
    result = {}
    for name, options in CANDIDATES.items():
        torch.manual_seed(0)
        cfg = load_config(get_config_file(network.config), [*common, *options])
        model = SSTTrainer.build_model(cfg).train()
        optimizer = SSTTrainer.build_optimizer(cfg, model)
        step = TrainStep(model, itertools.repeat(batch), optimizer, full_model_clip(cfg), amp_type=None)
        step.iter = 0
        result[name] = step
    return result


def make_batch(domains: Sequence[str], size: int) -> list[dict[str, Any]]:
    """Synthetic photos of people, of each label domain in turn, with its labels or, of one made up, CIHP's."""
    batch = []
    for number in range(IMAGES_PER_DOMAIN * len(domains)):
        domain = get_label_domain(domains[number % len(domains)])
        system = domain.name if domain.name in DOMAINS else "cihp"
        sample = draw_sample(system, (size, size), np.random.default_rng(number))
        batch.append(
            {
                "image": torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1))),
                "sem_seg": torch.from_numpy(to_label(sample.atoms, system).astype(np.int64)),
                "label_domain": domain.name,
            }
        )
    return batch


def made_up_domain(folder: Path, number: int) -> str:
    """Write CIHP's label domain under another name; returns its file."""
    domain = dataclasses.replace(get_label_domain("cihp"), name=f"made_up_{number}")
    path = folder / f"{domain.name}.yaml"
    path.write_text(yaml.safe_dump(domain.to_dict()), encoding="utf-8")
    return str(path)


def interleaved(candidates: dict[Any, TrainStep], rounds: int, device: str) -> dict[Any, list[float]]:
    """Seconds of each candidate's steps; the candidates take turns, after one step each to warm up."""
    seconds: dict[Any, list[float]] = {name: [] for name in candidates}
    for turn in range(rounds + 1):
        for name, step in candidates.items():
            elapsed = timed_step(step, device)
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def timed_step(step: TrainStep, device: str) -> float:
    """Seconds of one step; of one thread on the CPU the processor's."""
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    with EventStorage():
        synchronize(device)
        start = clock()
        step.run_step()
        synchronize(device)
        return clock() - start


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def peak_bytes(step: TrainStep, device: str) -> int:
    """Weights and the optimiser's state, and the most that one step holds besides. The step has run before."""
    step.optimizer.zero_grad()
    state = [value for values in step.optimizer.state.values() for value in values.values()]
    resident = [*step.model.parameters(), *step.model.buffers(), *(v for v in state if isinstance(v, torch.Tensor))]
    return sum(tensor.nbytes for tensor in resident) + (peak_on_cpu(step) if device == "cpu" else peak_on_gpu(step))


def peak_on_cpu(step: TrainStep) -> int:
    """The most bytes that a step has allocated at once, from the profiler's record."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with EventStorage(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of versions of PyTorch that say how their profiler keeps events
        with torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
            step.run_step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(itertools.accumulate(change for _, change in changes))


def peak_on_gpu(step: TrainStep) -> int:
    """The most bytes that a step has allocated at once."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with EventStorage():
        step.run_step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


SECTIONS: dict[str, Callable[[int, str], dict[str, Any]]] = {
    "r50": bench_r50,
    "tiny": bench_tiny,
    "domains": bench_domains,
}


def print_section(name: str, result: dict[str, Any]) -> None:
    """One section as a table."""
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
    if name != "domains":
        rows = [[candidate, *values.values()] for candidate, values in result.items()]
        headers = ["candidate", "ms", "ratio", "median ratio", "peak MB", "ratio"]
        print(tabulate(rows, headers=headers, floatfmt=("", ".1f", ".3f", ".3f", ".1f", ".3f")))
        return
    columns = [values[key] for values in result.values() for key in ("ms", "ratio") if key in values]
    headers = [f"{own} {key}" for own, values in result.items() for key in ("ms", "ratio") if key in values]
    rows = [[count, *(column[count] for column in columns)] for count in columns[0]]
    formats = [".1f" if header.endswith("ms") else ".3f" for header in headers]
    print(tabulate(rows, headers=["domains", *headers], floatfmt=("", *formats)))
    for candidate, values in result.items():
        line = f"{values['per_domain_ms']:.1f} ms more per domain, at most {values['off_line']:.1%} off a straight line"
        print(f"{candidate}: {line}")


def main() -> None:
    """Read the command line, run the sections, print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--rounds", type=int, default=9, help="rounds, at least 7 (default 9)")
    parser.add_argument("--r50-rounds", type=int, default=3, help="rounds of r50: 8 s a step on two cores (default 3)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the networks run (default cpu)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; sections: {', '.join(SECTIONS)}")
    if args.rounds < 7 or args.r50_rounds < 1 or args.threads < 1:
        parser.error(
            f"--rounds {args.rounds} --r50-rounds {args.r50_rounds} --threads {args.threads}: at least 7 rounds, "
            "1 round of R50 and 1 thread are needed"
        )
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU")
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    report: dict[str, Any] = {
        "device": args.device if args.device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "rounds": args.rounds,
        "r50_rounds": args.r50_rounds,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
    }
    for name in args.sections or SECTIONS:
        report[name] = SECTIONS[name](args.r50_rounds if name == "r50" else args.rounds, args.device)
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict)))
    for name in args.sections or SECTIONS:
        print_section(name, report[name])


if __name__ == "__main__":
    main()
