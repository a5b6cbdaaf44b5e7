"""What holds of a restart's ratio from neighbouring blocks, whatever the latencies are."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as s

from mint_deploy._blocks import GROUP, log_ratio

blocks = s.lists(s.lists(s.integers(1, 10**9), min_size=1, max_size=9), min_size=2, max_size=12)


def flat(found):
    return np.array([float(ns) for block in found for ns in block])


@given(blocks, s.integers(2, 40))
def test_a_model_k_times_as_slow_is_found_k_times_as_slow(a, k):
    lengths = list(map(len, a))
    assert log_ratio(flat(a), k * flat(a), lengths, lengths) == pytest.approx(math.log(k))


@given(blocks, s.integers(0, 2**32))
def test_it_turns_around(a, seed):
    lengths = list(map(len, a))
    first = flat(a)
    second = first * np.exp(0.1 * np.random.default_rng(seed).standard_normal(len(first)))
    forth = log_ratio(first, second, lengths, lengths)
    back = log_ratio(second, first, lengths, lengths)
    assert forth == pytest.approx(-back, abs=1e-12)


@given(blocks, s.lists(s.floats(0.2, 5), min_size=12, max_size=12))
def test_a_speed_that_changes_between_pairs_of_blocks_cancels_where_they_are_groups(a, speeds):
    """Blocks of eight calls and more: a group is two of them."""
    whole = [block * GROUP for block in a]
    lengths = list(map(len, whole))
    first = np.array([ns * speeds[i // 2] for i, block in enumerate(whole) for ns in block])
    assert log_ratio(first, 2 * first, lengths, lengths) == pytest.approx(math.log(2))


@given(s.integers(2, 12), s.data())
def test_calls_that_wait_do_not_count_up_to_six_of_eight(count, data):
    """Whichever calls they are and however long they wait, in the same number for both."""
    ns, lengths = [], [GROUP // 2] * (2 * count)
    for factor in (1.0, 1.5):
        side = []
        for _ in range(count):
            hit = data.draw(s.sets(s.integers(0, 7), max_size=5))
            side += [1000 * factor + (5e6 if i in hit else 0) for i in range(GROUP)]
        ns.append(np.array(side))
    assert log_ratio(*ns, lengths, lengths) == pytest.approx(math.log(1.5))


@given(blocks)
def test_how_calls_are_cut_into_blocks_of_a_group_does_not_matter(a):
    """Two blocks are one group, however long each is."""
    first = flat(a)
    second = first[::-1].copy()
    found = {
        round(log_ratio(first, second, [cut, len(first) - cut], [cut, len(first) - cut]), 12)
        for cut in range(1, len(first))
    }
    assert len(found) <= 1
