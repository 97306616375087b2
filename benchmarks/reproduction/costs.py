"""What rows cost: time, memory, multiply-adds at inference, and the training-only branch's share."""

from __future__ import annotations

import importlib.util
from typing import Any

from reproduction.places import Places, read_json, write_json
from reproduction.results import Results
from reproduction.rows import ROWS
from reproduction.scales import Scale
from reproduction.settings import ROOT, START, Run, as_options, values

BASELINE = "multi_datasets"
NETWORKS = "networks.json"
_PAPER_SIZE = [512]


def networks(scale: Scale, places: Places) -> dict[str, Any]:
    """What the network of a scale computes for one image, by the label domains of its heads; counted once, then kept.

    The training-only branch is no part of it, whatever the row: evaluation never builds it.

    Returns:
        ``size`` (height, width); ``networks`` {domains joined by "+": {"gmacs", "parameters"}}.
    """
    path = places.results / NETWORKS
    sides = scale.people["size"] if scale.people else _PAPER_SIZE
    size = [sides[0], sides[-1]]
    if path.is_file() and read_json(path)["size"] == size:
        return read_json(path)
    spec = importlib.util.spec_from_file_location("analyze_model", ROOT / "tools/analyze_model.py")
    analyze_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(analyze_model)
    counted: dict[str, Any] = {}
    for name, row in ROWS.items():
        heads = "+".join(row.domains)
        if heads not in counted:
            run = Run(name, 0, scale)
            model = analyze_model.build(run.config_file, [*as_options(values(run)), START, ""])
            whole = analyze_model.count(model, tuple(size))["all"]
            counted[heads] = {"gmacs": round(whole["macs"] / 1e9, 4), "parameters": whole["parameters"]}
    record = {"size": size, "networks": counted}
    write_json(path, record)
    return record


def cost(row: str, results: Results, counted: dict[str, Any]) -> dict[str, float | None]:
    """The cost of a row; medians over its seeds, None where nothing was measured.

    Args:
        row: a name of `ROWS`.
        results: of all rows.
        counted: see `networks`.

    Returns:
        ``minutes``, ``processor_minutes``, ``step_ratio`` (seconds per step over those of Multi-datasets),
        ``memory_mb``, ``gpu_memory_mb``, ``gmacs``, ``branch_parameters`` (share of those in training, in percent),
        ``branch_time`` (share of a step, in percent: what the same row takes longer than without the branch).
    """
    records = list(results.records.get(row, {}).values())
    beside = ROWS[row].beside
    ratio = results.relative(row, beside, "seconds_per_step") if beside else None
    share = None
    if records:
        parameters = records[0]["parameters"]
        share = 100 * parameters["branch"] / parameters["all"]
    return {
        **{key: results.figure(row, key) for key in ("minutes", "processor_minutes", "memory_mb", "gpu_memory_mb")},
        "step_ratio": results.relative(row, BASELINE, "seconds_per_step"),
        "gmacs": counted["networks"]["+".join(ROWS[row].domains)]["gmacs"],
        "branch_parameters": share,
        "branch_time": None if ratio is None else 100 * (1 - 1 / ratio),
    }
