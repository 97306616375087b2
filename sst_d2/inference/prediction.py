"""`Prediction`: the label map of one photo in one label domain, and what people make of it."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain
from sst_d2.visualization import background_ids, legend, overlay, save_label_png


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What `SSTPredictor` answers for one photo and one label domain. Letters: H, W of the upright photo; K classes.

    Attributes:
        labels: (H, W) uint8, ids in [0, K).
        domain: what the ids mean.
        image: (H, W, 3) uint8, RGB, the photo, upright.
        coarse_logits: (K, h, w) float32, what all else is made of when it is asked for; with test-time augmentation
            (K, H, W).
        padded: (height, width) of the network's input, which ``coarse_logits`` cover.
        crop: (height, width) of the photo in its upper left corner.
    """

    labels: np.ndarray
    domain: LabelDomain
    image: np.ndarray
    coarse_logits: np.ndarray
    padded: tuple[int, int]
    crop: tuple[int, int]

    def __repr__(self) -> str:
        height, width = self.labels.shape
        present = len(np.unique(self.labels))
        return f"Prediction('{self.domain.name}', {height} x {width}, {present} of {len(self.classes)} classes)"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; the position is the id."""
        return self.domain.classes

    @property
    def colors(self) -> tuple[tuple[int, int, int], ...]:
        """Red, green, blue of each class, 0..255."""
        return self.domain.colors

    def logits(self) -> np.ndarray:
        """(K, H, W) float32, made anew by each call: 4 · K bytes per pixel. ``labels`` is their arg-max."""
        return self._full_logits().numpy()

    def probabilities(self) -> np.ndarray:
        """(K, H, W) float32, the softmax of `logits` over the classes, made anew by each call."""
        return self._full_logits().softmax(0).numpy()

    def overlay(self, alpha: float = 0.6) -> np.ndarray:
        """(H, W, 3) uint8: the classes' colours over the photo, with thin contours; the background as it is.

        Args:
            alpha: weight of the colours, 0 (photo alone) to 1 (colours alone).

        Raises:
            SSTDataError: ``alpha`` lies outside [0, 1].
        """
        return overlay(self.image, self.labels, self.domain, alpha)

    def legend(self, width: int = 512) -> np.ndarray:
        """(h, w, 3) uint8: swatches with the names of the classes that `overlay` colours, in rows of ``width``."""
        present = np.setdiff1d(np.unique(self.labels), background_ids(self.domain))
        return legend(self.domain, present, width)

    def areas(self) -> dict[str, float]:
        """Share of the photo's pixels by class name, of all classes in the order of their ids; together 1."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes))
        return dict(zip(self.classes, (counts / self.labels.size).tolist(), strict=True))

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> None:
        """Write the label map as a palette PNG: pixel values are ids, the palette shows the classes' colours.

        Args:
            path: ends with .png; folders are made.
            overwrite: replace a file of that name.

        Raises:
            SSTDataError: there is such a file, another ending, or it cannot be written; no half file is left.
        """
        if not overwrite and os.path.lexists(path):
            raise SSTDataError(f"{os.fspath(path)}: exists; save(path, overwrite=True) replaces it")
        save_label_png(path, self.labels, self.domain)

    def _full_logits(self) -> torch.Tensor:
        """The network's own way from coarse logits to the photo's pixels."""
        logits = torch.from_numpy(self.coarse_logits)[None]
        for size, crop in ((self.padded, self.crop), (self.labels.shape, self.labels.shape)):
            if tuple(logits.shape[-2:]) != tuple(size):
                logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            logits = logits[:, :, : crop[0], : crop[1]]
        # A copy where nothing was computed: the caller may change what it gets.
        return logits[0].clone() if logits.data_ptr() == self.coarse_logits.ctypes.data else logits[0].contiguous()
