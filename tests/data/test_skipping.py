"""Bad training samples: the run stops, or another image of the same label domain comes, always the same one."""

import itertools
from pathlib import Path

import pytest
from conftest import tiny_cfg

from sst_d2.data import build_sst_train_loader
from sst_d2.data.skipping import SkippingDataset
from sst_d2.errors import SSTDataError


@pytest.fixture
def cfg(make_dataset, tmp_path):
    """Two data sets of six images, of which ``p`` has two bad ones and ``a`` one."""
    sets = [("p", "pascal_person_part"), ("a", "atr")]
    cards = [str(make_dataset(name, domain=domain, count=6)) for name, domain in sets]
    for name in ("p/images/p_1.png", "p/labels/p_4.png", "a/labels/a_0.png"):
        (tmp_path / name).write_bytes(b"")
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        SOLVER__IMS_PER_BATCH=4,
        INPUT__SST__BAD_SAMPLES="skip",
    )


def batches(cfg, count=9, start=0):
    loader = build_sst_train_loader(cfg)
    loader.start_iteration = start
    return [
        [(sample["image_id"], sample["sample_position"], sample["image"].sum().item()) for sample in batch]
        for batch in itertools.islice(loader, count)
    ]


def test_another_image_of_the_same_domain_takes_the_place_and_every_file_is_logged_once(cfg, caplog):
    ids = [identifier for batch in batches(cfg) for identifier, *_ in batch]
    assert set(ids) == {f"p_{i}" for i in (0, 2, 3, 5)} | {f"a_{i}" for i in range(1, 6)}
    assert [name[0] for name in ids] == ["p", "a"] * 18  # the order of the domains stays
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == 3
    for bad in ("p_1.png: is no image file", "p_4.png: is no image file", "a_0.png: is no image file"):
        assert sum(bad in line for line in lines) == 1


def test_the_other_image_depends_on_seed_and_position_alone(cfg):
    whole = batches(cfg)
    assert batches(cfg, 4, start=5) == whole[5:]
    cfg.DATALOADER.NUM_WORKERS = 2
    assert batches(cfg) == whole
    cfg.SEED = 3
    assert batches(cfg) != whole


def test_good_samples_are_those_of_a_run_without_bad_ones(cfg, tmp_path):
    skipping = [sample for batch in batches(cfg) for sample in batch]
    for name in ("p/images/p_1.png", "p/labels/p_4.png", "a/labels/a_0.png"):
        folder, number = str(Path(name).parent), 2 if name.startswith("p") else 1
        (tmp_path / name).write_bytes((tmp_path / folder / f"{name[0]}_{number}.png").read_bytes())
    whole = [sample for batch in batches(cfg) for sample in batch]
    kept = [pair for pair in zip(skipping, whole, strict=True) if pair[1][0] not in ("p_1", "p_4", "a_0")]
    assert len(kept) > 20 and all(mine == theirs for mine, theirs in kept)


def test_one_bad_file_more_than_allowed_stops_the_run(cfg):
    cfg.INPUT.SST.MAX_BAD_SAMPLES = 2
    with pytest.raises(SSTDataError, match=r"3 training samples are bad, .*MAX_BAD_SAMPLES allows 2; the"):
        batches(cfg)
    cfg.INPUT.SST.MAX_BAD_SAMPLES = 3
    batches(cfg)


def test_without_skipping_the_first_bad_file_stops_the_run(cfg):
    cfg.INPUT.SST.BAD_SAMPLES = "stop"
    with pytest.raises(SSTDataError, match=r"_[014]\.png: is no image file"):
        batches(cfg)


def test_a_domain_without_a_good_sample_stops_the_run(cfg, tmp_path):
    for path in (tmp_path / "a" / "labels").iterdir():
        path.unlink()
    with pytest.raises(SSTDataError, match="no training sample of a label domain is good; .* does not exist"):
        batches(cfg)


def test_samples_are_tried_once_each_and_no_more_than_allowed():
    tried = []

    def refuse(sample):
        tried.append(sample["file_name"])
        raise SSTDataError("bad")

    samples = [{"file_name": i, "label_domain": "x" if i < 8 else "y"} for i in range(20)]
    draw = SkippingDataset(samples, refuse, max_bad=5, seed=0)[3, 2]
    assert draw.sample is None and len(draw.bad) == 6 and tried[0] == 2
    assert len(set(tried)) == 6 and set(tried) < set(range(8))
    assert len(SkippingDataset(samples, refuse)[0, 1].bad) == 1


def test_bugs_are_not_taken_for_bad_samples():
    def broken(sample):
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        SkippingDataset([{"file_name": "x", "label_domain": "x"}], broken, max_bad=5)[0, 0]
