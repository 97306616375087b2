"""Several processes on the CPU equal one; one that dies ends the run; torchrun starts them as well."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, tiny_cfg
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

from sst_d2.data import build_sst_train_loader, register_dataset_cards
from sst_d2.engine import SSTTrainer
from sst_d2.errors import SSTConfigError, SSTError, SSTProcessError
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


def end_by_signal(kind):
    """On the second process: die, or let a worker of the data loader die; the first waits for the second."""
    if comm.get_rank() == 1:
        if kind == "worker":
            workers = torch.utils.data.DataLoader(_Endless(), batch_size=None, num_workers=1)
            for pid in workers:
                os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


class _Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield os.getpid()


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_its_signal():
    start = time.monotonic()
    with pytest.raises(SSTProcessError, match="process 1 of 2 was ended by SIGKILL, and the others .* --resume"):
        launch(end_by_signal, 2, args=("process",))
    assert time.monotonic() - start < 60


def sleep_and_say_who(folder):
    open(f"{folder}/{os.getpid()}", "w").close()
    time.sleep(120)


@pytest.mark.slow
def test_no_process_outlives_its_launcher(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    launcher = context.Process(target=launch, args=(sleep_and_say_who, 2), kwargs={"args": (str(tmp_path),)})
    launcher.start()
    end = time.monotonic() + 60
    while len(os.listdir(tmp_path)) < 2:
        assert time.monotonic() < end
        time.sleep(0.1)
    launcher.kill()
    while any(os.path.exists(f"/proc/{pid}/cmdline") and _is_alive(pid) for pid in os.listdir(tmp_path)):
        assert time.monotonic() < end
        time.sleep(0.1)


def _is_alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_worker_that_dies_ends_all_processes_with_its_message(capfd):
    with pytest.raises(SystemExit):
        launch(end_by_signal, 2, args=("worker",))
    printed = capfd.readouterr().err
    assert "error: DataLoader worker" in printed and "--resume" in printed and "Traceback" not in printed


def test_a_worker_that_dies_in_a_single_process_is_a_sentence_too():
    def run():
        for pid in torch.utils.data.DataLoader(_Endless(), batch_size=None, num_workers=1):
            os.kill(int(pid), signal.SIGKILL)

    with pytest.raises(SSTProcessError, match="DataLoader worker .*(killed by signal|unexpectedly).* --resume"):
        launch(run, 1)
    with pytest.raises(RuntimeError, match="a bug"):
        launch(_fail, 1)


def _fail():
    raise RuntimeError("a bug")


def small_run(folder):
    """A configuration of a few iterations; the cards lie in the folder."""
    cards = [f"{folder}/{name}/card.yaml" for name in ("p", "a")]
    register_dataset_cards(cards)
    return tiny_cfg(
        domains=["pascal_person_part", "atr"],
        DATASETS__SST__CARDS=cards,
        DATASETS__TRAIN=("p", "a"),
        DATASETS__TEST=(),
        SOLVER__IMS_PER_BATCH=4,
        SOLVER__STEPS=(),
        MODEL__SST__PIXEL_DECODER__DROPOUT=0.3,
    )


def train_in_one_go_and_in_two(folder):
    torch.set_num_threads(1)
    for out, lengths in (("whole", [5]), ("in_two", [2, 5])):
        for length in lengths:
            cfg = small_run(folder)
            cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = f"{folder}/{out}", length
            torch.manual_seed(0)
            trainer = SSTTrainer(cfg)
            trainer.resume_or_load(resume=True)
            trainer.train()
    images = [sample["image_id"] for batch, _ in zip(build_sst_train_loader(cfg), range(3)) for sample in batch]
    torch.save(images, f"{folder}/images_{comm.get_rank()}")


@pytest.mark.slow
def test_resuming_with_the_same_number_of_processes_is_exact(make_dataset, tmp_path):
    for name, domain in (("p", "pascal_person_part"), ("a", "atr")):
        make_dataset(name, domain=domain)
    launch(train_in_one_go_and_in_two, 2, args=(str(tmp_path),))
    whole, in_two = (torch.load(tmp_path / out / "model_final.pth", weights_only=True) for out in ("whole", "in_two"))
    assert all(torch.equal(value, in_two["model"][key]) for key, value in whole["model"].items())
    moments = [content["trainer"]["_trainer"]["optimizer"]["state"] for content in (whole, in_two)]
    assert all(torch.equal(v, moments[1][i][k]) for i, entry in moments[0].items() for k, v in entry.items())
    first, second = (torch.load(tmp_path / f"images_{rank}", weights_only=True) for rank in (0, 1))
    assert len(first) == len(second) == 6 and not set(first[:2]) & set(second[:2])


@pytest.mark.slow
def test_torchrun_starts_the_processes(make_dataset, tmp_path):
    card = make_dataset("a", count=3)
    program = tmp_path / "config.yaml"
    cfg = small_run_of_one(card, tmp_path)
    program.write_text(cfg.dump())
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(ROOT / "train_net.py"), "--config-file", str(program)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=240)
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    assert {"model_final.pth", "log.txt", "log.txt.rank1"} <= {path.name for path in out.iterdir()}
    assert '"images": 3' in (out / "inference/a/sem_seg_evaluation.json").read_text()
    result = subprocess.run([*command, "--num-gpus", "2"], capture_output=True, text=True, env=environment, timeout=240)
    assert result.returncode == 1 and "error: torchrun starts the processes: leave --num-gpus" in result.stderr


def small_run_of_one(card, folder):
    cfg = tiny_cfg(domains=["atr"], DATASETS__SST__CARDS=[str(card)], DATASETS__TRAIN=("a",), DATASETS__TEST=("a",))
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH, cfg.OUTPUT_DIR = 2, (), 2, str(folder / "out")
    return cfg
