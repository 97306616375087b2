"""The parsing network: backbone → decoder → heads → losses. Registered names begin with ``SST``."""

from sst_d2.modeling.backbone import build_sst_resnet18_backbone
from sst_d2.modeling.decoder import SST_DECODER_REGISTRY, SSTDecoder, build_sst_decoder
from sst_d2.modeling.heads import SSTHeads
from sst_d2.modeling.losses import SSTLosses
from sst_d2.modeling.pixel_decoder import SSTPixelDecoder

__all__ = [
    "SST_DECODER_REGISTRY",
    "SSTDecoder",
    "SSTHeads",
    "SSTLosses",
    "SSTPixelDecoder",
    "build_sst_decoder",
    "build_sst_resnet18_backbone",
]
