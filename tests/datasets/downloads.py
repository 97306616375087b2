"""Small downloads in the layouts that are handed round, and the scripts that prepare them, for the tests."""

import importlib
import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
sys.path[:] = [str(DATASETS), *(path for path in sys.path if path != str(DATASETS))]


def script(name):
    """A script of datasets/, imported as the command line does."""
    return importlib.import_module(name)


def write_photo(path, size=(6, 8), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(sum(path.name.encode())).integers(256, size=(*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG", **options)


def write_labels(path, ids=(0, 1, 2), size=(6, 8), palette=False):
    """An index PNG, rows of ids in turn."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.resize(np.array(ids, np.uint8), size[0])
    image = Image.fromarray(np.repeat(rows[:, None], size[1], axis=1))
    if palette:
        image.putpalette([255 - value for value in range(256) for _ in range(3)])
    image.save(path)


def write_pairs(images, labels, names, ending=".jpg", **options):
    for name in names:
        write_photo(images / f"{name}{ending}", options.get("size", (6, 8)))
        write_labels(labels / f"{name}.png", **options)


def write_cihp(root, train=("0000006", "0000007", "0000008"), val=("0000001", "0000003")):
    """The tree of CIHP's download."""
    for name, ids in (("Training", train), ("Validation", val)):
        write_pairs(root / name / "Images", root / name / "Category_ids", ids)
    return root


def contents(folder):
    """Path -> content and time of every file and link below a folder."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes(),
            path.lstat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def read_list(output, split):
    return (output / "ids" / f"{split}.txt").read_text().splitlines()


def label_of(output, name):
    return np.array(Image.open(output / "labels" / f"{name}.png"))
