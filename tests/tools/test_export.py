"""`tools/export.py`: what it keeps says what the model says; what differs is not kept; mistakes are one sentence."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2 import SSTPredictor, export
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import inference_config
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTError

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch.jit.* is deprecated", "ignore:You are using the legacy TorchScript-based ONNX export"
)
spec = importlib.util.spec_from_file_location("export_command", ROOT / "tools/export.py")
command = importlib.util.module_from_spec(spec)
spec.loader.exec_module(command)

CFG = inference_config(tiny_cfg(["pascal_person_part", "atr"], OUTPUT_DIR="secret/place"))
NO_ONNX = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(NO_ONNX), reason=f"not installed: {NO_ONNX} (the extra `export`)")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, with the result of an evaluation in its folder."""
    folder = tmp_path_factory.mktemp("training")
    torch.manual_seed(0)
    model = build_model(CFG).eval()
    with torch.no_grad():
        for head in model.heads.values():
            head.weight *= 100
    SSTCheckpointer(model, str(folder), config=CFG.dump()).save("model_final")
    result = folder / "inference" / "my_val" / "sem_seg_evaluation.json"
    result.parent.mkdir(parents=True)
    record = {"dataset": "my_val", "label_domain": "atr", "images": 3, "mIoU_definition": "as usual"}
    result.write_text(json.dumps({**record, "sem_seg": {"mIoU": 45.67}}))
    return folder / "model_final.pth"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The command in this process, in an empty folder; returns what it prints, or raises."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command.export.agreement, "SIZES", ((40, 72),))

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["export.py", *map(str, arguments)])
        command.main()
        return capsys.readouterr().out

    return call


def some_photo(size=(50, 70)):
    return np.random.default_rng(3).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_torchscript_is_compared_in_several_sizes_and_kept(trained, run, tmp_path):
    printed = run(trained, "--format", "torchscript", "--output", "a.pt")
    rows = [line for line in printed.splitlines() if "same class in 100.000 % of the pixels, largest differ" in line]
    assert [row.split(":")[0].strip() for row in rows] == ["320 x 256"] * 3 + ["40 x 72"]
    assert "a.pt: " in printed and [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    found = export.read_metadata(tmp_path / "a.pt")
    assert list(found["label_domains"]) == ["pascal_person_part", "atr"]
    assert found["normalisation"]["mean"] == CFG.MODEL.PIXEL_MEAN
    assert "any height and width" in found["input"] and 'torch.jit.load("a.pt")' in found["model_card"]
    photo = some_photo()
    outputs = export.open_torchscript(tmp_path / "a.pt")(torch.from_numpy(photo.transpose(2, 0, 1).copy())[None])
    for name, prediction in SSTPredictor(str(trained), device="cpu")(photo, domain="all").items():
        assert (outputs[f"logits_{name}"][0].argmax(0).numpy() == prediction.labels).mean() >= 0.999


@needs_onnx
def test_onnx_for_one_domain_and_size_is_compared_with_given_photos(trained, run, tmp_path):
    import onnx

    (tmp_path / "photos").mkdir()
    Image.fromarray(some_photo()).save(tmp_path / "photos/mine.png")
    flags = ["--domain", "atr", "--labels", "--size", 40, 52, "--check", "photos/mine.png", "--opset", 18]
    printed = run(trained, "--format", "onnx", "--output", "a.onnx", *flags)
    rows = [line for line in printed.splitlines() if line.startswith("  40 x 52: same class in 100.000 %")]
    assert "largest difference of logits" in rows[0] and rows[1].endswith(" of the pixels")  # then as label maps
    written = onnx.load(tmp_path / "a.onnx")
    assert [output.name for output in written.graph.output] == ["labels_atr"] and written.opset_import[0].version == 18
    properties = {entry.key: entry.value for entry in written.metadata_props}
    assert list(json.loads(properties["label_domains"])) == ["atr"] and "height 40 and width 52" in properties["input"]
    assert "45.67" in properties["model_card"]


def test_a_bundle_opens_in_the_predictor_and_tells_no_place_of_this_machine(trained, run, tmp_path):
    printed = run(trained, "--format", "safetensors", "--output", "bundle", "--domain", "atr")
    assert "largest difference of logits 0.0e+00" in printed
    predictor = SSTPredictor(tmp_path / "bundle", device="cpu")
    expected = SSTPredictor(str(trained), device="cpu")(some_photo(), domain="atr")
    found = predictor(some_photo())
    assert list(predictor.domains) == ["atr"] and np.array_equal(found.labels, expected.labels)
    card = (tmp_path / "bundle/MODEL_CARD.md").read_text()
    assert "45.67" in card and "my_val" in card and "SHA-256" in card and 'SSTPredictor("bundle")' in card
    assert "secret" not in card and "secret" not in (tmp_path / "bundle/config.yaml").read_text()
    assert str(trained.parent) not in card and [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_what_a_bundle_is_made_into_keeps_its_scores_and_where_it_comes_from(trained, run, tmp_path):
    run(trained, "--format", "safetensors", "--output", "bundle")
    run("bundle", "--format", "torchscript", "--output", "a.pt")
    run("bundle", "--format", "safetensors", "--output", "again")
    first, of_file, again = (
        (tmp_path / "bundle/MODEL_CARD.md").read_text(),
        export.read_metadata(tmp_path / "a.pt")["model_card"],
        (tmp_path / "again/MODEL_CARD.md").read_text(),
    )
    for card in (of_file, again):
        assert "45.67" in card and "model_final.pth, SHA-256" in card
    assert again == first.replace('SSTPredictor("bundle")', 'SSTPredictor("again")')
    (tmp_path / "bundle/origin.json").unlink()  # of an earlier version
    run("bundle", "--format", "torchscript", "--output", "b.pt")
    card = export.read_metadata(tmp_path / "b.pt")["model_card"]
    assert "Not measured" in card and "model.safetensors, SHA-256" in card


@pytest.mark.parametrize("flags", [[], ["--labels"]])
def test_damaged_weights_are_not_exported(trained, run, tmp_path, flags):
    content = torch.load(trained, weights_only=True)
    content["model"]["heads.atr.weight"] *= float("nan")
    torch.save(content, tmp_path / "bad.pth")
    with pytest.raises(SSTCheckpointError, match="NaN or infinity for 'atr': its weights are damaged"):
        run("bad.pth", "--format", "torchscript", "--output", "a.pt", *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.pth"]


def test_an_exported_file_cannot_be_exported_again(trained, run, tmp_path):
    run(trained, "--format", "torchscript", "--output", "a.pt", "--size", 32, 32)
    (tmp_path / "a.onnx").write_bytes(b"graph")
    for name in ("a.pt", "a.onnx"):
        with pytest.raises(SSTCheckpointError, match=rf"{name}: is a network exported as ONNX or TorchScript"):
            run(name, "--format", "torchscript", "--output", "b.pt")


def test_a_configuration_names_its_weights(trained, run, tmp_path):
    config = CFG.clone()
    config.merge_from_list(["MODEL.WEIGHTS", str(trained)])
    (tmp_path / "mine.yaml").write_text(config.dump())
    printed = run("mine.yaml", "--format", "safetensors", "--output", "bundle")
    assert "label domains: pascal_person_part, atr" in printed
    assert "45.67" in (tmp_path / "bundle/MODEL_CARD.md").read_text()


@pytest.mark.parametrize("kind", ["torchscript", "safetensors"])
def test_what_differs_from_the_model_is_not_kept(trained, run, tmp_path, monkeypatch, kind):
    (tmp_path / "a").write_text("mine")
    monkeypatch.setattr(command.export, "compare", lambda *_: export.Agreement((40, 72), 0.9989, 0.5, 0.25, 2))
    output = ["a", "--overwrite"] if kind == "torchscript" else ["b"]
    with pytest.raises(
        SSTCheckpointError,
        match=r"at 40 x 72: same class in 99\.890 % .*99\.9 % are needed, .* of at most 2\.5e-01; nothing",
    ):
        run(trained, "--format", kind, "--output", *output)
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "mine"


def test_an_interrupted_export_leaves_nothing(trained, run, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.export, "compare", interrupted)
    for kind in ("torchscript", "safetensors"):
        with pytest.raises(KeyboardInterrupt):
            run(trained, "--format", kind, "--output", "a")
    assert list(tmp_path.iterdir()) == []


def test_overwriting_takes_the_flag(trained, run, tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_text("mine")
    with pytest.raises(SSTConfigError, match=r"a\.pt: exists; --overwrite replaces it"):
        run(trained, "--format", "torchscript", "--output", "a.pt")
    assert (tmp_path / "a.pt").read_text() == "mine"
    monkeypatch.setattr(command.export, "compare", lambda *_: export.Agreement((1, 1), 1.0, 0.0, 0.1, 1))
    printed = run(trained, "--format", "torchscript", "--output", "a.pt", "--overwrite", "--size", 32, 32)
    assert "note: the network sees one class alone in all of them; --check PHOTO" in printed
    assert export.read_metadata(tmp_path / "a.pt")


def mistakes(folder):
    """Arguments, and the sentence about each."""
    (folder / "folder").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "thesis.txt").write_text("mine")
    (folder / "text.pth").write_text("no weights")
    (folder / "empty.yaml").write_text(yaml.safe_dump({"MODEL": {"WEIGHTS": ""}}))
    torchscript = ["--format", "torchscript", "--output", "a.pt"]
    return [
        (["none.pth", *torchscript], r"none\.pth: there is no such file"),
        (["text.pth", *torchscript], r"text\.pth: cannot be read as a checkpoint"),
        (["empty.yaml", *torchscript], r"empty\.yaml: MODEL\.WEIGHTS is empty"),
        (["folder", *torchscript], r"folder: a folder without model\.safetensors is no bundle"),
        (
            [None, *torchscript, "--domain", "cihp"],
            r"--domain: 'cihp'; the network has pascal_person_part, atr, and 'all",
        ),
        ([None, *torchscript, "--check", "text.pth"], r"text\.pth: is no image"),
        ([None, *torchscript, "--check", "none.jpg"], r"none\.jpg: "),
        ([None, "--format", "torchscript", "--output", "folder"], "folder: is a folder; name a file"),
        ([None, "--format", "torchscript", "--output", "nowhere/a.pt"], "there is no folder nowhere; make it first"),
        ([None, "--format", "safetensors", "--output", "foreign", "--overwrite"], r"foreign: holds thesis\.txt"),
    ]


def test_mistakes_are_named_and_nothing_is_written(trained, run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        command, "photos_to_check", lambda paths, own=command.photos_to_check: own(paths or [trained.parent / "p.png"])
    )
    Image.fromarray(some_photo()).save(trained.parent / "p.png")
    for arguments, message in mistakes(tmp_path):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SSTError, match=message):
            run(*[trained if argument is None else argument for argument in arguments])
        assert sorted(tmp_path.rglob("*")) == before, arguments


def test_a_folder_that_may_not_be_written_to_is_named(trained, run, monkeypatch):
    monkeypatch.setattr(command.os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SSTConfigError, match=r"a\.pt: the folder \. may not be written to; name another"):
        run(trained, "--format", "torchscript", "--output", "a.pt")


def test_a_full_disk_is_a_sentence(trained, run, tmp_path, monkeypatch):
    def full(path, *_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(command.export, "write_torchscript", full)
    with pytest.raises(SSTConfigError, match=r"a\.pt: cannot be written \(.*No space left on device\)\. Make room"):
        run(trained, "--format", "torchscript", "--output", "a.pt")
    assert list(tmp_path.iterdir()) == []


def test_without_onnx_the_sentence_comes_before_the_work(run, monkeypatch):
    monkeypatch.setattr(export.onnx_file.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SSTConfigError, match=r'python -m pip install "onnx>=1\.16" "onnxruntime>=1\.18"'):
        run("none.pth", "--format", "onnx", "--output", "a.onnx")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["safetensors", "--labels"], "--labels is for onnx and torchscript, not for safetensors"),
        (["safetensors", "--size", "8", "8"], "--size is for onnx and torchscript"),
        (["torchscript", "--opset", "17"], "--opset is for onnx, not for torchscript"),
        (["torchscript", "--input-type", "uint8"], "--input-type is for onnx"),
        (["onnx", "--opset", "15"], "invalid choice: 15"),
        (["onnx", "--size", "8", "8", "--dynamic"], "not allowed with argument --size"),
        (["onnx", "--size", "0", "8"], "allowed are whole numbers from 1"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(run, capsys, flags, message):
    with pytest.raises(SystemExit) as end:
        run("none.pth", "--output", "a", "--format", *flags)
    assert end.value.code == 2 and message in capsys.readouterr().err


def test_a_mistake_is_one_sentence_and_status_1(tmp_path):
    arguments = ["none.pth", "--format", "torchscript", "--output", str(tmp_path / "a.pt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, str(ROOT / "tools/export.py"), *arguments], capture_output=True, text=True, env=environment
    )
    assert result.returncode == 1 and result.stderr.splitlines()[-1].startswith(
        "error: none.pth: there is no such file"
    )
    assert "Traceback" not in result.stderr
