"""`inspect_sample`: what is wrong with one image and its label map, as findings instead of errors.

It reads through the same two readers as training and evaluation: what it lets pass, they can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from sst_d2.data.image_io import FileFault, PhotoFacts, inspect_photo
from sst_d2.data.label_io import read_sample_labels
from sst_d2.label_domains import LabelDomain, get_label_domain, known_label_domains
from sst_d2.label_domains.domain import voc_colors

# Every kind of finding, and what it means.
KINDS = {
    "missing_image": "the photo does not exist",
    "missing_label": "the label map does not exist",
    "missing_key": "the dataset dict names no photo or no label map",
    "damaged": "a file is empty, cut off, altered or no image",
    "wrong_mode": "a label map is no 8-bit index image, or a photo has more than 8 bits per channel",
    "wrong_format": "a label map is no PNG file of one picture",
    "size_mismatch": "photo and label map differ in size",
    "ids": "a label map holds ids that its label domain does not know",
    "exif": "the photo's EXIF tag turns it; whether the label map follows the upright photo cannot be seen",
    "transparent": "a photo has transparent pixels; their stored colours count",
    "frames": "a photo's file holds several pictures; the first one counts",
    "unlabelled": "every pixel of a label map is ignored",
    # By the preparation scripts:
    "two_files": "two files of a download have the same id",
    "no_person": "a listed photo shows no person",
    "other_name": "an annotation says of itself that it belongs to another photo",
    # Of whole data sets, by datasets/check_dataset.py:
    "card": "the data set's list of ids or its folder cannot be read",
    "listed_twice": "the list of ids names one twice",
    "two_splits": "several data sets of one card hold the same image",
    "unlisted": "files that no list of ids names",
    "order": "body parts lie in another order than a body's: the ids may mean something else",
    "left_right": "left and right seem to be swapped: mirrored labels",
}
ERROR, WARNING = "error", "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or may be.

    Attributes:
        severity: "error": training or evaluation would stop here; "warning": they would not, but look at it.
        kind: one of `KINDS`.
        path: the file.
        message: a sentence without the path.
    """

    severity: str
    kind: str
    path: str
    message: str


@dataclass(frozen=True)
class Inspection:
    """What is known of one sample.

    Attributes:
        findings: errors and warnings; empty: all is well.
        pixels: (256,) int64, pixels of each id of the domain, the ignore label included; zeros where the label map
            was refused.
        centres: (256, 2) float64, mean row and column of each id's pixels, as fractions of height and width, from
            a subset of the pixels; NaN where the id does not occur.
        photo: what the photo is; None where it was refused.
        refused_ids: of a label map that was refused for its ids, all ids that occur in the file.
    """

    findings: tuple[Finding, ...]
    pixels: np.ndarray = field(repr=False)
    centres: np.ndarray = field(repr=False)
    photo: PhotoFacts | None = None
    refused_ids: tuple[int, ...] = ()


def inspect_sample(sample: Mapping[str, Any], domain: LabelDomain) -> Inspection:
    """Read photo and label map of one dataset dict, both to the end.

    Args:
        sample: a dataset dict as a card gives it: ``file_name``, and ``sem_seg_file_name``, or
            ``remapped_label_file_name`` with ``label_remap``.
        domain: the sample's label domain.

    Returns:
        Findings and counts. Bad data raise nothing.
    """
    findings: list[Finding] = []
    photo, labels, refused_ids = None, None, ()
    if sample.get("file_name") is None:
        findings.append(Finding(ERROR, "missing_key", str(sample.get("image_id")), "no photo is named: `file_name`"))
    else:
        try:
            photo = inspect_photo(sample["file_name"])
        except FileFault as fault:
            findings.append(_finding(fault, sample["file_name"]))
    try:
        labels = read_sample_labels(sample, domain, None if photo is None else photo.size)
    except FileFault as fault:
        findings.append(_finding(fault, _label_file(sample)))
        refused_ids = fault.ids
    if photo is not None:
        findings += _doubts_of_photo(str(sample["file_name"]), photo)
    pixels, centres = np.zeros(256, dtype=np.int64), np.full((256, 2), np.nan)
    if labels is not None:
        pixels[:] = Image.fromarray(labels).histogram()  # an eighth of np.bincount's time, which counts 64-bit numbers
        centres = _centres(labels)
        if pixels[domain.ignore_label] == labels.size:
            findings.append(Finding(WARNING, "unlabelled", _label_file(sample), "every pixel is ignored"))
    return Inspection(tuple(findings), pixels, centres, photo, refused_ids)


def explain_ids(ids: Iterable[int], domain: LabelDomain) -> str | None:
    """What may have happened to the label maps of a data set that hold ids which its domain does not know.

    Args:
        ids: all ids that occur in the data set.
        domain: the label domain that they should follow.

    Returns:
        A sentence; None where nothing fits.
    """
    used = set(ids) - {domain.ignore_label}
    if not used:
        return None
    for name, colors in (("PASCAL VOC's", voc_colors(256)), (f"'{domain.name}'s own", domain.colors)):
        greys = Image.fromarray(np.array([colors], dtype=np.uint8)).convert("L").tobytes()
        if len(used) > 1 and max(used) > domain.num_classes and used <= set(greys[: domain.num_classes]):
            return (
                f"all ids that occur are grey values of {name} colours: palette images were converted to grey. Take "
                "the raw indices of the original files"
            )
    if 0 not in used and max(used) == domain.num_classes:
        return "id 0 never occurs, and the ids end one too high: they seem to begin at 1. Give the card a `remap` table"
    known = map(get_label_domain, known_label_domains())
    fitting = [other.name for other in known if other.name != domain.name and max(used) < other.num_classes]
    if fitting:
        return f"all ids that occur are ids of {' and of '.join(fitting)}: is the card's label domain the right one?"
    return None


def _finding(fault: FileFault, path: object) -> Finding:
    """The fault without the path, which its message begins with."""
    return Finding(ERROR, fault.kind, str(path), str(fault).removeprefix(f"{path}: "))


def _label_file(sample: Mapping[str, Any]) -> str:
    """The label map's path; the photo's, where none is named."""
    keys = ("sem_seg_file_name", "remapped_label_file_name", "file_name", "image_id")
    return str(next((sample[key] for key in keys if sample.get(key) is not None), "a dataset dict"))


def _doubts_of_photo(path: str, photo: PhotoFacts) -> list[Finding]:
    doubts = []
    if photo.orientation != 1 and (photo.orientation <= 4 or photo.size[0] == photo.size[1]):
        doubts.append(
            (
                "exif",
                f"its EXIF tag ({photo.orientation}) turns it, and the size does not tell whether the label map "
                "follows the upright photo, as it must: look at both",
            )
        )
    if photo.transparent:
        doubts.append(("transparent", "it has transparent pixels; their stored colours are used"))
    if photo.frames > 1:
        doubts.append(("frames", f"it holds {photo.frames} pictures; the first one is used"))
    return [Finding(WARNING, kind, path, message) for kind, message in doubts]


def _centres(labels: np.ndarray) -> np.ndarray:
    """(256, 2): see `Inspection.centres`."""
    step = max(1, max(labels.shape) // 128)
    subset = labels[::step, ::step]
    counts = np.bincount(subset.ravel(), minlength=256)
    sums = [
        np.bincount(subset.ravel(), weights=place.ravel(), minlength=256)
        for place in np.broadcast_arrays(*np.ogrid[: subset.shape[0], : subset.shape[1]])
    ]
    with np.errstate(invalid="ignore"):
        return np.stack(sums, axis=1) / counts[:, None] / np.asarray(subset.shape)
