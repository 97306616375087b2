"""What setup.py builds, and that whatever cannot be built is left out with its reason."""

import os
import runpy
import shutil
import subprocess
import sys

import pytest
import setuptools
from conftest import ROOT

OPS = "sst_d2/modeling/ops"


@pytest.fixture
def setup_names(monkeypatch):
    """A function that runs setup.py without building; returns what it defines."""
    for name in ("SST_D2_EXTENSIONS", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return lambda: runpy.run_path(str(ROOT / "setup.py"))


@pytest.fixture
def fake_torch(tmp_path, monkeypatch):
    """A function that puts a PyTorch of a version first on the path."""

    def make(version, cuda="13.0"):
        (tmp_path / "torch").mkdir(exist_ok=True)
        (tmp_path / "torch/__init__.py").write_text("")
        (tmp_path / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "torch", raising=False)

    # Modules that hold the real one must not meet the fake one.
    saved = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "torch"}
    yield make
    sys.modules.update(saved)


def test_both_extensions_are_for_any_python_and_any_later_torch(setup_names):
    for extension in setup_names()["found"]:
        assert extension.py_limited_api and extension.optional and extension.sources
        assert "-DTORCH_TARGET_VERSION=0x020a000000000000" in extension.extra_compile_args
        assert not [flag for flag in extension.extra_compile_args if flag.startswith("-march")]


def test_an_old_torch_is_a_reason(setup_names, fake_torch):
    fake_torch("2.9.1+cpu", cuda=None)
    names = setup_names()
    assert names["found"] == []
    assert names["reasons"]["cpu"] == "it needs PyTorch 2.10 or newer, here is 2.9.1+cpu"


def test_no_torch_is_a_reason_that_names_build_isolation(setup_names, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    names = setup_names()
    assert names["found"] == [] and "--no-build-isolation" in names["reasons"]["cpu"]


def test_a_torch_without_cuda_builds_for_the_cpu_alone(setup_names, fake_torch):
    fake_torch("2.12.0+cpu", cuda=None)
    names = setup_names()
    assert [extension.name for extension in names["found"]] == ["sst_d2.modeling.ops._C_cpu"]
    assert names["reasons"] == {"cuda": "this PyTorch has no CUDA"}


def test_a_torch_that_is_not_whole_is_a_reason(setup_names, fake_torch, tmp_path):
    fake_torch("2.12.0")
    (tmp_path / "torch/version.py").unlink()
    assert "is not whole" in setup_names()["reasons"]["cpu"]


@pytest.mark.parametrize("content", ["", "garbage"])
def test_an_nvcc_that_does_not_run_is_a_reason(setup_names, fake_torch, tmp_path, monkeypatch, content):
    fake_torch("2.12.0+cu130")
    (tmp_path / "cuda/bin").mkdir(parents=True)
    (tmp_path / "cuda/bin/nvcc").write_text(content)
    (tmp_path / "cuda/bin/nvcc").chmod(0o755 if content else 0o644)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    assert setup_names()["reasons"]["cuda"].endswith("/cuda/bin/nvcc does not say its version")


def test_a_name_that_is_no_extension_is_said(setup_names, monkeypatch, capsys):
    monkeypatch.setenv("SST_D2_EXTENSIONS", "gpu, cpu")
    names = setup_names()
    assert "SST_D2_EXTENSIONS: gpu is unknown; allowed are cpu and cuda" in capsys.readouterr().err
    assert [extension.name for extension in names["found"]] == ["sst_d2.modeling.ops._C_cpu"]


def test_nvcc_of_another_major_version_is_a_reason(setup_names, fake_torch, tmp_path, monkeypatch):
    fake_torch("2.12.0+cu130")
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.99'\n")
    nvcc.chmod(0o755)
    names = setup_names()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    with pytest.raises(names["CannotBuild"], match=r"built for CUDA 13\.0, .*/cuda/bin/nvcc is of 12"):
        names["cuda_folder"](tmp_path / "torch")


def test_architectures(setup_names, monkeypatch):
    names = setup_names()
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0+PTX")
    assert names["architectures"](13) == ["8.6", "9.0+PTX"]
    assert names["nvcc_options"](["8.6", "9.0+PTX"], 12) == [
        "-Xfatbin=-compress-all",
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    assert names["nvcc_options"](["12.0"], 13) == ["--compress-mode=size", "-gencode=arch=compute_120,code=sm_120"]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(names["CannotBuild"], match="'Hopper' is no architecture"):
        names["architectures"](13)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    monkeypatch.setitem(names["architectures"].__globals__, "of_gpus_here", lambda: "")
    assert names["architectures"](12) == ["8.0", "8.6", "8.9", "9.0+PTX"]
    assert names["architectures"](13)[-2:] == ["10.0", "12.0+PTX"]


@pytest.fixture
def build(tmp_path):
    """A function that runs setup.py in a copy of what it needs; returns the folder of the operator there."""
    shutil.copytree(ROOT / OPS, tmp_path / OPS, ignore=shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__"))
    shutil.copy(ROOT / "setup.py", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "sst-d2"\nversion = "0"\n')

    def run(*arguments, **environment):
        command = [sys.executable, "setup.py", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return tmp_path / OPS

    return run


def written_in(folder):
    return runpy.run_path(str(folder / "_build_info.py"))


def reasons_in(folder):
    return written_in(folder)["REASONS"]


def test_a_compiler_that_fails_stops_nothing_and_its_older_result_goes(build, tmp_path):
    older = tmp_path / OPS / "_C_cpu.abi3.so"
    older.write_bytes(b"older")
    folder = build("build_ext", "--inplace", CXX="false", CC="false", SST_D2_EXTENSIONS="cpu")
    assert not older.exists()
    assert reasons_in(folder)["cpu"].endswith("failed with exit code 1; `pip install -v` shows more")
    assert reasons_in(folder)["cuda"] == "SST_D2_EXTENSIONS leaves it out"
    assert written_in(folder)["ARCHITECTURES"] == []


@pytest.mark.parametrize("jobs", ["0", "-1", "two"])
def test_a_wrong_number_of_jobs_is_a_reason(build, jobs):
    folder = build("build_ext", "--inplace", MAX_JOBS=jobs, SST_D2_EXTENSIONS="cpu")
    assert reasons_in(folder)["cpu"].startswith(f"MAX_JOBS: '{jobs}' is no number of jobs")


def test_reasons_are_written_where_nothing_is_built(build):
    folder = build("build", SST_D2_EXTENSIONS="")
    assert not (folder / "_build_info.py").exists()
    assert reasons_in(folder.parents[2] / "build/lib" / OPS).keys() == {"cpu", "cuda"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler here")
def test_the_cpu_extension_builds_and_loads(build):
    folder = build("build_ext", "--inplace", SST_D2_EXTENSIONS="cpu")
    assert reasons_in(folder) == {"cuda": "SST_D2_EXTENSIONS leaves it out"}
    code = (
        f"import torch; torch.ops.load_library({str(folder / '_C_cpu.abi3.so')!r}); "
        "print(torch.ops.sst_d2_cpu.vector_bits(128))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["128"], done.stderr
