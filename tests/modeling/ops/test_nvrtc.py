"""The CUDA kernels as NVRTC compiles them, which needs no GPU, and how the result is kept on disk."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sst_d2.modeling.ops import cubin_cache, cuda_launch, nvrtc


def compiler_is_absent():
    try:
        nvrtc.library()
    except nvrtc.NoCompiler as reason:
        return str(reason)
    return ""


needs_nvrtc = pytest.mark.skipif(bool(compiler_is_absent()), reason=f"no NVRTC here: {compiler_is_absent()}")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for every test; the folder of its files."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cubin_cache._say_once.cache_clear()
    return tmp_path / "cache" / "sst_d2"


# ---- compiling -------------------------------------------------------------------------------------------------------


def machine_code_of(image):
    """The architecture that an ELF file for GPUs names in its flags, e.g. 90."""
    assert image[:4] == b"\x7fELF" and int.from_bytes(image[18:20], "little") == 190  # EM_CUDA
    flags = int.from_bytes(image[48:52], "little")
    # Since CUDA 13 the number stands in the second byte, before in the first.
    return flags >> 8 & 0xFF if image[8] >= 8 else flags & 0xFF


@needs_nvrtc
def test_the_kernels_compile_without_any_other_tool(monkeypatch):
    monkeypatch.setenv("PATH", "")
    image = nvrtc.image((9, 0), "float", 8)
    for name in cuda_launch._KERNELS.values():
        assert b"\0" + name.encode() + b"\0" in image
    assert machine_code_of(image) == 90


@needs_nvrtc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", [70, 75, 80, 86, 89, 90, 100, 103, 120])
def test_the_kernels_compile_for(architecture):
    if architecture not in nvrtc.architectures(nvrtc.library()):
        pytest.skip(f"NVRTC {nvrtc.version(nvrtc.library())} does not know sm_{architecture}")
    every = [(value, lanes) for value, _ in cuda_launch.TYPES.values() for lanes in (2, 4, 8, 16)]
    some = every if architecture == 90 else [("float", 8), ("BFloat16", 4), ("Float16", 16)]
    for value, lanes in [*some, ("float", 32)]:
        assert machine_code_of(nvrtc.image(divmod(architecture, 10), value, lanes)) == architecture


@needs_nvrtc
def test_a_gpu_newer_than_the_compiler_gets_ptx():
    newest = nvrtc.architectures(nvrtc.library())[-1]
    text = nvrtc.image((99, 0), "float", 2)
    assert f".target sm_{newest}".encode() in text and text.endswith(b"\0")


@needs_nvrtc
def test_a_gpu_older_than_the_compiler_is_refused_by_name():
    with pytest.raises(RuntimeError, match=r"does not compile for compute capability 2\.0"):
        nvrtc.image((2, 0), "float", 2)


@needs_nvrtc
def test_what_the_compiler_says_is_in_the_error():
    with pytest.raises(RuntimeError, match=r"(?s)cannot compile.*VALUE=NoType.*NoType.*SST_D2_MSDA=torch"):
        nvrtc.image((9, 0), "NoType", 2)


@pytest.mark.slow
@needs_nvrtc
def test_the_compiler_is_found_where_nothing_has_loaded_it():
    """PyTorch loads NVRTC's other half for some versions of CUDA only."""
    code = (
        "import ctypes, importlib.util, sys, types\n"
        "name = sys.argv[1]\n"
        "torch = types.SimpleNamespace(version=types.SimpleNamespace(cuda=sys.argv[2]), __file__=sys.argv[3])\n"
        "torch.cuda = torch\n"
        "sys.modules['torch'] = torch\n"
        "for package in ('sst_d2', 'sst_d2.modeling', 'sst_d2.modeling.ops'):\n"
        "    sys.modules[package] = types.ModuleType(package)\n"
        "    sys.modules[package].__path__ = [sys.argv[4] + '/' + package.replace('.', '/')]\n"
        "from sst_d2.modeling.ops import nvrtc\n"
        "assert 'nvrtc' not in open('/proc/self/maps').read()\n"
        "print(nvrtc.image((9, 0), 'float', 8)[:4])\n"
    )
    root = Path(nvrtc.__file__).parents[3]
    arguments = ["nothing", torch.version.cuda, torch.__file__, str(root)]
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == r"b'\x7fELF'", done.stderr


def test_a_torch_without_cuda_has_no_compiler(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert nvrtc.why_not() == "this PyTorch has no CUDA"
    with pytest.raises(nvrtc.NoCompiler, match="no CUDA"):
        nvrtc.library.__wrapped__()


def test_a_compiler_that_is_not_there_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "4.0")  # of which no library exists
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(nvrtc, "library", nvrtc.library.__wrapped__)
    reason = nvrtc.why_not()
    assert reason.startswith("NVRTC of CUDA 4 cannot be loaded (") and "package nvidia-cuda-nvrtc-cu4" in reason


@needs_nvrtc
def test_an_old_gpu_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (6, 1)][index])
    assert nvrtc.why_not().startswith("GPU 1 has compute capability 6.1, 7.")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert nvrtc.why_not() == ""


# ---- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def compilations(monkeypatch):
    """Replaces the compiler; the list of what it was asked for."""
    asked = []

    def compile_(library, sources, options):
        asked.append(options)
        return b"code for " + " ".join(options).encode()

    monkeypatch.setattr(nvrtc, "_compile", compile_)
    monkeypatch.setattr(nvrtc, "library", lambda: None)
    monkeypatch.setattr(nvrtc, "version", lambda _: "13.0")
    monkeypatch.setattr(nvrtc, "architectures", lambda _: [80, 90])
    return asked


def test_what_was_compiled_once_is_read_from_disk(compilations, cache):
    first = nvrtc.image((9, 0), "float", 8)
    assert nvrtc.image((9, 0), "float", 8) == first and len(compilations) == 1
    assert [path.suffix for path in cache.iterdir()] == [".bin"]


def test_each_circumstance_has_a_file_of_its_own(compilations, cache, monkeypatch):
    nvrtc.image((9, 0), "float", 8)
    nvrtc.image((8, 0), "float", 8)
    nvrtc.image((9, 0), "BFloat16", 8)
    nvrtc.image((9, 0), "float", 4)
    monkeypatch.setattr(nvrtc, "version", lambda _: "13.1")
    nvrtc.image((9, 0), "float", 8)
    changed = {**nvrtc._sources(), "msda_cuda_types.cuh": "// other"}
    monkeypatch.setattr(nvrtc, "_sources", lambda: changed)
    nvrtc.image((9, 0), "float", 8)
    assert len(compilations) == len(list(cache.iterdir())) == 6


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "of another key"])
def test_a_damaged_file_is_made_anew(compilations, cache, damage, caplog):
    caplog.set_level("INFO", logger="sst_d2")
    first = nvrtc.image((9, 0), "float", 8)
    (path,) = cache.iterdir()
    data = path.read_bytes()
    if damage == "of another key":
        nvrtc.image((9, 0), "float", 4)
        (other,) = set(cache.iterdir()) - {path}
        other.replace(path)
    else:
        path.write_bytes({"cut": data[:-1], "changed": data[:-1] + b"\0", "empty": b""}[damage])
    before = len(compilations)
    assert nvrtc.image((9, 0), "float", 8) == first and len(compilations) == before + 1
    assert path.read_bytes() == data
    assert damage == "empty" or "is damaged; it is made anew" in caplog.text


def test_a_folder_that_cannot_be_written_costs_one_line_of_the_log(compilations, cache, caplog):
    caplog.set_level("INFO", logger="sst_d2")
    cache.parent.write_text("a file where the folder should be")
    for lanes in (2, 4, 8):
        assert nvrtc.image((9, 0), "float", lanes)
    assert caplog.text.count("are not kept") == 1 and {record.levelname for record in caplog.records} == {"INFO"}
    assert "XDG_CACHE_HOME" in caplog.text


def test_a_write_that_fails_leaves_nothing(compilations, cache, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    assert nvrtc.image((9, 0), "float", 8)
    assert list(cache.iterdir()) == []


def test_a_user_without_home_and_a_relative_folder(compilations, monkeypatch, caplog):
    caplog.set_level("INFO", logger="sst_d2")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the standard
    monkeypatch.setenv("HOME", "/somewhere")
    assert cubin_cache.folder() == Path("/somewhere/.cache/sst_d2")

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert nvrtc.image((9, 0), "float", 8) and "no home folder" in caplog.text
