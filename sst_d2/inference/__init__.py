"""Prediction: `SSTPredictor` for photos, `SSTWithTTA` around any model."""

from sst_d2.inference.prediction import Prediction
from sst_d2.inference.predictor import SSTPredictor
from sst_d2.inference.tta import SSTWithTTA

__all__ = ["Prediction", "SSTPredictor", "SSTWithTTA"]
