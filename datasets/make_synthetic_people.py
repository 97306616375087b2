#!/usr/bin/env python3
"""Make the embedded data set: synthetic photos of people, labelled in three label systems.

    python datasets/make_synthetic_people.py

writes, below ``${DETECTRON2_DATASETS:-datasets}/synthetic_people``, three disjoint sets with the imbalance of the real
ones (PASCAL-Person-Part, ATR, CIHP), a held-out set labelled in all three systems, id lists and dataset cards. Same
arguments, same library versions: same files, byte by byte, whatever the number of workers. The drawing is in
``people_generator/`` beside this file.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache, partial
from pathlib import Path

try:
    import numpy as np
    from people_generator import DOMAINS, domain_record, draw_sample, to_label
    from people_generator.folder import FolderError, Item, Request, close_folder, open_folder, write_file
    from PIL import Image
    from tqdm import tqdm
except ModuleNotFoundError as error:
    sys.exit(
        f"error: {error}. Install the project's requirements first: python -m pip install numpy Pillow PyYAML tqdm"
    )

JPEG_QUALITY = 92


def write_item(item: Item, output: Path, request: Request) -> None:
    """Draw one picture and write its image and its label maps.

    Args:
        item: which picture.
        output: folder of the data set.
        request: size and seed.
    """
    sample = draw_sample(item.style, request.size, item.generator(request.seed))
    for domain, name in item.labels.items():
        label = Image.fromarray(to_label(sample.atoms, domain))
        label.putpalette(_palette(domain))
        write_file(output / name, _encoded(label, "PNG", compress_level=4))
    write_file(output / item.image, _encoded(Image.fromarray(sample.image), "JPEG", quality=JPEG_QUALITY))


@cache
def _palette(domain: str) -> bytes:
    """The domain's colours, so that label maps can be looked at; the pixel values remain class ids."""
    return np.array(domain_record(domain)["colors"], np.uint8).tobytes()


def _encoded(image: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write_items(items: list[Item], output: Path, request: Request, workers: int) -> Iterator[None]:
    """Write pictures in ``workers`` processes (1: in this one); yields once per picture."""
    write = partial(write_item, output=output, request=request)
    if workers == 1 or len(items) < 2:
        yield from map(write, items)
        return
    # Ctrl-C is for this process, which then stops the workers.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    executor = ProcessPoolExecutor(min(workers, len(items)), initializer=ignore)
    try:
        yield from executor.map(write, items, chunksize=4)
    finally:
        executor.shutdown(cancel_futures=True)


# These two are those of `sst_d2.arguments`; this script does without sst_d2, so that it runs where PyTorch and
# Detectron2 are not installed.
def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed are whole numbers from 0")
    return int(text)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line (``sys.argv`` where ``argv`` is None); exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description="Make synthetic photos of people with labels in three label systems.")
    default = Path(os.environ.get("DETECTRON2_DATASETS", "datasets")) / "synthetic_people"
    add = parser.add_argument
    add("--output", type=Path, default=default, metavar="DIR", help="folder to write (default: %(default)s)")
    add("--size", type=_count, nargs="+", default=[256], metavar="PX", help="side, or height width (default: 256)")
    add(
        "--train", type=_count, nargs=3, default=[60, 300, 600], metavar=("P", "A", "C"),
        help="training images of PASCAL-Person-Part, ATR and CIHP (default: 60 300 600)",
    )  # fmt: skip
    add("--val", type=_count, default=60, metavar="N", help="validation images of each set (default: 60)")
    add("--heldout", type=_count, default=60, metavar="N", help="images labelled in all systems (default: 60)")
    add("--seed", type=_count, default=0, help="whole number from 0 (default: 0)")
    add("--workers", type=_count, default=_cores(), metavar="N", help="processes (default: all cores)")
    add("--force", action="store_true", help="replace what the folder holds")
    args = parser.parse_args(argv)
    if len(args.size) > 2 or not all(32 <= side <= 4096 for side in args.size):
        parser.error(f"argument --size: {args.size} is not one side or height and width; allowed are 32 to 4096 pixels")
    if args.workers < 1:
        parser.error("argument --workers: 0 processes cannot draw; allowed are whole numbers from 1")
    return args


def make(args: argparse.Namespace) -> None:
    """Bring the output folder to what the arguments ask for; see ``folder.open_folder`` for what it raises."""
    request = Request((args.size[0], args.size[-1]), tuple(args.train), args.val, args.heldout, args.seed)
    try:
        for domain in DOMAINS:
            domain_record(domain)
    except OSError as error:
        raise FolderError(f"{error}. Class names come from there: run this command inside a whole checkout.") from error
    output = args.output.expanduser()
    total = sum(1 for _ in request.items())
    items = open_folder(output, request, args.force)
    if items is None:
        print(f"{output} already holds these {total} images: nothing to do.")
        return
    start = time.perf_counter()
    every = 0.3 if sys.stderr.isatty() else 10.0
    steps = write_items(items, output, request, args.workers)
    for _ in tqdm(steps, total=len(items), unit="image", desc="synthetic people", mininterval=every):
        pass
    close_folder(output, request)
    seconds = time.perf_counter() - start
    kept = f" ({total - len(items)} were there)" if len(items) < total else ""
    speed = len(items) / max(seconds, 1e-9)
    print(f"{len(items)} images{kept} in {seconds:.1f} s, {speed:.1f} images/s, {args.workers} worker(s)")
    print(f"Data set: {output}\nCards:    {output / 'cards'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 done, 1 failed, 130 interrupted (wrong arguments exit with 2)."""
    args = parse_args(argv)
    try:
        make(args)
    except FolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {error}. Is --output {args.output} a folder that can be written, with room?", file=sys.stderr)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
