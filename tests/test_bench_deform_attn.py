"""The benchmark of the attention operator runs, and compares like with like; times are no test's business."""

import importlib.util
import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

spec = importlib.util.spec_from_file_location("bench_deform_attn", ROOT / "benchmarks/bench_deform_attn.py")
bench = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = bench  # dataclasses look there
spec.loader.exec_module(bench)


@pytest.fixture
def run(monkeypatch, capsys):
    """A function that runs the benchmark on small levels and returns what it prints."""
    for name, value in {"SHAPES": [(6, 5), (3, 2)], "HEADS": 4, "CHANNELS": 8, "FFN": 16}.items():
        monkeypatch.setattr(bench, name, value)

    def main(*arguments):
        monkeypatch.setattr("sys.argv", ["bench_deform_attn.py", *arguments])
        bench.main()
        return capsys.readouterr().out

    return main


def test_every_figure_on_the_cpu_has_two_sides_and_a_goal(run):
    report = json.loads(run("operator", "half", "layer", "--repeats", "7", "--threads", "1", "--json"))
    rows = {row["what"]: row for row in report["rows"]}
    assert len(rows) == 10 - len(report["left_out"]) and report["threads"] == 1
    assert report["back_ends"]["cpu"] in ("ext", "torch")
    assert all(row["ratio"] == pytest.approx(row["theirs_ms"] / row["ours_ms"]) for row in rows.values())
    goals = {(row["must"], row["aim"]) for row in rows.values()}
    assert goals - {(25, 50)} == {(10, 25), (8, 14), (8, 15), (7, 11), (15, 30), (2, 4), (2, 2.6), (0, 0)}
    assert report["left_out"].keys() == {"half"} - {"half" for goal in goals if goal == (25, 50)}
    assert bench.pixel_decoder.ms_deform_attn_fused is bench.ms_deform_attn_fused
    printed = run("layer", "--repeats", "7", "--threads", "1")
    assert "encoder layer, forward, batch 1" in printed and "theirs, ms" in printed and "bfloat16" not in printed


def test_without_a_gpu_it_says_so(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "gpu: left out, PyTorch finds no GPU" in run("gpu")
    assert json.loads(run("gpu", "--json"))["rows"] == []


def test_every_figure_on_a_gpu_has_two_sides_and_a_goal(run, monkeypatch):
    """On the CPU, by way of stand-ins for what only a GPU has."""

    class Kernels:
        def forward(self, value, locations, weights):
            return bench.ms_deform_attn(value, bench.SHAPES, locations, weights)

        def backward(self, grad_output, value, *others):
            flat = [side for shape in bench.SHAPES for side in shape]
            return torch.ops.sst_d2.ms_deform_attn_backward(grad_output, value, flat, *others)

    make_inputs = bench.make_inputs
    monkeypatch.setattr(bench, "make_inputs", lambda batch, device: make_inputs(batch, "cpu"))
    monkeypatch.setattr(bench, "OneChannelKernels", Kernels)
    monkeypatch.setattr(bench, "absent", lambda section: "")
    rows = json.loads(run("gpu", "--repeats", "7", "--json"))["rows"]
    assert [(row["must"], row["aim"]) for row in rows] == [(8, 15), (6, 10), (2.5, 4), (4, 6), (2, 3)] * 2


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc here")
def test_the_other_kernels_compile(tmp_path):
    command = ["nvcc", "-arch=sm_90", "-cubin", "-o", str(tmp_path / "kernels.cubin"), str(bench.KERNELS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_sides_that_differ_are_not_compared(monkeypatch):
    form = bench.grid_sample_form
    monkeypatch.setattr(bench, "grid_sample_form", lambda *arguments: 1.01 * form(*arguments))
    with pytest.raises(RuntimeError, match=r"forward, batch 1: results differ by .*cannot be compared"):
        list(bench.operator_rows())


@pytest.mark.parametrize("arguments", [["speed"], ["--repeats", "6"], ["--threads", "0"]])
def test_wrong_arguments_are_refused(run, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        run(*arguments)
    assert end.value.code == 2 and arguments[-1] in capsys.readouterr().err
