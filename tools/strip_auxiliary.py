#!/usr/bin/env python
"""Write the checkpoint that prediction needs: without the training-only branch and the state of training.

    python tools/strip_auxiliary.py output/universal/full_R50/model_0099999.pth model_inference.pth

Weights of the network, label domains and configuration stay, bit by bit; evaluation and prediction give the same. Every
training writes such a file itself when it ends, model_inference.pth beside model_final.pth. It can start another
training (MODEL.WEIGHTS), but neither be gone on with (--resume) nor be a source (MODEL.SST.SOURCE.WEIGHTS).
"""

from __future__ import annotations

import argparse
import os
import sys

# Through sst_d2 alone: it says what is missing where Detectron2 cannot be imported.
from sst_d2 import SSTError
from sst_d2.checkpoint_io import strip_auxiliary
from sst_d2.launch import report_user_error


def main() -> None:
    """Strip, and say what was removed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="a checkpoint of a training")
    parser.add_argument("output", metavar="OUT", help="the file to write (.pth)")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    arguments = parser.parse_args()
    same = os.path.realpath(arguments.input) == os.path.realpath(arguments.output)  # refused below, --force or not
    if os.path.lexists(arguments.output) and not arguments.force and not same:
        parser.error(f"{arguments.output} exists; --force replaces it")
    removed = strip_auxiliary(arguments.input, arguments.output)
    sizes = [os.path.getsize(path) / 2**20 for path in (arguments.input, arguments.output)]
    print(f"{arguments.output}: {sizes[1]:.1f} MiB; {arguments.input} has {sizes[0]:.1f} MiB")
    for name, amount in removed.items():
        print(f"  removed: {name} ({amount})")
    if not removed:
        print("  nothing to remove: it held what prediction needs, and nothing else")


if __name__ == "__main__":
    try:
        main()
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
