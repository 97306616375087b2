"""Compiled kernels on disk: one file each below ``~/.cache/sst_d2`` (``$XDG_CACHE_HOME/sst_d2``), which may be deleted.

A file holds a checksum before its content; one that is damaged counts as absent. Files appear under their name only
when they are whole, so that any number of processes may write the same one. Where nothing can be written, nothing is
kept, and the log says so once.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import tempfile
from pathlib import Path

_MAGIC = b"sst_d2 kernels 1\n"
_DIGEST = hashlib.sha256().digest_size


def folder() -> Path | None:
    """Where the files lie; None: this user has no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "sst_d2"
    except RuntimeError:
        return None


def path_of(key: str) -> Path | None:
    """The file of a key; None: there is no folder."""
    place = folder()
    return place and place / f"msda-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"


def read(key: str) -> bytes | None:
    """What was kept under a key; None: nothing, or a damaged file."""
    path = path_of(key)
    try:
        data = path.read_bytes() if path else b""
    except OSError:
        return None
    content = data[len(_MAGIC) + _DIGEST :]
    if data and data == _MAGIC + _digest(key, content) + content:
        return content
    if data:
        logging.getLogger(__name__).info("%s is damaged; it is made anew", path)
    return None


def write(key: str, content: bytes) -> None:
    """Keep something under a key, if that is possible."""
    path = path_of(key)
    if path is None:
        _say_once("this user has no home folder")
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with open(handle, "wb") as stream:
                stream.write(_MAGIC + _digest(key, content) + content)
            os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.remove(partial)
            raise
    except OSError as reason:
        _say_once(str(reason))


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + content).digest()


@functools.cache
def _say_once(reason: str) -> None:
    logging.getLogger(__name__).info(
        "compiled kernels of the attention operator are not kept (%s); each process compiles them again. "
        "XDG_CACHE_HOME names another folder",
        reason,
    )
