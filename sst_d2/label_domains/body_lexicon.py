"""The body lexicon: which atomic regions of the body a part or a garment covers, by its name.

A class is a mapping from atoms (left-upper-arm, belly, cloth …) to weights in (0, 1]. A paired atom without a side,
"hand", stands for both sides. The data, and how to edit them: similarity/body_lexicon.yaml.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any

from sst_d2.errors import LabelDomainError
from sst_d2.files import read_yaml_mapping
from sst_d2.label_domains.class_words import class_words, word_forms

_FILE = Path(__file__).parent / "similarity" / "body_lexicon.yaml"
_SIDES = ("left", "right")


class BodyLexicon:
    """Atoms of the body, and what each word covers.

    Args:
        atoms: names under ``paired`` (each is two atoms, ``left-…`` and ``right-…``), ``single`` and ``kind`` (what is
            seen there, or what the thing is).
        modifiers: words that change what the rest of a name covers, as the file explains.
        words: word -> {atom: weight}, or the name of a word that covers the same.
    """

    def __init__(self, atoms: Mapping[str, list[str]], modifiers: Mapping[str, Any], words: Mapping[str, Any]) -> None:
        self._paired = tuple(atoms["paired"])
        self._regions = {*atoms["single"], *(f"{side}-{name}" for side in _SIDES for name in self._paired)}
        sided = [f"{side}-{name}" for name in self._paired for side in _SIDES]
        #: Names of all atoms, in the order of the vectors.
        self.atoms: tuple[str, ...] = (*atoms["single"], *sided, *atoms["kind"])
        #: Names that a mapping to weights may use: the atoms, and the paired ones without a side.
        self.names: tuple[str, ...] = (*self.atoms, *self._paired)
        #: The same for a message.
        self.names_in_words = (
            f"{', '.join([*atoms['single'], *self._paired, *atoms['kind']])}; "
            f"one side of a pair: left-{self._paired[0]}, right-{self._paired[0]} …"
        )
        self._modifiers = modifiers
        self.words = dict(words)
        self._index = {word.replace("-", ""): word for word in self.words}

    def problem_with(self, atom: Any, weight: Any) -> str | None:
        """What is wrong with one entry of a coverage, in words; None: nothing."""
        if atom not in self.names:
            similar = get_close_matches(str(atom), self.names, n=3)
            hint = f" (similar: {', '.join(similar)})" if similar else ""
            return f"unknown atom {atom!r}{hint}; atoms: {self.names_in_words}"
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight <= 1:
            return f"weight {weight!r} of atom '{atom}'; a number above 0, at most 1, is expected"
        return None

    def expand(self, entries: Iterable[tuple[str, float]]) -> dict[str, float]:
        """Atoms with weights, paired names replaced by both sides; of an atom that stands twice the larger weight."""
        coverage: dict[str, float] = {}
        for name, weight in entries:
            for atom in [f"{side}-{name}" for side in _SIDES] if name in self._paired else [name]:
                coverage[atom] = max(coverage.get(atom, 0.0), float(weight))
        return coverage

    def coverage(self, class_name: str) -> dict[str, float]:
        """What a class covers, by its name.

        The whole name counts first, then its words: sides, halves of the body and kinds change what the rest covers;
        of several parts or garments each atom takes the largest weight.

        Args:
            class_name: as `class_words` splits it; singular or plural.

        Returns:
            Atom -> weight in (0, 1].

        Raises:
            KeyError: a word is not known; its one argument is that word.
        """
        words = class_words(class_name)
        if not words:
            raise KeyError(class_name)
        return self._cover(words)

    def similar_words(self, word: str) -> list[str]:
        """At most three known words that are spelt like ``word``."""
        return get_close_matches(word, self.words, n=3)

    def _cover(self, words: tuple[str, ...]) -> dict[str, float]:
        entry = self._entry(words)
        if entry is not None:
            return entry
        if len(words) == 1:
            raise KeyError(words[0])
        for change in (self._without_side, self._without_silent, self._without_kind):
            changed = change(words)
            if changed is not None:
                return changed
        for count in range(len(words) - 1, 1, -1):
            entry = self._entry(words[:count])
            if entry is not None:
                return _union(entry, self._cover(words[count:]))
        changed = self._without_half(words)
        return _union(self._cover(words[:1]), self._cover(words[1:])) if changed is None else changed

    def _entry(self, words: tuple[str, ...]) -> dict[str, float] | None:
        """The entry of the words as one: "t-shirt", "tshirt", their plurals and singulars."""
        for form in word_forms("".join(words)):
            if form in self._index:
                entry = self.words[self._index[form]]
                return self.expand((self.words[entry] if isinstance(entry, str) else entry).items())
        return None

    def _without_side(self, words: tuple[str, ...]) -> dict[str, float] | None:
        for side, other in (_SIDES, _SIDES[::-1]):
            for word in words:
                if word in self._modifiers[side]:
                    share = self._modifiers["other_side"]
                    rest = self._cover(_without(words, word))
                    return {
                        atom: weight * (share if atom.startswith(f"{other}-") else 1) for atom, weight in rest.items()
                    }
        return None

    def _without_silent(self, words: tuple[str, ...]) -> dict[str, float] | None:
        for word in words:
            if word in self._modifiers["silent"]:
                return self._cover(_without(words, word))
        return None

    def _without_kind(self, words: tuple[str, ...]) -> dict[str, float] | None:
        for word in words:
            kind = self._modifiers["kind"].get(word)
            if kind is not None:
                rest = self._cover(_without(words, word))
                kinds = set(self._modifiers["kind"].values())
                coverage = {atom: weight for atom, weight in rest.items() if atom not in kinds}
                return {**coverage, kind: self._modifiers["kind_weight"]}
        return None

    def _without_half(self, words: tuple[str, ...]) -> dict[str, float] | None:
        for half in ("upper", "lower"):
            for word in words:
                if word in self._modifiers[half]["words"]:
                    rest = self._cover(_without(words, word))
                    outside = self._regions - set(self.expand((atom, 1) for atom in self._modifiers[half]["keep"]))
                    kept = {atom: weight for atom, weight in rest.items() if atom not in outside}
                    # A lower lip: no half of the body, but one of the part itself, which atoms cannot tell.
                    return kept if self._regions & set(kept) else rest
        return None


@lru_cache(maxsize=1)
def body_lexicon() -> BodyLexicon:
    """The package's own lexicon, read and checked once.

    Raises:
        LabelDomainError: the file was edited and an entry names an unknown atom, word or weight.
    """
    record = read_yaml_mapping(_FILE, ("atoms", "modifiers", "words"), (), LabelDomainError)
    lexicon = BodyLexicon(record["atoms"], record["modifiers"], record["words"])
    for word, entry in lexicon.words.items():
        if isinstance(entry, str):
            problem = None if isinstance(lexicon.words.get(entry), dict) else f"{entry!r} has no weights of its own"
        else:
            problems = (lexicon.problem_with(atom, weight) for atom, weight in entry.items())
            problem = next((text for text in problems if text), None)
        if problem:
            raise LabelDomainError(f"{_FILE}: word '{word}': {problem}")
    return lexicon


def _without(words: tuple[str, ...], word: str) -> tuple[str, ...]:
    """The words without the first ``word``."""
    place = words.index(word)
    return words[:place] + words[place + 1 :]


def _union(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    return {atom: max(first.get(atom, 0.0), second.get(atom, 0.0)) for atom in {**first, **second}}
