"""Throughput over the batch, from the ``offline`` measurements alone: one sweep a model, with its knee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mint_deploy.artifacts import Measurement
from mint_deploy.bench import Throughput

__all__ = ["sweeps"]


def sweeps(measured: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Return a sweep for each model and way of running it, its batches in order.

    ``points`` hold ``batch``, ``per_s`` (all samples over all the time they took), ``low`` and ``high`` (the rates
    of the middle half of the calls) and ``median_ns`` of a call. ``knee`` is the smallest batch within 5 % of the
    best rate, None for one batch alone; ``knee_range``: the smallest and the largest batch that may be it
    at 95 %. Where a batch was measured twice the last counts.
    """
    found: dict[tuple[str, ...], dict[int, Measurement]] = {}
    for m in measured:
        if m.task.scenario == "offline" and any(m.restarts_ns):
            key = (m.task.label, m.task.runtime, m.task.precision, str(m.task.threads))
            found.setdefault(key, {})[m.task.batch] = m
    out = []
    for (label, runtime, precision, threads), by_batch in found.items():
        swept = Throughput(measurements=tuple(by_batch[b] for b in sorted(by_batch)))
        rates, knee = swept.samples_per_s, swept.knee
        out.append(
            {
                "label": label,
                "runtime": runtime,
                "precision": precision,
                "threads": int(threads),
                "points": [_point(by_batch[b], rate) for b, rate in rates.items()],
                "knee": knee,
                "knee_range": swept.knee_range,
                "knee_per_s": rates.get(knee) if knee is not None else None,
                "nulls": _missing(by_batch.values()),
            }
        )
    return out


def _point(m: Measurement, rate: float) -> dict[str, Any]:
    samples = np.concatenate([np.asarray(ns, dtype=np.float64) for ns in m.restarts_ns])
    q1, median, q3 = np.percentile(samples, (25, 50, 75))
    ends = (m.task.batch / v * 1e9 if v > 0 else None for v in (q3, q1))
    low, high = ends
    return {
        "batch": m.task.batch,
        "per_s": rate,
        "low": low,
        "high": high,
        "median_ns": float(median),
        "samples": int(samples.size),
    }


def _missing(measured: Any) -> dict[str, str]:
    """Return ``batch -> why it was not measured`` where a measurement of the sweep says so."""
    return {
        name.removeprefix("batch").strip(" _"): why
        for m in measured
        for name, why in m.nulls.items()
        if name.startswith("batch")
    }
