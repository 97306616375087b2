"""The C++ binding of the CUDA kernels: on the emulator, with CPU tensors in place of GPU tensors, and under nvcc."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from emulator.emulated import HERE, SOURCES, build, compiler

TORCH = Path(torch.__file__).parent
HEADERS = TORCH / "include" / "torch" / "headeronly"
TARGET = "-DTORCH_TARGET_VERSION=0x020a000000000000"
OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10) or not HEADERS.is_dir()

pytestmark = [pytest.mark.slow, pytest.mark.skipif(OLD, reason="the stable ABI of torch 2.10 is not here")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    if compiler() is None:
        pytest.skip("no C++20 compiler that builds the emulator")
    options = ["-shared", "-fPIC", TARGET, '-DSST_D2_OPS_VERSION="as given"', f"-I{TORCH / 'include'}"]
    options += [f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10"]
    program = tmp_path_factory.mktemp("binding") / "binding.so"
    return build(HERE / "emulate_binding.cpp", program, options=tuple(options))


def run(library, calls, folder):
    """What the operations give, or the messages of their errors."""
    torch.save(calls, folder / "calls.pt")
    line = [sys.executable, HERE / "run_binding.py", library, folder / "calls.pt", folder / "results.pt"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "results.pt", weights_only=True)


def close(got, want, rounding):
    assert got.shape == want.shape
    assert not reference.differing(got.double(), want, 1e-5, rounding).any()


ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def four_calls(inputs, dtype):
    """Every operation, and what it must give: a list of pairs of an array and the rounding of its type."""
    value, references, offsets, logits = inputs.fused(torch.float32, dtype)
    _, locations, weights = inputs.plain(torch.float32, dtype)
    gradient, flat, rounding = inputs.grad_output.to(dtype), inputs.flat, ROUNDING[dtype]
    calls = [
        ("ms_deform_attn", (value, flat, locations, weights)),
        ("ms_deform_attn_fused", (value, flat, references, offsets, logits)),
        ("ms_deform_attn_backward", (gradient, value, flat, locations, weights)),
        ("ms_deform_attn_fused_backward", (gradient, value, flat, references, offsets, logits)),
    ]
    exact, of_output, shapes = value.double().numpy(), gradient.double().numpy(), inputs.shapes
    plain = (exact, shapes, *(t.double().numpy() for t in (locations, weights)))
    fused = (exact, shapes, *(t.double().numpy() for t in (references, offsets, logits)))
    gradients = [reference.backward(of_output, *plain), reference.fused_backward(of_output, *fused)]
    wanted = [[(reference.forward(*plain), rounding)], [(reference.fused_forward(*fused), rounding)]]
    return calls, wanted + [list(zip(three, (rounding, 0.0, 0.0), strict=True)) for three in gradients]


def test_equals_the_loops(library, tmp_path):
    calls, wanted, dtypes = [], [], []
    for dtype in ROUNDING:
        for size in ("usual", "one_column", "128_channels", "no_image", "no_query"):
            for collected, new in zip((calls, wanted), four_calls(reference.odd_inputs(size), dtype), strict=True):
                collected += new
            dtypes += [dtype] * 4
    for found, numbers, dtype in zip(run(library, calls, tmp_path), wanted, dtypes, strict=True):
        tensors = [found] if isinstance(found, torch.Tensor) else found
        assert tensors[0].dtype == dtype
        for got, (want, rounding) in zip(tensors, numbers, strict=True):
            close(got, want, rounding)


def test_tensors_may_begin_anywhere_in_memory(library, tmp_path):
    inputs = reference.odd_inputs("usual")
    tensors = inputs.plain(torch.float32)

    def moved(tensor):
        buffer = torch.empty(tensor.numel() + 1)
        buffer[1:] = tensor.flatten()
        return buffer[1:].view(tensor.shape)

    value, locations, weights = map(moved, tensors)
    assert value.data_ptr() % 16
    (got,) = run(library, [("ms_deform_attn", (value, inputs.flat, locations, weights))], tmp_path)
    exact, *others = (t.double().numpy() for t in tensors)
    close(got, reference.forward(exact, inputs.shapes, *others), 0.0)


def test_wrong_arguments_are_refused_in_words(library, tmp_path):
    inputs = reference.odd_inputs("usual")
    value, locations, weights = inputs.plain(torch.float32)
    _, references, offsets, logits = inputs.fused(torch.float32)
    flat, wide = inputs.flat, torch.zeros(2, 41, 4, 136)
    wrong = {
        "value must be float32, bfloat16 or float16": (value.double(), flat, locations, weights),
        "value must have 4 dimensions: (B, S, M, D), not the shape (41, 4, 32)": (value[0], flat, locations, weights),
        "sampling_locations must have 6 dimensions: (B, Q, M, L, P, 2), not the shape (2, 5, 4, 3, 4)": (
            *(value, flat, weights, weights),
        ),
        "value must be contiguous": (value.transpose(0, 1).contiguous().transpose(0, 1), flat, locations, weights),
        "the levels have 43 pixels, value has 41": (value, [*flat[:-1], 2], locations, weights),
        "spatial_shapes must be height, width of each level": (value, flat[:-1], locations, weights),
        "level 1: height and width must be positive": (value, [6, 5, 0, 3, 2, 1], locations, weights),
        "channels per head must be a multiple of 8, at most 128": (wide, flat, locations, weights),
        "between 1 and 8 levels": (value, [1, 1] * 9, locations, weights),
        "between 1 and 16 points": (value, flat, torch.zeros(2, 5, 4, 3, 17, 2), weights),
        "attention_weights must have the shape (2, 5, 4, 3, 4), not (2, 4, 4, 3, 4)": (
            *(value, flat, locations, weights[:, :4].contiguous()),
        ),
        "sampling_locations must have the shape (2, 5, 4, 3, 4, 2), not (2, 5, 3, 3, 4, 2)": (
            *(value, flat, locations[:, :, :3].contiguous(), weights),
        ),
    }
    messages, calls = list(wrong), [("ms_deform_attn", arguments) for arguments in wrong.values()]
    for message, found in (
        ("reference_points must have the shape (2, 5, 3, 2), not (2, 2, 3, 2)", references[:, :2].contiguous()),
        ("reference_points must have 4 dimensions: (B or 1, Q, L or 1, 2), not the shape (5, 3, 2)", references[0]),
    ):
        messages.append(message)
        calls.append(("ms_deform_attn_fused", (value, flat, found, offsets, logits)))
    for message, found in (
        ("grad_output must have the type of value", torch.zeros(2, 5, 128).half()),
        ("grad_output must have the shape (2, 5, 128), not (2, 5, 64)", torch.zeros(2, 5, 64)),
    ):
        messages.append(message)
        calls.append(("ms_deform_attn_backward", (found, value, flat, locations, weights)))
    for message, error in zip(messages, run(library, calls, tmp_path), strict=True):
        assert isinstance(error, str) and message in error, (message, error)


def test_the_library_tells_the_version_that_it_was_given(library, tmp_path):
    assert run(library, [("version", ())], tmp_path) == ["as given"]


@pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not here")
def test_nvcc_compiles_every_kernel_without_spilling_registers(tmp_path):
    line = ["nvcc", "-std=c++17", "-O3", "-arch=sm_90", "-c", "-Xptxas=-v", "-Xcompiler=-fPIC", TARGET, "-DUSE_CUDA"]
    line += [f"-I{TORCH / 'include'}", SOURCES / "msda_cuda.cu", "-o", tmp_path / "msda_cuda.o"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kernels = re.findall(r"Compiling entry function '(\w+)'", done.stderr)
    # Three types, four or five numbers of lanes, forward and backward, plain and fused.
    assert len(kernels) == (5 + 4 + 4) * 4
    assert set(re.findall(r"(\d+) bytes spill", done.stderr)) == {"0"}
