"""The measured figures as rows of text: latencies, throughput, memory, and why a figure is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report import words
from mint_deploy.report.merging import about_runs, merged

__all__ = ["gaps", "how", "latency_rows", "memory_rows", "sweep_rows"]


def how(run: Mapping[str, Any]) -> str:
    """Return how something was run: ``onnxruntime, fp32, single_stream, batch 1, 1 thread``."""
    streams = f", bursts of {run['streams']}" if run["scenario"] == "multi_stream" else ""
    return (
        f"{run['runtime']}, {run['precision']}, {run['scenario']}, batch {run['batch']}, "
        f"{run['threads']} thread{'s' * (run['threads'] != 1)}{streams}"
    )


def latency_rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each measurement: what it was, its figures as text, reasons for gaps."""
    rows = []
    for run in body["latency"].get("runs", []):
        figures = {"median": run["median_ns"], **run["percentiles"]}
        sensed = {"memory": run["peak_rss_bytes"], "energy": run["energy_mj"]}
        swept = run["scenario"] == "offline"  # a sweep speaks of its throughput, not of percentiles
        lacking = sensed if swept else {**figures, **sensed}
        span = run["interval"]
        median, median_span = words.timed(span["centre"], span["low"], span["high"])
        rows.append(
            {
                "label": run["label"],
                "how": how(run),
                "run": run,
                "scenario": run["scenario"],
                "batch": run["batch"],
                "figures": {
                    **{name: _beside(f["value"], span) for name, f in figures.items()},
                    "p50": _beside(run["median_ns"]["value"], span),
                    "median": median,
                },
                "median_span": median_span,
                "per_s": _rate(run),
                "samples": words.count(run["samples"]),
                "restarts": len(run["restarts"]),
                "load": words.duration(run["load_ns"]["value"]),
                "memory": words.bytes_(run["peak_rss_bytes"]["value"]),
                "energy": words.energy(run["energy_mj"]["value"]),
                "reasons": {name: f["reason"] for name, f in lacking.items() if f["reason"]},
            }
        )  # fmt: skip
    return rows


def _beside(value_ns: float | None, span: Mapping[str, Any]) -> str:
    """Return a percentile with no more digits than the median's interval supports."""
    if value_ns is None or span["low"] is None:
        return words.duration(value_ns)
    half = (span["high"] - span["low"]) / 2
    return words.duration(value_ns, words.supported(value_ns, value_ns - half, value_ns + half))


def _rate(run: Mapping[str, Any]) -> str:
    value, span = run["per_s"]["value"], run["interval"]
    digits = words.supported(span["centre"], span["low"], span["high"])
    return words.short(value, digits=digits) if value else words.NOT_HERE


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return ``(reason, what is missing for it)`` over the rows of :func:`latency_rows`."""
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        for name, reason in row["reasons"].items():
            found.setdefault((name, reason), []).append(row["run"])
    out = []
    for reason, abouts in merged((why, f"{name}\n{why}") for name, why in found):
        of: dict[str, list[Mapping[str, Any]]] = {}
        for about in abouts:
            name, _, why = about.partition("\n")
            of.setdefault(name, []).extend(found[name, why])
        for name, runs in of.items():
            whose = about_runs(runs) if len(runs) < len(rows) else ["every measurement"]
            out.append((reason, f"{name} of {'; '.join(whose)}"))
    return out


def sweep_rows(body: Mapping[str, Any]) -> tuple[list[int], list[dict[str, Any]]]:
    """Return the batches of the sweeps, and a row each: ``label how knee knee_range best cells reason``.

    ``cells`` are the samples a second at each batch, and the call's median beside.
    """
    sweeps = body["latency"].get("sweeps", [])
    batches = sorted({p["batch"] for s in sweeps for p in s["points"]})
    rows = []
    for sweep in sweeps:
        at = {p["batch"]: p for p in sweep["points"]}
        knee, best = sweep["knee"], max(sweep["points"], key=lambda p: p["per_s"])
        rows.append(
            {
                "label": sweep["label"],
                "how": f"{sweep['runtime']}, {sweep['precision']}, {sweep['threads']} "
                f"thread{'s' * (sweep['threads'] != 1)}",
                "knee": words.NOT_HERE if knee is None else str(knee),
                "knee_range": _range(sweep),
                "knee_per_s": words.short(sweep["knee_per_s"]),
                "best": words.short(best["per_s"]),
                "cells": [
                    (words.short(at[b]["per_s"]), words.duration(at[b]["median_ns"]))
                    if b in at
                    else (words.NOT_HERE, "")
                    for b in batches
                ],
                "reason": "; ".join(f"batch {b}: {why}" for b, why in sweep["nulls"].items()),
            }
        )
    return batches, rows


def _range(sweep: Mapping[str, Any]) -> str:
    """Return how sure the knee is, as words; empty where there is none."""
    if sweep["knee"] is None:
        return ""
    if sweep.get("knee_range") is None:
        return "measured once: it may be another"
    low, high = sweep["knee_range"]
    return "no other at 95 %" if low == high else f"{low} to {high} at 95 %"


def memory_rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each run: memory as text, the import baseline apart, with reasons for gaps."""
    rows = []
    for run in runs:
        net, imports = run["peak_rss_bytes"]["value"], run["import_rss_bytes"]
        peak = None if net is None else net + (imports or 0)
        counted, gpu = run["figures"], run["gpu_bytes"]
        reasons = {"peak memory": run["peak_rss_bytes"]["reason"], "GPU memory": gpu["reason"]}
        for name, key in (
            ("peak activations", "peak_activation_bytes"),
            ("weights", "weight_bytes"),
        ):
            if counted.get(key) is None:
                reasons[name] = run["nulls"].get(key) or "not counted for this measurement"
        rows.append(
            {
                "label": run["label"],
                "peak": words.bytes_(peak),
                "imports": words.bytes_(imports),
                "net": words.bytes_(net),
                "gpu": words.bytes_(gpu["value"]),
                "activations": words.bytes_(counted.get("peak_activation_bytes")),
                "weights": words.bytes_(counted.get("weight_bytes")),
                "reasons": {name: why for name, why in reasons.items() if why},
            }
        )
    return rows
