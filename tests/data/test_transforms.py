"""Scale, crop, pad and mirror in one step: the pixels of the plain steps, and labels that stay true."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from sst_d2.data.transforms import EvaluationResize, RandomScaleCropMirror, ScaleCropMirrorTransform, SSTAugInput
from sst_d2.label_domains import LabelDomain, get_label_domain

ATR = get_label_domain("atr")


def random_pair(domain, size=(9, 7), seed=0):
    generator = np.random.default_rng(seed)
    image = generator.integers(10, 256, size=(*size, 3)).astype(np.uint8)  # 0 is padding
    labels = generator.integers(domain.num_classes, size=size).astype(np.uint8)
    labels[0, 0] = domain.ignore_label
    return image, labels


def mirror(domain, size):
    return ScaleCropMirrorTransform(size, size, (0, 0), size, True, domain)


def plain_image(image, scaled, corner, window, mirrored):
    """Pillow resizes the whole image; crop, pad, mirror."""
    resized = np.asarray(Image.fromarray(image).resize(scaled[::-1], Image.Resampling.BILINEAR))
    part = resized[corner[0] : corner[0] + window[0], corner[1] : corner[1] + window[1]]
    result = np.pad(part, ((0, window[0] - part.shape[0]), (0, window[1] - part.shape[1]), (0, 0)))
    return result[:, ::-1] if mirrored else result


def plain_labels(labels, scaled, corner, window, mirrored, domain):
    """One pixel after the other."""
    partner = dict(enumerate(domain.flip_permutation().tolist()))
    result = np.full(window, domain.ignore_label, np.uint8)
    for row in range(min(window[0], scaled[0] - corner[0])):
        for column in range(min(window[1], scaled[1] - corner[1])):
            y = (corner[0] + row + 0.5) * labels.shape[0] / scaled[0]
            x = (corner[1] + column + 0.5) * labels.shape[1] / scaled[1]
            label = int(labels[int(y), int(x)])
            place = window[1] - 1 - column if mirrored else column
            result[row, place] = partner.get(label, label) if mirrored else label
    return result


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(
    ("size", "scaled", "corner", "window"),
    [
        ((40, 56), (80, 112), (33, 7), (32, 48)),  # larger, inside
        ((40, 56), (20, 28), (0, 0), (32, 48)),  # smaller, padded right and below
        ((40, 56), (61, 33), (5, 0), (32, 48)),  # an axis larger and cut, the other smaller and padded
        ((40, 56), (40, 56), (8, 8), (32, 48)),  # not resized
        ((33, 47), (50, 71), (18, 23), (32, 48)),  # the last possible place
        ((1, 3), (2, 5), (0, 1), (4, 4)),
        ((64, 64), (128, 32), (64, 0), (64, 32)),
    ],
)
def test_one_step_equals_resizing_cropping_padding_and_mirroring(size, scaled, corner, window, mirrored):
    image, labels = random_pair(ATR, size)
    before = image.copy(), labels.copy()
    transform = ScaleCropMirrorTransform(size, scaled, corner, window, mirrored, ATR)
    result, expected = transform.apply_image(image), plain_image(image, scaled, corner, window, mirrored)
    assert result.dtype == np.uint8 and result.shape == (*window, 3)
    assert np.abs(result.astype(int) - expected).max() <= 2
    assert np.array_equal(result == 0, expected == 0)  # padding where it belongs, and nowhere else
    result = transform.apply_segmentation(labels)
    assert result.dtype == np.uint8
    assert np.array_equal(result, plain_labels(labels, scaled, corner, window, mirrored, ATR))
    assert np.array_equal(image, before[0]) and np.array_equal(labels, before[1])


def test_images_that_may_not_be_written_to_are_taken_without_a_warning(recwarn):
    image, _ = random_pair(ATR)
    image.setflags(write=False)
    assert np.array_equal(mirror(ATR, (9, 7)).apply_image(image), image[:, ::-1])
    assert not recwarn


@pytest.mark.parametrize("name", ["pascal_person_part", "atr", "cihp", "lip"])
def test_mirroring_twice_is_the_identity_bit_by_bit(name):
    domain = get_label_domain(name)
    image, labels = random_pair(domain)
    flip = mirror(domain, (9, 7))
    assert np.array_equal(flip.apply_image(flip.apply_image(image)), image)
    twice = flip.apply_segmentation(flip.apply_segmentation(labels))
    assert np.array_equal(twice, labels) and twice.dtype == labels.dtype


def test_mirroring_swaps_left_and_right_of_a_hand_written_map():
    labels = np.array([[14, 0, 15, 255], [9, 9, 4, 10]], dtype=np.uint8)  # arms; shoes
    expected = [[255, 14, 0, 15], [9, 4, 10, 10]]
    assert mirror(ATR, (2, 4)).apply_segmentation(labels).tolist() == expected


def test_an_ignore_label_below_255_is_not_swapped_and_pads():
    domain = LabelDomain("toy", ("l", "r"), ((0, 0, 0),) * 2, (("l", "r"),), ignore_label=7)
    transform = ScaleCropMirrorTransform((1, 3), (1, 3), (0, 0), (2, 4), True, domain)
    assert transform.apply_segmentation(np.array([[0, 1, 7]], np.uint8)).tolist() == [[7, 7, 0, 1], [7, 7, 7, 7]]


@pytest.mark.parametrize("mirrored", [False, True])
def test_coordinates_agree_with_pixels(mirrored):
    domain = LabelDomain("many", tuple(map(str, range(48))), ((0, 0, 0),) * 48, (), ignore_label=255)
    labels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    transform = ScaleCropMirrorTransform((6, 8), (12, 24), (2, 3), (10, 30), mirrored, domain)
    result = transform.apply_segmentation(labels)
    centres = np.array([[x + 0.5, y + 0.5] for y in range(1, 6) for x in range(1, 8)])
    moved = transform.apply_coords(centres)
    assert [result[int(y - 0.5), int(x)] for x, y in moved] == [labels[int(y), int(x)] for x, y in centres]


def test_one_factor_or_two_are_drawn_evenly_from_the_range():
    image, _ = random_pair(ATR, size=(100, 100))
    np.random.seed(1)
    for per_axis in (False, True):
        augmentation = RandomScaleCropMirror((8, 8), (0.5, 2.0), per_axis=per_axis)
        sizes = np.array([augmentation.get_transform(image, ATR).scaled for _ in range(2000)])
        assert sizes.min() >= 50 and sizes.max() <= 200
        shares = np.histogram(sizes, bins=5, range=(50, 200))[0] / sizes.size
        assert np.abs(shares - 0.2).max() < 0.03
        assert (sizes[:, 0] == sizes[:, 1]).all() != per_axis


def test_the_window_reaches_every_place_equally_often_and_always_has_the_size():
    image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1).repeat(3, 2)
    np.random.seed(0)
    augmentation = RandomScaleCropMirror((3, 8), (1.0, 1.0), mirror_probability=0.0)
    corners = []
    for _ in range(600):
        aug_input = SSTAugInput(image, ATR, np.zeros((5, 6), np.uint8))
        augmentation(aug_input)
        assert aug_input.image.shape == (3, 8, 3) and aug_input.sem_seg.shape == (3, 8)
        corners.append(int(aug_input.image[0, 0, 0]))
    values, counts = np.unique(corners, return_counts=True)
    assert values.tolist() == [0, 6, 12]  # three rows to begin at, no choice of columns
    assert counts.min() > 150


def test_mirroring_obeys_its_probability():
    image, _ = random_pair(ATR)
    np.random.seed(0)

    def share(probability):
        augmentation = RandomScaleCropMirror((4, 4), mirror_probability=probability)
        return np.mean([augmentation.get_transform(image, ATR).mirrored for _ in range(400)])

    assert share(0.0) == 0 and share(1.0) == 1 and 0.4 < share(0.5) < 0.6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"crop_size": (0, 4)}, r"crop_size \(0, 4\)"),
        ({"scale_range": (2.0, 0.5)}, r"scale_range \(2.0, 0.5\)"),
        ({"mirror_probability": 1.5}, "mirror_probability 1.5"),
    ],
)
def test_values_that_make_no_sense_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        RandomScaleCropMirror(**{"crop_size": (4, 4), **arguments})


def test_in_evaluation_photos_are_seen_as_detectron2_shows_them_but_never_without_a_pixel():
    generator = np.random.default_rng(0)
    for height, width, shortest, longest in generator.integers(1, 900, size=(200, 4)).tolist():
        theirs = T.ResizeShortestEdge([shortest, shortest], longest).get_transform(
            np.zeros((height, width, 3), np.uint8)
        )
        assert EvaluationResize(shortest, longest).size(height, width) == (max(1, theirs.new_h), max(1, theirs.new_w))
    photo = generator.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    theirs = T.ResizeShortestEdge([20, 20], 25).get_transform(photo).apply_image(photo)
    assert np.array_equal(EvaluationResize(20, 25).get_transform(photo).apply_image(photo), theirs)
    assert EvaluationResize(0, 25).get_transform(photo).apply_image(photo) is photo
    thin = np.zeros((300, 2, 3), np.uint8)
    assert EvaluationResize(64, 64).get_transform(thin).apply_image(thin).shape == (64, 1, 3)
