"""Which code computes the operator: how it is chosen, what is said about it, and that errors stay errors."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import reference
import torch
from conftest import ROOT
from torch._subclasses.fake_tensor import FakeTensorMode

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.ops import backends, cuda_launch, kernels, ms_deform_attn_fused, nvrtc

CACHED = (backends.wanted, backends.choice, backends.for_call, backends.load_extension, backends._warn_of_order)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """A process that has chosen nothing yet, and its word for `SST_D2_MSDA`."""
    monkeypatch.setattr(backends, "_warned", [])
    monkeypatch.delenv("SST_D2_MSDA", raising=False)
    for function in CACHED:
        function.cache_clear()
    yield
    for function in CACHED:
        function.cache_clear()


@pytest.fixture
def machine(monkeypatch):
    """A function that says what the machine has: extensions for these devices, and NVRTC or not."""

    def has(*extensions, compiler=False):
        absent = "the extension is not built (no compiler)"
        monkeypatch.setattr(backends, "load_extension", lambda device: "" if device in extensions else absent)
        monkeypatch.setattr(nvrtc, "why_not", lambda: "" if compiler else "PyTorch finds no GPU")
        monkeypatch.setattr(nvrtc, "library", lambda: None)
        monkeypatch.setattr(nvrtc, "version", lambda _: "13.0")
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    return has


def call(device="cpu", dtype=torch.float32, channels=8, levels=2, points=4):
    """`for_call` for a call of these sizes."""
    return backends.for_call(device, dtype, (2, levels, 3, channels), (1, 1) * levels, (2, 5, 3, levels, points, 2))


def names():
    return [backends.choice(device).name for device in ("cpu", "cuda")]


def test_the_first_that_there_is(machine):
    machine("cpu", "cuda", compiler=True)
    assert names() == ["ext", "ext"]


def test_without_the_extension_cuda_has_nvrtc(machine):
    machine("cpu", compiler=True)
    assert names() == ["ext", "nvrtc"]
    found = backends.choice("cuda")
    assert found.reason == "it is there, NVRTC 13.0; ext: the extension is not built (no compiler)"
    assert "pip install --no-build-isolation" in found.remedy


def test_without_both_there_is_torch_and_the_reasons(machine):
    machine()
    assert names() == ["torch", "torch"]
    assert backends.choice("cpu").reason == "ext: the extension is not built (no compiler)"
    assert backends.choice("cuda").reason.endswith("; nvrtc: PyTorch finds no GPU")


def test_other_devices_have_torch(machine):
    machine("cpu", "cuda", compiler=True)
    assert backends.choice("mps").name == "torch"


@pytest.mark.parametrize(("name", "found"), [("torch", ["torch", "torch"]), ("ext", ["ext", "ext"]), ("", ["ext"] * 2)])
def test_the_variable_names_one(machine, monkeypatch, name, found):
    machine("cpu", "cuda", compiler=True)
    monkeypatch.setenv("SST_D2_MSDA", name)
    assert names() == found


def test_what_the_variable_names_is_not_replaced(machine, monkeypatch):
    machine("cpu", compiler=True)
    monkeypatch.setenv("SST_D2_MSDA", "nvrtc")
    assert backends.choice("cuda").name == "nvrtc"
    with pytest.raises(SSTConfigError, match="'nvrtc' cannot be used on cpu: it serves CUDA alone"):
        backends.choice("cpu")
    backends.wanted.cache_clear()
    backends.choice.cache_clear()
    monkeypatch.setenv("SST_D2_MSDA", "ext")
    with pytest.raises(SSTConfigError, match=r"'ext' cannot be used on cuda: the extension is not built \(no compiler"):
        backends.choice("cuda")


def test_a_wrong_name_is_refused(monkeypatch):
    monkeypatch.setenv("SST_D2_MSDA", "triton")
    with pytest.raises(SSTConfigError, match="SST_D2_MSDA: 'triton'; allowed: auto, ext, nvrtc, torch"):
        call()


def test_it_is_chosen_once_and_the_log_names_it(machine, monkeypatch, caplog):
    machine("cpu")
    caplog.set_level("INFO")
    assert call() == "ext"
    machine()
    monkeypatch.setenv("SST_D2_MSDA", "torch")
    assert call(points=3) == "ext"
    assert [record.getMessage() for record in caplog.records] == [
        "multi-scale deformable attention on cpu: ext (it is there)"
    ]


def test_there_is_one_warning_and_it_names_the_command(machine):
    machine()
    with pytest.warns(UserWarning) as caught:
        for device in ("cpu", "cuda", "mps"):
            for points in (3, 4, 17):
                assert call(device, points=points) == "torch"
    (warning,) = caught
    text = str(warning.message)
    assert "runs on cpu in plain PyTorch, which is slow (ext: the extension is not built (no compiler))" in text
    assert "Faster: python -m pip install --no-build-isolation --no-deps" in text


@pytest.mark.filterwarnings("error")
def test_whoever_asks_for_torch_is_not_warned(machine, monkeypatch):
    machine()
    monkeypatch.setenv("SST_D2_MSDA", "torch")
    assert call() == call("cuda") == "torch"


LIMITS = [
    ("cuda", {"dtype": torch.float64}, "value is torch.float64; float32, bfloat16, float16 are supported"),
    ("cuda", {"channels": 12}, "channels per head must be a multiple of 8, at most 128"),
    ("cuda", {"channels": 136}, "channels per head must be a multiple of 8, at most 128"),
    ("cuda", {"levels": 9}, "between 1 and 8 levels are supported"),
    ("cpu", {"levels": 9}, "between 1 and 8 levels are supported"),
    ("cpu", {"points": 17}, "between 1 and 16 points are supported"),
    ("cpu", {"dtype": torch.int32}, "value is torch.int32; float32, float64, bfloat16, float16 are supported"),
]


@pytest.mark.parametrize(("device", "size", "reason"), LIMITS)
def test_calls_that_the_compiled_code_is_not_made_for(machine, monkeypatch, device, size, reason):
    machine("cpu", compiler=True)
    with pytest.warns(UserWarning) as caught:
        assert call(device, **size) == call(device, **size) == "torch"
        assert call(device) == {"cpu": "ext", "cuda": "nvrtc"}[device]
    assert [reason in str(warning.message) for warning in caught] == [True]
    monkeypatch.setenv("SST_D2_MSDA", {"cpu": "ext", "cuda": "nvrtc"}[device])
    for function in CACHED[:3]:
        function.cache_clear()
    with pytest.raises(SSTConfigError, match=f"cannot compute this on {device}: {reason}"):
        call(device, **size)


@pytest.mark.filterwarnings("error")
def test_any_width_and_float64_are_computed_by_the_extension_on_the_cpu(machine):
    machine("cpu")
    assert call(channels=5) == call(dtype=torch.float64) == call(dtype=torch.float16) == "ext"


def test_an_error_while_computing_is_an_error(machine, monkeypatch):
    def fail(*_):
        raise RuntimeError("CUDA driver, cuLaunchKernel: CUDA_ERROR_LAUNCH_FAILED")

    monkeypatch.setattr(cuda_launch, "launch", fail)
    monkeypatch.setattr(backends, "for_call", lambda *_: "nvrtc")
    inputs = reference.odd_inputs("usual")
    with pytest.raises(RuntimeError, match="LAUNCH_FAILED"):
        ms_deform_attn_fused(inputs.value, inputs.shapes, *inputs.fused()[1:])


def test_an_extension_that_cannot_be_loaded_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    assert backends.load_extension("cpu").startswith("the extension is not built")
    backends.load_extension.cache_clear()
    (tmp_path / "_C_cpu.abi3.so").write_bytes(b"no library" * 100)
    reason = backends.load_extension("cpu")
    assert reason.startswith("_C_cpu.abi3.so cannot be loaded (") and "invalid ELF header" in reason


@pytest.fixture
def build_info(tmp_path, monkeypatch):
    """A function that writes down other results of the installation, in a folder without extensions."""

    def write(reasons, architectures):
        module = type(sys)("sst_d2.modeling.ops._build_info")
        module.__spec__ = type(sys.__spec__)("sst_d2.modeling.ops._build_info", None)
        module.REASONS, module.ARCHITECTURES = reasons, architectures
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))

    return write


def test_what_the_installation_wrote_down_is_in_the_reason(build_info):
    build_info({"cpu": "no compiler was found"}, [])
    assert backends.load_extension("cpu") == "the extension is not built (no compiler was found)"


@pytest.mark.parametrize("text", ["", "REASONS = {", "REASONS: int"])
def test_a_damaged_note_of_the_installation_is_none(tmp_path, monkeypatch, text):
    (tmp_path / "_build_info.py").write_text(text)
    monkeypatch.setattr(sys.modules["sst_d2.modeling.ops"], "__path__", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "sst_d2.modeling.ops._build_info", raising=False)
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    assert backends.load_extension("cpu") == "the extension is not built"
    assert backends._no_code_for_gpus() == ""
    sys.modules.pop("sst_d2.modeling.ops._build_info", None)


def test_an_extension_of_other_sources_is_not_used(tmp_path, monkeypatch):
    built = sorted(Path(backends.__file__).parent.glob("_C_cpu*.so"))
    if not built:
        pytest.skip("no extension here")
    monkeypatch.setattr(backends, "sources_version", lambda: "another")
    assert "was built from other sources" in backends.load_extension("cpu")
    backends.load_extension.cache_clear()
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    (tmp_path / "_C_cpu.abi3.so").write_bytes(built[0].read_bytes()[:20000])  # loading it would end the process
    assert backends.load_extension("cpu") == "_C_cpu.abi3.so is cut off"


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler here")
def test_a_library_without_our_operations_is_not_used(tmp_path, monkeypatch):
    (tmp_path / "x.c").write_text("int x;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "_C_cuda.abi3.so", tmp_path / "x.c"], check=True)
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert "was built from other sources (an unknown version" in backends.load_extension("cuda")


@pytest.mark.parametrize(
    ("built", "gpu", "runs"),
    [
        (["8.0", "9.0"], (8, 0), True),
        (["8.0", "9.0"], (8, 9), True),
        (["8.6"], (8, 0), False),
        (["8.0", "9.0"], (12, 0), False),
        (["8.0", "9.0+PTX"], (12, 0), True),
        (["8.0+PTX"], (7, 5), False),
        (["9.0a"], (9, 0), True),
        (["10.0a+PTX"], (10, 3), False),
        ([], (5, 0), True),
    ],
)
def test_an_extension_without_code_for_a_gpu_is_not_loaded(build_info, tmp_path, monkeypatch, built, gpu, runs):
    build_info({}, built)
    (tmp_path / "_C_cuda.abi3.so").write_bytes(b"no library" * 100)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: gpu)
    reason = backends.load_extension("cuda")
    if runs:
        assert "cannot be loaded" in reason  # it was tried
    else:
        assert reason == f"_C_cuda.abi3.so is built for {', '.join(built)}, and GPU 0 has {gpu[0]}.{gpu[1]}"


def test_the_remedy_fits_the_machine(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert backends._remedy("cuda") == "a PyTorch that is built for CUDA"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert backends._remedy("cuda") == ""
    assert f"--editable {ROOT}, with a C++ compiler, and PyTorch 2.10" in backends._remedy("cpu")
    monkeypatch.setattr(backends, "__file__", "/a/site-packages/sst_d2/modeling/ops/backends.py")
    assert "--no-deps . (in the folder of its sources)" in backends._remedy("cpu")


# ---- determinism -----------------------------------------------------------------------------------------------------


@pytest.fixture
def deterministic():
    yield torch.use_deterministic_algorithms
    torch.use_deterministic_algorithms(False)


def backward_on_cuda():
    """Of tensors that only say that they are on a GPU."""
    with FakeTensorMode():
        value, grad = torch.empty(1, 4, 1, 8, device="cuda"), torch.empty(1, 3, 8, device="cuda")
        locations, weights = torch.empty(1, 3, 1, 1, 2, 2, device="cuda"), torch.empty(1, 3, 1, 1, 2, device="cuda")
        return kernels.ms_deform_attn_backward(grad, value, [2, 2], locations, weights)


@pytest.fixture
def computed(monkeypatch):
    monkeypatch.setattr(backends, "for_call", lambda *_: "nvrtc")
    monkeypatch.setattr(cuda_launch, "launch", lambda *_: "computed")


def test_determinism_is_refused_by_name_on_cuda(computed, deterministic):
    assert backward_on_cuda() == "computed"
    deterministic(True)
    with pytest.raises(RuntimeError, match=r"ms_deform_attn_backward by 'nvrtc' on CUDA .* SST_D2_MSDA=torch"):
        backward_on_cuda()


def test_determinism_that_only_warns_warns_once(computed, deterministic):
    deterministic(True, warn_only=True)
    with pytest.warns(UserWarning, match="no fixed order of additions") as caught:
        assert backward_on_cuda() == backward_on_cuda() == "computed"
    assert len(caught) == 1


def test_torch_in_one_order_is_asked_for_on_cuda_only(monkeypatch, deterministic):
    monkeypatch.setattr(backends, "for_call", lambda *_: "torch")
    monkeypatch.setattr(kernels, "_ordered_gradients", lambda *_: pytest.fail("ordered"))
    inputs = reference.odd_inputs("usual")
    deterministic(True)
    kernels.ms_deform_attn_backward(inputs.grad_output, inputs.value, inputs.flat, inputs.locations, inputs.weights)
    with pytest.raises(pytest.fail.Exception, match="ordered"):
        backward_on_cuda()


@pytest.mark.parametrize("size", ["usual", "one_column", "no_query", "5_channels"])
def test_gradients_in_one_order_are_the_same_gradients(monkeypatch, size):
    monkeypatch.setattr(kernels, "_gradients", kernels._ordered_gradients)
    monkeypatch.setattr(backends, "for_call", lambda *_: "torch")
    inputs = reference.odd_inputs(size)
    inputs.locations[:, :1, :, 0, 0] = inputs.offsets[:, :1, :, 0, 0] = float("nan")
    value, grad, shapes = inputs.value, inputs.grad_output, inputs.shapes
    plain, fused = inputs.plain()[1:], inputs.fused()[1:]
    found = kernels.ms_deform_attn_backward(grad, value, inputs.flat, *plain)
    found += kernels.ms_deform_attn_fused_backward(grad, value, inputs.flat, *fused)
    truths = [*reference.backward(grad, value, shapes, *plain), *reference.fused_backward(grad, value, shapes, *fused)]
    for got, want in zip(found, truths, strict=True):
        assert got.shape == want.shape and torch.allclose(got, torch.from_numpy(want), rtol=1e-9, atol=1e-9)


# ---- the command -----------------------------------------------------------------------------------------------------


def run_command(**environment):
    command = [sys.executable, "-m", "sst_d2.modeling.ops"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_command_says_what_there_is():
    done = run_command()
    assert done.returncode == 0 and "Warning" not in done.stderr
    head, *lines = done.stdout.splitlines()
    assert head.startswith(f"PyTorch {torch.__version__}, CUDA")
    assert [line.split(":")[0] for line in lines if line[0] != " "] == ["cpu", "cuda"]


@pytest.mark.slow
def test_the_command_and_a_wrong_variable():
    done = run_command(SST_D2_MSDA="triton")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == "error: SST_D2_MSDA: 'triton'; allowed: auto, ext, nvrtc, torch\n"
    done = run_command(SST_D2_MSDA="nvrtc")
    assert done.returncode == 0 and "cpu: none (SST_D2_MSDA: 'nvrtc' cannot be used on cpu" in done.stdout
