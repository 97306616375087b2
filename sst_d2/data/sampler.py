"""`PositionalSampler`: which image comes when, as a pure function of (seed, position).

Position counts the samples of a training run over all processes: position = iteration × total batch + place in the
batch. So nothing has to be saved to go on after an interruption with the very same images, and processes agree on who
takes which image without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

SAMPLER_NAMES = ("balanced", "weighted", "proportional")
# Length of the repeating order of domains under given weights: their shares are kept to 1 in 1,000.
_WEIGHTED_PERIOD = 1000


class PositionalSampler:
    """Images drawn from pools, each pool in a new random order every time it has been gone through.

    Args:
        pools: for each pool the indices of its images.
        order: the pool of position p is ``order[p % len(order)]``.
        seed: origin of all random orders.
    """

    def __init__(self, pools: Sequence[np.ndarray], order: Sequence[int], seed: int) -> None:
        if not pools or any(len(pool) == 0 for pool in pools):
            raise ValueError("PositionalSampler: every pool needs at least one image")
        self._pools = [np.asarray(pool) for pool in pools]
        self._order = np.asarray(order)
        # rank[p]: how often the pool of place p has come before within one period.
        self._rank = np.zeros(len(self._order), dtype=np.int64)
        self._per_period = np.bincount(self._order, minlength=len(pools))
        for pool in range(len(pools)):
            places = np.flatnonzero(self._order == pool)
            self._rank[places] = np.arange(len(places))
        self._seed = seed
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def index_at(self, position: int) -> int:
        """Index of the image at ``position``."""
        period, place = divmod(position, len(self._order))
        pool = int(self._order[place])
        draw = period * int(self._per_period[pool]) + int(self._rank[place])
        round_number, offset = divmod(draw, len(self._pools[pool]))
        return int(self._pools[pool][self._permutation(pool, round_number)[offset]])

    def _permutation(self, pool: int, round_number: int) -> np.ndarray:
        if self._permutations.get(pool, (-1,))[0] != round_number:
            generator = np.random.default_rng([self._seed, pool, round_number])
            self._permutations[pool] = (round_number, generator.permutation(len(self._pools[pool])))
        return self._permutations[pool][1]


class PositionalBatchSampler:
    """The batches of one process: lists of (position, index), without end.

    Args:
        sampler: gives the index at a position.
        total_batch_size: images per iteration over all processes.
        rank, world_size: this process and the number of processes; ``world_size`` divides ``total_batch_size``.
        start_iteration: the first iteration.
    """

    def __init__(
        self, sampler: PositionalSampler, total_batch_size: int, rank: int, world_size: int, start_iteration: int
    ) -> None:
        self._sampler = sampler
        self._total = total_batch_size
        self._share = total_batch_size // world_size
        self._first = start_iteration * total_batch_size + rank * self._share

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        first = self._first
        while True:
            yield [(position, self._sampler.index_at(position)) for position in range(first, first + self._share)]
            first += self._total


def build_sampler(
    name: str, sample_domains: Sequence[str], domains: Sequence[str], weights: Sequence[float], seed: int
) -> PositionalSampler:
    """Make the sampler that a configuration names.

    Args:
        name: "balanced": the domains take turns, so a batch of at least as many images as domains holds each of them,
            and smaller batches rotate; "weighted": the domains come in given shares, evenly spread; "proportional":
            all images form one pool, so each comes once per pass.
        sample_domains: the domain of every image.
        domains: all domain names; those without an image take no turn.
        weights: for "weighted", one positive share per entry of ``domains``.
        seed: origin of all random orders.

    Raises:
        ValueError: the name is unknown or the weights do not fit; the message says what is allowed.
    """
    names = np.asarray(sample_domains)
    present = [domain for domain in domains if (names == domain).any()]
    pools = [np.flatnonzero(names == domain) for domain in present]
    if name == "proportional":
        return PositionalSampler([np.arange(len(names))], [0], seed)
    if name == "balanced":
        return PositionalSampler(pools, range(len(pools)), seed)
    if name == "weighted":
        if len(weights) != len(domains) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"weights {list(weights)} for the domains {list(domains)}; one positive number each is expected"
            )
        shares = [weight for domain, weight in zip(domains, weights, strict=True) if domain in present]
        return PositionalSampler(pools, _spread(shares), seed)
    raise ValueError(f"unknown sampler '{name}'; known: {', '.join(SAMPLER_NAMES)}")


def _spread(shares: Sequence[float]) -> np.ndarray:
    """An order of pools in which pool i has its share of the places: the most overdue pool comes next."""
    goal = np.asarray(shares, dtype=np.float64) / np.sum(shares)
    counts = np.zeros(len(goal))
    order = np.empty(_WEIGHTED_PERIOD, dtype=np.int64)
    for place in range(_WEIGHTED_PERIOD):
        order[place] = int(np.argmax(goal * (place + 1) - counts))
        counts[order[place]] += 1
    if (counts == 0).any():
        raise ValueError(
            f"weights {list(shares)}: the smallest share is below 1 in {_WEIGHTED_PERIOD}; such a domain never comes"
        )
    return order
