#!/usr/bin/env python3
"""Prepare CIHP (Crowd Instance-level Human Parsing): from the download to what the built-in card reads.

    python datasets/prepare_cihp.py DOWNLOAD

DOWNLOAD holds ``Training`` and ``Validation``, each with ``Images`` and ``Category_ids``; or the tree that Graphonomy
and Grapy-ML expect. See datasets/README.md.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

try:
    from preparation.command import make_parser, run
    from preparation.plan import DataSet, Plan, plan_of_folders
    from preparation.tree import Layout, PreparationError, Tree
except ImportError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e '.[datasets]'")

CIHP = DataSet("cihp", "CIHP", published={"train": (28_280,), "val": (5_000,), "test": (5_000,)})
FOLDERS = {"train": "Training", "val": "Validation", "test": "Testing"}
LISTS = {split: (f"{split}_id.txt",) for split in FOLDERS}


def find(tree: Tree, args: argparse.Namespace) -> Plan:
    """Plan the splits of a download; see `plan.plan_of_folders` for what it raises."""
    splits = FOLDERS if args.with_testing else {split: FOLDERS[split] for split in ("train", "val")}
    layouts = [
        Layout("as downloaded", {s: (f"{name}/Images", f"{name}/Category_ids") for s, name in splits.items()}),
        Layout("as Graphonomy and Grapy-ML expect it", dict.fromkeys(splits, ("Images", "Category_ids")), True),
    ]
    plan = plan_of_folders(tree, CIHP.title, layouts, {split: LISTS[split] for split in splits})
    if args.with_testing and "test" not in plan.sizes():
        raise PreparationError(f"{tree.root}: --with-testing needs Testing/Category_ids, which the download lacks")
    if not args.with_testing and tree.ending("Testing/Images"):
        note = "Testing is left out: its labels were not published. If you have Testing/Category_ids: --with-testing"
        plan = replace(plan, notes=(*plan.notes, note))
    return plan


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = make_parser(CIHP, "Training and Validation")
    parser.add_argument("--with-testing", action="store_true", help="a third split, test, where Testing has labels")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status (see `command.run`)."""
    return run(CIHP, parse_args(argv), find)


if __name__ == "__main__":
    sys.exit(main())
