"""Which images belong to which split: list files as they are handed round, and random splits that can be repeated."""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path

from .tree import PreparationError

_ENDINGS = (".jpg", ".jpeg", ".png", ".mat")
_SHOWN = 5


def read_ids(path: Path) -> list[str]:
    """Read a list of ids: one stem a line, or paths as in ``/images/x.jpg /labels/x.png``, whose first one counts.

    Blank lines, a missing last line end, Windows line ends and byte order marks are no matter. An id that stands
    twice counts once.

    Returns:
        The ids, in the file's order.

    Raises:
        PreparationError: the file cannot be read, is no text, is empty, or has a line that names no single image.
    """
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except OSError as reason:
        raise PreparationError(f"{path}: the list of ids cannot be read ({reason.strerror})") from reason
    except UnicodeDecodeError as reason:
        raise PreparationError(
            f"{path}: is no text file ({reason}); a list of ids, one a line, is expected"
        ) from reason
    ids = [_id_of(line, number, path) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not ids:
        raise PreparationError(f"{path}: the list of ids is empty")
    return list(dict.fromkeys(ids))


def _id_of(line: str, number: int, path: Path) -> str:
    words = line.replace("\\", "/").split()
    stems = [_stem(word) for word in words]
    named = len(set(stems)) == 1 and all("/" in word or word != stem for word, stem in zip(words, stems))
    if (len(words) > 1 and not named) or not stems[0] or stems[0] in (".", "..") or "\0" in line:
        raise PreparationError(
            f"{path}, line {number}: {line.strip()[:80]!r} names no single image; one id a line is expected, or paths "
            "of one photo and its label map"
        )
    return stems[0]


def _stem(word: str) -> str:
    name = word.rsplit("/", 1)[-1]
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in _ENDINGS else name


def refuse_overlap(splits: Mapping[str, Iterable[str]]) -> None:
    """Raise where two splits share an image.

    Raises:
        PreparationError: naming the splits and some of the ids.
    """
    for (one, its), (other, others) in combinations({name: set(ids) for name, ids in splits.items()}.items(), 2):
        shared = sorted(its & others)
        if shared:
            more = f" and {len(shared) - _SHOWN} more" if len(shared) > _SHOWN else ""
            raise PreparationError(
                f"the splits '{one}' and '{other}' share {len(shared)} images: {', '.join(shared[:_SHOWN])}{more}; "
                "an image may be in one split only: give lists that are disjoint"
            )


def random_split(ids: Iterable[str], seed: int, val: int, test: int) -> dict[str, list[str]]:
    """Split ids at random; a function of the ids and the seed alone, not of their order or of library versions.

    Args:
        ids: the ids, each once.
        seed: another one gives another split.
        val: images for validation; 0: no such split.
        test: images for testing; 0: no such split.

    Returns:
        ``train`` (what is left), ``val`` and ``test``, each sorted.

    Raises:
        PreparationError: nothing is left for training.
    """
    order = sorted(ids, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    if val + test >= len(order):
        raise PreparationError(
            f"--val {val} and --test {test} leave none of the {len(order)} images for training; ask for fewer"
        )
    parts = {"train": order[val + test :], "val": order[:val], "test": order[val : val + test]}
    return {split: sorted(names) for split, names in parts.items() if names}
