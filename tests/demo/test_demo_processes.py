"""`demo/demo.py` in several processes and from a shell: one result, one sentence, nothing left running."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import ROOT
from demo_desk import SCRIPT, environment, written

from sst_d2.errors import SSTProcessError
from sst_d2.inference import photo_run
from sst_d2.inference.photo_run import PhotoRun, run_in_processes
from sst_d2.inference.sinks import PhotoSink
from sst_d2.inference.sources import Photo

pytest_plugins = ["demo_desk"]


def test_parts_do_not_depend_on_the_number_of_processes():
    given = [Photo(str(i), str(i)) for i in range(11)]
    assert [len(part) for part in photo_run._parts(given, 1)] == [1] * 11
    assert [len(part) for part in photo_run._parts(given, 2)] == [8, 3]


@pytest.mark.slow
def test_several_processes_write_what_one_writes(run, photos, out, weights):
    (photos / "text.jpg").write_text("hello")
    start = [*SCRIPT, "--weights", weights, "--input", photos, "--domain", "all", "--save", "labels", "logits"]
    ends = []
    for number in (1, 2):
        command = [*map(str, start), "--output", f"{out}{number}", "--num-processes", str(number)]
        ends.append(subprocess.run(command, capture_output=True, text=True, cwd=photos.parent, env=environment()))
    for end in ends:
        assert end.returncode == 1 and "Traceback" not in end.stderr
        assert end.stdout.startswith("3 images in ") and "text.jpg: is no image file" in end.stderr
    files = written(f"{out}1")
    assert files == written(f"{out}2") and len(files) == 3 * 3 * 2
    for name in files:
        assert Path(f"{out}1", name).read_bytes() == Path(f"{out}2", name).read_bytes(), name


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_run_with_a_sentence(photos, out, weights):
    sink = PhotoSink(out, ("labels",), ("atr",))
    killed = PhotoRun({"config": weights, "opts": Death()}, "atr", sink)
    with pytest.raises(SSTProcessError, match="a process has ended before its time.*Results that are there are whole"):
        list(run_in_processes(killed, [Photo(str(photos / "a.png"), "a")], ["cpu", "cpu"]))


@pytest.mark.slow
def test_ctrl_c_does_not_reach_the_other_processes(photos, out, weights):
    run = PhotoRun({"config": weights, "opts": CtrlC()}, "atr", PhotoSink(out, ("labels",), ("atr",)))
    parts = list(run_in_processes(run, [Photo(str(photos / "a.png"), "a")], ["cpu", "cpu"]))
    assert [part.written for part in parts] == [1]


class CtrlC(tuple):
    """Sends SIGINT to the process that reads it, as a terminal does to all at once."""

    def __reduce__(self):
        return eval, ("__import__('signal').raise_signal(2) or ()",)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "predicting"])
def test_ctrl_c_ends_all_processes_with_a_sentence(photos, out, weights, tmp_path, moment):
    (tmp_path / "started").mkdir()
    note = f"'spawn_main' in str(sys.orig_argv) and open(f'{tmp_path}/started/{{os.getpid()}}', 'w').close()"
    (tmp_path / "sitecustomize.py").write_text(f"import os, sys\n{note}\n")
    for number in range(400):
        os.link(photos / "a.png", photos / f"copy_{number}.png")
    command = [*SCRIPT, "--weights", weights, "--input", photos, "--output", out, "--num-processes=2", "--save-logits"]
    paths = {**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.Popen(
        list(map(str, command)), stderr=subprocess.PIPE, text=True, env=paths, start_new_session=True
    )
    wait_until(lambda: len(written(tmp_path / "started")) == 2 and (moment == "starting" or written(out)))
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and err.splitlines()[-1] == "interrupted; what was written is whole"
    assert "Traceback" not in err and "KeyboardInterrupt" not in err and "leaked" not in err
    for number in written(tmp_path / "started"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(number), 0)
    assert not [name for name in written(out) if name.startswith(".")] and len(written(out)) < 400


@pytest.mark.parametrize("others", [[], ["--num-processes", "2"]])
def test_ctrl_c_during_the_imports_is_a_sentence(tmp_path, others):
    (tmp_path / "torch.py").write_text("import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(9)")
    command = [*SCRIPT, "--weights", "w", "--input", "photos", "--output", "out", *others]
    end = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (end.returncode, end.stderr) == (130, "interrupted; what was written is whole\n")


def wait_until(there):
    end = time.monotonic() + 240
    while not there():
        assert time.monotonic() < end
        time.sleep(0.05)


class Death(tuple):
    """Ends the process that reads it."""

    def __reduce__(self):
        return os._exit, (9,)


@pytest.mark.slow
def test_the_script_prints_a_mistake_without_traceback(weights, photos, out):
    command = [*SCRIPT, "--weights", weights, "--input", str(photos), "--output", str(out), "--domain", "lip"]
    end = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert end.returncode == 1 and end.stderr.startswith("error: --domain: 'lip'; the network has"), end.stderr
