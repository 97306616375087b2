"""Pictures of confusions and relations: the right values in the right cells."""

import json

import numpy as np
import pytest

from sst_d2.errors import SSTDataError
from sst_d2.label_domains import get_label_domain
from sst_d2.label_domains.relations import cross_similarity
from sst_d2.pictures import (
    CategoryRelations,
    confusion_picture,
    cosine_picture,
    dynamic_picture,
    read_evaluation,
    static_picture,
)
from sst_d2.pictures import confusion as confusion_room
from sst_d2.pictures import relations as relations_room

PASCAL, ATR = get_label_domain("pascal_person_part"), get_label_domain("atr")


@pytest.fixture
def drawn(monkeypatch):
    """What the matrix pictures are asked to show: (values, rows, columns, title), one after the other."""
    calls = []
    for room in (confusion_room, relations_room):
        original = room.matrix_picture
        monkeypatch.setattr(
            room, "matrix_picture", lambda *a, _original=original, **k: (calls.append(a), _original(*a, **k))[1]
        )
    return calls


def written(path, **changes):
    record = {
        "dataset": "people_val",
        "label_domain": "own",
        "classes": ["background", "hat", "bag"],
        "images": 4,
        "confusion_matrix": [[90, 10, 0], [30, 10, 0], [0, 0, 0]],
    }
    path.write_text(json.dumps({**record, **changes}))
    return path


def test_a_confusion_is_shown_as_shares_of_the_ground_truth(tmp_path, drawn):
    picture = confusion_picture(read_evaluation(written(tmp_path / "a.json")))
    values, rows, columns, title = drawn[0]
    assert values == pytest.approx(np.array([[0.9, 0.1, 0], [0.75, 0.25, 0], [np.nan] * 3]), nan_ok=True)
    assert rows == ["background (69)", "hat (20)", "bag (-)"] and columns == ("background", "hat", "bag")
    assert title.startswith("people_val (own, 4 images): mIoU 44.62\n")  # (90/130 + 10/50) / 2
    assert picture.dtype == np.uint8 and picture.ndim == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"confusion_matrix": [[1, 2]]},
        {"confusion_matrix": [[1, 2, 3], [1, 2, 3], [-1, 0, 0]]},
        {"confusion_matrix": "x"},
        {"classes": 5},
        {"images": None},
    ],
)
def test_what_is_no_result_of_an_evaluation_is_refused_by_name(tmp_path, changes):
    with pytest.raises(SSTDataError, match=r"a\.json: is no result of an evaluation"):
        read_evaluation(written(tmp_path / "a.json", **changes))


@pytest.mark.parametrize("text", ["", "[]", "7", '{"confusion_matrix": [[1]]}', "\x00"])
def test_other_files_are_refused_too(tmp_path, text):
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(SSTDataError, match=r"b\.json: is no result"):
        read_evaluation(tmp_path / "b.json")
    with pytest.raises(SSTDataError, match=r"c\.json: is no result"):
        read_evaluation(tmp_path / "c.json")


def test_static_relations_have_the_first_domain_in_the_columns(drawn):
    static_picture(ATR, PASCAL)
    values, rows, columns, title = drawn[0]
    assert np.array_equal(values, cross_similarity(ATR, PASCAL)) and values.shape == (7, 18)
    assert (rows, columns) == (PASCAL.classes, ATR.classes) and "source: published GloVe cosines" in title


def test_dynamic_relations_are_in_units_of_their_largest(drawn):
    values = np.zeros((7, 18))
    values[2, 3], values[1] = -8.0, np.nan
    dynamic_picture(ATR, PASCAL, values, 4)
    assert drawn[0][0][2, 3] == -1 and np.isnan(drawn[0][0][1]).all() and "largest value, 8\n" in drawn[0][3]
    for nothing in (np.zeros((7, 18)), np.full((7, 18), np.nan)):
        dynamic_picture(ATR, PASCAL, nothing, 4)


def test_cosines_are_of_x0_or_of_x3(drawn):
    x0, x3 = np.eye(7), np.full((7, 7), 0.5)
    relations = CategoryRelations({PASCAL.name: 9}, {PASCAL.name: x0}, {PASCAL.name: x3}, {})
    cosine_picture(PASCAL, relations, last=False)
    cosine_picture(PASCAL, relations, last=True)
    assert [call[0] is x for call, x in zip(drawn, (x0, x3), strict=True)] == [True, True]
    assert "X_0" in drawn[0][3] and "X_3" in drawn[1][3] and "9 images" in drawn[1][3]
