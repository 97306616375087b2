"""The folder that is written: images, labels, lists of ids, a card; safe to interrupt and to run again.

``preparation.jsonl``, the journal, remembers of every pair its sources' size and time of change, and what was found in
good ones. It stays: pairs whose sources change later are read again. ``preparation.json``, the manifest, is there only
when everything is written. Lists and card come last.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from people_generator.folder import write_file

from sst_d2.data.inspection import Finding, Inspection

from .checking import Result, image_path, label_path
from .plan import DataSet, Pair, Plan
from .tree import PreparationError

MANIFEST, JOURNAL, CARD = "preparation.json", "preparation.jsonl", "card.yaml"
VERSION = 1  # raise it whenever label maps come out differently
_SPLITS = ("train", "val", "test")


def refuse_download(output: Path, download: Path, folders: tuple[Path, ...]) -> None:
    """Raise where writing the output would write into what is read.

    Raises:
        PreparationError: the output lies inside the download, or a folder of its is a link or holds the download.
    """
    for name in ("images", "labels", "ids"):
        if (output / name).is_symlink():
            raise PreparationError(
                f"{output / name} is a link, and what it leads to is not to be written to; remove the link, or name "
                "another folder: --output DIR"
            )
    real = Path(os.path.realpath(output))
    for source in (download, *folders):
        origin = Path(os.path.realpath(source))
        if real == origin or origin in real.parents:
            raise PreparationError(
                f"the output {output} lies inside the download {source}, which is never written to; name "
                "the data set's own folder more closely, or another folder: --output DIR"
            )
        for name in ("images", "labels", "ids"):
            inner = Path(os.path.realpath(output / name))
            if inner == origin or inner in origin.parents:
                raise PreparationError(
                    f"the download {source} lies in {output / name}, where this command writes; name another folder: "
                    "--output DIR"
                )


def can_link(output: Path) -> bool:
    """Whether symbolic links can be made in a folder (not on some file systems, nor by every user on Windows).

    Tried in a temporary folder: in the output, or, where it is not there yet, in the nearest one above it. Nothing
    stays.

    Raises:
        PreparationError: nothing at all can be written there.
    """
    output = Path(os.path.abspath(output))
    nearest = next(folder for folder in (output, *output.parents) if os.path.exists(folder))
    try:
        trial = tempfile.TemporaryDirectory(prefix=".link.", dir=nearest)
    except OSError as reason:
        raise PreparationError(
            f"the output {output} cannot be written: {reason.strerror} ({nearest}); name another folder: --output DIR"
        ) from reason
    with trial as folder:
        try:
            Path(folder, "link").symlink_to(nearest)
        except (OSError, NotImplementedError):
            return False
    return True


class OutputFolder:
    """One output folder, for one plan.

    Args:
        path: the folder; need not exist.
        data_set: the data set.
        plan: what it shall hold.
        copy: copies, not links.
        with_card: write a card, since the built-in one looks elsewhere.

    Attributes:
        changed: ids of pairs whose sources are not as they were when they were last read; known after `open`.
    """

    def __init__(self, path: Path, data_set: DataSet, plan: Plan, copy: bool, with_card: bool) -> None:
        self.path = path
        self.data_set = data_set
        self.plan = plan
        self.with_card = with_card
        self.request = _request(data_set, plan, copy)
        self.changed: list[str] = []
        self._journal: Any = None

    def left_out(self) -> list[str] | None:
        """Ids left out of a finished folder that holds just this plan, from sources as they are now.

        Returns:
            The ids; None where there is something to do.

        Raises:
            PreparationError: a manifest is there and is none of ours.
        """
        manifest = self._manifest()
        if manifest is None or manifest.get("request") != self.request:
            return None
        left_out = manifest.get("left_out", [])
        stamps = {entry["id"]: entry["files"] for entry in self._read_journal()[1]}
        gone = set(left_out)
        good = [pair for pair in self.plan.pairs if pair.id not in gone]
        if any(pair.faults for pair in good) or any(stamps.get(p.id) != _stamp(p) for p in self.plan.pairs):
            return None
        texts = self._texts(good)
        whole = all(_text(self.path / name) == text for name, text in texts.items()) and all(
            os.path.exists(image_path(self.path, pair.id)) and os.path.exists(label_path(self.path, pair.id))
            for pair in good
        )
        return left_out if whole else None

    def open(self, force: bool) -> dict[tuple[str, str], Result]:
        """Mark the folder as unfinished.

        Args:
            force: take over a folder that holds something else, and begin anew.

        Returns:
            (split, id) -> the result of pairs that an earlier run found good, whose files are as they were. What it
            wrote of others is removed.

        Raises:
            PreparationError: the folder holds something else, and ``force`` is False.
            OSError: the folder cannot be read or written.
        """
        header, entries = self._read_journal()
        found = header or self._manifest(force)
        if force:
            self._forget(entries)
            entries = []
        else:
            self._refuse_other(found)
        for name in (*(f"ids/{split}.txt" for split in _SPLITS), CARD, MANIFEST):
            (self.path / name).unlink(missing_ok=True)
        known = self._still_good(entries)
        self._forget_pairs(entry["id"] for entry in entries if (entry["split"], entry["id"]) not in known)
        self.path.mkdir(parents=True, exist_ok=True)
        lines = [{"request": self.request}, *(entry for entry in entries if (entry["split"], entry["id"]) in known)]
        write_file(self.path / JOURNAL, "".join(json.dumps(line) + "\n" for line in lines).encode())
        self._journal = open(self.path / JOURNAL, "a", encoding="utf-8")  # noqa: SIM115 (closed by `close`)
        return known

    def record(self, pair: Pair, result: Result) -> None:
        """Remember a good pair."""
        self._write_entry(pair, _to_json(result.inspection))

    def close(self) -> None:
        """Let the journal go; an unfinished folder remains one."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def finish(self, good: list[Pair]) -> None:
        """Write lists and card and, last, the manifest."""
        kept = {pair.id for pair in good}
        left_out = [pair for pair in self.plan.pairs if pair.id not in kept]
        for pair in left_out:
            self._write_entry(pair, {"left_out": True})
        self.close()
        for folder in ("images", "labels"):
            for draft in (self.path / folder).glob(".*.part"):  # of runs that were killed
                draft.unlink()
        for name, text in self._texts(good).items():
            write_file(self.path / name, text.encode())
        manifest = {"request": self.request, "left_out": [pair.id for pair in left_out]}
        write_file(self.path / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())

    def _write_entry(self, pair: Pair, facts: Mapping[str, Any]) -> None:
        entry = {"split": pair.split, "id": pair.id, "files": _stamp(pair), **facts}
        self._journal.write(json.dumps(entry) + "\n")
        self._journal.flush()

    def _texts(self, good: list[Pair]) -> dict[str, str]:
        """Path below the folder -> content, of lists and card."""
        splits = dict.fromkeys(pair.split for pair in good)
        texts = {
            f"ids/{split}.txt": "".join(f"{pair.id}\n" for pair in good if pair.split == split) for split in splits
        }
        if self.with_card:
            card = {**self.data_set.card(), "root": ".", "splits": list(splits)}
            texts[CARD] = f"# Written by datasets/prepare_{self.data_set.name}.py.\n" + yaml.safe_dump(
                card, sort_keys=False
            )
        return texts

    def _refuse_other(self, found: Mapping[str, Any] | None) -> None:
        remedy = "choose another --output, or pass --force to replace it"
        if found is None:
            names = [name for name in ("images", "labels", "ids") if _holds_anything(self.path / name)]
            if names:
                raise PreparationError(
                    f"{self.path / names[0]} exists, and no {MANIFEST} says where it is from; {remedy}"
                )
        elif found.get("request") != self.request:
            raise PreparationError(
                f"{self.path} holds something else: {_difference(found.get('request'), self.request)}; {remedy}"
            )

    def _forget(self, entries: list[dict[str, Any]]) -> None:
        """Remove what an earlier run of ours has put here: the files of the ids in its lists and its journal."""
        names = {entry["id"] for entry in entries}
        for split in _SPLITS:
            names.update((_text(self.path / f"ids/{split}.txt") or "").split("\n"))
        self._forget_pairs(names)

    def _forget_pairs(self, names: Iterable[str]) -> None:
        for name in names:
            if not name or os.path.basename(name) != name:  # a list that somebody else has written
                continue
            image_path(self.path, name).unlink(missing_ok=True)
            label_path(self.path, name).unlink(missing_ok=True)

    def _manifest(self, force: bool = False) -> dict[str, Any] | None:
        text = _text(self.path / MANIFEST)
        if text is None:
            return None
        try:
            manifest = json.loads(text)
            if isinstance(manifest["request"], dict):
                return manifest
        except (ValueError, KeyError, TypeError) as reason:
            if not force:
                raise PreparationError(
                    f"{self.path / MANIFEST} is not a manifest of this command ({reason!r}); choose another --output, "
                    "or pass --force to overwrite it"
                ) from reason
        return None

    def _read_journal(self) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """First line and entries; what was being written when a run was killed is left out."""
        lines = []
        for line in (_text(self.path / JOURNAL) or "").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
        if not lines or not isinstance(lines[0], dict) or "request" not in lines[0]:
            return None, []
        return lines[0], lines[1:]

    def _still_good(self, entries: list[dict[str, Any]]) -> dict[tuple[str, str], Result]:
        pairs = {(pair.split, pair.id): pair for pair in self.plan.pairs}
        known = {}
        for entry in entries:
            key = (entry["split"], entry["id"])
            if key not in pairs:
                continue
            if _stamp(pairs[key]) != entry["files"]:
                self.changed.append(key[1])
            elif entry.get("left_out") or pairs[key].faults:  # read again, so that its faults are told again
                continue
            elif os.path.exists(image_path(self.path, key[1])) and os.path.exists(label_path(self.path, key[1])):
                known[key] = Result(*key, _from_json(entry))
        return known


def _request(data_set: DataSet, plan: Plan, copy: bool) -> dict[str, Any]:
    """What a folder shall hold, as JSON: two equal ones mean the same files."""
    splits = {}
    for split, count in plan.sizes().items():
        rows = "\n".join(f"{p.id}\t{p.image}\t{p.label}" for p in plan.pairs if p.split == split)
        splits[split] = {"images": count, "sha256": hashlib.sha256(rows.encode()).hexdigest()}
    return {
        "data_set": data_set.name,
        "version": VERSION,
        "folders": [str(folder) for folder in dict.fromkeys(plan.folders)],
        "labels": plan.labels,
        "files": "copies" if copy else "links",
        "splits": splits,
    }


def _difference(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "a preparation of unknown content"
    for key in ("data_set", "version", "folders", "labels", "files"):
        if found.get(key) != wanted[key]:
            return f"{key} {found.get(key)} (asked for: {wanted[key]})"
    there, asked = found.get("splits", {}), wanted["splits"]
    if {split: part["images"] for split, part in there.items()} != {s: part["images"] for s, part in asked.items()}:
        sizes = [", ".join(f"{s} {part['images']}" for s, part in splits.items()) for splits in (there, asked)]
        return f"splits of other sizes: {sizes[0]} (asked for: {sizes[1]})"
    return "splits of the same sizes with other images"


def _to_json(inspection: Inspection) -> dict[str, Any]:
    """The findings, and pixels and centre of the ids that occur."""
    ids = np.flatnonzero(inspection.pixels)
    return {
        "findings": [vars(finding) for finding in inspection.findings],
        "ids": ids.tolist(),
        "pixels": inspection.pixels[ids].tolist(),
        "centres": inspection.centres[ids].tolist(),
    }


def _from_json(entry: Mapping[str, Any]) -> Inspection:
    """Undo `_to_json`."""
    pixels, centres = np.zeros(256, np.int64), np.full((256, 2), np.nan)
    if entry["ids"]:
        pixels[entry["ids"]] = entry["pixels"]
        centres[entry["ids"]] = entry["centres"]
    return Inspection(tuple(Finding(**finding) for finding in entry["findings"]), pixels, centres)


def _stamp(pair: Pair) -> list[list[int] | None]:
    """Size and time of change of both sources; None for one that is gone."""
    return [_stamp_of_file(path) for path in (pair.image, pair.label)]


def _stamp_of_file(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _holds_anything(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is not None


def _text(path: Path) -> str | None:
    """Content of a text file; None where there is none."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
