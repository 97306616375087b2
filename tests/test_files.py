"""One set of rules for paths and YAML files."""

from pathlib import Path

import pytest

from sst_d2.errors import DatasetCardError, LabelDomainError, SSTError
from sst_d2.files import expand_path, partial_path, read_yaml_mapping, write_whole


def test_home_variables_and_bases_are_replaced(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("PHOTOS", "relative/photos")
    assert expand_path("~/a.yaml", base=tmp_path) == Path("/home/someone/a.yaml")
    assert expand_path("a/b.yaml", base=tmp_path) == tmp_path / "a/b.yaml"
    assert expand_path("/a/b.yaml", base=tmp_path) == Path("/a/b.yaml")
    assert expand_path("a/b.yaml") == Path("a/b.yaml")
    # A variable's value is the user's own, so it starts where the user stands.
    assert expand_path("${PHOTOS}/x", base=tmp_path) == Path("relative/photos/x")
    assert expand_path("sub/${PHOTOS}", base=tmp_path) == tmp_path / "sub/relative/photos"


def test_detectron2s_variable_has_its_default_and_others_must_be_set(monkeypatch):
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert expand_path("${DETECTRON2_DATASETS}/cihp") == Path("datasets/cihp")
    with pytest.raises(DatasetCardError, match="the environment variable NOT_SET is not set; set it: export NOT_SET="):
        expand_path("${NOT_SET}/x", error=DatasetCardError)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [b\n", "is not a YAML file"),
        ("- a\n", "holds a list; a mapping with the fields"),
        ("", "holds a NoneType"),
        ("name: 1\n", "the field 'size' is missing"),
        ("name: 1\nsize: 2\nsise: 3\n", "the field 'sise' is unknown .known: colour, name, size."),
        ("name: 1\nname: 2\nsize: 3\n", "the key 'name' stands twice"),
        ("name: {{ROOT}}\nsize: 1\n", "is not a YAML file"),
        ("name: 2026-13-45\nsize: 1\n", "is not a YAML file"),
        ("name: !!int ''\nsize: 1\n", "is not a YAML file"),
        ("name: !!python/object/apply:os.getcwd []\nsize: 1\n", "is not a YAML file"),
    ],
)
def test_wrong_files_are_refused_by_name(tmp_path, text, message):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(LabelDomainError, match=message) as error:
        read_yaml_mapping(path, ("name", "size"), ("colour",), LabelDomainError)
    assert str(error.value).startswith(str(path))


def test_a_good_file_is_read_and_an_absent_one_is_named(tmp_path):
    (tmp_path / "x.yaml").write_text("name: a\nsize: [1, 2]\n")
    assert read_yaml_mapping(tmp_path / "x.yaml", ("name", "size"), (), SSTError) == {"name": "a", "size": [1, 2]}
    with pytest.raises(SSTError, match=r"no\.yaml: cannot be read"):
        read_yaml_mapping(tmp_path / "no.yaml", (), (), SSTError)


@pytest.mark.parametrize("name", ["n" * 251 + ".npz", "長" * 80 + ".npz"])
def test_a_file_of_any_legal_name_is_written(tmp_path, name):
    write_whole(tmp_path / name, lambda stream: stream.write(b"all"))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_bytes() == b"all"


def test_what_a_killed_run_has_left_is_replaced_and_no_other_file_shares_its_name(tmp_path):
    first, other = tmp_path / ("n" * 100 + "1"), tmp_path / ("n" * 100 + "2")
    assert partial_path(first) == partial_path(str(first)) != partial_path(other)
    partial_path(first).write_bytes(b"half of an earlier one")
    write_whole(first, lambda stream: stream.write(b"all"))
    assert list(tmp_path.iterdir()) == [first] and first.read_bytes() == b"all"
