"""`SSTPixelDecoder`: the encoder of the parsing network, six deformable-attention layers over strides 8, 16 and 32.

The paper takes the encoder of Mask2Former (reference [6]), which is that of Deformable DETR.
Letters: B images, S pixels of all levels together, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from sst_d2.modeling.ops import ms_deform_attn_fused
from sst_d2.modeling.position import sine_position_encoding


def group_norm(channels: int) -> nn.GroupNorm:
    """Group norm in 32 groups at multiples of 128 channels, else in fewer; Detectron2's "GN" insists on 32.

    Args:
        channels: a multiple of 4; each group has at least 4, since a map may have one pixel only.
    """
    return nn.GroupNorm(math.gcd(32, channels // 4), channels)


class DeformableAttention(nn.Module):
    """Multi-scale deformable self-attention with its projections.

    Args:
        dim: D, a multiple of ``heads``.
        levels: number of feature maps.
        heads: number of attention heads.
        points: sampled places per head and level.
    """

    def __init__(self, dim: int, levels: int, heads: int, points: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"DeformableAttention: dim {dim} is no multiple of heads {heads}")
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_logits = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self._reset_parameters()

    def _reset_parameters(self) -> None:
        """As in Deformable DETR: each head looks into a direction of its own, its points farther and farther out."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1)
        bias = directions[:, None, None] * distances[None, None, :, None]
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_logits.weight)
        nn.init.zeros_(self.attention_logits.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: torch.Tensor,
        features: torch.Tensor,
        spatial_shapes: list[tuple[int, int]],
        reference_points: torch.Tensor,
    ) -> torch.Tensor:
        """Attend.

        Args:
            query: (B, S, D), features with position encoding.
            features: (B, S, D).
            spatial_shapes: (height, width) per level.
            reference_points: (1, S, 1, 2), each pixel's own place.

        Returns:
            (B, S, D).
        """
        batch, total, dim = features.shape
        value = self.value_proj(features).view(batch, total, self.heads, dim // self.heads)
        offsets = self.sampling_offsets(query).view(batch, total, self.heads, self.levels, self.points, 2)
        logits = self.attention_logits(query).view(batch, total, self.heads, self.levels * self.points)
        return self.output_proj(ms_deform_attn_fused(value, spatial_shapes, reference_points, offsets, logits))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention, then a feed-forward network; normalisation after each (Deformable DETR).

    Args:
        attention: the ready attention module.
        dim: D.
        ffn_dim: width of the feed-forward network.
        dropout: probability, in [0, 1).
    """

    def __init__(self, attention: DeformableAttention, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = attention
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(ffn_dim, dim)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        features: torch.Tensor,
        positions: torch.Tensor,
        spatial_shapes: list[tuple[int, int]],
        reference_points: torch.Tensor,
    ) -> torch.Tensor:
        """(B, S, D) to (B, S, D); ``positions`` (S, D); the others as in `DeformableAttention`."""
        attended = self.attention(features + positions, features, spatial_shapes, reference_points)
        features = self.norm1(features + self.dropout(attended))
        return self.norm2(features + self.dropout(self.ffn(features)))


class SSTPixelDecoder(nn.Module):
    """Project the backbone's maps to D channels and refine them together by deformable attention.

    Args:
        in_channels: channels of the maps by stride, e.g. ``{8: 512, 16: 1024, 32: 2048}``.
        dim: D, a multiple of 4 and of ``heads``.
        layers: number of encoder layers.
        heads, points: of each attention.
        ffn_dim: width of the feed-forward networks.
        dropout: probability, in [0, 1).
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        dim: int = 256,
        layers: int = 6,
        heads: int = 8,
        points: int = 4,
        ffn_dim: int = 1024,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.strides = sorted(in_channels)
        self.input_proj = nn.ModuleDict(
            {
                str(stride): nn.Sequential(nn.Conv2d(in_channels[stride], dim, kernel_size=1), group_norm(dim))
                for stride in self.strides
            }
        )
        self.level_embedding = nn.Parameter(torch.randn(len(self.strides), dim))
        self.layers = nn.ModuleList(
            DeformableEncoderLayer(DeformableAttention(dim, len(self.strides), heads, points), dim, ffn_dim, dropout)
            for _ in range(layers)
        )
        for projection in self.input_proj.values():
            nn.init.xavier_uniform_(projection[0].weight)
            nn.init.zeros_(projection[0].bias)

    def forward(self, features: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Refine.

        Args:
            features: by stride s, (B, C_s, H/s, W/s).

        Returns:
            by stride s, (B, D, H/s, W/s).
        """
        maps = [self.input_proj[str(stride)](features[stride]) for stride in self.strides]
        # No int(): where a trace is taken, sizes must stay what depends on the input's size.
        shapes = [(level.shape[-2], level.shape[-1]) for level in maps]
        positions = torch.cat(
            [
                sine_position_encoding(*shape, level.shape[1], level.device) + embedding
                for shape, level, embedding in zip(shapes, maps, self.level_embedding, strict=True)
            ]
        )
        references = torch.cat([_pixel_centres(*shape, maps[0].device) for shape in shapes])[None, :, None]
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, positions, shapes, references)
        refined = tokens.split([height * width for height, width in shapes], dim=1)
        return {
            stride: level.transpose(1, 2).view(*level.shape[::2], *shape)
            for stride, level, shape in zip(self.strides, refined, shapes, strict=True)
        }


def _pixel_centres(height: int, width: int, device: torch.device) -> torch.Tensor:
    """(height * width, 2): x and y of the pixels' centres, in (0, 1)."""
    y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) / height
    x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) / width
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
