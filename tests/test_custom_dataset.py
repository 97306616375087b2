"""docs/CUSTOM_DATASET.md from its first command to its last, with a label system that nobody has had before."""

import numpy as np
import pytest
from conftest import ROOT
from doc_blocks import Desk, blocks_of, make_people
from PIL import Image, ImageDraw

from sst_d2 import SSTPredictor
from sst_d2.data import read_label_map
from sst_d2.label_domains import LabelDomain, cross_similarity, get_label_domain, load_label_domain

DOCUMENT = "docs/CUSTOM_DATASET.md"
# What stands where on a worker of 64 x 64 pixels, in the order of drawing: (class, box, colour).
WORKER = [
    ("trousers", (24, 36, 40, 56), (40, 60, 120)),
    ("left-boot", (33, 54, 41, 60), (90, 60, 30)),
    ("right-boot", (23, 54, 31, 60), (90, 60, 30)),
    ("vest", (22, 20, 42, 38), (240, 140, 20)),
    ("tool-belt", (22, 35, 42, 39), (60, 40, 20)),
    ("face", (27, 11, 37, 20), (220, 180, 150)),
    ("helmet", (26, 5, 38, 11), (250, 220, 0)),
]


def draw_workers(folder, classes, count=10):
    """Photos and masks of workers, each a little aside."""
    random = np.random.default_rng(0)
    for kind in ("photos", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(1, count + 1):
        photo = Image.fromarray(random.integers(60, 110, (64, 64, 3), dtype=np.uint8))
        mask = Image.new("L", (64, 64))
        right, down = random.integers(-8, 9, 2)
        for name, (x0, y0, x1, y1), colour in WORKER:
            box = (x0 + right, y0 + down, x1 + right, y1 + down)
            ImageDraw.Draw(photo).rectangle(box, colour)
            ImageDraw.Draw(mask).rectangle(box, classes.index(name))
        photo.save(folder / f"photos/{number:04d}.jpg", quality=92)
        mask.save(folder / f"masks/{number:04d}.png")


@pytest.fixture
def workwear(tmp_path) -> LabelDomain:
    """The label system that the document writes."""
    block = next(block for block in blocks_of(DOCUMENT) if (block.file or "").endswith("workwear.yaml"))
    (tmp_path / "workwear.yaml").write_text(block.text)
    return load_label_domain(tmp_path / "workwear.yaml")


def test_the_label_system_of_the_document_is_new_and_resembles_the_built_in_ones(workwear):
    cihp = get_label_domain("cihp")
    assert not set(workwear.classes) & set(cihp.classes) - {"background", "face"}
    most_similar = cross_similarity(workwear, cihp).argmax(0)
    like = {name: cihp.classes[place] for name, place in zip(workwear.classes, most_similar)}
    assert like["helmet"] == "hat" and like["trousers"] == "pants" and like["left-boot"] == "left-shoe"
    assert set(workwear.classes) == {"background", *(name for name, _, _ in WORKER)}


def test_the_user_writes_two_files_and_no_python_to_train():
    blocks = blocks_of(DOCUMENT)
    assert sorted(block.file for block in blocks if block.file) == ["my_people/card.yaml", "my_people/workwear.yaml"]
    python = [place for place, block in enumerate(blocks) if block.language == "python"]
    assert python == [len(blocks) - 1] and "SSTPredictor" in blocks[-1].text
    assert "python -c" not in (ROOT / DOCUMENT).read_text()


@pytest.mark.slow
def test_the_document_from_the_first_command_to_the_last(tmp_path, workwear):
    make_people(tmp_path / "people")
    desk = Desk(tmp_path / "desk", tmp_path / "people")
    draw_workers(desk.checkout / "my_people", workwear.classes)
    desk.type(DOCUMENT)

    run, parsed = desk.checkout / "output/my_people", desk.checkout / "my_people/parsed"
    assert "loss_scr_image/workwear-cihp" in (run / "metrics.json").read_text()
    for name in ("my_people_val", "synthetic_cihp_sem_seg_val"):
        assert (run / f"inference/{name}/sem_seg_evaluation.json").is_file()
    photos = sorted(path.stem for path in (desk.checkout / "my_people/photos").iterdir())
    predictor = SSTPredictor(run / "model_inference.pth")
    assert list(predictor.domains) == ["workwear", "cihp"] and predictor.domains["workwear"] == workwear
    for name, domain in predictor.domains.items():
        assert sorted(path.stem for path in (parsed / f"overlay/{name}").iterdir()) == photos
        for stem in photos:
            labels = read_label_map(parsed / f"labels/{name}/{stem}.png", domain, (64, 64))
            assert np.array_equal(labels, predictor(desk.checkout / f"my_people/photos/{stem}.jpg", name).labels)
    saved = read_label_map(desk.checkout / "0001_workwear.png", workwear)
    assert np.array_equal(saved, read_label_map(parsed / "labels/workwear/0001.png", workwear))
    pictures = {path.name for path in (desk.checkout / "my_people/pictures").rglob("*.png")}
    assert {"m_static_workwear-cihp.png", "confusion_my_people_val.png"} <= pictures
