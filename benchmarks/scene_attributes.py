"""Image-level attributes of a synthetic scene: what pre-training may know of it.

They follow from the style, the poses and the places of the people alone. None is a class of a label system or says
that one is present; no pixel, no garment and no label map is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from people_generator import STYLES
from people_generator.figure import SIDES, Figure


@dataclass(frozen=True)
class Scene:
    """What the attributes may look at.

    Attributes:
        style: a key of ``STYLES``.
        people: the farthest first; at least one.
        size: (height, width) of the picture in pixels.
    """

    style: str
    people: tuple[Figure, ...]
    size: tuple[int, int]

    @property
    def nearest(self) -> Figure:
        """The person whom nobody else hides."""
        return self.people[-1]


@dataclass(frozen=True)
class Attribute:
    """A number that describes a scene, and how it is cut into classes.

    Attributes:
        measure: the number.
        classes: as many parts of equal frequency; 0: ``bounds`` cut instead.
        signed: the mirrored scene has the number with the other sign; else it has the same number.
        bounds: where to cut, ascending; only with ``classes`` 0.
    """

    measure: Callable[[Scene], float]
    classes: int = 0
    signed: bool = False
    bounds: tuple[float, ...] = ()

    def cut(self, values: np.ndarray) -> np.ndarray:
        """Ascending bounds between the classes, from the values (N,) of the training scenes."""
        if self.bounds:
            return np.array(self.bounds)
        both = np.concatenate((values, -values)) if self.signed else values
        return np.quantile(both, np.arange(1, self.classes) / self.classes)


def _middle(scene: Scene) -> np.ndarray:
    """Mean of the nearest person's joints, as a share of the picture; (0, 0) is the picture's middle."""
    return np.mean(list(scene.nearest.joints.values()), axis=0) / scene.size[::-1] - 0.5


def _pair(figure: Figure, joint: str) -> tuple[np.ndarray, np.ndarray]:
    """A joint of both sides, in heights; the one on the left of the picture first."""
    pair = sorted((figure.joints[f"{side}_{joint}"] / figure.height for side in SIDES), key=lambda at: at[0])
    return pair[0], pair[1]


def _uneven(scene: Scene) -> float:
    """How much lower the hand on the left of the picture is than the other, in heights."""
    left, right = _pair(scene.nearest, "wrist")
    return float(left[1] - right[1])


def _stride(scene: Scene) -> float:
    """Distance of the ankles across the picture, in heights."""
    left, right = _pair(scene.nearest, "ankle")
    return float(right[0] - left[0])


def _standing(scene: Scene) -> float:
    """How far the lower ankle is below the pelvis, in heights: small for those who sit or crouch."""
    ankles = _pair(scene.nearest, "ankle")
    return float(max(at[1] for at in ankles)) - scene.nearest.joints["pelvis"][1] / scene.nearest.height


def _tilt(scene: Scene) -> float:
    """How far the neck is to the right of the pelvis, in heights."""
    figure = scene.nearest
    return float(figure.joints["neck"][0] - figure.joints["pelvis"][0]) / figure.height


# "nearest" is left out of the names: all but the first three are about the nearest person.
ATTRIBUTES = {
    "style": Attribute(lambda scene: list(STYLES).index(scene.style), bounds=(0.5, 1.5)),
    "people": Attribute(lambda scene: len(scene.people), bounds=(1.5, 2.5)),
    "height": Attribute(lambda scene: max(person.height for person in scene.people) / scene.size[0], 4),
    "horizontal place": Attribute(lambda scene: float(_middle(scene)[0]), 3, signed=True),
    "vertical place": Attribute(lambda scene: float(_middle(scene)[1]), 3),
    "turn": Attribute(lambda scene: float(scene.nearest.chest_turn[0, 2]), 3, signed=True),
    "tilt": Attribute(_tilt, 3, signed=True),
    "uneven hands": Attribute(_uneven, 3, signed=True),
    "stride": Attribute(_stride, 3),
    "standing": Attribute(_standing, 3),
}


def measure(scene: Scene) -> np.ndarray:
    """The numbers (A,) float64 of all attributes, in the order of ``ATTRIBUTES``."""
    return np.array([attribute.measure(scene) for attribute in ATTRIBUTES.values()])


def mirrored(values: np.ndarray) -> np.ndarray:
    """What `measure` would say of the mirrored scenes; values (..., A)."""
    return values * np.array([-1.0 if attribute.signed else 1.0 for attribute in ATTRIBUTES.values()])


def to_classes(values: np.ndarray, bounds: Sequence[np.ndarray]) -> np.ndarray:
    """Numbers (N, A) to classes (N, A) int64, by the bounds of each attribute."""
    columns = [np.searchsorted(cut, column, side="right") for cut, column in zip(bounds, values.T, strict=True)]
    return np.stack(columns, axis=1).astype(np.int64)
