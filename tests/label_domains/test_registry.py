"""Names and paths of label domains."""

import pytest
import yaml

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains import get_label_domain, known_label_domains, register_label_domain

TOY = {"name": "toy", "classes": ["sky", "person"]}


def test_a_path_registers_the_domain_under_its_name(tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(TOY))
    monkeypatch.setenv("MY_DOMAINS", str(tmp_path))
    assert get_label_domain("${MY_DOMAINS}/mine.yaml").classes == ("sky", "person")
    assert get_label_domain("toy").num_classes == 2 and "toy" in known_label_domains()


def test_registering_the_same_record_twice_is_fine_and_another_one_is_not(tmp_path):
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(yaml.safe_dump(TOY))
    second.write_text(yaml.safe_dump({**TOY, "classes": ["sky", "people"]}))
    register_label_domain(first)
    register_label_domain(first)
    with pytest.raises(LabelDomainError, match=r"name 'toy' is taken.*differs in: classes"):
        register_label_domain(second)


def test_a_built_in_name_cannot_be_taken(tmp_path):
    path = tmp_path / "atr.yaml"
    path.write_text(yaml.safe_dump({**TOY, "name": "atr"}))
    with pytest.raises(LabelDomainError, match="name 'atr' is taken"):
        register_label_domain(path)


def test_unknown_names_and_files_say_what_is_known():
    with pytest.raises(
        LabelDomainError, match="unknown label domain 'cicp'; known: atr, cihp, lip, pascal_person_part"
    ):
        get_label_domain("cicp")
    with pytest.raises(LabelDomainError, match=r"no/such\.yaml: cannot be read"):
        get_label_domain("no/such.yaml")
    with pytest.raises(LabelDomainError, match="variable NOT_SET_ANYWHERE is not set"):
        get_label_domain("${NOT_SET_ANYWHERE}/d.yaml")
