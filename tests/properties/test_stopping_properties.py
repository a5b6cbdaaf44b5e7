"""What holds of the stopping rule, whatever the restarts are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as s

from mint_deploy import statistics, stopping

logs = s.lists(s.floats(-2, 2), min_size=2, max_size=40)


@given(logs)
def test_the_interval_holds_the_ratio_and_is_never_narrower_than_the_plain_one(values):
    found = stopping.interval(values)
    slack = 1 + 1e-12
    assert found.low <= found.ratio * slack
    assert found.ratio <= found.high * slack
    if len(values) < statistics.BOOTSTRAP_FROM:
        plain = statistics.ratio_interval(values)
        assert found.low <= plain.low * slack
        assert plain.high <= found.high * slack


@given(logs)
def test_it_turns_around_with_the_ratio(values):
    found, turned = stopping.interval(values), stopping.interval([-v for v in values])
    assert turned.ratio == pytest.approx(1 / found.ratio)
    assert turned.low == pytest.approx(1 / found.high)


@given(logs, s.floats(-1, 1))
def test_a_factor_moves_it_and_changes_nothing_else(values, shift):
    found, moved = stopping.interval(values), stopping.interval([v + shift for v in values])
    assert moved.ratio == pytest.approx(found.ratio * math.exp(shift))
    assert moved.high / moved.low == pytest.approx(found.high / found.low, rel=1e-6)


@given(logs)
def test_resemblance_is_between_none_and_its_cap(values):
    assert 0 <= stopping.resemblance(values) <= 0.7


@given(s.integers(1, 60), s.integers(1, 400))
def test_between_two_looks_the_restarts_grow_by_two_fifths(at_least, n):
    following = next(m for m in range(n, 4 * n + 80) if stopping.is_look(m, at_least))
    assert following <= max(math.ceil(1.4 * n), at_least, stopping.FIRST_LOOK)
