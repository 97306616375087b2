"""The head: skull, face, hair, hat, sunglasses.

Places on the head are given by ``h`` (1 crown, 0 eyes, -1 chin) and ``phi`` (radians around the head: 0 at the nose,
positive to the person's left).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .atoms import ATOM_ID
from .body import CIRCLE, axis_frame, capsule
from .canvas import Canvas, Frame, Material
from .figure import HEAD_HEIGHT, HEAD_WIDTH, Figure
from .wardrobe import Outfit

SKIN, HAIR, HAT, GLASSES = (ATOM_ID[f"head/{cover}"] for cover in ("skin", "hair", "hat", "sunglasses"))
_ON_SKIN = np.zeros(256, bool)
_ON_SKIN[SKIN] = True
_ON_HEAD = np.zeros(256, bool)
_ON_HEAD[[SKIN, HAIR]] = True
_HALF = np.pi / 2

# Half width of the skull and face at each height; the jaw lies further forward than the crown.
_PROFILE_H = np.array((-1.02, -0.97, -0.8, -0.55, -0.25, 0.1, 0.4, 0.65, 0.85, 0.96, 1.0))
_PROFILE_W = np.array((0.16, 0.34, 0.60, 0.80, 0.92, 1.0, 0.98, 0.86, 0.62, 0.34, 0.10))
_FORWARD = np.array((0.55, 0.53, 0.46, 0.32, 0.18, 0.05, 0.0, -0.04, -0.06, -0.06, -0.06))
_DEEP = 1.14


class Head:
    """Painter of one head."""

    def __init__(self, canvas: Canvas, figure: Figure, outfit: Outfit, rng: np.random.Generator):
        self._canvas, self._outfit, self._rng, self._figure = canvas, outfit, rng, figure
        size = figure.build.head * figure.height
        self._rx, self._ry = HEAD_WIDTH * size, HEAD_HEIGHT * size
        turn = figure.head_turn
        self._yaw = float(np.arctan2(turn[0, 2], turn[2, 2]))
        self._center = figure.joints["head"]
        up = figure.project(figure.head_center + turn[:, 1]) - self._center
        self._up = up / np.hypot(*up)
        self._right = np.array((-self._up[1], self._up[0]))
        self._delta = float(np.arctan2(_DEEP * np.sin(self._yaw), np.cos(self._yaw)))
        self._spread = float(np.hypot(np.cos(self._yaw), _DEEP * np.sin(self._yaw)))
        self.frame = Frame(tuple(self._center), tuple(-self._up), self._rx * self._spread, figure.height)

    @property
    def faces_camera(self) -> bool:
        """Whether more of the face than of the back of the head is seen."""
        return abs(self._yaw) < _HALF

    def _at(self, h: np.ndarray, psi: np.ndarray, grow: float) -> np.ndarray:
        """Pixels (N, 2) at heights h (N,) and image angles psi (N,): -pi/2 left outline, pi/2 right one."""
        half = np.interp(h, _PROFILE_H, _PROFILE_W) * grow * self._spread
        x = half * np.sin(psi) + np.interp(h, _PROFILE_H, _FORWARD) * np.sin(self._yaw)
        return (
            self._center + (self._rx * x)[:, None] * self._right + (self._ry * grow * np.asarray(h))[:, None] * self._up
        )

    def _strip(self, h: np.ndarray, start: np.ndarray, end: np.ndarray, grow: float = 1.0) -> np.ndarray | None:
        """Visible part of a strip between angles phi ``start`` and ``end`` (N,) at heights ``h`` (N,), or None."""
        h = np.asarray(h, float)
        start, end = np.broadcast_to(start, h.shape), np.broadcast_to(end, h.shape)
        middle = 0.5 * (start + end) + self._delta
        middle = (middle + np.pi) % (2 * np.pi) - np.pi
        half = 0.5 * (end - start)
        low, high = np.clip(middle - half, -_HALF, _HALF), np.clip(middle + half, -_HALF, _HALF)
        if float((high - low).max()) < 0.02:
            return None
        return np.concatenate((self._at(h, low, grow), self._at(h, high, grow)[::-1]))

    def _visible(self, phi: float) -> bool:
        return bool(np.cos(phi + self._yaw) > 0.18)

    def _spot(self, h: float, phi: float, width: float, height: float, grow: float = 1.0) -> np.ndarray:
        """Ellipse (N, 2) around a place, narrowed by perspective; half axes in units of the head's."""
        at = self._at(np.array((h,)), np.array((phi + self._delta,)), grow)[0]
        width = width * max(0.3, float(np.cos(phi + self._yaw))) * self._rx
        return at + CIRCLE[:, :1] * width * self._right + CIRCLE[:, 1:] * (height * self._ry) * self._up

    def _paint(
        self, polygon: np.ndarray | None, material: Material, atom: int | None, within: np.ndarray | None = None
    ) -> None:
        if polygon is not None:
            self._canvas.paint(polygon, material, self.frame, atom, within)

    # ---------------------------------------------------------------- behind the trunk

    def draw_hair_behind(self) -> None:
        """Paint the hair that lies behind neck and back; call before the trunk if the face is seen, after it if not."""
        style = self._outfit.hair_style
        if style in ("long", "bob"):
            self._paint(self._curtain(), self._outfit.hair, HAIR)
        if style in ("bun", "tail"):
            back = -np.sin(self._yaw)
            root = self._center + self._right * (back * 1.05 * self._rx) + self._up * (0.55 * self._ry)
            if style == "bun":
                root = root + self._up * (0.5 * self._ry)
                self._paint(root + CIRCLE * (0.55 * self._rx), self._outfit.hair, HAIR)
            else:
                end = root - self._up * (1.9 * self._ry) + self._right * (back * 0.5 * self._rx)
                radii = np.array((0.22, 0.42, 0.36, 0.1)) * self._rx
                frame = axis_frame(root, end, float(radii.max()), self._figure.height)
                self._canvas.paint(capsule(root, end, radii), self._outfit.hair, frame, HAIR)

    def _curtain(self) -> np.ndarray:
        """Outline (N, 2) of hair that hangs down to the chin (bob) or the shoulder blades (long)."""
        rng = self._rng
        drop = rng.uniform(1.0, 1.25) if self._outfit.hair_style == "bob" else rng.uniform(1.9, 3.4)
        wide = rng.uniform(1.1, 1.3)
        steps = np.linspace(0.5, -drop, 7)
        half = np.interp(steps, (-drop, -drop + 0.3, -0.8, 0.5), (0.55 * wide, 0.95 * wide, 1.05 * wide, 1.0))
        half = half * (self._rx * (0.5 * self._spread + 0.45)) * rng.uniform(0.94, 1.06, 7)
        base = self._center - self._right * (0.35 * np.sin(self._yaw) * self._rx)
        # Hair hangs down with gravity, not with the head.
        down = 0.5 * (self._figure.down - self._up)
        line = base - steps[:, None] * self._ry * np.where(steps[:, None] < 0, down, -self._up)
        side = half[:, None] * self._right
        return np.concatenate((line - side, (line + side)[::-1]))

    # ---------------------------------------------------------------- the head itself

    def draw(self) -> None:
        """Paint skull, face, hair, sunglasses and hat."""
        outfit = self._outfit
        h = np.linspace(-1.02, 1.0, 15)
        skull = np.concatenate((self._at(h, np.full(15, -_HALF), 1.0), self._at(h[::-1], np.full(15, _HALF), 1.0)))
        self._paint(skull, outfit.skin, SKIN)
        self._canvas.shade(self._spot(-1.05, 0.0, 0.7, 0.16), 0.86, _ON_SKIN)
        self._draw_nose()
        self._draw_face()
        for phi in (-1.5, 1.5):
            if np.cos(phi + self._yaw) > -0.12:
                ear = self._spot(-0.12, phi, 0.2, 0.22, 1.03)
                self._paint(ear, outfit.skin, SKIN)
                self._canvas.shade(self._spot(-0.12, phi, 0.09, 0.12, 1.03), 0.8, _ON_SKIN)
        if outfit.hair_style != "bald":
            self._draw_hair()
        if not self.faces_camera:
            self.draw_hair_behind()
        if outfit.glasses is not None:
            self._draw_glasses(outfit.glasses)
        if outfit.hat is not None:
            self._draw_hat(outfit.hat)

    def _draw_nose(self) -> None:
        """In profile the nose stands out; from the front it is a shadow."""
        if not np.cos(self._yaw) > -0.1:
            return
        top, bottom = self._at(np.array((0.02, -0.40)), np.full(2, self._delta), 1.0)
        tip = self._at(np.array((-0.30,)), np.array((self._delta,)), 1.0)[0]
        tip = tip + self._right * (0.2 * np.sin(self._yaw) * self._rx)
        if abs(np.sin(self._yaw)) > 0.5:
            self._paint(np.stack((top, tip, bottom)), self._outfit.skin, SKIN)
        wing = self._right * (0.13 * self._rx)
        self._canvas.shade(np.stack((top, tip - wing, bottom, tip + wing)), 0.88, _ON_SKIN)
        self._canvas.shade(np.stack((bottom - wing, tip, bottom + wing)), 0.8, _ON_SKIN)

    def _draw_face(self) -> None:
        outfit, rng = self._outfit, self._rng
        dark = Material(tuple(0.45 * np.array(outfit.hair.color)), folds=0.0, roundness=0.0)
        white = Material((236, 232, 226), folds=0.0, roundness=0.0)
        pupil = Material(tuple(rng.uniform(10, 80, 3)), folds=0.0, roundness=0.0)
        lips = Material(tuple(np.array(outfit.skin.color) * (0.86, 0.55, 0.55)), folds=0.0, roundness=0.1)
        if outfit.beard:
            chin = self._strip((-1.02, -0.8, -0.5, -0.38), (-1.2, -1.2, -1.2, -0.7), (1.2, 1.2, 1.2, 0.7))
            self._paint(chin, outfit.hair, None, _ON_SKIN)
        look = rng.uniform(-0.05, 0.05)
        for phi in (-0.43, 0.43):
            if not self._visible(phi):
                continue
            self._paint(self._spot(0.0, phi, 0.21, 0.085), white, None, _ON_SKIN)
            self._paint(self._spot(-0.005, phi + look, 0.10, 0.085), pupil, None, _ON_SKIN)
            self._canvas.shade(self._spot(0.11, phi, 0.24, 0.04), 0.72, _ON_SKIN)
            self._paint(self._spot(0.21, phi, 0.26, 0.045), dark, None, _ON_SKIN)
            self._canvas.shade(self._spot(-0.36, 1.35 * phi, 0.28, 0.17), 1.05, _ON_SKIN)
        if self._visible(0.0):
            width, smile = rng.uniform(0.26, 0.36), rng.uniform(-0.02, 0.05)
            mouth = self._strip(
                (-0.56 + smile, -0.56, -0.62, -0.70),
                (-width, -0.8 * width, -0.6 * width, -0.1),
                (width, 0.8 * width, 0.6 * width, 0.1),
            )
            self._paint(mouth, lips, None, _ON_SKIN)
            self._canvas.shade(self._spot(-0.62, 0.0, width, 0.018), 0.55, _ON_SKIN)

    def _draw_hair(self) -> None:
        """Two strips, from the parting round to the back, left and right of the face."""
        style, rng = self._outfit.hair_style, self._rng
        grow = 1.24 if style == "curly" else rng.uniform(1.05, 1.13)
        hairline = rng.uniform(0.42, 0.62)
        low = {"short": -0.5, "bun": -0.45, "tail": -0.5, "curly": -0.55}.get(style, -0.9)
        temple = rng.uniform(0.85, 1.05) if style in ("bob", "long", "curly") else rng.uniform(1.1, 1.25)
        nape = temple + 0.15 if style in ("bob", "long") else 2.0
        heights = np.array((low, -0.3, -0.12, 0.1, hairline - 0.06, hairline + 0.02, 0.8, 0.92, 1.0))
        edge = np.array((nape, nape, 0.5 * (nape + temple), temple, temple - 0.12, 0.0, 0.0, 0.0, 0.0))
        part, fringe = rng.uniform(-0.5, 0.5), rng.uniform(0, 0.5) * (rng.random() < 0.4)
        for sign in (1, -1):
            inner = edge.copy()
            inner[5] = max(0.0, 0.55 * temple - fringe + sign * part)
            inner[4] = max(0.0, inner[4] - fringe)
            near = np.full(9, np.pi)
            start, end = (inner, near) if sign > 0 else (-near, -inner)
            polygon = self._strip(heights, start, end, grow)
            if polygon is not None and style == "curly":
                polygon = self._center + (polygon - self._center) * rng.uniform(0.97, 1.06, (len(polygon), 1))
            self._paint(polygon, self._outfit.hair, HAIR)
        if style == "long" and self.faces_camera and rng.random() < 0.5:
            self._draw_strands()

    def _draw_strands(self) -> None:
        """Locks that fall over the shoulders in front."""
        for phi in (-1.25, 1.25):
            start = self._at(np.array((-0.1,)), np.array((np.clip(phi + self._delta, -_HALF, _HALF),)), 1.05)[0]
            end = start + self._figure.down * self._rng.uniform(1.4, 2.4) * self._ry
            radii = np.array((0.2, 0.27, 0.24, 0.06)) * self._rx
            frame = axis_frame(start, end, float(radii.max()), self._figure.height)
            self._canvas.paint(capsule(start, end, radii), self._outfit.hair, frame, HAIR)

    def _draw_glasses(self, glasses: Material) -> None:
        if not np.cos(self._yaw) > -0.35:
            return
        for sign in (1, -1):
            temple = np.sort((sign * 0.7, sign * 1.62))
            self._paint(self._strip((0.02, 0.11), *temple, 1.03), glasses, GLASSES, _ON_HEAD)
            lens = np.sort(sign * np.array(((0.2, 0.72), (0.13, 0.80), (0.13, 0.82), (0.16, 0.78))), axis=1)
            shape = self._strip((-0.24, -0.12, 0.06, 0.14), lens[:, 0], lens[:, 1], 1.03)
            self._paint(shape, glasses, GLASSES)
        self._paint(self._strip((0.03, 0.1), -0.2, 0.2, 1.03), glasses, GLASSES)

    def _draw_hat(self, hat: Material) -> None:
        kind, rng = self._outfit.hat_kind, self._rng
        base = {"cap": 0.36, "beanie": rng.uniform(0.26, 0.4), "brim": 0.42}[kind]
        high = {"cap": 0.98, "beanie": rng.uniform(1.0, 1.12), "brim": rng.uniform(1.0, 1.1)}[kind]
        grow = 1.28 if self._outfit.hair_style == "curly" else 1.15
        if kind == "brim":
            reach = rng.uniform(1.6, 2.1)
            ring = self._center + self._up * (base * self._ry * grow)
            ring = (
                ring
                + CIRCLE[:, :1] * (reach * self._rx) * self._right
                + CIRCLE[:, 1:] * (0.24 * reach * self._rx) * self._up
            )
            self._paint(ring, replace(hat, roundness=0.15), HAT)
            self._canvas.shade(
                self._strip((base - 0.3, base), -_HALF - self._delta, _HALF - self._delta), 0.8, _ON_SKIN
            )
        self._paint(self._dome(base, high, grow), hat, HAT)
        if kind == "cap" and np.cos(self._yaw) > -0.7:
            self._paint(self._visor(base, grow), replace(hat, color=hat.second, pattern="plain"), HAT)
        if kind != "cap":
            within = np.zeros(256, bool)
            within[HAT] = True
            self._canvas.shade(self._dome(base, base + 0.2, grow), rng.choice((0.55, 0.75, 1.25)), within)

    def _dome(self, low: float, high: float, grow: float) -> np.ndarray:
        """Outline (N, 2) of a hat's body between two heights, with a rounded lower rim."""
        steps = np.linspace(low, high, 8)
        half = (
            self._spread * self._rx * grow * np.interp(steps, (0.2, 0.5, 0.8, 0.95, 1.12), (1.03, 1.0, 0.88, 0.68, 0.3))
        )
        line = self._center + steps[:, None] * (self._ry * grow) * self._up
        rim = np.linspace(_HALF, -_HALF, 7)[1:-1, None]
        lower = line[0] + np.sin(rim) * half[0] * self._right - np.cos(rim) * (0.1 * self._ry) * self._up
        side = half[:, None] * self._right
        return np.concatenate(((line - side), (line + side)[::-1], lower))

    def _visor(self, base: float, grow: float) -> np.ndarray:
        """Outline (N, 2) of a cap's visor, which points where the person looks."""
        phi = np.linspace(-1.15, 1.15, 9) + self._yaw
        reach = np.array((1.0, 1.25, 1.5, 1.66, 1.72, 1.66, 1.5, 1.25, 1.0)) * grow
        root = self._center + self._up * (base * self._ry * grow)
        near, far = [
            root
            + (np.sin(phi) * r * self._rx)[:, None] * self._right
            - (np.cos(phi) * d * self._ry)[:, None] * self._up
            for r, d in ((0.95 * grow, 0.1), (reach, 0.1 + 0.3 * (reach / grow - 1.0)))
        ]
        return np.concatenate((near, far[::-1]))
