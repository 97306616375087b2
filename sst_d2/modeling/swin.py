"""`SwinBackbone`: torchvision's Swin Transformer as a Detectron2 backbone, with torchvision's weights by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torchvision.models import SwinTransformer


class SwinBackbone(Backbone):
    """The four stages of a Swin Transformer, as ``res2`` … ``res5``.

    Parameters have torchvision's names, so a file of torchvision's fills the whole backbone. Each map is normalised, as
    Swin's authors do for dense prediction: res5 by the network's own last layer norm, the others without parameters,
    which no file of ImageNet weights has; the convolutions that read the maps have some.

    Args:
        network: torchvision's; its classifier is left out.
        freeze_at: so many of {patch embedding, stage 1, 2, 3, 4} do not learn; 0: all learn.
    """

    def __init__(self, network: SwinTransformer, freeze_at: int = 0) -> None:
        super().__init__()
        # In turn: patch embedding, stage, patch merging, stage, …
        self.features, self.norm = network.features, network.norm
        stages = self.features[1::2]
        patch = self.features[0][0].stride[0]
        self._out_features = [f"res{number}" for number in range(2, 2 + len(stages))]
        self._out_feature_channels = {
            name: stage[0].norm1.normalized_shape[0] for name, stage in zip(self._out_features, stages, strict=True)
        }
        self._out_feature_strides = {name: patch * 2**number for number, name in enumerate(self._out_features)}
        for part in self.features[: max(0, freeze_at, 2 * freeze_at - 2)]:
            part.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """(B, 3, H, W) to ``res2`` … ``res5``, (B, C_i, H/s, W/s), s = 4, 8, 16, 32; H and W are multiples of 32."""
        maps, current = {}, images
        for number, part in enumerate(self.features):
            current = part(current)
            if number % 2:
                name = self._out_features[number // 2]
                maps[name] = self._normalised(current, name)
        return maps

    def _normalised(self, tokens: torch.Tensor, name: str) -> torch.Tensor:
        """(B, h, w, C) to (B, C, h, w)."""
        last, channels = name == self._out_features[-1], self._out_feature_channels[name]
        tokens = self.norm(tokens) if last else F.layer_norm(tokens, (channels,))
        return tokens.permute(0, 3, 1, 2).contiguous()


@BACKBONE_REGISTRY.register()
def build_sst_swin_t_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinBackbone:
    """Swin-T, with the stochastic depth of torchvision's (0.2). Reads ``MODEL.BACKBONE.FREEZE_AT``.

    ``MODEL.WEIGHTS`` "torchvision://swin_t" stands for torchvision's ImageNet weights. Images have three channels.
    """
    return SwinBackbone(torchvision.models.swin_t(), cfg.MODEL.BACKBONE.FREEZE_AT)
