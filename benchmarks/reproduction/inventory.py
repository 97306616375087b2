"""What is done, begun and missing, and how long the rest will take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction.places import RUN_RECORD, Places, ReproductionError, read_json
from reproduction.rows import queue
from reproduction.scales import Scale
from reproduction.settings import PILOT, Run, values

DONE, PART, MISSING = "done", "part", "missing"


class Inventory:
    """The runs of a scale, with what is there of them.

    Args:
        scale: of all runs.
        places: the folders.
    """

    def __init__(self, scale: Scale, places: Places) -> None:
        self._scale = scale
        self._places = places
        self._read: dict[Path, float] = {}

    def runs(self, rows: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """All runs, and those that they start from, in the order of training."""
        return [Run(row, seed, self._scale) for row, seed in queue(rows, seeds)]

    def state(self, run: Run) -> str:
        """`DONE`, `PART` or `MISSING`."""
        if self._places.result(run).is_file():
            return DONE
        return PART if self._places.steps_done(run) else MISSING

    def unfinished(self, runs: Sequence[Run], trunk_digest: str) -> list[Run]:
        """Runs without a record, and finished ones whose weights such a run needs and which are gone.

        Args:
            runs: in the order of training.
            trunk_digest: of the weights that rows without another start begin with.

        Raises:
            ReproductionError: a run was made, or begun, with other settings or another start than it has now.
        """
        left: list[Run] = []
        wanted: set[Run] = set()
        for run in reversed(runs):  # so that those that need a run come before it
            state = self.state(run)
            if state != MISSING:
                path = self._places.result(run) if state == DONE else self._places.output(run) / RUN_RECORD
                check_same(run, trunk_digest, read_json(path), path)
            if state != DONE or (run in wanted and not self._places.weights(run).is_file()):
                left.insert(0, run)
                wanted.add(run.needed)
        return left

    def minutes(self, run: Run) -> float:
        """How long a run will take from here on: as other seeds of its row have, else other rows, else a guess."""
        known = self._measured()
        times = known.get(run.row) or [minutes for row in known.values() for minutes in row] or [self._scale.minutes]
        done = self._places.steps_done(run) / run.steps if run.steps else 0.0
        return statistics.median(times) * (1 - min(done, 1))

    def _measured(self) -> Mapping[str, list[float]]:
        """Minutes of finished runs by row."""
        known: dict[str, list[float]] = {}
        for path in self._places.results.glob("*/seed*.json"):
            if path not in self._read:
                self._read[path] = read_json(path)["minutes"]
            known.setdefault(path.parent.name, []).append(self._read[path])
        known.pop(PILOT, None)
        return known


def check_same(run: Run, trunk_digest: str, record: Mapping[str, Any], path: Path) -> None:
    """Refuse what was made of a run from another start, or as `check_settings`.

    Raises:
        ReproductionError: with the difference.
    """
    check_settings(run, record, path)
    if record["trunk_sha256"] != trunk_digest:
        raise ReproductionError(
            f"{path}: had another start; the SHA-256 of its weights was {record['trunk_sha256'] or 'none'}, and is "
            f"{trunk_digest or 'none'} now. Give the same --weights, or choose another --work and --results"
        )


def check_settings(run: Run, record: Mapping[str, Any], path: Path) -> None:
    """Refuse what was made of a run with other settings than it has now.

    Raises:
        ReproductionError: with the first setting that differs.
    """
    now = {key: list(value) if isinstance(value, tuple) else value for key, value in values(run).items()}
    before = record["overrides"]
    for key in {**before, **now}:
        if before.get(key) != now.get(key):
            raise ReproductionError(
                f"{path}: was made with {key} {before.get(key)!r}, and now it is {now.get(key)!r}; choose another "
                "--work and --results, or remove what was made with other settings"
            )
