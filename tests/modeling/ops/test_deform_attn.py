"""The operation as PyTorch sees it: gradients, compilation, export, types, and what is said about wrong arguments."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import reference
import torch
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode

from sst_d2.modeling.ops import ms_deform_attn, ms_deform_attn_fused

SHAPES = [(3, 4), (2, 2)]


def small(**changes):
    return reference.make_inputs(**{"shapes": SHAPES, "batch": 1, "queries": 2, "channels": 3, **changes})


def plain(value, locations, weights):
    return ms_deform_attn(value, SHAPES, locations, weights)


def fused(value, references, offsets, logits):
    return ms_deform_attn_fused(value, SHAPES, references, offsets, logits)


def leaves(tensors):
    return [tensor.clone().requires_grad_() for tensor in tensors]


def test_gradients_and_their_gradients_are_those_of_the_functions():
    inputs = small()
    for run, tensors in ((plain, leaves(inputs.plain())), (fused, leaves(inputs.fused()))):
        assert torch.autograd.gradcheck(run, tensors)
        assert torch.autograd.gradgradcheck(run, tensors)


def test_reference_points_for_all_images_and_levels_get_one_gradient():
    inputs = small(shared_references=True, batch=3)
    value, references, offsets, logits = inputs.fused()
    assert references.shape == (1, 2, 1, 2)
    assert torch.autograd.gradcheck(lambda points: fused(value, points, offsets, logits), references.requires_grad_())


def test_reference_points_get_a_gradient_of_their_own_precision():
    """Summed before it is rounded to the type of the offsets."""
    value, references, *others = small(channels=8, queries=5).fused(torch.bfloat16)
    half = leaves([value.float(), references.float(), *others])
    exact = leaves([tensor.detach().double() for tensor in half])
    for tensors in (half, exact):
        fused(*tensors).square().sum().backward()
    assert half[2].grad.dtype == torch.bfloat16
    want = exact[1].grad
    assert (half[1].grad - want).abs().max() <= 1e-5 * want.abs().max()


@pytest.mark.parametrize("twice", [False, True])
def test_each_input_alone_gets_its_gradient(twice):
    inputs = small()
    for run, tensors in ((plain, inputs.plain()), (fused, inputs.fused())):
        together = leaves(tensors)
        wanted = torch.autograd.grad(run(*together).square().sum(), together)
        for index, want in enumerate(wanted):
            alone = [tensor.clone() for tensor in tensors]
            alone[index].requires_grad_()
            (got,) = torch.autograd.grad(run(*alone).square().sum(), alone[index], create_graph=twice)
            assert torch.allclose(got, want) and got.requires_grad is twice


def backward_arguments(inputs, tensors):
    return inputs.grad_output.to(tensors[0].dtype), tensors[0], inputs.flat, *tensors[1:]


@pytest.mark.slow
def test_the_operations_are_registered_as_pytorch_asks():
    inputs, operations = small(), torch.ops.sst_d2
    for name, tensors in (
        ("ms_deform_attn", inputs.plain(torch.float32)),
        ("ms_deform_attn_fused", inputs.fused(torch.float32)),
    ):
        backward = getattr(operations, f"{name}_backward").default
        torch.library.opcheck(backward, backward_arguments(inputs, tensors))
        value, *others = leaves(tensors)
        torch.library.opcheck(getattr(operations, name).default, (value, inputs.flat, *others))


def sizes_and_inputs():
    """Inputs in three sizes that have nothing in common but batch, heads and channels."""
    for shapes, queries in ((SHAPES, 3), ([(5, 4), (3, 2)], 7), ([(6, 7), (3, 3)], 9)):
        yield shapes, reference.make_inputs(shapes, queries=queries).fused(torch.float32)


@pytest.mark.parametrize(
    "back_end",
    [
        "eager",
        pytest.param("aot_eager", marks=pytest.mark.slow),
        pytest.param(
            "inductor",
            marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")],
        ),
    ],
)
def test_it_compiles_whole_and_once_for_all_sizes(back_end):
    torch._dynamo.reset()
    graphs = []

    def counted(graph, examples):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(back_end)(graph, examples)

    def run(shapes, value, *others):
        return (ms_deform_attn_fused(value * 2, shapes, *others) * 3).square().sum()

    compiled = torch.compile(run, fullgraph=True, dynamic=True, backend=counted)
    for shapes, tensors in sizes_and_inputs():
        found, wanted = leaves(tensors), leaves(tensors)
        compiled(shapes, *found).backward()
        run(shapes, *wanted).backward()
        for got, want in zip(found, wanted, strict=True):
            assert torch.allclose(got.grad, want.grad, rtol=1e-4, atol=1e-5 * float(want.grad.abs().max()))
    assert len(graphs) == 1


def test_traces_know_pytorchs_own_operations_only():
    tensors = [tensor.contiguous() for tensor in small().fused(torch.float32)]
    traced = torch.jit.trace(fused, tensors)
    assert "grid_sampler" in str(traced.graph) and "sst_d2::" not in str(traced.graph)
    assert torch.allclose(traced(*tensors), fused(*tensors), atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="this PyTorch does not say when it exports")
@pytest.mark.parametrize("run", [plain, fused])
def test_exported_programs_know_pytorchs_own_operations_only(run):
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return run(*tensors)

    inputs = small()
    tensors = tuple((inputs.plain if run is plain else inputs.fused)(torch.float32))
    program = torch.export.export(Module(), tensors, strict=False)
    assert not [node for node in program.graph.nodes if "sst_d2" in str(node.target)]
    assert torch.allclose(program.module()(*tensors), run(*tensors), atol=1e-5)


FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float64: 1e-12}


@pytest.mark.parametrize("value_type", FLOATS)
@pytest.mark.parametrize("other_type", FLOATS)
def test_every_type_goes_with_every_other(value_type, other_type):
    inputs = small(channels=8)
    value, references, *others = inputs.fused(other_type)
    tensors = leaves([value.to(value_type), references.float(), *others])
    output = fused(*tensors)
    exact = [tensor.detach().double().numpy() for tensor in tensors]
    truth = reference.fused_forward(exact[0], SHAPES, *exact[1:])
    assert output.dtype == value_type
    assert abs(output.detach().double().numpy() - truth).max() <= TOLERANCE[value_type] * abs(truth).max()
    output.sum().backward()
    assert [tensor.grad.dtype for tensor in tensors] == [tensor.dtype for tensor in tensors]


def test_nothing_is_cast_on_the_way_to_the_kernels():
    called = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            called.append((str(function), [one.dtype for one in arguments if isinstance(one, torch.Tensor)]))
            return function(*arguments, **(keywords or {}))

    tensors = small().fused(torch.bfloat16)
    tensors[1] = tensors[1].float()
    with Recorder():
        fused(*tensors)
    half, single = torch.bfloat16, torch.float32
    assert called[0] == ("sst_d2.ms_deform_attn_fused.default", [half, single, half, half])


def test_half_precision_does_not_move_places():
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(1, 64 * 64, 1, 8, generator=generator).bfloat16()
    locations = torch.rand(1, 50, 1, 1, 1, 2, generator=generator)
    weights = torch.ones(1, 50, 1, 1, 1)
    exact = ms_deform_attn(value.double(), [(64, 64)], locations.double(), weights.double())
    half = ms_deform_attn(value, [(64, 64)], locations, weights)
    # Rounding of the result alone: 8 bits of mantissa.
    assert ((half.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()


def changed(index, tensor):
    tensors = small().fused()
    tensors[index] = tensor
    return tensors


@pytest.mark.parametrize(
    ("index", "tensor", "message"),
    [
        (0, torch.zeros(1, 16, 6), r"value has the shape \(1, 16, 6\); expected is \(B, S, M, D\)"),
        (1, torch.zeros(1, 2, 3, 2), r"reference_points has the shape \(1, 2, 3, 2\); .* ask for \(1, 2, 2, 2\)"),
        (1, torch.zeros(2, 2), r"reference_points has the shape \(2, 2\); .* ask for \(1, 2, 2, 2\)"),
        (2, torch.zeros(1, 2, 2, 2, 2), r"sampling_offsets has the shape .* expected is \(B, Q, M, L, P, 2\)"),
        (2, torch.zeros(3, 2, 2, 2, 2, 2), r"sampling_offsets .* ask for \(1, 2, 2, 2, 2, 2\)"),
        (3, torch.zeros(1, 2, 2, 2, 2), r"attention_logits has the shape .* ask for \(1, 2, 2, 4\)"),
        (3, torch.zeros(1, 2, 2, 4, device="meta"), "attention_logits is on meta, value on cpu"),
    ],
)
def test_arguments_that_do_not_go_together_are_named(index, tensor, message):
    with pytest.raises(ValueError, match=message):
        fused(*changed(index, tensor))


@pytest.mark.parametrize("index", range(4))
def test_integers_are_refused(index):
    with pytest.raises(TypeError, match="torch.int64; float32, float64, bfloat16 and float16 are supported"):
        fused(*changed(index, small().fused()[index].long()))


def test_weights_of_another_shape_are_refused():
    value, locations, weights = small().plain()
    with pytest.raises(ValueError, match=r"attention_weights has the shape \(1, 2, 2, 4\); .* \(1, 2, 2, 2, 2\)"):
        plain(value, locations, weights.flatten(3))


@pytest.mark.parametrize("shapes", [[(4, 4), (1, 1)], [(3, 4), (2, 1)], [], [(-3, -4), (2, 2)]])
def test_levels_that_do_not_add_up_are_refused(shapes):
    value, locations, weights = small().plain()
    pixels = sum(height * width for height, width in shapes)
    with pytest.raises(ValueError, match=rf"have {pixels} pixels, value has 16; expected are pairs"):
        ms_deform_attn(value, shapes, locations, weights)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        (torch.tensor(SHAPES), "a tensor"),
        ([torch.tensor(pair) for pair in SHAPES], r"\[tensor"),
        ([3, 4, 2, 2], r"\[3, 4, 2, 2\]"),
        ([(3, 4, 1), (2, 2, 1)], r"\[\(3, 4, 1\)"),
        ([(3.0, 4.0), (2.0, 2.0)], r"\[\(3.0, 4.0\)"),
        (None, "None"),
    ],
)
def test_levels_that_are_no_pairs_of_integers_are_refused(shapes, said):
    with pytest.raises(TypeError, match=rf"spatial_shapes is {said}.*; expected are pairs \(height, width\) of Python"):
        ms_deform_attn(small().value, shapes, *small().plain()[1:])


def test_levels_may_be_any_pairs_of_integers():
    tensors = small().plain()
    wanted = plain(*tensors)
    for shapes in (iter(SHAPES), np.array(SHAPES), [torch.Size(pair) for pair in SHAPES], tuple(map(list, SHAPES))):
        assert torch.equal(ms_deform_attn(tensors[0], shapes, *tensors[1:]), wanted)


def test_what_is_no_tensor_and_no_points_are_refused():
    value, locations, weights = small().plain()
    with pytest.raises(TypeError, match="ms_deform_attn: value is a ndarray; expected is a PyTorch tensor"):
        plain(value.numpy(), locations, weights)
    with pytest.raises(TypeError, match="attention_weights is a list; expected is a PyTorch tensor"):
        plain(value, locations, weights.tolist())
    with pytest.raises(ValueError, match=r"sampling_locations has the shape .*0, 2\); at least one point"):
        plain(value, locations[..., :0, :], weights[..., :0])


def test_forward_mode_derivatives():
    inputs = small()
    for run, tensors in ((plain, inputs.plain()), (fused, inputs.fused())):
        tangents = [torch.randn_like(tensor) for tensor in tensors]
        _, found = torch.func.jvp(run, tuple(tensors), tuple(tangents))
        step = 1e-6
        ahead, behind = (
            run(*(tensor + sign * step * tangent for tensor, tangent in zip(tensors, tangents, strict=True)))
            for sign in (1, -1)
        )
        assert torch.allclose(found, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_it_may_be_imported_again_and_from_a_second_place(tmp_path):
    """In a process of its own: other tests hold the modules."""
    shutil.copytree(ROOT / "sst_d2", tmp_path / "sst_d2", ignore=shutil.ignore_patterns("__pycache__"))
    code = f"""
import importlib, sys
sys.path.insert(0, {str(ROOT)!r})
from sst_d2.modeling import ops
from sst_d2.modeling.ops import deform_attn
importlib.reload(deform_attn)
for name in [name for name in sys.modules if name.startswith("sst_d2.modeling.ops")]:
    del sys.modules[name]
sys.modules["sst_d2.modeling"].__path__ = [{str(tmp_path / "sst_d2" / "modeling")!r}]
from sst_d2.modeling import ops as second
import torch
from sst_d2.modeling.ops import ms_deform_attn
assert ms_deform_attn.__code__.co_filename.startswith({str(tmp_path)!r})
value = torch.ones(1, 4, 1, 8, requires_grad=True)
for one in (deform_attn.ms_deform_attn, ms_deform_attn):
    output = one(value, [(2, 2)], torch.full((1, 1, 1, 1, 1, 2), 0.5), torch.ones(1, 1, 1, 1, 1))
    output.sum().backward()
print(output.sum().item(), value.grad.sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.stdout.split() == ["8.0", "16.0"], done.stderr
