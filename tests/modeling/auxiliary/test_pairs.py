"""Which pairs of label domains the strategies give."""

import pytest

from sst_d2.errors import SSTConfigError
from sst_d2.modeling.auxiliary.pairs import choose_pairs, choose_source_pairs

THREE = {"cihp": 20, "pascal": 7, "atr": 18}
FIVE = {"cihp": 20, "fashion": 59, "lip": 20, "pascal": 7, "atr": 18}


def test_full_is_every_pair_in_the_models_order():
    assert choose_pairs("full", THREE) == [("cihp", "pascal"), ("cihp", "atr"), ("pascal", "atr")]
    pairs = choose_pairs("full", FIVE)
    names = list(FIVE)
    assert len(pairs) == len(set(pairs)) == 10 and all(names.index(a) < names.index(b) for a, b in pairs)


def test_progressive_goes_from_coarse_to_fine():
    # pascal 7 – atr 18 – cihp 20; in each pair the model's first domain stands first.
    assert choose_pairs("progressive", THREE) == [("pascal", "atr"), ("cihp", "atr")]


def test_domains_with_as_many_classes_keep_the_models_order():
    # pascal 7 – atr 18 – cihp 20 – lip 20 – fashion 59
    expected = {("pascal", "atr"), ("cihp", "atr"), ("cihp", "lip"), ("fashion", "lip")}
    assert set(choose_pairs("progressive", FIVE)) == expected
    turned = dict(reversed(FIVE.items()))  # … atr 18 – lip 20 – cihp 20 – fashion 59
    expected = {("atr", "pascal"), ("atr", "lip"), ("lip", "cihp"), ("fashion", "cihp")}
    assert set(choose_pairs("progressive", turned)) == expected


@pytest.mark.parametrize("count", range(2, 9))
def test_a_chain_has_one_pair_less_than_domains(count):
    classes = {f"d{number}": 3 * number + 2 for number in range(count)}
    chain = choose_pairs("progressive", classes)
    assert chain == [(f"d{number}", f"d{number + 1}") for number in range(count - 1)]
    assert len(choose_pairs("full", classes)) == count * (count - 1) // 2


def test_a_chain_may_be_given():
    assert choose_pairs("progressive", THREE, order=["atr", "cihp", "pascal"]) == [("cihp", "atr"), ("cihp", "pascal")]


def test_pairs_may_be_given_in_either_direction():
    assert choose_pairs("pairs", THREE, pairs=[["atr", "pascal"], ("cihp", "atr")]) == [
        ("cihp", "atr"),
        ("pascal", "atr"),
    ]


def test_none_gives_none_and_one_domain_can_have_none_only():
    assert choose_pairs("none", THREE) == choose_pairs("none", {"atr": 18}) == []
    for strategy in ("full", "progressive", "pairs"):
        with pytest.raises(SSTConfigError, match=f"'{strategy}'.*only atr.*none"):
            choose_pairs(strategy, {"atr": 18})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "all"}, "STRATEGY: 'all'; allowed: full, progressive, pairs, none"),
        ({"strategy": "progressive", "order": ["atr", "cihp"]}, "ORDER: .*every domain once.*cihp, pascal, atr"),
        ({"strategy": "progressive", "order": ["atr", "cihp", "lip"]}, "ORDER: .*lip"),
        ({"strategy": "progressive", "order": ["atr", "cihp", "pascal", "atr"]}, "ORDER"),
        ({"strategy": "pairs"}, "PAIRS: .*at least one pair"),
        ({"strategy": "pairs", "pairs": [["atr", "lip"]]}, "PAIRS: .*'atr', 'lip'.*cihp-pascal; cihp-atr; pascal-atr"),
        ({"strategy": "pairs", "pairs": [["atr", "atr"]]}, "PAIRS: .*none of the pairs"),
        ({"strategy": "pairs", "pairs": [["atr"]]}, "PAIRS: .*'atr'"),
        ({"strategy": "pairs", "pairs": [["atr", "cihp", "pascal"]]}, "PAIRS: .*none of the pairs"),
        ({"strategy": "pairs", "pairs": [["atr", "cihp"], ["cihp", "atr"]]}, "PAIRS: .*none of them twice"),
    ],
)
def test_a_wrong_choice_is_named(arguments, message):
    with pytest.raises(SSTConfigError, match=message):
        choose_pairs(num_classes=THREE, **arguments)


def test_a_source_pairs_each_of_its_domains_with_the_target():
    assert choose_source_pairs("full", ["cihp"], "atr") == [("cihp", "atr")]
    assert choose_source_pairs("full", ["pascal", "atr"], "cihp") == [("pascal", "cihp"), ("atr", "cihp")]


def test_given_pairs_have_the_source_first():
    pairs = [["cihp", "atr"], ["pascal", "cihp"]]
    assert choose_source_pairs("pairs", ["pascal", "atr"], "cihp", pairs) == [("pascal", "cihp"), ("atr", "cihp")]
    assert choose_source_pairs("pairs", ["pascal", "atr"], "cihp", pairs[:1]) == [("atr", "cihp")]


@pytest.mark.parametrize(
    ("strategy", "pairs", "message"),
    [
        ("none", (), "STRATEGY: 'none', and MODEL.SST.SOURCE.WEIGHTS is set.*pascal, atr.*allowed: full, pairs"),
        ("progressive", (), "STRATEGY: 'progressive'"),
        ("all", (), "STRATEGY: 'all'"),
        ("pairs", (), "PAIRS: .*at least one pair"),
        ("pairs", [["pascal", "atr"]], "PAIRS: .*none of the pairs that there are: pascal-cihp; atr-cihp"),
        ("pairs", [["lip", "cihp"]], "PAIRS: .*'lip', 'cihp'"),
        ("pairs", [["cihp", "cihp"]], "PAIRS: .*none of the pairs"),
        ("pairs", [["atr", "cihp"], ["cihp", "atr"]], "PAIRS: .*none of them twice"),
    ],
)
def test_a_choice_that_does_not_go_with_a_source_is_named(strategy, pairs, message):
    with pytest.raises(SSTConfigError, match=message):
        choose_source_pairs(strategy, ["pascal", "atr"], "cihp", pairs)
