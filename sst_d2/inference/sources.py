"""From what a user names, files, folders and globs, to photos, each with its place in the output."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from sst_d2.errors import SSTDataError

# What counts as a photo in a folder; files that are named one by one are tried whatever their ending is.
PHOTO_ENDINGS = {
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
}


@dataclass(frozen=True)
class Photo:
    """A photo to be predicted.

    Attributes:
        path: of the file.
        name: its place below the output folder, without an ending.
    """

    path: str
    name: str


@dataclass
class Found:
    """What `find_photos` has found.

    Attributes:
        photos: in the order of their inputs; of a folder by name. Every ``name`` is there once.
        problems: a sentence for each folder that cannot be read.
        left_out: inputs that are not searched, as named: the folder of the results beside other inputs.
    """

    photos: list[Photo] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_photos(inputs: Sequence[str], leave_out: str | os.PathLike | None = None) -> Found:
    """Find the photos.

    Names start from the folder that all inputs share: those of one folder from this folder, those of one glob from
    its part before the first wildcard. Two photos that differ in their ending alone keep it in their name.

    Args:
        inputs: files; folders, searched with the folders in them (links are followed, each folder counts once; what
            begins with a dot is left out); globs, ``**`` goes into folders. ``~`` is the home folder.
        leave_out: a folder that is not searched, the one of the results: not inside of a folder, not by a glob, and
            not where a shell has named it, with or without what lies in it, beside the photos.

    Raises:
        SSTDataError: one of ``inputs`` does not exist, there is no photo in any of them, or ``leave_out`` is the only
            one.
    """
    found, files = Found(), {}  # path -> the folder that its name starts from
    results = _identity(leave_out) if leave_out is not None and os.path.isdir(leave_out) else None
    found.left_out = [text for text in inputs if results and _identity(os.path.expanduser(text)) == results]
    for text in inputs:
        # Of a folder that is not named itself, a photo may well be.
        if found.left_out and _lies_in(os.path.expanduser(text), os.sep, results):
            continue
        for path, base in _expand(text, results, found.problems):
            files.setdefault(os.path.abspath(path), (path, os.path.abspath(base)))
    if found.left_out and not files:
        raise SSTDataError(
            f"{found.left_out[0]}: is the folder of the photos and of the results; name another one for these"
        )
    if not files:
        problem = found.problems[0] if found.problems else "no photo lies in it"
        raise SSTDataError(f"{', '.join(map(str, inputs))}: {problem}; give photos, or a folder or a glob of some")
    start = os.path.commonpath([base for _, base in files.values()])
    endless = [os.path.splitext(os.path.relpath(path, start))[0] for path in files]
    often = Counter(endless)
    names = [
        name if often[name] == 1 else os.path.relpath(path, start) for path, name in zip(files, endless, strict=True)
    ]
    found.photos = [Photo(path, name) for (path, _), name in zip(files.values(), names, strict=True)]
    seen: dict[str, str] = {}
    for photo in found.photos:
        if seen.setdefault(photo.name, photo.path) != photo.path:
            raise SSTDataError(f"{photo.path} and {seen[photo.name]}: their results have one name; rename one of them")
    return found


def _expand(text: str, results: tuple[int, int] | None, problems: list[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a photo's path and the folder that its name starts from."""
    path = os.path.expanduser(text)
    if os.path.isdir(path):
        yield from ((file, path) for file in _files_below(path, results, problems))
    elif os.path.lexists(path):
        yield path, os.path.dirname(path) or os.curdir
    elif glob.has_magic(path):
        base = _before_wildcards(path)
        matches = sorted(glob.glob(path, recursive=True))
        if not matches:
            raise SSTDataError(f"{text}: no file has such a name")
        for match in matches:
            if not _lies_in(match, base, results):
                files = _files_below(match, results, problems) if os.path.isdir(match) else [match]
                yield from ((file, base) for file in files)
    else:
        raise SSTDataError(f"{text}: there is no such file or folder")


def _before_wildcards(pattern: str) -> str:
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def _lies_in(path: str, base: str, folder: tuple[int, int] | None) -> bool:
    """Whether ``path`` is, or lies in, a folder below ``base``."""
    place = base
    for part in os.path.relpath(path, base).split(os.sep) if folder else ():
        place = os.path.join(place, part)
        if part != os.curdir and _identity(place) == folder:
            return True
    return False


def _files_below(top: str, results: tuple[int, int] | None, problems: list[str]) -> Iterator[str]:
    """Photos by their ending, in the order of names. A link to a folder above ends nowhere: each counts once."""

    def _note(reason: OSError) -> None:
        problems.append(f"{reason.filename}: the folder cannot be read ({reason.strerror})")

    seen = {_identity(top), results} if results else {_identity(top)}
    for folder, folders, files in os.walk(top, onerror=_note, followlinks=True):
        inside = []
        for name in sorted(folders):
            identity = _identity(os.path.join(folder, name))
            if not name.startswith(".") and identity not in seen:
                seen.add(identity)
                inside.append(name)
        folders[:] = inside
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in PHOTO_ENDINGS:
                yield os.path.join(folder, name)


def _identity(folder: str | os.PathLike) -> tuple[int, int] | None:
    """The same for all names of one folder; None where there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino
