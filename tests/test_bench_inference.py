"""The benchmark of prediction runs, and compares what it says; how long anything takes is no test's business."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import ROOT

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.label_maps import label_map
from sst_d2.modeling.ops import backends

spec = importlib.util.spec_from_file_location("bench_inference", ROOT / "benchmarks/bench_inference.py")
bench = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench)
import inference_subject  # noqa: E402  (beside the benchmark, which makes it known)
import resident_memory  # noqa: E402

TINY = str(ROOT / "configs/quick_schedules/synthetic_people.yaml")
DOMAINS = ["pascal_person_part", "atr", "cihp"]


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the benchmark with the smallest network on a small photo, and returns what it prints."""
    monkeypatch.setattr(bench.logging, "disable", lambda level: None)

    def main(*arguments):
        shared = ["--config-file", TINY, "--size", "64", "--rounds", "3"]
        monkeypatch.setattr("sys.argv", ["bench_inference.py", *shared, *arguments])
        bench.main()
        return capsys.readouterr().out

    return main


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    cfg = bench.load_config(TINY, ["MODEL.DEVICE", "cpu"])
    return bench.make_subject(cfg, tmp_path_factory.mktemp("subject"), 64, 3)


@pytest.fixture
def without_onnx(monkeypatch):
    def absent():
        raise SSTConfigError("onnxruntime is not here")

    monkeypatch.setattr(inference_subject.export, "check_packages", absent)


def test_all_heads_stand_beside_one_with_every_back_end(run):
    report = json.loads(run("heads", "--json"))
    rows = report["heads"]
    assert report["back_ends"] == inference_subject.back_ends("cpu") and report["back_ends"][-1] == "torch"
    kinds = [*report["back_ends"], "heads alone"]
    assert list(rows) == [f"{kind}, {heads}" for kind in kinds for heads in ("one head", "all heads")]
    for kind in kinds:
        one, every = rows[f"{kind}, one head"], rows[f"{kind}, all heads"]
        assert one["ratio"] == one["median_ratio"] == 1
        assert every["ratio"] == pytest.approx(every["ms"] / one["ms"])
        assert every["images_per_s"] == pytest.approx(1000 / every["ms"]) and every["peak_mb"] >= one["peak_mb"] > 1


def test_without_onnxruntime_the_forms_are_pytorch_alone_and_the_reason_is_said(run, without_onnx):
    rows = json.loads(run("forms", "--json"))["forms"]
    assert rows.pop("left_out") == "onnxruntime is not here"
    names, expected = inference_subject.back_ends("cpu"), []
    for heads in ("one head", "all heads"):
        expected += [*(f"eager, {name}, {heads}" for name in names), f"eager, {names[0]}, {heads}, label map"]
        assert rows[f"eager, torch, {heads}"]["ratio"] == 1
    assert list(rows) == expected


@pytest.mark.slow
@pytest.mark.skipif(bool(inference_subject.why_no_onnx("cpu")), reason="onnx and onnxruntime are not installed")
def test_onnx_files_are_made_and_run(run):
    rows = json.loads(run("forms", "--json"))["forms"]
    assert "left_out" not in rows
    for heads in ("one head", "all heads"):
        row, other = rows[f"onnxruntime, {heads}"], rows[f"eager, torch, {heads}"]
        assert row["peak_mb"] is None and row["ratio"] == pytest.approx(row["ms"] / other["ms"])


def test_steps_are_parts_of_the_whole(run):
    report = json.loads(run("processing", "--json"))["processing"]
    assert list(report) == ["one head", "all heads"]
    for values in report.values():
        ms = dict(values["ms"])
        naive, _, network = ms.pop(bench.NAIVE), ms.pop(bench.WHOLE), ms[bench.NETWORK]
        assert list(ms) == ["read the JPEG", "tensor", "network, heads", "label map", "palette PNG"]
        assert values["share"] == pytest.approx(1 - network / sum(ms.values()))
        others = sum(ms.values()) - ms["label map"] + naive
        assert values["naive_share"] == pytest.approx(1 - network / others)
        assert values["time_ratio"] == pytest.approx(ms["label map"] / naive) and 0 < values["memory_ratio"] < 1


@pytest.mark.slow
@pytest.mark.skipif(bool(resident_memory.why_not()), reason="no /proc here")
def test_the_memory_of_processes_is_the_prediction_s(run, without_onnx):
    report = json.loads(run("memory", "--json"))["memory"]
    assert report.pop("left_out") == "onnxruntime is not here"
    assert list(report) == ["label maps from small logits", "full logits, arg-max"]
    assert all(row["peak_mb"] > row["more_mb"] >= 0 for row in report.values())


def test_without_proc_the_memory_of_processes_is_left_out(run, monkeypatch, tmp_path):
    monkeypatch.setattr(resident_memory, "STATUS", tmp_path / "absent")
    assert "left out: it takes Linux and its /proc" in run("memory")


def test_tables_have_a_row_per_candidate_or_step(run):
    printed = run("heads", "processing", "--threads", "1")
    heads, processing = printed.split("\nprocessing: ")
    assert heads.splitlines()[-1].startswith("heads alone, all heads") and "size 64" in heads
    lines = [line.split("  ")[0] for line in processing.splitlines()]
    assert lines[3:10] == [
        bench.READ,
        bench.TENSOR,
        bench.NETWORK,
        bench.LABEL_MAP,
        bench.PNG,
        bench.NAIVE,
        bench.WHOLE,
    ]
    assert [line.partition(":")[0] for line in lines[-2:]] == ["one head", "all heads"]


def test_candidates_run_what_their_names_say(subject):
    seen = []
    original = backends.for_call
    assert inference_subject.computed_by("torch", lambda: seen.append(backends.for_call()))() is None
    assert seen == ["torch"] and backends.for_call is original
    assert subject.by_classes == DOMAINS
    with torch.inference_mode():
        image = inference_subject.normalised(subject)
        logits = inference_subject.from_image(subject.model, image, DOMAINS)
        given = [subject.logits[name] for name in DOMAINS]
        with inference_subject.trained_logits(subject):
            replaced = subject.model([{"image": subject.image, "label_domain": "all", "output": "labels"}])[0]
        again = inference_subject.from_image(subject.model, image, DOMAINS)
    for name, own, values, after in zip(DOMAINS, logits, given, again, strict=True):
        assert own.shape == values[None].shape and torch.equal(own, after)
        assert torch.equal(replaced["logits_by_domain"][name], values)


def test_label_maps_are_the_same_in_both_ways_and_of_several_regions(subject):
    for values in subject.logits.values():
        ours, naive = label_map(values, (64, 64), (64, 64), (64, 64)), bench.naive_label_map(values, (64, 64))
        assert (ours == naive).double().mean() > 0.999 and len(np.unique(ours)) > 2


def test_an_export_that_fails_is_no_measurement(subject, monkeypatch):
    monkeypatch.setattr(inference_subject, "EXPORT", ROOT / "tools/absent.py")
    with pytest.raises(RuntimeError, match=r"tools/export.py ends with exit status 2"):
        inference_subject.exported(subject, "atr")


@pytest.mark.parametrize(
    "arguments",
    [["speed"], ["--rounds", "2"], ["--size", "32"], ["--size", "100"], ["--threads", "0"], ["--device", "tpu"]],
)
def test_wrong_arguments_are_refused(run, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2 and arguments[-1] in capsys.readouterr().err


def test_a_configuration_that_is_not_there_is_named(run):
    with pytest.raises(SSTConfigError, match=r"absent\.yaml"):
        run("--config-file", "absent.yaml")
