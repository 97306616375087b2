#!/usr/bin/env python
"""Human parsing of your photos and videos, in every label system of one network.

    python demo/demo.py --weights model_inference.pth --input photo.jpg --output out
    python demo/demo.py --weights model_inference.pth --input photos --output out --domain all --save labels
    python demo/demo.py --weights model_inference.pth --video-input film.mp4 --output film_parsed.mp4
    python demo/demo.py --weights model_inference.pth --webcam

A checkpoint of a training, or the folder of a bundle (tools/export.py --format safetensors), is enough: both carry
their configuration. Without --output the pictures are shown in a window.

What is written lies in OUTPUT/KIND/DOMAIN/NAME: the folder KIND is there where several things are asked for (--save),
the folder DOMAIN where several label domains are (--domain all). NAME keeps the folders of the input.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":

    def _end_at_once(*_: object) -> None:
        os.write(2, b"interrupted; what was written is whole\n")
        os._exit(128 + signal.SIGINT)

    signal.signal(signal.SIGINT, _end_at_once)  # the imports below take seconds, and some of them swallow exceptions

# OpenCV's own lines about videos that it cannot read; ours say what to do.
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")

import torch
from PIL import Image
from tqdm import tqdm

from sst_d2 import SSTError, SSTPredictor
from sst_d2.arguments import positive_number, whole_number
from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.inference.photo_run import Part, PhotoRun, by_domain, run_here, run_in_processes
from sst_d2.inference.predictor import ALL_DOMAINS
from sst_d2.inference.sinks import KINDS, LABELS, LOGITS, OVERLAY, SIDE_BY_SIDE, PhotoSink, sheet_of
from sst_d2.inference.sources import Photo, find_photos
from sst_d2.inference.videos import VIDEO_CODECS, VideoSink, VideoSource, frame_sheet, load_opencv
from sst_d2.inference.windows import check_windows, show
from sst_d2.launch import report_user_error


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 on a mistake."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--weights", metavar="FILE", help="a checkpoint, or the folder of a bundle")
    add("--config-file", metavar="FILE", help="a configuration (.yaml), where the weights do not carry their own")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--input", nargs="+", metavar="PATH", help="photos, folders (searched with all below), globs")
    given.add_argument("--video-input", metavar="FILE", help="a video")
    given.add_argument(
        *("--webcam",), nargs="?", type=whole_number, const=0, metavar="N", help="the camera N (default 0), in a window"
    )
    add("--output", metavar="FILE_OR_FOLDER", help="where to write; left out: show in a window")
    add("--domain", metavar="NAME|all", help="label domain, or all of them (default: the network's first)")
    add("--save", nargs="+", choices=KINDS, default=[], help=f"what to write (default: {OVERLAY})")
    add("--save-labels", action="store_true", help="as --save labels: palette PNGs, whose pixels are class ids")
    add("--save-logits", action="store_true", help="as --save logits: .npz files, 4 bytes per class and pixel")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--tta", action="store_true", help="test-time augmentation: several sizes, plain and mirrored")
    add("--max-pixels", type=positive_number, metavar="N", help="refuse larger photos (default: TEST.SST.MAX_PIXELS)")
    add("--batch-size", type=positive_number, default=1, metavar="N", help="photos of one size at a time (default: 1)")
    add("--device", help="cpu, cuda or cuda:N (default: a GPU where there is one)")
    several = parser.add_mutually_exclusive_group()
    several.add_argument("--num-gpus", type=positive_number, metavar="N", help="share photos among N GPUs")
    several.add_argument("--num-processes", type=positive_number, metavar="N", help="… among N processes on the CPU")
    add("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs that change the configuration")
    arguments = parser.parse_args(argv)
    mistake = _mistake(arguments)
    if mistake:
        parser.error(mistake)
    return arguments


def _mistake(arguments: argparse.Namespace) -> str:
    """What does not go together in the command line; "" where all does."""
    if not (arguments.weights or arguments.config_file):
        return "--weights FILE is needed; or --config-file FILE with --opts MODEL.WEIGHTS FILE"
    if arguments.webcam is not None and arguments.output:
        return "--webcam shows a window and writes nothing; leave --output out"
    if not arguments.output and {LABELS, LOGITS} & set(_kinds(arguments)):
        return "label maps and logits are written, not shown: name --output"
    several = arguments.num_gpus or arguments.num_processes
    if several and not (arguments.input and arguments.output):
        return "--num-gpus and --num-processes share photos: they need --input and --output"
    if several and arguments.device:
        return "--num-gpus and --num-processes choose the devices; leave --device out"
    return ""


def _kinds(arguments: argparse.Namespace) -> tuple[str, ...]:
    asked = {*arguments.save, *([LABELS] * arguments.save_labels), *([LOGITS] * arguments.save_logits)}
    return tuple(kind for kind in KINDS if kind in asked) or (OVERLAY,)


def _opening(arguments: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `SSTPredictor`."""
    return {
        "config": arguments.config_file or arguments.weights,
        "weights": arguments.weights if arguments.config_file else None,
        "device": arguments.device,
        "tta": arguments.tta or None,
        "opts": tuple(arguments.opts),
        "max_pixels": arguments.max_pixels,
        "batch_size": arguments.batch_size,
    }


def _devices(arguments: argparse.Namespace) -> list[str | None]:
    """A device for each process, as `SSTPredictor` takes it.

    Raises:
        SSTConfigError: there are fewer GPUs.
    """
    count = torch.cuda.device_count()
    if arguments.num_gpus and arguments.num_gpus > count:
        raise SSTConfigError(
            f"--num-gpus: {arguments.num_gpus}; torch sees {count} here, --num-processes takes the CPU"
        )
    if arguments.num_gpus:
        return [f"cuda:{number}" for number in range(arguments.num_gpus)]
    return ["cpu"] * arguments.num_processes if arguments.num_processes else [arguments.device]


def _sink(arguments: argparse.Namespace, predictor: SSTPredictor) -> PhotoSink:
    """Where results go.

    Raises:
        SSTConfigError: the network has no such label domain.
    """
    known, asked = tuple(predictor.domains), arguments.domain or predictor.default_domain
    if asked not in (*known, ALL_DOMAINS):
        raise SSTConfigError(f"--domain: '{asked}'; the network has {', '.join(known)}, and '{ALL_DOMAINS}' takes all")
    output = Path(arguments.output or os.curdir).expanduser()
    one_file = names_a_file(output) and not output.is_dir()
    if output.exists() and not output.is_dir() and not one_file:
        raise SSTDataError(f"{output}: is a file; name a folder")
    return PhotoSink(output, _kinds(arguments), known if asked == ALL_DOMAINS else (asked,), one_file)


def names_a_file(path: Path) -> bool:
    """Whether the ending is one of a picture or a video. A folder may have a point in its name."""
    return path.suffix.lower() in {*Image.registered_extensions(), *VIDEO_CODECS, ".webm", ".wmv", ".npy", ".npz"}


def parse_photos(arguments: argparse.Namespace) -> bool:
    """Predict photos into files; False where some were skipped."""
    found = find_photos(arguments.input, os.path.expanduser(arguments.output))
    devices = _devices(arguments)[: len(found.photos)]
    # Of several processes this one computes nothing.
    opening = {**_opening(arguments), "device": devices[0] if len(devices) == 1 else "cpu"}
    predictor = SSTPredictor(**opening)
    sink = _sink(arguments, predictor)
    sink.check(found.photos, arguments.overwrite)
    run = PhotoRun(opening, arguments.domain, sink)
    if len(devices) > 1:
        del predictor
        parts = run_in_processes(run, found.photos, devices)
    else:
        parts = run_here(run, predictor, found.photos)
    for folder in found.left_out:
        print(f"left out: {folder}, the folder of the results", file=sys.stderr)
    with contextlib.closing(parts):
        return _follow(parts, found.photos, found.problems, sink.output)


def _follow(parts: Iterator[Part], photos: Sequence[Photo], problems: Sequence[str], output: Path) -> bool:
    """Show how it goes on, and say what came of it."""
    written, skipped, started = 0, list(problems), float("inf")
    for problem in problems:
        print(f"skipped: {problem}", file=sys.stderr)
    with tqdm(total=len(photos), unit="image", disable=None) as bar:
        for part in parts:
            written, started = written + part.written, min(started, part.started)
            for problem in part.skipped:
                tqdm.write(f"skipped: {problem}", file=sys.stderr)
            skipped += part.skipped
            bar.update(part.written + len(part.skipped))
    _report(written, "image", time.monotonic() - started, output)
    if skipped:
        print(f"{len(skipped)} skipped, and named above", file=sys.stderr)
    return not skipped


def _report(count: int, unit: str, seconds: float, output: Path | None) -> None:
    """Throughput from the first photo on: reading, network and writing, without opening the network."""
    where = f", written to {output}" if output is not None and count else ""
    print(f"{count} {unit}{'s' * (count != 1)} in {seconds:.1f} s, {count / max(seconds, 1e-9):.2f} {unit}s/s{where}")


def parse_video(arguments: argparse.Namespace) -> bool:
    """Predict a video into files; False where it ends early."""
    path = os.path.expanduser(arguments.video_input)
    with VideoSource(path) as source:
        predictor = SSTPredictor(**_opening(arguments))
        photo_sink = _sink(arguments, predictor)
        with VideoSink(photo_sink, Path(path).stem, source.rate) as sink:
            sink.check(path, arguments.overwrite)
            started = time.monotonic()
            with tqdm(total=source.expected, unit="frame", disable=None) as bar:
                for frames in source.batches(predictor.batch_size):
                    for answer in predictor(frames, arguments.domain, channel_order="BGR"):
                        sink.write(by_domain(answer))
                        bar.update()
            sink.finish()
        _report(source.read, "frame", time.monotonic() - started, photo_sink.output)
        for sentence in filter(None, (source.shortfall(), sink.leftovers())):
            print(sentence, file=sys.stderr)
        return not source.shortfall()


def show_photos(arguments: argparse.Namespace) -> bool:
    """Show photos one after the other, each until a key is pressed; False where some could not be read."""
    check_windows()
    photos = find_photos(arguments.input)
    predictor = SSTPredictor(**_opening(arguments))
    sink, skipped = _sink(arguments, predictor), list(photos.problems)
    for photo in photos.photos:
        try:
            answers = by_domain(predictor(photo.path, arguments.domain))
        except SSTDataError as reason:
            skipped.append(str(reason))
            continue
        if not show(sheet_of(answers) if _as_sheet(sink) else next(iter(answers.values())).overlay(), wait=True):
            break
    for problem in skipped:
        print(f"skipped: {problem}", file=sys.stderr)
    return not skipped


def show_video(arguments: argparse.Namespace) -> bool:
    """Show a video or a camera until its end, q or Escape; False where the video ends early."""
    load_opencv()
    with VideoSource(arguments.webcam if arguments.video_input is None else arguments.video_input) as source:
        check_windows()
        predictor = SSTPredictor(**_opening(arguments))
        sink = _sink(arguments, predictor)
        started = time.monotonic()
        for (frame,) in source.batches(1):
            answers = by_domain(predictor(frame, arguments.domain, channel_order="BGR"))
            picture = frame_sheet(answers) if _as_sheet(sink) else next(iter(answers.values())).overlay()
            if not show(picture, wait=False):
                _report(source.read, "frame", time.monotonic() - started, None)
                return True
        _report(source.read, "frame", time.monotonic() - started, None)
        if source.shortfall():
            print(source.shortfall(), file=sys.stderr)
        return not source.shortfall()


def _as_sheet(sink: PhotoSink) -> bool:
    return SIDE_BY_SIDE in sink.kinds or len(sink.domains) > 1


def main(argv: Sequence[str] | None = None) -> bool:
    """Whether all went well."""
    arguments = parse_arguments(argv)
    # Pillow warns about photos that --max-pixels refuses or allows by name.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    if arguments.output:
        return (parse_photos if arguments.input else parse_video)(arguments)
    return (show_photos if arguments.input else show_video)(arguments)


def _end(*_: object) -> None:
    """Ctrl-C: remove partial files, end other processes; a second one does not wait for that."""
    signal.signal(signal.SIGINT, _end_at_once)
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that partial files are removed
    try:
        sys.exit(0 if main() else 1)
    except SSTError as error:
        report_user_error(error)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what was written is whole", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
