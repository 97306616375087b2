"""Augmentations whose labels stay true: mirroring swaps left and right, padding is labelled 'ignore'.

Written as Detectron2 ``Augmentation`` and ``Transform``. Random numbers come from NumPy's global generator, as in
Detectron2's own augmentations; the mapper seeds it per sample.
"""

from __future__ import annotations

import numpy as np
from detectron2.data.transforms import AugInput, Augmentation, ResizeTransform
from fvcore.transforms.transform import NoOpTransform, Transform
from PIL import Image

from sst_d2.label_domains import LabelDomain


class SSTAugInput(AugInput):
    """Detectron2's ``AugInput`` that also says which label domain its label map follows.

    Args:
        image: (H, W, 3) uint8.
        label_domain: the domain of ``sem_seg``.
        sem_seg: (H, W) uint8 ids; None: no labels.
    """

    def __init__(self, image: np.ndarray, label_domain: LabelDomain, sem_seg: np.ndarray | None = None) -> None:
        super().__init__(image, sem_seg=sem_seg)
        self.label_domain = label_domain


class MirrorTransform(Transform):
    """Mirror left to right; in label maps the two classes of each flip pair change places. Its own inverse.

    Args:
        width: W of the images, in pixels.
        label_domain: names the flip pairs.
    """

    def __init__(self, width: int, label_domain: LabelDomain) -> None:
        super().__init__()
        self.width = width
        self.label_domain = label_domain

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C), mirrored along W."""
        return np.ascontiguousarray(img[:, ::-1])

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) ids, mirrored and swapped."""
        swap = np.arange(256)
        swap[: self.label_domain.num_classes] = self.label_domain.flip_permutation()
        return swap.astype(segmentation.dtype)[self.apply_image(segmentation)]

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) of x, y in pixels; x becomes W - x."""
        mirrored = coords.copy()
        mirrored[:, 0] = self.width - mirrored[:, 0]
        return mirrored

    def inverse(self) -> Transform:
        """Mirroring again."""
        return self


class CropPadTransform(Transform):
    """Cut a window out of an image; where the window reaches past the image, pad with 0, in labels with 'ignore'.

    Args:
        top, left: upper left corner of the window in the image, in pixels, not negative.
        height, width: size of the result, in pixels.
        ignore_label: id of padded pixels in label maps.
    """

    def __init__(self, top: int, left: int, height: int, width: int, ignore_label: int) -> None:
        super().__init__()
        self.top, self.left, self.height, self.width = top, left, height, width
        self.ignore_label = ignore_label

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) to (height, width[, C]); padded right and below with 0."""
        return self._cut(img, 0)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) ids to (height, width); padded with ``ignore_label``."""
        return self._cut(segmentation, self.ignore_label)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) of x, y in pixels of the image, to pixels of the window."""
        return coords - np.asarray([self.left, self.top], dtype=coords.dtype)

    def _cut(self, array: np.ndarray, fill: int) -> np.ndarray:
        window = array[self.top : self.top + self.height, self.left : self.left + self.width]
        if window.shape[:2] == (self.height, self.width):
            return np.ascontiguousarray(window)
        padded = np.full((self.height, self.width, *array.shape[2:]), fill, dtype=array.dtype)
        padded[: window.shape[0], : window.shape[1]] = window
        return padded


class RandomMirror(Augmentation):
    """`MirrorTransform` with a probability.

    Args:
        probability: in [0, 1].
    """

    def __init__(self, probability: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= probability <= 1.0:
            raise ValueError(f"RandomMirror: probability {probability}; allowed are 0 to 1")
        self.probability = probability

    def get_transform(self, image: np.ndarray, label_domain: LabelDomain) -> Transform:
        """Draw. Needs an `SSTAugInput`, which carries ``label_domain``."""
        if np.random.uniform() < self.probability:
            return MirrorTransform(image.shape[1], label_domain)
        return NoOpTransform()


class RandomScale(Augmentation):
    """Resize by a random factor: images bilinearly, label maps to the nearest pixel.

    Args:
        scale_range: smallest and largest factor, positive.
        per_axis: draw height and width apart, as Graphonomy and Grapy-ML do; else one factor for both.
    """

    def __init__(self, scale_range: tuple[float, float] = (0.5, 2.0), per_axis: bool = False) -> None:
        super().__init__()
        low, high = scale_range
        if not 0 < low <= high:
            raise ValueError(f"RandomScale: scale_range {tuple(scale_range)}; 0 < smallest <= largest is expected")
        self.scale_range = (low, high)
        self.per_axis = per_axis

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw the factor or the two factors."""
        height, width = image.shape[:2]
        factors = np.random.uniform(*self.scale_range, size=2)
        if not self.per_axis:
            factors[1] = factors[0]
        new_height, new_width = (
            max(1, round(side * factor)) for side, factor in zip((height, width), factors, strict=True)
        )
        return ResizeTransform(height, width, new_height, new_width, interp=Image.BILINEAR)


class RandomCropPad(Augmentation):
    """A window of fixed size at a random place; smaller images are put at the upper left corner and padded.

    Args:
        crop_size: (height, width) of the result, in pixels.
    """

    def __init__(self, crop_size: tuple[int, int]) -> None:
        super().__init__()
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(f"RandomCropPad: crop_size {tuple(crop_size)}; (height, width) in pixels is expected")
        self.crop_size = tuple(crop_size)

    def get_transform(self, image: np.ndarray, label_domain: LabelDomain) -> Transform:
        """Draw the place. Needs an `SSTAugInput`, which carries ``label_domain``."""
        top, left = (
            np.random.randint(max(have - want, 0) + 1)
            for have, want in zip(image.shape[:2], self.crop_size, strict=True)
        )
        return CropPadTransform(top, left, *self.crop_size, ignore_label=label_domain.ignore_label)
