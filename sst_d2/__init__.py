"""Scalable Semantic Transfer (SST, CVPR 2023) for human parsing, as an extension of Detectron2.

Importing the package registers the model, its parts and the built-in data sets, and changes nothing of Detectron2's.
"""

import os
import warnings

try:
    import cv2  # noqa: F401
except ImportError as reason:
    warnings.warn(
        f"OpenCV cannot be loaded ({reason}); everything but video works without it. "
        "In a container without libGL: python -m pip install opencv-python-headless",
        stacklevel=2,
    )
    # Detectron2's main branch would stop at an OpenCV that is there but cannot be loaded.
    os.environ["DETECTRON2_DISABLE_CV2"] = "1"

try:
    import detectron2  # noqa: F401
except ImportError as reason:
    raise ImportError(
        "sst_d2 needs Detectron2, which the package index does not have under its own name; "
        "install it: python tools/install_detectron2.py (or see docs/INSTALL.md)"
    ) from reason

from sst_d2.config import add_sst_config, get_config_file, inference_config
from sst_d2.data import SSTDatasetMapper, build_sst_train_loader, register_dataset_card
from sst_d2.data.cards import register_built_in_cards
from sst_d2.errors import SSTError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.inference import Prediction, SSTPredictor, SSTWithTTA
from sst_d2.label_domains import LabelDomain, get_label_domain, register_label_domain
from sst_d2.modeling import SST_DECODER_REGISTRY
from sst_d2.modeling.meta_arch import SST

__version__ = "0.1.0"

__all__ = [
    "SST",
    "SST_DECODER_REGISTRY",
    "LabelDomain",
    "Prediction",
    "SSTDatasetMapper",
    "SSTError",
    "SSTPredictor",
    "SSTSemSegEvaluator",
    "SSTWithTTA",
    "add_sst_config",
    "build_sst_train_loader",
    "get_config_file",
    "get_label_domain",
    "inference_config",
    "register_dataset_card",
    "register_label_domain",
]

register_built_in_cards()
