"""The CUDA kernels, compiled unchanged for the CPU and run on an emulator, against loops in NumPy."""

import subprocess

import numpy as np
import pytest
import reference
import torch
from emulator.emulated import HERE, Call, build, compiler, has_sanitizer, launches, run

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C++20 compiler that builds the emulator")

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}  # relative, twice what is due
OPERATIONS = [(fused, backward) for fused in (False, True) for backward in (False, True)]
NAMES = ["plain_forward", "plain_backward", "fused_forward", "fused_backward"]
# Of the common sizes those that the kernels support, and some where the queries are the pixels, in tiles of each shape.
SIZES = {name: size for name, size in reference.ODD_SIZES.items() if size.get("channels", 8) % 8 == 0} | {
    "72_channels": {"shapes": [(3, 4), (2, 2)], "channels": 72, "heads": 1, "queries": 2},
    "tiles_8x8": {"shapes": [(9, 17), (8, 8), (3, 2), (1, 1)], "queries": 224, "channels": 16, "heads": 1, "batch": 1},
    "tiles_8x4": {"shapes": [(5, 9), (4, 4)], "queries": 61, "points": 16, "heads": 1},
    "tiles_4x4": {"shapes": [(5, 3), (3, 4), (2, 2)], "queries": 31, "points": 16, "heads": 1, "batch": 1},
    "tiles_4x2": {"shapes": [(3, 5), (2, 3), (2, 2), (1, 2), (1, 1)], "queries": 28, "points": 16, "heads": 1},
}
EVERY_LANE = [8, 16, 32, 64, 128]  # channels, for 2, 4, 8, 16 and 32 lanes in fp32


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return build(HERE / "emulate.cpp", tmp_path_factory.mktemp("emulator") / "emulate")


def make_call(inputs, fused, backward, dtype=torch.float32, others=torch.float32, **options):
    """A call with values of type ``dtype`` and all else in type ``others``."""
    gradient = {"grad_output": inputs.grad_output.to(dtype)} if backward else {}
    if fused:
        value, references, offsets, logits = inputs.fused(others, dtype)
        return Call(inputs.shapes, value, offsets, logits, references, **gradient, **options)
    value, locations, weights = inputs.plain(others, dtype)
    return Call(inputs.shapes, value, locations, weights, **gradient, **options)


def expected(call):
    """What the loops make of the very numbers of a call."""
    value, positions, weights = (t.double().numpy() for t in (call.value, call.positions, call.weights))
    middle = () if call.references is None else (call.references.double().numpy(),)
    arguments = [value, call.shapes, *middle, positions, weights]
    if call.grad_output is None:
        return [(reference.fused_forward if middle else reference.forward)(*arguments)]
    function = reference.fused_backward if middle else reference.backward
    return function(call.grad_output.double().numpy(), *arguments)


def check(calls, results):
    for call, tensors in zip(calls, results, strict=True):
        for got, want in zip(tensors, expected(call), strict=True):
            assert got.shape == want.shape
            assert not reference.differing(got.double(), want, 1e-5, ROUNDING[got.dtype]).any()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_equals_the_loops_at_odd_sizes(program, tmp_path, size, dtype):
    inputs = reference.make_inputs(**SIZES[size])
    calls = [make_call(inputs, *operation, dtype) for operation in OPERATIONS]
    check(calls, run(program, calls, tmp_path))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("others", FLOATS[1:], ids=str)
def test_positions_and_weights_may_have_another_type_than_value(program, tmp_path, dtype, others):
    inputs = reference.odd_inputs("one_column")
    calls = [make_call(inputs, *operation, dtype, others) for operation in OPERATIONS]
    check(calls, run(program, calls, tmp_path))


@pytest.mark.parametrize("images", [1, 2])
def test_images_may_be_launched_in_slices(program, tmp_path, images):
    inputs = reference.make_inputs([(3, 4), (2, 2)], batch=3)
    calls = [make_call(inputs, *operation, most_images=images) for operation in OPERATIONS]
    check(calls, run(program, calls, tmp_path))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("levels", [1, 2])
def test_references_may_be_shared_by_images_and_by_levels(program, tmp_path, images, levels):
    inputs = reference.make_inputs([(3, 4), (2, 2)])
    inputs.references = inputs.references[:images, :, :levels]
    calls = [make_call(inputs, True, backward) for backward in (False, True)]
    check(calls, run(program, calls, tmp_path))


NOWHERE = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9]


@pytest.mark.parametrize("fused", [False, True])
def test_positions_out_of_range_or_none_give_zero_and_get_zero(program, tmp_path, fused):
    inputs = reference.make_inputs([(4, 5), (2, 3)], queries=len(NOWHERE), points=4)
    places = inputs.offsets if fused else inputs.locations
    for query, place in enumerate(NOWHERE):
        places[:, query, :, :, 0, 0] = place
        places[:, query, :, :, 1, 1] = place
        places[:, query, :, :, 2] = place
    if not fused:
        inputs.weights[:, :, :, :, 2] = np.nan
    calls = [make_call(inputs, fused, backward) for backward in (False, True)]
    results = run(program, calls, tmp_path)
    check(calls, results)
    of_places, of_weights = results[1][1:]
    assert (of_places[:, :, :, :, :3] == 0).all() and (of_places[:, :, :, :, 3] != 0).any()
    assert fused or (of_weights[..., :3] == 0).all()


@pytest.mark.parametrize("fused", [False, True])
def test_a_value_that_is_not_sampled_does_not_matter(program, tmp_path, fused):
    inputs = reference.make_inputs([(4, 5), (2, 3)])
    inputs.value[:] = np.nan
    (inputs.offsets if fused else inputs.locations)[:] = 100
    results = run(program, [make_call(inputs, fused, backward) for backward in (False, True)], tmp_path)
    assert all((tensor == 0).all() for tensors in results for tensor in tensors)


def test_the_edges_of_a_level_count_as_the_loops_count_them(program, tmp_path):
    inputs = reference.make_inputs([(4, 5)], points=8)
    inputs.references[:] = 0.5
    # In pixels: the outermost places, at which nothing is left, and their neighbours inside.
    places = torch.tensor([-1.0, np.nextafter(np.float32(-1), np.float32(0)), -0.5, 0.0, 3.0, 3.5, 4.0, 5.0])
    inputs.offsets[..., 0] = places - 2.0
    inputs.offsets[..., 1] = places.flip(0) - 1.5
    calls = [make_call(inputs, True, backward) for backward in (False, True)]
    check(calls, run(program, calls, tmp_path))


@pytest.mark.parametrize("factor", [20, 500])
def test_large_logits_neither_overflow_nor_lose_their_order(program, tmp_path, factor):
    inputs = reference.make_inputs([(4, 5), (2, 3)])
    inputs.logits = (inputs.logits * factor).float().double()
    calls = [make_call(inputs, True, backward) for backward in (False, True)]
    check(calls, run(program, calls, tmp_path))


# The channels of some are fewer than those of their lanes.
INFINITE = {
    "two_levels": {"shapes": [(4, 5), (2, 3)], "queries": 24, "points": 1, "channels": 24},
    "72_channels": {"shapes": [(3, 4)], "queries": 24, "points": 1, "channels": 72, "heads": 1},
    "one_row": {"shapes": [(1, 4), (3, 1)], "queries": 24, "points": 1},
    "one_pixel": {"shapes": [(1, 1)], "queries": 24, "points": 1},
}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("size", INFINITE)
@np.errstate(invalid="ignore")
def test_infinite_numbers_reach_nobody_who_does_not_look_at_them(program, tmp_path, size, dtype):
    inputs = reference.with_infinite_numbers(reference.make_inputs(**INFINITE[size]))
    calls = [make_call(inputs, *operation, dtype) for operation in OPERATIONS]
    assert not np.isfinite(expected(calls[0])[0]).all()
    check(calls, run(program, calls, tmp_path))


def test_conversions_equal_those_of_torch(tmp_path):
    generator = np.random.default_rng(0)
    bits = generator.integers(2**32, size=200_000, dtype=np.uint32)
    # Around every fp16 and bfloat16 number, and halfway between neighbours.
    ties = np.concatenate(
        [
            torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy().view(np.uint32)
            for dtype in (torch.float16, torch.bfloat16)
        ]
    )
    steps = np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001], dtype=np.uint32)
    numbers = np.concatenate([bits, (ties[:, None] + steps).ravel()]).view(np.float32)
    numbers.tofile(tmp_path / "numbers")
    program = build(HERE / "conversions.cpp", tmp_path / "conversions")
    subprocess.run([program, tmp_path / "numbers", tmp_path / "results"], check=True)
    data, wanted = (tmp_path / "results").read_bytes(), torch.from_numpy(numbers)
    for start, dtype in ((0, torch.bfloat16), (2 * numbers.size, torch.float16)):
        got = torch.frombuffer(bytearray(data[start : start + 2 * numbers.size]), dtype=dtype)
        assert torch.equal(got.nan_to_num(1.5), wanted.to(dtype).nan_to_num(1.5))
        assert torch.equal(got.isnan(), wanted.isnan())
    back = torch.frombuffer(bytearray(data[4 * numbers.size :]), dtype=torch.float32).view(2, 65536)
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16)
    for got, dtype in zip(back, (torch.bfloat16, torch.float16), strict=True):
        assert torch.equal(got.nan_to_num(1.5), every.view(dtype).float().nan_to_num(1.5))


# Tile width and height by the logarithm of a tile's queries, as msda_cuda_launch.cuh has them.
TILES = {6: (8, 8), 5: (8, 4), 4: (4, 4), 3: (4, 2)}


@pytest.mark.parametrize("size", SIZES)
def test_launches_are_as_the_table_says(program, tmp_path, size):
    inputs = reference.make_inputs(**SIZES[size])
    calls = [make_call(inputs, *operation, dtype) for operation in OPERATIONS for dtype in FLOATS]
    queries, heads, levels, points = inputs.locations.shape[1:5]
    samples, channels = levels * points, inputs.value.shape[3]
    rows = next((rows for rows in (64, 32, 16) if samples * rows <= 1024), 8)
    width, height = TILES[rows.bit_length() - 1]
    tiles = -(-queries // rows)
    if queries == inputs.value.shape[1]:
        tiles = sum(-(-h // height) * -(-w // width) for h, w in inputs.shapes)
    for call, found in zip(calls, launches(program, calls, tmp_path), strict=True):
        row_bytes = channels * call.value.element_size()
        lanes = next(lanes for lanes in (2, 4, 8, 16, 32) if 16 * lanes >= row_bytes)
        shared = rows * (samples | 1) * (24 if call.grad_output is None else 28)
        assert found[:4] == (lanes, 4 * rows, tiles, shared) and shared <= 48 * 1024
        numbers = np.frombuffer(found[4], dtype=np.int32)
        assert numbers[:7].tolist() == [queries, heads, channels, inputs.value.shape[1], levels, points, samples]
        assert numbers[7] == heads * row_bytes // 16 and len(numbers) == 18 + 4 * 8


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_every_kernel_and_type_is_clean_under(sanitizer, tmp_path):
    if not has_sanitizer(sanitizer):
        pytest.skip(f"{compiler()} has no working {sanitizer} sanitizer")
    program = build(HERE / "emulate.cpp", tmp_path / "emulate", sanitizer)
    sizes = [{"shapes": [(3, 5), (2, 1)], "queries": 11, "channels": channels, "heads": 2} for channels in EVERY_LANE]
    sizes += [SIZES[name] for name in ("one_pixel", "one_point", "72_channels", "tiles_8x8", "tiles_4x2", "no_image")]
    for dtype in FLOATS:
        inputs = [reference.make_inputs(**size) for size in sizes]
        calls = [make_call(one, *operation, dtype) for one in inputs for operation in OPERATIONS]
        check(calls, run(program, calls, tmp_path))


FAULTS = {
    "wrong_mask": "thread 16 takes part in a warp operation whose mask 0000ffff lacks it",
    "reads_outside_mask": "thread 0 reads lane 16, which its mask 0000ffff lacks",
    "leaves_before_shuffle": "waits in a warp operation whose mask ffffffff names threads that do not come",
    "leaves_before_barrier": "thread 5 has left before a barrier that thread 63 waits at",
    "too_much_shared": "shared memory was written at byte 256, beyond the 256 of the launch",
}


@pytest.fixture(scope="session")
def faults(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    return lambda sanitizer: build(HERE / "faults.cpp", folder / f"faults_{sanitizer}", sanitizer)


def test_the_emulator_says_what_a_gpu_leaves_undefined(faults):
    program = faults("plain")
    for fault, message in FAULTS.items():
        done = subprocess.run([program, fault], capture_output=True, text=True)
        assert done.returncode == 3 and message in done.stderr, fault
    assert subprocess.run([program, "sound"]).returncode == 0


@pytest.mark.slow
def test_the_thread_sanitizer_sees_missing_barriers(faults):
    if not has_sanitizer("thread"):
        pytest.skip(f"{compiler()} has no working thread sanitizer")
    program = faults("thread")
    for fault in ("no_barrier", "shuffle_for_barrier", "plain_addition"):
        done = subprocess.run([program, fault], capture_output=True, text=True)
        assert done.returncode and "data race" in done.stderr, fault
    assert subprocess.run([program, "sound"]).returncode == 0
