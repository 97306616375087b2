"""Paired differences over seeds: mean, deviation, Student's 95 % interval, verdict. The standard library suffices."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple

LEVEL = 0.95
VERDICTS = HELD, FAILED, UNDECIDED, ONE_SEED, NO_RUNS = "held", "failed", "undecided", "one seed", "no runs"


class Difference(NamedTuple):
    """How much better one row is than another, over the seeds that both have.

    Attributes:
        seeds: n of them.
        mean: of the differences; None where there is no common seed.
        deviation: their sample standard deviation (n - 1); None with fewer than two seeds.
        low, high: ends of the interval; None with fewer than two seeds.
        verdict: `HELD` where the whole interval lies above 0, `FAILED` where it lies below, else `UNDECIDED`; with
            fewer than two seeds `ONE_SEED` or `NO_RUNS`.
    """

    seeds: tuple[int, ...]
    mean: float | None
    deviation: float | None
    low: float | None
    high: float | None
    verdict: str


def paired(better: Mapping[int, float], worse: Mapping[int, float]) -> Difference:
    """Compare two rows.

    Args:
        better: scores by seed of the row that is claimed to be better.
        worse: of the other one.
    """
    seeds = tuple(sorted(better.keys() & worse.keys()))
    differences = [better[seed] - worse[seed] for seed in seeds]
    if len(seeds) < 2:
        verdict = ONE_SEED if seeds else NO_RUNS
        return Difference(seeds, differences[0] if seeds else None, None, None, None, verdict)
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    half = t_quantile(0.5 + LEVEL / 2, len(seeds) - 1) * deviation / math.sqrt(len(seeds))
    low, high = mean - half, mean + half
    verdict = HELD if low > 0 else FAILED if high < 0 else UNDECIDED
    return Difference(seeds, mean, deviation, low, high, verdict)


def t_probability(t: float, freedom: int) -> float:
    """P(T <= t) of Student's distribution with whole degrees of freedom: finite sums, Abramowitz & Stegun 26.7."""
    angle = math.atan2(abs(t), math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    # 26.7.3 and 26.7.4: terms cos^1, cos^3, … for odd degrees of freedom, cos^0, cos^2, … for even ones.
    first = 1 if freedom % 2 else 0
    term, total = cosine**first, 0.0
    for power in range(first, freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    between = 2 / math.pi * (angle + sine * total) if freedom % 2 else sine * total
    return 0.5 + math.copysign(between / 2, t)


def t_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability, by bisection to the last bit.

    Args:
        probability: above 0.5, below 1.
        freedom: degrees of freedom, from 1.
    """
    low, high = 0.0, 1.0
    while t_probability(high, freedom) < probability:
        high *= 2
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        low, high = (middle, high) if t_probability(middle, freedom) < probability else (low, middle)
