"""Builds the optional extensions of the attention operator; all else stands in pyproject.toml.

``_C_cpu`` needs GCC or Clang, and PyTorch 2.10 or newer in the environment that builds, so
`pip install --no-build-isolation .`; ``_C_cuda`` also nvcc of the CUDA version that PyTorch was built for. What cannot
be built is left out, the installation goes on, and the reason is written to ``sst_d2/modeling/ops/_build_info.py``,
with the GPU architectures of what was built.

Environment: ``SST_D2_EXTENSIONS`` (default "cpu,cuda"; "" builds none), ``TORCH_CUDA_ARCH_LIST`` (default: the GPUs
that are there, else all that the kernels are made for), ``CUDA_HOME``, ``CXX``, ``MAX_JOBS``.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import BaseError, CompileError, LinkError

ROOT = Path(__file__).parent
FOLDER = Path("sst_d2/modeling/ops")
SOURCES = ROOT / FOLDER / "csrc"
OLDEST_TORCH = (2, 10)
VERSION = runpy.run_path(str(ROOT / FOLDER / "sources.py"))["sources_version"]()
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
FLAGS += [f'-DSST_D2_OPS_VERSION="{VERSION}"']
CPU_FLAGS = ["-g0", "-w", "-Wno-psabi", "-fvisibility=hidden"]
CPU_FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
CUDA_FLAGS = ["-DUSE_CUDA", "-Xcompiler=-fPIC", "--threads=2"]
ISOLATED = "PyTorch was not there while building; with --no-build-isolation pip builds where it is installed"

EVERY_ARCHITECTURE = {12: "8.0;8.6;8.9;9.0+PTX", 13: "8.0;8.6;8.9;9.0;10.0;12.0+PTX"}  # by CUDA's major version

reasons: dict[str, str] = {}
targets: list[str] = []  # architectures of ``_C_cuda``


class CannotBuild(Exception):
    """An extension is left out; the message says why."""


def torch_folder() -> Path:
    """The folder of the installed PyTorch, which is not imported: that takes seconds, and pip runs this file often."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        raise CannotBuild(ISOLATED)
    folder = Path(spec.origin).parent
    version = re.match(r"(\d+)\.(\d+)", torch_version(folder)["__version__"])
    if version is None or tuple(map(int, version.groups())) < OLDEST_TORCH:
        raise CannotBuild(f"it needs PyTorch 2.10 or newer, here is {torch_version(folder)['__version__']}")
    return folder


def torch_version(folder: Path) -> dict:
    """What torch/version.py defines: ``__version__``, ``cuda`` …"""
    try:
        return runpy.run_path(str(folder / "version.py"))
    except Exception as reason:  # it is code of others
        raise CannotBuild(f"the PyTorch in {folder} is not whole: {reason}") from reason


def output_of(command: list[str]) -> str:
    """What a program prints; "": it cannot be run."""
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False).stdout
    except OSError:
        return ""


def cuda_folder(torch: Path) -> Path:
    """The CUDA toolkit with nvcc, of the same major version as PyTorch's."""
    wanted = torch_version(torch).get("cuda")
    if not wanted:
        raise CannotBuild("this PyTorch has no CUDA")
    nvcc = shutil.which("nvcc")
    places = [os.environ.get("CUDA_HOME"), "/usr/local/cuda", nvcc and Path(nvcc).resolve().parent.parent]
    for place in filter(None, places):
        if not (Path(place) / "bin" / "nvcc").is_file():
            continue
        found = re.search(r"release (\d+)", output_of([f"{place}/bin/nvcc", "--version"]))
        if found is None:
            raise CannotBuild(f"{place}/bin/nvcc does not say its version")
        if found.group(1) != wanted.split(".")[0]:
            raise CannotBuild(f"PyTorch was built for CUDA {wanted}, {place}/bin/nvcc is of {found.group(1)}")
        return Path(place)
    raise CannotBuild("there is no nvcc in $CUDA_HOME, /usr/local/cuda or on the path")


def architectures(major: int) -> list[str]:
    """Of GPUs, such as ["8.0", "9.0+PTX"], from ``TORCH_CUDA_ARCH_LIST``, else this machine, else all."""
    every = EVERY_ARCHITECTURE[12 if major < 13 else 13]
    names = re.split(r"[;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or of_gpus_here() or every)
    for name in names:
        if not re.fullmatch(r"\d+\.\d+[a-z]?(\+PTX)?", name):
            raise CannotBuild(f"TORCH_CUDA_ARCH_LIST: '{name}' is no architecture such as 9.0 or 9.0+PTX")
    return names


def nvcc_options(names: list[str], major: int) -> list[str]:
    """For architectures, and to keep the file small."""
    # Six architectures take 6.7 MB with the usual compression, 1.5 MB with this one, which CUDA 13 can read.
    options = ["--compress-mode=size"] if major >= 13 else ["-Xfatbin=-compress-all"]
    for name in names:
        number, _, portable = name.replace(".", "").partition("+")
        codes = [f"sm_{number}", *([f"compute_{number}"] if portable else [])]
        options += [f"-gencode=arch=compute_{number},code={code}" for code in codes]
    return options


def of_gpus_here() -> str:
    """Architectures of this machine's GPUs; "": it has none."""
    if not shutil.which("nvidia-smi"):
        return ""
    names = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]).split()
    names = sorted({name for name in names if re.fullmatch(r"\d+\.\d+", name)}, key=float)
    return ";".join(names) + "+PTX" if names else ""


def cpu_extension() -> Extension:
    """``_C_cpu``."""
    torch = torch_folder()
    return Extension(
        "sst_d2.modeling.ops._C_cpu",
        [str(path.relative_to(ROOT)) for path in sorted(SOURCES.glob("msda_cpu*.cpp"))],
        depends=[str(path) for path in SOURCES.glob("*.h")],
        include_dirs=[str(torch / "include")],
        library_dirs=[str(torch / "lib")],
        libraries=["torch_cpu"],
        extra_compile_args=FLAGS + CPU_FLAGS,
        language="c++",
        py_limited_api=True,
        optional=True,
    )


def cuda_extension() -> Extension:
    """``_C_cuda``. The CUDA runtime is linked in, so that any later PyTorch can load it."""
    sources = sorted(SOURCES.glob("msda_cuda*.cu"))
    if not sources:
        raise CannotBuild("its sources are not there")
    torch = torch_folder()
    cuda = cuda_folder(torch)
    major = int(torch_version(torch)["cuda"].split(".")[0])
    targets[:] = architectures(major)
    extension = Extension(
        "sst_d2.modeling.ops._C_cuda",
        [str(path.relative_to(ROOT)) for path in sources],
        depends=[str(path) for path in SOURCES.glob("*.*h")],
        include_dirs=[str(torch / "include"), str(cuda / "include")],
        library_dirs=[str(torch / "lib"), str(cuda / "lib64"), str(cuda / "lib")],
        libraries=["torch_cpu", "torch_cuda", "cudart_static", "rt", "pthread", "dl"],
        extra_compile_args=[*FLAGS, *CUDA_FLAGS, *nvcc_options(targets, major)],
        language="c++",
        py_limited_api=True,
        optional=True,
    )
    extension.nvcc = str(cuda / "bin" / "nvcc")
    return extension


def extensions() -> list[Extension]:
    """Those that this environment may be able to build; `reasons` gets the others."""
    wanted = [name.strip() for name in os.environ.get("SST_D2_EXTENSIONS", "cpu,cuda").split(",")]
    strange = [name for name in wanted if name not in ("cpu", "cuda", "")]
    if strange:
        sys.stderr.write(f"SST_D2_EXTENSIONS: {', '.join(strange)} is unknown; allowed are cpu and cuda\n")
    found = []
    for device, extension in (("cpu", cpu_extension), ("cuda", cuda_extension)):
        try:
            if device not in wanted:
                raise CannotBuild("SST_D2_EXTENSIONS leaves it out")
            if sys.platform == "win32":
                raise CannotBuild("it is written for GCC and Clang, not for the compiler of Windows")
            found.append(extension())
        except CannotBuild as reason:
            reasons[device] = str(reason)
    return found


def write_reasons(folder: Path) -> None:
    """Tell `sst_d2.modeling.ops.backends` what was not built, and why."""
    for device in reasons:  # an older result would be taken for this one's
        (folder / f"_C_{device}.abi3.so").unlink(missing_ok=True)
    if folder.is_dir():
        text = (
            '"""Written by the installation: why an extension was not built, and GPU architectures of what was."""\n\n'
        )
        text += f"REASONS = {reasons!r}\nARCHITECTURES = {targets if 'cuda' not in reasons else []!r}\n"
        (folder / "_build_info.part").write_text(text, encoding="utf-8")
        (folder / "_build_info.part").replace(folder / "_build_info.py")


def jobs() -> int:
    """Files to compile side by side."""
    text = os.environ.get("MAX_JOBS") or "4"
    if not text.isdecimal() or int(text) < 1:
        raise CannotBuild(f"MAX_JOBS: '{text}' is no number of jobs")
    return min(int(text), os.cpu_count() or 1)


class BuildPython(build_py):
    """Also writes the reasons; `BuildExtensions` comes later and writes those of failed compilers."""

    def run(self) -> None:
        """As its base."""
        super().run()
        write_reasons(ROOT / FOLDER if self.editable_mode else Path(self.build_lib) / FOLDER)


class BuildExtensions(build_ext):
    """Leaves out what fails; compiles the files of an extension side by side."""

    def run(self) -> None:
        """As its base."""
        super().run()
        write_reasons(ROOT / FOLDER if self.inplace else Path(self.build_lib) / FOLDER)

    def build_extension(self, ext: Extension) -> None:
        """Build one, or note why not."""
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with ThreadPoolExecutor(min(len(ext.sources), jobs())) as pool:
                objects = list(pool.map(lambda source: self._compile(ext, source), ext.sources))
            self.compiler.link_shared_object(
                objects, str(target), libraries=ext.libraries, library_dirs=ext.library_dirs, target_lang="c++"
            )
        except (BaseError, CompileError, LinkError, CannotBuild, OSError) as reason:
            reasons[ext.name.rpartition("_")[2]] = f"{reason}; `pip install -v` shows more"
            self.warn(f"{ext.name} is left out: {reason}")

    def _compile(self, ext: Extension, source: str) -> str:
        """One file to an object file; returns its name."""
        if not source.endswith(".cu"):
            options = {"include_dirs": ext.include_dirs, "extra_postargs": ext.extra_compile_args}
            return self.compiler.compile([source], self.build_temp, **options)[0]
        target = Path(self.build_temp, source).with_suffix(".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{folder}" for folder in ext.include_dirs]
        command = [ext.nvcc, *ext.extra_compile_args, *includes, "-c", source, "-o", str(target)]
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            raise CannotBuild(f"{ext.nvcc} failed with {source}")
        return str(target)


found = extensions()
setup(
    ext_modules=found,
    cmdclass={"build_py": BuildPython, "build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if found else {},
)
