"""Accuracy at each step of the run: dense, after the cut, repaired, recovered, and the control."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mint_deploy import files
from mint_deploy.artifacts import Accuracy
from mint_deploy.report.folder import Folder

__all__ = ["LABELS", "accuracy"]

#: every step that may be judged, in order
LABELS = {
    "dense": "Dense network",
    "cut": "Right after the cut",
    "repair": "After repair",
    "recover": "After recovery",
    "control": "Control: dense + the same recovery",
}


def accuracy(folder: Folder) -> dict[str, Any] | None:
    """Return the accuracy section, or None before the first step was judged.

    ``final`` names the last step of the slim network. ``leads`` is the part the result speaks of:
    the test part where the last step was judged there, else validation. ``steps_part`` is the part
    that shows the way there: the test part is looked at once, at the end.
    """
    found = folder.json("accuracy.json", "AccuracySteps")
    if found is None:
        return None
    steps = [_step(raw) for raw in found["steps"]]
    if not steps:
        return None
    by_name = {s["step"]: s for s in steps}
    final = next(
        (s["step"] for s in reversed(steps) if s["step"] not in ("dense", "control")), None
    )
    last = by_name.get(final or "dense", steps[-1])
    leads = "test" if last["test"] else "validation"
    dense = by_name.get("dense", {}).get(leads)
    for step in steps:
        for part in ("validation", "test"):
            _add_change(step[part], by_name.get("dense", {}).get(part))
    control = by_name.get("control", {}).get(leads)
    promise = found.get("promise") or {}
    return {
        "measure": (last[leads] or {}).get("measure", "top1"),
        "leads": leads,
        "steps_part": _steps_part(steps),
        "final": final,
        "steps": steps,
        "recovered": "recover" in by_name,
        "classes": _classes(found.get("class_names"), dense, last[leads] if final else None),
        "flipped": (last[leads] or {}).get("flipped"),
        "samples": (last[leads] or {}).get("samples"),
        "against_control": (
            100 * (last[leads]["top1"] - control["top1"]) if control and last[leads] else None
        ),
        "promise": {
            "max_accuracy_drop": promise.get("max_accuracy_drop"),
            "kept": promise.get("kept"),
            "text": promise.get("text") or "",
        },
    }


def _steps_part(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return the part on which most steps were judged; the test part where they are equal."""
    return max(("test", "validation"), key=lambda part: sum(s[part] is not None for s in steps))


def _step(raw: Mapping[str, Any]) -> dict[str, Any]:
    name = str(raw["step"])
    out: dict[str, Any] = {"step": name, "label": raw.get("label") or LABELS.get(name, name)}
    for part in ("validation", "test"):
        value = raw.get(part)
        out[part] = (
            None
            if value is None
            else files.encode(files.decode(Accuracy, value, where=f"accuracy.json: {name}, {part}"))
        )
    return out


def _add_change(value: dict[str, Any] | None, dense: Mapping[str, Any] | None) -> None:
    """Add ``change`` in points against the dense network: paired where the drop was, else plain."""
    if value is None:
        return
    if value["drop"] is not None:
        low, high = value["drop_high"], value["drop_low"]
        value["change"] = {
            "points": -value["drop"],
            "low": None if low is None else -low,
            "high": None if high is None else -high,
        }
    elif dense is not None and dense is not value:
        value["change"] = {
            "points": 100 * (value["top1"] - dense["top1"]),
            "low": None,
            "high": None,
        }
    else:
        value["change"] = None


def _classes(
    names: Sequence[Any] | None, dense: Mapping[str, Any] | None, slim: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """Return a row for each class; the order is the data's where it is known."""
    before = dict((dense or {}).get("per_class") or {})
    after = dict((slim or {}).get("per_class") or {})
    order = [str(n) for n in names or [] if str(n) in before or str(n) in after]
    order += [n for n in {**before, **after} if n not in set(order)]
    return [
        {
            "name": n,
            "dense": before.get(n),
            "slim": after.get(n),
            "change": (
                100 * (after[n] - before[n])
                if before.get(n) is not None and after.get(n) is not None
                else None
            ),
        }
        for n in order
    ]
