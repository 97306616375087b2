"""The rows of the paper's tables as trainings: which configuration file, and whose result it starts from.

A training that stands in several tables, e.g. "SST (Universal)", "Full" of Table 4 and row 6 of Table 6, is one row.
To try something else, add one entry to `ROWS`, e.g. with ``overrides={"MODEL.SST.AUXILIARY.IMAGE_LEVEL": 0.2}``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from sst_d2.errors import SSTConfigError

P, A, C = "pascal_person_part", "atr", "cihp"
ALL = (P, A, C)
START, SOURCE = "MODEL.WEIGHTS", "MODEL.SST.SOURCE.WEIGHTS"


class Row(NamedTuple):
    """One training.

    Attributes:
        config: file below ``configs/``.
        domains: label domains of its heads.
        group: "core": with several seeds; "rest": of the paper too; "variants": not of the paper.
        needs: the row whose final weights it starts from; "": none.
        takes: the key that names these weights, `START` or `SOURCE`.
        beside: the row that is the same without the training-only branch: what the branch costs is told from it.
        overrides: what its configuration has otherwise than the file.
    """

    config: str
    domains: tuple[str, ...]
    group: str
    needs: str = ""
    takes: str = ""
    beside: str = ""
    overrides: Mapping[str, Any] = {}


def _dedicated(config: str, target: str, needs: str, group: str) -> Row:
    return Row(f"dedicated/{config}_R50_step2.yaml", (target,), group, needs, SOURCE, f"single_{target}")


def _finetune(percent: int, group: str) -> Row:
    return Row(f"dedicated/subset/finetune_{percent}_R50.yaml", (P,), group, f"single_{C}", START)


def _variant(values: Mapping[str, Any] | None = None, **auxiliary: Any) -> Row:
    """SST (Universal) with other values, and the keyword arguments in ``MODEL.SST.AUXILIARY``; gradients are logged."""
    inside = {f"MODEL.SST.AUXILIARY.{key}": value for key, value in {**auxiliary, "LOG_GRADIENTS": True}.items()}
    overrides = {**inside, **(values or {})}
    return Row("universal/full_R50.yaml", ALL, "variants", beside="multi_datasets", overrides=overrides)


def _baseline(**overrides: Any) -> Row:
    """Multi-datasets with other values; "__" stands for the dot."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    return Row("multi_datasets/multi_datasets_R50.yaml", ALL, "variants", overrides=dotted)


ROWS: dict[str, Row] = {
    # Tables 1 to 4. The order is that of the queue.
    **{f"single_{domain}": Row(f"single/{domain}_R50.yaml", (domain,), "core") for domain in ALL},
    "multi_datasets": Row("multi_datasets/multi_datasets_R50.yaml", ALL, "core"),
    "universal_full": Row("universal/full_R50.yaml", ALL, "core", beside="multi_datasets"),
    "universal_progressive": Row("universal/progressive_R50.yaml", ALL, "core", beside="multi_datasets"),
    "step1_cihp": Row("dedicated/cihp_R50_step1.yaml", (C,), "core", beside=f"single_{C}"),
    "universal_atr_cihp": Row("universal/atr_cihp_R50.yaml", (A, C), "core"),
    "cihp_to_pascal": _dedicated("cihp_to_pascal_person_part", P, "step1_cihp", "core"),
    "atr_cihp_to_pascal": _dedicated("universal_to_pascal_person_part", P, "universal_atr_cihp", "core"),
    # Table 6; row 1 is multi_datasets, row 6 universal_full.
    **{
        f"table6_row{n}": Row(f"ablation/table6_row{n}_R50.yaml", ALL, "core", beside="multi_datasets")
        for n in (2, 3, 4, 5)
    },
    # Table 5; SST with 100 % is cihp_to_pascal.
    "finetune_100": _finetune(100, "core"),
    "sst_50": _dedicated("subset/sst_50", P, "step1_cihp", "core"),
    "finetune_50": _finetune(50, "rest"),
    "finetune_80": _finetune(80, "rest"),
    "sst_80": _dedicated("subset/sst_80", P, "step1_cihp", "rest"),
    # The other targets of dedicated training.
    "step1_pascal": Row("dedicated/pascal_person_part_R50_step1.yaml", (P,), "rest", beside=f"single_{P}"),
    "universal_pascal_atr": Row("universal/pascal_person_part_atr_R50.yaml", (P, A), "rest"),
    "universal_pascal_cihp": Row("universal/pascal_person_part_cihp_R50.yaml", (P, C), "rest"),
    "cihp_to_atr": _dedicated("cihp_to_atr", A, "step1_cihp", "rest"),
    "pascal_cihp_to_atr": _dedicated("universal_to_atr", A, "universal_pascal_cihp", "rest"),
    "pascal_to_cihp": _dedicated("pascal_person_part_to_cihp", C, "step1_pascal", "rest"),
    "pascal_atr_to_cihp": _dedicated("universal_to_cihp", C, "universal_pascal_atr", "rest"),
    # Not of the paper. Again, with its gradients logged, which must change nothing.
    "universal_again": _variant(),
    # Why: each part of the preset "stable" alone, all of it, a tenth of lambda, ...
    "universal_ramp": _variant(RAMP=300),
    "universal_stop_gradient": _variant(STOP_GRADIENT="target"),
    "universal_present": _variant(NORMALIZE="present"),
    "universal_mean": _variant(REDUCE="mean"),
    "universal_stable": _variant(PRESET="stable"),
    "universal_light": _variant({"MODEL.SST.LOSS_WEIGHTS.SCR": 0.5}),
    # ... no clipping, batches in the shares of the data sets, each beside its own baseline, ...
    "universal_unclipped": _variant({"SOLVER.CLIP_GRADIENTS.ENABLED": False}),
    "multi_unclipped": _baseline(SOLVER__CLIP_GRADIENTS__ENABLED=False),
    "universal_proportional": _variant({"DATALOADER.SST.SAMPLER": "proportional"}),
    "multi_proportional": _baseline(DATALOADER__SST__SAMPLER="proportional"),
    # ... and controls in the place of M_static.
    **{f"universal_relations_{source}": _variant(RELATIONS=source) for source in ("lexicon", "identity", "random")},
    # Predictions compared instead of categories, or beside them.
    "universal_predictions": _variant(PREDICTION=0.25, DATASET_LEVEL=0.0, IMAGE_LEVEL=0.0, RELATIONS="lexicon"),
    "universal_stable_predictions": _variant(PRESET="stable", PREDICTION=0.25, RELATIONS="lexicon"),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "core": tuple(name for name, row in ROWS.items() if row.group == "core"),
    "all": tuple(name for name, row in ROWS.items() if row.group != "variants"),
    "variants": tuple(name for name, row in ROWS.items() if row.group == "variants"),
}


def chosen(names: Iterable[str]) -> list[str]:
    """The rows that names of rows and groups stand for, each once, in the order of `ROWS`.

    Raises:
        SSTConfigError: there is no such row or group.
    """
    wanted: set[str] = set()
    for name in names:
        if name not in ROWS and name not in GROUPS:
            raise SSTConfigError(
                f"there is no row or group '{name}'; groups: {', '.join(GROUPS)}; rows: {', '.join(ROWS)}"
            )
        wanted.update(GROUPS.get(name, (name,)))
    return [name for name in ROWS if name in wanted]


def with_needed(names: Iterable[str]) -> list[str]:
    """The rows, and those that they start from, which come first; no row twice."""
    order: list[str] = []
    for name in names:
        chain = [name]
        while ROWS[chain[0]].needs:
            chain.insert(0, ROWS[chain[0]].needs)
        order += [link for link in chain if link not in order]
    return order


def queue(names: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Rows and seeds in the order of training: the core rows seed by seed, then the others.

    So an interruption leaves complete seeds. What a row starts from comes before it.
    """
    core = with_needed(name for name in names if ROWS[name].group == "core")
    rest = [name for name in with_needed(names) if name not in core]
    return [(name, seed) for part in (core, rest) for seed in seeds for name in part]
