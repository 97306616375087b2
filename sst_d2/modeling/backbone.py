"""A small backbone for quick schedules: an 18-layer ResNet of any width, from Detectron2's own blocks."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.modeling.backbone.resnet import BasicBlock


@BACKBONE_REGISTRY.register()
def build_sst_resnet18_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """ResNet-18 whose width follows the configuration; Detectron2's own insists on 64 channels.

    Reads ``MODEL.BACKBONE.FREEZE_AT`` and of ``MODEL.RESNETS`` the keys STEM_OUT_CHANNELS, RES2_OUT_CHANNELS, NORM,
    OUT_FEATURES; res3, res4, res5 have two,
    four and eight times the channels of res2.
    """
    resnets = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, resnets.NORM)
    stages = []
    in_channels, out_channels = resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS
    for first_stride in (1, 2, 2, 2):
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                2,
                in_channels=in_channels,
                out_channels=out_channels,
                stride_per_block=[first_stride, 1],
                norm=resnets.NORM,
            )
        )
        in_channels, out_channels = out_channels, out_channels * 2
    return ResNet(stem, stages, out_features=resnets.OUT_FEATURES).freeze(cfg.MODEL.BACKBONE.FREEZE_AT)
