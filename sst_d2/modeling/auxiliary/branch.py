"""`AuxiliaryBranch`: MSA, MSE and MST beside the parsing network, in training only.

It needs the decoder's feature maps, the label maps and the names of the domains, and of the network nothing else but,
where predictions are compared, its heads.
It returns raw terms; `sst_d2.modeling.losses` weighs them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.files import expand_path
from sst_d2.label_domains import LabelDomain
from sst_d2.label_domains.relations import control_similarity, cross_similarity, similarity_source
from sst_d2.modeling.auxiliary.enhancement import auxiliary_logits
from sst_d2.modeling.auxiliary.pairs import Pair, choose_pairs, choose_source_pairs
from sst_d2.modeling.auxiliary.representations import (
    STRIDES,
    DomainRepresentations,
    ImageRepresentations,
    adjacency_of,
    by_domain,
    predicted_regions,
)
from sst_d2.modeling.auxiliary.source import FrozenSource, load_source
from sst_d2.modeling.auxiliary.transfer import SemanticTransfer, dataset_level, image_level
from sst_d2.modeling.losses import AuxiliaryTerms
from sst_d2.modeling.presets import preset_value


class AuxiliaryBranch(DomainRepresentations):
    """MSA and MSE for every label domain, MST for every pair (Fig. 2).

    Args:
        domains: the label domains, in the model's order.
        dim: D.
        adjacency: by domain M_intra, (K, K) of 0 and 1, or None: no such mask (Eq. 5).
        relations: by pair of domains, M_static of the direction from the first to the second, (K_second, K_first). The
            pairs that MST bridges; empty: no MST. Of two domains of the model the first comes first in ``domains``; of
            a source's and the model's the source's.
        dataset_level, image_level: compare the domains (Eq. 8, 10), compare pairs of images (Eq. 9, 11).
        prediction: compare predictions too, see `PredictionTransfer`.
        predicted_regions: pool in the regions that the network predicts, instead of the ground truth's.
        stop_gradient: see `SemanticTransfer`.
        embedding_std: standard deviation of the random X_0.
        source: dedicated training: the trained pipeline to learn from. It never trains, and is in no state dict.
    """

    @configurable
    def __init__(
        self,
        *,
        domains: Sequence[LabelDomain],
        dim: int,
        adjacency: Mapping[str, torch.Tensor | None],
        relations: Mapping[Pair, torch.Tensor],
        dataset_level: bool = True,
        image_level: bool = True,
        prediction: bool = False,
        predicted_regions: bool = False,
        stop_gradient: bool = False,
        embedding_std: float = 0.02,
        source: FrozenSource | None = None,
    ) -> None:
        super().__init__(domains, dim, adjacency, embedding_std)
        _check_names(list(relations))
        self.pairs = list(relations)
        self.dataset_level, self.image_level = dataset_level, image_level
        self.predicted_regions = predicted_regions
        options = {"dataset_level": dataset_level, "image_level": image_level, "stop_gradient": stop_gradient}
        self.transfer = nn.ModuleDict(
            {_key(pair): SemanticTransfer(static, dim, len(STRIDES), **options) for pair, static in relations.items()}
        )
        self.prediction = None
        if prediction:
            # Here and nowhere else: the paper has no such thing.
            from sst_d2.modeling.auxiliary.prediction import PredictionTransfer

            self.prediction = PredictionTransfer(relations, list(self.num_classes))
            _check_names(list(self.prediction.directions))
        # In a tuple, so that PyTorch does not see it: no parameters for the optimiser, nothing in the state dict.
        self._source = () if source is None else (source,)

    @classmethod
    def from_config(cls, cfg: CfgNode, domains: Sequence[LabelDomain], dim: int) -> dict[str, Any]:
        """Read ``MODEL.SST.AUXILIARY`` and ``MODEL.SST.SOURCE``.

        Raises:
            SSTConfigError: the strategy, its pairs or the levels do not go with the domains; or the source does not;
                or there is no file ``WORD_VECTORS``.
            SSTCheckpointError: the source's checkpoint is not usable, see `load_source`.
        """
        node = cfg.MODEL.SST.AUXILIARY
        if node.STRATEGY != "none" and not (node.DATASET_LEVEL or node.IMAGE_LEVEL or node.PREDICTION):
            raise SSTConfigError(
                "MODEL.SST.AUXILIARY: DATASET_LEVEL and IMAGE_LEVEL are both 0, so MST has nothing to compare; "
                "for MSA and MSE alone set STRATEGY none, and for a consistency of predictions PREDICTION above 0"
            )
        control = (node.RELATIONS, cfg.SEED) if node.RELATIONS else None
        vectors = _word_vectors(node.WORD_VECTORS)
        # A source must see the very images that the target's network sees.
        agreement = {
            "INPUT.FORMAT": cfg.INPUT.FORMAT,
            "MODEL.PIXEL_MEAN": cfg.MODEL.PIXEL_MEAN,
            "MODEL.PIXEL_STD": cfg.MODEL.PIXEL_STD,
        }
        source = load_source(cfg.MODEL.SST.SOURCE.WEIGHTS, domains, dim, cfg.MODEL.SST.SOURCE.DOMAINS, agreement)
        by_name = {domain.name: domain for domain in domains}
        if source is None:
            counts = {domain.name: domain.num_classes for domain in domains}
            pairs = choose_pairs(node.STRATEGY, counts, node.ORDER, node.PAIRS)
        else:
            pairs = choose_source_pairs(node.STRATEGY, list(source.domains), domains[0].name, node.PAIRS)
            by_name.update(source.domains)
        return {
            "domains": domains,
            "dim": dim,
            "adjacency": adjacency_of(domains, node.ADJACENCY),
            "relations": {pair: _relation(*(by_name[name] for name in pair), vectors, control) for pair in pairs},
            "dataset_level": node.DATASET_LEVEL > 0,
            "image_level": node.IMAGE_LEVEL > 0,
            "prediction": node.PREDICTION > 0,
            "predicted_regions": node.REGIONS == "prediction",
            "stop_gradient": preset_value(node, "STOP_GRADIENT") == "target",
            "embedding_std": node.EMBEDDING_STD,
            "source": source,
        }

    @property
    def source(self) -> FrozenSource | None:
        """The trained pipeline of dedicated training."""
        return self._source[0] if self._source else None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> AuxiliaryBranch:
        """Where the branch goes (``.to(device)``), its source goes."""
        for source in self._source:
            source._apply(fn)
        return super()._apply(fn, recurse)

    def count_image_pairs(self, names: Sequence[str]) -> list[int]:
        """How many pairs of images meet, for each of ``pairs``, in a batch whose images have these domains.

        A source sees every image of the batch.
        """
        known = {name: names.count(name) for name in self.num_classes}
        return [known.get(first, len(names)) * known[second] for first, second in self.pairs]

    def forward(
        self,
        images: torch.Tensor,
        features: Mapping[int, torch.Tensor],
        labels: torch.Tensor,
        domains: Sequence[str],
        logits: Mapping[str, torch.Tensor],
        heads: Callable[[torch.Tensor, str], torch.Tensor] | None = None,
    ) -> AuxiliaryTerms:
        """Compute all terms of a batch.

        Args:
            images: (B, 3, H, W), normalised and padded; a source alone looks at them.
            features: {16: H_1, 8: H_2, 4: H_3}, (B, D, H/s, W/s) each.
            labels: (B, H, W) int64, ids of each image's own domain, or `IGNORE`.
            domains: B names.
            logits: by domain (b, K, H/4, W/4), for predicted regions, and of a target that learns from a source.
            heads: from features (b, D, H/4, W/4) and the name of a domain to its logits; with ``prediction`` needed.
        """
        rows = {name: [i for i, own in enumerate(domains) if own == name] for name in self.num_classes}
        regions = predicted_regions(labels, rows, logits) if self.predicted_regions else labels
        maps = by_domain(features[STRIDES[-1]], rows)
        scales, embeddings, seen = {}, {}, {}
        for source in self._source:
            scales, seen = source(images, labels)
            embeddings = source.embeddings()
        predictions = {} if self.prediction is None else self.prediction(maps, logits, heads, seen)
        # In full precision: sums over regions, and products without a bound (A6).
        with torch.autocast(labels.device.type, enabled=False):
            own = self.represent(features, regions, rows)
            masks = {
                name: auxiliary_logits(last.to(own[name][-1].categories.dtype), own[name][-1].categories)
                for name, last in maps.items()
            }
            terms = self._compared(masks, {**scales, **own}, {**embeddings, **self.embeddings()})
        return replace(terms, predictions=predictions)

    def _compared(
        self,
        masks: Mapping[str, torch.Tensor],
        scales: Mapping[str, Sequence[ImageRepresentations]],
        embeddings: Mapping[str, torch.Tensor],
    ) -> AuxiliaryTerms:
        """The terms of a batch, from what all domains' images and X_0 are."""
        transfers = {pair: self.transfer[_key(pair)] for pair in self.pairs}
        dataset, image, present = {}, {}, {}
        if transfers and self.dataset_level:
            dataset = dataset_level(transfers, embeddings)
        if transfers and self.image_level:
            image = image_level(transfers, scales)
            present = {
                (a, b): [(one.present, other.present) for one, other in zip(scales[a], scales[b], strict=True)]
                for a, b in self.pairs
            }
        own = {name: embeddings[name] for name in masks}
        last = {name: scales[name][-1].categories for name in masks}
        return AuxiliaryTerms(masks, dataset, image, present, own, last)


def _relation(
    first: LabelDomain, second: LabelDomain, vectors: str | None, control: tuple[str, int] | None
) -> torch.Tensor:
    """M_static of the direction from the first to the second, (K_second, K_first) float32.

    Args:
        first, second, vectors: as `cross_similarity`.
        control: kind and seed of `control_similarity`; None: M_static itself.
    """
    if control is None:
        origin, matrix = similarity_source(first, second, vectors), cross_similarity(first, second, vectors)
    else:
        origin, matrix = f"none, but RELATIONS {control[0]}", control_similarity(first, second, *control)
    logging.getLogger(__name__).info("M_static of %s and %s: %s", first.name, second.name, origin)
    return torch.as_tensor(matrix).float()


def _check_names(pairs: Sequence[Pair]) -> None:
    """Losses and modules are named "<a>-<b>", and names of domains may hold "-" themselves."""
    by_key: dict[str, Pair] = {}
    for pair in pairs:
        other = by_key.setdefault(_key(pair), pair)
        if other != pair:
            raise SSTConfigError(
                f"MODEL.SST.DOMAINS: the pairs {' and '.join(other)}, {' and '.join(pair)} would both be named "
                f"'{_key(pair)}'; give one of these label domains another name"
            )


def _word_vectors(path: str) -> str | None:
    """The file, which must be there also where all values are published and none is read from it."""
    if not path:
        return None
    file = expand_path(path, error=SSTConfigError)
    if not file.is_file():
        raise SSTConfigError(
            f"MODEL.SST.AUXILIARY.WORD_VECTORS: there is no file {path}; give a text file of word vectors (GloVe, "
            'fastText), or "" for the body lexicon'
        )
    return str(file)


def _key(pair: Pair) -> str:
    """A name that a module can have."""
    return f"{pair[0]}-{pair[1]}"
