"""`sample_picture`: labels over the photo, a legend of what occurs, and what training makes of it."""

import numpy as np
import pytest
from conftest import tiny_cfg
from PIL import Image

from sst_d2.data.cards import read_dataset_cards
from sst_d2.data.mapper import build_augmentations
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import get_label_domain
from sst_d2.pictures import sample_picture
from sst_d2.visualization import overlay

ATR = get_label_domain("atr")


@pytest.fixture
def sample(make_dataset):
    """336 x 400 pixels, so that nothing is resized: the left half is background, the right half two classes."""
    [card] = read_dataset_cards(make_dataset("own", count=1, size=(336, 400)))
    [sample] = card.load()
    labels = np.zeros((336, 400), dtype=np.uint8)
    labels[:100, 200:], labels[100:, 200:] = ATR.index("left-leg"), ATR.index("right-leg")
    Image.fromarray(labels).save(sample["sem_seg_file_name"])
    return sample


def test_photo_and_labels_stand_side_by_side(sample):
    picture = sample_picture(sample, ATR, "a title")
    image, labels = np.asarray(Image.open(sample["file_name"])), np.asarray(Image.open(sample["sem_seg_file_name"]))
    top, gap = 2 * 2 * 14, 7  # two lines: the title, and the pictures' names
    assert np.array_equal(picture[top : top + 336, gap : gap + 400], image)
    expected = overlay(image, labels, ATR)
    assert np.array_equal(picture[top : top + 336, 2 * gap + 400 : 2 * gap + 800], expected)
    legend = {tuple(color) for color in picture[top + 336 :].reshape(-1, 3).tolist()}
    shown = {name for name, color in zip(ATR.classes, ATR.colors, strict=True) if color in legend}
    assert shown == {"left-leg", "right-leg"}


def test_augmented_ones_stand_beside_it_and_depend_on_seed_and_position_alone(sample):
    augmentations = build_augmentations(tiny_cfg(INPUT__SST__CROP_SIZE=[336, 400]))
    plain = sample_picture(sample, ATR)
    pictures = [sample_picture(sample, ATR, "", augmentations, *place) for place in ((0, 0), (0, 0), (0, 3), (1, 0))]
    assert pictures[0].shape[1] > 2 * plain.shape[1]
    assert np.array_equal(pictures[0], pictures[1])
    assert all(not np.array_equal(pictures[0], other) for other in pictures[2:])


def test_a_damaged_sample_is_named(sample):
    Image.fromarray(np.full((336, 400), 77, dtype=np.uint8)).save(sample["sem_seg_file_name"])
    with pytest.raises(SSTDataError, match=r"own_0\.png: the ids \[77\]"):
        sample_picture(sample, ATR)
