"""Many small products at once: each of them takes longer to start than to compute.

Label domains differ in their numbers of categories K and of images b. They are filled up with zeros to the largest, and
what was filled up is left out of every softmax and of every result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


def filled(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """N tensors of different sizes, (a, b, …), filled up with zeros (False) to the largest: (N, a, b, …)."""
    largest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    missing = [[most - own for most, own in zip(largest, tensor.shape, strict=True)] for tensor in tensors]
    # `pad` counts from the last dimension on, and wants two numbers for each.
    margins = [[margin for size in reversed(sizes) for margin in (0, size)] for sizes in missing]
    return torch.stack([F.pad(tensor, margin) for tensor, margin in zip(tensors, margins, strict=True)])


def project(maps: Sequence[nn.Module], vectors: torch.Tensor) -> torch.Tensor:
    """N linear maps without bias, each on vectors of its own: (N, b, K, D) to (N, b K, D)."""
    return torch.bmm(vectors.flatten(1, 2), torch.stack([linear.weight for linear in maps]).transpose(1, 2))


def query_key_value(
    layers: Sequence[nn.Module], targets: torch.Tensor, sources: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q of the targets, K and V of the sources.

    Args:
        layers: N modules with the linear maps ``query``, ``key`` and ``value`` from D to D, without bias.
        targets: (N, b_2, K_2, D).
        sources: (N, b_1, K_1, D).

    Returns:
        (N, b_2 K_2, D), (N, b_1 K_1, D) and (N, b_1 K_1, D).
    """
    query = project([layer.query for layer in layers], targets)
    # K and V in one product.
    weights = torch.stack([linear.weight for layer in layers for linear in (layer.key, layer.value)])
    pairs = weights.view(len(layers), -1, weights.shape[-1])
    key, value = torch.bmm(sources.flatten(1, 2), pairs.transpose(1, 2)).chunk(2, dim=2)
    return query, key, value


def softmax_of_known(scores: torch.Tensor, known: torch.Tensor, dim: int) -> torch.Tensor:
    """Softmax over the known categories; ``known`` bool, what broadcasts to ``scores``."""
    return scores.masked_fill(~known, -torch.inf).softmax(dim)
