"""How paths and the project's own YAML files are read, and files written: one set of rules for all rooms."""

from __future__ import annotations

import contextlib
import os
import re
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from sst_d2.errors import SSTError

# Detectron2's own rule: its data sets lie below this variable, or below ./datasets.
_DEFAULT_VARIABLES = {"DETECTRON2_DATASETS": "datasets"}
_VARIABLE = re.compile(r"\$\{(\w+)\}")


def expand_path(path: str | os.PathLike, base: Path | None = None, error: type[SSTError] = SSTError) -> Path:
    """Replace ``~`` and ``${VAR}`` in a path, and take it relative to ``base``.

    Args:
        path: the path as a user wrote it.
        base: folder that a relative path starts from; None: the working directory. A path that begins with a
            variable is never relative to ``base``, since the variable's value is the user's own.
        error: class of the error to raise.

    Raises:
        SSTError: (as ``error``) a variable of the path is not set.
    """
    text = os.fspath(path)

    def _value_of(match: re.Match) -> str:
        name = match.group(1)
        value = os.environ.get(name) or _DEFAULT_VARIABLES.get(name)
        if value is None:
            raise error(
                f"path '{text}': the environment variable {name} is not set; set it: export {name}=/your/folder"
            )
        return value

    expanded = Path(_VARIABLE.sub(_value_of, text)).expanduser()
    if base is None or expanded.is_absolute() or text.startswith("${"):
        return expanded
    return Path(base) / expanded


def partial_path(path: str | os.PathLike, ending: str = "partial") -> Path:
    """A name beside a file for what is not whole yet; hidden, short enough beside any legal name.

    Args:
        path: the file.
        ending: what follows the last point; the same one gives the same name, so that a later run replaces what a
            killed one has left.
    """
    name = os.path.basename(path)
    # 24 characters are 96 bytes at most, of the 255 that a name may have (143 where it is encrypted).
    return Path(path).with_name(f".{name[:24]}.{zlib.crc32(os.fsencode(name)):08x}.{ending}")


def write_whole(path: str | os.PathLike, write: Callable[[BinaryIO], Any]) -> None:
    """Write under another name, on to the disk, then rename: under ``path`` there is never a part of a file.

    Args:
        path: the file.
        write: writes its content to the stream that it is given.

    Raises:
        OSError: (or what ``write`` raises) it cannot be written; what lay under ``path`` is as it was.
    """
    partial = partial_path(path)
    try:
        with open(partial, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(partial)
        raise


class _UniqueKeyLoader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice; YAML's own would keep the last and say nothing."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As the safe loader's.

        Raises:
            yaml.constructor.ConstructorError: a key stands twice.
        """
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, str(key_node.value))
            if key in seen:
                problem = f"the key {key_node.value!r} stands twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml_mapping(
    path: str | os.PathLike, required: Iterable[str], optional: Iterable[str], error: type[SSTError]
) -> dict[str, Any]:
    """Read a YAML file that holds one mapping with known fields, by the safe loader only.

    Args:
        path: the file.
        required: fields that must be there.
        optional: fields that may be there.
        error: class of the error to raise.

    Raises:
        SSTError: (as ``error``) the file is absent, is not YAML, is not a mapping, lacks a field or has a strange one.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            record = yaml.load(stream, Loader=_UniqueKeyLoader)  # a safe loader
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror})") from reason
    except (yaml.YAMLError, ValueError, TypeError, IndexError, AttributeError, RecursionError) as reason:
        raise error(f"{path}: is not a YAML file: {reason}") from reason
    if not isinstance(record, dict):
        raise error(
            f"{path}: holds a {type(record).__name__}; a mapping with the fields {sorted(required)} is expected"
        )
    required, allowed = list(required), {*required, *optional}
    missing = [field for field in required if field not in record]
    strange = [str(field) for field in record if field not in allowed]
    if missing or strange:
        lines = [f"{path}:"]
        lines += [f"the field '{field}' is missing" for field in missing]
        lines += [f"the field '{field}' is unknown (known: {', '.join(sorted(allowed))})" for field in strange]
        raise error("\n  ".join(lines))
    return record
