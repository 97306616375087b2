"""The CUDA kernels as Python launches them: here by a stand-in of the driver that runs them on an emulator."""

import ctypes
import threading
import time

import numpy as np
import pytest
import reference
import torch
from emulator.emulated import HERE, build, compiler

from sst_d2.modeling.ops import backends, cuda_driver, cuda_launch, kernels, launch_plan, ms_deform_attn_fused, nvrtc

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, twice what is due
needs_gpu = pytest.mark.skipif(bool(nvrtc.why_not()), reason=f"no GPU to run on: {nvrtc.why_not()}")


# ---- the arithmetic of launches --------------------------------------------------------------------------------------


_SIZES = ("images", "pixels", "heads", "channels", "queries", "levels", "points")
_RECORD = ("launches", "modules", "contexts", "last_device", "last_images", "failure")


class Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        ("height", ctypes.c_int64 * 8),
        ("width", ctypes.c_int64 * 8),
        ("value_bytes", ctypes.c_int),
    ]


class Launch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in ("lanes", "threads", "tiles", "shared_bytes")),
        ("problem", launch_plan.Problem),
    ]


class Record(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in _RECORD),
        ("last_stream", ctypes.c_void_p),
    ]


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory):
    if compiler() is None:
        pytest.skip("no C++20 compiler that builds the emulator")
    path = tmp_path_factory.mktemp("driver") / "libcuda.so"
    library = ctypes.CDLL(str(build(HERE / "emulate_driver.cpp", path, options=("-shared", "-fPIC"))))
    library.stand_in_unsupported.restype = ctypes.c_char_p
    library.stand_in_record.restype = ctypes.POINTER(Record)
    return library


def as_struct(sizes):
    struct = Sizes(*sizes[:5], len(sizes.shapes), sizes.points, value_bytes=sizes.value_bytes)
    for level, (height, width) in enumerate(sizes.shapes[:8]):
        struct.height[level], struct.width[level] = height, width
    return struct


def random_sizes(generator):
    """Sizes of every kind, some beyond what is supported."""
    levels = int(generator.integers(1, 10))
    largest = int(2 ** generator.integers(1, 14))
    shapes = tuple((int(h), int(w)) for h, w in generator.integers(1, largest + 1, (levels, 2)))
    pixels = sum(height * width for height, width in shapes)
    queries = pixels if generator.random() < 0.5 else int(2 ** generator.uniform(0, 24))
    images, heads = (int(2 ** generator.uniform(0, 8)) for _ in range(2))
    if generator.random() < 0.1:
        heads *= 1000
    channels = int(generator.integers(1, 20)) * (1 if generator.random() < 0.1 else 8)
    points = int(generator.integers(1, 18))
    return launch_plan.Sizes(
        images, pixels, heads, channels, queries, points, shapes, int(2 ** generator.integers(1, 3))
    )


def test_the_arithmetic_is_that_of_cpp(stand_in):
    generator, supported, refused = np.random.default_rng(0), 0, set()
    for _ in range(5000):
        sizes = random_sizes(generator)
        reason = (stand_in.stand_in_unsupported(ctypes.byref(as_struct(sizes))) or b"").decode()
        assert launch_plan.unsupported(sizes) == reason, sizes
        if reason:
            refused.add(reason)
            continue
        supported += 1
        for backward in (False, True):
            expected, found = Launch(), launch_plan.make_launch(sizes, backward)
            stand_in.stand_in_launch(ctypes.byref(as_struct(sizes)), backward, ctypes.byref(expected))
            assert bytes(found.problem) == bytes(expected.problem), sizes
            numbers = (expected.lanes, expected.threads, expected.tiles, expected.shared_bytes)
            assert (found.lanes, found.threads, found.tiles, found.shared_bytes) == numbers, sizes
    assert supported > 500 and len(refused) == 7


def sizes_near_the_limits():
    limits = launch_plan.Sizes(1, 10, 1, 8, 1, 1, ((2, 5),), 2)
    for step in range(-4, 5):
        yield limits._replace(pixels=2**27 - 12 + step)  # beside a border, 27 bits for a pixel
        yield limits._replace(pixels=2**22 - 6 + step, heads=512)  # 31 bits for 16 bytes
        yield limits._replace(images=2**31 // 10 + step)
        yield limits._replace(images=2**11, queries=2**10 + step, heads=2**10)
        yield limits._replace(heads=65535 + step)
        yield limits._replace(channels=128 + step)


def test_the_limits_are_those_of_cpp(stand_in):
    cases, refused = list(sizes_near_the_limits()), 0
    for sizes in cases:
        reason = (stand_in.stand_in_unsupported(ctypes.byref(as_struct(sizes))) or b"").decode()
        assert launch_plan.unsupported(sizes) == reason, sizes
        refused += reason != ""
    assert len(cases) / 4 < refused < len(cases)


@pytest.mark.parametrize("side", [0, -3, 2**24])
def test_sides_of_levels_have_limits(side):
    sizes = launch_plan.Sizes(1, side, 1, 8, 1, 1, ((1, side),), 4)
    assert launch_plan.unsupported(sizes) == "height and width of each level must be positive and below 2^24"


# ---- launching -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(stand_in, monkeypatch):
    """CPU tensors are computed as if they were on GPU 1; what the stand-in of the driver has recorded."""
    record = stand_in.stand_in_record().contents
    ctypes.memset(ctypes.byref(record), 0, ctypes.sizeof(record))
    driver = cuda_driver.Driver(stand_in)
    monkeypatch.setattr(cuda_driver, "driver", lambda: driver)
    monkeypatch.setattr(cuda_launch, "_place", lambda tensor: (1, 0x5EED))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    monkeypatch.setattr(nvrtc, "image", lambda capability, value, lanes: f"{value},{lanes}".encode())
    monkeypatch.setattr(backends, "for_call", lambda *_: "nvrtc")
    return record


def compute(inputs, dtype=torch.float32, others=torch.float32, device="cpu"):
    """All four operations: output, three gradients, output, three gradients; and the truths of the same numbers."""
    gradient = inputs.grad_output.to(device, dtype)
    value, *plain = (tensor.to(device) for tensor in inputs.plain(others, dtype))
    _, *fused = (tensor.to(device) for tensor in inputs.fused(others, dtype))
    found = [
        kernels.ms_deform_attn(value, inputs.flat, *plain),
        *kernels.ms_deform_attn_backward(gradient, value, inputs.flat, *plain),
        kernels.ms_deform_attn_fused(value, inputs.flat, *fused),
        *kernels.ms_deform_attn_fused_backward(gradient, value, inputs.flat, *fused),
    ]
    gradient, value, *rest = (tensor.double().cpu().numpy() for tensor in (gradient, value, *plain, *fused))
    plain, fused = (value, inputs.shapes, *rest[:2]), (value, inputs.shapes, *rest[2:])
    truths = [
        *(reference.forward(*plain), *reference.backward(gradient, *plain)),
        *(reference.fused_forward(*fused), *reference.fused_backward(gradient, *fused)),
    ]
    return found, truths


def check(found, truths):
    for index, (got, want) in enumerate(zip(found, truths, strict=True)):
        assert got.shape == want.shape
        if want.size:
            allowed = 1e-5 * np.abs(want).max() + ROUNDING[got.dtype] * np.abs(want)
            assert (np.abs(got.double().cpu().numpy() - want) <= allowed).all(), f"result {index}"


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", ["usual", "one_column", "one_query", "eight_levels"])
def test_equals_the_loops(gpu, size, dtype):
    found, truths = compute(reference.odd_inputs(size), dtype)
    check(found, truths)
    assert [tensor.dtype for tensor in found] == [dtype, dtype, torch.float32, torch.float32] * 2
    assert (gpu.launches, gpu.last_device, gpu.last_stream) == (4, 1, 0x5EED)


@pytest.mark.parametrize("others", FLOATS[1:], ids=str)
def test_positions_and_weights_have_types_of_their_own(gpu, others):
    found, truths = compute(reference.odd_inputs("one_column"), torch.bfloat16, others)
    check(found, truths)
    assert [tensor.dtype for tensor in found[1:4]] == [torch.bfloat16, others, others]


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 2])
def test_references_may_be_shared(gpu, images, levels):
    inputs = reference.make_inputs([(3, 4), (2, 2)])
    inputs.references = inputs.references[:images, :, :levels]
    check(*compute(inputs))


def test_views_that_begin_anywhere(gpu):
    inputs = reference.odd_inputs("one_column")
    for name in ("value", "locations", "weights", "references", "offsets", "logits", "grad_output"):
        tensor = getattr(inputs, name).float()
        moved = torch.empty(tensor.numel() + 1)[1:].view(tensor.shape)
        setattr(inputs, name, moved.copy_(tensor))
        assert moved.data_ptr() % 16
    check(*compute(inputs))


def test_more_images_than_a_grid_holds_are_launched_in_turns(gpu, monkeypatch):
    monkeypatch.setattr(cuda_launch, "MAX_IMAGES", 2)
    check(*compute(reference.make_inputs([(3, 4), (2, 2)], batch=5)))
    assert gpu.launches == 4 * 3 and gpu.last_images == 1


@pytest.mark.parametrize("size", ["no_image", "no_query"])
def test_nothing_is_launched_for_nothing(gpu, size):
    found, truths = compute(reference.odd_inputs(size), torch.bfloat16)
    check(found, truths)
    assert not found[1].any() and gpu.launches == gpu.modules == 0


def test_gradients_come_through_the_public_function(gpu):
    inputs = reference.make_inputs([(3, 4), (2, 2)], shared_references=True)
    tensors = [tensor.requires_grad_() for tensor in inputs.fused(torch.float32)]
    output = ms_deform_attn_fused(tensors[0], inputs.shapes, *tensors[1:])
    output.backward(inputs.grad_output.float().transpose(0, 1).contiguous().transpose(0, 1))
    fused = (inputs.value.numpy(), inputs.shapes, *(t.detach().double().numpy() for t in tensors[1:]))
    of_value, of_offsets, of_logits = reference.fused_backward(inputs.grad_output.numpy(), *fused)
    check([tensors[0].grad, tensors[2].grad, tensors[3].grad], [of_value, of_offsets, of_logits])
    of_references = (of_offsets.sum((2, 4)) * [(4, 3), (2, 2)]).sum((0, 2), keepdims=True)
    check([tensors[1].grad], [of_references])
    assert gpu.launches == 2


def test_a_module_is_loaded_once_per_gpu(gpu, monkeypatch):
    inputs = reference.odd_inputs("one_column")
    for number in (1, 0, 1, 0):
        monkeypatch.setattr(cuda_launch, "_place", lambda tensor, number=number: (number, 0))
        compute(inputs)
        assert gpu.last_device == number
    assert gpu.modules == gpu.contexts == 2


def test_two_threads_load_one_module(gpu, monkeypatch):
    gate, answers = threading.Barrier(2, timeout=20), []
    driver = cuda_driver.driver()

    def load():
        gate.wait()
        answers.append(driver.kernels(0, "float", 2, lambda: time.sleep(0.1) or b"float,2"))

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gpu.modules == 1 and answers[0] is answers[1]


def test_an_error_of_the_driver_is_raised_with_its_words(gpu):
    inputs = reference.odd_inputs("one_column")
    gpu.failure = 719
    with pytest.raises(RuntimeError, match="cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"):
        compute(inputs)
    gpu.failure = 0
    check(*compute(inputs))  # the context has been put away


def test_an_image_that_is_none_is_refused(gpu, monkeypatch):
    monkeypatch.setattr(nvrtc, "image", lambda *_: b"nothing")
    with pytest.raises(RuntimeError, match="cuModuleLoadData: CUDA_ERROR: some failure"):
        compute(reference.odd_inputs("one_column"))


def wrong_calls():
    inputs = reference.make_inputs([(4, 5), (2, 3)])
    value, locations, weights = inputs.plain(torch.float32)
    _, references, offsets, logits = inputs.fused(torch.float32)
    flat, plain, fused = inputs.flat, "ms_deform_attn", "ms_deform_attn_fused"
    yield plain, (value, [4, 5], locations[:, :, :, :1], weights), r"value is \(2, 26, 2, 8\); expected is \(2, 20"
    yield plain, (value, [4, 5, 2], locations, weights), r"spatial_shapes \[4, 5, 2\]; expected"
    yield plain, (value[0], flat, locations, weights), r"value is \(26, 2, 8\)"
    yield plain, (value.double(), flat, locations, weights), "value is torch.float64; the CUDA kernels take float32"
    yield plain, (value[..., :5], flat, locations, weights), "cannot do this: channels per head must be a multiple of 8"
    yield plain, (value, flat, locations[:, :3], weights), "attention_weights is .* expected is"
    yield plain, (value, flat, locations[..., :1], weights), "sampling_locations is .* expected is"
    yield plain, (value, flat, locations.to("meta"), weights), "must be on the device of value, cpu"
    yield fused, (value, flat, references[:, :2], offsets, logits), "reference_points is"
    yield fused, (value, flat, references, offsets, logits[..., :1]), "attention_logits is"
    gradient = torch.zeros(2, 5, 16)
    yield f"{plain}_backward", (gradient.half(), value, flat, locations, weights), "take the type of value"
    yield f"{plain}_backward", (gradient[:1], value, flat, locations, weights), "grad_output is"


@pytest.mark.parametrize(("name", "arguments", "message"), list(wrong_calls()))
def test_wrong_arguments_are_named(gpu, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(kernels, name)(*arguments)
    assert gpu.launches == 0


# ---- on a GPU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def by_nvrtc(monkeypatch):
    monkeypatch.setattr(backends, "for_call", lambda *_: "nvrtc")


SUPPORTED = [name for name, size in reference.ODD_SIZES.items() if size.get("channels", 8) % 8 == 0]


@needs_gpu
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SUPPORTED)
def test_equals_the_loops_on_the_gpu(by_nvrtc, size, dtype):
    check(*compute(reference.odd_inputs(size), dtype, device="cuda"))


@needs_gpu
def test_a_thread_that_has_not_touched_the_gpu_yet(by_nvrtc):
    inputs, found = reference.odd_inputs("usual"), []
    compute(inputs, device="cuda")  # the results' memory is there to be used again
    thread = threading.Thread(target=lambda: found.extend(compute(inputs, device="cuda")))
    thread.start()
    thread.join()
    check(*found)


@needs_gpu
def test_another_gpu_than_the_current_one(by_nvrtc):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    check(*compute(reference.odd_inputs("usual"), device="cuda:1"))


@needs_gpu
def test_a_graph_of_cuda_holds_the_launches(by_nvrtc):
    inputs = reference.odd_inputs("usual")
    value, locations, weights = (tensor.cuda() for tensor in inputs.plain(torch.float32))
    expected = kernels.ms_deform_attn(value, inputs.flat, locations, weights)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = kernels.ms_deform_attn(value, inputs.flat, locations, weights)
    value.mul_(2)
    graph.replay()
    assert torch.equal(output, 2 * expected)
