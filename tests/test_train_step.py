"""`TrainStep`: a batch in parts equals the whole batch."""

import re

import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from test_distributed import DATASET, IMAGE, STRATEGY, assert_equal, expected, new_model, samples, share_of
from torch.nn.parallel import DistributedDataParallel

from sst_d2.data import build_sst_train_loader
from sst_d2.errors import SSTConfigError
from sst_d2.launch import launch
from sst_d2.train_step import TrainStep

BATCH = samples(("atr", "pascal_person_part", "atr", "cihp", "atr", "pascal_person_part"))


def gradients(accumulate, clip_norm=None, **overrides):
    """Losses and gradients of one step on this process's share of the images."""
    torch.set_num_threads(1)
    model = new_model(**overrides)
    network = DistributedDataParallel(model, broadcast_buffers=False) if comm.get_world_size() > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(network, [share_of(BATCH)], optimizer, clip_norm=clip_norm, amp_type=None, accumulate=accumulate)
    with EventStorage() as storage:
        step.iter = 0
        step.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if name.startswith("loss")}
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def groups(count):
    return [BATCH[len(BATCH) * part // count : len(BATCH) * (part + 1) // count] for part in range(count)]


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
def test_parts_of_a_batch_add_up_to_its_losses_and_gradients(parts):
    assert_equal(gradients(parts, **{IMAGE: 0.0}), gradients(1, **{IMAGE: 0.0}))  # four of six images are uneven


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_of_a_batch_in_parts_the_image_level_alone_differs_and_is_the_mean_over_pairs_that_meet(parts):
    assert_equal(gradients(parts), expected(new_model(), groups(parts)))


@pytest.mark.parametrize(
    "overrides",
    [
        {STRATEGY: "progressive"},
        {STRATEGY: "none"},
        {DATASET: 0.0},
        {"MODEL__SST__AUXILIARY__REGIONS": "prediction"},
        {"MODEL__SST__AUXILIARY__ENABLED": False},
    ],
    ids=str,
)
def test_so_it_is_with_every_strategy(overrides):
    assert_equal(gradients(3, **overrides), expected(new_model(**overrides), groups(3)))


def test_gradients_are_clipped_when_all_parts_are_in():
    clipped = gradients(1, clip_norm=0.01, **{IMAGE: 0.0})
    assert_equal(clipped, gradients(4, clip_norm=0.01, **{IMAGE: 0.0}))
    assert torch.stack([gradient.norm() for gradient in clipped[1].values()]).norm().item() == pytest.approx(0.01)


def test_more_parts_than_images_and_models_that_cannot_count_are_refused():
    with pytest.raises(SSTConfigError, match=r"SOLVER\.SST\.ACCUMULATE: 7 parts of 6 images per process"):
        gradients(7)
    plain = torch.nn.Linear(1, 1)
    with pytest.raises(SSTConfigError, match="2 parts need a model that counts labelled pixels, as SST does; Linear"):
        TrainStep(plain, [], torch.optim.SGD(plain.parameters(), 0.1), clip_norm=None, amp_type=None, accumulate=2)


def loader(domains, total, sampler="balanced", **options):
    drawn = [{"label_domain": name, "file_name": f"{name}_{number}"} for name in domains for number in range(3)]
    return build_sst_train_loader(
        drawn, mapper=dict, domains=domains, total_batch_size=total, sampler=sampler, **options
    )


FOUR = ["pascal_person_part", "atr", "cihp", "lip"]
SELDOM = [
    # processes, parts, images in all, domains, sampler, what is said of the pairs
    (3, 1, 3, FOUR[:3], "balanced", "1 images of 3 .*: pascal_person_part-atr never, .*-cihp never, atr-cihp never"),
    (2, 1, 4, FOUR, "balanced", "2 images of 4 .*: pascal_person_part-cihp never, .*-lip never, atr-cihp never, atr-l"),
    (1, 2, 4, FOUR[:3], "balanced", "2 images of 3 label domains .*: pascal_person_part-atr in 67% of the steps, pas"),
    (2, 1, 4, FOUR[:3], "proportional", "2 images of 3 .*: pascal_person_part-atr in [2-5].% of the steps, pascal_p"),
    (2, 1, 2, FOUR[:2], "balanced", "1 images of 2 .*: pascal_person_part-atr never. For more take a larger SOLVER.I"),
    (1, 1, 3, FOUR[:3], "balanced", None),
    (3, 1, 6, FOUR[:3], "balanced", None),  # two images of three domains, but each pair meets somewhere in every step
    (1, 1, 4, FOUR[:3], "proportional", "4 images of 3 .*in [5-9].% of the steps, .*DATALOADER.SST.SAMPLER balanced"),
    (1, 1, 24, FOUR[:3], "proportional", None),
]


@pytest.mark.parametrize(("processes", "parts", "total", "domains", "sampler", "said"), SELDOM)
def test_pairs_of_domains_that_cannot_meet_are_named_once(
    processes, parts, total, domains, sampler, said, monkeypatch, caplog
):
    monkeypatch.setattr(comm, "get_world_size", lambda: processes)
    model = build_model(tiny_cfg(domains))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batches = loader(domains, total, sampler)
    TrainStep(model, batches, optimizer, clip_norm=None, amp_type=None, accumulate=parts)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == (said is not None) and all(re.search(said, warning) for warning in warnings)


@pytest.mark.parametrize("overrides", [{STRATEGY: "none"}, {IMAGE: 0.0}, {"MODEL__SST__AUXILIARY__ENABLED": False}])
def test_nothing_is_said_where_no_pairs_of_images_are_compared(overrides, monkeypatch, caplog):
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    model = build_model(tiny_cfg(FOUR[:3], **overrides))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    TrainStep(model, loader(FOUR[:3], 3), optimizer, clip_norm=None, amp_type=None)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def write(path):
    results = gradients(2)
    if comm.get_rank() == 0:
        torch.save(results, path)


def test_two_processes_with_two_parts_each_equal_one_process(tmp_path):
    launch(write, 2, args=(str(tmp_path / "two.pt"),))
    halves = BATCH[:3], BATCH[3:]
    fourths = [part for half in halves for part in (half[:1], half[1:])]
    assert_equal(torch.load(tmp_path / "two.pt"), expected(new_model(), fourths))
