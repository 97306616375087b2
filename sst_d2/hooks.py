"""Hooks of the training loop: the best checkpoint, and random numbers that do not depend on where a run began."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from sst_d2.errors import SSTCheckpointError

BEST_CHECKPOINT = "model_best"


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
        """In a resumed run ask the best checkpoint for its value: the last one was written before its evaluation.

        A new run lays the best checkpoint of an older one in the same folder aside.
        """
        path = os.path.join(self.trainer.checkpointer.save_dir, f"{BEST_CHECKPOINT}.pth")
        logger = logging.getLogger(__name__)
        if not os.path.isfile(path):
            return
        if self.trainer.start_iter == 0:
            os.replace(path, path.replace(BEST_CHECKPOINT, f"{BEST_CHECKPOINT}_of_previous_run"))
            logger.info("%s of an earlier run is kept as %s_of_previous_run.pth", path, BEST_CHECKPOINT)
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


def mean_miou(results: Mapping[str, Any]) -> float | None:
    """Mean of ``sem_seg/mIoU`` over data sets; None without results.

    Args:
        results: by data set, then by task, then by metric.
    """
    values = [tasks["sem_seg"]["mIoU"] for tasks in results.values() if tasks and "sem_seg" in tasks]
    return float(np.mean(values)) if values else None
