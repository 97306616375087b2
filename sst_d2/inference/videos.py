"""Videos and cameras in, videos out, by OpenCV alone: its packages bring their own codecs, no program is called."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from sst_d2.errors import SSTConfigError, SSTDataError
from sst_d2.files import partial_path
from sst_d2.inference.prediction import Prediction
from sst_d2.inference.sinks import LABELS, LOGITS, OVERLAY, SIDE_BY_SIDE, PhotoSink, make_writable, refuse_existing
from sst_d2.visualization import background_ids, sheet

# Codecs that OpenCV's own packages can write, by the file's ending.
VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
_USUAL_RATE = 25.0  # where a video does not say its own
# A container's count of frames is an estimate in some formats.
_COUNT_TOLERANCE = 0.02


def load_opencv() -> ModuleType:
    """OpenCV, which photos do without.

    Raises:
        SSTConfigError: it is absent or cannot be loaded.
    """
    try:
        return import_module("cv2")
    except ImportError as reason:
        raise SSTConfigError(
            f"videos, cameras and windows need OpenCV, which cannot be loaded ({reason}): python -m pip install "
            "opencv-python; on a machine without libGL, and without windows, opencv-python-headless instead"
        ) from reason


class VideoSource:
    """Frames of a video file or of a camera. A context manager.

    Args:
        source: path of a file, or number of a camera.

    Attributes:
        rate: frames per second.
        expected: frames that the file says to have; None where it does not say, and of a camera.
        read: frames that were read so far.

    Raises:
        SSTDataError: there is no such file or camera, or it cannot be read.
        SSTConfigError: OpenCV is not there.
    """

    def __init__(self, source: str | int) -> None:
        cv2 = load_opencv()
        self._name = f"camera {source}" if isinstance(source, int) else source
        if isinstance(source, str) and not os.path.isfile(source):
            raise SSTDataError(f"{source}: there is no such file; name a video")
        self._capture = cv2.VideoCapture(source)
        if not self._capture.isOpened():
            remedy = "is it there, and free?" if isinstance(source, int) else "it may be damaged, cut off or no video"
            raise SSTDataError(f"{self._name}: cannot be opened by OpenCV; {remedy}")
        rate, count = self._capture.get(cv2.CAP_PROP_FPS), self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        self.rate = rate if math.isfinite(rate) and 0 < rate <= 1000 else _USUAL_RATE
        self.expected = int(count) if isinstance(source, str) and math.isfinite(count) and count > 0 else None
        self.read = 0

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._capture.release()

    def batches(self, size: int) -> Iterator[list[np.ndarray]]:
        """The frames, (H, W, 3) uint8, BGR, in lists of ``size``, the last one shorter.

        Raises:
            SSTDataError: there is none, or a frame has another size than the first one.
        """
        batch: list[np.ndarray] = []
        shape = None
        while True:
            there, frame = self._capture.read()
            if not there:
                break
            if frame.shape != (shape := shape or frame.shape):
                raise SSTDataError(
                    f"{self._name}: frame {self.read + 1} has {frame.shape[0]} x {frame.shape[1]} pixels, the first "
                    f"one {shape[0]} x {shape[1]}; cut the video there"
                )
            self.read += 1
            batch.append(frame)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch
        if not self.read:
            raise SSTDataError(f"{self._name}: no frame of it can be read; it may be damaged or cut off")

    def shortfall(self) -> str:
        """After the last frame: a sentence, if frames are missing; else nothing."""
        if self.expected is None or self.expected - self.read <= max(1, _COUNT_TOLERANCE * self.expected):
            return ""
        return (
            f"{self._name}: ends early, {self.read} of {self.expected} frames can be read; it may be damaged or cut "
            "off. What could be read was predicted"
        )


class VideoFile:
    """A video that is written frame by frame, under its name when it is whole.

    Args:
        path: ends with one of `VIDEO_CODECS`; the folder is there.
        rate: frames per second.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path = path
        self._partial = partial_path(path, f"{os.getpid()}.partial{path.suffix}")
        self._rate, self._frames, self._writer = rate, 0, None
        self._cv2 = load_opencv()

    def write(self, picture: np.ndarray) -> None:
        """Write a frame, (H, W, 3) uint8, RGB; all have one size. Of an odd size the last row or column is left out.

        Raises:
            SSTDataError: OpenCV cannot write such a file.
        """
        if self._writer is None:
            codec = self._cv2.VideoWriter.fourcc(*VIDEO_CODECS[self.path.suffix.lower()])
            size = (picture.shape[1], picture.shape[0])
            self._writer = self._cv2.VideoWriter(str(self._partial), codec, self._rate, size)
            if not self._writer.isOpened():
                raise SSTDataError(
                    f"{self.path}: OpenCV cannot write such a video here ({size[0]} x {size[1]}, {self._rate:g} frames "
                    "a second); try another ending: .avi"
                )
        self._writer.write(np.ascontiguousarray(picture[:, :, ::-1]))
        self._frames += 1

    def finish(self) -> None:
        """Give the file its name.

        Raises:
            SSTDataError: it is not whole; OpenCV says nothing where a disk is full.
        """
        self._writer.release()
        written = self._cv2.VideoCapture(str(self._partial))
        frames = written.get(self._cv2.CAP_PROP_FRAME_COUNT) if written.isOpened() else 0
        written.release()
        if frames < self._frames:
            raise SSTDataError(f"{self.path}: cannot be written whole; make room there, or name another place")
        os.replace(self._partial, self.path)

    def discard(self) -> None:
        """Leave nothing of it, unless it is finished."""
        if self._writer is not None:
            self._writer.release()
            self._partial.unlink(missing_ok=True)


class VideoSink:
    """Writes what was asked for of a video: pictures as videos, label maps and logits as one file per frame.

    A context manager: without `finish`, no video remains.

    Args:
        photos: what to write and where, as for photos; with ``one_file`` the only video.
        name: of the video, without an ending.
        rate: frames per second.
    """

    def __init__(self, photos: PhotoSink, name: str, rate: float) -> None:
        self._photos, self._name, self._frames = photos, name, 0
        self._videos = {key: VideoFile(path, rate) for key, path in _video_paths(photos, name).items()}
        # Folders of the files of each frame, with their ending.
        self._folders = {
            path.with_name(name): path.suffix
            for (kind, _), path in photos.paths(name).items()
            if kind in (LABELS, LOGITS)
        }

    def __enter__(self) -> VideoSink:
        return self

    def __exit__(self, *_: object) -> None:
        for video in self._videos.values():
            video.discard()

    def check(self, source: str, overwrite: bool) -> None:
        """Find what is in the way before the work, and make the folders.

        Args:
            source: path of the video that is read.
            overwrite: what exists may be replaced.

        Raises:
            SSTDataError: as `PhotoSink.check`, or the ending is none of a video.
        """
        if self._photos.one_file and (self._folders or len(self._videos) > 1):
            raise SSTDataError(f"{self._photos.output}: is one file, and several are to be written; name a folder")
        places = [*(video.path for video in self._videos.values()), *self._folders]
        existing = [path for path in places if os.path.lexists(path)]
        for video in self._videos.values():
            if video.path.suffix.lower() not in VIDEO_CODECS:
                raise SSTDataError(f"{video.path}: videos are written as {', '.join(VIDEO_CODECS)}; name such a file")
            if video.path.exists() and os.path.samefile(video.path, source):
                raise SSTDataError(f"{video.path}: the result would replace the video; name another --output")
        if existing and not overwrite:
            refuse_existing(existing)
        for folder in {*(video.path.parent for video in self._videos.values()), *self._folders}:
            make_writable(folder)

    def write(self, answers: Mapping[str, Prediction]) -> None:
        """Write the next frame.

        Raises:
            SSTDataError: a file cannot be written.
        """
        self._frames += 1
        for (kind, domain), video in self._videos.items():
            video.write(frame_sheet(answers) if kind == SIDE_BY_SIDE else answers[domain].overlay())
        self._photos.write(f"{self._name}/{self._frames:06d}", answers, (LABELS, LOGITS))

    def finish(self) -> None:
        """Give the videos their names.

        Raises:
            SSTDataError: one of them is not whole.
        """
        for video in self._videos.values():
            video.finish()

    def leftovers(self) -> str:
        """After the last frame: a sentence, if files of later frames lie beside the results; else nothing.

        They may be those of a longer video that was here before, or the user's own frames: nobody else can tell.
        """
        later = [
            path
            for folder, ending in self._folders.items()
            for path in sorted(folder.glob(f"{'[0-9]' * 6}{ending}"))
            if int(path.stem) > self._frames
        ]
        if not later:
            return ""
        return (
            f"{later[0]}: {len(later)} such file{'s' * (len(later) > 1)} of frames after {self._frames}, the last one, "
            "were here before and are left; delete what is of a longer video"
        )


def frame_sheet(answers: Mapping[str, Prediction]) -> np.ndarray:
    """(h, w, 3) uint8: the frame, then its overlay in each label domain with all classes below; of even size.

    Frames of one size give sheets of one size, whatever is in them.
    """
    predictions = list(answers.values())
    columns = [sheet({"frame": predictions[0].image}, predictions[0].domain, [])]
    for one in predictions:
        colored = set(range(len(one.classes))) - set(background_ids(one.domain))
        columns.append(sheet({one.domain.name: one.overlay()}, one.domain, colored))
    height = max(column.shape[0] for column in columns)
    rows = [_padded(column, height + height % 2, column.shape[1]) for column in columns]
    joined = np.concatenate(rows, axis=1)
    return _padded(joined, joined.shape[0], joined.shape[1] + joined.shape[1] % 2)


def _padded(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    below, right = height - picture.shape[0], width - picture.shape[1]
    return np.pad(picture, ((0, below), (0, right), (0, 0)), constant_values=255)


def _video_paths(photos: PhotoSink, name: str) -> dict[tuple[str, str | None], Path]:
    return {
        key: path if photos.one_file else path.with_name(f"{path.stem}.mp4")
        for key, path in photos.paths(name).items()
        if key[0] in (OVERLAY, SIDE_BY_SIDE)
    }
