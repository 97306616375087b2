"""`benchmarks/real_photos.py`: what it trains, what it goes on with, and its table against figures made by hand."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import real_photos
from reproduction.places import ReproductionError, write_json

from sst_d2.config import load_config

# Takes the arguments of train_net.py and leaves what a training leaves.
PROGRAM = """
import json, os, sys
options = dict(zip(sys.argv[4::2], sys.argv[5::2]))
output = options["OUTPUT_DIR"]
if options["SEED"] == "7":
    sys.exit(3)
open(os.path.join(output, "model_final.pth"), "w").close()
with open(os.path.join(output, "metrics.json"), "a") as stream:
    stream.write(json.dumps({"iteration": 599, "total_loss": 1.0, "sst/cosine_x3/a": 0.5}) + "\\n")
sets = options.get("DATASETS.TEST") or "('fashionista7_sem_seg_test', 'ccp14_sem_seg_val', 'ccp59_sem_seg_val')"
for name in eval(sets):
    folder = os.path.join(output, "inference", name)
    os.makedirs(folder, exist_ok=True)
    scores = {"mIoU": 10.0 + int(options["SEED"]), "mACC": 1.0, "pACC": 2.0, "IoU-bag": 3.0}
    record = {"label_domain": "a", "images": 3, "classes": ["bag"], "sem_seg": scores}
    with open(os.path.join(folder, "sem_seg_evaluation.json"), "w") as stream:
        json.dump(record, stream)
"""


def test_every_row_has_a_configuration(monkeypatch):
    monkeypatch.setenv("SST_REAL_DATA", str(ROOT))
    monkeypatch.chdir(ROOT)
    for row, (config, overrides) in real_photos.ROWS.items():
        cfg = load_config(f"configs/quick_schedules/{config}", real_photos.as_options(overrides))
        assert len(cfg.MODEL.SST.DOMAINS) == len(cfg.DATASETS.TRAIN) == (1 if row.startswith("single_") else 3)
        wanted = {"mse": (True, "none"), "universal": (True, "full"), "universal_stable": (True, "full")}
        branch = cfg.MODEL.SST.AUXILIARY
        assert wanted.get(row, (False, "full")) == (branch.ENABLED, branch.STRATEGY)
        assert ("paper" if row == "universal" else "stable") == branch.PRESET


def test_what_is_missing_is_trained_and_kept_as_small_records(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SST_REAL_DATA", str(tmp_path))
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(real_photos, "PROGRAM", [sys.executable, str(tmp_path / "program.py")])

    def call(*seeds):
        args = ["run", "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
        real_photos.main([*args, "--rows", "single_ccp14", "universal", "--seeds", *map(str, seeds)])

    call(0, 1)
    assert capsys.readouterr().out.splitlines()[0].startswith("single_ccp14 seed 0: mIoU 10.0, ")
    record = json.loads((tmp_path / "results/universal/seed1.json").read_text())
    assert record["branch"] == [[600, {"sst/cosine_x3/a": 0.5}]] and record["steps"] == 600
    assert {name: scores["mIoU"] for name, scores in record["scores"].items()} == {
        test: 11.0 for _, test in real_photos.SETS.values()
    }
    assert list(json.loads((tmp_path / "results/single_ccp14/seed0.json").read_text())["scores"]) == [
        "ccp14_sem_seg_val"
    ]
    (tmp_path / "results/universal/seed0.json").unlink()
    call(0, 1)
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["universal seed 0"]
    with pytest.raises(
        ReproductionError, match=r"single_ccp14 seed 7: the training ended with status 3; see .*console"
    ):
        call(7)
    monkeypatch.delenv("SST_REAL_DATA")
    with pytest.raises(ReproductionError, match="SST_REAL_DATA names no folder"):
        call(0)


def test_the_table_pairs_seeds(tmp_path):
    def record(row, seed, **miou):
        scores = {real_photos.SETS[domain][1]: {"mIoU": value} for domain, value in miou.items()}
        write_json(tmp_path / row / f"seed{seed}.json", {"seed": seed, "scores": scores})

    for seed, (multi, universal) in enumerate([(10.0, 12.0), (12.0, 13.0), (11.0, 14.0)]):
        record("multi_datasets", seed, fashionista7=20.0 + seed, ccp14=multi, ccp59=3.0)
        record("universal", seed, fashionista7=20.0 + seed, ccp14=universal, ccp59=2.0)
    record("single_ccp14", 1, ccp14=9.0)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in real_photos.table(tmp_path).splitlines()]
    lines = {row[0]: row[1:] for row in rows}
    half = 4.303 * 1.0 / 3**0.5  # of 2, 1, 3
    assert lines["universal"][1] == "13.00 ± 1.00 (3)"
    assert lines["universal"][4] == f"+2.00 [{2 - half:+.2f}, {2 + half:+.2f}] (3) undecided"
    assert lines["universal"][5].endswith("(3) failed") and lines["universal"][3].startswith("+0.00 [+0.00")
    assert lines["single_ccp14"] == ["–", "9.00 †", "–", "", "-3.00 †", ""]
    assert lines["multi_datasets"][3:] == ["", "", ""] and lines["mse"][0] == "–"
