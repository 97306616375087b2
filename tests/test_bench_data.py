"""The benchmark of the data path runs, and compares like with like; how long it takes is no test's business."""

import importlib.util
import json

import pytest
import torch
from conftest import ROOT

spec = importlib.util.spec_from_file_location("bench_data", ROOT / "benchmarks/bench_data.py")
bench_data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_data)


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the benchmark on little data and returns what it prints."""
    for name, value in {"SIZE": 64, "NUM_PHOTOS": 2, "NUM_DRAWS": 2, "NUM_BATCHES": 1}.items():
        monkeypatch.setattr(bench_data, name, value)
    monkeypatch.setattr(bench_data.logging, "disable", lambda level: None)

    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["bench_data.py", *arguments])
        bench_data.main()
        return capsys.readouterr().out

    return main


def test_mapper_and_evaluator_are_measured_beside_detectron2s(run):
    report = json.loads(run("mapper", "evaluator", "--repeats", "7", "--json"))
    mapper, evaluator = report["mapper"], report["evaluator"]
    speed, cost = mapper["images_per_second"], evaluator["ms_per_image"]
    ours, theirs = speed["SSTDatasetMapper"], speed["detectron2 DatasetMapper"]
    assert mapper["ratio"] == pytest.approx(ours / theirs) and theirs > 0
    ours, theirs = cost["SSTSemSegEvaluator"], cost["detectron2 SemSegEvaluator"]
    assert evaluator["ratio"] == pytest.approx(theirs / ours) and ours > 0
    printed = run("mapper", "--repeats", "7")
    assert "mapper: Images per second" in printed and "images/s" in printed and "evaluator" not in printed


@pytest.mark.slow
def test_the_pipeline_is_measured_by_number_of_workers(run):
    speed = json.loads(run("pipeline", "--repeats", "7", "--json"))["pipeline"]["images_per_second"]
    assert list(speed) == [f"{name}, {n} workers" for n in (0, 1, 2) for name in ("sst_d2", "detectron2")]
    assert min(speed.values()) > 0


@pytest.mark.parametrize(("name", "words"), [("image", "images differ by"), ("sem_seg", "labels differ")])
def test_mappers_that_give_other_pixels_are_not_compared(run, monkeypatch, tmp_path, name, words):
    honest = bench_data.our_mapper

    def wrong(augmentations):
        mapper = honest(augmentations)
        return lambda record: {**mapper(record), name: torch.zeros_like(mapper(record)[name])}

    monkeypatch.setattr(bench_data, "our_mapper", wrong)
    records = bench_data.make_photos(tmp_path)
    random = bench_data.RandomScaleCropMirror((64, 64))
    with pytest.raises(RuntimeError, match=f"{words}.*cannot be compared"):
        bench_data.check_mappers(records, honest([random]), bench_data.their_mapper(bench_data.random_augmentations()))


@pytest.mark.parametrize("arguments", [["speed"], ["--repeats", "6"], ["--threads", "0"]])
def test_wrong_arguments_are_refused(run, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2 and arguments[-1] in capsys.readouterr().err
