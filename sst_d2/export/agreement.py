"""Whether an exported network says what the model says: on photos, in several sizes where the file takes any."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import nn

from sst_d2.errors import SSTCheckpointError

# Of the pixels, at least so many must get the same class,
NEEDED = 0.999
# and logits may differ by this share of how much those of a class vary over the photo, and, for what does not vary, by
# this share of the largest one: rounding stays a thousand times below it. Classes alone would pass where one wins
# everywhere.
_OF_VARIATION, _OF_SIZE = 1e-2, 1e-5
# (height, width): one window and many, multiples of 32 and others; a trace that has frozen a size fails at another.
SIZES = ((64, 64), (97, 131), (200, 333), (384, 288))
_LONGEST = 640  # a larger photo is compared at this longer side
Run = Callable[[torch.Tensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Agreement:
    """How two networks agree on one photo.

    Attributes:
        size: (height, width) of the photo.
        equal: share of pixels with the same class; of several label domains the smallest.
        largest: largest difference of two logits; None: label maps were compared.
        allowed: largest difference that rounding excuses; of several label domains that of the worst one.
        classes: how many classes the model sees on the photo; of several label domains the most.
    """

    size: tuple[int, int]
    equal: float
    largest: float | None
    allowed: float
    classes: int

    @property
    def holds(self) -> bool:
        """Whether it is enough."""
        return self.equal >= NEEDED and (self.largest is None or self.largest <= self.allowed)


def in_sizes(photos: Sequence[np.ndarray], size: tuple[int, int] | None) -> Iterator[np.ndarray]:
    """The photos to compare: in ``size``; or, None, in their own sizes, and one of them in each of `SIZES`."""
    if size is not None:
        yield from (_resized(photo, size) for photo in photos)
        return
    for photo in photos:
        factor = min(1.0, _LONGEST / max(photo.shape[:2]))
        yield _resized(photo, tuple(max(1, round(side * factor)) for side in photo.shape[:2]))
    for number, other in enumerate(SIZES):
        yield _resized(photos[number % len(photos)], other)


def compare(model: nn.Module, channel_order: str, run: Run, domains: Sequence[str], photo: np.ndarray) -> Agreement:
    """Compare the model with what was exported.

    Args:
        model: an `SST` in evaluation mode, on the CPU.
        channel_order: of the model's input, "RGB" or "BGR".
        run: what was exported: a photo (1, 3, H, W) uint8, RGB, to ``logits_<domain>`` (1, K, H, W) or
            ``labels_<domain>`` (1, H, W).
        domains: names of the label domains to look at.
        photo: (H, W, 3) uint8, RGB.

    Raises:
        SSTCheckpointError: the model itself answers NaN or infinity.
    """
    image = torch.from_numpy(photo.transpose(2, 0, 1).copy())
    with torch.no_grad():
        outputs = run(image[None])
        sample = {"image": image if channel_order == "RGB" else image.flip(0), "label_domain": "all"}
        expected = model([sample])[0]["sem_seg_by_domain"]
    shares, differences, classes = [], [], []
    for domain in domains:
        wanted = expected[domain]
        if not wanted.isfinite().all():
            raise SSTCheckpointError(
                f"the network answers NaN or infinity for '{domain}': its weights are damaged; take another checkpoint"
            )
        if f"labels_{domain}" in outputs:
            labels = outputs[f"labels_{domain}"][0]
        else:
            labels = outputs[f"logits_{domain}"][0].argmax(0)
            difference = (outputs[f"logits_{domain}"][0] - wanted).abs().max().item()
            differences.append((difference, _excused(wanted)))
        own = wanted.argmax(0)
        shares.append((labels == own).double().mean().item())
        classes.append(len(own.unique()))
    # The domain that comes nearest to what is allowed, or is furthest beyond it; NaN is beyond everything.
    worst = max(differences, key=lambda pair: np.nan_to_num(pair[0], nan=np.inf) / pair[1], default=(None, 0.0))
    return Agreement(tuple(image.shape[-2:]), min(shares), *worst, max(classes))


def _excused(logits: torch.Tensor) -> float:
    """By how much others may differ from the model's (K, H, W)."""
    variation = (logits.amax(dim=(1, 2)) - logits.amin(dim=(1, 2))).max().item()
    return _OF_VARIATION * variation + _OF_SIZE * max(logits.abs().max().item(), 1e-3)


def _resized(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if photo.shape[:2] == size:
        return photo
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BILINEAR))
