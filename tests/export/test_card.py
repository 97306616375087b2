"""The model card and the metadata say what is in an exported network, and invent nothing."""

import json
from dataclasses import asdict

import pytest

from sst_d2.errors import SSTDataError
from sst_d2.export import metadata, model_card, read_scores, scores_of
from sst_d2.label_domains import get_label_domain

DOMAINS = [get_label_domain("pascal_person_part"), get_label_domain("atr")]


def result(folder, name, domain="atr", miou=51.234):
    path = folder / name / "sem_seg_evaluation.json"
    path.parent.mkdir(parents=True)
    record = {"dataset": name, "label_domain": domain, "images": 30, "mIoU_definition": "mean over what occurs"}
    path.write_text(json.dumps({**record, "sem_seg": {"mIoU": miou}}))
    return path


def card(scores):
    return model_card(DOMAINS, version="1.2", facts={"backbone": "small"}, scores=scores, use="Call it.")


def test_scores_are_named_with_how_they_were_measured(tmp_path):
    result(tmp_path / "inference", "atr_val")
    result(tmp_path / "inference_TTA", "atr_val", miou=52.5)
    result(tmp_path / "inference", "cihp_val", domain="cihp", miou=99)
    text = card(read_scores(tmp_path))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| atr_val" in line]
    assert rows == [
        ["atr_val", "atr", "30", "51.23", "one pass"],
        ["atr_val", "atr", "30", "52.50", "scales and mirror"],
    ]
    assert "mIoU: mean over what occurs." in text and "cihp_val" not in text  # the file has no head for it
    assert "Another checkpoint of the same training" in text


def test_scores_come_back_from_what_a_bundle_keeps_of_them(tmp_path):
    result(tmp_path / "inference", "atr_val")
    scores = read_scores(tmp_path)
    assert scores_of(json.loads(json.dumps([asdict(score) for score in scores])), "origin.json") == scores
    for damaged in (None, [3], [{"data_set": "a"}]):
        with pytest.raises(SSTDataError, match=r"origin\.json: its scores are damaged"):
            scores_of(damaged, "origin.json")


def test_without_scores_the_card_says_that_nothing_was_measured(tmp_path):
    text = card(read_scores(tmp_path))
    assert "Not measured" in text and "mIoU:" not in text


def test_the_card_lists_every_class_with_its_id():
    text = card([])
    for domain in DOMAINS:
        assert f"`{domain.name}`, {domain.num_classes} classes" in text
        assert all(f"{number} {name}" in text for number, name in enumerate(domain.classes))
    assert "Apache License 2.0" in text and "licence of these weights" in text and "| backbone | small |" in text


@pytest.mark.parametrize("content", ["", "[]", '{"dataset": "a"}', '{"sem_seg": null}'])
def test_a_damaged_result_is_named(tmp_path, content):
    path = result(tmp_path / "inference", "atr_val")
    path.write_text(content)
    with pytest.raises(SSTDataError, match=r"sem_seg_evaluation\.json: is no result of an evaluation .*evaluate again"):
        read_scores(tmp_path)


@pytest.mark.parametrize(("size", "sides"), [(None, "any height and width"), ((4, 5), "height 4 and width 5 alone")])
def test_metadata_tell_a_program_what_goes_in_and_what_comes_out(size, sides):
    given = {"size": size, "input_type": "uint8", "normalisation": {"mean": [1, 2, 3]}, "card": "# Card"}
    found = metadata(DOMAINS, version="1.2", outputs=["labels_atr"], **given)
    assert sides in found["input"] and "uint8" in found["input"] and "red, green, blue" in found["input"]
    assert found["output"].startswith("labels_atr: label maps")
    assert found["label_domains"]["atr"]["classes"] == list(DOMAINS[1].classes)
    assert found["label_domains"]["atr"]["flip_pairs"][0] == ["left-shoe", "right-shoe"]
    assert found["normalisation"] == {"done_inside": True, "mean": [1, 2, 3]}
    assert (found["sst_d2_version"], found["model_card"]) == ("1.2", "# Card")
