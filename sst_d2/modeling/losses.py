"""`SSTLosses`: the segmentation loss of every label domain, weighed, equal on one process and on several."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from detectron2.utils import comm

# Inside the network every domain's ignore label has this value; class ids end at 254.
IGNORE = 255


class SSTLosses:
    """Turn logits and labels into the dict of losses that the trainer sums up.

    Args:
        seg_weight: α of Eq. (12), of the segmentation losses.
    """

    def __init__(self, seg_weight: float = 10.0) -> None:
        self.seg_weight = seg_weight

    def segmentation(
        self,
        logits: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
        counts: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy per domain (Eq. 1): the mean over the labelled pixels of *all* processes.

        A mean per process would weigh a pixel by what else its process holds; summed and divided by the common count,
        N processes have the gradients of one. A domain without a labelled pixel gives zero, with zero gradients.

        Args:
            logits: by domain, (b, K, h, w) float; b may be 0. The same domains on every process.
            labels: by domain, (b, H, W) int64, ids in [0, K) or `IGNORE`.
            counts: (domains,) labelled pixels of this process, in the order of ``logits``; None: those of ``labels``.
                Of a batch that comes in parts: those of the whole batch, so that the parts' losses add up to its loss.

        Returns:
            ``loss_seg/<domain>``: scalars, weighed.
        """
        if counts is None:
            counts = torch.stack([(labels[domain] != IGNORE).sum() for domain in logits])
        counts = counts.to(next(iter(logits.values())).device, torch.float32, copy=True)
        world_size = comm.get_world_size()
        if world_size > 1:
            torch.distributed.all_reduce(counts)
        # Detectron2 averages gradients over the processes: the factor makes that average the sum.
        scales = self.seg_weight * world_size / counts.clamp(min=1)
        return {
            f"loss_seg/{domain}": _summed_cross_entropy(logits[domain], labels[domain]) * scale
            for domain, scale in zip(logits, scales, strict=True)
        }


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(b, K, h, w) to (b, K, *size), bilinearly."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision sums badly
    full = upsample(precise, tuple(labels.shape[-2:]))
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum")
