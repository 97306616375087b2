"""What people wear and how it looks: colours, materials, and the draw of a whole outfit.

Colours of all garments come from one wide distribution, which includes skin-like and hair-like colours: a colour alone
does not name a class.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace

import numpy as np

from .canvas import Material

SKIN_TONES = np.array(
    (
        (250, 224, 203),
        (241, 205, 175),
        (229, 184, 148),
        (210, 158, 120),
        (183, 128, 90),
        (148, 98, 66),
        (110, 71, 48),
        (80, 51, 36),
    ),
    float,
)
HAIR_TONES = np.array(
    (
        (24, 20, 20),
        (52, 36, 28),
        (88, 58, 38),
        (128, 84, 48),
        (176, 132, 78),
        (214, 182, 122),
        (150, 66, 34),
        (168, 164, 160),
        (226, 224, 220),
    ),
    float,
)
Color = tuple[float, float, float]


@dataclass(frozen=True)
class Outfit:
    """Everything about one person's look. Lengths run 0 (root of the limb), 1 (elbow, knee), 2 (wrist, ankle).

    None for a material means that the thing is not worn.
    """

    skin: Material
    hair: Material
    hair_style: str  # bald, short, bob, long, bun, tail, curly
    beard: bool
    top_kind: str  # tshirt, blouse, dress
    top: Material
    sleeve: float
    neckline: str  # round, v, wide
    loose: float  # thickness of the upper garments, in heights
    tucked: bool
    bottom_kind: str  # pants, skirt, dress
    bottom: Material
    bottom_length: float
    flare: float
    coat: Material | None
    coat_length: float
    coat_open: bool
    belt: Material | None
    scarf: Material | None
    gloves: Material | None
    socks: Material | None
    sock_length: float
    shoes: Material | None
    boot: float  # how far up the shank a shoe reaches, 0-1
    hat: Material | None
    hat_kind: str  # cap, beanie, brim
    glasses: Material | None
    bag: Material | None
    bag_kind: str  # hand, shoulder, backpack


def sample_color(rng: np.random.Generator) -> Color:
    """Draw the colour (RGB, 0-255) of any made thing."""
    kind = rng.random()
    if kind < 0.14:
        value = rng.uniform(18, 245)
        return tuple(np.clip(value + rng.normal(0, 5, 3), 5, 250).tolist())
    if kind < 0.27:
        return tone(rng, SKIN_TONES if rng.random() < 0.65 else HAIR_TONES)
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.beta(1.5, 1.8), rng.uniform(0.12, 0.97))
    return 255 * red, 255 * green, 255 * blue


def tone(rng: np.random.Generator, tones: np.ndarray) -> Color:
    """Draw a colour (RGB, 0-255) between two neighbours of a table (N, 3), slightly off."""
    place = rng.uniform(0, len(tones) - 1)
    low = int(place)
    color = tones[low] + (place - low) * (tones[min(low + 1, len(tones) - 1)] - tones[low])
    return tuple(np.clip(color * rng.uniform(0.9, 1.08) + rng.normal(0, 4, 3), 4, 252).tolist())


def sample_cloth(rng: np.random.Generator, plain: float = 0.5) -> Material:
    """Draw a cloth; ``plain`` is the probability that it has no pattern."""
    patterns = ("stripes", "checks", "dots", "noise")
    pattern = "plain" if rng.random() < plain else patterns[rng.integers(4)]
    return Material(
        color=sample_color(rng),
        second=sample_color(rng),
        pattern=pattern,
        period=rng.uniform(0.018, 0.06),
        angle=float(rng.choice((0.0, np.pi / 2, rng.uniform(0, np.pi)))),
        folds=rng.uniform(0.03, 0.12),
        roundness=rng.uniform(0.25, 0.5),
    )


def _worn(rng: np.random.Generator, chance: float, plain: float = 0.7) -> Material | None:
    cloth = sample_cloth(rng, plain)
    return cloth if rng.random() < chance else None


def sample_outfit(rng: np.random.Generator, feminine: bool) -> Outfit:
    """Draw an outfit; ``feminine`` only shifts the odds of hair styles, beards, dresses and skirts."""
    skin = Material(tone(rng, SKIN_TONES), folds=0.03, roundness=0.4)
    dyed = rng.random() < 0.08
    hair = Material(sample_color(rng) if dyed else tone(rng, HAIR_TONES), folds=0.05, roundness=0.35)
    hair = replace(hair, pattern="noise", second=tuple(0.8 * np.array(hair.color)))
    styles = ("bald", "short", "bob", "long", "bun", "tail", "curly")
    odds = (0.01, 0.12, 0.22, 0.32, 0.11, 0.12, 0.1) if feminine else (0.09, 0.6, 0.07, 0.07, 0.03, 0.03, 0.11)
    bottom_kind = ("pants", "skirt", "dress")[rng.choice(3, p=(0.34, 0.32, 0.34) if feminine else (0.79, 0.1, 0.11))]
    dress = bottom_kind == "dress"
    top = sample_cloth(rng)
    length = {
        "pants": rng.choice((1.97, 1.97, 1.97, 0.75, 1.2)),
        "skirt": rng.uniform(0.5, 1.45),
        "dress": rng.uniform(0.5, 1.7),
    }
    coat = _worn(rng, 0.32, 0.6)
    tucked = bool(rng.random() < 0.5)
    belted = 0.5 if tucked or dress else 0.12
    return Outfit(
        skin=skin,
        hair=hair,
        hair_style=styles[rng.choice(7, p=odds)],
        beard=bool(not feminine and rng.random() < 0.35),
        top_kind="dress" if dress else ("tshirt", "blouse")[rng.integers(2)],
        top=top,
        sleeve=float(rng.choice((0.0, 0.45, 0.6, 1.1, 1.95), p=(0.2, 0.2, 0.18, 0.1, 0.32))),
        neckline=("round", "v", "wide")[rng.integers(3)],
        loose=rng.uniform(0.003, 0.012),
        tucked=tucked,
        bottom_kind=bottom_kind,
        bottom=top if dress else sample_cloth(rng, 0.7),
        bottom_length=float(length[bottom_kind]),
        flare=rng.uniform(0.0, 0.05) if bottom_kind != "pants" else rng.choice((0.0, 0.0, 0.012, 0.022)),
        coat=coat,
        coat_length=float(rng.choice((0.0, rng.uniform(0.3, 1.25)))),
        coat_open=bool(rng.random() < 0.6),
        belt=_worn(rng, belted),
        scarf=_worn(rng, 0.24, 0.5),
        gloves=_worn(rng, 0.16),
        socks=_worn(rng, 0.45),
        sock_length=rng.uniform(0.15, 0.75),
        shoes=_worn(rng, 0.92, 0.9),
        boot=float(rng.choice((0.0, 0.0, 0.0, rng.uniform(0.25, 0.7)))),
        hat=_worn(rng, 0.3),
        hat_kind=("cap", "beanie", "brim")[rng.integers(3)],
        glasses=_sunglasses(rng),
        bag=_worn(rng, 0.4, 0.8),
        bag_kind=("hand", "shoulder", "backpack")[rng.integers(3)],
    )


def _sunglasses(rng: np.random.Generator) -> Material | None:
    dark = rng.random() < 0.75
    color = tuple(rng.uniform(5, 60, 3)) if dark else sample_color(rng)
    return Material(color, folds=0.0, roundness=0.1) if rng.random() < 0.36 else None
