"""Calls operations of a library, in a process of its own: ``run_binding.py LIBRARY CALLS RESULTS``.

CALLS is a list of (name, arguments) as torch saves it, RESULTS gets what each returns, or the message of its error.
"""

from __future__ import annotations

import sys

import torch


def main(library: str, calls: str, results: str) -> None:
    torch.ops.load_library(library)
    found = []
    for name, arguments in torch.load(calls, weights_only=True):
        try:
            found.append(getattr(torch.ops.sst_d2_cuda, name)(*arguments))
        except RuntimeError as error:
            found.append(str(error))
    torch.save(found, results)


if __name__ == "__main__":
    main(*sys.argv[1:])
