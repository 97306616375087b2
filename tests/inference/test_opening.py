"""Opening a network: from a checkpoint, a bundle, a configuration with weights; what does not fit is named."""

import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.config import get_cfg
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from safetensors.torch import save_file

from sst_d2 import SST, SSTPredictor
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.checkpoint_io import strip_auxiliary
from sst_d2.config import inference_config
from sst_d2.errors import LabelDomainError, SSTCheckpointError, SSTConfigError
from sst_d2.inference.bundle import write_bundle
from sst_d2.inference.network import open_network
from sst_d2.label_domains import get_label_domain, known_label_domains, registry

PHOTO = np.random.default_rng(0).integers(256, size=(40, 33, 3)).astype(np.uint8)


def train(folder, cfg, name="model_final"):
    """A model, and the checkpoint that a training would write of it."""
    torch.manual_seed(0)
    model = build_model(cfg)
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    SSTCheckpointer(model, str(folder), config=cfg.dump()).save(name)
    return model, str(folder / f"{name}.pth")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    cfg = tiny_cfg()
    model, path = train(folder, cfg)
    (folder / "config.yaml").write_text(cfg.dump())
    return model, path, str(folder / "config.yaml")


def labels(*arguments, **keys):
    return [answer.labels for answer in SSTPredictor(*arguments, **keys)(PHOTO, "all").values()]


def test_all_ways_to_the_same_network_give_the_same_labels(trained, tmp_path):
    model, path, config = trained
    cfg = tiny_cfg()
    strip_auxiliary(path, str(tmp_path / "model_inference.pth"))
    write_bundle(tmp_path / "bundle", model.state_dict(), cfg, list(model.domains.values()), "# Card\n")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("auxiliary.")}
    save_file(weights, tmp_path / "bare.safetensors")
    frozen = cfg.clone()
    frozen.MODEL.WEIGHTS = path
    frozen.freeze()
    before = frozen.dump()
    expected = labels(path)
    assert len({tuple(one.ravel().tolist()) for one in expected}) == 3
    ways = [
        [str(tmp_path / "model_inference.pth")],
        [str(tmp_path / "bundle")],
        [tmp_path / "bundle"],
        [config, path],
        [config, tmp_path / "model_inference.pth"],
        [config, tmp_path / "bare.safetensors"],
        [cfg, path],
        [frozen],
    ]
    for way in ways:
        assert all(np.array_equal(*pair) for pair in zip(labels(*way), expected, strict=True)), way
    assert frozen.dump() == before and cfg.dump() == tiny_cfg().dump()


def test_a_process_that_predicts_from_a_checkpoint_of_a_training_loads_nothing_of_its_branch(trained):
    code = (
        f"import sys, numpy; from sst_d2 import SSTPredictor; predictor = SSTPredictor({trained[1]!r})\n"
        "predictor(numpy.zeros((40, 33, 3), numpy.uint8), 'all')\n"
        "assert not [name for name in sys.modules if name.startswith('sst_d2.modeling.auxiliary')]; print('fine')"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout == "fine\n", result.stderr


def test_label_domains_come_with_the_checkpoint_and_are_not_registered(tmp_path):
    record = {"name": "mars", "classes": ["ground", "left crater", "right crater"], "colors": [[9, 8, 7]] * 3}
    (tmp_path / "mars.yaml").write_text(yaml.safe_dump({**record, "flip_pairs": [["left crater", "right crater"]]}))
    cfg = tiny_cfg(["atr", str(tmp_path / "mars.yaml")], MODEL__SST__AUXILIARY__ENABLED=False)
    model, path = train(tmp_path, cfg)
    (tmp_path / "mars.yaml").unlink()
    registry._registered.clear()
    for tta in (False, True):
        predictor = SSTPredictor(path, tta=tta, opts=["TEST.SST.SCALES", [1.0]])
        prediction = predictor(PHOTO, "mars")
        assert prediction.classes == ("ground", "left crater", "right crater") and prediction.colors[0] == (9, 8, 7)
        assert prediction.overlay().shape == PHOTO.shape and prediction.legend().ndim == 3
    assert predictor.domains == model.domains and "mars" not in known_label_domains()
    with pytest.raises(LabelDomainError, match="mars"):
        SSTPredictor(cfg, path)  # the configuration counts, and its file is gone


def test_a_checkpoint_may_know_a_name_otherwise_than_this_process(tmp_path):
    own = get_label_domain("atr").__class__("atr", ("nothing", "all"), ((0, 0, 0), (1, 1, 1)))
    cfg = inference_config(tiny_cfg(["atr"]))
    model = SST(cfg, domains=[own])
    SSTCheckpointer(model, str(tmp_path), config=cfg.dump()).save("own")
    assert SSTPredictor(tmp_path / "own.pth")(PHOTO).classes == ("nothing", "all")
    with pytest.raises(SSTCheckpointError, match=r"own\.pth: the label domains \['atr'\] have other classes"):
        SSTPredictor(cfg, tmp_path / "own.pth")


def test_weights_of_other_label_domains_are_refused_with_the_way_to_open_them(trained, tmp_path):
    (tmp_path / "other.yaml").write_text(tiny_cfg(["atr", "lip"]).dump())
    words = rf"{trained[1]}: its label domains are {', '.join(DOMAINS)}; the configuration asks for atr, lip.*"
    with pytest.raises(SSTCheckpointError, match=words + r"SSTPredictor\('.*model_final\.pth'\) knows its own"):
        SSTPredictor(tmp_path / "other.yaml", trained[1])


def test_weights_of_another_network_are_refused_with_what_differs(trained):
    with pytest.raises(SSTCheckpointError, match=r"model_final\.pth: the checkpoint does not fit the network:\n  "):
        SSTPredictor(tiny_cfg(MODEL__SST__DECODER__DIM=64), trained[1])


def test_a_configuration_needs_trained_weights(trained, tmp_path):
    for weights, words in (("", "MODEL.WEIGHTS is empty"), ("torchvision://resnet50", "which trains no heads")):
        cfg = tiny_cfg(MODEL__WEIGHTS=weights)
        (tmp_path / "c.yaml").write_text(cfg.dump())
        for config in (cfg, tmp_path / "c.yaml"):
            with pytest.raises(SSTCheckpointError, match=f"{words}.*prediction needs a trained network"):
                SSTPredictor(config)
    for plain in (get_cfg(), get_cfg().clone()):
        with pytest.raises(SSTConfigError, match=r"no MODEL\.SST; call sst_d2\.add_sst_config"):
            SSTPredictor(plain, trained[1])


def test_what_is_no_checkpoint_of_a_training_needs_its_configuration(trained, tmp_path):
    weights = {"heads.atr.weight": torch.zeros(2)}
    torch.save({"model": weights, "label_domains": [], "config": ""}, tmp_path / "bare.pth")
    save_file(weights, tmp_path / "bare.safetensors")
    for name, words in (("bare.pth", "$"), ("bare.safetensors", r"; or the folder, if a config\.yaml lies beside it$")):
        with pytest.raises(SSTCheckpointError, match=rf"{name}: carries no configuration.*'{name}'\){words}"):
            SSTPredictor(tmp_path / name)


@pytest.mark.parametrize(
    ("key", "value"), [("config", "- 1"), ("config", "{MODEL: {DEVICE: 3}}"), ("label_domains", [])]
)
def test_a_checkpoint_of_damaged_records_is_named(trained, tmp_path, key, value):
    content = torch.load(trained[1], weights_only=True)
    torch.save({**content, key: value}, tmp_path / "x.pth")
    with pytest.raises(SSTCheckpointError, match=r"x\.pth: its (configuration|label_domains) "):
        SSTPredictor(tmp_path / "x.pth")


def test_absent_and_damaged_files_are_one_sentence(trained, tmp_path):
    (tmp_path / "half.pth").write_bytes(open(trained[1], "rb").read()[:5000])
    for arguments, error, words in (
        ([tmp_path / "none.pth"], SSTCheckpointError, r"none\.pth: there is no such file; give a checkpoint"),
        ([trained[2], tmp_path / "none.pth"], SSTCheckpointError, r"none\.pth: there is no such file"),
        ([tmp_path / "half.pth"], SSTCheckpointError, r"half\.pth: cannot be read as a checkpoint"),
        ([tmp_path / "none.yaml", trained[1]], SSTConfigError, r"none\.yaml: there is no such file"),
        ([trained[1], trained[1]], SSTConfigError, r"brings its own configuration and weights"),
        ([3], SSTConfigError, "config: a int; a path or a Detectron2 configuration"),
        ([None], SSTConfigError, "config: a NoneType"),
        (
            ["http://localhost:1/x.pth"],
            SSTCheckpointError,
            r"^http://localhost:1/x\.pth: cannot be had .*give its path",
        ),
        (["nowhere://x.pth"], SSTCheckpointError, r"^nowhere://x\.pth: there is no such file"),
    ):
        with pytest.raises(error, match=words):
            SSTPredictor(*arguments)


def test_the_folder_of_a_training_is_no_bundle_and_the_message_names_the_checkpoint_in_it(tmp_path):
    with pytest.raises(SSTCheckpointError, match=r"is no bundle; name a checkpoint \(\.pth\)"):
        SSTPredictor(tmp_path)
    for name, best in (("model_0000009", "model_0000009"), ("model_final", "model_final"), ("model_inference",) * 2):
        (tmp_path / f"{name}.pth").write_bytes(b"")
        with pytest.raises(SSTCheckpointError, match=rf"is no bundle; name the checkpoint: .*{best}\.pth"):
            SSTPredictor(tmp_path)


def test_options_go_before_what_the_checkpoint_says(trained):
    assert open_network(trained[1], opts=["TEST.SST.MAX_PIXELS", "77"])[0].TEST.SST.MAX_PIXELS == 77
    for opts, words in (
        (["TEST.SST.MAX_PIXEL", 7], "Non-existent.*did you mean TEST.SST.MAX_PIXELS"),
        (["TEST.SST.MAX_PIXELS", "many"], "options: Type mismatch"),
        (["TEST.SST.MAX_PIXELS"], "options: "),
        (["TEST.SST.SCALES", []], "TEST.SST.SCALES: .*allowed"),
    ):
        for config in (trained[1], trained[2]):
            with pytest.raises(SSTConfigError, match=words if config is trained[1] else words.replace("options", "")):
                open_network(config, trained[1] if config is trained[2] else None, opts=opts)


def test_options_that_nothing_would_read_are_refused_with_the_way_that_is_read(trained, tmp_path):
    model, path, config = trained
    write_bundle(tmp_path / "bundle", model.state_dict(), tiny_cfg(), list(model.domains.values()), "# Card\n")
    carried = [(path, None), (str(tmp_path / "bundle"), None)]
    for way in carried:
        words = rf"^MODEL.SST.DOMAINS: .*atr.*{way[0]} brings its own.*, atr, cihp: .*domain= .*DEFAULT_DOMAIN"
        for value in (["atr"], '["atr"]'):
            with pytest.raises(SSTConfigError, match=words):
                open_network(*way, opts=("MODEL.SST.DOMAINS", value))
    for way in (*carried, (config, path)):
        with pytest.raises(SSTConfigError, match="^MODEL.WEIGHTS: 'other.pth'; the weights are given already, .*leave"):
            open_network(*way, opts=["TEST.SST.MAX_PIXELS", 7, "MODEL.WEIGHTS", "other.pth"])
    assert open_network(config, opts=["MODEL.WEIGHTS", path, "MODEL.SST.DOMAINS", list(DOMAINS)])
    assert SSTPredictor(path, opts=["MODEL.SST.DEFAULT_DOMAIN", "cihp"]).default_domain == "cihp"


def test_another_architecture_is_refused_and_one_derived_from_ours_is_opened(trained, tmp_path):
    @META_ARCH_REGISTRY.register()
    class Derived(SST):
        pass

    content = torch.load(trained[1], weights_only=True)
    content["config"] = content["config"].replace("META_ARCHITECTURE: SST", "META_ARCHITECTURE: Derived")
    torch.save(content, tmp_path / "derived.pth")
    assert type(SSTPredictor(tmp_path / "derived.pth").model) is Derived
    META_ARCH_REGISTRY._obj_map.pop("Derived")
    for name in ("Derived", "GeneralizedRCNN"):
        with pytest.raises(SSTConfigError, match=f"META_ARCHITECTURE: '{name}' is no SST.*derived from sst_d2.SST"):
            SSTPredictor(trained[1], opts=["MODEL.META_ARCHITECTURE", name])
    with pytest.raises(SSTConfigError, match=r"model_final\.pth: its network cannot be built here: .*registered first"):
        SSTPredictor(trained[1], opts=["MODEL.BACKBONE.NAME", "build_my_own"])


def test_the_device_is_the_users_the_configurations_or_the_machines(trained, monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path, on_gpu = trained[1], tiny_cfg(MODEL__DEVICE="cuda")
    with caplog.at_level(logging.INFO):
        assert SSTPredictor(on_gpu, path).device.type == "cpu"
    assert "MODEL.DEVICE is 'cuda', and torch sees no GPU: predicting on the CPU" in caplog.text
    assert SSTPredictor(path, device=torch.device("cpu")).device.type == "cpu"
    for keys in ({"device": "cuda"}, {"device": "cuda:1"}, {"opts": ["MODEL.DEVICE", "cuda"]}):
        for config in (path, on_gpu):
            with pytest.raises(SSTConfigError, match=r"MODEL.DEVICE: 'cuda.*', but torch sees no GPU"):
                SSTPredictor(config, None if config is path else path, **keys)
    for wrong in ("mps", "gpu", 0):
        with pytest.raises(SSTConfigError, match="MODEL.DEVICE.*|Type mismatch"):
            SSTPredictor(path, device=wrong)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(SST, "to", lambda self, device: chosen.append(device) or self)
    for keys in ({}, {"device": "cuda:1"}, {"opts": ["MODEL.DEVICE", "cpu"]}):
        SSTPredictor(path, **keys)  # its configuration says cpu, as the machine that trained it was
    SSTPredictor(tiny_cfg(), path)
    assert chosen == ["cuda", "cuda:1", "cpu", "cpu"]
    with pytest.raises(SSTConfigError, match=r"MODEL.DEVICE: 'cuda:2', but torch sees 2 GPUs, cuda:0 to cuda:1"):
        SSTPredictor(path, device="cuda:2")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_labels_are_those_of_the_cpu(trained):
    pairs = zip(labels(trained[1], device="cuda"), labels(trained[1], device="cpu"), strict=True)
    assert all((one == other).mean() > 0.999 for one, other in pairs)
