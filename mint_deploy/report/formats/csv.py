"""A table for a spreadsheet: one row a measurement, its task, its figures with their units in the header.

A figure that is missing is an empty cell, and the column ``missing`` says why.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

from mint_deploy.artifacts import Measurement
from mint_deploy.report import words
from mint_deploy.report.formats import Judged
from mint_deploy.report.formats._figures import figures, number

__all__ = ["table", "text"]

_UNITS = {"samples/s": "per_s", "mJ": "mj"}


def text(judged: Judged) -> str:
    """Return a row for each measurement of every pair: the baseline's, then today's."""
    return table(
        (side, getattr(pair, side)) for pair in judged.verdict.pairs for side in ("baseline", "now")
    )


def table(measured: Iterable[tuple[str, Measurement]]) -> str:
    """Return ``(side, measurement)`` pairs as CSV; ``side`` is the first column."""
    out = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for side, m in measured:
        row = _row(side, m)
        if writer is None:
            writer = csv.DictWriter(out, list(row), lineterminator="\n")
            writer.writeheader()
        writer.writerow(row)
    return out.getvalue()


def _row(side: str, m: Measurement) -> dict[str, str]:
    task, found = m.task, list(figures(m))
    row = {
        "side": side,
        "label": words.plain(task.label),
        "runtime": task.runtime,
        "precision": task.precision,
        "scenario": task.scenario,
        "batch": str(task.batch),
        "threads": str(task.threads),
        "streams": str(task.streams),
    }
    for f in found:
        name = "_".join([*f.name.split(), *([_UNITS.get(f.unit, f.unit)] if f.unit else [])])
        row[name] = number(f.value)
        if f.name in ("latency", "throughput"):
            row[f"{name}_low"], row[f"{name}_high"] = number(f.low), number(f.high)
    return {
        **row,
        "restarts": str(len(m.restarts_ns)),
        "samples": str(sum(map(len, m.restarts_ns))),
        "converged": "yes" if m.converged else "no",
        "started": m.started,
        "hostname": words.plain(m.machine.hostname),
        "machine": words.plain(m.machine.gpu or m.machine.cpu),
        "sha256": task.sha256,
        "missing": "; ".join(f"{f.name}: {words.plain(f.reason)}" for f in found if f.reason),
        "doubts": "; ".join(words.plain(doubt) for doubt in m.doubts),
    }
