"""The cards at the head of the page: what changed, how sure that is, from what to what, or why it is not known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from mint_deploy.report import charts, words
from mint_deploy.report.view import Line

__all__ = ["Card", "cards"]

#: rows that say twice what another row says: the one is left out where the other is known
_TWICE = {"weight_bytes": ("onnx_bytes", "file_bytes"), "accuracy_validation": ("accuracy_test",)}
#: the order of the cards; what is not named follows
_ORDER = (
    "latency", "onnx_bytes", "file_bytes", "params", "macs", "accuracy_test", "accuracy_validation",
    "peak_memory", "gpu_memory", "energy",
)  # fmt: skip
_ORIGINS = {"measured": "measured here", "computed": "exact", "planned": "planned"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card; ``value`` leads, ``before`` and ``after`` are empty where they say nothing more."""

    key: str
    label: str
    value: str
    unit: str
    detail: str
    before: str
    after: str
    before_span: str
    after_span: str
    origin: str
    reason: str
    seen: str
    plot: Markup | None


def cards(lines: Sequence[Line], headline: Sequence[Mapping[str, Any]]) -> list[Card]:
    """Return the cards of the before/after table, the latency first.

    Args:
        lines: of :func:`mint_deploy.report.view.before_after`.
        headline: the rows that they were made of.
    """
    known = {line.key for line in lines if not line.reason}
    kept = [
        (line, row)
        for line, row in zip(lines, headline, strict=True)
        if not known & set(_TWICE.get(line.key, ()))
    ]
    kept.sort(key=lambda pair: _ORDER.index(pair[0].key) if pair[0].key in _ORDER else len(_ORDER))
    return [_card(line, row) for line, row in kept]


def _card(line: Line, row: Mapping[str, Any]) -> Card:
    alone = line.before == words.NOT_HERE and line.after != words.NOT_HERE and not line.reason
    shown = line.after if alone else line.change
    value, _, unit = shown.partition(" ")
    pair = not alone and (line.before, line.after) != (words.NOT_HERE, words.NOT_HERE)
    return Card(
        key=line.key,
        label=line.label,
        value=value,
        unit=unit,
        detail=line.after_span if alone else line.detail,
        before=line.before if pair else "",
        after=line.after if pair else "",
        before_span=line.before_span if pair else "",
        after_span=line.after_span if pair else "",
        origin=_ORIGINS.get(line.origin, line.origin) if pair or alone else "",
        reason=line.reason,
        seen=line.seen,
        plot=_plot(line, row),
    )


def _plot(line: Line, row: Mapping[str, Any]) -> Markup | None:
    """Return the ratio's interval for the latency, and a bar of what is left for all else."""
    if line.key == "latency":
        if row.get("speedup") is None:
            return None
        ends = row["speedup_low"], row["speedup_high"]
        scale = charts.axis([1.0, *ends], unit="×")
        said = f"{line.change}: {line.detail}"
        plot = charts.interval(scale, row["speedup"], *ends, title=said, reference=1.0)
        return plot + charts.ticks(scale)
    if line.share is None:
        return None
    said = f"{line.label}: {words.percent(line.share)} of what it was"
    return charts.bar(line.share, title=said)
