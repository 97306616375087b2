"""PASCAL-Part's annotations (.mat) as label maps of PASCAL-Person-Part.

The rule: of each image the objects in stored order, of each person its parts in stored order, each painted over what
is there; the last one wins. What the names mean stands in ``pascal_person_part.yaml``.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sst_d2.data.image_io import FileFault, naming_faults
from sst_d2.data.inspection import WARNING, Finding
from sst_d2.files import read_yaml_mapping
from sst_d2.label_domains import LabelDomain

from .tree import PreparationError

_FACTS = Path(__file__).with_name("pascal_person_part.yaml")
_FACT_FIELDS = ("object_class", "object_index", "parts", "sided", "colours", "colour_tolerance")
# What SciPy raises for files that are cut off or altered, since its reader checks little: found by altering real files.
_DAMAGE = (
    *(ArithmeticError, LookupError, MemoryError, OSError),
    *(TypeError, UnboundLocalError, ValueError, zlib.error),
)


class _Strange(ValueError):
    """The file is readable and its content is not what PASCAL-Part has."""


@cache
def facts() -> dict[str, Any]:
    """What the sources' names and colours mean, in class names of the label domain."""
    return read_yaml_mapping(_FACTS, _FACT_FIELDS, (), PreparationError)


def require_scipy() -> None:
    """Find out early whether .mat files can be read.

    Raises:
        PreparationError: SciPy is not installed.
    """
    try:
        import scipy.io  # noqa: F401
    except ImportError as reason:
        raise PreparationError(f"reading .mat files needs SciPy ({reason}): python -m pip install scipy") from reason


def read_part_annotation(
    path: str, size: tuple[int, int] | None, domain: LabelDomain
) -> tuple[np.ndarray, list[Finding]]:
    """Paint the label map of one PASCAL-Part file.

    Args:
        path: the .mat file, with a struct ``anno``.
        size: (height, width) of its photo, which the masks must have; None: not known.
        domain: PASCAL-Person-Part.

    Returns:
        (H, W) uint8 of ids in [0, K), and warnings.

    Raises:
        FileFault: the file is damaged or absent, is not as PASCAL-Part's are, or names a part that is not in the table.
    """
    try:
        annotation = _only_struct(_load(path), "anno")
        objects = list(_structs(_field(annotation, "objects", "anno"), "objects"))
        persons = [thing for thing in objects if _is_person(thing)]
        parts = [_part(part) for person in persons for part in _structs(_field(person, "parts", "object"), "parts")]
        shape = _common_shape([mask for _, mask in parts] + _masks_of(persons), size)
    except _Strange as reason:
        raise FileFault(f"{path}: {reason}", "wrong_format") from reason
    if size is not None and shape != tuple(size):
        raise FileFault(
            f"{path}: its masks have {shape[0]} x {shape[1]} pixels (height x width) and its photo "
            f"{size[0]} x {size[1]}; both must agree",
            "size_mismatch",
        )
    labels = np.zeros(shape, np.uint8)
    for class_name, mask in parts:
        labels[mask] = domain.index(class_name)
    return labels, _doubts(path, annotation, bool(persons))


def _load(path: str) -> np.ndarray:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with naming_faults(path, "annotation", "missing_label"):
        raw = Path(path).read_bytes()
    try:  # SciPy alone, so that no mistake of this file reads as damage
        content = loadmat(io.BytesIO(raw), variable_names=["anno"])
    except NotImplementedError as reason:
        raise FileFault(f"{path}: a MATLAB 7.3 file; save it in MATLAB with the option -v7", "wrong_format") from reason
    except (*_DAMAGE, MatReadError) as reason:
        raise FileFault(f"{path}: the annotation cannot be read, it may be damaged or cut off ({reason})") from reason
    if "anno" not in content:
        raise _Strange("has no variable 'anno'; is it an annotation of PASCAL-Part?")
    return content["anno"]


def _only_struct(value: Any, what: str) -> np.void:
    found = list(_structs(value, what))
    if len(found) != 1:
        raise _Strange(f"'{what}' holds {len(found)} structs; one is expected")
    return found[0]


def _structs(value: Any, what: str) -> Iterator[np.void]:
    """The structs of a struct array or of a cell array, in MATLAB's order; none of an empty array."""
    if isinstance(value, np.void) and value.dtype.names:
        yield value
    elif isinstance(value, np.ndarray) and (value.dtype.names or value.dtype == object):
        for item in value.ravel(order="F"):
            yield from _structs(item, what)
    elif not isinstance(value, np.ndarray) or value.size:
        raise _Strange(f"'{what}' is no struct, but {_kind(value)}")


def _field(record: np.void, name: str, what: str) -> Any:
    if name not in record.dtype.names:
        raise _Strange(f"its {what} has no field '{name}'; fields: {', '.join(record.dtype.names)}")
    return record[name]


def _is_person(thing: np.void) -> bool:
    """By the class's name and its index; where both are there they must agree."""
    answers = []
    if "class" in thing.dtype.names:
        answers.append(_text(thing["class"], "class").lower() == facts()["object_class"])
    if "class_ind" in thing.dtype.names:
        answers.append(_number(thing["class_ind"], "class_ind") == facts()["object_index"])
    if not answers:
        raise _Strange("an object has neither 'class' nor 'class_ind'")
    if len(set(answers)) > 1:
        raise _Strange(
            f"an object is of class '{_text(thing['class'], 'class')}' with the index "
            f"{_number(thing['class_ind'], 'class_ind'):g}; '{facts()['object_class']}' has {facts()['object_index']}"
        )
    return answers[0]


def _part(part: np.void) -> tuple[str, np.ndarray]:
    """Name of the class, and the mask."""
    name = _text(_field(part, "part_name", "part"), "part_name")
    class_name = _class_of_parts().get(name.lower())
    if class_name is None:
        raise _Strange(f"a person has the part '{name}', which is none of {', '.join(sorted(_class_of_parts()))}")
    return class_name, _mask(part, f"part '{name}'")


@cache
def _class_of_parts() -> dict[str, str]:
    """Name of a part, with l or r where there are two -> name of the class."""
    sided = facts()["sided"]
    return {
        f"{side}{part}": class_name
        for class_name, parts in facts()["parts"].items()
        for part in parts
        for side in (("l", "r") if part in sided else ("",))
    }


def _mask(record: np.void, what: str) -> np.ndarray:
    """(H, W) bool. Whatever stands for "yes" (1, 255, true), it is one value."""
    mask = _field(record, "mask", what)
    while isinstance(mask, np.ndarray) and mask.dtype == object and mask.size == 1:
        mask = mask.item()
    if hasattr(mask, "toarray"):  # MATLAB's sparse matrices
        mask = mask.toarray()
    if not isinstance(mask, np.ndarray) or mask.ndim != 2 or mask.dtype.kind not in "buif":
        raise _Strange(f"the mask of the {what} is no matrix of numbers, but {_kind(mask)}")
    inside = mask != 0
    if inside.any() and not (mask[inside] == mask[inside][0]).all():
        raise _Strange(
            f"the mask of the {what} holds several values ({np.unique(mask)[:5].tolist()}); 0 and 1 are expected"
        )
    return inside


def _masks_of(persons: list[np.void]) -> list[np.ndarray]:
    """The persons' own masks, as far as they are there: they are not painted, but tell the size."""
    masks = [_mask(person, "person") for person in persons if "mask" in person.dtype.names]
    return [mask for mask in masks if mask.size]


def _common_shape(masks: list[np.ndarray], size: tuple[int, int] | None) -> tuple[int, int]:
    shapes = list(dict.fromkeys(mask.shape for mask in masks)) or ([tuple(size)] if size else [])
    if not shapes:
        raise _Strange("it has no person, so no size, and its photo cannot be read")
    if len(shapes) > 1:
        raise _Strange(f"its masks differ in size: {' and '.join(f'{h} x {w}' for h, w in shapes[:3])}")
    return shapes[0]


def _doubts(path: str, annotation: np.void, has_person: bool) -> list[Finding]:
    doubts = []
    if not has_person:
        doubts.append(Finding(WARNING, "no_person", path, "shows no person: its label map is background alone"))
    if "imname" in annotation.dtype.names and isinstance(annotation["imname"], np.ndarray):
        name = str(annotation["imname"].ravel()[0]) if annotation["imname"].size else ""
        if name and name.removesuffix(".jpg") != Path(path).stem:
            doubts.append(Finding(WARNING, "other_name", path, f"says of itself that it belongs to image '{name}'"))
    return doubts


def _text(value: Any, what: str) -> str:
    text = _unwrapped(value, what)
    if not isinstance(text, str):
        raise _Strange(f"'{what}' is no text, but {_kind(value)}")
    return text.strip()


def _number(value: Any, what: str) -> float:
    number = _unwrapped(value, what)
    if not isinstance(number, (int, float, np.number)) or isinstance(number, bool):
        raise _Strange(f"'{what}' is no number, but {_kind(value)}")
    return number


def _unwrapped(value: Any, what: str) -> Any:
    """The one value inside arrays and cells of one element."""
    while isinstance(value, np.ndarray):
        if value.size != 1:
            raise _Strange(f"'{what}' is no single value, but {_kind(value)}")
        value = value.item()
    return value


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} of the shape {value.shape}"
    return f"a {type(value).__name__}"
