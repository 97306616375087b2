"""The benchmark of the network runs, and its parts make the whole; how long they take is no test's business."""

import importlib.util
import json

import pytest
from conftest import ROOT

spec = importlib.util.spec_from_file_location("bench_model", ROOT / "benchmarks/bench_model.py")
bench_model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(bench_model)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["bench_model.py", "--config", "quick_schedules/synthetic_people.yaml", *arguments])
    bench_model.main()
    return capsys.readouterr().out


def test_the_parts_make_the_whole(monkeypatch, capsys):
    seconds = json.loads(run(monkeypatch, capsys, "--size", "64", "--repeats", "2", "--json"))["seconds"]
    assert list(seconds) == ["backbone", "encoder, decoder", "heads", "all"] and min(seconds.values()) > 0
    assert seconds.pop("all") == pytest.approx(sum(seconds.values()))
    printed = run(monkeypatch, capsys, "--size", "32", "--repeats", "1")
    assert "heads: pascal_person_part, atr, cihp, 32 x 32" in printed and "CPU threads" in printed


@pytest.mark.parametrize("arguments", [["--size", "100"], ["--repeats", "0"]])
def test_wrong_numbers_are_refused(monkeypatch, capsys, arguments):
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, capsys, *arguments)
    assert end.value.code == 2 and f"{' '.join(arguments)}: " in capsys.readouterr().err
