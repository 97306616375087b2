#!/usr/bin/env python3
"""Rewrite label maps from one label system to another, by a table of class names.

    python tools/remap_labels.py --from DOMAIN --to DOMAIN --table TABLE.yaml INPUT_FOLDER OUTPUT_FOLDER

A DOMAIN is a name (``cihp``) or the path of a domain's YAML file. The table says for each class what it becomes, a
class of the other domain or `ignore` (no label); pixels that are ignored stay so:

    hat: head
    hair: head
    bag: ignore

Every PNG below the input folder gets its counterpart below the output folder. A label map with a class that the table
does not name is refused and not written; the others are, and the exit status is 1. Files are written whole or not at
all, so an interrupted run is completed by running it again. Nothing is ever written into the input folder.

The files are grey, which every program reads alike; with --palette they show the domain's colours, and then
Detectron2's own mapper, unlike its evaluator and all of this project, would take the colours' brightness for ids.
"""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

try:
    import numpy as np
    import yaml
    from PIL import Image
    from tqdm import tqdm

    from sst_d2.arguments import available_cores, positive_number
    from sst_d2.data import read_label_map
    from sst_d2.errors import SSTError
    from sst_d2.files import expand_path, partial_path
    from sst_d2.label_domains import LabelDomain, get_label_domain
    from sst_d2.visualization import save_label_png
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}. Install the project first: python -m pip install -e .")

IGNORE = "ignore"
_SHOWN = 20


class RemapError(SSTError):
    """The table, a folder or a label map is not usable."""


@dataclass(frozen=True)
class Remapping:
    """What becomes of each id.

    Attributes:
        source, target: the label domains.
        table: (256,) int16, the target's id of each source id; -1: the table does not name it.
        file: the table's file, for messages.
    """

    source: LabelDomain
    target: LabelDomain
    table: np.ndarray
    file: Path

    def unnamed(self) -> list[str]:
        """Classes of the source that the table leaves out."""
        return [name for name, new in zip(self.source.classes, self.table) if new < 0]

    def apply(self, path: Path) -> np.ndarray:
        """Read a label map of the source, and give the target's ids, (H, W) uint8.

        Raises:
            SSTDataError: it cannot be read or holds ids that are none of the source's.
            RemapError: it holds a class that the table does not name.
        """
        labels = read_label_map(path, self.source)
        mapped = self.table[labels]
        if mapped.min() < 0:
            names = [f"'{self.source.classes[i]}' ({i})" for i in np.unique(labels[mapped < 0]).tolist()]
            raise RemapError(
                f"{path}: holds {', '.join(names)}, which {self.file} does not name; add what it becomes, or '{IGNORE}'"
            )
        return mapped.astype(np.uint8)


def read_table(path: str | os.PathLike, source: LabelDomain, target: LabelDomain) -> Remapping:
    """Read a table of names, as they are written: `null` and `1` are names as well.

    Raises:
        RemapError: it is no such table, or has a name that the domains do not know; similar ones are suggested.
    """
    path = expand_path(path, error=RemapError)
    table = np.full(256, -1, dtype=np.int16)
    table[source.ignore_label] = target.ignore_label
    for old, new in _read_names(path).items():
        _check_name(old, source, source.classes, path)
        if new == IGNORE and IGNORE not in target.classes:
            table[source.index(old)] = target.ignore_label
        else:
            _check_name(new, target, (*target.classes, IGNORE), path)
            table[source.index(old)] = target.index(new)
    return Remapping(source, target, table, path)


def _read_names(path: Path) -> dict[str, str]:
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except OSError as reason:
        raise RemapError(f"{path}: cannot be read ({reason.strerror})") from reason
    except (yaml.YAMLError, UnicodeDecodeError) as reason:
        raise RemapError(f"{path}: is not a YAML file: {reason}") from reason
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    if not pairs or not all(isinstance(part, yaml.ScalarNode) for pair in pairs for part in pair):
        raise RemapError(f"{path}: lines of the form `source class: target class` are expected")
    names = {old.value: new.value for old, new in pairs}
    if len(names) < len(pairs):
        double = Counter(old.value for old, _ in pairs).most_common(1)[0][0]
        raise RemapError(f"{path}: the class '{double}' stands twice; each becomes one thing")
    return names


def _check_name(name: str, domain: LabelDomain, known: Sequence[str], path: Path) -> None:
    if name not in known:
        similar = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
        raise RemapError(f"{path}: label domain '{domain.name}' has no class '{name}'; {hint}Known: {', '.join(known)}")


def find_label_maps(folder: Path, output: Path) -> list[Path]:
    """All PNG files below a folder, relative to it.

    Raises:
        RemapError: the folder is none or has no PNG, or one of the two folders lies inside the other.
    """
    if not folder.is_dir():
        raise RemapError(f"{folder}: is no folder")
    inner, outer = output.resolve(), folder.resolve()
    if inner == outer or outer in inner.parents or inner in outer.parents:
        raise RemapError(
            f"the output {output} and the input {folder} lie one inside the other; give a folder beside the input"
        )
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() == ".png")
    if not files:
        raise RemapError(f"{folder}: holds no PNG file; label maps are PNG files")
    return files


@dataclass(frozen=True)
class Job:
    """What a worker needs to know.

    Attributes:
        remapping: what becomes of each id.
        folder, output: input and output.
        palette: write the target's colours into the files.
        force: replace files that hold something else.
    """

    remapping: Remapping
    folder: Path
    output: Path
    palette: bool
    force: bool

    def write(self, name: Path) -> tuple[str, str]:
        """Write one label map: ("written" | "there" | "refused", why)."""
        goal = self.output / name
        try:
            labels = self.remapping.apply(self.folder / name)
            if os.path.lexists(goal):
                if self._holds(goal, labels):
                    return "there", ""
                if not self.force:
                    return "refused", f"{goal}: holds something else; --force replaces it"
            if self.palette:
                save_label_png(goal, labels, self.remapping.target)
            else:
                _save_grey(goal, labels)
        except SSTError as error:
            return "refused", str(error)
        except OSError as error:
            return "refused", f"{goal}: cannot be written ({error})"
        return "written", ""

    def _holds(self, path: Path, labels: np.ndarray) -> bool:
        """Whether a file holds these labels in the form that is asked for."""
        try:
            with Image.open(path) as image:
                mode = image.mode
            return mode == ("P" if self.palette else "L") and np.array_equal(
                read_label_map(path, self.remapping.target), labels
            )
        except (SSTError, OSError, SyntaxError, ValueError):
            return False  # cut off, or no label map: something else


def _save_grey(path: Path, labels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = partial_path(path, f"{os.getpid()}.tmp")
    try:
        Image.fromarray(labels).save(temporary, "PNG")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_all(job: Job, names: list[Path], workers: int) -> Iterator[tuple[str, str]]:
    if workers == 1 or len(names) < 2:
        yield from map(job.write, names)
        return
    # Ctrl-C is for this process, which then stops the workers.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    executor = ProcessPoolExecutor(min(workers, len(names)), initializer=ignore)
    try:
        yield from executor.map(job.write, names, chunksize=16)
    finally:
        executor.shutdown(cancel_futures=True)


def remap(args: argparse.Namespace) -> int:
    """Do what the arguments ask for; returns the exit status.

    Raises:
        SSTError: the domains, the table or the folders are not usable.
    """
    source, target = get_label_domain(args.source), get_label_domain(args.target)
    remapping = read_table(args.table, source, target)
    names = find_label_maps(args.input, args.output)
    left_out = remapping.unnamed()
    if left_out:
        print(f"The table does not name {', '.join(left_out)}; label maps that hold them are refused.", file=sys.stderr)
    counts, refused = Counter(), []
    job = Job(remapping, args.input, args.output, args.palette, args.force)
    steps = _write_all(job, names, args.workers)
    for what, why in tqdm(steps, total=len(names), unit="file", desc="label maps", disable=not sys.stderr.isatty()):
        counts[what] += 1
        refused += [why] if why else []
    for why in refused[:_SHOWN]:
        print(f"error: {why}", file=sys.stderr)
    if len(refused) > _SHOWN:
        print(f"error: … and {len(refused) - _SHOWN} more", file=sys.stderr)
    print(
        f"{len(names)} label maps from '{source.name}' to '{target.name}': {counts['written']} written, "
        f"{counts['there']} were there, {counts['refused']} refused. Output: {args.output}"
    )
    return 1 if refused else 0


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description="Rewrite label maps from one label system to another.")
    add = parser.add_argument
    add("input", type=Path, metavar="INPUT_FOLDER", help="folder of label maps, PNG, with any folders below")
    add("output", type=Path, metavar="OUTPUT_FOLDER", help="folder to write; the same folders below")
    add("--from", required=True, dest="source", metavar="DOMAIN", help="label domain of the input: name or .yaml")
    add("--to", required=True, dest="target", metavar="DOMAIN", help="label domain of the output: name or .yaml")
    add("--table", required=True, metavar="TABLE.yaml", help="lines of `source class: target class`, or `: ignore`")
    add("--palette", action="store_true", help="write the target's colours into the files, to look at them")
    add("--force", action="store_true", help="replace files of the output folder that hold something else")
    add(
        "--workers", type=positive_number, default=available_cores(), metavar="N", help="processes (default: all cores)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 0 (done), 1 (something was refused, or it failed), 130 (interrupted)."""
    args = parse_args(argv)
    args.input, args.output = args.input.expanduser(), args.output.expanduser()
    try:
        return remap(args)
    except SSTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenProcessPool:
        print(
            "error: a worker ended early (out of memory?). Run again with fewer --workers; it continues.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. Run the same command again: it completes {args.output}.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
