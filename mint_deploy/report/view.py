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
]

_SIZES = ("weight_bytes", "onnx_bytes", "peak_memory")
_NOT_READABLE = "not readable here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One row of the before/after table; ``reason`` says why a figure is missing.

    ``change`` leads (a ratio, or points), ``detail`` is its interval; ``share`` is after / before
    where it can be drawn, ``origin`` is ``measured``, ``computed`` or ``planned``.
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


def before_after(body: Mapping[str, Any]) -> list[Line]:
    """Return the before/after table."""
    return [_line(row, body) for row in body["headline"]]


def _line(row: Mapping[str, Any], body: Mapping[str, Any]) -> Line:
    key = row["key"]
    detail = ""
    if key == "latency":
        before, after = words.duration(row["before"]), words.duration(row["after"])
        change, detail = _speed(row)
    elif key.startswith("accuracy"):
        places = accuracy_places(body)
        before, after = (words.percent(row[side], places) for side in ("before", "after"))
        change, detail = _points(row["change"])
    else:
        print_ = words.bytes_ if key in _SIZES else words.short
        before, after = print_(row["before"]), print_(row["after"])
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
    )


def _speed(row: Mapping[str, Any]) -> tuple[str, str]:
    if row.get("speedup") is None:
        return words.NOT_HERE, ""
    ends = row["speedup_low"], row["speedup_high"]
    places = words.places_of([ends], default=2, most=3)
    detail = f"{words.span(*ends, places)}, {100 * row['confidence']:.0f} % interval"
    return f"{words.factor(row['speedup'], places)} as fast", detail


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


# ---------------------------------------------------------------- latency and the board


def latency_rows(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return a row for each measurement: what it was, its figures as text, reasons for gaps."""
    rows = []
    for run in body["latency"].get("runs", []):
        figures = {"median": run["median_ns"], **run["percentiles"]}
        reasons = {
            name: figure["reason"]
            for name, figure in (
                *figures.items(),
                ("memory", run["peak_rss_bytes"]),
                ("energy", run["energy_mj"]),
            )
            if figure["reason"]
        }
        energy = run["energy_mj"]["value"]
        rows.append(
            {
                "label": run["label"],
                "how": (
                    f"{run['runtime']}, {run['precision']}, {run['scenario']}, batch "
                    f"{run['batch']}, {run['threads']} thread{'s' * (run['threads'] != 1)}"
                ),
                "scenario": run["scenario"],
                "batch": run["batch"],
                "figures": {name: words.duration(f["value"]) for name, f in figures.items()},
                "per_s": words.short(run["per_s"]["value"]) if run["per_s"]["value"] else "–",
                "samples": words.count(run["samples"]),
                "restarts": len(run["restarts"]),
                "load": words.duration(run["load_ns"]["value"]),
                "memory": words.bytes_(run["peak_rss_bytes"]["value"]),
                "energy": (words.NOT_HERE if energy is None else f"{words.significant(energy)} mJ"),
                "reasons": reasons,
            }
        )
    return rows


def gaps(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return ``(reason, what is missing for it)`` over the rows of :func:`latency_rows`."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        for name, reason in row["reasons"].items():
            whose = f"{row['label']} ({row['scenario']}, batch {row['batch']})"
            found.setdefault((reason, name), []).append(whose)
    return [
        (reason, f"{name} of {'every measurement' if len(of) == len(rows) else ', '.join(of)}")
        for (reason, name), of in found.items()
    ]


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
    low, high = figure.get("low"), figure.get("high")
    gap = "" if unit in ("", "×") else " "
    if low is None or high is None:
        return f"{words.significant(value)}{gap}{unit}", ""
    places = words.places_of([(low, high)], default=2, most=3)
    return f"{words.fixed(value, places)}{gap}{unit}", words.span(low, high, places)


# ---------------------------------------------------------------- machine and settings


def machine_rows(machine: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return a machine's record; what could not be read says so, with the reason if known."""
    details = dict(machine.get("details") or {})
    why = details.pop("nulls", None) or {}

    def said(name: str, unit: str = "") -> str:
        value = machine.get(name)
        if value is None:
            return f"{_NOT_READABLE}: {words.plain(why[name])}" if name in why else _NOT_READABLE
        return f"{words.significant(value, 4) if unit else words.plain(value)}{unit}"

    rows = [
        ("Host", said("hostname")),
        ("System", said("system")),
        ("CPU", said("cpu")),
        ("Cores", f"{machine['cores']:g}"),
        ("Memory", words.bytes_(machine["memory_bytes"] or None)),
        ("Board", said("board")),
        ("GPU", said("gpu")),
        ("CPU governor", said("governor")),
        ("Clock", said("frequency_mhz", " MHz")),
        ("Load average", said("load_average")),
        ("Virtualisation", said("virtualization")),
        ("Power mode", said("power_mode")),
        ("Python", said("python")),
        ("Versions", ", ".join(f"{k} {v}" for k, v in machine["versions"].items())),
    ]
    for name, value in details.items():
        gap = f"{_NOT_READABLE}: {words.plain(why[name])}" if name in why else words.NOT_HERE
        rows.append((_title(name), gap if value is None else _value(value)))
    return rows


def settings_rows(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the run was made."""
    method = run["criterion"] or "–"
    if run["estimator"]:
        method += f" ({run['estimator']})"
    budget = ", ".join(f"{k} {words.significant(v)}" for k, v in run["budget"].items())
    level = " – cut on the exported program" if run["settings"].get("export_level") else ""
    rows = [
        ("Model", _value(run["model"]) + (" (the embedded demo)" if run["demo"] else "") + level),
        ("Data", _value(run["data"])),
        ("Target", _value(run["target"])),
        ("Criterion", words.plain(method)),
        ("Budget", budget or "–"),
        ("Seed", _value(run["seed"])),
        ("Started", moment(run["created"] or words.NOT_HERE)),
        ("Plan digest", _value(run["plan_digest"])),
    ]
    shown = {"model", "data", "target", "criterion", "estimator", "seed", "export_level"}
    settings = {k: v for k, v in run["settings"].items() if k not in shown}
    rows += [(_title(k), _value(v)) for k, v in settings.items()]
    versions = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    return [*rows, ("Versions", words.plain(versions) or "–")]


def _title(key: object) -> str:
    name = words.plain(key).replace("_", " ")
    return name[:1].upper() + name[1:]


def _value(value: Any) -> str:
    if value is None or value in ("", [], {}):
        return words.NOT_HERE
    if isinstance(value, Mapping):
        return ", ".join(f"{words.plain(k)} {_value(v)}" for k, v in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(v) for v in value)
    return words.plain(value)
