"""What the arguments of all scripts have in common."""

import argparse
import os

import pytest

from sst_d2.arguments import available_cores, positive_number, whole_number


def test_whole_numbers_are_read():
    assert [whole_number(text) for text in ("0", "7", "007")] == [0, 7, 7]
    assert positive_number("1") == 1


@pytest.mark.parametrize("text", ["", "-1", "1.0", "two", " 1", "1_000", "٣", "²"])
def test_other_text_is_refused_by_value(text):
    for parse, smallest in ((whole_number, 0), (positive_number, 1)):
        with pytest.raises(argparse.ArgumentTypeError, match=f"allowed are whole numbers from {smallest}") as error:
            parse(text)
        assert str(error.value).startswith(repr(text))


def test_zero_is_not_positive():
    with pytest.raises(argparse.ArgumentTypeError, match="'0' is not allowed"):
        positive_number("0")


def test_the_cores_of_this_process_count_not_those_of_the_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 9)
    assert available_cores() == 9
