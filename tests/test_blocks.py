"""A restart's ratio from neighbouring blocks: groups, quartiles, and why not medians."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mint_deploy import _blocks
from mint_deploy._blocks import GROUP, log_ratio
from mint_deploy.errors import DataError


def _groups(lengths_a, lengths_b=None):
    """The numbers of the calls of A in each group."""
    lengths_b = lengths_b or lengths_a
    a, b = np.arange(sum(lengths_a)), np.arange(sum(lengths_b))
    found = _blocks._groups(_blocks._split(a, lengths_a), _blocks._split(b, lengths_b))
    return [list(map(int, x)) for x, _ in found], [len(y) for _, y in found]


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([4, 4, 4, 4], [8, 8]),
        ([20, 20, 20, 20], [40, 40]),
        ([2] * 8, [8, 8]),
        ([1] * 8, [8]),
        ([1] * 20, [8, 12]),  # four are left over: they belong to the last
        ([3] * 8, [12, 12]),  # an even number of blocks, so that A B B A is balanced
        ([5, 5, 5], [15]),
        ([1, 1], [2]),  # fewer than a group needs: all that there is
        ([2, 2, 2], [6]),
    ],
)
def test_successive_blocks_make_groups_of_eight_calls_or_more(lengths, sizes):
    calls, others = _groups(lengths)
    assert [len(g) for g in calls] == others == sizes
    assert [c for g in calls for c in g] == list(range(sum(lengths)))


def test_the_model_with_fewer_calls_decides_how_long_a_group_is():
    calls, others = _groups([10, 10, 10, 10], [2, 2, 2, 2])
    assert [len(g) for g in calls] == [40]
    assert others == [8]


def test_a_model_with_more_blocks_is_cut_to_those_that_have_a_neighbour():
    calls, _ = _groups([4, 4, 4, 4, 4, 4], [4, 4, 4, 4])
    assert [len(g) for g in calls] == [8, 8]


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 100])
def test_the_lower_quartile_is_numpys(n):
    values = np.random.default_rng(n).permutation(n).astype(float)
    assert _blocks._quartile(values) == pytest.approx(np.quantile(values, 0.25))


@pytest.mark.parametrize("lengths", [(2, 2), (1, 1), (3, 0), (-1, 4)])
def test_blocks_that_are_not_the_restarts_are_refused(lengths):
    values = np.array([1.0, 2.0, 3.0])
    with pytest.raises(DataError, match=f"hold {sum(lengths)} latencies, the restart 3"):
        log_ratio(values, values, lengths, lengths)


def test_a_quartile_of_zero_has_no_logarithm():
    values = np.array([0.0, 0.0, 0.0, 9.0])
    assert log_ratio(values, values + 1, (2, 2), (2, 2)) is None


# ---------------------------------------------------------------- why it is made like this


def _restarts(rng, count, *, waits, wandering, slower=1.1, blocks=40, calls=4):
    """Restarts of A and of B: a share ``waits`` of the calls waits, the speed wanders."""
    shape = (blocks, calls)
    for _ in range(count):
        speed = np.exp(np.cumsum(wandering * rng.standard_normal(blocks // 2)).repeat(2))
        sides = []
        for factor in (1.0, slower):
            own = factor * speed[:, None] * np.exp(0.01 * rng.standard_normal(shape))
            sides.append(
                (own + (rng.random(shape) < waits) * rng.uniform(0.5, 2, shape)).reshape(-1)
            )
        yield *sides, [calls] * blocks


def _paired_medians(a, b, lengths):
    sides = [np.median(x.reshape(len(lengths), -1), axis=1) for x in (a, b)]
    return float(np.median(np.log(sides[1] / sides[0])))


def _medians(a, b, lengths):
    return float(np.log(np.median(b) / np.median(a)))


def _figures(way, **settings):
    rng = np.random.default_rng(0)
    return np.array([way(a, b, n) for a, b, n in _restarts(rng, 150, **settings)])


def _ours(a, b, lengths):
    return log_ratio(a, b, lengths, lengths)


def test_waits_draw_medians_to_one_and_leave_the_quartiles():
    settings = {"waits": 0.45, "wandering": 0.0, "calls": 2}
    assert _figures(_ours, **settings).mean() == pytest.approx(math.log(1.1), abs=0.004)
    assert _figures(_paired_medians, **settings).mean() < math.log(1.08)


def test_waits_and_a_wandering_speed_spread_the_medians_of_whole_restarts():
    settings = {"waits": 0.45, "wandering": 0.02}
    ours, whole = (_figures(way, **settings) for way in (_ours, _medians))
    assert ours.std() < 0.4 * whole.std()


def test_where_nobody_disturbs_it_is_the_ratio_of_the_medians():
    settings = {"waits": 0.0, "wandering": 0.0}
    for way in (_ours, _medians, _paired_medians):
        assert _figures(way, **settings).mean() == pytest.approx(math.log(1.1), abs=0.001)


def test_a_group_is_large_enough_for_a_quartile_that_five_waiting_calls_do_not_reach():
    quiet = np.full(GROUP, 10.0)
    for hit in range(6):
        busy = quiet.copy()
        busy[:hit] = 1000.0
        assert log_ratio(quiet, busy, (4, 4), (4, 4)) == pytest.approx(0.0)
