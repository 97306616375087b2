"""`DeepLabV3PlusDecoder`: Detectron2's DeepLabV3+ head, without its classes, as a decoder that carries SST."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from torch import nn

from sst_d2.modeling.decoder import SST_DECODER_REGISTRY, require_maps
from sst_d2.modeling.pixel_decoder import group_norm

_LOW_LEVEL = ("res2", "res3", "res4")
# The backbone may be dilated: DeepLabV3+ reads its last map at stride 16.
_STRIDES = {"res2": (4,), "res3": (8,), "res4": (16,), "res5": (16, 32)}


@SST_DECODER_REGISTRY.register()
class DeepLabV3PlusDecoder(nn.Module):
    """Atrous spatial pyramid pooling (ASPP) of res5, then one stage per low-level map that is fused, coarse to fine.

    A stage up-samples what is there, joins the map's 1×1 projection to it, and applies two 3×3 convolutions. All stages
    and the ASPP have D channels, so nothing needs a projection, and every parameter lies on the way to F. H_3 = F is
    the last stage, at stride 4. H_1 and H_2, at strides 16 and 8, are the last map of that stride. Where there is none,
    the next coarser one is up-sampled bilinearly, as DeepLabV3+ itself does before it fuses:

    ==================  ============  ==========================  ====================  ======
    project_channels    res5          H_1                         H_2                   H_3
    ==================  ============  ==========================  ====================  ======
    [48]                stride 16     ASPP                        ASPP, × 2             res2's
    [48]                stride 32     ASPP, × 2                   ASPP, × 4             res2's
    [32, 64]            stride 16     ASPP                        res3's stage          res2's
    [32, 64, 128]       stride 32     res4's stage                res3's stage          res2's
    ==================  ============  ==========================  ====================  ======

    The first row is the head of DeepLabV3+; the third fuses the maps that Panoptic-DeepLab fuses.

    Args:
        input_shape: channels and strides of the backbone's maps: ``res5`` with 16 or 32, and the low-level maps.
        dim: D.
        project_channels: channels of the projections of ``res2``, ``res3``, ``res4``, one to three numbers; as many
            maps are fused.
        aspp_dilations: the three dilations of the ASPP, in pixels of res5.
        aspp_dropout: probability behind the ASPP, in [0, 1).
        norm: of all convolutions but that of the pooled image: what Detectron2's ``get_norm`` takes, a name or a
            function from a number of channels to a module.

    Raises:
        SSTConfigError: the backbone lacks a map, or one has another stride.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        dim: int = 256,
        project_channels: Sequence[int] = (48,),
        aspp_dilations: Sequence[int] = (6, 12, 18),
        aspp_dropout: float = 0.1,
        norm: str | Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        # Here, since it adds names to Detectron2's registries of backbones and heads.
        from detectron2.projects.deeplab import DeepLabV3PlusHead

        names = [*_LOW_LEVEL[: len(project_channels)], "res5"]
        require_maps(type(self).__name__, input_shape, {name: _STRIDES[name] for name in names})
        self.out_channels = dim
        self.strides = {name: input_shape[name].stride for name in names}
        self.head = DeepLabV3PlusHead(
            {name: input_shape[name] for name in names},
            project_channels=list(project_channels),
            aspp_dilations=list(aspp_dilations),
            aspp_dropout=aspp_dropout,
            decoder_channels=[dim] * len(names),
            common_stride=4,
            norm=norm,
            train_size=None,  # pools the whole image, whatever its size
            num_classes=None,  # features instead of classes
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SST.DECODER``: DIM, NORM, DEEPLAB."""
        decoder = cfg.MODEL.SST.DECODER
        return {
            "input_shape": input_shape,
            "dim": decoder.DIM,
            "project_channels": decoder.DEEPLAB.PROJECT_CHANNELS,
            "aspp_dilations": decoder.DEEPLAB.ASPP_DILATIONS,
            "aspp_dropout": decoder.DEEPLAB.ASPP_DROPOUT,
            "norm": group_norm if decoder.NORM == "GN" else decoder.NORM,
        }

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Decode.

        Args:
            features: ``res5`` and the low-level maps, (B, C_i, H/s, W/s); H and W are multiples of 32.

        Returns:
            {16: H_1, 8: H_2, 4: H_3}, each (B, D, H/s, W/s).
        """
        # The head's own `layers` goes the same way, and gives the last map alone.
        *low_level, last = self.head.in_features
        current = self.head.decoder[last]["project_conv"](features[last])
        maps = {self.strides[last]: current}
        for name in reversed(low_level):
            stage = self.head.decoder[name]
            projected = stage["project_conv"](features[name])
            coarse = F.interpolate(current, size=projected.shape[-2:], mode="bilinear", align_corners=False)
            current = maps[self.strides[name]] = stage["fuse_conv"](torch.cat([projected, coarse], dim=1))
        return {stride: _at_stride(maps, stride) for stride in (16, 8, 4)}


def _at_stride(maps: Mapping[int, torch.Tensor], stride: int) -> torch.Tensor:
    """The map of this stride, or else the next coarser one, up-sampled."""
    nearest = min(coarser for coarser in maps if coarser >= stride)
    if nearest == stride:
        return maps[stride]
    return F.interpolate(maps[nearest], scale_factor=nearest // stride, mode="bilinear", align_corners=False)
