"""What reading, augmentation and evaluation cost, measured beside Detectron2's own. Not a test: nothing fails here
when a machine is slow.

    python benchmarks/bench_data.py                    all sections
    python benchmarks/bench_data.py evaluator --json   one section, as JSON

Each section makes its own data in a temporary folder, looks whether its candidates do the same work, runs them in
turns in one process, and reports the best of the repeats: on a busy machine the best is what disturbs least.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import platform
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.evaluation import SemSegEvaluator
from fvcore.transforms.transform import CropTransform, HFlipTransform, NoOpTransform, PadTransform
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from people_generator import draw_sample, to_label

from sst_d2.data import SSTDatasetMapper, build_sst_train_loader
from sst_d2.data.transforms import RandomScaleCropMirror, ScaleCropMirrorTransform
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.label_domains import get_label_domain

SIZE = 512  # height and width of photos, crops and logits
NUM_PHOTOS = 8
NUM_DRAWS = 96  # augmented images in one run of the mapper
BATCH_SIZE = 4
NUM_BATCHES = 24  # in one run of the pipeline
NUM_LOGITS = 4  # (20, 512, 512) take 20 MiB each: together more than a processor's cache holds
DATASET = "sst_bench_data_cihp"
DOMAIN = get_label_domain("cihp")
OUR_MAPPER, THEIR_MAPPER = "SSTDatasetMapper", "detectron2 DatasetMapper"
OUR_EVALUATOR, THEIR_EVALUATOR = "SSTSemSegEvaluator", "detectron2 SemSegEvaluator"


def bench_mapper(repeats: int, folder: Path) -> dict[str, Any]:
    """Images per second of one worker: read a 512x512 photo and its labels, scale by 0.5 to 2, crop, mirror.

    Detectron2's nearest augmentations are `ResizeScale`, `FixedSizeCrop` and `RandomFlip`. Both mappers draw the same
    factors, because they draw from the same seeds.

    Args:
        repeats: rounds; in each, both mappers give ``NUM_DRAWS`` images.
        folder: an empty folder for the photos.

    Returns:
        ``images_per_second`` {name: maximum}, ``ratio`` (ours over Detectron2's).
    """
    records = make_photos(folder)
    ours, theirs = our_mapper([RandomScaleCropMirror((SIZE, SIZE))]), their_mapper(random_augmentations())
    check_mappers(records, ours, theirs)
    positions = range(NUM_DRAWS)
    seeds = [np.random.SeedSequence([ours.seed, position]).generate_state(4) for position in positions]

    def run_ours() -> None:
        for position in positions:
            ours({**records[position % len(records)], "sample_position": position})

    def run_theirs() -> None:
        for position, seed in zip(positions, seeds, strict=True):
            np.random.seed(seed)
            theirs(records[position % len(records)])

    best = interleaved_minima({OUR_MAPPER: stopwatch(run_ours), THEIR_MAPPER: stopwatch(run_theirs)}, repeats)
    return {
        "images_per_second": {name: NUM_DRAWS / seconds for name, seconds in best.items()},
        "ratio": best[THEIR_MAPPER] / best[OUR_MAPPER],
    }


def bench_pipeline(repeats: int, folder: Path) -> dict[str, Any]:
    """Images per second of the whole training loader, batches of 4 of the same photos, by number of workers.

    Args:
        repeats: rounds; in each, every loader starts anew and gives ``NUM_BATCHES`` batches, after those that its
            workers fetch in advance.
        folder: an empty folder for the photos.

    Returns:
        ``images_per_second`` {name and workers: maximum}.
    """
    records = make_photos(folder)
    candidates, first_batches = {}, []
    for workers in (0, 1, 2):
        ours, theirs = our_loader(records, workers), their_loader(records, workers)
        candidates[f"sst_d2, {workers} workers"] = loader_run(ours, workers)
        candidates[f"detectron2, {workers} workers"] = loader_run(theirs, workers)
        first_batches.append(next(iter(ours)))
    for batch in first_batches[1:]:
        for sample, expected in zip(batch, first_batches[0], strict=True):
            require(torch.equal(sample["image"], expected["image"]), "images depend on the number of workers")
            require(torch.equal(sample["sem_seg"], expected["sem_seg"]), "labels depend on the number of workers")
    best = interleaved_minima(candidates, repeats)
    return {"images_per_second": {name: NUM_BATCHES * BATCH_SIZE / seconds for name, seconds in best.items()}}


def bench_evaluator(repeats: int, folder: Path) -> dict[str, Any]:
    """Milliseconds per 512x512 image at K = 20: from logits and a label file to a confusion matrix.

    Args:
        repeats: rounds; in each, both evaluators see all images once.
        folder: an empty folder for the label files.

    Returns:
        ``ms_per_image`` {name: minimum}, ``ratio`` (Detectron2's over ours).
    """
    records, outputs = make_labels_and_logits(folder, DOMAIN.num_classes)
    DatasetCatalog.register(DATASET, lambda: records)
    MetadataCatalog.get(DATASET).set(
        label_domain=DOMAIN.name, stuff_classes=list(DOMAIN.classes), ignore_label=DOMAIN.ignore_label
    )
    ours = SSTSemSegEvaluator(DATASET, distributed=False)
    theirs = SemSegEvaluator(DATASET, distributed=False)

    def run(evaluator: SSTSemSegEvaluator | SemSegEvaluator) -> Callable[[], float]:
        def all_images() -> None:
            evaluator.reset()
            for record, output in zip(records, outputs, strict=True):
                evaluator.process([record], [output])

        return stopwatch(all_images)

    best = interleaved_minima({OUR_EVALUATOR: run(ours), THEIR_EVALUATOR: run(theirs)}, repeats)
    scores = [evaluator.evaluate()["sem_seg"] for evaluator in (ours, theirs)]
    require(scores[0]["pACC"] == scores[1]["pACC"], "the two evaluators counted differently")
    return {
        "ms_per_image": {name: 1000 * seconds / NUM_LOGITS for name, seconds in best.items()},
        "ratio": best[THEIR_EVALUATOR] / best[OUR_EVALUATOR],
    }


def make_photos(folder: Path) -> list[dict[str, Any]]:
    """Synthetic photos of people, JPEG of quality 90, and their labels as index PNGs; the dataset dicts."""
    records = []
    for i in range(NUM_PHOTOS):
        sample = draw_sample("cihp", (SIZE, SIZE), np.random.default_rng(i))
        photo, labels = folder / f"{i}.jpg", folder / f"{i}.png"
        Image.fromarray(sample.image).save(photo, quality=90)
        Image.fromarray(to_label(sample.atoms, DOMAIN.name)).save(labels)
        record = {"file_name": str(photo), "sem_seg_file_name": str(labels), "label_domain": DOMAIN.name}
        records.append({**record, "image_id": i, "height": SIZE, "width": SIZE})
    return records


def make_labels_and_logits(
    folder: Path, num_classes: int
) -> tuple[list[dict[str, Any]], list[dict[str, torch.Tensor]]]:
    """Label maps with smooth regions, and logits that are right on most pixels.

    Returns:
        dataset dicts that name the label files (and images that do not exist: no evaluator opens them), and as many
        outputs {"sem_seg": (K, 512, 512) float32}.
    """
    generator = torch.Generator().manual_seed(0)
    records, outputs = [], []
    for i in range(NUM_LOGITS):
        coarse = torch.randn((1, num_classes, 12, 12), generator=generator)
        field = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")[0]
        path = folder / f"{i}.png"
        Image.fromarray(field.argmax(dim=0).to(torch.uint8).numpy()).save(path)
        records.append({"file_name": str(folder / f"{i}.jpg"), "sem_seg_file_name": str(path), "image_id": i})
        noise = torch.randn(field.shape, generator=generator)
        outputs.append({"sem_seg": (field + 0.1 * noise).contiguous()})
    return records, outputs


def our_mapper(augmentations: list[T.Augmentation]) -> SSTDatasetMapper:
    """Ours, with given augmentations."""
    return SSTDatasetMapper(True, domains=[DOMAIN], augmentations=augmentations, image_format="RGB")


def their_mapper(augmentations: list[T.Augmentation | T.Transform]) -> DatasetMapper:
    """Detectron2's, with given augmentations."""
    return DatasetMapper(True, augmentations=augmentations, image_format="RGB")


def random_augmentations() -> list[T.Augmentation]:
    """Detectron2's nearest to ours. (They mirror without swapping left and right, and version 0.5 pads labels by 0.)"""
    return [T.ResizeScale(0.5, 2.0, SIZE, SIZE), T.FixedSizeCrop((SIZE, SIZE)), T.RandomFlip()]


class _Fixed(T.Augmentation):
    """Always the same transform."""

    def __init__(self, transform: T.Transform) -> None:
        super().__init__()
        self.transform = transform

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return self.transform


def check_mappers(records: list[dict[str, Any]], ours: SSTDatasetMapper, theirs: DatasetMapper) -> None:
    """Stop unless both mappers give tensors of one kind and, where nothing is drawn, the same pixels."""
    for name in ("image", "sem_seg"):
        mine, other = ours(records[0])[name], theirs(records[0])[name]
        require((mine.shape, mine.dtype) == (other.shape, other.dtype), f"the mappers' '{name}' differ in kind")
    cases = itertools.product((SIZE // 2, SIZE * 2), (False, True))
    for (scaled, mirrored), record in zip(cases, itertools.cycle(records), strict=False):
        corner, filled = max(scaled - SIZE, 0) // 3, min(scaled, SIZE)
        step = ScaleCropMirrorTransform(
            (SIZE, SIZE), (scaled, scaled), (corner, corner), (SIZE, SIZE), mirrored, DOMAIN
        )
        steps = [
            T.ResizeTransform(SIZE, SIZE, scaled, scaled, Image.BILINEAR),
            CropTransform(corner, corner, filled, filled),
            PadTransform(0, 0, SIZE - filled, SIZE - filled, pad_value=0, seg_pad_value=DOMAIN.ignore_label),
            HFlipTransform(SIZE) if mirrored else NoOpTransform(),
        ]
        mine, other = our_mapper([_Fixed(step)])(record), their_mapper(steps)(record)
        difference = (mine["image"].int() - other["image"].int()).abs().max()
        require(int(difference) <= 2, f"the mappers' images differ by {int(difference)} of 255")
        swap = np.arange(256)
        swap[: DOMAIN.num_classes] = DOMAIN.flip_permutation()
        labels = torch.from_numpy(swap)[other["sem_seg"]] if mirrored else other["sem_seg"]
        require(torch.equal(mine["sem_seg"], labels), "the mappers' labels differ")


def our_loader(records: list[dict[str, Any]], workers: int) -> Iterable[list[dict[str, Any]]]:
    """The loader that `train_net.py` uses."""
    mapper = our_mapper([RandomScaleCropMirror((SIZE, SIZE))])
    return build_sst_train_loader(
        records, mapper=mapper, domains=[DOMAIN.name], total_batch_size=BATCH_SIZE, num_workers=workers
    )


def their_loader(records: list[dict[str, Any]], workers: int) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's loader, without grouping by aspect ratio: all photos have one."""
    return build_detection_train_loader(
        records,
        mapper=their_mapper(random_augmentations()),
        total_batch_size=BATCH_SIZE,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )


def loader_run(loader: Iterable[list[dict[str, Any]]], workers: int) -> Callable[[], float]:
    """A run that starts the loader anew and returns the seconds of its batches, without those to get going."""

    def run() -> float:
        batches = iter(loader)
        for _ in range(1 + 2 * workers):
            next(batches)
        return stopwatch(lambda: deque(itertools.islice(batches, NUM_BATCHES), maxlen=0))()

    return run


def stopwatch(run: Callable[[], Any]) -> Callable[[], float]:
    """The run, returning its seconds."""

    def timed() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return timed


def interleaved_minima(candidates: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Seconds of each candidate's fastest run; the candidates take turns, after one run each to warm up."""
    best = {name: float("inf") for name in candidates}
    for turn in range(repeats + 1):
        for name, run in candidates.items():
            seconds = run()
            if turn > 0:
                best[name] = min(best[name], seconds)
    return best


def require(condition: bool, otherwise: str) -> None:
    """Stop where times could not be compared."""
    if not condition:
        raise RuntimeError(f"{otherwise}; their times cannot be compared")


SECTIONS: dict[str, Callable[[int, Path], dict[str, Any]]] = {
    "mapper": bench_mapper,
    "pipeline": bench_pipeline,
    "evaluator": bench_evaluator,
}


def print_section(name: str, result: dict[str, Any]) -> None:
    """One section as a small table."""
    print(f"\n{name}: {SECTIONS[name].__doc__.splitlines()[0]}")
    for key, unit in (("ms_per_image", "ms"), ("images_per_second", "images/s")):
        for candidate, value in result.get(key, {}).items():
            print(f"  {candidate:<32} {value:8.2f} {unit}")
    if "ratio" in result:
        print(f"  {'ratio':<32} {result['ratio']:8.2f}")


def main() -> None:
    """Read the command line, run the sections, print tables or JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}; none: all")
    parser.add_argument("--repeats", type=int, default=9, help="rounds, at least 7 (default 9)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    args = parser.parse_args()
    unknown = [name for name in args.sections if name not in SECTIONS]
    if unknown:
        parser.error(f"unknown section '{unknown[0]}'; sections: {', '.join(SECTIONS)}")
    if args.repeats < 7 or args.threads < 1:
        parser.error(f"--repeats {args.repeats} --threads {args.threads}: at least 7 repeats and 1 thread are needed")
    torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    report: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "repeats": args.repeats,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "detectron2": detectron2.__version__,
    }
    for name in args.sections or SECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            report[name] = SECTIONS[name](args.repeats, Path(folder))
    if args.json:
        print(json.dumps(report, indent=1))
        return
    print(", ".join(f"{key} {value}" for key, value in report.items() if not isinstance(value, dict)))
    for name in args.sections or SECTIONS:
        print_section(name, report[name])


if __name__ == "__main__":
    main()
