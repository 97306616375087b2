"""The operator in plain PyTorch: every form of it against loops in NumPy, and that each does without the host."""

import numpy as np
import pytest
import reference
import torch

from sst_d2.modeling.ops import torch_ops

FORMS = [torch_ops.by_bags, torch_ops.by_rows, torch_ops.by_grids]
OUTSIDE = [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -1.5, -1.0, 4.0, 5.5]


def in_pixels(name, dtype=torch.float64):
    """Value, shapes, places, weights of `reference.ODD_SIZES`, and the gradient of the output."""
    inputs = reference.odd_inputs(name)
    value, locations, weights = inputs.plain(dtype)
    return value, inputs.shapes, torch_ops.to_pixels(locations, inputs.shapes), weights, inputs.grad_output.to(dtype)


def close(got, want, tolerance=1e-12):
    error = np.abs(got.detach().double().numpy() - want).max(initial=0)
    return got.shape == want.shape and error <= tolerance * max(1, np.abs(want).max(initial=0))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", reference.ODD_SIZES)
def test_every_form_equals_the_loops(form, name):
    *arguments, _ = in_pixels(name)
    assert close(form(*arguments), reference.in_pixels(*arguments))
    *single, _ = in_pixels(name, torch.float32)
    assert close(form(*single), reference.in_pixels(*arguments), 1e-5)


@pytest.mark.parametrize("name", reference.ODD_SIZES)
def test_gradients_equal_the_loops(name):
    *arguments, grad_output = in_pixels(name)
    wanted = reference.in_pixels_backward(grad_output, *arguments)
    value, shapes, places, weights = arguments
    tensors = [tensor.clone().requires_grad_() for tensor in (value, places, weights)]
    output = torch_ops.by_rows(tensors[0], shapes, *tensors[1:])
    of_rows = torch.autograd.grad(output, tensors, grad_output)
    for found in (torch_ops.gradients(grad_output, *arguments), of_rows):
        for got, want in zip(found, wanted, strict=True):
            assert close(got, want)


def test_locations_and_projections_become_places():
    inputs = reference.odd_inputs("usual")
    for shared in (False, True):
        references = inputs.references[:1, :, :1] if shared else inputs.references
        places, weights = torch_ops.to_places(references, inputs.offsets, inputs.logits, inputs.shapes)
        want = reference.fused_forward(inputs.value, inputs.shapes, references, inputs.offsets, inputs.logits)
        assert close(torch_ops.by_rows(inputs.value, inputs.shapes, places, weights), want)
    locations = inputs.locations.numpy()
    assert close(torch_ops.to_pixels(inputs.locations, inputs.shapes), locations * [[[5, 6]], [[3, 3]], [[1, 2]]] - 0.5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_positions_in_half_precision_are_used_in_single_precision(dtype):
    inputs = reference.odd_inputs("usual")
    shapes, others = inputs.shapes, [tensor.to(dtype) for tensor in (inputs.references, inputs.offsets, inputs.logits)]
    halves = torch_ops.to_places(*others, shapes)
    singles = torch_ops.to_places(*[tensor.float() for tensor in others], shapes)
    assert all(half.dtype == torch.float32 and torch.equal(half, single) for half, single in zip(halves, singles))
    assert torch_ops.to_pixels(inputs.locations.to(dtype), shapes).dtype == torch.float32


@pytest.mark.parametrize("place", OUTSIDE)
@pytest.mark.parametrize("axis", [0, 1])
def test_places_outside_count_nothing_and_get_no_gradient(place, axis):
    shapes = [(4, 4), (2, 3)]
    inputs = reference.make_inputs(shapes, channels=4, queries=3)
    value, grad_output = inputs.value, inputs.grad_output
    places, weights = torch_ops.to_pixels(inputs.locations, shapes), inputs.weights.clone()
    places[:, 1, :, 0, 1] = 1.5
    places[:, 1, :, 0, 1, axis] = place
    left_out = weights.clone()
    left_out[:, 1, :, 0, 1] = 0
    somewhere = places.clone()
    somewhere[:, 1, :, 0, 1] = 1.5
    want = reference.in_pixels(value, shapes, somewhere, left_out)
    for form in FORMS:
        assert close(form(value, shapes, places, weights), want)
    tensors = [tensor.clone().requires_grad_() for tensor in (value, places, weights)]
    output = torch_ops.by_rows(tensors[0], shapes, *tensors[1:])
    for gradients in (
        torch.autograd.grad(output, tensors, grad_output),
        torch_ops.gradients(grad_output, value, shapes, places, weights),
    ):
        assert close(gradients[0], reference.in_pixels_backward(grad_output, value, shapes, somewhere, left_out)[0])
        assert not gradients[1][:, 1, :, 0, 1].any() and not gradients[2][:, 1, :, 0, 1].any()
        assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("form", [torch_ops.by_bags, torch_ops.by_rows])
def test_pixels_that_nobody_looks_at_may_be_no_numbers(form):
    value = torch.full((1, 9, 1, 4), float("nan"))
    places = torch.tensor([-1.5, 1.0, 3.0, 1.0, 1.0, -7.0, float("nan"), 1.0]).view(1, 1, 1, 1, 4, 2)
    assert not form(value, [(3, 3)], places, torch.ones(1, 1, 1, 1, 4)).any()


def test_forms_can_be_differentiated_twice():
    inputs = reference.make_inputs([(3, 4), (2, 2)], batch=1, queries=2, channels=3)
    value, locations, weights = (tensor.requires_grad_() for tensor in inputs.plain())

    def run(value, locations, weights):
        return torch_ops.by_rows(value, inputs.shapes, torch_ops.to_pixels(locations, inputs.shapes), weights)

    assert torch.autograd.gradcheck(run, (value, locations, weights))
    assert torch.autograd.gradgradcheck(run, (value, locations, weights))


def test_rows_beyond_two_to_the_31_are_counted_in_64_bits():
    images, heads = 70_000, 8
    table = torch.zeros(1).expand(images, 70 * 70, heads, 1)  # of 66 x 66 pixels; one number in memory
    corners = torch.tensor([65.0, 64.0]).expand(images, 1, heads, 1, 1, 2)
    rows = torch_ops._rows(table, [(66, 66)], corners)
    last = (((images - 1) * 4900 + 66 * 70 + 67) * heads) + heads - 1
    assert rows.dtype == torch.int64 and rows[-1, 0, -1, 0, 0] == last
    assert (rows[-1, 0, -1, :, 0] - last).tolist() == [0, heads, 70 * heads, 71 * heads]


def test_other_devices_get_the_form_that_they_know(monkeypatch):
    inputs = reference.odd_inputs("usual")
    monkeypatch.setattr(torch_ops, "_corners", None)  # nothing of `by_bags` may run
    tensors = [tensor.to("meta") for tensor in (inputs.value, inputs.locations, inputs.weights)]
    assert torch_ops.by_bags(tensors[0], inputs.shapes, *tensors[1:]).shape == inputs.grad_output.shape


def test_nothing_waits_for_the_host(monkeypatch):
    inputs = reference.odd_inputs("usual")
    plain, fused = inputs.plain(), inputs.fused()

    def copied(*_, **__):
        raise AssertionError("a tensor is made from numbers of the host")

    for name in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, name, copied)
    for name in ("item", "tolist", "__bool__", "__int__", "__float__", "new_tensor"):
        monkeypatch.setattr(torch.Tensor, name, copied)
    places = torch_ops.to_pixels(plain[1], inputs.shapes)
    outputs = [form(plain[0], inputs.shapes, places, plain[2]) for form in FORMS]
    outputs += torch_ops.gradients(inputs.grad_output, plain[0], inputs.shapes, places, plain[2])
    outputs += torch_ops.to_places(*fused[1:], inputs.shapes)
    assert len(outputs) == 8
