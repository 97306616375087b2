#!/usr/bin/env python
"""Pre-train the backbone of a configuration on synthetic scenes, with image-level attributes only.

    python benchmarks/pretrain_trunk.py --output trunk.pth [--config-file FILE] [--steps N] [--images N]

The file stands for the ImageNet start of the paper's networks where there is no ImageNet: MODEL.WEIGHTS takes it as the
file of a backbone. The start knows no label of the label systems: what it learns of a scene is in
``scene_attributes.py``. No scene is a picture of a data set that ``datasets/make_synthetic_people.py`` makes, whatever
the seeds (`scene_generator`). Beside the weights stands a JSON file of the same name: what was learnt, how well.

The same arguments give the same file, byte by byte, on the CPU of one machine with one number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from scene_attributes import ATTRIBUTES, Scene, measure, mirrored, to_classes
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "datasets"))
from people_generator import STYLES, draw_sample
from people_generator.folder import SETS

# Through sst_d2 alone: it registers the backbones.
from sst_d2 import SSTError
from sst_d2.arguments import positive_number, whole_number
from sst_d2.checkpoint_io import write_checkpoint
from sst_d2.config import get_config_file, load_config
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTNumericError
from sst_d2.launch import report_user_error
from sst_d2.run_setup import check_config

BATCH_SIZE = 16
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 0.05
HELD_OUT = 0.1  # scenes that are drawn besides, as a share of those that are learnt from
# Norms that learn no statistics, or need several processes; the file of a plain batch norm fits them.
PLAIN_NORM = {"FrozenBN": "BN", "SyncBN": "BN", "nnSyncBN": "BN", "naiveSyncBN": "BN"}
REMEDY = "Make room there, or name another place with --output"


def scene_generator(seed: int, held_out: bool, index: int) -> np.random.Generator:
    """Randomness of one scene: a pure function of the arguments, shared with no picture of any data set.

    Those are drawn from (seed, number of the set, split, index), where the number is below ``len(SETS)``.
    """
    return np.random.default_rng((seed, len(SETS), int(held_out), index))


def draw_scenes(count: int, size: int, seed: int, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Draw scenes; the styles take turns.

    Args:
        count: of scenes.
        size: their height and width in pixels.
        seed: from 0.
        held_out: whether they are those to measure with, or those to learn from.

    Returns:
        the pictures (N, size, size, 3) uint8 RGB, and their numbers by `measure` (N, A) float64.
    """
    pictures = np.empty((count, size, size, 3), np.uint8)
    values = np.empty((count, len(ATTRIBUTES)))
    every = 0.3 if sys.stderr.isatty() else 10.0
    for index in tqdm(range(count), unit="scene", desc="held-out scenes" if held_out else "scenes", mininterval=every):
        style = list(STYLES)[index % len(STYLES)]
        sample = draw_sample(style, (size, size), scene_generator(seed, held_out, index))
        pictures[index] = sample.image
        values[index] = measure(Scene(style, sample.people, (size, size)))
    return pictures, values


class AttributeNetwork(nn.Module):
    """A backbone, and one linear classifier per attribute on the means of its maps at strides from 8.

    Args:
        backbone: Detectron2's.
        classes: number of classes by attribute.
        mean, std: of the colours, ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD``.
    """

    def __init__(self, backbone: nn.Module, classes: list[int], mean: list[float], std: list[float]) -> None:
        super().__init__()
        shapes = backbone.output_shape()
        self.backbone, self.classes = backbone, classes
        self.maps = [name for name, shape in shapes.items() if shape.stride >= 8]
        self.classifier = nn.Linear(sum(shapes[name].channels for name in self.maps), sum(classes))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pictures: np.ndarray) -> tuple[torch.Tensor, ...]:
        """Pictures (B, H, W, 3) uint8 RGB to logits, for each attribute (B, its classes)."""
        images = torch.from_numpy(pictures).to(self.mean.device).permute(0, 3, 1, 2).float()
        features = self.backbone((images - self.mean) / self.std)
        pooled = torch.cat([features[name].mean(dim=(2, 3)) for name in self.maps], dim=1)
        return self.classifier(pooled).split(self.classes, dim=1)


def batches(
    pictures: np.ndarray, values: np.ndarray, bounds: list[np.ndarray], seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pictures (B, S, S, 3) and their classes (B, A), without end; each picture once per epoch, mirrored or not."""
    generator = np.random.default_rng(seed)
    size = min(BATCH_SIZE, len(pictures))
    while True:
        order = generator.permutation(len(pictures))
        for chosen in np.split(order, range(size, len(order), size)):
            if len(chosen) < size:
                continue
            turned = generator.random(size) < 0.5
            batch, numbers = pictures[chosen], values[chosen]
            batch[turned], numbers[turned] = batch[turned, :, ::-1], mirrored(numbers[turned])
            yield batch, to_classes(numbers, bounds)


def train(network: AttributeNetwork, data: Iterator[tuple[np.ndarray, np.ndarray]], steps: int) -> None:
    """Train in place: AdamW, one rise and fall of the learning rate, the sum of the attributes' cross-entropies.

    Raises:
        SSTNumericError: the loss became infinite or NaN.
    """
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, steps + 1, pct_start=0.1, div_factor=10)
    progress = tqdm(range(steps), unit="step", desc="training", mininterval=0.3 if sys.stderr.isatty() else 10.0)
    for step, (pictures, classes) in zip(progress, data):
        targets = torch.from_numpy(classes).to(network.mean.device)
        loss = sum(cross_entropy(logits, targets[:, place]) for place, logits in enumerate(network(pictures)))
        if not torch.isfinite(loss):
            raise SSTNumericError(f"step {step}: the loss is {loss.item()}; another --seed or more --images may help")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.2f}", refresh=False)


@torch.no_grad()
def accuracies(network: AttributeNetwork, pictures: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Share of scenes (A,) whose class the network names, by attribute, in evaluation mode."""
    network.eval()
    right = np.zeros(classes.shape[1])
    for start in range(0, len(pictures), 64):
        part = slice(start, start + 64)
        named = np.stack([logits.argmax(dim=1).cpu().numpy() for logits in network(pictures[part])], axis=1)
        right += (named == classes[part]).sum(axis=0)
    return right / len(pictures)


def read_config(path: str) -> CfgNode:
    """The configuration whose backbone is meant; its data sets are not needed.

    Raises:
        SSTConfigError: it cannot be read, or has a value that is not allowed.
    """
    cfg = load_config(path)
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    cfg.MODEL.SST.DOMAINS = []
    check_config(cfg)
    if cfg.INPUT.FORMAT != "RGB":
        raise SSTConfigError(f"{path}: INPUT.FORMAT is '{cfg.INPUT.FORMAT}'; the scenes are RGB, and nothing else fits")
    return cfg


def trainable_backbone(cfg: CfgNode) -> nn.Module:
    """The configuration's backbone with nothing frozen, and batch norm that learns its statistics."""
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.NORM = PLAIN_NORM.get(cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.NORM)
    return build_backbone(cfg).to(cfg.MODEL.DEVICE)


def pretrain(cfg: CfgNode, seed: int, images: int, size: int, steps: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw, train and measure.

    Args:
        cfg: of `read_config`.
        seed, images, size, steps: as on the command line.

    Returns:
        the tensors of the backbone by their names in a checkpoint, and what there is to say of them.

    Raises:
        SSTNumericError: as `train`.
    """
    start = time.perf_counter()
    pictures, values = draw_scenes(images, size, seed, held_out=False)
    others, their_values = draw_scenes(max(1, round(HELD_OUT * images)), size, seed, held_out=True)
    drawn = time.perf_counter()
    bounds = [attribute.cut(column) for attribute, column in zip(ATTRIBUTES.values(), values.T)]
    torch.manual_seed(seed)
    counts = [len(cut) + 1 for cut in bounds]
    network = AttributeNetwork(trainable_backbone(cfg), counts, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD)
    network.to(cfg.MODEL.DEVICE)
    train(network, batches(pictures, values, bounds, seed), steps)
    classes, truth = to_classes(values, bounds), to_classes(their_values, bounds)
    named = accuracies(network, others, truth)
    trained = network.backbone.state_dict()
    weights = {f"backbone.{name}": trained[name].cpu() for name in build_backbone(cfg).state_dict()}
    attributes = {}
    for place, name in enumerate(ATTRIBUTES):
        commonest = np.bincount(classes[:, place]).argmax()
        attributes[name] = {
            "classes": counts[place],
            "bounds": [round(float(bound), 4) for bound in bounds[place]],
            "accuracy": round(float(named[place]), 4),
            "majority": round(float((truth[:, place] == commonest).mean()), 4),
        }
    seconds = {"drawing": round(drawn - start, 1), "training": round(time.perf_counter() - drawn, 1)}
    return weights, {"held_out": len(others), "attributes": attributes, "seconds": seconds}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--output", required=True, metavar="FILE", help="the file to write (.pth); a .json comes beside it")
    tiny = "quick_schedules/Base-tiny.yaml"
    add("--config-file", metavar="FILE", help=f"whose backbone is trained (default: configs/{tiny})")
    add("--seed", type=whole_number, default=1000, help="whole number from 0 (default: %(default)s)")
    add("--steps", type=positive_number, default=1600, help=f"of {BATCH_SIZE} scenes each (default: %(default)s)")
    add("--images", type=positive_number, default=6000, metavar="N", help="scenes to learn from (default: %(default)s)")
    add("--size", type=positive_number, default=128, metavar="PX", help="side of a scene (default: %(default)s)")
    add("--force", action="store_true", help="replace the files")
    args = parser.parse_args(argv)
    args.config_file = args.config_file or get_config_file(tiny)
    if not 32 <= args.size <= 1024:
        parser.error(f"argument --size: {args.size} pixels; allowed are 32 to 1024")
    if args.images < 2:
        parser.error("argument --images: 1 scene; batch norm needs at least 2, and the classes a few hundred")
    if not args.output.endswith(".pth"):
        parser.error(f"argument --output: {args.output}: is written in torch's format; give a name that ends in .pth")
    for path in (args.output, beside(args.output)):
        if os.path.lexists(path) and not args.force:
            parser.error(f"argument --output: {path} exists; --force replaces it")
    return args


def beside(output: str) -> str:
    """Path of the JSON file that belongs to a file of weights."""
    return f"{output.removesuffix('.pth')}.json"


def write(output: str, weights: dict[str, Any], report: dict[str, Any]) -> None:
    """Write weights and JSON, each whole or not at all; the JSON, which has the other's SHA-256, comes last.

    Raises:
        SSTCheckpointError: one cannot be written.
    """
    write_checkpoint(output, lambda stream: torch.save({"model": weights}, stream), REMEDY)
    report = {"sha256": hashlib.sha256(Path(output).read_bytes()).hexdigest(), **report}
    text = json.dumps(report, indent=1) + "\n"
    write_checkpoint(beside(output), lambda stream: stream.write(text.encode()), REMEDY)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 130 interrupted (wrong arguments exit with 2)."""
    args = parse_args(argv)
    folder = os.path.dirname(args.output) or "."
    try:
        if not os.access(folder, os.W_OK | os.X_OK):  # now, not after minutes
            raise SSTCheckpointError(f"{args.output}: {folder} is no folder that can be written; make it first")
        cfg = read_config(args.config_file)
        weights, report = pretrain(cfg, args.seed, args.images, args.size, args.steps)
        made = {"backbone": cfg.MODEL.BACKBONE.NAME, "config_file": os.path.basename(args.config_file)}
        made.update({key: getattr(args, key) for key in ("seed", "images", "size", "steps")})
        programs = {"torch": torch.__version__, "numpy": np.__version__, "detectron2": detectron2.__version__}
        where = {"device": cfg.MODEL.DEVICE, "threads": torch.get_num_threads()}
        write(args.output, weights, {**made, "batch_size": BATCH_SIZE, **report, **where, "programs": programs})
    except SSTError as error:
        report_user_error(error)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was written.", file=sys.stderr)
        return 130
    rows = [
        [name, *(entry[key] for key in ("classes", "accuracy", "majority"))]
        for name, entry in report["attributes"].items()
    ]
    print(tabulate(rows, headers=["attribute", "classes", "accuracy", "commonest class"], floatfmt=".3f"))
    spent = report["seconds"]
    print(f"{args.output}: {len(weights)} tensors; drawing took {spent['drawing']} s, training {spent['training']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
