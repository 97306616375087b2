"""A consistency of predictions, beside the paper's consistency of representations (Eq. 10, 11); an option, not of SST.

Rows of X that become parallel meet Eq. 11 without saying anything. What is compared here is tied to the ground truth:
the head of one label domain predicts on the images of another, a learnt map brings the prediction into their label
system, and their labels judge.

Letters: a map leads from a domain with K_1 categories to one with K_2; b images; h × w pixels at stride 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from sst_d2.modeling.auxiliary.pairs import Pair
from sst_d2.modeling.losses import MappedPrediction

# Share of each row that all categories have alike at the start: none is out of reach.
_FLOOR = 0.01


class PredictionMap(nn.Module):
    """T = softmax of L, row by row: what a category of the first domain is called in the second. L is learnt.

    Args:
        similarity: (K_1, K_2) from 0 on. At the start the rows of T are its rows, divided by their sums, but for a
            hundredth that is spread evenly; all of a row of zeros is.
    """

    def __init__(self, similarity: torch.Tensor) -> None:
        super().__init__()
        rows = similarity.double()
        shares = rows / rows.sum(dim=1, keepdim=True).clamp(min=1e-12)
        start = torch.lerp(shares, torch.full_like(rows, 1 / rows.shape[1]), _FLOOR)
        self.relation_logits = nn.Parameter(start.log().to(similarity.dtype))

    def matrix(self) -> torch.Tensor:
        """T, (K_1, K_2); each row adds up to 1."""
        return self.relation_logits.softmax(dim=1)

    def forward(self, probabilities: torch.Tensor) -> torch.Tensor:
        """p (b, K_1, h, w) to q = Σ p(k_1) T[k_1, k_2], (b, K_2, h, w); both add up to 1 over the categories."""
        matrix = self.matrix().to(probabilities.dtype)
        return (matrix.T @ probabilities.flatten(2)).unflatten(2, probabilities.shape[-2:])


class PredictionTransfer(nn.Module):
    """The maps of all pairs of label domains, and what the heads predict through them.

    Between two domains of the model both directions: on the images of the second, the first one's head. In dedicated
    training only the target predicts with weights that learn: its prediction, in the source's label system, is compared
    with what the source itself predicts on the same images.

    Args:
        relations: M_static by pair of domains, (K_second, K_first), see `AuxiliaryBranch`.
        domains: the model's label domains.
    """

    def __init__(self, relations: Mapping[Pair, torch.Tensor], domains: Sequence[str]) -> None:
        super().__init__()
        similarities = {}
        for (first, second), static in relations.items():
            if first in domains:
                similarities[first, second] = static.T
            similarities[second, first] = static
        #: Pairs of names: whose head predicts, and in whose label system the prediction is looked at.
        self.directions: list[Pair] = list(similarities)
        self.maps = nn.ModuleDict({"-".join(pair): PredictionMap(matrix) for pair, matrix in similarities.items()})

    def forward(
        self,
        features: Mapping[str, torch.Tensor],
        logits: Mapping[str, torch.Tensor],
        heads: Callable[[torch.Tensor, str], torch.Tensor],
        seen: Mapping[str, torch.Tensor],
    ) -> dict[Pair, MappedPrediction]:
        """What is to be compared, by direction; in float32 at least.

        Args:
            features: F by domain of the images, (b, D, h, w); b may be 0.
            logits: by domain, of its own head on its own images, (b, K, h, w).
            heads: from features and the name of a domain to its logits.
            seen: by domain of the source, its logits on all images of the target.
        """
        result = {}
        for of, to in self.directions:
            if to in seen:
                result[of, to] = self._mapped((of, to), logits[of], of, _probabilities(seen[to]))
            else:
                result[of, to] = self._mapped((of, to), heads(features[to], of), to)
        return result

    def _mapped(
        self, direction: Pair, scores: torch.Tensor, images: str, soft: torch.Tensor | None = None
    ) -> MappedPrediction:
        transfer = self.maps["-".join(direction)]
        with torch.autocast(scores.device.type, enabled=False):
            return MappedPrediction(transfer(_probabilities(scores)), transfer.matrix(), images, soft)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the categories of (b, K, h, w)."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=1)
