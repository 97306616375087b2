#!/usr/bin/env python
"""Pictures to look at, as PNG files: data sets, predictions, confusions, relations between label domains.

    python tools/visualize.py dataset cihp_sem_seg_train --output DIR [--number 6] [--augmented CONFIG.yaml]
    python tools/visualize.py predictions model_inference.pth photo.jpg [PHOTO …] --output DIR
    python tools/visualize.py confusion output/universal --output DIR
    python tools/visualize.py relations atr cihp --output DIR
    python tools/visualize.py relations --checkpoint output/universal/model_final.pth --output DIR

No display is needed. A file that is there already stays, unless --overwrite is given; one that a picture is made from
stays always. Photos and samples that cannot be read are passed over and named, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import LabelDomain, SSTError, SSTPredictor
from sst_d2.arguments import positive_number
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import CN, load_config, merge_options, parse_config, resolve_device
from sst_d2.data import SSTDatasetMapper, register_dataset_cards
from sst_d2.data.census import DataSet, open_data_sets
from sst_d2.data.loader import dataset_domain, load_datasets
from sst_d2.data.mapper import build_augmentations
from sst_d2.engine import SSTTrainer, check_config
from sst_d2.errors import DatasetCardError, SSTCheckpointError, SSTConfigError, SSTDataError
from sst_d2.inference.sources import find_photos
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import report_user_error
from sst_d2.pictures import (
    CategoryRelations,
    confusion_picture,
    cosine_picture,
    dynamic_picture,
    observe_relations,
    read_evaluation,
    sample_picture,
    static_picture,
)
from sst_d2.visualization import save_image, side_by_side

# File name -> what draws it. Names first: a file that is in the way is found before the work.
Pictures = dict[str, Callable[[], np.ndarray]]
_RESULTS = "sem_seg_evaluation.json"
_FILES_OF_A_SAMPLE = ("file_name", "sem_seg_file_name", "remapped_label_file_name")
_STRIDES = (16, 8, 4)  # of the scales 1, 2, 3


class Work(NamedTuple):
    """What a command is to draw.

    Attributes:
        pictures: by file name.
        inputs: files that they are made from, which no picture may replace.
        problems: a sentence for each input that cannot be read.
        apart: each picture is of a photo of its own, and one that cannot be read is passed over.
    """

    pictures: Pictures
    inputs: Sequence[str | os.PathLike]
    problems: Sequence[str] = ()
    apart: bool = False


def dataset_pictures(arguments: argparse.Namespace) -> Work:
    """Samples of data sets with their labels; with --augmented also as training makes them."""
    augmentations, seed, pictures, found, inputs = None, 0, {}, set(), []
    if arguments.augmented is not None:
        cfg = load_config(arguments.augmented, arguments.opts)
        augmentations, seed = build_augmentations(cfg), max(cfg.SEED, 0)
    for data_set in open_data_sets(arguments.data_sets):
        inputs += [sample[key] for sample in data_set.samples for key in _FILES_OF_A_SAMPLE if key in sample]
        for place in _chosen(data_set, arguments.number, arguments.ids):
            sample = data_set.samples[place]
            title = f"{data_set.name}, {place + 1} of {len(data_set.samples)}: {sample['image_id']}"
            pictures[f"{data_set.name}/{place + 1:05d}_{_file_name(sample['image_id'])}.png"] = functools.partial(
                sample_picture, sample, data_set.domain, title, augmentations, seed, position=3 * place
            )
            found.add(str(sample["image_id"]))
    missing = [identifier for identifier in arguments.ids if identifier not in found]
    if missing:
        raise SSTDataError(f"--ids: {', '.join(missing)}: no image of the data sets has such an id")
    return Work(pictures, inputs, apart=True)


def _chosen(data_set: DataSet, number: int, ids: Sequence[str]) -> list[int]:
    """Places of the samples: those of ``ids``, else ``number`` of them, spread evenly over the set."""
    if not data_set.samples:
        raise DatasetCardError(next((f.message for f in data_set.findings), f"'{data_set.name}' has no images"))
    if ids:
        return [place for place, sample in enumerate(data_set.samples) if str(sample["image_id"]) in ids]
    count = len(data_set.samples)
    return np.unique(np.linspace(0, count - 1, min(number, count)).round().astype(int)).tolist()


def prediction_pictures(arguments: argparse.Namespace) -> Work:
    """Photos, each beside what the network makes of it in all its label domains."""
    found = find_photos(arguments.photos, arguments.output)

    @functools.cache
    def _predictor() -> SSTPredictor:
        return SSTPredictor(arguments.checkpoint, opts=arguments.opts)

    def _draw(photo: str) -> np.ndarray:
        predictions = list(_predictor()(photo, "all").values())
        maps = {prediction.domain: prediction.labels for prediction in predictions}
        return side_by_side(predictions[0].image, maps, max_side=640)

    pictures: Pictures = {f"{photo.name}.png": functools.partial(_draw, photo.path) for photo in found.photos}
    return Work(pictures, [photo.path for photo in found.photos], found.problems, apart=True)


def confusion_pictures(arguments: argparse.Namespace) -> Work:
    """The confusion matrix of every evaluation below a folder."""
    given = Path(arguments.results)
    files = [given] if given.is_file() else sorted(given.rglob(_RESULTS))
    if not files:
        problem = "there is no such folder" if not given.exists() else f"no {_RESULTS} lies below it"
        raise SSTDataError(f"{given}: {problem}; name the OUTPUT_DIR of a training or an evaluation, or such a file")
    pictures = {}
    for file in files:
        record = read_evaluation(file)
        parts = file.parent.relative_to(given).parts if given.is_dir() else ()
        folders = [part for part in parts[:-1] if part != "inference"]
        name = _file_name("_".join(["confusion", *folders, record.dataset]))
        pictures[f"{name}.png"] = functools.partial(confusion_picture, record)
    return Work(pictures, files)


def relation_pictures(arguments: argparse.Namespace) -> Work:
    """M_static of pairs of label domains; of a checkpoint of a training also what its branch has learnt."""
    if arguments.checkpoint is None:
        if len(arguments.domains) < 2:
            raise SSTConfigError("relations: name two label domains or more, or a --checkpoint of a training")
        domains = [get_label_domain(reference) for reference in arguments.domains]
        vectors = arguments.word_vectors
        return Work(_static(combinations(domains, 2), vectors), [*arguments.domains, *([vectors] if vectors else [])])
    if arguments.domains or arguments.word_vectors:
        raise SSTConfigError("relations: a --checkpoint knows its label domains and word vectors; leave yours out")
    cfg, model = _trained(arguments.checkpoint, arguments.opts)
    branch, known = model.auxiliary, dict(model.domains)
    if branch.source is not None:
        known.update(branch.source.domains)
    pairs = [(known[first], known[second]) for first, second in branch.pairs]
    # A source sees every image; of a domain of the network's own without a test set there is none to see.
    seen = {dataset_domain(name, list(known)) for name in cfg.DATASETS.TEST} | (known.keys() - model.domains.keys())
    observed = functools.cache(lambda: _observed(cfg, model, arguments.images))
    pictures = _static(pairs, cfg.MODEL.SST.AUXILIARY.WORD_VECTORS or None)
    if branch.image_level:
        pictures.update(_dynamic([pair for pair in pairs if {domain.name for domain in pair} <= seen], observed))
    for domain in model.domains.values():
        for number in (0, 3) if domain.name in seen else (0,):
            pictures[f"cosines_x{number}_{domain.name}.png"] = functools.partial(_cosines, domain, number, observed)
    return Work(pictures, [arguments.checkpoint])


def _cosines(domain: LabelDomain, number: int, observed: Callable[[], CategoryRelations]) -> np.ndarray:
    return cosine_picture(domain, observed(), last=number == 3)


def _static(pairs: Iterable[tuple[LabelDomain, LabelDomain]], vectors: str | None) -> Pictures:
    return {
        f"m_static_{first.name}-{second.name}.png": functools.partial(static_picture, first, second, vectors)
        for first, second in pairs
    }


def _dynamic(pairs: Iterable[tuple[LabelDomain, LabelDomain]], observed: Callable[[], CategoryRelations]) -> Pictures:
    def _draw(first: LabelDomain, second: LabelDomain, scale: int) -> np.ndarray:
        values = observed().dynamic[first.name, second.name][scale]
        return dynamic_picture(first, second, values, _STRIDES[scale])

    return {
        f"m_dynamic_{first.name}-{second.name}_stride{stride:02d}.png": functools.partial(_draw, first, second, scale)
        for first, second in pairs
        for scale, stride in enumerate(_STRIDES)
    }


def _trained(path: str, opts: Sequence[str]) -> tuple[CN, Any]:
    """Configuration and network, with its branch, of a checkpoint of a training."""
    if not Path(path).is_file():
        raise SSTCheckpointError(f"--checkpoint: there is no file {path}; name one of a training, model_final.pth")
    content = SSTCheckpointer(nn.Module()).read(path)  # reading needs no network
    if "config" not in content or not any(key.startswith("auxiliary.") for key in content["model"]):
        raise SSTCheckpointError(
            f"{path}: holds no MSA, MSE and MST: it was stripped for prediction, trained without them, or is of "
            "another program. Give the checkpoint of a training with SST, model_final.pth"
        )
    cfg = parse_config(content["config"])
    cfg.MODEL.DEVICE = ""  # of the machine that trained it
    merge_options(cfg, opts)
    resolve_device(cfg)
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    check_config(cfg)
    if not cfg.DATASETS.TEST:
        raise SSTConfigError("DATASETS.TEST is empty; name data sets to look at: --opts DATASETS.TEST \"('NAME',)\"")
    model = SSTTrainer.build_model(cfg)
    SSTCheckpointer(model).load_content(content, path)
    return cfg, model


def _observed(cfg: CN, model: Any, images: int) -> CategoryRelations:
    """Of the first images of each test set."""
    domains = list(model.domains.values())
    mapper = SSTDatasetMapper(True, domains=domains, augmentations=[], image_format=cfg.INPUT.FORMAT)
    samples = [sample for name in cfg.DATASETS.TEST for sample in load_datasets([name], list(model.domains))[:images]]
    return observe_relations(model, map(mapper, samples))


def _file_name(text: str) -> str:
    """Letters, digits, points, hyphens; all else becomes one "_"."""
    return re.sub(r"[^\w.-]+", "_", str(text))


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def _command(name: str, make: Callable[[argparse.Namespace], Work], summary: str) -> Callable[..., Any]:
        command = commands.add_parser(name, help=summary, description=make.__doc__)
        command.set_defaults(make=make)
        command.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the pictures")
        command.add_argument("--overwrite", action="store_true", help="replace pictures that are there")
        return command.add_argument

    def _opts(add: Callable[..., Any]) -> None:
        add("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes of the configuration")

    add = _command("dataset", dataset_pictures, "samples of data sets with their labels")
    add("data_sets", nargs="+", metavar="CARD|NAME", help="a dataset card (.yaml), or the name of a built-in data set")
    add("--number", type=positive_number, default=6, metavar="N", help="samples per data set (default: %(default)s)")
    add("--ids", nargs="+", default=[], metavar="ID", help="these samples instead, by image_id")
    add("--augmented", metavar="CONFIG", help="also as this configuration (.yaml) augments them in training")
    _opts(add)
    add = _command("predictions", prediction_pictures, "photos beside their predictions in all label domains")
    add("checkpoint", help="a checkpoint, or an exported folder")
    add("photos", nargs="+", metavar="PHOTO", help="photos, folders (searched with all below), globs")
    _opts(add)
    add = _command("confusion", confusion_pictures, "the confusion matrices of an evaluation")
    add("results", metavar="RUN", help=f"OUTPUT_DIR of a training or an evaluation; or a {_RESULTS}")
    add = _command("relations", relation_pictures, "how the classes of label domains resemble each other")
    add("domains", nargs="*", metavar="DOMAIN", help="names of label domains, or their files (.yaml)")
    add("--word-vectors", metavar="FILE", help="text file of word vectors, where no values are published")
    add("--checkpoint", metavar="FILE", help="of a training: its pairs, M_dynamic and cosines of its categories too")
    add("--images", type=positive_number, default=20, metavar="N", help="per test set (default: %(default)s)")
    _opts(add)
    return parser.parse_args(argv)


def _check_output(work: Work, output: Path, overwrite: bool) -> None:
    """Find what is in the way before the work."""
    if output.exists() and not output.is_dir():
        raise SSTDataError(f"--output: {output} is a file; name a folder")
    there = [output / name for name in work.pictures if os.path.lexists(output / name)]
    own = {_identity(path) for path in work.inputs} - {None} if there else set()
    for path in there:
        if _identity(path) in own:
            raise SSTDataError(f"{path}: a picture would replace a file that it is made from; name another --output")
    if there and not overwrite:
        raise SSTDataError(f"{there[0]} exists; --overwrite replaces it, or name another --output")


def _identity(path: str | os.PathLike) -> tuple[int, int] | None:
    """The same for all names of one file, links and hard links; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def main(argv: Sequence[str] | None = None) -> bool:
    """Draw; False where something could not be read."""
    arguments = parse_arguments(argv)
    work = arguments.make(arguments)
    _check_output(work, arguments.output, arguments.overwrite)
    skipped = len(work.problems)
    for problem in work.problems:
        print(f"skipped: {problem}", file=sys.stderr)
    for name, draw in work.pictures.items():
        try:
            picture = draw()
        except SSTDataError as reason:
            if not work.apart:
                raise
            print(f"skipped: {name}: {reason}", file=sys.stderr)
            skipped += 1
            continue
        save_image(arguments.output / name, picture)
        print(arguments.output / name, flush=True)
    return not skipped


if __name__ == "__main__":
    try:
        sys.exit(0 if main() else 1)
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
