"""`SSTDatasetMapper`: one class for every domain; augmentation a pure function of (seed, position)."""

import random

import numpy as np
import pytest
import torch
from conftest import tiny_cfg
from detectron2.data import DatasetCatalog, build_detection_test_loader
from PIL import Image

from sst_d2.data import SSTDatasetMapper, register_dataset_card
from sst_d2.data.mapper import build_augmentations
from sst_d2.data.transforms import RandomScaleCropMirror
from sst_d2.errors import SSTDataError
from sst_d2.label_domains import get_label_domain


def samples(make_dataset, name="toy", **kwargs):
    register_dataset_card(make_dataset(name, **kwargs))
    return DatasetCatalog.get(name)


def test_training_gives_the_contract_of_the_design(make_dataset):
    sample = samples(make_dataset)[0]
    mapped = SSTDatasetMapper(tiny_cfg())(sample)
    assert mapped["image"].dtype == torch.uint8 and mapped["image"].shape == (3, 32, 32)
    assert mapped["sem_seg"].dtype == torch.int64 and mapped["sem_seg"].shape == (32, 32)
    assert set(mapped["sem_seg"].unique().tolist()) <= {*range(18), 255}
    assert {key: mapped[key] for key in sample} == sample


def test_prediction_leaves_the_image_as_it_is_and_reads_no_label(make_dataset):
    sample = {**samples(make_dataset)[0], "sem_seg_file_name": "absent.png"}
    mapped = SSTDatasetMapper(tiny_cfg(), is_train=False)(sample)
    expected = np.asarray(Image.open(sample["file_name"]).convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(mapped["image"].numpy(), expected) and "sem_seg" not in mapped
    resized = SSTDatasetMapper(tiny_cfg(INPUT__MIN_SIZE_TEST=20), is_train=False)(sample)
    assert resized["image"].shape == (3, 20, 24) and (resized["height"], resized["width"]) == (40, 48)


def test_the_configured_order_of_channels_is_given(make_dataset):
    sample = samples(make_dataset)[0]
    rgb, bgr = (SSTDatasetMapper(tiny_cfg(INPUT__FORMAT=order), is_train=False)(sample) for order in ("RGB", "BGR"))
    assert torch.equal(rgb["image"], bgr["image"].flip(0))


def test_one_mapper_serves_several_domains_with_their_own_flip_pairs(make_dataset):
    atr, pascal = samples(make_dataset, "a")[0], samples(make_dataset, "p", domain="pascal_person_part")[0]
    domains = [get_label_domain(name) for name in ("atr", "pascal_person_part")]
    always = RandomScaleCropMirror((40, 48), (1.0, 1.0), mirror_probability=1.0)
    mapper = SSTDatasetMapper(True, domains=domains, augmentations=[always])
    for sample, domain in zip((atr, pascal), domains, strict=True):
        raw = np.asarray(Image.open(sample["sem_seg_file_name"]))
        expected = domain.flip_permutation()[raw[:, ::-1]]
        assert np.array_equal(mapper(sample)["sem_seg"].numpy(), expected)


def test_augmentation_depends_on_seed_and_position_alone(make_dataset):
    sample = {**samples(make_dataset, size=(80, 96))[0], "sample_position": 7}
    mapper = SSTDatasetMapper(tiny_cfg(SEED=3))
    np.random.seed(0), random.seed(0)
    first = mapper(sample)
    np.random.seed(1), random.seed(1)
    again = mapper(sample)
    assert torch.equal(first["image"], again["image"]) and torch.equal(first["sem_seg"], again["sem_seg"])
    others = [mapper({**sample, "sample_position": 8}), SSTDatasetMapper(tiny_cfg(SEED=4))(sample)]
    assert all(not torch.equal(first["image"], other["image"]) for other in others)


def test_a_configuration_gives_the_augmentation_of_the_paper():
    (augmentation,) = build_augmentations(tiny_cfg(INPUT__SST__SCALE_RANGE=[0.5, 2.0], INPUT__SST__SCALE_PER_AXIS=True))
    assert (augmentation.scale_range, augmentation.per_axis) == ((0.5, 2.0), True)
    assert (augmentation.crop_size, augmentation.mirror_probability) == ((32, 32), 0.5)
    assert build_augmentations(tiny_cfg(INPUT__RANDOM_FLIP="none"))[0].mirror_probability == 0.0


def test_the_global_random_state_is_left_alone(make_dataset):
    sample = {**samples(make_dataset)[0], "sample_position": 7}
    np.random.seed(5), random.seed(5)
    expected = (np.random.uniform(), random.random())
    np.random.seed(5), random.seed(5)
    SSTDatasetMapper(tiny_cfg())(sample)
    assert (np.random.uniform(), random.random()) == expected


def test_a_remapped_sample_is_trained_with_the_domains_ids(make_dataset):
    sample = samples(make_dataset, remap={i: (i + 1) % 18 for i in range(18)})[0]
    mapper = SSTDatasetMapper(True, domains=[get_label_domain("atr")], augmentations=[])
    raw = np.asarray(Image.open(sample["remapped_label_file_name"]))
    assert np.array_equal(mapper(sample)["sem_seg"].numpy(), (raw + 1) % 18)


@pytest.mark.parametrize(
    ("damage", "message"), [("remove", "does not exist"), ("empty", "empty"), ("cut", "cannot be read")]
)
def test_a_damaged_image_is_named(make_dataset, damage, message):
    sample = samples(make_dataset)[0]
    path = sample["file_name"] = sample["file_name"].replace(".png", ".jpg")
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3)).astype(np.uint8)
    if damage != "remove":
        Image.fromarray(noise).save(path)
        content = open(path, "rb").read()
        open(path, "wb").write(b"" if damage == "empty" else content[: len(content) // 2])
    with pytest.raises(SSTDataError, match=message) as error:
        SSTDatasetMapper(tiny_cfg())(sample)
    assert path in str(error.value)


def test_photos_of_every_kind_become_upright_colours_or_are_refused(make_dataset):
    sample = samples(make_dataset)[0]
    mapper = SSTDatasetMapper(tiny_cfg(), is_train=False)
    photo = np.random.default_rng(0).integers(256, size=(40, 48, 3)).astype(np.uint8)
    for mode in ("L", "LA", "P", "RGBA", "1"):
        image = Image.fromarray(photo).convert(mode)
        image.save(sample["file_name"])
        assert np.array_equal(mapper(sample)["image"].permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB"))), mode
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(photo).save(sample["file_name"], exif=exif)
    assert np.array_equal(mapper(sample)["image"].permute(1, 2, 0).numpy(), photo[::-1, ::-1])
    Image.fromarray(photo[..., 0].astype(np.uint16) * 200).save(sample["file_name"])
    with pytest.raises(SSTDataError, match="an image of mode I;16 with more than 8 bits"):
        mapper(sample)


def test_missing_and_foreign_domains_are_errors_with_the_remedy(make_dataset):
    sample = samples(make_dataset)[0]
    mapper = SSTDatasetMapper(tiny_cfg(domains=["cihp"]))
    with pytest.raises(
        SSTDataError, match=r"its label domain 'atr' is none of \['cihp'\]; add it to MODEL.SST.DOMAINS"
    ):
        mapper(sample)
    del sample["label_domain"]
    with pytest.raises(SSTDataError, match="the key 'label_domain' is missing"):
        mapper(sample)


def test_the_mapper_works_in_detectron2s_own_loader(make_dataset):
    samples(make_dataset, count=3)
    loader = build_detection_test_loader(DatasetCatalog.get("toy"), mapper=SSTDatasetMapper(tiny_cfg(), is_train=False))
    assert [batch[0]["image_id"] for batch in loader] == ["toy_0", "toy_1", "toy_2"]


def test_a_sample_without_a_photo_is_refused_by_its_id():
    mapper = SSTDatasetMapper(False, domains=[get_label_domain("atr")], augmentations=[])
    with pytest.raises(SSTDataError, match="the sample '7' names no photo; .*`file_name`"):
        mapper({"image_id": "7", "label_domain": "atr"})
