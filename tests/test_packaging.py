"""What is in the wheel and what is not; and that version and package list are right."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
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
    """Files below ``folder`` that match a pattern, relative to the checkout."""
    found = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in (ROOT / folder).rglob(pattern)}
    return {name for name in found if "__pycache__" not in name}


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


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy of what the wheel is made of."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = tracked("sst_d2", "*") | tracked("configs", "*") | tracked("tests", "*.py")
    for name in names | {"pyproject.toml", "README.md", "LICENSE", "setup.py"}:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (path,) = out.glob("sst_d2-*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_names(wheel) -> set[str]:
    """The names of the files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_wheel_holds_code_and_data(wheel_names):
    expected = tracked("sst_d2", "*.py", "*.yaml", "*.json")
    expected |= {f"sst_d2/{name}" for name in tracked("configs", "*.yaml")}
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
        r"sst_d2-.*/licenses/LICENSE",
    ],
)
def test_wheel_holds_each_kind_of_file(wheel_names, pattern):
    assert [name for name in wheel_names if re.fullmatch(pattern, name)]


@pytest.mark.slow
def test_wheel_holds_nothing_else(wheel_names):
    foreign = [name for name in wheel_names if not re.match(r"sst_d2/|sst_d2-[\d.]+\.dist-info/", name)]
    assert foreign == []
    assert [name for name in wheel_names if re.search(r"\.(pth|pkl|png|jpg)$|__pycache__", name)] == []


@pytest.mark.slow
def test_the_installed_wheel_finds_its_configurations(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "import sst_d2 as s; print(s.get_config_file('single/atr_R50.yaml')); print(s.get_label_domain('lip').name)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    expected = [str(tmp_path / "site/sst_d2/configs/single/atr_R50.yaml"), "lip"]
    assert done.stdout.split() == expected, done.stderr
