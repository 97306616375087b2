"""Checkpoints: what they hold, what may be loaded where, and that nothing of a file is executed."""

import multiprocessing
import os
import pickle
import resource
import signal

import numpy as np
import pytest
import torch
import torchvision
from conftest import tiny_cfg
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from safetensors.torch import save_file as save_safetensors

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.checkpoint_io import read_checkpoint
from sst_d2.errors import SSTCheckpointError
from sst_d2.label_domains import LabelDomain

WITHOUT = {"MODEL__SST__AUXILIARY__ENABLED": False}
R50 = {
    "MODEL__BACKBONE__NAME": "build_resnet_backbone",
    "MODEL__RESNETS__NORM": "FrozenBN",
    "MODEL__RESNETS__STEM_OUT_CHANNELS": 64,
    "MODEL__RESNETS__RES2_OUT_CHANNELS": 256,
}


def new_model(seed=0, **overrides):
    torch.manual_seed(seed)
    return build_model(tiny_cfg(**overrides))


def equal(first, second, prefix=""):
    other = second.state_dict()
    return all(torch.equal(value, other[key]) for key, value in first.state_dict().items() if key.startswith(prefix))


@pytest.fixture
def saved(tmp_path):
    """A model and the path of its checkpoint."""
    model = new_model()
    SSTCheckpointer(model, str(tmp_path), config="A: 1\n").save("model_final", iteration=3)
    return model, str(tmp_path / "model_final.pth")


def test_a_checkpoint_holds_weights_domains_config_and_format(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    assert set(content) == {"model", "label_domains", "config", "sst_format", "iteration"}
    assert [record["name"] for record in content["label_domains"]] == ["pascal_person_part", "atr", "cihp"]
    assert LabelDomain.from_dict(content["label_domains"][1], "x") == saved[0].domains["atr"]
    assert (content["config"], content["sst_format"], content["iteration"]) == ("A: 1\n", 1, 3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


def test_content_that_was_read_is_loaded_as_its_file_would_be(saved):
    content = read_checkpoint(saved[1])
    kept = list(content)
    other = new_model(seed=1, **WITHOUT)
    SSTCheckpointer(other).load_content(content, saved[1])
    assert equal(other, saved[0]) and list(content) == kept
    del content["model"]["heads.atr.bias"]
    with pytest.raises(SSTCheckpointError, match=r"model_final\.pth: the checkpoint does not fit.*\n.*heads\.atr"):
        SSTCheckpointer(other).load_content(content, saved[1])


def test_loading_gives_the_weights_back_also_through_detectron2s_own_checkpointer(saved):
    for loader in (SSTCheckpointer, DetectionCheckpointer):
        other = new_model(seed=1)
        assert not equal(saved[0], other)
        loader(other).load(saved[1])
        assert equal(saved[0], other)


def test_an_untagged_save_leaves_the_last_checkpoint(saved, tmp_path):
    SSTCheckpointer(saved[0], str(tmp_path)).save("model_best", tag_last=False)
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth" and (tmp_path / "model_best.pth").exists()


def test_an_interrupted_save_leaves_the_old_file(saved, tmp_path, monkeypatch):
    before = (tmp_path / "model_final.pth").read_bytes()

    def fail_half_way(data, stream):
        stream.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", fail_half_way)
    with pytest.raises(SSTCheckpointError, match=r"model_final.pth: cannot be written \(No space left on device\)"):
        SSTCheckpointer(saved[0], str(tmp_path)).save("model_final")
    assert (tmp_path / "model_final.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]


def write_under_a_limit(folder, size):
    """A disk that is full, as a process sees it: no file may grow beyond ``size`` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    try:
        SSTCheckpointer(new_model(seed=1), folder).save("model_0000009")
    except SSTCheckpointError as error:
        print(error)


@pytest.mark.parametrize("size", [1000, 100_000])
def test_a_full_disk_leaves_the_previous_checkpoint_in_use(saved, tmp_path, size, capfd):
    process = multiprocessing.get_context("fork").Process(target=write_under_a_limit, args=(str(tmp_path), size))
    process.start()
    process.join(60)
    assert "model_0000009.pth: cannot be written" in capfd.readouterr().out and process.exitcode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model_final.pth"]
    other = new_model(seed=1)
    SSTCheckpointer(other, str(tmp_path)).resume_or_load("", resume=True)
    assert equal(saved[0], other)


def test_keys_of_the_training_only_branch_are_left_out_where_the_model_has_none(saved, caplog):
    bare = new_model(seed=1, **WITHOUT)
    caplog.set_level("INFO")
    SSTCheckpointer(bare).load(saved[1])
    assert equal(bare, saved[0])
    count = sum(key.startswith("auxiliary.") for key in saved[0].state_dict())
    assert count > 100 and f"training-only branch ({count} tensors) is not needed and left out" in caplog.text


def test_a_start_without_the_branch_leaves_it_random_and_resuming_refuses_to(saved, tmp_path):
    SSTCheckpointer(saved[0], str(tmp_path)).save_for_inference("model_inference")
    other = new_model(seed=1)
    before = {key: value.clone() for key, value in other.auxiliary.state_dict().items()}
    with pytest.raises(SSTCheckpointError, match=r"missing: auxiliary\..* \(\d+ of auxiliary\."):
        SSTCheckpointer(other).load(str(tmp_path / "model_inference.pth"))
    SSTCheckpointer(other).load_start(str(tmp_path / "model_inference.pth"))
    assert all(equal(getattr(saved[0], part), getattr(other, part)) for part in ("backbone", "decoder", "heads"))
    assert all(torch.equal(value, before[key]) for key, value in other.auxiliary.state_dict().items())


def test_a_checkpoint_without_its_state_of_training_cannot_be_gone_on_with(saved, tmp_path):
    class State:
        def state_dict(self):
            return {"iteration": 3}

        def load_state_dict(self, state):
            raise AssertionError

    bare = new_model(**WITHOUT)
    checkpointer = SSTCheckpointer(bare, str(tmp_path), trainer=State())
    checkpointer.save_for_inference("model_inference")
    checkpointer.tag_last_checkpoint("model_inference.pth")
    with pytest.raises(SSTCheckpointError, match=r"inference\.pth: holds no state of training \(trainer\): it was"):
        checkpointer.resume_or_load("", resume=True)
    SSTCheckpointer(bare).load_start(str(tmp_path / "model_inference.pth"))
    assert equal(bare, saved[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("heads.atr.bias"), r"missing: heads.atr.bias \(18,\)"),
        (lambda w: w.update({"decoder.more": torch.zeros(1)}), "unexpected: decoder.more"),
        (
            lambda w: w.update({"heads.atr.bias": torch.zeros(7)}),
            r"other shape: heads.atr.bias \(7,\) instead of \(18,\)",
        ),
    ],
)
def test_evaluation_and_resume_are_strict(saved, tmp_path, change, message):
    content = torch.load(saved[1], weights_only=True)
    change(content["model"])
    torch.save(content, tmp_path / "changed.pth")
    other = new_model(seed=1)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(SSTCheckpointError, match=message):
        SSTCheckpointer(other).load(str(tmp_path / "changed.pth"))
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())  # nothing half loaded


def test_a_checkpoint_of_other_classes_under_the_same_name_is_refused(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["label_domains"][1]["classes"][1:3] = ["hair", "hat"]
    torch.save(content, tmp_path / "changed.pth")
    with pytest.raises(SSTCheckpointError, match=r"the label domains \['atr'\] have other classes"):
        SSTCheckpointer(new_model()).load(str(tmp_path / "changed.pth"))
    other = new_model(seed=1)
    fresh = other.heads["atr"].weight.clone()
    SSTCheckpointer(other).load_start(str(tmp_path / "changed.pth"))
    assert torch.equal(other.heads["atr"].weight, fresh)  # classes in another order would be silently wrong
    assert torch.equal(other.heads["cihp"].weight, saved[0].heads["cihp"].weight)


def test_other_colours_of_a_domain_do_not_matter_for_its_weights(saved, tmp_path):
    content = torch.load(saved[1], weights_only=True)
    content["label_domains"][1].update(colors=[[1, 2, 3]] * 18, some_later_field=3)
    torch.save(content, tmp_path / "changed.pth")
    other = new_model(seed=1)
    SSTCheckpointer(other).load(str(tmp_path / "changed.pth"))
    assert equal(saved[0], other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"a": "text"}}, "no dict of named tensors"),
        ({"model": "text"}, "no dict of named tensors"),
        ({"epoch": 3, "arch": "resnet50"}, "no dict of named tensors"),
        ({"model": {"a": torch.zeros(1)}, "label_domains": [3]}, "label_domains are no records"),
        ({"model": {"a": torch.zeros(1)}, "sst_format": 2}, "format 2 by another sst_d2; this one reads 1"),
    ],
)
def test_foreign_contents_are_refused_by_name(tmp_path, content, message):
    torch.save(content, tmp_path / "foreign.pth")
    with pytest.raises(SSTCheckpointError, match=message) as error:
        SSTCheckpointer(new_model()).load(str(tmp_path / "foreign.pth"))
    assert str(error.value).startswith(str(tmp_path / "foreign.pth"))


def test_weights_under_state_dict_are_found(torchvision_resnet, tmp_path):
    torch.save({"epoch": 9, "state_dict": torchvision_resnet.state_dict()}, tmp_path / "trained.pth")
    model = new_model(**R50)
    SSTCheckpointer(model).load_start(str(tmp_path / "trained.pth"))
    assert torch.equal(model.backbone.stem.conv1.weight, torchvision_resnet.conv1.weight)


@pytest.mark.parametrize(
    "content", [b"garbage", b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", pickle.dumps({"model": [1]})]
)
def test_damaged_pkl_files_are_refused(tmp_path, content):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(SSTCheckpointError, match=r"bad\.pkl: (cannot be read|the file holds)"):
        SSTCheckpointer(new_model()).load_start(str(tmp_path / "bad.pkl"))


def test_a_start_from_another_network_of_ours_may_have_other_heads(saved):
    other = new_model(seed=1, domains=["lip", "atr"])
    lip = other.heads["lip"].weight.clone()
    SSTCheckpointer(other).resume_or_load(saved[1], resume=False)
    assert equal(other.backbone, saved[0].backbone) and equal(other.decoder, saved[0].decoder)
    assert torch.equal(other.heads["atr"].weight, saved[0].heads["atr"].weight)
    assert torch.equal(other.heads["lip"].weight, lip)
    with pytest.raises(SSTCheckpointError, match="missing: heads.lip"):
        SSTCheckpointer(other).load(saved[1])


def test_a_start_from_another_trunk_is_refused(saved):
    with pytest.raises(SSTCheckpointError, match=r"(?s)does not fit the network.*same backbone and decoder"):
        SSTCheckpointer(new_model(MODEL__SST__PIXEL_DECODER__LAYERS=2)).load_start(saved[1])


def test_resuming_takes_the_last_checkpoint_and_starting_does_not(saved, tmp_path):
    other = new_model(seed=1)
    checkpointer = SSTCheckpointer(other, str(tmp_path))
    assert checkpointer.resume_or_load("", resume=False) == {}
    assert not equal(saved[0], other)
    checkpointer.resume_or_load("", resume=True)
    assert equal(saved[0], other)


def test_evaluation_without_weights_is_refused(saved, tmp_path):
    with pytest.raises(SSTCheckpointError, match="MODEL.WEIGHTS is empty; evaluation needs a checkpoint"):
        SSTCheckpointer(new_model()).load_for_evaluation("")
    other = new_model(seed=1)
    SSTCheckpointer(other, str(tmp_path)).load_for_evaluation("", resume=True)
    assert equal(saved[0], other)


@pytest.fixture(scope="module")
def torchvision_resnet():
    torch.manual_seed(2)
    network = torchvision.models.resnet50()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def test_torchvisions_resnet_fills_the_backbone_and_computes_the_same(torchvision_resnet, tmp_path):
    torch.save(torchvision_resnet.state_dict(), tmp_path / "resnet50.pth")
    model = new_model(**R50).eval()
    SSTCheckpointer(model).load_start(str(tmp_path / "resnet50.pth"))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = torchvision_resnet.maxpool(torch.relu(torchvision_resnet.bn1(torchvision_resnet.conv1(image))))
        features = model.backbone(image)
        for stage in (1, 2, 3, 4):
            expected = getattr(torchvision_resnet, f"layer{stage}")(expected)
            assert torch.allclose(features[f"res{stage + 1}"], expected, atol=1e-4)


def test_detectron2s_model_zoo_files_fill_the_backbone(tmp_path):
    model, source = new_model(seed=1, **R50), new_model(seed=2, **R50)
    arrays = {key: value.numpy() for key, value in source.backbone.state_dict().items()}
    arrays["fc.weight"] = np.zeros((3, 3))
    with open(tmp_path / "R-50.pkl", "wb") as stream:
        pickle.dump({"model": arrays, "__author__": "torchvision"}, stream)
    SSTCheckpointer(model).load_start(str(tmp_path / "R-50.pkl"))
    assert equal(source.backbone, model.backbone)


def test_a_backbone_that_fills_only_a_part_is_refused(torchvision_resnet, tmp_path):
    weights = {key: value for key, value in torchvision_resnet.state_dict().items() if not key.startswith("layer4.2")}
    torch.save(weights, tmp_path / "part.pth")
    with pytest.raises(SSTCheckpointError, match=r"(?s)missing: backbone.res5.2.*a file of the backbone alone"):
        SSTCheckpointer(new_model(**R50)).load_start(str(tmp_path / "part.pth"))
    with pytest.raises(SSTCheckpointError, match="missing"):
        SSTCheckpointer(new_model(**R50)).load(str(tmp_path / "part.pth"))


def test_a_file_in_which_nothing_fits_is_refused(tmp_path):
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(SSTCheckpointError, match="nothing of the checkpoint fits the network"):
        SSTCheckpointer(new_model()).load_start(str(tmp_path / "other.pth"))


def test_safetensors_are_read_and_damaged_ones_refused(saved, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_safetensors(saved[0].state_dict(), path)
    other = new_model(seed=1)
    SSTCheckpointer(other).load(str(path))
    assert equal(saved[0], other)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SSTCheckpointError, match=r"weights.safetensors: cannot be read as a checkpoint") as error:
        SSTCheckpointer(other).load(str(path))
    assert len(str(error.value).splitlines()) <= 3


@pytest.mark.parametrize(
    "weights",
    [
        {"a": torch.zeros(2, dtype=torch.complex64)},
        {"a": torch.zeros(2).to_sparse()},
        {"a": torch.zeros(2, device="meta")},
        {"a": torch.zeros(2), 3: torch.zeros(2)},
    ],
)
def test_tensors_that_are_no_weights_are_refused(tmp_path, weights):
    torch.save({"model": weights}, tmp_path / "odd.pth")
    with pytest.raises(SSTCheckpointError, match=r"odd\.pth: the file holds no dict of named tensors of real numbers"):
        SSTCheckpointer(new_model()).load_for_evaluation(str(tmp_path / "odd.pth"))


def test_files_in_torchs_older_format_may_be_cut_anywhere(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"model": {"a": torch.zeros(3)}}, path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(SSTCheckpointError, match="cannot be read as a checkpoint"):
            read_checkpoint(str(path))


@pytest.mark.parametrize("content", ["cut", "text", "empty", "list"])
def test_damaged_and_foreign_files_are_refused_with_path_and_remedy(saved, tmp_path, content):
    path = tmp_path / "bad.pth"
    whole = open(saved[1], "rb").read()
    path.write_bytes({"cut": whole[: len(whole) // 2], "text": b"hello world\n", "empty": b"", "list": b""}[content])
    if content == "list":
        torch.save([1, 2], path)
    with pytest.raises(SSTCheckpointError) as error:
        SSTCheckpointer(new_model()).load(str(path))
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_absent_and_unreachable_files_give_one_sentence_with_the_remedy(tmp_path, monkeypatch):
    with pytest.raises(SSTCheckpointError, match=r"no\.pth: there is no such file; check the path; or"):
        SSTCheckpointer(new_model()).load(str(tmp_path / "no.pth"))
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    for uri in ("https://localhost:9/resnet.pth", "detectron2://nothing/here.pth"):
        with pytest.raises(SSTCheckpointError, match="the weights cannot be had.*MODEL.WEIGHTS ''"):
            SSTCheckpointer(new_model()).load_start(uri)
    with pytest.raises(SSTCheckpointError, match="torchvision has no ImageNet weights of a network 'resnet7'"):
        SSTCheckpointer(new_model()).load_start("torchvision://resnet7")


def test_torchvision_names_stand_for_torchvisions_own_files(monkeypatch, tmp_path, torchvision_resnet):
    from detectron2.utils.file_io import PathManager

    torch.save(torchvision_resnet.state_dict(), tmp_path / "r50.pth")
    asked, original = [], PathManager.get_local_path

    def local(path, force=False, **kwargs):
        if path.startswith("https:"):
            asked.append(path)
            return str(tmp_path / "r50.pth")
        return original(path, force, **kwargs)

    monkeypatch.setattr(PathManager, "get_local_path", local)
    SSTCheckpointer(new_model(**R50)).load_start("torchvision://resnet50")
    assert asked == [torchvision.models.ResNet50_Weights.IMAGENET1K_V1.url]


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize("ending", ["pth", "pkl"])
def test_nothing_of_a_hostile_file_is_executed(tmp_path, ending):
    marker, path = str(tmp_path / "executed"), tmp_path / f"hostile.{ending}"
    if ending == "pth":
        torch.save({"model": _Hostile(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"model": _Hostile(marker)}))
    with pytest.raises(SSTCheckpointError):
        SSTCheckpointer(new_model()).load_start(str(path))
    assert not os.path.exists(marker)
