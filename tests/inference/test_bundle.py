"""A bundle: weights, configuration and label domains in one folder; whole, portable, never in another's place."""

import os
from pathlib import Path

import pytest
import torch
import yaml
from conftest import tiny_cfg
from detectron2.modeling import build_model

from sst_d2.errors import SSTCheckpointError, SSTConfigError
from sst_d2.inference.bundle import is_bundle, read_bundle, read_origin, write_bundle
from sst_d2.label_domains import LabelDomain, get_label_domain

OWN = LabelDomain(
    "mars", ("ground", "left crater", "right crater"), ((1, 2, 3),) * 3, (("left crater", "right crater"),)
)
DOMAINS = [get_label_domain("atr"), OWN]
NAMES = ["MODEL_CARD.md", "config.yaml", "label_domains.yaml", "model.safetensors"]


@pytest.fixture(scope="module")
def cfg():
    return tiny_cfg(
        ["atr", "/home/me/mars.yaml"],
        MODEL__WEIGHTS="/home/me/start.pth",
        DATASETS__SST__CARDS=["/home/me/card.yaml"],
        OUTPUT_DIR="/home/me/output",
        MODEL__SST__SOURCE__WEIGHTS="/home/me/source.pth",
        MODEL__SST__AUXILIARY__WORD_VECTORS="/home/me/glove.txt",
        INPUT__MIN_SIZE_TEST=77,
    )


@pytest.fixture(scope="module")
def state():
    """Of a network with its training-only branch; one tensor is a view that is not contiguous, two share memory."""
    torch.manual_seed(0)
    state = build_model(tiny_cfg(["atr", "cihp"])).state_dict()
    state["heads.atr.weight"] = state["heads.atr.weight"].repeat(1, 2, 1, 1)[:, ::2]
    state["heads.cihp.bias"] = state["heads.cihp.weight"].view(-1)[:20]
    return state


@pytest.fixture
def folder(tmp_path, state, cfg):
    write_bundle(tmp_path / "new" / "bundle", state, cfg, DOMAINS, "# Card\n")
    return tmp_path / "new" / "bundle"


def test_the_origin_is_kept_and_may_be_absent(folder, state, cfg):
    assert read_origin(folder) == {}
    write_bundle(folder, state, cfg, DOMAINS, "# Card\n", overwrite=True, origin={"checkpoint": "ü.pth"})
    assert read_origin(folder) == {"checkpoint": "ü.pth"} and sorted(os.listdir(folder)) == sorted(
        [*NAMES, "origin.json"]
    )
    write_bundle(folder, state, cfg, DOMAINS, "# Card\n", overwrite=True)
    assert sorted(os.listdir(folder)) == NAMES
    for damaged in ("{", "[]"):
        (folder / "origin.json").write_text(damaged)
        with pytest.raises(SSTCheckpointError, match=r"origin\.json: cannot be read"):
            read_origin(folder)


def test_what_is_read_is_what_was_written_bit_by_bit(folder, state):
    bundle = read_bundle(folder)
    expected = {name: value for name, value in state.items() if not name.startswith("auxiliary.")}
    assert len(expected) < len(state) and bundle.weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in bundle.weights.items())
    assert list(bundle.domains) == DOMAINS
    assert not bundle.config.MODEL.SST.AUXILIARY.ENABLED and bundle.config.INPUT.MIN_SIZE_TEST == 77
    assert sorted(os.listdir(folder)) == NAMES and is_bundle(folder) and not is_bundle(folder.parent)
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"


def test_nothing_of_the_machine_that_wrote_it_is_in_it(folder):
    for name in ("config.yaml", "label_domains.yaml"):
        assert "/home/me" not in (folder / name).read_text()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["MODEL"]["DEVICE"] == "" and config["MODEL"]["SST"]["DOMAINS"] == ["atr", "mars"]


def test_options_go_before_its_configuration_and_are_checked(folder):
    assert read_bundle(folder, ["TEST.SST.MAX_PIXELS", 7]).config.TEST.SST.MAX_PIXELS == 7
    with pytest.raises(SSTConfigError, match="options: Non-existent.*did you mean TEST.SST.MAX_PIXELS"):
        read_bundle(folder, ["TEST.SST.MAX_PIXEL", 7])
    with pytest.raises(SSTConfigError, match="TEST.SST.MAX_PIXELS: 0; allowed: a whole number from 1 on"):
        read_bundle(folder, ["TEST.SST.MAX_PIXELS", 0])


def test_a_folder_is_replaced_on_request_only_and_only_if_it_is_a_bundle(folder, state, cfg):
    with pytest.raises(SSTCheckpointError, match=r"bundle: exists; --overwrite \(overwrite=True\) replaces it"):
        write_bundle(folder, state, cfg, DOMAINS, "# Other\n")
    assert (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    write_bundle(folder, state, cfg, DOMAINS, "# Other\n", overwrite=True)
    assert (folder / "MODEL_CARD.md").read_text() == "# Other\n" and os.listdir(folder.parent) == ["bundle"]
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(SSTCheckpointError, match=r"bundle: holds thesis\.tex, which is no part of a bundle"):
        write_bundle(folder, state, cfg, DOMAINS, "# Card\n", overwrite=True)
    with pytest.raises(SSTCheckpointError, match=r"thesis\.tex: is no folder; name a folder that does not exist yet"):
        write_bundle(folder / "thesis.tex", state, cfg, DOMAINS, "# Card\n", overwrite=True)
    assert sorted(os.listdir(folder)) == sorted([*NAMES, "thesis.tex"])


def test_an_empty_folder_is_taken(tmp_path, state, cfg):
    write_bundle(tmp_path, state, cfg, DOMAINS, "# Card\n")
    assert sorted(os.listdir(tmp_path)) == NAMES


@pytest.mark.parametrize("fails", ["writing", "moving"])
def test_a_failure_leaves_what_was_there_and_no_part(folder, state, cfg, fails, monkeypatch):
    real = Path.rename

    def rename(self, target):
        if ".partial" in self.name:
            raise OSError("no space left")
        return real(self, target)

    def replace(*_):
        raise OSError("no space left")

    if fails == "writing":
        monkeypatch.setattr(os, "replace", replace)
    else:
        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(SSTCheckpointError, match=r"bundle: cannot be written \(no space left\)\. Make room there"):
        write_bundle(folder, state, cfg, DOMAINS, "# Other\n", overwrite=True)
    assert os.listdir(folder.parent) == ["bundle"] and (folder / "MODEL_CARD.md").read_text() == "# Card\n"
    read_bundle(folder)


def test_a_place_that_cannot_be_written_is_named(tmp_path, state, cfg):
    (tmp_path / "file").write_text("")
    with pytest.raises(SSTCheckpointError, match="file/bundle: cannot be written"):
        write_bundle(tmp_path / "file" / "bundle", state, cfg, DOMAINS, "# Card\n")


@pytest.mark.parametrize("name", NAMES[1:])
def test_absent_and_damaged_files_are_named(folder, name):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2] if name == "model.safetensors" else b"- [1, {")
    with pytest.raises(SSTCheckpointError, match=rf"bundle/{name}: "):
        read_bundle(folder)
    (folder / name).unlink()
    with pytest.raises(SSTCheckpointError, match=rf"bundle: is no whole bundle of sst_d2, {name} is not there"):
        read_bundle(folder)


@pytest.mark.parametrize(
    "records",
    ["[]", "atr", "[atr]", "[{name: atr}]", "[{name: atr, classes: [a]}]", "[{name: 3, classes: {a: 1}}]"],
)
def test_records_that_are_none_are_refused_with_their_file(folder, records):
    (folder / "label_domains.yaml").write_text(f"label_domains: {records}\n")
    with pytest.raises(SSTCheckpointError, match=r"label_domains\.yaml: .*damaged"):
        read_bundle(folder)


def test_the_model_card_is_for_people_alone(folder):
    (folder / "MODEL_CARD.md").unlink()
    assert read_bundle(folder).weights
