"""Which code computes the operator on a device: chosen once per process and type of device, and said.

``ext``: the extensions that `pip install --no-build-isolation .` compiles (``_C_cpu``, ``_C_cuda``). ``nvrtc``: the
CUDA kernels, compiled at first use by the compiler that comes with PyTorch. ``torch``: plain PyTorch. The environment
variable ``SST_D2_MSDA`` names one; ``auto``, the default, takes the first that there is.

With ``auto``, calls that the chosen code is not made for go to ``torch``: types and sizes alone decide, before anything
is computed (`for_call`). What fails while it computes is never replaced by another: an error is an error. There is one
warning per process at most.
"""

from __future__ import annotations

import functools
import importlib
import logging
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.ops import nvrtc
from sst_d2.modeling.ops.cuda_launch import TYPES as CUDA_TYPES
from sst_d2.modeling.ops.launch_plan import sizes_of, unsupported, unsupported_levels
from sst_d2.modeling.ops.sources import sources_version

NAMES = ("auto", "ext", "nvrtc", "torch")
VARIABLE = "SST_D2_MSDA"
_CPU_TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Choice:
    """What was chosen for a type of device.

    Attributes:
        name: "ext", "nvrtc" or "torch".
        reason: a clause that says why.
        remedy: how to get a faster one; "": there is none.
    """

    name: str
    reason: str
    remedy: str = ""


@functools.cache
def wanted() -> str:
    """What ``SST_D2_MSDA`` says; it is read once.

    Raises:
        SSTConfigError: it names no back end.
    """
    name = os.environ.get(VARIABLE) or "auto"
    if name not in NAMES:
        raise SSTConfigError(f"{VARIABLE}: '{name}'; allowed: {', '.join(NAMES)}")
    return name


@functools.cache
def choice(device: str) -> Choice:
    """The back end for devices of type "cpu", "cuda", or another; the log names it, nothing is warned of.

    Raises:
        SSTConfigError: ``SST_D2_MSDA`` names none, or one that cannot serve the device.
    """
    found = _choose(device)
    logging.getLogger(__name__).info(
        "multi-scale deformable attention on %s: %s (%s)", device, found.name, found.reason
    )
    return found


def _choose(device: str) -> Choice:
    if wanted() == "torch":
        return Choice("torch", f"{VARIABLE} asks for it")
    if device not in ("cpu", "cuda"):
        return Choice("torch", f"there is no other for devices of type {device}")
    absent = {}
    for name in ("ext", "nvrtc") if device == "cuda" else ("ext",):
        if wanted() not in (name, "auto"):
            continue
        absent[name] = _why_not(name, device)
        if not absent[name]:
            return _found(name, device, absent.get("ext", ""))
    if wanted() != "auto":
        reason = absent.get(wanted(), "it serves CUDA alone")
        raise SSTConfigError(f"{VARIABLE}: '{wanted()}' cannot be used on {device}: {reason}. Unset it")
    return Choice("torch", "; ".join(f"{name}: {why}" for name, why in absent.items()), _remedy(device))


def _found(name: str, device: str, without_extension: str) -> Choice:
    reason = f"{VARIABLE} asks for it" if wanted() == name else "it is there"
    if name == "ext":
        return Choice(name, reason)
    reason += f", NVRTC {nvrtc.version(nvrtc.library())}"
    if without_extension:
        reason += f"; ext: {without_extension}"
    return Choice(name, reason, f"the extension, which needs no compiler at first use: {_remedy(device)}")


def _why_not(name: str, device: str) -> str:
    """Why a back end cannot be had; "": it can."""
    return nvrtc.why_not() if name == "nvrtc" else load_extension(device)


def _remedy(device: str) -> str:
    """The command that brings a faster back end; "": none would."""
    if device == "cuda" and not torch.version.cuda:
        return "" if torch.version.hip else "a PyTorch that is built for CUDA"
    if device == "cuda" and not torch.cuda.is_available():
        return ""
    source = Path(__file__).parents[3]
    place = f"--editable {source}" if (source / "setup.py").is_file() else ". (in the folder of its sources)"
    tools = "a C++ compiler and nvcc" if device == "cuda" else "a C++ compiler"
    return f"python -m pip install --no-build-isolation --no-deps {place}, with {tools}, and PyTorch 2.10 or newer"


@functools.cache
def load_extension(device: str) -> str:
    """Load ``_C_<device>``; returns why it could not be, or ""."""
    files = sorted(Path(__file__).parent.glob(f"_C_{device}*.so"))
    if not files:
        return f"the extension is not built{_recorded(device)}"
    reason = _cut_off(files[0]) or (_no_code_for_gpus() if device == "cuda" else "")
    if reason:
        return f"{files[0].name} {reason}"
    try:
        torch.ops.load_library(str(files[0]))
        version = getattr(torch.ops, f"sst_d2_{device}").version()
    except (OSError, RuntimeError) as reason:
        # Newer versions of PyTorch keep what the loader said one step behind.
        return f"{files[0].name} cannot be loaded ({str(reason.__cause__ or reason).splitlines()[0]})"
    except AttributeError:
        version = "an unknown version"
    if version != sources_version():
        return f"{files[0].name} was built from other sources ({version}, here are {sources_version()}); build it again"
    return ""


def _cut_off(file: Path) -> str:
    """Whether the end of a Linux library is missing, which would kill the process that loads it; "": it is not."""
    with file.open("rb") as stream:
        head = stream.read(64)
    if len(head) < 64 or head[:5] != b"\x7fELF\x02":  # the loader knows what it is
        return ""
    start, size, count = *struct.unpack_from("<Q", head, 40), *struct.unpack_from("<2H", head, 58)
    return "is cut off" if start + size * count > file.stat().st_size else ""


def _build_info() -> dict[str, Any]:
    """What the installation has written down about the build; empty where it has not, or where that is damaged."""
    try:
        return vars(importlib.import_module("sst_d2.modeling.ops._build_info"))
    except (ImportError, SyntaxError, ValueError):
        return {}


def _recorded(device: str) -> str:
    """Why an extension was not built."""
    reason = _build_info().get("REASONS", {}).get(device, "")
    return f" ({reason})" if reason else ""


def _no_code_for_gpus() -> str:
    """Which GPU ``_C_cuda`` has no code for; "": it has for all that are seen, or nothing is known."""
    built = _build_info().get("ARCHITECTURES", [])
    for gpu in range(torch.cuda.device_count()) if built else ():
        major, minor = torch.cuda.get_device_capability(gpu)
        if not any(_runs_on(name, major, minor) for name in built):
            return f"is built for {', '.join(built)}, and GPU {gpu} has {major}.{minor}"
    return ""


def _runs_on(built: str, major: int, minor: int) -> bool:
    """Machine code runs on its own major version, the same or a later minor one; with PTX, on anything later."""
    version, _, portable = built.partition("+")
    of_major, _, of_minor = version.partition(".")
    own, gpu = (int(of_major), int(of_minor.rstrip("af"))), (major, minor)
    if not of_minor.isdigit():  # such as 9.0a: of this one alone
        return gpu == own
    return gpu >= own and (bool(portable) or major == own[0])


@functools.lru_cache(1024)
def for_call(
    device: str, dtype: torch.dtype, value: tuple[int, ...], flat: tuple[int, ...], positions: tuple[int, ...]
) -> str:
    """The name of the back end that computes a call: the device's, or "torch" where that is not made for the call.

    Args:
        device: type of device.
        dtype: type of value.
        value: shape of value, (B, S, M, D).
        flat: height, width of each level.
        positions: shape of locations or offsets, (B, Q, M, L, P, 2).

    Raises:
        SSTConfigError: ``SST_D2_MSDA`` names a back end that cannot do it; or as `choice`.
        ValueError: the shapes have another number of dimensions.
    """
    chosen = choice(device)
    if chosen.name == "torch":
        if chosen.remedy:
            _warn_once(f"runs on {device} in plain PyTorch, which is slow ({chosen.reason}). Faster: {chosen.remedy}")
        return "torch"
    reason = _unsupported(device, dtype, value, flat, positions)
    if not reason:
        return chosen.name
    if wanted() != "auto":
        raise SSTConfigError(f"{VARIABLE}: '{wanted()}' cannot compute this on {device}: {reason}. Unset it")
    _warn_once(f"runs on {device} in plain PyTorch, which is slow, where '{chosen.name}' cannot compute it: {reason}")
    return "torch"


def _unsupported(
    device: str, dtype: torch.dtype, value: tuple[int, ...], flat: tuple[int, ...], positions: tuple[int, ...]
) -> str:
    """What of a call the compiled code for a device cannot do; "": it can."""
    allowed = _CPU_TYPES if device == "cpu" else tuple(CUDA_TYPES)
    if dtype not in allowed:
        return f"value is {dtype}; {', '.join(str(one).removeprefix('torch.') for one in allowed)} are supported"
    sizes = sizes_of(value, flat, positions, dtype.itemsize)
    return unsupported_levels(sizes) if device == "cpu" else unsupported(sizes)


def _warn_once(how: str) -> None:
    """The one warning of this process."""
    if not _warned:
        _warned.append(how)
        text = f"multi-scale deformable attention {how}. `python -m sst_d2.modeling.ops` says more"
        warnings.warn(text, stacklevel=2)


_warned: list[str] = []


def check_determinism(name: str, chosen: str) -> None:
    """Of a backward operation on CUDA by compiled code, which adds to the gradient of value in any order.

    Raises:
        RuntimeError: `torch.use_deterministic_algorithms(True)` is in force; with ``warn_only`` it is a warning.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    text = (
        f"sst_d2::{name} by '{chosen}' on CUDA has no fixed order of additions, which "
        f"torch.use_deterministic_algorithms(True) asks for. {VARIABLE}=torch has one, and takes more time and memory"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(text)
    _warn_of_order(text)


@functools.cache
def _warn_of_order(text: str) -> None:
    warnings.warn(text, stacklevel=2)
