"""The cost that the design promises."""

import importlib.util

import pytest
from conftest import ROOT


@pytest.mark.slow
def test_r50_at_512_with_one_head_costs_at_most_73_gmacs():
    spec = importlib.util.spec_from_file_location("bench_model", ROOT / "benchmarks/bench_model.py")
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    model = bench.build("single/cihp_R50.yaml")
    table = bench.count(model, 512, ["cihp"])
    assert 70 < table["all"]["gmacs"] <= 73 and table["all"]["parameters_m"] == pytest.approx(32.0, abs=0.1)
    parts = sum(values["gmacs"] for name, values in table.items() if name != "all")
    assert parts == pytest.approx(table["all"]["gmacs"], rel=0.01)
