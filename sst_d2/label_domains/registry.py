"""The label domains that this process knows, by name: the built-in ones and those that a user registers."""

from __future__ import annotations

import os
from pathlib import Path

from sst_d2.errors import LabelDomainError
from sst_d2.files import expand_path, read_yaml_mapping
from sst_d2.label_domains.domain import OPTIONAL_FIELDS, REQUIRED_FIELDS, LabelDomain

_BUILT_IN_FOLDER = Path(__file__).parent
_registered: dict[str, LabelDomain] = {}


def load_label_domain(path: str | os.PathLike) -> LabelDomain:
    """Read one domain file, without registering it.

    Raises:
        LabelDomainError: the file cannot be read or breaks a rule of `LabelDomain`.
    """
    path = expand_path(path, error=LabelDomainError)
    record = read_yaml_mapping(path, REQUIRED_FIELDS, OPTIONAL_FIELDS, LabelDomainError)
    return LabelDomain.from_dict(record, source=str(path))


def register_label_domain(path: str | os.PathLike) -> LabelDomain:
    """Read a domain file and make its name known. Registering the same record again changes nothing.

    Raises:
        LabelDomainError: as `load_label_domain`, or the name belongs to another record already.
    """
    return _register(load_label_domain(path))


def get_label_domain(name_or_path: str | os.PathLike) -> LabelDomain:
    """The domain of a name, or of a YAML file, which is registered on the way.

    Raises:
        LabelDomainError: the name is unknown (the message lists the known ones), or the file is not usable.
    """
    text = os.fspath(name_or_path)
    if text.endswith((".yaml", ".yml")):
        return register_label_domain(text)
    if text not in _registered:
        built_in = _BUILT_IN_FOLDER / f"{text}.yaml"
        if text not in _built_in_names():
            known = ", ".join(known_label_domains())
            raise LabelDomainError(
                f"unknown label domain '{text}'; known: {known}. For your own give the path of its .yaml file"
            )
        register_label_domain(built_in)
    return _registered[text]


def known_label_domains() -> list[str]:
    """Names of all domains that can be had without a path, sorted."""
    return sorted({*_built_in_names(), *_registered})


def _built_in_names() -> list[str]:
    return [path.stem for path in _BUILT_IN_FOLDER.glob("*.yaml")]


def _register(domain: LabelDomain) -> LabelDomain:
    known = _registered.get(domain.name)
    if known is None and domain.name in _built_in_names():
        known = load_label_domain(_BUILT_IN_FOLDER / f"{domain.name}.yaml")
    if known is not None and known != domain:
        differing = [field for field, value in known.to_dict().items() if domain.to_dict()[field] != value]
        raise LabelDomainError(
            f"{domain.source}: the name '{domain.name}' is taken by another label domain ({known.source}), "
            f"which differs in: {', '.join(differing)}; give yours another name"
        )
    return _registered.setdefault(domain.name, domain)
