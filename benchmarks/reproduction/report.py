"""The tables in the paper's layout, their costs and the verdicts, as Markdown and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from reproduction.beside import BASELINES, beside, mean_scores, universal_rows
from reproduction.branch import COLUMNS, branch_lines
from reproduction.claims import CLAIMS, PAPER, Claim
from reproduction.costs import cost, networks
from reproduction.pictures import draw
from reproduction.places import Places, write_json
from reproduction.results import HELDOUT, OWN, Results
from reproduction.scales import Scale
from reproduction.statistics import LEVEL, NO_RUNS, VERDICTS, Difference, paired
from reproduction.tables import TABLES, TITLES, Table
from sst_d2.files import write_whole

MARKDOWN, JSON = "tables.md", "tables.json"
_PLACES = {OWN: "own", HELDOUT: "held-out"}
_METRICS = {"mIoU": "miou", "mACC": "mean_accuracy"}
_COSTS = {
    "minutes": ("minutes", ".1f"),
    "processor_minutes": ("processor minutes", ".1f"),
    "step_ratio": ("step / Multi-datasets'", ".2f"),
    "memory_mb": ("memory, MB", ".0f"),
    "gpu_memory_mb": ("GPU memory, MiB", ".0f"),
    "gmacs": ("GMACs, inference", ".3f"),
    "branch_parameters": ("branch: parameters, %", ".1f"),
    "branch_time": ("branch: time, %", ".1f"),
}


def make_report(scale: Scale, places: Places) -> str:
    """Write the tables and pictures of a scale from its records alone.

    Returns:
        what was written as Markdown.

    Raises:
        ReproductionError: a record cannot be read, or does not belong to the others.
    """
    results = Results(scale, places)
    counted = networks(scale, places)
    tables = [(table, figures_of(table, results)) for table in TABLES]
    costs = {row: cost(row, results, counted) for table in TABLES for row in table.rows}
    verdicts = [(claim, {place: compared(claim, results, place) for place in results.places()}) for claim in CLAIMS]
    text = "\n\n".join(
        [
            f"# Reproduction, scale {scale.name}",
            setting(results, counted),
            "## Claims",
            claims_text(verdicts, results.places()),
            "## Universal rows, mean of the data sets",
            beside_text(results),
            *(part for table, figures in tables for part in table_text(table, figures, costs, results)),
            "## In the branch",
            branch_text(results),
        ]
    )
    places.results.mkdir(parents=True, exist_ok=True)
    write_whole(places.results / MARKDOWN, lambda stream: stream.write(f"{text}\n".encode()))
    write_json(places.results / JSON, as_record(results, tables, costs, verdicts))
    draw(results, places.results)
    return text


def compared(claim: Claim, results: Results, place: str) -> Difference:
    """A claim's difference in mIoU, on the domain's own validation set or on the held-out images."""
    return paired(*(results.scores(row, claim.domain, "mIoU", place) for row in (claim.better, claim.worse)))


def figures_of(table: Table, results: Results) -> list[dict[str, Any]]:
    """A record per figure of a table: where it stands, our values by seed and place, and the paper's."""
    records = []
    for line in table.lines:
        for column, cell in zip(table.columns, line.cells, strict=True):
            found = PAPER.get((cell.row, cell.domain))
            ours = {place: results.scores(cell.row, cell.domain, cell.metric, place) for place in results.places()}
            records.append(
                {
                    "line": line.words,
                    "column": column,
                    **cell._asdict(),
                    "paper": getattr(found, _METRICS[cell.metric]) if found else None,
                    **{place: {"by_seed": values, **summary(values)} for place, values in ours.items()},
                }
            )
    return records


def summary(values: Mapping[int, float]) -> dict[str, float | None]:
    """Number, mean and sample standard deviation of scores by seed."""
    scores = list(values.values())
    return {
        "n": len(scores),
        "mean": statistics.fmean(scores) if scores else None,
        "deviation": statistics.stdev(scores) if len(scores) > 1 else None,
    }


def printed(figure: Mapping[str, Any]) -> str:
    """ "52.31 ± 0.42 (5)"; of one seed "52.31 †"; of none "–"."""
    if not figure["n"]:
        return "–"
    if figure["n"] == 1:
        return f"{figure['mean']:.2f} †"
    return f"{figure['mean']:.2f} ± {figure['deviation']:.2f} ({figure['n']})"


def table_text(
    table: Table, figures: Sequence[Mapping[str, Any]], costs: Mapping[str, Mapping[str, Any]], results: Results
) -> list[str]:
    """A table and, below it, what its rows cost."""
    places, has_paper = results.places(), any(figure["paper"] is not None for figure in figures)
    per_line = len(table.columns)
    lines = []
    for index, line in enumerate(table.lines):
        own = figures[index * per_line : (index + 1) * per_line]
        ours = [printed(figure[place]) for place in places for figure in own]
        theirs = ["–" if figure["paper"] is None else f"{figure['paper']:.2f}" for figure in own] if has_paper else []
        lines.append([*line.words, *ours, *theirs])
    headers = [*table.words, *(f"{column}, {_PLACES[place]}" for place in places for column in table.columns)]
    headers += [f"{column}, the paper's (R50)" for column in table.columns] if has_paper else []
    shown = [key for key in _COSTS if any(costs[row][key] is not None for row in table.rows)]
    cost_lines = [[row, *(_number(costs[row][key], _COSTS[key][1]) for key in shown)] for row in table.rows]
    return [
        f"## {table.name}. {table.caption}",
        markdown(lines, headers),
        "Costs (medians over seeds):",
        markdown(cost_lines, ["row", *(_COSTS[key][0] for key in shown)]),
    ]


def claims_text(verdicts: Sequence[tuple[Claim, Mapping[str, Difference]]], places: Sequence[str]) -> str:
    """The verdicts as a table, and how they are to be read."""
    lines = []
    for claim, by_place in verdicts:
        better, worse = PAPER[claim.better, claim.domain].miou, PAPER[claim.worse, claim.domain].miou
        theirs = f"{better:.2f} − {worse:.2f} = {better - worse:+.2f}"
        ours = [text for place in places for text in difference_text(by_place[place])]
        lines.append([claim.text, TITLES[claim.domain], *ours, theirs])
    headers = ["claim", "data set"]
    headers += [f"{_PLACES[place]}: {word}" for place in places for word in ("difference", "verdict")]
    counts = [
        f"{_PLACES[place]}: " + ", ".join(f"{verdict} {number}" for verdict, number in counted(verdicts, place).items())
        for place in places
    ]
    explained = (
        f"Paired differences of mIoU over common seeds: mean, its {LEVEL:.0%} interval (Student's t), n. Held: the "
        "interval lies above 0; failed: below; else undecided; † one seed, no verdict. The intervals are not corrected "
        "for their number: of twenty claims in which there is nothing, one is to be expected outside of its interval."
    )
    return "\n\n".join([explained, markdown(lines, [*headers, "the paper's (R50)"]), "; ".join(counts) + "."])


def beside_text(results: Results) -> str:
    """Mean mIoU of the data sets, and what it is more than the baselines'."""
    places, lines = results.places(), []
    for row in universal_rows():
        if row in results.records:
            line = [row]
            for place in places:
                line.append(printed(summary(mean_scores(results, row, place))))
                for words, difference in beside(results, row, place).items():
                    judged = f" {difference.verdict}" if difference.low is not None else ""
                    same = row == BASELINES[words]
                    line.append("" if same else difference_text(difference)[0] + judged)
            lines.append(line)
    headers = ["row"]
    for place in places:
        headers += [f"{_PLACES[place]}: mIoU", *(f"{_PLACES[place]}: minus {words}" for words in BASELINES)]
    explained = "Mean over the data sets first, then differences and intervals as above: fewer comparisons, less noise."
    return f"{explained}\n\n{markdown(lines, headers)}"


def branch_text(results: Results) -> str:
    """What the branch does with the categories and with F, of the rows that have one."""
    explained = (
        "On one training batch, at the first evaluation → the last one; means over seeds, and over domains or pairs. "
        "Cosines: of two different rows. Mismatch: of Eq. 11 where categories occur. Pull: norm of the weighed losses' "
        "gradient on F as a part of the segmentation losses' (rows that log gradients)."
    )
    return f"{explained}\n\n{markdown(branch_lines(results), ['row', *COLUMNS])}"


def difference_text(difference: Difference) -> list[str]:
    """ "+1.20 [+0.31, +2.09] (5)", and the verdict."""
    if difference.mean is None:
        return ["–", NO_RUNS]
    if difference.low is None:
        return [f"{difference.mean:+.2f} †", difference.verdict]
    ends = f"[{difference.low:+.2f}, {difference.high:+.2f}]"
    return [f"{difference.mean:+.2f} {ends} ({len(difference.seeds)})", difference.verdict]


def counted(verdicts: Iterable[tuple[Claim, Mapping[str, Difference]]], place: str) -> dict[str, int]:
    """How often each verdict stands in a column."""
    found = [by_place[place].verdict for _, by_place in verdicts]
    return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def setting(results: Results, counted_networks: Mapping[str, Any]) -> str:
    """One paragraph: what was run, on what."""
    records = list(results.all())
    if not records:
        return "No run is finished."
    scale, height_width = results.scale, " × ".join(map(str, counted_networks["size"]))
    steps = sorted({record["steps"] for record in records})
    devices = sorted({record["device"] for record in records})
    seeds = sorted({record["seed"] for record in records})
    versions = sorted({f"torch {r['versions']['torch']}, Detectron2 {r['versions']['detectron2']}" for r in records})
    return (
        f"{len(records)} runs, seeds {', '.join(map(str, seeds))}; {scale.network}; "
        f"{' or '.join(map(str, steps))} steps; trained on {' and '.join(devices)}; {'; '.join(versions)}. Scores in "
        'percent: mean ± standard deviation (seeds); † one seed. "own": the data set\'s validation images'
        + (
            '; "held-out": images in the style of all data sets, labelled in this one\'s system'
            if scale.heldout
            else ""
        )
        + f". GMACs: one image of {height_width} pixels through all heads of the row; the training-only branch is no "
        "part of it. Memory: the largest resident set of the process, with the program's own."
    )


def as_record(
    results: Results,
    tables: Sequence[tuple[Table, list[dict[str, Any]]]],
    costs: Mapping[str, Any],
    verdicts: Sequence[tuple[Claim, Mapping[str, Difference]]],
) -> dict[str, Any]:
    """Everything as JSON."""
    return {
        "scale": results.scale.name,
        "runs": {row: sorted(by_seed) for row, by_seed in results.records.items()},
        "tables": {table.name: {"caption": table.caption, "figures": figures} for table, figures in tables},
        "costs": costs,
        "claims": [
            {
                **claim._asdict(),
                "paper": [PAPER[row, claim.domain].miou for row in (claim.better, claim.worse)],
                **{place: difference._asdict() for place, difference in by_place.items()},
            }
            for claim, by_place in verdicts
        ],
    }


def markdown(lines: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    """A table in Markdown; all entries are text already."""
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)


def _number(value: float | None, digits: str) -> str:
    return "–" if value is None else format(value, digits)
