"""The body of report.json as rows of text, shared by the page, the Markdown and the terminal.

Rounding happens here and nowhere else, so that the three say the same digits.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_deploy.report import words
from mint_deploy.report.machines import machine_rows
from mint_deploy.report.plaintext import title_text, value_text
from mint_deploy.report.timings import gaps, latency_rows, sweep_rows

__all__ = [
    "Line",
    "Step",
    "accuracy_places",
    "batches",
    "before_after",
    "board_rows",
    "gaps",
    "latency_rows",
    "machine_rows",
    "moment",
    "settings_rows",
    "steps",
    "sweep_rows",
]

_SIZES = (
    "weight_bytes", "onnx_bytes", "file_bytes", "peak_memory", "gpu_memory", "peak_activation_bytes",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the before/after table; ``reason`` says why a figure is missing.

    ``change`` leads (a ratio, or points), ``detail`` is its interval; ``share`` is after / before
    where it can be drawn, ``origin`` is ``measured``, ``computed`` or ``planned``. ``before_span`` and
    ``after_span`` are the intervals of the two figures, ``seen`` the verdict on a latency.
    """

    key: str
    label: str
    before: str
    after: str
    change: str
    detail: str
    share: float | None
    origin: str
    reason: str
    before_span: str = ""
    after_span: str = ""
    seen: str = ""


def before_after(body: Mapping[str, Any]) -> list[Line]:
    """Return the before/after table."""
    return [_line(row, body) for row in body["headline"]]


def _line(row: Mapping[str, Any], body: Mapping[str, Any]) -> Line:
    key = row["key"]
    detail, spans = "", ("", "")
    if key == "latency":
        timed = [_timed(row, side) for side in ("before", "after")]
        before, after = (said for said, _ in timed)
        spans = timed[0][1], timed[1][1]
        change, detail = _speed(row)
    elif key.startswith("accuracy"):
        places = accuracy_places(body)
        before, after = (words.percent(row[side], places) for side in ("before", "after"))
        ends = [row[f"{side}_interval"] or (None, None) for side in ("before", "after")]
        spans = _percents(ends[0], places), _percents(ends[1], places)
        change, detail = _points(row["change"])
    else:
        before, after = (_amount(key, row[side]) for side in ("before", "after"))
        change = words.factor(row["ratio"])
    return Line(
        key=key,
        label=row["label"],
        before=before,
        after=after,
        change=change,
        detail=detail,
        share=row["ratio"],
        origin=row["origin"] or "",
        reason=row["reason"] or "",
        before_span=spans[0],
        after_span=spans[1],
        seen=row.get("seen") or "",
    )


def _percents(ends: Sequence[float | None], places: int) -> str:
    return words.span(ends[0], ends[1], places, scale=100)


def _timed(row: Mapping[str, Any], side: str) -> tuple[str, str]:
    return words.timed(row[side], *(row.get(f"{side}_interval") or (None, None)))


def _amount(key: str, value: float | None) -> str:
    if key in _SIZES:
        return words.bytes_(value)
    if key == "energy":
        return words.energy(value)
    return words.short(value)


def _speed(row: Mapping[str, Any]) -> tuple[str, str]:
    if row.get("speedup") is None:
        return words.NOT_HERE, ""
    said, span = words.between(row["speedup"], row["speedup_low"], row["speedup_high"])
    return f"{said}× as fast", f"{span}, {100 * row['confidence']:.0f} % interval"


def _points(change: Mapping[str, Any] | None) -> tuple[str, str]:
    if change is None:
        return words.NOT_HERE, ""
    ends = change["low"], change["high"]
    places = words.accuracy_places([ends], scale=1)
    span = words.span(*ends, places)
    return f"{words.points(change['points'], places)} points", f"{span}, paired" if span else ""


# ---------------------------------------------------------------- accuracy


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step's accuracy as text; ``change``, ``flipped`` and ``found`` are of ``steps_part``."""

    step: str
    label: str
    test: str
    test_span: str
    validation: str
    validation_span: str
    change: str
    change_span: str
    flipped: str
    found: Mapping[str, Any] | None


def accuracy_places(body: Mapping[str, Any]) -> int:
    """Return the decimals that every accuracy in the report is printed with."""
    found = [s[part] for s in body["accuracy"].get("steps", []) for part in ("test", "validation")]
    return words.accuracy_places([(f["low"], f["high"]) for f in found if f])


def steps(body: Mapping[str, Any]) -> list[Step]:
    """Return the accuracy at each step of the run."""
    section = body["accuracy"]
    if not section["done"]:
        return []
    places = accuracy_places(body)
    part = section["steps_part"]
    changes = [(s[part] or {}).get("change") or {} for s in section["steps"]]
    fine = words.accuracy_places([(c.get("low"), c.get("high")) for c in changes], scale=1)
    out = []
    for step, change in zip(section["steps"], changes, strict=True):
        found = step[part]
        out.append(
            Step(
                step=step["step"],
                label=step["label"],
                test=_top1(step["test"], places),
                test_span=_span(step["test"], places),
                validation=_top1(step["validation"], places),
                validation_span=_span(step["validation"], places),
                change=words.points(change.get("points"), fine),
                change_span=words.span(change.get("low"), change.get("high"), fine),
                flipped=_flipped(found),
                found=found,
            )
        )
    return out


def _top1(found: Mapping[str, Any] | None, places: int) -> str:
    return words.percent(found["top1"] if found else None, places)


def _span(found: Mapping[str, Any] | None, places: int) -> str:
    return words.span(found["low"], found["high"], places, scale=100) if found else ""


def _flipped(found: Mapping[str, Any] | None) -> str:
    if not found or found["flipped"] is None:
        return words.NOT_HERE
    return words.count(found["flipped"])


# ---------------------------------------------------------------- the board


def batches(sizes: Sequence[int]) -> str:
    """Return the batches that parity was checked on: ``20 of 1, 1 of 8``."""
    return ", ".join(f"{times} of {size}" for size, times in sorted(Counter(sizes).items()))


def moment(text: object) -> str:
    """Return an ISO time to the minute: ``2025-11-20 10:00 UTC``; anything else as it is."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d)(?::\d\d(?:\.\d+)?)?(Z|\+00:00)", str(text))
    return f"{found[1]} {found[2]} UTC" if found else words.plain(text)


def board_rows(body: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the figures for a board that is not here, the measured ones of this machine beside."""
    return [
        {
            "label": words.plain(figure["label"]),
            **dict(zip(("predicted", "predicted_span"), _quantity(figure), strict=True)),
            **dict(zip(("measured", "measured_span"), _quantity(figure["measured"]), strict=True)),
            "basis": words.plain(figure["basis"] or figure["reason"] or ""),
        }
        for figure in body["predicted"].get("figures", [])
    ]


def _quantity(figure: Mapping[str, Any] | None) -> tuple[str, str]:
    """Return a figure with its unit, and its interval or nothing."""
    if figure is None or figure.get("value") is None:
        return words.NOT_HERE, ""
    value, unit = figure["value"], words.plain(figure.get("unit") or "")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return words.plain(value), ""
    gap = "" if unit in ("", "×") else " "
    said, span = words.between(value, figure.get("low"), figure.get("high"))
    return f"{said}{gap}{unit}", span


# ---------------------------------------------------------------- settings


def settings_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the run was made."""
    method = run["criterion"] or "–"
    if run["estimator"]:
        method += f" ({run['estimator']})"
    budget = ", ".join(f"{k} {words.significant(v)}" for k, v in run["budget"].items())
    level = " – cut on the exported program" if run["settings"].get("export_level") else ""
    rows = [
        (
            "Model",
            value_text(run["model"]) + (" (the embedded demo)" if run["demo"] else "") + level,
        ),
        ("Data", value_text(run["data"])),
        ("Target", value_text(run["target"])),
        ("Criterion", words.plain(method)),
        ("Budget", budget or "–"),
        ("Seed", value_text(run["seed"])),
        ("Started", moment(run["created"] or words.NOT_HERE)),
        ("Plan digest", value_text(run["plan_digest"])),
    ]
    shown = {"model", "data", "target", "criterion", "estimator", "seed", "export_level"}
    settings = {k: v for k, v in run["settings"].items() if k not in shown}
    rows += [(title_text(k), value_text(v)) for k, v in settings.items()]
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    return [*rows, ("Versions", words.plain(versions) or "–")]
