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
from sst_d2.errors import SSTConfigError, SSTError, SSTNumericError, SSTProcessError
from sst_d2.launch import launch, report_user_error
from sst_d2.train_step import TrainStep

CLASSES = {"pascal_person_part": 7, "atr": 18, "cihp": 20}
KEY = "MODEL__SST__AUXILIARY__"
IMAGE, DATASET, STRATEGY, PREDICTION = (KEY + k for k in ("IMAGE_LEVEL", "DATASET_LEVEL", "STRATEGY", "PREDICTION"))
SCENARIOS = {
    "full": {},
    "image level alone": {DATASET: 0.0},
    "dataset level alone": {IMAGE: 0.0},
    "no MST": {STRATEGY: "none"},
    "predictions alone": {IMAGE: 0.0, DATASET: 0.0, PREDICTION: 0.5},
}


def samples(names=("atr", "atr", "atr", "cihp")):
    """Images whose domains and labelled pixels fall unevenly on two processes."""
    generator = torch.Generator().manual_seed(0)
    batch = []
    for name, ignored in zip(names, (0.0, 0.9, 0.3, 0.5, 0.1, 0.7)):
        labels = torch.randint(CLASSES[name], (8, 8), generator=generator)
        labels = labels.repeat_interleave(4, 0).repeat_interleave(4, 1)
        labels[torch.rand(32, 32, generator=generator) < ignored] = 255
        image = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
        batch.append({"image": image, "sem_seg": labels, "label_domain": name})
    return batch


# Halves: two of one domain, and two domains; unequal numbers; domains that never meet.
BATCHES = [
    samples(),
    samples(("atr", "pascal_person_part", "atr", "cihp", "atr", "pascal_person_part")),
    samples(("atr", "cihp")),
]


def new_model(**overrides):
    torch.manual_seed(0)
    return build_model(tiny_cfg(list(CLASSES), **overrides)).double().train()


def expected(model, groups):
    """Losses and gradients that a batch must have whose images come in groups, from single passes through the model.

    All terms are those of the whole batch but the image level's: the mean over the pairs of images that meet.
    """
    model.zero_grad()
    losses = model([image for group in groups for image in group])
    if model.auxiliary is not None and model.auxiliary.image_level:
        alone = [model(group) for group in groups]
        for place, pair in enumerate(model.auxiliary.pairs):
            names = [[image["label_domain"] for image in group] for group in groups]
            met = [group.count(pair[0]) * group.count(pair[1]) for group in names]
            name = f"loss_scr_image/{'-'.join(pair)}"
            losses[name] = sum(n * loss[name] for n, loss in zip(met, alone)) / max(sum(met), 1)
            assert met == [model.auxiliary.count_image_pairs(group)[place] for group in names]
    sum(losses.values()).backward()
    return {name: loss.item() for name, loss in losses.items()}, {n: p.grad for n, p in model.named_parameters()}


def assert_equal(result, wanted):
    """Within 1e-6: losses by name, gradients by parameter, and of the whole of them."""
    assert result[0] == pytest.approx(wanted[0], rel=1e-6, abs=1e-9)
    assert result[1].keys() == wanted[1].keys() and not any(gradient is None for gradient in result[1].values())
    whole = torch.stack([gradient.norm() for gradient in wanted[1].values()]).norm()
    for name, gradient in wanted[1].items():
        assert (result[1][name] - gradient).norm() <= 1e-6 * max(gradient.norm(), 1e-3 * whole), name


def share_of(batch):
    rank, size = comm.get_rank(), comm.get_world_size()
    return batch[rank * len(batch) // size : (rank + 1) * len(batch) // size]


def write_losses_and_gradients(path):
    """Of every batch, one after the other through the same network, in every scenario."""
    torch.set_num_threads(1)
    assert (comm.get_local_rank(), comm.get_local_size()) == (comm.get_rank(), comm.get_world_size())
    results = {}
    for scenario, overrides in SCENARIOS.items():
        model = new_model(**overrides)
        network = DistributedDataParallel(model, broadcast_buffers=False)
        for number, batch in enumerate(BATCHES):
            network.zero_grad()
            losses = network(share_of(batch))
            sum(losses.values()).backward()
            mean = torch.stack([loss.detach() for loss in losses.values()])
            torch.distributed.all_reduce(mean)
            logged = dict(zip(losses, (mean / comm.get_world_size()).tolist()))
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
            results[scenario, number] = logged, gradients
    if comm.get_rank() == 0:
        torch.save(results, path)


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    path = tmp_path_factory.mktemp("two") / "two.pt"
    launch(write_losses_and_gradients, 2, args=(str(path),))
    return torch.load(path)


def spoil_first_image(module, arguments, given):
    features = {stride: maps.clone() for stride, maps in given["features"].items()}
    features[8][0, 0] = float("nan")
    return arguments, {**given, "features": features}


def write_what_stops(folder):
    """One process has a NaN among the features that its branch sees."""
    torch.set_num_threads(1)
    model = new_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    network = DistributedDataParallel(model, broadcast_buffers=False)
    if comm.get_rank() == 1:
        model.auxiliary.register_forward_pre_hook(spoil_first_image, with_kwargs=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = TrainStep(network, [share_of(BATCHES[1])], optimizer, clip_norm=None, amp_type=None)
    step.iter = 7
    with pytest.raises(SSTNumericError) as error:
        step.run_step()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    torch.save(str(error.value), f"{folder}/{comm.get_rank()}")


def fail_on_the_second(kind):
    if kind == "all" or comm.get_rank() == 1:
        raise RuntimeError("a bug") if kind == "bug" else SSTError("the second process cannot go on")
    comm.synchronize()


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_and_gradients_of_two_processes_equal_those_of_one(of_two_processes, scenario):
    model = new_model(**SCENARIOS[scenario])
    for number, batch in enumerate(BATCHES):
        halves = batch[: len(batch) // 2], batch[len(batch) // 2 :]
        assert_equal(of_two_processes[scenario, number], expected(model, halves))


def test_domains_that_never_meet_have_a_zero_at_the_image_level_and_are_compared_at_the_other(of_two_processes):
    losses, gradients = of_two_processes["full", 2]
    assert losses["loss_scr_image/atr-cihp"] == 0 and losses["loss_scr_dataset/atr-cihp"] > 0
    assert of_two_processes["full", 0][0]["loss_scr_image/atr-cihp"] > 0
    assert torch.count_nonzero(gradients["heads.pascal_person_part.weight"]) == 0


def test_predictions_of_one_process_for_images_of_the_other_count(of_two_processes):
    losses, gradients = of_two_processes["predictions alone", 2]
    assert losses["loss_pred/cihp-atr"] > 0 and losses["loss_pred/atr-cihp"] > 0
    assert losses["loss_pred/atr-pascal_person_part"] == 0
    assert torch.count_nonzero(gradients["heads.pascal_person_part.weight"])
    assert torch.count_nonzero(gradients["auxiliary.prediction.maps.atr-pascal_person_part.relation_logits"]) == 0


def test_a_number_that_is_none_on_one_process_stops_all_with_the_same_sentence(tmp_path):
    launch(write_what_stops, 2, args=(str(tmp_path),))
    first, second = (torch.load(tmp_path / rank) for rank in "01")
    assert first == second and first.startswith("iteration 7: loss_aux/cihp is nan, loss_scr_image/")


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
                time.sleep(0.5)  # until it waits: killed inside PyTorch's lock, it would take the lock along
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
            time.sleep(0.5)  # until it waits: killed inside PyTorch's lock, it would take the lock along
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
    data = {"DATASETS__SST__CARDS": [str(card)], "DATASETS__TRAIN": ("a",), "DATASETS__TEST": ("a",)}
    cfg = tiny_cfg(domains=["atr"], **data, **{STRATEGY: "none"})
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH, cfg.OUTPUT_DIR = 2, (), 2, str(folder / "out")
    return cfg
