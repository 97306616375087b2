"""MSE, Multi-scale Semantic Enhancement (Eq. 5–7): the categories of one label system learn from each other.

Letters: b images of one label domain, K categories, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from sst_d2.modeling.auxiliary.batching import filled, query_key_value, softmax_of_known


class SemanticPropagation(nn.Module):
    """One SP layer: X_l = (softmax(Q K^T / sqrt(D)) ⊙ M_intra) V + X_{l-1} (Eq. 5, 6; order of the operations: A3).

    Args:
        dim: D. The three linear maps have no bias (A7), and there is one head (A12).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(
        self, representations: torch.Tensor, semantics: torch.Tensor, adjacency: torch.Tensor | None
    ) -> torch.Tensor:
        """X_{l-1} (b, K, D), S_l (b, K, D) and M_intra (K, K), or None for Eq. 5, to X_l (b, K, D)."""
        k = semantics.shape[-2]
        adjacency = semantics.new_ones(k, k) if adjacency is None else adjacency
        known = torch.ones(1, k, dtype=torch.bool, device=semantics.device)
        return propagate([self], representations[None], semantics[None], adjacency[None], known)[0]


def propagate(
    layers: Sequence[SemanticPropagation],
    representations: torch.Tensor,
    semantics: torch.Tensor,
    adjacency: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """The SP layers of N label domains at once: X_{l-1} and S_l, (N, b, K, D) each, to X_l (N, b, K, D).

    Args:
        layers: one per domain.
        representations, semantics: X_{l-1} and S_l.
        adjacency: M_intra, (N, K, K).
        known: (N, K) bool; False: no category of the domain, but filled up.
    """
    n, b, k, dim = semantics.shape
    query, key, value = (x.view(n * b, k, dim) for x in query_key_value(layers, representations, semantics))
    scores = (torch.bmm(query, key.transpose(1, 2)) / math.sqrt(dim)).view(n, b, k, k)
    attention = softmax_of_known(scores, known[:, None, None], dim=-1) * adjacency[:, None]
    return torch.bmm(attention.view(n * b, k, k), value).view(n, b, k, dim) + representations


class SemanticEnhancement(nn.Module):
    """The learnable categories X_0 of a label domain, and the SP layers that make X_1 … X_L of each image.

    Args:
        num_classes: K.
        dim: D.
        adjacency: (K, K) of 0 and 1, M_intra of Eq. 6; None: all categories see all (Eq. 5).
        num_layers: L, the number of scales.
        std: standard deviation of the random X_0.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        adjacency: torch.Tensor | None,
        num_layers: int = 3,
        std: float = 0.02,
    ) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_classes, dim) * std)
        self.layers = nn.ModuleList(SemanticPropagation(dim) for _ in range(num_layers))
        self.register_buffer("adjacency", adjacency, persistent=False)

    def forward(self, semantics: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """S_1 … S_L, (b, K, D) each, to X_1 … X_L, (b, K, D) each."""
        return list(enhance({"": self}, {"": torch.stack(tuple(semantics))})[""].unbind())


def enhance(
    modules: Mapping[str, SemanticEnhancement], semantics: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`SemanticEnhancement` of several label domains at once: by domain, S (L, b, K, D) to X (L, b, K, D)."""
    own = [modules[name] for name in semantics]
    masks = [m.embedding.new_ones(2 * [len(m.embedding)]) if m.adjacency is None else m.adjacency for m in own]
    known = filled([mask.new_ones(len(mask), dtype=torch.bool) for mask in masks])
    adjacency, pooled = filled(masks), filled(list(semantics.values()))
    current = filled([module.embedding for module in own])[:, None].expand(-1, pooled.shape[2], -1, -1)
    representations = []
    for scale, layers in enumerate(zip(*(module.layers for module in own), strict=True)):
        current = propagate(layers, current, pooled[:, scale], adjacency, known)
        representations.append(current)
    whole = torch.stack(representations, dim=1)  # (domains, L, b, K, D)
    return {name: x[:, : s.shape[1], : s.shape[2]] for (name, s), x in zip(semantics.items(), whole, strict=True)}


def auxiliary_logits(features: torch.Tensor, representations: torch.Tensor) -> torch.Tensor:
    """A_aux = F ⊗ X_L^T (Eq. 7), at the resolution of F (A9): (b, D, h, w) and (b, K, D) to (b, K, h, w)."""
    return (representations @ features.flatten(2)).unflatten(2, features.shape[-2:])
