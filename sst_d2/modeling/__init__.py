"""The parsing network: backbone → decoder → heads → losses. Names in Detectron2's registries hold "sst"."""

from sst_d2.modeling.backbone import build_sst_resnet18_backbone
from sst_d2.modeling.decoder import SST_DECODER_REGISTRY, SSTDecoder, build_sst_decoder
from sst_d2.modeling.deeplab import DeepLabV3PlusDecoder
from sst_d2.modeling.heads import SSTHeads
from sst_d2.modeling.losses import SSTLosses
from sst_d2.modeling.pixel_decoder import SSTPixelDecoder
from sst_d2.modeling.semantic_fpn import SemanticFPNDecoder
from sst_d2.modeling.swin import SwinBackbone, build_sst_swin_t_backbone

__all__ = [
    "SST_DECODER_REGISTRY",
    "DeepLabV3PlusDecoder",
    "SSTDecoder",
    "SSTHeads",
    "SSTLosses",
    "SSTPixelDecoder",
    "SemanticFPNDecoder",
    "SwinBackbone",
    "build_sst_decoder",
    "build_sst_resnet18_backbone",
    "build_sst_swin_t_backbone",
]
