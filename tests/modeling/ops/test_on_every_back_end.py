"""Every back end that this machine has, behind the public functions, against loops in NumPy, float64."""

import numpy as np
import pytest
import reference
import torch
from conftest import tiny_cfg
from torch._subclasses.fake_tensor import FakeTensorMode

from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError
from sst_d2.modeling.ops import backends, ms_deform_attn, ms_deform_attn_fused

BACK_ENDS = [("cpu", "ext"), ("cpu", "torch"), ("cuda", "ext"), ("cuda", "nvrtc"), ("cuda", "torch")]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def choose(name, monkeypatch):
    """As a new process in which `SST_D2_MSDA` has this value."""
    monkeypatch.setenv(backends.VARIABLE, name)
    for function in (backends.wanted, backends.choice, backends.for_call):
        function.cache_clear()


@pytest.fixture(params=BACK_ENDS, ids="-".join)
def device(request, monkeypatch):
    """The device of a back end, which is chosen."""
    device, name = request.param
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    choose(name, monkeypatch)
    try:
        assert backends.choice(device).name == name
    except SSTConfigError as reason:
        pytest.skip(str(reason))
    yield device
    choose("auto", monkeypatch)


def possible(device, channels):
    """Skip what compiled code on a GPU is not made for."""
    if device == "cuda" and backends.wanted() != "torch" and (channels % 8 or channels > 128):
        pytest.skip("heads of this width are for plain PyTorch on a GPU")


def run(device, inputs, dtype, value_dtype=None):
    """Outputs and gradients of both operations: four tensors, then six."""
    results = []
    grad_output = inputs.grad_output.to(device, value_dtype or dtype)
    for operation, tensors in (
        (ms_deform_attn, inputs.plain(dtype, value_dtype)),
        (ms_deform_attn_fused, inputs.fused(dtype, value_dtype)),
    ):
        value, *others = [tensor.to(device).detach().requires_grad_() for tensor in tensors]
        output = operation(value, inputs.shapes, *others)
        output.backward(grad_output)
        results += [output.detach(), *(tensor.grad for tensor in (value, *others))]
    return [result.cpu() for result in results]


def truths(inputs):
    """What `run` is to give."""
    plain, fused = inputs.plain(), inputs.fused()
    of_value, of_offsets, of_logits = reference.fused_backward(inputs.grad_output, fused[0], inputs.shapes, *fused[1:])
    sides = np.array([(width, height) for height, width in inputs.shapes])
    of_references = of_offsets.sum(axis=(2, 4)) * sides
    for axis in (0, 2):
        if inputs.references.shape[axis] == 1:
            of_references = of_references.sum(axis=axis, keepdims=True)
    return [
        reference.forward(plain[0], inputs.shapes, *plain[1:]),
        *reference.backward(inputs.grad_output, plain[0], inputs.shapes, *plain[1:]),
        reference.fused_forward(fused[0], inputs.shapes, *fused[1:]),
        *(of_value, of_references, of_offsets, of_logits),
    ]


OUTPUTS = (0, 4)  # of `run`; the others are gradients


def assert_close(results, wanted, of_outputs, of_gradients):
    """Within these tolerances times the largest number, at least 1."""
    for index, (got, want) in enumerate(zip(results, wanted, strict=True)):
        want = np.asarray(want, dtype=np.float64)
        assert tuple(got.shape) == want.shape
        error = np.abs(got.double().numpy() - want).max(initial=0)
        tolerance = of_outputs if index in OUTPUTS else of_gradients
        assert error <= tolerance * max(1, np.abs(want).max(initial=0)), f"result {index}: {error}"


@pytest.mark.parametrize("name", reference.ODD_SIZES)
def test_single_precision_equals_the_loops(device, name):
    inputs = reference.odd_inputs(name)
    possible(device, inputs.value.shape[3])
    assert_close(run(device, inputs, torch.float32), truths(inputs), 1e-5, 1e-4)


@pytest.mark.parametrize("name", ["usual", "5_channels", "no_image"])
def test_double_precision_equals_the_loops(device, name):
    if device == "cuda" and backends.wanted() != "torch":
        pytest.skip("float64 is for plain PyTorch on a GPU")
    inputs = reference.odd_inputs(name)
    assert_close(run(device, inputs, torch.float64), truths(inputs), 1e-12, 1e-12)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("name", ["usual", "many_queries", "128_channels", "few_queries", "no_query"])
@pytest.mark.parametrize("all_half", [False, True])
def test_half_precision_is_single_precision_rounded(device, dtype, name, all_half):
    inputs = reference.odd_inputs(name)
    rounded = ["value", "grad_output", *(["locations", "weights", "references", "offsets", "logits"] * all_half)]
    for attribute in rounded:
        setattr(inputs, attribute, getattr(inputs, attribute).to(dtype).double())
    singles = run(device, inputs, torch.float32)
    halves = run(device, inputs, dtype if all_half else torch.float32, dtype)
    for index, (half, single) in enumerate(zip(halves, singles, strict=True)):
        assert half.dtype == (dtype if all_half or index in (0, 1, 4, 5) else torch.float32)
        # One step of the type, and what another order of additions makes.
        allowed = ROUNDING[half.dtype] * 2 * single.abs() if half.dtype in ROUNDING else 0
        largest = single.abs().max() if single.numel() else 0
        # The gradient of reference points adds up rounded gradients of offsets.
        slack = ROUNDING[dtype] if all_half and index == 6 else 1e-5
        assert ((half.float() - single).abs() <= allowed + slack * largest).all(), f"result {index}"


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30, -1.0, -1.5, 4.0, 9.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_place_outside_gives_nothing_and_gets_no_gradient(device, place, axis):
    inputs = reference.make_inputs([(4, 4), (2, 3)], channels=16, queries=3)
    sizes = torch.tensor([(4, 4), (3, 2)]).double()
    inputs.references[:] = 0.5 / sizes  # pixel (0, 0)
    inputs.locations[:, 1, :, 0, 1] = inputs.offsets[:, 1, :, 0, 1] = 0.25
    inputs.locations[:, 1, :, 0, 1, axis] = (place + 0.5) / 4
    inputs.offsets[:, 1, :, 0, 1, axis] = place
    results = run(device, inputs, torch.float32)
    _, _, of_locations, of_weights, _, _, _, of_offsets, _ = results
    assert not any(gradient[:, 1, :, 0, 1].any() for gradient in (of_locations, of_weights, of_offsets))
    assert all(result.isfinite().all() for result in results)
    inputs.locations[:, 1, :, 0, 1] = inputs.offsets[:, 1, :, 0, 1] = -7
    assert_close(results, truths(inputs), 1e-5, 1e-4)


def test_a_place_outside_gives_nothing_whatever_it_weighs(device):
    inputs = reference.make_inputs([(4, 5), (2, 3)], channels=8)
    value, locations, weights = (tensor.to(device).requires_grad_() for tensor in inputs.plain(torch.float32))
    with torch.no_grad():
        locations += 50
        weights.fill_(float("nan"))
    output = ms_deform_attn(value, inputs.shapes, locations, weights)
    output.sum().backward()
    for found in (output, value.grad, locations.grad, weights.grad):
        assert not found.any()  # a number that is none would count


def test_strides_are_the_callers_matter(device):
    inputs = reference.odd_inputs("usual")
    wanted = run(device, inputs, torch.float32)
    for name in ("value", "locations", "weights", "references", "offsets", "logits"):
        tensor = getattr(inputs, name)
        order = list(range(tensor.dim()))[::-1]
        setattr(inputs, name, tensor.permute(order).contiguous().permute(order))
        assert not getattr(inputs, name).float().is_contiguous()
    inputs.grad_output = inputs.grad_output[:, :1, :1].expand_as(inputs.grad_output)
    strided = run(device, inputs, torch.float32)
    inputs.grad_output = inputs.grad_output.contiguous()
    inputs_again = run(device, inputs, torch.float32)
    assert all(torch.allclose(strided[index], wanted[index], atol=1e-6) for index in OUTPUTS)
    assert all(torch.allclose(one, other, atol=1e-5, rtol=1e-5) for one, other in zip(strided, inputs_again))


def test_results_are_laid_out_as_compiled_code_expects(device):
    inputs = reference.odd_inputs("usual")
    half = torch.bfloat16
    for name, tensors in (("ms_deform_attn", inputs.plain(half)), ("ms_deform_attn_fused", inputs.fused(half))):
        value, *others = [tensor.to(device) for tensor in tensors]
        grad_output = inputs.grad_output.to(device, half)
        for suffix, before in (("", ()), ("_backward", (grad_output,))):
            operation = getattr(torch.ops.sst_d2, name + suffix)
            found = operation(*before, value, inputs.flat, *others)
            with FakeTensorMode(allow_non_fake_inputs=True):
                promised = operation(*before, value, inputs.flat, *others)
            for real, fake in zip(*((one,) if torch.is_tensor(one) else one for one in (found, promised)), strict=True):
                assert (real.dtype, real.shape, real.stride()) == (fake.dtype, fake.shape, fake.stride())


@pytest.mark.slow
@pytest.mark.parametrize(("auxiliary", "dtype", "tolerance"), [(False, "float32", 1e-4), (True, "float64", 1e-9)])
def test_the_network_trains_to_the_same_losses(make_dataset, tmp_path, monkeypatch, auxiliary, dtype, tolerance):
    """On the CPU, where there are two to compare.

    With SST in float32 rounding alone makes more: plain PyTorch with one thread and with two is apart by 2e-4.
    """
    choose("auto", monkeypatch)
    if backends.choice("cpu").name != "ext":
        pytest.skip(f"only one back end here: {backends.choice('cpu').reason}")
    cards = [str(make_dataset(name, domain=domain)) for name, domain in (("p", "pascal_person_part"), ("a", "atr"))]
    register_dataset_cards(cards)
    losses = []
    for name in ("ext", "torch"):
        choose(name, monkeypatch)
        cfg = tiny_cfg(
            domains=["pascal_person_part", "atr"],
            DATASETS__SST__CARDS=cards,
            DATASETS__TRAIN=("p", "a"),
            SOLVER__MAX_ITER=20,
            SOLVER__STEPS=(),
            SOLVER__BASE_LR=1e-4,  # the published rate; AdamW makes noise of gradients near zero as large as the rate
            SOLVER__IMS_PER_BATCH=2,
            OUTPUT_DIR=str(tmp_path / name),
            MODEL__SST__AUXILIARY__ENABLED=auxiliary,
        )
        torch.manual_seed(0)
        trainer = SSTTrainer(cfg)
        trainer.resume_or_load(False)
        trainer.model.to(getattr(torch, dtype))
        trainer.train()
        losses.append([loss for loss, _ in trainer.storage.history("total_loss").values()])
    choose("auto", monkeypatch)
    assert len(losses[0]) == 20 and losses[0][0] != losses[0][-1]
    assert np.allclose(losses[0], losses[1], rtol=tolerance, atol=0)
