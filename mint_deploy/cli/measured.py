"""How ``bench`` shows what it measured: a table, the ratios, the knee, and what speaks against them.

Every figure has the digits that its interval supports (:mod:`mint_deploy.digits`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mint_deploy import digits, statistics, stopping
from mint_deploy.report import words
from mint_deploy.statistics import Interval

if TYPE_CHECKING:
    from mint_deploy.artifacts import Comparison, Measurement

__all__ = ["Found", "body", "lines"]

#: below this the harness's own share is told
_FAST_NS = 100_000
_TAILS = (90.0, 99.0)


@dataclass(slots=True)
class Found:
    """What came of a ``bench``; ``knees`` are of sweeps, ``overhead_ns`` is None for slow models."""

    measured: list[Measurement] = field(default_factory=list)
    compared: list[Comparison] = field(default_factory=list)
    knees: dict[str, dict[str, Any]] = field(default_factory=dict)
    verdicts: list[dict[str, str]] = field(default_factory=list)
    interrupted: str | None = None
    overhead_ns: float | None = None


def body(found: Found) -> dict[str, Any]:
    """Return what ``--json`` prints."""
    return {
        "measurements": found.measured,
        "comparisons": found.compared,
        "knees": found.knees,
        "verdicts": found.verdicts,
        "interrupted": found.interrupted,
        "overhead_ns": found.overhead_ns,
    }


def over_restarts(m: Measurement, of: Callable[[Sequence[int]], float]) -> Interval | None:
    """Return a figure of a measurement with its interval over restarts; None for one restart."""
    logs = [math.log(value) for ns in m.restarts_ns if ns and (value := of(ns)) > 0]
    if len(logs) < 2:
        return None
    make = stopping.interval if m.sequential else statistics.ratio_interval
    return make(logs)


def fast(measured: Sequence[Measurement]) -> bool:
    """Whether a call is so short that the harness's own share matters."""
    return any(statistics.median(ns) < _FAST_NS for m in measured for ns in m.restarts_ns if ns)


def lines(found: Found) -> list[str]:
    """Return what is printed."""
    from mint_deploy.cli import show

    burst = any(m.task.streams > 1 for m in found.measured)
    head = ["", "batch", "a burst" if burst else "a call", "p90", "p99", "samples/s", "memory"]
    rows = [head, *(_row(m) for m in found.measured)]
    out = [show.table(rows)] if found.measured else []
    out += [_ratio(c) for c in found.compared]
    out += [_knee(label, knee) for label, knee in found.knees.items()]
    out += [f"  {v['state']}: {v['text']}" for v in found.verdicts]
    out += [f"  {note}" for note in _notes(found)]
    against = [text for m in found.measured for text in m.doubts]
    against += [text for c in found.compared for text in c.doubts]
    return out + [f"  doubt: {text}" for text in dict.fromkeys(against)]


def _row(m: Measurement) -> list[str]:
    samples = [ns for restart in m.restarts_ns for ns in restart]
    middle = over_restarts(m, statistics.median)
    at_once = m.task.batch * m.task.streams
    rate = over_restarts(m, lambda ns: at_once * len(ns) / sum(ns) * 1e9)
    return [
        m.task.label,
        str(m.task.batch) if m.task.streams == 1 else f"{m.task.batch} x {m.task.streams} streams",
        digits.duration(middle.ratio, middle.low, middle.high)
        if middle
        else digits.duration(statistics.median(samples)),
        *(_tail(samples, p) for p in _TAILS),
        digits.figure(rate.ratio, rate.low, rate.high)
        if rate
        else digits.figure(at_once * len(samples) / max(sum(samples), 1) * 1e9),
        _memory(m),
    ]


def _tail(samples: Sequence[int], p: float) -> str:
    """A percentile with the digits that its upper bound supports, or nothing."""
    found = statistics.percentile(samples, p)
    if found.value is None or found.upper is None:
        return words.NOT_HERE
    # its value and its unit, without what stands behind them
    shown = digits.duration(found.value, found.value, 2 * found.upper - found.value)
    return " ".join(shown.split(" ")[:2])


def _memory(m: Measurement) -> str:
    if m.peak_rss_bytes is None:
        return words.NOT_HERE
    imports = m.import_rss_bytes or 0
    own = f"{words.bytes_(m.peak_rss_bytes - imports)} + {words.bytes_(imports)} imports"
    return own if m.gpu_bytes is None else f"{own}, GPU {words.bytes_(m.gpu_bytes)}"


def _ratio(c: Comparison) -> str:
    places = max(digits.places((c.high - c.low) / 2), 0) if c.high > c.low else 3
    takes = digits.figure(c.ratio, c.low, c.high)
    # an interval that is wide is shown by its ends already
    ends = f"{words.span(c.low, c.high, places)}, " if "(" not in takes else ""
    return (
        f"  {c.b} takes {takes} of the time of {c.a} "
        f"({ends}{100 * c.confidence:.0f} % interval, {c.restarts} restarts)"
    )


def _knee(label: str, knee: dict[str, Any]) -> str:
    low, high = knee["low"], knee["high"]
    if low is None:
        sure = "; measured once, so that it may be another: give it more --seconds"
    elif low == high:
        sure = ", and no other at 95 %"
    else:
        sure = f" ({low} to {high} at 95 %)"
    return (
        f"  {label}: the knee is at batch {knee['knee']}{sure}; beyond it a batch only adds latency"
    )


def _notes(found: Found) -> list[str]:
    """What a dash in the table means, and the harness's own share of a short call."""
    out = []
    for m in found.measured:
        samples = [ns for restart in m.restarts_ns for ns in restart]
        missing = next((r for p in _TAILS if (r := statistics.percentile(samples, p).reason)), None)
        if missing:
            out.append(f"{m.task.label}, batch {m.task.batch}: {missing}")
    if found.overhead_ns is not None:
        each = "burst" if any(m.task.streams > 1 for m in found.measured) else "call"
        out.append(f"the harness itself takes {digits.duration(found.overhead_ns)} of each {each}")
    return out
