"""Scores as people report them: a table per class, and the means over the classes as different projects take them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tabulate import tabulate

# Who averages over which classes. The definitions agree on data in which every class occurs.
UNION, GROUND_TRUTH, ALL_CLASSES = "union", "ground_truth", "all_classes"
PROJECTS = {
    UNION: "sst_d2, Graphonomy, Grapy-ML, mmseg, Detectron2 until July 2022",
    GROUND_TRUTH: "Detectron2 since July 2022",
    ALL_CLASSES: "SCHP, M2FP",
}
AVERAGED_CLASSES = {
    UNION: "classes of the ground truth or the prediction",
    GROUND_TRUTH: "classes of the ground truth only",
    ALL_CLASSES: "absent classes count 0",
}


def scores_by_definition(scores: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """mIoU and mean accuracy by every definition in use.

    As the projects' code computes them: Graphonomy and Grapy-ML ``utils/test_human.py`` (nanmean of both), mmseg
    ``IoUMetric`` (the same), Detectron2 ``SemSegEvaluator`` (before and after commit f3c1bc19), SCHP ``utils/miou.py``
    (divided by at least 1) and M2FP ``SemSegEvaluator`` (divided by at least 1e-10). Pixel accuracy and frequency
    weighted IoU are the same in all of them, where they have them. All count the background.

    Args:
        scores: as `sst_d2.evaluation.scores_from_confusion` gives them.

    Returns:
        By the keys of `PROJECTS`: ``mIoU`` and ``mACC``, in percent; NaN where nothing can be said.
    """
    iou, accuracy, present = scores["IoU"], scores["ACC"], scores["share"] > 0
    return {
        UNION: {"mIoU": scores["mIoU"], "mACC": scores["mACC"]},
        GROUND_TRUTH: {"mIoU": float(iou[present].mean()) if present.any() else math.nan, "mACC": scores["mACC"]},
        ALL_CLASSES: {"mIoU": float(np.nan_to_num(iou).mean()), "mACC": float(np.nan_to_num(accuracy).mean())},
    }


def class_table(scores: Mapping[str, Any], classes: Sequence[str]) -> str:
    """IoU, accuracy and share of the ground truth's pixels of every class, in percent; "-" where there is none.

    Args:
        scores: as `sst_d2.evaluation.scores_from_confusion` gives them.
        classes: K names.
    """
    rows = zip(classes, scores["IoU"], scores["ACC"], scores["share"], strict=True)
    return _table(
        ["class", "IoU", "accuracy", "% of pixels"], [[name, *map(_number, values)] for name, *values in rows], names=1
    )


def definition_table(scores: Mapping[str, Any]) -> str:
    """`scores_by_definition` as a table."""
    rows = [
        [PROJECTS[definition], AVERAGED_CLASSES[definition], _number(values["mIoU"]), _number(values["mACC"])]
        for definition, values in scores_by_definition(scores).items()
    ]
    return _table(["as in", "mean over", "mIoU", "mean accuracy"], rows, names=2)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], names: int) -> str:
    """A table whose first ``names`` columns are words and whose others are numbers."""
    alignment = ["left"] * names + ["right"] * (len(headers) - names)
    return tabulate(rows, headers=headers, tablefmt="github", colalign=alignment, disable_numparse=True)


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"
