"""Named settings of the consistency regularisation: a key that is left open takes the value of its preset."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

PRESETS: dict[str, dict[str, Any]] = {
    # As the paper writes it (Eq. 10–12).
    "paper": {"STOP_GRADIENT": "none", "NORMALIZE": "classes", "REDUCE": "sum", "RAMP": 0},
    # What kept the rows of X_3 from becoming parallel in small trials (docs/DECISIONS.md).
    "stable": {"STOP_GRADIENT": "target", "NORMALIZE": "present", "REDUCE": "mean", "RAMP": 300},
}
_OPEN = ("", -1)


def preset_value(node: CfgNode, key: str) -> Any:
    """The value of a key of ``MODEL.SST.AUXILIARY``: its own, or the one of ``PRESET``."""
    own = getattr(node, key)
    return PRESETS[node.PRESET][key] if own in _OPEN else own
