"""Which image comes when: a pure function of (seed, position)."""

from collections import Counter

import numpy as np
import pytest

from sst_d2.data.sampler import PositionalBatchSampler, build_sampler

DOMAINS = ["p", "a", "c"]
OWNERS = ["p"] * 3 + ["a"] * 7 + ["c"] * 11  # the domain of every image


def drawn(sampler, count, start=0):
    return [sampler.index_at(position) for position in range(start, start + count)]


@pytest.mark.parametrize("name", ["balanced", "weighted", "proportional"])
def test_the_index_at_a_position_does_not_depend_on_what_was_asked_before(name):
    sampler = build_sampler(name, OWNERS, DOMAINS, [1, 2, 3], seed=5)
    forward = drawn(sampler, 200)
    shuffled = np.random.default_rng(0).permutation(200)
    assert [sampler.index_at(int(p)) for p in shuffled] == [forward[p] for p in shuffled]
    assert drawn(build_sampler(name, OWNERS, DOMAINS, [1, 2, 3], seed=5), 200) == forward
    assert drawn(build_sampler(name, OWNERS, DOMAINS, [1, 2, 3], seed=6), 200) != forward


def test_balanced_batches_hold_every_domain_and_smaller_ones_rotate():
    sampler = build_sampler("balanced", OWNERS, DOMAINS, [], seed=0)
    for batch_size in (3, 4, 5, 6):
        batches = PositionalBatchSampler(sampler, batch_size, rank=0, world_size=1, start_iteration=0)
        for _, batch in zip(range(30), batches, strict=False):
            assert {OWNERS[index] for _, index in batch} == set(DOMAINS)
    pairs = [{OWNERS[i] for i in drawn(sampler, 2, start)} for start in range(0, 12, 2)]
    assert len({frozenset(pair) for pair in pairs}) == 3  # with two images a batch, all pairs of domains meet


def test_every_domain_is_gone_through_before_an_image_comes_again():
    sampler = build_sampler("balanced", OWNERS, DOMAINS, [], seed=1)
    for offset, (domain, size) in enumerate((("p", 3), ("a", 7), ("c", 11))):
        own = [sampler.index_at(3 * turn + offset) for turn in range(4 * size)]
        assert {OWNERS[index] for index in own} == {domain}
        rounds = [own[start : start + size] for start in range(0, 4 * size, size)]
        assert all(len(set(one)) == size for one in rounds)
        assert len({tuple(one) for one in rounds}) > 1  # in another order each time


def test_proportional_shows_every_image_once_per_pass():
    sampler = build_sampler("proportional", OWNERS, DOMAINS, [], seed=2)
    assert sorted(drawn(sampler, 21)) == sorted(drawn(sampler, 21, start=21)) == list(range(21))


def test_weights_give_the_shares_at_every_length():
    sampler = build_sampler("weighted", OWNERS, DOMAINS, [1, 2, 5], seed=3)
    owners = [OWNERS[index] for index in drawn(sampler, 2000)]
    for length in (8, 40, 1000, 2000):
        counts = Counter(owners[:length])
        assert all(abs(counts[d] - length * share / 8) <= 1.5 for d, share in zip(DOMAINS, (1, 2, 5), strict=True))
    used = Counter(drawn(sampler, 8 * 33))
    for pool, owner in ((range(3), "p"), (range(3, 10), "a"), (range(10, 21), "c")):
        counts = [used[index] for index in pool]
        assert max(counts) - min(counts) <= 1, owner


def test_domains_without_an_image_take_no_turn():
    sampler = build_sampler("balanced", ["a", "a"], DOMAINS, [], seed=0)
    assert sorted(drawn(sampler, 2)) == [0, 1]


def test_ranks_share_a_batch_without_overlap():
    sampler = build_sampler("balanced", OWNERS, DOMAINS, [], seed=4)
    whole = iter(PositionalBatchSampler(sampler, 6, 0, 1, start_iteration=7))
    parts = [iter(PositionalBatchSampler(sampler, 6, rank, 2, start_iteration=7)) for rank in (0, 1)]
    for _ in range(5):
        assert next(parts[0]) + next(parts[1]) == next(whole)


def test_a_later_start_goes_on_with_the_same_batches():
    sampler = build_sampler("balanced", OWNERS, DOMAINS, [], seed=4)
    early = iter(PositionalBatchSampler(sampler, 4, 0, 1, start_iteration=0))
    batches = [next(early) for _ in range(6)]
    late = iter(PositionalBatchSampler(sampler, 4, 0, 1, start_iteration=4))
    assert [next(late), next(late)] == batches[4:]
    assert [position for batch in batches for position, _ in batch] == list(range(24))


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("fair", [], "unknown sampler 'fair'; known: balanced, weighted, proportional"),
        ("weighted", [1, 2], r"weights \[1, 2\] for the domains"),
        ("weighted", [1, 2, 0], "one positive number each"),
        ("weighted", [1, 1, 1e6], "never comes"),
    ],
)
def test_wrong_requests_are_refused(name, weights, message):
    with pytest.raises(ValueError, match=message):
        build_sampler(name, OWNERS, DOMAINS, weights, seed=0)
