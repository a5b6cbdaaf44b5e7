"""What the templates print of memory, of time per layer, and of what the machine did meanwhile.

As in :mod:`mint_deploy.report.pictures`, a mapping with ``reason`` alone is a picture that cannot be drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report import charts, layertime, plots, timings, words
from mint_deploy.report.machines import state_columns
from mint_deploy.report.measured import labels
from mint_deploy.report.pictures import leading, tones

__all__ = ["layers", "memory", "states"]

#: looks at the machine that are shown openly
_LOOKS = 12


def memory(latency: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return peak memory of the leading runs, the import baseline apart, with what was computed."""
    runs = (
        leading(latency)
        or list({r["label"]: r for r in reversed(latency.get("runs", []))}.values())[::-1]
    )
    if not runs:
        return None
    peaks = [
        (r["import_rss_bytes"] or 0) + r["peak_rss_bytes"]["value"]
        for r in runs
        if r["peak_rss_bytes"]["value"] is not None
    ]
    scale = charts.axis([v / 1e6 for v in peaks], zero=True)
    tone, rows = tones(latency), []
    for run, row in zip(runs, timings.memory_rows(runs), strict=True):
        net, imports = run["peak_rss_bytes"]["value"], run["import_rss_bytes"] or 0
        said = f"{row['label']}: peak {row['peak']}, of it imports {row['imports']}, the network {row['net']}"
        plot = (
            plots.memory(scale, imports / 1e6, net / 1e6, title=said, tone=tone[run["label"]])
            if net is not None
            else None
        )
        rows.append({**row, "plot": plot, "tone": tone[run["label"]]})
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, why in row["reasons"].items():
            reasons.setdefault((name, why), []).append(row["label"])
    return {
        "rows": rows,
        "ticks": charts.ticks(scale, wide=300.0) if peaks else None,
        "reasons": [
            (name if len(of) == len(rows) else f"{name} of {', '.join(of)}", why)
            for (name, why), of in reasons.items()
        ],
    }


def layers(
    latency: Mapping[str, Any], cut: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any] | None:
    """Return the times of each layer before and after, and of each operator.

    Args:
        latency: the section.
        cut: the layers of cut.json, where there is a run folder.
    """
    sides = tuple(labels(latency.get("runs", [])))[:2]
    if {"dense", "slim"} <= set(labels(latency.get("runs", []))):
        sides = ("dense", "slim")
    if not sides:
        return None
    timed = [_timed(latency, side) for side in sides]
    if not any(timed):
        return {"reason": layertime.why(r for r in latency["runs"] if r["label"] in sides)}
    alone = len(sides) == 1  # then it is the one that is shown
    first, second = ({}, timed[0] or {}) if alone else (timed[0] or {}, timed[1] or {})
    rows = layertime.joined(first.get("layers", []), second.get("layers", []), cut)
    return {
        "sides": sides,
        "rows": rows,
        "drawn": [_drawn(row, alone=alone) for row in rows],
        "widths": bool(rows) and all(r["after"] is not None for r in rows),
        "operators": _operators(first.get("operators", []), second.get("operators", [])),
        "outside": [
            f"{side} {words.share(layertime.outside(found['operators']))}"
            for side, found in zip(sides, timed, strict=True)
            if found
        ],
        "missing": [
            (side, layertime.why(r for r in latency["runs"] if r["label"] == side))
            for side, found in zip(sides, timed, strict=True)
            if not found
        ],
    }


def _drawn(row: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """Return a row whose columns can be drawn: nothing is 0, and a model alone is its own before."""
    out = dict(row)
    for kind in ("", "ns_"):
        after = row[f"{kind}after"] or 0
        out[f"{kind}before"] = after if alone else row[f"{kind}before"] or 0
        out[f"{kind}after"] = after
    return out


def _timed(latency: Mapping[str, Any], label: str) -> Mapping[str, Any] | None:
    """Return the run of ``label`` that holds times of layers; the single-stream one where both do."""
    runs = [r for r in latency["runs"] if r["label"] == label and r["operators"]]
    return min(runs, key=lambda r: r["scenario"] != "single_stream", default=None)


def _operators(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    sums = [sum(row["ns"] for row in side) or 1.0 for side in (before, after)]
    found = [{row["op"]: row for row in side} for side in (before, after)]
    rows = []
    for op in dict.fromkeys([*found[0], *found[1]]):
        a, b = (side.get(op) for side in found)
        rows.append(
            {
                "op": op,
                "before": words.duration(a["ns"] if a else None),
                "after": words.duration(b["ns"] if b else None),
                "share_before": words.share(a["ns"] / sums[0]) if a else words.NOT_HERE,
                "share_after": words.share(b["ns"] / sums[1]) if b else words.NOT_HERE,
            }
        )
    return rows


def states(latency: Mapping[str, Any], machine: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the machine did after each restart, beside that restart's medians."""
    runs = leading(latency) or list(latency.get("runs", []))[:1]
    looks: list[Any] = max((r["states"] for r in runs), key=len, default=[])
    if not looks:
        why = next((r["nulls"]["states"] for r in runs if r["nulls"].get("states")), None)
        said = "this measurement holds no looks at the machine between restarts"
        return {"reason": why or said} if runs else None
    details = (machine.get("machines") or [{}])[0].get("details") or {}
    nulls = {**(details.get("nulls") or {}), **{k: v for r in runs for k, v in r["nulls"].items()}}
    columns, rows, missing = state_columns(looks, nulls)
    medians = [[words.duration(box["median_ns"]) for box in run["restarts"]] for run in runs]
    made = [
        {
            "restart": i + 1,
            "medians": [m[i] if i < len(m) else words.NOT_HERE for m in medians],
            "cells": cells,
        }
        for i, cells in enumerate(rows)
    ]
    return {
        "labels": [run["label"] for run in runs],
        "columns": columns,
        "rows": made[:_LOOKS],
        "more": made[_LOOKS:],
        "missing": missing,
    }
