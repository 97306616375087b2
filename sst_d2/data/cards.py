"""Dataset cards: a YAML file says where images, labels and the list of ids lie, and which label domain they follow.

A card becomes an ordinary data set of Detectron2's catalogs, so its loaders, evaluators and tools take it by name.
"""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from sst_d2.data.image_io import image_size
from sst_d2.data.label_io import check_remap
from sst_d2.errors import DatasetCardError, SSTDataError
from sst_d2.files import expand_path, read_yaml_mapping
from sst_d2.label_domains import LabelDomain, get_label_domain

_REQUIRED = ("name", "label_domain", "images", "labels")
_OPTIONAL = ("root", "ids", "splits", "remap")
_BUILT_IN_FOLDER = Path(__file__).resolve().parent / "cards"
_registered: dict[str, DatasetCard] = {}


@dataclass(frozen=True)
class DatasetCard:
    """One data set of one split.

    Attributes:
        name: the name in the catalogs.
        domain: the label domain of the label maps.
        root: folder that the patterns start from; may hold ``~`` and ``${VAR}``, read when the data is.
        images: pattern of the image files below ``root``, with ``{id}``.
        labels: pattern of the label maps below ``root``, with ``{id}``.
        ids: list file, one id a line, below ``root``; None: every label map that matches ``labels``.
        remap: from the files' ids to ids of ``domain``; None: the files hold ids of ``domain``.
        source: the card's file.
    """

    name: str
    domain: LabelDomain
    root: str
    images: str
    labels: str
    ids: str | None
    source: Path
    remap: Mapping[int, int] | None = field(default=None, hash=False)

    def folder(self) -> Path:
        """``root`` as a path; a relative one starts at the card's own folder."""
        return expand_path(self.root, base=self.source.parent, error=DatasetCardError)

    def read_ids(self) -> list[str]:
        """The ids, in the order of the list file, else sorted.

        Raises:
            DatasetCardError: the list is absent, empty or names an id twice, or nothing matches the pattern.
        """
        root = self.folder()
        if self.ids is None:
            return self._ids_of_label_files(root)
        path = root / self.ids
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as reason:
            raise DatasetCardError(
                f"data set '{self.name}': its list of ids {path} cannot be read ({reason}). "
                f"Prepare the data set (datasets/README.md), or correct the card {self.source}"
            ) from reason
        ids = [line.strip() for line in text.splitlines() if line.strip()]
        if not ids:
            raise DatasetCardError(f"data set '{self.name}': its list of ids {path} is empty")
        if len(set(ids)) != len(ids):
            double = next(name for position, name in enumerate(ids) if name in ids[:position])
            raise DatasetCardError(f"data set '{self.name}': its list of ids {path} names '{double}' twice")
        return ids

    def load(self) -> list[dict[str, Any]]:
        """The dataset dicts: ``file_name``, ``image_id``, ``label_domain``, ``height``, ``width``, and the label file.

        The label file stands under ``sem_seg_file_name``; of a card with ``remap`` under ``remapped_label_file_name``
        beside ``label_remap``, since Detectron2's own tools read ``sem_seg_file_name`` raw. ``height`` and ``width``
        come from the image's header; they are left out where it cannot be read, which the mapper then reports.

        Raises:
            DatasetCardError: as `read_ids`.
        """
        root = self.folder()
        samples = []
        for identifier in self.read_ids():
            sample: dict[str, Any] = {
                "file_name": str(root / self.images.replace("{id}", identifier)),
                "image_id": identifier,
                "label_domain": self.domain.name,
            }
            label_file = str(root / self.labels.replace("{id}", identifier))
            if self.remap is None:
                sample["sem_seg_file_name"] = label_file
            else:
                sample["remapped_label_file_name"] = label_file
                sample["label_remap"] = self.remap
            size = image_size(sample["file_name"])
            if size is not None:
                sample["height"], sample["width"] = size
            samples.append(sample)
        return samples

    def _ids_of_label_files(self, root: Path) -> list[str]:
        before, after = (str(root / self.labels)).split("{id}")
        found = sorted(glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
        if not found:
            raise DatasetCardError(f"data set '{self.name}': no file matches {before}*{after} (card {self.source})")
        return [path[len(before) : len(path) - len(after)] for path in found]


def read_dataset_cards(path: str | os.PathLike) -> list[DatasetCard]:
    """Read one card file; with ``splits: [train, val]`` it holds one card each, and ``{split}`` stands in its fields.

    Raises:
        DatasetCardError: the file or a field is not usable.
        LabelDomainError: its label domain is not.
    """
    path = expand_path(path, error=DatasetCardError).resolve()
    record = read_yaml_mapping(path, _REQUIRED, _OPTIONAL, DatasetCardError)
    for key in ("name", "label_domain", "images", "labels", "root", "ids"):
        if key in record and (not isinstance(record[key], str) or not record[key]):
            raise DatasetCardError(f"{path}: field '{key}': {record[key]!r}; text is expected")
    for key in ("images", "labels"):
        if record[key].count("{id}") != 1:
            raise DatasetCardError(f"{path}: field '{key}': {record[key]!r}; a pattern with {{id}} in it is expected")
    domain = get_label_domain(_domain_reference(record["label_domain"], path))
    remap = record.get("remap")
    if remap is not None:
        if not isinstance(remap, dict) or not remap:
            raise DatasetCardError(
                f"{path}: field 'remap': {remap!r}; a mapping from file ids to domain ids is expected"
            )
        try:
            check_remap(remap, domain)
        except SSTDataError as reason:
            raise DatasetCardError(f"{path}: {reason}") from reason
    return [_card_of_split(record, split, domain, path) for split in _splits(record, path)]


def register_dataset_card(path: str | os.PathLike) -> list[str]:
    """Register the data sets of a card file in ``DatasetCatalog`` and ``MetadataCatalog``; the data is not read yet.

    Registering the same card again changes nothing. A card with the name of a built-in one takes its place, so that a
    prepared data set may lie anywhere.

    Returns:
        The registered names.

    Raises:
        DatasetCardError: as `read_dataset_cards`, or a name is taken by another data set.
    """
    cards = read_dataset_cards(path)
    for card in cards:
        _register(card)
    return [card.name for card in cards]


def register_dataset_cards(patterns: Iterable[str]) -> list[str]:
    """Register the cards that match file names or globs; ``~`` and ``${VAR}`` are replaced.

    Raises:
        DatasetCardError: as `register_dataset_card`, or a pattern matches no file.
    """
    names = []
    for pattern in patterns:
        expanded = str(expand_path(pattern, error=DatasetCardError))
        files = sorted(glob.glob(expanded, recursive=True))
        if not files:
            raise DatasetCardError(
                f"DATASETS.SST.CARDS: no file matches '{pattern}' (looked for {os.path.abspath(expanded)}); "
                "give the path of a dataset card (.yaml) or a glob"
            )
        for file in files:
            names += register_dataset_card(file)
    return names


def register_built_in_cards() -> list[str]:
    """Register PASCAL-Person-Part, ATR, CIHP, LIP and the synthetic people, below ``${DETECTRON2_DATASETS}``."""
    return [name for path in sorted(_BUILT_IN_FOLDER.glob("*.yaml")) for name in register_dataset_card(path)]


def count_images(name: str) -> int:
    """Number of images of a registered data set; of a card it reads the list of ids only."""
    return len(_registered[name].read_ids()) if name in _registered else len(DatasetCatalog.get(name))


def require_data(name: str) -> None:
    """Find out early whether a data set is there: of a card, whether its list of ids is.

    Raises:
        DatasetCardError: it is not; the message says where it was looked for.
    """
    if name in _registered:
        _registered[name].read_ids()


def _register(card: DatasetCard) -> None:
    known = _registered.get(card.name)
    if known == card:
        return
    if known is not None and known.source.parent == _BUILT_IN_FOLDER:
        logging.getLogger(__name__).warning(
            "data set '%s': %s takes the place of the built-in card", card.name, card.source
        )
        DatasetCatalog.remove(card.name)
        MetadataCatalog.remove(card.name)
    elif known is not None or card.name in DatasetCatalog.list():
        owner = f"the card {known.source}" if known is not None else "other code"
        raise DatasetCardError(
            f"{card.source}: the data set name '{card.name}' is taken by {owner}; give yours another name"
        )
    DatasetCatalog.register(card.name, card.load)
    MetadataCatalog.get(card.name).set(
        stuff_classes=list(card.domain.classes),
        stuff_colors=[list(color) for color in card.domain.colors],
        ignore_label=card.domain.ignore_label,
        evaluator_type="sem_seg",
        label_domain=card.domain.name,
    )
    _registered[card.name] = card
    logging.getLogger(__name__).debug("registered the data set '%s' of %s", card.name, card.source)


def _domain_reference(reference: str, card_path: Path) -> str:
    """A domain's name, or its file, which lies relative to the card."""
    if not reference.endswith((".yaml", ".yml")):
        return reference
    return str(expand_path(reference, base=card_path.parent, error=DatasetCardError))


def _splits(record: Mapping[str, Any], path: Path) -> list[str | None]:
    if "splits" not in record:
        return [None]
    splits = record["splits"]
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise DatasetCardError(f"{path}: field 'splits': {splits!r}; a list of words is expected")
    if "{split}" not in record["name"]:
        raise DatasetCardError(f"{path}: field 'name': {record['name']!r}; with `splits` it must hold {{split}}")
    return splits


def _card_of_split(record: Mapping[str, Any], split: str | None, domain: LabelDomain, path: Path) -> DatasetCard:
    def _text(key: str, default: str | None = None) -> str | None:
        value = record.get(key, default)
        return value if value is None or split is None else value.replace("{split}", split)

    for key in ("name", "images", "labels", "ids"):
        stray = re.findall(r"\{(?!id\}|split\})\w*\}", record.get(key) or "")
        if stray or ("{split}" in (record.get(key) or "") and split is None):
            raise DatasetCardError(
                f"{path}: field '{key}': {record[key]!r}; of placeholders {{id}} is known, and {{split}} with `splits`"
            )
    return DatasetCard(
        name=_text("name"),
        domain=domain,
        root=_text("root", "."),
        images=_text("images"),
        labels=_text("labels"),
        ids=_text("ids"),
        source=path,
        remap=record.get("remap"),
    )
