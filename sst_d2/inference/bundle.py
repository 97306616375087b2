"""A bundle: one folder with all that prediction needs, in formats that nothing can be hidden in.

model.safetensors     weights, without what serves training alone
config.yaml           the configuration of the network, without paths of the machine that wrote it
label_domains.yaml    the records of the label domains, in the order of the heads
MODEL_CARD.md         what the network is, for people
origin.json           where the weights come from and their scores, for the next model card; it may be absent
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from safetensors.torch import save as safetensors_bytes

from sst_d2.checkpoint_io import SST_FORMAT, read_checkpoint
from sst_d2.config import inference_config, merge_options, parse_config
from sst_d2.errors import LabelDomainError, SSTCheckpointError, SSTConfigError
from sst_d2.files import partial_path, read_yaml_mapping, write_whole
from sst_d2.label_domains import LabelDomain

WEIGHTS, CONFIG, DOMAINS, CARD = "model.safetensors", "config.yaml", "label_domains.yaml", "MODEL_CARD.md"
ORIGIN = "origin.json"
_FILES = (WEIGHTS, CONFIG, DOMAINS, CARD, ORIGIN)
# Keys that say where the files of the training lie, and nothing of the network.
_PLACES = {
    "MODEL.DEVICE": "",
    "MODEL.WEIGHTS": WEIGHTS,
    "MODEL.SST.AUXILIARY.WORD_VECTORS": "",
    "MODEL.SST.SOURCE.WEIGHTS": "",
    "DATASETS.SST.CARDS": [],
    "OUTPUT_DIR": "./output",
}


@dataclass(frozen=True)
class Bundle:
    """What a bundle holds.

    Attributes:
        config: without the training-only branch; ``MODEL.DEVICE`` is "".
        domains: the label domains, in the order of the heads.
        weights: the network's tensors by name.
    """

    config: CfgNode
    domains: tuple[LabelDomain, ...]
    weights: dict[str, torch.Tensor]


def write_bundle(
    folder: str | os.PathLike,
    model_state: Mapping[str, torch.Tensor],
    cfg: CfgNode,
    domains: Sequence[LabelDomain],
    card: str,
    overwrite: bool = False,
    origin: Mapping[str, Any] | None = None,
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        folder: to be made, with the folders that it lies in.
        model_state: the network's tensors by name; those of the training-only branch (``auxiliary.``) are left out.
        cfg: the network's configuration.
        domains: the label domains, in the order of the heads.
        card: the text of ``MODEL_CARD.md``.
        overwrite: replace ``folder``, if it is a bundle and holds nothing else.
        origin: what `read_origin` shall give back; None: nothing.

    Raises:
        SSTCheckpointError: ``folder`` exists and may not be replaced, or cannot be written.
    """
    folder = Path(folder)
    _check_place(folder, overwrite)
    partial, old = (partial_path(folder, f"{os.getpid()}.{end}") for end in ("partial", "old"))
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model_state.items()
        if not name.startswith("auxiliary.")
    }
    records = {"label_domains": [domain.to_dict() for domain in domains]}
    contents = {
        WEIGHTS: safetensors_bytes(weights, {"format": "pt", "sst_format": str(SST_FORMAT)}),
        CONFIG: _portable(cfg, domains).dump().encode(),
        DOMAINS: yaml.safe_dump(records, sort_keys=False, allow_unicode=True, width=120).encode(),
        CARD: card.encode(),
    }
    if origin is not None:
        contents[ORIGIN] = json.dumps(origin, ensure_ascii=False, indent=1).encode()
    try:
        partial.mkdir(parents=True)
        for name, content in contents.items():
            write_whole(partial / name, lambda stream, content=content: stream.write(content))
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as reason:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise SSTCheckpointError(
            f"{folder}: cannot be written ({reason}). Make room there, or name another place"
        ) from reason
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether the folder holds a file of the name that a bundle's weights have."""
    return (Path(folder) / WEIGHTS).is_file()


def read_bundle(folder: str | os.PathLike, opts: Sequence[str] = ()) -> Bundle:
    """Read what `write_bundle` has written.

    Args:
        folder: the bundle.
        opts: KEY VALUE pairs that count instead of what its configuration says.

    Raises:
        SSTCheckpointError: a file of it is absent or damaged.
        SSTConfigError: ``opts`` names an unknown key or a value that is not allowed.
    """
    folder = Path(folder)
    missing = [name for name in _FILES[:3] if not (folder / name).is_file()]
    if missing:
        raise SSTCheckpointError(
            f"{folder}: is no whole bundle of sst_d2, {' and '.join(missing)} is not there; export it again "
            "(tools/export.py --format safetensors), or name a checkpoint file (.pth)"
        )
    try:
        weights = read_checkpoint(str(folder / WEIGHTS))["model"]
    except SSTCheckpointError as reason:
        raise SSTCheckpointError(f"{folder / WEIGHTS}: {reason}") from reason
    try:
        cfg = inference_config(parse_config((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, SSTConfigError) as reason:
        raise SSTCheckpointError(f"{folder / CONFIG}: {reason}") from reason
    merge_options(cfg, opts)
    return Bundle(cfg, _read_domains(folder / DOMAINS), weights)


def read_origin(folder: str | os.PathLike) -> dict[str, Any]:
    """What `write_bundle` was told of the origin; {} where it was told nothing.

    Raises:
        SSTCheckpointError: the file is damaged.
    """
    path = Path(folder) / ORIGIN
    if not path.is_file():
        return {}
    try:
        origin = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(origin, dict):
            return origin
        reason = "it is no mapping"
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise SSTCheckpointError(f"{path}: cannot be read ({reason}); remove it, or export the bundle again")


def _read_domains(path: Path) -> tuple[LabelDomain, ...]:
    records = read_yaml_mapping(path, ["label_domains"], [], SSTCheckpointError)["label_domains"]
    return domains_of_records(records, str(path))


def domains_of_records(records: object, source: str) -> tuple[LabelDomain, ...]:
    """The label domains that a checkpoint or a bundle carries. They are not registered: names elsewhere stay free.

    Args:
        records: what was read.
        source: the file, for messages.

    Raises:
        SSTCheckpointError: they are no such records.
    """
    plain = isinstance(records, list) and all(
        isinstance(record, dict) and {"name", "classes"} <= record.keys() for record in records
    )
    if not plain or not records:
        raise SSTCheckpointError(f"{source}: its label_domains are no records of label domains; the file is damaged")
    try:
        return tuple(LabelDomain.from_dict(record, source=source) for record in records)
    except (LabelDomainError, TypeError, AttributeError) as reason:
        raise SSTCheckpointError(f"{source}: a record of its label domains is damaged: {reason}") from reason


def _portable(cfg: CfgNode, domains: Sequence[LabelDomain]) -> CfgNode:
    """The configuration without paths of this machine: label domains go by name, their records lie beside it."""
    cfg = inference_config(cfg)
    names = [domain.name for domain in domains]
    for key, value in {**_PLACES, "MODEL.SST.DOMAINS": names}.items():
        cfg.merge_from_list([key, value])
    return cfg


def _check_place(folder: Path, overwrite: bool) -> None:
    """Refuse to replace what is no bundle, or what nobody has allowed to replace."""
    if not folder.exists() and not folder.is_symlink():
        return
    strange = [] if not folder.is_dir() else sorted({entry.name for entry in folder.iterdir()} - set(_FILES))
    if not folder.is_dir() or folder.is_symlink() or strange:
        what = f"holds {', '.join(strange[:3])}, which is no part of a bundle" if strange else "is no folder"
        raise SSTCheckpointError(f"{folder}: {what}; name a folder that does not exist yet")
    if not overwrite and any(folder.iterdir()):
        raise SSTCheckpointError(f"{folder}: exists; --overwrite (overwrite=True) replaces it, or name another folder")
