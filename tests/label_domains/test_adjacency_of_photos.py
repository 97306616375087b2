"""The adjacency of the label domains of real photos: ours, so it is compared with the photos and with itself."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sst_d2.data.label_io import read_label_map
from sst_d2.label_domains import intra_adjacency, load_label_domain

CCP59, CCP14, FASHIONISTA = (
    load_label_domain(ROOT / f"tests/label_domains/{name}.yaml") for name in ("ccp59", "ccp14", "fashionista7")
)
EDGES = {domain.name: {frozenset(edge) for edge in domain.adjacency} for domain in (CCP59, CCP14, FASHIONISTA)}


@pytest.mark.parametrize("domain", [CCP59, CCP14, FASHIONISTA], ids=lambda domain: domain.name)
def test_every_class_has_a_neighbour_but_the_background_and_no_edge_stands_twice(domain):
    matrix = intra_adjacency(domain)
    neighbours = dict(zip(domain.classes, matrix.sum(axis=1) - 1, strict=True))
    assert [name for name, count in neighbours.items() if count == 0] == [domain.classes[0]]
    assert len(EDGES[domain.name]) == len(domain.adjacency)
    # A matrix of ones would say nothing: at most half of the pairs touch, or 9 of 21 where there are few.
    assert matrix.mean() < 0.55


def test_the_edges_of_14_labels_are_those_of_59_merged():
    remap = yaml.safe_load((ROOT / "tests/cards/ccp14.yaml").read_text())["remap"]
    merged = {frozenset(CCP14.classes[remap[CCP59.index(name)]] for name in edge) for edge in EDGES["ccp59"]}
    within = {edge for edge in merged if len(edge) == 2}
    assert within - EDGES["ccp14"] == {frozenset(("hosiery", "upper_clothes"))}
    assert EDGES["ccp14"] <= within


def test_the_edges_of_7_labels_are_between_words_that_touch_in_59():
    words = {"tshirt": "t-shirt"}
    assert {frozenset(words.get(name, name) for name in edge) for edge in EDGES["fashionista7"]} <= EDGES["ccp59"]


def pairs_that_touch(labels):
    """Pairs of labels, the smaller first, between which lie at least five borders of two pixels."""
    borders = Counter()
    for one, other in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        differ = one != other
        borders.update(map(tuple, np.sort(np.stack((one[differ], other[differ]), axis=1), axis=1).tolist()))
    return [pair for pair, count in borders.items() if count >= 5]


# In photos they lie before garments that they do not touch on the body; the largest share of photos in which they do.
IN_FRONT = {"hair": 0.7, "bag": 0.95, "purse": 0.8, "bracelet": 0.6}


@pytest.mark.slow
def test_what_touches_in_most_photos_is_an_edge(real_data):
    both, touching = Counter(), Counter()
    for path in sorted((real_data / "ccp" / "labels_png").glob("*.png")):
        labels = read_label_map(path, CCP59)
        both.update(combinations(np.unique(labels[labels > 0]).tolist(), 2))
        touching.update(pairs_that_touch(labels))
    often = [pair for pair, count in both.items() if count >= 10]
    assert len(often) > 150
    for pair in often:
        names, share = [CCP59.classes[label] for label in pair], touching[pair] / both[pair]
        if frozenset(names) in EDGES["ccp59"]:
            assert share > 0.1, (names, share)
        else:
            assert share <= max(IN_FRONT.get(name, 0.5) for name in names), (names, share)
