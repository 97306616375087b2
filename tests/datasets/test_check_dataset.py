"""The checker: a line with the path for every fault, true counts, the right exit status, whatever the workers."""

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from sst_d2.data.inspection import KINDS
from sst_d2.label_domains import get_label_domain

SCRIPT = ROOT / "datasets" / "check_dataset.py"


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SCRIPT.parent))
        yield importlib.import_module("check_dataset")


@pytest.fixture
def check(command, capsys):
    """Runs the command in this process: (exit status, lines of output)."""

    def run(*arguments, workers=1):
        status = command.main([*map(str, arguments), "--workers", str(workers)])
        return status, capsys.readouterr().out.splitlines()

    return run


def truth(folder, num_classes):
    """Images and pixels per class, by plain loops over the files."""
    images, pixels = [0] * num_classes, [0] * num_classes
    for path in (folder / "labels").iterdir():
        values = Image.open(path).tobytes()
        for identifier in range(num_classes):
            images[identifier] += identifier in values
            pixels[identifier] += values.count(identifier)
    return images, pixels


def test_a_sound_data_set_gives_its_true_table_and_status_0(check, make_dataset):
    card = make_dataset("toy", count=5)
    status, lines = check(card)
    images, pixels = truth(card.parent, 18)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|  ")]
    expected = [
        [str(i), name, str(images[i]), str(pixels[i]), f"{pixels[i] / sum(pixels):.3%}"]
        for i, name in enumerate(get_label_domain("atr").classes)
    ]
    assert status == 0 and rows[1:] == expected
    assert not [line for line in lines if line.startswith(("error", "warning"))]
    assert lines[-1].startswith("1 data set(s), 5 images in ") and lines[-1].endswith(": 0 error(s), 0 warning(s)")


def test_every_fault_is_a_line_with_its_path_and_the_status_is_1(check, make_dataset):
    folder = make_dataset("toy", count=6).parent
    images, labels = folder / "images", folder / "labels"
    (images / "toy_0.png").unlink()
    (labels / "toy_1.png").write_bytes((labels / "toy_1.png").read_bytes()[:-20])
    Image.fromarray(np.full((40, 48), 33, np.uint8)).save(labels / "toy_2.png")
    Image.fromarray(np.zeros((40, 47), np.uint8)).save(labels / "toy_3.png")
    Image.new("RGB", (48, 40)).save(labels / "toy_4.png")
    (labels / "toy_5.png").unlink()
    status, lines = check(folder / "card.yaml")
    found = [line.split(": ")[0] for line in lines if line.startswith("error")]
    assert status == 1 and found == [
        f"error  missing_image  {images}/toy_0.png",
        f"error  damaged  {labels}/toy_1.png",
        f"error  ids  {labels}/toy_2.png",
        f"error  size_mismatch  {labels}/toy_3.png",
        f"error  wrong_mode  {labels}/toy_4.png",
        f"error  missing_label  {labels}/toy_5.png",
    ]


def test_two_workers_say_the_same_as_one(check, make_dataset):
    card = make_dataset("toy", count=70)
    for number in (3, 40, 69):
        (card.parent / "labels" / f"toy_{number}.png").write_bytes(b"")
    one, two = check(card), check(card, workers=2)
    assert one[0] == two[0] == 1 and one[1][:-1] == two[1][:-1]


def test_json_says_the_same_as_the_lines(check, make_dataset):
    card = make_dataset("toy", count=3)
    (card.parent / "labels" / "toy_1.png").unlink()
    status, lines = check(card, "--json")
    report = json.loads("\n".join(lines))
    assert status == 1 and (report["errors"], report["warnings"], report["images"]) == (1, 0, 3)
    (data_set,) = report["data_sets"]
    images, pixels = truth(card.parent, 18)
    assert [row["images"] for row in data_set["classes"]] == images
    assert [row["pixels"] for row in data_set["classes"]] == pixels
    (finding,) = data_set["findings"]
    assert (finding["severity"], finding["kind"]) == ("error", "missing_label") and finding["kind"] in KINDS
    assert finding["path"] == str(card.parent / "labels" / "toy_1.png")


def test_only_so_many_lines_are_printed_and_the_rest_is_counted(check, make_dataset):
    card = make_dataset("toy", count=8)
    shutil.rmtree(card.parent / "labels")
    _, lines = check(card, "--limit-lines", 3)
    assert len([line for line in lines if line.startswith("error")]) == 3
    assert lines[3] == "… and 5 more; --limit-lines 8 shows all" and lines[-1].endswith("8 error(s), 0 warning(s)")


def test_lists_of_ids_are_looked_at(check, make_dataset):
    folder = make_dataset("toy", count=5, splits=["a", "b"], name="toy_{split}", ids="{split}.txt").parent
    (folder / "a.txt").write_text("toy_0\ntoy_1\ntoy_0\n")
    (folder / "b.txt").write_text("toy_2\ntoy_1\n")
    Image.new("RGB", (9, 9)).save(folder / "images" / "notes.jpg")  # another ending than the listed ones
    status, lines = check(folder / "card.yaml")
    assert status == 1 and lines[:4] == [
        f"error  listed_twice  {folder}/a.txt: 1 ids stand more than once: toy_0",
        f"warning  two_splits  {folder}/card.yaml: 1 images are in 'toy_a' and in 'toy_b': {folder}/images/toy_1.png",
        f"warning  unlisted  {folder}/images: 2 files that no list of ids names: toy_3.png, toy_4.png",
        f"warning  unlisted  {folder}/labels: 2 files that no list of ids names: toy_3.png, toy_4.png",
    ]
    assert "toy_a, label domain 'atr', 2 images" in lines and "toy_b, label domain 'atr', 2 images" in lines


def test_a_missing_list_is_an_error_and_the_other_split_is_still_read(check, make_dataset):
    folder = make_dataset("toy", count=2, splits=["a", "b"], name="toy_{split}", ids="{split}.txt").parent
    (folder / "b.txt").write_text("toy_0\n")
    status, lines = check(folder / "card.yaml")
    assert status == 1 and lines[0].startswith(f"error  card  {folder}/card.yaml: data set 'toy_a': its list of ids")
    assert "toy_b, label domain 'atr', 1 images" in lines and not [line for line in lines if "unlisted" in line]


def test_a_remap_is_followed(check, make_dataset):
    card = make_dataset("toy", count=2, remap={i: (0 if i else 255) for i in range(18)})
    status, lines = check(card)
    _, pixels = truth(card.parent, 18)
    ignored = next(line for line in lines if "(ignore)" in line)
    assert status == 0 and int(ignored.split("|")[4]) == pixels[0]
    card.write_text(card.read_text().replace("  17: 0\n", ""))
    lines = check(card)[1]  # that other domains have an id 17 explains nothing here
    assert any(line.startswith("error  ids") for line in lines) and not any("warning" in line for line in lines[:-1])


def test_photos_of_other_modes_are_counted_and_pillows_warnings_kept_back(check, make_dataset, monkeypatch, recwarn):
    card = make_dataset("toy", count=40)
    for number in (0, 39):
        path = card.parent / "images" / f"toy_{number}.png"
        Image.open(path).convert("L").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 48 - 1)
    recwarn.clear()
    status, lines = check(card)
    assert status == 0 and "toy, label domain 'atr', 40 images (photos that become RGB: 2 L)" in lines
    assert not recwarn.list


def test_ids_of_another_domain_and_shifted_ids_are_explained(check, make_dataset):
    card = make_dataset("toy", domain="cihp", count=3)
    card.write_text(card.read_text().replace("label_domain: cihp", "label_domain: pascal_person_part"))
    _, lines = check(card)
    assert any(line.startswith(f"warning  ids  {card}: ") and "ids of cihp and of lip" in line for line in lines)
    for path in (card.parent / "labels").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) % 7 + 1).astype(np.uint8)).save(path)
    assert any("seem to begin at 1" in line for line in check(card)[1])


def test_a_data_set_whose_labels_are_upside_down_gets_a_warning_and_status_0(check, tmp_path):
    domain = get_label_domain("cihp")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    labels = np.repeat([domain.index(name) for name in ("left-shoe", "pants", "upper-clothes", "face")], 5)
    for number in range(12):
        Image.new("RGB", (8, 20)).save(tmp_path / "images" / f"{number}.jpg")
        Image.fromarray(labels[:, None].repeat(8, 1).astype(np.uint8)).save(tmp_path / "labels" / f"{number}.png")
    card = {"name": "x", "label_domain": "cihp", "images": "images/{id}.jpg", "labels": "labels/{id}.png"}
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    status, lines = check(tmp_path / "card.yaml")
    assert status == 0 and lines[0].startswith(f"warning  order  {tmp_path}/card.yaml: data set 'x': head (hat, hair")
    assert "in 12 of 12 images" in lines[0]


def test_names_of_built_in_data_sets_work(check, make_dataset, monkeypatch):
    folder = make_dataset("atr", count=2).parent
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    for path in (folder / "images").iterdir():
        Image.open(path).save(path.with_suffix(".jpg"))
    (folder / "ids").mkdir()
    shutil.copy(folder / "ids.txt", folder / "ids" / "val.txt")
    status, lines = check("atr_sem_seg_val")
    assert status == 0 and "atr_sem_seg_val, label domain 'atr', 2 images" in lines


@pytest.mark.parametrize("reference", ["no_such_set", "no_such_card.yaml"])
def test_unknown_names_and_absent_cards_are_an_error_in_one_line(command, capsys, reference):
    assert command.main([reference]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and reference in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [[], ["x.yaml", "--workers", "0"], ["x.yaml", "--limit-lines", "-1"]])
def test_wrong_arguments_end_with_status_2(command, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 2 and "usage:" in capsys.readouterr().err


def test_a_dead_worker_and_ctrl_c_end_the_command_with_a_sentence(command, make_dataset, capsys, monkeypatch):
    card = str(make_dataset("toy", count=70))

    def die(*_):
        os.kill(os.getpid(), signal.SIGKILL)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "ProcessPoolExecutor", partial(ProcessPoolExecutor, mp_context=get_context("fork")))
    monkeypatch.setattr(command, "take_census", die)
    assert command.main([card, "--workers", "2"]) == 1
    assert "error: a worker ended early" in capsys.readouterr().err
    monkeypatch.setattr(command, "take_census", interrupt)
    assert command.main([card, "--workers", "1"]) == 130 and "Interrupted" in capsys.readouterr().err


@pytest.mark.slow
def test_who_reads_only_the_first_lines_gets_no_traceback(make_dataset):
    card = make_dataset("toy", count=2)
    line = f"{sys.executable} {SCRIPT} {card} --workers 1 | true"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(line, shell=True, capture_output=True, text=True, env=environment)
    assert "Traceback" not in run.stderr and "BrokenPipe" not in run.stderr


@pytest.mark.slow
def test_the_real_data_sets_of_the_test_cards_are_sound(check, real_data):
    status, lines = check(*sorted((ROOT / "tests" / "cards").glob("*.yaml")), workers=2)
    assert status == 0 and lines[-1].endswith("0 error(s), 0 warning(s)")
