"""What the user is told: findings, the summary, the next commands."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from people_generator.folder import write_file

from sst_d2.data.census import Census
from sst_d2.data.census import DataSet as CensusDataSet
from sst_d2.data.inspection import ERROR, WARNING, Finding
from sst_d2.label_domains import LabelDomain

from .checking import Result
from .output import CARD
from .plan import DataSet, Plan

SHOWN = 20
_TIE = "\0"  # a space where no line may end


class Tally:
    """Counts over the results of a run, split by split."""

    def __init__(self, data_set: DataSet, splits: Iterable[str], domain: LabelDomain) -> None:
        self.data_set = data_set
        self.domain = domain
        self.censuses = {split: Census(domain) for split in splits}
        self.bad = 0

    def add(self, result: Result) -> None:
        """Count one pair."""
        self.censuses[result.split].add(result.inspection)
        self.bad += bool(result.errors())

    def conclude(self) -> None:
        """Add what only the whole of a split shows (`sst_d2.data.census.Census.conclude`)."""
        for split, census in self.censuses.items():
            name = f"{self.data_set.title} {split}"
            census.conclude(CensusDataSet(name, self.domain, []))
            prefix = f"data set '{name}': "
            census.findings = [replace(f, message=f.message.removeprefix(prefix)) for f in census.findings]

    def findings(self, severity: str) -> list[Finding]:
        """All findings of a severity."""
        return [f for census in self.censuses.values() for f in census.findings if f.severity == severity]

    def pixels(self) -> np.ndarray:
        """(256,) int64, over all splits."""
        return np.sum([census.pixels for census in self.censuses.values()], axis=0)


def print_findings(tally: Tally, left_out: bool) -> None:
    """Print errors and warnings on the standard error, of each the first ones, and how many there are.

    Args:
        tally: the counts.
        left_out: pairs with errors are left out instead of stopping the preparation.
    """
    for severity, word in ((WARNING, "warning"), (ERROR, "left out" if left_out else "error")):
        findings = tally.findings(severity)
        for finding in findings[:SHOWN]:
            print(f"{word}: {finding.path}: {finding.message}", file=sys.stderr)
        if len(findings) > SHOWN:
            more = len(findings) - SHOWN
            print(f"{word}: … and {more} more; --report FILE writes all of them", file=sys.stderr)


def write_report(path: Path, tally: Tally) -> None:
    """Write all findings, one a line."""
    lines = [
        f"{finding.severity}  {finding.kind}  {finding.path}: {finding.message}\n"
        for severity in (ERROR, WARNING)
        for finding in tally.findings(severity)
    ]
    write_file(path, "".join(lines).encode())


def print_summary(plan: Plan, counts: Mapping[str, int], tally: Tally) -> None:
    """Print images per split beside the published numbers, and the share of each class.

    Args:
        plan: what was read.
        counts: split -> images that are good.
        tally: the counts.
    """
    data_set, domain = tally.data_set, tally.domain
    for split, count in counts.items():
        print(f"  {split:5} {count:7,} images{_published(data_set, split, plan.sizes()[split], count)}")
    pixels = tally.pixels()
    total = max(1, int(pixels.sum()))
    named = [*enumerate(domain.classes), *([(domain.ignore_label, "(ignore)")] if pixels[domain.ignore_label] else [])]
    shares = ", ".join(f"{name}{_TIE}{_percent(pixels[index] / total)}" for index, name in named)
    print(
        textwrap.fill(f"  pixels: {shares}", 110, subsequent_indent=" " * 10, break_on_hyphens=False).replace(_TIE, " ")
    )


def _published(data_set: DataSet, split: str, listed: int, good: int) -> str:
    """What there is to say about a number of images."""
    numbers = data_set.published.get(split, ())
    text = f" of {listed:,}" if good != listed else ""
    if listed in numbers:
        text += ", as published"
    elif numbers:
        text += f"; warning: the published number is {' or '.join(f'{number:,}' for number in numbers)}"
    remark = data_set.remarks.get((split, listed))
    return text + (f" ({remark})" if remark else "")


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else ("<0.1%" if share else "none")


def print_next(data_set: DataSet, output: Path, splits: Iterable[str], with_card: bool) -> None:
    """Print what to type next."""
    splits = list(splits)
    name = data_set.card()["name"]
    card = str(Path(os.path.abspath(output)) / CARD)
    names = [card] if with_card else [name.format(split=split) for split in splits]
    print(f"Check:  python datasets/check_dataset.py {' '.join(names)}")
    if "train" not in splits:
        print(f"Train:  not with this alone; it has no split 'train', only {', '.join(splits)}")
        return
    command = ["python train_net.py --config-file", *_configuration(data_set, splits)]
    if with_card:
        command += ["DATASETS.SST.CARDS", f"\"['{card}']\""]
    print(f"Train:  {' '.join(command)}")


def _configuration(data_set: DataSet, splits: list[str]) -> list[str]:
    """A configuration file, and what it needs to be told."""
    words = [f"configs/single/{data_set.name}_R50.yaml"]
    tested = next((split for split in (_usual_test(data_set), "test", "val") if split in splits), None)
    if tested != _usual_test(data_set):
        names = "" if tested is None else f"'{data_set.card()['name'].format(split=tested)}',"
        words += ["DATASETS.TEST", f'"({names})"']
    return words


def _usual_test(data_set: DataSet) -> str:
    """The split that the configurations evaluate on: the last one of the built-in card."""
    return data_set.card()["splits"][-1]
