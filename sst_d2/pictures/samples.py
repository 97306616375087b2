"""`sample_picture`: a sample of a data set with its labels, as it is stored and as training augments it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T

from sst_d2.data import SSTDatasetMapper
from sst_d2.label_domains import LabelDomain
from sst_d2.visualization import background_ids, fitted, overlay, sheet

_SIDES = {"min_side": 320, "max_side": 640}  # of a photo in the picture, in pixels
_TURNS = 3


def sample_picture(
    sample: Mapping[str, Any],
    domain: LabelDomain,
    title: str = "",
    augmentations: Sequence[T.Augmentation] | None = None,
    seed: int = 0,
    position: int = 0,
) -> np.ndarray:
    """The photo, and its labels over it, with a legend of the classes that occur.

    Args:
        sample: a dataset dict.
        domain: its label domain.
        title: written above all; "": none.
        augmentations: those of training; where they are given, three results of them stand beside the labels.
        seed, position: where the augmentations' random numbers come from, as in the mapper. Three positions are used.

    Returns:
        (h, w, 3) uint8.

    Raises:
        SSTDataError: photo or label map cannot be read or do not fit.
    """

    def _mapped(chosen: Sequence[T.Augmentation], place: int) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) and (H, W), as the training's mapper gives them."""
        mapper = SSTDatasetMapper(True, domains=[domain], augmentations=chosen, seed=seed)
        mapped = mapper({"label_domain": domain.name, **sample, "sample_position": place})
        return mapped["image"].permute(1, 2, 0).numpy(), mapped["sem_seg"].numpy().astype(np.uint8)

    image, labels = _mapped([], position)
    labelled = {"labels": (image, labels)}
    for turn in range(0 if augmentations is None else _TURNS):
        labelled[f"augmented {turn + 1}"] = _mapped(augmentations, position + turn)
    shown, present = {"photo": fitted(image, **_SIDES)}, set()
    for name, (photo, ids) in labelled.items():
        present.update(np.unique(ids).tolist())
        shown[name] = overlay(fitted(np.ascontiguousarray(photo), **_SIDES), fitted(ids, **_SIDES), domain)
    return sheet(shown, domain, present - set(background_ids(domain)), title)
