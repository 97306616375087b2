"""The hooks of the training loop; what they do in a run stands in test_engine.py."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from sst_d2.hooks import SeedEveryStep, mean_miou


def drawn(seed, iteration):
    hook = SeedEveryStep(seed)
    hook.trainer = SimpleNamespace(iter=iteration)
    hook.before_step()
    return torch.rand(3).tolist(), np.random.uniform(size=3).tolist(), [random.random() for _ in range(3)]


def test_random_numbers_of_a_step_depend_on_seed_and_iteration_alone():
    first = drawn(1, 5)
    torch.rand(7), np.random.uniform(), random.random()
    assert drawn(1, 5) == first
    for other in (drawn(1, 6), drawn(2, 5)):
        assert all(mine != theirs for mine, theirs in zip(first, other, strict=True))


def test_mean_miou_is_over_data_sets_and_skips_those_without_scores():
    assert mean_miou({"a": {"sem_seg": {"mIoU": 1.0}}, "b": {"sem_seg": {"mIoU": 2.0}}, "c": None}) == 1.5
    assert mean_miou({}) is None
