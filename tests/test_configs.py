"""Every configuration file works, is short, and every key of ours is read by somebody."""

import pytest
import yaml
from conftest import ROOT, tiny_cfg
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from sst_d2.config import add_sst_config, merge_config
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer, check_config, epochs_to_iterations

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
LEAVES = [path for path in FILES if not path.name.startswith("Base")]
OUR_NODES = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST")


def loaded(path):
    cfg = get_cfg()
    add_sst_config(cfg)
    merge_config(cfg, str(path), ["MODEL.DEVICE", "cpu"])
    return cfg


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_config_is_plain_yaml_and_merges(path):
    yaml.safe_load(path.read_text())
    cfg = loaded(path)
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.META_ARCHITECTURE == "SST"
    assert (cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.INPUT.MIN_SIZE_TEST >= 0) == (0, True)
    if not path.name.startswith("Base"):
        assert len(path.read_text().splitlines()) <= 20


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_leaf_names_domains_and_data_sets_that_exist(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SST_REAL_DATA", "not-read-here")
    cfg = loaded(path)
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    check_config(cfg)
    assert cfg.DATASETS.TRAIN and cfg.DATASETS.TEST and cfg.OUTPUT_DIR != "./output"


def test_output_folders_differ():
    folders = [loaded(path).OUTPUT_DIR for path in LEAVES]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("depth", [50, 101])
def test_the_networks_of_the_paper_have_their_sizes(depth):
    cfg = loaded(ROOT / f"configs/single/cihp_R{depth}.yaml")
    parameters = sum(p.numel() for p in build_model(cfg).parameters()) / 1e6
    assert parameters == pytest.approx({50: 32.0, 101: 51.0}[depth], abs=0.2)


def test_the_papers_schedule_stands_in_the_base_config():
    solver = loaded(ROOT / "configs/multi_datasets/multi_datasets_R50.yaml").SOLVER
    assert (solver.BASE_LR, solver.GAMMA, solver.IMS_PER_BATCH, solver.WEIGHT_DECAY) == (1e-4, 0.1, 4, 0.05)
    assert (solver.SST.MAX_EPOCHS, solver.SST.EPOCH_STEPS, solver.SST.BACKBONE_MULTIPLIER) == (150, [125], 0.1)
    assert (solver.CLIP_GRADIENTS.CLIP_TYPE, solver.CLIP_GRADIENTS.CLIP_VALUE) == ("full_model", 0.01)


def leaves_of(node, prefix):
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves_of(value, f"{prefix}.{key}")
        else:
            yield f"{prefix}.{key}"


def paths_of(node, prefix=""):
    yield id(node), prefix
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from paths_of(value, f"{prefix}.{key}" if prefix else key)


def test_every_key_of_ours_is_read(make_dataset, tmp_path, monkeypatch):
    cfg = tiny_cfg(
        domains=["atr"],
        DATASETS__SST__CARDS=[str(make_dataset("toy"))],
        DATASETS__TRAIN=("toy",),
        DATASETS__TEST=("toy",),
        SOLVER__SST__MAX_EPOCHS=1,
        TEST__AUG__ENABLED=True,
        OUTPUT_DIR=str(tmp_path / "out"),
    )
    paths, read = dict(paths_of(cfg)), set()
    original = CfgNode.__getattr__

    def recording(node, name):
        if id(node) in paths:
            read.add(f"{paths[id(node)]}.{name}")
        return original(node, name)

    monkeypatch.setattr(CfgNode, "__getattr__", recording)
    register_dataset_cards(cfg.DATASETS.SST.CARDS)
    check_config(cfg)
    epochs_to_iterations(cfg)
    SSTTrainer.evaluate(cfg, SSTTrainer(cfg).model)
    for decoder in ("SemanticFPNDecoder", "DeepLabV3PlusDecoder"):
        cfg.MODEL.SST.DECODER.NAME = decoder
        build_model(cfg)
    declared = {leaf for node in OUR_NODES for leaf in leaves_of(cfg[node].SST, f"{node}.SST")}
    assert declared - read == set()
