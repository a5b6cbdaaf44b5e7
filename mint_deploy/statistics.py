"""The statistics of the harness: what may be said of raw latencies, and with what certainty.

Three rules, each measured or derived rather than chosen:

* a percentile is given only where the sample count supports it (LoadGen's early stopping: the
  smallest ``n`` with ``P[Binomial(n, 1 - p) <= 1] <= 1 %``: 64 samples for p90, 662 for p99);
* two models are compared by the logarithms of their ratio, one per process restart, because the
  restart is the unit of evidence: a t interval, from twenty restarts on a studentised bootstrap
  (where their number was fixed beforehand; else :mod:`mint_deploy.stopping`);
* no scipy: this file travels to the board (:mod:`mint_deploy._student` has Student's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from mint_deploy import _blocks
from mint_deploy._student import t_quantile
from mint_deploy.errors import ConfigError, DataError

__all__ = [
    "BOOTSTRAP_FROM",
    "Figure",
    "Interval",
    "at_least_two",
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

    @property
    def half_width(self) -> float:
        """Half the interval as a fraction of the ratio."""
        return (self.high - self.low) / 2 / self.ratio


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


# ---------------------------------------------------------------- two models


def log_ratios(
    a: Sequence[Samples],
    b: Sequence[Samples],
    blocks: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None,
) -> tuple[float, ...]:
    """Return the logarithm of B's time over A's for each restart that both share.

    Args:
        a: latencies of A, one sequence a restart.
        b: latencies of B.
        blocks: for A and for B, how many latencies each block of a restart has, in order of time;
            neighbouring blocks are then held against each other (:mod:`mint_deploy._blocks`). Where
            they are not known it is the median of B over the median of A.

    Raises:
        DataError: unequal counts of restarts, blocks that are not those of the latencies, or a
            median that is not above zero.
    """
    if len(a) != len(b):
        raise DataError(f"{len(a)} restarts of A and {len(b)} of B; they must be equal in number")
    out = []
    for i, (first, second) in enumerate(zip(a, b, strict=True)):
        lengths = ((), ()) if blocks is None else (_of(blocks[0], i), _of(blocks[1], i))
        found: float | None
        if min(map(len, lengths)) > 1:
            sides = _finite(first, "latencies of A"), _finite(second, "latencies of B")
            found = _blocks.log_ratio(*sides, *lengths)
        else:
            below, above = median(first), median(second)
            found = math.log(above / below) if below > 0 and above > 0 else None
        if found is None:
            raise DataError("a median latency of zero: the clock is too coarse for this model")
        out.append(found)
    return tuple(out)


def _of(blocks: Sequence[Sequence[int]], restart: int) -> Sequence[int]:
    return blocks[restart] if restart < len(blocks) else ()


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
    at_least_two(n, "the comparison")
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
    at_least_two(min(len(first), len(second)), "each side")
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


def at_least_two(n: int, what: str) -> None:
    """Refuse an interval from fewer than two restarts: one says nothing of the spread of them."""
    if n < 2:
        raise DataError(
            f"{what} has {n} process restart; an interval needs at least 2, and 5 to be trusted: "
            "measure with more restarts"
        )
