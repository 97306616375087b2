"""The rows of the paper's tables, at every scale: the right configuration, the right start, one run per training."""

import hashlib
import sys

import pytest
import yaml
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
from reproduction.claims import CLAIMS, PAPER
from reproduction.inventory import Inventory
from reproduction.places import Places
from reproduction.prepare import digest, trunk_of
from reproduction.rows import GROUPS, ROWS, START, chosen, queue, with_needed
from reproduction.scales import load_scale, scale_names, scale_values
from reproduction.settings import PILOT, Run, as_options, path_values, values
from reproduction.tables import TABLES

from sst_d2.config import get_config_file, load_config
from sst_d2.errors import SSTConfigError, SSTError
from sst_d2.run_setup import check_config

SYNTHETIC = [name for name in scale_names() if load_scale(name).people]


def built(row, scale, seed=0, trunk=""):
    """The configuration that a run's command line gives."""
    run = Run(row, seed, scale)
    needed = ROOT / "needed.pth" if run.needs else None
    options = as_options({**values(run), **path_values(run, ROOT / "out", trunk, needed)})
    return load_config(run.config_file, options)


def file_of(row):
    return load_config(get_config_file(ROWS[row].config))


@pytest.mark.parametrize("name", scale_names())
@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_valid_configuration_at_every_scale(name, row):
    scale = load_scale(name)
    cfg = built(row, scale)
    check_config(cfg)  # without data
    assert cfg.MODEL.SST.DOMAINS == list(ROWS[row].domains) == file_of(row).MODEL.SST.DOMAINS
    assert cfg.SEED == 0 and str(ROOT / "out") == cfg.OUTPUT_DIR
    # What makes the row is its file's, whatever the scale.
    for node in ("AUXILIARY", "LOSS_WEIGHTS"):
        if any(f".{node}." in key for key in ROWS[row].overrides):
            continue
        assert cfg.MODEL.SST[node] == file_of(row).MODEL.SST[node]
    assert cfg.DATASETS.SST.TRAIN_FRACTION == file_of(row).DATASETS.SST.TRAIN_FRACTION


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row].needs])
def test_a_row_starts_from_the_row_that_its_configuration_names(row):
    before = file_of(ROWS[row].needs)
    cfg = file_of(row)
    source, start = cfg.MODEL.SST.SOURCE.WEIGHTS, cfg.MODEL.WEIGHTS
    assert [source, start] == (
        ["", f"{before.OUTPUT_DIR}/model_final.pth"]
        if ROWS[row].takes == START
        else [f"{before.OUTPUT_DIR}/model_final.pth", ""]
    )
    tiny = built(row, load_scale("tiny"), trunk="trunk.pth")
    given = str(ROOT / "needed.pth")
    expected = [given if source else "", given if start else ""]
    assert expected == [tiny.MODEL.SST.SOURCE.WEIGHTS, tiny.MODEL.WEIGHTS]


@pytest.mark.parametrize("row", [row for row in ROWS if not ROWS[row].needs])
def test_a_row_without_another_start_begins_with_the_trunk(row):
    assert built(row, load_scale("tiny"), trunk="trunk.pth").MODEL.WEIGHTS == "trunk.pth"
    assert built(row, load_scale("paper")).MODEL.WEIGHTS == "torchvision://resnet50"
    assert built(row, load_scale("gpu")).MODEL.WEIGHTS == ""


@pytest.mark.parametrize("name", SYNTHETIC)
def test_all_rows_of_a_scale_have_the_same_steps_batch_and_network(name):
    scale = load_scale(name)
    everything = [built(row, scale, seed=3) for row in ROWS]
    for cfg in everything:
        assert scale.steps == cfg.SOLVER.MAX_ITER and (scale.steps * 5 // 6,) == cfg.SOLVER.STEPS
        assert cfg.SOLVER.IMS_PER_BATCH == everything[0].SOLVER.IMS_PER_BATCH and cfg.SEED == 3
        assert cfg.MODEL.RESNETS == everything[0].MODEL.RESNETS and cfg.INPUT == everything[0].INPUT
        assert cfg.MODEL.SST.DECODER == everything[0].MODEL.SST.DECODER
        assert all(test.startswith("synthetic_") for test in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
        # Each head on its own validation set and on the held-out images.
        heads = [
            f"synthetic_{held}{domain}_sem_seg_val" for held in ("", "heldout_") for domain in cfg.MODEL.SST.DOMAINS
        ]
        assert list(cfg.DATASETS.TEST) == heads


def test_the_tiny_scale_reads_the_tiny_network_and_changes_what_it_says():
    base = load_config(get_config_file("quick_schedules/Base-tiny.yaml"), ["MODEL.SST.DOMAINS", "['atr']"])
    cfg = built("single_atr", load_scale("tiny"))
    for node in ("BACKBONE", "RESNETS"):
        assert cfg.MODEL[node] == base.MODEL[node]
    assert cfg.MODEL.SST.DECODER == base.MODEL.SST.DECODER
    assert cfg.SOLVER.BASE_LR == base.SOLVER.BASE_LR and cfg.SOLVER.CLIP_GRADIENTS == base.SOLVER.CLIP_GRADIENTS
    assert (cfg.INPUT.SST.CROP_SIZE, cfg.SOLVER.IMS_PER_BATCH) == ([96, 96], 6)
    stated = yaml.safe_load((ROOT / "benchmarks/reproduction/scales/tiny.yaml").read_text())["overrides"]
    assert "RESNETS" not in stated.get("MODEL", {})  # not a second time


@pytest.mark.parametrize("row", ROWS)
def test_the_papers_scale_changes_nothing_but_the_test_time_augmentation(row):
    cfg, stated = built(row, load_scale("paper")), file_of(row)
    assert cfg.TEST.AUG.ENABLED and not stated.TEST.AUG.ENABLED
    stated.TEST.AUG.ENABLED, stated.OUTPUT_DIR = True, cfg.OUTPUT_DIR
    stated.MODEL.WEIGHTS = cfg.MODEL.WEIGHTS
    stated.MODEL.SST.SOURCE.WEIGHTS = cfg.MODEL.SST.SOURCE.WEIGHTS
    stated.merge_from_list(as_options(ROWS[row].overrides))
    assert cfg == stated


def test_a_variant_is_one_entry_whose_overrides_are_laid_over_the_rest():
    assert built("universal_stable", load_scale("tiny")).MODEL.SST.AUXILIARY.PRESET == "stable"
    assert built("universal_full", load_scale("tiny")).MODEL.SST.AUXILIARY.PRESET == "paper"


def test_the_pilot_is_multi_datasets_without_a_drop_of_the_learning_rate():
    scale = load_scale("tiny")
    cfg, multi = (built(row, scale) for row in (PILOT, "multi_datasets"))
    assert not cfg.MODEL.SST.AUXILIARY.ENABLED and cfg.SOLVER.STEPS == ()
    assert scale.pilot == {"steps": cfg.SOLVER.MAX_ITER, "period": cfg.TEST.EVAL_PERIOD}
    assert cfg.DATASETS == multi.DATASETS and cfg.MODEL == multi.MODEL


def test_trainings_that_stand_in_several_tables_are_one_run():
    for first, second in (
        ("multi_datasets", "ablation/table6_row1_R50.yaml"),
        ("universal_full", "ablation/table6_row6_R50.yaml"),
        ("cihp_to_pascal", "dedicated/subset/sst_100_R50_step2.yaml"),
    ):
        one, other = file_of(first), load_config(get_config_file(second))
        other.OUTPUT_DIR = one.OUTPUT_DIR
        assert one == other and second not in {row.config for row in ROWS.values()}
    files = [(row.config, str(row.overrides)) for row in ROWS.values()]
    assert len(set(files)) == len(files)


def test_the_queue_goes_seed_by_seed_and_core_rows_first():
    order = queue(chosen(["all"]), [0, 1])
    core = len(GROUPS["core"])
    assert {row for row, _ in order[: 2 * core]} == set(GROUPS["core"])
    assert [seed for _, seed in order[: 2 * core]] == [0] * core + [1] * core
    assert len(set(order)) == len(order) == 2 * len(GROUPS["all"])
    for place, (row, seed) in enumerate(order):
        assert not ROWS[row].needs or (ROWS[row].needs, seed) in order[:place]


def test_what_a_row_needs_is_trained_with_it_and_before_it():
    assert with_needed(["sst_50", "atr_cihp_to_pascal", "finetune_100"]) == [
        *("step1_cihp", "sst_50", "universal_atr_cihp", "atr_cihp_to_pascal", "single_cihp", "finetune_100"),
    ]
    assert with_needed(GROUPS["core"]) == [*GROUPS["core"]]  # complete in itself, in this order


def test_the_core_rows_are_those_with_several_seeds():
    assert len(GROUPS["core"]) == 16 and len(GROUPS["all"]) == 26 and "universal_stable" in GROUPS["variants"]
    assert set(GROUPS["all"]).isdisjoint(GROUPS["variants"])


def test_names_of_rows_and_groups_that_do_not_exist_are_refused():
    with pytest.raises(SSTConfigError, match=r"no row or group 'sst_70'; groups: core.*rows: single_pascal"):
        chosen(["core", "sst_70"])


def test_every_figure_of_the_papers_tables_has_its_line_and_every_claim_its_figures():
    cells = [cell for table in TABLES for line in table.lines for cell in line.cells]
    assert {cell.row for cell in cells} == set(ROWS)
    assert set(PAPER) <= {(cell.row, cell.domain) for cell in cells}
    for claim in CLAIMS:
        assert PAPER[claim.better, claim.domain].miou > PAPER[claim.worse, claim.domain].miou, claim
        for row in (claim.better, claim.worse):
            assert claim.domain in ROWS[row].domains
    assert len(CLAIMS) == len(set(CLAIMS)) == 15 + 7 + 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "many"}, "field 'steps': 'many'; int or null is expected"),
        ({"parallel": True}, "field 'parallel': True; int is expected"),
        ({"evaluation_period": 30}, "multiples of 20"),
        ({"epochs": 3}, "'epochs' is unknown"),
    ],
)
def test_a_scale_that_is_not_usable_is_refused(tmp_path, change, message):
    record = yaml.safe_load((ROOT / "benchmarks/reproduction/scales/tiny.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**record, **change}))
    with pytest.raises(SSTConfigError, match=message):
        load_scale(str(tmp_path / "own.yaml"))


def test_a_scale_that_does_not_exist_is_refused():
    with pytest.raises(SSTConfigError, match="no scale 'huge'; there are: gpu, paper, tiny"):
        load_scale("huge")


def test_a_scales_own_values_win_over_those_of_its_base():
    scale = load_scale("tiny")
    assert scale_values(scale)["SOLVER.IMS_PER_BATCH"] == 6 and scale_values(scale)["MODEL.SST.DECODER.DIM"] == 64


def test_the_start_is_the_users_file_or_the_scales(tmp_path, monkeypatch):
    places, tiny = Places(tmp_path, tmp_path), load_scale("tiny")
    with pytest.raises(SSTError, match="--weights: there is no file"):
        trunk_of(tiny, places, str(tmp_path / "none.pth"))
    (tmp_path / "own.pth").write_bytes(b"weights")
    assert trunk_of(tiny, places, str(tmp_path / "own.pth")) == str(tmp_path / "own.pth")
    assert digest(str(tmp_path / "own.pth")) == hashlib.sha256(b"weights").hexdigest()
    assert trunk_of(load_scale("paper"), places, "") == "" and digest("") == ""
    called = []
    monkeypatch.setattr(
        "reproduction.prepare._called", lambda *words: called.append(words) or places.trunk.write_bytes(b"")
    )
    assert [trunk_of(tiny, places, ""), trunk_of(tiny, places, "")] == [str(places.trunk)] * 2
    assert len(called) == 1 and called[0][0] == "benchmarks/pretrain_trunk.py"


def test_a_row_that_is_new_is_missing_and_its_time_a_guess(tmp_path):
    inventory = Inventory(load_scale("tiny"), Places(tmp_path, tmp_path))
    run = Run("multi_datasets", 0, load_scale("tiny"))
    assert inventory.state(run) == "missing" and inventory.minutes(run) == load_scale("tiny").minutes
