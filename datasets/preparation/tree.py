"""The folders of a download: looked at once, found by the ends of their paths, whatever lies above them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from sst_d2.errors import SSTError

MAX_DEPTH, MAX_FOLDERS = 6, 10_000
_SHOWN = 15
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


class PreparationError(SSTError):
    """A download, a list of ids or an output folder is not usable; the message names the remedy."""


@dataclass(frozen=True)
class Layout:
    """One of the trees that a data set is handed round in.

    Attributes:
        title: what it is, for messages ("as downloaded").
        folders: split -> (end of the path of the folder of photos, the same of the label maps).
        needs_lists: the splits share their folders, so only lists of ids tell them apart.
    """

    title: str
    folders: Mapping[str, tuple[str, str]]
    needs_lists: bool = False


class Tree:
    """The folders and the text files below a folder; hidden ones are left out, links are followed.

    Attributes:
        root: the folder that the user named, absolute.
        folders: all folders, ``root`` among them, nearest first.
        texts: all files ``*.txt`` whose name ends with ``_id.txt`` or is that of a split.

    Raises:
        PreparationError: ``root`` is no folder, is an archive, or holds too many folders to be a data set.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.abspath(root.expanduser()))
        if not self.root.is_dir():
            kind = "is an archive: unpack it and name the folder" if _is_archive(self.root) else "is no folder"
            raise PreparationError(f"{root}: {kind}; the folder that holds the unpacked download is expected")
        self.folders: list[Path] = []
        self.texts: list[Path] = []
        self._look()

    def ending(self, end: str) -> list[Path]:
        """The folders whose path ends like this, capitals or not; the folders above the root count as well."""
        return [folder for folder in self.folders if _ends(folder, end)]

    def texts_ending(self, end: str) -> list[Path]:
        """The text files whose path ends like this."""
        return [file for file in self.texts if _ends(file, end)]

    def found(self) -> str:
        """What lies here, for messages."""
        names = [str(folder.relative_to(self.root)) for folder in self.folders[1:]]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return ", ".join(names[:_SHOWN]) + more if names else "no folder"

    def _look(self) -> None:
        level, seen = [self.root], set()
        for _ in range(MAX_DEPTH + 1):
            below: list[Path] = []
            for folder in level:
                real = os.path.realpath(folder)
                if real in seen:  # a link in a circle, or to what has been looked at
                    continue
                seen.add(real)
                self.folders.append(folder)
                below += self._entries(folder)
            if len(seen) > MAX_FOLDERS:
                raise PreparationError(
                    f"{self.root} holds more than {MAX_FOLDERS} folders; name the data set's own folder"
                )
            level = below

    def _entries(self, folder: Path) -> list[Path]:
        """The folders right below a folder, sorted; keeps the text files."""
        folders = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith((".", "__MACOSX")):
                    continue
                if entry.name.lower().endswith(("_id.txt", "train.txt", "val.txt", "test.txt")):
                    self.texts.append(folder / entry.name)
                elif entry.is_dir():
                    folders.append(folder / entry.name)
        return sorted(folders)


def find_layout(tree: Tree, layouts: Iterable[Layout], title: str) -> tuple[Layout, dict[str, tuple[Path, Path]]]:
    """Find the folders of a data set: the first layout of which at least one split is there.

    Returns:
        The layout, and split -> (folder of photos, folder of label maps) of the splits that are there.

    Raises:
        PreparationError: none is there, or one is there twice; the message says what was looked for and what was found.
    """
    layouts = list(layouts)
    for layout in layouts:
        pairs = {
            split: nearest(tree.ending(images), tree.ending(labels))
            for split, (images, labels) in layout.folders.items()
        }
        if any(pairs.values()):
            return layout, {split: pair for split, pair in pairs.items() if pair is not None}
    wanted = [
        f"{images} with {labels} ({layout.title})"
        for layout in layouts
        for images, labels in dict.fromkeys(layout.folders.values())
    ]
    raise PreparationError(
        f"{tree.root}: no {title} data set that this command knows\n  looked for: "
        + "\n              ".join(wanted)
        + f"\n  found:      {tree.found()}\n  Name the folder that holds these; datasets/README.md shows the tree."
    )


def nearest(images: list[Path], labels: list[Path]) -> tuple[Path, Path] | None:
    """The folder of photos and the folder of label maps that lie nearest to each other; None where one is missing.

    Raises:
        PreparationError: two pairs are equally near.
    """
    pairs = sorted((steps(image, label), image, label) for image in images for label in labels if image != label)
    if not pairs:
        return None
    if len(pairs) > 1 and pairs[0][0] == pairs[1][0]:
        choices = "\n  ".join(f"{image} with {label}" for distance, image, label in pairs if distance == pairs[0][0])
        raise PreparationError(f"the data set is there more than once; name the folder of one of them:\n  {choices}")
    return pairs[0][1:]


def steps(one: Path, other: Path) -> int:
    """Steps up and down from one folder to the other."""
    return len(one.parts) + len(other.parts) - 2 * len(common_folder((one, other)).parts)


def common_folder(folders: Iterable[Path]) -> Path:
    """The folder that holds all of these, or the only one of them; on different drives an empty path."""
    levels = zip(*(folder.parts for folder in folders))
    return Path(*(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)))


def own_lists(tree: Tree, ends: Iterable[str], folders: Iterable[Path]) -> list[Path]:
    """The list files of a data set that lie nearest to its folders; of several ends the first that is there counts.

    They lie below the folder that holds all of ``folders``, or right above it, or in a folder ``list`` or ``lists``
    there: not beside another data set.

    Args:
        tree: the download.
        ends: ends of paths of list files.
        folders: the folders of photos and label maps.
    """
    folders = list(folders)
    home = common_folder(folders)
    above = {home.parent, home.parent / "list", home.parent / "lists"}
    for end in ends:
        files = [file for file in tree.texts_ending(end) if home in file.parents or file.parent in above]
        if files:
            distances = {file: min(steps(file.parent, folder) for folder in folders) for file in files}
            return sorted(file for file in files if distances[file] == min(distances.values()))
    return []


def files_by_stem(folder: Path, endings: Iterable[str]) -> dict[str, list[str]]:
    """Stem -> names of the files of a folder that have one of these endings, capitals or not; hidden ones left out.

    Raises:
        PreparationError: a name is no UTF-8 text, so no list could hold it.
    """
    found: dict[str, list[str]] = {}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
    for name in names:
        stem, ending = os.path.splitext(name)
        if ending.lower() not in endings:
            continue
        if any("\ud800" <= letter <= "\udfff" for letter in name):
            raise PreparationError(f"{folder}: the file name {name!a} is no UTF-8 text; rename the file")
        found.setdefault(stem, []).append(name)
    return found


def _ends(path: Path, end: str) -> bool:
    parts = end.lower().split("/")
    return [part.lower() for part in path.parts[-len(parts) :]] == parts


def _is_archive(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in _ARCHIVES
