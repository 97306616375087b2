"""`Prediction`: what is made of a label map and of the small logits that it keeps."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from sst_d2 import Prediction
from sst_d2.data import read_label_map
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import get_label_domain
from sst_d2.modeling.label_maps import label_map
from sst_d2.modeling.losses import upsample
from sst_d2.visualization import legend, overlay

ATR = get_label_domain("atr")
PADDED, CROP = (32, 64), (30, 41)
LOGITS = 3 * torch.randn(18, 8, 16, generator=torch.Generator().manual_seed(0))


def made(size=CROP, logits=LOGITS, padded=PADDED, crop=CROP):
    photo = np.random.default_rng(0).integers(256, size=(*size, 3)).astype(np.uint8)
    labels = label_map(logits, padded, crop, size).numpy()
    return Prediction(labels, ATR, photo, logits.numpy(), padded, crop)


def of_labels(labels):
    """With labels alone, for what needs no logits."""
    photo = np.full((*labels.shape, 3), 100, np.uint8)
    return Prediction(labels.astype(np.uint8), ATR, photo, np.zeros((18, 1, 1), np.float32), PADDED, CROP)


@pytest.mark.parametrize("size", [CROP, (50, 20)])
def test_logits_are_the_networks_own_and_the_labels_their_arg_max(size):
    prediction = made(size)
    expected = upsample(LOGITS[None], PADDED)[:, :, : CROP[0], : CROP[1]]
    expected = expected if size == CROP else upsample(expected, size)
    logits = prediction.logits()
    assert logits.dtype == np.float32 and np.array_equal(logits, expected[0].numpy())
    assert (logits.argmax(0) == prediction.labels).mean() > 0.999


def test_probabilities_are_their_softmax():
    prediction = made()
    logits, probabilities = prediction.logits().astype(np.float64), prediction.probabilities()
    expected = np.exp(logits) / np.exp(logits).sum(0)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert probabilities.shape == (18, *CROP) and probabilities.dtype == np.float32


def test_what_it_gives_may_be_changed():
    for padded in (PADDED, (8, 16)):  # the second: as test-time augmentation has them, logits of the photo's size
        prediction = made(crop=(8, 16), size=(8, 16), padded=padded)
        first = prediction.logits()
        first[:] = 0
        assert prediction.logits().any() and prediction.coarse_logits.any()


def test_areas_are_shares_of_the_pixels_by_name():
    areas = of_labels(np.array([[0, 0, 4], [17, 4, 4]])).areas()
    assert list(areas) == list(ATR.classes) and sum(areas.values()) == pytest.approx(1)
    present = {name: share for name, share in areas.items() if share}
    assert present == pytest.approx({"background": 2 / 6, ATR.classes[4]: 3 / 6, ATR.classes[17]: 1 / 6})


def test_pictures_are_those_of_the_package_in_the_records_colours():
    prediction = made()
    assert prediction.classes == ATR.classes and prediction.colors == ATR.colors
    for alpha in (0.0, 0.6, 1.0):
        expected = overlay(prediction.image, prediction.labels, ATR, alpha)
        assert np.array_equal(prediction.overlay(alpha), expected)
    few = of_labels(np.array([[0, 4], [17, 4]]))
    assert np.array_equal(few.legend(300), legend(ATR, [4, 17], 300))
    assert np.array_equal(few.overlay(1.0)[0, 0], [255, 255, 255]) and few.overlay(1.0).dtype == np.uint8
    assert repr(few) == "Prediction('atr', 2 x 2, 3 of 18 classes)"


def test_it_goes_from_one_process_to_another():
    prediction = made()
    other = pickle.loads(pickle.dumps(prediction))
    assert np.array_equal(other.logits(), prediction.logits()) and other.domain == ATR


def test_save_writes_ids_for_programs_and_colours_for_people(tmp_path):
    prediction, path = made(), tmp_path / "new" / "folders" / "labels.png"
    prediction.save(path)
    assert np.array_equal(read_label_map(str(path), ATR), prediction.labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        colours = np.asarray(image.convert("RGB"))
    assert np.array_equal(colours, np.array(ATR.colors, np.uint8)[prediction.labels])
    assert [entry.name for entry in path.parent.iterdir()] == ["labels.png"]


def test_save_replaces_nothing_without_being_told(tmp_path):
    path = tmp_path / "labels.png"
    path.write_text("mine")
    with pytest.raises(SSTDataError, match=r"labels\.png: exists; save\(path, overwrite=True\) replaces it"):
        made().save(path)
    assert path.read_text() == "mine"
    made().save(str(path), overwrite=True)
    assert np.array_equal(read_label_map(str(path), ATR), made().labels)


def test_save_refuses_what_would_change_the_ids_and_places_that_cannot_be(tmp_path):
    with pytest.raises(SSTDataError, match=r"labels\.jpg: label maps are written as \.png"):
        made().save(tmp_path / "labels.jpg")
    (tmp_path / "file").write_text("")
    with pytest.raises(SSTDataError, match="cannot be written"):
        made().save(tmp_path / "file" / "labels.png")
