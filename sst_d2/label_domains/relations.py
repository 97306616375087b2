"""Relations between classes, as matrices: which classes of one domain touch each other on the body (M_intra of Eq. 6),
and how much the classes of two domains resemble each other (M_static of Eq. 8)."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains.body_lexicon import body_lexicon
from sst_d2.label_domains.class_words import class_words, word_forms
from sst_d2.label_domains.domain import LabelDomain
from sst_d2.label_domains.word_vectors import class_vectors

_PUBLISHED = Path(__file__).parent / "similarity" / "glove_published.json"


def intra_adjacency(domain: LabelDomain) -> np.ndarray:
    """M_intra of Eq. (6): the binary, symmetric matrix A ∪ Aᵀ ∪ I.

    The diagonal belongs to it: without it no class would receive its own pooled feature.

    Returns:
        (K, K) float32 of zeros and ones. All ones, with a line in the log, where the domain gives no adjacency.
    """
    if domain.adjacency is None:
        logging.getLogger(__name__).info(
            "label domain '%s' (%s) gives no adjacency: every class is taken to touch every class",
            domain.name,
            domain.source,
        )
        return np.ones((domain.num_classes, domain.num_classes), dtype=np.float32)
    matrix = np.eye(domain.num_classes, dtype=np.float32)
    for first, second in domain.adjacency:
        i, j = domain.index(first), domain.index(second)
        matrix[i, j] = matrix[j, i] = 1.0
    return matrix


def cross_similarity(a: LabelDomain, b: LabelDomain, vectors: str | os.PathLike | None = None) -> np.ndarray:
    """M_static of Eq. (8) for the direction a → b: how much each class of b resembles each class of a.

    The whole matrix comes from one source, the first of these that there is:

    1. `similarity` in the file of one of the two domains, as it stands there;
    2. the cosines of GloVe vectors that Graphonomy published, if both lists of classes are those of a published matrix
       (PASCAL-Person-Part, CIHP, ATR) and neither record has a `covers` of its own. They go before ``vectors``: a file
       that is named for the sake of another domain leaves the three pairs as they were published;
    3. cosines of word vectors of the file ``vectors``, a class being the sum of its words; negative ones count as 0;
    4. cosines of what the classes cover of the body: `covers` of the domain's file, else the body lexicon.

    Args:
        a: the domain that is transferred from, K_a classes.
        b: the domain that is transferred to, K_b classes.
        vectors: text file of word vectors (GloVe, fastText); None: go without.

    Returns:
        (K_b, K_a) float64 in [0, 1]. ``cross_similarity(b, a, vectors)`` is its transpose, exactly.

    Raises:
        LabelDomainError: a class has a word that the source does not know, the file of vectors cannot be used, or a
            `similarity` does not fit the other domain.
    """
    given = _given(a, b)
    if given is not None:
        return given
    published = _published(a, b)
    if published is not None:
        return published
    if vectors is None:
        return _cosines(_coverage(b), _coverage(a))
    of_a, of_b = class_vectors((a, b), vectors)
    return _cosines(of_b, of_a)


def similarity_source(a: LabelDomain, b: LabelDomain, vectors: str | os.PathLike | None = None) -> str:
    """Which source `cross_similarity` takes for these arguments, in words for a log. Reads no vectors."""
    givers = [own for own, other in ((a, b), (b, a)) if _given_rows(own, other) is not None]
    if givers:
        return f"`similarity` of {' and '.join(giver.source for giver in givers)}"
    if _published(a, b) is not None:
        return "published GloVe cosines (Graphonomy)"
    if vectors is not None:
        return f"word vectors of {os.fspath(vectors)}"
    own = [domain.source for domain in (a, b) if domain.covers]
    return "body lexicon" + (f", with `covers` of {' and '.join(own)}" if own else "")


def control_similarity(a: LabelDomain, b: LabelDomain, kind: str, seed: int = 0) -> np.ndarray:
    """What may stand in the place of `cross_similarity`, to see by experiment what its values are worth.

    Args:
        a, b: as `cross_similarity`.
        kind: "lexicon": source 4 of `cross_similarity`, whatever else there is; "identity": 1 where two classes have
            the same name, but for case, signs and the plural, else 0; "random": even between 0 and 1.
        seed: of "random"; the names of the two domains count too, in any order.

    Returns:
        (K_b, K_a) float64 in [0, 1]; of swapped arguments the transpose, exactly.

    Raises:
        LabelDomainError: with "lexicon", a class has a word that it does not know.
    """
    if kind == "lexicon":
        return _cosines(_coverage(b), _coverage(a))
    if kind == "identity":
        of_a, of_b = ([set(word_forms("".join(class_words(name)))) for name in own.classes] for own in (a, b))
        return np.array([[float(not one.isdisjoint(other)) for other in of_a] for one in of_b])
    if kind == "random":
        first, second = sorted((a, b), key=lambda domain: domain.name)
        text = json.dumps([seed, first.name, second.name])
        generator = np.random.default_rng(list(hashlib.sha256(text.encode()).digest()))
        matrix = generator.random((second.num_classes, first.num_classes))
        return matrix if first is a else np.ascontiguousarray(matrix.T)
    raise ValueError(f"kind {kind!r}")


def _given(a: LabelDomain, b: LabelDomain) -> np.ndarray | None:
    """(K_b, K_a): what the files of the domains say themselves; None: nothing."""
    of_a, of_b = _given_rows(a, b), _given_rows(b, a)
    if of_a is not None and of_b is not None and not np.array_equal(of_a.T, of_b):
        raise LabelDomainError(
            f"field 'similarity': {a.source} and {b.source} both compare '{a.name}' with '{b.name}', and differ; "
            "leave it in one of the two files"
        )
    if of_b is not None:
        return of_b
    return None if of_a is None else np.ascontiguousarray(of_a.T)


def _given_rows(own: LabelDomain, other: LabelDomain) -> np.ndarray | None:
    """(K of own, K of other) from the field `similarity` of ``own``; None: it does not name the other domain."""
    entries = [entry[1:] for entry in own.similarity if entry[0] == other.name]
    if not entries:
        return None
    unknown = sorted({name for _, name, _ in entries} - set(other.classes))
    missing = [name for name in other.classes if name not in {entry[1] for entry in entries}]
    if unknown or missing:
        problem = f"unknown: {', '.join(unknown)}" if unknown else f"in no row, not even as 0: {', '.join(missing)}"
        raise LabelDomainError(
            f"{own.source}: field 'similarity', classes of '{other.name}' ({other.source}): {problem}; "
            f"its classes: {', '.join(other.classes)}"
        )
    matrix = np.zeros((own.num_classes, other.num_classes))
    for name, other_name, value in entries:
        matrix[own.index(name), other.index(other_name)] = value
    return matrix


@lru_cache(maxsize=1)
def _published_tables() -> dict[str, Any]:
    return json.loads(_PUBLISHED.read_text(encoding="utf-8"))


def _published(a: LabelDomain, b: LabelDomain) -> np.ndarray | None:
    """(K_b, K_a): the published values for two lists of classes; None: there are none."""
    if a.covers or b.covers:
        return None
    tables = _published_tables()
    for matrix in tables["matrices"]:
        rows, columns = (tuple(tables["classes"][matrix[axis]]) for axis in ("rows", "columns"))
        if (b.classes, a.classes) == (rows, columns):
            return np.array(matrix["values"], dtype=np.float64)
        if (a.classes, b.classes) == (rows, columns):
            return np.array(matrix["values"], dtype=np.float64).T.copy()
    return None


def _coverage(domain: LabelDomain) -> np.ndarray:
    """(K, number of atoms): what each class covers, by the domain's own `covers` or by the body lexicon."""
    lexicon = body_lexicon()
    vectors = np.zeros((domain.num_classes, len(lexicon.atoms)))
    for row, name in zip(vectors, domain.classes, strict=True):
        own = [(atom, weight) for class_name, atom, weight in domain.covers if class_name == name]
        try:
            coverage = lexicon.expand(own) if own else lexicon.coverage(name)
        except KeyError as reason:
            word = reason.args[0]
            similar = lexicon.similar_words(word)
            raise LabelDomainError(
                f"label domain '{domain.name}' ({domain.source}): class '{name}': the body lexicon has no word '{word}'"
                f"{' (similar: ' + ', '.join(similar) + ')' if similar else ''}. Say in the domain's file what the "
                f"class covers, for example\n  covers: {{{json.dumps(name, ensure_ascii=False)}: "
                f"{{hips: 1, left-thigh: 0.5, cloth: 0.5}}}}\natoms: {lexicon.names_in_words}"
            ) from reason
        for atom, weight in coverage.items():
            row[lexicon.atoms.index(atom)] = weight
    return vectors


def _cosines(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Cosines of all pairs of rows, (M, D) and (N, D) -> (M, N), negative ones as 0.

    No matrix product: sums in one fixed order make the result of swapped arguments the transpose to the last bit, and
    equal vectors exactly 1.
    """
    products = np.stack([(columns * row).sum(axis=1) for row in rows])
    squares = np.multiply.outer((rows * rows).sum(axis=1), (columns * columns).sum(axis=1))
    return np.clip(products / np.sqrt(squares), 0.0, 1.0)
