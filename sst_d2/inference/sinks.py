"""What is written of predictions: overlays, sheets with legends, label maps, logits; where, and never by accident."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sst_d2.errors import SSTDataError
from sst_d2.files import write_whole
from sst_d2.inference.prediction import Prediction
from sst_d2.inference.sources import Photo
from sst_d2.visualization import save_image, side_by_side
from sst_d2.visualization.files import PictureFormatError

OVERLAY, SIDE_BY_SIDE, LABELS, LOGITS = "overlay", "side-by-side", "labels", "logits"
KINDS = (OVERLAY, SIDE_BY_SIDE, LABELS, LOGITS)
_ENDINGS = {OVERLAY: (".jpg", ".jpeg", ".png", ".webp"), LABELS: (".png",), LOGITS: (".npz",)}
_ENDINGS[SIDE_BY_SIDE] = _ENDINGS[OVERLAY]


@dataclass(frozen=True)
class PhotoSink:
    """Writes what was asked for of each photo, each file whole or not at all.

    A file lies in ``output/KIND/DOMAIN/NAME.ENDING``. The folder KIND is there where several kinds are asked for, the
    folder DOMAIN where several label domains are; a sheet (side by side) shows all of them.

    Attributes:
        output: the folder; or with ``one_file`` the only file.
        kinds: of `KINDS`.
        domains: names of the label domains.
        one_file: ``output`` is a file.
    """

    output: Path
    kinds: tuple[str, ...]
    domains: tuple[str, ...]
    one_file: bool = False

    def folder(self, kind: str, domain: str | None = None) -> Path:
        """Where files of a kind, and of a label domain, lie."""
        folder = self.output / kind if len(self.kinds) > 1 else self.output
        return folder / domain if domain is not None and len(self.domains) > 1 else folder

    def paths(self, name: str) -> dict[tuple[str, str | None], Path]:
        """The files of a photo: (kind, label domain; None: all of them) -> path."""
        paths = {}
        for kind in self.kinds:
            for domain in (None,) if kind == SIDE_BY_SIDE else self.domains:
                place = self.folder(kind, domain) / f"{name}{_ENDINGS[kind][0]}"
                paths[kind, domain] = self.output if self.one_file else place
        return paths

    def write(self, name: str, answers: Mapping[str, Prediction], kinds: Sequence[str] = KINDS) -> None:
        """Write the files of a photo.

        Args:
            name: of the photo, as its source gives it.
            answers: its predictions by label domain.
            kinds: leave out those of other kinds.

        Raises:
            PictureFormatError: one of them cannot be had in its format; the others are written.
            SSTDataError: a file cannot be written.
        """
        refused = None
        for (kind, domain), path in self.paths(name).items():
            try:
                if kind in kinds:
                    self._write_file(path, kind, answers, domain)
            except PictureFormatError as reason:
                refused = refused or reason
        if refused is not None:
            raise refused

    @staticmethod
    def _write_file(path: Path, kind: str, answers: Mapping[str, Prediction], domain: str | None) -> None:
        if kind == SIDE_BY_SIDE:
            save_image(path, sheet_of(answers))
        elif kind == OVERLAY:
            save_image(path, answers[domain].overlay())
        elif kind == LABELS:
            answers[domain].save(path, overwrite=True)
        else:
            save_logits(path, answers[domain])

    def check(self, photos: Sequence[Photo], overwrite: bool) -> None:
        """Find what is in the way before the work, and make the folder.

        Raises:
            SSTDataError: files exist and ``overwrite`` is false, one of them is a photo itself, ``output`` cannot be
                written to, or is one file for several.
        """
        self._check_one_file(photos)
        own = {_identity(photo.path) for photo in photos}
        existing = [path for photo in photos for path in self.paths(photo.name).values() if os.path.lexists(path)]
        for path in existing:
            if os.path.exists(path) and _identity(path) in own:
                raise SSTDataError(f"{path}: a result would replace the photo; name another --output")
            if path.is_dir():
                raise SSTDataError(f"{path}: is a folder, a result would have its name; name another --output")
        if existing and not overwrite:
            refuse_existing(existing)
        make_writable(self.output.parent if self.one_file else self.output)

    def _check_one_file(self, photos: Sequence[Photo]) -> None:
        if not self.one_file:
            return
        kinds = self.paths("")
        if len(photos) * len(kinds) > 1:
            raise SSTDataError(
                f"{self.output}: is one file, and {len(photos) * len(kinds)} are to be written; name a folder"
            )
        ((kind, _),) = kinds
        if self.output.suffix.lower() not in _ENDINGS[kind]:
            raise SSTDataError(
                f"{self.output}: '{kind}' is written as {' or '.join(_ENDINGS[kind])}; name such a file, or a folder"
            )


def refuse_existing(paths: Sequence[Path]) -> None:
    """Say that results exist.

    Raises:
        SSTDataError: always.
    """
    more = f" and {len(paths) - 1} more results exist" if len(paths) > 1 else ": exists"
    raise SSTDataError(f"{paths[0]}{more}; --overwrite replaces what is there, or name another --output")


def make_writable(folder: Path) -> None:
    """Make a folder, and try to write to it.

    Raises:
        SSTDataError: one or the other is not possible.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError as reason:
        raise SSTDataError(f"{folder}: cannot be written to ({reason.strerror}); name another --output") from reason


def sheet_of(answers: Mapping[str, Prediction]) -> np.ndarray:
    """(h, w, 3) uint8: the photo beside its overlays in all label domains, with legends of the classes present."""
    predictions = list(answers.values())
    return side_by_side(predictions[0].image, {one.domain: one.labels for one in predictions})


def save_logits(path: Path, prediction: Prediction) -> None:
    """Write ``logits`` (K, H, W) float32, ``classes`` (K,) and ``domain`` as .npz: 4 · K bytes per pixel.

    Raises:
        SSTDataError: the file cannot be written.
    """
    arrays: dict[str, Any] = {"logits": prediction.logits(), "classes": np.array(prediction.classes)}
    arrays["domain"] = np.array(prediction.domain.name)

    def _write(stream: BinaryIO) -> None:
        np.savez(stream, **arrays)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, _write)
    except OSError as reason:
        raise SSTDataError(f"{path}: cannot be written ({reason})") from reason


def _identity(path: str | os.PathLike) -> tuple[int, int] | str:
    try:
        status = os.stat(path)
    except OSError:
        return os.path.abspath(path)
    return status.st_dev, status.st_ino
