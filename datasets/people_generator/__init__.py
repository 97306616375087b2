"""Synthetic photos of articulated people with exact labels in three label systems.

Reading order: atoms (what is labelled), canvas (how a shape is painted), figure and body (skeleton and outlines),
wardrobe (what is worn), head and person (painting one person), scene (a whole picture), folder (files of a data set).
"""

from .atoms import ATOM_ID, ATOMS, BACKGROUND, DOMAINS, Atom, domain_record, to_label
from .scene import STYLES, Sample, draw_sample

__all__ = [
    "ATOMS", "ATOM_ID", "BACKGROUND", "DOMAINS", "STYLES", "Atom", "Sample", "domain_record", "draw_sample", "to_label",
]  # fmt: skip
