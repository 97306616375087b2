"""`SSTDecoder`: three stages of up-sampling and Swin blocks; and the registry of whatever may stand in its place.

A decoder takes the backbone's maps ``res2`` … ``res5`` and gives {16: H_1, 8: H_2, 4: H_3}, each (B, D, H/s, W/s).
H_3 is F, which the heads read (A1, A2, A9 in docs/DECISIONS.md).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn
from torchvision.models.swin_transformer import SwinTransformerBlock

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.pixel_decoder import SSTPixelDecoder

SST_DECODER_REGISTRY = Registry("SST_DECODER")
SST_DECODER_REGISTRY.__doc__ = """
Decoders that can carry SST. A registered class is called with ``(cfg, input_shape)``; it has an attribute
``out_channels`` (D), and its forward maps the backbone's dict of features to {16: H_1, 8: H_2, 4: H_3},
each (B, D, H/s, W/s).
"""

_FEATURES = {4: "res2", 8: "res3", 16: "res4", 32: "res5"}


def build_sst_decoder(cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> nn.Module:
    """Build the decoder that ``MODEL.SST.DECODER.NAME`` names.

    Raises:
        SSTConfigError: no decoder has this name.
    """
    name = cfg.MODEL.SST.DECODER.NAME
    known = sorted(key for key, _ in SST_DECODER_REGISTRY)
    if name not in known:
        raise SSTConfigError(
            f"MODEL.SST.DECODER.NAME: '{name}' is not in SST_DECODER_REGISTRY; known: {', '.join(known)}"
        )
    return SST_DECODER_REGISTRY.get(name)(cfg, input_shape)


def require_maps(
    decoder: str, input_shape: Mapping[str, ShapeSpec], strides: Mapping[str, Collection[int] | None]
) -> None:
    """Refuse a backbone that a decoder cannot read.

    Args:
        decoder: its name, for the message.
        input_shape: channels and strides of the backbone's maps.
        strides: by name of the maps that are needed: the strides that are allowed; None: any.

    Raises:
        SSTConfigError: a map is missing, or has another stride.
    """
    missing = [name for name in strides if name not in input_shape]
    if missing:
        raise SSTConfigError(
            f"{decoder}: the backbone gives {sorted(input_shape)}, without {missing}; "
            "set MODEL.RESNETS.OUT_FEATURES to [res2, res3, res4, res5]"
        )
    for name, allowed in strides.items():
        if allowed is not None and input_shape[name].stride not in allowed:
            raise SSTConfigError(
                f"{decoder}: the backbone's {name} has stride {input_shape[name].stride}; allowed: "
                f"{' or '.join(map(str, allowed))}. Of a ResNet, MODEL.RESNETS.RES5_DILATION 1 gives 32, and 2 gives 16"
            )


class SwinStage(nn.Module):
    """Up-sample by two, add a lateral map, then Swin blocks with plain and shifted windows in turn.

    Args:
        dim: D.
        blocks: number of Swin blocks.
        heads: attention heads.
        window: side of the windows, in feature pixels; smaller maps are padded inside.
        mlp_ratio: width of the blocks' MLP, relative to D.
    """

    def __init__(self, dim: int, blocks: int, heads: int, window: int, mlp_ratio: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinTransformerBlock(
                dim,
                heads,
                window_size=[window, window],
                shift_size=[0, 0] if block % 2 == 0 else [window // 2, window // 2],
                mlp_ratio=mlp_ratio,
            )
            for block in range(blocks)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, coarse: torch.Tensor, lateral: torch.Tensor) -> torch.Tensor:
        """(B, D, h, w) and (B, D, H, W) to (B, D, H, W)."""
        features = lateral + F.interpolate(coarse, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        features = features.permute(0, 2, 3, 1)
        for block in self.blocks:
            features = block(features)
        return self.norm(features).permute(0, 3, 1, 2).contiguous()


@SST_DECODER_REGISTRY.register()
class SSTDecoder(nn.Module):
    """The paper's encoder and decoder: deformable attention over strides 8, 16, 32, then three Swin stages.

    Args:
        pixel_decoder: from {8, 16, 32: backbone maps} to {8, 16, 32: (B, D, H/s, W/s)}.
        res2_channels: channels of the backbone's map at stride 4.
        dim: D.
        blocks: Swin blocks of the stages at strides 16, 8 and 4.
        heads, window, mlp_ratio: see `SwinStage`.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_decoder: nn.Module,
        res2_channels: int,
        dim: int = 256,
        blocks: Sequence[int] = (2, 2, 2),
        heads: int = 8,
        window: int = 8,
        mlp_ratio: float = 2.0,
    ) -> None:
        super().__init__()
        self.out_channels = dim
        self.pixel_decoder = pixel_decoder
        self.res2_proj = nn.Conv2d(res2_channels, dim, kernel_size=1)
        self.stages = nn.ModuleDict(
            {
                str(stride): SwinStage(dim, count, heads, window, mlp_ratio)
                for stride, count in zip((16, 8, 4), blocks, strict=True)
            }
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """Read ``MODEL.SST.PIXEL_DECODER`` and ``MODEL.SST.DECODER``."""
        require_maps(cls.__name__, input_shape, dict.fromkeys(_FEATURES.values()))
        encoder, decoder = cfg.MODEL.SST.PIXEL_DECODER, cfg.MODEL.SST.DECODER
        pixel_decoder = SSTPixelDecoder(
            {stride: input_shape[_FEATURES[stride]].channels for stride in (8, 16, 32)},
            dim=decoder.DIM,
            layers=encoder.LAYERS,
            heads=encoder.HEADS,
            points=encoder.POINTS,
            ffn_dim=encoder.FFN_DIM,
            dropout=encoder.DROPOUT,
        )
        return {
            "pixel_decoder": pixel_decoder,
            "res2_channels": input_shape["res2"].channels,
            "dim": decoder.DIM,
            "blocks": decoder.BLOCKS,
            "heads": decoder.HEADS,
            "window": decoder.WINDOW,
            "mlp_ratio": decoder.MLP_RATIO,
        }

    def forward(self, features: Mapping[str, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Decode.

        Args:
            features: ``res2`` … ``res5``, (B, C_i, H/s, W/s), s = 4, 8, 16, 32.

        Returns:
            {16: H_1, 8: H_2, 4: H_3}, each (B, D, H/s, W/s).
        """
        encoded = self.pixel_decoder({stride: features[_FEATURES[stride]] for stride in (8, 16, 32)})
        laterals = {16: encoded[16], 8: encoded[8], 4: self.res2_proj(features["res2"])}
        pyramid: dict[int, torch.Tensor] = {}
        current = encoded[32]
        for stride, lateral in laterals.items():
            current = pyramid[stride] = self.stages[str(stride)](current, lateral)
        return pyramid
