"""What holds for any latencies and any restarts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as s
from scipy import stats

from mint_deploy import statistics as st

latencies = s.lists(s.integers(min_value=1, max_value=10**10), min_size=6, max_size=300)
logs = s.lists(s.floats(-3, 3), min_size=2, max_size=40)


@given(latencies, s.floats(1, 99.9))
def test_a_percentile_is_one_of_the_samples_and_at_least_so_many_lie_below(samples, p):
    found = st.percentile(samples, p)
    if found.value is None:
        assert len(samples) < st.needed_samples(p)
        assert found.reason
        return
    assert found.value in samples
    assert sum(v <= found.value for v in samples) >= len(samples) * p / 100 - 1e-6
    assert sum(v < found.value for v in samples) < len(samples) * p / 100
    assert found.value <= found.upper <= max(samples)


@given(s.floats(1, 99.9), s.integers(0, 20))
def test_more_excess_needs_more_samples(p, excess):
    n = st.needed_samples(p, excess)
    assert excess < n < st.needed_samples(p, excess + 1)
    assert stats.binom.cdf(excess, n, 1 - p / 100) <= 0.01 + 1e-12


@given(latencies)
def test_the_interval_of_the_median_contains_it(samples):
    low, high = st.median_interval(samples)
    assert low <= st.median(samples) <= high


@given(latencies, s.integers(2, 1000))
def test_units_do_not_matter(samples, factor):
    scaled = [v * factor for v in samples]
    assert st.spread(scaled) == pytest.approx(st.spread(samples))
    assert st.drift(scaled) == pytest.approx(st.drift(samples))
    assert st.median_half_width(scaled) == pytest.approx(st.median_half_width(samples))


@given(s.floats(0.001, 0.999), s.floats(0.5, 500))
def test_the_t_quantile_inverts_the_distribution(q, df):
    assert stats.t.cdf(st.t_quantile(q, df), df) == pytest.approx(q, abs=1e-9)


@given(logs)
def test_the_interval_of_a_ratio_holds_it_and_turns_around_with_it(values):
    found = st.ratio_interval(values)
    # two medians that agree to the last digit leave no room for rounding
    slack = 1 + 1e-12
    assert found.low <= found.ratio * slack
    assert found.ratio <= found.high * slack
    if len(values) < st.BOOTSTRAP_FROM:
        turned = st.ratio_interval([-v for v in values])
        assert turned.ratio == pytest.approx(1 / found.ratio)
        assert turned.low == pytest.approx(1 / found.high)


@given(s.lists(latencies, min_size=2, max_size=8), s.integers(2, 50))
def test_a_model_k_times_as_slow_is_found_k_times_as_slow(restarts, k):
    slower = [[v * k for v in samples] for samples in restarts]
    found = st.ratio_interval(st.log_ratios(restarts, slower))
    assert found.ratio == pytest.approx(k)
    assert found.high - found.low == pytest.approx(0, abs=1e-6)


@given(s.lists(s.floats(1, 1e9), min_size=2, max_size=12))
def test_the_same_medians_on_both_sides_give_one(values):
    found = st.welch_interval(values, values)
    assert found.ratio == pytest.approx(1)
    assert found.low <= 1 + 1e-12
    assert found.high >= 1 - 1e-12
    assert math.isfinite(np.log(found.high))
