"""The documents' blocks, and a desk where they are typed: a folder that looks like a checkout, with tiny data.

A block is run as it stands. Two things around it are smaller than a reader's: the data (a few synthetic people, also in
the layouts of the real downloads), and what some commands are asked to do. For that `python` and `torchrun` on the desk
are this file, which appends to what was typed (`shortened`) and then runs it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
RUN = ("sh", "python")  # languages of blocks that are run, or marked
OTHER = ("yaml", "text")
_COMMENT = re.compile(r"<!-- (not run|file): (.*?)\s*-->")
# The smallest network of ours, and a training of two steps.
TINY = {
    "MODEL.BACKBONE.NAME": "build_sst_resnet18_backbone",
    "MODEL.RESNETS.NORM": "GN",
    "MODEL.RESNETS.STEM_OUT_CHANNELS": "32",
    "MODEL.RESNETS.RES2_OUT_CHANNELS": "32",
    "MODEL.SST.PIXEL_DECODER.LAYERS": "1",
    "MODEL.SST.PIXEL_DECODER.FFN_DIM": "32",
    "MODEL.SST.DECODER.DIM": "32",
    "MODEL.SST.DECODER.HEADS": "2",
    "MODEL.SST.DECODER.BLOCKS": "[1, 1, 1]",
    "MODEL.SST.DECODER.WINDOW": "4",
    "MODEL.SST.PIXEL_DECODER.HEADS": "2",
    "INPUT.SST.CROP_SIZE": "[32, 32]",
    "DATALOADER.NUM_WORKERS": "0",
    "SOLVER.MAX_ITER": "2",
    "SOLVER.STEPS": "()",
    "SOLVER.SST.MAX_EPOCHS": "0",
    "SOLVER.SST.EPOCH_STEPS": "[]",
    "SOLVER.CHECKPOINT_PERIOD": "1000",
    "TEST.EVAL_PERIOD": "0",
    "TEST.SST.SCALES": "[0.5, 1.0]",
    "TEST.SST.PICTURES": "1",
}
PEOPLE = ("--size", "64", "--train", "4", "5", "6", "--val", "2", "--heldout", "2", "--workers", "1")


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; ``not_run``: the reason why not; ``file``: where a reader writes it."""

    document: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"


def blocks_of(document: str) -> list[Block]:
    """The blocks of a Markdown file, in order, each with the HTML comment that stands directly before it."""
    lines = (ROOT / document).read_text(encoding="utf-8").splitlines()
    blocks, place = [], 0
    while place < len(lines):
        if not lines[place].startswith("```"):
            place += 1
            continue
        end = lines.index("```", place + 1)
        comment = _COMMENT.fullmatch(lines[place - 1]) if place else None
        marks = {comment[1].replace(" ", "_"): comment[2]} if comment else {}
        text = "\n".join(lines[place + 1 : end]) + "\n"
        blocks.append(Block(document, place + 1, lines[place][3:], text, **marks))
        place = end + 1
    return blocks


def make_people(folder: Path) -> None:
    """Tiny synthetic people below ``folder``, as `make_synthetic_people.py` writes them."""
    command = [sys.executable, str(ROOT / "datasets/make_synthetic_people.py"), "--output", str(folder), *PEOPLE]
    subprocess.run(command, check=True, capture_output=True, text=True)


class Desk:
    """A folder where a reader types: the checkout's files, data sets, photos, and a home with downloads.

    Args:
        folder: an empty folder; below it ``checkout`` is where commands run.
        people: what `make_people` wrote.
        prepared: built-in data sets that lie ready; others a document prepares itself, from ``~/downloads``.
    """

    def __init__(self, folder: Path, people: Path, prepared: tuple[str, ...] = ()) -> None:
        self.checkout, self.home, self.data = (folder / name for name in ("checkout", "home", "data"))
        for place in (self.checkout, self.home, self.data, folder / "bin"):
            place.mkdir(parents=True)
        for entry in ROOT.iterdir():
            if entry.name not in ("output", "data") and not entry.name.startswith("."):
                (self.checkout / entry.name).symlink_to(entry)
        shutil.copytree(people, self.data / "synthetic_people")
        for name in prepared:
            self._lay_out(name)
        self._lay_downloads()
        self._lay_photos()
        for name in ("python", "torchrun"):
            module = "" if name == "python" else "-m torch.distributed.run "
            shim = folder / "bin" / name
            shim.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} {module}"$@"\n')
            shim.chmod(0o755)
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("SST_", "PYTEST"))},
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self.home),
            "DETECTRON2_DATASETS": str(self.data),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    def type(self, document: str) -> int:
        """Type a document's blocks in their order; those in Python share their variables, as in a notebook.

        Returns:
            how many were run.
        """
        variables: dict[str, object] = {"__name__": "__document__"}
        count = 0
        for block in blocks_of(document):
            if block.file:
                (self.checkout / block.file).parent.mkdir(parents=True, exist_ok=True)
                (self.checkout / block.file).write_text(block.text, encoding="utf-8")
            if block.language not in RUN or block.not_run:
                continue
            count += 1
            if block.language == "sh":
                self.run(block)
                continue
            with self._standing_here():
                # The empty lines before it make the line numbers of a traceback those of the document.
                exec(compile("\n" * block.line + block.text, document, "exec"), variables)
        return count

    def run(self, block: Block) -> None:
        """Run a shell block as one script, which ends where a command fails."""
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=self.checkout,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        said = f"{result.stdout[-1500:]}\n{result.stderr[-3000:]}"
        assert result.returncode == 0, f"{block} ends with {result.returncode}:\n{block.text}\n{said}"

    @contextlib.contextmanager
    def _standing_here(self) -> Iterator[None]:
        """This process in the reader's place: the folder, and where data sets lie."""
        before, folder = os.environ.get("DETECTRON2_DATASETS"), os.getcwd()
        os.environ["DETECTRON2_DATASETS"] = str(self.data)
        os.chdir(self.checkout)
        try:
            yield
        finally:
            os.chdir(folder)
            os.environ.pop("DETECTRON2_DATASETS")
            if before is not None:
                os.environ["DETECTRON2_DATASETS"] = before

    def _lay_out(self, name: str) -> None:
        """A built-in data set, of the synthetic people of its label system."""
        source = self.data / "synthetic_people" / ("cihp" if name == "lip" else name)
        shutil.copytree(source, self.data / name)
        shutil.copy(self.data / name / "ids/val.txt", self.data / name / "ids/test.txt")

    def _lay_downloads(self) -> None:
        """The downloads as datasets/README.md describes them; where their lists of ids are apart, these too."""
        people, downloads = self.data / "synthetic_people", self.home / "downloads"
        for split, name, first in (("train", "Training", 1), ("val", "Validation", 101)):
            cihp = downloads / "instance-level_human_parsing" / name
            self._copy(people / "cihp", split, (cihp / "Images", cihp / "Category_ids"), "{:07d}", first)
            photos, labels = (downloads / "LIP" / f"TrainVal_{kind}" for kind in ("images", "parsing_annotations"))
            folders = photos / f"{split}_images", labels / f"{split}_segmentations"
            self._copy(people / "cihp", split, folders, "{0}_{0}", first, photos)
            atr = downloads / "humanparsing"
            folders = atr / "JPEGImages", atr / "SegmentationClassAug"
            self._copy(people / "atr", split, folders, "2500_{}", first, downloads / "atr_lists")
            voc = downloads / "VOC2010"
            folders = voc / "JPEGImages", voc / "pascal_person_part_gt"
            self._copy(people / "pascal_person_part", split, folders, "2008_{:06d}", first, voc / "list")

    def _copy(
        self, source: Path, split: str, folders: tuple[Path, Path], name: str, first: int, lists: Path | None = None
    ) -> None:
        """Photos and label maps of a split under other names, and the list of these."""
        names = []
        for folder in (*folders, *([lists] if lists else [])):
            folder.mkdir(parents=True, exist_ok=True)
        for number, identifier in enumerate((source / f"ids/{split}.txt").read_text().split(), first):
            names.append(name.format(number))
            shutil.copy(source / f"images/{identifier}.jpg", folders[0] / f"{names[-1]}.jpg")
            shutil.copy(source / f"labels/{identifier}.png", folders[1] / f"{names[-1]}.png")
        if lists:
            (lists / f"{split}_id.txt").write_text("\n".join(names) + "\n")

    def _lay_photos(self) -> None:
        """photo.jpg, and a folder of photos with another one in it."""
        photos = sorted((self.data / "synthetic_people/heldout/images").iterdir())
        (self.checkout / "photos/summer").mkdir(parents=True)
        for target in ("photo.jpg", "photos/a.jpg", "photos/summer/b.jpg"):
            shutil.copy(photos[len(target) % len(photos)], self.checkout / target)


def shortened(arguments: list[str]) -> list[str]:
    """What a command line becomes on the desk: the same, with values behind it that make it short."""
    scripts = [place for place, argument in enumerate(arguments) if argument.endswith(".py")]
    name = os.path.basename(arguments[scripts[0]]) if scripts else ""
    if name == "make_synthetic_people.py":
        return [*arguments, *PEOPLE]
    if name != "train_net.py":
        return arguments
    flags = ("--num-gpus", "--nproc-per-node")
    fewer = ["2" if before in flags else it for before, it in zip(["", *arguments], arguments)]
    tiny = dict(TINY)
    if _starts_from_imagenet(arguments):
        tiny["MODEL.WEIGHTS"] = ""
    if "--resume" in arguments:
        tiny["SOLVER.MAX_ITER"] = "3"
    return [*fewer, *(part for pair in tiny.items() for part in pair)]


def _starts_from_imagenet(arguments: list[str]) -> bool:
    """Whether the configuration, and nothing on the command line, says where training starts: torchvision's weights."""
    if "MODEL.WEIGHTS" in arguments:
        return False
    path = Path(arguments[arguments.index("--config-file") + 1])
    while True:
        record = yaml.safe_load(path.read_text())
        if "WEIGHTS" in record.get("MODEL", {}):
            return record["MODEL"]["WEIGHTS"].startswith("torchvision://")
        if "_BASE_" not in record:
            return False
        path = path.parent / record["_BASE_"]


if __name__ == "__main__":
    command = [sys.executable, *shortened(sys.argv[1:])]
    print("+", shlex.join(command), file=sys.stderr, flush=True)
    os.execv(sys.executable, command)
