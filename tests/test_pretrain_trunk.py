"""Pre-training: the start knows scenes, not labels; its file fills a backbone, and is the same for the same seed."""

import hashlib
import json
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from torch import nn

sys.path.insert(0, str(ROOT / "benchmarks"))
import pretrain_trunk
import scene_attributes
from people_generator.figure import Build, Figure, Pose, sample_build, sample_pose
from people_generator.folder import SETS, SPLITS, Item
from scene_attributes import ATTRIBUTES, Attribute, Scene, measure, mirrored, to_classes

from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.errors import SSTNumericError

SMALL = ["--images", "8", "--steps", "3", "--size", "32"]
NAMES = list(ATTRIBUTES)


def run(output, *arguments):
    return pretrain_trunk.main(["--output", str(output), *SMALL, *arguments])


@pytest.fixture(scope="module")
def trunk(tmp_path_factory):
    """A file that a short run has written; tests must leave it as it is."""
    output = tmp_path_factory.mktemp("trunk") / "trunk.pth"
    torch.set_num_threads(1)
    assert run(output) == 0
    return output


# ------------------------------------------------------------------ the file


def test_the_file_fills_the_backbone_of_a_network_and_nothing_else(trunk):
    weights = torch.load(trunk, weights_only=True)["model"]
    model = build_model(tiny_cfg(["atr", "cihp"], MODEL__RESNETS__NORM="BN"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    SSTCheckpointer(model).load_start(str(trunk))
    after = model.state_dict()
    assert set(weights) == {key for key in after if key.startswith("backbone.")}
    for key, value in after.items():
        assert torch.equal(value, weights[key] if key in weights else before[key]), key


def test_batch_norms_statistics_are_in_the_file(trunk):
    weights = torch.load(trunk, weights_only=True)["model"]
    fresh = {"running_mean": 0.0, "running_var": 1.0}
    for name, value in fresh.items():
        buffers = [tensor for key, tensor in weights.items() if key.endswith(name)]
        assert len(buffers) == 20 and all((buffer != value).any() for buffer in buffers)
    assert {int(value) for key, value in weights.items() if key.endswith("num_batches_tracked")} == {3}


def test_the_json_beside_it_says_what_was_learnt(trunk):
    report = json.loads(trunk.with_suffix(".json").read_text())
    assert report["sha256"] == hashlib.sha256(trunk.read_bytes()).hexdigest()
    assert (report["seed"], report["images"], report["held_out"], report["steps"]) == (1000, 8, 1, 3)
    assert list(report["attributes"]) == NAMES
    for entry in report["attributes"].values():
        assert len(entry["bounds"]) == entry["classes"] - 1
        assert 0 <= entry["accuracy"] <= 1 and 0 <= entry["majority"] <= 1


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(trunk, tmp_path):
    assert run(tmp_path / "again.pth") == 0
    assert run(tmp_path / "other.pth", "--seed", "1001") == 0
    again, other = ((tmp_path / name).read_bytes() for name in ("again.pth", "other.pth"))
    assert again == trunk.read_bytes() != other


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_what_is_frozen_or_needs_several_processes_is_trained_as_plain_batch_norm_and_the_file_fits(tmp_path, norm):
    config = tmp_path / "config.yaml"
    base = ROOT / "configs/quick_schedules/Base-tiny.yaml"
    config.write_text(f"_BASE_: {base}\nMODEL: {{RESNETS: {{NORM: {norm}}}, BACKBONE: {{FREEZE_AT: 2}}}}\n")
    assert run(tmp_path / "trunk.pth", "--config-file", str(config)) == 0
    model = build_model(tiny_cfg(["atr", "cihp"], MODEL__RESNETS__NORM=norm, MODEL__BACKBONE__FREEZE_AT=2))
    SSTCheckpointer(model).load_start(str(tmp_path / "trunk.pth"))
    assert (model.backbone.stem.conv1.norm.running_mean != 0).any()


# ------------------------------------------------------------------ the scenes


def test_no_scene_is_a_picture_of_a_data_set():
    def state(generator):
        return str(generator.bit_generator.state)

    seeds = (0, 1, 1000)
    pictures = {
        state(Item(name, split, index).generator(seed))
        for seed in seeds for name in SETS for split in SPLITS for index in range(9)
    }  # fmt: skip
    scenes = [
        state(pretrain_trunk.scene_generator(seed, held_out, index))
        for seed in seeds for held_out in (False, True) for index in range(9)
    ]  # fmt: skip
    assert len(set(scenes)) == len(scenes) and pictures.isdisjoint(scenes)


def test_scenes_take_turns_in_the_styles_and_held_out_ones_are_others():
    pictures, values = pretrain_trunk.draw_scenes(6, 32, 5, held_out=False)
    others, _ = pretrain_trunk.draw_scenes(6, 32, 5, held_out=True)
    assert pictures.shape == (6, 32, 32, 3) and pictures.dtype == np.uint8
    assert values[:, NAMES.index("style")].tolist() == [0, 1, 2, 0, 1, 2]
    assert not {picture.tobytes() for picture in pictures} & {picture.tobytes() for picture in others}


# ------------------------------------------------------------------ the attributes


def test_a_scene_shows_the_attributes_neither_pixels_nor_labels_nor_clothes():
    assert {field.name for field in fields(Scene)} == {"style", "people", "size"}
    for word in ("atoms", "image", "outfit", "wardrobe", "to_label"):
        assert not hasattr(scene_attributes, word)


def test_the_numbers_of_a_person_whom_one_can_work_out_by_hand():
    """Upright, facing the camera, arms straight down, one leg straight to the side; 100 pixels tall, in 200 x 400."""
    arm, leg = (0.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0)
    pose = Pose(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, (arm, arm), (leg, (np.pi / 2, 0.0, 0.0)))
    figure = Figure(Build(1.0, 0.1, 0.08, 0.07, 0.1, 1.0), pose, (300.0, 120.0), 100.0, 0.0, 0.0)
    far = Figure(figure.build, pose, (50.0, 50.0), 40.0, 0.0, 0.0)
    numbers = dict(zip(NAMES, measure(Scene("cihp", (far, figure), (200, 400))), strict=True))
    assert (numbers["style"], numbers["people"], numbers["height"]) == (2, 2, 0.5)
    assert numbers["turn"] == numbers["tilt"] == 0 and numbers["uneven hands"] == pytest.approx(0)
    # The right leg, on the left of the picture, points sideways from the hip; its shank by 0.6 of a right angle.
    shank = 0.230 * np.array((np.sin(0.3 * np.pi), np.cos(0.3 * np.pi)))
    assert numbers["stride"] == pytest.approx(2 * 0.56 * 0.1 + 0.245 + shank[0])
    assert numbers["standing"] == pytest.approx(0.245 + 0.230)
    middle = np.mean(list(figure.joints.values()), axis=0)
    assert numbers["horizontal place"] == pytest.approx(middle[0] / 400 - 0.5)
    assert numbers["vertical place"] == pytest.approx(middle[1] / 200 - 0.5)


def test_mirrored_numbers_are_those_of_the_mirrored_person():
    width, rng = 128, np.random.default_rng(3)
    for _ in range(20):
        build, pose = sample_build(rng, True), sample_pose(rng, rng.normal(), False)
        turned = Pose(
            -pose.yaw, pose.lean, -pose.bend, -pose.twist, -pose.head_turn, -pose.head_tilt, pose.arms[::-1],
            pose.legs[::-1],
        )  # fmt: skip
        x, roll = rng.uniform(0, width), rng.normal(0, 0.1)
        one = Scene("atr", (Figure(build, pose, (x, 70.0), 100.0, roll, 0.2),), (128, width))
        other = Scene("atr", (Figure(build, turned, (width - x, 70.0), 100.0, -roll, 0.2),), (128, width))
        assert measure(other) == pytest.approx(mirrored(measure(one)))
        assert measure(other) != pytest.approx(measure(one))


def test_classes_are_balanced_and_the_middle_one_of_a_signed_number_is_symmetric():
    values = np.random.default_rng(0).normal(0.4, 1.0, 3000)
    plain, signed = Attribute(len, 4), Attribute(len, 3, signed=True)
    shares = np.bincount(to_classes(values[:, None], [plain.cut(values)])[:, 0]) / len(values)
    assert shares == pytest.approx([0.25] * 4, abs=0.01)
    bounds = signed.cut(values)
    assert bounds[0] == pytest.approx(-bounds[1])
    classes, turned = (to_classes(numbers[:, None], [bounds])[:, 0] for numbers in (values, -values))
    assert np.array_equal(turned, 2 - classes)


def test_batches_hold_every_scene_once_an_epoch_with_the_classes_of_what_is_shown(monkeypatch):
    monkeypatch.setattr(pretrain_trunk, "BATCH_SIZE", 4)
    count = 8
    # The left half of a picture is its number, the right half 100 more; the only signed number is positive.
    pictures = np.zeros((count, 2, 2, 3), np.uint8)
    pictures[:, :, 0] = np.arange(count)[:, None, None]
    pictures[:, :, 1] = pictures[:, :, 0] + 100
    values = np.ones((count, len(ATTRIBUTES)))
    data = pretrain_trunk.batches(pictures, values, [np.array([0.0])] * len(ATTRIBUTES), seed=0)
    seen, turned = [], []
    for _ in range(20):
        batch, classes = next(data)
        seen += np.minimum(batch[:, 0, 0, 0], batch[:, 0, 1, 0]).tolist()
        now = batch[:, 0, 0, 0] >= 100
        turned += now.tolist()
        for place, attribute in enumerate(ATTRIBUTES.values()):
            assert np.array_equal(classes[:, place], np.where(now & attribute.signed, 0, 1))
    assert all(sorted(seen[start : start + count]) == list(range(count)) for start in range(0, 80, count))
    assert 20 < sum(turned) < 60 and seen[:count] != seen[count : 2 * count]
    assert (values == 1).all() and (pictures[:, 0, 0, 0] < 100).all()  # the scenes themselves stay as they are


# ------------------------------------------------------------------ training and measuring


def test_accuracy_is_the_share_of_scenes_in_evaluation_mode():
    class Known(nn.Module):
        def forward(self, pictures):
            assert not self.training
            logits = torch.zeros(len(pictures), 3)
            logits[torch.arange(len(pictures)), torch.from_numpy(pictures[:, 0, 0, 0].astype(np.int64))] = 1
            return logits, logits

    classes = np.random.default_rng(1).integers(3, size=(150, 2))
    pictures = np.zeros((150, 1, 1, 3), np.uint8)
    pictures[:, 0, 0, 0] = classes[:, 0]
    named = pretrain_trunk.accuracies(Known(), pictures, classes)
    assert named[0] == 1 and named[1] == pytest.approx(sum(a == b for a, b in classes.tolist()) / 150)


def test_a_loss_that_is_no_number_stops_the_run(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(pretrain_trunk, "cross_entropy", lambda *arguments: torch.tensor(float("nan")))
    with pytest.raises(SSTNumericError, match="step 0: the loss is nan"):
        pretrain_trunk.pretrain(
            pretrain_trunk.read_config(str(ROOT / "configs/quick_schedules/Base-tiny.yaml")), 0, 9, 32, 2
        )
    assert run(tmp_path / "trunk.pth") == 1 and capsys.readouterr().err.splitlines()[-1].startswith("error: step 0")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_attributes_are_learnt(tmp_path):
    arguments = ["--images", "300", "--steps", "80", "--size", "48"]
    assert pretrain_trunk.main(["--output", str(tmp_path / "trunk.pth"), *arguments]) == 0
    attributes = json.loads((tmp_path / "trunk.json").read_text())["attributes"]
    gains = {name: entry["accuracy"] - entry["majority"] for name, entry in attributes.items()}
    assert gains["style"] > 0.1 and gains["people"] > 0.1 and np.mean(list(gains.values())) > 0.05


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "trunk.pkl"], "give a name that ends in .pth"),
        (["--size", "16"], "allowed are 32 to 1024"),
        (["--images", "1"], "at least 2"),
        (["--steps", "0"], "whole numbers from 1"),
        (["--seed", "-1"], "whole numbers from 0"),
    ],
)
def test_wrong_arguments_end_with_status_2(tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "trunk.pth", *arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["trunk.pth", "trunk.json"])
def test_a_file_that_is_there_is_kept_without_force(tmp_path, capsys, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(SystemExit) as end:
        run(tmp_path / "trunk.pth")
    assert end.value.code == 2 and f"{name} exists; --force replaces it" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == "mine"
    assert run(tmp_path / "trunk.pth", "--force") == 0
    assert (tmp_path / name).read_bytes() != b"mine"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "there is no file"),
        ("MODEL: {BACKBONE: {NAME: build_nothing}}", "MODEL.BACKBONE.NAME: 'build_nothing' is not registered"),
        ("INPUT: {FORMAT: BGR}", "INPUT.FORMAT is 'BGR'"),
    ],
)
def test_a_configuration_that_does_not_serve_ends_with_one_sentence(tmp_path, capsys, text, words):
    config = tmp_path / "config.yaml"
    if text:
        config.write_text(f"_BASE_: {ROOT}/configs/quick_schedules/Base-tiny.yaml\n{text}\n")
    assert run(tmp_path / "trunk.pth", "--config-file", str(config)) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and words in error and "\n" not in error
    assert not (tmp_path / "trunk.pth").exists()


def test_a_folder_that_is_not_there_is_said_at_once(tmp_path, capsys):
    assert run(tmp_path / "none" / "trunk.pth") == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "make it first" in error and "\n" not in error


def test_an_interrupted_run_leaves_nothing(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain_trunk, "train", interrupted)
    assert run(tmp_path / "trunk.pth") == 130
    assert "nothing was written" in capsys.readouterr().err and not list(tmp_path.iterdir())
