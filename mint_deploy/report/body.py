"""What report.json says, collected from the files of a run folder.

Every section is ``{"done": true, ...}``, or ``{"done": false, "note": why, "stage": its maker}``.
Figures are whole here; they are rounded where they are printed (:mod:`mint_deploy.report.words`).
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from mint_deploy import files
from mint_deploy.artifacts import Cost, ExportedModel
from mint_deploy.overview import Overview
from mint_deploy.report import headline, timing
from mint_deploy.report.accuracy import accuracy
from mint_deploy.report.advice import next_steps, status, verdict
from mint_deploy.report.doubted import doubts
from mint_deploy.report.folder import UNREADABLE, Folder, section
from mint_deploy.report.precision import precision
from mint_deploy.report.scores import scores

__all__ = ["collect"]


def collect(run: Path) -> dict[str, Any]:
    """Return the body of report.json for the run folder ``run``.

    Args:
        run: the folder; a run that is not finished gives a report whose open sections say so.

    Returns:
        plain JSON values: ``title status verdict run headline accuracy latency predicted widths
        groups scores dependency frozen gate lossless export precision doubts machine next``.

    Raises:
        RunFolderError: no such folder, or nothing of a run is in it.
    """
    folder = Folder(Path(run))
    cost = section("plan", partial(_cost, folder))
    body: dict[str, Any] = {
        "run": _identity(folder),
        "cost": cost,
        "accuracy": section("recover", partial(accuracy, folder)),
        "latency": section("bench", partial(timing.latency, folder)),
        "predicted": section("bundle", partial(timing.predicted, folder)),
        "widths": section("cut", partial(_widths, folder)),
        "groups": section("plan", partial(_groups, folder)),
        "scores": section("score", partial(scores, folder)),
        "dependency": section("cut", partial(_dependency, folder)),
        "frozen": section("plan", partial(_frozen, folder)),
        "gate": section("cut", partial(_gate, folder)),
        "lossless": section("cut", partial(_lossless, folder)),
        "export": section("export", partial(_export, folder)),
        "precision": section("export", partial(precision, folder)),
        "machine": section("bench", partial(timing.machines, folder)),
    }
    body["title"] = f"{body['run']['model']} for {body['run']['target']}"
    body["headline"] = headline.of_run(body)
    body["doubts"] = doubts(body)
    body["status"] = status(body)
    body["verdict"] = verdict(body)
    body["next"] = next_steps(body)
    first = ("title", "status", "verdict", "run", "headline")
    ordered = {k: body[k] for k in (*first, *(k for k in body if k not in first))}
    return cast(dict[str, Any], files.encode(ordered))


# ---------------------------------------------------------------- who and what


def _identity(folder: Folder) -> dict[str, Any]:
    manifest = folder.run()
    settings = _mapping(manifest.get("settings"))
    target = folder.target()
    try:
        plan = folder.plan()
    except UNREADABLE:  # told in the sections that need the plan
        plan = None
    command = manifest.get("command")
    if isinstance(command, (list, tuple)):
        command = shlex.join(str(word) for word in command)
    budget = dict(plan.budget) if plan else {}
    return {
        "folder": str(folder.path),
        "model": settings.get("model")
        or (plan.model if plan else "")
        or folder.path.resolve().name,
        "demo": bool(manifest) and settings.get("model") is None,
        "data": settings.get("data"),
        "target": target.get("name") or settings.get("target") or (plan.target if plan else "?"),
        "target_settings": {k: v for k, v in target.items() if k != "sources"},
        "criterion": plan.criterion if plan else settings.get("criterion"),
        "estimator": plan.estimator if plan else settings.get("estimator"),
        "budget": budget,
        "seed": manifest.get("seed", plan.seed if plan else None),
        "command": command or None,
        "created": manifest.get("created"),
        "settings": {k: v for k, v in settings.items() if v is not None},
        "versions": _mapping(manifest.get("versions")),
        "facts": _mapping(manifest.get("facts")),
        "seconds": {
            str(name): record["seconds"]
            for name, record in _mapping(manifest.get("stages")).items()
            if isinstance(record, Mapping) and isinstance(record.get("seconds"), (int, float))
        },
        "plan_digest": plan.digest() if plan else None,
        "files": sorted(p.name for p in folder.path.iterdir() if not p.name.startswith(".")),
    }


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}


# ---------------------------------------------------------------- the cut


def _cost(folder: Folder) -> dict[str, Any] | None:
    """Cost before and after: of the cut network, else of the plan (``origin`` says which)."""
    cut = folder.json("cut.json", "Cut")
    if cut is not None:
        before = files.decode(Cost, cut["cost_before"], where="cut.json: cost_before")
        after = files.decode(Cost, cut["cost_after"], where="cut.json: cost_after")
        return {"origin": "computed", "before": files.encode(before), "after": files.encode(after)}
    plan = folder.plan()
    if plan is None:
        return None
    return {
        "origin": "planned",
        "before": files.encode(plan.before),
        "after": files.encode(plan.after),
    }


def _widths(folder: Folder) -> dict[str, Any] | None:
    cut = folder.json("cut.json", "Cut")
    if cut is None:
        return None
    layers: list[dict[str, Any]] = [
        {
            "name": str(layer["name"]),
            "kind": str(layer.get("kind", "")),
            "before": int(layer["before"]),
            "after": int(layer["after"]),
            "macs_before": int(layer["macs_before"]),
            "macs_after": int(layer["macs_after"]),
        }
        for layer in cut["layers"]
    ]
    before = sum(layer["macs_before"] for layer in layers) or 1
    after = sum(layer["macs_after"] for layer in layers) or 1
    for layer in layers:
        layer["share_before"] = layer["macs_before"] / before
        layer["share_after"] = layer["macs_after"] / after
    return {"layers": layers}


def _groups(folder: Folder) -> dict[str, Any] | None:
    cut = folder.json("cut.json", "Cut")
    plan = folder.plan()
    if cut is None and plan is None:
        return None
    layers = {n: list(g.get("layers", [])) for n, g in (cut or {}).get("groups", {}).items()}
    if plan is not None:
        rows = [
            {
                "name": g.name,
                "size": g.size,
                "kept": len(g.keep),
                "round_to": g.round_to,
                "layers": layers.get(g.name) or sorted({_owner(m.tensor) for m in g.members}),
            }
            for g in plan.groups
        ]
    else:
        rows = [
            {"name": n, "size": g["size"], "kept": g["kept"], "round_to": None, "layers": layers[n]}
            for n, g in (cut or {})["groups"].items()
        ]
    return {"groups": rows, "notes": list(plan.notes) if plan else []}


def _dependency(folder: Folder) -> dict[str, Any] | None:
    """Return the layers and groups of the dense network, and how many units of each group stay."""
    found = folder.json("overview.json", "Overview")
    plan = folder.plan()
    if found is None or plan is None:
        return None
    body = {k: v for k, v in found.items() if k not in ("kind", "schema", "written_by")}
    overview = files.decode(Overview, body, where="overview.json")
    return {"overview": overview, "keep": {g.name: len(g.keep) for g in plan.groups}}


def _owner(tensor: str) -> str:
    """Return the layer that a parameter belongs to: ``layer1.0.conv1.weight`` -> its module."""
    return tensor.rpartition(".")[0] or tensor


def _frozen(folder: Folder) -> dict[str, Any] | None:
    cut = folder.json("cut.json", "Cut")
    plan = folder.plan()
    if cut is None and plan is None:
        return None
    found = dict((cut or {}).get("frozen") or {}) or (dict(plan.frozen) if plan else {})
    return {"groups": [{"name": str(n), "reason": str(r)} for n, r in found.items()]}


def _lossless(folder: Folder) -> dict[str, Any] | None:
    """Return what was removed that did nothing; ``text`` is empty where nothing was."""
    cut = folder.json("cut.json", "Cut")
    if cut is None:
        return None
    found = cut.get("lossless") or {}
    units = [n for by in found.get("removed", {}).values() for u in by.values() for n in u]
    left = sum(len(u) for u in found.get("left", {}).values())
    stuck = [
        {"group": str(g), "reason": str(why), "units": len(u)}
        for g, reasons in found.get("stuck", {}).items()
        for why, u in reasons.items()
    ]
    said = {"removed": len(units), "left": left, "stuck": stuck}
    if not units and not left:
        return {**said, "text": ""}
    costs = {k: files.encode(files.decode(Cost, found[k])) for k in ("before", "after")}
    return {**said, **costs, "text": str(found["text"])}


def _gate(folder: Folder) -> dict[str, Any] | None:
    cut = folder.json("cut.json", "Cut")
    if cut is None:
        return None
    rows = [
        {
            "name": str(name),
            "status": str(g["status"]),
            "permutation": g.get("permutation"),
            "restriction": g.get("restriction"),
            "power": g.get("power"),
            "reason": g.get("reason") or "",
            "restricted": bool(g.get("restricted")),
        }
        for name, g in cut["groups"].items()
    ]
    count = Counter(row["status"] for row in rows)
    return {
        "groups": rows,
        "total": len(rows) - count["whole"],
        "proven": count["proven"],
        "whole": count["whole"],
        "max_error": cut.get("max_error"),
        "restricted": sum(row["restricted"] for row in rows),
        "zero_difference": cut.get("zero_difference"),
        "seconds": _mapping(cut.get("seconds")),
    }


# ---------------------------------------------------------------- the export


def _export(folder: Folder) -> dict[str, Any] | None:
    deploy = folder.json("deploy.json", "Deploy")
    if deploy is None:
        return None
    out: dict[str, Any] = {
        name: files.encode(files.decode(ExportedModel, deploy[name], where=f"deploy.json: {name}"))
        for name in ("dense", "slim")
        if deploy.get(name) is not None
    }
    return {
        **out,
        "plan_digest": deploy.get("plan_digest"),
        "class_names": deploy.get("class_names"),
        "mean": deploy.get("mean"),
        "std": deploy.get("std"),
    }
