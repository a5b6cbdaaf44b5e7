"""What the templates print of time: ratios, distributions and throughput, as pictures with rows of text beside.

Each function takes the section ``latency`` (and what it is joined with) and returns None, or a mapping; a mapping
with ``reason`` alone is a picture that cannot be drawn, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report import charts, plots, timings, words
from mint_deploy.report.measured import KEY, labels

__all__ = ["distributions", "leading", "ratios", "sweeps", "tones"]

_TONES = ("dense", "slim", "control", "other")


def tones(latency: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour class of each label: the first is what the others are held against."""
    named = labels(latency.get("runs", []))
    fixed: dict[str, str] = {name: name for name in ("dense", "slim") if name in named}
    rest = [t for t in _TONES if t not in fixed.values()]
    free = iter(rest * (len(named) // len(rest) + 1))
    return {name: fixed.get(name) or next(free) for name in named}


def leading(latency: Mapping[str, Any], scenario: str = "single_stream") -> list[dict[str, Any]]:
    """Return the single-stream runs of the first task, one a label: those that speak of latency."""
    runs = [r for r in latency.get("runs", []) if r["scenario"] == scenario]
    if not runs:
        return []
    same = [r for r in runs if all(r[k] == runs[0][k] for k in KEY)]
    return list({r["label"]: r for r in reversed(same)}.values())[::-1]


def ratios(latency: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the plots of the ratios, with the line of no difference at one."""
    found = latency.get("ratios") or []
    if not found:
        return None
    ends = [v for r in found for v in (r["speedup_low"], r["speedup_high"], *r["each"])]
    scale = charts.axis([1.0, *ends], unit="×")
    tone, rows = tones(latency), []
    several = len({(r["batch"], r["scenario"]) for r in found}) > 1
    for r in found:
        value, span = words.between(r["speedup"], r["speedup_low"], r["speedup_high"])
        said = f"{r['b']} against {r['a']}: {value}× as fast ({span}), {r['seen']}"
        rows.append(
            {
                "label": f"{r['b']} against {r['a']}" + (f", batch {r['batch']}" if several else ""),
                "seen": r["seen"],
                "value": f"{value}×",
                "span": span,
                "restarts": r["restarts"],
                "plot": charts.interval(
                    scale, r["speedup"], r["speedup_low"], r["speedup_high"], title=said,
                    reference=1.0, each=r["each"], tone=tone.get(r["b"], "slim"),
                ),
            }
        )  # fmt: skip
    confidence = f"{100 * found[0]['confidence']:.0f} %"
    return {
        "rows": rows,
        "ticks": charts.ticks(scale),
        "confidence": confidence,
        "restarts": found[0]["restarts"],
        "each": any(r["each"] for r in found),
    }


def distributions(latency: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the distributions of the leading runs on one axis, with each restart's median below.

    Where bursts alone were measured (``multi_stream``) they are theirs.
    """
    found = leading(latency) or leading(latency, "multi_stream")
    runs = [r for r in found if r["shape"]]
    if not runs:
        return None
    size, unit = _size([r["shape"]["high_ns"] for r in runs])
    scale = charts.axis([v / size for r in runs for v in _reach(r)])
    tone, rows = tones(latency), []
    by_run = {id(row["run"]): row for row in timings.latency_rows({"latency": latency})}
    for run in runs:
        row = by_run[id(run)]
        marks, spoken = _marks(run, row, size, scale.high)
        span = run["interval"]
        restarts = [
            {k: box[f"{k}_ns"] / size for k in ("q1", "median", "q3")} for box in run["restarts"]
        ]
        said = f"{run['label']}: {', '.join(spoken)}; {row['samples']} calls"
        rows.append(
            {
                **row,
                "restarts": len(restarts),
                "above": run["shape"]["above"],
                "plot": plots.distribution(
                    scale,
                    {
                        "low": run["shape"]["low_ns"] / size,
                        "high": run["shape"]["high_ns"] / size,
                        "counts": run["shape"]["counts"],
                    },
                    marks,
                    restarts,
                    span=None if span["low"] is None else (span["low"] / size, span["high"] / size),
                    title=said,
                    tone=tone[run["label"]],
                ),
            }
        )
    ticks = charts.ticks(scale, wide=300.0)
    return {"rows": rows, "ticks": ticks, "unit": unit, "how": rows[0]["how"]}


def _size(values_ns: Sequence[float]) -> tuple[float, str]:
    unit, size = words.duration_unit(max(values_ns, default=1.0))
    return size, unit


def _reach(run: Mapping[str, Any]) -> list[float]:
    """Return what the axis must hold: the bars and the restarts' middle halves."""
    ends = [run["shape"]["low_ns"], run["shape"]["high_ns"]]
    return ends + [box[k] for box in run["restarts"] for k in ("q1_ns", "q3_ns")]


def _marks(
    run: Mapping[str, Any], row: Mapping[str, Any], size: float, end: float
) -> tuple[list[tuple[str, float]], list[str]]:
    """Return the marks of the percentiles that the count supports, and what they say.

    An arrow points to what lies beyond the ``end`` of the axis.
    """
    known = {
        "p50": run["median_ns"],
        "p90": run["percentiles"]["p90"],
        "p99": run["percentiles"]["p99"],
    }
    marks, spoken = [], []
    for name, figure in known.items():
        if figure["value"] is None:
            spoken.append(f"no {name}: {figure['reason']}")
            continue
        text = row["figures"][name]
        value = figure["value"] / size
        marks.append((f"{name} {text}" + (" →" if value > end else ""), value))
        spoken.append(f"{name} {text}")
    return marks, spoken


def sweeps(latency: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return throughput over the batch with the knees, from the offline measurements."""
    found = latency.get("sweeps") or []
    if not found:
        runs = latency.get("runs", [])
        why = next((r["nulls"]["knee"] for r in runs if r["nulls"].get("knee")), None)
        return {"reason": why or "no offline measurement over batches was made"} if runs else None
    batches, rows = timings.sweep_rows({"latency": latency})
    tone = tones(latency)
    lines = [{**s, "tone": tone[s["label"]]} for s in found]
    knees = [
        f"{r['label']} at batch {r['knee']} ({r['knee_per_s']} samples a second; {r['knee_range']})"
        for r in rows
        if r["knee"] != words.NOT_HERE
    ]
    said = "Samples a second over the batch. " + (f"Knee: {'; '.join(knees)}." if knees else "")
    return {
        "batches": batches,
        "rows": [{**row, "tone": line["tone"]} for row, line in zip(rows, lines, strict=True)],
        "knees": knees,
        "plot": plots.sweep(batches, lines, title=said) if len(batches) > 1 else None,
        "reasons": [(row["label"], row["reason"]) for row in rows if row["reason"]],
    }
