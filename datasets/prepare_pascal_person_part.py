#!/usr/bin/env python3
"""Prepare PASCAL-Person-Part: from any of its three kinds of labels to what the built-in card reads.

    python datasets/prepare_pascal_person_part.py DOWNLOAD [--train-ids FILE --val-ids FILE]

DOWNLOAD holds the photos of VOC2010 (``JPEGImages``) and labels: PASCAL-Part's ``Annotations_Part/*.mat``, index PNGs
(``pascal_person_part_gt`` or ``SegmentationPart``), or Grapy-ML's colour PNGs (``SegmentationPart``). Label maps are
written anew, the same from each. See datasets/README.md.
"""

from __future__ import annotations

import argparse
import sys
from itertools import islice
from pathlib import Path

try:
    from PIL import Image
    from preparation.colour_labels import COLOUR_MODES, has_plain_colours
    from preparation.command import make_parser, run
    from preparation.plan import LABEL_ENDINGS, DataSet, IdList, Plan, own_list, pair_up
    from preparation.tree import PreparationError, Tree, common_folder, files_by_stem, nearest

    from sst_d2.data.image_io import DAMAGE, FileFault
except ImportError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e '.[datasets]'")

PASCAL = DataSet(
    "pascal_person_part",
    "PASCAL-Person-Part",
    published={"train": (1_716,), "val": (1_817,)},
    remarks={
        ("train", 4): "Grapy-ML's stub",
        ("val", 1_831): "Grapy-ML's list, which lacks 20 of the canonical ids and has 34 others",
    },
)
SPLITS = ("train", "val")
KINDS = {
    "mat": "PASCAL-Part's .mat files",
    "index": "index PNGs",
    "grapy-colours": "Grapy-ML's colour PNGs",
}
LABEL_FOLDERS = (
    *("Annotations_Part", "pascal_person_part_gt", "pascal_person_parts_gt"),
    *("SegmentationPart", "SegmentationPersonPart"),
)
LISTS = ("{}_id.txt", "pascal_person_part_trainval_list/{}.txt", "SegmentationPersonPart/{}.txt")
PROBED = 50


def find(tree: Tree, args: argparse.Namespace) -> Plan:
    """Plan the splits from the labels that are there.

    Raises:
        PreparationError: labels, photos or lists are missing, or several could be meant.
    """
    labels, kind = _labels(tree, args)
    folders = (_images(tree, args, labels), labels)
    given = {split: getattr(args, f"{split}_ids") for split in SPLITS}
    if not any(given.values()):
        given = {split: own_list(tree, [end.format(split) for end in LISTS], folders) for split in SPLITS}
    ids = {split: IdList.of_file(path.expanduser()) for split, path in given.items() if path is not None}
    if not ids:
        raise PreparationError(
            f"{common_folder(folders)} has no list/train_id.txt and list/val_id.txt, which say what the splits are. "
            "Give them: --train-ids FILE --val-ids FILE. PASCAL-Person-Part has 1,716 images for training and 1,817 "
            "for validation; datasets/README.md says where lists are"
        )
    endings = (".mat",) if kind == "mat" else LABEL_ENDINGS
    pairs, notes = pair_up(ids, dict.fromkeys(ids, folders), endings)
    sources = [f"{split} from {listing.source}" for split, listing in ids.items()]
    return Plan(f"{labels} ({KINDS[kind]})", pairs, folders, kind, (*sources, *notes))


def _labels(tree: Tree, args: argparse.Namespace) -> tuple[Path, str]:
    """The folder of labels, and their kind."""
    wanted = args.labels_from
    known = dict.fromkeys(folder for end in LABEL_FOLDERS for folder in tree.ending(end))
    named = [Tree(args.labels).root] if args.labels else list(known)
    kinds = {folder: _kinds(folder) for folder in named}
    if wanted == "grapy-colours" and not args.labels and not any(wanted in found for found in kinds.values()):
        kinds = {folder: _kinds(folder) for folder in tree.folders}
    found = [(folder, kind) for folder, its in kinds.items() for kind in its if wanted in (None, kind)]
    if not found:
        raise PreparationError(
            f"{args.labels or tree.root}: no {KINDS.get(wanted, 'labels of PASCAL-Person-Part')}\n"
            f"  looked for: {', '.join(LABEL_FOLDERS)}\n  found:      {tree.found()}\n"
            "  Name the folder above the labels and the photos; or --labels DIR, --images DIR."
        )
    if len(found) > 1:
        raise PreparationError(
            "several labels could be meant; choose by --labels-from KIND or --labels DIR:\n  "
            + "\n  ".join(f"{folder}: {KINDS[kind]} ({kind})" for folder, kind in found)
        )
    if wanted is None and found[0][1] == "grapy-colours":
        _refuse_plain_colours(found[0][0])
    return found[0]


def _kinds(folder: Path) -> list[str]:
    """What lies in a folder of labels, by the first files."""
    kinds = set()
    for names in islice(files_by_stem(folder, (".mat", *LABEL_ENDINGS)).values(), PROBED):
        for name in names:
            kinds.add("mat" if name.lower().endswith(".mat") else _kind_of_image(folder / name))
    return [kind for kind in KINDS if kind in kinds]


def _kind_of_image(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return "grapy-colours" if image.mode in COLOUR_MODES else "index"
    except DAMAGE:
        return "index"  # where the file is then named


def _refuse_plain_colours(folder: Path) -> None:
    """Raise where colours are the VOC palette's own: other renderings have these, in another order."""
    for names in islice(files_by_stem(folder, LABEL_ENDINGS).values(), PROBED):
        try:
            plain = has_plain_colours(str(folder / names[0]))
        except FileFault:
            continue  # named when its turn comes
        if plain:
            raise PreparationError(
                f"{folder / names[0]}: a colour rendering with a red of 128, which Grapy-ML's never have (126 or 127): "
                "the order of arms and legs is not certain. If these are Grapy-ML's after all: --labels-from "
                "grapy-colours. If not, convert them to index PNGs"
            )


def _images(tree: Tree, args: argparse.Namespace, labels: Path) -> Path:
    if args.images:
        return Tree(args.images).root
    folders = tree.ending("JPEGImages")
    folders = [folder for folder in folders if "VOC2010" in folder.parts] or folders
    pair = nearest(folders, [labels])
    if pair is None:
        raise PreparationError(
            f"{tree.root}: {labels} is there, JPEGImages is not; the photos are those of PASCAL VOC2010. Name the "
            "folder above both, or the photos' folder by --images DIR"
        )
    return pair[0]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = make_parser(PASCAL, "labels and VOC2010's JPEGImages")
    add = parser.add_argument
    for split in SPLITS:
        add(f"--{split}-ids", type=Path, metavar="FILE", help=f"list of the ids of the split '{split}', one a line")
    add("--labels-from", choices=KINDS, help="which labels to take, where several are there")
    add("--images", type=Path, metavar="DIR", help="folder of the photos, where it lies elsewhere")
    add("--labels", type=Path, metavar="DIR", help="folder of the labels, where it is named otherwise")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status (see `command.run`)."""
    return run(PASCAL, parse_args(argv), find)


if __name__ == "__main__":
    sys.exit(main())
