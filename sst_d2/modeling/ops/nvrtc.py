"""The CUDA kernels, compiled at first use by NVRTC, the compiler that PyTorch's CUDA packages bring along.

Neither nvcc nor a C++ compiler is needed. The sources are those of the extension, ``csrc/msda_cuda*.cuh``. What is
compiled is kept on disk (`cubin_cache`).
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sst_d2.modeling.ops import cubin_cache

_SOURCES = Path(__file__).with_name("csrc")
_MAIN = "msda_cuda.cuh"
_OLDEST_GPU = 70  # compute capability 7.0


class NoCompiler(Exception):
    """NVRTC cannot be had; the message says why."""


def why_not() -> str:
    """Why the kernels cannot be compiled for the GPUs of this machine; "": they can."""
    if not torch.version.cuda:
        return "this PyTorch has no CUDA"
    if not torch.cuda.is_available():
        return "PyTorch finds no GPU"
    try:
        compiler = library()
    except NoCompiler as reason:
        return str(reason)
    oldest = max(_OLDEST_GPU, architectures(compiler)[0])
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if 10 * major + minor < oldest:
            return f"GPU {index} has compute capability {major}.{minor}, {oldest / 10} is needed"
    return ""


def image(capability: tuple[int, int], value: str, lanes: int) -> bytes:
    """The kernels of one type and number of lanes, as the driver loads them.

    Args:
        capability: of the GPU, major and minor. For a GPU that is newer than the compiler the image is PTX.
        value: type of the value's numbers: "float", "BFloat16" or "Float16".
        lanes: 2, 4, 8, 16, or for "float" 32.

    Raises:
        NoCompiler: NVRTC is not here.
        RuntimeError: it does not compile; with what the compiler says.
    """
    compiler = library()
    options = [f"--gpu-architecture={_target(capability, architectures(compiler))}", "--std=c++17"]
    options += [f"-DSST_MSDA_VALUE={value}", f"-DSST_MSDA_LANES={lanes}"]
    sources = _sources()
    key = "\0".join([version(compiler), *options, *(part for item in sources.items() for part in item)])
    found = cubin_cache.read(key)
    if found is None:
        start = time.perf_counter()
        found = _compile(compiler, sources, options)
        logging.getLogger(__name__).info(
            "compiled the attention operator (%s) in %.1f s", " ".join(options), time.perf_counter() - start
        )
        cubin_cache.write(key, found)
    return found


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC of the CUDA version that PyTorch was built for.

    Raises:
        NoCompiler: it is not here.
    """
    if not torch.version.cuda or not sys.platform.startswith("linux"):
        raise NoCompiler("this PyTorch has no CUDA" if not torch.version.cuda else "it is made for Linux alone")
    major = torch.version.cuda.split(".")[0]
    failed = []
    for name in _candidates(major):
        try:
            # NVRTC opens its other half by the bare name, which works where that is loaded already.
            for other in Path(name).parent.glob("libnvrtc-builtins*.so*") if "/" in name else ():
                if ".alt." not in other.name:
                    ctypes.CDLL(str(other))
            return ctypes.CDLL(name)
        except OSError as reason:
            failed.append(str(reason).splitlines()[0])
    package = "nvidia-cuda-nvrtc" if int(major) >= 13 else f"nvidia-cuda-nvrtc-cu{major}"
    raise NoCompiler(f"NVRTC of CUDA {major} cannot be loaded ({failed[0]}); pip's package {package} has it")


def _candidates(major: str) -> Iterator[str]:
    """Files that NVRTC may be: of NVIDIA's Python packages, of PyTorch itself, of the system."""
    spec = importlib.util.find_spec("nvidia")
    packages = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    folders = [place / name / "lib" for place in packages for name in (f"cu{major}", "cuda_nvrtc")]
    for place in [*folders, Path(torch.__file__).parent / "lib"]:
        for path in sorted(place.glob(f"libnvrtc*.so.{major}*")):
            if "builtins" not in path.name and ".alt." not in path.name:
                yield str(path)
    yield "libnvrtc.so.11.2" if major == "11" else f"libnvrtc.so.{major}"


def version(compiler: ctypes.CDLL) -> str:
    """Such as "13.0"."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(compiler, compiler.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return f"{major.value}.{minor.value}"


def architectures(compiler: ctypes.CDLL) -> list[int]:
    """What it compiles for: ten times the compute capabilities, ascending."""
    count = ctypes.c_int()
    _check(compiler, compiler.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    found = (ctypes.c_int * count.value)()
    _check(compiler, compiler.nvrtcGetSupportedArchs(found))
    return sorted(found)


def _target(capability: tuple[int, int], known: list[int]) -> str:
    """The GPU's own machine code, or PTX of the newest architecture before it, which the driver translates."""
    wanted = 10 * capability[0] + capability[1]
    if wanted in known:
        return f"sm_{wanted}"
    older = [number for number in known if number < wanted]
    if not older:
        raise RuntimeError(f"NVRTC does not compile for compute capability {wanted / 10}, only {known[0] / 10} and up")
    return f"compute_{older[-1]}"


@functools.cache
def _sources() -> dict[str, str]:
    """Names and texts; the main file first."""
    names = [_MAIN, *sorted(path.name for path in _SOURCES.glob("msda_cuda_*.cuh"))]
    return {name: (_SOURCES / name).read_text(encoding="utf-8") for name in names}


def _compile(compiler: ctypes.CDLL, sources: dict[str, str], options: list[str]) -> bytes:
    (main, text), *headers = sources.items()
    program = ctypes.c_void_p()
    names, texts = _strings([name for name, _ in headers]), _strings([text for _, text in headers])
    made = compiler.nvrtcCreateProgram(ctypes.byref(program), text.encode(), main.encode(), len(headers), texts, names)
    _check(compiler, made)
    try:
        if compiler.nvrtcCompileProgram(program, len(options), _strings(options)):
            log = _output(compiler, program, "ProgramLog").decode(errors="replace").rstrip("\0\n")
            raise RuntimeError(
                f"NVRTC {version(compiler)} cannot compile the attention operator ({' '.join(options)}):\n{log}\n"
                "SST_D2_MSDA=torch does without it"
            )
        return _output(compiler, program, "PTX" if "=compute_" in options[0] else "CUBIN")
    finally:
        compiler.nvrtcDestroyProgram(ctypes.byref(program))


def _output(compiler: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(compiler, getattr(compiler, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _check(compiler, getattr(compiler, f"nvrtcGet{what}")(program, data))
    return data.raw


def _strings(texts: list[str]) -> ctypes.Array:
    return (ctypes.c_char_p * len(texts))(*(text.encode() for text in texts))


def _check(compiler: ctypes.CDLL, status: int) -> None:
    if status:
        compiler.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise RuntimeError(f"NVRTC: {compiler.nvrtcGetErrorString(status).decode()}")
