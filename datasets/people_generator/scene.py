"""A whole picture: background, clutter, people, things in front of them, and the camera."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .atoms import BACKGROUND, DOMAINS
from .body import CIRCLE, axis_frame, capsule
from .canvas import Canvas, Frame, Material
from .figure import SIDES, Figure, sample_build, sample_pose
from .person import Person
from .wardrobe import SKIN_TONES, sample_cloth, sample_color, sample_outfit, tone


@dataclass(frozen=True)
class Style:
    """How the pictures of one data set tend to look; the world in them is the same everywhere.

    Attributes:
        people: odds of 1, 2, 3, 4 persons.
        height: range of a person's height over the image's.
        close: chance of a close-up that the image border cuts off.
        clutter: range of the number of background things.
        occluder, seated, blur: chances.
        noise: largest deviation of the sensor noise on the scale 0-255.
    """

    people: tuple[float, float, float, float]
    height: tuple[float, float]
    close: float
    clutter: tuple[int, int]
    occluder: float
    seated: float
    noise: float
    blur: float


STYLES = {
    "pascal_person_part": Style((0.5, 0.32, 0.18, 0.0), (0.55, 1.0), 0.55, (4, 11), 0.35, 0.22, 7.0, 0.5),
    "atr": Style((1.0, 0.0, 0.0, 0.0), (0.80, 0.95), 0.08, (1, 6), 0.06, 0.03, 3.0, 0.25),
    "cihp": Style((0.0, 0.45, 0.35, 0.2), (0.55, 0.98), 0.15, (3, 8), 0.25, 0.12, 5.0, 0.4),
}
assert tuple(STYLES) == DOMAINS


@dataclass(frozen=True)
class Sample:
    """A picture and its truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        atoms: (H, W) uint8, indices into ``ATOMS``.
        people: the figures in the picture, the farthest first.
    """

    image: np.ndarray
    atoms: np.ndarray
    people: tuple[Figure, ...]


def draw_sample(style: str, size: tuple[int, int], rng: np.random.Generator) -> Sample:
    """Draw one picture; the same generator state gives the same picture, byte by byte.

    Args:
        style: a key of ``STYLES``, named after the data set whose pictures it resembles.
        size: (height, width) in pixels, at least 16.
        rng: the only source of randomness.

    Returns:
        The picture, its atoms and its people.

    Raises:
        ValueError: unknown style or a size below 16 pixels.
    """
    if style not in STYLES:
        raise ValueError(f"Unknown style {style!r}; allowed are: {', '.join(STYLES)}.")
    if min(size) < 16:
        raise ValueError(f"The size {size[0]}x{size[1]} is too small; both sides need at least 16 pixels.")
    look = STYLES[style]
    canvas = _background(size, rng)
    for _ in range(rng.integers(*look.clutter)):
        _draw_thing(canvas, rng, None, 1.0)
    people = _place_people(look, size, rng)
    for figure, feminine, seated in people:
        _draw_ground(canvas, figure)
        if seated:
            _draw_seat(canvas, figure, rng)
        Person(canvas, figure, sample_outfit(rng, feminine), rng).draw()
        if rng.random() < look.occluder / len(people):
            _draw_thing(canvas, rng, BACKGROUND, 0.55)
    return Sample(_photograph(canvas.image, look, rng), canvas.atoms, tuple(figure for figure, _, _ in people))


# -------------------------------------------------------------------- background


def _field(size: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Slow random field (H, W) float32 of about unit deviation, with ``cells`` cells along the longer side."""
    height, width = size
    rows, columns = (max(2, round(cells * side / max(size))) for side in size)
    grid = Image.fromarray(rng.standard_normal((rows, columns), dtype=np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _background(size: tuple[int, int], rng: np.random.Generator) -> Canvas:
    """A canvas with a wall, perhaps a floor, slow changes of colour and a fine texture."""
    height, width = size
    relief, grain = _field(size, 22, rng), _field(size, max(size) // 2, rng)
    image = np.empty((3, height, width), np.float32)
    horizon = int(height * rng.uniform(0.55, 0.85)) if rng.random() < 0.7 else height
    for rows in (slice(0, horizon), slice(horizon, height)):
        start, end = np.array(sample_color(rng)), np.array(sample_color(rng))
        ramp = np.linspace(0, rng.uniform(0.0, 0.8), max(rows.stop - rows.start, 1), dtype=np.float32)[:, None]
        image[:, rows] = (start + ramp * (end - start)).astype(np.float32)[: rows.stop - rows.start].T[..., None]
    tint = np.asarray(sample_color(rng), np.float32)[:, None, None]
    blotches = np.clip(_field(size, int(rng.integers(3, 14)), rng) * 0.3 + rng.uniform(0, 0.3), 0, 0.8)
    image += blotches * (tint - image)
    image += grain * (rng.uniform(0, 14) * (rng.random() < 0.5)) + relief * rng.uniform(0, 10)
    return Canvas(image, rng.uniform(-np.pi, np.pi), relief, grain)


def _draw_thing(canvas: Canvas, rng: np.random.Generator, atom: int | None, spread: float) -> None:
    """One thing without a label: box, blob, pole, furniture or plant; ``spread`` scales its size."""
    height, width = canvas.size
    side = min(height, width) * spread
    look = sample_cloth(rng, 0.45)
    if rng.random() < 0.3:
        look = replace(look, color=tone(rng, SKIN_TONES))
    at = np.array((rng.uniform(0, width), rng.uniform(0, height)))
    if atom is not None:
        at[1] = rng.uniform(0.6, 1.05) * height
    angle = rng.choice((0.0, rng.normal(0, 0.5)))
    turn = np.array(((np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))))
    kind = rng.integers(5)
    half = rng.uniform((0.06, 0.06), (0.28, 0.32)) * side
    if kind == 0:
        corners = np.array(((-1, -1), (1, -1), (1, 1), (-1, 1))) * half
        _paint_thing(canvas, at + corners @ turn, look, atom)
        if rng.random() < 0.5:  # a frame, a window or a drawer
            inner = replace(look, color=sample_color(rng), pattern="plain")
            _paint_thing(canvas, at + 0.8 * corners @ turn, inner, atom)
    elif kind == 1:
        bumps = 1 + rng.uniform(0, 0.25) * rng.standard_normal((len(CIRCLE), 1))
        _paint_thing(canvas, at + (CIRCLE * half * bumps) @ turn, look, atom)
    elif kind == 2:  # a pole, a branch, an arm of a lamp
        reach = (
            rng.uniform(0.15, 0.5)
            * side
            * (np.array((0.0, 1.0)) @ turn if rng.random() < 0.6 else rng.normal(0, 0.7, 2))
        )
        radii = rng.uniform(0.012, 0.05, 4) * side
        frame = axis_frame(at - reach, at + reach, float(radii.max()), height)
        canvas.paint(capsule(at - reach, at + reach, np.sort(radii)), look, frame, atom)
    elif kind == 3:
        _draw_table(canvas, at, half, look, atom)
    else:
        for _ in range(6):
            leaf = at + rng.normal(0, 0.6, 2) * half
            _paint_thing(canvas, leaf + CIRCLE * rng.uniform(0.2, 0.5, 2) * half, look, atom)


def _draw_table(canvas: Canvas, at: np.ndarray, half: np.ndarray, look: Material, atom: int | None) -> None:
    """A board on two legs, or a chair with a back."""
    wide, deep = half[0] * 1.3, half[1]
    thick = 0.16 * deep
    board = np.array(((-wide, 0), (wide, 0), (wide, thick), (-wide, thick)))
    for sign in (-0.85, 0.85):
        foot = np.array((sign * wide, 2 * deep))
        frame = axis_frame(at, at + foot, thick, canvas.size[0])
        canvas.paint(capsule(at + np.array((sign * wide, 0.0)), at + foot, np.full(2, 0.4 * thick)), look, frame, atom)
    _paint_thing(canvas, at + board, look, atom)


def _paint_thing(canvas: Canvas, outline: np.ndarray, look: Material, atom: int | None) -> None:
    middle = outline.mean(axis=0)
    frame = Frame(tuple(middle), (0.0, 1.0), 0.6 * float(np.ptp(outline[:, 0])), canvas.size[0])
    canvas.paint(outline, look, frame, atom)


def _draw_ground(canvas: Canvas, figure: Figure) -> None:
    """A soft shadow under the feet."""
    feet = np.mean([figure.joints[f"{side}_heel"] for side in SIDES], axis=0)
    for grow in (1.0, 0.6):
        canvas.shade(feet + CIRCLE * np.array((0.2, 0.035)) * grow * figure.height, 0.8)


def _draw_seat(canvas: Canvas, figure: Figure, rng: np.random.Generator) -> None:
    """A box or a stool under a sitting person."""
    at = figure.joints["pelvis"] + figure.down * (0.07 * figure.height)
    half = np.array((rng.uniform(0.1, 0.2), 0.13)) * figure.height
    look = sample_cloth(rng, 0.6)
    if rng.random() < 0.5:
        corners = np.array(((-1, 0), (1, 0), (1, 2), (-1, 2))) * half
        _paint_thing(canvas, at + corners, look, None)
    else:
        _draw_table(canvas, at, half * (0.8, 1.0), look, None)


# -------------------------------------------------------------------- people


def _sample_yaw(rng: np.random.Generator) -> float:
    kind = rng.random()
    if kind < 0.62:
        return rng.normal(0, 0.45)
    if kind < 0.82:
        return np.pi + rng.normal(0, 0.4)
    return rng.choice((-1, 1)) * np.pi / 2 + rng.normal(0, 0.25)


def _place_people(look: Style, size: tuple[int, int], rng: np.random.Generator) -> list[tuple[Figure, bool, bool]]:
    """Draw poses and places; returns (figure, feminine, seated), the farthest first."""
    height, width = size
    count = 1 + int(rng.choice(4, p=look.people))
    close = bool(rng.random() < look.close)
    slots = rng.permutation(count)
    people = []
    for slot in slots:
        feminine = bool(rng.random() < 0.5)
        tall = rng.uniform(*look.height) * height
        seated = bool(rng.random() < look.seated)
        feet = height * rng.uniform(0.93, 1.0) - (0.4 * (height - tall) * rng.uniform(0, 1) if count > 1 else 0)
        pelvis = feet - (0.34 if seated else 0.52) * tall
        if close:
            tall = rng.uniform(1.15, 2.1) * height / (1 + 0.25 * (count - 1))
            # The level of the body (0 soles, 1 crown) that lies in the middle of the image.
            level = rng.uniform(0.25, 0.55) if rng.random() < 0.2 else rng.uniform(0.6, 0.82)
            pelvis = height * rng.uniform(0.42, 0.58) + (level - 0.52) * tall
        x = width * ((slot + 0.5) / count + rng.normal(0, 0.05))
        yaw = _sample_yaw(rng)
        pose = sample_pose(rng, yaw, seated)
        roll = rng.normal(0, 0.04) * (3.0 if rng.random() < 0.1 else 1.0)
        build = sample_build(rng, feminine)
        people.append((Figure(build, pose, (x, pelvis), tall, roll, rng.uniform(0.0, 0.3)), feminine, seated))
    return sorted(people, key=lambda entry: float(entry[0].joints["pelvis"][1] + 0.5 * entry[0].height))


# -------------------------------------------------------------------- camera


def _photograph(image: np.ndarray, look: Style, rng: np.random.Generator) -> np.ndarray:
    """Blur, exposure, colour cast and sensor noise: (3, H, W) float32 to (H, W, 3) uint8."""
    if rng.random() < look.blur:
        weight = rng.uniform(0.1, 0.5)
        for axis in (1, 2):
            image = _soften(image, weight, axis)
    cast = (rng.uniform(0.85, 1.2) * rng.uniform(0.9, 1.1, (3, 1, 1))).astype(np.float32)
    contrast = rng.uniform(0.75, 1.12)
    image = image * (contrast * cast)
    image += 118.0 * (1 - contrast) * cast + np.float32(rng.normal(0, 8))
    image += rng.standard_normal(image.shape[1:], dtype=np.float32) * (rng.uniform(0.3, 1.0) * look.noise)
    return np.ascontiguousarray(np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0))


def _soften(image: np.ndarray, weight: float, axis: int) -> np.ndarray:
    """Mix every pixel with its two neighbours along an axis; ``weight`` is their share, 0-1."""
    side = np.float32(0.5 * weight) * image
    soft = image * np.float32(1 - weight)
    target, source = np.moveaxis(soft, axis, 0), np.moveaxis(side, axis, 0)
    target[1:] += source[:-1]
    target[:-1] += source[1:]
    target[0] += source[0]
    target[-1] += source[-1]
    return soft
