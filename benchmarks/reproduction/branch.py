"""What the training-only branch does, by row: how alike the categories become, what is left to compare, who pulls."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping

from reproduction.results import Results
from reproduction.rows import ROWS

Figures = Mapping[str, float]
SEGMENTATION = "loss_seg"
_GRADIENT, _ALIGNMENT = "sst/gradient/", "sst/alignment/"


def mean_of(prefix: str) -> Callable[[Figures], float | None]:
    """The mean of the figures whose name begins so, over domains or pairs."""

    def mean(figures: Figures) -> float | None:
        values = [value for name, value in figures.items() if name.startswith(prefix)]
        return statistics.fmean(values) if values else None

    return mean


def pull_of(kind: str) -> Callable[[Figures], float | None]:
    """The norm of a kind of loss's gradient on F, as a part of the segmentation losses'.

    Over domains or pairs the root of the sum of squares: exact where losses touch different images.
    """

    def pull(figures: Figures) -> float | None:
        own, task = (_norm(figures, name) for name in (kind, SEGMENTATION))
        return own / task if own and task else None

    return pull


def _norm(figures: Figures, kind: str) -> float:
    return math.hypot(*(value for name, value in figures.items() if name.startswith(f"{_GRADIENT}{kind}/")))


COLUMNS: dict[str, Callable[[Figures], float | None]] = {
    "cosine of X_0": mean_of("sst/cosine_x0/"),
    "cosine of X_3": mean_of("sst/cosine_x3/"),
    "mismatch": mean_of("sst/scr_image_present/"),
    "mIoU of A_aux": mean_of("sst/miou_aux/"),
    **{
        words: function
        for loss, kind in (("L_aux", "loss_aux"), ("L_SCR image", "loss_scr_image"), ("prediction", "loss_pred"))
        for words, function in (
            (f"pull of {loss}", pull_of(kind)),
            (f"{loss}: cosine with the task", mean_of(f"{_ALIGNMENT}{kind}")),
        )
    },
}


def first_and_last(results: Results, row: str, figure: Callable[[Figures], float | None]) -> list[float] | None:
    """A figure at the first evaluation and at the last one, each the mean over seeds; None without it."""
    ends = []
    for place in (0, -1):
        found = [figure(r["branch"][place][1]) for r in results.records.get(row, {}).values() if r["branch"]]
        values = [value for value in found if value is not None]
        if not values:
            return None
        ends.append(statistics.fmean(values))
    return ends


def branch_lines(results: Results) -> list[list[str]]:
    """A line per row that has a branch: its name, and "first → last" for each of `COLUMNS`; "–": not there."""
    lines = []
    for row in ROWS:
        if any(record["branch"] for record in results.records.get(row, {}).values()):
            ends = [first_and_last(results, row, figure) for figure in COLUMNS.values()]
            lines.append([row, *("–" if pair is None else f"{pair[0]:.3g} → {pair[1]:.3g}" for pair in ends)])
    return lines
