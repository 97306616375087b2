"""`SSTHeads`: one 1×1 convolution per label domain. The only part of the network that knows label systems."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import LabelDomain


class SSTHeads(nn.ModuleDict):
    """Classify pixels, in any of several label domains. Parameters are named after their domain: ``atr.weight``.

    Args:
        in_channels: D.
        domains: the label domains; each gets its head, in this order.

    Raises:
        SSTConfigError: there is no domain, one occurs twice, or one has a name that a module cannot have.
    """

    def __init__(self, in_channels: int, domains: Sequence[LabelDomain]) -> None:
        names = [domain.name for domain in domains]
        if not names or len(set(names)) != len(names):
            raise SSTConfigError(
                f"MODEL.SST.DOMAINS: {names}; at least one label domain, none of them twice, is expected"
            )
        taken = [name for name in names if hasattr(nn.ModuleDict(), name)]
        if taken:
            raise SSTConfigError(
                f"label domain '{taken[0]}': the name is an attribute of torch's modules; choose another"
            )
        super().__init__({domain.name: nn.Conv2d(in_channels, domain.num_classes, kernel_size=1) for domain in domains})
        for conv in self.values():
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def forward(self, features: torch.Tensor, domain: str) -> torch.Tensor:
        """(b, D, h, w) to logits (b, K, h, w) of one domain; b may be 0."""
        return self[domain](features)
