"""Many photos, in one process or in several: what cannot be read is passed over and named, the rest is written."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch

from sst_d2.data.image_io import image_size
from sst_d2.errors import SSTDataError, SSTProcessError
from sst_d2.inference.photos import as_photo
from sst_d2.inference.prediction import Prediction
from sst_d2.inference.predictor import Answer, SSTPredictor
from sst_d2.inference.sinks import PhotoSink
from sst_d2.inference.sources import Photo
from sst_d2.visualization.files import PictureFormatError

# Photos that lie so near to each other, in batches, go through the network together where their sizes allow it.
_WINDOW = 4


@dataclass(frozen=True)
class PhotoRun:
    """What every process has to know.

    Attributes:
        predictor: arguments of `SSTPredictor`.
        domain: label domain to ask for, as `SSTPredictor` takes it.
        sink: writes the results.
    """

    predictor: Mapping[str, Any]
    domain: str | None
    sink: PhotoSink


@dataclass
class Part:
    """What became of some of the photos.

    Attributes:
        written: number of photos whose results are there.
        skipped: a sentence for each of the others.
        started: when the first of them was begun, by the clock that all processes share.
    """

    written: int = 0
    skipped: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)


def by_domain(answer: Answer) -> Mapping[str, Prediction]:
    """An answer of the predictor as predictions by label domain, also where one was asked for."""
    return {answer.domain.name: answer} if isinstance(answer, Prediction) else answer


def run_here(run: PhotoRun, predictor: SSTPredictor, photos: Sequence[Photo]) -> Iterator[Part]:
    """Predict and write, part by part.

    Raises:
        SSTDataError: a result cannot be written.
        SSTNumericError: the network's weights are damaged.
    """
    for part in _parts(photos, predictor.batch_size):
        yield _predict(run, predictor, part)


def run_in_processes(run: PhotoRun, photos: Sequence[Photo], devices: Sequence[str]) -> Iterator[Part]:
    """As `run_here`, in a process for each of ``devices``; the same photos go through the network together.

    No process outlives it, however it ends.

    Args:
        run: what to do.
        photos: of all processes.
        devices: "cuda:N" or "cpu" for each process.

    Raises:
        SSTDataError, SSTNumericError: as `run_here`.
        SSTProcessError: a process was killed.
    """
    context = get_context("spawn")
    places, others = context.SimpleQueue(), active_children()
    for device in devices:
        places.put(device)
    pool = ProcessPoolExecutor(len(devices), context, _start, (run, places, len(devices)))
    try:
        with _ctrl_c_waiting():
            work = [pool.submit(_predict_there, part) for part in _parts(photos, run.predictor.get("batch_size", 1))]
        for future in as_completed(work):
            yield future.result()
    except BrokenProcessPool as reason:
        raise SSTProcessError(
            "a process has ended before its time, often because the memory did not suffice: take fewer processes. "
            "Results that are there are whole"
        ) from reason
    except BaseException:  # also of whoever takes the parts
        for process in active_children():
            if process not in others:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _ctrl_c_waiting() -> Iterator[None]:
    """Let Ctrl-C wait in this process. Those that it starts never see it, not in their imports either: it ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _parts(photos: Sequence[Photo], batch_size: int) -> list[Sequence[Photo]]:
    """The same for any number of processes, so that the same photos meet in a batch."""
    step = 1 if batch_size == 1 else _WINDOW * batch_size
    return [photos[first : first + step] for first in range(0, len(photos), step)]


def _predict(run: PhotoRun, predictor: SSTPredictor, photos: Sequence[Photo]) -> Part:
    part, skipped = Part(), {}
    for group in _groups(predictor, photos):
        _predict_group(run, predictor, group, skipped)
        part.written += sum(photo.path not in skipped for photo in group)
    part.skipped = [skipped[photo.path] for photo in photos if photo.path in skipped]
    return part


def _groups(predictor: SSTPredictor, photos: Sequence[Photo]) -> Iterator[list[Photo]]:
    """Photos that go through the network together, by what their headers say: only one group is ever in memory."""
    waiting: dict[tuple[int, int] | None, list[Photo]] = {}
    for photo in photos:
        size = image_size(photo.path) if os.path.isfile(photo.path) else None
        seen = None if size is None else predictor.padded_size(*size)
        group = waiting.setdefault(seen, [])
        group.append(photo)
        if len(group) == predictor.batch_size:
            yield waiting.pop(seen)
    yield from waiting.values()


def _predict_group(run: PhotoRun, predictor: SSTPredictor, photos: Sequence[Photo], skipped: dict[str, str]) -> None:
    """Predict and write; a sentence for each path of those where that is not possible."""
    readable, images, failure = [], [], ""
    for photo in photos:
        try:
            images.append(as_photo(photo.path, "RGB", predictor.max_pixels))
            readable.append(photo)
        except SSTDataError as reason:
            skipped[photo.path] = str(reason)
    try:
        answers = predictor(images, run.domain)
    except SSTDataError as reason:
        failure = str(reason)  # the memory did not suffice; it is free again outside of this clause
    else:
        _write(run.sink, readable, answers, skipped)
    if failure and len(readable) == 1:
        skipped[readable[0].path] = f"{readable[0].path}: {failure}"
    elif failure:
        images.clear()
        for photo in readable:
            _predict_group(run, predictor, [photo], skipped)


def _write(sink: PhotoSink, photos: Sequence[Photo], answers: Sequence[Answer], skipped: dict[str, str]) -> None:
    for photo, answer in zip(photos, answers, strict=True):
        try:
            sink.write(photo.name, by_domain(answer))
        except PictureFormatError as reason:
            skipped[photo.path] = f"{photo.path}: {reason}"


# The run and the predictor of a process that `run_in_processes` has started.
_here: dict[str, Any] = {}


def _start(run: PhotoRun, places: SimpleQueue, processes: int) -> None:
    """Open the network in a new process."""
    threading.Thread(target=_end_with_the_first_process, daemon=True).start()
    device = places.get()
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    _here.update(run=run, predictor=SSTPredictor(**{**run.predictor, "device": device}))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that partial files are removed


def _predict_there(photos: Sequence[Photo]) -> Part:
    try:
        return _predict(_here["run"], _here["predictor"], photos)
    except SystemExit as end:  # the pool would go on with the next photos
        os._exit(end.code)


def _end_with_the_first_process() -> None:
    """One that is killed cannot stop the others; files that they have not written whole have no name yet."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)
