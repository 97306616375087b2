"""The demo as a module, a small network and photos for its tests."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2.checkpoint import SSTCheckpointer

spec = importlib.util.spec_from_file_location("demo", ROOT / "demo/demo.py")
demo = importlib.util.module_from_spec(spec)
spec.loader.exec_module(demo)

SCRIPT = [sys.executable, str(ROOT / "demo/demo.py")]


def patches(height=40, width=33, seed=0):
    generator = np.random.default_rng(seed)
    coarse = generator.integers(256, size=(-(-height // 8), -(-width // 8), 3))
    return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    cfg = tiny_cfg()
    torch.manual_seed(0)
    model = build_model(cfg)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    folder = tmp_path_factory.mktemp("training")
    SSTCheckpointer(model, str(folder), config=cfg.dump()).save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder / "model_final.pth")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        Image.fromarray(patches(seed=seed)).save(folder / name)
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(weights, out):
    def call(*arguments):
        return demo.main(["--weights", weights, "--output", str(out), *map(str, arguments)])

    return call


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*") if path.is_file())


def picture(path):
    return np.asarray(Image.open(path))


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
