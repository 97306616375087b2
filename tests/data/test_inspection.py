"""`inspect_sample`: findings instead of errors. What each kind of bad input becomes is in `tests/test_faults.py`."""

import pickle

import numpy as np
import pytest
from PIL import Image

from sst_d2.data.image_io import FileFault
from sst_d2.data.inspection import KINDS, explain_ids, inspect_sample
from sst_d2.label_domains import get_label_domain
from sst_d2.label_domains.domain import voc_colors

ATR = get_label_domain("atr")
PASCAL = get_label_domain("pascal_person_part")
SOUND = np.zeros((30, 20, 3), dtype=np.uint8)


@pytest.fixture
def sample(tmp_path):
    """A function that writes a label map beside a black photo, and gives the dataset dict."""

    def make(labels, photo=SOUND):
        Image.fromarray(photo).save(tmp_path / "x.jpg")
        Image.fromarray(labels).save(tmp_path / "x.png")
        return {"file_name": str(tmp_path / "x.jpg"), "sem_seg_file_name": str(tmp_path / "x.png")}

    return make


def test_pixels_and_centres_are_those_of_plain_counting(sample):
    labels = np.random.default_rng(0).choice([0, 3, 17, 255], size=(30, 20)).astype(np.uint8)
    found = inspect_sample(sample(labels), ATR)
    assert found.findings == () and found.photo.size == (30, 20)
    for identifier in range(256):
        places = [(r, c) for r in range(30) for c in range(20) if labels[r, c] == identifier]
        assert found.pixels[identifier] == len(places)
        if places:
            assert np.allclose(found.centres[identifier], np.mean(places, axis=0) / (30, 20))
        else:
            assert np.isnan(found.centres[identifier]).all()


def test_large_label_maps_have_exact_counts_and_nearly_exact_centres(sample):
    labels = np.zeros((700, 500), dtype=np.uint8)
    labels[100:300, 50:250] = 4
    found = inspect_sample(sample(labels, np.zeros((700, 500, 3), dtype=np.uint8)), ATR)
    assert found.pixels[4] == 200 * 200
    assert np.allclose(found.centres[4], (199.5 / 700, 149.5 / 500), atol=0.01)


def test_both_files_are_looked_at_when_both_are_bad(sample):
    record = sample(np.zeros((30, 20), dtype=np.uint8))
    record = {**record, "file_name": "no.jpg", "sem_seg_file_name": "no.png"}
    found = inspect_sample(record, ATR)
    assert [(f.severity, f.kind, f.path) for f in found.findings] == [
        ("error", "missing_image", "no.jpg"),
        ("error", "missing_label", "no.png"),
    ]
    assert found.pixels.sum() == 0 and np.isnan(found.centres).all() and found.photo is None


def test_a_dict_without_a_photo_is_a_finding_and_a_label_map_of_ignore_alone_a_warning(sample):
    record = sample(np.full((30, 20), 255, dtype=np.uint8))
    assert [(f.severity, f.kind) for f in inspect_sample(record, ATR).findings] == [("warning", "unlabelled")]
    del record["file_name"]
    finding, _ = inspect_sample({**record, "image_id": "some"}, ATR).findings
    assert (finding.kind, finding.path) == ("missing_key", "some")


def test_a_card_with_remap_is_read_through_it(sample):
    record = sample(np.full((30, 20), 40, dtype=np.uint8))
    record["remapped_label_file_name"] = record.pop("sem_seg_file_name")
    assert inspect_sample({**record, "label_remap": {40: 2}}, ATR).pixels[2] == 600
    (finding,) = inspect_sample({**record, "label_remap": {41: 2}}, ATR).findings
    assert finding.kind == "ids" and finding.path == record["remapped_label_file_name"]


def test_refused_ids_are_kept_with_the_others_of_their_file(sample):
    found = inspect_sample(sample(np.array([[1, 2, 18, 200, 255]] * 4, dtype=np.uint8), SOUND[:4, :5]), ATR)
    assert found.refused_ids == (1, 2, 18, 200, 255) and found.pixels.sum() == 0


def test_faults_survive_the_way_out_of_a_worker_process():
    fault = pickle.loads(pickle.dumps(FileFault("x.png: bad", "ids", (3,))))
    assert (str(fault), fault.kind, fault.ids) == ("x.png: bad", "ids", (3,))
    assert FileFault("x").kind in KINDS


def test_strange_ids_are_explained_where_something_fits():
    assert "seem to begin at 1" in explain_ids(range(1, 8), PASCAL)
    assert "ids of cihp and of lip:" in explain_ids([0, 5, 19, 255], PASCAL)
    greys = [round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in voc_colors(7)]
    assert "grey values of PASCAL VOC's colours" in explain_ids([0, *greys[:3], 255], PASCAL)
    assert explain_ids([0, 1, 200], PASCAL) is None and explain_ids([], PASCAL) is None
