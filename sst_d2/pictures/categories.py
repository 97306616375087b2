"""`observe_relations`: how the categories of a trained branch relate to each other, for pictures of them.

Letters: K categories, D channels, L scales, from coarse to fine.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from torch import nn

from sst_d2.errors import SSTCheckpointError

Pair = tuple[str, str]


@dataclass(frozen=True)
class CategoryRelations:
    """What `observe_relations` has seen.

    Attributes:
        images: by label domain, how many images of it were looked at.
        x0: by domain, cosines of the rows of X_0, (K, K) float64.
        x3: by domain, the same of X_L, mean over the domain's images; all rows, of absent categories too.
        dynamic: by pair of domains, M_dynamic of the direction from the first to the second, (L, K_second, K_first):
            the mean over all pairs of images in which both categories occur; NaN where there is none.
    """

    images: dict[str, int]
    x0: dict[str, np.ndarray]
    x3: dict[str, np.ndarray]
    dynamic: dict[Pair, np.ndarray]


def observe_relations(network: nn.Module, samples: Iterable[Mapping[str, Any]]) -> CategoryRelations:
    """Send training inputs through a network and its branch, and look at the categories. No weight changes.

    Args:
        network: `SST` with its branch.
        samples: training inputs, at least one; each goes through alone.

    Raises:
        SSTCheckpointError: the network has no branch.
    """
    branch = getattr(network, "auxiliary", None)
    if branch is None:
        raise SSTCheckpointError("the network has no training-only branch, so there is nothing to look at")
    observer = _Observer(branch)
    training = network.training
    network.eval()
    # Only the outermost switch: the images take the way of training, the parts stay as in evaluation.
    network.training = True
    try:
        with torch.no_grad(), EventStorage():  # a ramp of the losses asks for the iteration
            for sample in samples:
                network([dict(sample)])
    finally:
        observer.remove()
        network.train(training)
    return observer.relations()


class _Observer:
    """Sums over images, from forward hooks on MSA (S_l) and on the branch (X_0, X_L)."""

    def __init__(self, branch: nn.Module) -> None:
        self._branch = branch
        self._images: dict[str, int] = {}
        self._x0: dict[str, np.ndarray] = {}
        self._x3: dict[str, np.ndarray] = {}
        # By domain: S_l of every category, summed over the images that hold it, (L, K, D), and in how many, (L, K).
        self._semantics: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        modules = dict(branch.aggregation.items())
        if branch.source is not None:
            modules.update(branch.source.auxiliary.aggregation.items())
        self._handles = [
            module.register_forward_hook(functools.partial(self._see_semantics, name))
            for name, module in modules.items()
        ]
        self._handles.append(branch.register_forward_hook(self._see_terms))

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self._handles:
            handle.remove()

    def relations(self) -> CategoryRelations:
        """What has been seen."""
        x3 = {name: total / self._images[name] for name, total in self._x3.items()}
        dynamic = {
            pair: self._dynamic(pair)
            for pair in self._branch.pairs
            if self._branch.image_level and set(pair) <= self._semantics.keys()
        }
        return CategoryRelations(self._images, self._x0, x3, dynamic)

    def _see_semantics(self, name: str, module: nn.Module, arguments: Any, semantics: torch.Tensor) -> None:
        """(L, b, K, D); rows of categories that an image lacks are zero."""
        semantics = semantics.double().cpu()
        if semantics.shape[1] == 0:
            return
        present = (semantics != 0).any(dim=-1).double()
        self._semantics[name] = self._semantics.get(name, 0) + semantics.sum(dim=1)
        self._counts[name] = self._counts.get(name, 0) + present.sum(dim=1)

    def _see_terms(self, module: nn.Module, arguments: Any, terms: Any) -> None:
        self._x0 = {name: _cosines(rows).numpy() for name, rows in terms.embeddings.items()}
        for name, rows in terms.categories.items():
            if len(rows):
                self._images[name] = self._images.get(name, 0) + len(rows)
                self._x3[name] = self._x3.get(name, 0) + _cosines(rows).sum(dim=0).numpy()

    def _dynamic(self, pair: Pair) -> np.ndarray:
        """S^(2) W^(2) (S^(1) W^(1))^T is linear in both images: the mean over pairs is that of the two means."""
        transfer = self._branch.transfer["-".join(pair)].image
        sides = []
        for name, maps in zip(pair, (transfer.associate_first, transfer.associate_second), strict=True):
            means = self._semantics[name] / self._counts[name][..., None]  # 0 / 0: NaN
            weights = torch.stack([linear.weight.detach().double().cpu() for linear in maps])
            sides.append(means @ weights.transpose(1, 2))
        return (sides[1] @ sides[0].transpose(1, 2)).numpy()


def _cosines(rows: torch.Tensor) -> torch.Tensor:
    """(…, K, D) to (…, K, K) float64."""
    unit = F.normalize(rows.detach().double().cpu(), dim=-1)
    return unit @ unit.transpose(-1, -2)
