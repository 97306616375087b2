"""Where data comes in: dataset cards, label reading, augmentation, the mapper, the training loader."""

from sst_d2.data.cards import DatasetCard, read_dataset_cards, register_dataset_card, register_dataset_cards
from sst_d2.data.label_io import read_label_map
from sst_d2.data.loader import build_sst_train_loader
from sst_d2.data.mapper import SSTDatasetMapper

__all__ = [
    "DatasetCard",
    "SSTDatasetMapper",
    "build_sst_train_loader",
    "read_dataset_cards",
    "read_label_map",
    "register_dataset_card",
    "register_dataset_cards",
]
