"""Outlines on a posed figure: limbs, the surface of the trunk, and what hangs around both legs.

Every function returns polygons (N, 2) float in pixels together with the frame in which they are shaded.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .canvas import Frame
from .figure import CROTCH, WAIST, Build, Figure

HIP_TOP = 0.53

# Half widths along each limb, in heights, at equal steps from its root to its end.
RADII = {
    "upper-arm": (0.029, 0.031, 0.029, 0.025),
    "lower-arm": (0.026, 0.027, 0.022, 0.017),
    "upper-leg": (0.054, 0.054, 0.046, 0.038),
    "lower-leg": (0.037, 0.041, 0.032, 0.023),
}
ENDS = {
    "upper-arm": ("shoulder", "elbow"),
    "lower-arm": ("elbow", "wrist"),
    "upper-leg": ("hip", "knee"),
    "lower-leg": ("knee", "ankle"),
}
_CAP = np.linspace(-np.pi / 2, np.pi / 2, 7)[1:-1, None]
_CAP_COS, _CAP_SIN = np.cos(_CAP), np.sin(_CAP)
_ARC = np.linspace(-np.pi / 2, np.pi / 2, 9)
_STEPS = {count: np.linspace(0, 1, count) for count in (2, 3, 4)}
_CIRCLE = np.linspace(0, 2 * np.pi, 14, endpoint=False)
CIRCLE = np.stack((np.cos(_CIRCLE), np.sin(_CIRCLE)), axis=1)


def capsule(
    start: np.ndarray, end: np.ndarray, radii: np.ndarray, caps: tuple[bool, bool] = (True, True)
) -> np.ndarray:
    """Outline (N, 2) around a straight axis.

    Args:
        start, end: (2,) pixels.
        radii: (M,) half widths in pixels at equal steps from start to end, M from 2 to 4.
        caps: whether the start and the end are round (else cut straight).
    """
    axis = end - start
    length = float(np.hypot(*axis))
    along = axis / length if length > 1e-6 else np.array((0.0, 1.0))
    normal = np.array((-along[1], along[0]))
    middle = start + _STEPS[len(radii)][:, None] * axis
    side = np.asarray(radii)[:, None] * normal
    parts = [middle + side]
    cap = _CAP_COS * along - _CAP_SIN * normal
    if caps[1]:
        parts.append(end + radii[-1] * cap)
    parts.append((middle - side)[::-1])
    if caps[0]:
        parts.append(start - radii[0] * cap)
    return np.concatenate(parts)


def axis_frame(start: np.ndarray, end: np.ndarray, across: float, unit: float) -> Frame:
    """Frame along a line in pixels; ``across`` and ``unit`` as in ``Frame``."""
    axis = end - start
    length = float(np.hypot(*axis))
    along = tuple(axis / length) if length > 1e-6 else (0.0, 1.0)
    return Frame(tuple(start), along, across, unit)


def limb(
    figure: Figure, side: str, part: str, span: tuple[float, float] = (0.0, 1.0), extra: float = 0.0, flare: float = 0.0
) -> tuple[np.ndarray, Frame]:
    """Outline of a limb or of the cloth around it.

    Args:
        figure: the person.
        side: "left" or "right", her own.
        part: a key of ``RADII``.
        span: start and end as fractions of the limb; a start of 0 and an end of 1 are round, others are cut.
        extra: cloth thickness in heights.
        flare: further thickness at the limb's end, in heights.

    Returns:
        Polygon and frame.
    """
    first, last = (figure.joints[f"{side}_{name}"] for name in ENDS[part])
    low, high = span
    start, end = first + low * (last - first), first + high * (last - first)
    steps = low + (high - low) * _STEPS[4]
    radii = np.interp(steps, _STEPS[4], RADII[part]) * figure.build.girth + extra + flare * steps
    radii = radii * figure.height
    polygon = capsule(start, end, radii, (low == 0.0, high == 1.0))
    return polygon, axis_frame(start, end, float(radii.max()), figure.height)


def hull(points: np.ndarray) -> np.ndarray:
    """Convex hull (M, 2) of points (N, 2)."""
    ordered = sorted(map(tuple, points.tolist()))
    chains = []
    for run in (ordered, ordered[::-1]):
        chain: list[tuple[float, float]] = []
        for x, y in run:
            while len(chain) > 1:
                (ax, ay), (bx, by) = chain[-2], chain[-1]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                chain.pop()
            chain.append((x, y))
        chains += chain[:-1]
    return np.array(chains)


class Trunk:
    """The surface of the trunk, an ellipse at every level.

    ``level`` is the height on an upright person (soles 0, crown 1); ``phi`` the direction around the body in radians:
    0 in front, positive to the person's left. Only what faces the camera is drawn.
    """

    _LEVELS = np.array((0.466, 0.490, 0.520, 0.575, 0.630, 0.690, 0.740, 0.785, 0.808, 0.828, 0.844))

    def __init__(self, figure: Figure):
        self.figure = figure
        b: Build = figure.build
        hip, waist, chest, shoulder = b.hip, b.waist, b.chest, b.shoulder
        between = 0.5 * (hip + waist) + 0.004
        wide = (
            0.024,
            0.8 * hip,
            hip,
            between,
            waist,
            0.93 * chest,
            chest,
            shoulder - 0.006,
            shoulder - 0.014,
            0.072,
            0.040,
        )
        self._wide = np.array(wide)
        self._deep = (
            np.array((0.04, 0.064, 0.072, 0.066, 0.057, 0.064, 0.072, 0.062, 0.052, 0.046, 0.04)) * b.girth**0.5
        )

    def _section(self, levels: np.ndarray, extra: float) -> tuple[np.ndarray, ...]:
        """Centre, sideways and forward half axes (N, 3); the angle (N,) that turns phi to the image's left-right."""
        figure = self.figure
        levels = np.asarray(levels, float)
        blend = np.clip((levels - 0.56) / 0.16, 0, 1)[:, None]
        wide = (np.interp(levels, self._LEVELS, self._wide) + extra)[:, None]
        deep = (np.interp(levels, self._LEVELS, self._deep) + extra)[:, None]
        center = figure.trunk(levels)
        sideways = wide * ((1 - blend) * figure.pelvis_turn[:, 0] + blend * figure.chest_turn[:, 0])
        forward = deep * ((1 - blend) * figure.pelvis_turn[:, 2] + blend * figure.chest_turn[:, 2])
        return center, sideways, forward, np.arctan2(forward[:, 0], sideways[:, 0])

    def _points(self, levels: np.ndarray, psi: np.ndarray, extra: float) -> np.ndarray:
        """Pixels (N, 2) at image-facing angles psi (N,): -pi/2 is the left outline, pi/2 the right one."""
        center, sideways, forward, delta = self._section(levels, extra)
        phi = (psi - delta)[:, None]
        return self.figure.project(center + sideways * np.sin(phi) + forward * np.cos(phi))

    def band(self, low: float, high: float, extra: float = 0.0) -> np.ndarray:
        """Outline (N, 2) of everything between two levels, as thick as the body plus ``extra`` (heights)."""
        steps = np.linspace(low, high, max(4, int((high - low) / 0.025)))
        count = len(steps)
        levels = np.concatenate((np.full(9, high), steps[::-1], np.full(9, low), steps))
        psi = np.concatenate((_ARC, np.full(count, np.pi / 2), _ARC[::-1], np.full(count, -np.pi / 2)))
        return self._points(levels, psi, extra)

    def strip(self, levels: np.ndarray, start: np.ndarray, end: np.ndarray, extra: float = 0.0) -> np.ndarray | None:
        """Outline (2N, 2) of the visible part of a strip on the surface, or None where it is turned away.

        Args:
            levels: (N,) from one end of the strip to the other.
            start, end: (N,) radians, the strip's two edges at each level, start <= end.
            extra: height above the skin, in heights.
        """
        levels = np.asarray(levels, float)
        _, _, _, delta = self._section(levels, extra)
        middle = 0.5 * (np.asarray(start) + end) + delta
        middle = (middle + np.pi) % (2 * np.pi) - np.pi
        half = 0.5 * (np.asarray(end) - start)
        low, high = np.clip(middle - half, -np.pi / 2, np.pi / 2), np.clip(middle + half, -np.pi / 2, np.pi / 2)
        if float((high - low).max()) < 0.05:
            return None
        return self._points(np.concatenate((levels, levels[::-1])), np.concatenate((low, high[::-1])), extra)

    def point(self, level: float, phi: float, extra: float = 0.0) -> tuple[np.ndarray, bool]:
        """Pixel (2,) on the surface, and whether it faces the camera."""
        center, sideways, forward, _ = self._section(np.array((level,)), extra)
        arm = sideways * np.sin(phi) + forward * np.cos(phi)
        return self.figure.project(center + arm)[0], bool(arm[0, 2] > 0)

    @cached_property
    def frame(self) -> Frame:
        """Along the spine, downwards."""
        figure = self.figure
        top, bottom = figure.project(figure.trunk(np.array((0.82, 0.5))))
        width = float(np.ptp(self._points(np.full(2, WAIST), np.array((-1, 1)) * np.pi / 2, 0.012)[:, 0])) * 0.62
        return axis_frame(top, bottom, width, figure.height)


def drape(
    figure: Figure,
    trunk: Trunk,
    span: tuple[float, float],
    extra: float,
    flare: float,
    sides: tuple[str, ...] = ("left", "right"),
) -> tuple[np.ndarray, Frame]:
    """Cloth that hangs around the legs.

    Args:
        figure, trunk: the person.
        span: start and end in leg lengths: 0 at the hip, 1 at the knee, 2 at the ankle.
        extra: thickness at the start, in heights.
        flare: further thickness per leg length, in heights.
        sides: the legs that it goes around; both for a skirt, one for half of an open coat.

    Returns:
        Polygon and frame.
    """
    points = []
    for reach in sorted({span[0], *(r for r in (0.5,) if span[0] < r < span[1]), span[1]}):
        if reach == 0.0 and len(sides) == 2:  # the trunk's own outline stands for both hips
            points.append(trunk.band(CROTCH + 0.02, HIP_TOP, extra))
            continue
        radius = np.interp(reach, (0, 0.5, 1, 1.5, 2), (0.046, 0.05, 0.04, 0.036, 0.03)) * figure.build.girth
        radius = (radius + extra + flare * reach) * figure.height
        for side in sides:
            along = leg_point(figure, side, reach + 0.1) - leg_point(figure, side, reach - 0.1)
            along = along / max(float(np.hypot(*along)), 1e-6)
            normal = np.array((-along[1], along[0]))
            at = leg_point(figure, side, reach)
            wide = radius
            if len(sides) == 1:  # half of an open coat hangs beside the leg, not around it
                outward = figure.joints[f"{side}_hip"] - figure.joints["pelvis"]
                at, wide = at + outward * 0.45, 0.8 * radius
            flat = 0.3 if reach == span[1] else 1.0  # a hem ends flat
            points.append(at + CIRCLE[:, :1] * wide * normal + CIRCLE[:, 1:] * (flat * wide) * along)
    polygon = hull(np.concatenate(points))
    start = figure.joints["pelvis"]
    end = np.mean([leg_point(figure, side, max(span[1], 0.5)) for side in sides], axis=0)
    return polygon, axis_frame(start, end, float(np.ptp(polygon[:, 0])) * 0.55, figure.height)


def leg_point(figure: Figure, side: str, reach: float) -> np.ndarray:
    """(2,) pixel on the leg's axis; ``reach`` 0 at the hip, 1 at the knee, 2 at the ankle."""
    hip, knee, ankle = (figure.joints[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
    return hip + reach * (knee - hip) if reach <= 1 else knee + (reach - 1) * (ankle - knee)
