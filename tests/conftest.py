"""Small data sets, networks and configurations for the tests; all on the CPU, all in temporary folders."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import sst_d2  # noqa: F401  (registers)
from sst_d2.config import add_sst_config, get_config_file
from sst_d2.data import cards
from sst_d2.label_domains import get_label_domain, registry

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = ("pascal_person_part", "atr", "cihp")


@pytest.fixture(autouse=True)
def _forget_registered():
    """Give the catalogs back as they were, and keep torch to one thread: tests run side by side."""
    torch.set_num_threads(1)
    names, known, domains = set(DatasetCatalog.list()), dict(cards._registered), dict(registry._registered)
    yield
    for name, card in known.items():
        if cards._registered.get(name) != card:  # a built-in card that a test has replaced
            DatasetCatalog.remove(name)
            DatasetCatalog.register(name, card.load)
    for name in set(DatasetCatalog.list()) - names:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
    cards._registered.clear()
    cards._registered.update(known)
    registry._registered.clear()
    registry._registered.update(domains)


@pytest.fixture
def make_dataset(tmp_path):
    """A function that writes a small data set, with its card, and returns the card's path."""

    def make(name, /, domain="atr", count=4, size=(40, 48), seed=0, **card_fields):
        folder = tmp_path / name
        (folder / "images").mkdir(parents=True)
        (folder / "labels").mkdir()
        generator = np.random.default_rng(seed)
        num_classes = get_label_domain(domain).num_classes
        ids = [f"{name}_{number}" for number in range(count)]
        for identifier in ids:
            # Class and colour go together, so that a few steps of training have something to learn.
            labels = generator.integers(num_classes, size=(size[0] // 8, size[1] // 8)).repeat(8, 0).repeat(8, 1)
            image = np.stack([labels * 12, 255 - labels * 12, np.full_like(labels, 90)], axis=-1).astype(np.uint8)
            Image.fromarray(image).save(folder / "images" / f"{identifier}.png")
            Image.fromarray(labels.astype(np.uint8)).save(folder / "labels" / f"{identifier}.png")
        (folder / "ids.txt").write_text("\n".join(ids) + "\n\n")
        card = {"name": name, "label_domain": domain, "images": "images/{id}.png", "labels": "labels/{id}.png"}
        card.update({"ids": "ids.txt", **card_fields})
        path = folder / "card.yaml"
        path.write_text(yaml.safe_dump(card))
        return path

    return make


def tiny_cfg(domains=DOMAINS, **overrides):
    """The smallest network of ours, on the CPU; overrides as ``SOLVER__MAX_ITER=3``."""
    cfg = get_cfg()
    add_sst_config(cfg)
    cfg.merge_from_file(get_config_file("quick_schedules/Base-tiny.yaml"), allow_unsafe=False)
    small = [
        # Group norm: of one image of one pixel at stride 32, batch norm could make nothing.
        *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.NORM", "GN", "SOLVER.WARMUP_ITERS", 0),
        *("MODEL.SST.DECODER.DIM", 32, "MODEL.SST.DECODER.HEADS", 2, "MODEL.SST.DECODER.BLOCKS", [1, 1, 2]),
        *("MODEL.SST.PIXEL_DECODER.LAYERS", 1, "MODEL.SST.PIXEL_DECODER.FFN_DIM", 32, "INPUT.SST.CROP_SIZE", [32, 32]),
        *("MODEL.SST.DECODER.WINDOW", 4, "DATALOADER.NUM_WORKERS", 0, "MODEL.SST.DOMAINS", list(domains)),
    ]
    cfg.merge_from_list(small)
    cfg.merge_from_list([item for key, value in overrides.items() for item in (key.replace("__", "."), value)])
    return cfg


@pytest.fixture
def real_data(monkeypatch):
    """The folder of real photos; tests that need it are skipped where it is absent."""
    beside = ROOT.parent / "shared" / "realdata"
    folder = os.environ.get("SST_REAL_DATA") or (str(beside) if beside.is_dir() else "")
    if not folder:
        pytest.skip("real photos: SST_REAL_DATA is not set")
    monkeypatch.setenv("SST_REAL_DATA", folder)
    return Path(folder)
