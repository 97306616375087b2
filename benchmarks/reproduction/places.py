"""Where a reproduction's files lie, and that one command at a time works there."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproduction.settings import TRUNK, Run
from sst_d2.errors import SSTError
from sst_d2.files import write_whole

LOCK = "lock"
RUN_RECORD = "run.json"
FINAL = "model_final.pth"
POINTER = "last_checkpoint"  # Detectron2's; holds the name of a file
_PERIODIC = re.compile(r"model_(\d{7})\.pth")


class ReproductionError(SSTError):
    """A reproduction cannot begin or go on."""


@dataclass(frozen=True)
class Places:
    """The folders of one scale.

    Attributes:
        work: everything large: data sets, checkpoints, logs.
        results: a small JSON file per finished run.
    """

    work: Path
    results: Path

    @property
    def datasets(self) -> Path:
        """``DETECTRON2_DATASETS`` of the runs, where the scale makes its data."""
        return self.work / "datasets"

    @property
    def trunk(self) -> Path:
        """The start of every row, where the scale makes it."""
        return self.work / TRUNK

    def output(self, run: Run) -> Path:
        """``OUTPUT_DIR`` of a run."""
        return self.work / "runs" / run.row / f"seed{run.seed}"

    def console(self, run: Run) -> Path:
        """What a run has printed."""
        return self.output(run) / "console.log"

    def result(self, run: Run) -> Path:
        """The record of a finished run."""
        return self.results / run.row / f"seed{run.seed}.json"

    def weights(self, run: Run) -> Path:
        """The weights that a run has ended with."""
        return self.output(run) / FINAL

    def steps_done(self, run: Run) -> int:
        """Iterations behind the last checkpoint of a run; 0: it has none, or has not begun."""
        pointer = self.output(run) / POINTER
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else ""
        if not name or not (self.output(run) / name).is_file():
            return 0
        match = _PERIODIC.fullmatch(name)
        if match:
            return int(match.group(1)) + 1
        return (run.steps or 0) if name == FINAL else 0

    def begin_anew(self, run: Run) -> None:
        """Let a run that has no checkpoint any more forget that it had one."""
        (self.output(run) / POINTER).unlink(missing_ok=True)

    def remove_older_checkpoints(self, run: Run) -> None:
        """Remove checkpoints that a newer one has replaced."""
        done = self.steps_done(run)
        for path in self.output(run).glob("model_*.pth"):
            match = _PERIODIC.fullmatch(path.name)
            if match and int(match.group(1)) + 1 < done:
                path.unlink()

    def keep_final_weights(self, run: Run) -> None:
        """Of a finished run, remove all checkpoints but the last one."""
        for path in self.output(run).glob("model_*.pth"):
            if path.name != FINAL:
                path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that `write_json` or a training has written.

    Raises:
        ReproductionError: it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except (OSError, ValueError) as reason:
        raise ReproductionError(f"{path}: cannot be read ({reason}); remove the file, and run again") from reason
    return content


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Write a mapping, a line per key, whole or not at all.

    Raises:
        ReproductionError: it cannot be written.
    """
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in record.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda stream: stream.write(text.encode()))
    except OSError as reason:
        raise ReproductionError(f"{path}: cannot be written ({reason})") from reason


@contextlib.contextmanager
def locked(work: Path) -> Iterator[int]:
    """Hold a work folder: the system lets go of the lock when the last process that has it ends, however it ends.

    Yields:
        the lock's file descriptor. Trainings inherit it, so that one which outlives its command still holds the folder.

    Raises:
        ReproductionError: another command holds it, or the folder cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as reason:
        raise ReproductionError(
            f"--work {work}: cannot be written ({reason.strerror}); choose another folder"
        ) from reason
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as reason:
            owner = os.read(descriptor, 100).decode(errors="replace").strip() or "unknown"
            raise ReproductionError(
                f"{work}: process {owner}, or a training that it has left behind, works in this folder; wait for its "
                "end, end it, or choose another folder (--work)"
            ) from reason
        os.truncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
