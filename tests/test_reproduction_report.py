"""Tables, costs and verdicts from records alone, against figures made by hand."""

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from reproduction import costs, pilot, report
from reproduction.claims import CLAIMS
from reproduction.places import Places, ReproductionError, write_json
from reproduction.results import HELDOUT, OWN, Results
from reproduction.rows import ROWS, A, C, P
from reproduction.scales import load_scale
from reproduction.settings import Run, values

TINY = load_scale("tiny")
NETWORKS = {
    "size": [128, 128],
    "networks": {"+".join(r.domains): {"gmacs": 0.25, "parameters": 1} for r in ROWS.values()},
}


def record(row, seed, miou, held=None, step=0.2, minutes=10.0, branch=20):
    """A record as a finished run leaves it; scores by domain, those of the held-out images by default 1 less."""
    held = held or {domain: value - 1 for domain, value in miou.items()}
    scores = {}
    for prefix, by_domain in (("synthetic_", miou), ("synthetic_heldout_", held)):
        for domain, value in by_domain.items():
            own = {"label_domain": domain, "images": 2, "mIoU": value, "mACC": value + 10, "pACC": 90.0, "IoU": {}}
            scores[f"{prefix}{domain}_sem_seg_val"] = own
    return {
        **{"row": row, "seed": seed, "scale": "tiny", "scores": scores, "steps": TINY.steps, "seconds_per_step": step},
        **{"minutes": minutes, "processor_minutes": minutes / 2, "memory_mb": 900.0, "gpu_memory_mb": None},
        **{"parameters": {"all": 100, "branch": branch}, "overrides": values(Run(row, seed, TINY)), "device": "cpu"},
        **{"trunk_sha256": "abc", "versions": {"torch": "2", "detectron2": "0.5"}},
        "curve": [
            [step, {name: own["mIoU"] * step / TINY.steps for name, own in scores.items()}] for step in (2500, 5000)
        ],
        "branch": [],
    }


@pytest.fixture
def places(tmp_path):
    """Folders with the records of three rows: multi beats single, universal loses to multi, one seed of progressive."""
    found = Places(tmp_path / "work", tmp_path / "results")
    write_json(found.results / "networks.json", NETWORKS)
    for seed, (single, multi, full) in enumerate([(30.0, 40.0, 38.0), (31.0, 42.0, 40.5), (29.0, 41.0, 38.0)]):
        three = {A: 20.0, C: 10.0}
        for one in (
            record("single_pascal_person_part", seed, {P: single}, step=0.1),
            record("multi_datasets", seed, {P: multi, **three}, minutes=8.0 + seed),
            record("universal_full", seed, {P: full, **three}, step=0.25),
        ):
            write_json(found.result(Run(one["row"], seed, TINY)), one)
    one = record("universal_progressive", 1, {P: 39.0, A: 21.0, C: 11.0})
    write_json(found.result(Run("universal_progressive", 1, TINY)), one)
    return found


def lines_of(text, heading):
    """The cells of the first table below a heading."""
    below = text.split(heading, 1)[1].split("\n|", 1)[1]
    rows = [line for line in ("|" + below).split("\n\n")[0].splitlines() if not set(line) <= set("|-: ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_a_table_has_the_papers_layout_with_its_figures_in_a_column_of_their_own(places):
    text = report.make_report(TINY, places)
    table = lines_of(text, "## Table 1. ")
    assert table[0] == ["Method", "mIoU, own", "mIoU, held-out", "mIoU, the paper's (R50)"]
    assert [row[0] for row in table[1:]] == [
        *("Single-dataset", "Multi-datasets", "SST (Universal)", "SST (Transfer-CIHP)", "SST (Transfer-ATR&CIHP)"),
    ]
    deviation = np.std([40, 42, 41], ddof=1)
    assert table[2][1:] == [f"41.00 ± {deviation:.2f} (3)", f"40.00 ± {deviation:.2f} (3)", "70.40"]
    assert table[4][1:] == ["–", "–", "73.49"]
    accuracy = lines_of(text, "## Table 2. ")
    assert accuracy[0][1:3] == ["mean accuracy, own", "mIoU, own"] and accuracy[2][1:3] == [
        "30.00 ± 0.00 (3)",
        "20.00 ± 0.00 (3)",
    ]
    assert accuracy[2][-2:] == ["87.41", "79.39"]


def test_one_seed_is_marked_and_gets_no_deviation_and_no_verdict(places):
    text = report.make_report(TINY, places)
    strategies = lines_of(text, "## Table 4. ")
    assert strategies[1] == ["Progressive", "PASCAL", "39.00 †", "38.00 †", "72.03"]
    full = [row for row in lines_of(text, "## Claims") if row[0] == "Full ≥ Progressive"]
    assert full[0][1:4] == ["PASCAL-Person-Part", "+1.50 †", "one seed"]  # seed 1: 40.5 − 39.0


def test_table_6_marks_the_parts_of_each_row(places):
    table = lines_of(report.make_report(TINY, places), "## Table 6. ")
    marks = {row[0]: [bool(cell) for cell in row[1:6]] for row in table[1:]}
    assert table[0][1:6] == ["Multi-datasets", "L_aux (None)", "L_aux (M_intra)", "L_SCR dataset", "L_SCR img"]
    one, none = True, False
    assert marks == {
        "1": [one, none, none, none, none],
        "2": [one, one, none, none, none],
        "3": [one, none, one, none, none],
        "4": [one, none, one, one, none],
        "5": [one, none, one, none, one],
        "6": [one, none, one, one, one],
    }
    assert table[1][6] == "41.00 ± 1.00 (3)" and table[6][6].startswith("38.83")  # rows 1 and 6 are runs of Table 1


def test_a_claim_that_does_not_hold_is_printed_as_such(places):
    text = report.make_report(TINY, places)
    verdicts = {(row[0], row[1]): row for row in lines_of(text, "## Claims")[1:]}
    assert len(verdicts) == len(CLAIMS)
    multi = verdicts["Multi-datasets > Single-dataset", "PASCAL-Person-Part"]
    half = 4.303 * 1.0 / np.sqrt(3)  # of 10, 11, 12
    assert multi[2] == f"+11.00 [{11 - half:+.2f}, {11 + half:+.2f}] (3)" and multi[3] == "held"
    assert multi[-1] == "70.40 − 67.15 = +3.25"
    universal = verdicts["SST (Universal) > Multi-datasets", "PASCAL-Person-Part"]
    assert universal[3] == universal[5] == "failed" and universal[2] == "-2.17 [-4.06, -0.27] (3)"
    assert verdicts["SST (Universal) > Multi-datasets", "ATR"][3] == "undecided"  # equal in every seed
    assert "\nown: held 1, failed 2, undecided 2, one seed 3, no runs 16; held-out: held 1, failed 2," in text


def test_verdicts_of_the_held_out_images_are_their_own(places):
    row = "universal_full"
    for seed in range(3):
        held = {P: 50.0 + seed, A: 20.0, C: 10.0}
        write_json(places.result(Run(row, seed, TINY)), record(row, seed, {P: 30.0, A: 20.0, C: 10.0}, held))
    claims = lines_of(report.make_report(TINY, places), "## Claims")
    universal = next(line for line in claims if line[0].startswith("SST (Universal) >"))
    assert (universal[3], universal[5]) == ("failed", "held")


def test_universal_rows_stand_beside_both_baselines_by_their_mean(places):
    for seed, miou in enumerate((44.0, 43.0, 42.0)):  # MSE alone
        one = record("table6_row3", seed, {P: miou, A: 20.0, C: 10.0})
        write_json(places.result(Run("table6_row3", seed, TINY)), one)
    table = {line[0]: line[1:] for line in lines_of(report.make_report(TINY, places), "## Universal rows")[1:]}
    assert list(table) == ["multi_datasets", "universal_full", "universal_progressive", "table6_row3"]
    assert table["multi_datasets"][0].startswith("23.67 ± 0.33 (3)") and table["multi_datasets"][1] == ""
    differences = np.array([38 - 44, 40.5 - 43, 38 - 42]) / 3
    half = 4.303 * differences.std(ddof=1) / np.sqrt(3)
    mean = differences.mean()
    assert table["universal_full"][2] == f"{mean:+.2f} [{mean - half:+.2f}, {mean + half:+.2f}] (3) undecided"
    assert table["universal_full"][1].endswith("(3) failed")
    assert table["table6_row3"][2] == "" and table["table6_row3"][1].endswith("(3) undecided")
    assert table["universal_progressive"][1:3] == ["-0.33 †", "-0.67 †"]  # 71 − 72, 71 − 73


def test_costs_are_medians_over_seeds_beside_multi_datasets(places):
    results = Results(TINY, places)
    multi, full = (costs.cost(row, results, NETWORKS) for row in ("multi_datasets", "universal_full"))
    assert (multi["minutes"], multi["processor_minutes"], multi["step_ratio"]) == (9.0, 4.5, 1.0)
    assert multi["branch_time"] is None
    assert full["step_ratio"] == pytest.approx(1.25) and full["branch_time"] == pytest.approx(20.0)
    assert (full["branch_parameters"], full["memory_mb"], full["gmacs"]) == (20.0, 900.0, 0.25)
    assert set(costs.cost("sst_50", results, NETWORKS).values()) == {None, 0.25}


def test_the_network_at_inference_is_counted_once_and_without_the_branch(tmp_path, monkeypatch):
    places = Places(tmp_path, tmp_path)
    monkeypatch.setattr(costs, "ROWS", {row: ROWS[row] for row in ("sst_50", "universal_full", "multi_datasets")})
    counted = costs.networks(TINY, places)
    assert counted["size"] == [128, 128] and len(counted["networks"]) == 2
    one, three = (counted["networks"][heads] for heads in (P, f"{P}+{A}+{C}"))
    assert 0.2 < one["gmacs"] < three["gmacs"] < 1.02 * one["gmacs"]
    assert three["parameters"] - one["parameters"] == (18 + 20) * (64 + 1)  # two heads more, no branch
    monkeypatch.setattr(costs.importlib.util, "spec_from_file_location", None)
    assert costs.networks(TINY, places) == counted


def test_the_json_holds_what_the_tables_say(places):
    report.make_report(TINY, places)
    written = json.loads((places.results / "tables.json").read_text())
    figure = next(f for f in written["tables"]["Table 1"]["figures"] if f["row"] == "multi_datasets")
    assert figure["own"]["by_seed"] == {"0": 40.0, "1": 42.0, "2": 41.0} and figure["paper"] == 70.40
    assert (figure["own"]["n"], figure["own"]["mean"], figure["own"]["deviation"]) == (3, 41.0, 1.0)
    claim = written["claims"][0]
    assert (claim["better"], claim["paper"]) == ("multi_datasets", [70.40, 67.15])
    assert claim["own"]["verdict"] == "held" and claim["heldout"]["seeds"] == [0, 1, 2]
    assert written["runs"]["universal_progressive"] == [1]
    assert (places.results / "tables.md").read_text().startswith("# Reproduction, scale tiny")


def test_scores_are_asked_by_domain_and_place(places):
    results = Results(TINY, places)
    assert results.scores("multi_datasets", P, "mIoU", OWN) == {0: 40.0, 1: 42.0, 2: 41.0}
    assert results.scores("multi_datasets", A, "mIoU", HELDOUT) == dict.fromkeys(range(3), 19.0)
    assert results.scores("single_pascal_person_part", C, "mIoU", OWN) == results.scores("sst_50", P, "mIoU", OWN) == {}


def test_records_that_do_not_belong_together_are_refused(places):
    run = Run("universal_full", 4, TINY)
    other = record("universal_full", 4, {P: 1.0, A: 1.0, C: 1.0})
    write_json(places.result(run), {**other, "trunk_sha256": "def"})
    with pytest.raises(ReproductionError, match="did not have the same start; SHA-256 of their weights: abc, def"):
        report.make_report(TINY, places)
    write_json(places.result(run), {**other, "overrides": {**other["overrides"], "SOLVER.IMS_PER_BATCH": 3}})
    with pytest.raises(ReproductionError, match="made with SOLVER.IMS_PER_BATCH 3, and now it is 6"):
        report.make_report(TINY, places)
    places.result(run).write_text("{")
    with pytest.raises(ReproductionError, match="seed4.json: cannot be read"):
        report.make_report(TINY, places)


def test_without_runs_the_report_says_so(tmp_path):
    places = Places(tmp_path, tmp_path)
    write_json(tmp_path / "networks.json", NETWORKS)
    text = report.make_report(TINY, places)
    assert "No run is finished." in text and "no runs" in text


def test_at_the_papers_scale_there_are_no_held_out_images(tmp_path):
    write_json(tmp_path / "networks.json", {**NETWORKS, "size": [512, 512]})
    text = report.make_report(load_scale("paper"), Places(tmp_path, tmp_path))
    assert "held-out" not in text


def pilot_record(scores):
    name = "synthetic_atr_sem_seg_val"
    held = "synthetic_heldout_atr_sem_seg_val"
    return {
        "scores": {name: {"label_domain": "atr"}, held: {"label_domain": "atr"}},
        "curve": [[500 * (n + 1), {name: score, held: 0.0}] for n, score in enumerate(scores)],
    }


def test_the_gain_of_the_last_fifth_is_read_from_the_curve_between_its_points():
    steps, scores = [500, 1000, 1500, 2000, 2500], [10.0, 20.0, 25.0, 27.0, 27.5]
    assert pilot.gain_of_last_fifth(steps, scores, 4) == pytest.approx(0.5)  # 2000 to 2500
    assert pilot.gain_of_last_fifth(steps, scores, 3) == pytest.approx(27.0 - (25.0 + 0.2 * 2.0))  # 1600 to 2000
    assert pilot.gain_of_last_fifth(steps, scores, 0) is None


def test_the_pilot_names_the_length_from_which_on_the_gain_stays_small():
    text = pilot.described(pilot_record([10.0, 20.0, 20.1, 25.0, 27.0, 27.5, 27.6]), TINY.heldout)
    assert "from 3000 steps on" in text and "`steps: 3600`" in text  # at 1500 it was small for a moment
    assert "make the pilot longer" in pilot.described(pilot_record([10.0, 20.0, 30.0]), TINY.heldout)
