"""What all runs of a scale share: the synthetic people, and the trunk that every row starts from."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduction.places import Places, ReproductionError
from reproduction.scales import Scale
from reproduction.settings import ROOT


def make_people(scale: Scale, places: Places) -> None:
    """Make the data sets of a scale; those that are there stay.

    Raises:
        ReproductionError: it failed; its message stands above.
    """
    if scale.people is not None:
        output = places.datasets / "synthetic_people"
        _called("datasets/make_synthetic_people.py", ["--output", str(output), *_arguments(scale.people)])


def trunk_of(scale: Scale, places: Places, given: str) -> str:
    """The weights that rows without another start begin with; made once, if the scale says so.

    Args:
        scale, places: of the runs.
        given: a file that the user names; "": none.

    Returns:
        its path; "": each configuration's own ``MODEL.WEIGHTS``.

    Raises:
        ReproductionError: there is no such file, or it could not be made.
    """
    if given:
        path = Path(given).expanduser().resolve()
        if not path.is_file():
            raise ReproductionError(f"--weights: there is no file {path}")
        return str(path)
    if scale.trunk is None:
        return ""
    if not places.trunk.is_file():
        _called("benchmarks/pretrain_trunk.py", ["--output", str(places.trunk), *_arguments(scale.trunk)])
        if not places.trunk.is_file():
            raise ReproductionError(f"benchmarks/pretrain_trunk.py has ended without writing {places.trunk}")
    return str(places.trunk)


def digest(path: str) -> str:
    """SHA-256 of a file; "" of no file."""
    if not path:
        return ""
    total = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def _arguments(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def _called(script: str, arguments: Sequence[str]) -> None:
    print(f"$ {script} {' '.join(arguments)}", flush=True)
    status = subprocess.run([sys.executable, str(ROOT / script), *arguments], cwd=ROOT).returncode
    if status:
        raise ReproductionError(f"{script} ended with status {status}; its message stands above")
