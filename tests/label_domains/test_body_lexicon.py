"""The lexicon's data are sound, and class names become coverages by the rules that its file states."""

import pytest

from sst_d2.errors import LabelDomainError
from sst_d2.label_domains import body_lexicon as module
from sst_d2.label_domains.body_lexicon import BodyLexicon, body_lexicon
from sst_d2.label_domains.class_words import class_words, word_forms

TOY = BodyLexicon(
    atoms={"single": ["face", "belly"], "paired": ["hand", "foot"], "kind": ["skin", "cloth"]},
    modifiers={
        "other_side": 0.2,
        "left": ["left", "l"],
        "right": ["right", "r"],
        "upper": {"words": ["upper"], "keep": ["face", "hand"]},
        "lower": {"words": ["lower"], "keep": ["belly", "foot"]},
        "kind_weight": 0.7,
        "kind": {"skin": "skin", "wear": "cloth"},
        "silent": ["leather"],
    },
    words={
        "body": {"face": 1, "belly": 1, "hand": 0.5, "foot": 0.5, "skin": 0.1},
        "arm": {"hand": 1, "skin": 0.5},
        "upper-arm": {"belly": 0.4},
        "glove": {"hand": 1, "cloth": 0.5},
        "mitten": "glove",
        "lip": {"face": 1},
        "t-shirt": {"belly": 1, "cloth": 0.5},
        "shorts": {"foot": 0.3},
        "wear": {"cloth": 1},
    },
)
BOTH_HANDS = {"left-hand": 1, "right-hand": 1}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glove", {**BOTH_HANDS, "cloth": 0.5}),
        ("Gloves", {**BOTH_HANDS, "cloth": 0.5}),
        ("mittens", {**BOTH_HANDS, "cloth": 0.5}),
        ("leather gloves", {**BOTH_HANDS, "cloth": 0.5}),
        ("left-glove", {"left-hand": 1, "right-hand": 0.2, "cloth": 0.5}),
        ("GloveRight", {"left-hand": 0.2, "right-hand": 1, "cloth": 0.5}),
        ("l_arm", {"left-hand": 1, "right-hand": 0.2, "skin": 0.5}),
        ("left-lip", {"face": 1}),  # no atom has this side
        ("T-Shirt", {"belly": 1, "cloth": 0.5}),
        ("tshirts", {"belly": 1, "cloth": 0.5}),
        ("short", {"left-foot": 0.3, "right-foot": 0.3}),
        ("upper arm", {"belly": 0.4}),  # an entry of its own goes before the half of the body
        ("left upper arm", {"belly": 0.4}),
        ("upper-body", {"face": 1, "left-hand": 0.5, "right-hand": 0.5, "skin": 0.1}),
        ("lower left body", {"belly": 1, "left-foot": 0.5, "right-foot": 0.1, "skin": 0.1}),
        ("lower-lip", {"face": 1}),  # a half of the part, not of the body
        ("upper-body-wear", {"face": 1, "left-hand": 0.5, "right-hand": 0.5, "cloth": 0.7}),
        ("glove-skin", {**BOTH_HANDS, "skin": 0.7}),
        ("wear", {"cloth": 1}),
        ("glove and lip", None),
        ("arm/glove", {**BOTH_HANDS, "skin": 0.5, "cloth": 0.5}),
        ("lip t-shirt", {"face": 1, "belly": 1, "cloth": 0.5}),
        ("upper-arm-glove", {"belly": 0.4, **BOTH_HANDS, "cloth": 0.5}),
    ],
)
def test_names_become_coverages(name, expected):
    if expected is None:
        with pytest.raises(KeyError, match="and"):
            TOY.coverage(name)
    else:
        assert TOY.coverage(name) == pytest.approx(expected)


@pytest.mark.parametrize(("name", "word"), [("tail", "tail"), ("left tail", "tail"), ("left", "left"), ("--", "--")])
def test_an_unknown_word_is_named(name, word):
    with pytest.raises(KeyError) as error:
        TOY.coverage(name)
    assert error.value.args == (word,)


def test_a_pair_stands_for_both_sides_and_the_larger_weight_counts():
    for entries in ([("hand", 0.6), ("left-hand", 0.8)], [("left-hand", 0.8), ("hand", 0.6)]):
        assert TOY.expand(entries) == {"left-hand": 0.8, "right-hand": 0.6}


def test_coverages_are_copies():
    TOY.coverage("glove")["cloth"] = 9
    assert TOY.coverage("glove")["cloth"] == 0.5


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("left-arm", ["left", "arm"]),
        ("upper_clothes", ["upper", "clothes"]),
        ("Torso Skin", ["torso", "skin"]),
        ("leftArm", ["left", "arm"]),
        ("LShoe", ["l", "shoe"]),
        ("HAT", ["hat"]),
        ("t-shirt", ["t", "shirt"]),
        ("Fußgelenk (links)", ["fussgelenk", "links"]),
        ("arm2", ["arm2"]),
        ("--", []),
    ],
)
def test_names_are_split_into_words(name, words):
    assert list(class_words(name)) == words


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("socks", "sock"), ("dresses", "dress"), ("watches", "watch"), ("scarves", "scarf"), ("panties", "panty")],
)
def test_plurals_lead_to_their_singular(plural, singular):
    assert singular in word_forms(plural) and next(word_forms(plural)) == plural


def test_a_plural_is_never_taken_for_another_word():
    lexicon = body_lexicon()
    assert lexicon.coverage("capes") == lexicon.coverage("cape") != lexicon.coverage("cap")
    for word in lexicon.words:
        plural = f"{word}es" if word.endswith("s") else f"{word}s"
        if plural not in lexicon.words:
            assert lexicon.coverage(plural) == lexicon.coverage(word), word


def test_the_lexicon_has_enough_words_and_each_is_covered_by_known_atoms():
    lexicon = body_lexicon()
    assert len(lexicon.words) >= 120 and len(set(lexicon.atoms)) == len(lexicon.atoms) <= 28
    for word in lexicon.words:
        coverage = lexicon.coverage(word)
        assert coverage and set(coverage) <= set(lexicon.atoms) and all(0 < w <= 1 for w in coverage.values()), word
    used = {atom for word in lexicon.words for atom in lexicon.coverage(word)}
    assert used == set(lexicon.atoms)
    joined = [word.replace("-", "") for word in lexicon.words]
    assert len(set(joined)) == len(joined)  # "t-shirt" and "tshirt" are one word


def test_no_word_but_the_backgrounds_own_covers_the_background():
    lexicon = body_lexicon()
    for word in lexicon.words:
        coverage = lexicon.coverage(word)
        assert ("background" in coverage) == (coverage == {"background": 1}), word


def test_mirrored_names_have_mirrored_coverages():
    lexicon = body_lexicon()
    swap = {"left": "right", "right": "left"}
    for name in ("arm", "leg", "shoe", "glove", "upper-arm", "sleeve", "ear"):
        left, right = lexicon.coverage(f"left-{name}"), lexicon.coverage(f"right {name}")
        mirrored = {"-".join(swap.get(part, part) for part in atom.split("-")): w for atom, w in left.items()}
        assert mirrored == right and (left != right or name == "ear")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("  hat: {scalpp: 1}", r"word 'hat': unknown atom 'scalpp' \(similar: scalp\)"),
        ("  hat: {scalp: 2}", r"word 'hat': weight 2 of atom 'scalp'; a number above 0, at most 1"),
        ("  hat: cap", r"word 'hat': 'cap' has no weights of its own"),
    ],
)
def test_a_slip_in_the_edited_file_is_named(tmp_path, monkeypatch, words, message):
    text = module._FILE.read_text(encoding="utf-8")
    path = tmp_path / "body_lexicon.yaml"
    path.write_text(text[: text.index("words:\n")] + f"words:\n{words}\n", encoding="utf-8")
    monkeypatch.setattr(module, "_FILE", path)
    with pytest.raises(LabelDomainError, match=message):
        body_lexicon.__wrapped__()
