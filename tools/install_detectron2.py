#!/usr/bin/env python3
"""Give this Python an importable Detectron2, without a compiler and without a Git host.

Detectron2 is not on the package index under its own name. This command keeps an installed Detectron2 that can be
imported; else it turns the index's source package ``detectron2-cdo`` 0.5 (the Python part of Detectron2 0.5) into a
pure-Python wheel that works with today's NumPy, Pillow and Python, and installs it:

    python tools/install_detectron2.py [--check] [--force] [--wheel-dir DIR]

Only the standard library is used. pip and setuptools of the environment stay as they are: what the build needs goes
into a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

SDIST = "detectron2-cdo==0.5"
SDIST_SHA256 = "53c9e79e9cc943e80419c588ea44b5479507a8628ed14a4e06bd093e29311b18"
# Raise the last number when the patches below change, so that a cached or installed older wheel is not taken for it.
VERSION = "0.5+purepython.1"
WHEEL_NAME = f"detectron2-{VERSION}-py3-none-any.whl"
# Newer pip refuses the direct URL among the source package's extras; newer setuptools lacks pkg_resources.
BUILD_TOOLS = ("pip<26", "setuptools<81", "wheel")
CHECKED_IMPORTS = (
    "detectron2.layers",
    "detectron2.model_zoo",
    "detectron2.projects.deeplab",
    "detectron2.projects.point_rend",
)
# What pip prints -> what the user can do.
PIP_HINTS = (
    (r"externally-managed-environment", "this Python is managed by the system: make a virtual environment and use it"),
    (r"No module named pip", "this Python has no pip: run `python -m ensurepip --upgrade`"),
    (r"No space left on device", "free some disk space and run the command again"),
    (r"Permission denied", "use a virtual environment that you may write to"),
    (
        r"ConnectionError|NameResol|Timeout|ProxyError|Max retries|No matching distribution|Could not find a version",
        "the package index was not reachable or lacks the package: check the network and pip's settings "
        "(`pip config list`), and run the command again",
    ),
)


class InstallError(Exception):
    """A failure that the user can act on; its text is the whole message."""


class Patch(NamedTuple):
    """One kind of replacement: exactly ``count`` matches of ``pattern`` (multi-line mode) in the whole source."""

    reason: str
    pattern: str
    replacement: str
    count: int


PATCHES = (
    Patch("NumPy 1.24 removed its aliases of builtins", r"\bnp\.(bool|int|float|object|str)\b", r"\1", 18),
    Patch("NumPy 2 raises where `copy=False` needs a copy", r"np\.array\(mask, copy=False\)", "np.asarray(mask)", 1),
    Patch("Pillow 10 removed Image.LINEAR", r"\bImage\.LINEAR\b", "Image.BILINEAR", 1),
    Patch(
        "Python 3.11 samples from sequences only",
        r"_rng\.sample\(self\._fallback_candidates, k=1\)",
        "_rng.sample(sorted(self._fallback_candidates), k=1)",
        1,
    ),
    Patch("setuptools 81 removed pkg_resources", r"^import pkg_resources\n", "", 1),
    Patch(
        "setuptools 81 removed pkg_resources",
        r'pkg_resources\.resource_filename\(\s*"detectron2\.model_zoo", os\.path\.join\("configs", config_path\)\s*\)',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
        1,
    ),
    Patch(
        "OpenCV is optional, also where its system libraries are missing",
        r"except ModuleNotFoundError:\n(?=            # Other types of ImportError)",
        "except ImportError:\n",
        1,
    ),
    Patch(
        "OpenCV is optional",
        r"^import cv2$",
        "try:\n    import cv2\nexcept ImportError:\n    from detectron2 import _no_cv2 as cv2",
        2,
    ),
)

# Dunder names must look absent: the import system and `inspect` ask for many of them.
STAND_IN = '''"""Stands in for {what}; every use raises an error that names the remedy."""
{functions}

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(f"module {{__name__!r}} has no attribute {{name!r}}")
    raise ImportError(f"{what}: {{name}} is not there. {remedy}")
'''
# Detectron2's environment report calls these three.
REPORTED = """
get_compiler_version = get_cuda_version = lambda: "none: pure-Python build"
has_cuda = lambda: False
"""
STAND_INS = {
    "detectron2/_C.py": STAND_IN.format(
        what="Detectron2's compiled operators (detectron2._C), which this pure-Python build does not have",
        functions=REPORTED,
        remedy="Deformable convolution, rotated boxes and the fast COCO evaluation need them: build Detectron2 from "
        "its Git repository with a C++ compiler and install that over this one.",
    ),
    "detectron2/_no_cv2.py": STAND_IN.format(
        what="OpenCV (cv2), which is absent or cannot load its system libraries",
        functions="",
        remedy="Run `pip install opencv-python-headless`; it needs no libGL.",
    ),
}

SETUP_PY = f'''"""Pure-Python build of Detectron2: the original's package list, without extensions and outdated pins."""

from setuptools import find_packages, setup

PROJECTS = {{
    "detectron2.projects.point_rend": "projects/PointRend/point_rend",
    "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
    "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
}}

setup(
    name="detectron2",
    version="{VERSION}",
    author="FAIR, https://github.com/facebookresearch/detectron2",
    description="Detectron2 0.5 without compiled operators, for current NumPy, Pillow and Python",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=("detectron2", "detectron2.*")) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={{"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}},
    python_requires=">=3.10",
    install_requires=[
        "Pillow>=9.1", "matplotlib", "pycocotools>=2.0.2", "termcolor>=1.1", "yacs>=0.1.8", "tabulate", "cloudpickle",
        "tqdm>4.29.0", "tensorboard", "fvcore>=0.1.5,<0.1.6", "iopath>=0.1.7", "omegaconf>=2.1", "hydra-core>=1.1",
    ],
)
'''

PROBE = f"""
import importlib, json, os, sys, types
from importlib import metadata, util

answer = dict.fromkeys(("torch", "torch_error", "found", "version", "where", "distribution", "error"), "")
try:
    import torch, torchvision
    answer["torch"] = torch.__version__
except Exception as error:
    answer["torch_error"] = f"{{type(error).__name__}}: {{error}}"
try:
    answer["distribution"] = metadata.version("detectron2")
except metadata.PackageNotFoundError:
    pass
try:
    import cv2
except ImportError:  # OpenCV is a question of its own, not one of whether Detectron2 is whole
    sys.modules["cv2"] = types.ModuleType("cv2")
    sys.modules["cv2"].__version__ = "0"
spec = util.find_spec("detectron2")
answer["found"] = spec is not None
answer["where"] = os.path.dirname(spec.origin) if spec is not None and spec.origin else ""
if spec is not None and answer["torch"]:
    try:
        for name in {CHECKED_IMPORTS!r}:
            importlib.import_module(name)
        answer["version"] = importlib.import_module("detectron2").__version__
    except Exception as error:
        answer["error"] = f"{{type(error).__name__}}: {{error}}"
print("PROBE" + json.dumps(answer))
"""


class Probe(NamedTuple):
    """What a fresh process finds ("" is nothing): pip's ``distribution`` version, and the ``error`` of the import."""

    torch: str
    torch_error: str
    found: bool
    version: str
    where: str
    distribution: str
    error: str


def say(text: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"install_detectron2: {text}", flush=True)


def run_python(arguments: list[str], extra_path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run this Python away from the current folder, so that nothing there is imported by accident."""
    environment = dict(os.environ)
    if extra_path is not None:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(extra_path), environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory(prefix="detectron2-run-") as folder:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=folder, env=environment, text=True, errors="replace", check=False, **streams)


def run_pip(arguments: list[str], purpose: str, extra_path: Path | None = None) -> None:
    """Run ``pip`` quietly; its last lines are shown only when it fails.

    Raises:
        InstallError: pip failed; names the remedy where the cause is known.
    """
    done = run_python(["-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"], extra_path)
    if done.returncode == 0:
        return
    hint = next((remedy for pattern, remedy in PIP_HINTS if re.search(pattern, done.stdout)), "see pip's lines above")
    lines = [line for line in done.stdout.strip().splitlines() if "Retrying (" not in line]
    print("\n".join(f"    {line}" for line in lines[-8:]), file=sys.stderr)
    raise InstallError(f"pip could not {purpose} (exit code {done.returncode}); remedy: {hint}.")


def probe() -> Probe:
    """Ask a fresh process which torch and which Detectron2 it can import."""
    done = run_python(["-c", PROBE])
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE{")]
    if not lines:
        raise InstallError(f"{sys.executable} could not be examined: {done.stdout.strip()[-500:] or 'no output'}.")
    return Probe(**json.loads(lines[-1][len("PROBE") :]))


def decide(found: Probe, force: bool) -> tuple[bool, str]:
    """Say whether to install, and why.

    Raises:
        InstallError: torch is missing, or somebody else's Detectron2 is broken and ``force`` was not given.
    """
    if not found.torch:
        raise InstallError(
            f"torch and torchvision must be importable before Detectron2 can be installed, but {sys.executable} says "
            f"'{found.torch_error}'; remedy: `{sys.executable} -m pip install torch torchvision`, then run this again."
        )
    ours = found.distribution.startswith("0.5+purepython")
    if force:
        return True, "--force was given"
    if not found.found:
        return True, "Detectron2 is not installed, and the package index does not have it under its own name"
    if ours and found.distribution != VERSION:
        return True, f"the installed pure-Python build is {found.distribution}, this tool makes {VERSION}"
    if not found.error:
        return False, f"Detectron2 {found.version} in {found.where} can be imported"
    if ours or not found.distribution:
        return True, f"an incomplete Detectron2 lies in {found.where or 'site-packages'} ({found.error})"
    raise InstallError(
        f"Detectron2 {found.distribution} in {found.where} is installed but cannot be imported ({found.error}); "
        "remedy: repair it, or run this with --force to replace it by the pure-Python build."
    )


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a download that is not the file that the patches were written for."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"{path.name} has sha256 {actual}, but {expected} is expected; remedy: empty pip's cache "
            "(`pip cache purge`) and check which package index pip uses (`pip config list`)."
        )


def unpack(sdist: Path, folder: Path) -> Path:
    """Unpack a source package and return its single top folder."""
    safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, **safely)
    return next(path for path in folder.iterdir() if path.is_dir())


def apply_patch(root: Path, patch: Patch) -> int:
    """Apply one patch below ``root`` and return the number of replacements.

    Raises:
        InstallError: the source does not have exactly ``patch.count`` matches; nothing is written then.
    """
    files = sorted(file for folder in ("detectron2", "projects") for file in root.glob(f"{folder}/**/*.py"))
    changed: dict[Path, str] = {}
    total = 0
    for file in files:
        new_text, count = re.subn(patch.pattern, patch.replacement, file.read_text("utf-8"), flags=re.MULTILINE)
        total += count
        if count:
            changed[file] = new_text
    if total != patch.count:
        raise InstallError(
            f"the source of {SDIST} is not as expected: {patch.pattern!r} ({patch.reason}) matches {total} times, "
            f"expected {patch.count}; remedy: install Detectron2 from its Git repository."
        )
    for file, new_text in changed.items():
        file.write_text(new_text, encoding="utf-8")
    return total


def patch_source(root: Path) -> int:
    """Make the unpacked source buildable without a compiler and runnable today; return the number of replacements."""
    replaced = sum(apply_patch(root, patch) for patch in PATCHES)
    for path, text in {**STAND_INS, "setup.py": SETUP_PY}.items():
        (root / path).write_text(text, encoding="utf-8")
    return replaced


def build_wheel(work: Path) -> Path:
    """Download, patch and build inside ``work``; return the wheel."""
    tools, download, out = work / "tools", work / "download", work / "wheel"
    say("fetching build tools into a temporary folder: " + ", ".join(BUILD_TOOLS))
    run_pip(["install", "--quiet", "--target", str(tools), *BUILD_TOOLS], "fetch the build tools")
    say(f"downloading the source package {SDIST}")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:", "--dest", str(download)]
    run_pip(["download", *options, SDIST], f"download {SDIST}", tools)
    sdists = sorted(download.glob("*.tar.gz"))
    if len(sdists) != 1:
        raise InstallError(f"pip downloaded {[path.name for path in sdists]}, expected one source package.")
    check_sha256(sdists[0], SDIST_SHA256)
    root = unpack(sdists[0], work / "source")
    replaced = patch_source(root)
    say(f"adapted {replaced} places to current NumPy, Pillow and Python; added stand-ins for the compiled operators")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out)]
    run_pip(["wheel", *options, str(root)], "build the wheel", tools)
    wheel = out / WHEEL_NAME
    if not wheel.is_file():
        raise InstallError(f"the build made {[path.name for path in out.glob('*')]} instead of {WHEEL_NAME}.")
    return wheel


def get_wheel(wheel_dir: Path | None, work: Path) -> Path:
    """Return the wheel: the one kept in ``wheel_dir``, else a new one (kept there where a folder is given)."""
    if wheel_dir is None:
        return build_wheel(work)
    kept = wheel_dir / WHEEL_NAME
    if kept.is_file():
        say(f"using the wheel made before: {kept}")
        return kept
    wheel_dir.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(".part")
    shutil.copyfile(build_wheel(work), part)
    # The last step is atomic, so that an interruption leaves no half wheel under the final name.
    part.replace(kept)
    say(f"kept the wheel: {kept}")
    return kept


def install(wheel_dir: Path | None, replace: bool) -> None:
    """Make the wheel and install it with its dependencies."""
    with tempfile.TemporaryDirectory(prefix="detectron2-build-") as folder:
        wheel = get_wheel(wheel_dir, Path(folder))
        say("installing it and what it needs (fvcore, iopath, pycocotools, matplotlib, tensorboard, …)")
        if replace:
            run_pip(["install", "--quiet", "--force-reinstall", "--no-deps", str(wheel)], "install the wheel")
        run_pip(["install", "--quiet", str(wheel)], "install the wheel's dependencies")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Keep an importable Detectron2, else install a pure-Python build.")
    parser.add_argument("--check", action="store_true", help="only say what would be done")
    parser.add_argument("--force", action="store_true", help="install even where a Detectron2 is present")
    parser.add_argument("--wheel-dir", type=Path, metavar="DIR", help="keep the wheel in DIR, and take it from there")
    args = parser.parse_args(argv)
    try:
        if sys.version_info < (3, 10):  # noqa: UP036 - run by hand, nothing else checks it
            raise InstallError(f"Python 3.10 or newer is needed, but {sys.executable} is {sys.version.split()[0]}.")
        found = probe()
        needed, reason = decide(found, args.force)
        if args.check or not needed:
            say(f"{'would install ' + VERSION if needed else 'nothing to do'}: {reason}.")
            return 0
        say(f"making a pure-Python Detectron2 {VERSION}, because {reason}.")
        install(args.wheel_dir.expanduser().resolve() if args.wheel_dir else None, replace=found.found)
        result = probe()
        if result.error or not result.found:
            raise InstallError(f"the installed Detectron2 cannot be imported: {result.error or 'not found'}.")
    except (InstallError, OSError) as error:
        print(f"install_detectron2: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("install_detectron2: interrupted; run the command again to go on.", file=sys.stderr)
        return 130
    say(f"done: Detectron2 {result.version} in {result.where}; checked imports: {', '.join(CHECKED_IMPORTS)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
