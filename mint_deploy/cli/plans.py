"""What ``inspect`` says of a plan: its groups, what is frozen, and what every layer becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mint_deploy.cli import show

__all__ = ["WHAT", "inspected", "tables"]

WHAT = "a PruningPlan"


def inspected(path: Path, written_by: str) -> dict[str, Any]:
    """Return what a plan says; costs only where they are those of what it keeps.

    Raises:
        PlanError: it was edited into something that cannot be.
    """
    from mint_deploy.plan_file import is_costed, layer_rows, macs_of, read_plan

    plan = read_plan(path)
    costed, macs = is_costed(plan), macs_of(plan)
    if macs is None and costed:
        macs = plan.after.macs
    return {
        "what": WHAT,
        "written_by": written_by,
        "model": plan.model,
        "digest": plan.digest(),
        "edited": ""
        if costed
        else "since its costs were computed; `mint-deploy cut` computes them anew",
        "criterion": plan.criterion,
        "estimator": plan.estimator,
        "budget": dict(plan.budget) if costed else {},
        "target": plan.target,
        "seed": plan.seed,
        "macs": None if macs is None else f"{macs} of {plan.before.macs}",
        "params": f"{plan.after.params} of {plan.before.params}" if costed else None,
        "widths": {g.name: f"{len(g.keep)} of {g.size}" for g in plan.groups},
        "round_to": {g.name: g.round_to for g in plan.groups},
        "frozen": dict(plan.frozen),
        "notes": list(plan.notes),
        "layers": [row._asdict() for row in layer_rows(plan)],
    }


def tables(found: dict[str, Any]) -> list[str]:
    """Take what needs lines of its own out of ``found``, and return it as tables."""
    widths, steps = found.pop("widths"), found.pop("round_to")
    frozen, notes = found.pop("frozen"), found.pop("notes")
    layers = found.pop("layers")
    out = []
    if widths:
        rows = [[name, width, f"in steps of {steps[name]}"] for name, width in widths.items()]
        out.append(show.table([["group", "keeps", ""], *rows]))
    if frozen:
        out.append(show.table([["frozen", ""], *([name, why] for name, why in frozen.items())]))
    if layers:
        head = ["layer", "", "outputs", "kept", "MACs", "kept"]
        out.append(show.table([head, *([str(v) for v in row.values()] for row in layers)]))
    return out + ["\n".join(f"  note: {text}" for text in notes)] * bool(notes)
