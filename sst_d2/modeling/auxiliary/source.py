"""`FrozenSource`: the trained pipeline that dedicated training learns from (§3.1, A19–A21)."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone
from torch import nn

from sst_d2.checkpoint_io import read_checkpoint
from sst_d2.config import add_sst_config
from sst_d2.config_checks import check_values
from sst_d2.errors import SSTCheckpointError, SSTConfigError
from sst_d2.files import expand_path
from sst_d2.label_domains import LabelDomain
from sst_d2.modeling.auxiliary.representations import (
    DomainRepresentations,
    ImageRepresentations,
    adjacency_of,
    predicted_regions,
)
from sst_d2.modeling.decoder import build_sst_decoder
from sst_d2.modeling.heads import SSTHeads

_KEY = "MODEL.SST.SOURCE.WEIGHTS"
_PARTS = ("backbone.", "decoder.", "heads.", "auxiliary.aggregation.", "auxiliary.enhancement.")


class FrozenSource(nn.Module):
    """Trunk, heads, MSA and MSE of step one, with their X_0. Never trains: no gradients, always in evaluation mode.

    Args:
        backbone, decoder, heads: of the source's network.
        representations: its MSA and MSE.
        domains: its label domains.
        digest: SHA-256 of the file that it came from, in hexadecimal digits; "": of none.
    """

    def __init__(
        self,
        backbone: nn.Module,
        decoder: nn.Module,
        heads: SSTHeads,
        representations: DomainRepresentations,
        domains: Sequence[LabelDomain],
        digest: str = "",
    ) -> None:
        super().__init__()
        self.backbone, self.decoder, self.heads, self.auxiliary = backbone, decoder, heads, representations
        self.domains = {domain.name: domain for domain in domains}
        self.dim = decoder.out_channels
        self.digest = digest
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> FrozenSource:
        """Stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(
        self, images: torch.Tensor, labels: torch.Tensor
    ) -> tuple[dict[str, list[ImageRepresentations]], dict[str, torch.Tensor]]:
        """See the target's images as the source does, with its own predictions as regions (A19, A20).

        Args:
            images: (B, 3, H, W), normalised as for the target's own network.
            labels: (B, H, W) of the target's domain; read is only where they say 'ignore', the padding above all.

        Returns:
            by source domain, X_l, S_l and the categories that it sees, in the scales 1 … L, of all B images; and
            by source domain, logits (B, K, H/4, W/4).
        """
        features = self.decoder(self.backbone(images))
        everyone = list(range(len(images)))
        logits = {name: self.heads(features[4], name) for name in self.domains}
        represented = {}
        for name, own in logits.items():
            rows = {name: everyone}
            regions = predicted_regions(labels, rows, {name: own})
            with torch.autocast(images.device.type, enabled=False):
                represented.update(self.auxiliary.represent(features, regions, rows))
        return represented, logits

    def embeddings(self) -> dict[str, torch.Tensor]:
        """X_0 by source domain, (K, D)."""
        return self.auxiliary.embeddings()


def load_source(
    weights: str,
    targets: Sequence[LabelDomain],
    dim: int,
    expected: Sequence[str] = (),
    agreement: Mapping[str, Any] | None = None,
) -> FrozenSource | None:
    """Build the source from its checkpoint alone, which carries its configuration and its label domains.

    Args:
        weights: ``MODEL.SST.SOURCE.WEIGHTS``, a local file; ``~`` and ``${VAR}`` are replaced.
        targets: the model's label domains; exactly one can learn from a source.
        dim: D of the model.
        expected: names of the label domains that the source must have, in any order; empty: any.
        agreement: by key of the configuration a value that the source's own configuration must hold too.

    Returns:
        None where ``weights`` is empty: universal training.

    Raises:
        SSTCheckpointError: the file cannot be read, is none of ours, holds no MSA and MSE, or is damaged.
        SSTConfigError: it does not go with the target, there are several targets, or weights are not given though
            ``expected`` asks for them.
    """
    if not weights:
        _check_none_expected(expected)
        return None
    if "://" in weights:
        raise SSTConfigError(f"{_KEY}: {weights}: a file of this machine is expected, the checkpoint of step one")
    path = str(expand_path(weights, error=SSTConfigError))
    _check_one_target(targets)
    content, digest = _read(path)
    own = _config_of(path, content["config"])
    _check_whole(path, content["model"], own)
    domains = _domains_of(path, content["label_domains"])
    _check_domains(path, [domain.name for domain in domains], targets[0].name, expected)
    _check_agreement(path, own, agreement or {})
    source = _build(path, own, domains, digest)
    if source.dim != dim:
        raise _disagreement(path, "MODEL.SST.DECODER.DIM", source.dim, dim)
    parts = {key: torch.as_tensor(value) for key, value in content["model"].items() if key.startswith(_PARTS)}
    try:
        source.load_state_dict(parts)
    except RuntimeError as reason:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: its weights do not fit its own configuration and label domains; the file is damaged or "
            f"was altered: {reason}"
        ) from reason
    logging.getLogger(__name__).info("learning from %s, label domains %s", path, ", ".join(source.domains))
    return source


def _read(path: str) -> tuple[dict[str, Any], str]:
    """The content of the file, and its SHA-256."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        content = read_checkpoint(path)
    except OSError as reason:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: cannot be read ({reason.strerror}); train step one first, or check the path"
        ) from reason
    except SSTCheckpointError as reason:
        raise SSTCheckpointError(f"{_KEY}: {path}: {reason}") from reason
    if "config" not in content or "label_domains" not in content:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: is no checkpoint of a training of sst_d2, with its configuration and label domains; "
            "give the one that step one has written, model_final.pth"
        )
    return content, digest.hexdigest()


def _config_of(path: str, text: str) -> CfgNode:
    own = get_cfg()
    add_sst_config(own)
    # Another version of Detectron2, or a network of the user's own, may have more keys.
    own.set_new_allowed(True)
    try:
        own.merge_from_other_cfg(CfgNode(yaml.safe_load(text)))
        check_values(own, below="MODEL.")
    except (yaml.YAMLError, KeyError, ValueError, AttributeError, TypeError, AssertionError, RecursionError) as reason:
        raise SSTCheckpointError(f"{_KEY}: {path}: its configuration cannot be read: {reason}") from reason
    return own


def _domains_of(path: str, records: Any) -> list[LabelDomain]:
    """The records count, not the names: step one may have had label domains of the user's own."""
    known = isinstance(records, list) and all(
        isinstance(one, dict) and {"name", "classes"} <= one.keys() for one in records
    )
    if not known or not records:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: its label_domains are no records of label domains; the file is damaged"
        )
    return [LabelDomain.from_dict(record, source=path) for record in records]


def _build(path: str, own: CfgNode, domains: Sequence[LabelDomain], digest: str) -> FrozenSource:
    """The source's network, with random weights."""
    try:
        backbone = build_backbone(own)
        decoder = build_sst_decoder(own, backbone.output_shape())
        heads = SSTHeads(decoder.out_channels, domains)
    except (KeyError, ValueError, TypeError, AttributeError, AssertionError) as reason:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: the network of step one cannot be built here: {reason}. A backbone or decoder of your "
            "own must be registered in this run too"
        ) from reason
    adjacency = adjacency_of(domains, own.MODEL.SST.AUXILIARY.ADJACENCY)
    representations = DomainRepresentations(domains, decoder.out_channels, adjacency)
    return FrozenSource(backbone, decoder, heads, representations, domains, digest)


def _check_none_expected(expected: Sequence[str]) -> None:
    if expected:
        raise SSTConfigError(
            f"{_KEY} is empty, and MODEL.SST.SOURCE.DOMAINS asks for {', '.join(expected)}: dedicated training learns "
            f"from a trained network. Train step one first, then give its checkpoint: {_KEY} output/…/model_final.pth"
        )


def _check_one_target(targets: Sequence[LabelDomain]) -> None:
    if len(targets) != 1:
        raise SSTConfigError(
            f"MODEL.SST.DOMAINS: {', '.join(target.name for target in targets)}; dedicated training ({_KEY} is set) "
            f"has one target: name it alone, or leave {_KEY} empty for universal training"
        )


def _check_whole(path: str, weights: Mapping[str, Any], own: CfgNode) -> None:
    """MSA and MSE of the source are what the target compares itself with."""
    if any(key.startswith("auxiliary.enhancement.") for key in weights):
        return
    if own.MODEL.SST.AUXILIARY.ENABLED:
        raise SSTCheckpointError(
            f"{_KEY}: {path}: its MSA and MSE were removed; it serves prediction alone. Give the checkpoint that step "
            "one has written itself, model_final.pth"
        )
    raise SSTCheckpointError(
        f"{_KEY}: {path}: was trained without MSA and MSE (MODEL.SST.AUXILIARY.ENABLED False), so there is nothing to "
        "learn from. Train step one with them; of one label domain with MODEL.SST.AUXILIARY.STRATEGY none. To start "
        "from its weights alone (Finetune), set MODEL.WEIGHTS to it"
    )


def _check_domains(path: str, names: Sequence[str], target: str, expected: Sequence[str]) -> None:
    if target in names:
        raise SSTConfigError(
            f"{_KEY}: {path}: the target {target} is among the source's label domains ({', '.join(names)}), and cannot "
            "learn from itself. Give the checkpoint of a network that was trained without it"
        )
    if expected and sorted(expected) != sorted(names):
        raise SSTConfigError(
            f"{_KEY}: {path}: its label domains are {', '.join(names)}; MODEL.SST.SOURCE.DOMAINS asks for "
            f"{', '.join(expected)}. Give another checkpoint, or their names as the file holds them"
        )


def _check_agreement(path: str, own: CfgNode, agreement: Mapping[str, Any]) -> None:
    """Both networks see the same normalised images."""
    for key, here in agreement.items():
        there = reduce(lambda node, name: node[name], key.split("."), own)
        if there != here:
            raise _disagreement(path, key, there, here)


def _disagreement(path: str, key: str, there: Any, here: Any) -> SSTConfigError:
    return SSTConfigError(f"{_KEY}: {path}: {key} was {there} in step one and is {here} here; both must agree")
