"""M_intra of Eq. (6), and M_static of Eq. (8) from each of its sources."""

import dataclasses
import itertools
import logging
import math

import numpy as np
import pytest
import yaml
from conftest import ROOT

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains import (
    LabelDomain,
    control_similarity,
    cross_similarity,
    get_label_domain,
    intra_adjacency,
    load_label_domain,
    similarity_source,
)
from sst_d2.label_domains.body_lexicon import body_lexicon

PASCAL, ATR, CIHP, LIP = (get_label_domain(name) for name in ("pascal_person_part", "atr", "cihp", "lip"))
CCP59, CCP14, FASHIONISTA = (
    load_label_domain(ROOT / f"tests/label_domains/{name}.yaml") for name in ("ccp59", "ccp14", "fashionista7")
)
ALL = (PASCAL, ATR, CIHP, LIP, CCP59, CCP14, FASHIONISTA)


def domain(name, **fields):
    return LabelDomain.from_dict({"name": name, **fields}, f"{name}.yaml")


def by_lexicon(record):
    """The record under class names of its own that say the same, so that no published value fits."""
    return dataclasses.replace(record, classes=tuple(name.replace("-", "_") + " " for name in record.classes), **EMPTY)


EMPTY = {"flip_pairs": (), "adjacency": None}


def value(a, b, own, other):
    """Similarity of class ``own`` of a to class ``other`` of b."""
    return cross_similarity(a, b)[b.index(other), a.index(own)]


def test_pascal_adjacency_is_the_hand_written_matrix():
    expected = np.array(
        [
            [1, 0, 0, 0, 0, 0, 0],  # background: only itself
            [0, 1, 1, 0, 0, 0, 0],  # head: torso
            [0, 1, 1, 1, 0, 1, 0],  # torso: head, upper arm, upper leg
            [0, 0, 1, 1, 1, 0, 0],
            [0, 0, 0, 1, 1, 0, 0],
            [0, 0, 1, 0, 0, 1, 1],
            [0, 0, 0, 0, 0, 1, 1],
        ],
        dtype=np.float32,
    )
    assert np.array_equal(intra_adjacency(PASCAL), expected)


def test_one_way_entries_count_both_ways():
    matrix = intra_adjacency(ATR)
    assert matrix[ATR.index("skirt"), ATR.index("dress")] == matrix[ATR.index("dress"), ATR.index("skirt")] == 1
    assert np.array_equal(matrix, matrix.T) and matrix.sum() == 18 + 2 * 34


def test_without_adjacency_all_classes_touch_and_the_log_says_so(caplog):
    toy = LabelDomain("toy", ("a", "b"), ((0, 0, 0), (1, 1, 1)))
    with caplog.at_level(logging.INFO):
        assert np.array_equal(intra_adjacency(toy), np.ones((2, 2)))
    assert "'toy'" in caplog.text and "no adjacency" in caplog.text


# ---- published values


@pytest.mark.parametrize(
    ("a", "b", "own", "other", "published"),
    [
        (CIHP, PASCAL, "right-arm", "head", 0.69368576),
        (CIHP, PASCAL, "torso-skin", "torso", 0.75778818),
        (CIHP, PASCAL, "sunglasses", "torso", 0.1372435),
        (CIHP, PASCAL, "right-leg", "lower-leg", 0.84942166),
        (PASCAL, ATR, "head", "belt", 0.45162929),
        (PASCAL, ATR, "lower-leg", "scarf", 0.26762545),
        (ATR, CIHP, "dress", "dress", 0.85939662),
        (ATR, CIHP, "bag", "glove", 0.50693611),
        (ATR, CIHP, "hat", "glove", 0.46892601),
        (ATR, CIHP, "background", "dress", 0.37503981),
    ],
)
def test_published_values_stand_where_the_class_names_say(a, b, own, other, published):
    assert value(a, b, own, other) == published == value(b, a, other, own)


def test_published_matrices_have_the_published_range():
    matrices = [cross_similarity(a, b) for a, b in itertools.combinations((PASCAL, ATR, CIHP), 2)]
    assert [matrix.shape for matrix in matrices] == [(18, 7), (20, 7), (20, 18)]
    assert min(matrix.min() for matrix in matrices) == 0.1372435 and max(matrix.max() for matrix in matrices) == 1
    assert all(matrix[0, 0] == 1 and matrix.dtype == np.float64 for matrix in matrices)


def test_published_values_are_handed_out_as_copies():
    cross_similarity(PASCAL, CIHP)[:] = 0
    cross_similarity(CIHP, PASCAL)[:] = 0
    assert value(PASCAL, CIHP, "background", "background") == 1


def test_only_the_published_lists_of_classes_get_published_values(tmp_path):
    swapped = list(ATR.classes)
    swapped[3], swapped[4] = swapped[4], swapped[3]
    renamed = [name.replace("bag", "handbag") for name in ATR.classes]
    for classes in (swapped, renamed):
        other = domain("atr", classes=classes)  # the name alone says nothing
        assert similarity_source(PASCAL, other) == "body lexicon"
        assert cross_similarity(PASCAL, other)[1, 0] == 0  # no word-vector cosine is 0
    same = domain("my_atr", classes=ATR.classes, ignore_label=200)
    assert np.array_equal(cross_similarity(PASCAL, same), cross_similarity(PASCAL, ATR))
    covered = domain("my_atr", classes=ATR.classes, covers={"bag": ["hips"]})
    assert similarity_source(PASCAL, covered) == "body lexicon, with `covers` of my_atr.yaml"
    assert similarity_source(LIP, CIHP) == "body lexicon"


# ---- all sources


@pytest.fixture
def vectors(tmp_path):
    """A file with a vector for every word of PASCAL-Person-Part and LIP."""
    words = sorted({word for record in (PASCAL, LIP) for name in record.classes for word in name.split("-")})
    rows = np.random.default_rng(3).uniform(-0.2, 1, size=(len(words), 7))
    path = tmp_path / "vectors.txt"
    path.write_text("".join(f"{word} {' '.join(map(str, row))}\n" for word, row in zip(words, rows)))
    return path


def test_swapped_arguments_give_the_exact_transpose_in_the_unit_range(vectors):
    pairs = [(a, b, None) for a, b in itertools.combinations_with_replacement(ALL, 2)] + [(PASCAL, LIP, vectors)]
    for a, b, file in pairs:
        matrix = cross_similarity(a, b, file)
        assert matrix.shape == (b.num_classes, a.num_classes) and matrix.dtype == np.float64
        assert np.array_equal(matrix, cross_similarity(b, a, file).T)
        assert matrix.min() >= 0 and matrix.max() <= 1 and matrix.any(axis=0).all() and matrix.any(axis=1).all()


def test_sources_are_taken_in_their_order(vectors):
    mine = domain("mine", classes=["left arm", "face"])
    given = {"mine": {name: {"face": 0.5, "left arm": 0} for name in PASCAL.classes}}
    knows = dataclasses.replace(PASCAL, similarity=domain("x", classes=PASCAL.classes, similarity=given).similarity)
    assert similarity_source(knows, mine, vectors) == f"`similarity` of {PASCAL.source}"
    assert similarity_source(PASCAL, CIHP, vectors) == "published GloVe cosines (Graphonomy)"
    assert similarity_source(PASCAL, mine, vectors) == f"word vectors of {vectors}"
    assert similarity_source(PASCAL, mine) == "body lexicon"
    assert value(PASCAL, CIHP, "head", "hat") == 0.46201529
    assert np.array_equal(cross_similarity(PASCAL, CIHP, vectors), cross_similarity(PASCAL, CIHP))
    matrices = [
        cross_similarity(knows, mine, vectors),
        cross_similarity(PASCAL, mine, vectors),
        cross_similarity(PASCAL, mine),
    ]
    assert not any(np.allclose(one, other) for one, other in itertools.combinations(matrices, 2))


def test_word_vectors_give_the_cosines_of_summed_words(tmp_path):
    path = tmp_path / "tiny.txt"
    path.write_text("left 1 0 0\narm 0 2 0\nleg 0 0 2\nhead 3 4 0\ncloud -1 0 0\n")
    a, b = domain("a", classes=["left-arm", "head", "left-leg"]), domain("b", classes=["LeftArm", "cloud"])
    table = {"left": (1, 0, 0), "arm": (0, 2, 0), "leg": (0, 0, 2), "head": (3, 4, 0), "cloud": (-1, 0, 0)}
    words = {"left-arm": ["left", "arm"], "left-leg": ["left", "leg"], "LeftArm": ["left", "arm"]}
    matrix = cross_similarity(a, b, path)
    for i, other in enumerate(b.classes):
        for j, own in enumerate(a.classes):
            u, v = ([sum(table[w][d] for w in words.get(name, [name])) for d in range(3)] for name in (other, own))
            dot = sum(x * y for x, y in zip(u, v))
            cosine = dot / math.sqrt(sum(x * x for x in u) * sum(y * y for y in v))
            assert matrix[i, j] == pytest.approx(max(0.0, cosine), abs=1e-12)
    assert matrix[0, 0] == 1 and matrix[0, 1] == pytest.approx(11 / math.sqrt(125)) and matrix[1, 1] == 0


# ---- body lexicon


def test_lexicon_matrices_are_the_cosines_of_coverages():
    lexicon = body_lexicon()
    matrix = cross_similarity(PASCAL, CCP59)
    for i, other in enumerate(CCP59.classes):
        for j, own in enumerate(PASCAL.classes):
            u, v = lexicon.coverage(other), lexicon.coverage(own)
            dot = sum(weight * v.get(atom, 0) for atom, weight in u.items())
            size = math.sqrt(sum(x * x for x in u.values())) * math.sqrt(sum(y * y for y in v.values()))
            assert matrix[i, j] == pytest.approx(dot / size, abs=1e-12)


def test_background_is_like_background_only():
    for a, b in itertools.product((LIP, CCP59, CCP14, FASHIONISTA), repeat=2):
        matrix = cross_similarity(a, b)
        assert matrix[0, 0] == 1 and not matrix[0, 1:].any() and not matrix[1:, 0].any()


# What belongs together on a body; in each row the best first, classes of one rank in one word.
BEST_OF_PASCAL = {
    "head": {"cihp": "face hair", "atr": "face hair"},
    "torso": {"cihp": "torso-skin upper-clothes", "atr": "upper-clothes dress"},
    "upper-arm": {"cihp": "left-arm|right-arm", "atr": "left-arm|right-arm"},
    "lower-arm": {"cihp": "glove left-arm|right-arm", "atr": "left-arm|right-arm"},
    "upper-leg": {"cihp": "pants skirt", "atr": "pants skirt"},
    "lower-leg": {"cihp": "socks left-leg|right-leg", "atr": "left-leg|right-leg"},
}


@pytest.mark.parametrize("other", [ATR, CIHP], ids=lambda record: record.name)
def test_lexicon_finds_the_right_neighbours_of_body_parts(other):
    matrix = cross_similarity(by_lexicon(PASCAL), other)
    for name, best in BEST_OF_PASCAL.items():
        column = dict(zip(other.classes, matrix[:, PASCAL.index(name)], strict=True))
        ranked = sorted(column, key=column.get, reverse=True)
        for rank in best[other.name].split():
            group = set(rank.split("|"))
            assert set(ranked[: len(group)]) == group, (name, ranked[:3])
            ranked = ranked[len(group) :]


# Graphonomy's hand-made relation between CIHP and PASCAL-Person-Part. It has the skirt on the torso; we add upper-leg.
SUBORDINATE = {
    "hat": "head", "hair": "head", "sunglasses": "head", "face": "head", "torso-skin": "torso", "scarf": "torso",
    "upper-clothes": "torso", "dress": "torso", "coat": "torso upper-arm lower-arm", "skirt": "torso upper-leg",
    "left-arm": "upper-arm lower-arm", "right-arm": "upper-arm lower-arm", "glove": "lower-arm",
    "pants": "upper-leg lower-leg", "left-leg": "upper-leg lower-leg", "right-leg": "upper-leg lower-leg",
    "socks": "lower-leg", "left-shoe": "lower-leg", "right-shoe": "lower-leg", "background": "background",
}  # fmt: skip


def test_lexicon_agrees_with_the_hand_made_relation_of_cihp_to_pascal():
    matrix = cross_similarity(by_lexicon(CIHP), PASCAL)
    for name, parts in SUBORDINATE.items():
        column = dict(zip(PASCAL.classes, matrix[:, CIHP.index(name)], strict=True))
        count = len(parts.split())
        assert set(sorted(column, key=column.get)[-count:]) == set(parts.split()), (name, column)


def test_lexicon_agrees_with_the_merge_of_59_labels_to_14():
    card = yaml.safe_load((ROOT / "tests/cards/ccp14.yaml").read_text())
    matrix = cross_similarity(CCP14, CCP59)
    best = {name: CCP14.classes[row.argmax()] for name, row in zip(CCP59.classes, matrix, strict=True)}
    merged = {name: CCP14.classes[card["remap"][i]] for i, name in enumerate(CCP59.classes)}
    # Where the merge goes by other things than the place on the body.
    other_reasons = {"bodysuit", "gloves", "intimate", "panties", "scarf", "swimwear", "tie"}
    assert {name for name in merged if best[name] != merged[name]} <= other_reasons


def test_left_and_right_are_told_apart_and_a_word_without_side_has_both():
    a = domain("a", classes=["left-arm", "right-arm", "arm", "left-leg"])
    b = domain("b", classes=["left-arm", "arm"])
    left, both = cross_similarity(a, b)
    assert left[0] == 1 and left[0] - 0.3 > left[1] > left[3] + 0.2
    assert left[0] > left[2] > left[1] and both[0] == left[2] and both[2] == 1
    assert both[0] == pytest.approx(both[1], abs=1e-12)


def test_what_must_be_alike_and_what_must_not():
    names = ["face", "head", "torso", "torso-skin", "shirt", "hat", "hair", "boots", "shoe", "sock"]
    record = domain("one", classes=names)
    like = {pair: value(record, record, *pair) for pair in itertools.permutations(names, 2)}
    assert like["face", "head"] > 0.75 and like["torso", "torso-skin"] > 0.85 and like["shirt", "torso"] > 0.7
    assert 0.3 < like["hat", "head"] < 0.6 and like["hair", "head"] > like["hair", "hat"] and like["hair", "hat"] < 0.6
    assert like["boots", "shoe"] > like["boots", "sock"] and like["face", "shoe"] == 0


# ---- what the files of domains say themselves


def test_covers_go_before_the_lexicon_and_give_the_hand_computed_cosines():
    covers = {
        "hat": {"hand": 1, "cloth": 0.5},
        "fin": ["left-hand", "left-foot"],
        "paw": {"hand": 0.6, "left-hand": 0.8},
    }
    mine = domain("mine", classes=["hat", "fin", "paw", "face"], covers=covers)
    matrix = cross_similarity(mine, mine)
    hat, fin, paw = (1, 1, 0, 0.5), (1, 0, 1, 0), (0.8, 0.6, 0, 0)  # left hand, right hand, left foot, cloth
    for (i, u), (j, v) in itertools.product(enumerate((hat, fin, paw)), repeat=2):
        assert matrix[i, j] == pytest.approx(np.dot(u, v) / np.linalg.norm(u) / np.linalg.norm(v), abs=1e-12)
    assert matrix[0, 1] == pytest.approx(1 / math.sqrt(2.25 * 2)) and matrix[3, 3] == 1 and not matrix[3, :3].any()


def test_an_unknown_word_is_an_error_that_shows_how_to_mend_it():
    mine = domain("mine", classes=["background", "left-flipper"])
    with pytest.raises(LabelDomainError) as error:
        cross_similarity(ATR, mine)
    message = str(error.value)
    assert (
        "'mine' (mine.yaml): class 'left-flipper': the body lexicon has no word 'flipper' (similar: slipper" in message
    )
    example = next(line for line in message.splitlines() if line.startswith("  covers:"))
    mended = domain("mine", classes=mine.classes, **yaml.safe_load(example))
    assert cross_similarity(ATR, mended).shape == (2, 18)
    for atom in ("left-upper-arm", "upper-arm", "scalp", "background"):
        assert atom in message.split("atoms: ")[1]


def test_similarity_goes_before_everything_and_stands_as_it_was_written(vectors):
    rows = {"left arm": {"upper-arm": 0.7, "lower-arm": 0.2, "background": 0}, "face": {"head": 1, "torso": 0}}
    rows["face"].update({"upper-leg": 0, "lower-leg": 0})
    mine = domain("mine", classes=["left arm", "face"], similarity={PASCAL.name: rows})
    expected = np.array([[0, 0, 0, 0.7, 0.2, 0, 0], [0, 1, 0, 0, 0, 0, 0]])
    assert np.array_equal(cross_similarity(PASCAL, mine, vectors), expected)
    assert np.array_equal(cross_similarity(mine, PASCAL), expected.T)
    assert similarity_source(PASCAL, mine) == similarity_source(mine, PASCAL, vectors) == "`similarity` of mine.yaml"
    assert similarity_source(mine, ATR) == "body lexicon"


def test_a_similarity_that_does_not_fit_the_other_domain_is_refused():
    b = domain("b", classes=["head", "torso"])
    strange = domain(
        "a", classes=["face", "hat"], similarity={"b": {"face": {"head": 1, "tail": 0}, "hat": {"torso": 0}}}
    )
    with pytest.raises(
        LabelDomainError, match=r"a\.yaml: field 'similarity', classes of 'b' \(b.yaml\): unknown: tail;"
    ):
        cross_similarity(strange, b)
    partial = domain("a", classes=["face", "hat"], similarity={"b": {"face": {"head": 1}, "hat": {"head": 0.5}}})
    with pytest.raises(LabelDomainError, match=r"in no row, not even as 0: torso; its classes: head, torso"):
        cross_similarity(b, partial)


def test_two_files_may_say_the_same_and_not_two_things():
    rows = {"face": {"head": 0.9}, "hat": {"head": 0.5, "torso": 0}}
    a = domain("a", classes=["face", "hat"], similarity={"b": rows})
    same = {"head": {"face": 0.9, "hat": 0.5}, "torso": {"hat": 0}}
    b = domain("b", classes=["head", "torso"], similarity={"a": same})
    assert np.array_equal(cross_similarity(a, b), [[0.9, 0.5], [0, 0]])
    other = domain("b", classes=["head", "torso"], similarity={"a": {**same, "torso": {"hat": 0.1}}})
    with pytest.raises(LabelDomainError, match=r"a\.yaml and b\.yaml both compare 'a' with 'b', and differ"):
        cross_similarity(a, other)


# ---- controls


@pytest.mark.parametrize("kind", ["lexicon", "identity", "random"])
def test_a_control_of_swapped_domains_is_the_transpose(kind):
    for a, b in itertools.combinations(ALL, 2):
        matrix = control_similarity(a, b, kind, seed=3)
        assert matrix.shape == (b.num_classes, a.num_classes) and matrix.min() >= 0 and matrix.max() <= 1
        assert np.array_equal(matrix.T, control_similarity(b, a, kind, seed=3))


def test_equal_names_alone_are_identical():
    matrix = control_similarity(ATR, CIHP, "identity")
    for (k, name), (j, other) in itertools.product(enumerate(CIHP.classes), enumerate(ATR.classes)):
        assert matrix[k, j] == (name == other), (name, other)
    assert control_similarity(PASCAL, CIHP, "identity").sum() == 1  # the background
    a = domain("a", classes=["background", "T-shirt", "LeftShoe", "sock", "hat"])
    b = domain("b", classes=["hats", "Background", "left shoe", "tshirt", "socks", "right-shoe"])
    pairs = np.argwhere(control_similarity(a, b, "identity")).tolist()
    assert pairs == [[0, 4], [1, 0], [2, 2], [3, 1], [4, 3]]


def test_the_lexicon_goes_before_published_values_where_it_is_asked_for():
    assert np.array_equal(control_similarity(ATR, CIHP, "lexicon"), cross_similarity(by_lexicon(ATR), by_lexicon(CIHP)))
    assert not np.array_equal(control_similarity(ATR, CIHP, "lexicon"), cross_similarity(ATR, CIHP))


def test_random_values_are_even_and_belong_to_seed_and_pair():
    values = control_similarity(ATR, CIHP, "random", seed=0)
    assert np.array_equal(values, control_similarity(ATR, CIHP, "random", seed=0))
    assert not np.array_equal(values, control_similarity(ATR, CIHP, "random", seed=1))
    assert not np.isin(values, control_similarity(PASCAL, CIHP, "random", seed=0)).any()
    assert abs(values.mean() - 0.5) < 0.05 and abs(np.quantile(values, 0.25) - 0.25) < 0.06


def test_another_control_is_none():
    with pytest.raises(ValueError, match="kind 'glove'"):
        control_similarity(ATR, CIHP, "glove")
