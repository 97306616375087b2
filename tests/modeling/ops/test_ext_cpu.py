"""The compiled operation on the CPU against loops in NumPy, with every instruction set that this processor has."""

import ctypes
import functools
import mmap
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from sst_d2.modeling import ops

LIBRARY = Path(ops.__file__).parent / "_C_cpu.abi3.so"
if not LIBRARY.is_file():
    pytest.skip("_C_cpu is not built here: no C++ compiler, or build isolation", allow_module_level=True)
torch.ops.load_library(str(LIBRARY))
EXT = torch.ops.sst_d2_cpu
WIDEST = EXT.vector_bits(512)
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture(params=[bits for bits in (128, 256, 512) if bits <= WIDEST], autouse=True)
def bits(request):
    assert EXT.vector_bits(request.param) == request.param
    threads = torch.get_num_threads()
    torch.use_deterministic_algorithms(True)  # memory that nobody has written is full of NaN then
    yield request.param
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(threads)
    EXT.vector_bits(512)


@functools.cache
def expected(name):
    """Forward and backward of both operations; inputs first."""
    inputs = reference.odd_inputs(name)
    return inputs, truths_of(inputs)


def truths_of(inputs):
    """What the loops make of the inputs."""
    plain, fused = inputs.plain(), inputs.fused()
    return [
        reference.forward(plain[0], inputs.shapes, *plain[1:]),
        *reference.backward(inputs.grad_output, plain[0], inputs.shapes, *plain[1:]),
        reference.fused_forward(fused[0], inputs.shapes, *fused[1:]),
        *reference.fused_backward(inputs.grad_output, fused[0], inputs.shapes, *fused[1:]),
    ]


def compute(inputs, dtype=None, value_dtype=None):
    """The eight tensors of `expected`, by the extension."""
    plain, fused = inputs.plain(dtype, value_dtype), inputs.fused(dtype, value_dtype)
    grad = inputs.grad_output.to(plain[0].dtype)
    return [
        EXT.ms_deform_attn(plain[0], inputs.flat, *plain[1:]),
        *EXT.ms_deform_attn_backward(grad, plain[0], inputs.flat, *plain[1:]),
        EXT.ms_deform_attn_fused(fused[0], inputs.flat, *fused[1:]),
        *EXT.ms_deform_attn_fused_backward(grad, fused[0], inputs.flat, *fused[1:]),
    ]


def largest(array):
    return float(np.abs(array).max(initial=0))


def assert_close(results, truths, tolerance):
    """Within the tolerance times the largest number, at least 1."""
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        assert result.shape == truth.shape
        error = largest(result.double().numpy() - truth)
        assert error <= tolerance * max(1, largest(truth)), f"result {index}: {error}"


@pytest.mark.parametrize("name", reference.ODD_SIZES)
def test_equals_the_loops_in_both_precisions(name):
    inputs, truths = expected(name)
    assert_close(compute(inputs, torch.float32), truths, 1e-5 / 4)
    assert_close(compute(inputs), truths, 1e-12)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 2])
def test_references_may_be_shared_by_images_and_by_levels(images, levels):
    inputs = reference.make_inputs([(3, 4), (2, 2)])
    inputs.references = inputs.references[:images, :, :levels]
    check_fused(inputs, 1e-5 / 4)


def check_fused(inputs, tolerance):
    """Forward and backward in float32 against the loops."""
    value, *others = inputs.fused()
    truths = [reference.fused_forward(value, inputs.shapes, *others)]
    truths += reference.fused_backward(inputs.grad_output, value, inputs.shapes, *others)
    assert_close(compute(inputs, torch.float32)[4:], truths, tolerance)


@pytest.mark.parametrize("factor", [20, 500])
@pytest.mark.parametrize("name", ["usual", "one_point", "eight_levels"])
def test_large_logits_neither_overflow_nor_lose_their_order(name, factor):
    inputs = reference.odd_inputs(name)
    inputs.logits = (inputs.logits * factor).float().double()
    check_fused(inputs, 1e-5)


def test_shares_are_exact_however_small():
    # The share of the second of two pixels, 0 and 1, is the output.
    lags = torch.cat([torch.linspace(0, 84, 4001), torch.tensor([88.0, 89.0, 500.0, 1e30, float("inf")])])
    value = torch.tensor([0.0, 1.0])[:, None, None].expand(1, 2, 1, 16).contiguous()
    references, offsets = torch.full((1, len(lags), 1, 2), 0.25), torch.zeros(1, len(lags), 1, 1, 2, 2)
    offsets[..., 1, 0], offsets[..., 1] = 1, offsets[..., 1] + 0.25
    logits = torch.stack([torch.zeros_like(lags), -lags], dim=-1)[None, :, None]
    out = EXT.ms_deform_attn_fused(value, [1, 2], references, offsets, logits)[0].double()
    powers = np.exp(-lags.double().numpy())
    assert np.allclose(out, (powers / (1 + powers))[:, None], rtol=1e-6, atol=1e-38)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["usual", "many_queries", "few_queries", "5_channels", "no_query"])
def test_half_precision_is_single_precision_rounded_once(name, dtype):
    inputs = reference.odd_inputs(name)
    inputs.value, inputs.grad_output = inputs.value.to(dtype).double(), inputs.grad_output.to(dtype).double()
    halves, singles = compute(inputs, torch.float32, dtype), compute(inputs, torch.float32)
    for index, (half, single) in enumerate(zip(halves, singles)):
        assert half.dtype == (dtype if index in (0, 1, 4, 5) else torch.float32)
        assert torch.equal(half, single.to(half.dtype)), f"result {index}"


@pytest.mark.parametrize("dtype", HALVES)
def test_positions_and_weights_in_half_precision_are_taken_as_they_are(dtype):
    inputs = reference.odd_inputs("usual")
    for name in ("locations", "weights", "references", "offsets", "logits"):
        setattr(inputs, name, getattr(inputs, name).to(dtype).double())
    for half, single in zip(compute(inputs, dtype, torch.float32), compute(inputs, torch.float32)):
        assert torch.equal(half, single.to(half.dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_of_half_precision_is_read_and_written_exactly(dtype):
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    value = numbers.reshape(2**12, 1, 1, 16)  # images of one pixel
    places, weights = torch.full((2**12, 1, 1, 1, 1, 2), 0.5), torch.ones(2**12, 1, 1, 1, 1)
    out = EXT.ms_deform_attn(value, [1, 1], places, weights).flatten()
    finite = numbers.isfinite()
    assert torch.equal(out[finite], numbers[finite]) and not out[~finite].isfinite().any()


@pytest.mark.parametrize("dtype", HALVES)
def test_results_in_half_precision_are_rounded_to_the_nearest(dtype):
    weights = torch.logspace(-9, 5, 4096, base=10)[:, None, None, None, None]
    value, places = torch.ones(4096, 1, 1, 16, dtype=dtype), torch.full((4096, 1, 1, 1, 1, 2), 0.5)
    out = EXT.ms_deform_attn(value, [1, 1], places, weights)
    assert torch.equal(out, weights[:, :, :, 0, 0].to(dtype).expand(-1, 1, 16))


@pytest.mark.parametrize("dtype", HALVES)
def test_results_are_rounded_as_torch_rounds_them(dtype):
    generator = np.random.default_rng(0)
    # Around every number of the type, halfway between neighbours, and NaN of all kinds.
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype).float().numpy().view(np.uint32)
    steps = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], dtype=np.uint32)
    special = np.array([0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00001, 0x7FFF8000, 0xFFFF8000], dtype=np.uint32)
    bits = [generator.integers(2**32, size=2**16, dtype=np.uint32), (every[:, None] + steps).ravel(), special]
    weights = torch.from_numpy(np.concatenate(bits).view(np.float32))
    weights = weights[~weights.isinf()]
    queries = weights.numel()
    value, places = torch.ones(1, 4, 1, 16, dtype=dtype), torch.full((1, queries, 1, 1, 1, 2), 0.25)
    out = EXT.ms_deform_attn(value, [2, 2], places, weights.view(1, queries, 1, 1, 1))[0, :, 0]
    assert torch.equal(out.isnan(), weights.isnan())
    assert torch.equal(out.nan_to_num(1.5), weights.to(dtype).nan_to_num(1.5))


INFINITE = {
    "packed": {"shapes": [(4, 5), (2, 3)], "queries": 24, "points": 1, "channels": 20},
    "direct": {"shapes": [(8, 8)], "queries": 12, "points": 4, "channels": 32},
    "bands": {"shapes": [(5, 3), (3, 2)], "queries": 150, "points": 1, "channels": 128},  # on many threads
    "one_row": {"shapes": [(1, 4), (3, 1)], "queries": 24, "points": 1},
    "one_pixel": {"shapes": [(1, 1)], "queries": 24, "points": 1},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("name", INFINITE)
def test_infinite_numbers_reach_nobody_who_does_not_look_at_them(name, dtype):
    inputs, truths = infinite(name, dtype)
    torch.set_num_threads(64 if name == "bands" else 1)
    results = compute(inputs, torch.float64 if dtype == torch.float64 else torch.float32, dtype)
    rounding = 2.0**-8 if dtype in HALVES else 0
    for index, (result, truth) in enumerate(zip(results, truths, strict=True)):
        assert not reference.differing(result.double(), truth, 1e-5, rounding).any(), f"result {index}"


@functools.cache
def infinite(name, dtype):
    """Inputs with values that ``dtype`` has, and what the loops make of them."""
    inputs = reference.with_infinite_numbers(reference.make_inputs(**INFINITE[name]))
    inputs.value, inputs.grad_output = inputs.value.to(dtype).double(), inputs.grad_output.to(dtype).double()
    with np.errstate(invalid="ignore"):
        truths = truths_of(inputs)
    assert not np.isfinite(truths[0]).all()
    return inputs, truths


@pytest.mark.parametrize("place", [float("nan"), float("inf"), -float("inf"), 1e30, -1.5, -1.0, 4.0, 5.5])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_place_outside_gives_nothing_and_gets_no_gradient(place, axis):
    inputs = reference.make_inputs([(4, 4), (2, 3)], channels=16, queries=3)
    inputs.locations[:, 1, :, 0, 1, axis] = (place + 0.5) / 4
    inputs.references[:] = 0.5 / torch.tensor([(4, 4), (3, 2)])
    inputs.offsets[:, 1, :, 0, 1, axis] = place
    inputs.value[:, 0] = 1e30  # what an unguarded index would read
    results = compute(inputs, torch.float32)
    _, of_value, of_locations, of_weights, _, of_value_too, of_offsets, _ = results
    assert not of_locations[:, 1, :, 0, 1].any() and not of_weights[:, 1, :, 0, 1].any()
    assert not of_offsets[:, 1, :, 0, 1].any()
    inputs.weights[:, 1, :, 0, 1] = 0
    inputs.locations[:, 1, :, 0, 1] = 0.5
    same = compute(inputs, torch.float32)
    assert torch.equal(results[0], same[0]) and torch.equal(of_value, same[1])
    assert of_value_too.isfinite().all() and all(result.isfinite().all() for result in results)


def test_pixels_that_nobody_looks_at_may_be_no_numbers():
    inputs = reference.make_inputs([(4, 4)], channels=16)
    inputs.value[:] = float("nan")
    inputs.locations[:] = 3
    assert not EXT.ms_deform_attn(inputs.value.float(), inputs.flat, *inputs.plain(torch.float32)[1:]).any()


def test_logits_of_minus_infinity_take_part_in_nothing():
    inputs = reference.odd_inputs("usual")
    inputs.logits[..., 3:] = -float("inf")
    value, references, offsets, logits = inputs.fused(torch.float32)
    truth = reference.fused_forward(*(inputs.value, inputs.shapes, inputs.references, inputs.offsets, inputs.logits))
    assert_close([EXT.ms_deform_attn_fused(value, inputs.flat, references, offsets, logits)], [truth], 1e-5)
    inputs.logits[0, 0, 0] = -float("inf")  # a mean of nothing
    logits = inputs.logits.float()
    assert EXT.ms_deform_attn_fused(value, inputs.flat, references, offsets, logits)[0, 0, :32].isnan().all()


def test_any_number_of_threads_gives_the_same_bits():
    inputs = reference.make_inputs([(13, 9), (7, 5), (3, 2)], batch=1, queries=120, heads=3, channels=20, points=4)
    single = compute(inputs, torch.float32)
    truths = reference.backward(inputs.grad_output, inputs.value, inputs.shapes, inputs.locations, inputs.weights)
    assert_close(single[1:4], truths, 1e-5)
    for threads in (2, 5, 16, 64):  # more threads: levels apart, then bands of rows
        torch.set_num_threads(threads)
        for index, (many, one) in enumerate(zip(compute(inputs, torch.float32), single)):
            assert torch.equal(many, one), f"{threads} threads, result {index}"


def test_gradcheck():
    inputs = reference.make_inputs([(3, 4), (2, 2)], batch=1, queries=2, channels=3)

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            return EXT.ms_deform_attn(tensors[0], inputs.flat, *tensors[1:])

        @staticmethod
        def backward(ctx, grad):
            tensors = ctx.saved_tensors
            return EXT.ms_deform_attn_backward(grad.contiguous(), tensors[0], inputs.flat, *tensors[1:])

    assert torch.autograd.gradcheck(Attention.apply, [tensor.requires_grad_() for tensor in inputs.plain()])


@pytest.mark.slow
def test_value_may_have_more_than_two_to_the_31_numbers(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    height, width, channels = 4096, 4100, 128
    value = torch.empty(1, height * width, 1, channels, dtype=torch.bfloat16)  # only pages that are touched take memory
    value[0, -2:] = torch.tensor([3.0, 5.0])[:, None, None]
    value[0, -width - 2 : -width] = 1
    # Halfway between the last two pixels, and the last pixel.
    places = torch.tensor([[width - 1, height - 0.5], [width - 0.5, height - 0.5]]) / torch.tensor([width, height])
    locations = places.reshape(1, 2, 1, 1, 1, 2).double().float()
    out = EXT.ms_deform_attn(value, [height, width], locations, torch.ones(1, 2, 1, 1, 1))
    assert ((out.float() - torch.tensor([[4.0], [5.0]])).abs() < 0.1).all()


def arguments(**changes):
    inputs = reference.make_inputs([(4, 5), (2, 3)])
    found = {"value": inputs.value, "shapes": inputs.flat, "locations": inputs.locations, "weights": inputs.weights}
    return list({**found, **changes}.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shapes": [4, 5]}, "the levels have 20 pixels, value has 26"),
        ({"shapes": [4, 5, 2]}, "spatial_shapes must be height, width of 1 to 8 levels"),
        ({"shapes": [4, 5, 6, 1, 0, 9]}, "level 2: its size must be positive"),
        ({"value": torch.zeros(2, 26, 2, 8, dtype=torch.int32)}, "value must be float32, float64"),
        ({"value": torch.zeros(26, 2, 2, 8).transpose(0, 1)}, "value must be contiguous"),
        ({"locations": torch.zeros(2, 5, 2, 2, 17, 2)}, "there must be 1 to 16 points, not 17"),
        (
            {"locations": torch.zeros(2, 5, 2, 2, 2, 3)},
            "sampling_locations must have the shape (2, 5, 2, 2, 2, 2), not (2, 5, 2, 2, 2, 3)",
        ),
        (
            {"locations": torch.zeros(2, 5, 2, 2, 2)},
            "sampling_locations must have 6 dimensions: (B, Q, M, L, P, 2), not the shape (2, 5, 2, 2, 2)",
        ),
        ({"value": torch.zeros(26, 8)}, "value must have 4 dimensions: (B, S, M, D), not the shape (26, 8)"),
        (
            {"weights": torch.zeros(2, 5, 2, 2, 3)},
            "attention_weights must have the shape (2, 5, 2, 2, 2), not (2, 5, 2, 2, 3)",
        ),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(RuntimeError, match=re.escape(message)):
        EXT.ms_deform_attn(*arguments(**changes))


def test_wrong_gradients_and_references_are_named():
    inputs = reference.make_inputs([(4, 5), (2, 3)])
    message = re.escape("grad_output must have the shape (2, 5, 16), not (2, 5, 8)")
    with pytest.raises(RuntimeError, match=message):
        EXT.ms_deform_attn_backward(torch.zeros(2, 5, 8), *arguments())
    for references, message in (
        (torch.zeros(3, 5, 2, 2), "reference_points must have the shape (2, 5, 2, 2), not (3, 5, 2, 2)"),
        (torch.zeros(5, 2), "reference_points must have 4 dimensions: (B or 1, Q, L or 1, 2), not the shape (5, 2)"),
    ):
        with pytest.raises(RuntimeError, match=re.escape(message)):
            EXT.ms_deform_attn_fused(inputs.value, inputs.flat, references, inputs.offsets, inputs.logits)


def test_the_library_tells_its_version():
    assert isinstance(EXT.version(), str) and EXT.version()


def guarded(tensor):
    """A copy right before a page of memory that nobody may read."""
    size = tensor.numel() * tensor.element_size()
    end = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, end + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + end), mmap.PAGESIZE, 0) == 0
    copy = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=end - size).view(tensor.shape)
    return copy.copy_(tensor)


def read_guarded_tensors():
    """Every operation on them; a read past the end of one ends the process."""
    for size in reference.ODD_SIZES.values():
        inputs = reference.make_inputs(**{**size, "queries": min(size.get("queries", 5), 20)})
        for dtype, value_dtype in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.float32, torch.bfloat16), HALVES):
            plain, fused = inputs.plain(dtype, value_dtype), inputs.fused(dtype, value_dtype)
            grad, *plain = (guarded(t) if t.numel() else t for t in (inputs.grad_output.to(value_dtype), *plain))
            fused = [plain[0], *(guarded(t) if t.numel() else t for t in fused[1:])]
            for bits in (128, 256, 512):
                EXT.vector_bits(bits)
                EXT.ms_deform_attn(plain[0], inputs.flat, *plain[1:])
                EXT.ms_deform_attn_backward(grad, plain[0], inputs.flat, *plain[1:])
                EXT.ms_deform_attn_fused(fused[0], inputs.flat, *fused[1:])
                EXT.ms_deform_attn_fused_backward(grad, fused[0], inputs.flat, *fused[1:])


@pytest.mark.slow
def test_nothing_is_read_past_the_end_of_a_tensor(bits):
    if bits != WIDEST:
        pytest.skip("the process goes through all of them")
    line = f"import sys; sys.path[:] = {sys.path!r}; import test_ext_cpu; test_ext_cpu.read_guarded_tensors()"
    done = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
