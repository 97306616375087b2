"""Hooks of the training loop: the best checkpoint, and runs that are the same however they are interrupted."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from sst_d2.errors import SSTCheckpointError

BEST_CHECKPOINT = "model_best"
INFERENCE_CHECKPOINT = "model_inference"
LOG = "metrics.json"


class SeedEveryStep(HookBase):
    """Seed Python's, NumPy's and torch's generators from (seed, iteration, rank), so that a resumed run draws the same.

    Args:
        seed: not negative.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def before_step(self) -> None:
        """Seed."""
        words = np.random.SeedSequence([self._seed, self.trainer.iter, comm.get_rank()]).generate_state(1)
        seed_all_rng(int(words[0]))


class SaveBest(HookBase):
    """Save ``model_best.pth`` whenever the mean mIoU over all evaluated data sets is the highest so far.

    Detectron2 0.5 has no such hook. Put it behind the evaluation hook.

    Args:
        period: iterations between evaluations; 0: after training only.
    """

    def __init__(self, period: int) -> None:
        self._period = period
        self._best = -math.inf

    def before_train(self) -> None:
        """In a resumed run ask the best checkpoint for its value: the last one was written before its evaluation."""
        path = os.path.join(self.trainer.checkpointer.save_dir, f"{BEST_CHECKPOINT}.pth")
        logger = logging.getLogger(__name__)
        if not os.path.isfile(path) or self.trainer.start_iter == 0:
            return
        try:
            state = self.trainer.checkpointer.read(path).get("trainer", {}).get("hooks", {})
            self._best = max(self._best, state.get(type(self).__name__, {}).get("best", -math.inf))
        except SSTCheckpointError as error:
            logger.warning("the best checkpoint so far cannot be read, the next evaluation replaces it: %s", error)

    def after_step(self) -> None:
        """Compare after an evaluation."""
        next_iteration = self.trainer.iter + 1
        if self._period > 0 and next_iteration % self._period == 0 and next_iteration != self.trainer.max_iter:
            self._compare()

    def after_train(self) -> None:
        """Compare after the last evaluation."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compare()

    def state_dict(self) -> dict[str, Any]:
        """The best value so far, for a resumed run."""
        return {"best": self._best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self._best = state["best"]

    def _compare(self) -> None:
        value = mean_miou(self.trainer.evaluation_results)
        if value is None or not value > self._best:
            return
        self._best = value
        logging.getLogger(__name__).info("mean mIoU %.2f is the best so far: saved as %s.pth", value, BEST_CHECKPOINT)
        self.trainer.checkpointer.save(BEST_CHECKPOINT, tag_last=False)


class SaveForInference(HookBase):
    """Write ``model_inference.pth`` when training ends: the last checkpoint without what serves training alone.

    Put it behind the hook that writes the checkpoints, on the main process. A run that is interrupted writes none.
    """

    def after_step(self) -> None:
        """Write it behind the last step."""
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self.trainer.checkpointer.save_for_inference(INFERENCE_CHECKPOINT)


class FinishStep(HookBase):
    """Make the log and the evaluations of a resumed run those of an uninterrupted one.

    A checkpoint is written in the middle of a step: evaluation, best checkpoint and log line come behind it, so that a
    failing evaluation costs no training. A run that goes on drops the log's lines that are later than its checkpoint,
    takes back the values that the log's medians are made of, and does what the step of the checkpoint still lacks.
    A new run lays the log and the best checkpoint of an older one in the same folder aside, and the note which
    checkpoint is its last, so that nothing of the older one can be taken for its own.

    Args:
        behind_checkpoint: the hooks whose ``after_step`` comes behind the checkpoint, in their order.
        folder: of the run, with its ``metrics.json``.
        eval_period: iterations between evaluations; 0: after training only.
    """

    # Detectron2's writers take the median of so many values.
    _WINDOW = 20

    def __init__(self, behind_checkpoint: Sequence[HookBase], folder: str, eval_period: int) -> None:
        self._behind_checkpoint = behind_checkpoint
        self._folder = folder
        self._eval_period = eval_period
        self._scalars: dict[str, dict[str, Any]] = {}

    def before_train(self) -> None:
        """Before the first step; put this hook behind all others."""
        trainer, last = self.trainer, self.trainer.start_iter - 1
        if last < 0:
            if comm.is_main_process():
                _lay_aside(self._folder)
            return
        evaluated = self._eval_period > 0 and (last + 1) % self._eval_period == 0 and last + 1 != trainer.max_iter
        logged = comm.all_gather(self._drop_later_lines(last, evaluated))[0]
        if last + 1 < trainer.max_iter or last not in logged:
            self._restore(written=max(logged, default=-1))
        # The loop counts on from here, also where no step is left.
        trainer.iter = trainer.storage.iter = last
        if last not in logged:
            for hook in self._behind_checkpoint:
                hook.after_step()

    def _drop_later_lines(self, last: int, evaluated: bool) -> list[int]:
        log = os.path.join(self._folder, LOG)
        return drop_later_lines(log, last, evaluated) if comm.is_main_process() else []

    def _restore(self, written: int) -> None:
        storage = self.trainer.storage
        for name, scalar in self._scalars.items():
            for value, iteration in scalar["values"]:
                # The log's writer knows only what it has written itself: a score that stands there would come again.
                if scalar["smooth"] or iteration > written:
                    storage.iter = iteration
                    storage.put_scalar(name, value, smoothing_hint=scalar["smooth"])

    def state_dict(self) -> dict[str, Any]:
        """The latest values of all scalars but those of the clock, which a resumed run reads anew."""
        scalars, smooth = {}, self.trainer.storage.smoothing_hints()
        for name, history in self.trainer.storage.histories().items():
            if name.endswith(("time", "eta_seconds")):
                continue
            values = history.values()[-self._WINDOW if smooth[name] else -1 :]
            scalars[name] = {"values": [list(entry) for entry in values], "smooth": smooth[name]}
        return {"scalars": scalars}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._scalars = dict(state["scalars"])


def mean_miou(results: Mapping[str, Any]) -> float | None:
    """Mean of ``sem_seg/mIoU`` over data sets; None without results.

    Args:
        results: by data set, then by task, then by metric.
    """
    values = [tasks["sem_seg"]["mIoU"] for tasks in results.values() if tasks and "sem_seg" in tasks]
    return float(np.mean(values)) if values else None


def drop_later_lines(log: str, last: int, evaluated: bool) -> list[int]:
    """Cut off a log's lines behind iteration ``last``; of that one too, if it lacks an evaluation that it should hold.

    Returns:
        the iterations of the lines that stay.
    """
    kept: list[int] = []
    if not os.path.isfile(log):
        return kept
    end = 0
    with open(log, "rb") as stream:
        for line in stream:
            try:
                record = json.loads(line)
            except ValueError:
                break  # cut off by the end of the process that wrote it
            iteration = record.get("iteration", -1)
            lacking = evaluated and not any(key.endswith("sem_seg/mIoU") for key in record)
            if iteration > last or (iteration == last and lacking):
                break
            kept.append(iteration)
            end += len(line)
    os.truncate(log, end)
    return kept


def _lay_aside(folder: str) -> None:
    """Move what an earlier run says of itself to ``previous_run_<n>``; its other checkpoints stay."""
    names = [LOG, f"{BEST_CHECKPOINT}.pth", "last_checkpoint"]
    found = [name for name in names if os.path.isfile(os.path.join(folder, name))]
    found = [name for name in found if os.path.getsize(os.path.join(folder, name))]
    if not found:
        return
    number = next(n for n in itertools.count(1) if not os.path.exists(os.path.join(folder, f"previous_run_{n}")))
    aside = os.path.join(folder, f"previous_run_{number}")
    os.makedirs(aside)
    for name in found:
        path = os.path.join(folder, name)
        if name == LOG:  # the writer has it open already
            shutil.copyfile(path, os.path.join(aside, name))
            os.truncate(path, 0)
        else:
            os.replace(path, os.path.join(aside, name))
    logging.getLogger(__name__).warning(
        "%s holds an earlier run, and this one starts anew (no --resume): %s went to %s",
        folder,
        ", ".join(found),
        aside,
    )
