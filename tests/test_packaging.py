"""What is in the wheel and what is not; and that version and package list are right."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10; pytest brings the stand-in
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def settings() -> dict:
    return tomllib.loads(PROJECT)


def tracked(folder: str, *patterns: str) -> set[str]:
    """Files below ``folder`` that match a pattern, relative to the checkout; without what building leaves there."""
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / folder).rglob(pattern)}
    return {name for name in found if not re.search(r"__pycache__|\.so$|/_build_info\.py$", name)}


def test_every_package_folder_is_listed(settings):
    on_disk = {path.rsplit("/", 1)[0].replace("/", ".") for path in tracked("sst_d2", "*.py")} | {"sst_d2.configs"}
    listed = set(settings["tool"]["setuptools"]["packages"])
    assert listed == on_disk, "bring [tool.setuptools] packages in pyproject.toml up to date"


def test_every_package_folder_has_an_init_file():
    folders = {path.rsplit("/", 1)[0] for path in tracked("sst_d2", "*.py")}
    assert [folder for folder in sorted(folders) if not (ROOT / folder / "__init__.py").is_file()] == []


def test_version_is_the_same_everywhere(settings):
    code = (ROOT / "sst_d2" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', code, re.MULTILINE).group(1)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "sst_d2.__version__"}


def test_detectron2_is_no_dependency(settings):
    assert not [line for line in settings["project"]["dependencies"] if line.startswith("detectron2")]


def build_wheel(tmp_path_factory, extensions: str) -> Path:
    """A wheel built from a copy of what the wheel is made of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = tracked("sst_d2", "*") | tracked("configs", "*") | tracked("tests", "*.py")
    for name in names | {"pyproject.toml", "README.md", "LICENSE", "setup.py"}:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    environment = {**os.environ, "SST_D2_EXTENSIONS": extensions}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = out.glob("sst_d2-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """As on a machine without compiler: the same everywhere, in seconds."""
    return build_wheel(tmp_path_factory, "")


@pytest.fixture(scope="module")
def wheel_names(wheel) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_wheel_holds_code_and_data(wheel_names):
    expected = tracked("sst_d2", "*.py", "*.yaml", "*.json")
    expected |= {f"sst_d2/{name}" for name in tracked("configs", "*.yaml")}
    # Sources are data: NVRTC compiles some of them where the package is used.
    expected |= {name for name in tracked("sst_d2/modeling/ops/csrc", "*") if (ROOT / name).is_file()}
    assert sorted(expected - wheel_names) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    [
        r"sst_d2/__init__\.py",
        r"sst_d2/label_domains/cihp\.yaml",
        r"sst_d2/data/cards/.*\.yaml",
        r"sst_d2/configs/Base-SST-R50\.yaml",
        r"sst_d2/configs/quick_schedules/.*\.yaml",
        r"sst_d2/modeling/ops/csrc/msda_cuda\.cuh",
        r"sst_d2/modeling/ops/_build_info\.py",
        r"sst_d2-.*/licenses/LICENSE",
    ],
)
def test_wheel_holds_each_kind_of_file(wheel_names, pattern):
    assert [name for name in wheel_names if re.fullmatch(pattern, name)]


@pytest.mark.slow
def test_wheel_holds_nothing_else(wheel_names):
    foreign = [name for name in wheel_names if not re.match(r"sst_d2/|sst_d2-[\d.]+\.dist-info/", name)]
    assert foreign == []
    assert [name for name in wheel_names if re.search(r"\.(pth|pkl|png|jpg|so|o)$|__pycache__", name)] == []


@pytest.mark.slow
def test_a_wheel_without_extensions_is_for_every_machine(wheel):
    assert wheel.name.endswith("-py3-none-any.whl") and wheel.stat().st_size < 2e6


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(os.environ.get("CXX", "c++")), reason="no C++ compiler here")
def test_a_wheel_with_the_extension_is_for_every_python_and_uses_it(tmp_path_factory, tmp_path):
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
        pytest.skip("the extension needs PyTorch 2.10")
    wheel = build_wheel(tmp_path_factory, "cpu")
    assert re.search(r"-cp310-abi3-\w+\.whl$", wheel.name) and wheel.stat().st_size < 2e6
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from sst_d2.modeling.ops import backends; print(backends.choice('cpu').name, backends.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "SST_D2_MSDA": "auto"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.split() == ["ext", str(tmp_path / "site/sst_d2/modeling/ops/backends.py")], done.stderr


@pytest.mark.slow
def test_the_installed_wheel_finds_its_configurations(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sst_d2 as s; print(s.get_config_file('single/atr_R50.yaml')); print(s.get_label_domain('lip').name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    expected = [str(tmp_path / "site/sst_d2/configs/single/atr_R50.yaml"), "lip"]
    assert done.stdout.split() == expected, done.stderr
