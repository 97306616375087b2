"""Several processes on the CPU equal one."""

import pytest
import torch
from conftest import tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from sst_d2.errors import SSTConfigError, SSTError
from sst_d2.launch import launch, report_user_error


def samples():
    """Four images whose domains and labelled pixels fall unevenly on two processes."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for domain, classes, ignored in (("atr", 18, 0.0), ("atr", 18, 0.9), ("atr", 18, 0.3), ("cihp", 20, 0.5)):
        labels = torch.randint(classes, (32, 32), generator=generator)
        labels[torch.rand(32, 32, generator=generator) < ignored] = 255
        image = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels, "label_domain": domain})
    return batch


def gradients(share):
    torch.manual_seed(0)
    model = build_model(tiny_cfg(domains=["pascal_person_part", "atr", "cihp"])).train()
    network = model
    if comm.get_world_size() > 1:
        network = DistributedDataParallel(model, broadcast_buffers=False)
    sum(network(share).values()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def write_gradients(path):
    torch.set_num_threads(1)
    rank, size = comm.get_rank(), comm.get_world_size()
    assert (comm.get_local_rank(), comm.get_local_size()) == (rank, size)
    batch = samples()
    result = gradients(batch[rank * len(batch) // size : (rank + 1) * len(batch) // size])
    if rank == 0:
        torch.save(result, path)


def fail_on_the_second(kind):
    if kind == "all" or comm.get_rank() == 1:
        raise RuntimeError("a bug") if kind == "bug" else SSTError("the second process cannot go on")
    comm.synchronize()


def test_gradients_of_two_processes_equal_those_of_one(tmp_path):
    launch(write_gradients, 2, args=(str(tmp_path / "two.pt"),))
    alone, together = gradients(samples()), torch.load(tmp_path / "two.pt")
    largest = max(gradient.abs().max().item() for gradient in alone.values())
    assert max((alone[name] - together[name]).abs().max().item() for name in alone) < 1e-6 * max(largest, 1)
    assert torch.count_nonzero(together["heads.pascal_person_part.weight"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one", "all"])
def test_a_mistake_ends_all_processes_with_its_sentence_said_once(capfd, kind):
    with pytest.raises(SystemExit) as end:
        launch(fail_on_the_second, 2, args=(kind,))
    assert end.value.code == 1
    printed = capfd.readouterr().err
    assert printed.count("error: the second process cannot go on") == 1 and "Traceback" not in printed


@pytest.mark.slow
def test_a_bug_in_one_process_ends_all_with_its_traceback():
    with pytest.raises(torch.multiprocessing.ProcessRaisedException, match="a bug|Connection"):
        launch(fail_on_the_second, 2, args=("bug",))


def test_one_process_runs_here_and_wrong_requests_are_refused(monkeypatch):
    seen = []
    launch(seen.append, 0, args=("here",))
    assert seen == ["here"]
    with pytest.raises(SSTConfigError, match="'auto' serves one machine"):
        launch(seen.append, 1, num_machines=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SSTConfigError, match="2 processes for 1 GPUs"):
        launch(seen.append, 2, device="cuda")


def test_the_sentence_of_a_workers_error_is_found_in_its_traceback(capsys):
    text = "Caught SSTError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n"
    report_user_error(SSTError(f"{text}sst_d2.errors.SSTError: photo.jpg: is damaged\n"))
    assert capsys.readouterr().err == "error: photo.jpg: is damaged\n"
