"""mIoU and mean accuracy by the definitions of other projects, each against a plain loop over the matrix."""

import math

import numpy as np
import pytest

from sst_d2.evaluation import scores_from_confusion
from sst_d2.score_tables import (
    ALL_CLASSES,
    AVERAGED_CLASSES,
    GROUND_TRUTH,
    PROJECTS,
    UNION,
    class_table,
    definition_table,
    scores_by_definition,
)

# Class 3 is predicted but absent, class 4 is in neither, class 5 is never hit.
SOME_ABSENT = [
    [50, 3, 0, 2, 0, 0],
    [4, 20, 1, 0, 0, 0],
    [0, 0, 7, 5, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 0, 0],
    [1, 2, 0, 0, 0, 0],
]
ALL_THERE = [[5, 1], [2, 9]]
NOTHING = [[0, 0], [0, 0]]


def counts_of(matrix, k):
    return matrix[k][k], sum(matrix[k]), sum(row[k] for row in matrix)


def graphonomy(matrix):
    """utils/test_human.py of Graphonomy: 0 / 0 is no number, and numpy's nanmean leaves it out."""
    iou, accuracy = [], []
    for k in range(len(matrix)):
        hits, truth, guesses = counts_of(matrix, k)
        if truth + guesses - hits:
            iou.append(hits / (truth + guesses - hits))
        if truth:
            accuracy.append(hits / truth)
    return mean(iou), mean(accuracy)


def detectron2_now(matrix):
    """sem_seg_evaluation.py since July 2022: a class counts if the ground truth has it."""
    iou, accuracy = [], []
    for k in range(len(matrix)):
        hits, truth, guesses = counts_of(matrix, k)
        if truth > 0:
            accuracy.append(hits / truth)
            if truth + guesses - hits > 0:
                iou.append(hits / (truth + guesses - hits))
    return mean(iou), mean(accuracy)


def detectron2_before(matrix):
    """The same in version 0.5: the sum over classes of the ground truth, divided by the number of those in either."""
    total = number = 0
    for k in range(len(matrix)):
        hits, truth, guesses = counts_of(matrix, k)
        number += truth + guesses > 0
        total += hits / (truth + guesses - hits) if truth else 0
    return (100 * total / number if number else math.nan), detectron2_now(matrix)[1]


def schp(matrix):
    """utils/miou.py of SCHP: no divisor is below 1, and all classes count."""
    iou, accuracy = [], []
    for k in range(len(matrix)):
        hits, truth, guesses = counts_of(matrix, k)
        iou.append(hits / max(1.0, truth + guesses - hits))
        accuracy.append(hits / max(1.0, truth))
    return mean(iou), mean(accuracy)


def m2fp(matrix):
    """semseg_eval.py of M2FP: a little is added to every divisor."""
    iou, accuracy = [], []
    for k in range(len(matrix)):
        hits, truth, guesses = counts_of(matrix, k)
        iou.append(hits / (truth + guesses - hits + 1e-10))
        accuracy.append(hits / (truth + 1e-10))
    return mean(iou), mean(accuracy)


def mean(values):
    return 100 * sum(values) / len(values) if values else math.nan


@pytest.mark.parametrize("matrix", [SOME_ABSENT, ALL_THERE, NOTHING])
@pytest.mark.parametrize(
    ("definition", "loop"),
    [
        (UNION, graphonomy),
        (UNION, detectron2_before),
        (GROUND_TRUTH, detectron2_now),
        (ALL_CLASSES, schp),
        (ALL_CLASSES, m2fp),
    ],
)
def test_each_definition_equals_a_plain_loop(matrix, definition, loop):
    values = scores_by_definition(scores_from_confusion(np.array(matrix)))[definition]
    assert (values["mIoU"], values["mACC"]) == pytest.approx(loop(matrix), abs=1e-7, nan_ok=True)


def test_definitions_differ_where_classes_are_absent_and_agree_where_none_is():
    apart = scores_by_definition(scores_from_confusion(np.array(SOME_ABSENT)))
    assert list(apart) == list(AVERAGED_CLASSES) and len({values["mIoU"] for values in apart.values()}) == 3
    together = scores_by_definition(scores_from_confusion(np.array(ALL_THERE)))
    assert len({round(values["mIoU"], 9) for values in together.values()}) == 1


def test_this_projects_definition_is_the_evaluators_own_number():
    scores = scores_from_confusion(np.array(SOME_ABSENT))
    assert scores_by_definition(scores)[UNION] == {"mIoU": scores["mIoU"], "mACC": scores["mACC"]}


def test_tables_have_a_row_per_class_and_per_definition_and_a_dash_for_no_number():
    scores = scores_from_confusion(np.array([[9, 0, 1], [0, 0, 0], [0, 0, 0]]))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in class_table(scores, "abc").splitlines()[2:]]
    assert rows == [["a", "90.00", "90.00", "100.00"], ["b", "-", "-", "0.00"], ["c", "0.00", "-", "0.00"]]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in definition_table(scores).splitlines()[2:]]
    assert [row[0] for row in rows] == [PROJECTS[key] for key in (UNION, GROUND_TRUTH, ALL_CLASSES)]
    assert [row[2:] for row in rows] == [["45.00", "90.00"], ["90.00", "90.00"], ["30.00", "30.00"]]
