"""tools/install_detectron2.py: patching, stand-ins, decisions and error sentences, all without network."""

import hashlib
import importlib.util
import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "install_detectron2.py"
spec = importlib.util.spec_from_file_location("install_detectron2", TOOL)
tool = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = tool
spec.loader.exec_module(tool)

GOOD = tool.Probe(
    torch="2.11.0", torch_error="", found=True, version="0.6", where="/site/detectron2", distribution="0.6", error=""
)


def completed(code: int, output: str) -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess([], code, stdout=output)


@pytest.fixture
def source(tmp_path):
    """The lines of the original source that the patches are about, each in its file."""
    files = {
        "detectron2/data/build.py": "a = np.zeros(3, dtype=np.int)\n" * 10 + "b = np.bool_\n",
        "detectron2/structures/masks.py": "m.astype(np.bool)\n" * 7 + "x = np.loadtxt(f, dtype=np.str)\n",
        "detectron2/layers/mask_ops.py": "    mask = np.array(mask, copy=False)\n",
        "detectron2/data/transforms/transform.py": "def f(interp=Image.LINEAR): pass\n",
        "detectron2/data/common.py": "            cur_idx = self._rng.sample(self._fallback_candidates, k=1)[0]\n",
        "detectron2/model_zoo/model_zoo.py": (
            "import os\nimport pkg_resources\nimport torch\n"
            "    cfg_file = pkg_resources.resource_filename(\n"
            '        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )\n'
        ),
        "detectron2/utils/env.py": (
            "        except ModuleNotFoundError:\n            # Other types of ImportError, if happened, should\n"
        ),
        "detectron2/utils/visualizer.py": "import cv2\n",
        "projects/PointRend/point_rend/color_augmentation.py": "import cv2\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_patches_replace_what_newer_packages_removed(source):
    assert tool.patch_source(source) == sum(patch.count for patch in tool.PATCHES)
    text = {path.name: path.read_text(encoding="utf-8") for path in source.rglob("*.py")}
    assert text["build.py"] == "a = np.zeros(3, dtype=int)\n" * 10 + "b = np.bool_\n"
    assert "np.str" not in text["masks.py"] and "m.astype(bool)" in text["masks.py"]
    assert text["mask_ops.py"].strip() == "mask = np.asarray(mask)"
    assert "Image.BILINEAR" in text["transform.py"]
    assert "sample(sorted(self._fallback_candidates), k=1)" in text["common.py"]
    assert "pkg_resources" not in text["model_zoo.py"]
    assert "os.path.dirname(os.path.abspath(__file__))" in text["model_zoo.py"]
    assert text["env.py"].startswith("        except ImportError:\n            # Other")
    compile(text["visualizer.py"], "visualizer.py", "exec")
    assert "_no_cv2 as cv2" in text["visualizer.py"] and "_no_cv2 as cv2" in text["color_augmentation.py"]
    assert tool.VERSION in text["setup.py"] and "ext_modules" not in text["setup.py"]
    compile(text["setup.py"], "setup.py", "exec")


def test_unexpected_source_is_refused_and_left_alone(source):
    path = source / "detectron2" / "data" / "build.py"
    before = path.read_text(encoding="utf-8") + "c = np.float(1)\n"
    path.write_text(before, encoding="utf-8")
    with pytest.raises(tool.InstallError, match=r"matches 19 times, expected 18; remedy"):
        tool.patch_source(source)
    assert path.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", ["detectron2/_C.py", "detectron2/_no_cv2.py"])
def test_stand_ins_raise_a_clear_error_on_use_only(tmp_path, name):
    path = tmp_path / "stand_in.py"
    path.write_text(tool.STAND_INS[name], encoding="utf-8")
    module_spec = importlib.util.spec_from_file_location("stand_in", path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    with pytest.raises(ImportError, match=r"some_function is not there\. .*(compiler|opencv-python-headless)"):
        _ = module.some_function
    assert not hasattr(module, "__path__")
    with pytest.raises(AttributeError, match="__path__"):
        _ = module.__path__


def test_stand_in_answers_the_environment_report(tmp_path):
    namespace = {}
    exec(tool.STAND_INS["detectron2/_C.py"], namespace)
    assert namespace["has_cuda"]() is False
    assert "pure-Python" in namespace["get_compiler_version"]() + namespace["get_cuda_version"]()


@pytest.mark.parametrize(
    ("changes", "force", "needed", "reason"),
    [
        ({}, False, False, "Detectron2 0.6 in /site/detectron2 can be imported"),
        ({}, True, True, "--force was given"),
        ({"found": False, "distribution": ""}, False, True, "not installed"),
        ({"distribution": tool.VERSION}, False, False, "can be imported"),
        ({"distribution": "0.5+purepython.0"}, False, True, "0.5+purepython.0, this tool makes"),
        ({"distribution": tool.VERSION, "error": "ImportError: x"}, False, True, "incomplete"),
        ({"distribution": "", "error": "ImportError: x"}, False, True, "incomplete"),
        ({"error": "ImportError: x"}, True, True, "--force was given"),
    ],
)
def test_decision(changes, force, needed, reason):
    answer = tool.decide(GOOD._replace(**changes), force)
    assert answer[0] is needed
    assert reason in answer[1]


def test_somebody_elses_broken_detectron2_is_not_replaced_unasked():
    with pytest.raises(tool.InstallError, match=r"cannot be imported \(ImportError: x\); remedy: .*--force"):
        tool.decide(GOOD._replace(error="ImportError: x"), force=False)


def test_no_torch_is_one_sentence_with_the_command(monkeypatch, capsys):
    monkeypatch.setattr(tool, "probe", lambda: GOOD._replace(torch="", torch_error="No module named 'torch'"))
    assert tool.main([]) == 1
    error = capsys.readouterr().err
    assert "No module named 'torch'" in error and "-m pip install torch torchvision" in error
    assert error.count("\n") == 1


def test_no_torch_in_a_real_process(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('no torch here')\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(TOOL)], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "no torch here" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("WARNING: Retrying\nERROR: No matching distribution found for pip<26", "check the network"),
        ("error: externally-managed-environment", "virtual environment"),
        ("/usr/bin/python: No module named pip", "ensurepip"),
        ("OSError: [Errno 28] No space left on device", "disk space"),
        ("something else", "see pip's lines above"),
    ],
)
def test_failing_pip_keeps_its_last_lines_and_names_the_remedy(monkeypatch, capsys, output, remedy):
    monkeypatch.setattr(tool, "probe", lambda: GOOD._replace(found=False))
    monkeypatch.setattr(tool, "run_python", lambda arguments, extra_path=None: completed(1, output))
    assert tool.main([]) == 1
    error = capsys.readouterr().err
    assert output.splitlines()[-1] in error
    assert "pip could not fetch the build tools" in error and remedy in error
    assert "Traceback" not in error


def test_check_only_says_what_would_be_done(monkeypatch, capsys):
    monkeypatch.setattr(tool, "install", lambda *_, **__: pytest.fail("--check must not install"))
    monkeypatch.setattr(tool, "probe", lambda: GOOD._replace(found=False))
    assert tool.main(["--check"]) == 0
    assert f"would install {tool.VERSION}" in capsys.readouterr().out
    monkeypatch.setattr(tool, "probe", lambda: GOOD)
    assert tool.main(["--check"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_success_and_failure_after_the_installation(monkeypatch, capsys):
    monkeypatch.setattr(tool, "install", lambda *_, **__: None)
    answers = iter(
        [GOOD._replace(found=False), GOOD, GOOD._replace(found=False), GOOD._replace(error="ImportError: y")]
    )
    monkeypatch.setattr(tool, "probe", lambda: next(answers))
    assert tool.main([]) == 0
    assert "done: Detectron2 0.6 in /site/detectron2" in capsys.readouterr().out
    assert tool.main([]) == 1
    assert "the installed Detectron2 cannot be imported: ImportError: y" in capsys.readouterr().err


def test_interruption_and_file_errors_end_without_traceback(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    def no_space():
        raise OSError(28, "No space left on device", "wheel.part")

    monkeypatch.setattr(tool, "probe", interrupt)
    assert tool.main([]) == 130
    monkeypatch.setattr(tool, "probe", no_space)
    assert tool.main([]) == 1
    assert "No space left on device: 'wheel.part'" in capsys.readouterr().err


def test_unreadable_python_answer_is_an_error(monkeypatch):
    monkeypatch.setattr(tool, "run_python", lambda arguments, extra_path=None: completed(-11, "Segmentation fault"))
    with pytest.raises(tool.InstallError, match="could not be examined: Segmentation fault"):
        tool.probe()


def test_other_download_is_refused(tmp_path):
    path = tmp_path / "detectron2_cdo-0.5.tar.gz"
    path.write_bytes(b"x")
    tool.check_sha256(path, hashlib.sha256(b"x").hexdigest())
    with pytest.raises(tool.InstallError, match=r"detectron2_cdo-0\.5\.tar\.gz has sha256 .* is expected; remedy"):
        tool.check_sha256(path, tool.SDIST_SHA256)


def test_unpack_returns_the_top_folder(tmp_path):
    path = tmp_path / "a.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        info = tarfile.TarInfo("a-1.0/setup.py")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    assert tool.unpack(path, tmp_path / "out") == tmp_path / "out" / "a-1.0"


def test_kept_wheel_is_reused_and_a_half_one_is_not(tmp_path, monkeypatch):
    calls = []

    def build(work):
        calls.append(work)
        wheel = tmp_path / "built.whl"
        wheel.write_bytes(b"wheel")
        return wheel

    monkeypatch.setattr(tool, "build_wheel", build)
    kept = tmp_path / "wheels" / tool.WHEEL_NAME
    kept.parent.mkdir()
    kept.with_suffix(".part").write_bytes(b"half")
    assert tool.get_wheel(kept.parent, tmp_path) == kept and kept.read_bytes() == b"wheel"
    assert tool.get_wheel(kept.parent, tmp_path) == kept and len(calls) == 1
    assert tool.get_wheel(None, tmp_path) == tmp_path / "built.whl"


def test_build_tools_come_first_and_the_environment_stays_as_it_is(tmp_path, monkeypatch):
    seen = []

    def fake(arguments, extra_path=None):
        seen.append((arguments, extra_path))
        return completed(0, "")

    monkeypatch.setattr(tool, "run_python", fake)
    with pytest.raises(tool.InstallError, match=r"pip downloaded \[\], expected one source package"):
        tool.build_wheel(tmp_path)
    (first, first_path), (second, second_path) = seen
    assert "--target" in first and "pip<26" in first and first_path is None
    assert "download" in second and tool.SDIST in second and second_path == tmp_path / "tools"


@pytest.mark.slow
def test_check_in_a_real_process():
    done = subprocess.run([sys.executable, str(TOOL), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nothing to do: Detectron2" in done.stdout
