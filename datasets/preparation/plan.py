"""What a run shall prepare: the data set, its pairs of photo and label map, the splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sst_d2.data
from sst_d2.data.inspection import ERROR, Finding
from sst_d2.files import expand_path, read_yaml_mapping

from .id_lists import read_ids, refuse_overlap
from .tree import Layout, PreparationError, Tree, common_folder, files_by_stem, find_layout, own_lists

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
LABEL_ENDINGS = (".png",)
LINKED = "linked"
_CARDS = Path(sst_d2.data.__file__).parent / "cards"
_CARD_FIELDS = ("name", "label_domain", "root", "images", "labels", "ids", "splits")


@dataclass(frozen=True)
class DataSet:
    """A data set that has a built-in card.

    Attributes:
        name: the stem of the card's file.
        title: the name that people know.
        published: split -> the numbers of images that papers and lists give it, the usual one first.
        remarks: (split, number of images) -> what is special about a list of that length.
    """

    name: str
    title: str
    published: Mapping[str, tuple[int, ...]]
    remarks: Mapping[tuple[str, int], str] = field(default_factory=dict)

    def card(self) -> dict[str, Any]:
        """The fields of the built-in card."""
        return read_yaml_mapping(_CARDS / f"{self.name}.yaml", _CARD_FIELDS, (), PreparationError)

    def built_in_folder(self) -> Path:
        """The folder that the built-in card names."""
        return expand_path(self.card()["root"], error=PreparationError)


@dataclass(frozen=True)
class Pair:
    """A photo and where its label map comes from; ``faults``: why it cannot be used, known before reading it."""

    split: str
    id: str
    image: str
    label: str
    faults: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Plan:
    """All that a download gives.

    Attributes:
        origin: what was found where, for people.
        pairs: all pairs, split after split, in the order of the lists.
        folders: the folders that are read.
        labels: "linked", or the kind of source that label maps are made from (`checking.CONVERTERS`).
        notes: what the user should know.
    """

    origin: str
    pairs: tuple[Pair, ...]
    folders: tuple[Path, ...]
    labels: str = LINKED
    notes: tuple[str, ...] = ()

    def sizes(self) -> dict[str, int]:
        """Split -> number of pairs."""
        return dict(Counter(pair.split for pair in self.pairs))


@dataclass(frozen=True)
class IdList:
    """Ids of one split, and where they come from (a file; or words, where it is the folder of label maps itself)."""

    ids: list[str]
    source: str

    @classmethod
    def of_file(cls, path: Path) -> IdList:
        """Read a list file; see `id_lists.read_ids`."""
        return cls(read_ids(path), str(path))


def plan_of_folders(
    tree: Tree, title: str, layouts: Iterable[Layout], list_ends: Mapping[str, tuple[str, ...]]
) -> Plan:
    """Plan a data set whose tree is one of ``layouts``: ids come from its list files, else from its label maps.

    Args:
        tree: the download.
        title: name of the data set, for messages.
        layouts: the known trees; the first one that is there counts.
        list_ends: split -> ends of paths of list files, in the order of preference.

    Raises:
        PreparationError: no layout fits, lists are needed and absent, ambiguous or overlapping.
    """
    layout, folders = find_layout(tree, layouts, title)
    every = [folder for pair in folders.values() for folder in pair]
    lists = {split: own_list(tree, ends, every) for split, ends in list_ends.items() if split in folders}
    notes = _missing_splits(tree, layout, folders)
    if layout.needs_lists:
        if not any(lists.values()):
            raise PreparationError(
                f"{tree.root}: {' and '.join(sorted({str(folder) for folder in every}))} are there, but no list says "
                f"which image is in which split; looked for {' and '.join(ends[0] for ends in list_ends.values())} "
                "beside them, in `list` and in `lists`. If this is one split of the download, name the folder above"
            )
        notes += [f"no {list_ends[split][0]}: no split '{split}'" for split in lists if lists[split] is None]
        folders = {split: pair for split, pair in folders.items() if lists.get(split)}
    ids = {
        split: IdList.of_file(lists[split]) if lists.get(split) else IdList(_stems(labels), f"the files of {labels}")
        for split, (_, labels) in folders.items()
    }
    pairs, more = pair_up(ids, folders)
    return Plan(f"{common_folder(every)} ({layout.title})", pairs, tuple(every), notes=(*notes, *more))


def own_list(tree: Tree, ends: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """The one list file of a split inside the download (see `tree.own_lists`); None where there is none.

    Raises:
        PreparationError: several files, which differ, are equally near.
    """
    files = own_lists(tree, ends, folders)
    if len({tuple(read_ids(file)) for file in files[:10]}) > 1:
        raise PreparationError(
            "several lists could be meant: " + ", ".join(map(str, files)) + "; name the folder of one data set"
        )
    return files[0] if files else None


def pair_up(
    ids: Mapping[str, IdList],
    folders: Mapping[str, tuple[Path, Path]],
    label_endings: Iterable[str] = LABEL_ENDINGS,
) -> tuple[tuple[Pair, ...], list[str]]:
    """Find the photo and the label file of each id.

    Args:
        ids: split -> its ids.
        folders: split -> (folder of photos, folder of label files); several splits may share them.
        label_endings: endings of label files, in small letters.

    Returns:
        The pairs, and notes on files that are in no list or have no partner. A pair without its files, or with
        several, carries that as its fault.

    Raises:
        PreparationError: splits overlap, photos and label maps share a folder, or a file name is no text.
    """
    refuse_overlap({split: listing.ids for split, listing in ids.items()})
    for images, labels in folders.values():
        if images == labels:
            raise PreparationError(f"{images}: photos and label maps lie in one folder; two folders are expected")
    contents = {
        folder: files_by_stem(folder, endings)
        for pair in folders.values()
        for folder, endings in zip(pair, (IMAGE_ENDINGS, tuple(label_endings)))
    }
    pairs: list[Pair] = []
    notes: list[str] = []
    for split, listing in ids.items():
        found = [_pair(split, name, *folders[split], contents, label_endings) for name in listing.ids]
        if all(pair.faults for pair in found):
            notes.append(
                f"split '{split}': none of its {len(found)} images ({listing.source}: {listing.ids[0]} …) is here as a "
                "pair; does the list belong to this data set?"
            )
        pairs += found
    return tuple(pairs), [*notes, *_unused(ids, folders, contents)]


def _pair(
    split: str,
    name: str,
    images: Path,
    labels: Path,
    contents: Mapping[Path, Mapping[str, list[str]]],
    label_endings: Iterable[str],
) -> Pair:
    found = {"image": contents[images].get(name, []), "label map": contents[labels].get(name, [])}
    image, label = (
        str(folder / (found[what][0] if found[what] else f"{name}{ending}"))
        for folder, what, ending in (
            (images, "image", IMAGE_ENDINGS[0]),
            (labels, "label map", next(iter(label_endings))),
        )
    )
    faults = []
    missing = [what for what, names in found.items() if not names]
    if missing:
        kind, path = ("missing_image", image) if "image" in missing else ("missing_label", label)
        verb = "does" if len(missing) == 1 else "do"
        message = f"the {' and the '.join(missing)} {verb} not exist; split '{split}' names it"
        faults.append(Finding(ERROR, kind, path, message))
    for path, (what, names) in zip((image, label), found.items()):
        if len(names) > 1:
            faults.append(Finding(ERROR, "two_files", path, f"{what}s of one id: {', '.join(names)}; keep one"))
    return Pair(split, name, image, label, tuple(faults))


def _unused(
    ids: Mapping[str, IdList],
    folders: Mapping[str, tuple[Path, Path]],
    contents: Mapping[Path, Mapping[str, list[str]]],
) -> list[str]:
    """One note per folder with photos or label maps that no split takes."""
    listed: dict[Path, set[str]] = {}
    for split, listing in ids.items():
        for folder in folders[split]:
            listed.setdefault(folder, set()).update(listing.ids)
    notes = []
    for folder, names in listed.items():
        extra = sorted(set(contents[folder]) - names)
        if extra:
            notes.append(f"{folder}: {len(extra)} files belong to no split and are left out ({extra[0]} …)")
    return notes


def _missing_splits(tree: Tree, layout: Layout, folders: Mapping[str, object]) -> list[str]:
    notes = []
    for split, (images, labels) in layout.folders.items():
        if split not in folders:
            there = [end for end in (images, labels) if tree.ending(end)]
            what = f"{there[0]} is there, its partner is not" if there else f"neither {images} nor {labels} is there"
            notes.append(f"no split '{split}': {what}")
    return notes


def _stems(folder: Path) -> list[str]:
    stems = list(files_by_stem(folder, LABEL_ENDINGS))
    if not stems:
        raise PreparationError(f"{folder}: holds no label maps (*.png)")
    return stems
