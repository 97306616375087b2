"""`SSTLosses`: the terms of training, weighed (Eq. 1, 7, 10–13). Pixels labelled 'ignore' cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch.utils.checkpoint import checkpoint

from sst_d2.errors import SSTConfigError

IGNORE = 255
Pair = tuple[str, str]
# Probabilities below are taken as it: none is so small where the network is sound, and its inverse is still a number.
_SMALLEST = 1e-30


@dataclass(frozen=True)
class MappedPrediction:
    """What one label domain's head predicts, in the label system of another.

    Attributes:
        probabilities: (b, K, h, w), which add up to 1 over the K categories of the other.
        matrix: the map, (K of the head's domain, K), rows add up to 1.
        images: the label domain of the images.
        soft: (b, K, h, w) probabilities to compare with; None: the images' labels.
    """

    probabilities: torch.Tensor
    matrix: torch.Tensor
    images: str
    soft: torch.Tensor | None = None


@dataclass(frozen=True)
class AuxiliaryTerms:
    """What the training-only branch gives, not weighed.

    Attributes:
        logits: by domain A_aux (Eq. 7), (b, K, h, w).
        dataset: by pair of domains the rows of Eq. (10), (K_1,) and (K_2,).
        image: by pair of domains and scale the rows of Eq. (11), (b_1, b_2, K_1) and (b_1, b_2, K_2).
        present: by pair of domains and scale whether a category occurs, (b_1, K_1) and (b_2, K_2) bool.
        embeddings: by domain X_0, (K, D); no loss needs it, the training log does, as the next.
        categories: by domain X_L of its images, (b, K, D).
        predictions: by direction, the head's domain first; empty: the option is off.
    """

    logits: Mapping[str, torch.Tensor]
    dataset: Mapping[Pair, tuple[torch.Tensor, torch.Tensor]]
    image: Mapping[Pair, Sequence[tuple[torch.Tensor, torch.Tensor]]]
    present: Mapping[Pair, Sequence[tuple[torch.Tensor, torch.Tensor]]]
    embeddings: Mapping[str, torch.Tensor] = field(default_factory=dict)
    categories: Mapping[str, torch.Tensor] = field(default_factory=dict)
    predictions: Mapping[Pair, MappedPrediction] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchTotals:
    """What a batch that comes in parts holds in all, on this process.

    Attributes:
        labelled_pixels: (domains,) pixels that are not ignored.
        image_pairs: (pairs of domains,) pairs of images that meet, which they do inside a part only.
        parts: number of parts.
    """

    labelled_pixels: torch.Tensor
    image_pairs: torch.Tensor
    parts: int


class SSTLosses:
    """Turn logits, raw terms and labels into the dict of losses that the trainer sums up.

    Args:
        seg_weight: α of Eq. (12), of the segmentation losses.
        aux_weight: β, of the losses of A_aux.
        scr_weight: λ, of both levels of the consistency regularisation.
        dataset_share, image_share: factors of λ for each level.
        prediction_share: factor of α for mapped predictions.
        present_only: divide by the categories that occur, and leave the others out; else by all (Eq. 11), where an
            absent one costs the constant 1.
        mean: over the scales and the pairs of domains; else the sum (Eq. 11, 12).
        ramp: iterations over which λ grows from 0; 0: none.
    """

    def __init__(
        self,
        seg_weight: float = 10.0,
        aux_weight: float = 1.0,
        scr_weight: float = 5.0,
        *,
        dataset_share: float = 1.0,
        image_share: float = 1.0,
        prediction_share: float = 0.0,
        present_only: bool = False,
        mean: bool = False,
        ramp: int = 0,
    ) -> None:
        self.seg_weight, self.aux_weight, self.scr_weight = seg_weight, aux_weight, scr_weight
        self.dataset_share, self.image_share = dataset_share, image_share
        self.prediction_share = prediction_share
        self.present_only, self.mean, self.ramp = present_only, mean, ramp

    def segmentation(
        self,
        logits: Mapping[str, torch.Tensor],
        labels: Mapping[str, torch.Tensor],
        totals: BatchTotals | None = None,
    ) -> dict[str, torch.Tensor]:
        """Cross-entropy per domain (Eq. 1): the mean over the labelled pixels of *all* processes.

        A mean per process would weigh a pixel by what else its process holds; summed and divided by the common count,
        N processes have the gradients of one. A domain without a labelled pixel gives zero, with zero gradients.

        Args:
            logits: by domain, (b, K, h, w) float; b may be 0. The same domains on every process.
            labels: by domain, (b, H, W) int64, ids in [0, K) or `IGNORE`.
            totals: of a batch that comes in parts, so that the parts' losses add up to its loss; None: this is all.

        Returns:
            ``loss_seg/<domain>``: scalars, weighed.
        """
        return _cross_entropies("loss_seg", self.seg_weight, logits, labels, totals)

    def auxiliary(
        self, terms: AuxiliaryTerms, labels: Mapping[str, torch.Tensor], totals: BatchTotals | None = None
    ) -> dict[str, torch.Tensor]:
        """The losses of the training-only branch (Eq. 7, 10, 11), weighed.

        Pairs of images form within a process; each counts the same, over all processes and parts of the batch. The
        sums are divided by the common number of pairs, as the pixels of `segmentation` are.

        Args:
            terms: the branch's.
            labels, totals: as `segmentation`.

        Returns:
            ``loss_aux/<domain>``, ``loss_scr_dataset/<a>-<b>``, ``loss_scr_image/<a>-<b>``, and with the option
            ``loss_pred/<of>-<to>``: scalars.
        """
        losses = _cross_entropies("loss_aux", self.aux_weight, terms.logits, labels, totals)
        weight = self.scr_weight * self._ramped()
        parts = 1 if totals is None else totals.parts
        pairs = len(terms.dataset) or len(terms.image)
        for pair, rows in terms.dataset.items():
            value = sum(row.mean() for row in rows) / (pairs if self.mean else 1)
            losses[f"loss_scr_dataset/{'-'.join(pair)}"] = value * (weight * self.dataset_share / parts)
        if terms.image:
            losses.update(self._image_level(terms, weight * self.image_share / (pairs if self.mean else 1), totals))
        if terms.predictions:
            losses.update(self._predictions(terms.predictions, labels, totals))
        return losses

    def _predictions(
        self,
        predictions: Mapping[Pair, MappedPrediction],
        labels: Mapping[str, torch.Tensor],
        totals: BatchTotals | None,
    ) -> dict[str, torch.Tensor]:
        """The mean over labelled pixels, of all processes and parts, as that of `segmentation`."""
        device = next(iter(labels.values())).device
        scales = self.seg_weight * self.prediction_share * _shares(_labelled_pixels(labels, totals), device)
        of_domain = dict(zip(labels, scales, strict=True))
        losses = {}
        for direction, mapped in predictions.items():
            total = _summed_mapped_cross_entropy(mapped, labels[mapped.images])
            losses[f"loss_pred/{'-'.join(direction)}"] = total * of_domain[mapped.images].to(total.dtype)
        return losses

    def _image_level(self, terms: AuxiliaryTerms, weight: float, totals: BatchTotals | None) -> dict[str, torch.Tensor]:
        first = next(iter(terms.image.values()))[0][0]
        if totals is None:
            counts = torch.tensor([rows[0][0].shape[:2].numel() for rows in terms.image.values()])
        else:
            counts = totals.image_pairs
        scales = weight * _shares(counts, first.device)
        losses = {}
        for (pair, rows), scale in zip(terms.image.items(), scales, strict=True):
            firsts, seconds = (torch.stack(side) for side in zip(*rows, strict=True))
            of_first, of_second = (torch.stack(side) for side in zip(*terms.present[pair], strict=True))
            total = self._summed(firsts, of_first[:, :, None]) + self._summed(seconds, of_second[:, None])
            losses[f"loss_scr_image/{'-'.join(pair)}"] = total / (len(rows) if self.mean else 1) * scale.to(total.dtype)
        return losses

    def _summed(self, rows: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        """The sum, over scales and pairs of images, of means over categories: (L, b_1, b_2, K) to a scalar."""
        if not self.present_only:
            return rows.sum() / rows.shape[-1]
        return ((rows * present).sum(dim=-1) / present.sum(dim=-1).clamp(min=1)).sum()

    def _ramped(self) -> float:
        if not self.ramp:
            return 1.0
        try:
            iteration = get_event_storage().iter
        except AssertionError as reason:
            raise SSTConfigError(
                f"MODEL.SST.AUXILIARY.RAMP: {self.ramp} iterations (of the preset, where the key is -1), and nobody "
                "counts them: run the steps inside `with detectron2.utils.events.EventStorage(start_iteration):`, as "
                "Detectron2's trainers do, or set RAMP 0"
            ) from reason
        return min(1.0, iteration / self.ramp)


def upsample(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(b, K, h, w) to (b, K, *size), bilinearly."""
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def _cross_entropies(
    name: str,
    weight: float,
    logits: Mapping[str, torch.Tensor],
    labels: Mapping[str, torch.Tensor],
    totals: BatchTotals | None,
) -> dict[str, torch.Tensor]:
    scales = weight * _shares(_labelled_pixels(labels, totals), next(iter(logits.values())).device)
    losses = {}
    for domain, scale in zip(labels, scales, strict=True):
        total = _summed_cross_entropy(logits[domain], labels[domain])
        losses[f"{name}/{domain}"] = total * scale.to(total.dtype)
    return losses


def _labelled_pixels(labels: Mapping[str, torch.Tensor], totals: BatchTotals | None) -> torch.Tensor:
    """By domain, in the order of ``labels``, of the whole batch of this process."""
    if totals is not None:
        return totals.labelled_pixels
    return torch.stack([(own != IGNORE).sum() for own in labels.values()])


def _shares(counts: torch.Tensor, device: torch.device) -> torch.Tensor:
    """What one of so many things on this process weighs in a mean over all processes: float64, which counts exactly."""
    counts = counts.to(device, torch.float64, copy=True)
    world_size = comm.get_world_size()
    if world_size > 1:
        torch.distributed.all_reduce(counts)
    # Detectron2 averages gradients over the processes: the factor makes that average the sum.
    return world_size / counts.clamp(min=1)


def _summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))  # half precision sums badly
    full = upsample(precise, tuple(labels.shape[-2:]))
    return F.cross_entropy(full, labels, ignore_index=IGNORE, reduction="sum")


def _summed_mapped_cross_entropy(mapped: MappedPrediction, labels: torch.Tensor) -> torch.Tensor:
    """Over the labelled pixels of (b, H, W) labels.

    Probabilities are up-sampled, not logits: that commutes with the map. Soft targets are no larger than what they are
    compared with, so these are compared in their own size, and each of its pixels counts as up-sampling spreads it.
    """
    known = labels != IGNORE
    size = tuple(labels.shape[-2:])
    if mapped.soft is None:
        # Computed once more on the way back, instead of kept: K numbers per pixel of the labels.
        likely = checkpoint(_likelihoods, mapped.probabilities, labels, use_reentrant=False, preserve_rng_state=False)
        entropies = -likely.clamp(min=_SMALLEST).log()
    else:
        logarithms = mapped.probabilities.clamp(min=_SMALLEST).log()
        entropies = upsample(-(mapped.soft * logarithms).sum(dim=1, keepdim=True), size)[:, 0]
    return torch.where(known, entropies, 0.0).sum()


def _likelihoods(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """(b, K, h, w) and (b, H, W) to the probability of each pixel's own label, (b, H, W); of ignored ones another's."""
    full = upsample(probabilities, tuple(labels.shape[-2:]))
    return full.gather(1, labels.masked_fill(labels == IGNORE, 0)[:, None])[:, 0]
