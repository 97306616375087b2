"""The folder of a generated data set: which files belong to it, id lists, dataset cards, and the manifest.

Two manifests make a run safe to repeat: ``manifest.partial.json`` is there from the first to the last image,
``manifest.json`` only when everything is written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import yaml

from .atoms import DOMAINS

VERSION = 1  # raise it whenever the pictures change
MANIFEST, PARTIAL = "manifest.json", "manifest.partial.json"
HELDOUT = "heldout"
SETS = (*DOMAINS, HELDOUT)
SPLITS = ("train", "val")


class FolderError(ValueError):
    """The output folder does not fit the request; the message names the remedy."""


@dataclass(frozen=True)
class Item:
    """One picture: its set (a domain or ``heldout``), split and number."""

    set_name: str
    split: str
    index: int

    @property
    def id(self) -> str:
        """Name of the files, without ending."""
        return f"{HELDOUT if self.set_name == HELDOUT else self.split}_{self.index:06d}"

    @property
    def style(self) -> str:
        """The style it is drawn in; held-out pictures take turns."""
        return DOMAINS[self.index % len(DOMAINS)] if self.set_name == HELDOUT else self.set_name

    @property
    def image(self) -> str:
        """Path of the image below the output folder."""
        return f"{self.set_name}/images/{self.id}.jpg"

    @property
    def labels(self) -> dict[str, str]:
        """Domain -> path of the label map below the output folder."""
        if self.set_name == HELDOUT:
            return {domain: f"{HELDOUT}/labels_{domain}/{self.id}.png" for domain in DOMAINS}
        return {self.set_name: f"{self.set_name}/labels/{self.id}.png"}

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of all its files below the output folder."""
        return (self.image, *self.labels.values())

    def generator(self, seed: int) -> np.random.Generator:
        """Randomness of this picture, shared with no other: a pure function of (seed, set, split, index)."""
        return np.random.default_rng((seed, SETS.index(self.set_name), SPLITS.index(self.split), self.index))


@dataclass(frozen=True)
class Request:
    """What a folder shall hold: ``size`` (height, width), images per set, and the seed."""

    size: tuple[int, int]
    train: tuple[int, int, int]
    val: int
    heldout: int
    seed: int

    def items(self) -> Iterator[Item]:
        """All pictures."""
        for domain, count in zip(DOMAINS, self.train, strict=True):
            yield from (Item(domain, "train", index) for index in range(count))
        for domain in DOMAINS:
            yield from (Item(domain, "val", index) for index in range(self.val))
        yield from (Item(HELDOUT, "val", index) for index in range(self.heldout))

    def manifest(self) -> dict:
        """The content of the manifest."""
        return {"generator": "make_synthetic_people", "version": VERSION, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_manifest(cls, manifest: dict) -> Request:
        """Undo ``manifest``; raises KeyError or TypeError where it is none."""
        size, train = (tuple(int(v) for v in manifest[key]) for key in ("size", "train"))
        return cls(size, train, *(int(manifest[key]) for key in ("val", "heldout", "seed")))


def texts(request: Request) -> dict[str, str]:
    """Path below the output folder -> content, of all id lists and dataset cards."""
    files = {}
    for set_name in SETS:
        for split in SPLITS if set_name != HELDOUT else ("val",):
            ids = [item.id for item in request.items() if (item.set_name, item.split) == (set_name, split)]
            files[f"{set_name}/ids/{split}.txt"] = "".join(f"{name}\n" for name in ids)
    for domain in DOMAINS:
        files[f"cards/synthetic_{domain}.yaml"] = _card(domain, domain, "labels", SPLITS)
        files[f"cards/synthetic_{HELDOUT}_{domain}.yaml"] = _card(
            f"{HELDOUT}_{domain}", domain, f"labels_{domain}", ("val",)
        )
    return files


def _card(name: str, domain: str, labels: str, splits: tuple[str, ...]) -> str:
    card = {
        "name": f"synthetic_{name}_sem_seg_{{split}}",
        "label_domain": domain,
        "root": f"../{HELDOUT if name.startswith(HELDOUT) else domain}",
        "images": "images/{id}.jpg",
        "labels": labels + "/{id}.png",
        "ids": "ids/{split}.txt",
        "splits": list(splits),
    }
    return "# Written by datasets/make_synthetic_people.py.\n" + yaml.safe_dump(card, sort_keys=False)


def write_file(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def open_folder(output: Path, request: Request, force: bool) -> list[Item] | None:
    """Compare a folder with a request and, where something is missing, mark the folder as unfinished.

    Args:
        output: the folder; need not exist.
        request: what it shall hold.
        force: take over a folder that holds something else, and write every file anew.

    Returns:
        The pictures that must be written; None where the folder already holds exactly what is asked for.

    Raises:
        FolderError: the folder holds another request, or files that this command did not write, and ``force`` is False.
        OSError: the folder cannot be read or written.
    """
    items = list(request.items())
    wanted = request.manifest()
    found = _read_manifest(output, force)
    if not force:
        _refuse_other(output, found, wanted, items)
    if found == wanted and not force:
        present = _listing(output)
        items = [item for item in items if not present.issuperset(item.files)]
        if not items and present.issuperset(texts(request)) and (output / MANIFEST).exists():
            return None
    if force:  # nothing old may pass for new when this run is interrupted and continued
        old = list(Request.from_manifest(found).items()) if found else []
        for name in {name for item in items + old for name in item.files}:
            (output / name).unlink(missing_ok=True)
    write_file(output / PARTIAL, json.dumps(wanted, indent=2).encode())
    (output / MANIFEST).unlink(missing_ok=True)
    return items


def _refuse_other(output: Path, found: dict | None, wanted: dict, items: list[Item]) -> None:
    """Raise FolderError where the folder holds something else than what is wanted."""
    if found is None:
        known = next((item.image for item in items if (output / item.image).exists()), None)
        if known is not None:
            raise FolderError(
                f"{output / known} exists, but no {MANIFEST} says where it is from. Choose another --output, or pass "
                "--force to overwrite files of the same names."
            )
    elif found != wanted:
        changes = [
            f"{key} {found.get(key)} (asked for: {wanted[key]})" for key in wanted if found.get(key) != wanted[key]
        ]
        raise FolderError(
            f"{output} holds synthetic people made with {', '.join(changes)}. "
            "Choose another --output, or pass --force to replace them."
        )


def close_folder(output: Path, request: Request) -> None:
    """Write id lists, cards and, last, the manifest; call when every picture is there."""
    for name, text in texts(request).items():
        write_file(output / name, text.encode())
    write_file(output / MANIFEST, (json.dumps(request.manifest(), indent=2) + "\n").encode())
    (output / PARTIAL).unlink(missing_ok=True)


def _listing(output: Path) -> set[str]:
    """Paths of all files in the folders of the sets and cards, below the output folder."""
    names = set()
    for set_name in (*SETS, "cards"):
        for folder, _, files in os.walk(output / set_name):
            below = Path(folder).relative_to(output).as_posix()
            names.update(f"{below}/{name}" for name in files)
    return names


def _read_manifest(output: Path, force: bool) -> dict | None:
    """The finished or the partial manifest, or None where there is none (or, with ``force``, none that can be read)."""
    for name in (MANIFEST, PARTIAL):
        path = output / name
        if not path.exists():
            continue
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            Request.from_manifest(manifest)
            return manifest
        except (ValueError, KeyError, TypeError) as error:
            if not force:
                raise FolderError(
                    f"{path} is not a manifest of this command ({error!r}). "
                    "Choose another --output, or pass --force to overwrite it."
                ) from error
    return None
