"""Mirror, scale, crop and pad: labels stay true."""

import numpy as np
import pytest
from fvcore.transforms.transform import NoOpTransform

from sst_d2.data.transforms import (
    CropPadTransform,
    MirrorTransform,
    RandomCropPad,
    RandomMirror,
    RandomScale,
    SSTAugInput,
)
from sst_d2.label_domains import LabelDomain, get_label_domain


def random_pair(domain, size=(9, 7), seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(256, size=(*size, 3)).astype(np.uint8)
    labels = generator.integers(domain.num_classes, size=size).astype(np.uint8)
    labels[0, 0] = domain.ignore_label
    return image, labels


@pytest.mark.parametrize("name", ["pascal_person_part", "atr", "cihp", "lip"])
def test_mirroring_twice_is_the_identity_bit_by_bit(name):
    domain = get_label_domain(name)
    image, labels = random_pair(domain)
    mirror = MirrorTransform(7, domain)
    assert np.array_equal(mirror.apply_image(mirror.apply_image(image)), image)
    twice = mirror.apply_segmentation(mirror.apply_segmentation(labels))
    assert np.array_equal(twice, labels) and twice.dtype == labels.dtype
    assert mirror.inverse() is mirror


def test_mirroring_swaps_left_and_right_of_a_hand_written_map():
    atr = get_label_domain("atr")
    labels = np.array([[14, 0, 15, 255], [9, 9, 4, 10]], dtype=np.uint8)  # arms; shoes
    expected = [[255, 14, 0, 15], [9, 4, 10, 10]]
    assert MirrorTransform(4, atr).apply_segmentation(labels).tolist() == expected


def test_mirroring_leaves_an_ignore_label_below_255_alone():
    domain = LabelDomain("toy", ("l", "r"), ((0, 0, 0),) * 2, (("l", "r"),), ignore_label=7)
    assert MirrorTransform(3, domain).apply_segmentation(np.array([[0, 1, 7]])).tolist() == [[7, 0, 1]]


def test_mirror_coordinates_agree_with_pixels():
    coords = MirrorTransform(4, get_label_domain("atr")).apply_coords(np.array([[0.5, 1.0], [4.0, 2.0]]))
    assert coords.tolist() == [[3.5, 1.0], [0.0, 2.0]]


def test_random_mirror_obeys_its_probability_and_needs_the_domain():
    atr = get_label_domain("atr")
    image, labels = random_pair(atr)
    always = RandomMirror(1.0)(SSTAugInput(image, atr, labels))
    assert isinstance(always, MirrorTransform)
    assert isinstance(RandomMirror(0.0)(SSTAugInput(image, atr, labels)), NoOpTransform)
    with pytest.raises(ValueError, match="probability 1.5"):
        RandomMirror(1.5)


def test_crop_and_pad_fill_images_with_0_and_labels_with_the_ignore_label():
    image = np.full((2, 3, 3), 9, np.uint8)
    labels = np.full((2, 3), 4, np.uint8)
    crop = CropPadTransform(1, 1, 3, 2, ignore_label=255)
    assert crop.apply_segmentation(labels).tolist() == [[4, 4], [255, 255], [255, 255]]
    assert crop.apply_image(image)[..., 0].tolist() == [[9, 9], [0, 0], [0, 0]]
    assert crop.apply_coords(np.array([[1.0, 2.0]])).tolist() == [[0.0, 1.0]]


def test_random_crop_reaches_every_place_and_always_has_the_size():
    atr = get_label_domain("atr")
    image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1).repeat(3, 2)
    np.random.seed(0)
    corners = set()
    for _ in range(200):
        aug_input = SSTAugInput(image, atr, np.zeros((5, 6), np.uint8))
        RandomCropPad((4, 8))(aug_input)
        assert aug_input.image.shape == (4, 8, 3) and aug_input.sem_seg.shape == (4, 8)
        corners.add(int(aug_input.image[0, 0, 0]))
    assert corners == {0, 6}  # two rows to begin at, no choice of columns
    with pytest.raises(ValueError, match="crop_size"):
        RandomCropPad((0, 4))


def test_random_scale_draws_one_factor_or_two():
    image, np_labels = random_pair(get_label_domain("atr"), size=(100, 100))
    np.random.seed(1)
    for per_axis in (False, True):
        sizes = []
        for _ in range(20):
            aug_input = SSTAugInput(image, get_label_domain("atr"), np_labels)
            RandomScale((0.5, 2.0), per_axis)(aug_input)
            assert aug_input.image.shape[:2] == aug_input.sem_seg.shape
            assert set(np.unique(aug_input.sem_seg)) <= set(np.unique(np_labels))
            sizes.append(aug_input.image.shape[:2])
        assert all(50 <= side <= 200 for size in sizes for side in size)
        assert len(set(sizes)) > 10
        assert all(height == width for height, width in sizes) is not per_axis
    with pytest.raises(ValueError, match="scale_range"):
        RandomScale((2.0, 0.5))
