"""Pictures of the records: how the scores grow, and what becomes of the categories in the branch."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproduction.claims import ABLATION
from reproduction.results import OWN, Results
from reproduction.rows import ALL, P
from reproduction.tables import TITLES
from sst_d2.files import write_whole

CURVES, CATEGORIES = "curves.png", "categories.png"
_PLACES = {OWN: "own validation images", "heldout": "held-out images of all styles"}
_MSE = ABLATION[3]
# Rows that have a curve for every domain, then those of PASCAL-Person-Part alone; words and colour.
_LINES = {
    "multi_datasets": ("Multi-datasets", "tab:gray"),
    _MSE: ("MSE alone", "tab:green"),
    "universal_full": ("SST, full", "tab:red"),
    "universal_progressive": ("SST, progressive", "tab:orange"),
    "universal_stable": ("SST, stable", "tab:blue"),
}
_DEDICATED = {
    "finetune_100": ("Finetune 100 %", "tab:olive"),
    "cihp_to_pascal": ("SST, from CIHP", "tab:purple"),
    "atr_cihp_to_pascal": ("SST, from ATR & CIHP", "tab:pink"),
}
_FIGURES = {
    "sst/cosine_x0/": "mean cosine of two rows of X_0",
    "sst/cosine_x3/": "mean cosine of two rows of X_3",
    "sst/scr_image_present/": "mismatch of images, present categories",
    "sst/miou_aux/": "mIoU of A_aux on the training batch",
}


class Curve(NamedTuple):
    """Points by step: mean over seeds, and the lowest and the highest of them."""

    steps: list[int]
    means: list[float]
    lowest: list[float]
    highest: list[float]


def draw(results: Results, folder: Path) -> list[Path]:
    """Write `CURVES` and, where a row has a branch, `CATEGORIES`.

    Args:
        results: the records.
        folder: an existing one.

    Returns:
        the files.
    """
    written = []
    for name, figure in ((CURVES, curves(results)), (CATEGORIES, categories(results))):
        if figure is not None:
            # Without the version of the program, equal records give equal files.
            save = partial(figure.savefig, format="png", dpi=90, metadata={"Software": None})
            write_whole(folder / name, save)
            written.append(folder / name)
    return written


def curves(results: Results) -> Figure | None:
    """mIoU by step: a panel per domain and place; None without a record."""
    if not results.records:
        return None
    places = results.places()
    figure = Figure(figsize=(4.2 * len(ALL), 3.4 * len(places)), layout="constrained")
    panels = figure.subplots(len(places), len(ALL), squeeze=False)
    for panel_row, place in zip(panels, places, strict=True):
        for panel, domain in zip(panel_row, ALL, strict=True):
            own = {f"single_{domain}": ("Single-dataset", "black"), **_LINES, **(_DEDICATED if domain == P else {})}
            for row, (words, colour) in own.items():
                _line(panel, score_curve(results, row, domain, place), words, colour)
            panel.set_title(f"{TITLES[domain]}, {_PLACES[place]}", fontsize=9)
            if panel.lines:
                panel.legend(fontsize=7)
        panel_row[0].set_ylabel("mIoU, %")
    _steps(panels[-1])
    return figure


def categories(results: Results) -> Figure | None:
    """Figures of `BranchLog` by step, of the rows with a branch; means over domains or pairs. None without any."""
    named = {row: _LINES[row][0] for row in (_MSE, "universal_full", "universal_progressive", "universal_stable")}
    named |= {ABLATION[4]: "data-set level alone", ABLATION[5]: "image level alone"}
    found = {row: words for row, words in named.items() if any(branch_curve(results, row, key) for key in _FIGURES)}
    if not found:
        return None
    figure = Figure(figsize=(4.0 * len(_FIGURES), 3.4), layout="constrained")
    panels = figure.subplots(1, len(_FIGURES))
    for panel, (key, title) in zip(panels, _FIGURES.items(), strict=True):
        for index, (row, words) in enumerate(found.items()):
            _line(panel, branch_curve(results, row, key), words, f"C{index}")
        panel.set_title(title, fontsize=9)
    panels[0].legend(fontsize=7)
    _steps(panels)
    return figure


def score_curve(results: Results, row: str, domain: str, place: str) -> Curve | None:
    """mIoU of a row on a domain, own or held-out; None of rows without that head or without a record."""
    by_seed = []
    for record in results.records.get(row, {}).values():
        names = [
            name
            for name, scores in record["scores"].items()
            if scores["label_domain"] == domain and (name in results.scale.heldout.values()) == (place != OWN)
        ]
        points = {step: scores[name] for step, scores in record["curve"] for name in names if name in scores}
        by_seed.append({step: score for step, score in points.items() if score is not None})
    return averaged(by_seed)


def branch_curve(results: Results, row: str, key: str) -> Curve | None:
    """A figure of the branch, mean over domains or pairs; None of rows without it."""
    records = results.records.get(row, {}).values()
    return averaged([figure_by_step(record["branch"], key) for record in records])


def figure_by_step(points: Iterable[Sequence], key: str) -> dict[int, float]:
    """{step: mean of the figures whose name begins with ``key``}; steps without one are left out."""
    values = {step: [value for name, value in figures.items() if name.startswith(key)] for step, figures in points}
    return {step: statistics.fmean(found) for step, found in values.items() if found}


def averaged(by_seed: Sequence[Mapping[int, float]]) -> Curve | None:
    """Seeds together, at the steps that all of them have; None where there are none."""
    by_seed = [points for points in by_seed if points]
    steps = sorted(set.intersection(*map(set, by_seed))) if by_seed else []
    if not steps:
        return None
    columns = [[points[step] for points in by_seed] for step in steps]
    return Curve(steps, [statistics.fmean(c) for c in columns], [min(c) for c in columns], [max(c) for c in columns])


def _line(panel: Axes, curve: Curve | None, words: str, colour: str) -> None:
    if curve is not None:
        panel.plot(curve.steps, curve.means, label=words, color=colour, marker=".", linewidth=1.2)
        panel.fill_between(curve.steps, curve.lowest, curve.highest, color=colour, alpha=0.08, linewidth=0)


def _steps(panels: Iterable[Axes]) -> None:
    for panel in panels:
        panel.set_xlabel("step")
