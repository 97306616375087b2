"""`setup`: from the command line to a configuration that a run can be built from, and to its log."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from sst_d2.config import load_config
from sst_d2.data import register_dataset_cards
from sst_d2.data.cards import count_images, require_data
from sst_d2.data.loader import dataset_domain, fraction_size
from sst_d2.errors import SSTConfigError, SSTError
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import WORKER_DIED

# What Gloo says on the processes that are left when one has ended.
_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe")


def setup(args: argparse.Namespace) -> CfgNode:
    """Make the configuration of a run from Detectron2's command-line arguments, and set up logging.

    Returns:
        The frozen configuration, written to ``OUTPUT_DIR/config.yaml`` too.

    Raises:
        SSTConfigError: a file, a key or a value is not usable.
    """
    cfg = load_config(args.config_file, args.opts)
    # Absolute, so that the configuration saved with the run serves from any folder.
    cfg.DATASETS.SST.CARDS = [_absolute(card) for card in cfg.DATASETS.SST.CARDS]
    cfg.MODEL.SST.DOMAINS = [_absolute(d) if d.endswith((".yaml", ".yml")) else d for d in cfg.MODEL.SST.DOMAINS]
    for node, key in ((cfg.MODEL.SST.SOURCE, "WEIGHTS"), (cfg.MODEL.SST.AUXILIARY, "WORD_VECTORS")):
        if node[key]:
            node[key] = _absolute(node[key])
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    check_config(cfg)
    if args.eval_only and not cfg.DATASETS.TEST:
        raise SSTConfigError("DATASETS.TEST is empty; --eval-only needs at least one data set")
    for name in cfg.DATASETS.TEST:
        require_data(name)  # now, not at the first evaluation
    if not args.eval_only:
        epochs_to_iterations(cfg)
    cfg.freeze()
    try:
        default_setup(cfg, args)
    except OSError as reason:
        raise SSTConfigError(
            f"OUTPUT_DIR: '{cfg.OUTPUT_DIR}' cannot be written ({reason}); choose another folder"
        ) from reason
    setup_logger(output=cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="sst_d2")
    logging.getLogger("detectron2.engine.train_loop").addFilter(_sentence_instead_of_traceback)
    if cfg.MODEL.DEVICE == "cpu":
        seen = "a GPU" if torch.cuda.is_available() else "no GPU"
        logging.getLogger(__name__).info("running on the CPU (MODEL.DEVICE cpu); torch sees %s", seen)
    return cfg


def argument_parser() -> argparse.ArgumentParser:
    """Detectron2's command-line arguments; several processes of one machine meet at a free port."""
    parser = default_argument_parser()
    parser.set_defaults(dist_url="auto")
    return parser


def check_config(cfg: CfgNode) -> None:
    """Refuse what does not fit together before anything is built: domains, data sets, names, device, precision.

    Raises:
        SSTConfigError, LabelDomainError: with the key, the value and what is allowed.
    """
    domains = [get_label_domain(reference).name for reference in cfg.MODEL.SST.DOMAINS]
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        dataset_domain(name, domains)
    for key, name, registry in (
        ("MODEL.META_ARCHITECTURE", cfg.MODEL.META_ARCHITECTURE, META_ARCH_REGISTRY),
        ("MODEL.BACKBONE.NAME", cfg.MODEL.BACKBONE.NAME, BACKBONE_REGISTRY),
    ):
        if name not in registry:
            known = ", ".join(sorted(entry for entry, _ in registry))
            raise SSTConfigError(f"{key}: '{name}' is not registered; known: {known}")
    if cfg.SOLVER.AMP.ENABLED and not cfg.MODEL.DEVICE.startswith("cuda"):
        raise SSTConfigError(
            f"SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is '{cfg.MODEL.DEVICE}'; set it to False"
        )
    share, parts = cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), cfg.SOLVER.SST.ACCUMULATE
    if parts > max(share, 1):
        raise SSTConfigError(f"SOLVER.SST.ACCUMULATE: {parts} parts of {share} images per process; at most as many")


def epochs_to_iterations(cfg: CfgNode) -> None:
    """Turn ``SOLVER.SST.MAX_EPOCHS`` and ``EPOCH_STEPS`` into ``SOLVER.MAX_ITER`` and ``STEPS``, in place.

    One epoch = ⌈training images after TRAIN_FRACTION / IMS_PER_BATCH⌉ iterations, whatever the sampler. With
    MAX_EPOCHS 0 nothing changes. For a user's own trainer as well.

    Raises:
        SSTConfigError: an epoch step lies outside of training, or there is no training set.
    """
    epochs, steps = cfg.SOLVER.SST.MAX_EPOCHS, cfg.SOLVER.SST.EPOCH_STEPS
    if epochs <= 0:
        return
    if any(not 0 < step < epochs for step in steps):
        raise SSTConfigError(
            f"SOLVER.SST.EPOCH_STEPS: {list(steps)}; epochs between 0 and MAX_EPOCHS ({epochs}) are expected"
        )
    fraction = cfg.DATASETS.SST.TRAIN_FRACTION
    images = sum(fraction_size(count_images(name), fraction) for name in cfg.DATASETS.TRAIN)
    if images == 0:
        raise SSTConfigError("DATASETS.TRAIN is empty; name at least one data set")
    per_epoch = math.ceil(images / cfg.SOLVER.IMS_PER_BATCH)
    cfg.SOLVER.MAX_ITER = epochs * per_epoch
    cfg.SOLVER.STEPS = tuple(step * per_epoch for step in steps)


def _absolute(path: str) -> str:
    """A path that a user gave relative to the working directory; those that begin with ~ or a variable stay."""
    return path if path.startswith(("~", "${")) else os.path.abspath(path)


def _sentence_instead_of_traceback(record: logging.LogRecord) -> bool:
    """Detectron2's loop logs every exception with its traceback; of a user's mistake the sentence says all."""
    if record.exc_info and isinstance(record.exc_info[1], SSTError):
        record.msg, record.args = f"Training stops: {record.exc_info[1]}", ()
        record.exc_info = record.exc_text = None
    elif record.exc_info and WORKER_DIED.search(str(record.exc_info[1])):
        record.msg, record.args = "Training stops: %s", (str(record.exc_info[1]).splitlines()[0],)
        record.exc_info = record.exc_text = None
    elif record.exc_info and comm.get_world_size() > 1 and _LOST_PEER.search(str(record.exc_info[1])):
        record.msg, record.args = "Training stops: another process has ended; its message says why", ()
        record.exc_info = record.exc_text = None
    return True
