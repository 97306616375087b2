"""`BodyLayout`: do the body parts of many label maps lie where a body has them?

Ids in another order and labels that were mirrored without exchanging left and right are well-formed files. Only what
they say gives them away, and only on average: heads lie above torsos, and people are mostly seen from the front, so
that their own left is at the viewer's right. What a class is comes from its name (`label_domains/body_order.json`).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

import numpy as np

from sst_d2.label_domains import LabelDomain

_MIN_IMAGES = {"order": 10, "left_right": 20}
# Of sets without any preference, one in 45 has its mean that many standard errors below zero; of right ones, none.
_STANDARD_ERRORS = 2.0
_MAX_NAMED = 3


@dataclass
class Tally:
    """Scores of many images: 1 where all is as expected, -1 where all is the other way round."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    against: int = 0

    def add(self, score: float) -> None:
        """Count the score of one image, in [-1, 1]."""
        self.merge(Tally(1, score, score * score, int(score < 0)))

    def merge(self, other: Tally) -> None:
        """Count what another tally has counted."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.against += other.against

    def is_negative(self, min_images: int) -> bool:
        """Whether the mean lies below zero by more than chance explains."""
        if self.count < max(2, min_images):
            return False
        mean = self.total / self.count
        variance = max(0.0, self.squares - self.count * mean * mean) / (self.count - 1)
        return mean + _STANDARD_ERRORS * math.sqrt(variance / self.count) < 0


class BodyLayout:
    """Counts, image by image, whether parts lie in a body's order and left and right as in people seen from the front.

    Args:
        domain: names the classes; where fewer than two levels or no sides are known by name, nothing is judged.
    """

    def __init__(self, domain: LabelDomain) -> None:
        levels = {level: [] for level in _words()["levels"]}
        for identifier, name in enumerate(domain.classes):
            level = _level_of(name)
            if level is not None:
                levels[level].append(identifier)
        self._domain = domain
        self._levels = {level: np.asarray(ids) for level, ids in levels.items() if ids}
        self._sides = [
            (domain.index(left), domain.index(right)) for left, right in map(_left_first, domain.flip_pairs) if left
        ]
        self.order = {pair: Tally() for pair in combinations(self._levels, 2)}
        self.left_right = Tally()

    def add(self, pixels: np.ndarray, centres: np.ndarray) -> None:
        """Count one label map.

        Args:
            pixels: (256,) pixels of each id.
            centres: (256, 2) mean row and column of each id; NaN where it does not occur.
        """
        heights = {level: self._height(pixels, centres, ids) for level, ids in self._levels.items()}
        for (upper, lower), tally in self.order.items():
            if heights[upper] is not None and heights[lower] is not None:
                tally.add(np.sign(heights[lower] - heights[upper]))
        ways = [np.sign(centres[left, 1] - centres[right, 1]) for left, right in self._sides]
        ways = [way for way in ways if not np.isnan(way)]
        if ways:
            self.left_right.add(float(np.mean(ways)))

    def merge(self, other: BodyLayout) -> None:
        """Count what another layout of the same domain has counted."""
        for pair, tally in self.order.items():
            tally.merge(other.order[pair])
        self.left_right.merge(other.left_right)

    def doubts(self) -> list[tuple[str, str]]:
        """(kind, sentence) of each thing that looks wrong; kinds "order" and "left_right". Empty: nothing does."""
        doubts = []
        wrong = [(pair, tally) for pair, tally in self.order.items() if tally.is_negative(_MIN_IMAGES["order"])]
        if wrong:
            wrong.sort(key=lambda case: case[1].total / case[1].count)
            cases = [
                f"{self._named(upper)} below {self._named(lower)} in {tally.against} of {tally.count} images"
                for (upper, lower), tally in wrong[:_MAX_NAMED]
            ]
            doubts.append(
                (
                    "order",
                    f"{'; '.join(cases)}. The ids may follow another order of classes: look at some label maps, and "
                    "give the card a `remap` table if so",
                )
            )
        sides = self.left_right
        if sides.is_negative(_MIN_IMAGES["left_right"]):
            doubts.append(
                (
                    "left_right",
                    f"the left parts lie to the left of the right ones in {sides.against} of {sides.count} images "
                    f"(mean score {sides.total / sides.count:+.2f}; people seen from the front give +1). Left and "
                    "right are the person's own: the labels may be mirrored without exchanging them, or name the "
                    "viewer's sides",
                )
            )
        return doubts

    def _height(self, pixels: np.ndarray, centres: np.ndarray, ids: np.ndarray) -> float | None:
        """Mean row of all pixels of some ids; None where there are none."""
        ids = ids[~np.isnan(centres[ids, 0])]
        return float(np.average(centres[ids, 0], weights=pixels[ids])) if ids.size else None

    def _named(self, level: str) -> str:
        names = [self._domain.classes[i] for i in self._levels[level]]
        return f"{level} ({', '.join(names[:_MAX_NAMED])}{' …' if len(names) > _MAX_NAMED else ''})"


@cache
def _words() -> dict[str, Any]:
    return json.loads(resources.files("sst_d2.label_domains").joinpath("body_order.json").read_text(encoding="utf-8"))


def _level_of(name: str) -> str | None:
    """The level of a class on a body, by its name without left and right."""
    sides = {*_words()["left"], *_words()["right"]}
    bare = "-".join(word for word in _split(name) if word not in sides)
    for level, words in _words()["levels"].items():
        if bare in words or bare.removesuffix("s") in words:
            return level
    return None


def _left_first(pair: tuple[str, str]) -> tuple[str, str] | tuple[None, None]:
    """A flip pair as (left, right); of names that do not say it, (None, None)."""
    for left, right in (pair, pair[::-1]):
        if set(_words()["left"]) & set(_split(left)) and set(_words()["right"]) & set(_split(right)):
            return left, right
    return None, None


def _split(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z]+", name.lower()) if word]
