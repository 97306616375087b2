"""`launch`: start a function in one process or in several, on GPUs or on the CPU.

Detectron2 0.5 refuses several processes without a GPU, and its releases differ in how they set up local groups.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import wait
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from sst_d2.errors import SSTConfigError, SSTError, SSTProcessError

# What torch says when a worker process of a data loader has ended before its time.
WORKER_DIED = re.compile(r"DataLoader worker.*(killed by signal|exited unexpectedly)")
# Exit codes of processes that neither they nor `launch`, by SIGTERM, have ended.
_KILLS = {-code for code in signal.valid_signals()} - {-signal.SIGTERM}
_REMEDY = (
    "Often the memory did not suffice: take fewer DATALOADER.NUM_WORKERS or a smaller SOLVER.IMS_PER_BATCH. "
    "The last checkpoint is whole: go on with --resume"
)


def launch(
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int = 1,
    machine_rank: int = 0,
    dist_url: str = "auto",
    device: str = "cpu",
    args: tuple = (),
) -> None:
    """Run ``main(*args)`` in ``num_processes`` processes on each of ``num_machines`` machines.

    With ``device`` "cuda" each process has one GPU (backend NCCL), else all share the CPU (backend Gloo). Inside a
    process that ``torchrun`` has started, ``main`` runs here, as the process that torchrun says.

    Args:
        main: an importable function.
        num_processes: on this machine; 0 counts as 1.
        num_machines: machines in all; each calls `launch` with its own ``machine_rank``.
        machine_rank: from 0.
        dist_url: where the processes meet, e.g. "tcp://HOST:PORT"; "auto": a free port here, for one machine only.
        device: ``MODEL.DEVICE`` of the run.
        args: arguments of ``main``.

    Raises:
        SSTConfigError: more processes than GPUs, "auto" for several machines, or several processes inside torchrun's.
        SSTProcessError: a process was killed, or a worker of its data loader.
        SystemExit: a process met a user's mistake, and has printed its sentence.
        torch.multiprocessing.ProcessRaisedException: a process failed otherwise; with its traceback.
    """
    num_processes = max(num_processes, 1)
    on_gpu = device.startswith("cuda")
    if dist.is_torchelastic_launched():
        _run_under_torchrun(main, num_processes * num_machines, on_gpu, args)
        return
    if on_gpu and num_processes > torch.cuda.device_count():
        raise SSTConfigError(
            f"--num-gpus: {num_processes} processes for {torch.cuda.device_count()} GPUs; one GPU each"
        )
    if num_processes * num_machines == 1:
        _run(main, args)
        return
    if dist_url == "auto":
        if num_machines > 1:
            raise SSTConfigError("--dist-url: 'auto' serves one machine; give tcp://HOST:PORT of machine 0")
        dist_url = f"tcp://127.0.0.1:{_free_port()}"
    mistake = mp.get_context("spawn").Value("b", False)
    group = mp.start_processes(
        _run_process,
        args=(main, num_processes, num_machines, machine_rank, dist_url, on_gpu, mistake, args),
        nprocs=num_processes,
        join=False,
        start_method="spawn",
    )
    _join(group, mistake)


def report_user_error(error: SSTError) -> None:
    """Print the sentence of a user's mistake to standard error, without a traceback."""
    text = str(error)
    if "Original Traceback" in text:
        # An error of a Detectron2 loader's worker arrives as text: its own sentence follows the last class name.
        text = text.rsplit(f"{type(error).__name__}: ", 1)[-1]
    sys.stderr.write(f"error: {text.strip()}\n")


def _join(group: mp.ProcessContext, mistake: Synchronized) -> None:
    """Wait for the end of all processes; the end of one ends the others."""
    try:
        while not group.join():
            pass
    except (mp.ProcessExitedException, mp.ProcessRaisedException) as reason:
        # The others lose their connection when one ends; what that one has said is the reason.
        if mistake.value:
            sys.exit(1)
        killed = [i for i, process in enumerate(group.processes) if (process.exitcode or 0) in _KILLS]
        if not killed:
            raise
        name = signal.Signals(-group.processes[killed[0]].exitcode).name
        raise SSTProcessError(
            f"process {killed[0]} of {len(group.processes)} was ended by {name}, and the others with it. {_REMEDY}"
        ) from reason


def _run(main: Callable[..., Any], args: tuple) -> None:
    try:
        main(*args)
    except RuntimeError as reason:
        # torch says so wherever the main thread happens to be.
        if not WORKER_DIED.search(str(reason)):
            raise
        raise SSTProcessError(f"{str(reason).strip().splitlines()[0].rstrip('. ')}. {_REMEDY}") from reason


def _run_under_torchrun(main: Callable[..., Any], num_processes: int, on_gpu: bool, args: tuple) -> None:
    if num_processes > 1:
        raise SSTConfigError("torchrun starts the processes: leave --num-gpus and --num-machines out")
    local_size, world_size = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    if on_gpu and local_size > torch.cuda.device_count():
        raise SSTConfigError(
            f"--nproc-per-node: {local_size} processes for {torch.cuda.device_count()} GPUs; one GPU each"
        )
    dist.init_process_group(backend="nccl" if on_gpu else "gloo", init_method="env://")
    rank = int(os.environ["RANK"])
    _run_in_group(
        main, int(os.environ["LOCAL_RANK"]), local_size, world_size // local_size, rank // local_size, on_gpu, args
    )


def _run_process(
    local_rank: int,
    main: Callable[..., Any],
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
    on_gpu: bool,
    mistake: Synchronized,
    args: tuple,
) -> None:
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    dist.init_process_group(
        backend="nccl" if on_gpu else "gloo",
        init_method=dist_url,
        world_size=num_processes * num_machines,
        rank=machine_rank * num_processes + local_rank,
    )
    try:
        _run_in_group(main, local_rank, num_processes, num_machines, machine_rank, on_gpu, args)
    except SSTError as error:
        with mistake.get_lock():
            if not mistake.value:  # all processes may meet it; one says it
                report_user_error(error)
            mistake.value = True
        sys.exit(1)


def _end_with_the_parent() -> None:
    """A launcher that is killed cannot stop its processes: they would train on, beside the run that is resumed."""
    parent = mp.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _run_in_group(
    main: Callable[..., Any],
    local_rank: int,
    num_processes: int,
    num_machines: int,
    machine_rank: int,
    on_gpu: bool,
    args: tuple,
) -> None:
    """Run ``main`` in a process that has joined the others; leave them at its end."""
    try:
        _create_local_groups(num_processes, num_machines, machine_rank)
        if on_gpu:
            torch.cuda.set_device(local_rank)
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // num_processes))
        comm.synchronize()
        _run(main, args)
    finally:
        _destroy_groups()


def _create_local_groups(num_processes: int, num_machines: int, machine_rank: int) -> None:
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_processes)
        return
    # Detectron2 0.5 keeps the group of a machine's processes in this variable, which only its own launcher sets.
    for machine in range(num_machines):
        group = dist.new_group(list(range(machine * num_processes, (machine + 1) * num_processes)))
        if machine == machine_rank:
            comm._LOCAL_PROCESS_GROUP = group


def _destroy_groups() -> None:
    """Detectron2 keeps groups in variables of its own: what outlives the interpreter aborts the process at its end."""
    comm._get_global_gloo_group.cache_clear()
    comm._LOCAL_PROCESS_GROUP = None
    dist.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
