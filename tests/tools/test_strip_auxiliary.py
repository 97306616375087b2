"""`tools/strip_auxiliary.py`: what prediction needs stays bit by bit, the rest goes by name; mistakes are refused."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from safetensors.torch import save_file as save_safetensors

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.checkpoint_io import strip_auxiliary
from sst_d2.config import inference_config
from sst_d2.errors import SSTCheckpointError

spec = importlib.util.spec_from_file_location("strip_auxiliary", ROOT / "tools/strip_auxiliary.py")
strip_command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(strip_command)

CFG = tiny_cfg(["pascal_person_part", "atr"])


@pytest.fixture
def saved(tmp_path):
    """A model and the checkpoint of its training."""
    torch.manual_seed(0)
    model = build_model(CFG)
    trainer = SimpleNamespace(state_dict=lambda: {"moments": torch.zeros(10_000)})
    SSTCheckpointer(model, str(tmp_path), config=CFG.dump(), trainer=trainer).save("model_final", iteration=9)
    return model, tmp_path / "model_final.pth"


@pytest.fixture
def run(monkeypatch, capsys):
    """The command in this process; returns what it prints, or raises."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["strip_auxiliary.py", *map(str, arguments)])
        strip_command.main()
        return capsys.readouterr().out

    return call


def test_the_command_says_what_it_removes_and_keeps_the_rest_bit_by_bit(saved, tmp_path, run, monkeypatch):
    model, path = saved
    before = path.read_bytes()
    monkeypatch.chdir(tmp_path)
    printed = run(path, "small.pth")
    branch = dict(model.auxiliary.state_dict())
    numbers = sum(value.numel() for value in branch.values()) / 1e6
    assert f"removed: auxiliary, the training-only branch ({len(branch)} tensors, {numbers:.2f} M" in printed
    assert "removed: trainer (state of training)" in printed and "removed: iteration" in printed
    whole, small = (torch.load(file, weights_only=True) for file in (path, tmp_path / "small.pth"))
    assert set(small) == {"model", "label_domains", "config", "sst_format"}
    assert set(small["model"]) == {key for key in whole["model"] if not key.startswith("auxiliary.")}
    assert all(torch.equal(value, whole["model"][key]) for key, value in small["model"].items())
    assert all(small[key] == whole[key] for key in ("label_domains", "config", "sst_format"))
    assert path.read_bytes() == before and (tmp_path / "small.pth").stat().st_size < len(before)


def test_what_is_left_serves_evaluation(saved, tmp_path):
    strip_auxiliary(str(saved[1]), str(tmp_path / "small.pth"))
    torch.manual_seed(1)
    other = build_model(inference_config(CFG))
    SSTCheckpointer(other).load_for_evaluation(str(tmp_path / "small.pth"))
    assert all(torch.equal(value, saved[0].state_dict()[key]) for key, value in other.state_dict().items())


def test_stripping_twice_removes_nothing_more(saved, tmp_path, run):
    once, twice = tmp_path / "once.pth", tmp_path / "twice.pth"
    run(saved[1], once)
    printed = run(once, twice)
    assert "nothing to remove" in printed and "removed:" not in printed
    assert torch.load(twice, weights_only=True).keys() == torch.load(once, weights_only=True).keys()


def test_an_existing_file_is_replaced_by_force_only(saved, tmp_path, run, capsys):
    target = tmp_path / "small.pth"
    target.write_text("mine")
    with pytest.raises(SystemExit) as end:
        run(saved[1], target)
    assert end.value.code == 2 and "small.pth exists; --force replaces it" in capsys.readouterr().err
    assert target.read_text() == "mine"
    assert "removed: " in run("--force", saved[1], target) and torch.load(target, weights_only=True)


@pytest.mark.parametrize("arguments", [[], ["--force"]], ids=str)
@pytest.mark.parametrize("name", ["model_final.pth", "link.pth", "folder/../model_final.pth"])
def test_the_checkpoint_itself_is_never_replaced(saved, tmp_path, run, name, arguments):
    before = saved[1].read_bytes()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.pth").symlink_to(saved[1])
    with pytest.raises(SSTCheckpointError, match=r"\.pth: is the checkpoint itself, which stays as it is"):
        run(*arguments, saved[1], tmp_path / name)
    assert saved[1].read_bytes() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere/small.pth", r"nowhere/small\.pth: there is no folder .*nowhere; make it first"),
        ("small.safetensors", r"small\.safetensors: is written in torch's format, whose name ends in \.pth"),
        ("folder.pth", r"folder\.pth: cannot be written \(.*Is a directory.*\)\. Make room there, or name another"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(saved, tmp_path, run, name, message):
    (tmp_path / "folder.pth").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SSTCheckpointError, match=message):
        run("--force", saved[1], tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def foreign_files(folder):
    """Paths of what is no checkpoint of a training, and the sentence about each."""
    torch.save({"model": {"a": torch.zeros(1)}}, folder / "other.pth")
    torch.save({"model": {}, "label_domains": [], "config": ""}, folder / "empty.pth")
    save_safetensors({"a": torch.zeros(1)}, folder / "a.safetensors")
    (folder / "text.pth").write_text("hello")
    (folder / "cut.pth").write_bytes((folder / "model_final.pth").read_bytes()[:5000])
    return {
        "none.pth": "there is no such file",
        "": "there is no such file",
        "other.pth": "is no checkpoint of a training of sst_d2",
        "empty.pth": "holds no weights of a network",
        "a.safetensors": "is no checkpoint of a training of sst_d2",
        "text.pth": "cannot be read as a checkpoint",
        "cut.pth": "cannot be read as a checkpoint",
    }


def test_wrong_files_are_refused_by_name_and_nothing_is_written(saved, tmp_path):
    for name, message in foreign_files(tmp_path).items():
        with pytest.raises(SSTCheckpointError, match=message) as error:
            strip_auxiliary(str(tmp_path / name), str(tmp_path / "small.pth"))
        assert str(error.value).startswith(str(tmp_path / name))
    assert not list(tmp_path.glob("small*"))


def test_a_mistake_is_one_sentence_and_status_1(tmp_path):
    command = [sys.executable, str(ROOT / "tools/strip_auxiliary.py"), str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(f"error: {tmp_path}/a.pth: there is no")
    assert "Traceback" not in result.stderr
