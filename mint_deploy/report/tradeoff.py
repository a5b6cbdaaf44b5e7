"""Accuracy against latency: dense, slim, and the steps on the way, with intervals in both directions.

A step changes weights and not the network, so each step of the slim network has the slim network's latency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy.report import charts, plots, view, words
from mint_deploy.report.headline import main_runs

__all__ = ["tradeoff", "worth_showing"]

_NAMES = {
    "dense": "dense",
    "cut": "cut",
    "repair": "repaired",
    "recover": "recovered",
    "control": "control",
}
#: steps of the network that was not cut
_WHOLE = ("dense", "control")


def worth_showing(steps: Sequence[view.Step]) -> list[float]:
    """Return the ends of the intervals that set the axis, in percent.

    Straight after the cut a network may be anywhere. Were it to set the axis, nothing else could be
    told apart; far below the others it is drawn as an arrow instead.
    """
    ends = {s.step: (100 * s.found["low"], 100 * s.found["high"]) for s in steps if s.found}
    core = [v for step, pair in ends.items() if step not in ("cut", "repair") for v in pair]
    core = core or [v for pair in ends.values() for v in pair]
    floor = min(core) - 2 * max(max(core) - min(core), 0.5)
    return core + [v for pair in ends.values() if pair[0] >= floor for v in pair]


def tradeoff(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the picture, or ``{"reason"}`` where there is no latency; None where there is no accuracy either."""
    steps = [s for s in view.steps(body) if s.found]
    if not steps:
        return None
    runs = main_runs(body["latency"])
    seen = [s for s in steps if _side(s.step) in runs]
    if not seen:
        latency = body["latency"]
        if latency["done"]:
            return {"reason": "no single_stream measurement was made, so there is no latency"}
        told = latency["note"] if latency.get("damaged") else "there is no latency yet"
        return {"reason": f"{told}; the stage “bench” measures it"}
    unit, size = words.duration_unit(max(r["interval"]["centre"] or 1.0 for r in runs.values()))
    part = body["accuracy"]["steps_part"]
    made = [_point(s, runs[_side(s.step)], size, part) for s in seen]
    points = [p for p in made if p is not None]
    if not points:
        return {"reason": "no latency was recorded"}
    ends = [v for p in points for v in (p.x, *(p.x_span or ()))]
    up = charts.axis(worth_showing(seen), unit=" %", bounds=(0.0, 100.0))
    across = charts.axis(ends)
    said = f"Accuracy on the {part} part against latency. " + " ".join(f"{p.said}." for p in points)
    return {
        "plot": plots.plane(across, up, points, title=said),
        "unit": unit,
        "part": part,
        "arrow": any(p.y < up.low for p in points),
        "between": any(s.step in ("cut", "repair") for s in seen),
        "control": any(s.step == "control" for s in seen),
        "one": any(p.x_span is None for p in points),
    }


def _side(step: str) -> str:
    return "dense" if step in _WHOLE else "slim"


def _point(step: view.Step, run: Mapping[str, Any], size: float, part: str) -> plots.Point | None:
    found, span = step.found or {}, run["interval"]
    centre = span["centre"]
    if centre is None:
        return None
    time, time_span = words.timed(centre, span["low"], span["high"])
    test = part == "test"
    accuracy = step.test if test else step.validation
    accuracy_span = step.test_span if test else step.validation_span
    name = _NAMES.get(step.step, step.label)
    return plots.Point(
        name=name,
        said=f"{name}: {accuracy} ({accuracy_span}) at {time}"
        + (f" ({time_span})" if time_span else ""),
        tone=step.step if step.step in _WHOLE else "slim",
        x=centre / size,
        y=100 * found["top1"],
        x_span=None if span["low"] is None else (span["low"] / size, span["high"] / size),
        y_span=(100 * found["low"], 100 * found["high"]),
    )
