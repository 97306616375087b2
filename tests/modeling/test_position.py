"""Sine position encoding against its formula in loops."""

import math

import pytest
import torch

from sst_d2.modeling.position import sine_position_encoding


def test_equals_the_formula_of_detr():
    height, width, dim = 3, 5, 8
    encoding = sine_position_encoding(height, width, dim).view(height, width, dim)
    for row in range(height):
        for column in range(width):
            for half, place in ((0, (row + 1) / height), (1, (column + 1) / width)):
                for index in range(dim // 2):
                    phase = place * 2 * math.pi / 10000 ** (2 * (index // 2) / (dim // 2))
                    expected = math.sin(phase) if index % 2 == 0 else math.cos(phase)
                    assert encoding[row, column, half * dim // 2 + index] == pytest.approx(expected, abs=1e-5)


def test_every_pixel_has_a_code_of_its_own():
    encoding = sine_position_encoding(7, 9, 16)
    assert torch.cdist(encoding, encoding).add(torch.eye(63) * 9).min() > 0.01


def test_a_number_of_channels_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="dim 6; a multiple of 4"):
        sine_position_encoding(2, 2, 6)
