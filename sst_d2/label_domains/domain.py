"""`LabelDomain`: the record of one label system, checked when it is made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains.body_lexicon import body_lexicon

REQUIRED_FIELDS = ("name", "classes")
OPTIONAL_FIELDS = ("colors", "flip_pairs", "adjacency", "ignore_label", "covers", "similarity")
# What the nested mappings of these two fields are keyed by.
_COVERS_LEVELS = ("class", "atom")
_SIMILARITY_LEVELS = ("other domain", "class", "class of the other domain")
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
        covers: sorted (class, atom, weight): what the class covers of the body, in place of what the body lexicon says
            of its name; weights in (0, 1]. `relations.cross_similarity` reads it.
        similarity: sorted (other domain, own class, class of the other, value): M_static between the two domains, in
            place of all other sources; values in [0, 1]. Every own class occurs; a pair that does not is 0.
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
    covers: tuple[tuple[str, str, float], ...] = ()
    similarity: tuple[tuple[str, str, str, float], ...] = ()
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
        self._check_covers()
        self._check_similarity()
        for field_name in ("covers", "similarity"):  # the order in a file says nothing
            object.__setattr__(self, field_name, tuple(sorted(getattr(self, field_name))))

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
            covers=_covers_of(record.get("covers") or {}, source),
            similarity=_rows_of(record.get("similarity") or {}, "similarity", _SIMILARITY_LEVELS, source),
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
        record["covers"] = _nested(self.covers)
        record["similarity"] = _nested(self.similarity)
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

    def _check_covers(self) -> None:
        for name, atom, weight in self.covers:
            self._check_class("covers", name)
            problem = body_lexicon().problem_with(atom, weight)
            if problem:
                raise self._error("covers", f"class '{name}': {problem}")

    def _check_similarity(self) -> None:
        named: dict[str, set[str]] = {}
        for other, name, other_name, value in self.similarity:
            place = f"to {other!r}, class {name!r}, its class {other_name!r}"
            if not isinstance(other, str) or other == self.name or not isinstance(other_name, str):
                raise self._error("similarity", f"{place}: names of another domain and of its classes are expected")
            self._check_class("similarity", name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
                raise self._error("similarity", f"{place}: {value!r}; a number from 0 to 1 is expected")
            named.setdefault(other, set()).add(name)
        for other, names in named.items():
            missing = [name for name in self.classes if name not in names]
            if missing:
                raise self._error(
                    "similarity",
                    f"to '{other}': no row for {', '.join(missing)}; the matrix counts as a whole, so every class "
                    f"needs a row; one that is like nothing names any class of '{other}' with 0",
                )

    def _check_class(self, field: str, name: Any) -> None:
        if name not in self.classes:
            raise self._error(field, f"unknown class {name!r}; classes: {', '.join(self.classes)}")


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


def _covers_of(value: Any, source: str) -> tuple[tuple[str, str, float], ...]:
    """Rows (class, atom, weight); a list of atoms gives each the weight 1."""
    if isinstance(value, Mapping):
        value = {
            name: {str(a): 1 for a in atoms} if isinstance(atoms, list) else atoms for name, atoms in value.items()
        }
    return _rows_of(value, "covers", _COVERS_LEVELS, source)


def _rows_of(value: Any, field: str, levels: tuple[str, ...], source: str, place: str = "") -> tuple[tuple, ...]:
    """Nested mappings as rows: {a: {b: 1, c: 2}} becomes (a, b, 1), (a, c, 2)."""
    if not levels:
        return ((value,),)
    if not isinstance(value, Mapping) or (place and not value):
        raise LabelDomainError(f"{source}: field '{field}': {place}{value!r}; a mapping by {levels[0]} is expected")
    rows = []
    for key, below in value.items():
        rows += [(key, *row) for row in _rows_of(below, field, levels[1:], source, f"{place}{key}: ")]
    return tuple(rows)


def _nested(rows: tuple[tuple, ...]) -> dict[str, Any]:
    """The mappings that `_rows_of` makes rows of."""
    nested: dict[str, Any] = {}
    for *keys, last, value in rows:
        inner = nested
        for key in keys:
            inner = inner.setdefault(key, {})
        inner[last] = value
    return nested
