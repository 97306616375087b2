"""Resident memory of a process that predicts, by the way in which it comes to label maps; on Linux."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sst_d2 import export
from sst_d2.inference.network import open_network

STATUS, FORGET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ALL = "all"
Predict = Callable[[torch.Tensor], Any]
Opener = Callable[[str], Predict]
_SMALL = 32  # side of a photo that makes PyTorch load what it loads at first use


def why_not() -> str:
    """Why it cannot be measured here; "": it can."""
    return "" if STATUS.exists() and os.access(FORGET_PEAK, os.W_OK) else "it takes Linux and its /proc"


def of_a_prediction(opener: Opener, file: Path, image: torch.Tensor, threads: int) -> tuple[int, int]:
    """Bytes of a new process before a prediction, and the most of them during it.

    Args:
        opener: one of the functions below.
        file: what it opens.
        image: (3, H, W) uint8, the photo.
        threads: of torch, or onnxruntime.
    """
    # New, because the C library keeps memory that others have given back.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, opener, str(file), image, threads).result()


def _measured(opener: Opener, file: str, image: torch.Tensor, threads: int) -> tuple[int, int]:
    torch.set_num_threads(threads)
    logging.disable(logging.INFO)
    predict = opener(file)
    with torch.inference_mode():
        predict(image[:, :_SMALL, :_SMALL].contiguous())
        before = _resident("VmRSS")
        FORGET_PEAK.write_text("5")
        predict(image)
    return before, _resident("VmHWM")


def _resident(key: str) -> int:
    """Bytes, as Linux counts them for this process; `getrusage` would also know its parent's."""
    return next(1024 * int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(key))


def label_maps_by(file: str) -> Predict:
    """A function from an image to label maps, that keeps the logits small."""
    model = open_network(file, device="cpu")[1]
    return lambda image: model([{"image": image, "label_domain": _ALL, "output": "labels"}])


def full_logits_by(file: str) -> Predict:
    """The same, by the logits of all pixels."""
    model = open_network(file, device="cpu")[1]

    def run(image: torch.Tensor) -> Any:
        logits = model([{"image": image, "label_domain": _ALL}])[0]["sem_seg_by_domain"]
        return [values.argmax(0).to(torch.uint8) for values in logits.values()]

    return run


def onnx_logits_by(file: str) -> Predict:
    """The same, by onnxruntime."""
    session = export.open_onnx(Path(file), torch.get_num_threads())
    return lambda image: [values.argmax(1).to(torch.uint8) for values in session(image[None]).values()]
