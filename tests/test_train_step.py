"""`TrainStep`: a batch in parts equals the whole batch."""

import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from test_distributed import samples
from torch.nn.parallel import DistributedDataParallel

from sst_d2.errors import SSTConfigError
from sst_d2.launch import launch
from sst_d2.train_step import TrainStep


def gradients(accumulate, batch=None, clip_norm=None):
    """Losses and gradients of one step on this process's share of the images."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = build_model(tiny_cfg(domains=["pascal_person_part", "atr", "cihp"])).double().train()
    whole = samples() if batch is None else batch
    rank, size = comm.get_rank(), comm.get_world_size()
    share = whole[rank * len(whole) // size : (rank + 1) * len(whole) // size]
    network = DistributedDataParallel(model, broadcast_buffers=False) if size > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(network, [share], optimizer, clip_norm=clip_norm, amp_type=None, accumulate=accumulate)
    with EventStorage() as storage:
        step.iter = 0
        step.run_step()
        losses = {name: value for name, (value, _) in storage.latest().items() if "loss" in name}
    return losses, {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_equal(one, other):
    assert one[0] == pytest.approx(other[0], rel=1e-6)
    mine, theirs = (torch.cat([g.flatten() for g in grads.values()]).double() for grads in (one[1], other[1]))
    assert (mine - theirs).norm() < 1e-6 * mine.norm()


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_parts_of_a_batch_add_up_to_its_losses_and_gradients(parts):
    whole = gradients(1)
    assert_equal(whole, gradients(parts))  # three parts of four images are uneven
    assert set(whole[0]) == {f"loss_seg/{name}" for name in ("pascal_person_part", "atr", "cihp")} | {"total_loss"}


def test_gradients_are_clipped_when_all_parts_are_in():
    assert_equal(gradients(1, clip_norm=0.01), gradients(4, clip_norm=0.01))


def test_more_parts_than_images_and_models_that_cannot_count_are_refused():
    with pytest.raises(SSTConfigError, match=r"SOLVER\.SST\.ACCUMULATE: 5 parts of 4 images per process"):
        gradients(5)
    plain = torch.nn.Linear(1, 1)
    with pytest.raises(SSTConfigError, match="2 parts need a model that counts labelled pixels, as SST does; Linear"):
        TrainStep(plain, [], torch.optim.SGD(plain.parameters(), 0.1), clip_norm=None, amp_type=None, accumulate=2)


def write(path):
    losses, grads = gradients(2)
    if comm.get_rank() == 0:
        torch.save((losses, grads), path)


def test_two_processes_with_two_parts_each_equal_one_process_with_the_whole_batch(tmp_path):
    launch(write, 2, args=(str(tmp_path / "two.pt"),))
    assert_equal(gradients(1), torch.load(tmp_path / "two.pt"))
