"""What each value of a configuration may be. One table: a wrong value is one sentence, before anything is built."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

from detectron2.config import CfgNode as CN

from sst_d2.errors import SSTConfigError


def _whole(smallest: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _list_of(item: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, (list, tuple)) and length in (None, len(value)) and all(item(entry) for entry in value)
    )


def _one_of(*allowed: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in allowed, "one of " + ", ".join(repr(entry) for entry in allowed)


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


_POSITIVE = (_whole(1), "a whole number from 1 on")
_CHANNELS = (lambda value: _whole(4)(value) and value % 4 == 0, "a positive multiple of 4")
_PROBABILITY = (lambda value: _number(value) and 0 <= value < 1, "a number from 0 on, below 1")
_NOT_NEGATIVE = (lambda value: _number(value) and value >= 0, "a number from 0 on")
_ABOVE_ZERO = (lambda value: _number(value) and value > 0, "a positive number")
_TEXTS = (_list_of(_text), "a list of names or paths")
# Key, test, what is allowed.
_RULES = (
    ("MODEL.DEVICE", lambda v: re.fullmatch(r"(cpu|cuda(:\d+)?)?", v) is not None, "cpu, cuda or cuda:N"),
    ("MODEL.RESNETS.NORM", *_one_of("FrozenBN", "BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "GN", "")),
    ("MODEL.RESNETS.RES5_DILATION", lambda v: v in (1, 2), "1 or 2"),
    ("MODEL.RESNETS.DEPTH", lambda v: v in (18, 34, 50, 101, 152), "18, 34, 50, 101 or 152"),
    ("MODEL.PIXEL_MEAN", _list_of(_number, 3), "three numbers, one per channel"),
    ("MODEL.PIXEL_STD", _list_of(lambda v: _number(v) and v > 0, 3), "three positive numbers, one per channel"),
    ("MODEL.SST.DOMAINS", *_TEXTS),
    ("MODEL.SST.PIXEL_DECODER.LAYERS", *_POSITIVE),
    ("MODEL.SST.PIXEL_DECODER.HEADS", *_POSITIVE),
    ("MODEL.SST.PIXEL_DECODER.POINTS", *_POSITIVE),
    ("MODEL.SST.PIXEL_DECODER.FFN_DIM", *_POSITIVE),
    ("MODEL.SST.PIXEL_DECODER.DROPOUT", *_PROBABILITY),
    ("MODEL.SST.DECODER.DIM", *_CHANNELS),
    ("MODEL.SST.DECODER.BLOCKS", _list_of(_whole(1), 3), "three whole numbers from 1 on: strides 16, 8, 4"),
    ("MODEL.SST.DECODER.HEADS", *_POSITIVE),
    ("MODEL.SST.DECODER.WINDOW", *_POSITIVE),
    ("MODEL.SST.DECODER.MLP_RATIO", *_ABOVE_ZERO),
    ("MODEL.SST.DECODER.NORM", *_one_of("GN", "BN", "SyncBN", "")),
    ("MODEL.SST.DECODER.SEMANTIC_FPN.CONVS_DIM", *_CHANNELS),
    (
        "MODEL.SST.DECODER.DEEPLAB.PROJECT_CHANNELS",
        lambda v: _list_of(_CHANNELS[0])(v) and 1 <= len(v) <= 3,
        "one to three positive multiples of 4: res2, res3, res4",
    ),
    ("MODEL.SST.DECODER.DEEPLAB.ASPP_DILATIONS", _list_of(_whole(1), 3), "three whole numbers from 1 on"),
    ("MODEL.SST.DECODER.DEEPLAB.ASPP_DROPOUT", *_PROBABILITY),
    ("MODEL.SST.LOSS_WEIGHTS.SEG", *_NOT_NEGATIVE),
    ("MODEL.SST.LOSS_WEIGHTS.AUX", *_NOT_NEGATIVE),
    ("MODEL.SST.LOSS_WEIGHTS.SCR", *_NOT_NEGATIVE),
    ("MODEL.SST.AUXILIARY.REGIONS", *_one_of("ground_truth", "prediction")),
    ("MODEL.SST.AUXILIARY.STRATEGY", *_one_of("full", "progressive", "pairs", "none")),
    ("MODEL.SST.AUXILIARY.ORDER", *_TEXTS),
    ("MODEL.SST.AUXILIARY.PAIRS", _list_of(_list_of(_text, 2)), "a list of pairs of label domains"),
    ("MODEL.SST.AUXILIARY.DATASET_LEVEL", *_NOT_NEGATIVE),
    ("MODEL.SST.AUXILIARY.IMAGE_LEVEL", *_NOT_NEGATIVE),
    ("MODEL.SST.AUXILIARY.PREDICTION", *_NOT_NEGATIVE),
    ("MODEL.SST.AUXILIARY.RELATIONS", *_one_of("", "lexicon", "identity", "random")),
    ("MODEL.SST.AUXILIARY.EMBEDDING_STD", *_ABOVE_ZERO),
    ("MODEL.SST.AUXILIARY.PRESET", *_one_of("paper", "stable")),
    ("MODEL.SST.AUXILIARY.STOP_GRADIENT", *_one_of("", "none", "target")),
    ("MODEL.SST.AUXILIARY.NORMALIZE", *_one_of("", "classes", "present")),
    ("MODEL.SST.AUXILIARY.REDUCE", *_one_of("", "sum", "mean")),
    ("MODEL.SST.AUXILIARY.RAMP", _whole(-1), "a whole number from 0 on; -1: the preset's"),
    ("MODEL.SST.SOURCE.DOMAINS", *_TEXTS),
    ("INPUT.FORMAT", *_one_of("RGB", "BGR")),
    ("INPUT.RANDOM_FLIP", *_one_of("horizontal", "none")),
    ("INPUT.MIN_SIZE_TEST", _whole(0), "a whole number of pixels from 0 on; 0: the photo's own size"),
    ("INPUT.MAX_SIZE_TEST", _whole(1), "a whole number of pixels from 1 on"),
    (
        "INPUT.SST.SCALE_RANGE",
        lambda v: _list_of(_number, 2)(v) and 0 < v[0] <= v[1] <= 100,
        "[smallest, largest], to 100",
    ),
    ("INPUT.SST.CROP_SIZE", _list_of(_whole(1), 2), "[height, width] in whole pixels"),
    ("INPUT.SST.BAD_SAMPLES", *_one_of("stop", "skip")),
    ("INPUT.SST.MAX_BAD_SAMPLES", *_POSITIVE),
    ("DATASETS.TRAIN", *_TEXTS),
    ("DATASETS.TEST", *_TEXTS),
    ("DATASETS.SST.CARDS", *_TEXTS),
    ("DATASETS.SST.TRAIN_FRACTION", lambda v: _number(v) and 0 < v <= 1, "a number above 0, to 1"),
    ("DATALOADER.NUM_WORKERS", _whole(0), "a whole number from 0 on"),
    ("DATALOADER.SST.SAMPLER", *_one_of("balanced", "weighted", "proportional")),
    ("DATALOADER.SST.WEIGHTS", _list_of(lambda v: _number(v) and v > 0), "a list of positive numbers"),
    ("SOLVER.IMS_PER_BATCH", *_POSITIVE),
    ("SOLVER.MAX_ITER", *_POSITIVE),
    ("SOLVER.CHECKPOINT_PERIOD", *_POSITIVE),
    ("SOLVER.BASE_LR", *_NOT_NEGATIVE),
    ("SOLVER.WEIGHT_DECAY", *_NOT_NEGATIVE),
    ("SOLVER.GAMMA", *_ABOVE_ZERO),
    ("SOLVER.STEPS", lambda v: _list_of(_whole(1))(v) and list(v) == sorted(set(v)), "iterations, one after the other"),
    ("SOLVER.LR_SCHEDULER_NAME", *_one_of("WarmupMultiStepLR", "WarmupCosineLR")),
    ("SOLVER.WARMUP_METHOD", *_one_of("linear", "constant")),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", *_ABOVE_ZERO),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", *_one_of("full_model", "norm", "value")),
    ("SOLVER.SST.MAX_EPOCHS", _whole(0), "a whole number from 0 on; 0: SOLVER.MAX_ITER counts"),
    ("SOLVER.SST.EPOCH_STEPS", _list_of(_whole(1)), "a list of epochs"),
    ("SOLVER.SST.ACCUMULATE", *_POSITIVE),
    ("SOLVER.SST.AMP_DTYPE", *_one_of("float16", "bfloat16")),
    ("TEST.EVAL_PERIOD", _whole(0), "a whole number from 0 on; 0: after training only"),
    ("TEST.SST.PICTURES", _whole(0), "a whole number from 0 on; 0: none"),
    (
        "TEST.SST.SCALES",
        lambda v: _list_of(lambda s: _number(s) and 0 < s <= 10)(v) and len(v) > 0,
        "a list of at least one positive number, to 10",
    ),
    ("TEST.SST.MAX_PIXELS", *_POSITIVE),
    ("TEST.EXPECTED_RESULTS", _list_of(lambda v: len(v) == 4), "a list of [task, metric, value, tolerance]"),
    ("SEED", lambda v: _whole(-(10**9))(v) and v < 2**32, "a whole number below 2**32; negative: drawn anew"),
)


def check_values(cfg: CN, below: str = "") -> None:
    """Refuse values that nothing can be built from.

    Args:
        cfg: the configuration.
        below: look at keys that begin with it only, e.g. "MODEL.".

    Raises:
        SSTConfigError: a line per wrong value: key, value, and what is allowed.
    """
    wrong = []
    for key, good, allowed in _RULES:
        if not key.startswith(below):
            continue
        value = reduce(lambda node, name: node[name], key.split("."), cfg)
        if not good(value):
            wrong.append(f"{key}: {value!r}; allowed: {allowed}")
    if not wrong:
        wrong = [f"{key}: {problem}" for key, problem in _disagreements(cfg) if key.startswith(below)]
    if wrong:
        raise SSTConfigError("\n  ".join(wrong))


def _disagreements(cfg: CN) -> Iterator[tuple[str, str]]:
    """Values that are good alone and do not go together: a key, and what is wrong with it."""
    decoder, auxiliary, fraction = cfg.MODEL.SST.DECODER, cfg.MODEL.SST.AUXILIARY, cfg.DATASETS.SST.TRAIN_FRACTION
    for name, heads in (("DECODER", decoder.HEADS), ("PIXEL_DECODER", cfg.MODEL.SST.PIXEL_DECODER.HEADS)):
        if decoder.DIM % heads:
            yield f"MODEL.SST.{name}.HEADS", f"{heads!r}; allowed: divisors of MODEL.SST.DECODER.DIM ({decoder.DIM})"
    if auxiliary.ENABLED:
        yield from _disagreements_of_branch(auxiliary, cfg.SEED)
    if fraction < 1 and cfg.SEED < 0:
        yield (
            "SEED",
            f"{cfg.SEED!r} is drawn anew in every run, and DATASETS.SST.TRAIN_FRACTION {fraction} chooses images by "
            "it: no run could go on with its own; allowed: 0 or more",
        )


def _disagreements_of_branch(auxiliary: CN, seed: int) -> Iterator[tuple[str, str]]:
    node = "MODEL.SST.AUXILIARY"
    for name, reader in (("ORDER", "progressive"), ("PAIRS", "pairs")):
        if auxiliary[name] and reader != auxiliary.STRATEGY:
            yield (
                f"{node}.{name}",
                f"{list(auxiliary[name])!r} is read with STRATEGY {reader} only, and STRATEGY is "
                f"{auxiliary.STRATEGY!r}; set {node}.STRATEGY {reader}, or leave {name} empty",
            )
    if auxiliary.PREDICTION and auxiliary.STRATEGY == "none":
        yield (
            f"{node}.PREDICTION",
            f"{auxiliary.PREDICTION!r} compares the pairs of label domains that STRATEGY chooses, and STRATEGY is "
            f"'none'; set {node}.STRATEGY full, for predictions alone with DATASET_LEVEL 0 and IMAGE_LEVEL 0; or "
            "PREDICTION 0",
        )
    if auxiliary.RELATIONS and auxiliary.WORD_VECTORS:
        yield (
            f"{node}.WORD_VECTORS",
            f"{auxiliary.WORD_VECTORS!r} is not read with RELATIONS {auxiliary.RELATIONS!r}; leave one of them empty",
        )
    if auxiliary.RELATIONS == "random" and seed < 0:
        yield (
            f"{node}.RELATIONS",
            f"'random' draws by SEED, and SEED {seed!r} is drawn anew in every run: no run could go on with its own "
            "values; set SEED to 0 or more",
        )
