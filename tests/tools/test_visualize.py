"""`tools/visualize.py`: which pictures it writes and what is in them; nothing is replaced unasked; mistakes named."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from PIL import Image

from sst_d2 import SSTPredictor
from sst_d2.checkpoint import SSTCheckpointer
from sst_d2.checkpoint_io import strip_auxiliary
from sst_d2.data import register_dataset_cards
from sst_d2.data.cards import read_dataset_cards
from sst_d2.errors import SSTCheckpointError, SSTConfigError, SSTDataError, SSTError
from sst_d2.label_domains import get_label_domain
from sst_d2.pictures import observe_relations, sample_picture
from sst_d2.pictures.relations import dynamic_picture, static_picture
from sst_d2.visualization import side_by_side

spec = importlib.util.spec_from_file_location("visualize", ROOT / "tools/visualize.py")
visualize = importlib.util.module_from_spec(spec)
spec.loader.exec_module(visualize)

SETS = {"p": "pascal_person_part", "a": "atr"}


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.png"))


def picture(path):
    return np.asarray(Image.open(path))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def draw(out, capsys):
    """The command in this process; it returns the names of what it says it has written."""

    def call(*arguments):
        visualize.main([*map(str, arguments[:1]), "--output", str(out), *map(str, arguments[1:])])
        lines = capsys.readouterr().out.splitlines()
        return [Path(line).relative_to(out).as_posix() for line in lines]

    return call


@pytest.fixture
def trained(make_dataset, tmp_path):
    """A checkpoint of a training with SST on two data sets, and its network."""
    cards = [str(make_dataset(name, domain=domain)) for name, domain in SETS.items()]
    register_dataset_cards(cards)
    cfg = tiny_cfg(list(SETS.values()), DATASETS__SST__CARDS=cards, DATASETS__TEST=("p", "a"))
    torch.manual_seed(0)
    model = build_model(cfg)
    SSTCheckpointer(model, str(tmp_path), config=cfg.dump()).save("model_final")
    return tmp_path / "model_final.pth", model


def test_samples_of_a_data_set_are_spread_over_it(make_dataset, draw, out):
    path = make_dataset("own", count=7)
    names = [f"own/0000{n}_own_{n - 1}.png" for n in (1, 4, 7)]
    assert draw("dataset", path, "--number", 3) == names == written(out)
    [card] = read_dataset_cards(path)
    expected = sample_picture(card.load()[3], get_label_domain("atr"), "own, 4 of 7: own_3")
    assert np.array_equal(picture(out / names[1]), expected)
    assert len(draw("dataset", path, "--number", 99, "--overwrite")) == 7


def test_samples_may_be_named_and_augmented_as_in_training(make_dataset, draw, out):
    path, config = make_dataset("own", count=7), ROOT / "configs/quick_schedules/synthetic_people.yaml"
    assert draw("dataset", path, "--ids", "own_5", "own_2") == ["own/00003_own_2.png", "own/00006_own_5.png"]
    plain = picture(out / "own/00003_own_2.png")
    again = ["dataset", path, "--ids", "own_2", "--augmented", config, "--overwrite"]
    draw(*again)
    augmented = picture(out / "own/00003_own_2.png")
    assert augmented.shape[1] > 2 * plain.shape[1]
    draw(*again)
    assert np.array_equal(picture(out / "own/00003_own_2.png"), augmented)
    draw(*again, "--opts", "SEED", 5)
    assert not np.array_equal(picture(out / "own/00003_own_2.png"), augmented)


def test_predictions_stand_beside_the_photo_in_all_label_domains(trained, draw, out, tmp_path):
    photo = tmp_path / "a/images/a_0.png"
    assert draw("predictions", trained[0], photo, tmp_path / "a/images/a_1.png") == ["a_0.png", "a_1.png"]
    answer = SSTPredictor(trained[0])(photo, "all")
    expected = side_by_side(picture(photo), {name: one.labels for name, one in answer.items()}, max_side=640)
    assert list(answer) == list(SETS.values()) and np.array_equal(picture(out / "a_0.png"), expected)


def test_photos_of_one_name_and_those_of_a_folder_have_names_of_their_own(trained, draw, tmp_path):
    photos = tmp_path / "photos"
    (photos / "inside").mkdir(parents=True)
    photo = Image.open(tmp_path / "a/images/a_0.png")
    for name in ("x.png", "x.bmp", "inside/x.png"):
        photo.save(photos / name)
    assert draw("predictions", trained[0], photos) == ["x.bmp.png", "x.png.png", "inside/x.png"]
    again = draw("predictions", trained[0], photos / "x.png", photos / "inside/x.png", "--overwrite")
    assert again == ["x.png", "inside/x.png"]


def test_what_cannot_be_read_is_passed_over_and_named(trained, make_dataset, out, tmp_path, capsys):
    photos, card = tmp_path / "a/images", make_dataset("own", count=2)
    for path in (photos / "a_1.png", tmp_path / "own/images/own_0.png"):
        path.write_bytes(b"no photo")
    for arguments, names, named in (
        (["predictions", trained[0], photos], ["a_0.png", "a_2.png", "a_3.png"], "skipped: a_1.png: "),
        (["dataset", card], ["own/00002_own_1.png"], "skipped: own/00001_own_0.png: "),
    ):
        assert visualize.main([*map(str, arguments), "--output", str(out / arguments[0])]) is False
        assert written(out / arguments[0]) == names
        error = capsys.readouterr().err
        assert error.startswith(named) and "is no image file" in error and error.count("\n") == 1
    assert visualize.main(["predictions", str(trained[0]), str(photos / "a_0.png"), "--output", str(out)])


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_photo_is_never_replaced_by_its_picture(trained, out, tmp_path, overwrite):
    photos = tmp_path / "a/images"
    (tmp_path / "linked").symlink_to(photos)
    out.mkdir()
    (out / "a_0.png").hardlink_to(photos / "a_0.png")
    before = (photos / "a_0.png").read_bytes()
    for folder in (photos, tmp_path / "linked", out):
        arguments = ["predictions", str(trained[0]), str(photos / "a_0.png"), "--output", str(folder), *overwrite]
        with pytest.raises(SSTDataError, match=r"a_0\.png: a picture would replace a file .* name another --output"):
            visualize.main(arguments)
        assert (folder / "a_0.png").read_bytes() == before
    with pytest.raises(SSTDataError, match="is the folder of the photos and of the results"):
        visualize.main(["predictions", str(trained[0]), str(photos), "--output", str(photos), *overwrite])


def test_nor_is_any_other_file_that_a_picture_is_made_from(trained, make_dataset, draw, out, tmp_path):
    card, own_domain = make_dataset("own"), tmp_path / "own.yaml"
    own_domain.write_text((ROOT / "tests/label_domains/fashionista7.yaml").read_text())
    evaluation = tmp_path / "sem_seg_evaluation.json"
    record = {"dataset": "x", "label_domain": "own", "classes": ["a", "b"], "images": 1}
    evaluation.write_text(json.dumps({**record, "confusion_matrix": [[3, 1], [0, 2]]}))
    (out / "own").mkdir(parents=True)
    for name, source, arguments in (
        ("own/00001_own_0.png", tmp_path / "own/images/own_0.png", ["dataset", card]),
        ("own/00002_own_1.png", tmp_path / "own/labels/own_2.png", ["dataset", card]),
        ("confusion_x.png", evaluation, ["confusion", evaluation]),
        ("m_static_atr-fashionista7.png", own_domain, ["relations", "atr", own_domain]),
        ("m_static_pascal_person_part-atr.png", trained[0], ["relations", "--checkpoint", trained[0]]),
    ):
        (out / name).hardlink_to(source)
        with pytest.raises(SSTDataError, match=f"{name}: a picture would replace a file that it is made from"):
            draw(*arguments, "--overwrite")
        (out / name).unlink()


def test_confusions_of_all_evaluations_of_a_run(draw, tmp_path):
    run = tmp_path / "run"
    record = {"label_domain": "own", "classes": ["a", "b"], "images": 1, "confusion_matrix": [[3, 1], [0, 2]]}
    for folder, name in (("inference", "x"), ("inference", "y"), ("inference_TTA", "x")):
        (run / folder / name).mkdir(parents=True)
        (run / folder / name / "sem_seg_evaluation.json").write_text(json.dumps({"dataset": name, **record}))
    names = ["confusion_x.png", "confusion_y.png", "confusion_inference_TTA_x.png"]
    assert draw("confusion", run) == names
    assert draw("confusion", run / "inference_TTA/x", "--overwrite") == ["confusion_x.png"]
    assert draw("confusion", run / "inference/y/sem_seg_evaluation.json", "--overwrite") == ["confusion_y.png"]


def test_static_relations_of_every_pair(draw, out):
    names = draw("relations", "lip", "atr", "cihp")
    assert names == ["m_static_lip-atr.png", "m_static_lip-cihp.png", "m_static_atr-cihp.png"]
    expected = static_picture(get_label_domain("lip"), get_label_domain("cihp"))
    assert np.array_equal(picture(out / names[1]), expected)


def test_a_checkpoint_gives_the_relations_that_its_branch_has_learnt(trained, draw, out, tmp_path):
    path, model = trained
    pair = "pascal_person_part-atr"
    names = [f"m_static_{pair}.png", *(f"m_dynamic_{pair}_stride{stride}.png" for stride in ("16", "08", "04"))]
    names += [f"cosines_x{number}_{name}.png" for name in SETS.values() for number in (0, 3)]
    assert draw("relations", "--checkpoint", path, "--images", 2) == names
    samples = []
    for name, domain in SETS.items():
        for number in range(2):
            image = picture(tmp_path / name / f"images/{name}_{number}.png").transpose(2, 0, 1)
            labels = picture(tmp_path / name / f"labels/{name}_{number}.png").astype(np.int64)
            sample = {"image": torch.tensor(image), "sem_seg": torch.tensor(labels), "label_domain": domain}
            samples.append(sample)
    values = observe_relations(model, samples).dynamic[tuple(SETS.values())][2]
    expected = dynamic_picture(*map(get_label_domain, SETS.values()), values, 4)
    assert np.array_equal(picture(out / names[3]), expected)


def test_label_domains_without_a_test_set_are_left_out_where_images_are_needed(trained, draw):
    names = draw("relations", "--checkpoint", trained[0], "--opts", "DATASETS.TEST", "('a',)")
    cosines = ["cosines_x0_pascal_person_part.png", "cosines_x0_atr.png", "cosines_x3_atr.png"]
    assert names == ["m_static_pascal_person_part-atr.png", *cosines]


def test_nothing_is_replaced_unasked_and_nothing_else_written(draw, out):
    draw("relations", "atr", "cihp")
    before = {name: (out / name).read_bytes() for name in written(out)}
    (out / "m_static_atr-cihp.png").write_bytes(b"mine")
    with pytest.raises(SSTDataError, match=r"m_static_atr-cihp\.png exists; --overwrite replaces it"):
        draw("relations", "lip", "atr", "cihp")
    assert written(out) == list(before) and (out / "m_static_atr-cihp.png").read_bytes() == b"mine"
    draw("relations", "atr", "cihp", "--overwrite")
    assert (out / "m_static_atr-cihp.png").read_bytes() == before["m_static_atr-cihp.png"]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["dataset", "nowhere"], SSTError, "'nowhere' is no data set that is known by name"),
        (["dataset", "OWN", "--ids", "own_1", "foreign"], SSTDataError, "--ids: foreign: no image of the data sets"),
        (["dataset", "OWN", "--augmented", "none.yaml"], SSTConfigError, "there is no file none.yaml"),
        (["predictions", "none.pth", "PHOTO"], SSTCheckpointError, "none.pth: there is no such file"),
        (["predictions", "none.pth", "none.jpg"], SSTDataError, "none.jpg: there is no such file"),
        (["confusion", "none"], SSTDataError, "none: there is no such folder"),
        (["confusion", "EMPTY"], SSTDataError, "no sem_seg_evaluation.json lies below it"),
        (["relations", "atr"], SSTConfigError, "name two label domains or more"),
        (["relations", "atr", "nowhere"], SSTError, "unknown label domain 'nowhere'"),
        (["relations", "--checkpoint", "none.pth"], SSTCheckpointError, "there is no file none.pth"),
        (["relations", "atr", "--checkpoint", "none.pth"], SSTConfigError, "leave yours out"),
    ],
)
def test_mistakes_are_one_sentence(make_dataset, draw, out, tmp_path, arguments, error, words):
    card = make_dataset("own")
    (tmp_path / "empty").mkdir()
    places = {"OWN": card, "EMPTY": tmp_path / "empty", "PHOTO": tmp_path / "own/images/own_0.png"}
    with pytest.raises(error, match=words) as caught:
        draw(*(places.get(argument, argument) for argument in arguments))
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_stripped_checkpoint_has_no_relations_and_says_which_has(trained, draw, tmp_path):
    strip_auxiliary(str(trained[0]), str(tmp_path / "stripped.pth"))
    with pytest.raises(SSTCheckpointError, match=r"stripped\.pth: holds no MSA, MSE and MST"):
        draw("relations", "--checkpoint", tmp_path / "stripped.pth")


def test_the_command_ends_with_one_sentence(draw, out):
    draw("relations", "atr", "cihp")
    command = [sys.executable, "tools/visualize.py", "relations", "atr", "cihp", "--output", str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1 and result.stderr.startswith(f"error: {out}/m_static_atr-cihp.png exists; ")
    assert result.stderr.count("\n") == 1
