"""The one reader of label maps: the mapper, the evaluator and the checker all see the same ids, or the same error.

Detectron2 turns palette images into grey values, cuts 16-bit ids to 8 bits and lets ids past the last class spill
into other classes. Here each of these is either read right or refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from sst_d2.data.image_io import FileFault, image_size, is_turned_sideways, naming_faults, open_whole, orientation
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import LabelDomain

_INDEX_MODES = ("L", "P")


def read_label_map(
    path: str | os.PathLike,
    domain: LabelDomain,
    size: tuple[int, int] | None = None,
    remap: Mapping[int, int] | None = None,
) -> np.ndarray:
    """Read a label image whose pixel values are class ids.

    Args:
        path: an 8-bit PNG of one channel: mode L, or mode P, whose raw indices are taken and whose palette is not.
        domain: the label domain that the ids belong to.
        size: (height, width) that the map must have; None: any.
        remap: from the file's ids to ids of ``domain`` or its ignore label; every id that occurs must be named.

    Returns:
        (H, W) uint8, contiguous; each id in [0, K) or ``domain.ignore_label``.

    Raises:
        FileFault: the file is absent or damaged, has another mode or size, or holds an id that is not allowed.
    """
    labels = _read_index_image(path)
    if size is not None and labels.shape != tuple(size):
        raise FileFault(
            f"{path}: the label map has {labels.shape[0]} x {labels.shape[1]} pixels (height x width) and its image "
            f"{size[0]} x {size[1]}; both must agree",
            "size_mismatch",
        )
    if remap is None and labels.size and labels.max() < domain.num_classes:
        return labels  # the usual case, at half the time
    table = _id_table(domain, remap)
    mapped = table.take(labels)
    if (mapped < 0).any():
        strange = np.unique(labels[mapped < 0]).tolist()
        allowed = (
            f"the ids that the remap table names: {sorted(remap)}"
            if remap is not None
            else f"0 to {domain.num_classes - 1} and {domain.ignore_label} (ignore)"
        )
        raise FileFault(
            f"{path}: the ids {strange} do not belong to label domain '{domain.name}'; allowed are {allowed}. "
            "If the file follows another label system, give its card a `remap` table",
            "ids",
            tuple(np.unique(labels).tolist()),
        )
    return mapped.astype(np.uint8)


def check_remap(remap: Mapping[int, int], domain: LabelDomain) -> None:
    """Refuse a remap table whose sources are no 8-bit ids or whose targets are no ids of ``domain``.

    Raises:
        SSTDataError: naming the entry and what is allowed.
    """
    for source, target in remap.items():
        if (
            not _is_id(source)
            or not _is_id(target)
            or not (target < domain.num_classes or target == domain.ignore_label)
        ):
            raise SSTDataError(
                f"remap entry {source!r}: {target!r}: sources are ids from 0 to 255; targets are ids of label domain "
                f"'{domain.name}', 0 to {domain.num_classes - 1}, or {domain.ignore_label} (ignore)"
            )


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _id_table(domain: LabelDomain, remap: Mapping[int, int] | None) -> np.ndarray:
    """(256,) int16: the id that each pixel value becomes, -1 where it is not allowed."""
    table = np.full(256, -1, dtype=np.int16)
    if remap is None:
        table[: domain.num_classes] = np.arange(domain.num_classes)
        table[domain.ignore_label] = domain.ignore_label
    else:
        for source, target in remap.items():
            table[source] = target
    return table


def _read_index_image(path: str | os.PathLike) -> np.ndarray:
    with naming_faults(path, "label map", "missing_label"), open(path, "rb") as stream, open_whole(stream) as image:
        if image.mode not in _INDEX_MODES:
            raise FileFault(
                f"{path}: a label map of mode {image.mode}; allowed are one-channel 8-bit images, modes L and P, "
                "whose values are class ids. Convert colour renderings to ids first",
                "wrong_mode",
            )
        if image.format != "PNG":
            raise FileFault(
                f"{path}: a label map in the format {image.format}; PNG is allowed, since others may change ids",
                "wrong_format",
            )
        if image.mode == "L" and _bits_are_scaled(image):
            raise FileFault(
                f"{path}: a grey image of fewer than 8 bits, whose ids would be scaled; save it with 8 bits",
                "wrong_mode",
            )
        if getattr(image, "is_animated", False):
            raise FileFault(f"{path}: an animated PNG; a label map is one picture", "wrong_format")
        if orientation(image) != 1:
            raise FileFault(
                f"{path}: a label map with an EXIF tag that turns it; save it as it is to be read, without the tag",
                "wrong_format",
            )
        return np.array(image, dtype=np.uint8)


def read_sample_labels(
    sample: Mapping[str, Any], domain: LabelDomain, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Read the label map of a dataset dict, through its ``label_remap`` where its card has one.

    Args:
        sample: with ``sem_seg_file_name``, or with ``remapped_label_file_name`` and ``label_remap``.
        domain: the sample's label domain.
        size: (height, width) of the upright image; None: the sample's ``height`` and ``width``, where it has them.

    Returns:
        (H, W) uint8, as `read_label_map`.

    Raises:
        FileFault: as `read_label_map`, or the sample names no label file. A map that follows the photo as it is
            stored, although an EXIF tag turns the photo, is refused by that name.
    """
    if sample.get("sem_seg_file_name") is not None:
        path, remap = sample["sem_seg_file_name"], sample.get("label_remap")
    elif sample.get("remapped_label_file_name") is not None and "label_remap" in sample:
        path, remap = sample["remapped_label_file_name"], sample["label_remap"]
    else:
        raise FileFault(
            f"{sample.get('file_name', 'a dataset dict')}: no label map is named; training and evaluation need "
            "`sem_seg_file_name`, or `remapped_label_file_name` with `label_remap`, in the dataset dict",
            "missing_key",
        )
    if size is None and "height" in sample and "width" in sample:
        size = (sample["height"], sample["width"])
    try:
        return read_label_map(path, domain, size, remap)
    except FileFault as fault:
        if fault.kind == "size_mismatch" and _follows_the_stored_photo(sample, path, size):
            raise FileFault(
                f"{fault}. The EXIF tag of {sample['file_name']} turns the photo upright, and the label map has the "
                "size of the photo as it is stored: turn the label map likewise, or take the tag out of the photo",
                fault.kind,
            ) from fault
        raise


def _follows_the_stored_photo(sample: Mapping[str, Any], path: str, size: tuple[int, int]) -> bool:
    """Whether a label map is lying, beside a photo whose EXIF tag turns it upright to ``size``."""
    photo = sample.get("file_name")
    return photo is not None and is_turned_sideways(photo) and image_size(path) == tuple(size)[::-1]


def _bits_are_scaled(image: Image.Image) -> bool:
    """Whether Pillow would stretch grey values of 2 or 4 bits to 8 ("L;4" in the list of tiles before loading)."""
    return any(";" in str(tile[3]) for tile in image.tile)
