"""`SemanticFPNDecoder`: Detectron2's feature pyramid and semantic FPN head, as a decoder that carries SST.

Both classes are Detectron2's own (Feature Pyramid Networks, CVPR 2017; Panoptic Feature Pyramid Networks, CVPR 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from torch import nn

from sst_d2.modeling.decoder import SST_DECODER_REGISTRY, require_maps
from sst_d2.modeling.pixel_decoder import group_norm

_STRIDES = {"res2": (4,), "res3": (8,), "res4": (16,), "res5": (32,)}


class _HandedOn(Backbone):
    """Gives the maps that it is given. `FPN` wants to call its backbone itself, and ours has been called already."""

    def __init__(self, input_shape: Mapping[str, ShapeSpec]) -> None:
        super().__init__()
        self._out_features = list(input_shape)
        self._out_feature_channels = {name: shape.channels for name, shape in input_shape.items()}
        self._out_feature_strides = {name: shape.stride for name, shape in input_shape.items()}

    def forward(self, features: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """The same dict."""
        return features


@SST_DECODER_REGISTRY.register()
class SemanticFPNDecoder(nn.Module):
    """Top-down feature pyramid p2 … p5; its maps are brought to stride 4 by convolutions and up-sampling, and summed.

    H_1 and H_2 are p4 and p3: the pyramid is built with D channels, so they need no projection. H_3 = F is the sum,
    brought to D channels by the 1×1 convolution that ends Detectron2's head, where it would give the classes.
    All three lie on the way to F, so every parameter learns from the segmentation loss alone.

    Args:
        input_shape: channels and strides of the backbone's maps; ``res2`` … ``res5`` with 4, 8, 16, 32 are taken.
        dim: D.
        convs_dim: channels of the convolutions that bring the maps to stride 4.
        norm: of these convolutions: what Detectron2's ``get_norm`` takes, a name or a function from a number of
            channels to a module. The pyramid has none, as in Panoptic FPN.

    Raises:
        SSTConfigError: the backbone lacks a map, or one has another stride.
    """

    @configurable
    def __init__(
        self,
        *,
        input_shape: Mapping[str, ShapeSpec],
        dim: int = 256,
        convs_dim: int = 128,
        norm: str | Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        require_maps(type(self).__name__, input_shape, _STRIDES)
        self.out_channels = dim
        names = list(_STRIDES)
        self.fpn = FPN(_HandedOn({name: input_shape[name] for name in names}), names, out_channels=dim)
        self.merge = SemSegFPNHead(
            self.fpn.output_shape(), num_classes=dim, conv_dims=convs_dim, common_stride=4, norm=norm
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SST.DECODER``: DIM, NORM, SEMANTIC_FPN."""
        decoder = cfg.MODEL.SST.DECODER
        return {
            "input_shape": input_shape,
            "dim": decoder.DIM,
            "convs_dim": decoder.SEMANTIC_FPN.CONVS_DIM,
            "norm": group_norm if decoder.NORM == "GN" else decoder.NORM,
        }

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Decode.

        Args:
            features: ``res2`` … ``res5``, (B, C_i, H/s, W/s), s = 4, 8, 16, 32; H and W are multiples of 32.

        Returns:
            {16: H_1, 8: H_2, 4: H_3}, each (B, D, H/s, W/s).
        """
        pyramid = self.fpn(features)
        return {16: pyramid["p4"], 8: pyramid["p3"], 4: self.merge.layers(pyramid)}
