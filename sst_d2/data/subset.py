"""`keep_subset`: which images a run with a part of the training data uses, written down beside its checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from detectron2.utils import comm

from sst_d2.data.cards import count_images
from sst_d2.data.loader import fraction_size
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.files import write_whole

SUBSET_FILE = "train_subset.json"


def keep_subset(
    folder: str | os.PathLike, fraction: float, seed: int, images: Mapping[str, Sequence[str]], resumed: bool
) -> None:
    """Write ``train_subset.json``, or, where a run goes on, see that it names the same images.

    Every process looks, the main one writes. Of whole data sets nothing is written, and a run that starts removes the
    file of an older one.

    Args:
        folder: ``OUTPUT_DIR``.
        fraction, seed: what the images were chosen by, ``DATASETS.SST.TRAIN_FRACTION`` and ``SEED``.
        images: by data set, the ``image_id`` of the images in use, in their order.
        resumed: the run goes on; else it starts.

    Raises:
        SSTConfigError: the run goes on with other images than it began with.
        SSTDataError: the file of the run cannot be read.
    """
    path = os.path.join(folder, SUBSET_FILE)
    if resumed and os.path.isfile(path):
        _check_same(path, images, f"DATASETS.SST.TRAIN_FRACTION {fraction} and SEED {seed}")
    elif comm.is_main_process() and fraction < 1:
        os.makedirs(folder, exist_ok=True)
        content = {"fraction": fraction, "seed": seed, "images": dict(images)}
        write_whole(path, lambda stream: stream.write(json.dumps(content, indent=1).encode()))
    elif comm.is_main_process():
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)


def images_by_set(samples: Iterable[Mapping[str, Any]], names: Sequence[str], fraction: float) -> dict[str, list[str]]:
    """The ids of the images that `load_datasets` has chosen, by data set; those without an ``image_id`` by their file.

    Args:
        samples: what it gave.
        names, fraction: what it was called with.
    """
    identifiers = (str(sample.get("image_id", sample["file_name"])) for sample in samples)
    return {name: list(islice(identifiers, fraction_size(count_images(name), fraction))) for name in names}


def _check_same(path: str, chosen: Mapping[str, Sequence[str]], by: str) -> None:
    content = _read(path)
    known = content["images"]
    for name in {**known, **chosen}:
        before, now = known.get(name, []), chosen.get(name, [])
        if before != now:
            raise SSTConfigError(
                f"{path}: the {len(before)} images of '{name}' that the run began with are not the {len(now)} that "
                f"{by} choose. --resume goes on with the same images only: set DATASETS.SST.TRAIN_FRACTION "
                f"{content.get('fraction')} and SEED {content.get('seed')}, with the data set's list of ids as it was, "
                "or start anew in another OUTPUT_DIR"
            )


def _read(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
        if not all(isinstance(own, list) for own in content["images"].values()):
            raise ValueError("its field 'images' holds no lists")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise SSTDataError(
            f"{path}: cannot be read ({reason}), so nobody knows whether the run goes on with the same images; remove "
            "the file if they are: it is written anew"
        ) from reason
    return content
