"""Pictures of what the project works with: samples, predictions in training, confusions, relations of categories."""

from sst_d2.pictures.categories import CategoryRelations, observe_relations
from sst_d2.pictures.confusion import EvaluationRecord, confusion_picture, read_evaluation
from sst_d2.pictures.relations import cosine_picture, dynamic_picture, static_picture
from sst_d2.pictures.samples import sample_picture
from sst_d2.pictures.training import PredictionPictures

__all__ = [
    "CategoryRelations",
    "EvaluationRecord",
    "PredictionPictures",
    "confusion_picture",
    "cosine_picture",
    "dynamic_picture",
    "observe_relations",
    "read_evaluation",
    "sample_picture",
    "static_picture",
]
