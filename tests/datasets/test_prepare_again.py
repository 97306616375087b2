"""A preparation that is run again, interrupted, or pointed at the wrong place; with CIHP for all of them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from downloads import DATASETS, contents, read_list, script, write_cihp, write_labels, write_photo

cihp = script("prepare_cihp")
command = script("preparation.command")
checking = script("preparation.checking")
output_module = script("preparation.output")


def prepare(download, output, *more):
    return cihp.main([str(download), "--output", str(output), "--workers", "1", *map(str, more)])


@pytest.fixture
def download(tmp_path):
    return write_cihp(tmp_path / "download")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "prepared"


@pytest.fixture
def processed(monkeypatch):
    """The ids that are read, in their order."""
    ids, process_pair = [], checking.process_pair
    monkeypatch.setattr(checking, "process_pair", lambda pair, job: (ids.append(pair.id), process_pair(pair, job))[1])
    return ids


def interrupt(monkeypatch, number):
    """Let a run be interrupted while it reads its pair of that number."""
    process_pair, count = checking.process_pair, iter(range(number))

    def _counted(pair, job):
        if next(count, None) is None:
            raise KeyboardInterrupt
        return process_pair(pair, job)

    monkeypatch.setattr(checking, "process_pair", _counted)


def test_a_second_run_has_nothing_to_do(download, output, processed, capsys):
    assert prepare(download, output) == 0
    before = contents(output)
    processed.clear()
    assert prepare(download, output) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(output) == before
    assert processed == []


@pytest.mark.parametrize("name", ["ids/val.txt", "images/0000007.jpg", "labels/0000001.png", "card.yaml"])
def test_a_folder_that_lacks_something_is_completed(download, output, name):
    assert prepare(download, output) == 0
    before = _without_times(output)
    (output / name).unlink()
    assert prepare(download, output) == 0
    assert _without_times(output) == before


def _without_times(output):
    """The journal aside, whose lines may come in another order."""
    return {name: content for name, (content, _) in contents(output).items() if name != "preparation.jsonl"}


def test_an_interrupted_run_goes_on(download, output, processed, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert prepare(download, output) == 130
    assert "run the same command again: it continues" in capsys.readouterr().err
    assert not (output / "ids").exists()
    assert processed == ["0000006", "0000007", "0000008"]
    assert prepare(download, output) == 0
    assert processed[3:] == ["0000001", "0000003"]
    assert "background 33.3%" in capsys.readouterr().out
    assert sorted(path.name for path in output.iterdir()) == [
        "card.yaml",
        "ids",
        "images",
        "labels",
        "preparation.json",
        "preparation.jsonl",
    ]


def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(download, output, processed, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert prepare(download, output) == 130
    journal = output / "preparation.jsonl"
    journal.write_text(journal.read_text()[:-30])
    processed.clear()
    assert prepare(download, output) == 0
    assert processed == ["0000008", "0000001", "0000003"]


def test_files_that_changed_since_an_interruption_are_read_again(download, output, processed, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, 3)
        assert prepare(download, output) == 130
    write_labels(download / "Training" / "Category_ids" / "0000006.png", (3, 4))
    (output / "images" / "0000007.jpg").unlink()
    processed.clear()
    assert prepare(download, output) == 0
    assert processed == ["0000006", "0000007", "0000001", "0000003"]


LABEL = "Training/Category_ids/0000007.png"


@pytest.mark.parametrize("more", [[], ["--copy"]])
def test_a_finished_preparation_sees_sources_that_became_bad(download, output, processed, capsys, more):
    assert prepare(download, output, *more) == 0
    write_labels(download / LABEL, (99,))
    processed.clear()
    assert prepare(download, output, *more) == 1
    printed = capsys.readouterr()
    assert "the files of 1 pairs have changed since they were prepared (0000007 …)" in printed.out
    assert f"error: {download / LABEL}: " in printed.err
    assert processed == ["0000007"]
    assert not (output / "ids").exists() or not list((output / "ids").iterdir())
    assert not os.path.lexists(output / "labels" / "0000007.png")
    assert prepare(download, output, "--skip-bad", *more) == 0
    assert read_list(output, "train") == ["0000006", "0000008"]


def test_a_corrected_source_is_copied_anew(download, output, processed, capsys):
    assert prepare(download, output, "--copy") == 0
    write_labels(download / LABEL, (3, 4))
    processed.clear()
    assert prepare(download, output, "--copy") == 0
    assert processed == ["0000007"]
    assert (output / "labels" / "0000007.png").read_bytes() == (download / LABEL).read_bytes()
    assert prepare(download, output, "--copy") == 0
    assert "nothing to do" in capsys.readouterr().out


def test_a_source_of_another_time_alone_is_read_again(download, output, processed):
    assert prepare(download, output) == 0
    os.utime(download / "Validation" / "Images" / "0000001.jpg", ns=(1, 1))
    processed.clear()
    assert prepare(download, output) == 0
    assert processed == ["0000001"]


def test_a_finished_folder_without_journal_is_read_again(download, output, processed):
    assert prepare(download, output) == 0
    (output / "preparation.jsonl").unlink()
    processed.clear()
    assert prepare(download, output) == 0
    assert len(processed) == 5


def test_left_out_pairs_that_were_mended_come_back(download, output, processed, capsys):
    whole = (download / LABEL).read_bytes()
    (download / LABEL).unlink()
    (download / "train_id.txt").write_text("0000006\n0000007\n0000008\n")
    assert prepare(download, output, "--skip-bad") == 0
    processed.clear()
    assert prepare(download, output, "--skip-bad") == 0
    assert "nothing to do" in capsys.readouterr().out
    (download / LABEL).write_bytes(whole)
    assert prepare(download, output) == 0
    assert processed == ["0000007"]
    assert read_list(output, "train") == ["0000006", "0000007", "0000008"]


def test_after_an_error_the_good_pairs_are_not_read_again(download, output, processed):
    bad = download / "Training" / "Category_ids" / "0000007.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:20])
    assert prepare(download, output) == 1
    bad.write_bytes(whole)
    processed.clear()
    assert prepare(download, output) == 0
    assert processed == ["0000007"]
    assert read_list(output, "train") == ["0000006", "0000007", "0000008"]


def test_left_out_pairs_are_not_forgotten(download, output, capsys):
    bad = download / "Training" / "Category_ids" / "0000007.png"
    whole = bad.read_bytes()
    bad.write_bytes(whole[:20])
    assert prepare(download, output, "--skip-bad") == 0
    assert prepare(download, output, "--skip-bad") == 0
    assert "4 pairs, 1 bad ones left out" in capsys.readouterr().out
    assert prepare(download, output) == 1
    assert "left out 1 pairs (0000007 …)" in capsys.readouterr().err
    bad.write_bytes(whole)
    assert prepare(download, output, "--force") == 0
    assert read_list(output, "train") == ["0000006", "0000007", "0000008"]


def test_another_download_is_refused_without_force(download, output, tmp_path, capsys):
    assert prepare(download, output) == 0
    before = contents(output)
    other = write_cihp(tmp_path / "other", train=("0000010",), val=("0000011",))
    assert prepare(other, output) == 1
    error = capsys.readouterr().err
    assert "holds something else" in error
    assert "--force" in error
    assert contents(output) == before
    foreign = output / "images" / "mine.jpg"
    write_photo(foreign)
    assert prepare(other, output, "--force") == 0
    assert sorted(path.name for path in (output / "images").iterdir()) == ["0000010.jpg", "0000011.jpg", "mine.jpg"]
    assert (read_list(output, "train"), read_list(output, "val")) == (["0000010"], ["0000011"])


def test_other_lists_of_the_same_download_are_refused_without_force(download, output, capsys):
    assert prepare(download, output) == 0
    (download / "train_id.txt").write_text("0000006\n0000008")
    assert prepare(download, output) == 1
    assert "splits of other sizes: train 3, val 2 (asked for: train 2, val 2)" in capsys.readouterr().err
    (download / "train_id.txt").write_text("0000008\n0000007\n0000006")
    assert prepare(download, output) == 1
    assert "splits of the same sizes with other images" in capsys.readouterr().err


def test_files_of_unknown_origin_are_refused_without_force(download, output, capsys):
    write_photo(output / "images" / "0000006.jpg")
    assert prepare(download, output) == 1
    assert "no preparation.json says where it is from" in capsys.readouterr().err
    assert prepare(download, output, "--force") == 0
    assert (output / "images" / "0000006.jpg").is_symlink()


@pytest.mark.parametrize("name", [".", "Training", "Training/Images", "new/folder"])
def test_the_download_is_never_the_output(download, name, capsys):
    before = contents(download)
    assert prepare(download, download / name) == 1
    assert "is never written to" in capsys.readouterr().err
    assert contents(download) == before
    assert not (download / "new").exists()


def test_a_link_into_the_download_is_no_output(download, output, tmp_path, capsys):
    (tmp_path / "alias").symlink_to(download)
    assert prepare(download, tmp_path / "alias" / "out") == 1
    output.mkdir()
    (output / "images").symlink_to(download / "Training" / "Images")
    before = contents(download)
    assert prepare(download, output, "--force") == 1
    assert "images is a link" in capsys.readouterr().err
    assert contents(download) == before


def test_a_download_inside_the_output_is_fine_unless_in_the_way(download, tmp_path, capsys):
    shutil.move(download, tmp_path / "cihp" / "raw")
    assert prepare(tmp_path / "cihp" / "raw", tmp_path / "cihp") == 0
    shutil.move(tmp_path / "cihp" / "raw", tmp_path / "two" / "images" / "raw")
    assert prepare(tmp_path / "two" / "images" / "raw", tmp_path / "two") == 1
    assert "where this command writes" in capsys.readouterr().err


def test_check_only_writes_nothing(download, output, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    before = contents(tmp_path)
    assert prepare(download, output, "--check-only") == 0
    assert "nothing was written" in capsys.readouterr().out
    assert cihp.main([str(download), "--check-only", "--workers", "2"]) == 0
    assert contents(tmp_path) == before
    assert not output.exists() and not (tmp_path / "sets").exists()
    (download / "Training" / "Images" / "0000006.jpg").write_bytes(b"")
    assert prepare(download, output, "--check-only") == 1
    assert "0000006.jpg: is no image file" in capsys.readouterr().err


def test_a_report_inside_the_download_is_refused(download, output, capsys):
    assert prepare(download, output, "--report", download / "report.txt") == 1
    assert not (download / "report.txt").exists()
    assert "--report" in capsys.readouterr().err


def test_copies_where_they_are_asked_for(download, output):
    assert prepare(download, output, "--copy") == 0
    photo = output / "images" / "0000006.jpg"
    assert not photo.is_symlink()
    assert photo.read_bytes() == (download / "Training" / "Images" / "0000006.jpg").read_bytes()
    shutil.rmtree(download)
    assert len(read_list(output, "train")) == sum(
        (output / "images" / f"{n}.jpg").exists() for n in ("0000006", "0000007", "0000008")
    )


def test_copies_where_links_cannot_be_made(download, output, monkeypatch, capsys):
    def _refuse(*args, **options):
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(output_module.Path, "symlink_to", _refuse)
    assert prepare(download, output) == 0
    assert "links cannot be made" in capsys.readouterr().out
    assert not [path for path in output.rglob("*") if path.is_symlink()]
    assert len(list((output / "labels").iterdir())) == 5


def test_whether_links_can_be_made_is_tried_without_a_trace(tmp_path):
    assert output_module.can_link(tmp_path / "new" / "folder")
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_is_told_as_that(download, output, monkeypatch, capsys):
    def _refuse(*args, **options):
        raise PermissionError(13, "Permission denied")

    output.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", _refuse)
        patch.setattr(output_module.Path, "symlink_to", _refuse)
        assert prepare(download, output) == 1
    printed = capsys.readouterr()
    assert f"error: the output {output} cannot be written: Permission denied" in printed.err
    assert "links cannot be made" not in printed.out
    (output / "file").write_bytes(b"")
    assert prepare(download, output / "file" / "folder") == 1
    assert "cannot be written: Not a directory" in capsys.readouterr().err


def test_a_refused_folder_is_not_said_to_get_copies(download, output, monkeypatch, capsys):
    write_photo(output / "images" / "0000006.jpg")
    monkeypatch.setattr(command, "can_link", lambda output: False)
    assert prepare(download, output) == 1
    printed = capsys.readouterr()
    assert "no preparation.json says where it is from" in printed.err
    assert "links cannot be made" not in printed.out


def test_a_full_disk_is_one_line_and_no_list(download, output, monkeypatch, capsys):
    def _refuse(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checking, "link_or_copy", _refuse)
    assert prepare(download, output) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and "No space left on device" in error
    assert not (output / "ids").exists()


def test_a_pair_that_ends_its_process_is_named(download, output, monkeypatch, capsys):
    read_pair = checking._read_pair

    def _die(pair, job):
        if pair.id == "0000007":
            os.kill(os.getpid(), signal.SIGKILL)
        return read_pair(pair, job)

    monkeypatch.setattr(checking, "_read_pair", _die)
    arguments = [str(download), "--output", str(output), "--workers", "2", "--skip-bad"]
    assert cihp.main(arguments) == 0
    assert "Category_ids/0000007.png: reading it ends the process" in capsys.readouterr().err
    assert (read_list(output, "train"), read_list(output, "val")) == (["0000006", "0000008"], ["0000001", "0000003"])


def test_force_deletes_nothing_by_a_list_that_somebody_wrote(download, output, tmp_path):
    assert prepare(download, output) == 0
    precious = tmp_path / "precious.jpg"
    precious.write_bytes(b"precious")
    (output / "ids" / "train.txt").write_text("../../precious\n0000006\n")
    assert prepare(download, output, "--force") == 0
    assert precious.exists()


def test_the_manifest_says_where_all_is_from(download, output):
    assert prepare(download, output) == 0
    request = json.loads((output / "preparation.json").read_text())["request"]
    assert request["data_set"] == "cihp"
    assert str(download / "Training" / "Images") in request["folders"]


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_and_goes_on(tmp_path):
    names = [f"{number:07d}" for number in range(100, 500)]
    download, output = write_cihp(tmp_path / "download", train=names), tmp_path / "prepared"
    journal = output / "preparation.jsonl"
    arguments = [str(DATASETS / "prepare_cihp.py"), str(download), "--output", str(output), "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(DATASETS.parent)}
    run = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.time() + 60
    while time.time() < deadline and run.poll() is None:
        if journal.exists() and journal.read_text().count("\n") > 20:
            run.send_signal(signal.SIGKILL)
            break
    run.communicate(timeout=30)  # ends when the last process that holds the pipe does
    assert run.returncode == -signal.SIGKILL
    assert not (output / "ids").exists()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert "pairs are done already" in done.stdout
    assert read_list(output, "train") == names
    assert not list(output.rglob(".*"))
