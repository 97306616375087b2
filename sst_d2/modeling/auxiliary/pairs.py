"""Which pairs of label domains MST bridges (§4.2, A17, A18)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise

from sst_d2.errors import SSTConfigError

STRATEGIES = ("full", "progressive", "pairs", "none")
Pair = tuple[str, str]
_KEY = "MODEL.SST.AUXILIARY"


def choose_pairs(
    strategy: str,
    num_classes: Mapping[str, int],
    order: Sequence[str] = (),
    pairs: Sequence[Sequence[str]] = (),
) -> list[Pair]:
    """The pairs, each with the domain first that comes first in ``num_classes``.

    Args:
        strategy: "full": all pairs; "progressive": a chain from coarse to fine; "pairs": those given; "none".
        num_classes: K by domain, in the model's order.
        order: for "progressive" the chain; empty: by number of classes, equal ones in the model's order.
        pairs: for "pairs".

    Raises:
        SSTConfigError: an unknown strategy or domain, a domain paired with itself, a pair given twice, a chain that
            does not name every domain once, or no pair where one is wanted.
    """
    names = list(num_classes)
    if strategy not in STRATEGIES:
        raise SSTConfigError(f"{_KEY}.STRATEGY: '{strategy}'; allowed: {', '.join(STRATEGIES)}")
    if strategy == "none":
        return []
    if len(names) < 2:
        raise SSTConfigError(
            f"{_KEY}.STRATEGY: '{strategy}' bridges label domains, and there is only {', '.join(names)}; name more in "
            "MODEL.SST.DOMAINS; or set it to none: MSA and MSE work alone; or give a trained network to learn from, "
            "MODEL.SST.SOURCE.WEIGHTS"
        )
    if strategy == "full":
        return list(combinations(names, 2))
    if strategy == "progressive":
        chain = list(order) or sorted(names, key=lambda name: num_classes[name])
        if sorted(chain) != sorted(names):
            raise SSTConfigError(f"{_KEY}.ORDER: {chain}; every domain once is expected: {', '.join(names)}")
        return [_ordered(pair, names) for pair in pairwise(chain)]
    return _given(pairs, names, [set(pair) for pair in combinations(names, 2)])


def choose_source_pairs(
    strategy: str, sources: Sequence[str], target: str, pairs: Sequence[Sequence[str]] = ()
) -> list[Pair]:
    """The pairs of dedicated training (§3.1, A21): each a domain of the source, and the target.

    Args:
        strategy: "full": all domains of the source; "pairs": those given.
        sources: the source's domains.
        target: the model's domain.
        pairs: for "pairs".

    Raises:
        SSTConfigError: another strategy, or a pair that is not of a source's domain and the target.
    """
    if strategy == "full":
        return [(name, target) for name in sources]
    if strategy == "pairs":
        return _given(pairs, [*sources, target], [{name, target} for name in sources])
    raise SSTConfigError(
        f"{_KEY}.STRATEGY: '{strategy}', and MODEL.SST.SOURCE.WEIGHTS is set: the target learns from the source's "
        f"label domains, {', '.join(sources)}, one pair each; allowed: full, pairs. Without MST "
        "leave SOURCE.WEIGHTS empty"
    )


def _given(pairs: Sequence[Sequence[str]], names: Sequence[str], allowed: Sequence[set[str]]) -> list[Pair]:
    """The pairs of the configuration, in the order of ``names``."""
    chosen = []
    for pair in pairs:
        if set(pair) not in allowed:
            known = "; ".join("-".join(sorted(two, key=names.index)) for two in allowed)
            raise SSTConfigError(f"{_KEY}.PAIRS: {list(pair)} is none of the pairs that there are: {known}")
        chosen.append(_ordered(pair, names))
    if not chosen or len(set(chosen)) != len(chosen):
        raise SSTConfigError(f"{_KEY}.PAIRS: {[list(pair) for pair in pairs]}; at least one pair, none of them twice")
    return sorted(chosen, key=lambda pair: (names.index(pair[0]), names.index(pair[1])))


def _ordered(pair: Sequence[str], names: Sequence[str]) -> Pair:
    first, second = sorted(pair, key=names.index)
    return first, second
