"""MST, Multi-scale Semantic Transfer (Eq. 8–11): the categories of one label system, mapped to those of another.

Letters: two label domains with K_1 and K_2 categories and b_1 and b_2 images; D channels; L scales.

One SM layer in one direction is a bridge. All N bridges are crossed at once, since products as small as theirs take
longer to start than to compute; for that, all domains are filled up with zeros to the largest b and K.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from sst_d2.modeling.auxiliary.batching import filled, project, query_key_value, softmax_of_known
from sst_d2.modeling.auxiliary.pairs import Pair
from sst_d2.modeling.auxiliary.representations import ImageRepresentations

_EPSILON = 1e-8
_Rows = tuple[torch.Tensor, torch.Tensor]


class SemanticMapping(nn.Module):
    """One SM layer in one direction: X^(1→2) = (softmax(Q^(2) K^(1)^T / sqrt(D)) ⊙ M) V^(1) (Eq. 8, 9).

    Args:
        dim: D. The three linear maps have no bias (A7).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)

    def forward(self, source: torch.Tensor, target: torch.Tensor, association: torch.Tensor) -> torch.Tensor:
        """Map every source to every target.

        Args:
            source: (b_1, K_1, D).
            target: (b_2, K_2, D).
            association: M, (b_2, b_1, K_2, K_1), or what broadcasts to it.

        Returns:
            (b_2, b_1, K_2, D): for each pair, the source in the categories of the target's domain.
        """
        whole = association.expand(len(target), len(source), target.shape[1], source.shape[1])
        known = torch.ones(1, source.shape[1], dtype=torch.bool, device=source.device)
        return map_categories([self], source[None], target[None], whole.permute(1, 3, 0, 2)[None], known)[0].transpose(
            0, 1
        )


def map_categories(
    layers: Sequence[SemanticMapping],
    source: torch.Tensor,
    target: torch.Tensor,
    association: torch.Tensor,
    known: torch.Tensor,
) -> torch.Tensor:
    """N SM layers at once, each on representations of its own.

    Args:
        layers: N layers.
        source: (N, b_1, K_1, D).
        target: (N, b_2, K_2, D).
        association: M with the source in front, (N, b_1, K_1, b_2, K_2), or what broadcasts to it.
        known: (N, K_1) bool; False: no category of the source's domain, but filled up.

    Returns:
        (N, b_1, b_2, K_2, D).
    """
    (n, b_1, k_1, dim), (b_2, k_2) = source.shape, target.shape[1:3]
    query, key, value = query_key_value(layers, target, source)
    # The source stands in front here too: (Q K^T)^T = K Q^T. So no factor of a product has to be copied.
    scores = (torch.bmm(key, query.transpose(1, 2)) / math.sqrt(dim)).view(n, b_1, k_1, b_2, k_2)
    weights = softmax_of_known(scores, known[:, None, :, None, None], dim=2) * association
    mapped = torch.bmm(weights.view(n * b_1, k_1, b_2 * k_2).transpose(1, 2), value.view(n * b_1, k_1, dim))
    return mapped.view(n, b_1, b_2, k_2, dim)


class DatasetTransfer(nn.Module):
    """SM layer 0: maps the learnable categories of two label domains to each other, with M_static (Eq. 8).

    Args:
        static: M_static of the direction 1→2, (K_2, K_1), raw similarities (A5); transposed it serves 2→1.
        dim: D.
    """

    def __init__(self, static: torch.Tensor, dim: int) -> None:
        super().__init__()
        self.register_buffer("static", static, persistent=False)
        self.to_second, self.to_first = SemanticMapping(dim), SemanticMapping(dim)


class ImageTransfer(nn.Module):
    """SM layers 1 … L: map the categories of each pair of images with M_dynamic = S^(2) W^(2) (S^(1) W^(1))^T (Eq. 9).

    Args:
        dim: D.
        num_layers: L.
    """

    def __init__(self, dim: int, num_layers: int) -> None:
        super().__init__()
        self.to_second = nn.ModuleList(SemanticMapping(dim) for _ in range(num_layers))
        self.to_first = nn.ModuleList(SemanticMapping(dim) for _ in range(num_layers))
        self.associate_first = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(num_layers))
        self.associate_second = nn.ModuleList(nn.Linear(dim, dim, bias=False) for _ in range(num_layers))


class SemanticTransfer(nn.Module):
    """All SM layers between two label domains, in both directions, and how far the two views disagree (Eq. 8–11).

    Own maps per direction and layer, own W^(1) and W^(2) per layer (A11). A level that is left out has no layers, so
    that every parameter takes part in every step, which distributed training needs.

    Args:
        static: M_static of the direction 1→2, (K_2, K_1).
        dim: D.
        num_layers: L.
        dataset_level, image_level: compare the domains (Eq. 10), compare pairs of images (Eq. 11).
        stop_gradient: compare with X as it stands, so that only the mapped side learns from the comparison (A8).
    """

    def __init__(
        self,
        static: torch.Tensor,
        dim: int,
        num_layers: int = 3,
        *,
        dataset_level: bool = True,
        image_level: bool = True,
        stop_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.stop_gradient = stop_gradient
        self.dataset = DatasetTransfer(static, dim) if dataset_level else None
        self.image = ImageTransfer(dim, num_layers) if image_level else None

    def dataset_level(self, first: torch.Tensor, second: torch.Tensor) -> _Rows:
        """Rows of Eq. (10): X_0 of both domains, (K_1, D) and (K_2, D), to mismatches (K_1,) and (K_2,)."""
        return dataset_level({("1", "2"): self}, {"1": first, "2": second})["1", "2"]

    def image_level(self, first: Sequence[ImageRepresentations], second: Sequence[ImageRepresentations]) -> list[_Rows]:
        """Rows of Eq. (11) for every pair of images, scale by scale.

        Args:
            first, second: the images of the two domains in the scales 1 … L.

        Returns:
            per scale: mismatches (b_1, b_2, K_1) and (b_1, b_2, K_2); 1 where the category is absent in its image.
        """
        return image_level({("1", "2"): self}, {"1": first, "2": second})["1", "2"]


def dataset_level(
    transfers: Mapping[Pair, SemanticTransfer], embeddings: Mapping[str, torch.Tensor]
) -> dict[Pair, _Rows]:
    """`SemanticTransfer.dataset_level` of several pairs of domains at once; X_0, (K, D), by domain."""
    modules = [transfer.dataset for transfer in transfers.values()]
    bridges = _Bridges(transfers, {name: (1, len(x)) for name, x in embeddings.items()})
    x = bridges.sources({name: x[None, None] for name, x in embeddings.items()})
    static = filled([module.static.T for module in modules] + [module.static for module in modules])
    layers = [module.to_second for module in modules] + [module.to_first for module in modules]
    known = bridges.known(1, x.device)
    rows = bridges.cross(layers, x, static[:, None, :, None], known, present=known[:, None])
    return {pair: (first[0, 0], second[0, 0]) for pair, [(first, second)] in rows.items()}


def image_level(
    transfers: Mapping[Pair, SemanticTransfer], images: Mapping[str, Sequence[ImageRepresentations]]
) -> dict[Pair, list[_Rows]]:
    """`SemanticTransfer.image_level` of several pairs of domains at once; images in the scales 1 … L, by domain."""
    modules = [transfer.image for transfer in transfers.values()]
    bridges = _Bridges(transfers, {name: scales[0].present.shape for name, scales in images.items()})
    x, s, present = (
        bridges.sources({name: torch.stack([getattr(one, field) for one in own]) for name, own in images.items()})
        for field in ("categories", "semantics", "present")
    )
    maps = [linear for module in modules for linear in module.associate_first]
    maps += [linear for module in modules for linear in module.associate_second]
    seen = project(maps, s)
    dynamic = torch.bmm(seen, _opposite(seen).transpose(1, 2)).view(*s.shape[:3], *s.shape[1:3])
    layers = [layer for module in modules for layer in module.to_second]
    layers += [layer for module in modules for layer in module.to_first]
    scales = len(layers) // (2 * len(transfers))
    return bridges.cross(layers, x, dynamic, bridges.known(scales, x.device), present)


class _Bridges:
    """All bridges between several pairs of domains: N = 2 directions (1→2 before 2→1) × pairs × scales.

    Args:
        transfers: by pair.
        sizes: by domain its number of images and of categories, of those at least that the pairs name.
    """

    def __init__(self, transfers: Mapping[Pair, SemanticTransfer], sizes: Mapping[str, Sequence[int]]) -> None:
        self._pairs = list(transfers)
        self._sizes = {name: size for name, size in sizes.items() if any(name in pair for pair in transfers)}
        self._stop_gradient = any(transfer.stop_gradient for transfer in transfers.values())

    def sources(self, by_domain: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What each bridge starts from: of every domain (scales, b, K, …), of each its own b and K, to (N, b, K, …)."""
        names = list(self._sizes)
        whole = filled([by_domain[name] for name in names])
        index = [names.index(pair[end]) for end in (0, 1) for pair in self._pairs]
        return whole.index_select(0, torch.tensor(index, device=whole.device)).flatten(0, 1)

    def known(self, scales: int, device: torch.device) -> torch.Tensor:
        """(N, K) bool: which categories are the source's own, not filled up."""
        ones = {name: torch.ones(scales, k, dtype=torch.bool, device=device) for name, (_, k) in self._sizes.items()}
        return self.sources(ones)

    def cross(
        self,
        layers: Sequence[SemanticMapping],
        x: torch.Tensor,
        association: torch.Tensor,
        known: torch.Tensor,
        present: torch.Tensor,
    ) -> dict[Pair, list[_Rows]]:
        """Map every source to every target, and compare with the target's own.

        Args:
            layers: N layers.
            x: X of the sources, (N, b, K, D).
            association: M with the source in front, (N, b, K, b, K), or what broadcasts to it.
            known: see `known`.
            present: (N, b, K) bool, of the sources; False also where filled up.

        Returns:
            by pair and scale, the mismatches of its first domain and of its second.
        """
        targets = _opposite(x)
        mapped = map_categories(layers, x, targets, association, known)
        own = targets.detach() if self._stop_gradient else targets
        rows = mismatch(own[:, None], mapped, _opposite(present)[:, None])  # (N, b of the source, b of the target, K)
        by_pair = {}
        for pair, of_second, of_first in zip(self._pairs, *rows.unflatten(0, (2, len(self._pairs), -1)), strict=True):
            (b_1, k_1), (b_2, k_2) = (self._sizes[name] for name in pair)
            of_first = of_first[:, :b_2, :b_1, :k_1].transpose(1, 2)
            of_second = of_second[:, :b_1, :b_2, :k_2]
            by_pair[pair] = list(zip(of_first.unbind(), of_second.unbind(), strict=True))
        return by_pair


def _opposite(bridges: torch.Tensor) -> torch.Tensor:
    """What stands at the other end: the directions change places."""
    return bridges.roll(len(bridges) // 2, dims=0)


def mismatch(own: torch.Tensor, mapped: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
    """1 - cosine, row by row (Eq. 10, 11), in float32 at least.

    A category that is absent in its image has a zero row in M_dynamic and so a zero vector as its image: no cosine. Its
    row is the constant 1 with no gradient (A7); its length is replaced before it is divided by.

    Args:
        own: (..., K, D), X.
        mapped: (..., K, D), the other domain's view of it.
        present: (..., K) bool; None: all are.

    Returns:
        (..., K), in [0, 2].
    """
    precise = torch.promote_types(own.dtype, torch.float32)
    own, mapped = F.normalize(own.to(precise), dim=-1, eps=_EPSILON), mapped.to(precise)
    length = torch.linalg.vector_norm(mapped, dim=-1).clamp(min=_EPSILON)
    if present is not None:
        length = torch.where(present, length, 1.0)
    rows = 1 - (own * mapped).sum(dim=-1) / length
    return rows if present is None else torch.where(present, rows, 1.0)
