"""The records of all finished runs of a scale, asked by row, data set and seed."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from reproduction.inventory import check_settings
from reproduction.places import Places, ReproductionError, read_json
from reproduction.rows import ROWS
from reproduction.scales import Scale
from reproduction.settings import Run

OWN, HELDOUT = "own", "heldout"


class Results:
    """Records by row and seed.

    Args:
        scale: of the runs.
        places: the folders; read is ``results`` alone.

    Raises:
        ReproductionError: a record cannot be read, or was made with other settings than the scale has now.
    """

    def __init__(self, scale: Scale, places: Places) -> None:
        self.scale = scale
        self.records: dict[str, dict[int, dict[str, Any]]] = {}
        for row in ROWS:
            for path in sorted((places.results / row).glob("seed*.json")):
                record = read_json(path)
                check_settings(Run(row, record["seed"], scale), record, path)
                self.records.setdefault(row, {})[record["seed"]] = record
        starts = {record["trunk_sha256"] for record in self.all()}
        if len(starts) > 1:
            raise ReproductionError(
                f"{places.results}: its runs did not have the same start; SHA-256 of their weights: "
                f"{', '.join(digest or 'none' for digest in sorted(starts))}"
            )

    def all(self) -> Iterable[dict[str, Any]]:
        """Every record."""
        return (record for by_seed in self.records.values() for record in by_seed.values())

    def scores(self, row: str, domain: str, metric: str, place: str) -> dict[int, float]:
        """One metric by seed; of a row that has no such head, {}.

        Args:
            row: a name of `ROWS`.
            domain: label domain of the head.
            metric: "mIoU", "mACC" or "pACC".
            place: `OWN`: the domain's validation set; `HELDOUT`: the set that no row trains on.
        """
        found = {}
        for seed, record in self.records.get(row, {}).items():
            for name, scores in record["scores"].items():
                held_out = name in self.scale.heldout.values()
                if scores["label_domain"] == domain and held_out == (place == HELDOUT) and scores[metric] is not None:
                    found[seed] = scores[metric]
        return found

    def figure(self, row: str, key: str) -> float | None:
        """Median over seeds of a number that stands in the records; None without one."""
        values = [r[key] for r in self.records.get(row, {}).values() if r[key] is not None]
        return statistics.median(values) if values else None

    def relative(self, row: str, other: str, key: str) -> float | None:
        """Median over common seeds of the ratio of a number to another row's; None without a common seed."""
        own, theirs = self.records.get(row, {}), self.records.get(other, {})
        ratios = [own[seed][key] / theirs[seed][key] for seed in own.keys() & theirs.keys()]
        return statistics.median(ratios) if ratios else None

    def places(self) -> list[str]:
        """`OWN`, and `HELDOUT` where the scale has such sets."""
        return [OWN, HELDOUT] if self.scale.heldout else [OWN]
