"""`tools/score_predictions.py`: the evaluator's numbers from a folder of PNGs; a sentence for what cannot be scored."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from sst_d2.data import register_dataset_card
from sst_d2.data.label_io import read_label_map
from sst_d2.errors import DatasetCardError, SSTDataError
from sst_d2.evaluation import SSTSemSegEvaluator
from sst_d2.label_domains import get_label_domain
from sst_d2.score_tables import ALL_CLASSES, UNION

spec = importlib.util.spec_from_file_location("score_predictions", ROOT / "tools/score_predictions.py")
score_predictions = importlib.util.module_from_spec(spec)
spec.loader.exec_module(score_predictions)


@pytest.fixture
def card(make_dataset):
    """The card of five images in ATR's label system, one pixel of each without a label."""
    card = make_dataset("toy", count=5)
    for path in (card.parent / "labels").iterdir():
        labels = np.array(Image.open(path))
        labels[0, 0] = 255
        Image.fromarray(labels).save(path)
    return card


@pytest.fixture
def predictions(card, tmp_path):
    """A folder of predictions for `card`: classes below 12, so that some are absent."""
    return write_predictions(card, tmp_path / "predictions")


def write_predictions(card, folder, ending=".png", palette=False):
    folder.mkdir()
    for number, path in enumerate(sorted((card.parent / "labels").iterdir())):
        labels = np.minimum(np.array(Image.open(path)), 11)
        labels[:, number::5] = number
        image = Image.fromarray(labels)
        if palette:
            image.putpalette(list(range(255, -1, -1)) * 3)
        image.save(folder / f"{path.stem}{ending}")
    return folder


def run(monkeypatch, folder, dataset, *arguments):
    command = ["score_predictions.py", "--predictions", str(folder), "--dataset", str(dataset), "--workers", "1"]
    monkeypatch.setattr("sys.argv", [*command, *arguments])
    score_predictions.main()


def scored(monkeypatch, tmp_path, folder, dataset, *arguments):
    run(monkeypatch, folder, dataset, "--json", str(tmp_path / "scores.json"), *arguments)
    return json.loads((tmp_path / "scores.json").read_text(), parse_constant=lambda word: pytest.fail(word))


def by_hand(card, folder):
    """The confusion matrix, pixel by pixel."""
    matrix = [[0] * 18 for _ in range(18)]
    for path in (card.parent / "labels").iterdir():
        guesses = np.array(Image.open(folder / path.name)).ravel().tolist()
        for truth, guess in zip(np.array(Image.open(path)).ravel().tolist(), guesses, strict=True):
            if truth != 255:
                matrix[truth][guess] += 1
    return matrix


def test_every_pixel_is_counted_and_all_definitions_are_printed(card, predictions, tmp_path, monkeypatch, capsys):
    record = scored(monkeypatch, tmp_path, predictions, card)
    printed = capsys.readouterr().out
    matrix = by_hand(card, predictions)
    assert record["confusion_matrix"] == matrix and record["images"] == 5
    total, hits = sum(map(sum, matrix)), sum(matrix[k][k] for k in range(18))
    assert record["pACC"] == pytest.approx(100 * hits / total)
    union = sum(matrix[4]) + sum(row[4] for row in matrix) - matrix[4][4]
    assert record["IoU"]["upper-clothes"] == pytest.approx(100 * matrix[4][4] / union)
    assert record["definitions"][ALL_CLASSES]["mIoU"] < 100 * 12 / 18
    for values in record["definitions"].values():
        row = next(line for line in printed.splitlines() if line.startswith(f"| {values['as_in']} "))
        assert [cell.strip() for cell in row.split("|")[3:5]] == [f"{values[key]:.2f}" for key in ("mIoU", "mACC")]
    assert f"pixel accuracy {record['pACC']:.2f}, frequency weighted IoU {record['fwIoU']:.2f}" in printed
    assert sum(line.startswith("| ") for line in printed.splitlines()) == 1 + 18 + 1 + 3


def test_the_evaluators_saved_predictions_give_the_evaluators_own_numbers(card, tmp_path, monkeypatch):
    (name,) = register_dataset_card(card)
    evaluator = SSTSemSegEvaluator(name, distributed=False, output_dir=tmp_path / "out", save_predictions=True)
    generator = torch.Generator().manual_seed(0)
    for sample in score_predictions.open_data_set(str(card), None).samples:
        logits = torch.randn(18, 40, 48, generator=generator)
        logits[12:] = -9
        evaluator.process([sample], [{"sem_seg": logits}])
    expected = evaluator.evaluate()["sem_seg"]
    record = scored(monkeypatch, tmp_path, tmp_path / "out" / "predictions", card)
    ours = {**record["definitions"][UNION], "pACC": record["pACC"], "fwIoU": record["fwIoU"]}
    for key in ("IoU", "ACC"):
        ours |= {f"{key}-{label}": np.nan if v is None else v for label, v in record[key].items()}
    del ours["mean_over"], ours["as_in"]
    assert set(ours) == set(expected)
    for key, value in expected.items():
        np.testing.assert_equal(ours[key], value, err_msg=key)  # exactly


def test_palette_images_other_endings_and_subfolders(card, predictions, tmp_path, monkeypatch):
    expected = scored(monkeypatch, tmp_path, predictions, card)["confusion_matrix"]
    palette = write_predictions(card, tmp_path / "palette", palette=True)
    assert Image.open(next(palette.iterdir())).mode == "P"
    assert scored(monkeypatch, tmp_path, palette, card)["confusion_matrix"] == expected
    grey = write_predictions(card, tmp_path / "grey", ending="_gray.png")
    assert scored(monkeypatch, tmp_path, grey, card, "--suffix", "_gray.png")["confusion_matrix"] == expected
    for folder in (card.parent / "images", card.parent / "labels", predictions):
        (folder / "sub").mkdir()
        for path in list(folder.glob("*.png")):
            path.rename(folder / "sub" / path.name)
    (card.parent / "ids.txt").write_text("".join(f"sub/toy_{number}\n" for number in range(5)))
    assert scored(monkeypatch, tmp_path, predictions, card)["confusion_matrix"] == expected


def test_several_processes_count_what_one_counts_and_report_errors_as_one_does(card, predictions, monkeypatch):
    data_set = score_predictions.open_data_set(str(card), None)
    counts = score_predictions.Counts(data_set.samples, data_set.domain, predictions, ".png")
    alone = score_predictions.count_all(counts, 1)
    assert np.array_equal(score_predictions.count_all(counts, 2), alone) and alone.sum() == 5 * (40 * 48 - 1)
    (predictions / "toy_3.png").write_bytes(b"")
    for workers in (1, 2):
        with pytest.raises(
            SSTDataError, match=r"^prediction .*toy_3\.png: is no image file that Pillow can open, or an empty one$"
        ):
            score_predictions.count_all(counts, workers)


def test_label_maps_go_through_the_cards_remap_table_and_predictions_do_not(card, tmp_path, monkeypatch):
    folder = write_predictions(card, tmp_path / "predictions")
    expected = scored(monkeypatch, tmp_path, folder, card)["confusion_matrix"]
    for path in (card.parent / "labels").iterdir():
        labels = read_label_map(path, get_label_domain("atr"))
        Image.fromarray(np.where(labels == 255, 0, labels + 100).astype(np.uint8)).save(path)
    table = "".join(f"  {identifier + 100}: {identifier}\n" for identifier in range(18))
    remapped = card.with_name("remapped.yaml")
    remapped.write_text(f"{card.read_text()}remap:\n  0: 255\n{table}")
    assert scored(monkeypatch, tmp_path, folder, remapped)["confusion_matrix"] == expected


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("L", (48, 41)), r"has 41 x 48 pixels \(height x width\) and its label map 40 x 48; .*resize logits"),
        (Image.new("L", (48, 40), 18), r"holds the ids \[18\]; .*'atr' has a class, 0 to 17, .*tools/remap_labels\.py"),
        (Image.new("L", (48, 40), 255), r"holds the ids \[255\]; .* for every pixel"),
        (Image.new("RGB", (48, 40)), "mode RGB; allowed are one-channel"),
        (Image.new("I;16", (48, 40)), "mode I"),
    ],
)
def test_a_prediction_that_cannot_be_scored_is_refused_by_name(card, predictions, monkeypatch, image, message):
    image.save(predictions / "toy_2.png")
    with pytest.raises(SSTDataError, match=rf"^prediction {predictions}/toy_2\.png: .*{message}"):
        run(monkeypatch, predictions, card)


def test_colours_beside_ids_are_told_apart_by_their_names(card, tmp_path, monkeypatch):
    folder = write_predictions(card, tmp_path / "graphonomy", ending="_gray.png")
    with pytest.raises(
        SSTDataError, match=r"5 of the 5 .* missing: toy_0\.png.* There is toy_0_gray\.png: --suffix _gr"
    ):
        run(monkeypatch, folder, card)
    for path in list(folder.iterdir()):
        Image.new("RGB", (48, 40)).save(folder / path.name.replace("_gray", ""))
    with pytest.raises(SSTDataError, match=r"toy_0\.png: .*mode RGB.*There is toy_0_gray\.png: --suffix _gray\.png"):
        run(monkeypatch, folder, card)


def test_missing_predictions_are_refused_unless_a_part_is_asked_for(card, predictions, tmp_path, monkeypatch, capsys):
    for number in (1, 3):
        (predictions / f"toy_{number}.png").unlink()
    message = r"2 of the 5 predictions for 'toy' are missing: toy_1\.png, toy_3\.png\. .*--allow-missing"
    with pytest.raises(SSTDataError, match=message):
        run(monkeypatch, predictions, card)
    record = scored(monkeypatch, tmp_path, predictions, card, "--allow-missing")
    assert (record["images"], record["missing_predictions"]) == (3, 2)
    assert "Not comparable: 2 of 5 predictions are missing." in capsys.readouterr().out
    for path in predictions.iterdir():
        path.unlink()
    with pytest.raises(SSTDataError, match=r"5 of the 5 .*toy_2\.png …\. A prediction is named after its image's id"):
        run(monkeypatch, predictions, card, "--allow-missing")
    with pytest.raises(SSTDataError, match="there is no folder .*nowhere"):
        run(monkeypatch, tmp_path / "nowhere", card)


def test_a_data_set_is_a_name_or_a_card_and_a_card_with_several_needs_a_choice(
    card, predictions, tmp_path, monkeypatch
):
    with pytest.raises(DatasetCardError, match="'nothing' is no data set that is known by name"):
        run(monkeypatch, predictions, "nothing")
    splits = card.with_name("splits.yaml")
    splits.write_text(card.read_text().replace("name: toy", "name: toy_{split}\nsplits: [train, val]"))
    with pytest.raises(
        DatasetCardError, match=r"holds several data sets; choose one of: toy_train, toy_val \(--name\)"
    ):
        run(monkeypatch, predictions, splits)
    with pytest.raises(DatasetCardError, match="has no data set 'toy'; choose one of"):
        run(monkeypatch, predictions, splits, "--name", "toy")
    assert scored(monkeypatch, tmp_path, predictions, splits, "--name", "toy_val")["dataset"] == "toy_val"
    (card.parent / "ids.txt").unlink()
    with pytest.raises(DatasetCardError, match="its list of ids .* cannot be read"):
        run(monkeypatch, predictions, card)


def test_wrong_arguments_are_said_before_the_work(card, predictions, tmp_path, monkeypatch, capsys):
    for option, value in (("--json", str(tmp_path / "no" / "x.json")), ("--workers", "0")):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, predictions, card, option, value)
        error = capsys.readouterr().err
        assert end.value.code == 2 and option in error.splitlines()[-1] and value in error.splitlines()[-1]
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(SSTDataError, match=r"--json: .*folder\.json cannot be written"):
        run(monkeypatch, predictions, card, "--json", str(tmp_path / "folder.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.json", "predictions", "toy"]


@pytest.mark.slow
def test_the_command_prints_one_sentence_and_ends_with_1(card, predictions):
    (predictions / "toy_4.png").write_bytes((predictions / "toy_4.png").read_bytes()[:60])
    command = [sys.executable, str(ROOT / "tools/score_predictions.py"), "--predictions", str(predictions)]
    result = subprocess.run(
        [*command, "--dataset", str(card)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr and result.stdout == ""
    assert result.stderr.startswith(f"error: prediction {predictions}/toy_4.png: ")
