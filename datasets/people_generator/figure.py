"""A person without clothes: proportions, pose, and the skeleton as the camera sees it.

Body axes: x to the person's left, y up, z forward; lengths in units of the person's height. The camera looks along -z,
so a person who faces it has her left hand on the right of the image. Image axes: x right, y down, in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIDES = ("left", "right")
NECK, WAIST, CROTCH, HIP_JOINT = 0.838, 0.630, 0.470, 0.520
UPPER_ARM, LOWER_ARM, UPPER_LEG, LOWER_LEG, FOOT = 0.165, 0.142, 0.245, 0.230, 0.088
HEAD_WIDTH, HEAD_HEIGHT = 0.056, 0.078  # half axes of the skull


@dataclass(frozen=True)
class Build:
    """Proportions: ``girth`` scales the limbs' thickness, the others are half widths of the trunk."""

    girth: float
    shoulder: float
    chest: float
    waist: float
    hip: float
    head: float


@dataclass(frozen=True)
class Pose:
    """Angles in radians. Arms and legs are given for (left, right).

    ``arms``: (away from the body, forward, elbow bend, turn of its plane); ``legs``: (outward, forward, knee bend).
    """

    yaw: float  # 0 faces the camera, pi shows the back; positive turns to the image's right
    lean: float
    bend: float
    twist: float
    head_turn: float
    head_tilt: float
    arms: tuple[tuple[float, float, float, float], tuple[float, float, float, float]]
    legs: tuple[tuple[float, float, float], tuple[float, float, float]]


def sample_build(rng: np.random.Generator, feminine: bool) -> Build:
    """Draw proportions; ``feminine`` moves width from the shoulders to the hips."""
    girth = rng.uniform(0.86, 1.22)
    wide = 0.5 + 0.5 * girth
    shoulder, waist, hip = (0.101, 0.062, 0.089) if feminine else (0.116, 0.073, 0.083)
    chest = shoulder * 0.80
    return Build(girth, shoulder * wide, chest * wide, waist * girth, hip * wide, rng.uniform(0.98, 1.12))


def sample_pose(rng: np.random.Generator, yaw: float, seated: bool) -> Pose:
    """Draw a pose for a given yaw (radians); ``seated`` bends hips and knees."""
    gait = rng.choice(5, p=(0.34, 0.2, 0.3, 0.08, 0.08))
    arms = tuple(_sample_arm(rng) for _ in SIDES)
    stride = rng.uniform(0.15, 0.5) * rng.choice((-1, 1))
    legs = []
    for sign in (1, -1):
        outward, forward, knee = rng.uniform(0.0, 0.10), rng.normal(0, 0.06), abs(rng.normal(0, 0.06))
        if gait == 1:  # legs apart
            outward = rng.uniform(0.12, 0.3)
        elif gait == 2:  # walking
            forward = sign * stride + rng.normal(0, 0.05)
            knee = rng.uniform(0.0, 0.2) if forward > 0 else rng.uniform(0.1, 0.7)
        elif gait == 3:  # one knee bent or raised
            forward, knee = (rng.uniform(0.4, 1.2), rng.uniform(0.6, 1.5)) if stride * sign > 0 else (forward, knee)
        elif gait == 4:  # crouching a little
            forward, knee, outward = rng.uniform(0.3, 0.7), rng.uniform(0.5, 1.1), rng.uniform(0.05, 0.3)
        if seated:
            outward, forward, knee = rng.uniform(0.02, 0.3), rng.uniform(1.15, 1.5), rng.uniform(1.1, 1.7)
        legs.append((outward, forward, knee))
    lean = rng.normal(0.03, 0.08)
    return Pose(
        yaw, lean, rng.normal(0, 0.07), rng.normal(0, 0.15), rng.normal(0, 0.3), rng.normal(0, 0.1), arms, tuple(legs)
    )


def _sample_arm(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Draw one arm: hanging, swinging, on the hip, before the body, raised to the side, raised high, to the face."""
    kind = rng.choice(7, p=(0.34, 0.2, 0.14, 0.1, 0.09, 0.07, 0.06))
    low, high = (
        ((0.06, -0.12, 0.0, 0.0), (0.25, 0.15, 0.35, 0.6)),
        ((0.08, -0.6, 0.1, 0.0), (0.3, 0.6, 0.7, 0.4)),
        ((0.6, -0.3, 1.5, 1.2), (0.85, 0.1, 1.9, 1.6)),
        ((0.1, 0.1, 1.0, 0.4), (0.3, 0.5, 1.7, 1.3)),
        ((0.9, -0.2, 0.0, -0.6), (1.6, 0.3, 0.9, 0.6)),
        ((2.2, -0.2, 0.0, -0.6), (2.8, 0.3, 0.7, 0.6)),
        ((0.2, 0.5, 1.9, 0.1), (0.5, 1.0, 2.4, 0.5)),
    )[kind]
    return tuple(float(v) for v in rng.uniform(low, high))


def rotation(axis: str, angle: float) -> np.ndarray:
    """(3, 3) rotation by ``angle`` radians about the body axis "x", "y" or "z" (right-handed)."""
    c, s = np.cos(angle), np.sin(angle)
    if axis == "x":
        return np.array(((1, 0, 0), (0, c, -s), (0, s, c)))
    if axis == "y":
        return np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    return np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)))


class Figure:
    """A posed person in the image.

    Attributes:
        joints: name -> (2,) float pixels: pelvis, neck, head, and for each side ``left_shoulder``, ``_elbow``,
            ``_wrist``, ``_hand``, ``_hip``, ``_knee``, ``_ankle``, ``_heel``, ``_toe``. Sides are the person's own.
        depth: name -> distance towards the camera, in heights, relative to the pelvis.
        height: the person's height in pixels.
    """

    def __init__(self, build: Build, pose: Pose, center: tuple[float, float], height: float, roll: float, pitch: float):
        """Place a person.

        Args:
            build, pose: what is placed.
            center: pixel of the pelvis.
            height: pixels.
            roll: rotation in the image plane, radians, clockwise.
            pitch: how far the camera looks down, radians.
        """
        self.build, self.pose, self.height = build, pose, height
        self._center = np.asarray(center, float)
        self._flat = np.array(((np.cos(roll), -np.sin(roll)), (np.sin(roll), np.cos(roll)))) * height
        self._pitch = (np.cos(pitch), np.sin(pitch))
        self.down = self._flat @ (0.0, 1.0) / height
        self.pelvis_turn = rotation("y", pose.yaw)
        chest = rotation("x", pose.lean) @ rotation("z", pose.bend) @ rotation("y", pose.twist)
        self.chest_turn = self.pelvis_turn @ chest
        turn = rotation("y", pose.head_turn) @ rotation("z", pose.head_tilt)
        self.head_turn = self.chest_turn @ turn
        self.joints: dict[str, np.ndarray] = {}
        self.depth: dict[str, float] = {}
        self._place()

    @property
    def facing(self) -> float:
        """1 where the person faces the camera, -1 where the back is seen, 0 from the side."""
        return float(self.chest_turn[2, 2])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Camera points (..., 3), in heights from the pelvis, to pixels (..., 2)."""
        c, s = self._pitch
        flat = np.stack((points[..., 0], points[..., 2] * s - points[..., 1] * c), axis=-1)
        return flat @ self._flat.T + self._center

    def trunk(self, level: float | np.ndarray) -> np.ndarray:
        """Centre (..., 3) of the trunk at a height (0 = soles, 1 = crown of an upright person)."""
        level = np.asarray(level)[..., None]
        low = (np.minimum(level, WAIST) - HIP_JOINT) * self.pelvis_turn[:, 1]
        return low + np.maximum(level - WAIST, 0.0) * self.chest_turn[:, 1]

    def _put(self, name: str, point: np.ndarray) -> None:
        self.joints[name] = self.project(point)
        self.depth[name] = float(point[2])

    def _place(self) -> None:
        build, pose = self.build, self.pose
        self._put("pelvis", np.zeros(3))
        self._put("neck", self.trunk(NECK))
        self.head_center = self.trunk(NECK) + self.head_turn @ (0.0, 0.016 + HEAD_HEIGHT * build.head, 0.012)
        self._put("head", self.head_center)
        down = np.array((0.0, -1.0, 0.0))
        for index, (side, sign) in enumerate(zip(SIDES, (1, -1), strict=True)):
            away, forward, elbow, turn = pose.arms[index]
            shoulder = self.trunk(0.796) + self.chest_turn @ (sign * (build.shoulder - 0.021 * build.girth), 0.0, 0.0)
            # A raised arm lifts the shoulder.
            shoulder = shoulder + self.chest_turn @ (0.0, 0.03 * max(0.0, away - 1.2), 0.0)
            upper = self.chest_turn @ rotation("x", -forward) @ rotation("z", sign * away)
            lower = upper @ rotation("y", -sign * turn) @ rotation("x", -elbow)
            elbow_at = shoulder + upper @ down * UPPER_ARM
            wrist = elbow_at + lower @ down * LOWER_ARM
            outward, lift, knee = pose.legs[index]
            hip = self.pelvis_turn @ (sign * 0.56 * build.hip, 0.0, 0.0)
            thigh = self.pelvis_turn @ rotation("x", -lift) @ rotation("z", sign * outward)
            knee_at = hip + thigh @ down * UPPER_LEG
            # The shank stays near the vertical plane of walking, the foot stays flat.
            shank = self.pelvis_turn @ rotation("x", knee - lift) @ rotation("z", sign * outward * 0.6)
            ankle = knee_at + shank @ down * LOWER_LEG
            foot = self.pelvis_turn @ rotation("y", sign * 0.25) @ rotation("x", 0.35 * max(0.0, knee - lift))
            places = {"shoulder": shoulder, "elbow": elbow_at, "wrist": wrist, "hand": wrist + lower @ down * 0.045}
            places |= {"hip": hip, "knee": knee_at, "ankle": ankle, "toe": ankle + foot @ (0.0, -0.018, FOOT)}
            places |= {"heel": ankle + foot @ (0.0, -0.022, -0.02)}
            for name, point in places.items():
                self._put(f"{side}_{name}", point)
