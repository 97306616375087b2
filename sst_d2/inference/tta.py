"""`SSTWithTTA`: test-time augmentation. An image is seen in several sizes, plain and mirrored; logits are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import LabelDomain, get_label_domain

_ALL_DOMAINS = "all"


class SSTWithTTA(nn.Module):
    """A model in whose place it stands, with test-time augmentation as in Graphonomy and Grapy-ML.

    Each image is scaled by every factor (to int(h·s) × int(w·s) pixels, bilinearly, smoothed when it shrinks) and goes
    through the model plain and mirrored. The logits of mirrored images are mirrored back, and the channels of left and
    right change places, by the flip pairs of the label domain. The logits of all passes, before any softmax, are
    averaged at the size of the result. One pass follows the other into one running sum: memory does not grow with
    the number of passes.

    For every Detectron2 model that takes a list of dicts with ``image``, ``height`` and ``width`` and answers with a
    dict with ``sem_seg`` each, not only for `SST`. The model's weights and mode stay as they are.

    Args:
        model: the model, in evaluation mode when it is called; of a ``DistributedDataParallel`` the module inside.
        scales: factors of the image's size, positive.
        flip: see every scaled image mirrored too.
        domains: records of the label domains; None: the model's own (``model.domains``, by name). A name that is
            not among them is looked up with `get_label_domain`.
        default_domain: label domain of inputs that name none, and the one whose logits become ``sem_seg`` where an
            input asks for all; None: ``model.default_domain``, if it has one.

    Raises:
        SSTConfigError: ``scales`` is empty or holds a number that is not positive.
    """

    @configurable
    def __init__(
        self,
        model: nn.Module,
        *,
        scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
        flip: bool = True,
        domains: Sequence[LabelDomain] | None = None,
        default_domain: str | None = None,
    ) -> None:
        super().__init__()
        if not scales or min(scales) <= 0:
            raise SSTConfigError(f"TEST.SST.SCALES: {list(scales)}; at least one factor, all positive, is expected")
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.training = self.model.training  # so that who switches to evaluation and back gives the model its own mode
        self.passes = [(scale, mirrored) for scale in scales for mirrored in ([False, True] if flip else [False])]
        self.domains = {domain.name: domain for domain in (_domains_of(self.model) if domains is None else domains)}
        self.default_domain = default_domain or getattr(self.model, "default_domain", None)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Read ``TEST.SST.SCALES`` and ``TEST.AUG.FLIP``."""
        return {"model": model, "scales": cfg.TEST.SST.SCALES, "flip": cfg.TEST.AUG.FLIP}

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Predict.

        Args:
            batched_inputs: what the model takes, one dict per image; not changed. Read are:
                ``image``: (3, H, W) uint8 or float, any size.
                ``height``, ``width``: size of the result; by default the image's own.
                ``label_domain``: a name, or "all" for a model that knows it; by default ``default_domain``.

        Returns:
            One dict per image:
                ``sem_seg``: (K, height, width) float32 logits (float64 if the model's are), averaged.
                ``sem_seg_by_domain``: with "all", by domain name (K, height, width).

        Raises:
            SSTConfigError: the model is in training mode, an input has no label domain, or the model's answer is
                none that can be averaged.
            LabelDomainError: a label domain is not known.
        """
        if self.model.training:
            name = type(self.model).__name__
            raise SSTConfigError(f"test-time augmentation: the model ({name}) is in training mode; call eval() first")
        samples = [_with_size(sample) for sample in batched_inputs]
        names = [self._domain_of(sample) for sample in samples]
        sums: list[dict[str, torch.Tensor]] = [{} for _ in samples]
        for scale, mirrored in self.passes:
            self._add_pass(sums, samples, names, scale, mirrored)
        return [self._average(*entry) for entry in zip(sums, samples, names, strict=True)]

    def _domain_of(self, sample: Mapping[str, Any]) -> str:
        """The input's label domain, or of "all" the one that becomes ``sem_seg``."""
        name = sample.get("label_domain", self.default_domain)
        name = self.default_domain if name == _ALL_DOMAINS else name
        if name is None:
            raise SSTConfigError(
                f"{sample.get('file_name', 'an input')}: test-time augmentation must know which classes are left and "
                "right; give the input `label_domain`, or SSTWithTTA `default_domain`"
            )
        return name

    def _add_pass(
        self,
        sums: list[dict[str, torch.Tensor]],
        samples: list[dict[str, Any]],
        names: list[str],
        scale: float,
        mirrored: bool,
    ) -> None:
        """One pass of the batch. A function of its own: its images and logits are gone before the next one's come."""
        views = [{**sample, "image": _view(sample["image"], scale, mirrored)} for sample in samples]
        for total, sample, name, output in zip(sums, samples, names, self.model(views), strict=True):
            for domain, logits in self._logits_by_domain(sample, name, output).items():
                if mirrored:
                    swap = torch.from_numpy(self._record(domain).flip_permutation())
                    logits = logits.flip(-1)[swap.to(logits.device)]
                if domain in total:
                    total[domain] += logits
                else:
                    total[domain] = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)

    def _logits_by_domain(
        self, sample: Mapping[str, Any], name: str, output: Mapping[str, Any]
    ) -> dict[str, torch.Tensor]:
        """The logits of one answer, by domain, checked."""
        of_all = sample.get("label_domain") == _ALL_DOMAINS
        key = "sem_seg_by_domain" if of_all else "sem_seg"
        model = f"test-time augmentation: the model ({type(self.model).__name__})"
        if key not in output or (of_all and name not in output[key]):
            found = f"{key} of {sorted(output[key])}, without '{name}'" if key in output else f"{sorted(output)}"
            raise SSTConfigError(f"{model} answers with {found}; `{key}` is needed")
        by_domain = dict(output[key]) if of_all else {name: output[key]}
        for domain, logits in by_domain.items():
            expected = (self._record(domain).num_classes, sample["height"], sample["width"])
            if tuple(logits.shape) != expected:
                raise SSTConfigError(
                    f"{model} answers with logits of the shape {tuple(logits.shape)}; label domain '{domain}' and the "
                    f"input's `height` and `width` ask for (K, height, width) = {expected}"
                )
        return by_domain

    def _record(self, name: str) -> LabelDomain:
        return self.domains[name] if name in self.domains else get_label_domain(name)

    def _average(
        self, total: dict[str, torch.Tensor], sample: Mapping[str, Any], name: str
    ) -> dict[str, torch.Tensor | dict[str, torch.Tensor]]:
        averages = {domain: logits.div_(len(self.passes)) for domain, logits in total.items()}
        if sample.get("label_domain") == _ALL_DOMAINS:
            return {"sem_seg": averages[name], "sem_seg_by_domain": averages}
        return {"sem_seg": averages[name]}


def _domains_of(model: nn.Module) -> list[LabelDomain]:
    domains = getattr(model, "domains", None)
    return [d for d in domains.values() if isinstance(d, LabelDomain)] if isinstance(domains, Mapping) else []


def _with_size(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The input with the size of its result: asked for it, the model interpolates once, not twice."""
    height, width = sample["image"].shape[-2:]
    return {**sample, "height": sample.get("height", height), "width": sample.get("width", width)}


def _view(image: torch.Tensor, scale: float, mirrored: bool) -> torch.Tensor:
    """The image (C, H, W) in another size, mirrored if asked for; a float tensor where its size changes.

    Grey values stay fractions, where Pillow would round them, and double precision makes the weights of the left and
    of the right equal: the mirrored image gives the mirrored result.
    """
    height, width = image.shape[-2:]
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    if size != (height, width):
        resized = F.interpolate(image[None].double(), size, mode="bilinear", align_corners=False, antialias=True)[0]
        image = resized if image.dtype == torch.float64 else resized.float()
    return image.flip(-1) if mirrored else image
