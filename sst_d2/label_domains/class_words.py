"""The words of a class name: where it is split, and the forms in which a word may stand in a word list."""

from __future__ import annotations

import re
from collections.abc import Iterator

# Between small and capital ("TorsoSkin"), and before the last of several capitals ("LShoe").
_CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATORS = re.compile(r"[\W_]+")
# Endings of plurals with those of the singular; the first that gives a known word counts.
_PLURALS = (("s", ""), ("es", ""), ("ies", "y"), ("ves", "f"))


def class_words(name: str) -> tuple[str, ...]:
    """Split a class name at '-', '_', spaces, other signs and CamelCase: "TorsoSkin" -> ("torso", "skin").

    Args:
        name: the class name.

    Returns:
        The words, case folded; empty where the name has no letter and no digit.
    """
    spaced = _CAMEL_CASE.sub(" ", name)
    return tuple(word.casefold() for word in _SEPARATORS.split(spaced) if word)


def word_forms(word: str) -> Iterator[str]:
    """The word itself, then what it may be the plural of, then its own plural ("sock", "socks"; "pant", "pants")."""
    yield word
    for plural, singular in _PLURALS:
        if word.endswith(plural) and not word.endswith("ss"):
            yield word.removesuffix(plural) + singular
    yield f"{word}s"
