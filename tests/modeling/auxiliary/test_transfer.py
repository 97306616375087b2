"""MST against the equations: both levels, both directions, absent categories, gradients."""

import equations
import numpy as np
import pytest
import torch
from as_arrays import TOLERANCES, array, assert_near, bridge_of, maps_of

from sst_d2.modeling.auxiliary.representations import ImageRepresentations
from sst_d2.modeling.auxiliary.transfer import SemanticMapping, SemanticTransfer, mismatch

DIM = 6


def transfer(first=3, second=5, dim=DIM, layers=3, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return SemanticTransfer(torch.rand(second, first), dim, layers, **options).to(dtype)


def images(count, categories, layers=3, dim=DIM, dtype=torch.float64, seed=0, scale=1.0, complete=False):
    """X_l and S_l, apart from each other; if not complete, category 0 is absent in every second image."""
    generator = torch.Generator().manual_seed(seed)
    scales = []
    for _ in range(layers):
        x, s = scale * torch.randn(2, count, categories, dim, generator=generator, dtype=torch.float64)
        present = torch.rand(count, categories, generator=generator) < 0.8
        present[::2, 0], present[:, 1] = False, True
        present |= complete
        s[~present] = 0
        scales.append(ImageRepresentations(x.to(dtype).requires_grad_(), s.to(dtype).requires_grad_(), present))
    return scales


def as_image(scales, row):
    return equations.Image([array(s.semantics[row]) for s in scales], [array(s.categories[row]) for s in scales])


def leaves(*domains):
    return [tensor for scales in domains for scale in scales for tensor in (scale.categories, scale.semantics)]


def image_weights(module):
    return list(module.image.parameters())


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_mapping_equals_the_loops_for_every_pair(dtype):
    torch.manual_seed(1)
    layer = SemanticMapping(DIM).to(dtype)
    source, target = torch.randn(2, 4, DIM, dtype=dtype), torch.randn(3, 5, DIM, dtype=dtype)
    association = torch.randn(3, 2, 5, 4, dtype=dtype)
    mapped = layer(source, target, association)
    assert mapped.shape == (3, 2, 5, DIM)
    for t, s in np.ndindex(3, 2):
        expected = equations.attended(array(target[t]), array(source[s]), maps_of(layer), array(association[t, s]))
        assert_near(mapped[t, s], expected)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("sizes", [(3, 5), (5, 3), (4, 4), (1, 2)], ids=str)
def test_dataset_level_equals_the_loops_in_both_directions(sizes, dtype):
    module = transfer(*sizes, dtype=dtype)
    first, second = torch.randn(sizes[0], DIM, dtype=dtype), torch.randn(sizes[1], DIM, dtype=dtype)
    results = module.dataset_level(first, second)
    for result, expected in zip(results, equations.dataset_rows(array(first), array(second), bridge_of(module))):
        assert_near(result, expected)


def test_the_static_matrix_serves_the_way_back_transposed():
    module = transfer(3, 3)
    first, second = torch.randn(2, 3, DIM).double().unbind()
    to_first, to_second = module.dataset_level(first, second)
    turned = SemanticTransfer(module.dataset.static.T.contiguous(), DIM).double()
    turned.dataset.to_first, turned.dataset.to_second = module.dataset.to_second, module.dataset.to_first
    again_second, again_first = turned.dataset_level(second, first)
    assert torch.equal(to_first, again_first) and torch.equal(to_second, again_second)
    wrong = SemanticTransfer(module.dataset.static.T.contiguous(), DIM).double()
    wrong.load_state_dict(module.state_dict())
    assert not torch.allclose(wrong.dataset_level(first, second)[0], to_first)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("counts", [(1, 1), (2, 3), (3, 1), (0, 2), (2, 0), (0, 0)], ids=str)
def test_image_level_equals_the_loops_for_every_pair(counts, layers, dtype):
    module = transfer(layers=layers, dtype=dtype)
    first, second = images(counts[0], 3, layers, dtype=dtype), images(counts[1], 5, layers, dtype=dtype, seed=1)
    results = module.image_level(first, second)
    assert [tuple(row.shape) for both in results for row in both] == [(*counts, 3), (*counts, 5)] * layers
    for i, j in np.ndindex(counts):
        expected = equations.image_rows(as_image(first, i), as_image(second, j), bridge_of(module))
        for (mine, theirs), (wanted, other) in zip(results, expected, strict=True):
            assert_near(mine[i, j], wanted)
            assert_near(theirs[i, j], other)


def test_scores_far_below_zero_equal_the_loops_too():
    """A softmax over more than the categories, with a score of zero, would leave nothing for them."""
    module = transfer()
    first, second = images(2, 3, scale=60.0, complete=True), images(2, 5, seed=1, scale=60.0, complete=True)
    results = module.image_level(first, second)
    for i, j in np.ndindex(2, 2):
        expected = equations.image_rows(as_image(first, i), as_image(second, j), bridge_of(module))
        for both, wanted in zip(results, expected, strict=True):
            assert all(np.abs(array(rows[i, j]) - other).max() < 1e-9 for rows, other in zip(both, wanted))


def test_directions_and_layers_learn_apart():
    module = transfer()
    parameters = list(module.parameters())
    assert len(parameters) == len({weight.data_ptr() for weight in parameters}) == 2 * 4 * 3 + 2 * 3
    assert all(weight.shape == (DIM, DIM) for weight in parameters)


def test_a_mismatch_is_one_minus_the_cosine():
    own = torch.tensor([[3.0, 4.0], [1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    mapped = torch.tensor([[6.0, 8.0], [0.0, 5.0], [-2.0, -2.0], [1.0, 1.0]])
    assert mismatch(own, mapped).tolist() == pytest.approx([0, 1, 2, 1 - 0.5**0.5], abs=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("scale", [1e-5, 1.0, 1e5])
def test_a_mismatch_does_not_depend_on_the_lengths(scale, dtype):
    torch.manual_seed(2)
    own, mapped = torch.randn(2, 7, DIM, dtype=dtype).unbind()
    assert_near(mismatch(own * scale, mapped * scale), equations.mismatches(array(own), array(mapped)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cosines_of_half_precision_are_taken_in_float32(dtype):
    torch.manual_seed(3)
    own, mapped = (torch.randn(2, 7, 64) * 2000).to(dtype).unbind()  # the square of a length is beyond float16
    result = mismatch(own, mapped, torch.ones(7, dtype=torch.bool))
    assert result.dtype == torch.float32
    assert np.abs(array(result) - equations.mismatches(array(own), array(mapped))).max() < 1e-6


def test_the_row_of_an_absent_category_is_exactly_one_and_has_no_gradient_at_all():
    module = transfer(dtype=torch.float32)
    first, second = images(3, 3, dtype=torch.float32), images(2, 5, dtype=torch.float32, seed=1)
    absent = []
    for scale, (mine, theirs) in enumerate(module.image_level(first, second)):
        absent.append(mine.transpose(1, 2)[~first[scale].present])
        absent.append(theirs.permute(1, 2, 0)[~second[scale].present])
    values = torch.cat([rows.flatten() for rows in absent])
    assert len(values) > 20 and (values == 1).all()
    (values * 1e6).sum().backward()
    for tensor in (*leaves(first, second), *module.parameters()):
        assert tensor.grad is None or torch.count_nonzero(tensor.grad) == 0


@pytest.mark.parametrize("empty", ["first", "second", "both"])
def test_an_image_without_labels_gives_ones_and_finite_gradients(empty):
    module = transfer(dtype=torch.float32)
    domains = {"first": images(1, 3, dtype=torch.float32), "second": images(1, 5, dtype=torch.float32, seed=1)}
    for name, scales in domains.items():
        for scale in scales if empty in (name, "both") else ():
            scale.semantics.data.zero_()
            scale.present.fill_(False)
    rows = torch.cat([row.flatten() for both in module.image_level(*domains.values()) for row in both])
    assert torch.equal(rows, torch.ones(3 * (3 + 5)))
    rows.sum().backward()
    assert all(torch.isfinite(tensor.grad).all() for tensor in leaves(*domains.values()))
    assert all(torch.count_nonzero(weight.grad) == 0 for weight in image_weights(module))


def test_a_category_that_resembles_none_of_the_other_domain_gives_one_and_no_gradient():
    static = torch.tensor([[0.0, 0.0], [0.5, 1.0], [0.3, 0.2]])
    module = SemanticTransfer(static, DIM)
    first, second = torch.randn(2, DIM, requires_grad=True), torch.randn(3, DIM, requires_grad=True)
    row = module.dataset_level(first, second)[1][0]
    row.backward()
    assert row.item() == 1
    for tensor in (first, second, *module.dataset.to_second.parameters()):
        assert torch.count_nonzero(tensor.grad) == 0


@pytest.mark.parametrize("scale", [1e-4, 6e4])
def test_values_at_the_ends_of_float16_give_finite_losses_and_gradients(scale):
    module = transfer(dim=256, dtype=torch.float32)
    first = images(2, 3, dim=256, dtype=torch.float32, scale=scale)
    second = images(2, 5, dim=256, dtype=torch.float32, seed=1, scale=scale)
    rows = torch.cat([row.flatten() for both in module.image_level(first, second) for row in both])
    (rows.sum() * 2**16).backward()  # as a gradient scaler does
    assert torch.isfinite(rows).all() and (rows >= -1e-6).all() and (rows <= 2 + 1e-6).all()
    assert all(torch.isfinite(tensor.grad).all() for tensor in (*leaves(first, second), *image_weights(module)))


def test_gradients_of_mapping_and_mismatch_are_those_of_the_functions():
    torch.manual_seed(4)
    layer = SemanticMapping(2).double()
    source, target = torch.randn(2, 2, 2).double().requires_grad_(), torch.randn(1, 3, 2).double().requires_grad_()
    association = torch.randn(1, 2, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(layer, (source, target, association))
    own, mapped = torch.randn(2, 4, 3).double().requires_grad_().unbind()
    present = torch.tensor([True, False, True, True])
    assert torch.autograd.gradcheck(mismatch, (own, mapped))
    assert torch.autograd.gradcheck(lambda x, y: mismatch(x, y, present), (own, mapped))
    assert torch.autograd.gradcheck(lambda x: mismatch(x, (mapped * present[:, None]).detach(), present), (own,))


@pytest.mark.parametrize("level", ["dataset", "image"])
def test_gradients_of_a_level_are_those_of_the_function(level):
    module = transfer(2, 3, dim=2, layers=1)
    names = [name for name, _ in module.named_parameters()]
    weights = [weight.detach().clone().requires_grad_() for weight in module.parameters()]
    first, second = images(2, 2, 1, dim=2), images(1, 3, 1, dim=2, seed=1)
    present = first[0].present, second[0].present

    class Level(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, x, s, y, t):
            if level == "dataset":
                return self.module.dataset_level(x[0], y[0])
            s, t = s * present[0][..., None], t * present[1][..., None]
            pair = ImageRepresentations(x, s, present[0]), ImageRepresentations(y, t, present[1])
            return self.module.image_level([pair[0]], [pair[1]])[0]

    def call(*values):
        parameters = {f"module.{name}": value for name, value in zip(names, values)}
        return torch.func.functional_call(Level(), parameters, values[len(names) :])

    assert torch.autograd.gradcheck(call, (*weights, *leaves(first, second)))


def numerical_gradient(function, x, step=1e-5):
    gradient = np.zeros_like(x)
    for place in np.ndindex(x.shape):
        moved = []
        for sign in (1, -1):
            there = x.copy()
            there[place] += sign * step
            moved.append(function(there))
        gradient[place] = (moved[0] - moved[1]) / (2 * step)
    return gradient


def test_with_stop_gradient_only_the_mapped_side_learns_from_the_comparison():
    module, plain = transfer(stop_gradient=True), transfer()
    first, second = torch.randn(3, DIM).double().requires_grad_(), torch.randn(5, DIM).double()
    results = module.dataset_level(first, second)
    assert all(torch.equal(a, b) for a, b in zip(results, plain.dataset_level(first, second)))
    sum(row.sum() for row in results).backward()
    bridge, fixed = bridge_of(module), array(first)

    def held(x):
        to_second = equations.attended(array(second), x, bridge.forth[0], bridge.static)
        to_first = equations.attended(x, array(second), bridge.back[0], bridge.static.T)
        return equations.mismatches(fixed, to_first).sum() + equations.mismatches(array(second), to_second).sum()

    assert np.abs(array(first.grad) - numerical_gradient(held, fixed)).max() < 1e-7


def test_with_stop_gradient_the_representations_of_images_get_none_from_the_comparison():
    first, second = images(1, 3, 1), images(1, 5, 1, seed=1)
    module = transfer(layers=1, stop_gradient=True)
    sum(row.sum() for row in module.image_level(first, second)[0]).backward()
    bridge, fixed = bridge_of(module), as_image(first, 0).categories[0]
    s, t, y = (array(tensor[0]) for tensor in (first[0].semantics, second[0].semantics, second[0].categories))
    association = equations.dynamic(t, bridge.second[0], s, bridge.first[0])

    def held(x):
        to_second = equations.attended(y, x, bridge.forth[1], association)
        to_first = equations.attended(x, y, bridge.back[1], association.T)
        return equations.mismatches(fixed, to_first).sum() + equations.mismatches(y, to_second).sum()

    assert np.abs(array(first[0].categories.grad[0]) - numerical_gradient(held, fixed)).max() < 1e-7
