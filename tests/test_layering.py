"""Imports run one way, and only the rooms that may read the configuration do (docs/DESIGN.md)."""

import ast
import os
import subprocess
import sys

import pytest
from conftest import ROOT

PACKAGE = ROOT / "sst_d2"
# What each room may import of the project, besides itself.
BASE = {"errors", "files"}
ALLOWED = {
    "arguments": set(),
    "errors": set(),
    "files": {"errors"},
    "label_domains": BASE,
    "config": {*BASE, "config_checks", "config_keys"},
    "config_keys": set(),
    "config_checks": BASE,
    "data": {*BASE, "label_domains"},
    "modeling": {*BASE, "label_domains", "config_checks"},
    "visualization": {*BASE, "label_domains"},
    "score_tables": set(),
    "evaluation": {*BASE, "label_domains", "data", "visualization", "score_tables"},
    "checkpoint": {*BASE, "label_domains", "checkpoint_io"},
    "checkpoint_io": {*BASE, "array_pickle"},
    "array_pickle": BASE,
    "train_step": {*BASE, "data"},
    "inference": {*BASE, "label_domains", "config", "checkpoint", "checkpoint_io", "data", "visualization"},
    "optimizer": BASE,
    "hooks": BASE,
    "branch_log": {*BASE, "evaluation"},
    "pictures": {*BASE, "label_domains", "data", "evaluation", "visualization"},
    "launch": BASE,
    "export": {*BASE, "label_domains"},
}
# A file that may import more than its room: a source is built from what its checkpoint says.
MORE = {"modeling/auxiliary/source.py": {"config", "checkpoint_io"}}
ALLOWED["run_setup"] = {*BASE, "config", "data", "label_domains", "launch"}
ALLOWED["engine"] = {*ALLOWED, "engine"} - {"modeling"}
CONFIGURATION = ("config", "config_checks", "config_keys", "engine", "optimizer", "run_setup")
# Files of other rooms that may: they find out what a configuration describes, for prediction.
OPENERS = {"inference/network.py", "inference/bundle.py"}
# Functions that may take the configuration, beside `from_config` and what lies in the rooms of `CONFIGURATION`.
READERS = {
    "build_sst_decoder",
    "build_sst_resnet18_backbone",
    "build_sst_swin_t_backbone",
    "build_augmentations",
    "_loader_from_config",
}


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sst_d2"):
            names = [node.module] if node.module != "sst_d2" else [f"sst_d2.{alias.name}" for alias in node.names]
            yield from names
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("sst_d2"))


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    room = room_of(path)
    if room == "__init__":
        return
    allowed = {room, *ALLOWED[room], *MORE.get(path.relative_to(PACKAGE).as_posix(), ())}
    for module in imports_of(path):
        target = ([*module.split("."), ""])[1]
        assert target in allowed, f"{path.name} imports {module}"
        if not path.name.startswith("__init__"):
            assert module != "sst_d2.modeling.meta_arch", "only the package's __init__ imports meta_arch"


def importers_of(module):
    """Files and functions of the project that import a module or what lies in it; of its own files none."""
    own = PACKAGE / module.removeprefix("sst_d2.").replace(".", "/")
    commands = [
        ROOT / "train_net.py",
        *(p for name in ("tools", "datasets", "demo", "benchmarks") for p in ROOT.glob(f"{name}/**/*.py")),
    ]
    for path in [*PACKAGE.rglob("*.py"), *commands]:
        if own in path.parents or own.name not in path.read_text():
            continue
        tree = ast.parse(path.read_text())
        inside = {id(node): f.name for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            if any(f"{name}.".startswith(f"{module}.") for name in names):
                yield path.relative_to(ROOT).as_posix(), inside.get(id(node))


def test_what_serves_training_only_is_imported_in_one_place():
    places = set(importers_of("sst_d2.modeling.auxiliary"))
    assert places == {("sst_d2/modeling/meta_arch.py", "from_config")}


def test_a_process_that_predicts_never_loads_what_serves_training():
    code = (
        "import sys; sys.path.insert(0, 'tests'); from conftest import tiny_cfg; "
        "from detectron2.modeling import build_model; import sst_d2, sst_d2.engine, sst_d2.inference\n"
        "def loaded(): return [name for name in sys.modules if name.startswith('sst_d2.modeling.auxiliary')]\n"
        "cfg = tiny_cfg(['atr', 'cihp']); build_model(sst_d2.inference_config(cfg)); assert not loaded(), loaded()\n"
        "build_model(cfg); assert loaded()\n"
        "assert 'sst_d2.modeling.auxiliary.prediction' not in loaded()  # an option, and off\n"
        "cfg.MODEL.SST.AUXILIARY.PREDICTION = 1.0; build_model(cfg)\n"
        "assert 'sst_d2.modeling.auxiliary.prediction' in loaded(); print('fine')"
    )
    result = in_a_new_process(code)
    assert result.stdout.strip().endswith("fine"), result.stderr


def test_detectron2s_projects_are_imported_where_they_are_needed_only():
    """They add names to Detectron2's registries, where another program may have put the same ones."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith("detectron2.projects") for name in names), path


def test_relative_imports_are_not_used():
    for path in PACKAGE.rglob("*.py"):
        levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not any(levels), path


def test_label_domains_need_the_standard_library_yaml_and_numpy_only():
    allowed = {"sst_d2", "yaml", "numpy", *sys.stdlib_module_names}
    for path in (PACKAGE / "label_domains").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert all(name.split(".")[0] in allowed for name in names), path


def test_only_config_readers_take_cfg():
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) in CONFIGURATION or path.relative_to(PACKAGE).as_posix() in OPENERS:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and "cfg" in [argument.arg for argument in node.args.args]:
                assert node.name in {"from_config", *READERS}, f"{path.name}: {node.name} takes cfg"


def test_importing_changes_no_default_of_detectron2_and_takes_no_name_twice():
    code = (
        "from detectron2.config import get_cfg; before = get_cfg().dump(); "
        "import detectron2.projects.deeplab, detectron2.projects.point_rend; "
        "import sst_d2; from sst_d2 import add_sst_config; cfg = get_cfg(); assert cfg.dump() == before; "
        "add_sst_config(cfg); add_sst_config(cfg); "
        "[cfg[node].pop('SST') for node in ('MODEL', 'INPUT', 'DATASETS', 'DATALOADER', 'SOLVER', 'TEST')]; "
        "assert cfg.dump() == before; print('fine')"
    )
    result = in_a_new_process(code)
    assert result.stdout.strip().endswith("fine"), result.stderr


def test_without_detectron2_the_import_says_how_to_get_it():
    code = "import sys; sys.modules['detectron2'] = None\nimport sst_d2"
    result = in_a_new_process(code)
    assert result.stderr.strip().splitlines()[-1].startswith("ImportError: sst_d2 needs Detectron2")
    assert "tools/install_detectron2.py" in result.stderr


@pytest.mark.parametrize("state", ["absent", "broken"])
def test_without_opencv_everything_imports_and_the_message_names_the_headless_package(state, tmp_path):
    broken = "raise ImportError('libGL.so.1: cannot open shared object file')"
    (tmp_path / "cv2.py").write_text(broken if state == "broken" else "raise ModuleNotFoundError('no cv2')")
    code = "import sst_d2, sst_d2.engine, sst_d2.visualization; print('fine')"
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert result.stdout.strip() == "fine", result.stderr
    assert "opencv-python-headless" in result.stderr
