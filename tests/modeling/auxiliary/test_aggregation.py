"""MSA against the equations, its gradients, its memory and its number of operations."""

import equations
import pytest
import torch
from as_arrays import TOLERANCES, array, assert_near, random_labels
from recorder import Recorder

from sst_d2.modeling.auxiliary import aggregation
from sst_d2.modeling.auxiliary.aggregation import SemanticAggregation, pool_categories, regions_at
from sst_d2.modeling.losses import IGNORE

GENERATOR = torch.Generator().manual_seed(0)
NOISE = torch.randn(3, 6, 4, 5, dtype=torch.float64, generator=GENERATOR)
LABELS = torch.randint(4, (3, 4, 5), generator=GENERATOR)
CLASSES = 5  # one more than occur
CASES = {
    "absent categories": (NOISE, LABELS),
    "pixels without a label": (NOISE, LABELS.masked_fill(torch.rand(LABELS.shape, generator=GENERATOR) < 0.4, IGNORE)),
    "one category": (NOISE, torch.full_like(LABELS, 3)),
    "nothing labelled": (NOISE, torch.full_like(LABELS, IGNORE)),
    "one image without labels": (NOISE, LABELS.index_fill(0, torch.tensor([1]), IGNORE)),
    "negative features": (-NOISE.abs() - 1, LABELS),
    "no image": (NOISE[:0], LABELS[:0]),
    "one pixel": (NOISE[..., :1, :1], LABELS[..., :1, :1]),
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_pooling_equals_the_loops(case, dtype):
    features, regions = CASES[case]
    features = features.to(dtype)
    average, maximum, present = pool_categories(features, regions, CLASSES)
    assert average.shape == maximum.shape == (len(features), CLASSES, 6) and average.dtype == maximum.dtype == dtype
    for row, region in enumerate(regions):
        expected = equations.pooled(array(features[row]), region.numpy(), CLASSES)
        assert_near(average[row], expected[0])
        assert_near(maximum[row], expected[1])
        assert present[row].tolist() == [category in region for category in range(CLASSES)]


def test_the_maximum_stays_inside_the_region_and_may_be_negative():
    features = torch.tensor([[[[-3.0, -1.0, 7.0, -0.5]]]])
    average, maximum, present = pool_categories(features, torch.tensor([[[0, 0, IGNORE, 2]]]), 3)
    assert maximum.flatten().tolist() == [-1.0, 0.0, -0.5] and average.flatten().tolist() == [-2.0, 0.0, -0.5]
    assert present.tolist() == [[True, False, True]]


@pytest.mark.parametrize("stride", [4, 8, 16])
def test_regions_are_the_nearest_pixels_of_the_label_map(stride):
    labels = torch.randint(20, (2, 64, 96))
    small = regions_at(labels, (64 // stride, 96 // stride))
    for row in range(2):
        assert (equations.regions(labels[row].numpy(), tuple(small.shape[1:])) == small[row].numpy()).all()
    assert torch.equal(small, labels[:, ::stride, ::stride]) and small.dtype == torch.int64


def test_regions_of_the_maps_own_size_are_the_map():
    assert torch.equal(regions_at(LABELS, (4, 5)), LABELS)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_projection_equals_the_loops_and_leaves_absent_categories_at_zero(dtype):
    module = SemanticAggregation(6).to(dtype)
    average, maximum, present = pool_categories(NOISE.to(dtype), LABELS, CLASSES)
    semantics = module(average, maximum)
    weight = array(module.projection.weight).T
    for row in range(len(LABELS)):
        assert_near(semantics[row], equations.aggregated(array(average[row]), array(maximum[row]), weight))
    assert not present.all() and torch.count_nonzero(semantics[~present]) == 0


def test_gradients_are_those_of_the_function():
    features = NOISE[:2, :2, :3, :3].clone().requires_grad_()
    regions = torch.tensor([[[0, 0, 2], [2, IGNORE, 0], [0, 2, 2]], [[1, 1, 1], [1, 1, 1], [IGNORE, 1, 1]]])
    module = SemanticAggregation(2).double()
    assert torch.autograd.gradcheck(lambda x: pool_categories(x, regions, 4)[:2], features)
    assert torch.autograd.gradcheck(lambda x: module(*pool_categories(x, regions, 4)[:2]), features)


def test_an_absent_category_sends_no_gradient_to_features_or_projection():
    features = NOISE.clone().requires_grad_()
    module = SemanticAggregation(6).double()
    average, maximum, present = pool_categories(features, LABELS, CLASSES)
    (module(average, maximum)[~present] * 1e8).sum().backward()
    assert torch.count_nonzero(features.grad) == torch.count_nonzero(module.projection.weight.grad) == 0


def test_pixels_without_a_label_get_no_gradient():
    features = NOISE.clone().requires_grad_()
    regions = CASES["pixels without a label"][1]
    average, maximum, _ = pool_categories(features, regions, CLASSES)
    (average.sum() + maximum.sum()).backward()
    ignored = (regions == IGNORE)[:, None].expand_as(features)
    assert torch.count_nonzero(features.grad[ignored]) == 0
    assert torch.count_nonzero(features.grad[~ignored]) == (~ignored).sum()  # of the average at least


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(dtype):
    constant = torch.full((1, 80, 64, 64), 100.0, dtype=dtype)  # the sum, 409600, is beyond float16
    average, maximum, _ = pool_categories(constant, torch.zeros(1, 64, 64, dtype=torch.int64), 2)
    assert average.dtype == maximum.dtype == torch.float32
    assert (average[0, 0] == 100).all() and (maximum[0, 0] == 100).all()
    features, labels = torch.randn(2, 130, 8, 8).to(dtype), random_labels(2, 5, (8, 8))
    expected = pool_categories(features.float(), labels, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = pool_categories(features, labels, 5)
        whole = pool_categories(features.float(), labels, 5)
    for results in (pool_categories(features, labels, 5), inside, whole):
        assert all(torch.allclose(a, b, rtol=0, atol=1e-6) for a, b in zip(results[:2], expected[:2]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equal_maxima_share_the_gradient(dtype):
    features = torch.zeros(1, 2, 72, 72, dtype=dtype)
    features[0, 0, :4] = 3
    features.requires_grad_()
    pool_categories(features, torch.zeros(1, 72, 72, dtype=torch.int64), 2)[1].sum().backward()
    assert features.grad[0, 0, :4].float().flatten().tolist() == pytest.approx([1 / 288] * 288, rel=5e-3)
    assert torch.count_nonzero(features.grad[0, 0, 4:]) == 0
    assert features.grad[0, 1].float().sum().item() == pytest.approx(1, rel=5e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dim", [8, 32, 64, 256])
def test_pooling_holds_at_most_one_and_a_half_times_the_features(dim, dtype):
    """Of maps that are large beside K: of small ones, the results alone may take more."""
    features = torch.randn(2, dim, 24, 24).to(dtype).requires_grad_()
    regions = torch.randint(20, (2, 24, 24))
    with Recorder(features, regions) as recorder:
        pool_categories(features, regions, 20)
    assert 0 < recorder.peak <= 1.5 * features.numel() * features.element_size()


@pytest.mark.parametrize("dtype", [*TOLERANCES, torch.float16], ids=str)
@pytest.mark.parametrize("categories", [2, 7])
def test_a_map_that_is_gone_through_in_parts_gives_what_it_gives_whole(monkeypatch, categories, dtype):
    torch.manual_seed(0)
    features, labels = torch.randn(2, 5, 19, 23).to(dtype).requires_grad_(), random_labels(2, categories, (20, 24))
    labels = labels[:, :19, :23].masked_fill(torch.rand(2, 19, 23) < 0.1, 0)
    weights = torch.randn(2, 2, categories, 5)
    sizes, results = [], []
    for least in (aggregation._PIXELS, 19 * 23):
        monkeypatch.setattr(aggregation, "_PIXELS", least)
        sizes.append(aggregation._part_size(features.flatten(2), categories))
        average, maximum, present = pool_categories(features, labels, categories)
        gradient = torch.autograd.grad(((average * weights[0]) + (maximum * weights[1])).sum(), features)[0]
        results.append((average, maximum, present.double(), gradient.double()))
    assert sizes[0] < sizes[1] == 19 * 23 and sizes[1] % sizes[0]  # several parts, the last one smaller
    assert all(torch.allclose(a, b, rtol=0, atol=TOLERANCES.get(dtype, 1e-3)) for a, b in zip(*results))
    assert torch.equal(results[0][1], results[1][1])


def test_a_number_that_is_none_comes_through():
    features = torch.zeros(1, 2, 12, 12)
    features[0, 0, 7, 7] = torch.nan
    average, maximum, _ = pool_categories(features, torch.zeros(1, 12, 12, dtype=torch.int64), 2)
    assert average[0, 0].isnan().tolist() == maximum[0, 0].isnan().tolist() == [True, False]


def test_neither_images_nor_categories_are_gone_through_one_by_one():
    counts = []
    for images, categories in ((2, 2), (40, 2), (2, 90), (40, 90)):
        features, regions = torch.randn(images, 8, 6, 6), torch.randint(categories, (images, 6, 6))
        with Recorder() as recorder:
            pool_categories(features, regions, categories)
        counts.append(recorder.operations)
    assert 0 < max(counts) < min(counts) + 20
