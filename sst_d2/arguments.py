"""What the arguments of the command-line scripts have in common: whole numbers, and as many processes as cores."""

from __future__ import annotations

import argparse
import os


def whole_number(text: str) -> int:
    """The type of an argument that is a whole number from 0.

    Raises:
        argparse.ArgumentTypeError: it is something else; argparse prints the message and exits with status 2.
    """
    return _number(text, 0)


def positive_number(text: str) -> int:
    """The type of an argument that is a whole number from 1, as `whole_number`."""
    return _number(text, 1)


def available_cores() -> int:
    """The cores that this process may use: in a container or a batch job these are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(text: str, smallest: int) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= smallest):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed are whole numbers from {smallest}")
    return int(text)
