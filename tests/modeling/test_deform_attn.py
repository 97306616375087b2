"""Multi-scale deformable attention against loops in NumPy, float64."""

import numpy as np
import pytest
import torch

from sst_d2.modeling.ops import ms_deform_attn, ms_deform_attn_fused


def bilinear(image, x, y):
    """(H, W, C) at pixel place x, y, where pixel centres have whole numbers; zero outside."""
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(image.shape[2])
    for row, column in ((y0, x0), (y0, x0 + 1), (y0 + 1, x0), (y0 + 1, x0 + 1)):
        if 0 <= row < height and 0 <= column < width:
            total += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def reference(value, shapes, locations, weights):
    batch, _, heads, channels = value.shape
    out = np.zeros((batch, locations.shape[1], heads * channels))
    for b, q, m in np.ndindex(batch, locations.shape[1], heads):
        start = 0
        for level, (height, width) in enumerate(shapes):
            image = value[b, start : start + height * width, m].reshape(height, width, channels)
            start += height * width
            for point in range(locations.shape[4]):
                x, y = locations[b, q, m, level, point] * (width, height) - 0.5
                out[b, q, m * channels : (m + 1) * channels] += weights[b, q, m, level, point] * bilinear(image, x, y)
    return out


def random_inputs(shapes, batch=2, queries=3, heads=2, channels=4, points=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    total, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, total, heads, channels, generator=generator, dtype=torch.float64)
    # Places reach past the edges on every side.
    locations = (
        torch.rand(batch, queries, heads, levels, points, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    )
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator, dtype=torch.float64)
    return value, locations, weights


@pytest.mark.parametrize("shapes", [[(4, 5), (2, 3)], [(1, 1)], [(3, 1), (1, 4), (2, 2)]])
def test_equals_the_loop_reference(shapes):
    value, locations, weights = random_inputs(shapes)
    expected = reference(value.numpy(), shapes, locations.numpy(), weights.numpy())
    assert np.abs(ms_deform_attn(value, shapes, locations, weights).numpy() - expected).max() < 1e-12
    single = ms_deform_attn(value.float(), shapes, locations.float(), weights.float())
    assert np.abs(single.numpy() - expected).max() < 1e-5 and single.dtype == torch.float32


def test_the_fused_form_is_softmax_and_places_in_pixels():
    shapes = [(4, 6), (2, 3)]
    value, _, _ = random_inputs(shapes, points=3)
    generator = torch.Generator().manual_seed(1)
    references = torch.rand(1, 3, 1, 2, generator=generator)
    offsets = torch.randn(2, 3, 2, 2, 3, 2, generator=generator) * 2
    logits = torch.randn(2, 3, 2, 6, generator=generator)
    scores = np.exp(logits.double().numpy())
    weights = (scores / scores.sum(-1, keepdims=True)).reshape(2, 3, 2, 2, 3)
    sizes = np.array([(6, 4), (3, 2)], dtype=np.float64)
    locations = references.double().numpy()[:, :, None, :, None] + offsets.double().numpy() / sizes[:, None]
    expected = reference(value.numpy(), shapes, locations, weights)
    result = ms_deform_attn_fused(value, shapes, references, offsets, logits)
    assert np.abs(result.numpy() - expected).max() < 1e-6


def test_gradients_are_those_of_the_function():
    value, locations, weights = (t.requires_grad_() for t in random_inputs([(3, 4), (2, 2)], batch=1, queries=2))
    assert torch.autograd.gradcheck(
        lambda *t: ms_deform_attn(t[0], [(3, 4), (2, 2)], t[1], t[2]), (value, locations, weights)
    )


def test_half_precision_does_not_move_places():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 64 * 64, 1, 8, generator=generator).bfloat16()
    locations = torch.rand(1, 50, 1, 1, 1, 2, generator=generator)
    weights = torch.ones(1, 50, 1, 1, 1)
    exact = ms_deform_attn(value.double(), [(64, 64)], locations.double(), weights.double())
    half = ms_deform_attn(value, [(64, 64)], locations, weights)
    # Rounding of the result alone: 8 bits of mantissa.
    assert ((half.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def test_half_precision_values_keep_their_type():
    value, locations, weights = random_inputs([(4, 5)], points=4)
    half = ms_deform_attn_fused(
        value.bfloat16(), [(4, 5)], locations[:, :, 0, :1, 0], torch.zeros(2, 3, 2, 1, 4, 2), weights.flatten(3)
    )
    whole = ms_deform_attn_fused(
        value, [(4, 5)], locations[:, :, 0, :1, 0], torch.zeros(2, 3, 2, 1, 4, 2), weights.flatten(3)
    )
    assert half.dtype == torch.bfloat16 and (half.double() - whole).abs().max() < 0.05


def test_levels_that_do_not_add_up_are_refused():
    value, locations, weights = random_inputs([(4, 5)])
    with pytest.raises(ValueError, match=r"\[\(4, 4\)\] have 16 pixels, value has 20"):
        ms_deform_attn(value, [(4, 4)], locations, weights)
