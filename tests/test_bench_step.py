"""The benchmark of a training step runs, and measures what it says; how long a step takes is no test's business."""

import importlib.util
import json

import pytest
import torch
from conftest import ROOT

spec = importlib.util.spec_from_file_location("bench_step", ROOT / "benchmarks/bench_step.py")
bench_step = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_step)

CANDIDATES = ["Multi-datasets", "SST progressive", "SST full"]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the benchmark with the smallest network on small images, and returns what it prints."""
    small = bench_step.Network("quick_schedules/Base-tiny.yaml", 32)
    for name, value in {"R50": small, "TINY": small, "COUNTS": range(2, 4)}.items():
        monkeypatch.setattr(bench_step, name, value)
    monkeypatch.setattr(bench_step.logging, "disable", lambda level: None)

    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["bench_step.py", *arguments])
        bench_step.main()
        return capsys.readouterr().out

    return main


def test_time_and_memory_are_measured_beside_those_of_multi_datasets(run):
    report = json.loads(run("r50", "--r50-rounds", "1", "--json"))["r50"]
    assert list(report) == CANDIDATES
    baseline, *others = report.values()
    assert baseline["ratio"] == baseline["median_ratio"] == baseline["peak_ratio"] == 1 and baseline["ms"] > 0
    for values in others:
        assert values["ratio"] == pytest.approx(values["ms"] / baseline["ms"])
        assert values["peak_ratio"] == pytest.approx(values["peak_mb"] / baseline["peak_mb"])
    assert baseline["peak_mb"] < report["SST progressive"]["peak_mb"] < report["SST full"]["peak_mb"]


@pytest.mark.slow
def test_tables_have_a_row_per_candidate_or_number_of_domains(run):
    printed = run("tiny", "domains", "--rounds", "7")
    assert "tiny: A step of the smallest network" in printed and "r50" not in printed.partition("\n")[2]
    tiny, domains = printed.split("\ndomains: ")
    assert [line.split("  ")[0] for line in tiny.splitlines()[-3:]] == CANDIDATES
    rows = [line.split() for line in domains.splitlines() if line.split()[0].isdigit()]
    assert [row[0] for row in rows] == ["2", "3"] and all(len(row) == 1 + 3 + 2 for row in rows)
    lines = domains.splitlines()[-3:]
    assert [line.split(": ")[0] for line in lines] == CANDIDATES and all("ms more per domain" in line for line in lines)


def test_the_candidates_differ_in_the_branch_alone():
    steps = bench_step.steps(bench_step.TINY, bench_step.DOMAINS, "cpu")
    pairs = [step.model.auxiliary.pairs if step.model.auxiliary else None for step in steps.values()]
    assert list(steps) == CANDIDATES and pairs[0] is None and (len(pairs[1]), len(pairs[2])) == (2, 3)
    batches = [next(step._data_loader_iter) for step in steps.values()]
    names = [sample["label_domain"] for sample in batches[0]]
    assert sorted(names) == sorted(2 * bench_step.DOMAINS)
    for batch in batches[1:]:
        for one, other in zip(batch, batches[0], strict=True):
            assert torch.equal(one["image"], other["image"]) and torch.equal(one["sem_seg"], other["sem_seg"])
    plain, *others = (step.model.decoder.state_dict() for step in steps.values())
    assert all(torch.equal(value, other[name]) for other in others for name, value in plain.items())


def test_domains_that_are_made_up_bridge_each_other(tmp_path):
    files = [bench_step.made_up_domain(tmp_path, number) for number in range(4)]
    counts = [
        len(step.model.auxiliary.pairs) for step in list(bench_step.steps(bench_step.TINY, files, "cpu").values())[1:]
    ]
    assert counts == [3, 6]


def test_the_straight_line_is_the_nearest_one():
    assert bench_step.straight_line([2, 3, 4], [5.0, 7.0, 9.0]) == pytest.approx((2, 0), abs=1e-12)
    slope, distance = bench_step.straight_line([1, 2, 3, 4], [1.0, 4.0, 9.0, 16.0])
    assert (slope, distance) == pytest.approx((5, 1))  # the line is 5 n - 5: 0 in place of 1


def test_memory_counts_weights_and_the_most_that_is_held_at_once():
    class Step:
        model = torch.nn.Linear(1000, 1000, bias=False)
        optimizer = torch.optim.SGD(model.parameters())

        def run_step(self):
            for _ in range(3):  # what is released is not counted again
                held = [torch.zeros(1000, 1000) for _ in range(2)]
                del held

    assert bench_step.peak_bytes(Step(), "cpu") == pytest.approx(3 * 4e6, rel=0.01)


@pytest.mark.parametrize(
    "arguments", [["speed"], ["--rounds", "6"], ["--r50-rounds", "0"], ["--threads", "0"], ["--device", "tpu"]]
)
def test_wrong_arguments_are_refused(run, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2 and arguments[-1] in capsys.readouterr().err
