"""`build_sst_train_loader`: the same batches whatever the workers and wherever it starts."""

import itertools

import pytest
import torch
from conftest import tiny_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from sst_d2.data import SSTDatasetMapper, build_sst_train_loader, register_dataset_card
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.label_domains import get_label_domain


@pytest.fixture
def cfg(make_dataset):
    sets = [("p", "pascal_person_part", 2), ("a", "atr", 3), ("more_a", "atr", 4), ("c", "cihp", 5)]
    paths = [str(make_dataset(name, domain=domain, count=count)) for name, domain, count in sets]
    return tiny_cfg(DATASETS__SST__CARDS=paths, DATASETS__TRAIN=("p", "a", "more_a", "c"), SOLVER__IMS_PER_BATCH=6)


def batches(loader, count):
    return list(itertools.islice(loader, count))


def same(first, second):
    return all(
        a["image_id"] == b["image_id"]
        and torch.equal(a["image"], b["image"])
        and torch.equal(a["sem_seg"], b["sem_seg"])
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def test_workers_and_the_global_random_state_make_no_difference(cfg):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    alone = batches(build_sst_train_loader(cfg), 4)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert same(alone, batches(build_sst_train_loader(cfg), 4))
    cfg.SEED = 1
    assert not same(alone, batches(build_sst_train_loader(cfg), 4))


def test_a_loader_that_starts_later_gives_what_comes_then(cfg):
    whole = batches(build_sst_train_loader(cfg), 5)
    loader = build_sst_train_loader(cfg)
    iterator = iter(loader)  # as Detectron2 0.5 does, before the start is known
    loader.start_iteration = 3
    assert same(whole[3:], [next(iterator), next(iterator)])


def test_several_data_sets_of_one_domain_form_one_pool(cfg):
    ids = [sample["image_id"] for batch in batches(build_sst_train_loader(cfg), 14) for sample in batch]
    of_atr = [identifier for identifier in ids if "a_" in identifier]
    assert len(of_atr) == 28 and set(of_atr[:7]) == {f"a_{i}" for i in range(3)} | {f"more_a_{i}" for i in range(4)}


def test_plain_arguments_work_as_well_as_a_configuration(make_dataset):
    register_dataset_card(make_dataset("toy"))
    mapper = SSTDatasetMapper(True, domains=[get_label_domain("atr")], augmentations=[])
    loader = build_sst_train_loader(DatasetCatalog.get("toy"), mapper=mapper, domains=["atr"], total_batch_size=2)
    assert [sample["sample_position"] for batch in batches(loader, 2) for sample in batch] == [0, 1, 2, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_stops_training_with_its_own_sentence(cfg, workers):
    register_dataset_card(cfg.DATASETS.SST.CARDS[0])
    bad = DatasetCatalog.get("p")[0]["sem_seg_file_name"]
    Image.new("L", (48, 40), 9).save(bad)
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(
        SSTDataError, match=r"the ids \[9\] do not belong to label domain 'pascal_person_part'"
    ) as error:
        batches(build_sst_train_loader(cfg), 3)
    assert str(error.value).startswith(bad) and "Traceback" not in str(error.value)


def test_a_data_set_of_an_absent_domain_is_refused(cfg):
    cfg.MODEL.SST.DOMAINS = ["atr", "cihp"]
    with pytest.raises(
        SSTConfigError, match="'p' has the label domain 'pascal_person_part', which is none of .*atr, cihp"
    ):
        build_sst_train_loader(cfg)


def test_an_unknown_data_set_is_refused_with_similar_names(cfg):
    cfg.DATASETS.TRAIN = ("cihp_sem_seg_trian",)
    with pytest.raises(
        SSTConfigError, match="'cihp_sem_seg_trian' is not registered; did you mean: cihp_sem_seg_train"
    ):
        build_sst_train_loader(cfg)


def test_a_data_set_that_does_not_say_its_domain_is_refused(cfg):
    DatasetCatalog.register("foreign", lambda: [])
    MetadataCatalog.get("foreign").set(evaluator_type="sem_seg")
    cfg.DATASETS.TRAIN = ("foreign",)
    with pytest.raises(SSTConfigError, match="'foreign' does not say its label domain"):
        build_sst_train_loader(cfg)


def test_a_data_set_registered_in_python_takes_the_domain_of_its_metadata(cfg):
    register_dataset_card(cfg.DATASETS.SST.CARDS[1])
    plain = [{k: v for k, v in sample.items() if k != "label_domain"} for sample in DatasetCatalog.get("a")]
    DatasetCatalog.register("by_hand", lambda: plain)
    MetadataCatalog.get("by_hand").set(label_domain="atr")
    cfg.DATASETS.TRAIN = ("by_hand",)
    assert batches(build_sst_train_loader(cfg), 1)[0][0]["label_domain"] == "atr"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["DATASETS.TRAIN", ()], "there is no training image"),
        (["DATALOADER.SST.SAMPLER", "fair"], "DATALOADER.SST: unknown sampler 'fair'"),
        (["SOLVER.IMS_PER_BATCH", 0], "SOLVER.IMS_PER_BATCH: 0 images in all for 1 processes"),
    ],
)
def test_configurations_that_cannot_work_are_refused(cfg, changes, message):
    cfg.merge_from_list(changes)
    with pytest.raises(SSTConfigError, match=message):
        build_sst_train_loader(cfg)


def test_a_domain_without_a_training_set_is_said(cfg, caplog):
    cfg.DATASETS.TRAIN = ("p", "a")
    build_sst_train_loader(cfg)
    assert "no training set has the label domain cihp: its head will learn nothing" in caplog.text


def test_without_a_seed_the_log_says_that_the_order_cannot_be_repeated(cfg, caplog):
    cfg.SEED = -1
    build_sst_train_loader(cfg)
    assert "SEED is -1" in caplog.text
