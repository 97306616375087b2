"""Paint one dressed person, back to front, on a canvas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .atoms import ATOM_ID, ATOMS, BAG
from .body import CIRCLE, Trunk, axis_frame, capsule, drape, hull, limb
from .canvas import Canvas, Frame, Material
from .figure import CROTCH, SIDES, WAIST, Figure
from .head import Head
from .wardrobe import Outfit

_TORSO = np.array([atom.region in ("torso", "neck") for atom in ATOMS] + [False] * (256 - len(ATOMS)))
_PEOPLE = np.array([atom.region != "scene" for atom in ATOMS] + [False] * (256 - len(ATOMS)))
_SHOES = np.array([atom.cover == "shoe" for atom in ATOMS] + [False] * (256 - len(ATOMS)))
_HANDS = np.array([atom.region == "hand" for atom in ATOMS] + [False] * (256 - len(ATOMS)))


class Person:
    """Painter of one person: a figure in an outfit."""

    def __init__(self, canvas: Canvas, figure: Figure, outfit: Outfit, rng: np.random.Generator):
        """Prepare; ``draw`` paints.

        Args:
            canvas: the sheet.
            figure: pose and place.
            outfit: clothes and looks.
            rng: small random choices while painting.
        """
        self._canvas, self._figure, self._outfit, self._rng = canvas, figure, outfit, rng
        self._trunk = Trunk(figure)
        self._head = Head(canvas, figure, outfit, rng)
        self._outer = "coat" if outfit.coat is not None else outfit.top_kind
        self._bag_side = SIDES[rng.integers(2)]

    def draw(self) -> None:
        """Paint everything, the farthest first."""
        figure, head = self._figure, self._head
        if head.faces_camera:
            head.draw_hair_behind()
        chest = float(figure.trunk(0.75)[2])
        reach = {side: 0.5 * (figure.depth[f"{side}_elbow"] + figure.depth[f"{side}_wrist"]) - chest for side in SIDES}
        for side in SIDES:
            if reach[side] < -0.035:
                self._draw_arm(side)
        self._draw_neck()
        self._draw_lower_body()
        self._draw_top()
        self._draw_coat()
        self._draw_bag_on_trunk()
        head.draw()
        self._draw_scarf()
        for side in sorted(SIDES, key=reach.get):
            if reach[side] >= -0.035:
                self._draw_arm(side)

    def _paint(
        self, shape: tuple[np.ndarray, Frame], material: Material, atom: str | None, within: np.ndarray | None = None
    ) -> None:
        self._canvas.paint(shape[0], material, shape[1], None if atom is None else ATOM_ID[atom], within)

    def _paint_trunk(
        self, outline: np.ndarray | None, material: Material, atom: str | None, within: np.ndarray | None = None
    ) -> None:
        if outline is not None:
            self._paint((outline, self._trunk.frame), material, atom, within)

    # ---------------------------------------------------------------- legs

    def _draw_lower_body(self) -> None:
        """Legs and what hangs around them; a thigh that points to the camera lies before the pelvis."""
        figure, outfit = self._figure, self._outfit
        raised = {side: figure.depth[f"{side}_knee"] - figure.depth[f"{side}_hip"] > 0.13 for side in SIDES}
        order = sorted(SIDES, key=lambda side: figure.depth[f"{side}_knee"] + 0.5 * figure.depth[f"{side}_ankle"])
        for side in order:
            if not raised[side]:
                self._draw_leg(side)
        kind = outfit.bottom_kind
        self._paint_trunk(
            self._trunk.band(CROTCH, WAIST + 0.008, 0.004),
            replace(outfit.bottom, roundness=0.6 * outfit.bottom.roundness),
            f"torso/{kind}",
        )
        for side in order:
            if raised[side]:
                self._draw_leg(side)
        if kind != "pants":
            self._draw_drape(kind, outfit.bottom, outfit.bottom_length, 0.008, outfit.flare)

    def _draw_drape(self, kind: str, cloth: Material, length: float, extra: float, flare: float) -> None:
        """A skirt, or the tails of a coat, of a length in leg lengths (1 = knee)."""
        figure, trunk = self._figure, self._trunk
        groups = [SIDES]
        if kind == "coat" and self._outfit.coat_open and figure.facing > -0.2:
            groups = [(side,) for side in sorted(SIDES, key=lambda side: figure.depth[f"{side}_hip"])]
        for group in groups:
            if length > 1.0:
                shape = drape(figure, trunk, (1.0, length), extra, flare, group)
                self._paint(shape, cloth, f"lower-leg/{kind}")
            shape = drape(figure, trunk, (0.0, min(length, 1.0)), extra, flare, group)
            self._paint(shape, cloth, f"upper-leg/{kind}")
        if not (kind == "coat" and self._outfit.coat_open):
            self._paint_trunk(trunk.band(CROTCH + 0.016, WAIST, extra), cloth, f"torso/{kind}")

    def _draw_leg(self, side: str) -> None:
        figure = self._figure
        thigh_over = figure.depth[f"{side}_ankle"] < figure.depth[f"{side}_knee"] + 0.02
        parts = [self._draw_shank, self._draw_thigh]
        self._cast_shadow(side, "upper-leg", "lower-leg")
        for draw in parts if thigh_over else parts[::-1]:
            draw(side)

    def _draw_thigh(self, side: str) -> None:
        outfit = self._outfit
        pants = outfit.bottom_kind == "pants"
        if not (pants and outfit.bottom_length > 1.0):
            self._paint(limb(self._figure, side, "upper-leg"), outfit.skin, f"{side}-upper-leg/skin")
        if pants:
            span = (0.0, min(outfit.bottom_length, 1.0))
            shape = limb(self._figure, side, "upper-leg", span, 0.005, 0.4 * outfit.flare)
            self._paint(shape, outfit.bottom, f"{side}-upper-leg/pants")

    def _draw_shank(self, side: str) -> None:
        figure, outfit = self._figure, self._outfit
        self._paint(limb(figure, side, "lower-leg"), outfit.skin, f"{side}-lower-leg/skin")
        if outfit.socks is not None:
            shape = limb(figure, side, "lower-leg", (1 - outfit.sock_length, 1.0), 0.002)
            self._paint(shape, outfit.socks, f"{side}-lower-leg/sock")
        toes_away = figure.depth[f"{side}_toe"] < figure.depth[f"{side}_ankle"] - 0.03
        if toes_away:
            self._draw_foot(side)
        if outfit.shoes is not None and outfit.boot > 0:
            shape = limb(figure, side, "lower-leg", (1 - outfit.boot, 1.0), 0.006)
            self._paint(shape, outfit.shoes, f"{side}-lower-leg/shoe")
        if not toes_away:
            self._draw_foot(side)
        if outfit.bottom_kind == "pants" and outfit.bottom_length > 1.0:
            span = (0.0, outfit.bottom_length - 1.0)
            shape = limb(figure, side, "lower-leg", span, 0.006, outfit.flare)
            self._paint(shape, outfit.bottom, f"{side}-lower-leg/pants")

    def _draw_foot(self, side: str) -> None:
        figure, outfit = self._figure, self._outfit
        ankle, heel, toe = (figure.joints[f"{side}_{name}"] for name in ("ankle", "heel", "toe"))
        thick = figure.height * (0.002 if outfit.shoes is None else 0.005)
        radii = np.array((0.022, 0.02, 0.021)) * figure.height + thick
        outline = hull(np.concatenate([at + r * CIRCLE for at, r in zip((ankle, heel, toe), radii, strict=True)]))
        shape = outline, axis_frame(heel, toe + figure.down * 0.01, float(radii[2]) * 1.5, figure.height)
        bare = outfit.socks or outfit.skin
        cover = "sock" if outfit.socks is not None else "skin"
        if outfit.shoes is None:
            self._paint(shape, bare, f"{side}-foot/{cover}")
            return
        self._paint(shape, outfit.shoes, f"{side}-foot/shoe")
        sole = [at + figure.down * (0.9 * radii[1]) for at in (heel, toe)]
        self._canvas.shade(capsule(*sole, np.full(2, 0.25 * radii[1])), 0.5, _SHOES)

    # ---------------------------------------------------------------- trunk

    def _draw_neck(self) -> None:
        figure, outfit = self._figure, self._outfit
        radius = 0.033 * figure.build.girth**0.5 * figure.height
        start, end = figure.joints["neck"] + figure.down * (0.01 * figure.height), figure.joints["head"]
        shape = capsule(start, end, np.array((1.15, 1.0)) * radius), axis_frame(start, end, radius, figure.height)
        self._paint(shape, outfit.skin, "neck/skin")
        self._paint_trunk(self._trunk.band(0.6, 0.842), outfit.skin, "torso/skin")

    def _draw_top(self) -> None:
        """The inner garment of the trunk, its neckline, its belt."""
        outfit, trunk, rng = self._outfit, self._trunk, self._rng
        kind = outfit.top_kind
        dress = kind == "dress"
        hem = CROTCH + 0.02 if dress else WAIST - 0.006 if outfit.tucked else rng.uniform(0.5, 0.575)
        atom = f"torso/{kind}"
        if outfit.sleeve > 0:
            self._paint_trunk(trunk.band(hem, 0.84, outfit.loose), outfit.top, atom)
            self._draw_neckline()
        else:
            self._paint_trunk(trunk.band(hem, 0.772, outfit.loose), outfit.top, atom)
            for phi in (0.62, -0.62, np.pi - 0.62, np.pi + 0.62):
                levels = np.array((0.764, 0.80, 0.834))
                self._paint_trunk(trunk.strip(levels, phi - 0.2, phi + 0.2, 0.002), outfit.top, atom, _TORSO)
        if kind == "blouse":
            seam = trunk.strip(np.linspace(hem, 0.8, 6), np.full(6, -0.06), np.full(6, 0.06), outfit.loose)
            if seam is not None:
                self._canvas.shade(seam, rng.choice((0.75, 1.2)), _TORSO)
        if outfit.belt is not None and (dress or outfit.tucked):
            on = kind if dress else outfit.bottom_kind
            thick = rng.uniform(0.011, 0.016)
            belt = trunk.band(WAIST - 0.004 - thick, WAIST - 0.004 + thick, outfit.loose + 0.004)
            self._paint_trunk(belt, outfit.belt, f"torso/belt-on-{on}")

    def _draw_neckline(self) -> None:
        outfit, trunk = self._outfit, self._trunk
        levels = np.linspace(0.846, 0.79, 6)
        wide = {
            "round": (0.95, 0.95, 0.9, 0.75, 0.45, 0.0),
            "v": (0.8, 0.7, 0.55, 0.4, 0.2, 0.0),
            "wide": (1.4, 1.35, 1.2, 1.0, 0.7, 0.0),
        }
        edge = np.array(wide[outfit.neckline])
        if outfit.neckline == "v":
            levels = np.linspace(0.846, 0.74, 6)
        cut = trunk.strip(levels, -edge, edge, outfit.loose)
        self._paint_trunk(cut, outfit.skin, "torso/skin", _TORSO)
        if outfit.top_kind == "blouse":
            collar = replace(outfit.top, color=outfit.top.second, pattern="plain")
            for sign in (1, -1):
                edges = np.sort(sign * np.array(((0.85, 1.5), (0.55, 1.2), (0.2, 0.35))), axis=1)
                flap = trunk.strip(levels[[0, 2, 4]], edges[:, 0], edges[:, 1], outfit.loose)
                self._paint_trunk(flap, collar, "torso/blouse", _TORSO)

    def _draw_coat(self) -> None:
        outfit, trunk, rng = self._outfit, self._trunk, self._rng
        if outfit.coat is None:
            return
        extra = outfit.loose + 0.008
        if outfit.coat_length > 0:
            self._draw_drape("coat", outfit.coat, outfit.coat_length, extra + 0.006, 0.5 * outfit.flare + 0.004)
        levels = np.linspace(0.842, CROTCH + 0.03 if outfit.coat_length > 0 else rng.uniform(0.5, 0.56), 10)
        gap = np.interp(np.linspace(0, 1, 10), (0, 0.5, 1), (0.8, 0.42, 0.6)) if outfit.coat_open else None
        if gap is None:
            gap = np.interp(np.linspace(0, 1, 10), (0, 0.3, 1), (0.75, 0.0, 0.0))
        for start, end in ((gap, np.full(10, np.pi)), (np.full(10, -np.pi), -gap)):
            self._paint_trunk(trunk.strip(levels, start, end, extra), outfit.coat, "torso/coat")
        for sign in (1, -1):
            edge = np.sort(np.stack((sign * gap, sign * (gap + 0.16))), axis=0)
            lapel = trunk.strip(levels, edge[0], edge[1], extra)
            if lapel is not None:
                self._canvas.shade(lapel, 0.78, _TORSO)
        if outfit.belt is not None and not outfit.coat_open:
            belt = trunk.band(WAIST - 0.018, WAIST + 0.014, extra + 0.002)
            self._paint_trunk(belt, outfit.belt, "torso/belt-on-coat")

    def _draw_scarf(self) -> None:
        outfit, figure, trunk = self._outfit, self._figure, self._trunk
        if outfit.scarf is None:
            return
        tail, drop = self._rng.uniform(-0.7, 0.7), self._rng.uniform(0.60, 0.76)
        levels = np.linspace(0.83, drop, 5)
        self._paint_trunk(
            trunk.strip(levels, np.full(5, tail - 0.3), np.full(5, tail + 0.3), 0.02), outfit.scarf, "torso/scarf"
        )
        across = np.array((-figure.down[1], figure.down[0])) * -1.0
        half = 0.047 * figure.build.girth**0.5 * figure.height
        middle = figure.joints["neck"] + figure.down * (0.004 * figure.height)
        sag = figure.down * (0.012 * figure.height)
        band = capsule(middle - across * half, middle + across * half, np.full(2, 0.021 * figure.height))
        band = np.concatenate((band, middle + sag + CIRCLE * (0.024 * figure.height)))
        self._paint((hull(band), trunk.frame), outfit.scarf, "torso/scarf")

    def _draw_bag_on_trunk(self) -> None:
        """A backpack, or a bag at the hip whose strap crosses the trunk."""
        outfit, figure, trunk = self._outfit, self._figure, self._trunk
        if outfit.bag is None or outfit.bag_kind == "hand":
            return
        strap = f"torso/strap-on-{self._outer}"
        levels = np.linspace(0.832, 0.66, 5)
        lift = outfit.loose + 0.012
        if outfit.bag_kind == "backpack":
            for phi in (-0.62, 0.62):
                outline = trunk.strip(levels, np.full(5, phi - 0.13), np.full(5, phi + 0.13), lift)
                self._paint_trunk(outline, outfit.bag, strap, _TORSO)
            sides = np.array((2.0, 1.95, 1.95, 2.05))
            outline = trunk.strip(np.array((0.81, 0.78, 0.62, 0.58)), sides, 2 * np.pi - sides, 0.03)
            if outline is not None:
                self._paint_trunk(outline, outfit.bag, "scene/bag")
                pocket = trunk.strip(np.array((0.69, 0.685, 0.61)), np.full(3, 2.5), np.full(3, 2 * np.pi - 2.5), 0.03)
                if pocket is not None:
                    self._canvas.shade(pocket, 0.8)
            return
        sign = self._rng.choice((-1, 1))
        levels = np.linspace(0.834, 0.54, 9)
        for back in (0.0, np.pi):  # before the chest, then over the back
            phi = back + (1 if back == 0 else -1) * np.linspace(-0.75, 1.35, 9) * sign
            outline = trunk.strip(levels, phi - 0.11, phi + 0.11, lift)
            self._paint_trunk(outline, outfit.bag, strap, _TORSO)
        at, _ = trunk.point(0.5, sign * 1.3, 0.02)
        self._draw_bag(at, 0.085 * figure.height)

    def _draw_bag(self, at: np.ndarray, size: float) -> None:
        """A bag's body (half width ``size`` pixels), with a flap, whose upper edge is centred on ``at``."""
        down, rng = self._figure.down, self._rng
        right = np.array((down[1], -down[0]))
        wide, deep = size * rng.uniform(0.75, 1.0), size * rng.uniform(1.1, 1.7)
        upper = wide * rng.uniform(0.75, 1.0)
        corners = np.stack(
            (at - right * upper, at + right * upper, at + right * wide + down * deep, at - right * wide + down * deep)
        )
        outline = hull(np.concatenate([c + down * 0.15 * size + 0.15 * size * CIRCLE for c in corners]))
        shape = outline, axis_frame(at, at + down * deep, wide * 1.2, self._figure.height)
        self._paint(shape, self._outfit.bag, "scene/bag")
        within = np.zeros(256, bool)
        within[BAG] = True
        edge = np.stack((at + down * deep * 0.45 - right * wide, at + down * deep * 0.45 + right * wide))
        self._canvas.shade(capsule(edge[0], edge[1], np.full(2, 0.03 * deep)), 0.6, within)

    # ---------------------------------------------------------------- arms

    def _draw_arm(self, side: str) -> None:
        figure, outfit = self._figure, self._outfit
        carries = outfit.bag is not None and outfit.bag_kind == "hand" and side == self._bag_side
        carries = (
            carries and figure.joints[f"{side}_hand"] @ figure.down > figure.joints[f"{side}_shoulder"] @ figure.down
        )
        parts = [self._draw_upper_arm, self._draw_lower_arm]
        away = figure.depth[f"{side}_wrist"] < figure.depth[f"{side}_elbow"] - 0.06
        if carries:
            hand = figure.joints[f"{side}_hand"]
            top = hand + figure.down * (0.05 * figure.height)
            self._draw_bag(top, 0.08 * figure.height)
            for shift in (-0.03, 0.03):
                end = top + np.array((shift, 0.01)) * figure.height
                radii = np.full(2, 0.005 * figure.height)
                self._paint(
                    (capsule(hand, end, radii), axis_frame(hand, end, 9.0, figure.height)), outfit.bag, "scene/bag"
                )
        self._cast_shadow(side, "upper-arm", "lower-arm")
        for draw in parts[::-1] if away else parts:
            draw(side)

    def _cast_shadow(self, side: str, *parts: str) -> None:
        """Darken people behind a limb, so that its rim shows on cloth of the same colour."""
        for part in parts:
            self._canvas.shade(limb(self._figure, side, part, extra=0.014)[0], 0.82, _PEOPLE)

    def _sleeve(self) -> tuple[str, Material, float, float]:
        """Outermost garment on the arms: kind, cloth, length in arm lengths, thickness in heights."""
        outfit = self._outfit
        if outfit.coat is not None:
            return "coat", outfit.coat, 1.95, outfit.loose + 0.007
        return outfit.top_kind, outfit.top, outfit.sleeve, outfit.loose

    def _draw_upper_arm(self, side: str) -> None:
        kind, cloth, length, extra = self._sleeve()
        if length < 1.0:
            self._paint(limb(self._figure, side, "upper-arm"), self._outfit.skin, f"{side}-upper-arm/skin")
        if length > 0.0:
            shape = limb(self._figure, side, "upper-arm", (0.0, min(length, 1.0)), extra)
            self._paint(shape, cloth, f"{side}-upper-arm/{kind}")

    def _draw_lower_arm(self, side: str) -> None:
        outfit, figure = self._outfit, self._figure
        kind, cloth, length, extra = self._sleeve()
        self._paint(limb(figure, side, "lower-arm"), outfit.skin, f"{side}-lower-arm/skin")
        if outfit.gloves is not None:
            self._paint(limb(figure, side, "lower-arm", (0.82, 1.0), 0.004), outfit.gloves, f"{side}-lower-arm/glove")
        self._draw_hand(side)
        if length > 1.0:
            shape = limb(figure, side, "lower-arm", (0.0, length - 1.0), extra)
            self._paint(shape, cloth, f"{side}-lower-arm/{kind}")

    def _draw_hand(self, side: str) -> None:
        figure, outfit = self._figure, self._outfit
        wrist, hand = figure.joints[f"{side}_wrist"], figure.joints[f"{side}_hand"]
        look, cover = (outfit.gloves, "glove") if outfit.gloves is not None else (outfit.skin, "skin")
        thick = figure.height * (0.003 if cover == "glove" else 0.0)
        tip = wrist + 1.45 * (hand - wrist)
        palm = capsule(wrist, tip, np.array((0.015, 0.021, 0.02, 0.011)) * figure.height + thick)
        frame = axis_frame(wrist, tip, 0.021 * figure.height, figure.height)
        atom = f"{side}-hand/{cover}"
        # The thumb points to the middle of the body.
        inward = np.sign((figure.joints["pelvis"] - hand) @ (-frame.axis[1], frame.axis[0]))
        along = np.array(frame.axis)
        thumb = hand - 0.4 * (hand - wrist) + inward * np.array((-along[1], along[0])) * (0.026 * figure.height)
        end = thumb + along * (0.024 * figure.height)
        outline = capsule(thumb - along * 0.01 * figure.height, end, np.full(2, 0.0075 * figure.height))
        self._paint((outline, axis_frame(thumb, end, 0.009 * figure.height, figure.height)), look, atom)
        self._paint((palm, frame), look, atom)
        if figure.height < 150:  # fingers would be thinner than a pixel
            return
        normal = np.array((-along[1], along[0])) * figure.height
        for offset in (-0.008, 0.0, 0.008):
            line = capsule(hand + offset * normal, tip + 0.6 * offset * normal, np.full(2, 0.0016 * figure.height))
            self._canvas.shade(line, 0.72, _HANDS)
