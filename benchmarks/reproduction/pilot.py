"""How many steps the baseline needs: its scores under a constant learning rate, and what the last fifth has added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

LIMIT = 1.0  # points of mIoU


def curves(record: Mapping[str, Any], heldout: Mapping[str, str]) -> tuple[list[int], dict[str, list[float]]]:
    """Steps, and by label domain the mIoU on its own validation set; "mean": over domains."""
    own = {s["label_domain"]: name for name, s in record["scores"].items() if name not in heldout.values()}
    steps = [step for step, _ in record["curve"]]
    by_domain = {domain: [scores[name] for _, scores in record["curve"]] for domain, name in own.items()}
    by_domain["mean"] = [sum(values) / len(values) for values in zip(*by_domain.values(), strict=True)]
    return steps, by_domain


def gain_of_last_fifth(steps: list[int], scores: list[float], index: int) -> float | None:
    """What training until ``steps[index]`` has gained in its last fifth; None where the curve begins later.

    Between evaluations the curve is taken as straight.
    """
    start = 0.8 * steps[index]
    if start < steps[0]:
        return None
    after = next(place for place, step in enumerate(steps) if step >= start)
    if steps[after] == start:
        return scores[index] - scores[after]
    share = (start - steps[after - 1]) / (steps[after] - steps[after - 1])
    return scores[index] - (scores[after - 1] + share * (scores[after] - scores[after - 1]))


def described(record: Mapping[str, Any], heldout: Mapping[str, str]) -> str:
    """The pilot as text: a line per evaluation, and where the baseline has stopped to gain."""
    steps, by_domain = curves(record, heldout)
    rows, enough = [], None
    for index, step in enumerate(steps):
        gains = {name: gain_of_last_fifth(steps, scores, index) for name, scores in by_domain.items()}
        rows.append([step, *(scores[index] for scores in by_domain.values()), *gains.values()])
        if gains["mean"] is None or gains["mean"] >= LIMIT:
            enough = None
        elif enough is None:
            enough = step
    headers = ["steps", *by_domain, *(f"gain, {name}" for name in by_domain)]
    table = tabulate(rows, headers=headers, floatfmt=".1f", missingval="–")
    told = (
        f"the mean gains less than {LIMIT:g} point in the last fifth from {enough} steps on; with the drop after 5/6, "
        f"that is `steps: {enough * 6 // 5}`"
        if enough
        else f"the mean still gains {LIMIT:g} point or more in the last fifth: make the pilot longer"
    )
    return f"Multi-datasets, constant learning rate, mIoU on the own validation sets:\n{table}\n{told}"
