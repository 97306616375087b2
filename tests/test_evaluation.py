"""Promises of `sst_d2.evaluation`: exact counts, one definition of mIoU, refusals with reasons, several processes."""

from __future__ import annotations

import json
import logging
import math
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, SemSegEvaluator, inference_on_dataset
from detectron2.utils import comm
from PIL import Image

import sst_d2.evaluation as evaluation
from sst_d2.data.label_io import read_label_map
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.evaluation import SSTSemSegEvaluator, confusion_matrix, scores_from_confusion
from sst_d2.label_domains import get_label_domain
from sst_d2.launch import launch

PASCAL = get_label_domain("pascal_person_part")
K, IGNORE = PASCAL.num_classes, PASCAL.ignore_label


@pytest.fixture
def register(tmp_path):
    """Registers label maps as a data set of one domain; gives (name, dataset dicts); cleans the catalogs up."""
    names = []

    def make(label_maps, domain=PASCAL, **extra):
        name = f"test_evaluation_{uuid.uuid4().hex}"
        records = []
        for i, labels in enumerate(label_maps):
            path = tmp_path / f"{name}_{i}.png"
            Image.fromarray(labels.astype(np.uint8)).save(path)
            height, width = labels.shape
            records.append(
                {"file_name": f"{i}.jpg", "sem_seg_file_name": str(path), "image_id": f"image_{i}"}
                | {"height": height, "width": width, "label_domain": domain.name}
                | extra
            )
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(
            label_domain=domain.name, stuff_classes=list(domain.classes), ignore_label=domain.ignore_label
        )
        names.append(name)
        return name, records

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def logits_for(prediction, num_classes=K, seed=0):
    """Random (K, H, W) logits whose largest entry is at ``prediction``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((num_classes, *prediction.shape), generator=generator).clamp(-4, 4)
    index = torch.as_tensor(prediction.astype(np.int64))[None]
    return logits.scatter(0, index, torch.full(index.shape, 5.0))


def random_maps(count, low=0, high=K, ignore=0.1, seed=0):
    rng = np.random.default_rng(seed)
    maps = [rng.integers(low, high, (9 + i, 13)) for i in range(count)]
    return [np.where(rng.random(m.shape) < ignore, IGNORE, m) for m in maps]


def brute_force(pairs, classes):
    """The definition in plain Python: one count per pixel, one fraction per class."""
    n = len(classes)
    hits, truths, guesses = [0] * n, [0] * n, [0] * n
    for guess_map, truth_map in pairs:
        for guess, truth in zip(guess_map.ravel().tolist(), truth_map.ravel().tolist(), strict=True):
            if truth != IGNORE:
                truths[truth] += 1
                guesses[guess] += 1
                hits[truth] += guess == truth
    nan, total = float("nan"), sum(truths)
    iou = [hits[c] / (truths[c] + guesses[c] - hits[c]) if truths[c] + guesses[c] else nan for c in range(n)]
    acc = [hits[c] / truths[c] if truths[c] else nan for c in range(n)]
    known_iou = [v for v in iou if v == v]
    known_acc = [v for v in acc if v == v]
    result = {
        "mIoU": sum(known_iou) / len(known_iou) if known_iou else nan,
        "fwIoU": sum(iou[c] * truths[c] / total for c in range(n) if truths[c]) if total else nan,
        "mACC": sum(known_acc) / len(known_acc) if known_acc else nan,
        "pACC": sum(hits) / total if total else nan,
    }
    result.update({f"IoU-{name}": iou[c] for c, name in enumerate(classes)})
    result.update({f"ACC-{name}": acc[c] for c, name in enumerate(classes)})
    return {name: 100 * value for name, value in result.items()}


def evaluate(name, records, predictions, **options):
    evaluator = SSTSemSegEvaluator(name, distributed=False, **options)
    for i, (record, prediction) in enumerate(zip(records, predictions, strict=True)):
        evaluator.process([record], [{"sem_seg": logits_for(prediction, seed=i)}])
    return evaluator.evaluate()["sem_seg"]


@pytest.mark.parametrize(
    "case",
    [
        {"truth": {}, "guess": {"high": K}},
        {"truth": {"high": 4}, "guess": {"high": 4}},  # classes that occur nowhere
        {"truth": {"high": 3}, "guess": {"low": 2, "high": 6}},  # predicted but absent, and never predicted
        {"truth": {"ignore": 1.0}, "guess": {}},
        {"truth": {"ignore": 0.0}, "guess": {"high": 1}},
    ],
)
def test_equals_brute_force(register, case):
    truths = random_maps(3, **case["truth"])
    guesses = random_maps(3, **{"ignore": 0.0, "seed": 1, **case["guess"]})
    name, records = register(truths)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = evaluate(name, records, guesses)
    expected = brute_force(zip(guesses, truths, strict=True), PASCAL.classes)
    assert results.keys() == expected.keys()
    for key, value in expected.items():
        assert results[key] == pytest.approx(value, abs=1e-9, nan_ok=True), key


def test_class_predicted_but_absent_counts_zero_and_one_in_neither_is_left_out(register, caplog):
    truth, guess = np.zeros((10, 10), int), np.zeros((10, 10), int)
    guess[0] = 3
    name, records = register([truth])
    with caplog.at_level(logging.INFO, logger="sst_d2.evaluation"):
        results = evaluate(name, records, [guess])
    assert results["mIoU"] == pytest.approx(45.0)  # (0.9 + 0) / 2
    assert results["IoU-upper-arm"] == 0 and math.isnan(results["ACC-upper-arm"])
    assert math.isnan(results["IoU-head"])
    # The log states the definition and what the others would give: 0.9 / 1 and 0.9 / 7.
    assert "Graphonomy" in caplog.text and "2 of 7 classes" in caplog.text
    assert "(Detectron2 since July 2022) 90.00" in caplog.text and "(SCHP, M2FP) 12.86" in caplog.text
    rows = {line.split()[1]: line.split()[3::2] for line in caplog.text.splitlines() if line.startswith("| ")}
    assert rows["background"] == ["90.00", "90.00", "100.00"] and rows["upper-arm"] == ["0.00", "-", "0.00"]
    assert rows["head"] == ["-", "-", "0.00"]


def test_equals_detectron2_where_all_classes_occur_and_runs_beside_it(register, tmp_path):
    truths, guesses = random_maps(3), random_maps(3, ignore=0.0, seed=1)
    name, records = register(truths)
    outputs = {r["file_name"]: {"sem_seg": logits_for(g)} for r, g in zip(records, guesses, strict=True)}

    class Model(torch.nn.Module):
        def forward(self, inputs):
            return [outputs[i["file_name"]] for i in inputs]

    expected = {}

    class Theirs(SemSegEvaluator):
        def evaluate(self):  # keeps its results to itself: two evaluators of one run may not both answer "sem_seg"
            expected.update(super().evaluate()["sem_seg"])

    both = DatasetEvaluators([Theirs(name, output_dir=str(tmp_path)), SSTSemSegEvaluator(name, output_dir=tmp_path)])
    results = inference_on_dataset(Model(), [[records[0]], records[1:]], both)["sem_seg"]
    for key, value in results.items():
        assert value == pytest.approx(expected[key], abs=1e-9), key
    order = [key for key in expected if not key.startswith(("BoundaryIoU-", "min("))]
    assert list(results) == order


def test_detectron2_mapper_takes_the_label_file_out_and_the_catalog_gives_it(register, tmp_path):
    truths = random_maps(1)
    name, records = register(truths)
    records[0]["file_name"] = str(tmp_path / "photo.png")
    Image.fromarray(np.zeros((*truths[0].shape, 3), np.uint8)).save(records[0]["file_name"])
    mapped = DatasetMapper(is_train=False, augmentations=[], image_format="RGB")(records[0])
    assert "sem_seg_file_name" not in mapped
    evaluator = SSTSemSegEvaluator(name, distributed=False)
    evaluator.process([mapped], [{"sem_seg": logits_for(np.where(truths[0] == IGNORE, 0, truths[0]))}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_first_of_equal_logits_wins_in_any_layout_and_float_type():
    logits = torch.randint(0, 3, (K, 40, 30), generator=torch.Generator().manual_seed(0)).float()
    expected = torch.as_tensor(logits.numpy().argmax(axis=0))
    layouts = [logits, logits.half(), logits.bfloat16(), logits.double()]
    layouts += [
        logits.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        torch.nn.functional.pad(logits, (2, 3))[..., 2:-3],
    ]
    for layout in layouts:
        labels, finite = evaluation._most_likely(layout)
        assert finite and torch.equal(torch.as_tensor(labels).long(), expected)


def test_bands_of_a_large_image_fit_together(monkeypatch):
    logits = torch.randn((K, 37, 11), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(evaluation, "_PIXELS_PER_BAND", 44)
    assert np.array_equal(evaluation._most_likely(logits)[0], logits.numpy().argmax(axis=0))


def test_confusion_matrix_has_truth_in_rows_and_refuses_strange_ids():
    matrix = confusion_matrix(np.array([1, 1, 2, 0]), np.array([0, 1, 2, 255]), 3, 255)
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 1]]
    for guess, truth, words in (
        ([3], [0], r"prediction: ids from 3 to 3; allowed are 0 to 2"),
        ([0], [7], r"ground truth: the ids \[7\].*0 to 2 and 255"),
        ([0], [-1], "ground truth: ids from -1"),
        ([0, 1], [0], "differ in shape"),
    ):
        with pytest.raises(SSTDataError, match=words):
            confusion_matrix(np.array(guess), np.array(truth), 3, 255)


def test_largest_label_system_does_not_overflow():
    matrix = confusion_matrix(np.array([254, 0], np.uint8), np.array([254, 255], np.uint8), 255, 255)
    assert matrix.sum() == 1 and matrix[254, 254] == 1


def test_scores_name_per_class_values_and_shares():
    scores = scores_from_confusion(np.array([[6, 2, 0], [0, 2, 0], [0, 0, 0]]))
    assert scores["IoU"][:2] == pytest.approx([75, 50]) and math.isnan(scores["IoU"][2])
    assert scores["ACC"][:2] == pytest.approx([75, 100])
    assert scores["share"].tolist() == pytest.approx([80, 20, 0])
    assert scores["pACC"] == pytest.approx(80) and scores["mIoU"] == pytest.approx(62.5)


def test_wrong_logits_are_refused_by_name(register):
    (truth,) = random_maps(1)
    name, records = register([truth])
    evaluator = SSTSemSegEvaluator(name, distributed=False)
    good = logits_for(np.zeros(truth.shape, int))

    def refuse(output, error, words, **changes):
        with pytest.raises(error, match=words):
            evaluator.process([records[0] | changes], [output])

    refuse({"sem_seg": torch.zeros(20, *truth.shape)}, SSTConfigError, rf"(?s){name}.*\(20, .*has 7 classes.*head")
    refuse({"sem_seg": good[:, :-1]}, SSTDataError, r"0\.jpg.*8 x 13 pixels.*label map 9 x 13")
    for value, channel in ((math.nan, 0), (math.nan, 2), (math.inf, K - 1), (-math.inf, 0), (-math.inf, 2)):
        broken = good.clone()
        broken[channel, 3, 4] = value
        refuse({"sem_seg": broken}, SSTDataError, "NaN or infinite.*checkpoint")
    refuse({"panoptic": 1}, SSTConfigError, r"\['panoptic'\].*`sem_seg` is missing")
    refuse({"sem_seg": good}, SSTConfigError, "asked for label domain 'atr'", label_domain="atr")
    refuse({"sem_seg_by_domain": {"atr": good}}, SSTConfigError, r"\['atr'\].*needs 'pascal_person_part'.*DOMAINS")
    evaluator.process(records, [{"sem_seg": good * 1e37}])  # huge but finite
    assert evaluator.evaluate()["sem_seg"]["ACC-background"] == 100


def test_all_domains_at_once_gives_the_data_sets_own_head(register):
    (truth,) = random_maps(1, ignore=0.0)
    name, records = register([truth])
    evaluator = SSTSemSegEvaluator(name, distributed=False)
    by_domain = {"pascal_person_part": logits_for(truth), "atr": torch.zeros(18, *truth.shape)}
    evaluator.process(
        [records[0] | {"label_domain": "all"}], [{"sem_seg": by_domain["atr"], "sem_seg_by_domain": by_domain}]
    )
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_strange_label_ids_are_refused(register):
    name, records = register([np.full((4, 5), 9)])
    with pytest.raises(SSTDataError, match=r"\[9\] do not belong to label domain 'pascal_person_part'"):
        evaluate(name, records, [np.zeros((4, 5), int)])


def test_remapped_card_and_missing_label_file(register):
    truth = np.array([[10, 20], [30, 10]])
    name, records = register([truth], label_remap={10: 0, 20: 5, 30: IGNORE})
    record = dict(records[0])
    record["remapped_label_file_name"] = record.pop("sem_seg_file_name")
    results = evaluate(name, [record], [np.array([[0, 5], [1, 0]])])
    assert results["mIoU"] == 100 and results["IoU-upper-leg"] == 100
    record["file_name"] = "other.jpg"  # not in the catalog, which would know the label file
    for lost in ("label_remap", "remapped_label_file_name"):
        broken = {key: value for key, value in record.items() if key != lost}
        with pytest.raises(SSTDataError, match=r"other\.jpg: no label map is named.*remapped_label_file_name"):
            evaluate(name, [broken], [np.zeros((2, 2), int)])


def test_metadata_must_name_a_domain_and_agree_with_it(register):
    name, _ = register([np.zeros((2, 2), int)])
    with pytest.raises(SSTConfigError, match=f"no_such_set' has no label domain.*{name}"):
        SSTSemSegEvaluator("no_such_set")
    assert "no_such_set" not in MetadataCatalog.list()
    other = f"{name}_other"
    MetadataCatalog.get(other).set(label_domain="atr", stuff_classes=list(PASCAL.classes))
    try:
        with pytest.raises(SSTConfigError, match=r"stuff_classes.*both must agree"):
            SSTSemSegEvaluator(other)
    finally:
        MetadataCatalog.remove(other)


def test_all_ignored_says_so_once_and_empty_set_is_an_error(register, caplog):
    name, records = register([np.full((3, 3), IGNORE)])
    results = evaluate(name, records, [np.zeros((3, 3), int)])
    assert all(math.isnan(value) for value in results.values())
    lines = [r.getMessage() for r in caplog.records if r.name == "sst_d2.evaluation"]
    assert len(lines) == 1 and "all pixels are ignored" in lines[0]
    with pytest.raises(SSTDataError, match=f"{name}.*not one image was evaluated"):
        SSTSemSegEvaluator(name, distributed=False).evaluate()


def test_reset_forgets(register):
    (truth,) = random_maps(1, ignore=0.0)
    name, records = register([truth])
    evaluator = SSTSemSegEvaluator(name, distributed=False)
    evaluator.process(records, [{"sem_seg": logits_for((truth + 1) % K)}])
    evaluator.reset()
    evaluator.process(records, [{"sem_seg": logits_for(truth)}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_image_counted_twice_is_told(register, caplog):
    name, records = register(random_maps(2))
    evaluate(name, [*records, records[0]], [np.zeros(t, int) for t in ((9, 13), (10, 13), (9, 13))])
    assert "1 images were counted more than once (first: image_0 0.jpg)" in caplog.text


def test_json_results_are_whole_and_know_no_nan(register, tmp_path):
    truths = random_maps(2, high=3)
    name, records = register(truths)
    guesses = random_maps(2, high=3, ignore=0.0, seed=1)
    out = tmp_path / "new" / "folder"
    results = evaluate(name, records, guesses, output_dir=out)
    text = (out / "sem_seg_evaluation.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert (
        document["images"] == 2 and document["dataset"] == name and "background included" in document["mIoU_definition"]
    )
    assert document["sem_seg"]["mIoU"] == results["mIoU"] and document["sem_seg"]["IoU-lower-leg"] is None
    assert scores_from_confusion(np.array(document["confusion_matrix"]))["mIoU"] == results["mIoU"]
    assert [p.name for p in out.iterdir()] == ["sem_seg_evaluation.json"]


def test_saved_predictions_hold_the_ids(register, tmp_path):
    truths, guesses = random_maps(2), random_maps(2, ignore=0.0, seed=1)
    name, records = register(truths)
    records[0]["image_id"] = "train/a.b"
    del records[1]["image_id"]
    evaluate(name, records, guesses, output_dir=tmp_path / "out", save_predictions=True)
    folder = tmp_path / "out" / "predictions"
    for path, guess in ((folder / "train" / "a.b.png", guesses[0]), (folder / "1.png", guesses[1])):
        assert Image.open(path).mode == "P"
        assert np.array_equal(read_label_map(path, PASCAL), guess)


@pytest.mark.parametrize("image_id", ["../evil", "a/../../evil", "/evil", "..\\evil", "a//b", "", "C:\\evil"])
def test_image_id_cannot_leave_the_folder(register, tmp_path, image_id):
    name, records = register([np.zeros((2, 2), int)], image_id=image_id)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(SSTDataError, match="no file can be named after it"):
        evaluate(name, records, [np.zeros((2, 2), int)], output_dir=tmp_path / "out", save_predictions=True)
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "out"}


def test_output_folder_is_checked_before_the_work(register, tmp_path):
    name, _ = register([np.zeros((2, 2), int)])
    (tmp_path / "file").write_text("")
    with pytest.raises(SSTConfigError, match="cannot be made"):
        SSTSemSegEvaluator(name, output_dir=tmp_path / "file" / "out")
    with pytest.raises(SSTConfigError, match="needs an output_dir"):
        SSTSemSegEvaluator(name, save_predictions=True)


def test_ranks_are_added_and_only_the_first_answers(register, monkeypatch):
    truths, guesses = random_maps(3), random_maps(3, ignore=0.0, seed=1)
    name, records = register(truths)
    alone = evaluate(name, records, guesses)
    ranks = [SSTSemSegEvaluator(name), SSTSemSegEvaluator(name)]
    monkeypatch.setattr(comm, "all_gather", lambda data: [(r._confusion, r._images) for r in ranks])
    with pytest.raises(SSTDataError, match="not one image"):
        ranks[1].evaluate()
    for i in range(3):
        ranks[i % 2].process([records[i]], [{"sem_seg": logits_for(guesses[i], seed=i)}])
    assert ranks[0].evaluate()["sem_seg"] == alone
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert ranks[1].evaluate() is None


def _evaluate_share(folder: str) -> None:
    """One of two processes: its share of three images, the results on disk."""
    MetadataCatalog.get("ranks").set(label_domain=PASCAL.name)
    evaluator, rank = SSTSemSegEvaluator("ranks"), comm.get_rank()
    for i in range(rank, 3, 2):
        guess = random_maps(3, ignore=0.0, seed=1)[i]
        record = {"file_name": f"{i}.jpg", "sem_seg_file_name": f"{folder}/{i}.png"}
        evaluator.process([record], [{"sem_seg": logits_for(guess, seed=i)}])
    Path(folder, f"rank{rank}.json").write_text(json.dumps(evaluator.evaluate()))


@pytest.mark.slow
def test_two_processes_equal_one_bit_by_bit(register, tmp_path):
    truths, guesses = random_maps(3), random_maps(3, ignore=0.0, seed=1)
    for i, truth in enumerate(truths):
        Image.fromarray(truth.astype(np.uint8)).save(tmp_path / f"{i}.png")
    launch(_evaluate_share, 2, args=(str(tmp_path),))
    name, records = register(truths)
    assert json.loads((tmp_path / "rank0.json").read_text())["sem_seg"] == evaluate(name, records, guesses)
    assert json.loads((tmp_path / "rank1.json").read_text()) is None
