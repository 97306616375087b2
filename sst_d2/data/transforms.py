"""Training: random scale, crop with padding, mirror, in one step; labels stay true. Evaluation: the size that is seen.

Mirroring swaps left and right in label maps, padding is labelled 'ignore'. Written as Detectron2 ``Augmentation`` and
``Transform``. Random numbers come from NumPy's global generator, as in Detectron2's own augmentations; the mapper seeds
it per sample.
"""

from __future__ import annotations

import numpy as np
import torch
from detectron2.data.transforms import AugInput, Augmentation, NoOpTransform, ResizeTransform
from fvcore.transforms.transform import Transform

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


class EvaluationResize(Augmentation):
    """As Detectron2's ``ResizeShortestEdge`` with one length, but that of a very thin photo one pixel stays.

    Args:
        shortest: of the shorter edge, in pixels; 0: photos keep their size.
        longest: the longer edge has at most so many pixels.
    """

    def __init__(self, shortest: int, longest: int) -> None:
        super().__init__()
        self.shortest, self.longest = shortest, longest

    def size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) of what is seen of a photo of that size."""
        if self.shortest <= 0:
            return height, width
        factor = self.shortest / min(height, width)
        new_height, new_width = (self.shortest, factor * width) if height < width else (factor * height, self.shortest)
        if max(new_height, new_width) > self.longest:
            factor = self.longest / max(new_height, new_width)
            new_height, new_width = new_height * factor, new_width * factor
        return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))

    def get_transform(self, image: np.ndarray) -> Transform:
        """For an image (H, W, 3) or (H, W)."""
        height, width = image.shape[:2]
        size = self.size(height, width)
        return NoOpTransform() if size == (height, width) else ResizeTransform(height, width, *size)


class ScaleCropMirrorTransform(Transform):
    """Resize, cut a window out, pad, mirror left to right: the result of one after the other, with fewer copies.

    Photos are resized by PyTorch, with the filter of Pillow's bilinear resizing: values differ by rounding, at most by
    2 of 255. On processors with AVX2 this takes a third of Pillow's time, on others twice as long.

    There is no ``inverse``: what lies outside of the window is gone.

    Args:
        size: (height, width) of the image, in pixels.
        scaled: (height, width) of the whole image after resizing.
        corner: (top, left) of the window in the resized image, not negative.
        window: (height, width) of the result. Where the window reaches past the resized image, which is on the right
            and below, it is padded.
        mirrored: mirror the window; in label maps the two classes of each flip pair change places.
        label_domain: names the flip pairs and the id of padded pixels.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scaled: tuple[int, int],
        corner: tuple[int, int],
        window: tuple[int, int],
        mirrored: bool,
        label_domain: LabelDomain,
    ) -> None:
        super().__init__()
        self.size, self.scaled, self.corner, self.window = size, scaled, corner, window
        self.mirrored = mirrored
        self.label_domain = label_domain
        # The part of the window that the image fills.
        self._filled = tuple(min(w, s - c) for w, s, c in zip(window, scaled, corner, strict=True))

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W, C) uint8 to (height, width, C): bilinear, antialiased; padded with 0. In memory it is (C, H, W)."""
        # PyTorch warns of arrays that may not be written to, as Pillow's are; only these are copied.
        planes = torch.from_numpy(np.require(img, requirements=["C", "W"])).permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, self.scaled, mode="bilinear", antialias=True)[0]
        (top, left), (height, width) = self.corner, self._filled
        part = planes[:, top : top + height, left : left + width]
        if self.mirrored:
            part = part.flip(-1)
        return self._padded(part.numpy(), 0).transpose(1, 2, 0)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """(H, W) uint8 ids to (height, width): the id of the nearest pixel; padded with the domain's ignore label."""
        rows, columns = (
            # The pixel under the centre of each place, in exact integers.
            (2 * np.arange(first, first + count) + 1) * have // (2 * scaled)
            for first, count, have, scaled in zip(self.corner, self._filled, self.size, self.scaled, strict=True)
        )
        part = segmentation.take(rows, axis=0).take(columns[::-1] if self.mirrored else columns, axis=1)
        if self.mirrored:
            swap = np.arange(256, dtype=segmentation.dtype)
            swap[: self.label_domain.num_classes] = self.label_domain.flip_permutation()
            part = swap.take(part)
        return self._padded(part, self.label_domain.ignore_label)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) of x, y in pixels of the image, to pixels of the window; points outside of it are kept."""
        moved = coords * np.divide(self.scaled, self.size)[::-1] - self.corner[::-1]
        if self.mirrored:
            moved[:, 0] = self.window[1] - moved[:, 0]
        return moved

    def _padded(self, part: np.ndarray, fill: int) -> np.ndarray:
        """(…, h, w) to (…, height, width); the padding is mirrored with the image."""
        if self._filled == self.window:
            return part
        padded = np.full((*part.shape[:-2], *self.window), fill, dtype=part.dtype)
        height, width = self._filled
        left = self.window[1] - width if self.mirrored else 0
        padded[..., :height, left : left + width] = part
        return padded


class RandomScaleCropMirror(Augmentation):
    """The paper's augmentation: resize by a random factor, a window of fixed size at a random place, mirror or not.

    The window's place is uniform over the resized image; a smaller image lies at the window's upper left corner.

    Args:
        crop_size: (height, width) of the result, in pixels.
        scale_range: smallest and largest factor, positive.
        per_axis: draw the factors of height and width apart, as Graphonomy and Grapy-ML do; else one for both.
        mirror_probability: in [0, 1].
    """

    def __init__(
        self,
        crop_size: tuple[int, int],
        scale_range: tuple[float, float] = (0.5, 2.0),
        per_axis: bool = False,
        mirror_probability: float = 0.5,
    ) -> None:
        super().__init__()
        low, high = scale_range
        if len(crop_size) != 2 or min(crop_size) < 1:
            raise ValueError(
                f"RandomScaleCropMirror: crop_size {tuple(crop_size)}; (height, width) in pixels is expected"
            )
        if not 0 < low <= high:
            raise ValueError(
                f"RandomScaleCropMirror: scale_range {tuple(scale_range)}; 0 < smallest <= largest is expected"
            )
        if not 0.0 <= mirror_probability <= 1.0:
            raise ValueError(f"RandomScaleCropMirror: mirror_probability {mirror_probability}; allowed are 0 to 1")
        self.crop_size = tuple(crop_size)
        self.scale_range = (low, high)
        self.per_axis = per_axis
        self.mirror_probability = mirror_probability

    def get_transform(self, image: np.ndarray, label_domain: LabelDomain) -> Transform:
        """Draw factors, place and mirroring. Needs an `SSTAugInput`, which carries ``label_domain``."""
        size = image.shape[:2]
        factors = np.random.uniform(*self.scale_range, size=2)
        if not self.per_axis:
            factors[1] = factors[0]
        scaled = tuple(max(1, round(side * factor)) for side, factor in zip(size, factors, strict=True))
        corner = tuple(
            np.random.randint(max(have - want, 0) + 1) for have, want in zip(scaled, self.crop_size, strict=True)
        )
        mirrored = np.random.uniform() < self.mirror_probability
        return ScaleCropMirrorTransform(size, scaled, corner, self.crop_size, mirrored, label_domain)
