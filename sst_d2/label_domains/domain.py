"""`LabelDomain`: the record of one label system, checked when it is made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sst_d2.errors import LabelDomainError

REQUIRED_FIELDS = ("name", "classes")
OPTIONAL_FIELDS = ("colors", "flip_pairs", "adjacency", "ignore_label")
# A name becomes a key of a ModuleDict, of losses and of file names.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class LabelDomain:
    """One label system: K classes in the order of their ids.

    Attributes:
        name: letters, digits, ``_`` and ``-``; begins with a letter.
        classes: K different names, 2 <= K <= 255; the position is the id.
        colors: K colours (red, green, blue), each in 0..255.
        flip_pairs: pairs of classes that change places when an image is mirrored (left arm, right arm).
        adjacency: undirected edges between classes that touch on the body; None: not given, all classes see all.
        ignore_label: id of pixels without a label; 0..255, outside [0, K).
        source: where the record comes from, for messages; no part of equality.

    Raises:
        LabelDomainError: a field breaks one of these rules; the message names file, field, value and what is allowed.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    flip_pairs: tuple[tuple[str, str], ...] = ()
    adjacency: tuple[tuple[str, str], ...] | None = None
    ignore_label: int = 255
    source: str = field(default="a record made in Python", compare=False)

    def __post_init__(self) -> None:
        self._check_name_and_classes()
        self._check_colors()
        self._check_pairs("flip_pairs", self.flip_pairs)
        self._check_pairs("adjacency", self.adjacency or ())
        swapped = Counter(name for pair in self.flip_pairs for name in pair)
        twice = [name for name, count in swapped.items() if count > 1]
        if twice:
            raise self._error("flip_pairs", f"'{twice[0]}' occurs twice; a class has one mirror image at most")
        if isinstance(self.ignore_label, bool) or not isinstance(self.ignore_label, int):
            raise self._error("ignore_label", f"{self.ignore_label!r}; a whole number is expected")
        if not self.num_classes <= self.ignore_label <= 255:
            raise self._error("ignore_label", f"{self.ignore_label}; allowed are {self.num_classes} to 255")

    @classmethod
    def from_dict(cls, record: Mapping[str, Any], source: str) -> LabelDomain:
        """Make the record from plain lists and strings, as a YAML file or a checkpoint holds them.

        Args:
            record: the fields of the class, without ``source``; ``colors`` may be left out (VOC colours are taken).
            source: the file, for messages.
        """
        classes = _tuple_of(record["classes"], "classes", source)
        colors = voc_colors(len(classes)) if record.get("colors") is None else record["colors"]
        adjacency = record.get("adjacency")
        return cls(
            name=record["name"],
            classes=classes,
            colors=tuple(_tuple_of(color, "colors", source) for color in _tuple_of(colors, "colors", source)),
            flip_pairs=_pairs_of(record.get("flip_pairs") or (), "flip_pairs", source),
            adjacency=None if adjacency is None else _pairs_of(adjacency, "adjacency", source),
            ignore_label=record.get("ignore_label", 255),
            source=source,
        )

    def to_dict(self) -> dict[str, Any]:
        """The record as plain lists, strings and numbers; `from_dict` gives an equal record back."""
        record = asdict(self)
        del record["source"]
        for key in ("colors", "flip_pairs", "adjacency"):
            if record[key] is not None:
                record[key] = [list(item) for item in record[key]]
        record["classes"] = list(self.classes)
        return record

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def index(self, name: str) -> int:
        """Id of the class ``name``; a KeyError lists the classes."""
        if name not in self.classes:
            raise KeyError(f"label domain '{self.name}' has no class '{name}'; its classes: {', '.join(self.classes)}")
        return self.classes.index(name)

    def flip_permutation(self) -> np.ndarray:
        """(K,) int64, its own inverse: entry z is the id that class z gets in a mirrored image."""
        permutation = np.arange(self.num_classes)
        for left, right in self.flip_pairs:
            i, j = self.index(left), self.index(right)
            permutation[i], permutation[j] = j, i
        return permutation

    def _error(self, field: str, problem: str) -> LabelDomainError:
        return LabelDomainError(f"{self.source}: field '{field}': {problem}")

    def _check_name_and_classes(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name) or self.name == "all":
            raise self._error(
                "name",
                f"{self.name!r}; a word of letters, digits, '_' and '-' is expected, and 'all' means every domain",
            )
        for position, name in enumerate(self.classes):
            if not isinstance(name, str) or not name:
                raise self._error(
                    "classes",
                    f"entry {position} is {name!r}, a {type(name).__name__}; class names are text: write words that "
                    'YAML reads as something else (null, yes, on, 1) in quotes, "null"',
                )
        if not 2 <= self.num_classes <= 255:
            raise self._error("classes", f"{self.num_classes} classes; 2 to 255 are allowed")
        double = [name for name, count in Counter(self.classes).items() if count > 1]
        if double:
            raise self._error(
                "classes", f"'{double[0]}' occurs {self.classes.count(double[0])} times; names must differ"
            )

    def _check_colors(self) -> None:
        if len(self.colors) != self.num_classes:
            raise self._error(
                "colors", f"{len(self.colors)} colours for {self.num_classes} classes; one [red, green, blue] per class"
            )
        for name, color in zip(self.classes, self.colors, strict=True):
            good = len(color) == 3 and all(
                isinstance(c, int) and not isinstance(c, bool) and 0 <= c <= 255 for c in color
            )
            if not good:
                raise self._error(
                    "colors", f"{list(color)} of '{name}'; three whole numbers from 0 to 255 are expected"
                )

    def _check_pairs(self, field: str, pairs: tuple[tuple[str, str], ...]) -> None:
        for pair in pairs:
            for name in pair:
                if name not in self.classes:
                    raise self._error(
                        field, f"{list(pair)}: unknown class '{name}'; classes: {', '.join(self.classes)}"
                    )
            if pair[0] == pair[1]:
                raise self._error(field, f"{list(pair)}: a pair joins two different classes")


def voc_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first ``count`` colours of PASCAL VOC's bit palette: bits 0, 3, 6 of the id make red, 1, 4, 7 green …"""
    colors = []
    for identifier in range(count):
        channels = [sum(((identifier >> (3 * bit + c)) & 1) << (7 - bit) for bit in range(3)) for c in range(3)]
        colors.append(tuple(channels))
    return tuple(colors)


def _tuple_of(value: Any, field: str, source: str) -> tuple:
    if not isinstance(value, (list, tuple)):
        raise LabelDomainError(f"{source}: field '{field}': {value!r}; a list is expected")
    return tuple(value)


def _pairs_of(value: Any, field: str, source: str) -> tuple[tuple[str, str], ...]:
    pairs = tuple(_tuple_of(pair, field, source) for pair in _tuple_of(value, field, source))
    for pair in pairs:
        if len(pair) != 2:
            raise LabelDomainError(f"{source}: field '{field}': {list(pair)}; pairs of two class names are expected")
    return pairs
