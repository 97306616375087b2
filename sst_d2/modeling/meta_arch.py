"""`SST`: the human parsing network, as a Detectron2 meta-architecture. One trunk, one head per label domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from sst_d2.config_checks import check_values
from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import LabelDomain, get_label_domain
from sst_d2.modeling.decoder import build_sst_decoder
from sst_d2.modeling.heads import SSTHeads
from sst_d2.modeling.label_maps import label_map
from sst_d2.modeling.losses import IGNORE, BatchTotals, SSTLosses, upsample
from sst_d2.modeling.presets import preset_value

# The coarsest map has stride 32; sides are padded to whole pixels of it.
_STRIDE = 32
ALL_DOMAINS = "all"


@META_ARCH_REGISTRY.register()
class SST(nn.Module):
    """Backbone, decoder and heads; in training losses come out, else logits.

    Args:
        backbone: a Detectron2 backbone.
        decoder: from the backbone's features to {16: H_1, 8: H_2, 4: H_3}, see `sst_d2.modeling.decoder`.
        heads: one head per label domain.
        domains: the label domains, in the order of the heads.
        losses: turns logits and labels into losses.
        pixel_mean, pixel_std: per channel, in the order of the input's channels, in 0..255.
        default_domain: domain of inputs that name none; None: the first.
        auxiliary: training-only module, called with ``images`` (B, 3, H, W), ``features`` (the decoder's dict),
            ``labels`` (B, H, W), ``domains`` (B names), ``logits`` (by domain) and ``heads`` (from features and a
            domain's name to logits); returns `AuxiliaryTerms`.

    Raises:
        SSTConfigError: ``default_domain`` is none of ``domains``.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        decoder: nn.Module,
        heads: SSTHeads,
        domains: Sequence[LabelDomain],
        losses: SSTLosses,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        default_domain: str | None = None,
        auxiliary: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = decoder
        self.heads = heads
        self.auxiliary = auxiliary
        self.losses = losses
        self.domains = {domain.name: domain for domain in domains}
        self.default_domain = default_domain or next(iter(self.domains))
        if self.default_domain not in self.domains:
            raise SSTConfigError(
                f"MODEL.SST.DEFAULT_DOMAIN: '{self.default_domain}' is none of MODEL.SST.DOMAINS: "
                f"{', '.join(self.domains)}"
            )
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode, domains: Sequence[LabelDomain] | None = None) -> dict[str, Any]:
        """Read ``MODEL``, after a look at its values: a user's own script does not pass through `merge_config`.

        ``domains``, the records that a checkpoint carries, go before the names in ``MODEL.SST.DOMAINS``.
        """
        check_values(cfg, below="MODEL.")
        if domains is None:
            domains = [get_label_domain(reference) for reference in cfg.MODEL.SST.DOMAINS]
        if not domains:
            raise SSTConfigError(
                "MODEL.SST.DOMAINS is empty; name at least one label domain, e.g. [pascal_person_part]"
            )
        backbone = build_backbone(cfg)
        decoder = build_sst_decoder(cfg, backbone.output_shape())
        heads = SSTHeads(decoder.out_channels, domains)
        auxiliary = None
        if cfg.MODEL.SST.AUXILIARY.ENABLED:
            # Here and nowhere else: a process that only predicts never loads what serves training.
            from sst_d2.modeling.auxiliary import AuxiliaryBranch

            auxiliary = AuxiliaryBranch(cfg, domains, decoder.out_channels)
        return {
            "backbone": backbone,
            "decoder": decoder,
            "heads": heads,
            "domains": domains,
            "losses": _losses_from_config(cfg.MODEL.SST),
            "auxiliary": auxiliary,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "default_domain": cfg.MODEL.SST.DEFAULT_DOMAIN or None,
        }

    @property
    def device(self) -> torch.device:
        """Where the model's parameters lie."""
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """Both sides of a batch are padded, at the right and below, to a multiple of it."""
        return max(self.backbone.size_divisibility, _STRIDE)

    def forward(
        self, batched_inputs: list[dict[str, Any]], totals: BatchTotals | None = None
    ) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Train or predict.

        Args:
            batched_inputs: one dict per image:
                ``image``: (3, H, W) uint8 or float in 0..255, channels as ``INPUT.FORMAT`` says, any size.
                ``label_domain``: name of the image's domain; in training needed, else optional, and may be "all".
                ``sem_seg``: (H, W) int64, ids in [0, K) or the domain's ignore label; in training.
                ``height``, ``width``: size of the result; optional, the image's own by default; in prediction.
                ``output``: "logits" (default) or "labels"; in prediction.
            totals: in training on a batch that comes in parts: `totals_of` all parts, so that the parts' losses and
                gradients add up to the whole one's; None: this is the whole batch.

        Returns:
            In training a dict of scalars, the same keys on every step and process: ``loss_seg/<domain>``, and with
            ``auxiliary`` those of `SSTLosses.auxiliary`. Else one dict per image:
                ``sem_seg``: (K, height, width) float logits of the image's domain, of "all" of the default domain.
                ``sem_seg_by_domain``: with "all", by domain name (K, height, width).
            Of an image with ``output`` "labels", which never has the logits of all its pixels in memory, instead:
                ``labels``: (height, width) uint8, the arg-max of ``sem_seg``.
                ``logits``: (K, h, w), as the head gives them, over the padded image.
                ``padded``, ``crop``: (height, width) of the padded image, and of the image in its upper left corner.
                ``labels_by_domain``, ``logits_by_domain``: with "all", by domain name.

        Raises:
            SSTConfigError: an image names a domain that the model has no head for, or an unknown ``output``.
        """
        images = self._normalised_images(batched_inputs)
        names = [self._domain_of(sample) for sample in batched_inputs]
        features = self.decoder(self.backbone(images.tensor))
        if self.training:
            return self._losses(batched_inputs, images, features, names, totals)
        return self._predictions(batched_inputs, images, features, names)

    def totals_of(self, parts: Sequence[list[dict[str, Any]]]) -> BatchTotals:
        """Count what a batch holds that comes in ``parts``, lists of training inputs."""
        pixels = dict.fromkeys(self.domains, 0)
        pairs = []
        for part in parts:
            names = [self._domain_of(sample) for sample in part]
            for name, sample in zip(names, part, strict=True):
                labels = sample["sem_seg"]
                pixels[name] += int(((labels != self.domains[name].ignore_label) & (labels != IGNORE)).sum())
            pairs.append([] if self.auxiliary is None else self.auxiliary.count_image_pairs(names))
        return BatchTotals(torch.tensor(list(pixels.values())), torch.tensor(pairs).sum(dim=0), len(parts))

    def _normalised_images(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        images = [(sample["image"].to(self.device) - self.pixel_mean) / self.pixel_std for sample in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility)

    def _domain_of(self, sample: dict[str, Any]) -> str:
        if sample.get("output", "logits") not in ("logits", "labels"):
            raise SSTConfigError(f"an input's `output` is {sample['output']!r}; allowed: 'logits', 'labels'")
        name = sample.get("label_domain", None if self.training else self.default_domain)
        if name in self.domains or (name == ALL_DOMAINS and not self.training):
            return name
        raise SSTConfigError(
            f"{sample.get('file_name', 'an input')}: label_domain is {name!r}; the model has heads for "
            f"{', '.join(self.domains)}" + ("" if self.training else f", and '{ALL_DOMAINS}' asks for all of them")
        )

    def _losses(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        features: dict[int, torch.Tensor],
        names: list[str],
        totals: BatchTotals | None,
    ) -> dict[str, torch.Tensor]:
        labels = self._padded_labels(batched_inputs, names, tuple(images.tensor.shape[-2:]))
        rows = {domain: [row for row, name in enumerate(names) if name == domain] for domain in self.domains}
        # A domain that the batch lacks goes through its head as a batch of none: a zero that keeps the head's
        # parameters in the graph, which distributed training needs.
        logits = {domain: self.heads(features[4][index], domain) for domain, index in rows.items()}
        by_domain = {domain: labels[index] for domain, index in rows.items()}
        losses = self.losses.segmentation(logits, by_domain, totals)
        if self.auxiliary is not None:
            terms = self.auxiliary(
                images=images.tensor,
                features=features,
                labels=labels,
                domains=names,
                logits=logits,
                heads=self.heads,
            )
            losses.update(self.losses.auxiliary(terms, by_domain, totals))
        return losses

    def _padded_labels(
        self, batched_inputs: list[dict[str, Any]], names: list[str], size: tuple[int, int]
    ) -> torch.Tensor:
        """(B, H, W) int64: every domain's ignore label and the padding are `IGNORE`."""
        labels = torch.full((len(batched_inputs), *size), IGNORE, dtype=torch.int64, device=self.device)
        for row, (sample, name) in enumerate(zip(batched_inputs, names, strict=True)):
            own = sample["sem_seg"].to(self.device)
            labels[row, : own.shape[0], : own.shape[1]] = own.masked_fill(
                own == self.domains[name].ignore_label, IGNORE
            )
        return labels

    def _predictions(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        features: dict[int, torch.Tensor],
        names: list[str],
    ) -> list[dict[str, Any]]:
        results = []
        padded = tuple(images.tensor.shape[-2:])
        for row, (sample, name) in enumerate(zip(batched_inputs, names, strict=True)):
            crop = tuple(images.image_sizes[row])
            size = (sample.get("height", crop[0]), sample.get("width", crop[1]))
            wanted = list(self.domains) if name == ALL_DOMAINS else [name]
            coarse = {domain: self.heads(features[4][row : row + 1], domain) for domain in wanted}
            if sample.get("output", "logits") == "labels":
                logits = {domain: values[0] for domain, values in coarse.items()}
                by_key = {
                    "labels": {domain: label_map(values, padded, crop, size) for domain, values in logits.items()},
                    "logits": logits,
                }
                result = {"padded": padded, "crop": crop}
            else:
                by_key = {"sem_seg": {domain: _full(values, padded, crop, size) for domain, values in coarse.items()}}
                result = {}
            main = self.default_domain if name == ALL_DOMAINS else name
            result.update({key: by_domain[main] for key, by_domain in by_key.items()})
            if name == ALL_DOMAINS:
                result.update({f"{key}_by_domain": by_domain for key, by_domain in by_key.items()})
            results.append(result)
        return results


def _full(logits: torch.Tensor, padded: tuple[int, int], crop: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """(1, K, h, w) coarse logits to (K, height, width): to the padded image, without its padding, to ``size``."""
    logits = upsample(logits, padded)[:, :, : crop[0], : crop[1]]
    return (logits if crop == size else upsample(logits, size))[0]


def _losses_from_config(node: CfgNode) -> SSTLosses:
    """``MODEL.SST.LOSS_WEIGHTS``, and what ``MODEL.SST.AUXILIARY`` says of them."""
    weights, auxiliary = node.LOSS_WEIGHTS, node.AUXILIARY
    return SSTLosses(
        weights.SEG,
        weights.AUX,
        weights.SCR,
        dataset_share=auxiliary.DATASET_LEVEL,
        image_share=auxiliary.IMAGE_LEVEL,
        prediction_share=auxiliary.PREDICTION,
        present_only=preset_value(auxiliary, "NORMALIZE") == "present",
        mean=preset_value(auxiliary, "REDUCE") == "mean",
        ramp=preset_value(auxiliary, "RAMP"),
    )
