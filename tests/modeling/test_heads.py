"""One head per domain, named after it."""

import pytest
import torch

from sst_d2.errors import SSTConfigError
from sst_d2.label_domains import LabelDomain, get_label_domain
from sst_d2.modeling import SSTHeads

DOMAINS = [get_label_domain(name) for name in ("atr", "cihp")]


def test_each_head_has_the_classes_of_its_domain_and_its_name_in_the_weights():
    heads = SSTHeads(5, DOMAINS)
    features = torch.randn(2, 5, 3, 4)
    assert heads(features, "atr").shape == (2, 18, 3, 4) and heads(features, "cihp").shape == (2, 20, 3, 4)
    assert sorted(heads.state_dict()) == ["atr.bias", "atr.weight", "cihp.bias", "cihp.weight"]


def test_an_empty_batch_gives_zero_gradients_instead_of_none():
    heads = SSTHeads(5, DOMAINS)
    heads(torch.randn(0, 5, 3, 4), "atr").sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in heads["atr"].parameters())


def test_no_domain_double_domains_and_impossible_names_are_refused():
    for domains in ([], [DOMAINS[0], DOMAINS[0]]):
        with pytest.raises(SSTConfigError, match="MODEL.SST.DOMAINS"):
            SSTHeads(5, domains)
    for name in ("train", "training", "keys"):
        with pytest.raises(SSTConfigError, match=f"'{name}': the name is an attribute"):
            SSTHeads(5, [LabelDomain(name, ("a", "b"), ((0, 0, 0),) * 2)])
