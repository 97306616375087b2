"""MSE against the equations, with M_intra and without, for several L, and its gradients."""

import equations
import numpy as np
import pytest
import torch
from as_arrays import TOLERANCES, array, assert_near, maps_of

from sst_d2.modeling.auxiliary.enhancement import SemanticEnhancement, SemanticPropagation, auxiliary_logits

DIM = 6


def semantics(images, categories, layers, dtype=torch.float64):
    """Random S_1 … S_L; category 1 is absent in the first image, all of them in the last of several."""
    torch.manual_seed(1)
    scales = [torch.randn(images, categories, DIM, dtype=dtype) for _ in range(layers)]
    for scale in scales:
        scale[:1, 1] = 0
        if images > 1:
            scale[-1] = 0
    return scales


def adjacency(categories):
    torch.manual_seed(2)
    return (
        (torch.rand(categories, categories) < 0.5).float().fill_diagonal_(1)
    )  # not symmetric: rows and columns differ


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("masked", [True, False], ids=["M_intra", "no mask"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("images", [0, 1, 3])
def test_representations_equal_the_loops(images, layers, masked, dtype):
    module = SemanticEnhancement(5, DIM, adjacency(5) if masked else None, num_layers=layers, std=1.0).to(dtype)
    scales = semantics(images, 5, layers, dtype)
    results = module(scales)
    assert [tuple(result.shape) for result in results] == [(images, 5, DIM)] * layers
    mask = array(module.adjacency) if masked else None
    domain = equations.Domain(np.zeros(0), array(module.embedding), [maps_of(layer) for layer in module.layers], mask)
    for row in range(images):
        expected = equations.enhanced(domain, [array(scale[row]) for scale in scales])
        for result, wanted in zip(results, expected, strict=True):
            assert_near(result[row], wanted)


def test_the_mask_works_behind_the_softmax_and_is_not_made_up_for():
    layer = SemanticPropagation(2).double()
    with torch.no_grad():
        layer.query.weight.zero_()  # all scores alike: each of two categories weighs a half
        layer.value.weight.copy_(torch.eye(2))
    before, pooled = torch.zeros(1, 2, 2).double(), torch.tensor([[[4.0, 0.0], [0.0, 8.0]]]).double()
    after = layer(before, pooled, torch.tensor([[1.0, 0.0], [1.0, 1.0]]).double())
    assert after.tolist() == [[[2.0, 0.0], [2.0, 4.0]]]


def test_without_a_mask_is_the_same_as_with_ones():
    torch.manual_seed(3)
    layer = SemanticPropagation(DIM).double()
    before, pooled = torch.randn(2, 2, 5, DIM).double()
    assert torch.equal(layer(before, pooled, None), layer(before, pooled, torch.ones(5, 5)))


def test_where_nothing_is_labelled_the_representations_stay_as_they_were():
    module = SemanticEnhancement(4, DIM, None)
    results = module([torch.zeros(2, 4, DIM)] * 3)
    assert all(torch.equal(result, module.embedding.expand(2, -1, -1)) for result in results)


def test_there_is_no_bias():
    assert all(not name.endswith("bias") for name, _ in SemanticEnhancement(4, DIM, None).named_parameters())


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_x_0_has_the_deviation_asked_for(std):
    torch.manual_seed(0)
    embedding = SemanticEnhancement(64, 64, None, std=std).embedding
    assert embedding.std().item() == pytest.approx(std, rel=0.05)
    assert abs(embedding.mean().item()) < 0.1 * std


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_auxiliary_mask_equals_the_loops(dtype):
    torch.manual_seed(4)
    features, categories = torch.randn(2, DIM, 3, 5, dtype=dtype), torch.randn(2, 4, DIM, dtype=dtype)
    logits = auxiliary_logits(features, categories)
    assert logits.shape == (2, 4, 3, 5)
    for row in range(2):
        assert_near(logits[row], equations.auxiliary_logits(array(features[row]), array(categories[row])))
    assert auxiliary_logits(features[:0], categories[:0]).shape == (0, 4, 3, 5)


def test_gradients_are_those_of_the_function():
    torch.manual_seed(5)
    layer = SemanticPropagation(2).double()
    before, pooled = torch.randn(2, 1, 3, 2).double().requires_grad_().unbind()
    for mask in (None, adjacency(3).double()):
        assert torch.autograd.gradcheck(lambda x, s, m=mask: layer(x, s, m), (before, pooled))
    weights = [weight.detach().clone().requires_grad_() for weight in layer.parameters()]
    names = [name for name, _ in layer.named_parameters()]

    def of_weights(*values):
        arguments = (before.detach(), pooled.detach(), adjacency(3).double())
        return torch.func.functional_call(layer, dict(zip(names, values)), arguments)

    assert torch.autograd.gradcheck(of_weights, weights)
    features = torch.randn(1, 2, 2, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(auxiliary_logits, (features, before))
