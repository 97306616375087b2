#!/usr/bin/env python3
"""Prepare ATR (with Chictopia10k): from the download to what the built-in card reads.

    python datasets/prepare_atr.py DOWNLOAD --train-ids FILE --val-ids FILE [--test-ids FILE]
    python datasets/prepare_atr.py DOWNLOAD --random-split SEED

DOWNLOAD holds ``JPEGImages`` and ``SegmentationClassAug``. ATR has no official split: give the lists that you follow
(``list/train_id.txt`` and ``list/val_id.txt`` inside the download are found). See datasets/README.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    from preparation.command import make_parser, run
    from preparation.id_lists import random_split
    from preparation.plan import LABEL_ENDINGS, DataSet, IdList, Plan, own_list, pair_up
    from preparation.tree import Layout, PreparationError, Tree, common_folder, files_by_stem, find_layout

    from sst_d2.arguments import whole_number
except ImportError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e '.[datasets]'")

ATR = DataSet(
    "atr",
    "ATR",
    published={"train": (16_000, 16_706), "val": (700, 1_000), "test": (1_000,)},
    remarks={
        ("train", 16_706): "the list of Graphonomy and Grapy-ML",
        ("val", 1_000): "as many as in Grapy-ML's list, which others use for testing",
        ("train", 6_703): "the split without Chictopia10k",
    },
)
SPLITS = ("train", "val", "test")
LAYOUT = Layout("JPEGImages and SegmentationClassAug", {"all": ("JPEGImages", "SegmentationClassAug")})


def find(tree: Tree, args: argparse.Namespace) -> Plan:
    """Plan the splits that the arguments, or the lists in the download, name.

    Raises:
        PreparationError: a folder is missing, nothing says what the splits are, or they overlap.
    """
    folders = _folders(tree, args)
    ids, notes = _splits(tree, args, folders)
    pairs, more = pair_up(ids, dict.fromkeys(ids, folders))
    return Plan(f"{common_folder(folders)} ({LAYOUT.title})", pairs, folders, notes=(*notes, *more))


def _folders(tree: Tree, args: argparse.Namespace) -> tuple[Path, Path]:
    named = [None if path is None else Tree(path).root for path in (args.images, args.labels)]
    if all(named):
        return named[0], named[1]
    found = find_layout(tree, [LAYOUT], ATR.title)[1]["all"]
    return named[0] or found[0], named[1] or found[1]


def _splits(tree: Tree, args: argparse.Namespace, folders: tuple[Path, Path]) -> tuple[dict[str, IdList], list[str]]:
    """Split -> its ids, and notes."""
    if args.random_split is not None:
        return _random(args, folders[1])
    given = {split: getattr(args, f"{split}_ids") for split in SPLITS}
    if not any(given.values()):
        # Not test_id.txt: the one in circulation is a stub of two ids.
        given = {split: own_list(tree, (f"{split}_id.txt",), folders) for split in ("train", "val")}
    ids = {split: IdList.of_file(path.expanduser()) for split, path in given.items() if path is not None}
    if not ids:
        raise PreparationError(
            f"ATR has no official split, and {common_folder(folders)} has no list/train_id.txt and list/val_id.txt. "
            "Give the lists that you follow: --train-ids FILE --val-ids FILE [--test-ids FILE] (the repositories of "
            "Graphonomy and Grapy-ML hold such lists, in data/datasets/ATR/list); or --random-split SEED, whose "
            "numbers cannot be compared with published ones"
        )
    return ids, [f"{split} from {listing.source}" for split, listing in ids.items()]


def _random(args: argparse.Namespace, labels: Path) -> tuple[dict[str, IdList], list[str]]:
    names = list(files_by_stem(labels, LABEL_ENDINGS))
    # The papers' shares: 16,000, 700 and 1,000.
    least = int(len(names) > 2)
    val = max(least, round(len(names) * 700 / 17_700)) if args.val is None else args.val
    test = max(least, round(len(names) * 1_000 / 17_700)) if args.test is None else args.test
    split = random_split(names, args.random_split, val, test)
    source = f"the files of {labels}, at random"
    note = f"a random split (seed {args.random_split}): its numbers are not comparable with published ones"
    return {name: IdList(ids, source) for name, ids in split.items()}, [note]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = make_parser(ATR, "JPEGImages and SegmentationClassAug")
    add = parser.add_argument
    for split in SPLITS:
        add(f"--{split}-ids", type=Path, metavar="FILE", help=f"list of the ids of the split '{split}', one a line")
    add("--random-split", type=whole_number, metavar="SEED", help="split at random, reproducibly")
    for split in SPLITS[1:]:
        add(f"--{split}", type=whole_number, metavar="N", help=f"images of the random split '{split}'")
    add("--images", type=Path, metavar="DIR", help="folder of the photos, where it is named otherwise")
    add("--labels", type=Path, metavar="DIR", help="folder of the label maps, where it is named otherwise")
    args = parser.parse_args(argv)
    lists = [f"--{split}-ids" for split in SPLITS if getattr(args, f"{split}_ids") is not None]
    if args.random_split is not None and lists:
        parser.error(f"argument --random-split: not allowed with {lists[0]}")
    if args.random_split is None and (args.val is not None or args.test is not None):
        parser.error("arguments --val and --test: allowed with --random-split only")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status (see `command.run`)."""
    return run(ATR, parse_args(argv), find)


if __name__ == "__main__":
    sys.exit(main())
