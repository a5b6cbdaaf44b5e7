"""What may be said of raw latencies: against published tables, scipy, numpy and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mint_deploy import statistics as st
from mint_deploy.errors import ConfigError, DataError

#: LoadGen's early stopping at 99 %: percentile -> smallest n for 0, 1, 2, 5, 10 samples above it
TABLE = {
    50: (7, 11, 14, 22, 35),
    90: (44, 64, 81, 127, 197),
    95: (90, 130, 165, 259, 398),
    99: (459, 662, 838, 1307, 2010),
    99.9: (4603, 6636, 8403, 13105, 20140),
}


@pytest.mark.parametrize("p", TABLE)
def test_needed_samples_are_those_of_the_table(p):
    assert tuple(st.needed_samples(p, t) for t in (0, 1, 2, 5, 10)) == TABLE[p]


@pytest.mark.parametrize("p", [50, 75, 90, 95, 99])
def test_needed_samples_are_the_smallest_that_the_binomial_allows(p):
    n = st.needed_samples(p)
    assert stats.binom.cdf(1, n, 1 - p / 100) <= 0.01 < stats.binom.cdf(1, n - 1, 1 - p / 100)


@pytest.mark.parametrize(("p", "needed"), [(90, 64), (95, 130), (99, 662)])
def test_a_percentile_is_given_from_the_count_that_supports_it(p, needed):
    short = st.percentile(range(needed - 1), p)
    assert short.value is None
    assert short.upper is None
    assert str(needed) in short.reason
    assert str(needed - 1) in short.reason
    enough = st.percentile(range(needed), p)
    assert enough.value is not None
    assert enough.reason is None


@pytest.mark.parametrize("n", [70, 662, 1000, 5003])
@pytest.mark.parametrize("p", [50, 90, 95, 99])
def test_the_value_is_the_nearest_rank(n, p):
    samples = np.random.default_rng(n).permutation(n) * 10
    found = st.percentile(samples, p)
    if found.value is None:
        assert n < st.needed_samples(p)
    else:
        assert found.value == np.percentile(samples, p, method="inverted_cdf")


def test_the_upper_bound_is_the_slowest_in_the_smallest_run_and_comes_down_with_more():
    assert st.percentile(range(64), 90).upper == 63  # t = 1: none left out
    assert st.percentile(range(80), 90).upper == 79
    assert st.percentile(range(81), 90).upper == 79  # t = 2: one left out
    assert st.percentile(range(197), 90).upper == 196 - 9  # t = 10: nine left out


def test_the_upper_bound_holds_in_99_of_100_runs():
    rng = np.random.default_rng(1)
    true = -math.log(0.1)  # p90 of the exponential distribution
    for n in (64, 100, 300):
        missed = sum(
            st.early_stopping_bound(rng.exponential(size=n), 90) < true for _ in range(2000)
        )
        assert missed <= 40  # 1 % of 2000 is 20; 40 is far outside of chance


@pytest.mark.parametrize("p", [0.9, 0, 100, -5, float("nan")])
def test_a_percentile_is_in_percent(p):
    with pytest.raises(ConfigError, match=r"90, not 0\.9"):
        st.percentile(range(1000), p)


def test_no_samples_and_no_numbers_are_refused():
    assert st.percentile([], 90).value is None
    with pytest.raises(DataError, match="no samples"):
        st.median([])
    with pytest.raises(DataError, match="1 samples are not finite"):
        st.median([1.0, float("nan")])


def test_median_spread_and_drift():
    assert st.median([3, 1, 2]) == 2
    assert st.spread([90, 95, 100, 105, 110]) == pytest.approx(0.10)
    assert st.drift([100] * 10 + [105] * 10 + [110] * 10) == pytest.approx(0.10)
    assert st.drift([1, 2, 3]) == 0.0
    assert st.spread([0, 0, 0]) == 0.0


def test_the_interval_of_the_median_covers_what_it_says():
    rng = np.random.default_rng(2)
    for n in (12, 51, 400):
        inside = 0
        for _ in range(2000):
            low, high = st.median_interval(rng.exponential(size=n))
            inside += low <= math.log(2) <= high
        assert inside / 2000 >= 0.945  # exact or conservative
        assert inside / 2000 <= 0.99


def test_too_few_samples_have_no_interval_of_the_median():
    assert st.median_interval(range(5)) is None
    assert st.median_interval(range(6)) == (0, 5)
    assert st.median_half_width(range(1, 6)) == math.inf
    assert st.median_half_width([100] * 50) == 0.0


def test_the_ratio_interval_is_the_t_interval_of_the_logarithms():
    logs = np.log([0.50, 0.52, 0.51, 0.49, 0.53])
    found = st.ratio_interval(logs)
    low, high = stats.t.interval(0.95, 4, logs.mean(), logs.std(ddof=1) / math.sqrt(5))
    assert found.ratio == pytest.approx(math.exp(logs.mean()))
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))
    assert (found.n, found.confidence, found.method) == (5, 0.95, "t interval over restarts")


def test_the_intervals_cover_the_true_ratio_as_often_as_they_say():
    """Restarts differ by far more than their own medians tell: that is the case that counts."""
    rng = np.random.default_rng(3)
    for n, rounds in ((5, 2000), (24, 300)):
        logs = math.log(0.6) + 0.05 * rng.standard_normal((rounds, n))
        inside = sum((f := st.ratio_interval(row)).low <= 0.6 <= f.high for row in logs)
        assert inside / rounds == pytest.approx(0.95, abs=4 * math.sqrt(0.05 * 0.95 / rounds))


def test_from_twenty_restarts_on_it_is_a_bootstrap_and_repeatable():
    logs = 0.1 * np.random.default_rng(4).standard_normal(20)
    found = st.ratio_interval(logs, seed=7)
    assert found.method == "studentised bootstrap over restarts"
    assert found == st.ratio_interval(logs, seed=7)
    assert found.low < found.ratio < found.high
    assert st.ratio_interval([0.1] * 25).low == pytest.approx(math.exp(0.1))


def test_one_restart_gives_no_interval():
    with pytest.raises(DataError, match="at least 2, and 5 to be trusted"):
        st.ratio_interval([0.1])
    with pytest.raises(DataError, match="at least 2"):
        st.welch_interval([1.0], [1.0, 2.0])


def test_half_the_width_is_relative():
    found = st.Interval(ratio=0.5, low=0.48, high=0.53, confidence=0.95, n=5, method="m")
    assert found.half_width == pytest.approx(0.05)


def test_with_blocks_neighbours_are_held_against_each_other_and_without_medians():
    a, b = [10] * 8 + [20] * 8, [20] * 8 + [40] * 4 + [90] * 4
    found = st.log_ratios([a], [b], ([(4, 4, 4, 4)], [(4, 4, 4, 4)]))
    assert found == pytest.approx((math.log(2),))
    assert st.log_ratios([a], [b]) == pytest.approx((math.log(30 / 15),))
    # a machine that doubles its time half-way is no difference between two models
    slow = [v * (1 if i < 5 else 2) for i, v in enumerate(a)]
    both = ([(4, 4, 4, 4)], [(4, 4, 4, 4)])
    assert st.log_ratios([slow], [slow], both) == pytest.approx((0.0,))


def test_a_restart_without_blocks_or_with_one_is_median_over_median():
    a, b = [10, 20, 30], [30, 60, 60]
    expected = pytest.approx((math.log(3),))
    assert st.log_ratios([a], [b], ([()], [()])) == expected
    assert st.log_ratios([a], [b], ([], [])) == expected
    assert st.log_ratios([a], [b], ([(3,)], [(3,)])) == expected
    assert st.log_ratios([a], [b], ([(1, 2)], [(3,)])) == expected


def test_blocks_do_not_hide_a_clock_that_is_too_coarse():
    with pytest.raises(DataError, match="too coarse"):
        st.log_ratios([[0, 0, 0, 9]], [[1, 1, 1, 1]], ([(2, 2)], [(2, 2)]))
    with pytest.raises(DataError, match="not finite"):
        st.log_ratios([[1.0, math.nan]], [[1, 1]], ([(1, 1)], [(1, 1)]))


def test_log_ratios_pair_the_restarts():
    found = st.log_ratios([[10, 20, 30], [40]], [[40], [20, 20]])
    assert found == pytest.approx((math.log(2), math.log(0.5)))
    with pytest.raises(DataError, match="2 restarts of A and 1 of B"):
        st.log_ratios([[1], [2]], [[1]])
    with pytest.raises(DataError, match="clock is too coarse"):
        st.log_ratios([[0]], [[1]])


def test_welchs_interval_is_scipys():
    a, b = [10.0, 11.0, 10.5, 10.2, 10.9], [12.0, 12.6, 12.1, 13.0]
    found = st.welch_interval(a, b)
    span = stats.ttest_ind(np.log(b), np.log(a), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((math.exp(span.low), math.exp(span.high)))
    assert st.welch_interval([5.0, 5.0], [6.0, 6.0]).low == pytest.approx(1.2)
    with pytest.raises(DataError, match="too coarse"):
        st.welch_interval([0.0, 1.0], [1.0, 1.0])
