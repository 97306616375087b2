"""Dataset cards become data sets of Detectron2's catalogs, lazily; wrong cards are refused by file and field."""

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sst_d2.data.cards import (
    count_images,
    read_dataset_cards,
    register_dataset_card,
    register_dataset_cards,
    require_data,
)
from sst_d2.errors import DatasetCardError, SSTError


def test_built_in_data_sets_are_registered_by_importing_without_reading_data():
    expected = {
        f"{name}_sem_seg_{split}" for name in ("pascal_person_part", "cihp", "lip") for split in ("train", "val")
    }
    expected |= {f"atr_sem_seg_{split}" for split in ("train", "val", "test")}
    assert expected <= set(DatasetCatalog.list())
    metadata = MetadataCatalog.get("cihp_sem_seg_train")
    assert metadata.stuff_classes[10] == "torso-skin" and len(metadata.stuff_colors) == 20
    assert (metadata.ignore_label, metadata.evaluator_type, metadata.label_domain) == (255, "sem_seg", "cihp")


def test_built_in_data_sets_lie_below_detectron2_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetCardError, match=f"{tmp_path}/cihp/ids/val.txt cannot be read.*Prepare the data set"):
        DatasetCatalog.get("cihp_sem_seg_val")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetCardError, match=r"ids datasets/atr/ids/val\.txt"):
        DatasetCatalog.get("atr_sem_seg_val")


def test_a_card_gives_detectron2s_dicts(make_dataset):
    path = make_dataset("toy", count=2)
    assert register_dataset_card(path) == ["toy"]
    first, second = DatasetCatalog.get("toy")
    assert first == {
        "file_name": str(path.parent / "images/toy_0.png"),
        "sem_seg_file_name": str(path.parent / "labels/toy_0.png"),
        "image_id": "toy_0",
        "label_domain": "atr",
        "height": 40,
        "width": 48,
    }
    assert second["image_id"] == "toy_1" and count_images("toy") == 2


def test_height_and_width_are_those_of_the_upright_image(make_dataset):
    path = make_dataset("toy", count=1)
    image = Image.open(path.parent / "images/toy_0.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image.save(path.parent / "images/toy_0.png", exif=exif)
    register_dataset_card(path)
    assert (DatasetCatalog.get("toy")[0]["height"], DatasetCatalog.get("toy")[0]["width"]) == (48, 40)


def test_an_unreadable_image_does_not_stop_the_list(make_dataset):
    path = make_dataset("toy", count=2)
    (path.parent / "images/toy_0.png").write_bytes(b"")
    register_dataset_card(path)
    assert ["height" in sample for sample in DatasetCatalog.get("toy")] == [False, True]


def test_a_remapped_card_hides_its_files_from_tools_that_read_them_raw(make_dataset):
    register_dataset_card(make_dataset("toy", count=1, remap=dict.fromkeys(range(18), 0)))
    sample = DatasetCatalog.get("toy")[0]
    assert "sem_seg_file_name" not in sample
    assert sample["remapped_label_file_name"].endswith("labels/toy_0.png") and sample["label_remap"][17] == 0


def test_one_card_holds_several_splits(make_dataset):
    fields = {"splits": ["train", "val"], "name": "toy_{split}", "ids": "{split}.txt"}
    path = make_dataset("toy", count=2, **fields)
    (path.parent / "train.txt").write_text("toy_0")
    (path.parent / "val.txt").write_text("toy_1\n")
    assert register_dataset_card(path) == ["toy_train", "toy_val"]
    assert [sample["image_id"] for sample in DatasetCatalog.get("toy_val")] == ["toy_1"]


def test_without_a_list_every_label_file_counts(make_dataset):
    path = make_dataset("toy", count=3)
    card = yaml.safe_load(path.read_text())
    del card["ids"]
    path.write_text(yaml.safe_dump(card))
    register_dataset_card(path)
    assert [sample["image_id"] for sample in DatasetCatalog.get("toy")] == ["toy_0", "toy_1", "toy_2"]
    for file in (path.parent / "labels").iterdir():
        file.unlink()
    with pytest.raises(DatasetCardError, match=r"no file matches .*labels/\*\.png"):
        DatasetCatalog.get("toy")


def test_registering_again_is_fine_and_another_card_of_the_name_is_not(make_dataset, tmp_path):
    path = make_dataset("toy")
    register_dataset_card(path)
    register_dataset_card(path)
    other = tmp_path / "other.yaml"
    other.write_text(path.read_text())
    with pytest.raises(DatasetCardError, match=f"name 'toy' is taken by the card {path}"):
        register_dataset_card(other)
    DatasetCatalog.register("foreign", lambda: [])
    other.write_text(path.read_text().replace("name: toy", "name: foreign"))
    with pytest.raises(DatasetCardError, match="'foreign' is taken by other code"):
        register_dataset_card(other)


def test_a_prepared_data_set_elsewhere_takes_the_place_of_the_built_in_card(make_dataset, caplog):
    caplog.set_level("INFO")
    assert register_dataset_card(make_dataset("elsewhere", name="atr_sem_seg_train")) == ["atr_sem_seg_train"]
    assert len(DatasetCatalog.get("atr_sem_seg_train")) == 4 and "takes the place of the built-in card" in caplog.text


def test_the_same_card_by_another_path_is_the_same_card(make_dataset, monkeypatch):
    path = make_dataset("toy")
    register_dataset_card(path)
    monkeypatch.chdir(path.parent)
    assert register_dataset_card("../toy/card.yaml") == ["toy"]


def test_a_key_that_stands_twice_is_refused(make_dataset):
    path = make_dataset("toy")
    path.write_text(path.read_text() + "remap:\n  3: 4\n  3: 6\n")
    with pytest.raises(DatasetCardError, match="the key '3' stands twice"):
        read_dataset_cards(path)


def test_absent_data_is_found_out_early_and_lists_that_are_no_text_are_refused(make_dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetCardError, match="list of ids"):
        require_data("cihp_sem_seg_val")
    path = make_dataset("toy")
    register_dataset_card(path)
    require_data("toy")
    (path.parent / "ids.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetCardError, match="cannot be read"):
        require_data("toy")


def test_the_label_domain_may_be_a_file_beside_the_card(make_dataset):
    path = make_dataset("toy", label_domain="mine.yaml")
    (path.parent / "mine.yaml").write_text("name: mine\nclasses: [a, b]\n")
    assert read_dataset_cards(path)[0].domain.name == "mine"


def test_globs_register_several_cards(make_dataset, tmp_path):
    make_dataset("one"), make_dataset("two")
    assert register_dataset_cards([str(tmp_path / "*" / "card.yaml")]) == ["one", "two"]
    with pytest.raises(DatasetCardError, match="no file matches 'nothing/\\*.yaml'"):
        register_dataset_cards(["nothing/*.yaml"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": "labels/x.png"}, r"'labels': 'labels/x.png'; a pattern with \{id\}"),
        ({"images": 3}, "'images': 3; text is expected"),
        ({"label_domain": "martian"}, "unknown label domain 'martian'"),
        ({"remap": {300: 0}}, "remap entry 300: 0"),
        ({"remap": []}, "'remap': \\[\\]; a mapping"),
        ({"splits": ["a"]}, "'name': 'toy'; with `splits`"),
        ({"splits": "train", "name": "toy_{split}"}, "'splits': 'train'; a list"),
        ({"ids": "{name}.txt"}, r"'ids': '\{name\}.txt'; of placeholders"),
        ({"ids": "{split}.txt"}, r"'ids'.*\{split\} with `splits`"),
        ({"imagez": "x"}, "the field 'imagez' is unknown"),
    ],
)
def test_wrong_cards_are_refused_by_file_and_field(make_dataset, fields, message):
    path = make_dataset("toy", **fields)
    with pytest.raises(SSTError, match=message) as error:
        read_dataset_cards(path)
    assert "martian" in message or str(path) in str(error.value)


def test_an_empty_list_and_an_id_that_stands_twice_are_refused(make_dataset):
    path = make_dataset("toy")
    register_dataset_card(path)
    (path.parent / "ids.txt").write_text("\n \n")
    with pytest.raises(DatasetCardError, match=r"ids\.txt is empty"):
        DatasetCatalog.get("toy")
    (path.parent / "ids.txt").write_text("toy_0\ntoy_1\ntoy_0\n")
    with pytest.raises(DatasetCardError, match="names 'toy_0' twice"):
        DatasetCatalog.get("toy")


def test_cards_of_real_photos_agree_with_their_data(real_data):
    names = register_dataset_cards(["tests/cards/*.yaml"])
    sizes = {name: len(DatasetCatalog.get(name)) for name in names}
    assert sizes["ccp59_sem_seg_train"] == sizes["ccp14_sem_seg_train"] == 256
    assert sizes["real_pascal_person_part_sem_seg"] == 18 and sizes["real_cihp_sem_seg"] == 3
    assert sizes["fashionista7_sem_seg_train"] + sizes["fashionista7_sem_seg_test"] == 140
    assert all(np.isfinite(sample["height"]) for name in names for sample in DatasetCatalog.get(name))
