"""What Mask2Former's code calls, by its names and arguments, against loops in NumPy."""

import importlib.util
import sys

import numpy as np
import pytest
import reference
import torch

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.ops import compat

NAME = "MultiScaleDeformableAttention"


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    """No test leaves the module behind."""
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield
    sys.modules.pop(NAME, None)


def arguments(inputs):
    """As Mask2Former's module has them."""
    shapes = torch.tensor(inputs.shapes)
    starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
    value, locations, weights = inputs.plain()
    return value, shapes, starts, locations, weights


class MSDeformAttnFunction(torch.autograd.Function):
    """A class as such code has it, around the extension's two functions."""

    @staticmethod
    def forward(ctx, value, shapes, starts, locations, weights, im2col_step):
        import MultiScaleDeformableAttention

        ctx.im2col_step = im2col_step
        ctx.save_for_backward(value, shapes, starts, locations, weights)
        return MultiScaleDeformableAttention.ms_deform_attn_forward(
            value, shapes, starts, locations, weights, ctx.im2col_step
        )

    @staticmethod
    def backward(ctx, grad_output):
        import MultiScaleDeformableAttention

        of_value, of_locations, of_weights = MultiScaleDeformableAttention.ms_deform_attn_backward(
            *ctx.saved_tensors, grad_output, ctx.im2col_step
        )
        return of_value, None, None, of_locations, of_weights, None


@pytest.mark.parametrize("theirs", [True, False])
def test_values_and_gradients(theirs):
    compat.install()
    inputs = reference.odd_inputs("usual")
    function = MSDeformAttnFunction if theirs else compat.MSDeformAttnFunction
    value, shapes, starts, *others = arguments(inputs)
    tensors = [tensor.requires_grad_() for tensor in (value, *others)]
    output = function.apply(tensors[0], shapes, starts, *tensors[1:], 3)  # 3 is no divisor of the batch
    output.backward(inputs.grad_output)
    exact = [tensor.detach().numpy() for tensor in tensors]
    plain = (exact[0], inputs.shapes, *exact[1:])
    truths = [reference.forward(*plain), *reference.backward(inputs.grad_output.numpy(), *plain)]
    for found, truth in zip([output.detach(), *(tensor.grad for tensor in tensors)], truths, strict=True):
        assert np.abs(found.numpy() - truth).max() < 1e-11 * max(1, np.abs(truth).max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("others", [torch.bfloat16, torch.float32])
def test_gradients_have_the_types_of_their_tensors_and_places_are_not_rounded(dtype, others):
    inputs = reference.odd_inputs("usual")
    for name, kind in (("value", dtype), ("grad_output", dtype), ("locations", others), ("weights", others)):
        setattr(inputs, name, getattr(inputs, name).to(kind).double())
    value, *middle, locations, weights = arguments(inputs)
    exact = compat.ms_deform_attn_backward(value, *middle, locations, weights, inputs.grad_output)
    given = (value.to(dtype), *middle, locations.to(others), weights.to(others))
    found = compat.ms_deform_attn_backward(*given, inputs.grad_output)
    assert [tensor.dtype for tensor in found] == [dtype, others, others]
    for got, want in zip(found, exact, strict=True):
        rounding = torch.finfo(got.dtype).eps
        assert ((got.double() - want).abs() <= rounding * want.abs() + 1e-5 * want.abs().max()).all()


def test_levels_that_do_not_follow_one_another_are_refused():
    value, shapes, starts, *others = arguments(reference.odd_inputs("usual"))
    with pytest.raises(ValueError, match=r"level_start_index is \[0, 31, 39\], but .* begin at \[0, 30, 39\]"):
        compat.MSDeformAttnFunction.apply(value, shapes, starts + torch.tensor([0, 1, 0]), *others, 64)


def test_sizes_may_be_lists_and_mistakes_are_named():
    value, shapes, starts, *others = arguments(reference.odd_inputs("usual"))
    grad_output = compat.ms_deform_attn_forward(value, shapes, starts, *others)
    given = {"value_spatial_shapes": shapes.tolist(), "value_level_start_index": starts.tolist()}
    named = dict(zip(("value", "sampling_locations", "attention_weights"), (value, *others)))
    assert torch.equal(compat.ms_deform_attn_forward(**named, **given), grad_output)
    with pytest.raises(
        ValueError, match=r"value_spatial_shapes has the shape \(6,\) .* expected are \(L, 2\) integers"
    ):
        compat.MSDeformAttnFunction.apply(value, shapes.flatten(), starts, *others)
    with pytest.raises(ValueError, match=r"ms_deform_attn_backward: grad_output has the shape .* ask for"):
        compat.ms_deform_attn_backward(value, shapes, starts, *others, grad_output[..., :-1])
    with pytest.raises(ValueError, match="ms_deform_attn_backward: attention_weights has the shape"):
        compat.ms_deform_attn_backward(value, shapes, starts, others[0], others[1][..., :1], grad_output)


def test_installing_twice_is_once():
    assert compat.install() is compat.install() is sys.modules[NAME]
    assert importlib.util.find_spec(NAME).name == NAME


def test_an_existing_module_stays_unless_asked(tmp_path, monkeypatch):
    path = tmp_path / f"{NAME}.py"
    path.write_text("ms_deform_attn_forward = 'theirs'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SSTConfigError, match=f"is there already .*{NAME}.py.*replace=True"):
        compat.install()
    assert NAME not in sys.modules
    theirs = importlib.import_module(NAME)
    with pytest.raises(SSTConfigError, match=f"is there already .*{NAME}.py"):
        compat.install()
    assert sys.modules[NAME] is theirs
    assert compat.install(replace=True) is sys.modules[NAME] is not theirs


def test_importing_installs_nothing():
    importlib.reload(compat)
    assert NAME not in sys.modules
