"""A scale: how large the network, the data and the training of every row are. One YAML file each in ``scales/``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sst_d2.config import get_config_file
from sst_d2.errors import SSTConfigError
from sst_d2.files import read_yaml_mapping

_NONE = type(None)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("network", "base"), (str,)),
    **dict.fromkeys(("overrides", "data_sets", "heldout"), (dict,)),
    **dict.fromkeys(("steps", "evaluation_period", "threads"), (int, _NONE)),
    **dict.fromkeys(("pilot", "people", "trunk"), (dict, _NONE)),
    "test_time_augmentation": (bool,),
    "parallel": (int,),
    "seeds": (list,),
    "minutes": (int, float),
}
LOG_PERIOD = 20
FOLDER = Path(__file__).resolve().parent / "scales"


@dataclass(frozen=True)
class Scale:
    """What a file of ``scales/`` says.

    Attributes:
        name: the file's, without ``.yaml``.
        network: the backbone, in words.
        base: configuration below ``configs/`` whose values are laid over those of every row; "": none.
        overrides: further values, nested as in a configuration.
        steps: iterations of every row; None: as its configuration has it.
        evaluation_period: iterations between evaluations; None: as above.
        pilot: ``steps`` and ``period`` of the pilot; None: this scale has none.
        data_sets: by the name of a data set in the paper's configurations, what stands in its place.
        heldout: by label domain, a set of images that no row trains on, labelled in that system; {}: there is none.
        people: arguments of ``make_synthetic_people.py``; None: the data sets are the user's own.
        trunk: arguments of ``pretrain_trunk.py``, which makes the start of every row; None: the configurations'.
        test_time_augmentation: score with it.
        threads: of a run on the CPU; None: PyTorch's own choice.
        parallel: runs at a time.
        seeds: of the core rows.
        minutes: of a run, until one has been measured.
    """

    name: str
    network: str
    base: str
    overrides: Mapping[str, Any]
    steps: int | None
    evaluation_period: int | None
    pilot: Mapping[str, int] | None
    data_sets: Mapping[str, str]
    heldout: Mapping[str, str]
    people: Mapping[str, list[int]] | None
    trunk: Mapping[str, Any] | None
    test_time_augmentation: bool
    threads: int | None
    parallel: int
    seeds: list[int]
    minutes: float


def scale_names() -> list[str]:
    """The names of all scales."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_scale(name: str) -> Scale:
    """Read a scale.

    Args:
        name: of a file in ``scales/``, or the path of a file of one's own (``.yaml``).

    Raises:
        SSTConfigError: there is no such scale, or its file is not usable.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise SSTConfigError(
            f"there is no scale '{name}'; there are: {', '.join(scale_names())}; or give a file (.yaml)"
        )
    record = read_yaml_mapping(path, list(_KINDS), [], SSTConfigError)
    for field, value in record.items():
        kinds = _KINDS[field]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            allowed = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
            raise SSTConfigError(f"{path}: field '{field}': {value!r}; {allowed} is expected")
    scale = Scale(name=path.stem, **record)
    for period in (scale.evaluation_period or 0, scale.pilot["period"] if scale.pilot else 0):
        if period % LOG_PERIOD:
            raise SSTConfigError(
                f"{path}: an evaluation every {period} iterations; allowed are multiples of {LOG_PERIOD}: Detectron2 "
                "writes its log so often, and loses what lies between"
            )
    return scale


def scale_values(scale: Scale) -> dict[str, Any]:
    """The values that a scale lays over every row's configuration, by dotted key."""
    values = {}
    if scale.base:
        with open(get_config_file(scale.base), encoding="utf-8") as stream:
            record = yaml.safe_load(stream)
        record.pop("_BASE_", None)
        values.update(_leaves(record))
    values.update(_leaves(scale.overrides))
    if scale.steps is not None:
        values["SOLVER.MAX_ITER"] = scale.steps
        # After the paper's 125 of 150 epochs.
        values["SOLVER.STEPS"] = (scale.steps * 5 // 6,)
    if scale.evaluation_period is not None:
        values["TEST.EVAL_PERIOD"] = scale.evaluation_period
    if scale.test_time_augmentation:
        values["TEST.AUG.ENABLED"] = True
    return values


def _leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves = {}
    for key, value in node.items():
        leaves.update(_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return leaves
