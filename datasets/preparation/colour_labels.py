"""Grapy-ML's colour renderings of PASCAL-Person-Part as label maps; ``pascal_person_part.yaml`` has the colours."""

from __future__ import annotations

from functools import cache

import numpy as np

from sst_d2.data.image_io import FileFault, naming_faults, open_whole
from sst_d2.data.inspection import Finding
from sst_d2.label_domains import LabelDomain

from .part_annotations import facts

COLOUR_MODES = ("RGB", "RGBA")
_SHOWN = 5


def read_colour_labels(
    path: str, size: tuple[int, int] | None, domain: LabelDomain
) -> tuple[np.ndarray, list[Finding]]:
    """Turn a colour rendering into ids.

    Args:
        path: a PNG of mode RGB or RGBA, opaque.
        size: (height, width) of its photo, which it must have; None: not known.
        domain: PASCAL-Person-Part.

    Returns:
        (H, W) uint8 of ids in [0, K), and no warnings.

    Raises:
        FileFault: the file is damaged or absent, of another kind, or holds a colour that is not in the table.
    """
    packed = _read_packed(path)
    if size is not None and packed.shape != tuple(size):
        raise FileFault(
            f"{path}: the label map has {packed.shape[0]} x {packed.shape[1]} pixels (height x width) and its image "
            f"{size[0]} x {size[1]}; both must agree",
            "size_mismatch",
        )
    # Few colours occur: the table is made for these.
    colours, positions = np.unique(packed, return_inverse=True)
    channels = np.stack([colours >> 16, (colours >> 8) & 255, colours & 255], axis=-1)
    ids, near = _nearest(channels, domain)
    if not near.all():
        strange = [tuple(color) for color in channels[~near].tolist()]
        more = f" and {len(strange) - _SHOWN} more" if len(strange) > _SHOWN else ""
        raise FileFault(
            f"{path}: the colours {', '.join(map(str, strange[:_SHOWN]))}{more} are in no table; allowed are "
            f"{', '.join(f'{name} {tuple(color)}' for name, color in facts()['colours'].items())}, "
            f"each channel within {facts()['colour_tolerance']}",
            "ids",
        )
    return ids[positions].reshape(packed.shape), []


def has_plain_colours(path: str) -> bool:
    """Whether a rendering has a red of exactly 128, which Grapy-ML's never have: its order is then not known."""
    red = _read_packed(path) >> 16
    return bool((red == max(color[0] for color in facts()["colours"].values())).any())


def _read_packed(path: str) -> np.ndarray:
    """(H, W) int32, red, green and blue in one number."""
    with naming_faults(path, "label map", "missing_label"), open(path, "rb") as stream, open_whole(stream) as image:
        if image.mode not in COLOUR_MODES or image.format != "PNG":
            raise FileFault(
                f"{path}: a {image.format} of mode {image.mode}; a colour rendering is a PNG of mode "
                f"{' or '.join(COLOUR_MODES)}. For index PNGs: --labels-from index",
                "wrong_mode",
            )
        if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            raise FileFault(f"{path}: has transparent pixels, whose class is not certain", "ids")
        pixels = np.asarray(image.convert("RGB"), np.int32)
    return (pixels[..., 0] << 16) | (pixels[..., 1] << 8) | pixels[..., 2]


def _nearest(channels: np.ndarray, domain: LabelDomain) -> tuple[np.ndarray, np.ndarray]:
    """For (N, 3) colours: (N,) uint8 ids, and (N,) bool, whether the id's colour is near enough."""
    ids, table = _table(domain)
    distances = np.abs(channels[:, None] - table[None]).max(axis=-1)
    return ids[distances.argmin(axis=1)], distances.min(axis=1) <= facts()["colour_tolerance"]


@cache
def _table(domain: LabelDomain) -> tuple[np.ndarray, np.ndarray]:
    """(K,) uint8 ids and (K, 3) their colours."""
    colours = facts()["colours"]
    return np.array([domain.index(name) for name in colours], np.uint8), np.array(list(colours.values()))
