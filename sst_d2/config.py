"""The configuration is read, merged and checked here; `config_keys` declares what of it is ours."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg

from sst_d2.config_checks import check_values
from sst_d2.config_keys import add_sst_config
from sst_d2.errors import SSTConfigError

# A run may go on elsewhere, for longer, and be evaluated otherwise.
_MAY_CHANGE = (
    *("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "VIS_PERIOD", "DATASETS.TEST", "DATASETS.SST.CARDS", "TEST."),
    *("DATALOADER.NUM_WORKERS", "SOLVER.MAX_ITER", "SOLVER.STEPS", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.SST.MAX_EPOCHS", "SOLVER.SST.EPOCH_STEPS", "MODEL.SST.AUXILIARY.LOG_GRADIENTS"),
    "MODEL.SST.SOURCE.WEIGHTS",  # the file may lie elsewhere; that it is the same one, its SHA-256 says
)


def load_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """Detectron2's defaults, our keys, a YAML file and KEY VALUE pairs, checked; the device is chosen.

    Raises:
        SSTConfigError: as `merge_config`.
    """
    cfg = read_config(config_file, opts)
    resolve_device(cfg)
    return cfg


def read_config(config_file: str, opts: Sequence[str] = ()) -> CN:
    """As `load_config`, with ``MODEL.DEVICE`` as it is written, "" where it is not.

    Raises:
        SSTConfigError: as `merge_config`.
    """
    cfg = get_cfg()
    add_sst_config(cfg)
    _merge(cfg, config_file, opts)
    return cfg


def parse_config(text: str) -> CN:
    """The configuration that a checkpoint carries as YAML, checked where it says what to build and how to predict.

    Raises:
        SSTConfigError: the text is no configuration, or a value is not allowed.
    """
    cfg = get_cfg()
    add_sst_config(cfg)
    # Another version of Detectron2, or a network of the user's own, may have more keys.
    cfg.set_new_allowed(True)
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise TypeError("it is no mapping of keys")
        cfg.merge_from_other_cfg(CN(content))
    except (yaml.YAMLError, KeyError, ValueError, AttributeError, TypeError, AssertionError, RecursionError) as reason:
        raise SSTConfigError(f"its configuration cannot be read: {reason}") from reason
    cfg.set_new_allowed(False)
    _check_for_prediction(cfg)
    return cfg


def merge_options(cfg: CN, opts: Sequence[Any]) -> None:
    """Merge KEY VALUE pairs into a configuration that predicts.

    Raises:
        SSTConfigError: a key is unknown (similar ones are named), or a value is not allowed.
    """
    with _naming_mistakes("options", _key_names(cfg)):
        cfg.merge_from_list(list(opts))
    _check_for_prediction(cfg)


def _check_for_prediction(cfg: CN) -> None:
    for node in ("MODEL.", "INPUT.", "TEST."):
        check_values(cfg, below=node)


def merge_config(cfg: CN, config_file: str, opts: Sequence[str]) -> None:
    """Merge a YAML file, read by the safe loader only, and KEY VALUE pairs, into ``cfg``; then choose the device.

    Raises:
        SSTConfigError: the file cannot be read, a key is unknown (similar ones are named), or a value is not
            allowed.
    """
    _merge(cfg, config_file, opts)
    resolve_device(cfg)


def _merge(cfg: CN, config_file: str, opts: Sequence[str]) -> None:
    if not config_file:
        raise SSTConfigError(
            "--config-file is missing; give a YAML file, e.g. configs/quick_schedules/synthetic_people.yaml"
        )
    flags = [entry for entry in opts if isinstance(entry, str) and entry.startswith("--")]
    if flags:
        raise SSTConfigError(f"{flags[0]} stands behind KEY VALUE pairs; flags come before them")
    if "://" not in config_file and not os.path.isfile(config_file):
        raise SSTConfigError(f"--config-file: there is no file {config_file}; the project's own lie below configs/")
    cfg.MODEL.DEVICE = ""
    with _naming_mistakes(f"configuration {config_file}", _key_names(cfg)):
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)
        except yaml.YAMLError as reason:
            raise SSTConfigError(f"{config_file}: is no plain YAML, the only kind that is read: {reason}") from reason
        cfg.merge_from_list(list(opts))
    check_values(cfg)


@contextlib.contextmanager
def _naming_mistakes(where: str, known: list[str]) -> Iterator[None]:
    """Turn what merging may raise into an `SSTConfigError` that says where the mistake is."""
    try:
        yield
    except SSTConfigError:
        raise
    except (KeyError, ValueError, AssertionError, AttributeError, TypeError, OSError) as reason:
        message = str(reason.args[0]) if isinstance(reason, KeyError) else str(reason)
        if message.startswith("Non-existent"):
            message = _unknown_key(message, known)
        raise SSTConfigError(f"{where}: {message}") from reason


def inference_config(cfg: CN) -> CN:
    """A copy of ``cfg`` whose model has no training-only branch."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.SST.AUXILIARY.ENABLED = False
    return cfg


def resolve_device(cfg: CN) -> None:
    """Set an empty ``MODEL.DEVICE`` to "cuda" where torch sees a GPU, else to "cpu".

    Raises:
        SSTConfigError: a GPU is asked for and torch sees none, or none of that number.
    """
    name, _, number = cfg.MODEL.DEVICE.partition(":")
    if not name:
        cfg.MODEL.DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise SSTConfigError(
            f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}', but torch sees no GPU; leave the key out or set it to cpu"
        )
    elif number and int(number) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise SSTConfigError(
            f"MODEL.DEVICE: '{cfg.MODEL.DEVICE}', but torch sees {count} GPU{'s' * (count > 1)}, cuda:0 to "
            f"cuda:{count - 1}"
        )


def changed_values(saved: str, cfg: CN) -> list[str]:
    """What a configuration that was saved with a run says otherwise than ``cfg``; places, devices and tests apart.

    Args:
        saved: YAML text, as a checkpoint holds it.
        cfg: the configuration now.

    Returns:
        a clause per key, ``KEY was … and is …``.
    """
    try:
        before = yaml.safe_load(saved) or {}
    except yaml.YAMLError:
        before = {}
    then, now = _values(before), _values(yaml.safe_load(cfg.dump()))
    return [
        f"{key} was {then[key]!r} and is {now[key]!r}"
        for key in now
        if key in then and then[key] != now[key] and not key.startswith(_MAY_CHANGE)
    ]


def get_config_file(name: str) -> str:
    """Path of one of the project's configuration files, in a checkout and in an installed package.

    Args:
        name: path below ``configs/``, e.g. "single/cihp_R50.yaml".

    Raises:
        SSTConfigError: there is no such file; the message lists what its folder holds.
    """
    package = Path(__file__).resolve().parent
    folders = [package / "configs", package.parent / "configs"]
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    present = sorted({str(path.relative_to(folder)) for folder in folders for path in folder.rglob("*.yaml")})
    raise SSTConfigError(f"there is no configuration file '{name}'; there are: {', '.join(present)}")


def _values(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted names."""
    values = {}
    for key, value in node.items():
        values.update(_values(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value})
    return values


def _key_names(node: CN, prefix: str = "") -> list[str]:
    names = []
    for key, value in node.items():
        names += _key_names(value, f"{prefix}{key}.") if isinstance(value, CN) else [f"{prefix}{key}"]
    return names


def _unknown_key(message: str, known: list[str]) -> str:
    """Detectron2's message, and the keys that look like the wrong one."""
    key = message.rsplit(": ", 1)[-1]
    similar = difflib.get_close_matches(key, known, n=3)
    return (
        f"{message}; did you mean {' or '.join(similar)}?"
        if similar
        else f"{message}; see sst_d2/config_keys.py for the project's keys"
    )
