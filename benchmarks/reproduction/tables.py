"""The paper's tables as data: which row stands on which line, and which columns there are."""

from __future__ import annotations

from typing import NamedTuple

from reproduction.claims import ABLATION, FROM_ONE, FROM_TWO
from reproduction.rows import ALL, ROWS, A, C, P

PLACES = ("own", "heldout")


class Cell(NamedTuple):
    """A figure: of a row, on the data set of a domain."""

    row: str
    domain: str
    metric: str = "mIoU"


class Line(NamedTuple):
    """A line: its words, and the figures behind them, which the report gives for both places and from the paper."""

    words: tuple[str, ...]
    cells: tuple[Cell, ...]


class Table(NamedTuple):
    """A table of the paper; ``columns`` name the figures of a line, ``rows`` are those whose cost is told."""

    name: str
    caption: str
    words: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]

    @property
    def rows(self) -> list[str]:
        """The rows of all cells, each once."""
        return list(dict.fromkeys(cell.row for line in self.lines for cell in line.cells))


TITLES = {P: "PASCAL-Person-Part", A: "ATR", C: "CIHP"}
_SHORT = {P: "PASCAL", A: "ATR", C: "CIHP"}
_SOURCES = {P: ("CIHP", "ATR&CIHP"), A: ("CIHP", "PASCAL&CIHP"), C: ("PASCAL", "PASCAL&ATR")}
# Multi-datasets, L_aux (None), L_aux (M_intra), data-set level, image level.
_MARKS = {1: "✓    ", 2: "✓✓   ", 3: "✓ ✓  ", 4: "✓ ✓✓ ", 5: "✓ ✓ ✓", 6: "✓ ✓✓✓"}


def _comparison(number: int, domain: str) -> Table:
    metrics = ("mIoU",) if number == 1 else ("mACC", "mIoU")
    methods = {
        "Single-dataset": f"single_{domain}",
        "Multi-datasets": "multi_datasets",
        "SST (Universal)": "universal_full",
        f"SST (Transfer-{_SOURCES[domain][0]})": FROM_ONE[domain],
        f"SST (Transfer-{_SOURCES[domain][1]})": FROM_TWO[domain],
    }
    return Table(
        f"Table {number}",
        f"Comparison on {TITLES[domain]}",
        ("Method",),
        tuple({"mACC": "mean accuracy", "mIoU": "mIoU"}[metric] for metric in metrics),
        tuple(
            Line((method,), tuple(Cell(row, domain, metric) for metric in metrics)) for method, row in methods.items()
        ),
    )


def _strategies() -> Table:
    names = {"Progressive": "universal_progressive", "Full": "universal_full"}
    lines = [Line((name, _SHORT[domain]), (Cell(row, domain),)) for domain in ALL for name, row in names.items()]
    caption = "Impact on different strategies of semantic transfer over multiple datasets"
    return Table("Table 4", caption, ("Strategies", "Dataset"), ("mIoU",), tuple(lines))


def _retraining() -> Table:
    with_sst = {50: "sst_50", 80: "sst_80", 100: "cihp_to_pascal"}
    lines = [
        Line((f"{percent} %",), (Cell(f"finetune_{percent}", P), Cell(row, P))) for percent, row in with_sst.items()
    ]
    caption = "The model pre-trained on CIHP, transferred to PASCAL-Person-Part, without and with SST; mIoU"
    return Table("Table 5", caption, ("Re-training data",), ("Finetune", "SST"), tuple(lines))


def _ablation() -> Table:
    lines = [
        Line((str(number), *_MARKS[number]), tuple(Cell(row, domain) for domain in ALL))
        for number, row in ABLATION.items()
    ]
    words = ("No.", "Multi-datasets", "L_aux (None)", "L_aux (M_intra)", "L_SCR dataset", "L_SCR img")
    caption = "Ablation of SST's components, universal parsing; mIoU (the paper gives PASCAL-Person-Part alone)"
    return Table("Table 6", caption, words, tuple(_SHORT.values()), tuple(lines))


def _beside() -> Table:
    """Rows that stand in none of the paper's tables: first steps of dedicated training, and variants."""
    printed = {cell.row for table in TABLES for line in table.lines for cell in line.cells}
    lines = [Line((name,), tuple(Cell(name, domain) for domain in ALL)) for name in ROWS if name not in printed]
    caption = "What dedicated training starts from, and variants; mIoU (not in the paper)"
    return Table("Beside the tables", caption, ("Row",), tuple(_SHORT.values()), tuple(lines))


TABLES: list[Table] = [
    *(_comparison(number, domain) for number, domain in enumerate(ALL, start=1)),
    _strategies(),
    _retraining(),
    _ablation(),
]
TABLES.append(_beside())
