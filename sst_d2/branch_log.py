"""`BranchLog`: once per evaluation, what the training-only branch does with the categories, in figures."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.engine import HookBase
from torch import nn

from sst_d2.evaluation import confusion_matrix, scores_from_confusion

# MST does nothing any more where the mean cosine of X_3 is above the first, and the mean mismatch of images below the
# second. In small trials on synthetic people the preset "paper" had 0.98 to 0.99 and 0.011 to 0.015 after 100
# iterations, and 0.002 after 800; "stable" 0.3 to 0.8 and 0.16 to 0.28.
PARALLEL, NOTHING_LEFT = 0.9, 0.05
# What the model makes of every domain's ignore label.
_IGNORE = 255
# Half precision loses small gradients: a loss is multiplied by the first factor whose gradients are finite.
_FACTORS = (2.0**16, 2.0**8, 1.0)
# Key of the figures, without domain or pair, and its words and digits in the line of the log.
_WORDS = {
    "sst/cosine_x0/": ("mean cosine of X_0", "{:.3f}"),
    "sst/cosine_x3/": ("of X_3", "{:.3f}"),
    "sst/miou_aux/": ("mIoU of A_aux", "{:.1f}"),
    "sst/scr_image_present/": ("mismatch of images where categories occur", "{:.3f}"),
    "sst/miou_mapped/": ("mIoU of mapped predictions", "{:.1f}"),
    "sst/certainty/": ("largest entry of a row of T", "{:.2f}"),
    "sst/gradient/": ("norm of the gradient on F", "{:.2g}"),
    "sst/alignment/": ("its cosine with the segmentation losses'", "{:.2f}"),
}


class BranchLog(HookBase):
    """Figures of the branch, from the training batch of the iterations that an evaluation follows.

    They are the main process's, of its own images, and with ``SOLVER.SST.ACCUMULATE`` of the first part of them; before
    the iteration's update. Other iterations cost nothing. No random number is drawn, no weight and no gradient changes.
    Put it in front of the checkpoints: they hold the figures of their own iteration then, for a resumed run.

    In the storage, and in one line of the log:
        ``sst/cosine_x0/<domain>``: mean cosine of two different rows of X_0.
        ``sst/cosine_x3/<domain>``: the same of X_L, mean over the domain's images; all rows, of absent categories too.
        ``sst/miou_aux/<domain>``: mIoU of A_aux on the domain's images, in percent, as `SSTSemSegEvaluator` defines it.
        ``sst/scr_image_present/<a>-<b>``: mean of 1 - cosine (Eq. 11), over all scales, pairs of images, both
            directions, and the categories that occur.
        ``sst/miou_mapped/<of>-<to>``: with ``PREDICTION``, mIoU of the mapped predictions in percent, against what
            they are compared with: labels, or what a source finds most likely.
        ``sst/certainty/<of>-<to>``: the largest entry of a row of their map, mean over the rows.
        ``sst/gradient/<loss>``: on request, the norm of the gradient of the weighed loss on F (H_3).
        ``sst/alignment/<kind of loss>``: with it, the cosine of the gradient of all losses of a kind ("loss_aux",
            "loss_scr_image" …) with that of all segmentation losses: 1 where both pull alike, 0 where they have
            nothing to do with each other.
    A figure is left out where the batch has no image for it. In dedicated training the domain is the target's.

    Args:
        network: `SST` with its branch, without a wrapper for several processes.
        period: iterations between evaluations; 0: after training only.
        gradients: whether the norms are wanted.
    """

    def __init__(self, network: nn.Module, period: int, gradients: bool = False) -> None:
        self._network = network
        self._period = period
        self._gradients = gradients
        self._features: torch.Tensor | None = None
        self._figures: dict[str, float] = {}
        self._pairs: list[tuple[str, str]] = []
        self._handles: list[Any] = []
        self._warned: list[str] = []

    def before_step(self) -> None:
        """Look at the iteration's first batch, if an evaluation follows it."""
        following = self.trainer.iter + 1
        if following != self.trainer.max_iter and (self._period == 0 or following % self._period):
            return
        network = self._network
        self._handles = [
            network.auxiliary.register_forward_hook(self._see_terms, with_kwargs=True),
            network.register_forward_hook(self._see_losses),
        ]
        if self._gradients:
            self._handles.append(network.decoder.register_forward_hook(self._see_features))

    def after_step(self) -> None:
        """Write the figures down; warn of every pair that has degenerated, once."""
        self._let_go()
        figures, self._figures = self._figures, {}
        if not figures:
            return
        self.trainer.storage.put_scalars(**figures, smoothing_hint=False)
        logger = logging.getLogger(__name__)
        logger.info("SST, iteration %d: %s", self.trainer.iter, described(figures))
        for pair in self._pairs:
            name, sentence = "-".join(pair), degenerated(figures, pair)
            if sentence and name not in self._warned:
                self._warned.append(name)
                logger.warning(sentence)

    def after_train(self) -> None:
        """Also where a step has failed."""
        self._let_go()

    def state_dict(self) -> dict[str, Any]:
        """The pairs that a warning has named."""
        return {"warned": list(self._warned)} if self._warned else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._warned = list(state["warned"])

    def _let_go(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._features = [], None

    def _see_terms(self, module: nn.Module, arguments: Any, keywords: Mapping[str, Any], terms: Any) -> None:
        self._pairs = list(terms.image)
        with torch.no_grad():
            self._figures.update(figures_of(terms, keywords["labels"], keywords["domains"]))

    def _see_features(self, module: nn.Module, arguments: Any, features: Mapping[int, torch.Tensor]) -> None:
        self._features = features[4]

    def _see_losses(self, module: nn.Module, arguments: Any, losses: Mapping[str, torch.Tensor]) -> None:
        features = self._features
        self._let_go()  # other parts of the batch go through the network unseen
        if features is not None:
            self._figures.update(gradient_figures(losses, features))


def figures_of(terms: Any, labels: torch.Tensor, names: Sequence[str]) -> dict[str, float]:
    """All figures but the gradients', by their keys in the storage.

    Args:
        terms: `sst_d2.modeling.losses.AuxiliaryTerms`.
        labels: (B, H, W) int64, ids or 255.
        names: B label domains.
    """
    figures = {f"sst/cosine_x0/{name}": mean_cosine(rows) for name, rows in terms.embeddings.items()}
    for name, rows in terms.categories.items():
        if len(rows):
            figures[f"sst/cosine_x3/{name}"] = mean_cosine(rows)
    for name, logits in terms.logits.items():
        own = labels[[row for row, other in enumerate(names) if other == name]]
        if (own != _IGNORE).any():
            figures[f"sst/miou_aux/{name}"] = mask_miou(logits, own)
    for direction, mapped in terms.predictions.items():
        figures[f"sst/certainty/{'-'.join(direction)}"] = float(mapped.matrix.max(dim=1).values.mean())
        own = labels[[row for row, other in enumerate(names) if other == mapped.images]]
        if mapped.soft is not None:
            own = torch.where(own == _IGNORE, own, _most_likely(mapped.soft, own.shape[-2:]))
        if (own != _IGNORE).any():
            figures[f"sst/miou_mapped/{'-'.join(direction)}"] = mask_miou(mapped.probabilities, own)
    for pair, rows in terms.image.items():
        present = present_rows(rows, terms.present[pair])
        if len(present):
            figures[f"sst/scr_image_present/{'-'.join(pair)}"] = float(present.mean())
    return figures


def mean_cosine(vectors: torch.Tensor) -> float:
    """Mean cosine of two different rows of (K, D), K above 1; of (b, K, D) also over the b."""
    unit = F.normalize(vectors.cpu().double(), dim=-1)
    count = unit.shape[-2]
    cosines = (unit @ unit.transpose(-1, -2)).masked_fill(torch.eye(count, dtype=torch.bool), 0.0)
    return float(cosines.sum(dim=(-2, -1)).mean() / (count * (count - 1)))


def mask_miou(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """mIoU in percent of logits (b, K, h, w) against label maps (b, H, W), in the label maps' size."""
    prediction, truth = _most_likely(logits, labels.shape[-2:]).cpu().numpy(), labels.cpu().numpy()
    return scores_from_confusion(confusion_matrix(prediction, truth, logits.shape[1], _IGNORE))["mIoU"]


def _most_likely(scores: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(b, K, h, w) to (b, *size) int64."""
    return F.interpolate(scores.float(), size=tuple(size), mode="bilinear", align_corners=False).argmax(dim=1)


def present_rows(
    rows: Sequence[tuple[torch.Tensor, torch.Tensor]], present: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> torch.Tensor:
    """What `AuxiliaryTerms.image` holds for a pair of domains of categories that occur in their image, (n,) float64."""
    kept = []
    for (first, second), (of_first, of_second) in zip(rows, present, strict=True):
        kept += [first[of_first[:, None].expand_as(first)], second[of_second[None].expand_as(second)]]
    return torch.cat(kept).double()


def gradient_figures(losses: Mapping[str, torch.Tensor], features: torch.Tensor) -> dict[str, float]:
    """``sst/gradient/<loss>`` of all losses, and ``sst/alignment/<kind>`` of all kinds but the segmentation losses."""
    norms, kinds = {}, {}
    for name, loss in losses.items():
        gradient, kind = gradient_on(loss, features), name.split("/")[0]
        norms[f"sst/gradient/{name}"] = 0.0 if gradient is None else float(torch.linalg.vector_norm(gradient))
        if gradient is not None:
            kinds[kind] = kinds[kind] + gradient if kind in kinds else gradient
    task = kinds.pop("loss_seg", None)
    cosines = {} if task is None else {f"sst/alignment/{kind}": cosine(task, own) for kind, own in kinds.items()}
    return {**norms, **cosines}


def gradient_on(loss: torch.Tensor, features: torch.Tensor) -> torch.Tensor | None:
    """A loss's gradient on the features, in float32 at least; None where there is none. The graph stays."""
    if not loss.requires_grad:
        return None
    with torch.autocast(features.device.type, enabled=False):
        for factor in _FACTORS:
            start = torch.full_like(loss, factor)
            (gradient,) = torch.autograd.grad(loss, features, start, retain_graph=True, allow_unused=True)
            if gradient is None:
                return None
            gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32)) / factor
            if math.isfinite(float(torch.linalg.vector_norm(gradient))):
                break
    return gradient


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    """Of two tensors of one shape, seen as vectors; 0 where one of them is 0."""
    lengths = torch.linalg.vector_norm(first) * torch.linalg.vector_norm(second)
    return float((first * second).sum() / lengths) if lengths != 0 else 0.0


def described(figures: Mapping[str, float]) -> str:
    """One line: "mean cosine of X_0: atr 0.012, cihp 0.010; of X_3: …"."""
    parts = []
    for key, (words, digits) in _WORDS.items():
        values = [f"{name[len(key) :]} {digits.format(v)}" for name, v in figures.items() if name.startswith(key)]
        if values:
            parts.append(f"{words}: {', '.join(values)}")
    return "; ".join(parts)


def degenerated(figures: Mapping[str, float], pair: Sequence[str]) -> str:
    """What to say of a pair of domains between which MST does nothing any more; "" of others."""
    mismatch = figures.get(f"sst/scr_image_present/{'-'.join(pair)}", math.inf)
    # Of a source's domain the batch has no X_3 that trains.
    cosines = {name: figures[f"sst/cosine_x3/{name}"] for name in pair if f"sst/cosine_x3/{name}" in figures}
    if mismatch >= NOTHING_LEFT or min(cosines.values(), default=0.0) <= PARALLEL:
        return ""
    return (
        f"MST does nothing between {' and '.join(pair)} any more: the rows of X_3 are nearly parallel (mean cosine: "
        f"{', '.join(f'{name} {value:.3f}' for name, value in cosines.items())}), so every category looks like every "
        f"other, and the comparison of images finds next to no mismatch where categories occur ({mismatch:.4f}). What "
        "helps: MODEL.SST.AUXILIARY.PRESET stable; beside it, a smaller IMAGE_LEVEL (docs/DECISIONS.md)"
    )
