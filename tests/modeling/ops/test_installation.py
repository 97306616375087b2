"""Installations where something is lacking: all succeed, import, choose rightly, and warn once at most.

Tools and modules are hidden, by the path and by a `sitecustomize` that Python runs first.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the tools' names are those of Linux"),
]
HIDE_TORCH = "import sys; sys.modules['torch'] = None"
HIDE_NVCC = "from pathlib import Path; is_file = Path.is_file; Path.is_file = lambda p: p.name != 'nvcc' and is_file(p)"
# Uses the operator and prints, as a dict, what was chosen and warned of.
USE = """
import warnings, torch
BEFORE
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from sst_d2.modeling.ops import backends, ms_deform_attn_fused
    for dtype in (torch.float32, torch.bfloat16):
        value = torch.ones(1, 6, 2, 8, dtype=dtype, requires_grad=True)
        inputs = torch.full((1, 5, 1, 2), 0.5), torch.zeros(1, 5, 2, 1, 4, 2), torch.zeros(1, 5, 2, 4)
        ms_deform_attn_fused(value, [(2, 3)], *inputs).sum().backward()
warned = [str(one.message) for one in caught if "deformable attention" in str(one.message)]
print({"file": backends.__file__, "warned": warned}
      | {device: tuple(vars(backends.choice(device)).values()) for device in ("cpu", "cuda")})
"""


def install(folder, hidden="", **environment):
    """`pip install` into a folder, from a copy of the sources; ``hidden`` is run at the start of every Python."""
    source = folder / "source"
    leave_out = shutil.ignore_patterns("*.so", "_build_info.py", "__pycache__")
    for name in ("sst_d2", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=leave_out)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (folder / "sitecustomize.py").write_text(hidden)
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--no-build-isolation", "--quiet"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "SST_D2_EXTENSIONS": "cpu,cuda", **environment}
    command += ["--target", str(folder / "installed"), str(source)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def use(folder, before="", **environment):
    """What the installed package chooses and warns of."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "installed"), **environment}
    command = [sys.executable, "-c", USE.replace("BEFORE", before)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = ast.literal_eval(done.stdout.strip().splitlines()[-1])
    assert Path(found["file"]).is_relative_to(folder), "another installation was tested"
    return found


def path_without(folder, *hidden):
    """A folder for `PATH` that has all programs but these."""
    tools = folder / "tools"
    tools.mkdir()
    for place in reversed(os.environ["PATH"].split(os.pathsep)):
        for program in Path(place).glob("*") if Path(place).is_dir() else ():
            if not program.name.startswith(hidden):
                (tools / program.name).unlink(missing_ok=True)
                (tools / program.name).symlink_to(program)
    return str(tools)


needs_a_compiler = pytest.mark.skipif(not shutil.which("c++"), reason="no C++ compiler here")
needs_the_stable_abi = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10), reason="PyTorch 2.10 is not here"
)


def test_no_compiler(tmp_path):
    tools = tmp_path / "nothing"
    tools.mkdir()
    install(tmp_path, HIDE_NVCC, PATH=str(tools))
    found = use(tmp_path)
    name, reason, remedy = found["cpu"]
    assert name == "torch" and reason.startswith("ext: the extension is not built (")
    assert "with a C++ compiler" in remedy
    (warning,) = found["warned"]
    assert "runs on cpu in plain PyTorch" in warning and remedy in warning


def test_build_isolation(tmp_path):
    install(tmp_path, HIDE_TORCH)
    found = use(tmp_path)
    assert found["cpu"][0] == "torch" and "--no-build-isolation pip builds where it is installed" in found["cpu"][1]
    assert len(found["warned"]) == 1


@needs_a_compiler
@needs_the_stable_abi
def test_no_nvcc_and_no_ninja(tmp_path):
    install(tmp_path, HIDE_NVCC, PATH=path_without(tmp_path, "nvcc", "ninja"), CUDA_HOME="")
    found = use(tmp_path)
    assert found["cpu"][0] == "ext" and found["warned"] == []
    name, reason, _ = found["cuda"]
    assert name == ("nvrtc" if torch.cuda.is_available() else "torch")
    assert "ext: the extension is not built (" in reason
    # The same installation under a PyTorch without CUDA, and where nothing compiled is wanted.
    found = use(tmp_path, before="torch.version.cuda = None; torch.cuda.is_available = lambda: False")
    assert (found["cpu"][0], found["cuda"][0], found["warned"]) == ("ext", "torch", [])
    assert found["cuda"][1].endswith("nvrtc: this PyTorch has no CUDA")
    found = use(tmp_path, SST_D2_MSDA="torch")
    assert (found["cpu"][0], found["cuda"][0], found["warned"]) == ("torch", "torch", [])
