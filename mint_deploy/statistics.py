"""The statistics of the harness: what may be said of raw latencies, and with what certainty.

Three rules, each measured or derived rather than chosen:

* a percentile is given only where the sample count supports it (LoadGen's early stopping: the
  smallest ``n`` with ``P[Binomial(n, 1 - p) <= 1] <= 1 %``: 64 samples for p90, 662 for p99);
* two models are compared by the logarithms of their ratio, one per process restart, because the
  restart is the unit of evidence: a t interval, from twenty restarts on a studentised bootstrap;
* no scipy: this file travels to the board, so Student's t is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mint_deploy.errors import ConfigError, DataError

__all__ = [
    "BOOTSTRAP_FROM",
    "Figure",
    "Interval",
    "drift",
    "early_stopping_bound",
    "log_ratios",
    "median",
    "median_half_width",
    "median_interval",
    "needed_samples",
    "percentile",
    "ratio_interval",
    "spread",
    "t_quantile",
    "welch_interval",
]

Samples = Sequence[int] | Sequence[float] | npt.NDArray[np.float64]

#: LoadGen's confidence that a percentile is not under-reported
CONFIDENCE = 0.99
#: samples that may lie above the percentile in the smallest run that supports it
EXCESS = 1
#: from this many restarts on the interval of a ratio is a studentised bootstrap
BOOTSTRAP_FROM = 20
_RESAMPLES = 4999


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A number, or None and the reason; ``upper`` is a bound that holds at 99 % confidence."""

    value: float | None
    reason: str | None = None
    upper: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A ratio with its confidence interval; ``method`` says how it was made from ``n`` restarts."""

    ratio: float
    low: float
    high: float
    confidence: float
    n: int
    method: str


# ---------------------------------------------------------------- one sample of latencies


def _finite(samples: Samples, what: str) -> npt.NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64).reshape(-1)
    if values.size == 0:
        raise DataError(f"{what}: no samples were given, at least one is needed")
    if not np.isfinite(values).all():
        raise DataError(f"{what}: {int((~np.isfinite(values)).sum())} samples are not finite")
    return values


def median(samples: Samples) -> float:
    """Return the median of ``[N]`` samples, in their own unit.

    Raises:
        DataError: no samples, or one that is not finite.
    """
    return float(np.median(_finite(samples, "median")))


def spread(samples: Samples) -> float:
    """Return the interquartile range as a fraction of the median."""
    low, middle, high = np.percentile(_finite(samples, "spread"), [25, 50, 75])
    return float((high - low) / middle) if middle > 0 else 0.0


def drift(samples: Samples) -> float:
    """Return the median of the last third over that of the first third, minus one.

    Fewer than six samples have no thirds worth comparing: 0.0.
    """
    values = _finite(samples, "drift")
    third = len(values) // 3
    if third < 2:
        return 0.0
    first = float(np.median(values[:third]))
    return float(np.median(values[-third:])) / first - 1 if first > 0 else 0.0


@lru_cache(maxsize=512)
def needed_samples(p: float, excess: int = EXCESS, confidence: float = CONFIDENCE) -> int:
    """Return the smallest ``n`` with ``P[Binomial(n, 1 - p/100) <= excess] <= 1 - confidence``.

    ``p`` is in percent. With ``excess`` 1 at 99 %: 64 for p90, 130 for p95, 662 for p99.

    Raises:
        ConfigError: ``p`` is not between 1 and 100, or a negative ``excess``.
    """
    _check_percent(p)
    if excess < 0:
        raise ConfigError(f"excess is {excess}, expected 0 or more")
    tail, allowed = 1 - p / 100, 1 - confidence
    high = excess + 1
    while _binomial_cdf(excess, high, tail) > allowed:
        high *= 2
    low = excess
    while high - low > 1:
        middle = (low + high) // 2
        if _binomial_cdf(excess, middle, tail) > allowed:
            low = middle
        else:
            high = middle
    return high


def _check_percent(p: float) -> None:
    if not 1 <= p < 100:
        raise ConfigError(f"percentile {p:g} is out of range; it is in percent: 90, not 0.9")


def _binomial_cdf(k: int, n: int, q: float) -> float:
    """``P[Binomial(n, q) <= k]`` for a small ``k``."""
    if k >= n:
        return 1.0
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(q) + (n - i) * math.log1p(-q)
        for i in range(k + 1)
    ]  # fmt: skip
    return math.fsum(math.exp(v) for v in logs)


def _binomial_cdfs(n: int, q: float) -> npt.NDArray[np.float64]:
    """``[n + 1]``: ``P[Binomial(n, q) <= k]`` for every ``k``."""
    k = np.arange(n + 1)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    logs = log_factorial[n] - log_factorial[k] - log_factorial[n - k]
    out: npt.NDArray[np.float64] = np.cumsum(
        np.exp(logs + k * math.log(q) + (n - k) * math.log1p(-q))
    )
    return out


def early_stopping_bound(samples: Samples, p: float) -> float | None:
    """Return LoadGen's early-stopping estimate: percentile ``p`` is not above it, at 99 %.

    With ``t`` the largest count for which the samples suffice, the ``t - 1`` slowest are left out
    and the slowest of the rest is the bound. None where the samples do not suffice.
    """
    values = _finite(samples, f"p{p:g}")
    if len(values) < needed_samples(p):
        return None
    tail = _binomial_cdfs(len(values), 1 - p / 100)
    most = int(np.searchsorted(tail, 1 - CONFIDENCE, side="right")) - 1
    return float(np.sort(values)[len(values) - max(most, EXCESS)])


def percentile(samples_ns: Samples, p: float) -> Figure:
    """Return percentile ``p`` (in percent) of ``[N]`` raw latencies, where their count supports it.

    ``value`` is the nearest-rank percentile (a latency that was really seen), ``upper`` the
    early-stopping bound at 99 % confidence. With too few samples ``value`` is None and ``reason``
    says how many are needed.

    Raises:
        ConfigError: ``p`` outside 1 .. 100 (it is in percent).
        DataError: a sample that is not finite.
    """
    needed = needed_samples(p)
    if len(samples_ns) < needed:
        return Figure(
            value=None,
            reason=f"{len(samples_ns)} samples; p{p:g} needs {needed} for 99 % confidence",
        )
    values = np.sort(_finite(samples_ns, f"p{p:g}"))
    # the small subtraction keeps 0.9 * 70 = 63.00000000000001 at rank 63
    rank = max(math.ceil(len(values) * p / 100 - 1e-9), 1)
    return Figure(value=float(values[rank - 1]), upper=early_stopping_bound(values, p))


def median_interval(samples: Samples, confidence: float = 0.95) -> tuple[float, float] | None:
    """Return an interval of the median from order statistics, free of any distribution.

    None where there are too few samples for this confidence (under 6 for 95 %).
    """
    values = np.sort(_finite(samples, "interval of the median"))
    below = _binomial_cdfs(len(values), 0.5)
    rank = int(np.searchsorted(below, (1 - confidence) / 2, side="right"))
    if rank < 1:
        return None
    return float(values[rank - 1]), float(values[len(values) - rank])


def median_half_width(samples: Samples, confidence: float = 0.95) -> float:
    """Return half the width of the median's interval as a fraction of the median (inf: unknown)."""
    interval = median_interval(samples, confidence)
    middle = median(samples)
    if interval is None or middle <= 0:
        return math.inf
    return (interval[1] - interval[0]) / 2 / middle


# ---------------------------------------------------------------- Student's t without scipy


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The continued fraction of the incomplete beta function, by Lentz's method."""
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    value = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            value *= step
        if abs(step - 1.0) < 1e-16:
            break
    return value


def _two_sided_tail(t: float, df: float) -> float:
    """``P[|T| > t]`` for Student's t with ``df`` degrees of freedom, ``t >= 0``."""
    a, b = df / 2, 0.5
    x, y = df / (df + t * t), t * t / (df + t * t)
    if y == 0.0:
        return 1.0
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front - a * math.log1p(t * t / df) + b * math.log(y))
    if x < (a + 1) / (a + b + 2):
        return front * _beta_fraction(a, b, x) / a
    return 1.0 - front * _beta_fraction(b, a, y) / b


@lru_cache(maxsize=512)
def t_quantile(probability: float, df: float) -> float:
    """Return the quantile of Student's t with ``df`` degrees of freedom (need not be whole).

    Raises:
        ConfigError: ``probability`` outside (0, 1), or ``df`` not above 0.
    """
    if not 0 < probability < 1:
        raise ConfigError(f"probability is {probability:g}, expected a number between 0 and 1")
    if not (df > 0 and math.isfinite(df)):
        raise ConfigError(f"{df:g} degrees of freedom, expected a number above 0")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    tail = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while _two_sided_tail(high, df) > tail:
        low, high = high, high * 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _two_sided_tail(middle, df) > tail:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# ---------------------------------------------------------------- two models


def log_ratios(a: Sequence[Samples], b: Sequence[Samples]) -> tuple[float, ...]:
    """Return ``log(median of B / median of A)`` for each restart that both share.

    Raises:
        DataError: unequal counts of restarts, or a median that is not above zero.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} restarts of A and {len(b)} of B; they must be equal in number")
    out = []
    for first, second in zip(a, b, strict=True):
        below, above = median(first), median(second)
        if below <= 0 or above <= 0:
            raise DataError("a median latency of zero: the clock is too coarse for this model")
        out.append(math.log(above / below))
    return tuple(out)


def ratio_interval(
    log_ratio: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Return the ratio and its interval from ``[restarts]`` logarithms of ratios.

    A t interval below twenty restarts, a studentised bootstrap from there on.

    Raises:
        DataError: fewer than two restarts (one restart says nothing of the spread between them).
    """
    values = _finite(log_ratio, "interval of a ratio")
    n = len(values)
    _at_least_two(n, "the comparison")
    centre, error = float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n)
    if n < BOOTSTRAP_FROM or error == 0.0:
        reach = t_quantile((1 + confidence) / 2, n - 1) * error
        low, high, method = centre - reach, centre + reach, "t interval over restarts"
    else:
        drawn = values[np.random.default_rng(seed).integers(0, n, size=(_RESAMPLES, n))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        usable = errors > 0
        student = (drawn.mean(axis=1)[usable] - centre) / errors[usable]
        left, right = np.quantile(student, [(1 - confidence) / 2, (1 + confidence) / 2])
        low, high = centre - float(right) * error, centre - float(left) * error
        method = "studentised bootstrap over restarts"
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(low),
        high=math.exp(high),
        confidence=confidence,
        n=n,
        method=method,
    )


def welch_interval(a: Sequence[float], b: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """Return ``B / A`` with Welch's t interval from restart medians that were not interleaved.

    Raises:
        DataError: fewer than two restarts on a side, or a median that is not above zero.
    """
    first, second = _finite(a, "medians of A"), _finite(b, "medians of B")
    _at_least_two(min(len(first), len(second)), "each side")
    if min(first.min(), second.min()) <= 0:
        raise DataError("a median latency of zero: the clock is too coarse for this model")
    logs = np.log(first), np.log(second)
    centre = float(logs[1].mean() - logs[0].mean())
    parts = [float(v.var(ddof=1)) / len(v) for v in logs]
    error = math.sqrt(sum(parts))
    reach = 0.0
    if error > 0:
        df = sum(parts) ** 2 / sum(
            p * p / (len(v) - 1) for p, v in zip(parts, logs, strict=True) if p > 0
        )
        reach = t_quantile((1 + confidence) / 2, df) * error
    return Interval(
        ratio=math.exp(centre),
        low=math.exp(centre - reach),
        high=math.exp(centre + reach),
        confidence=confidence,
        n=min(len(first), len(second)),
        method="Welch's t interval over restart medians",
    )


def _at_least_two(n: int, what: str) -> None:
    if n < 2:
        raise DataError(
            f"{what} has {n} process restart; an interval needs at least 2, and 5 to be trusted: "
            "measure with more restarts"
        )
