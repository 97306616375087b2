"""What MSA and MSE make of the images of several label domains: the part of the branch that a frozen source has too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sst_d2.label_domains import LabelDomain
from sst_d2.label_domains.relations import intra_adjacency
from sst_d2.modeling.auxiliary.aggregation import SemanticAggregation, pool_categories, regions_at
from sst_d2.modeling.auxiliary.enhancement import SemanticEnhancement, enhance
from sst_d2.modeling.losses import IGNORE

# Scales 1, 2, 3 of the paper, from coarse to fine (A1).
STRIDES = (16, 8, 4)


@dataclass(frozen=True)
class ImageRepresentations:
    """The images of one label domain in one scale.

    Attributes:
        categories: X_l, (b, K, D).
        semantics: S_l, (b, K, D); zero rows where a category is absent.
        present: (b, K) bool.
    """

    categories: torch.Tensor
    semantics: torch.Tensor
    present: torch.Tensor


class DomainRepresentations(nn.Module):
    """MSA and MSE of every label domain.

    Args:
        domains: the label domains, in the model's order.
        dim: D.
        adjacency: by domain M_intra, (K, K) of 0 and 1, or None: no such mask (Eq. 5).
        embedding_std: standard deviation of the random X_0.
    """

    def __init__(
        self,
        domains: Sequence[LabelDomain],
        dim: int,
        adjacency: Mapping[str, torch.Tensor | None],
        embedding_std: float = 0.02,
    ) -> None:
        super().__init__()
        self.num_classes = {domain.name: domain.num_classes for domain in domains}
        self.aggregation = nn.ModuleDict({name: SemanticAggregation(dim) for name in self.num_classes})
        self.enhancement = nn.ModuleDict(
            {
                name: SemanticEnhancement(count, dim, adjacency[name], len(STRIDES), embedding_std)
                for name, count in self.num_classes.items()
            }
        )

    def embeddings(self) -> dict[str, torch.Tensor]:
        """X_0 by domain, (K, D)."""
        return {name: module.embedding for name, module in self.enhancement.items()}

    def represent(
        self, features: Mapping[int, torch.Tensor], regions: torch.Tensor, rows: Mapping[str, Sequence[int]]
    ) -> dict[str, list[ImageRepresentations]]:
        """By domain, its images in the scales 1 … L.

        Args:
            features: {16: H_1, 8: H_2, 4: H_3}, (B, D, H/s, W/s) each.
            regions: (B, h, w) int64, ids of each image's own domain, or `IGNORE`.
            rows: by domain, which of the B images are its own.
        """
        most = max(self.num_classes.values())
        # All images at once, whatever their domain: each label map holds ids of its own.
        pooled = [
            pool_categories(features[stride], regions_at(regions, tuple(features[stride].shape[-2:])), most)
            for stride in STRIDES
        ]
        # By image: (B, L, K, …). Then by domain, scales in front again.
        mean, top, present = (by_domain(torch.stack(scales, dim=1), rows) for scales in zip(*pooled, strict=True))
        semantics, occurs = {}, {}
        for name in rows:
            count = self.num_classes[name]
            own = [parts[name].transpose(0, 1)[:, :, :count] for parts in (mean, top, present)]
            semantics[name], occurs[name] = self.aggregation[name](*own[:2]), own[2]
        categories = enhance(self.enhancement, semantics)
        return {
            name: [
                ImageRepresentations(*scale)
                for scale in zip(*(parts[name].unbind() for parts in (categories, semantics, occurs)), strict=True)
            ]
            for name in rows
        }


def adjacency_of(domains: Sequence[LabelDomain], masked: bool) -> dict[str, torch.Tensor | None]:
    """M_intra by domain, (K, K) float32; None where ``masked`` is False."""
    return {domain.name: torch.from_numpy(intra_adjacency(domain)) if masked else None for domain in domains}


def predicted_regions(
    labels: torch.Tensor, rows: Mapping[str, Sequence[int]], logits: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """(B, h, w) int64: the most likely category of each pixel; `IGNORE` where the label map says so.

    Args:
        labels: (B, H, W) int64.
        rows: by domain, which of the B images are its own.
        logits: by domain (b, K, h, w).
    """
    size = tuple(next(iter(logits.values())).shape[-2:])
    regions = regions_at(labels, size).clone()
    for name, index in rows.items():
        regions[index] = torch.where(regions[index] == IGNORE, IGNORE, logits[name].detach().argmax(dim=1))
    return regions


def by_domain(images: torch.Tensor, rows: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    """(B, …) to (b, …) of each domain."""
    order = torch.tensor([row for own in rows.values() for row in own], dtype=torch.int64, device=images.device)
    return dict(zip(rows, images.index_select(0, order).split([len(own) for own in rows.values()]), strict=True))
