"""Measurements as the section ``latency`` of a report: a run folder's, or those that ``bench`` made of files.

Everything is derived here from the raw latencies; percentiles and knees come from the device half, which answers
with a reason where the samples do not support one. Times are in nanoseconds and figures whole: they are rounded
where they are printed (:mod:`mint_deploy.report.words`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mint_deploy import files, statistics, stopping
from mint_deploy.artifacts import Comparison, Measurement
from mint_deploy.report.layertime import layers, operators
from mint_deploy.report.offline import sweeps

__all__ = ["boxes", "labels", "paired", "ratio", "restart_ratios", "section", "shape"]

_PERCENTILES = (90, 95, 99)
_CONFIDENCE = 0.95
#: bars of the picture of a distribution, at most
_BARS = 56
#: what settles that measurements were taken of one task: what they are of may differ
KEY = ("runtime", "precision", "scenario", "batch", "threads", "streams", "flags")


def section(
    measured: Sequence[Measurement], compared: Sequence[Comparison] = (), unreadable: int = 0
) -> dict[str, Any]:
    """Return the section: ratios first, then each measurement's own figures.

    Args:
        measured: of any scenario and batch; only ``single_stream`` speaks of latency and only ``offline`` of
            the knee.
        compared: in the order of the measurements that they were taken from.
        unreadable: lines of the file that could not be read.
    """
    runs = [_run(m) for m in measured]
    ratios = paired(measured, compared)
    return {
        "origin": "measured",
        "ratio": next((r for c in compared if (r := ratio(c)) is not None), None),
        "ratios": ratios,
        "comparisons": [files.encode(c) for c in compared],
        "runs": runs,
        "sweeps": sweeps(measured),
        "unreadable_lines": unreadable,
    }


def labels(runs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return what was measured, in order; the first is what the others are held against."""
    return list(dict.fromkeys(run["label"] for run in runs))


# ---------------------------------------------------------------- ratios


def ratio(comparison: Comparison) -> dict[str, Any] | None:
    """Return how slim's time compares with dense's, whichever way round it was taken.

    ``ratio`` is slim / dense, ``speedup`` its inverse, each with its interval; None for a
    comparison of two other things.
    """
    c = comparison
    if {c.a, c.b} != {"dense", "slim"}:
        return None
    value, low, high = c.ratio, c.low, c.high
    if c.a == "slim":
        value, low, high = 1 / value, 1 / high, 1 / low
    return _speedup(value, low, high, c)


def _speedup(value: float, low: float, high: float, c: Comparison) -> dict[str, Any]:
    seen = "faster" if high < 1 else "slower" if low > 1 else "no difference seen"
    return {
        "ratio": value,
        "low": low,
        "high": high,
        "speedup": 1 / value,
        "speedup_low": 1 / high,
        "speedup_high": 1 / low,
        "confidence": c.confidence,
        "restarts": c.restarts,
        "seen": seen,
    }


def paired(measured: Sequence[Measurement], compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return every comparison with the task that it belongs to and the ratio of each restart.

    A Comparison names two labels; where several batches were compared, the first of two labels belongs to the
    first task that both were measured under, the second to the second.
    """
    tasks: dict[tuple[Any, ...], dict[str, Measurement]] = {}
    for m in measured:
        tasks.setdefault(_key(m), {}).setdefault(m.task.label, m)
    used: dict[tuple[str, str], int] = {}
    out = []
    for c in compared:
        a, b, flip = (c.a, c.b, False) if c.a != "slim" or c.b != "dense" else (c.b, c.a, True)
        ends = (1 / c.ratio, 1 / c.high, 1 / c.low) if flip else (c.ratio, c.low, c.high)
        both = [pair for pair in tasks.values() if a in pair and b in pair]
        seen = used[a, b] = used.get((a, b), 0) + 1
        pair = both[seen - 1] if seen <= len(both) else None
        task = pair[b].task if pair else None
        out.append(
            {
                "a": a,
                "b": b,
                "scenario": task.scenario if task else None,
                "batch": task.batch if task else None,
                "each": restart_ratios(pair[a], pair[b]) if pair else [],
                **_speedup(*ends, c),
            }
        )
    return out


def _key(m: Measurement) -> tuple[Any, ...]:
    """What two measurements share that were compared: the precision may be what differs."""
    return tuple(getattr(m.task, name) for name in KEY if name != "precision")


def restart_ratios(a: Measurement, b: Measurement) -> list[float]:
    """Return how many times as fast as A was B in each restart that both share."""
    shared = [(x, y) for x, y in zip(a.restarts_ns, b.restarts_ns, strict=False) if x and y]
    medians = [(statistics.median(x), statistics.median(y)) for x, y in shared]
    return [x / y for x, y in medians if x > 0 and y > 0]


# ---------------------------------------------------------------- distributions


def boxes(restarts_ns: Iterable[Sequence[int]]) -> list[dict[str, Any]]:
    """Return a box per process restart: median, quartiles, Tukey whiskers, what lies outside."""
    out: list[dict[str, Any]] = []
    for restart in restarts_ns:
        samples = np.asarray(restart, dtype=np.float64)
        if not samples.size:
            continue
        q1, median, q3 = np.percentile(samples, (25, 50, 75))
        reach = 1.5 * (q3 - q1)
        inside = samples[(samples >= q1 - reach) & (samples <= q3 + reach)]
        out.append(
            {
                "samples": int(samples.size),
                "median_ns": float(median),
                "q1_ns": float(q1),
                "q3_ns": float(q3),
                "low_ns": float(inside.min()),
                "high_ns": float(inside.max()),
                "below": int((samples < inside.min()).sum()),
                "above": int((samples > inside.max()).sum()),
            }
        )
    return out


def shape(samples: Sequence[int]) -> dict[str, Any] | None:
    """Return the shape of a distribution: the counts of equal bars, and how many calls lie beyond.

    The bars reach from the smallest latency to the 99th percentile. Where that is far off (calls that were
    interrupted), they end four quartile ranges after the third quartile, so that a few hiccups do not flatten the
    rest; ``above`` counts what is beyond. A bar is as wide as Freedman and Diaconis say, within 8 and 56 bars.
    None without samples.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    if not values.size:
        return None
    q1, q3, p99 = np.percentile(values, (25, 75, 99))
    far = q3 + 4 * (q3 - q1)
    end = p99 if p99 <= q3 + 8 * (q3 - q1) else far
    low, high = float(values[0]), float(min(values[-1], max(end, q3 + 1.5 * (q3 - q1))))
    if high <= low:
        above = int((values > low).sum())
        return {"low_ns": low, "high_ns": low, "counts": [int(values.size) - above], "above": above}
    width = 2 * (q3 - q1) / values.size ** (1 / 3)
    bars = int(min(max((high - low) / width if width > 0 else _BARS, 8), _BARS))
    counts, _ = np.histogram(values, bins=bars, range=(low, high))
    return {
        "low_ns": low,
        "high_ns": high,
        "counts": [int(n) for n in counts],
        "above": int((values > high).sum()),
    }


def _interval(m: Measurement) -> dict[str, Any]:
    """Return the latency with its interval over restarts, which are the unit of evidence.

    ``centre`` is the geometric mean of the restarts' medians, which is what ratios are taken of. A single restart
    has only the spread of its own calls to go by: ``reason`` says so.
    """
    medians = [statistics.median(ns) for ns in m.restarts_ns if len(ns)]
    found: dict[str, Any] = {"centre": None, "low": None, "high": None, "confidence": _CONFIDENCE}
    if not medians:
        return {**found, "reason": "no latency was recorded"}
    if len(medians) == 1 or min(medians) <= 0:
        reason = "one process restart: what lies between restarts is not known"
        if len(medians) > 1:
            reason = "a median of zero: the clock is too coarse for this model"
        return {**found, "centre": statistics.median(medians), "reason": reason}
    # whoever looked before stopping needs the wider one
    made_by = stopping.interval if m.sequential else statistics.ratio_interval
    own = made_by([math.log(v) for v in medians], confidence=_CONFIDENCE)
    return {**found, "centre": own.ratio, "low": own.low, "high": own.high, "reason": None}


# ---------------------------------------------------------------- one measurement


def _run(m: Measurement) -> dict[str, Any]:
    samples = [ns for restart in m.restarts_ns for ns in restart]
    median = float(np.median(samples)) if samples else None
    net = None if m.peak_rss_bytes is None else m.peak_rss_bytes - (m.import_rss_bytes or 0)
    burst = m.task.streams if m.task.scenario == "multi_stream" else 1
    span = _interval(m)
    return {
        "label": m.task.label,
        "runtime": m.task.runtime,
        "precision": m.task.precision,
        "scenario": m.task.scenario,
        "batch": m.task.batch,
        "threads": m.task.threads,
        "streams": m.task.streams,
        "flags": dict(m.task.flags),
        "sha256": m.task.sha256,
        "samples": len(samples),
        "median_ns": _figure(median, "no latency was recorded"),
        "interval": span,
        "percentiles": {f"p{p}": _percentile(samples, p) for p in _PERCENTILES},
        "per_s": _figure(
            m.task.batch * burst / span["centre"] * 1e9 if span["centre"] else None,
            "no latency was recorded",
        ),
        "restarts": boxes(m.restarts_ns),
        "shape": shape(samples) if m.task.scenario != "offline" else None,
        "load_ns": _figure(float(np.median(m.load_ns)) if m.load_ns else None, "not recorded"),
        "peak_rss_bytes": _figure(net, _why(m, "peak_rss_bytes")),
        "import_rss_bytes": m.import_rss_bytes,
        "gpu_bytes": _figure(m.gpu_bytes, _why(m, "gpu_bytes", m.machine.gpu)),
        "energy_mj": _figure(m.energy_mj, _why(m, "energy_mj")),
        "figures": {str(k): v for k, v in m.figures.items()},
        "layers": layers(m.layers),
        "operators": operators(m.layers),
        "states": [files.encode(state) for state in m.states],
        "converged": m.converged,
        "started": m.started,
        "partner": m.partner,
        "nulls": dict(m.nulls),
        "doubts": list(m.doubts),
        "machine": m.machine.hostname,
    }


def _figure(value: float | None, reason: str) -> dict[str, Any]:
    return {"value": value, "reason": None if value is not None else reason}


def _percentile(samples: Sequence[int], p: int) -> dict[str, Any]:
    figure = statistics.percentile(samples, p)
    return {"value": figure.value, "reason": figure.reason, "upper": figure.upper}


def _why(m: Measurement, name: str, needed: object = "") -> str:
    """Return why a figure is missing: the measurement's own word, or that there is none.

    ``needed`` is the part of the machine that the figure would come from; without it that is the reason.
    """
    if m.nulls.get(name):
        return m.nulls[name]
    if needed is None:
        return m.machine.details.get("nulls", {}).get("gpu") or "this machine has no GPU"
    return "not recorded, and the measurement does not say why"
