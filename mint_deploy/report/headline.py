"""The rows of the before/after table; a figure that is missing carries its reason.

A row is ``{"key", "label", "unit", "before", "after", "ratio", "origin", "reason"}`` with, for latencies and
accuracies, ``before_interval`` and ``after_interval``. Latency comes from ``single_stream`` measurements alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_deploy.report.measured import labels

__all__ = ["main_runs", "of_measurements", "of_run"]

_SIDES = ("dense", "slim")
_NOT_COUNTED = "not counted: the measurement holds no such figure"
_OF_THE_PAIR = ("a", "b", "each", "scenario", "batch")

Row = dict[str, Any]


def of_run(body: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a run folder, from the sections of report.json."""
    runs = main_runs(body["latency"])
    note = body["latency"].get("note") or "not measured"
    rows = [_latency(runs, _SIDES, note, body["latency"].get("ratio"))]
    cost = body["cost"]
    for key, label, unit in (
        ("macs", "Multiply-adds (MACs)", "MACs"),
        ("params", "Parameters", "parameters"),
        ("weight_bytes", "Weights", "bytes"),
    ):
        before, after = (cost[side][key] if cost["done"] else None for side in ("before", "after"))
        rows.append(_row(key, label, unit, before, after, cost.get("origin"), cost.get("note")))
    export = body["export"]
    sizes = [(export.get(side) or {}).get("bytes") for side in _SIDES]
    missing = export.get("note") or "deploy.json does not name the file"
    rows.append(_row("onnx_bytes", "ONNX file", "bytes", sizes[0], sizes[1], "computed", missing))
    rows += [_accuracy(body["accuracy"], part) for part in ("test", "validation")]
    return [*rows, *_sensed(runs, _SIDES, note)]


def of_measurements(latency: Mapping[str, Any]) -> list[Row]:
    """Return the rows of measurements without a run folder: the second label against the first.

    One label alone is ``after`` with nothing before it.
    """
    named = labels(latency["runs"])
    sides = (named[0], named[1]) if len(named) > 1 else ("", named[0]) if named else ("", "")
    runs = main_runs(latency, sides)
    first = {side: next((r for r in latency["runs"] if r["label"] == side), None) for side in sides}
    note = "no single_stream measurement: latency was not measured"
    found = next(
        (
            r
            for r in latency["ratios"]
            if (r["a"], r["b"]) == sides and r["scenario"] in ("single_stream", None)
        ),
        None,
    )
    rows = [_latency(runs, sides, note, found)]
    for key, label, unit in (
        ("macs", "Multiply-adds (MACs)", "MACs"),
        ("params", "Parameters", "parameters"),
        ("weight_bytes", "Weights", "bytes"),
        ("file_bytes", "Model file", "bytes"),
        ("peak_activation_bytes", "Peak activations", "bytes"),
    ):
        values = [(first[side] or {}).get("figures", {}).get(key) for side in sides]
        known = ((first[side] or {}).get("nulls", {}).get(key) for side in sides)
        reason = next((why for why in known if why), _NOT_COUNTED)
        rows.append(_row(key, label, unit, values[0], values[1], "computed", reason))
    rows += _sensed({**{k: v for k, v in first.items() if v}, **runs}, sides, note)
    return [_alone(row) for row in rows] if not sides[0] else rows


def _alone(row: Row) -> Row:
    """Return the row of a single model: a figure of its own is not missing its partner's."""
    return {**row, "reason": None if row["after"] is not None else row["reason"]}


def main_runs(
    latency: Mapping[str, Any], sides: tuple[str, str] = _SIDES
) -> dict[str, dict[str, Any]]:
    """Return the single-stream run of each side that leads the report: the first of each."""
    out: dict[str, dict[str, Any]] = {}
    for run in latency.get("runs", []):
        if run["scenario"] == "single_stream" and run["label"] in sides:
            out.setdefault(run["label"], run)
    return out


def _row(
    key: str,
    label: str,
    unit: str,
    before: float | None,
    after: float | None,
    origin: str | None,
    reason: str | None,
) -> Row:
    whole = before is not None and after is not None
    return {
        "key": key,
        "label": label,
        "unit": unit,
        "before": before,
        "after": after,
        "ratio": after / before if before and after is not None else None,
        "origin": origin,
        "reason": None if whole else reason,
    }


def _latency(
    runs: Mapping[str, Mapping[str, Any]],
    sides: tuple[str, str],
    note: str,
    found: Mapping[str, Any] | None,
) -> Row:
    before, after = (runs.get(side, {}).get("interval", {}).get("centre") for side in sides)
    row = _row("latency", "Latency", "ns", before, after, "measured", note)
    row["ratio"] = None  # a ratio of two medians is not the paired one, and has no interval
    for name, side in zip(("before_interval", "after_interval"), sides, strict=True):
        span = runs.get(side, {}).get("interval")
        row[name] = [span["low"], span["high"]] if span and span["low"] is not None else None
    if found:
        row.update({k: v for k, v in found.items() if k not in _OF_THE_PAIR})
    elif row["reason"] is None:
        row["reason"] = "the two networks were not measured side by side"
    return row


def _sensed(runs: Mapping[str, Mapping[str, Any]], sides: tuple[str, str], note: str) -> list[Row]:
    rows = []
    for key, source, label, unit in (
        ("peak_memory", "peak_rss_bytes", "Peak memory", "bytes"),
        ("gpu_memory", "gpu_bytes", "GPU memory", "bytes"),
        ("energy", "energy_mj", "Energy per inference", "mJ"),
    ):
        figures = [runs.get(side, {}).get(source) or {} for side in sides]
        values = [f.get("value") for f in figures]
        reason = next((f["reason"] for f in figures if f.get("reason")), None) or note
        rows.append(_row(key, label, unit, values[0], values[1], "measured", reason))
    # a machine without a GPU has nothing to say of its memory here; the section on memory says why
    return [r for r in rows if r["key"] != "gpu_memory" or r["after"] is not None]


def _accuracy(found: Mapping[str, Any], part: str) -> Row:
    steps = {s["step"]: s[part] for s in found.get("steps", [])}
    before, after = steps.get("dense"), steps.get(found.get("final") or "")
    noun = "Agreement with dense" if found.get("measure") == "agreement" else "Accuracy"
    row = _row(
        f"accuracy_{part}",
        f"{noun}, {part}",
        "fraction",
        before["top1"] if before else None,
        after["top1"] if after else None,
        "measured",
        found.get("note") or ("not done yet" if not found.get("final") else f"no {part} part"),
    )
    row["ratio"] = None
    row["before_interval"] = [before["low"], before["high"]] if before else None
    row["after_interval"] = [after["low"], after["high"]] if after else None
    row["samples"] = after["samples"] if after else None
    row["change"] = after["change"] if after and before else None
    return row
