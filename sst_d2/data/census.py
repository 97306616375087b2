"""`Census`: what is in a data set and what is wrong with it, counted over all of its samples.

`open_data_sets` finds the samples of cards and names and looks at their lists of ids; `take_census` reads samples, in
as many portions and processes as one likes; `Census.merge` adds up; `Census.conclude` says what only the whole shows.
"""

from __future__ import annotations

import difflib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from sst_d2.data import cards
from sst_d2.data.body_layout import BodyLayout
from sst_d2.data.cards import DatasetCard, read_dataset_cards
from sst_d2.data.inspection import ERROR, WARNING, Finding, Inspection, explain_ids, inspect_sample
from sst_d2.errors import DatasetCardError
from sst_d2.label_domains import LabelDomain, get_label_domain

_SHOWN = 5


@dataclass
class DataSet:
    """A data set to be read.

    Attributes:
        name: its name in the catalogs, or that its card gives it.
        domain: its label domain.
        samples: its dataset dicts; empty where its list of ids cannot be read.
        findings: what its list of ids, and the files beside those that it names, give reason to say.
        card: where it comes from; None: registered by other code.
    """

    name: str
    domain: LabelDomain
    samples: list[dict[str, Any]] = field(repr=False)
    findings: list[Finding] = field(default_factory=list)
    card: DatasetCard | None = None


class Census:
    """Counts and findings of one data set, or of a part of it.

    Args:
        domain: the label domain of the samples.

    Attributes:
        images: samples that were read.
        findings: errors and warnings.
        pixels: (256,) int64, pixels of each id.
        images_with: (256,) int64, label maps that each id occurs in.
        layout: where the body parts lie.
        refused_ids: ids in label maps that were refused for their ids.
        modes: photos by Pillow's name of their kind of pixels ("RGB", "L", "CMYK" …).
    """

    def __init__(self, domain: LabelDomain) -> None:
        self.domain = domain
        self.images = 0
        self.findings: list[Finding] = []
        self.pixels = np.zeros(256, dtype=np.int64)
        self.images_with = np.zeros(256, dtype=np.int64)
        self.layout = BodyLayout(domain)
        self.refused_ids: set[int] = set()
        self.modes: Counter[str] = Counter()

    def add(self, inspection: Inspection) -> None:
        """Count one sample."""
        self.images += 1
        self.findings += inspection.findings
        self.pixels += inspection.pixels
        self.images_with += inspection.pixels > 0
        self.layout.add(inspection.pixels, inspection.centres)
        self.refused_ids.update(inspection.refused_ids)
        if inspection.photo is not None:
            self.modes[inspection.photo.mode] += 1

    def merge(self, other: Census) -> None:
        """Count what another census of the same data set has counted."""
        self.images += other.images
        self.findings += other.findings
        self.pixels += other.pixels
        self.images_with += other.images_with
        self.layout.merge(other.layout)
        self.refused_ids |= other.refused_ids
        self.modes += other.modes

    def conclude(self, data_set: DataSet) -> None:
        """Add the findings about the data set as a whole."""
        where = data_set.name if data_set.card is None else str(data_set.card.source)
        remapped = data_set.card is not None and data_set.card.remap is not None
        doubts = self.layout.doubts()
        if self.refused_ids and not remapped:
            reason = explain_ids(self.refused_ids.union(np.flatnonzero(self.pixels).tolist()), self.domain)
            doubts += [("ids", reason)] if reason else []
        doubts = [Finding(WARNING, kind, where, f"data set '{data_set.name}': {text}") for kind, text in doubts]
        self.findings = [*data_set.findings, *self.findings, *doubts]

    def count(self, severity: str) -> int:
        """Findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def take_census(samples: Iterable[Mapping[str, Any]], domain: LabelDomain) -> Census:
    """Read samples, photo and label map, to the end. Bad data raise nothing."""
    census = Census(domain)
    for sample in samples:
        census.add(inspect_sample(sample, domain))
    return census


def open_data_sets(references: Iterable[str]) -> list[DataSet]:
    """The data sets that cards (paths of YAML files, with all their splits) and registered names stand for.

    Raises:
        DatasetCardError: a card is not usable, or a name is not known. A list of ids that is not usable raises
            nothing: it becomes a finding.
        LabelDomainError: a label domain is not usable.
    """
    data_sets = []
    for reference in dict.fromkeys(references):
        if reference.endswith((".yaml", ".yml")):
            opened = [_open(card) for card in read_dataset_cards(reference)]
            _compare_splits(opened)
            data_sets += opened
        else:
            data_sets.append(_open_name(reference))
    return data_sets


def _open_name(name: str) -> DataSet:
    for path in sorted(Path(cards.__file__).with_suffix("").glob("*.yaml")):
        for card in read_dataset_cards(path):
            if card.name == name:
                return _open(card)
    if name not in DatasetCatalog.list():
        known = sorted(known for known in DatasetCatalog.list() if MetadataCatalog.get(known).get("label_domain"))
        similar = difflib.get_close_matches(name, known)
        raise DatasetCardError(
            f"'{name}' is no data set that is known by name, and no card (the path of a .yaml file); "
            + (f"did you mean: {', '.join(similar)}?" if similar else f"known names: {', '.join(known)}")
        )
    domain = MetadataCatalog.get(name).get("label_domain")
    if domain is None:
        raise DatasetCardError(f"data set '{name}' does not say its label domain; write a dataset card for it")
    return DataSet(name, get_label_domain(domain), DatasetCatalog.get(name))


def _open(card: DatasetCard) -> DataSet:
    """Load a card. A list of ids that names some twice is a finding; each is read once then."""
    try:
        return DataSet(card.name, card.domain, card.load(), card=card)
    except DatasetCardError as reason:
        findings = [Finding(ERROR, "card", str(card.source), str(reason))]
        ids = _lines(card)
        doubles = [name for name, count in Counter(ids).items() if count > 1]
        if not doubles:
            return DataSet(card.name, card.domain, [], findings, card)
    path = str(card.folder() / card.ids)
    findings = [Finding(ERROR, "listed_twice", path, f"{len(doubles)} ids stand more than once: {_some(doubles)}")]
    with tempfile.TemporaryDirectory() as folder:
        once = Path(folder) / "ids.txt"
        once.write_text("\n".join(dict.fromkeys(ids)), encoding="utf-8")
        return DataSet(card.name, card.domain, replace(card, ids=str(once)).load(), findings, card)


def _lines(card: DatasetCard) -> list[str]:
    """The entries of a list of ids as they stand; empty where there is no list that can be read."""
    try:
        text = (card.folder() / card.ids).read_text(encoding="utf-8") if card.ids else ""
    except (OSError, UnicodeDecodeError, DatasetCardError):
        return []  # already a finding
    return [line.strip() for line in text.splitlines() if line.strip()]


def _compare_splits(data_sets: Sequence[DataSet]) -> None:
    """Add findings about images that two splits of a card hold, and about files that none of them names."""
    if not all(data_set.samples for data_set in data_sets):
        return
    photos = {data_set.name: {sample["file_name"] for sample in data_set.samples} for data_set in data_sets}
    for data_set, other in combinations(data_sets, 2):
        shared = sorted(photos[data_set.name] & photos[other.name])
        if shared:
            message = f"{len(shared)} images are in '{data_set.name}' and in '{other.name}': {_some(shared)}"
            other.findings.append(Finding(WARNING, "two_splits", str(other.card.source), message))
    keys = ("file_name", "sem_seg_file_name", "remapped_label_file_name")
    samples = [sample for data_set in data_sets for sample in data_set.samples]
    for key in keys:
        data_sets[-1].findings += _unlisted({sample[key] for sample in samples if key in sample})


def _unlisted(listed: set[str]) -> list[Finding]:
    """A warning for each folder that holds files with the endings of the listed ones, but not on the list."""
    folders = defaultdict(set)
    for path in listed:
        folder, name = os.path.split(path)
        folders[folder].add(name)
    findings = []
    for folder, names in sorted(folders.items()):
        endings = {os.path.splitext(name)[1] for name in names}
        if os.path.isdir(folder):
            more = sorted(
                name
                for name in set(os.listdir(folder)) - names
                if os.path.splitext(name)[1] in endings and name[0] != "."
            )
            if more:
                message = f"{len(more)} files that no list of ids names: {_some(more)}"
                findings.append(Finding(WARNING, "unlisted", folder, message))
    return findings


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (" …" if len(names) > _SHOWN else "")
