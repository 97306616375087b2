"""The fine truth of a synthetic picture and its merges into the three label systems.

An *atom* is a pair (body region, what covers it), such as ``left-lower-arm/coat``. Every label system is a merge of
atoms: PASCAL-Person-Part looks at the region alone, ATR and CIHP look at the cover first. The class order of a system
is not written here: it is read from the label domain's own file.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml

DOMAINS = ("pascal_person_part", "atr", "cihp")
SIDES = ("left", "right")
DOMAIN_FILES = Path(__file__).resolve().parents[2] / "sst_d2" / "label_domains"

TOPS = ("tshirt", "blouse")
OUTER = (*TOPS, "coat", "dress")
BELTED = ("pants", "skirt", "dress", "coat")

# PASCAL-Person-Part: hands belong to the lower arm, feet to the lower leg, neck and pelvis to the torso.
_PASCAL = {"scene": "background", "head": "head", "neck": "torso", "torso": "torso"}
_PASCAL |= {"upper-arm": "upper-arm", "lower-arm": "lower-arm", "hand": "lower-arm"}
_PASCAL |= {"upper-leg": "upper-leg", "lower-leg": "lower-leg", "foot": "lower-leg"}

# Bare skin. ATR has no neck or chest class: the skin in a neckline counts as face there.
_ATR_SKIN = {"head": "face", "neck": "face", "torso": "face"}
_CIHP_SKIN = {"head": "face", "neck": "torso-skin", "torso": "torso-skin"}
_LIMB = {"upper-arm": "arm", "lower-arm": "arm", "hand": "arm", "upper-leg": "leg", "lower-leg": "leg", "foot": "leg"}

# Covers that mean the same class wherever they lie ({side}: the wearer's own). Gloves are arm and socks leg in ATR.
# CIHP has no bag and no belt: a bag is background, a belt or a strap is part of the garment that it lies on.
_ATR = {"tshirt": "upper-clothes", "blouse": "upper-clothes", "coat": "upper-clothes", "glove": "{side}-arm"}
_ATR |= {"sock": "{side}-leg", "shoe": "{side}-shoe", "bag": "bag", "scene": "background"}
_CIHP = {"tshirt": "upper-clothes", "blouse": "upper-clothes", "sock": "socks", "shoe": "{side}-shoe"}
_CIHP |= {"bag": "background", "scene": "background"}


@dataclass(frozen=True)
class Atom:
    """One fine label: ``region`` of the body, its ``side`` (the person's own, or ""), and the ``cover`` seen."""

    region: str
    side: str
    cover: str

    @property
    def name(self) -> str:
        """``side-region/cover``, for instance ``left-foot/shoe``."""
        return f"{self.side}-{self.region}/{self.cover}" if self.side else f"{self.region}/{self.cover}"

    def class_name(self, domain: str) -> str:
        """Name of the class of ``domain`` (one of ``DOMAINS``) that this atom belongs to."""
        if domain == "pascal_person_part":
            return "background" if self.cover == "bag" else _PASCAL[self.region]
        covers, skin = (_ATR, _ATR_SKIN) if domain == "atr" else (_CIHP, _CIHP_SKIN)
        if self.cover == "skin":
            return skin[self.region] if self.region in skin else f"{self.side}-{_LIMB[self.region]}"
        thing, _, below = self.cover.partition("-on-")
        if below:
            thing = {"belt": "belt", "strap": "bag"}[thing] if domain == "atr" else below
        return covers.get(thing, thing).format(side=self.side)


def _all_atoms() -> tuple[Atom, ...]:
    atoms = [Atom("scene", "", "scene"), Atom("scene", "", "bag")]
    atoms += [Atom("head", "", cover) for cover in ("skin", "hair", "hat", "sunglasses")]
    atoms += [Atom("neck", "", "skin"), Atom("torso", "", "skin"), Atom("torso", "", "scarf")]
    atoms += [Atom("torso", "", cover) for cover in (*OUTER, "pants", "skirt")]
    atoms += [Atom("torso", "", f"belt-on-{cover}") for cover in BELTED]
    atoms += [Atom("torso", "", f"strap-on-{cover}") for cover in OUTER]
    # Skirts, dresses and coats hang around both legs, so these atoms have no side.
    atoms += [Atom(region, "", cover) for region in ("upper-leg", "lower-leg") for cover in ("skirt", "dress", "coat")]
    for side in SIDES:
        atoms += [Atom("upper-arm", side, cover) for cover in ("skin", *OUTER)]
        atoms += [Atom("lower-arm", side, cover) for cover in ("skin", "glove", *OUTER)]
        atoms += [Atom("hand", side, cover) for cover in ("skin", "glove")]
        atoms += [Atom("upper-leg", side, cover) for cover in ("skin", "pants")]
        atoms += [Atom("lower-leg", side, cover) for cover in ("skin", "pants", "sock", "shoe")]
        atoms += [Atom("foot", side, cover) for cover in ("skin", "sock", "shoe")]
    return tuple(atoms)


ATOMS = _all_atoms()
ATOM_ID = {atom.name: index for index, atom in enumerate(ATOMS)}
BACKGROUND, BAG = ATOM_ID["scene/scene"], ATOM_ID["scene/bag"]


def domain_record(domain: str) -> dict:
    """Read a label domain's own file.

    Args:
        domain: one of ``DOMAINS``.

    Returns:
        The parsed YAML; ``classes`` (ordered names) and ``colors`` (RGB, 0-255) are used here.

    Raises:
        ValueError: unknown domain. OSError: the domain's file cannot be read.
    """
    if domain not in DOMAINS:
        raise ValueError(f"Unknown label domain {domain!r}; synthetic people have labels in: {', '.join(DOMAINS)}.")
    return _read_record(domain)


@cache
def _read_record(domain: str) -> dict:
    with open(DOMAIN_FILES / f"{domain}.yaml", encoding="utf-8") as file:
        return yaml.safe_load(file)


@cache
def _lookup(domain: str) -> np.ndarray:
    classes = domain_record(domain)["classes"]
    return np.array([classes.index(atom.class_name(domain)) for atom in ATOMS], dtype=np.uint8)


def to_label(atoms: np.ndarray, domain: str) -> np.ndarray:
    """Merge atoms into the classes of one label system.

    Args:
        atoms: (H, W) uint8, indices into ``ATOMS``.
        domain: one of ``DOMAINS``.

    Returns:
        (H, W) uint8 class ids in [0, K); no pixel is ignored.

    Raises:
        ValueError: unknown domain, or an index outside ``ATOMS``.
    """
    table = _lookup(domain) if domain in DOMAINS else domain_record(domain)
    if atoms.size and int(atoms.max()) >= len(ATOMS):
        raise ValueError(f"Atom {int(atoms.max())} does not exist; allowed are 0 to {len(ATOMS) - 1}.")
    return table[atoms]
