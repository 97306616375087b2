"""`SSTSemSegEvaluator`: mIoU, mean accuracy and pixel accuracy of one data set, from one confusion matrix.

Letters: K classes of the data set's label domain; H, W the size of an image and of its label map.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from sst_d2.data.label_io import read_sample_labels
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.files import write_whole
from sst_d2.label_domains import LabelDomain, get_label_domain
from sst_d2.score_tables import AVERAGED_CLASSES, PROJECTS, UNION, class_table, scores_by_definition
from sst_d2.visualization import save_label_png

MIOU_DEFINITION = (
    "one confusion matrix over all pixels of the set, background included; mean over the classes that occur in the "
    "ground truth or in the prediction (predicted but absent: IoU 0; in neither: left out), as Graphonomy and mmseg"
)
_PIXELS_PER_BAND = 512 * 512  # large images go band by band, so that the running maximum (1 MiB) stays in the cache


def confusion_matrix(
    prediction: np.ndarray, ground_truth: np.ndarray, num_classes: int, ignore_label: int
) -> np.ndarray:
    """Count how often each class is taken for each other.

    Args:
        prediction: integers of any shape, ids in [0, K).
        ground_truth: integers of the same shape, ids in [0, K) or ``ignore_label``; ignored pixels are not counted.
        num_classes: K, at most 255.
        ignore_label: 0..255, outside [0, K).

    Returns:
        (K, K) int64; rows are the ground truth, columns the prediction.

    Raises:
        SSTDataError: the shapes differ, or an id is not allowed.
    """
    if prediction.shape != ground_truth.shape:
        raise SSTDataError(f"prediction {prediction.shape} and ground truth {ground_truth.shape} differ in shape")
    for name, ids, largest in (("prediction", prediction, num_classes - 1), ("ground truth", ground_truth, 255)):
        if ids.size and not 0 <= ids.min() <= ids.max() <= largest:
            raise SSTDataError(f"{name}: ids from {ids.min()} to {ids.max()}; allowed are 0 to {largest}")
    # 255 * K + K - 1 fits 16 bits, so every row that 8-bit ground truth can name is counted, and looked at afterwards.
    code = ground_truth.astype(np.uint16) * np.uint16(num_classes) + prediction
    counts = np.bincount(code.ravel(), minlength=256 * num_classes).reshape(256, num_classes)
    strange = [i for i in np.flatnonzero(counts.any(axis=1)).tolist() if i >= num_classes and i != ignore_label]
    if strange:
        raise SSTDataError(
            f"ground truth: the ids {strange}; allowed are 0 to {num_classes - 1} and {ignore_label} (ignore)"
        )
    return counts[:num_classes].astype(np.int64)


def scores_from_confusion(confusion: np.ndarray) -> dict[str, Any]:
    """All scores of one confusion matrix.

    mIoU is the mean over the classes that occur in the ground truth or in the prediction: a class that is predicted
    but absent in the ground truth counts 0, a class in neither is left out (Graphonomy's and mmseg's nanmean, and
    Detectron2's until July 2022). Other definitions differ only where classes are absent: Detectron2 since then
    averages over the classes of the ground truth; SCHP and M2FP over all K, with 0 for absent ones.

    Args:
        confusion: (K, K) counts; rows are the ground truth, columns the prediction.

    Returns:
        In percent, NaN where nothing can be said: ``mIoU``, ``fwIoU`` (weighted by ground-truth pixels), ``mACC``
        (mean over the classes of the ground truth), ``pACC``; and per class, (K,) float64: ``IoU``, ``ACC``,
        ``share`` (of the ground truth's pixels).
    """
    hits = np.diagonal(confusion).astype(np.float64)
    in_truth = confusion.sum(axis=1).astype(np.float64)
    union = in_truth + confusion.sum(axis=0) - hits
    iou, accuracy = _ratio(hits, union), _ratio(hits, in_truth)
    share = _ratio(in_truth, np.full_like(in_truth, in_truth.sum()))
    present = in_truth > 0
    scores = {
        "mIoU": _mean(iou[union > 0]),
        "fwIoU": float((share * iou)[present].sum()) if present.any() else math.nan,
        "mACC": _mean(accuracy[present]),
        "pACC": float(hits.sum() / in_truth.sum()) if present.any() else math.nan,
        "IoU": iou,
        "ACC": accuracy,
        "share": share,
    }
    return {name: 100 * value for name, value in scores.items()}


class SSTSemSegEvaluator(DatasetEvaluator):
    """Evaluates one data set in its own label domain, at the ground truth's size.

    Counts every pixel into one confusion matrix over the whole set. The scores' names and their percent are those of
    Detectron2's `SemSegEvaluator`; the definition of mIoU is that of `scores_from_confusion`. Label maps go through
    the project's one reader, so palette images, cards with `remap` and strange ids are read right or refused.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        distributed: bool = True,
        output_dir: str | os.PathLike | None = None,
        save_predictions: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: a data set whose metadata give ``label_domain``, as every dataset card's do.
            distributed: add up the matrices of all processes; False: this process alone.
            output_dir: folder for ``sem_seg_evaluation.json`` (scores, confusion matrix, definition); None: no files.
            save_predictions: also write every prediction as ``<output_dir>/predictions/<image_id>.png``, a palette
                PNG whose pixel values are ids.

        Raises:
            SSTConfigError: the data set has no label domain, its metadata contradict it, predictions are to be saved
                nowhere, or ``output_dir`` cannot be made.
            LabelDomainError: the label domain is not known.
        """
        if save_predictions and output_dir is None:
            raise SSTConfigError("save_predictions=True needs an output_dir to write to")
        self._dataset_name = dataset_name
        self._domain = _domain_of_dataset(dataset_name)
        self._distributed = distributed
        self._output_dir = None if output_dir is None else Path(output_dir)
        self._save_predictions = save_predictions
        self._records: dict[str, dict[str, Any]] | None = None
        self._logger = logging.getLogger(__name__)
        if self._output_dir is not None:
            _make_folder(self._output_dir)
        self.reset()

    def reset(self) -> None:
        """Forget what was counted."""
        self._confusion = np.zeros((self._domain.num_classes,) * 2, dtype=np.int64)
        self._images: list[str] = []

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count one batch.

        Args:
            inputs: the model's inputs. Read are ``file_name``, ``image_id``, ``label_domain`` and the label file:
                ``sem_seg_file_name``, or ``remapped_label_file_name`` with ``label_remap``. Where a mapper took the
                label file out (Detectron2's does), the data set's record of the same ``file_name`` gives it.
            outputs: the model's outputs: ``sem_seg_by_domain`` {domain: logits}, where the entry of the data set's
                domain counts, or ``sem_seg`` logits, (K, H, W) float, finite, on any device.

        Raises:
            SSTConfigError: the logits belong to another domain or have another number of channels than the domain.
            SSTDataError: logits of another size than the label map or not finite; a label map that cannot be read,
                does not fit the domain, or is not named at all.
        """
        for record, output in zip(inputs, outputs, strict=True):
            logits = self._logits_of(record, output)
            truth = self._ground_truth_of(record)
            if tuple(logits.shape[1:]) != truth.shape:
                raise SSTDataError(
                    f"{self._place(record)}: the logits have {logits.shape[1]} x {logits.shape[2]} pixels (height x "
                    f"width) and the label map {truth.shape[0]} x {truth.shape[1]}; the model must answer in the size "
                    "of its input's `height` and `width`, the label map's own"
                )
            prediction, finite = _most_likely(logits)
            if not finite:
                raise SSTDataError(
                    f"{self._place(record)}: the logits hold NaN or infinite values; the weights have diverged or the "
                    "checkpoint is damaged: check the loss of the training run, or evaluate an earlier checkpoint"
                )
            self._confusion += confusion_matrix(prediction, truth, self._domain.num_classes, self._domain.ignore_label)
            self._images.append(f"{record.get('image_id')} {record.get('file_name')}")
            if self._save_predictions:
                save_label_png(_prediction_path(self._output_dir / "predictions", record), prediction, self._domain)

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """Add up all processes, log the table, write the files.

        Returns:
            {"sem_seg": {"mIoU", "fwIoU", "IoU-<class>" …, "mACC", "pACC", "ACC-<class>" …}} in percent, NaN where a
            class does not occur; None on all ranks but the first.

        Raises:
            SSTDataError: no image was evaluated (on every rank).
        """
        confusion, images = self._confusion, self._images
        if self._distributed:
            comm.synchronize()
            parts = comm.all_gather((confusion, images))
            confusion = np.sum([part[0] for part in parts], axis=0)
            images = [image for part in parts for image in part[1]]
        if not images:
            raise SSTDataError(
                f"data set '{self._dataset_name}': not one image was evaluated; check that it has images"
            )
        if self._distributed and not comm.is_main_process():
            return None
        self._warn_of_doubles(images)
        scores = scores_from_confusion(confusion)
        results = _flat_results(scores, self._domain)
        self._log_table(scores, len(images))
        if self._output_dir is not None:
            self._write_json(results, confusion, len(images))
        return OrderedDict(sem_seg=results)

    def _place(self, record: Mapping[str, Any]) -> str:
        """Data set and image, for messages."""
        return f"data set '{self._dataset_name}', {record.get('file_name')}"

    def _logits_of(self, record: Mapping[str, Any], output: Mapping[str, Any]) -> torch.Tensor:
        """The (K, H, W) logits of the data set's domain, checked."""
        domain, where = self._domain, self._place(record)
        if "sem_seg_by_domain" in output:
            by_domain = output["sem_seg_by_domain"]
            if domain.name not in by_domain:
                raise SSTConfigError(
                    f"{where}: the model answers in the label domains {sorted(by_domain)}, the data set needs "
                    f"'{domain.name}'; add it to MODEL.SST.DOMAINS"
                )
            logits = by_domain[domain.name]
        else:
            asked = record.get("label_domain", domain.name)
            if asked != domain.name:
                raise SSTConfigError(
                    f"{where}: the model was asked for label domain '{asked}' and the data set is evaluated in "
                    f"'{domain.name}'; give the input `label_domain: {domain.name}`"
                )
            if "sem_seg" not in output:
                raise SSTConfigError(f"{where}: the model's output has the keys {sorted(output)}; `sem_seg` is missing")
            logits = output["sem_seg"]
        if logits.ndim != 3 or logits.shape[0] != domain.num_classes:
            raise SSTConfigError(
                f"{where}: the logits have the shape {tuple(logits.shape)}, label domain '{domain.name}' has "
                f"{domain.num_classes} classes, so ({domain.num_classes}, H, W) is expected; use the head of this "
                "domain (`label_domain` in the input), or weights and a configuration that were made for it"
            )
        return logits.detach()

    def _ground_truth_of(self, record: Mapping[str, Any]) -> np.ndarray:
        """(H, W) uint8 from the label file that the input, or else the data set's record of it, names."""
        if "sem_seg_file_name" not in record and "remapped_label_file_name" not in record:
            if self._records is None:
                self._records = {entry["file_name"]: entry for entry in DatasetCatalog.get(self._dataset_name)}
            record = self._records.get(record.get("file_name"), record)
        try:
            return read_sample_labels(record, self._domain)
        except SSTDataError as reason:
            raise SSTDataError(f"data set '{self._dataset_name}', {reason}") from reason

    def _warn_of_doubles(self, images: list[str]) -> None:
        doubles = [image for image, count in Counter(images).items() if count > 1]
        if doubles:
            self._logger.warning(
                "Data set '%s': %d images were counted more than once (first: %s): does the sampler pad?",
                *(self._dataset_name, len(doubles), doubles[0]),
            )

    def _log_table(self, scores: Mapping[str, Any], num_images: int) -> None:
        name = f"Data set '{self._dataset_name}' ({self._domain.name}, {num_images} images)"
        if math.isnan(scores["mIoU"]):
            self._logger.warning("%s: all pixels are ignored, so there is nothing to score: mIoU is NaN.", name)
            return
        table = class_table(scores, self._domain.classes)
        summary = ", ".join(f"{key} {scores[key]:.2f}" for key in ("mIoU", "mACC", "pACC", "fwIoU"))
        self._logger.info("%s, in percent:\n%s\n%s\n%s", name, table, summary, _caption(scores))

    def _write_json(self, results: Mapping[str, float], confusion: np.ndarray, num_images: int) -> None:
        """Write the results."""
        document = {
            "dataset": self._dataset_name,
            "label_domain": self._domain.name,
            "classes": list(self._domain.classes),
            "images": num_images,
            "mIoU_definition": MIOU_DEFINITION,
            # JSON knows no NaN
            "sem_seg": {name: None if math.isnan(value) else value for name, value in results.items()},
            "confusion_matrix": confusion.tolist(),
            "confusion_matrix_axes": "rows: ground truth, columns: prediction; pixels",
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_whole(self._output_dir / "sem_seg_evaluation.json", lambda stream: stream.write(text.encode()))


def _domain_of_dataset(dataset_name: str) -> LabelDomain:
    """The label domain that the data set's metadata name, after a look at whether they agree with it."""
    metadata = MetadataCatalog.get(dataset_name) if dataset_name in MetadataCatalog.list() else None
    name = None if metadata is None else metadata.get("label_domain")
    if name is None:
        known = sorted(other for other in MetadataCatalog.list() if MetadataCatalog.get(other).get("label_domain"))
        raise SSTConfigError(
            f"data set '{dataset_name}' has no label domain; data sets that have one: {', '.join(known) or 'none'}. "
            f"Write a dataset card for it, or call MetadataCatalog.get('{dataset_name}').set(label_domain=...)"
        )
    domain = get_label_domain(name)
    record = (list(domain.classes), domain.ignore_label)
    stated = (list(metadata.get("stuff_classes", record[0])), metadata.get("ignore_label", record[1]))
    if stated != record:
        raise SSTConfigError(
            f"data set '{dataset_name}': its metadata give stuff_classes and ignore_label {stated}, its label domain "
            f"'{domain.name}' has {record}; both must agree: name the domain that the label files follow"
        )
    return domain


def _make_folder(folder: Path) -> None:
    """Made before the evaluation, so that a wrong path is found out before the work and not after it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise SSTConfigError(f"output_dir {folder}: cannot be made ({reason.strerror}); give another") from reason


def _most_likely(logits: torch.Tensor) -> tuple[np.ndarray, bool]:
    """Argmax over the classes, the first of equals: (K, H, W) float -> (H, W) uint8; and whether all is finite.

    On one CPU core torch.argmax over the first axis takes 40 ms for (20, 512, 512), this running maximum about 2.
    """
    if logits.device.type != "cpu":
        return logits.argmax(dim=0).to(torch.uint8).cpu().numpy(), bool(torch.isfinite(logits).all())
    if logits.dtype not in (torch.float32, torch.float64):
        logits = logits.float()
    planes = logits.numpy()
    labels = np.zeros(planes.shape[1:], dtype=np.uint8)
    extremes = []  # NaN passes through min and max
    rows = max(1, _PIXELS_PER_BAND // max(1, labels.shape[1]))
    for top in range(0, labels.shape[0], rows):
        band, ids = planes[:, top : top + rows], labels[top : top + rows]
        best = band[0].copy()
        extremes.append(best.min())
        for k in range(1, len(band)):
            extremes.append(band[k].min())  # first: nothing brings a plane into the cache faster
            larger = band[k] > best
            np.maximum(best, band[k], out=best)
            np.maximum(ids, larger.view(np.uint8) * np.uint8(k), out=ids)
        extremes.append(best.max())
    return labels, bool(np.isfinite(extremes).all())


def _prediction_path(folder: Path, record: Mapping[str, Any]) -> Path:
    """Where a prediction goes: ``image_id``, or else the image's bare name, always inside ``folder``."""
    identifier = str(record["image_id"]) if "image_id" in record else Path(record["file_name"]).stem
    parts = identifier.replace("\\", "/").split("/")
    if not all(parts) or ".." in parts or "." in parts or ":" in parts[0]:
        raise SSTDataError(
            f"image_id '{identifier}' of {record.get('file_name')}: no file can be named after it; allowed are "
            "relative paths without '.', '..' and empty parts"
        )
    return folder.joinpath(*parts[:-1], parts[-1] + ".png")


def _flat_results(scores: Mapping[str, Any], domain: LabelDomain) -> dict[str, float]:
    """The scores under the keys of Detectron2's `SemSegEvaluator`, in its order."""

    def _per_class(key: str) -> dict[str, float]:
        return {f"{key}-{name}": float(value) for name, value in zip(domain.classes, scores[key], strict=True)}

    first, second = ({key: scores[key] for key in keys} for keys in (("mIoU", "fwIoU"), ("mACC", "pACC")))
    return {**first, **_per_class("IoU"), **second, **_per_class("ACC")}


def _caption(scores: Mapping[str, Any]) -> str:
    """What mIoU means here, and what it would be by the definitions that others use."""
    others = "; ".join(
        f"{AVERAGED_CLASSES[definition]} ({PROJECTS[definition]}) {values['mIoU']:.2f}"
        for definition, values in scores_by_definition(scores).items()
        if definition != UNION
    )
    counted = f"{np.count_nonzero(~np.isnan(scores['IoU']))} of {len(scores['IoU'])} classes"
    return f"mIoU: {MIOU_DEFINITION}: {counted}. By other definitions: {others}."


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full_like(part, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
