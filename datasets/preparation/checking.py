"""One pair: its label map made where it must be, both files read to the end, both linked or copied to the output."""

from __future__ import annotations

import io
import os
import shutil
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import parent_process
from multiprocessing.connection import wait
from pathlib import Path

import numpy as np
from people_generator.folder import write_file
from PIL import Image

from sst_d2.data.image_io import FileFault, image_size, inspect_photo
from sst_d2.data.inspection import ERROR, Finding, Inspection, inspect_sample
from sst_d2.data.label_io import read_label_map
from sst_d2.files import partial_path
from sst_d2.label_domains import LabelDomain, get_label_domain

from .colour_labels import read_colour_labels
from .part_annotations import read_part_annotation
from .plan import LINKED, Pair

_CHUNK = 8


def _read_index_labels(
    path: str, size: tuple[int, int] | None, domain: LabelDomain
) -> tuple[np.ndarray, list[Finding]]:
    return read_label_map(path, domain, size), []


# Kind of source -> (path, size of the photo, domain) -> label map and warnings; a FileFault where it is not usable.
CONVERTERS = {"mat": read_part_annotation, "index": _read_index_labels, "grapy-colours": read_colour_labels}


@dataclass(frozen=True)
class Job:
    """What is the same for all pairs.

    Attributes:
        domain: name of the label domain.
        labels: "linked", or a kind of `CONVERTERS`.
        output: the folder to write; None: only look.
        copy: copy files instead of linking them.
    """

    domain: str
    labels: str
    output: Path | None
    copy: bool = False


@dataclass(frozen=True)
class Result:
    """What is known of one pair after it was processed."""

    split: str
    id: str
    inspection: Inspection

    def errors(self) -> list[Finding]:
        """The findings that keep the pair out."""
        return [finding for finding in self.inspection.findings if finding.severity == ERROR]


def process(pairs: list[Pair], job: Job, workers: int) -> Iterator[Result]:
    """Process pairs in ``workers`` processes; yields in their order.

    A pair whose reading ends its process (SciPy's reader does not survive every damage) becomes an error of its own.
    One worker is this process, except for .mat files.
    """
    work = partial(process_pair, job=job)
    if workers == 1 and job.labels != "mat":
        yield from map(work, pairs)
        return
    done = 0
    while done < len(pairs):
        try:
            for result in _in_pool(work, pairs[done:], workers):
                yield result
                done += 1
        except BrokenProcessPool:  # one of the next ones did it
            for pair in pairs[done : done + 2 * workers * _CHUNK]:
                yield _alone(work, pair)
                done += 1


def _in_pool(work: Callable[[Pair], Result], pairs: list[Pair], workers: int) -> Iterator[Result]:
    executor = ProcessPoolExecutor(min(workers, len(pairs)), initializer=_begin_worker)
    try:
        yield from executor.map(work, pairs, chunksize=_CHUNK)
    finally:
        executor.shutdown(cancel_futures=True)


def _alone(work: Callable[[Pair], Result], pair: Pair) -> Result:
    """Process one pair in a process of its own."""
    try:
        (result,) = _in_pool(work, [pair], 1)
    except BrokenProcessPool:
        fault = Finding(ERROR, "damaged", pair.label, "reading it ends the process: damaged, or memory ran out")
        return Result(pair.split, pair.id, _refused((fault,)))
    return result


def _begin_worker() -> None:
    """Leave Ctrl-C to the parent process, which then stops the workers, and end with it if it is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent_process().sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def process_pair(pair: Pair, job: Job) -> Result:
    """Check one pair and, where it is good and there is an output, link or copy it to there.

    Bad data raise nothing, they become findings, whose paths are those of the download; an output that cannot be
    written raises an OSError.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # what matters of them becomes a finding
        result = Result(pair.split, pair.id, _read_pair(pair, job))
    if job.output is not None and not result.errors():
        link_or_copy(pair.image, image_path(job.output, pair.id), job.copy)
        if job.labels == LINKED:
            link_or_copy(pair.label, label_path(job.output, pair.id), job.copy)
    return result


def refused(pair: Pair) -> Result:
    """The result of a pair that cannot be read at all."""
    return Result(pair.split, pair.id, _refused(pair.faults))


def image_path(output: Path, name: str) -> Path:
    """Where the photo of an id lies."""
    return output / "images" / f"{name}.jpg"


def label_path(output: Path, name: str) -> Path:
    """Where the label map of an id lies."""
    return output / "labels" / f"{name}.png"


def link_or_copy(source: str, target: Path, copy: bool) -> None:
    """Link or copy a file, as a whole or not at all; a link that is there already and right is left alone."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = partial_path(target, f"{os.getpid()}.part")
    try:
        if copy:
            shutil.copyfile(source, draft)
        elif target.is_symlink() and os.readlink(target) == source:
            return
        else:
            draft.symlink_to(source)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _read_pair(pair: Pair, job: Job) -> Inspection:
    domain = get_label_domain(job.domain)
    if job.labels == LINKED:
        return _inspected(pair, pair.label, domain)
    if job.output is not None:
        return _converted(pair, job.labels, label_path(job.output, pair.id), domain)
    with tempfile.TemporaryDirectory() as folder:
        return _converted(pair, job.labels, label_path(Path(folder), pair.id), domain)


def _inspected(pair: Pair, label: str, domain: LabelDomain) -> Inspection:
    """Read both files; findings of a label map that was made go by the name of its source."""
    sample = {"file_name": pair.image, "sem_seg_file_name": label, "label_domain": domain.name, "image_id": pair.id}
    inspection = inspect_sample(sample, domain)
    findings = tuple(
        replace(finding, path=pair.label) if finding.path == label else finding for finding in inspection.findings
    )
    return replace(inspection, findings=findings)


def _converted(pair: Pair, kind: str, target: Path, domain: LabelDomain) -> Inspection:
    """Make the label map, write it, and read both files as training will."""
    try:
        labels, doubts = CONVERTERS[kind](pair.label, image_size(pair.image), domain)
    except FileFault as fault:
        return _refused((_finding(fault, pair.label), *_faults_of_photo(pair.image)), fault.ids)
    write_file(target, _png(labels))
    inspection = _inspected(pair, str(target), domain)
    if any(finding.severity == ERROR for finding in inspection.findings):
        target.unlink()
    return replace(inspection, findings=(*inspection.findings, *doubts))


def _refused(findings: tuple[Finding, ...], refused_ids: tuple[int, ...] = ()) -> Inspection:
    return Inspection(findings, np.zeros(256, np.int64), np.full((256, 2), np.nan), refused_ids=refused_ids)


def _png(labels: np.ndarray) -> bytes:
    """The label map as a grey index PNG, which every program reads alike; palettes mislead Detectron2's mapper."""
    buffer = io.BytesIO()
    Image.fromarray(labels).save(buffer, "PNG")
    return buffer.getvalue()


def _faults_of_photo(path: str) -> tuple[Finding, ...]:
    try:
        inspect_photo(path)
    except FileFault as fault:
        return (_finding(fault, path),)
    return ()


def _finding(fault: FileFault, path: str) -> Finding:
    return Finding(ERROR, fault.kind, path, str(fault).removeprefix(f"{path}: "))
