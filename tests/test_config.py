"""Merging configurations: plain YAML only, clear errors, the device that is there."""

import pytest
import torch
import yaml
from detectron2.config import get_cfg

from sst_d2.config import (
    add_sst_config,
    get_config_file,
    merge_config,
    merge_options,
    parse_config,
    read_config,
    resolve_device,
)
from sst_d2.errors import SSTConfigError


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_sst_config(cfg)
    return cfg


def test_calling_add_sst_config_twice_keeps_what_was_set(cfg):
    cfg.MODEL.SST.DOMAINS = ["atr"]
    add_sst_config(cfg)
    assert cfg.MODEL.SST.DOMAINS == ["atr"]


def test_config_files_are_found_by_name_and_unknown_names_list_them():
    assert get_config_file("single/atr_R50.yaml").endswith("configs/single/atr_R50.yaml")
    with pytest.raises(
        SSTConfigError, match=r"no configuration file 'single/atr.yaml'; there are: .*single/atr_R50.yaml"
    ):
        get_config_file("single/atr.yaml")


def test_a_file_and_pairs_are_merged_and_the_cpu_is_chosen(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    merge_config(cfg, get_config_file("single/cihp_R50.yaml"), ["SOLVER.IMS_PER_BATCH", "8"])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.MODEL.SST.DOMAINS, cfg.MODEL.DEVICE) == (8, ["cihp"], "cpu")


def test_the_device_follows_the_user_and_the_machine(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    merge_config(cfg, get_config_file("single/cihp_R50.yaml"), [])
    assert cfg.MODEL.DEVICE == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SSTConfigError, match="MODEL.DEVICE: 'cuda', but torch sees no GPU"):
        resolve_device(cfg)
    merge_config(cfg, get_config_file("single/cihp_R50.yaml"), ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.DEVICE == "cpu"


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.SST.DOMAIN", "[]"], "Non-existent.*did you mean MODEL.SST.DOMAINS"),
        (["QQQ.WWW", "1"], "see sst_d2/config_keys.py"),
        (["SOLVER.MAX_ITER", "3", "--resume"], "--resume stands behind KEY VALUE pairs"),
        (["SOLVER.IMS_PER_BATCH", "many"], "Type mismatch"),
        (["SOLVER.IMS_PER_BATCH"], "has odd length|Override list"),
    ],
)
def test_wrong_pairs_are_one_sentence(cfg, opts, message):
    with pytest.raises(SSTConfigError, match=message):
        merge_config(cfg, get_config_file("single/cihp_R50.yaml"), opts)


def test_wrong_files_are_one_sentence(cfg, tmp_path):
    with pytest.raises(SSTConfigError, match="--config-file is missing"):
        merge_config(cfg, "", [])
    with pytest.raises(SSTConfigError, match=r"there is no file .*nothing\.yaml"):
        merge_config(cfg, str(tmp_path / "nothing.yaml"), [])
    (tmp_path / "base.yaml").write_text("_BASE_: absent.yaml\n")
    with pytest.raises(SSTConfigError, match="absent.yaml"):
        merge_config(cfg, str(tmp_path / "base.yaml"), [])
    (tmp_path / "wrong.yaml").write_text("MODEL:\n  SST:\n    WRONG_KEY: 1\nVERSION: 2\n")
    with pytest.raises(SSTConfigError, match="MODEL.SST.WRONG_KEY"):
        merge_config(cfg, str(tmp_path / "wrong.yaml"), [])


def test_nothing_of_a_hostile_yaml_file_is_executed(cfg, tmp_path):
    marker = tmp_path / "executed"
    (tmp_path / "hostile.yaml").write_text(f'OUTPUT_DIR: !!python/object/apply:os.mkdir ["{marker}"]\n')
    with pytest.raises(SSTConfigError, match="is no plain YAML"):
        merge_config(cfg, str(tmp_path / "hostile.yaml"), [])
    assert not marker.exists()


def test_a_number_of_a_gpu_that_is_not_there_is_refused(cfg, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("cuda", "cuda:0"):
        cfg.MODEL.DEVICE = device
        resolve_device(cfg)
        assert device == cfg.MODEL.DEVICE
    cfg.MODEL.DEVICE = "cuda:1"
    with pytest.raises(SSTConfigError, match="MODEL.DEVICE: 'cuda:1', but torch sees 1 GPU, cuda:0 to cuda:0"):
        resolve_device(cfg)


def test_a_configuration_can_be_read_without_choosing_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = get_config_file("single/cihp_R50.yaml")
    assert read_config(path).MODEL.DEVICE == "" and read_config(path, ["MODEL.DEVICE", "cuda"]).MODEL.DEVICE == "cuda"


def test_the_text_of_a_checkpoint_gives_the_configuration_back_with_keys_of_other_versions(cfg):
    cfg.merge_from_list(["MODEL.SST.DOMAINS", ["atr"], "TEST.SST.MAX_PIXELS", 9])
    text = cfg.dump()
    assert yaml.safe_load(parse_config(text).dump()) == yaml.safe_load(text)
    newer = parse_config(text.replace("MODEL:\n", "MODEL:\n  OF_NEXT_YEAR: 1\n", 1))
    assert newer.MODEL.OF_NEXT_YEAR == 1
    merge_options(newer, ["MODEL.OF_NEXT_YEAR", "2"])
    assert newer.MODEL.OF_NEXT_YEAR == 2
    with pytest.raises(SSTConfigError, match="options: Non-existent.*did you mean TEST.SST.MAX_PIXELS"):
        merge_options(newer, ["TEST.SST.MAX_PIXELZ", "2"])
    for damaged in ("", "- 1", "{", "MODEL: 3", "MODEL: {SST: {DOMAINS: 3}}"):
        with pytest.raises(SSTConfigError, match="its configuration cannot be read|DOMAINS: 3"):
            parse_config(damaged)
