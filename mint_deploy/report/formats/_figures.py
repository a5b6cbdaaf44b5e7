"""The figures of a measurement, each with its unit, its interval and its digits; or why it is missing.

A figure that every process restart gives stands at the geometric mean of the restarts, inside its
interval over them. It is rounded where its interval
begins, so that no digit is printed that another run would not repeat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal

from mint_deploy import statistics, stopping
from mint_deploy.artifacts import Measurement
from mint_deploy.limits import GAUGES, Gauge, per_restart

__all__ = ["DIGITS", "Figure", "figures", "number", "rounded", "significant"]

#: digits of a figure of which no interval is known
DIGITS = 3
#: digits at most, however narrow the interval: no clock here is better
_MOST = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure; ``value`` is None where ``reason`` says why; ``low`` and ``high`` where an interval is known."""

    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str = ""
    larger: bool = False


def figures(m: Measurement, *, confidence: float = 0.95) -> Iterator[Figure]:
    """Yield every figure that a limit may hold, and the memory of the imports, in a fixed order.

    Args:
        m: the measurement.
        confidence: of the intervals.
    """
    for name, gauge in GAUGES.items():
        if gauge.key:
            yield _once(m, name, gauge, m.figures.get(gauge.key), gauge.key, exact=True)
        elif name == "memory":
            peak, imports = m.peak_rss_bytes, m.import_rss_bytes
            net = None if peak is None else peak - (imports or 0)
            yield _once(m, name, gauge, net, gauge.field, exact=True)
            yield _once(m, "import memory", gauge, imports, "import_rss_bytes", exact=True)
        elif gauge.field:
            exact = gauge.unit == "bytes"
            yield _once(m, name, gauge, getattr(m, gauge.field), gauge.field, exact=exact)
        else:
            yield _repeated(m, name, gauge, confidence)


def _once(
    m: Measurement, name: str, gauge: Gauge, value: float | None, key: str, *, exact: bool
) -> Figure:
    """A figure that the measurement holds; a count is exact."""
    if value is None or not math.isfinite(value):
        reason = m.nulls.get(key, "not recorded")
        return Figure(name=name, unit=gauge.unit, value=None, reason=reason)
    return Figure(name=name, unit=gauge.unit, value=value if exact else significant(value))


def _repeated(m: Measurement, name: str, gauge: Gauge, confidence: float) -> Figure:
    """A figure of every restart, inside its interval; of all calls together where restarts are too short."""
    blank = Figure(name=name, unit=gauge.unit, value=None, larger=gauge.larger)
    values, why = per_restart(m, name)
    if len(values) > 1:
        made_by = stopping.interval if m.sequential else statistics.ratio_interval
        found = made_by([math.log(v) for v in values], confidence=confidence)
        value, low, high = rounded(found.ratio, found.low, found.high)
        return replace(blank, value=value, low=low, high=high)
    if values:
        return replace(blank, value=significant(values[0]))
    samples = [ns for restart in m.restarts_ns for ns in restart]
    if name.startswith("p") and samples:
        pooled = statistics.percentile(samples, float(name[1:]))
        if pooled.value is not None:
            return replace(blank, value=significant(pooled.value))
        why = pooled.reason or why
    return replace(blank, reason=why)


# ---------------------------------------------------------------- digits


def rounded(value: float, low: float, high: float) -> tuple[float, float, float]:
    """Return a figure and its interval, rounded to the digit in which the interval begins.

    A leading 1 or 2 earns one digit more; ``low <= value <= high`` is kept.

    >>> rounded(1234567.0, 1229000.0, 1240000.0)
    (1235000, 1229000, 1240000)
    >>> rounded(0.48765, 0.4812, 0.4941)
    (0.488, 0.481, 0.494)
    """
    if not all(map(math.isfinite, (value, low, high))) or value == 0:
        return value, low, high
    first = math.floor(math.log10(abs(value)))
    half = (high - low) / 2
    place = first - _MOST + 1
    if half > 0:
        begins = math.floor(math.log10(half))
        place = max(place, begins - (1 if half / 10**begins < 3 else 0))
        place = min(place, first)  # one digit is left whatever the interval
    return _to(value, place), _to(low, place), _to(high, place)


def significant(value: float, digits: int = DIGITS) -> float:
    """Return ``value`` with so many significant digits.

    >>> significant(1234567.0), significant(0.0123456)
    (1230000, 0.0123)
    """
    if value == 0 or not math.isfinite(value):
        return value
    return _to(value, math.floor(math.log10(abs(value))) - digits + 1)


def _to(value: float, place: int) -> float:
    """``value`` rounded to ``10**place``; a whole number where that is one."""
    return int(round(value, -place)) if place >= 0 else round(value, -place)


def number(value: float | None) -> str:
    """Return a figure as text that every parser takes: no powers of ten, no thousands, nothing for None.

    >>> number(1235000.0), number(0.0000123), number(None)
    ('1235000', '0.0000123', '')
    """
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() else f"{Decimal(repr(float(value))):f}"
