"""The paper's figures (R50), and what it claims: which row is better than which, on which data set. All in mIoU."""

from __future__ import annotations

from typing import NamedTuple

from reproduction.rows import A, C, P


class Figures(NamedTuple):
    """What the paper prints, in percent; None: it does not."""

    miou: float
    mean_accuracy: float | None = None


class Claim(NamedTuple):
    """``better`` has a higher mIoU than ``worse`` on the data set of ``domain``."""

    text: str
    better: str
    worse: str
    domain: str


# Tables 1 to 6 with ResNet-50, by row and data set.
PAPER: dict[tuple[str, str], Figures] = {
    (f"single_{P}", P): Figures(67.15),
    (f"single_{A}", A): Figures(79.15, 87.10),
    (f"single_{C}", C): Figures(62.51, 73.18),
    ("multi_datasets", P): Figures(70.40),
    ("multi_datasets", A): Figures(79.39, 87.41),
    ("multi_datasets", C): Figures(62.74, 73.36),
    ("universal_full", P): Figures(72.25),
    ("universal_full", A): Figures(79.97, 87.95),
    ("universal_full", C): Figures(63.35, 73.97),
    ("universal_progressive", P): Figures(72.03),
    ("universal_progressive", A): Figures(79.64),
    ("universal_progressive", C): Figures(63.19),
    ("cihp_to_pascal", P): Figures(73.49),
    ("cihp_to_atr", A): Figures(81.05, 88.54),
    ("pascal_to_cihp", C): Figures(63.57, 74.16),
    ("atr_cihp_to_pascal", P): Figures(73.87),
    ("pascal_cihp_to_atr", A): Figures(81.36, 88.78),
    ("pascal_atr_to_cihp", C): Figures(63.86, 74.29),
    ("finetune_50", P): Figures(69.23),
    ("finetune_80", P): Figures(70.85),
    ("finetune_100", P): Figures(71.52),
    ("sst_50", P): Figures(71.81),
    ("sst_80", P): Figures(72.96),
    ("table6_row2", P): Figures(70.78),
    ("table6_row3", P): Figures(71.02),
    ("table6_row4", P): Figures(71.45),
    ("table6_row5", P): Figures(71.93),
}
FROM_ONE = {P: "cihp_to_pascal", A: "cihp_to_atr", C: "pascal_to_cihp"}
FROM_TWO = {P: "atr_cihp_to_pascal", A: "pascal_cihp_to_atr", C: "pascal_atr_to_cihp"}
# Table 6 by number: rows 1 and 6 stand in Table 1 as well.
ABLATION = {1: "multi_datasets", **{n: f"table6_row{n}" for n in (2, 3, 4, 5)}, 6: "universal_full"}
_STEPS = {
    (2, 1): "MSE without M_intra helps",
    (3, 2): "M_intra helps",
    (4, 3): "the data-set level of MST helps",
    (5, 3): "the image level of MST helps",
    (6, 5): "the data-set level beside the image level helps",
    (6, 4): "the image level beside the data-set level helps",
    (6, 1): "all of SST helps",
}


def _for_every_target(text: str, better: dict[str, str], worse: dict[str, str]) -> list[Claim]:
    return [Claim(text, better[domain], worse[domain], domain) for domain in (P, A, C)]


def _same(row: str) -> dict[str, str]:
    return dict.fromkeys((P, A, C), row)


CLAIMS: list[Claim] = [
    *_for_every_target(
        "Multi-datasets > Single-dataset", _same("multi_datasets"), {domain: f"single_{domain}" for domain in (P, A, C)}
    ),
    *_for_every_target("SST (Universal) > Multi-datasets", _same("universal_full"), _same("multi_datasets")),
    *_for_every_target("dedicated, from one > SST (Universal)", FROM_ONE, _same("universal_full")),
    *_for_every_target("universal-to-specific > dedicated, from one", FROM_TWO, FROM_ONE),
    *_for_every_target("Full ≥ Progressive", _same("universal_full"), _same("universal_progressive")),
    *(
        Claim(f"Table 6, row {one} > row {other}: {text}", ABLATION[one], ABLATION[other], P)
        for (one, other), text in _STEPS.items()
    ),
    Claim("SST with 50 % of the data > Finetune with 100 %", "sst_50", "finetune_100", P),
    Claim("SST with 100 % of the data > Finetune with 100 %", "cihp_to_pascal", "finetune_100", P),
]
