"""The measured side of the report: latencies, their ratio, memory, machines, a prediction.

Everything is derived here from the raw latencies in measurements.jsonl; percentiles come from
:mod:`mint_deploy.statistics`, which answers with a reason where the samples do not support one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mint_deploy import files, statistics
from mint_deploy.artifacts import Comparison, Measurement
from mint_deploy.report.folder import Folder

__all__ = ["PREDICTED", "boxes", "latency", "machines", "predicted", "ratio"]

PREDICTED = "predicted, not measured"

_PERCENTILES = (90, 95, 99)


def latency(folder: Folder) -> dict[str, Any] | None:
    """Return the section of the bench: ratios first, then each network's own figures."""
    measured, unreadable = folder.measurements()
    compared = folder.json("comparison.json", "Comparisons")
    if not measured and compared is None:
        return None
    comparisons = [
        files.decode(Comparison, c, where="comparison.json")
        for c in (compared or {}).get("comparisons", [])
    ]
    return {
        "origin": "measured",
        "ratio": next((r for c in comparisons if (r := ratio(c)) is not None), None),
        "comparisons": [files.encode(c) for c in comparisons],
        "runs": [_figures(m) for m in measured],
        "unreadable_lines": unreadable,
    }


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


def _figures(m: Measurement) -> dict[str, Any]:
    samples = [ns for restart in m.restarts_ns for ns in restart]
    median = float(np.median(samples)) if samples else None
    net = None if m.peak_rss_bytes is None else m.peak_rss_bytes - (m.import_rss_bytes or 0)
    return {
        "label": m.task.label,
        "runtime": m.task.runtime,
        "precision": m.task.precision,
        "scenario": m.task.scenario,
        "batch": m.task.batch,
        "threads": m.task.threads,
        "flags": dict(m.task.flags),
        "samples": len(samples),
        "median_ns": _figure(median, "no latency was recorded"),
        "percentiles": {f"p{p}": _percentile(samples, p) for p in _PERCENTILES},
        "per_s": _figure(
            m.task.batch / median * 1e9 if median else None, "no latency was recorded"
        ),
        "restarts": boxes(m.restarts_ns),
        "load_ns": _figure(float(np.median(m.load_ns)) if m.load_ns else None, "not recorded"),
        "peak_rss_bytes": _figure(net, _why(m, "peak_rss_bytes")),
        "import_rss_bytes": m.import_rss_bytes,
        "energy_mj": _figure(m.energy_mj, _why(m, "energy_mj")),
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


def _why(m: Measurement, name: str) -> str:
    return m.nulls.get(name) or "not recorded, and the measurement does not say why"


def machines(folder: Folder) -> dict[str, Any] | None:
    """Return each machine that measured, once, with why a figure of it is missing."""
    seen: list[dict[str, Any]] = []
    for measurement in folder.measurements()[0]:
        body = files.encode(measurement.machine)
        key = measurement.machine.fingerprint()
        if all(other["key"] != key for other in seen):
            seen.append({"key": key, "body": body})
    return {"machines": [m["body"] for m in seen]} if seen else None


def predicted(folder: Folder) -> dict[str, Any] | None:
    """Return the figures for a board that is not here, each beside the one measured here.

    predicted.json (:mod:`mint_deploy.predict`) holds ``board`` and ``figures``, a list of ``{key,
    label, value, unit, basis, reason}``, with ``low`` and ``high`` where known; ``key``
    (``latency_ratio``, ``dense_latency_ms``, ``slim_latency_ms``) finds its measured partner.
    Ratios come first.
    """
    body = folder.json("predicted.json", "Prediction")
    if body is None:
        return None
    partners = _measured(latency(folder))
    board = body.get("description") or body.get("board") or "the board"
    figures = [_predicted(dict(f), body.get("basis"), partners) for f in body["figures"]]
    return {
        "origin": PREDICTED,
        "board": f"{board}, {body['power_mode']}" if body.get("power_mode") else board,
        "basis": body.get("basis"),
        "sources": dict(body.get("sources") or {}),
        "figures": sorted(figures, key=lambda f: not str(f["key"]).endswith("ratio")),
    }


def _predicted(
    figure: Mapping[str, Any], basis: str | None, partners: Mapping[str, Any]
) -> dict[str, Any]:
    names = ("key", "value", "low", "high", "reason")
    key = str(figure.get("key"))
    return {
        **{name: figure.get(name) for name in names},
        "label": figure.get("label") or key.replace("_", " "),
        "unit": figure.get("unit") or "",
        "basis": None if figure.get("basis") == basis else figure.get("basis"),
        "measured": partners.get(key),
    }


def _measured(section: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return this machine's figures under the keys that a prediction may use."""
    out: dict[str, dict[str, Any]] = {}
    if section is None:
        return out
    if section["ratio"] is not None:
        r = section["ratio"]
        out["latency_ratio"] = {
            "value": r["ratio"],
            "low": r["low"],
            "high": r["high"],
            "unit": "×",
        }
    for run in section["runs"]:
        key = f"{run['label']}_latency_ms"
        if run["scenario"] == "single_stream" and run["median_ns"]["value"] and key not in out:
            out[key] = {"value": run["median_ns"]["value"] / 1e6, "unit": "ms"}
    return out
