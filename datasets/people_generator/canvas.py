"""The sheet that everything is painted on: a colour image and, exactly under it, the map of atoms.

A shape is a polygon with a material. It is anti-aliased in the image; in the atom map it owns the pixels of which it
covers at least half, so a label always names what is seen there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

OVERSAMPLING = 4


@dataclass(frozen=True)
class Material:
    """How a surface looks. Colours are RGB in 0-255; lengths are in units of the wearer's height."""

    color: tuple[float, float, float]
    second: tuple[float, float, float] = (0.0, 0.0, 0.0)
    pattern: str = "plain"  # plain, stripes, checks, dots, noise
    period: float = 0.05
    angle: float = 0.0  # of the pattern against the limb, radians
    folds: float = 0.06  # depth of the slow brightness changes, 0-1
    roundness: float = 0.38  # how much darker the rim of a limb is than its middle, 0-1


@dataclass(frozen=True)
class Frame:
    """Where a shape's own coordinates lie: along its axis and across it, all in pixels.

    ``across`` is the shape's half width (for shading), ``unit`` the wearer's height (for patterns).
    """

    origin: tuple[float, float]
    axis: tuple[float, float]
    across: float
    unit: float


class Canvas:
    """Image, atom map, and the light that falls on both.

    Attributes:
        image: (3, H, W) float32 RGB, 0-255 (may leave that range slightly); planes are faster to paint than pixels.
        atoms: (H, W) uint8, indices into ``atoms.ATOMS``.
    """

    def __init__(self, image: np.ndarray, light: float, relief: np.ndarray, grain: np.ndarray):
        """Start from a background.

        Args:
            image: (3, H, W) float32 RGB, 0-255; painted on in place.
            light: direction that the light comes from, in radians (0 = right, pi/2 = below).
            relief: (H, W) float32 slow random field of about unit deviation: folds.
            grain: (H, W) float32 fast random field of about unit deviation: texture "noise".
        """
        self.image = image
        self.atoms = np.zeros(image.shape[1:], np.uint8)
        self._light = (float(np.cos(light)), float(np.sin(light)))
        self._relief, self._grain = relief, grain
        self._columns = np.arange(image.shape[2], dtype=np.float32) + 0.5
        self._rows = np.arange(image.shape[1], dtype=np.float32) + 0.5

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.atoms.shape

    def paint(
        self,
        polygon: np.ndarray,
        material: Material,
        frame: Frame,
        atom: int | None = None,
        within: np.ndarray | None = None,
        opacity: float = 1.0,
    ) -> None:
        """Paint one filled polygon.

        Args:
            polygon: (N, 2) float, x and y in pixels; may reach beyond the image.
            material: its look.
            frame: the coordinates for shading and pattern.
            atom: index written to the atom map; None leaves the map as it is (a mere decoration).
            within: (256,) bool, atoms that may be painted over; None means all.
            opacity: 0-1; a shape that writes an atom should be opaque.
        """
        cover = self._coverage(polygon)
        if cover is None:
            return
        alpha, rows, columns = cover
        atoms = self.atoms[rows, columns]
        if within is not None:
            alpha *= within[atoms]
        if atom is not None:
            atoms[alpha >= 0.5] = atom
        if opacity != 1.0:
            alpha *= opacity
        color = self._shaded(material, frame, rows, columns)
        patch = self.image[:, rows, columns]
        color -= patch
        color *= alpha
        patch += color

    def shade(self, polygon: np.ndarray, factor: float, within: np.ndarray | None = None) -> None:
        """Darken or lighten what is already there (shadows, seams, lips); the atom map stays.

        Args:
            polygon: (N, 2) float, pixels.
            factor: brightness is multiplied by this.
            within: as in ``paint``.
        """
        cover = self._coverage(polygon)
        if cover is None:
            return
        alpha, rows, columns = cover
        if within is not None:
            alpha *= within[self.atoms[rows, columns]]
        alpha *= factor - 1.0
        alpha += 1.0
        self.image[:, rows, columns] *= alpha

    def _coverage(self, polygon: np.ndarray) -> tuple[np.ndarray, slice, slice] | None:
        """Covered fraction of each pixel in the polygon's box (float32, 0-1), and the box; None where it is outside."""
        height, width = self.atoms.shape
        (x0, y0), (x1, y1) = polygon.min(axis=0).tolist(), polygon.max(axis=0).tolist()
        left, top, right, bottom = (
            max(int(x0 - 1), 0),
            max(int(y0 - 1), 0),
            min(int(x1 + 2), width),
            min(int(y1 + 2), height),
        )
        if right <= left or bottom <= top:
            return None
        k = OVERSAMPLING
        sheet = Image.new("L", ((right - left) * k, (bottom - top) * k))
        points = (polygon - (left, top)) * k - 0.5
        ImageDraw.Draw(sheet).polygon(points.ravel().tolist(), fill=255)
        alpha = np.frombuffer(sheet.reduce(k).tobytes(), np.uint8).reshape(bottom - top, right - left)
        alpha = alpha * np.float32(1 / 255)
        return alpha, slice(top, bottom), slice(left, right)

    def _shaded(self, material: Material, frame: Frame, rows: slice, columns: slice) -> np.ndarray:
        """Colours (3, h, w) float32 of a material in a box of the image."""
        # Plain floats: a NumPy scalar would turn the whole computation into float64.
        ax, ay, ox, oy = (float(value) for value in (*frame.axis, *frame.origin))
        dx, dy = self._columns[columns] - ox, self._rows[rows] - oy
        across = 1.0 / max(float(frame.across), 0.5)
        u = (dx * (-ay * across))[None, :] + (dy * (ax * across))[:, None]
        np.clip(u, -1.25, 1.25, out=u)
        tilt = 0.5 * material.roundness * (-ay * self._light[0] + ax * self._light[1])
        brightness = (tilt - material.roundness * u) * u
        brightness += self._relief[rows, columns] * material.folds
        brightness += 1.0 + 0.3 * material.roundness
        color = np.asarray(material.color, np.float32)[:, None, None]
        if material.pattern == "plain":
            return brightness * color
        mix = self._pattern(material, frame, rows, columns, dx, dy)
        change = np.asarray(material.second, np.float32)[:, None, None] - color
        change = mix * change
        change += color
        change *= brightness
        return change

    def _pattern(
        self, material: Material, frame: Frame, rows: slice, columns: slice, dx: np.ndarray, dy: np.ndarray
    ) -> np.ndarray:
        """Weight (h, w) in 0-1 of the material's second colour."""
        if material.pattern == "noise":
            return np.clip(self._grain[rows, columns] * 0.35 + 0.35, 0, 1)
        ax, ay = (float(value) for value in frame.axis)
        c, s = math.cos(material.angle), math.sin(material.angle)
        scale = 1.0 / max(material.period * float(frame.unit), 2.5)
        # The pattern turns with the limb, then by its own angle.
        first = (dx * ((ax * c - ay * s) * scale))[None, :] + (dy * ((ay * c + ax * s) * scale))[:, None]
        wave = _triangle_wave(first)
        if material.pattern == "stripes":
            return np.clip(wave * 4 + 0.5, 0, 1)
        second = (dx * ((-ay * c - ax * s) * scale))[None, :] + (dy * ((ax * c - ay * s) * scale))[:, None]
        other = _triangle_wave(second)
        if material.pattern == "checks":
            return 0.5 * (np.clip(wave * 4 + 0.5, 0, 1) + np.clip(other * 4 + 0.5, 0, 1))
        return np.clip((wave + other) * 4 - 1.6, 0, 1)  # dots


def _triangle_wave(phase: np.ndarray) -> np.ndarray:
    """Wave of period 1 and range -1 to 1."""
    phase -= np.floor(phase)
    phase -= 0.5
    np.abs(phase, out=phase)
    phase *= 4
    phase -= 1
    return phase
