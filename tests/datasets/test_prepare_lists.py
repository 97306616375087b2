"""Lists of ids as they are handed round, and random splits."""

import pytest
from downloads import script

id_lists = script("preparation.id_lists")
PreparationError = script("preparation.tree").PreparationError


@pytest.mark.parametrize(
    "content",
    [
        b"2500_1\n997_2\nMulti3\n",
        b"2500_1\n997_2\nMulti3",
        b"2500_1\r\n997_2\r\nMulti3\r\n",
        b"\xef\xbb\xbf2500_1\n\n  997_2 \n\nMulti3\n\n",
        b"2500_1.jpg\n997_2.JPG\nMulti3.png\n",
        b"/images/2500_1.jpg /labels/2500_1.png\n/images/997_2.jpg /labels/997_2.png\n/images/Multi3.jpg /l/Multi3.png",
        b"/images/2500_1.jpg /labels/2500_1.png /labels_rev/2500_1.png\n/a/997_2.jpg /b/997_2.png\n/a/Multi3.jpg",
        b"images\\2500_1.jpg\nimages\\997_2.jpg\nimages\\Multi3.jpg",
        b"2500_1\n997_2\n2500_1\nMulti3\n",
        "2500_1\r\n997_2\r\nMulti3\r\n".encode("utf-16"),
    ],
)
def test_the_forms_of_a_list(tmp_path, content):
    (tmp_path / "ids.txt").write_bytes(content)
    assert id_lists.read_ids(tmp_path / "ids.txt") == ["2500_1", "997_2", "Multi3"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\r\n  \n", "is empty"),
        (b"2008_000002 -1\n", "line 1: '2008_000002 -1' names no single image"),
        (b"a\n/images/x.jpg /labels/y.png\n", "line 2"),
        (b"/images/\n", "names no single image"),
        (b"..\n", "names no single image"),
        (b"a\nx\0y\n", "line 2"),
        (b"\xff\xfe\x00", "is no text file"),
        (b"\x89PNG\r\n\x1a\n", "is no text file"),
    ],
)
def test_what_is_no_list_is_refused_by_file_and_line(tmp_path, content, words):
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(PreparationError, match="ids.txt") as error:
        id_lists.read_ids(tmp_path / "ids.txt")
    assert words in str(error.value)


def test_a_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(PreparationError, match=r"none\.txt.*cannot be read"):
        id_lists.read_ids(tmp_path / "none.txt")


def test_a_random_split_depends_on_ids_and_seed_alone():
    ids = [f"id{number}" for number in range(200)]
    one = id_lists.random_split(ids, 3, 20, 30)
    assert one == id_lists.random_split(reversed(ids), 3, 20, 30)
    assert one != id_lists.random_split(ids, 4, 20, 30)
    assert {split: len(names) for split, names in one.items()} == {"train": 150, "val": 20, "test": 30}
    assert sorted(name for names in one.values() for name in names) == sorted(ids)


def test_a_random_split_is_the_same_for_ever():
    """Computed once by hand: sha256 of "7:a" begins with 82, of "7:b" with ec, of "7:c" with 18, of "7:d" with d3."""
    split = id_lists.random_split("abcd", 7, 1, 1)
    assert split == {"train": ["b", "d"], "val": ["c"], "test": ["a"]}


def test_a_random_split_leaves_something_for_training():
    with pytest.raises(PreparationError, match="--val 2 and --test 1 leave none of the 3"):
        id_lists.random_split("abc", 0, 2, 1)
    assert id_lists.random_split("abc", 0, 0, 0) == {"train": ["a", "b", "c"]}
