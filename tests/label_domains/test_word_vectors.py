"""Word vectors: what counts in a file, and what is refused by file, line and word."""

from pathlib import Path

import numpy as np
import pytest

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains import LabelDomain, word_vectors
from sst_d2.label_domains.word_vectors import class_vectors, read_word_vectors

COLORS = ((0, 0, 0),) * 2


@pytest.fixture
def file(tmp_path):
    """A function that writes a vector file and returns its path."""

    def write(text):
        path = tmp_path / "vectors.vec"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_wanted_words_are_read_and_others_are_not(file):
    found = read_word_vectors(file("the 0.5 1\narm -1 2e-1\nleg 3 4\n"), ["arm", "tail"])
    assert list(found) == ["arm"] and found["arm"].tolist() == [-1, 0.2] and found["arm"].dtype == np.float64


def test_the_header_of_fasttext_is_no_vector(file):
    assert read_word_vectors(file("2 3\narm 1 2 3\nleg 4 5 6\n"), ["arm", "2"])["arm"].tolist() == [1, 2, 3]
    assert "2" not in read_word_vectors(file("2 3\narm 1 2 3\n"), ["2"])


def test_case_is_folded_and_small_letters_go_first(file):
    path = file("ARM 1 0\nArm 2 0\narm 3 0\nLeg 4 0\nLEG 5 0\n")
    found = read_word_vectors(path, ["arm", "leg"])
    assert {word: vector[0] for word, vector in found.items()} == {"arm": 3, "leg": 4}


def test_tabs_ends_of_lines_and_strange_bytes_do_no_harm(file):
    path = file(b"the 1 2\r\n\xff\xfe x y\r\narm\t3\t4 \r\nle\xc2\xa0g 5 6\r\nleg 7 8")
    assert {word: vector.tolist() for word, vector in read_word_vectors(path, ["arm", "leg"]).items()} == {
        "arm": [3, 4],
        "leg": [7, 8],
    }


def test_nothing_is_read_behind_the_last_word_wanted():
    lines = iter(["arm 1 2\n", "leg 3 4\n", "foot 5 6\n", "hand 7 8\n"])
    assert len(word_vectors._collect(lines, Path("a.txt"), {"arm", "leg"})) == 2
    assert next(lines) == "hand 7 8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no word vectors"),
        ("2 3\n", "holds no word vectors"),
        (b"\x1f\x8b\x08\x00\x00binary", r"line 1, .*unpack archives first"),
        ("arm\n", r"line 1, 'arm.*a word and its numbers"),
        ("the 1 2\narm 1 two\n", r"line 2, 'arm': a word and its numbers"),
        ("the 1 2\narm 1 nan\n", r"line 2, 'arm'"),
        ("the 1 2\narm 1 2 3\n", r"line 2, 'arm': 3 numbers, where the lines before have 2"),
    ],
)
def test_what_is_no_file_of_vectors_is_refused_by_line(file, text, message):
    path = file(text)
    with pytest.raises(LabelDomainError, match=message) as error:
        read_word_vectors(path, ["arm"])
    assert str(error.value).startswith(str(path))


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    with pytest.raises(LabelDomainError, match=r"none\.txt: word vectors cannot be read"):
        read_word_vectors(tmp_path / "none.txt", ["arm"])
    with pytest.raises(LabelDomainError, match=r"word vectors cannot be read"):
        read_word_vectors(tmp_path, ["arm"])


def test_a_path_may_hold_variables(file, monkeypatch):
    monkeypatch.setenv("MY_VECTORS", str(file("arm 1 2\n").parent))
    assert read_word_vectors("${MY_VECTORS}/vectors.vec", ["arm"])["arm"].tolist() == [1, 2]


def test_a_class_is_the_sum_of_its_words(file):
    path = file("left 1 2\narm 10 20\nhead 5 5\n")
    one, two = class_vectors(
        [LabelDomain("a", ("left-arm", "Head"), COLORS), LabelDomain("b", ("arm", "left"), COLORS)], path
    )
    assert one.tolist() == [[11, 22], [5, 5]] and two.tolist() == [[10, 20], [1, 2]]


def test_a_missing_word_is_named_with_class_domain_file_and_remedy(file):
    path = file("left 1 2\narm 10 20\n")
    with pytest.raises(LabelDomainError) as error:
        class_vectors([LabelDomain("a", ("arm", "left-paw"), COLORS, source="mine.yaml")], path)
    for part in ("'a' (mine.yaml)", "class 'left-paw'", str(path), "no word 'paw'", "`similarity`", "body lexicon"):
        assert part in str(error.value)


def test_words_that_cancel_each_other_are_refused(file):
    with pytest.raises(LabelDomainError, match="class 'left-arm': its word vectors in .* add up to zero"):
        class_vectors([LabelDomain("a", ("left-arm", "arm"), COLORS)], file("left 1 2\narm -1 -2\n"))
