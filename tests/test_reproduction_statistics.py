"""Intervals and verdicts, by hand, by published tables and by SciPy."""

import math
import sys

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from reproduction import statistics


# Two-sided 95 % points as every table of Student's distribution prints them.
@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042)]
)
def test_quantiles_are_those_of_the_printed_tables(freedom, point):
    assert statistics.t_quantile(0.975, freedom) == pytest.approx(point, abs=5e-4)


def test_quantiles_and_probabilities_are_scipys():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, 40), 99, 1000):
        for probability in (0.6, 0.9, 0.975, 0.999):
            ours = statistics.t_quantile(probability, freedom)
            assert ours == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)
        for t in (-30.0, -2.5, -0.1, 0.0, 0.7, 4.0):
            assert statistics.t_probability(t, freedom) == pytest.approx(stats.t.cdf(t, freedom), abs=1e-12)


def test_an_interval_is_what_numpy_and_a_table_make_of_the_common_seeds():
    better, worse = {0: 52.0, 1: 50.5, 2: 51.0, 3: 53.0, 7: 99.0}, {3: 50.0, 2: 50.5, 1: 50.0, 0: 50.0, 8: 0.0}
    result = statistics.paired(better, worse)
    differences = np.array([2.0, 0.5, 0.5, 3.0])
    half = 3.182 * differences.std(ddof=1) / math.sqrt(4)
    assert result.seeds == (0, 1, 2, 3) and result.mean == pytest.approx(1.5)
    assert result.deviation == pytest.approx(differences.std(ddof=1))
    assert (result.low, result.high) == pytest.approx((1.5 - half, 1.5 + half), abs=1e-3)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([1.0, 1.1, 0.9], "held"),
        ([-1.0, -1.1, -0.9], "failed"),
        ([1.0, 3.0, -1.0], "undecided"),
        ([1.0, 2.0], "undecided"),  # with two seeds the interval is 12.7 standard errors to either side
        ([5.0], "one seed"),
        ([], "no runs"),
        ([0.0, 0.0, 0.0], "undecided"),
    ],
)
def test_the_verdict_is_told_by_the_interval_and_needs_two_seeds(differences, verdict):
    better = {seed: 40 + value for seed, value in enumerate(differences)}
    result = statistics.paired(better, dict.fromkeys(better, 40.0))
    assert result.verdict == verdict
    assert (result.low is None) == (len(differences) < 2)


def test_runs_are_paired_by_their_seed_and_not_by_their_order():
    better, worse = {0: 1.0, 1: 2.0, 2: 3.0}, {2: 2.5, 1: 1.5, 0: 0.5}
    assert statistics.paired(better, worse).deviation == pytest.approx(0)
