"""SST in a Detectron2 script of one's own: few lines, and nothing of Detectron2's is changed or in the way."""

import difflib
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from doc_blocks import Desk, blocks_of, make_people

DOCUMENT = "docs/PLUG_IN.md"
MOST_LINES = 15
DATA_SETS = ("with_sst_val", "synthetic_atr_sem_seg_val")  # of the script with SST
# What is compared: all defaults, and every name of every registry with the object behind it.
SNAPSHOT = """
import json, sys, types
sys.modules["panopticapi"] = types.ModuleType("panopticapi")  # Panoptic-DeepLab asks for it, and nothing here calls it
sys.modules["panopticapi.utils"] = types.ModuleType("panopticapi.utils")
sys.modules["panopticapi.utils"].rgb2id = None
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2 import modeling
from detectron2.modeling import backbone, meta_arch, proposal_generator, roi_heads
from detectron2.utils.registry import Registry
import gc, fvcore.common.registry
import detectron2.data.datasets, detectron2.engine, detectron2.evaluation, detectron2.projects
import torch

def registries():
    everything = [one for one in gc.get_objects() if isinstance(one, fvcore.common.registry.Registry)]
    return {one._name: dict(one._obj_map) for one in everything}

def state():
    names = {name: dict(MetadataCatalog.get(name).as_dict()) for name in DatasetCatalog.list()}
    switches = {
        "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(), "dtype": str(torch.get_default_dtype()),
        "deterministic": torch.are_deterministic_algorithms_enabled(), "benchmark": torch.backends.cudnn.benchmark,
    }
    return {"cfg": get_cfg().dump(), "registries": registries(), "names": names, "switches": switches}

def unchanged(before, after):
    assert after["cfg"] == before["cfg"], "a default of Detectron2's"
    assert after["switches"] == before["switches"]
    for kind in ("registries", "names"):
        for name, entries in before[kind].items():
            for key, value in entries.items():
                now = after[kind][name][key]
                assert now is value or now == value, (name, key)

def ours(before, after):
    old = {f"{name}/{key}" for name, entries in before["registries"].items() for key in entries}
    return {f"{name}/{key}" for name, entries in after["registries"].items() for key in entries} - old
"""
PROJECTS = """
from detectron2.projects import deeplab, panoptic_deeplab, point_rend
"""
ADDITIONS = """
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.panoptic_deeplab import add_panoptic_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from sst_d2 import add_sst_config
add = [add_deeplab_config, add_pointrend_config, add_panoptic_deeplab_config]

def flat(node, prefix=""):
    for key, value in node.items():
        yield from flat(value, f"{prefix}{key}.") if hasattr(value, "items") else [(f"{prefix}{key}", value)]

def configuration(*functions):
    cfg = get_cfg()
    for function in functions:
        function(cfg)
    return dict(flat(cfg))

theirs, mine = configuration(*add), configuration(add_sst_config)
plain = configuration()
new = {key for key in mine if key not in plain}
assert new and all(".SST." in key for key in new), sorted(new)
assert {key: mine[key] for key in plain} == plain, "add_sst_config changes a default"
assert not new & theirs.keys()
for together in (configuration(*add, add_sst_config), configuration(add_sst_config, *add)):
    assert together == {**theirs, **{key: mine[key] for key in new}}
"""


def fault_in_a_new_process(code):
    """What it prints where it fails; "" where it does not."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert result.returncode == 0 or result.stderr, f"ended by {result.returncode}, without a word"
    return result.stderr if result.returncode else ""


def scripts():
    """The document's Python blocks: a plain script, the same with SST, a prediction."""
    return [block.text for block in blocks_of(DOCUMENT) if block.language == "python"]


def test_sst_comes_into_a_script_with_few_lines():
    plain, with_sst, _ = (text.splitlines() for text in scripts())
    lines = [line[2:] for line in difflib.ndiff(plain, with_sst) if line.startswith("+ ")]
    assert 0 < len(lines) <= MOST_LINES, "\n".join(lines)
    assert sum("sst" in line.lower() for line in plain) == 0, "the plain script knows nothing of SST"


def test_importing_it_changes_no_default_and_nothing_that_is_registered():
    names = (
        "names = ours(before, after)\n"
        'assert names and all("SST" in name or "build_sst_" in name for name in names), sorted(names)\n'
    )
    code = f"{SNAPSHOT}before = state()\nimport sst_d2\nafter = state()\nunchanged(before, after)\n{names}"
    assert fault_in_a_new_process(code) == ""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["projects", "sst_d2"])
def test_it_meets_no_name_and_no_key_of_detectron2s_projects(first):
    order = [PROJECTS, "before = state()\nimport sst_d2\nunchanged(before, state())\n"]
    if first == "sst_d2":
        order = ["import sst_d2\nbefore = state()\n", f"{PROJECTS}unchanged(before, state())\n"]
    assert fault_in_a_new_process(SNAPSHOT + "".join(order) + ADDITIONS) == ""


@pytest.mark.slow
def test_the_document_runs_as_it_stands(tmp_path):
    make_people(tmp_path / "people")
    desk = Desk(tmp_path / "desk", tmp_path / "people")
    desk.type(DOCUMENT)
    for run in ("plain", "with_sst"):
        assert (desk.checkout / "output" / run / "model_final.pth").is_file()
    log = (desk.checkout / "output/with_sst/metrics.json").read_text()
    assert "loss_scr_image/pascal_person_part-atr" in log
    scored = {key for line in log.splitlines() for key in json.loads(line) if key.endswith("sem_seg/mIoU")}
    assert scored == {f"{name}/sem_seg/mIoU" for name in DATA_SETS}
