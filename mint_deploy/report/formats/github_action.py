"""github-action-benchmark, ``tool: customSmallerIsBetter``: today's latencies, memory, energy and sizes.

A list of ``name``, ``unit``, ``value``, ``range`` (half the interval, as ``± 12``) and ``extra``. What is better
when larger goes into a file of its own: ``github-action-bigger``. Unit and name stay the same from run to run,
because the action finds the earlier point by its name. Source: https://github.com/benchmark-action/github-action-benchmark
"""

from __future__ import annotations

import json
from typing import Any

from mint_deploy.artifacts import Measurement
from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._figures import Figure, figures, number, significant
from mint_deploy.report.formats.bmf import benchmark

__all__ = ["text", "written"]


def text(judged: Judged) -> str:
    """Return the figures of the new side that are better when smaller."""
    return written(judged, larger=False)


def written(judged: Judged, *, larger: bool) -> str:
    """Return the figures of the new side that are better when larger, or when smaller."""
    rows = [
        _row(pair.now, f, f.value)
        for pair in judged.verdict.pairs
        for f in figures(pair.now)
        if f.value is not None and f.larger == larger
    ]
    return json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _row(m: Measurement, f: Figure, value: float) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": f"{benchmark(m.task)}: {f.name}",
        "unit": f.unit or "count",
        "value": value,
    }
    extra = [f"{len(m.restarts_ns)} restarts on {m.machine.gpu or m.machine.cpu}"]
    if f.low is not None and f.high is not None:
        row["range"] = f"± {number(significant((f.high - f.low) / 2, 2))}"
        extra.insert(0, f"95 % interval {number(f.low)} to {number(f.high)}")
    return {**row, "extra": "\n".join(extra)}
