"""`confusion_picture`: what an evaluation took for what, in percent of the ground truth."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sst_d2.errors import SSTDataError
from sst_d2.evaluation import scores_from_confusion
from sst_d2.visualization import matrix_picture


@dataclass(frozen=True)
class EvaluationRecord:
    """The result of an evaluation, as `SSTSemSegEvaluator` has written it.

    Attributes:
        dataset: name of the data set.
        label_domain: name of its label domain.
        classes: K names.
        images: how many.
        confusion: (K, K) int64 pixels; rows are the ground truth, columns the prediction.
    """

    dataset: str
    label_domain: str
    classes: tuple[str, ...]
    images: int
    confusion: np.ndarray


def read_evaluation(path: str | os.PathLike) -> EvaluationRecord:
    """Read a ``sem_seg_evaluation.json``.

    Raises:
        SSTDataError: it cannot be read, or is something else.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
        confusion, classes = np.array(record["confusion_matrix"], dtype=np.int64), tuple(record["classes"])
        if confusion.shape != (len(classes), len(classes)) or (confusion < 0).any():
            raise ValueError(f"a matrix of shape {confusion.shape} for {len(classes)} classes")
        named = (str(record["dataset"]), str(record["label_domain"]), classes, int(record["images"]))
        return EvaluationRecord(*named, confusion)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as reason:
        raise SSTDataError(
            f"{path}: is no result of an evaluation, as sem_seg_evaluation.json holds it ({reason!r})"
        ) from reason


def confusion_picture(record: EvaluationRecord) -> np.ndarray:
    """The confusion matrix, each row as shares of its pixels, with the classes' IoU. (h, w, 3) uint8."""
    total, scores = record.confusion.sum(axis=1, keepdims=True), scores_from_confusion(record.confusion)
    shares = np.divide(record.confusion, total, out=np.full(record.confusion.shape, np.nan), where=total > 0)
    rows = [
        f"{name} ({'-' if np.isnan(iou) else f'{iou:.0f}'})"
        for name, iou in zip(record.classes, scores["IoU"], strict=True)
    ]
    title = (
        f"{record.dataset} ({record.label_domain}, {record.images} images): mIoU {scores['mIoU']:.2f}\n"
        "row: class in the ground truth, and its IoU in percent; column: predicted class\n"
        "cell: percent of the row's pixels; empty: below 0.5; grey: no such pixel in the ground truth"
    )
    return matrix_picture(shares, rows, record.classes, title, cell_text=_percent)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.005 else ""
