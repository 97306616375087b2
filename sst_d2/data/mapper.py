"""`SSTDatasetMapper`: from a dataset dict to what the model takes. One class for every label domain."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T

from sst_d2.data.image_io import read_image
from sst_d2.data.label_io import read_sample_labels
from sst_d2.data.transforms import EvaluationResize, RandomScaleCropMirror, SSTAugInput
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain, get_label_domain


class SSTDatasetMapper:
    """Read image and label map, augment both, give tensors.

    Serves PASCAL-Person-Part, ATR, CIHP, LIP and any other domain: the record that the dict's ``label_domain`` names
    makes the difference (ids, flip pairs, ignore label). Usable in Detectron2's loaders as well as in
    `build_sst_train_loader`, which adds the key ``sample_position``; with it every random number of the augmentation
    is a pure function of (seed, position).

    Input keys: ``file_name``, ``label_domain``, and for training a label file (`read_sample_labels`).
    Output: the input's keys, and ``image`` uint8 (3, H, W) in ``image_format``; for training ``sem_seg`` int64 (H, W)
    of ids in [0, K) or the ignore label.

    Args:
        is_train: read and augment labels.
        domains: the label domains that samples may follow.
        augmentations: Detectron2 augmentations, applied in turn; those of `sst_d2.data.transforms` swap left and right
            and pad with 'ignore' by themselves.
        image_format: order of the channels, "RGB" or "BGR".
        seed: with the sample's position, the origin of the augmentation's random numbers.

    Raises:
        SSTDataError: (when called) a file is absent, damaged or does not fit; the message names it.
    """

    @configurable
    def __init__(
        self,
        is_train: bool = True,
        *,
        domains: Sequence[LabelDomain],
        augmentations: Sequence[T.Augmentation],
        image_format: str = "RGB",
        seed: int = 0,
    ) -> None:
        self.is_train = is_train
        # Records, not names: a worker that is started afresh knows only the domains that the mapper brings along.
        self.domains = {domain.name: domain for domain in domains}
        self.augmentations = T.AugmentationList(list(augmentations))
        self.image_format = image_format
        self.seed = seed

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Read ``MODEL.SST.DOMAINS``, ``INPUT`` and ``SEED``."""
        return {
            "is_train": is_train,
            "domains": [get_label_domain(reference) for reference in cfg.MODEL.SST.DOMAINS],
            "augmentations": build_augmentations(cfg)
            if is_train
            else [EvaluationResize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)],
            "image_format": cfg.INPUT.FORMAT,
            "seed": max(cfg.SEED, 0),
        }

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Map one dict; the input is not changed."""
        sample = dict(dataset_dict)
        domain = self._domain_of(sample)
        image = read_image(sample["file_name"], self.image_format)
        sample.setdefault("height", image.shape[0])
        sample.setdefault("width", image.shape[1])
        labels = read_sample_labels(sample, domain, image.shape[:2]) if self.is_train else None
        aug_input = SSTAugInput(image, domain, sem_seg=labels)
        with _seeded(self.seed, sample.get("sample_position")):
            self.augmentations(aug_input)
        sample["image"] = torch.from_numpy(np.ascontiguousarray(aug_input.image.transpose(2, 0, 1)))
        if self.is_train:
            sample["sem_seg"] = torch.from_numpy(aug_input.sem_seg.astype(np.int64))
        return sample

    def _domain_of(self, sample: dict[str, Any]) -> LabelDomain:
        file_name, name = sample.get("file_name"), sample.get("label_domain")
        if file_name is None:
            raise SSTDataError(
                f"the sample '{sample.get('image_id')}' names no photo; every dataset dict needs the key `file_name`"
            )
        if name is None:
            raise SSTDataError(
                f"{file_name}: the key 'label_domain' is missing; register the data set by a dataset card, or put the "
                "domain's name into every dict"
            )
        if name not in self.domains:
            raise SSTDataError(
                f"{file_name}: its label domain '{name}' is none of {sorted(self.domains)}; add it to MODEL.SST.DOMAINS"
            )
        return self.domains[name]


def build_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """The paper's augmentation: random scale, crop with padding, mirror (``INPUT.SST``, ``INPUT.RANDOM_FLIP``)."""
    return [
        RandomScaleCropMirror(
            cfg.INPUT.SST.CROP_SIZE,
            cfg.INPUT.SST.SCALE_RANGE,
            per_axis=cfg.INPUT.SST.SCALE_PER_AXIS,
            mirror_probability={"none": 0.0, "horizontal": 0.5}[cfg.INPUT.RANDOM_FLIP],
        )
    ]


@contextlib.contextmanager
def _seeded(seed: int, position: int | None) -> Iterator[None]:
    """Seed NumPy's and Python's generators from (seed, position), and give them their old states back."""
    if position is None:
        yield
        return
    numpy_state, python_state = np.random.get_state(), random.getstate()
    words = np.random.SeedSequence([seed, position]).generate_state(4)
    np.random.seed(words)
    random.seed(int(words[0]))
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
