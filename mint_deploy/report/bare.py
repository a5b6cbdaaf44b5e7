"""The report of measurements without a run folder: what ``bench A.onnx --against B.onnx`` found.

The same pictures as a run's, from the measurements alone; a verdict of ``compare`` leads where there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from mint_deploy import files
from mint_deploy.artifacts import Comparison, Measurement
from mint_deploy.compare import Check, Verdict
from mint_deploy.errors import DataError
from mint_deploy.report import headline, measured, timing, words
from mint_deploy.report.doubted import doubts
from mint_deploy.report.formats._text import baseline, change, now

__all__ = ["body_of"]

_STATES = {"pass": "kept", "fail": "broken", "inconclusive": "inconclusive"}


def body_of(
    measurements: Sequence[Measurement],
    comparisons: Sequence[Comparison] = (),
    *,
    title: str = "",
    command: str = "",
    verdict: Verdict | None = None,
) -> dict[str, Any]:
    """Return the body of the report, plain JSON values: ``title status verdict headline latency machine doubts``.

    Args:
        measurements: of one model or several, under any scenarios and batches; the first label is what the others
            are held against.
        comparisons: as ``interleave`` returned them, in that order.
        title: of the page; the labels where empty.
        command: that made them, shown at the foot.
        verdict: what ``compare`` said of limits.

    Raises:
        DataError: no measurement was given.
    """
    if not measurements:
        raise DataError("no measurement to report; expected at least one, as `bench` makes them")
    latency = {"done": True, **measured.section(measurements, comparisons)}
    named = measured.labels(latency["runs"])
    machines = timing.who_measured(measurements) or {}
    body: dict[str, Any] = {
        "title": title or _title(named),
        "labels": named,
        "command": command,
        "latency": latency,
        "machine": {"done": True, **machines},
        "checks": [_check(check) for check in verdict.checks] if verdict else [],
        "notes": list(verdict.notes) if verdict else [],
    }
    body["headline"] = headline.of_measurements(latency)
    body["doubts"] = doubts(body)
    body["status"] = _status(latency, verdict)
    body["verdict"] = _sentence(latency, named)
    return cast(dict[str, Any], files.encode(body))


def _title(named: Sequence[str]) -> str:
    """Return ``b, c and d against a``."""
    first, *others = named
    if not others:
        return first
    listed = " and ".join([", ".join(others[:-1]), others[-1]] if others[1:] else others)
    return f"{listed} against {first}"


def _check(check: Check) -> dict[str, str]:
    """Return one limit of a verdict as text."""
    return {
        "name": check.name,
        "subject": check.subject,
        "state": check.state,
        "limit": check.limit,
        "baseline": baseline(check),
        "now": now(check),
        "change": change(check),
        "reason": check.reason,
    }


def _status(latency: Mapping[str, Any], verdict: Verdict | None) -> dict[str, str]:
    if verdict is not None:
        return {"state": _STATES.get(verdict.state, "inconclusive"), "text": verdict.state}
    found = latency["ratios"]
    if not found:
        return {"state": "done", "text": "measured"}
    seen = [r["seen"] for r in found]
    same = seen[0] if len(set(seen)) == 1 else "measured"
    state = {"faster": "kept", "slower": "broken", "no difference seen": "inconclusive"}
    return {"state": state.get(same, "done"), "text": same}


def _sentence(latency: Mapping[str, Any], named: Sequence[str]) -> str:
    """Return the result in a sentence for each comparison, else the latency that leads."""
    said = []
    several = len({r["batch"] for r in latency["ratios"]}) > 1
    for r in latency["ratios"]:
        value, span = words.between(r["speedup"], r["speedup_low"], r["speedup_high"])
        inside = f"({span}, {100 * r['confidence']:.0f} % interval, {r['restarts']} restarts)"
        at = f" at batch {r['batch']}" if several else ""
        if r["seen"] == "no difference seen":
            said.append(
                f"No difference in speed between {r['b']} and {r['a']}{at} was seen: {value}× {inside}."
            )
        else:
            slower = "SLOWER: " if r["seen"] == "slower" else ""
            said.append(f"{r['b']} runs {slower}{value}× as fast as {r['a']}{at} {inside}.")
    if said:
        return " ".join(said)
    for name in named:
        run = headline.main_runs(latency, (name, name)).get(name)
        if run is not None:
            span = run["interval"]
            time, ends = words.timed(span["centre"], span["low"], span["high"])
            said.append(f"{name} takes {time}" + (f" ({ends}, 95 % interval)." if ends else "."))
    knees = [s for s in latency["sweeps"] if s["knee"] is not None]
    said += [
        f"{s['label']} does {words.short(s['knee_per_s'])} samples a second at its knee, batch {s['knee']}."
        for s in knees
    ]
    return " ".join(said) or "Nothing was timed."
