#!/usr/bin/env python3
"""Read every photo and label map of data sets, and say what is wrong with them.

    python datasets/check_dataset.py CARD|NAME [CARD|NAME ...] [--workers N] [--json] [--limit-lines N]

A CARD is a YAML file (all its splits are checked), a NAME a built-in data set (``cihp_sem_seg_train`` …, below
``${DETECTRON2_DATASETS:-datasets}``). One line per finding, ``error  kind  path: message``; then, for each data set, a
table of images and pixels per class. Errors are what training or evaluation would stop at; warnings are worth a look.
The exit status is 0, or 1 if there is an error. Nothing is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

try:
    from tabulate import tabulate
    from tqdm import tqdm

    from sst_d2.arguments import available_cores, positive_number, whole_number
    from sst_d2.data.census import Census, DataSet, open_data_sets, take_census
    from sst_d2.data.inspection import ERROR, WARNING
    from sst_d2.errors import SSTError
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e .")

_CHUNK = 32  # samples that a worker reads at a time


def check(data_sets: Sequence[DataSet], workers: int, show_progress: bool) -> list[Census]:
    """Read all samples in ``workers`` processes (1: in this one); one concluded census per data set."""
    censuses = [Census(data_set.domain) for data_set in data_sets]
    portions = [
        (number, data_set.samples[first : first + _CHUNK], data_set.domain)
        for number, data_set in enumerate(data_sets)
        for first in range(0, len(data_set.samples), _CHUNK)
    ]
    total = sum(len(data_set.samples) for data_set in data_sets)
    with tqdm(total=total, unit="image", desc="reading", disable=not show_progress) as bar:
        for number, part in _read(portions, workers):
            censuses[number].merge(part)
            bar.update(part.images)
    for census, data_set in zip(censuses, data_sets, strict=True):
        census.conclude(data_set)
    return censuses


def _read(portions: list[tuple], workers: int) -> Iterator[tuple[int, Census]]:
    if workers == 1 or len(portions) < 2:
        yield from map(_read_portion, portions)
        return
    # Ctrl-C is for this process, which then stops the workers.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    executor = ProcessPoolExecutor(min(workers, len(portions)), initializer=ignore)
    try:
        yield from executor.map(_read_portion, portions)
    finally:
        executor.shutdown(cancel_futures=True)


def _read_portion(portion: tuple) -> tuple[int, Census]:
    number, samples, domain = portion
    with _without_pillows_warnings():
        return number, take_census(samples, domain)


@contextlib.contextmanager
def _without_pillows_warnings() -> Iterator[None]:
    """What matters of them becomes a finding."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def class_rows(census: Census) -> list[dict[str, Any]]:
    """Images, pixels and share of the pixels (0 to 1) of each class, and of 'ignore' where it occurs."""
    domain = census.domain
    named = [*enumerate(domain.classes)]
    if census.pixels[domain.ignore_label]:
        named.append((domain.ignore_label, "(ignore)"))
    pixels = max(1, int(census.pixels.sum()))
    return [
        {
            "id": identifier,
            "class": name,
            "images": int(census.images_with[identifier]),
            "pixels": int(census.pixels[identifier]),
            "share": float(census.pixels[identifier] / pixels),
        }
        for identifier, name in named
    ]


def print_report(data_sets: Sequence[DataSet], censuses: Sequence[Census], seconds: float, limit: int) -> None:
    """Findings, a table for each data set, and a line of totals, on the standard output."""
    findings = [finding for census in censuses for finding in census.findings]
    for finding in findings[:limit]:
        print(f"{finding.severity}  {finding.kind}  {finding.path}: {finding.message}")
    if len(findings) > limit:
        print(f"… and {len(findings) - limit} more; --limit-lines {len(findings)} shows all")
    for data_set, census in zip(data_sets, censuses, strict=True):
        modes = [f"{count} {mode}" for mode, count in census.modes.most_common() if mode != "RGB"]
        others = f" (photos that become RGB: {', '.join(modes)})" if modes else ""
        print(f"\n{data_set.name}, label domain '{data_set.domain.name}', {census.images} images{others}")
        if census.images:
            print(_table(census))
    errors, doubts = (sum(census.count(severity) for census in censuses) for severity in (ERROR, WARNING))
    images = sum(census.images for census in censuses)
    print(
        f"\n{len(censuses)} data set(s), {images} images in {seconds:.1f} s ({images / max(seconds, 1e-9):.0f} per s): "
        f"{errors} error(s), {doubts} warning(s)",
        flush=True,
    )


def _table(census: Census) -> str:
    return tabulate(
        [[row["id"], row["class"], row["images"], row["pixels"], f"{row['share']:.3%}"] for row in class_rows(census)],
        headers=["id", "class", "images", "pixels", "share"],
        tablefmt="github",
        colalign=("right", "left", "right", "right", "right"),
        disable_numparse=True,
    )


def json_report(data_sets: Sequence[DataSet], censuses: Sequence[Census], seconds: float) -> dict[str, Any]:
    """The same as one object of plain values."""
    return {
        "errors": sum(census.count(ERROR) for census in censuses),
        "warnings": sum(census.count(WARNING) for census in censuses),
        "images": sum(census.images for census in censuses),
        "seconds": round(seconds, 3),
        "data_sets": [
            {
                "name": data_set.name,
                "label_domain": data_set.domain.name,
                "card": None if data_set.card is None else str(data_set.card.source),
                "images": census.images,
                "errors": census.count(ERROR),
                "warnings": census.count(WARNING),
                "photo_modes": dict(census.modes),
                "classes": class_rows(census),
                "findings": [vars(finding) for finding in census.findings],
            }
            for data_set, census in zip(data_sets, censuses, strict=True)
        ],
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description="Read every photo and label map, and say what is wrong with them.")
    add = parser.add_argument
    add("data_sets", nargs="+", metavar="CARD|NAME", help="a dataset card (.yaml), or the name of a built-in data set")
    add(
        "--workers", type=positive_number, default=available_cores(), metavar="N", help="processes (default: all cores)"
    )
    add("--json", action="store_true", help="print one JSON object instead of lines and tables")
    add("--limit-lines", type=whole_number, default=200, metavar="N", help="findings to print (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 (no error), 1 (an error, or it failed), 130 (interrupted)."""
    args = parse_args(argv)
    start = time.perf_counter()
    try:
        with _without_pillows_warnings():
            data_sets = open_data_sets(args.data_sets)
        censuses = check(data_sets, args.workers, show_progress=sys.stderr.isatty() and not args.json)
    except SSTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print("error: a worker ended early (out of memory?). Run again with fewer --workers.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    seconds = time.perf_counter() - start
    try:
        if args.json:
            print(json.dumps(json_report(data_sets, censuses, seconds), indent=1, ensure_ascii=False), flush=True)
        else:
            print_report(data_sets, censuses, seconds, args.limit_lines)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if any(census.count(ERROR) for census in censuses) else 0


if __name__ == "__main__":
    sys.exit(main())
