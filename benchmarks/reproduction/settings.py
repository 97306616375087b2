"""A row at a scale with a seed: the values laid over its configuration file, and the command that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from reproduction.rows import ROWS, START
from reproduction.scales import Scale, scale_values
from sst_d2.config import get_config_file, load_config

ROOT = Path(__file__).resolve().parents[2]
PILOT = "pilot"
TRUNK = "trunk.pth"


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        row: a name of `ROWS`, or `PILOT`.
        seed: of the training.
        scale: how large it is.
    """

    row: str
    seed: int
    scale: Scale = field(compare=False)

    @property
    def needs(self) -> str:
        """The row that it starts from; "": none."""
        return "" if self.row == PILOT else ROWS[self.row].needs

    @property
    def needed(self) -> Run | None:
        """The run of that row with the same seed."""
        return Run(self.needs, self.seed, self.scale) if self.needs else None

    @property
    def steps(self) -> int | None:
        """Iterations; None: as its configuration and its data sets have it."""
        return self.scale.pilot["steps"] if self.row == PILOT else self.scale.steps

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.row} seed {self.seed}"

    @property
    def config_file(self) -> str:
        """The row's, as a path."""
        return get_config_file(ROWS[_row_of(self)].config)


def values(run: Run) -> dict[str, Any]:
    """What a run has otherwise than its configuration file, by dotted key; paths of weights and output apart."""
    row = ROWS[_row_of(run)]
    result = {**scale_values(run.scale), **row.overrides, "SEED": run.seed}
    result.pop(START, None)
    train, test = data_sets(run.scale, row.config)
    result["DATASETS.TRAIN"] = train
    result["DATASETS.TEST"] = (*test, *(run.scale.heldout[d] for d in row.domains if d in run.scale.heldout))
    if run.row == PILOT:
        result["SOLVER.MAX_ITER"], result["TEST.EVAL_PERIOD"] = run.scale.pilot["steps"], run.scale.pilot["period"]
        result["SOLVER.STEPS"] = ()
    return result


def path_values(run: Run, output: Path, trunk: str, needed: Path | None) -> dict[str, str]:
    """The paths of a run.

    Args:
        run: the training.
        output: its ``OUTPUT_DIR``.
        trunk: weights that rows without another start begin with; "": the configuration's.
        needed: final weights of the row that this one starts from.
    """
    row, paths = ROWS[_row_of(run)], {"OUTPUT_DIR": str(output)}
    if needed is not None:
        paths[row.takes] = str(needed)
    elif trunk:
        paths[START] = trunk
    elif START in scale_values(run.scale):
        paths[START] = scale_values(run.scale)[START]
    return paths


def as_options(mapping: Mapping[str, Any]) -> list[str]:
    """KEY VALUE pairs of the command line."""
    return [text for key, value in mapping.items() for text in (key, str(value))]


@cache
def _sets_of(config: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    cfg = load_config(get_config_file(config))
    return tuple(cfg.DATASETS.TRAIN), tuple(cfg.DATASETS.TEST)


def data_sets(scale: Scale, config: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the training and of the validation sets of a configuration at a scale."""
    train, test = (tuple(scale.data_sets.get(name, name) for name in names) for names in _sets_of(config))
    return train, test


def _row_of(run: Run) -> str:
    return "multi_datasets" if run.row == PILOT else run.row
