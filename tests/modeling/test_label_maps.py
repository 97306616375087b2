"""Label maps from coarse logits: the arg-max of the full ones, pixel by pixel, without having them."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sst_d2.modeling.label_maps import label_map, leading_class
from sst_d2.modeling.losses import upsample


def interpolated(values, size):
    """Bilinear, (K, h, w) to (K, *size), float64, one row and one column after the other."""
    for axis, count in ((1, size[0]), (2, size[1])):
        slices = []
        for i in range(count):
            place = max((i + 0.5) * values.shape[axis] / count - 0.5, 0)
            first = min(int(place), values.shape[axis] - 1)
            second = min(first + 1, values.shape[axis] - 1)
            share = place - first
            slices.append((1 - share) * values.take(first, axis) + share * values.take(second, axis))
        values = np.stack(slices, axis)
    return values


def full(logits, padded, crop, size):
    """What `label_map` takes the arg-max of, float64."""
    values = interpolated(logits.double().numpy(), padded)[:, : crop[0], : crop[1]]
    return values if crop == size else interpolated(values, size)


def noise(classes=5, height=6, width=8, seed=0):
    return torch.randn(classes, height, width, generator=torch.Generator().manual_seed(seed))


def blobs(classes=5, height=16, width=24, seed=0):
    """As of a trained network: wide regions of one class."""
    coarse = torch.randn(1, classes, 3, 4, generator=torch.Generator().manual_seed(seed))
    return upsample(coarse, (height, width))[0]


def assert_leads(labels, values, tolerance=1e-5):
    """Each pixel's class has the highest logit, the lowest id of such; but for rounding."""
    chosen = np.take_along_axis(values, labels.numpy()[None].astype(int), 0)[0]
    highest = np.sort(values, axis=0)
    assert labels.dtype == torch.uint8 and labels.shape == values.shape[1:]
    assert (highest[-1] - chosen <= tolerance).all()
    clear = highest[-1] - highest[-2] > tolerance
    assert clear.mean() > 0.9 and (labels.numpy() == values.argmax(0))[clear].all()


@pytest.mark.parametrize("make", [noise, blobs])
@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
def test_equals_the_arg_max_of_logits_that_plain_loops_interpolate(make, step):
    logits = make()
    padded = (logits.shape[1] * step, logits.shape[2] * step)
    for crop in (padded, (padded[0] - 1, padded[1]), (1, 1), (padded[0] // 2 + 1, padded[1] // 2)):
        assert_leads(label_map(logits, padded, crop, crop), full(logits, padded, crop, crop))


@pytest.mark.parametrize("make", [noise, blobs])
@pytest.mark.parametrize("size", [(24, 32), (25, 33), (11, 70), (7, 3), (1, 1), (100, 90)])
def test_another_size_is_interpolated_a_second_time_from_what_is_no_padding(make, size):
    logits = make(height=6, width=8)
    for crop in ((24, 32), (19, 30), (1, 2), (21, 1)):
        assert_leads(label_map(logits, (24, 32), crop, size), full(logits, (24, 32), crop, size))


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 1, 5), (255, 4, 1), (1, 3, 3)])
def test_the_smallest_and_the_most(shape):
    logits = noise(*shape)
    padded = (4 * shape[1], 4 * shape[2])
    for size in (padded, (5, 9)):
        expected = full(logits, padded, padded, size).argmax(0)
        assert (label_map(logits, padded, padded, size).numpy() == expected).mean() > 0.97
    assert label_map(logits, padded, padded, padded).is_contiguous()


def test_of_classes_that_lead_together_the_lowest_id_counts():
    logits = torch.zeros(4, 3, 3)
    logits[1:3] = 1.0
    assert (label_map(logits, (12, 12), (12, 12), (12, 12)) == 1).all()
    assert (label_map(logits, (12, 12), (11, 7), (5, 20)) == 1).all()
    whole = torch.randint(3, (6, 50), generator=torch.Generator().manual_seed(0))
    assert torch.equal(leading_class(whole.float()), torch.from_numpy(whole.numpy().argmax(0)).to(torch.uint8))


def test_a_class_that_leads_in_no_coarse_pixel_still_leads_between_them():
    logits = torch.tensor([[[5.0, 0.0]], [[0.0, 5.0]], [[4.0, 4.0]]])
    assert label_map(logits, (4, 8), (4, 8), (4, 8))[0].tolist() == [0, 0, 0, 2, 2, 1, 1, 1]


@pytest.mark.parametrize("size", [(24, 32), (50, 40)])
def test_logits_of_half_precision_are_interpolated_in_single_under_autocast_too(size):
    logits = noise(20, 6, 8).half()
    expected = label_map(logits.float(), (24, 32), (24, 32), size)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(label_map(logits, (24, 32), (24, 32), size), expected)


@pytest.mark.parametrize("size", [(256, 384), (300, 300)])
def test_the_logits_of_all_pixels_are_never_in_memory(size):
    """The largest tensor that any operation gives, in numbers; full logits would be 20 per pixel."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.numbers = max(self.numbers, result.numel())
            return result

    logits = blobs(classes=20, height=64, width=96)
    with Largest() as largest:
        labels = label_map(logits, (256, 384), (256, 384), size)
    assert labels.shape == size and largest.numbers <= 5 * labels.numel()


def test_sizes_that_are_no_multiple_are_refused():
    with pytest.raises(ValueError, match="logits of 6 x 8 do not go evenly into 25 x 32 pixels"):
        label_map(noise(), (25, 32), (25, 32), (25, 32))
