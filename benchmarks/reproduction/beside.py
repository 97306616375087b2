"""Every universal row beside a baseline, by the mean of all data sets: one figure per run instead of three."""

from __future__ import annotations

import statistics

from reproduction.claims import ABLATION
from reproduction.results import Results
from reproduction.rows import ALL, ROWS
from reproduction.statistics import Difference, paired

#: Multi-datasets, and MSA and MSE without MST: what a row has to beat, and what MST adds.
BASELINES: dict[str, str] = {"Multi-datasets": ABLATION[1], "MSE alone": ABLATION[3]}


def universal_rows() -> list[str]:
    """Rows with a head for every data set."""
    return [name for name, row in ROWS.items() if row.domains == ALL]


def mean_scores(results: Results, row: str, place: str) -> dict[int, float]:
    """Mean mIoU of a row's data sets by seed; seeds without all of them are left out."""
    by_domain = [results.scores(row, domain, "mIoU", place) for domain in ALL]
    seeds = set.intersection(*map(set, by_domain))
    return {seed: statistics.fmean(scores[seed] for scores in by_domain) for seed in sorted(seeds)}


def beside(results: Results, row: str, place: str) -> dict[str, Difference]:
    """A row's mean mIoU minus each baseline's, paired over seeds."""
    own = mean_scores(results, row, place)
    return {words: paired(own, mean_scores(results, other, place)) for words, other in BASELINES.items()}
