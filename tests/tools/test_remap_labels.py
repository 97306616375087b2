"""`tools/remap_labels.py`: every pixel by the table, what the table does not name refused, safe to run again."""

import importlib

import numpy as np
import pytest
from conftest import ROOT
from detectron2.data.detection_utils import read_image
from PIL import Image

from sst_d2.data import read_label_map
from sst_d2.label_domains import get_label_domain

CIHP, PASCAL = get_label_domain("cihp"), get_label_domain("pascal_person_part")
DOMAINS = ["--from", "cihp", "--to", "pascal_person_part"]
HEAD, SKIN, ARM = (CIHP.index(name) for name in ("hat", "torso-skin", "left-arm"))
LABELS = np.array([[0, HEAD, SKIN], [ARM, 255, HEAD]], dtype=np.uint8)
TABLE = {"background": "background", "hat": "head", "torso-skin": "torso", "left-arm": "ignore"}
EXPECTED = [[0, 1, 2], [255, 255, 1]]  # written by hand


@pytest.fixture(scope="module")
def command():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("remap_labels")


@pytest.fixture
def run(command, tmp_path, capsys):
    """Runs the command from `tmp_path/in` to `tmp_path/out` with a table: (exit status, output, errors)."""
    (tmp_path / "in" / "a" / "b").mkdir(parents=True)
    Image.fromarray(LABELS).save(tmp_path / "in" / "a" / "b" / "x.png")

    def go(*more, table=TABLE, domains=DOMAINS, output="out"):
        text = table if isinstance(table, str) else "".join(f"{old}: {new}\n" for old, new in table.items())
        (tmp_path / "table.yaml").write_text(text)
        folders = [str(tmp_path / "in"), str(tmp_path / output)]
        status = command.main([*domains, "--table", str(tmp_path / "table.yaml"), "--workers", "1", *more, *folders])
        return status, *capsys.readouterr()

    return go


def test_every_pixel_follows_the_table_and_the_folders_stay(run, tmp_path):
    status, out, _ = run()
    path = tmp_path / "out" / "a" / "b" / "x.png"
    assert status == 0 and "1 written, 0 were there, 0 refused" in out
    assert read_label_map(path, PASCAL).tolist() == EXPECTED
    assert np.array_equal(Image.open(tmp_path / "in" / "a" / "b" / "x.png"), LABELS)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["x.png"]


def test_programs_that_read_grey_values_read_the_same_ids(run, tmp_path):
    run()
    path = str(tmp_path / "out" / "a" / "b" / "x.png")
    assert read_image(path, "L")[..., 0].tolist() == EXPECTED  # Detectron2's mapper
    assert np.asarray(Image.open(path)).tolist() == EXPECTED  # and its evaluator


def test_on_demand_the_files_show_the_targets_colours(run, tmp_path):
    assert run("--palette")[0] == 0
    picture = Image.open(tmp_path / "out" / "a" / "b" / "x.png")
    assert picture.mode == "P" and read_label_map(tmp_path / "out" / "a" / "b" / "x.png", PASCAL).tolist() == EXPECTED
    assert np.asarray(picture.convert("RGB"))[0, 1].tolist() == list(PASCAL.colors[1])


def test_whole_sets_of_random_labels_follow_the_table_in_two_processes(run, tmp_path):
    generator = np.random.default_rng(0)
    table = {name: PASCAL.classes[generator.integers(7)] for name in CIHP.classes}
    (tmp_path / "in" / "a" / "b" / "x.png").unlink()
    maps = {f"{number}.png": generator.integers(20, size=(9, 7)).astype(np.uint8) for number in range(40)}
    for name, labels in maps.items():
        Image.fromarray(labels).save(tmp_path / "in" / name)
    assert run("--workers", "2", table=table)[0] == 0
    for name, labels in maps.items():
        expected = [[PASCAL.classes.index(table[CIHP.classes[i]]) for i in row] for row in labels.tolist()]
        assert np.asarray(Image.open(tmp_path / "out" / name)).tolist() == expected


def test_a_class_that_the_table_does_not_name_is_refused_where_it_occurs(run, tmp_path):
    Image.fromarray(np.full((2, 2), HEAD, np.uint8)).save(tmp_path / "in" / "fine.png")
    status, out, err = run(table={name: new for name, new in TABLE.items() if name != "torso-skin"})
    assert status == 1 and "1 written, 0 were there, 1 refused" in out
    assert f"error: {tmp_path}/in/a/b/x.png: holds 'torso-skin' ({SKIN}), which {tmp_path}/table.yaml does not" in err
    assert (tmp_path / "out" / "fine.png").is_file() and not (tmp_path / "out" / "a" / "b" / "x.png").exists()


def test_ids_that_the_source_does_not_have_are_refused(run, tmp_path):
    Image.fromarray(np.full((2, 2), 20, np.uint8)).save(tmp_path / "in" / "y.png")
    status, _, err = run()
    assert status == 1 and f"{tmp_path}/in/y.png: the ids [20] do not belong to label domain 'cihp'" in err


def test_damaged_files_are_refused_and_the_others_written(run, tmp_path):
    (tmp_path / "in" / "y.png").write_bytes(b"")
    status, out, err = run()
    assert status == 1 and "1 written" in out and f"error: {tmp_path}/in/y.png: is no image file" in err


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("hats: head", "label domain 'cihp' has no class 'hats'; did you mean 'hat'"),
        ("hat: haed", "label domain 'pascal_person_part' has no class 'haed'; did you mean 'head'? Known: background"),
        ("1: head", "label domain 'cihp' has no class '1'"),
        ("hat: head\nhat: torso", "the class 'hat' stands twice"),
        ("[hat, head]", "lines of the form `source class: target class`"),
        ("hat: [head]", "lines of the form `source class: target class`"),
        ("", "lines of the form `source class: target class`"),
        ("hat: 'head", "is not a YAML file"),
    ],
)
def test_tables_that_cannot_be_followed_are_refused_at_once(run, tmp_path, table, sentence):
    status, _, err = run(table=table)
    assert status == 1 and err.startswith(f"error: {tmp_path}/table.yaml: ") and sentence in err
    assert not (tmp_path / "out").exists()


def test_names_count_as_they_are_written(run, tmp_path):
    (tmp_path / "own.yaml").write_text("name: own\nclasses: ['null', 'yes', ignore]\n")
    table = "background: null\nhat: yes\ntorso-skin: ignore\nleft-arm: null"
    assert run(table=table, domains=["--from", "cihp", "--to", str(tmp_path / "own.yaml")])[0] == 0
    # A class of that name comes before the word for "no label".
    assert np.asarray(Image.open(tmp_path / "out" / "a" / "b" / "x.png")).tolist() == [[0, 1, 2], [0, 255, 1]]


def test_a_second_run_changes_nothing_and_completes_what_is_missing(run, tmp_path):
    Image.fromarray(LABELS[:1]).save(tmp_path / "in" / "y.png")
    run()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    assert "0 written, 2 were there, 0 refused" in run()[1]
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.png")}
    (tmp_path / "out" / "y.png").unlink()
    assert "1 written, 1 were there, 0 refused" in run()[1]


def test_other_files_are_replaced_on_demand_alone(run, tmp_path):
    run()
    path = tmp_path / "out" / "a" / "b" / "x.png"
    path.write_bytes(path.read_bytes()[:40])
    status, _, err = run()
    assert status == 1 and f"error: {path}: holds something else; --force replaces it" in err
    assert len(path.read_bytes()) == 40
    assert run("--force")[0] == 0 and read_label_map(path, PASCAL).tolist() == EXPECTED


@pytest.mark.parametrize("output", ["in", "in/a/new", "."])
def test_folders_that_lie_one_inside_the_other_are_refused(run, tmp_path, output):
    before = sorted(tmp_path.rglob("*.png"))
    status, _, err = run(output=output)
    assert status == 1 and "lie one inside the other" in err and sorted(tmp_path.rglob("*.png")) == before


def test_absent_and_empty_folders_are_refused(command, tmp_path, capsys):
    (tmp_path / "table.yaml").write_text("hat: head")
    (tmp_path / "empty").mkdir()
    for folder, sentence in (("no", "no: is no folder"), ("empty", "empty: holds no PNG file")):
        arguments = [*DOMAINS, "--table", str(tmp_path / "table.yaml"), str(tmp_path / folder), str(tmp_path / "out")]
        assert command.main(arguments) == 1 and sentence in capsys.readouterr().err


def test_what_cannot_be_written_is_an_error_with_its_path(run, tmp_path):
    (tmp_path / "out").write_text("a file")
    status, _, err = run()
    assert status == 1 and f"error: {tmp_path}/out/a/b/x.png: cannot be written" in err and "Traceback" not in err


def test_a_write_that_fails_leaves_no_file_behind(run, command, tmp_path, monkeypatch):
    def half(self, path, *_):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(command.Image.Image, "save", half)
    status, _, err = run()
    assert status == 1 and "disk full" in err
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_wrong_arguments_end_with_status_2(command, capsys):
    for arguments in ([], [*DOMAINS, "--table", "t.yaml", "in", "out", "--workers", "0"]):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2 and "usage:" in capsys.readouterr().err
