"""The queue: several trainings side by side, each in a process of its own, what they need before them."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reproduction.places import RUN_RECORD, Places, ReproductionError, read_json, write_json
from reproduction.records import record_of
from reproduction.settings import ROOT, Run, as_options, path_values, values

# Seconds that a training has between SIGTERM and SIGKILL.
PATIENCE = 10.0
LAST_LINES = 15
# Seconds between lines that say how far the trainings are.
HEARTBEAT = 120.0
_PR_SET_PDEATHSIG = 1
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
# Loaded here, since little may be done between fork and exec.
_LIBC = ctypes.CDLL(None) if sys.platform.startswith("linux") else None


@dataclass
class Child:
    """A training that runs."""

    run: Run
    process: subprocess.Popen
    started: float = field(default_factory=time.monotonic)


@dataclass
class Outcome:
    """What became of a queue's runs: each stands in one list, or was not reached."""

    finished: list[Run] = field(default_factory=list)
    failed: list[Run] = field(default_factory=list)
    skipped: list[Run] = field(default_factory=list)
    stopped: str = ""
    signal: int = 0


class Runner:
    """Trains the runs of a queue.

    Args:
        places: the folders.
        trunk: weights that rows without another start begin with, and their SHA-256; "": the configurations'.
        parallel: trainings at a time.
        deadline: `time.monotonic` at which no training goes on; None: never.
        lock: descriptor that the trainings inherit.
        say: takes lines for the user.
        estimate: minutes that a run will take.
        command: beginning of the command line of a training.
    """

    def __init__(
        self,
        places: Places,
        trunk: tuple[str, str],
        parallel: int,
        deadline: float | None,
        lock: int,
        say: Callable[[str], None],
        estimate: Callable[[Run], float],
        command: Sequence[str] = (sys.executable, "train_net.py"),
    ) -> None:
        self._places = places
        self._trunk, self._trunk_digest = trunk
        self._parallel = parallel
        self._deadline = deadline
        self._lock = lock
        self._say = say
        self._estimate = estimate
        self._command = list(command)
        self._children: list[Child] = []
        self._outcome = Outcome()
        self._spoken = time.monotonic()

    def train(self, queue: Sequence[Run]) -> Outcome:
        """Train runs, in their order as far as what they need allows; a signal or the deadline ends it.

        Args:
            queue: unfinished runs; what one needs stands before it, or its weights are there.
        """
        waiting = list(queue)
        handlers = {
            name: signal.signal(name, self._note_signal) for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        }
        try:
            while (waiting or self._children) and not self._should_stop():
                waiting = self._start_what_can(waiting)
                self._reap(waiting)
                if time.monotonic() > self._spoken + HEARTBEAT:
                    self._progress(waiting)
                time.sleep(0.2)
        finally:
            self._end_children()
            for name, handler in handlers.items():
                signal.signal(name, handler)
        return self._outcome

    def _note_signal(self, number: int, _frame: Any) -> None:
        self._outcome.signal = number

    def _should_stop(self) -> bool:
        if self._outcome.signal:
            self._outcome.stopped = f"ended by {signal.Signals(self._outcome.signal).name}"
        elif self._deadline is not None and time.monotonic() > self._deadline:
            self._outcome.stopped = "the time is over (--hours)"
        return bool(self._outcome.stopped)

    def _start_what_can(self, waiting: list[Run]) -> list[Run]:
        """Start runs whose needs are met; returns those that still wait, without those that never can."""
        left = []
        for run in waiting:
            if run.needed in (*self._outcome.failed, *self._outcome.skipped):
                self._outcome.skipped.append(run)
                self._tell(f"{run.name}: skipped, since {run.needs} of this seed has no result")
                continue
            blocked = run.needed in (*left, *(child.run for child in self._children))
            if blocked or len(self._children) >= self._parallel:
                left.append(run)
            else:
                self._start(run)
        return left

    def _start(self, run: Run) -> None:
        output = self._places.output(run)
        if not self._places.steps_done(run):
            write_json(output / RUN_RECORD, begun(run, self._trunk_digest))
            self._places.begin_anew(run)
        needed = self._places.weights(run.needed) if run.needed else None
        options = as_options({**values(run), **path_values(run, output, self._trunk, needed)})
        command = [*self._command, "--config-file", run.config_file, "--resume", *options]
        with open(self._places.console(run), "ab") as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(run, self._places, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(self._lock,),
                start_new_session=True,  # Ctrl-C is for this process, which then ends its trainings
                preexec_fn=_end_with_parent,
            )
        self._children.append(Child(run, process))
        done = self._places.steps_done(run)
        self._tell(f"{run.name}: started" + (f", goes on after step {done}" if done else ""))

    def _reap(self, waiting: Sequence[Run]) -> None:
        """Look after trainings that have ended."""
        for child in list(self._children):
            pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
            if pid:
                child.process.returncode = os.waitstatus_to_exitcode(status)
                self._children.remove(child)
                self._keep_effort(child, usage)
                self._close(child)
                if self._children or waiting:
                    self._progress(waiting)
            else:
                self._places.remove_older_checkpoints(child.run)

    def _close(self, child: Child) -> None:
        """Keep the record of a training that has ended well; tell of one that has not."""
        run, code = child.run, child.process.returncode
        if code:
            end = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
            self._fail(run, f"{end}; the end of {self._places.console(run)}:\n{self._last_lines(run)}")
            return
        try:
            record = record_of(run, self._places)
        except ReproductionError as error:
            self._fail(run, f"no result: {error}")
            return
        write_json(self._places.result(run), record)
        self._places.keep_final_weights(run)
        self._outcome.finished.append(run)
        scores = ", ".join(f"{v['mIoU']:.1f}" for v in record["scores"].values())
        self._tell(f"{run.name}: finished in {record['minutes']:.1f} min; mIoU {scores}")

    def _fail(self, run: Run, reason: str) -> None:
        self._outcome.failed.append(run)
        self._tell(f"{run.name}: FAILED, {reason}")

    def _keep_effort(self, child: Child, usage: Any) -> None:
        """Add what a part of a run has taken to the run's record."""
        path = self._places.output(child.run) / RUN_RECORD
        before = read_json(path)
        kilobyte = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there
        write_json(
            path,
            {
                **before,
                "seconds": before["seconds"] + time.monotonic() - child.started,
                "processor_seconds": before["processor_seconds"] + usage.ru_utime + usage.ru_stime,
                "memory_mb": max(before["memory_mb"], usage.ru_maxrss * kilobyte / 1e6),
            },
        )

    def _end_children(self) -> None:
        """End what runs: its last checkpoint is whole, and the same command goes on from there."""
        for child in self._children:
            _signal_group(child, signal.SIGTERM)
        limit = time.monotonic() + PATIENCE
        while self._children:
            for child in list(self._children):
                pid, status, usage = os.wait4(child.process.pid, os.WNOHANG)
                if pid:
                    child.process.returncode = os.waitstatus_to_exitcode(status)
                    self._children.remove(child)
                    self._keep_effort(child, usage)
                    self._tell(f"{child.run.name}: ended; {self._places.steps_done(child.run)} steps are kept")
                elif time.monotonic() > limit:
                    _signal_group(child, signal.SIGKILL)
            time.sleep(0.05)

    def _progress(self, waiting: Sequence[Run]) -> None:
        left = sum(map(self._estimate, waiting)) + sum(
            max(self._estimate(child.run) - (time.monotonic() - child.started) / 60, 0) for child in self._children
        )
        running = [
            f"{child.run.name} at step {steps_logged(self._places.output(child.run))}" for child in self._children
        ]
        self._tell(
            f"running: {', '.join(running) or 'none'}; {len(waiting)} waiting; about "
            f"{hours(left / self._parallel)} left"
        )
        self._spoken = time.monotonic()

    def _last_lines(self, run: Run) -> str:
        text = _COLOURS.sub("", self._places.console(run).read_text(encoding="utf-8", errors="replace"))
        return "\n".join(f"    {line}" for line in text.splitlines()[-LAST_LINES:])

    def _tell(self, text: str) -> None:
        self._say(f"[{datetime.datetime.now():%H:%M:%S}] {text}")


def begun(run: Run, trunk_digest: str) -> dict[str, Any]:
    """What is written down of a run when it begins: its settings and start, and what its parts will have taken."""
    return {
        "overrides": values(run),
        "trunk_sha256": trunk_digest,
        "seconds": 0.0,
        "processor_seconds": 0.0,
        "memory_mb": 0.0,
    }


def steps_logged(output: Path) -> int:
    """Iterations that a training has logged so far."""
    log = output / "metrics.json"
    lines = log.read_bytes().splitlines(keepends=True) if log.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1])["iteration"] + 1 if whole else 0


def environment(run: Run, places: Places, inherited: Mapping[str, str]) -> dict[str, str]:
    """Environment of a training."""
    result = {**inherited, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), inherited.get("PYTHONPATH", "")]))}
    if run.scale.threads is not None:
        result["OMP_NUM_THREADS"] = str(run.scale.threads)
    if run.scale.people is not None:
        result["DETECTRON2_DATASETS"] = str(places.datasets)
    return result


def hours(minutes: float) -> str:
    """ "35 min" or "2.4 h"."""
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _signal_group(child: Child, number: int) -> None:
    """To a training and the workers of its data loader."""
    try:
        os.killpg(child.process.pid, number)
    except ProcessLookupError:
        return  # it has ended by itself


def _end_with_parent() -> None:
    """On Linux, a training ends when this process is killed and cannot end it."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
