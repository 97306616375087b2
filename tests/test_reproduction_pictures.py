"""The points of the curves against figures made by hand, and files that show something."""

import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

sys.path.insert(0, str(ROOT / "benchmarks"))
from reproduction import branch, pictures
from reproduction.places import Places
from reproduction.results import HELDOUT, OWN, Results
from reproduction.rows import A, C, P
from reproduction.scales import load_scale


@pytest.fixture
def results(tmp_path):
    """Two seeds of one row, and one of a row with a branch; the second seed has a point more."""
    found = Results(load_scale("tiny"), Places(tmp_path, tmp_path))

    def record(curve, branch=()):
        names = {f"synthetic_{domain}_sem_seg_val": domain for domain in (P, A, C)}
        names["synthetic_heldout_atr_sem_seg_val"] = A
        scores = {name: {"label_domain": domain} for name, domain in names.items()}
        by_name = [
            [step, {f"synthetic_{place}atr_sem_seg_val": value for place, value in v.items()}] for step, v in curve
        ]
        return {"scores": scores, "curve": by_name, "branch": list(branch)}

    found.records["multi_datasets"] = {
        0: record([[10, {"": 1.0, "heldout_": 5.0}], [20, {"": 3.0, "heldout_": None}]]),
        1: record([[10, {"": 2.0, "heldout_": 6.0}], [15, {"": 9.0}], [20, {"": 5.0, "heldout_": 7.0}]]),
    }
    branch = [
        [10, {"sst/cosine_x3/atr": 0.2, "sst/cosine_x3/cihp": 0.4, "sst/cosine_x0/atr": 0.9}],
        [20, {"sst/cosine_x3/atr": 0.5}],
    ]
    found.records["universal_full"] = {4: record([[10, {"": 1.0}], [20, {"": 2.0}]], branch)}
    return found


def test_seeds_are_averaged_where_all_of_them_have_a_point(results):
    own = pictures.score_curve(results, "multi_datasets", A, OWN)
    assert own == ([10, 20], [1.5, 4.0], [1.0, 3.0], [2.0, 5.0])
    assert pictures.score_curve(results, "multi_datasets", A, HELDOUT) == ([10], [5.5], [5.0], [6.0])
    assert pictures.score_curve(results, "multi_datasets", P, OWN) is None  # without a point
    assert pictures.score_curve(results, "sst_50", P, OWN) is None  # without a record
    assert pictures.averaged([{1: 0.0}, {2: 0.0}]) is None


def test_figures_of_the_branch_are_means_over_domains(results):
    steps, means, *_ = pictures.branch_curve(results, "universal_full", "sst/cosine_x3/")
    assert steps == [10, 20] and means == pytest.approx([0.3, 0.5])
    assert pictures.branch_curve(results, "universal_full", "sst/cosine_x0/").steps == [10]
    assert pictures.branch_curve(results, "multi_datasets", "sst/cosine_x0/") is None


def test_files_show_the_curves_and_equal_records_give_equal_files(results, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        written = pictures.draw(results, tmp_path / folder)
        assert [path.name for path in written] == ["curves.png", "categories.png"]
    for name in ("curves.png", "categories.png"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("one", "two"))
        assert first == second
        with Image.open(tmp_path / "one" / name) as picture:
            pixels = np.array(picture.convert("RGB")).reshape(-1, 3)
        red = (np.abs(pixels.astype(int) - (214, 39, 40)).max(axis=1) < 30).sum()
        assert name == "categories.png" or red > 20  # the line of "SST, full"
    assert not list((tmp_path / "one").glob(".*"))


def test_without_a_branch_there_is_no_picture_of_categories(results, tmp_path):
    del results.records["universal_full"]
    assert [path.name for path in pictures.draw(results, tmp_path)] == ["curves.png"]
    results.records.clear()
    assert pictures.draw(results, tmp_path) == []


def test_what_the_branch_does_is_told_at_its_first_and_last_evaluation(results):
    figures = results.records["universal_full"][4]["branch"]
    figures[0][1].update({"sst/gradient/loss_seg/atr": 3.0, "sst/gradient/loss_seg/cihp": 4.0})
    figures[0][1].update({"sst/gradient/loss_aux/atr": 1.0, "sst/alignment/loss_aux": 0.25})
    figures[1][1].update({"sst/gradient/loss_seg/atr": 2.0, "sst/gradient/loss_aux/atr": 0.5})
    figures[1][1].update({"sst/alignment/loss_aux": -0.5, "sst/scr_image_present/atr-cihp": 0.001})
    (line,) = branch.branch_lines(results)
    told = dict(zip(["row", *branch.COLUMNS], line))
    assert told["row"] == "universal_full" and told["cosine of X_3"] == "0.3 → 0.5"
    assert told["pull of L_aux"] == "0.2 → 0.25" and told["L_aux: cosine with the task"] == "0.25 → -0.5"
    for word in ("cosine of X_0", "mismatch", "pull of L_SCR image", "prediction: cosine with the task"):
        assert told[word] == "–", word  # absent at one end or both
