"""`build_sst_train_loader`: training batches whose order and augmentation depend on (seed, position) alone."""

from __future__ import annotations

import difflib
import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch.utils.data import DataLoader

from sst_d2.data.cards import register_dataset_cards
from sst_d2.data.mapper import SSTDatasetMapper
from sst_d2.data.sampler import PositionalBatchSampler, PositionalSampler, build_sampler
from sst_d2.data.skipping import Draw, SkippingDataset
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.label_domains import get_label_domain


class SSTTrainLoader:
    """An endless iterable of batches: lists of mapped dicts, the same for the same seed, however it is interrupted.

    Detectron2 0.5 asks for the iterator before it knows where training starts; here it begins at the first batch.

    Args:
        samples: the dataset dicts.
        mapper: from a dataset dict, with ``sample_position``, to what the model takes.
        sampler: which image comes at which position.
        total_batch_size: images per iteration over all processes.
        num_workers: processes that read and augment; 0: this one. Makes no difference to what comes.
        max_bad_samples: the most files of this process that may be skipped; see `SkippingDataset`.
        seed: origin of the order in which other images take the place of skipped ones.

    Attributes:
        samples: the dataset dicts.
        start_iteration: where the next iterator starts; set it before the first batch to go on with a run.

    Raises:
        SSTConfigError: the batch does not divide among the processes.
        SSTDataError: (while iterating) a file cannot be read or does not fit; with ``max_bad_samples`` more than these,
            or all of a label domain.
    """

    def __init__(
        self,
        samples: Sequence[dict[str, Any]],
        mapper: Callable[[dict[str, Any]], dict[str, Any]],
        sampler: PositionalSampler,
        total_batch_size: int,
        num_workers: int = 0,
        max_bad_samples: int = 0,
        seed: int = 0,
    ) -> None:
        if total_batch_size < 1 or total_batch_size % comm.get_world_size():
            raise SSTConfigError(
                f"SOLVER.IMS_PER_BATCH: {total_batch_size} images in all for {comm.get_world_size()} processes; "
                "a positive multiple of the number of processes is expected"
            )
        self.samples = list(samples)
        self._dataset = SkippingDataset(samples, mapper, max_bad_samples, seed)
        self._sampler = sampler
        self._total_batch_size = total_batch_size
        self._num_workers = num_workers
        self._max_bad_samples = max_bad_samples
        self._bad_files: set[str] = set()
        self.start_iteration = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        batches = PositionalBatchSampler(
            self._sampler, self._total_batch_size, comm.get_rank(), comm.get_world_size(), self.start_iteration
        )
        loader = DataLoader(
            self._dataset,
            batch_sampler=batches,
            num_workers=self._num_workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            # A generator of its own: the loader's base seed would else be drawn from the global one.
            generator=torch.Generator(),
        )
        for draws in loader:
            yield [self._good_sample(draw) for draw in draws]

    def domains_of_batch(self, iteration: int) -> list[list[str]]:
        """The label domains of the images of a batch, for each process."""
        first, share = iteration * self._total_batch_size, self._total_batch_size // comm.get_world_size()
        indices = [self._sampler.index_at(first + place) for place in range(self._total_batch_size)]
        names = [self.samples[index]["label_domain"] for index in indices]
        return [names[start : start + share] for start in range(0, len(names), share)]

    def _good_sample(self, draw: Draw) -> dict[str, Any]:
        """What is drawn; every bad file is logged once, and the one that is too many stops the run."""
        for file, error in draw.bad:
            if self._max_bad_samples == 0:
                raise error
            if file in self._bad_files:
                continue
            self._bad_files.add(file)
            if len(self._bad_files) > self._max_bad_samples:
                raise SSTDataError(
                    f"{len(self._bad_files)} training samples are bad, and INPUT.SST.MAX_BAD_SAMPLES allows "
                    f"{self._max_bad_samples}; the last one: {error}"
                )
            logging.getLogger(__name__).warning("skipped, another image of its label domain comes instead: %s", error)
        if draw.sample is None:
            raise SSTDataError(f"no training sample of a label domain is good; the last one: {draw.bad[-1][1]}")
        return draw.sample


@configurable(from_config=lambda cfg, **kwargs: _loader_from_config(cfg, **kwargs))
def build_sst_train_loader(
    samples: Sequence[dict[str, Any]],
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]],
    domains: Sequence[str],
    total_batch_size: int,
    sampler: str = "balanced",
    weights: Sequence[float] = (),
    num_workers: int = 0,
    seed: int = 0,
    max_bad_samples: int = 0,
) -> SSTTrainLoader:
    """Build the training loader, from ``cfg`` (and optionally ``mapper``, ``samples``) or from plain arguments.

    ``DATASETS.SST.TRAIN_FRACTION`` concerns the data sets of ``cfg``; given ``samples`` are taken as they are.

    Args:
        samples: dataset dicts of all training sets, each with ``label_domain``.
        mapper: see `SSTTrainLoader`.
        domains: names of the label domains, in their order.
        total_batch_size: images per iteration over all processes.
        sampler, weights: see `build_sampler`.
        num_workers: worker processes.
        seed: origin of the order.
        max_bad_samples: the most files per process that may be skipped; 0: the first bad one is an error.

    Raises:
        SSTConfigError: no sample, an unknown sampler, weights that do not fit, a batch that does not divide.
    """
    if not samples:
        raise SSTConfigError("DATASETS.TRAIN: there is no training image; name at least one data set")
    try:
        order = build_sampler(sampler, [sample["label_domain"] for sample in samples], domains, weights, seed)
    except ValueError as reason:
        raise SSTConfigError(f"DATALOADER.SST: {reason}") from reason
    return SSTTrainLoader(samples, mapper, order, total_batch_size, num_workers, max_bad_samples, seed)


def load_datasets(
    names: Sequence[str], domains: Sequence[str], fraction: float = 1.0, seed: int = 0
) -> list[dict[str, Any]]:
    """The dataset dicts of several registered data sets, one after the other.

    Args:
        names: of the data sets.
        domains: names of the label domains that they may have.
        fraction: share of each data set, in (0, 1]; `fraction_size` images, in their own order. The images of a smaller
            share are among those of a larger one.
        seed: origin of the choice; with the data set's name it decides alone.

    Raises:
        SSTConfigError: a name is not registered, or a data set's label domain is none of ``domains``.
        DatasetCardError: the data is not where its card says.
    """
    samples = []
    for name in names:
        domain = dataset_domain(name, domains)
        whole = DatasetCatalog.get(name)
        chosen = np.arange(len(whole))
        if fraction < 1:
            generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
            chosen = np.sort(generator.permutation(chosen)[: fraction_size(len(whole), fraction)])
        samples += [{"label_domain": domain, **whole[index]} for index in chosen]
    return samples


def fraction_size(size: int, fraction: float) -> int:
    """⌈fraction · size⌉ of the decimal number as it is written: 0.07 of 100 are 7, where floats would give 8."""
    return math.ceil(Fraction(str(fraction)) * size)


def dataset_domain(name: str, domains: Sequence[str]) -> str:
    """The label domain of a registered data set.

    Raises:
        SSTConfigError: the data set is unknown, says no label domain, or has one that is none of ``domains``.
    """
    if name not in DatasetCatalog.list():
        similar = difflib.get_close_matches(name, DatasetCatalog.list(), n=3) or [
            known for known in DatasetCatalog.list() if "label_domain" in MetadataCatalog.get(known).as_dict()
        ]
        raise SSTConfigError(
            f"DATASETS: the data set '{name}' is not registered; did you mean: {', '.join(similar)}? "
            "A data set of your own needs a card in DATASETS.SST.CARDS"
        )
    domain = MetadataCatalog.get(name).as_dict().get("label_domain")
    if domain is None:
        raise SSTConfigError(
            f"DATASETS: the data set '{name}' does not say its label domain; register it by a dataset card, or "
            f"MetadataCatalog.get('{name}').set(label_domain=...)"
        )
    if domain not in domains:
        raise SSTConfigError(
            f"DATASETS: the data set '{name}' has the label domain '{domain}', which is none of MODEL.SST.DOMAINS "
            f"({', '.join(domains) or 'empty'}); add it there"
        )
    return domain


def _as_list(draws: list[Draw]) -> list[Draw]:
    return draws


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)


def _loader_from_config(
    cfg: CfgNode,
    *,
    mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    samples: Sequence[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    domains = [get_label_domain(reference).name for reference in cfg.MODEL.SST.DOMAINS]
    if cfg.SEED < 0:
        logging.getLogger(__name__).warning(
            "SEED is %d: the order of images is drawn anew in every run, and a resumed run meets another order; "
            "set SEED to 0 or more for a run that can be repeated",
            cfg.SEED,
        )
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    if samples is None:
        samples = load_datasets(cfg.DATASETS.TRAIN, domains, cfg.DATASETS.SST.TRAIN_FRACTION, seed)
    if mapper is None:
        mapper = SSTDatasetMapper(cfg, is_train=True)
        mapper.seed = seed
    without = sorted(set(domains) - {sample["label_domain"] for sample in samples})
    if without:
        logging.getLogger(__name__).warning(
            "no training set has the label domain %s: its head will learn nothing", " or ".join(without)
        )
    max_bad_samples = cfg.INPUT.SST.MAX_BAD_SAMPLES
    return {
        "samples": samples,
        "mapper": mapper,
        "domains": domains,
        "total_batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "sampler": cfg.DATALOADER.SST.SAMPLER,
        "weights": cfg.DATALOADER.SST.WEIGHTS,
        "num_workers": cfg.DATALOADER.NUM_WORKERS,
        "seed": seed,
        "max_bad_samples": max_bad_samples if cfg.INPUT.SST.BAD_SAMPLES == "skip" else 0,
    }
