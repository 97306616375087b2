"""The built-in records hold the official facts; wrong records are refused by file, field and value."""

import numpy as np
import pytest
import yaml

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains import LabelDomain, get_label_domain, known_label_domains, load_label_domain
from sst_d2.label_domains.domain import voc_colors

GOOD = {"name": "toy", "classes": ["sky", "left-hand", "right-hand"], "flip_pairs": [["left-hand", "right-hand"]]}


@pytest.mark.parametrize(
    ("name", "count", "edges", "pairs"),
    [("pascal_person_part", 7, 5, 0), ("atr", 18, 34, 3), ("cihp", 20, 48, 3), ("lip", 20, 44, 3)],
)
def test_built_in_domains_have_their_official_sizes(name, count, edges, pairs):
    domain = get_label_domain(name)
    assert (domain.num_classes, len(domain.adjacency), len(domain.flip_pairs)) == (count, edges, pairs)
    assert domain.classes[0] == "background" and domain.ignore_label == 255
    assert len({frozenset(edge) for edge in domain.adjacency}) == edges
    assert name in known_label_domains()


OFFICIAL = {
    "pascal_person_part": "background head torso upper-arm lower-arm upper-leg lower-leg",
    "atr": "background hat hair sunglasses upper-clothes skirt pants dress belt left-shoe right-shoe face left-leg "
    "right-leg left-arm right-arm bag scarf",
    "cihp": "background hat hair glove sunglasses upper-clothes dress coat socks pants torso-skin scarf skirt face "
    "left-arm right-arm left-leg right-leg left-shoe right-shoe",
    "lip": "background hat hair glove sunglasses upper-clothes dress coat socks pants jumpsuits scarf skirt face "
    "left-arm right-arm left-leg right-leg left-shoe right-shoe",
}
# Graphonomy's body graphs, written down a second time; of LIP ours.
EDGES = {
    "pascal_person_part": "head:torso torso:upper-arm,upper-leg upper-arm:lower-arm upper-leg:lower-leg",
    "atr": "hat:hair,face hair:face sunglasses:face upper-clothes:skirt,pants,dress,face,left-arm,right-arm,scarf "
    "skirt:pants,dress,belt,left-leg,right-leg pants:dress,belt,left-shoe,right-shoe,left-leg,right-leg "
    "dress:face,left-leg,right-leg,left-arm,right-arm left-shoe:left-leg right-shoe:right-leg "
    "face:left-arm,right-arm,scarf left-arm:bag right-arm:bag",
    "cihp": "hat:hair,face hair:face sunglasses:face glove:left-arm,right-arm "
    "upper-clothes:dress,coat,pants,torso-skin,scarf,skirt,left-arm,right-arm "
    "dress:coat,torso-skin,scarf,left-arm,right-arm,left-leg,right-leg "
    "coat:pants,torso-skin,scarf,skirt,left-arm,right-arm socks:left-leg,right-leg,left-shoe,right-shoe "
    "pants:torso-skin,left-leg,right-leg,left-shoe,right-shoe "
    "torso-skin:scarf,skirt,face,left-arm,right-arm,left-leg,right-leg scarf:face skirt:left-leg,right-leg "
    "left-leg:left-shoe right-leg:right-shoe",
    "lip": "hat:hair,face hair:face sunglasses:face glove:left-arm,right-arm "
    "upper-clothes:dress,coat,pants,jumpsuits,scarf,skirt,left-arm,right-arm "
    "dress:coat,scarf,left-arm,right-arm,left-leg,right-leg coat:pants,jumpsuits,scarf,skirt,left-arm,right-arm "
    "jumpsuits:scarf,left-arm,right-arm,left-leg,right-leg socks:left-leg,right-leg,left-shoe,right-shoe "
    "pants:left-leg,right-leg,left-shoe,right-shoe scarf:face skirt:left-leg,right-leg "
    "left-leg:left-shoe right-leg:right-shoe",
}


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_classes_and_edges_are_the_published_ones(name):
    domain = get_label_domain(name)
    assert list(domain.classes) == OFFICIAL[name].split()
    expected = {
        frozenset((a, b))
        for part in EDGES[name].split()
        for a in [part.split(":")[0]]
        for b in part.split(":")[1].split(",")
    }
    assert {frozenset(edge) for edge in domain.adjacency} == expected


def test_index_10_is_torso_skin_in_cihp_and_jumpsuits_in_lip():
    cihp, lip = get_label_domain("cihp"), get_label_domain("lip")
    assert (cihp.classes[10], lip.classes[10]) == ("torso-skin", "jumpsuits")
    assert [a for i, a in enumerate(cihp.classes) if i != 10] == [a for i, a in enumerate(lip.classes) if i != 10]


def test_official_indices_of_single_classes():
    atr = get_label_domain("atr")
    assert [atr.index(c) for c in ("face", "left-shoe", "right-shoe", "bag", "scarf")] == [11, 9, 10, 16, 17]
    assert get_label_domain("pascal_person_part").index("lower-leg") == 6
    with pytest.raises(KeyError, match="no class 'tail'.*upper-clothes"):
        atr.index("tail")


def test_flip_permutation_swaps_the_pairs_and_is_its_own_inverse():
    permutation = get_label_domain("cihp").flip_permutation()
    assert permutation[14:].tolist() == [15, 14, 17, 16, 19, 18] and permutation[:14].tolist() == list(range(14))
    assert (permutation[permutation] == np.arange(20)).all()


def test_voc_colours_stand_in_for_missing_ones():
    assert voc_colors(4) == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert LabelDomain.from_dict(GOOD, "here").colors == voc_colors(3)
    assert get_label_domain("pascal_person_part").colors == voc_colors(7)


def test_to_dict_and_back_gives_an_equal_record_from_another_source():
    domain = get_label_domain("atr")
    assert LabelDomain.from_dict(yaml.safe_load(yaml.safe_dump(domain.to_dict())), "elsewhere") == domain


COVERS = {"left-hand": {"left-hand": 1, "skin": 0.5}, "sky": ["background"]}
SIMILARITY = {"atr": {"sky": {"background": 1}, "left-hand": {"left-arm": 0.6, "face": 0}, "right-hand": {"face": 0}}}


def test_covers_and_similarity_go_into_the_record_and_out_again():
    record = {**GOOD, "covers": COVERS, "similarity": SIMILARITY}
    domain = LabelDomain.from_dict(record, "here")
    assert domain.covers == (("left-hand", "left-hand", 1), ("left-hand", "skin", 0.5), ("sky", "background", 1))
    assert ("atr", "left-hand", "left-arm", 0.6) in domain.similarity and len(domain.similarity) == 4
    again = LabelDomain.from_dict(yaml.safe_load(yaml.safe_dump(domain.to_dict())), "elsewhere")
    assert again == domain and hash(again) == hash(domain)
    assert domain.to_dict()["similarity"] == SIMILARITY
    assert domain.to_dict()["covers"] == {**COVERS, "sky": {"background": 1}}


def test_covers_and_similarity_are_part_of_equality_and_their_order_is_not():
    plain = LabelDomain.from_dict(GOOD, "here")
    domain = LabelDomain.from_dict({**GOOD, "covers": COVERS, "similarity": SIMILARITY}, "here")
    turned = {"sky": ["background"], "left-hand": {"skin": 0.5, "left-hand": 1}}
    rows = dict(reversed(SIMILARITY["atr"].items()))
    assert LabelDomain.from_dict({**GOOD, "covers": turned, "similarity": {"atr": rows}}, "here") == domain != plain
    assert LabelDomain.from_dict({**GOOD, "covers": COVERS}, "here") != plain


def test_records_of_older_checkpoints_have_neither_covers_nor_similarity():
    domain = get_label_domain("atr")
    record = {key: value for key, value in domain.to_dict().items() if key not in ("covers", "similarity")}
    assert LabelDomain.from_dict(record, "old.pth") == domain and domain.covers == domain.similarity == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip_pairs": [["left-hand", "paw"]]}, r"flip_pairs.*unknown class 'paw'; classes: sky"),
        ({"adjacency": [["sky", "cloud"]]}, r"adjacency.*unknown class 'cloud'"),
        ({"adjacency": [["sky", "sky"]]}, r"adjacency.*two different classes"),
        ({"adjacency": [["sky"]]}, r"adjacency.*pairs of two"),
        ({"flip_pairs": [["sky", "left-hand"], ["sky", "right-hand"]]}, r"flip_pairs.*'sky' occurs twice"),
        ({"classes": ["sky", "sky"], "flip_pairs": []}, r"classes.*'sky' occurs 2 times"),
        ({"classes": ["sky", None], "flip_pairs": []}, r"entry 1 is None.*quotes"),
        ({"classes": ["sky"], "flip_pairs": []}, r"1 classes; 2 to 255"),
        ({"classes": "sky"}, r"'classes': 'sky'; a list"),
        ({"colors": [[0, 0, 0]]}, r"colors.*1 colours for 3 classes"),
        ({"colors": [[0, 0, 0], [1, 2, 3], [1, 2, 256]]}, r"\[1, 2, 256\] of 'right-hand'.*0 to 255"),
        ({"ignore_label": 2}, r"ignore_label.*2; allowed are 3 to 255"),
        ({"ignore_label": "none"}, r"ignore_label.*'none'"),
        ({"name": "no space"}, r"name.*'no space'"),
        ({"name": "all"}, r"'all' means every domain"),
        ({"covers": {"paw": ["hand"]}}, r"covers.*unknown class 'paw'; classes: sky"),
        ({"covers": {"sky": ["hnd"]}}, r"covers.*class 'sky': unknown atom 'hnd' \(similar: hand.*atoms: scalp"),
        ({"covers": {"sky": {"hand": 1.5}}}, r"covers.*class 'sky': weight 1.5 of atom 'hand'; a number above 0"),
        ({"covers": {"sky": {"hand": 0}}}, r"weight 0 of atom"),
        ({"covers": {"sky": {"hand": True}}}, r"weight True of atom"),
        ({"covers": {"sky": {"hand": None}}}, r"weight None of atom"),
        ({"covers": {"sky": {}}}, r"covers': sky: \{\}; a mapping by atom"),
        ({"covers": {"sky": []}}, r"covers': sky: \{\}; a mapping by atom"),
        ({"covers": {"sky": "hand"}}, r"covers': sky: 'hand'; a mapping by atom"),
        ({"covers": ["sky"]}, r"covers': \['sky'\]; a mapping by class"),
        ({"similarity": {"atr": {"sky": {"face": 0}}}}, r"similarity.*to 'atr': no row for left-hand, right-hand;"),
        ({"similarity": {"atr": {"paw": {"face": 0}}}}, r"similarity.*unknown class 'paw'"),
        ({"similarity": {"atr": {"sky": {"face": 1.1}}}}, r"class 'sky', its class 'face': 1.1; a number from 0 to 1"),
        ({"similarity": {"atr": {"sky": {"face": "x"}}}}, r"'x'; a number from 0 to 1"),
        ({"similarity": {"toy": {"sky": {"sky": 1}}}}, r"to 'toy'.*names of another domain"),
        ({"similarity": {"atr": {"sky": {None: 1}}}}, r"its class None: names of another domain and of its classes"),
        ({"similarity": {"atr": {"sky": 1}}}, r"similarity': atr: sky: 1; a mapping by class of the other domain"),
        ({"similarity": {"atr": None}}, r"similarity': atr: None; a mapping by class"),
        ({"colour": []}, r"the field 'colour' is unknown \(known: adjacency"),
    ],
)
def test_wrong_records_are_refused_by_file_field_and_value(tmp_path, changes, message):
    path = tmp_path / "toy.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    with pytest.raises(LabelDomainError, match=message) as error:
        load_label_domain(path)
    assert str(path) in str(error.value)


def test_a_missing_field_and_a_file_that_is_no_mapping_are_refused(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text("name: toy\n")
    with pytest.raises(LabelDomainError, match="the field 'classes' is missing"):
        load_label_domain(path)
    path.write_text("- a\n")
    with pytest.raises(LabelDomainError, match="holds a list; a mapping"):
        load_label_domain(path)
    path.write_text("a: [b\n")
    with pytest.raises(LabelDomainError, match="is not a YAML file"):
        load_label_domain(path)
