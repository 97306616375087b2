"""The generator of synthetic people: same seed same files, exact and consistent labels, safe to run again."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

DATASETS = Path(__file__).resolve().parents[2] / "datasets"
DOMAINS = ("pascal_person_part", "atr", "cihp")
SMALL = ["--size", "48", "--train", "2", "3", "4", "--val", "2", "--heldout", "3"]


@pytest.fixture(scope="module")
def generator():
    """The command and the package behind it, imported as the command does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DATASETS))
        names = ("atoms", "canvas", "figure", "folder", "person", "scene", "wardrobe")
        modules = {name: importlib.import_module(f"people_generator.{name}") for name in names}
        yield SimpleNamespace(command=importlib.import_module("make_synthetic_people"), **modules)


@pytest.fixture(scope="module")
def folder(generator, tmp_path_factory):
    """A small finished data set; tests must leave it as it is."""
    output = tmp_path_factory.mktemp("synthetic") / "people"
    assert generator.command.main(["--output", str(output), "--workers", "1", *SMALL]) == 0
    return output


@pytest.fixture(scope="module")
def samples(generator):
    """Forty validation pictures in every style, in the order of ``DOMAINS``."""
    items = {d: [generator.folder.Item(d, "val", index) for index in range(40)] for d in DOMAINS}
    return {d: [generator.scene.draw_sample(d, (128, 128), item.generator(0)) for item in items[d]] for d in DOMAINS}


def _files(output):
    return {p.relative_to(output).as_posix(): p.read_bytes() for p in sorted(output.rglob("*")) if p.is_file()}


def _classes(generator, domain):
    return generator.atoms.domain_record(domain)["classes"]


def _mask(generator, atoms, domain, *names):
    classes = _classes(generator, domain)
    return np.isin(generator.atoms.to_label(atoms, domain), [classes.index(name) for name in names])


# ------------------------------------------------------------------ files


def test_same_seed_gives_the_same_bytes_with_one_and_two_workers(generator, folder, tmp_path):
    output = tmp_path / "again"
    assert generator.command.main(["--output", str(output), "--workers", "2", *SMALL]) == 0
    assert _files(output) == _files(folder)


def test_another_seed_gives_other_pictures(generator, folder):
    one, other = (generator.folder.Item("atr", "val", 0).generator(seed) for seed in (0, 1))
    draw = generator.scene.draw_sample
    assert not np.array_equal(draw("atr", (48, 48), one).image, draw("atr", (48, 48), other).image)


def test_no_two_pictures_are_alike(folder):
    images = [content for name, content in _files(folder).items() if name.endswith(".jpg")]
    assert len(images) == 9 + 6 + 3
    assert len(set(images)) == len(images)


def test_layout_sizes_modes_and_ids(generator, folder):
    for domain in DOMAINS:
        for split in ("train", "val"):
            for name in (folder / domain / "ids" / f"{split}.txt").read_text().split():
                image = Image.open(folder / domain / "images" / f"{name}.jpg")
                label = Image.open(folder / domain / "labels" / f"{name}.png")
                assert (image.mode, image.size, label.mode, label.size) == ("RGB", (48, 48), "P", (48, 48))
                assert np.asarray(label).max() < len(_classes(generator, domain))
    for name in (folder / "heldout" / "ids" / "val.txt").read_text().split():
        for domain in DOMAINS:
            label = np.asarray(Image.open(folder / "heldout" / f"labels_{domain}" / f"{name}.png"))
            assert label.max() < len(_classes(generator, domain))


def test_height_and_width(generator, tmp_path):
    arguments = [
        "--output",
        str(tmp_path),
        "--size",
        "40",
        "64",
        "--train",
        "0",
        "1",
        "0",
        "--val",
        "0",
        "--heldout",
        "0",
    ]
    assert generator.command.main(arguments) == 0
    assert Image.open(tmp_path / "atr" / "images" / "train_000000.jpg").size == (64, 40)


def test_cards_register(folder):
    cards = pytest.importorskip("sst_d2.data.cards", reason="needs Detectron2", exc_type=ImportError)
    names = set()
    for path in sorted((folder / "cards").glob("*.yaml")):
        for card in cards.read_dataset_cards(path):
            names.add(card.name)
            for sample in card.load():
                assert Path(sample["file_name"]).is_file()
                assert Path(sample["sem_seg_file_name"]).is_file()
    wanted = {f"synthetic_{d}_sem_seg_{split}" for d in DOMAINS for split in ("train", "val")}
    assert names == wanted | {f"synthetic_heldout_{d}_sem_seg_val" for d in DOMAINS}


# ------------------------------------------------------------------ running again


@pytest.fixture
def copy(generator, tmp_path):
    """A tiny data set that a test may spoil, and its arguments."""
    output = tmp_path / "people"
    arguments = ["--output", str(output), "--workers", "1", "--size", "32", "--train", "1", "2", "1", "--val", "1"]
    arguments += ["--heldout", "1"]
    assert generator.command.main(arguments) == 0
    return output, arguments


def test_second_run_has_nothing_to_do(generator, copy, capsys):
    output, arguments = copy
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert generator.command.main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*")}


def test_completes_a_folder_with_missing_files(generator, copy):
    output, arguments = copy
    before = _files(output)
    for name in ("atr/images/train_000001.jpg", "heldout/labels_cihp/heldout_000000.png", "cards/synthetic_atr.yaml"):
        (output / name).unlink()
    assert generator.command.main(arguments) == 0
    assert _files(output) == before


def test_completes_an_interrupted_run(generator, copy, monkeypatch, capsys):
    output, arguments = copy
    before = _files(output)
    write, calls = generator.command.write_item, []

    def interrupted(item, **options):
        calls.append(item)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write(item, **options)

    with monkeypatch.context() as patch:
        patch.setattr(generator.command, "write_item", interrupted)
        assert generator.command.main([*arguments, "--force"]) == 130
    assert "completes" in capsys.readouterr().err
    assert not (output / "manifest.json").exists()
    assert generator.command.main(arguments) == 0
    assert _files(output) == before


def test_refuses_other_parameters_without_force(generator, copy, capsys):
    output, arguments = copy
    before = _files(output)
    assert generator.command.main([*arguments, "--seed", "5"]) == 1
    error = capsys.readouterr().err
    assert "seed 0 (asked for: 5)" in error
    assert "--force" in error
    assert _files(output) == before


def test_force_replaces_its_own_files_only(generator, copy):
    output, arguments = copy
    foreign = output / "atr" / "images" / "mine.jpg"
    foreign.write_bytes(b"mine")
    arguments = [*arguments, "--train", "1", "1", "1", "--force"]
    assert generator.command.main(arguments) == 0
    assert foreign.read_bytes() == b"mine"
    assert sorted(path.name for path in (output / "atr" / "images").iterdir()) == [
        "mine.jpg",
        "train_000000.jpg",
        "val_000000.jpg",
    ]
    assert json.loads((output / "manifest.json").read_text())["train"] == [1, 1, 1]


@pytest.mark.parametrize("content", [None, "not a manifest", '{"size": 3}'])
def test_refuses_files_of_unknown_origin(generator, copy, capsys, content):
    output, arguments = copy
    (output / "manifest.json").unlink()
    if content is not None:
        (output / "manifest.json").write_text(content)
    assert generator.command.main(arguments) == 1
    assert "manifest" in capsys.readouterr().err
    assert generator.command.main([*arguments, "--force"]) == 0


def test_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    command = [
        sys.executable,
        str(DATASETS / "make_synthetic_people.py"),
        "--output",
        str(tmp_path / "file" / "people"),
    ]
    done = subprocess.run([*command, *SMALL], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "--output" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["--size", "8"], ["--size", "64", "64", "64"], ["--train", "1", "2"], ["--seed", "-1"], ["--workers", "0"]],
)
def test_wrong_arguments_exit_with_two(generator, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        generator.command.main(arguments)
    assert stop.value.code == 2
    assert f"argument {arguments[0]}" in capsys.readouterr().err


# ------------------------------------------------------------------ labels


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_in_forty_pictures(generator, samples, domain):
    seen = np.unique(generator.atoms.to_label(np.stack([s.atoms for s in samples[domain]]), domain))
    missing = set(range(len(_classes(generator, domain)))) - set(seen.tolist())
    assert not missing, [_classes(generator, domain)[index] for index in missing]


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_class_occurs_in_a_mixed_set(generator, samples, domain):
    mixed = np.stack([samples[DOMAINS[index % 3]][index].atoms for index in range(40)])
    assert len(np.unique(generator.atoms.to_label(mixed, domain))) == len(_classes(generator, domain))


def test_systems_are_merges_of_the_same_truth(generator, samples):
    atoms = np.stack([sample.atoms for style in DOMAINS for sample in samples[style]])
    pascal, atr, cihp = ((lambda *names, d=d: _mask(generator, atoms, d, *names)) for d in DOMAINS)
    assert np.array_equal(pascal("head"), cihp("hat", "hair", "sunglasses", "face"))
    assert np.array_equal(pascal("background"), cihp("background"))
    assert np.array_equal(pascal("background") & ~atr("bag"), atr("background"))
    assert np.array_equal(atr("upper-clothes", "dress", "pants", "skirt", "belt", "bag") | atr("background"), ~(
        cihp("hat", "hair", "glove", "sunglasses", "socks", "torso-skin", "scarf", "face", "left-arm", "right-arm")
        | cihp("left-leg", "right-leg", "left-shoe", "right-shoe")
    ))  # fmt: skip
    assert not (atr("face") & ~cihp("face", "torso-skin")).any()
    for name in ("hat", "hair", "sunglasses", "scarf", "left-shoe", "right-shoe"):
        assert np.array_equal(atr(name), cihp(name)), name
    assert np.array_equal(atr("left-leg", "right-leg"), cihp("left-leg", "right-leg", "socks"))
    assert np.array_equal(atr("left-arm", "right-arm"), cihp("left-arm", "right-arm", "glove"))
    assert not (cihp("socks", "left-shoe", "right-shoe") & ~pascal("lower-leg")).any()


def test_table_covers_every_class(generator):
    for domain in DOMAINS:
        names = {atom.class_name(domain) for atom in generator.atoms.ATOMS}
        assert names == set(_classes(generator, domain))


def test_table_knows_the_delicate_cases(generator):
    table = {atom.name: tuple(atom.class_name(d) for d in DOMAINS) for atom in generator.atoms.ATOMS}
    assert table["left-lower-arm/coat"] == ("lower-arm", "upper-clothes", "coat")
    assert table["right-foot/sock"] == ("lower-leg", "right-leg", "socks")
    assert table["left-hand/glove"] == ("lower-arm", "left-arm", "glove")
    assert table["neck/skin"] == ("torso", "face", "torso-skin")
    assert table["scene/bag"] == ("background", "bag", "background")
    assert table["torso/belt-on-pants"] == ("torso", "belt", "pants")
    assert table["torso/strap-on-coat"] == ("torso", "bag", "coat")
    assert table["upper-leg/dress"] == ("upper-leg", "dress", "dress")


def _stand(generator, yaw):
    """One person on a grey sheet, arms spread, nothing in the way; returns the figure and the atoms."""
    pose = generator.figure.Pose(yaw, 0, 0, 0, 0, 0, ((0.7, 0, 0, 0),) * 2, ((0.2, 0, 0),) * 2)
    rng = np.random.default_rng(3)
    figure = generator.figure.Figure(generator.figure.sample_build(rng, True), pose, (100, 105), 180, 0.0, 0.1)
    blank = np.zeros((200, 200), np.float32)
    canvas = generator.canvas.Canvas(np.full((3, 200, 200), 128, np.float32), 0.0, blank, blank)
    outfit = generator.wardrobe.sample_outfit(rng, True)
    shoes = generator.wardrobe.sample_cloth(rng)
    outfit = generator.wardrobe.replace(
        outfit, coat=None, bag=None, gloves=None, sleeve=0.45, shoes=shoes, boot=0.0, socks=None, bottom_kind="pants",
        bottom_length=0.5, top_kind="tshirt", hat=None, hair_style="short",
    )  # fmt: skip
    generator.person.Person(canvas, figure, outfit, rng).draw()
    return figure, canvas.atoms


@pytest.mark.parametrize(("yaw", "left_is_at"), [(0.0, "right"), (np.pi, "left")])
def test_left_and_right_are_the_persons_own(generator, yaw, left_is_at):
    figure, atoms = _stand(generator, yaw)
    for joint in ("shoulder", "wrist", "ankle"):
        left, right = figure.joints[f"left_{joint}"][0], figure.joints[f"right_{joint}"][0]
        assert (left > right) == (left_is_at == "right")
    for domain in ("atr", "cihp"):
        label = generator.atoms.to_label(atoms, domain)
        for side in ("left", "right"):
            for joint, part in (("hand", "arm"), ("elbow", "arm"), ("knee", "leg"), ("toe", "shoe")):
                x, y = figure.joints[f"{side}_{joint}"].astype(int)
                assert _classes(generator, domain)[label[y, x]] == f"{side}-{part}", (domain, joint)
    face = (atoms == generator.atoms.ATOM_ID["head/skin"]).sum()
    hair = (atoms == generator.atoms.ATOM_ID["head/hair"]).sum()
    assert (face > hair) == (left_is_at == "right")


def test_a_shape_owns_the_pixels_of_which_it_covers_half(generator):
    blank = np.zeros((8, 8), np.float32)
    canvas = generator.canvas.Canvas(np.zeros((3, 8, 8), np.float32), 0.0, blank, blank)
    material = generator.canvas.Material((200, 200, 200), folds=0.0, roundness=0.0)
    square = np.array(((2.0, 2.0), (4.75, 2.0), (4.75, 5.25), (2.0, 5.25)))
    canvas.paint(square, material, generator.canvas.Frame((3, 3), (0.0, 1.0), 2.0, 8.0), atom=7)
    wanted = np.zeros((8, 8), bool)
    wanted[2:5, 2:5] = True
    assert np.array_equal(canvas.atoms == 7, wanted)
    assert canvas.image[0, 3, 3] == pytest.approx(200)
    assert 0 < canvas.image[0, 5, 3] < 100


def test_color_alone_does_not_tell_the_classes(generator, samples):
    for domain in DOMAINS:
        count = len(_classes(generator, domain))
        labels = [generator.atoms.to_label(sample.atoms, domain) for sample in samples[domain]]
        pixels = np.concatenate([sample.image.reshape(-1, 3)[::7] for sample in samples[domain]]).astype(np.float32)
        truth = np.concatenate([label.ravel()[::7] for label in labels])
        half = len(truth) // 2
        means = np.stack([pixels[:half][truth[:half] == index].mean(axis=0) for index in range(count)])
        found = ((pixels[half:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
        confusion = np.bincount(truth[half:] * count + found, minlength=count**2).reshape(count, count)
        hits = np.diag(confusion)
        union = confusion.sum(0) + confusion.sum(1) - hits
        assert (hits / np.maximum(union, 1)).mean() < 0.12, domain


def test_unknown_names_are_refused(generator):
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"'lip'.*pascal_person_part, atr, cihp"):
        generator.atoms.to_label(np.zeros((2, 2), np.uint8), "lip")
    with pytest.raises(ValueError, match="Atom 250"):
        generator.atoms.to_label(np.full((2, 2), 250, np.uint8), "atr")
    with pytest.raises(ValueError, match="'photo'"):
        generator.scene.draw_sample("photo", (64, 64), rng)
    with pytest.raises(ValueError, match="8x64"):
        generator.scene.draw_sample("atr", (8, 64), rng)
