#!/usr/bin/env python
"""Score a folder of predicted label maps, as SCHP and Graphonomy write them, against a data set.

    python tools/score_predictions.py --predictions DIR --dataset cihp_sem_seg_val [--json FILE] [--workers N]

The data set is a built-in name, or the path of a dataset card. A prediction is an 8-bit PNG, grey or palette, of its
label map's size; its values are class ids of the data set's label domain, and its name is the image's id with ".png"
(SCHP, this project's TEST.SST.SAVE_PREDICTIONS) or with another ending: --suffix _gray.png for Graphonomy's, whose
plain .png are colours.

Printed are the scores per class, and mIoU and mean accuracy by the definitions of the projects that report them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import LabelDomain, SSTError
from sst_d2.arguments import available_cores, positive_number
from sst_d2.data.census import DataSet, open_data_sets
from sst_d2.data.image_io import FileFault
from sst_d2.data.inspection import ERROR
from sst_d2.data.label_io import read_label_map, read_sample_labels
from sst_d2.errors import DatasetCardError, SSTDataError
from sst_d2.evaluation import confusion_matrix, scores_from_confusion
from sst_d2.files import write_whole
from sst_d2.launch import report_user_error
from sst_d2.score_tables import AVERAGED_CLASSES, PROJECTS, class_table, definition_table, scores_by_definition

_SHOWN = 3


def open_data_set(reference: str, name: str | None) -> DataSet:
    """The data set of a built-in name or of a card, whose list of ids can be read.

    Args:
        reference: a name, or the path of a card.
        name: which one of the card's; None: it has one only.

    Raises:
        DatasetCardError: there is none, there are several, or the list of ids is not usable.
    """
    known = open_data_sets([reference])
    chosen = [data_set for data_set in known if name in (None, data_set.name)]
    if len(chosen) != 1:
        names = ", ".join(data_set.name for data_set in known)
        problem = f"has no data set '{name}'" if name else "holds several data sets"
        raise DatasetCardError(f"{reference}: {problem}; choose one of: {names} (--name)")
    faults = [finding.message for finding in chosen[0].findings if finding.severity == ERROR]
    if faults:
        raise DatasetCardError(faults[0])
    return chosen[0]


def pair_up(
    data_set: DataSet, folder: Path, suffix: str, allow_missing: bool
) -> tuple[list[dict[str, Any]], list[str]]:
    """The samples whose prediction is there, and the names of the predictions that are missing.

    Raises:
        SSTDataError: there is no folder, no prediction at all, or one is missing and ``allow_missing`` is False.
    """
    if not folder.is_dir():
        raise SSTDataError(f"--predictions: there is no folder {folder}")
    names = {f"{sample['image_id']}{suffix}": sample for sample in data_set.samples}
    there = [sample for name, sample in names.items() if (folder / name).is_file()]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and not (allow_missing and there):
        first = ", ".join(missing[:_SHOWN]) + (" …" if len(missing) > _SHOWN else "")
        if there:
            remedy = "A score over a part of a set compares with no other; --allow-missing scores those that are there"
        else:
            remedy = other_ending(folder, missing[0].removesuffix(suffix), suffix)
            remedy = remedy or f"A prediction is named after its image's id, with {suffix} behind it (--suffix)"
        counted = f"{len(missing)} of the {len(names)} predictions for '{data_set.name}' are missing"
        raise SSTDataError(f"{folder}: {counted}: {first}. {remedy}")
    return there, missing


def other_ending(folder: Path, identifier: str, suffix: str) -> str:
    """A hint where an image has a file with another ending than ``suffix``; "" where it has none."""
    place, _, stem = identifier.rpartition("/")
    names = os.listdir(folder / place) if (folder / place).is_dir() else []
    pattern = re.compile(re.escape(stem) + r"([^A-Za-z0-9].*\.png)")
    found = sorted({match.group(1) for match in map(pattern.fullmatch, names) if match} - {suffix})
    return f"There is {stem}{found[0]}: --suffix {found[0]} takes files of that name" if found else ""


class Counts(Dataset):
    """The confusion matrices of single images; an error is a value, so that a worker's sentence arrives as it is.

    Args:
        samples: dataset dicts whose predictions are there.
        domain: the label domain of label maps and predictions.
        folder: where the predictions lie.
        suffix: what follows the image's id in their names.
    """

    def __init__(self, samples: Sequence[dict[str, Any]], domain: LabelDomain, folder: Path, suffix: str) -> None:
        self._samples, self.domain, self._folder, self._suffix = samples, domain, folder, suffix

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> np.ndarray | SSTDataError:
        sample = self._samples[index]
        try:
            truth = read_sample_labels(sample, self.domain)
            prediction = self._read_prediction(str(sample["image_id"]), truth.shape)
            return confusion_matrix(prediction, truth, self.domain.num_classes, self.domain.ignore_label)
        except SSTDataError as error:
            return SSTDataError(str(error))

    def _read_prediction(self, identifier: str, size: tuple[int, int]) -> np.ndarray:
        """(H, W) uint8 of ids in [0, K)."""
        path, domain = self._folder / f"{identifier}{self._suffix}", self.domain
        try:
            prediction = read_label_map(path, domain)
            ids = np.unique(prediction) if prediction.size and prediction.max() >= domain.num_classes else ()
        except FileFault as fault:
            if fault.kind != "ids":
                hint = other_ending(self._folder, identifier, self._suffix)
                raise SSTDataError(f"prediction {fault}{hint and '. ' + hint}") from fault
            ids = fault.ids
        if len(ids):
            raise SSTDataError(
                f"prediction {path}: holds the ids {[int(i) for i in ids if i >= domain.num_classes]}; a prediction in "
                f"label domain '{domain.name}' has a class, 0 to {domain.num_classes - 1}, for every pixel. Label maps "
                "of another label system: convert them by tools/remap_labels.py"
            )
        if prediction.shape != size:
            raise SSTDataError(
                f"prediction {path}: has {prediction.shape[0]} x {prediction.shape[1]} pixels (height x width) and its "
                f"label map {size[0]} x {size[1]}; predict at the label map's size: resize logits before you choose "
                "the class"
            )
        return prediction


def count_all(counts: Counts, workers: int) -> np.ndarray:
    """The (K, K) confusion matrix of all images, read in ``workers`` processes (1: in this one).

    Raises:
        SSTDataError: of the first image that cannot be scored.
    """
    confusion = np.zeros((counts.domain.num_classes,) * 2, dtype=np.int64)
    processes = 0 if workers == 1 else min(workers, len(counts))
    loader = DataLoader(counts, batch_size=None, num_workers=processes, collate_fn=_as_it_is)
    for matrix in tqdm(loader, total=len(counts), desc="scoring", unit="image", disable=not sys.stderr.isatty()):
        if isinstance(matrix, SSTDataError):
            raise matrix
        confusion += matrix
    return confusion


def _as_it_is(matrix: np.ndarray | SSTDataError) -> np.ndarray | SSTDataError:
    return matrix


def report(data_set: DataSet, confusion: np.ndarray, images: int, missing: list[str]) -> dict[str, Any]:
    """Print the tables.

    Returns:
        The same, and the confusion matrix, as plain values; None where there is no number.
    """
    domain, scores = data_set.domain, scores_from_confusion(confusion)
    print(f"Data set '{data_set.name}' ({domain.name}, {images} images), in percent:\n")
    print(class_table(scores, domain.classes))
    print(f"\n{definition_table(scores)}\n")
    print(f"pixel accuracy {scores['pACC']:.2f}, frequency weighted IoU {scores['fwIoU']:.2f}; background included")
    if missing:
        print(f"Not comparable: {len(missing)} of {images + len(missing)} predictions are missing.")

    def _plain(value: float) -> float | None:
        return None if math.isnan(value) else float(value)

    return {
        "dataset": data_set.name,
        "label_domain": domain.name,
        "classes": list(domain.classes),
        "images": images,
        "missing_predictions": len(missing),
        "definitions": {
            definition: {
                "as_in": PROJECTS[definition],
                "mean_over": AVERAGED_CLASSES[definition],
                **{key: _plain(value) for key, value in values.items()},
            }
            for definition, values in scores_by_definition(scores).items()
        },
        "pACC": _plain(scores["pACC"]),
        "fwIoU": _plain(scores["fwIoU"]),
        "IoU": dict(zip(domain.classes, map(_plain, scores["IoU"]), strict=True)),
        "ACC": dict(zip(domain.classes, map(_plain, scores["ACC"]), strict=True)),
        "confusion_matrix": confusion.tolist(),
        "confusion_matrix_axes": "rows: ground truth, columns: prediction; pixels",
    }


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write the scores.

    Raises:
        SSTDataError: the file cannot be written.
    """
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    try:
        write_whole(path, lambda stream: stream.write(text.encode()))
    except OSError as reason:
        raise SSTDataError(f"--json: {path} cannot be written ({reason.strerror})") from reason


def main() -> None:
    """Score."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True, metavar="DIR", help="folder of label PNGs")
    parser.add_argument("--dataset", required=True, metavar="NAME|CARD", help="a built-in name, or a card (.yaml)")
    parser.add_argument("--name", help="which data set of a card that holds several")
    parser.add_argument("--suffix", default=".png", help="what follows the image's id in a file's name (%(default)s)")
    parser.add_argument("--allow-missing", action="store_true", help="score a part of the set, and say so")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write scores and confusion matrix here, too")
    parser.add_argument(
        "--workers", type=positive_number, default=available_cores(), metavar="N", help="processes (%(default)s)"
    )
    arguments = parser.parse_args()
    if arguments.json is not None and not arguments.json.parent.is_dir():
        parser.error(f"--json {arguments.json}: there is no folder {arguments.json.parent}")
    data_set = open_data_set(arguments.dataset, arguments.name)
    samples, missing = pair_up(data_set, arguments.predictions, arguments.suffix, arguments.allow_missing)
    counts = Counts(samples, data_set.domain, arguments.predictions, arguments.suffix)
    record = report(data_set, count_all(counts, arguments.workers), len(samples), missing)
    if arguments.json is not None:
        write_json(arguments.json, {**record, "predictions": str(arguments.predictions)})


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; nothing was written.\n")
        sys.exit(130)
