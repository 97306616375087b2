"""Class vectors from a text file of word vectors (GloVe, fastText): a class is the sum of the vectors of its words."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from sst_d2.errors import LabelDomainError
from sst_d2.files import expand_path
from sst_d2.label_domains.class_words import class_words
from sst_d2.label_domains.domain import LabelDomain


def read_word_vectors(path: str | os.PathLike, words: Iterable[str]) -> dict[str, np.ndarray]:
    """Read the vectors of some words; the file is streamed, and no further than needed.

    A line holds a word and its numbers, separated by spaces or tabs; fastText's first line (two whole numbers) is
    skipped. Case is folded: a word in small letters goes before its other spellings, of which the first counts.

    Args:
        path: the text file, unpacked; ``~`` and ``${VAR}`` work.
        words: the words wanted, case folded.

    Returns:
        Word -> (D,) float64, of the wanted words that the file has.

    Raises:
        LabelDomainError: the file cannot be read, is no such text, or a wanted word's numbers are not D finite numbers.
    """
    path = expand_path(path, error=LabelDomainError)
    try:
        # Strange bytes in words that nobody asks for are no reason to stop.
        with open(path, encoding="utf-8", errors="replace", newline="\n") as stream:
            return _collect(stream, path, set(words))
    except OSError as reason:
        raise LabelDomainError(f"{path}: word vectors cannot be read ({reason.strerror})") from reason


def class_vectors(domains: Sequence[LabelDomain], path: str | os.PathLike) -> list[np.ndarray]:
    """One vector per class: the sum of its words' vectors, as the published matrices were made.

    Args:
        domains: label domains of K_1, K_2 … classes.
        path: as for `read_word_vectors`.

    Returns:
        For each domain (K, D) float64.

    Raises:
        LabelDomainError: as `read_word_vectors`, or a word of a class is not in the file, or a class's vector is zero.
    """
    known = read_word_vectors(
        path, {word for domain in domains for name in domain.classes for word in class_words(name)}
    )
    return [np.stack([_class_vector(domain, name, known, path) for name in domain.classes]) for domain in domains]


def _class_vector(
    domain: LabelDomain, name: str, known: Mapping[str, np.ndarray], path: str | os.PathLike
) -> np.ndarray:
    place = f"label domain '{domain.name}' ({domain.source}): class '{name}'"
    words = class_words(name)
    missing = next((word for word in words if word not in known), None if words else name)
    if missing is not None:
        raise LabelDomainError(
            f"{place}: the word vectors of {path} have no word '{missing}'. Add it there, take another file, give a "
            "`similarity` in the domain's file, or name no word vectors: the body lexicon is taken then"
        )
    vector = np.sum([known[word] for word in words], axis=0)
    if not vector.any():
        raise LabelDomainError(f"{place}: its word vectors in {path} add up to zero; take another file")
    return vector


def _collect(lines: Iterable[str], path: Path, words: set[str]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    exact: set[str] = set()
    dimension = None
    for number, line in enumerate(lines, start=1):
        if len(exact) == len(words) and dimension:
            break
        word, _, numbers = line.rstrip().replace("\t", " ").partition(" ")
        if number == 1 and word.isdigit() and numbers.strip().isdigit():
            continue
        folded = word.casefold()
        if dimension is not None and (folded not in words or folded in exact or (folded in found and word != folded)):
            continue
        vector = _vector(numbers, f"{path}: line {number}, {word[:20]!a}")
        dimension = dimension or len(vector)
        if len(vector) != dimension:
            raise LabelDomainError(
                f"{path}: line {number}, {word[:20]!a}: {len(vector)} numbers, where the lines before have {dimension}"
            )
        if folded in words:
            found[folded] = vector
            if word == folded:
                exact.add(word)
    if dimension is None:
        raise LabelDomainError(f"{path}: holds no word vectors; a word and its numbers are expected on every line")
    return found


def _vector(numbers: str, place: str) -> np.ndarray:
    try:
        vector = np.array(numbers.split(), dtype=np.float64)
    except ValueError:
        vector = np.empty(0)
    if not vector.size or not np.isfinite(vector).all():
        raise LabelDomainError(
            f"{place}: a word and its numbers are expected on every line; unpack archives first, and take a "
            "text file (.txt, .vec), not a binary one"
        )
    return vector
