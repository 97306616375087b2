"""A preparation script from its arguments to its exit status; what is special to a data set comes from the script."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tqdm import tqdm

from sst_d2.arguments import available_cores, positive_number
from sst_d2.errors import SSTError
from sst_d2.label_domains import get_label_domain

from .checking import Job, Result, process, refused
from .output import OutputFolder, can_link, refuse_download
from .part_annotations import require_scipy
from .plan import LINKED, DataSet, Pair, Plan
from .report import Tally, print_findings, print_next, print_summary, write_report
from .tree import PreparationError, Tree

Finder = Callable[[Tree, argparse.Namespace], Plan]


def make_parser(data_set: DataSet, download: str) -> argparse.ArgumentParser:
    """The arguments that all preparation scripts have.

    Args:
        data_set: the data set.
        download: what the folder should hold, for the help.
    """
    parser = argparse.ArgumentParser(
        description=f"Prepare {data_set.title} for sst_d2: check every photo and label map, link them to where the "
        "built-in card looks, write the lists of ids. The download is never written to."
    )
    add = parser.add_argument
    add("download", type=Path, metavar="DOWNLOAD", help=f"folder with {download}, or one above it")
    add("--output", type=Path, metavar="DIR", help=f"folder to write (default: {data_set.built_in_folder()})")
    add(
        "--workers", type=positive_number, default=available_cores(), metavar="N", help="processes (default: all cores)"
    )
    add("--check-only", action="store_true", help="read and report, write nothing")
    add("--copy", action="store_true", help="copy the files instead of linking them")
    add("--skip-bad", action="store_true", help="leave pairs with errors out of the lists instead of stopping")
    add("--force", action="store_true", help="replace what an earlier preparation has put into the output")
    add("--report", type=Path, metavar="FILE", help="write all findings to a file")
    return parser


def run(data_set: DataSet, args: argparse.Namespace, find: Finder) -> int:
    """Run a preparation; returns the exit status: 0 done, 1 failed, 130 interrupted.

    Args:
        data_set: the data set.
        args: the parsed arguments of `make_parser`.
        find: makes the plan from the download.
    """
    try:
        return _prepare(data_set, args, find)
    except SSTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. Can the download be read, and the output be written, with room?", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        after = "nothing was written" if args.check_only else "run the same command again: it continues"
        print(f"\nInterrupted; {after}.", file=sys.stderr)
        return 130


def _prepare(data_set: DataSet, args: argparse.Namespace, find: Finder) -> int:
    tree = Tree(args.download)
    if args.report is not None and tree.root in Path(os.path.abspath(args.report.expanduser())).parents:
        raise PreparationError(f"--report {args.report} lies inside the download, which is never written to")
    plan = find(tree, args)
    if plan.labels == "mat":
        require_scipy()
    print(f"{data_set.title}: {plan.origin}")
    for note in plan.notes:
        print(f"  note: {note}")
    if args.check_only:
        return _check(data_set, plan, args)
    return _write(data_set, plan, args)


def _check(data_set: DataSet, plan: Plan, args: argparse.Namespace) -> int:
    job = Job(data_set.card()["label_domain"], plan.labels, None)
    good, tally = _process_all(data_set, plan, job, args.workers, {})
    _report(plan, good, tally, args)
    print("Only checked: nothing was written.")
    return 1 if tally.bad else 0


def _write(data_set: DataSet, plan: Plan, args: argparse.Namespace) -> int:
    output = data_set.built_in_folder() if args.output is None else args.output.expanduser()
    refuse_download(output, args.download, plan.folders)
    copy = args.copy or not can_link(output)
    built_in = os.path.realpath(output) == os.path.realpath(data_set.built_in_folder())
    with_card = not built_in or not set(plan.sizes()) <= set(data_set.card()["splits"])
    folder = OutputFolder(output, data_set, plan, copy, with_card)
    left_out = None if args.force else folder.left_out()
    if left_out is not None and (args.skip_bad or not left_out):
        gone = f", {len(left_out)} bad ones left out (--force reads them again)" if left_out else ""
        print(f"{output} already holds these {len(plan.pairs) - len(left_out):,} pairs{gone}: nothing to do.")
        kept = dict.fromkeys(pair.split for pair in plan.pairs if pair.id not in set(left_out))
        print_next(data_set, output, kept, with_card)
        return 0
    if left_out:
        raise PreparationError(
            f"{output} was prepared with --skip-bad, which left out {len(left_out)} pairs ({left_out[0]} …); mend "
            "them, or pass it again to keep that, or --force to prepare anew"
        )
    job = Job(data_set.card()["label_domain"], plan.labels, Path(os.path.abspath(output)), copy)
    try:
        known = folder.open(args.force)
        _print_notes(folder, copy and not args.copy)
        good, tally = _process_all(data_set, plan, job, args.workers, known, folder)
        _report(plan, good, tally, args)
        _refuse_bad(plan, good, args.skip_bad)
        folder.finish(good)
    finally:
        folder.close()
    files = "copies" if copy else "links into the download"
    print(f"Output: {output} ({f'all {files}' if plan.labels == LINKED else f'photos {files}, label maps written'})")
    print_next(data_set, output, dict.fromkeys(pair.split for pair in good), with_card)
    return 0


def _print_notes(folder: OutputFolder, cannot_link: bool) -> None:
    if cannot_link:
        print(f"  note: links cannot be made in {folder.path}; the files are copied")
    if folder.changed:
        count, first = len(folder.changed), folder.changed[0]
        print(f"  note: the files of {count:,} pairs have changed since they were prepared ({first} …)")


def _refuse_bad(plan: Plan, good: list[Pair], skip_bad: bool) -> None:
    """Raise where bad pairs may not be left out, or where a split would be left without any."""
    bad = len(plan.pairs) - len(good)
    if bad and not skip_bad:
        raise PreparationError(
            f"{bad} of {len(plan.pairs):,} pairs cannot be used, so no list was written. Mend them and run again "
            "(good ones are not read twice), or pass --skip-bad to leave them out"
        )
    left = {pair.split for pair in good}
    emptied = [f"'{split}' ({count:,} pairs)" for split, count in plan.sizes().items() if split not in left]
    if emptied:
        raise PreparationError(
            f"--skip-bad would leave nothing of the split {' and of '.join(emptied)}, so no list was written. Mend its "
            "pairs and run again (good ones are not read twice)"
        )


def _process_all(
    data_set: DataSet,
    plan: Plan,
    job: Job,
    workers: int,
    known: Mapping[tuple[str, str], Result],
    folder: OutputFolder | None = None,
) -> tuple[list[Pair], Tally]:
    """Process all pairs that are not known to be good; returns the good ones and the counts."""
    todo = [pair for pair in plan.pairs if not pair.faults and (pair.split, pair.id) not in known]
    if known:
        print(f"  {len(known):,} pairs are done already, {len(todo):,} to do")
    tally = Tally(data_set, plan.sizes(), get_label_domain(job.domain))
    results: dict[tuple[str, str], bool] = {}

    def _count(result: Result) -> None:
        tally.add(result)
        results[result.split, result.id] = not result.errors()

    for result in [*known.values(), *(refused(pair) for pair in plan.pairs if pair.faults)]:
        _count(result)
    start = time.perf_counter()
    every = 0.3 if sys.stderr.isatty() else 10.0
    steps = zip(todo, process(todo, job, workers), strict=True)
    bar = tqdm(steps, total=len(todo), unit="pair", desc=data_set.title, mininterval=every, disable=not todo)
    for pair, result in bar:
        _count(result)
        if folder and not result.errors():
            folder.record(pair, result)
    seconds = time.perf_counter() - start
    if todo:
        print(f"  {len(todo):,} pairs in {seconds:.1f} s, {len(todo) / max(seconds, 1e-9):.0f} a second")
    tally.conclude()
    return [pair for pair in plan.pairs if results[pair.split, pair.id]], tally


def _report(plan: Plan, good: list[Pair], tally: Tally, args: argparse.Namespace) -> None:
    print_findings(tally, args.skip_bad)
    if args.report is not None:
        write_report(args.report.expanduser(), tally)
    counts = dict.fromkeys(plan.sizes(), 0)
    for pair in good:
        counts[pair.split] += 1
    print_summary(plan, counts, tally)
