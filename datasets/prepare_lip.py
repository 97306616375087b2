#!/usr/bin/env python3
"""Prepare LIP (Look into Person): from the download to what the built-in card reads.

    python datasets/prepare_lip.py DOWNLOAD

DOWNLOAD holds ``train_images``, ``val_images``, ``train_segmentations`` and ``val_segmentations``, wherever below it
the archives have put them. Folders of mirrored labels are not used. See datasets/README.md.
"""

from __future__ import annotations

import argparse
import re
import sys

try:
    from preparation.command import make_parser, run
    from preparation.plan import DataSet, Plan, plan_of_folders
    from preparation.tree import Layout, PreparationError, Tree
except ImportError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e '.[datasets]'")

LIP = DataSet("lip", "LIP", published={"train": (30_462,), "val": (10_000,)})
LAYOUTS = (
    Layout("as downloaded", {split: (f"{split}_images", f"{split}_segmentations") for split in ("train", "val")}),
    Layout(
        "as M2FP expects it",
        {
            split: (f"{name}/Images", f"{name}/Category_ids")
            for split, name in (("train", "Training"), ("val", "Validation"))
        },
    ),
)
LISTS = {split: (f"{split}_id.txt",) for split in ("train", "val")}


def find(tree: Tree, args: argparse.Namespace) -> Plan:
    """Plan the splits of a download.

    Raises:
        PreparationError: as `plan.plan_of_folders`, or the download is CIHP.
    """
    plan = plan_of_folders(tree, LIP.title, LAYOUTS, LISTS)
    if all(re.fullmatch(r"\d{7}", pair.id) for pair in plan.pairs):
        raise PreparationError(
            f"{plan.origin}: ids of seven digits ({plan.pairs[0].id} …) are CIHP's, whose tree is the same; LIP's are "
            "like 77_471474. Use prepare_cihp.py: id 10 means something else there"
        )
    return plan


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status (see `command.run`); wrong arguments exit with 2."""
    return run(LIP, make_parser(LIP, "TrainVal_images and TrainVal_parsing_annotations").parse_args(argv), find)


if __name__ == "__main__":
    sys.exit(main())
