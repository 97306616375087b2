"""Every configuration file works, is short and is the scenario of the paper that it says; every key of ours is read."""

import os
import re
from typing import NamedTuple

import pytest
import yaml
from conftest import DOMAINS, ROOT, tiny_cfg
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.config import add_sst_config, merge_config
from sst_d2.data import register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.inference import SSTPredictor
from sst_d2.run_setup import check_config, epochs_to_iterations

FILES = sorted((ROOT / "configs").rglob("*.yaml"))
LEAVES = [path for path in FILES if not path.name.startswith("Base")]
OUR_NODES = ("MODEL", "INPUT", "DATASETS", "DATALOADER", "SOLVER", "TEST")


P, A, C = DOMAINS
NO_MST, P_A, P_C, A_C = [], (P, A), (P, C), (A, C)
PAPER = {
    P: ("pascal_person_part_sem_seg_train", "pascal_person_part_sem_seg_val"),
    A: ("atr_sem_seg_train", "atr_sem_seg_test"),
    C: ("cihp_sem_seg_train", "cihp_sem_seg_val"),
    "lip": ("lip_sem_seg_train", "lip_sem_seg_val"),
}


class Scenario(NamedTuple):
    """What a configuration is for, from the paper.

    domains: in their order; pairs: that MST bridges, None: no branch at all; levels: of data sets, of images;
    adjacency: M_intra; start: the configuration whose result training starts from and, with pairs, learns from.
    """

    domains: tuple[str, ...]
    pairs: list[tuple[str, str]] | None = None
    levels: tuple[bool, bool] = (True, True)
    adjacency: bool = True
    start: str = ""
    fraction: float = 1.0


def of_both_depths(scenarios):
    return {
        f"{name}_R{depth}{step}": scenario._replace(start=scenario.start.format(depth))
        for (name, step), scenario in scenarios.items()
        for depth in (50, 101)
    }


SCENARIOS = {
    # Tables 1 to 4.
    **of_both_depths({(f"single/{domain}", ""): Scenario((domain,)) for domain in PAPER}),
    **of_both_depths({("multi_datasets/multi_datasets", ""): Scenario(DOMAINS)}),
    **of_both_depths(
        {
            ("universal/full", ""): Scenario(DOMAINS, [P_A, P_C, A_C]),
            ("universal/progressive", ""): Scenario(DOMAINS, [P_A, A_C]),
            ("universal/pascal_person_part_atr", ""): Scenario((P, A), [P_A]),
            ("universal/pascal_person_part_cihp", ""): Scenario((P, C), [P_C]),
            ("universal/atr_cihp", ""): Scenario((A, C), [A_C]),
            # §4.3: fine to coarse, coarse to fine, universal to specific.
            ("dedicated/cihp", "_step1"): Scenario((C,), NO_MST),
            ("dedicated/pascal_person_part", "_step1"): Scenario((P,), NO_MST),
            ("dedicated/cihp_to_pascal_person_part", "_step2"): Scenario(
                (P,), [(C, P)], start="dedicated/cihp_R{}_step1"
            ),
            ("dedicated/cihp_to_atr", "_step2"): Scenario((A,), [(C, A)], start="dedicated/cihp_R{}_step1"),
            ("dedicated/pascal_person_part_to_cihp", "_step2"): Scenario(
                (C,), [P_C], start="dedicated/pascal_person_part_R{}_step1"
            ),
            ("dedicated/universal_to_pascal_person_part", "_step2"): Scenario(
                (P,), [(A, P), (C, P)], start="universal/atr_cihp_R{}"
            ),
            ("dedicated/universal_to_atr", "_step2"): Scenario(
                (A,), [P_A, (C, A)], start="universal/pascal_person_part_cihp_R{}"
            ),
            ("dedicated/universal_to_cihp", "_step2"): Scenario(
                (C,), [P_C, A_C], start="universal/pascal_person_part_atr_R{}"
            ),
        }
    ),
    # Table 5.
    **{
        f"dedicated/subset/sst_{percent}_R50_step2": Scenario(
            (P,), [(C, P)], start="dedicated/cihp_R50_step1", fraction=percent / 100
        )
        for percent in (50, 80, 100)
    },
    **{
        f"dedicated/subset/finetune_{percent}_R50": Scenario((P,), start="single/cihp_R50", fraction=percent / 100)
        for percent in (50, 80, 100)
    },
    # Table 6.
    "ablation/table6_row1_R50": Scenario(DOMAINS),
    "ablation/table6_row2_R50": Scenario(DOMAINS, NO_MST, adjacency=False),
    "ablation/table6_row3_R50": Scenario(DOMAINS, NO_MST),
    "ablation/table6_row4_R50": Scenario(DOMAINS, [P_A, P_C, A_C], levels=(True, False)),
    "ablation/table6_row5_R50": Scenario(DOMAINS, [P_A, P_C, A_C], levels=(False, True)),
    "ablation/table6_row6_R50": Scenario(DOMAINS, [P_A, P_C, A_C]),
    # Not of the paper.
    "other_networks/deeplab_v3plus_R50": Scenario(DOMAINS, [P_A, P_C, A_C]),
    "other_networks/semantic_fpn_R50": Scenario(DOMAINS, [P_A, P_C, A_C]),
    "other_networks/swin_t": Scenario(DOMAINS, [P_A, P_C, A_C]),
}
# A network that is built in no time; what the configurations say of SST stays.
SMALL = [
    *("MODEL.WEIGHTS", "", "MODEL.BACKBONE.NAME", "build_sst_resnet18_backbone", "MODEL.RESNETS.RES5_DILATION", 1),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 32, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.SST.DECODER.DIM", 32),
    *("MODEL.SST.PIXEL_DECODER.LAYERS", 1, "MODEL.SST.DECODER.BLOCKS", [1, 1, 1]),
]


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


def config_of(scenario):
    return loaded(ROOT / "configs" / f"{scenario}.yaml")


def small_model(scenario):
    cfg = config_of(scenario)
    cfg.merge_from_list(SMALL)
    return cfg, build_model(cfg)


def test_every_scenario_has_its_configuration_and_the_other_way_round():
    names = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in LEAVES}
    assert {name for name in names if not name.startswith("quick_schedules/")} == set(SCENARIOS)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_configuration_builds_its_scenario(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = SCENARIOS[name]
    if expected.start and expected.pairs:
        first, model = small_model(expected.start)
        os.makedirs(first.OUTPUT_DIR)
        SSTCheckpointer(model, first.OUTPUT_DIR, config=first.dump()).save("model_final")
    model = small_model(name)[1]
    assert tuple(model.domains) == expected.domains
    assert (model.auxiliary is None) == (expected.pairs is None)
    if expected.pairs is not None:
        branch, source = model.auxiliary, SCENARIOS[expected.start].domains if expected.start else None
        assert branch.pairs == expected.pairs
        assert (None if branch.source is None else tuple(branch.source.domains)) == source
        built = {(bridge.dataset is not None, bridge.image is not None) for bridge in branch.transfer.values()}
        assert built <= {expected.levels}
        assert {own.adjacency is not None for own in branch.enhancement.values()} == {expected.adjacency}
        assert not branch.predicted_regions
    losses = model.losses
    assert (losses.seg_weight, losses.aux_weight, losses.scr_weight) == (10, 1, 5)
    assert (losses.present_only, losses.mean, losses.ramp) == (False, False, 0)  # as the paper writes it


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_configuration_trains_on_its_data_from_its_start_at_its_depth(name):
    cfg, expected = config_of(name), SCENARIOS[name]
    assert tuple(PAPER[domain][0] for domain in expected.domains) == cfg.DATASETS.TRAIN
    assert tuple(PAPER[domain][1] for domain in expected.domains) == cfg.DATASETS.TEST
    assert expected.fraction == cfg.DATASETS.SST.TRAIN_FRACTION
    assert (101 if "R101" in name else 50) == cfg.MODEL.RESNETS.DEPTH
    before = f"{config_of(expected.start).OUTPUT_DIR}/model_final.pth" if expected.start else ""
    if expected.pairs and expected.start:  # dedicated training starts from the source's trunk
        source = (before, list(SCENARIOS[expected.start].domains))
        assert source == (cfg.MODEL.SST.SOURCE.WEIGHTS, cfg.MODEL.SST.SOURCE.DOMAINS)
        assert cfg.MODEL.WEIGHTS == ""
    else:
        assert (cfg.MODEL.SST.SOURCE.WEIGHTS, cfg.MODEL.SST.SOURCE.DOMAINS) == ("", [])
        backbone = "swin_t" if "swin" in name else f"resnet{cfg.MODEL.RESNETS.DEPTH}"
        assert (before or f"torchvision://{backbone}") == cfg.MODEL.WEIGHTS


def spellings(name):
    """What a shell makes of {a,b}."""
    head, brace, rest = name.partition("{")
    inner, _, tail = rest.partition("}")
    return [one for part in inner.split(",") for one in spellings(f"{head}{part}{tail}")] if brace else [name]


@pytest.mark.parametrize("document", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_documents_name_configurations_that_exist(document):
    folders = "|".join(path.name for path in (ROOT / "configs").iterdir() if path.is_dir())
    names = re.findall(rf"(?<!output/)\b(?:{folders})/[\w/{{}},*]+\.yaml", (ROOT / document).read_text())
    absent = [one for name in names for one in spellings(name) if not any((ROOT / "configs").glob(one))]
    assert absent == []


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
        domains=["atr", "cihp"],
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
        model = build_model(cfg)
    SSTCheckpointer(model, str(tmp_path), config=cfg.dump()).save("model_final")
    monkeypatch.setattr(CfgNode, "clone", lambda node: node)  # it reads a copy
    SSTPredictor(cfg, tmp_path / "model_final.pth")
    declared = {leaf for node in OUR_NODES for leaf in leaves_of(cfg[node].SST, f"{node}.SST")}
    assert declared - read == set()
