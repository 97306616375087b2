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
        PreparationError: as `plan.plan_of_folders`, or most ids are like CIHP's and ``--renumbered`` is not given.
    """
    plan = plan_of_folders(tree, LIP.title, LAYOUTS, LISTS)
    like_cihp = [pair.id for pair in plan.pairs if re.fullmatch(r"\d{7}", pair.id)]
    if not args.renumbered and len(like_cihp) > len(plan.pairs) / 2:
        raise PreparationError(
            f"{plan.origin}: {len(like_cihp):,} of {len(plan.pairs):,} ids have seven digits ({like_cihp[0]} …), as "
            "CIHP's, whose tree is the same and whose id 10 means something else; LIP's are like 77_471474. If this is "
            "CIHP (most photos show several people): prepare_cihp.py. If it is LIP under other names: --renumbered"
        )
    return plan


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = make_parser(LIP, "TrainVal_images and TrainVal_parsing_annotations")
    parser.add_argument("--renumbered", action="store_true", help="this is LIP, though its ids look like CIHP's")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status (see `command.run`)."""
    return run(LIP, parse_args(argv), find)


if __name__ == "__main__":
    sys.exit(main())
