"""A plan as a file that a person reads, edits and replays.

``keep`` and ``round_to`` are there to be edited: the order of ``keep`` means nothing in a file, and is sorted
when it is read. Everything else describes the network and is checked by its hash, ``structure``. What
cannot be is refused with what to do: units that a group does not have or that are named twice, a width
that is no multiple of ``round_to``, units that share a slice. ``after`` is what the plan said when it was
costed (``costed``); once ``keep`` is edited it is not believed, and whoever has the graph computes it anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mint_deploy.artifacts import PlanGroup, PlanLayer, PruningPlan
from mint_deploy.errors import PlanError
from mint_deploy.files import encode, read_value

if TYPE_CHECKING:
    from mint_deploy.graph import Graph

__all__ = [
    "LayerRow",
    "by_hand",
    "faults_of",
    "is_costed",
    "layer_rows",
    "listing",
    "macs_of",
    "make_plan",
    "read_plan",
    "recosted",
    "sealed",
]

SHOWN = 10


def make_plan(
    graph: Graph,
    keep: Mapping[str, Iterable[int]],
    *,
    steps: Mapping[str, int] | None = None,
    model: str = "",
    criterion: str = "by hand",
    estimator: str | None = None,
    budget: Mapping[str, float] | None = None,
    target: str = "",
    seed: int = 0,
    notes: Sequence[str] = (),
) -> PruningPlan:
    """Return the plan that keeps exactly ``keep`` (groups that are not named stay whole).

    Raises:
        PlanError: an unknown group, or units that it does not have.
    """
    kept: dict[str, tuple[int, ...]] = {}
    for name, units in keep.items():
        if name not in graph.groups:
            why = graph.frozen.get(name)
            reason = f"it is frozen: {why}" if why else f"known: {', '.join(graph.groups)}"
            raise PlanError(f"no pruning group '{name}' can be cut; {reason}")
        try:
            kept[name] = tuple(sorted(map(operator.index, units)))
        except TypeError as error:
            raise PlanError(f"group '{name}' must keep whole numbers; {error}") from error
        size = graph.groups[name].size
        if len(set(kept[name])) < len(kept[name]):
            raise PlanError(f"group '{name}' is to keep a unit twice: {list(kept[name])[:20]}")
        if not kept[name] or kept[name][0] < 0 or kept[name][-1] >= size:
            raise PlanError(f"group '{name}' must keep some of its units 0 to {size - 1}")
    macs = graph.layer_macs(graph.shapes)
    made = PruningPlan(
        model=model,
        groups=tuple(
            PlanGroup(
                name=name,
                size=group.size,
                keep=kept.get(name, tuple(range(group.size))),
                round_to=(steps or {}).get(name, 1),
                members=group.members,
            )
            for name, group in graph.groups.items()
        ),
        constants=graph.constants,
        frozen=dict(graph.frozen),
        before=graph.cost,
        after=graph.cost_of(kept),
        criterion=criterion,
        estimator=estimator,
        budget=dict(budget or {}),
        target=target,
        seed=seed,
        inputs=graph.inputs,
        notes=(*graph.notes, *notes),
        layers=tuple(
            PlanLayer(
                weight=weight,
                kind=layer.kind,
                shape=tuple(graph.shapes[weight]),
                out_dim=layer.out_dim,
                macs=macs[weight],
            )
            for weight, layer in graph.layers.items()
        ),
        statistics=graph.statistics,
        folds=graph.folds,
    )
    return sealed(made)


def read_plan(path: str | os.PathLike[str]) -> PruningPlan:
    """Read a plan that may have been edited.

    Raises:
        DataError: missing, damaged, or not a plan.
        PlanError: edited into something that cannot be; the first ten faults are listed.
    """
    plan = read_value(path, PruningPlan)
    groups = tuple(dataclasses.replace(g, keep=tuple(sorted(g.keep))) for g in plan.groups)
    plan = dataclasses.replace(plan, groups=groups)
    faults = faults_of(plan)
    if not faults and plan.structure and plan.structure != _structure(plan):
        what = (
            "more than 'keep' and 'round_to' was edited: the groups' members, the constants and the like "
            "describe the network, and are not to be changed by hand"
        )
        faults = [what]
    if faults:
        raise PlanError(
            f"{path} is not a plan that can be carried out: {listing(faults)}; mend 'keep' in the file, or "
            "make a new plan"
        )
    return plan


def sealed(plan: PruningPlan) -> PruningPlan:
    """Return the plan with the hashes of what it keeps, and of the structure that it was made for.

    Call it where ``after`` was computed.
    """
    return dataclasses.replace(plan, costed=plan.digest(), structure=_structure(plan))


def is_costed(plan: PruningPlan) -> bool:
    """Whether ``after`` is the cost of what the plan keeps now (taken for granted in older files)."""
    return plan.costed in ("", plan.digest())


def recosted(plan: PruningPlan, graph: Graph) -> PruningPlan:
    """Return the plan with the costs that the graph finds for what it keeps.

    Raises:
        PlanError: the plan has a group that the graph has not, or of another size.
    """
    unlike = [
        f"'{g.name}' of {g.size} units"
        for g in plan.groups
        if g.removed and (g.name not in graph.groups or graph.groups[g.name].size != g.size)
    ]
    if unlike:
        raise PlanError(
            f"the plan made for '{plan.model}' does not fit this model, which has no group "
            f"{listing(unlike)}; give the model that the plan was made for, or make a new plan"
        )
    after = graph.cost_of({g.name: g.keep for g in plan.groups if g.removed})
    return sealed(dataclasses.replace(plan, before=graph.cost, after=after))


def by_hand(plan: PruningPlan, graph: Graph) -> PruningPlan:
    """Return a plan that a person gave: costed by the graph; if it was edited, without its old budget.

    Raises:
        PlanError: as :func:`recosted`.
    """
    if not is_costed(plan):
        note = f"edited by hand after '{plan.criterion}' had chosen"
        notes = tuple(dict.fromkeys((*plan.notes, note)))
        plan = dataclasses.replace(plan, budget={}, notes=notes)
    return recosted(plan, graph)


def _structure(plan: PruningPlan) -> str:
    """Hash everything that describes the network and not the choice."""
    body = [
        [[g.name, g.size, encode(g.members)] for g in plan.groups],
        encode([plan.constants, plan.statistics, plan.folds, plan.layers]),
    ]
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


# ---------------------------------------------------------------- what cannot be


def listing(faults: Iterable[str]) -> str:
    """Join the first ten of what is wrong, each once."""
    found = list(dict.fromkeys(faults))
    rest = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(found[:SHOWN]) + rest


def faults_of(plan: PruningPlan) -> list[str]:
    """Say what of a plan cannot be carried out on any network; nothing, usually."""
    faults = [fault for group in plan.groups for fault in _group_faults(group)]
    named = Counter(g.name for g in plan.groups)
    faults += [f"group '{name}' is there {n} times" for name, n in named.items() if n > 1]
    sizes = {g.name: g.size for g in plan.groups}
    for constant in plan.constants:
        for name, units in constant.of:
            if name not in sizes:
                faults.append(
                    f"'{constant.attribute}' counts units of group '{name}', which the plan does not have "
                    "(a group that is to stay whole keeps all its units)"
                )
            elif units and not 0 <= min(units) <= max(units) < sizes[name]:
                faults.append(f"'{constant.attribute}' counts units that '{name}' does not have")
    return faults or list(_shared_slices(plan))


def _group_faults(group: PlanGroup) -> Iterator[str]:
    keep, name = group.keep, group.name
    outside = [u for u in keep if not 0 <= u < group.size]
    twice = [u for u, n in Counter(keep).items() if n > 1]
    if not keep:
        yield f"group '{name}' keeps nothing; at least one unit must stay"
    elif outside or twice or list(keep) != sorted(keep):
        what = (
            f"names {outside[0]}, which is outside"
            if outside
            else f"names {twice[0]} twice"
            if twice
            else "is not sorted"
        )
        yield (
            f"group '{name}' keeps {_few(keep)}, which {what}; expected distinct sorted indices from 0 to "
            f"{group.size - 1}"
        )
    elif group.round_to < 1:
        yield f"group '{name}' has round_to {group.round_to}; expected 1 or more"
    elif len(keep) % group.round_to and len(keep) != group.size:
        yield (
            f"group '{name}' keeps {len(keep)} of {group.size} units, and its round_to is "
            f"{group.round_to}: keep {_near(len(keep), group)}, or write round_to 1 (other widths may "
            "be slower than wider ones)"
        )
    for member in group.members:
        if member.index.ndim != 2 or len(member.index) != group.size:
            yield f"'{member.tensor}' lists {len(member.index)} of {group.size} units"
        elif member.index.size and (
            int(member.index.min()) < 0 or int(member.index.max()) >= member.length
        ):
            yield f"'{member.tensor}' has indices outside its {member.length} entries"


def _few(keep: tuple[int, ...]) -> str:
    return f"{list(keep[:4])}{'...' if len(keep) > 4 else ''}"


def _near(width: int, group: PlanGroup) -> str:
    """The widths below and above that are possible."""
    step = group.round_to
    below, above = width // step * step, min(math.ceil(width / step) * step, group.size)
    return f"{below} or {above}" if below else f"{above}"


def _shared_slices(plan: PruningPlan) -> Iterator[str]:
    """Two units that own one slice could not leave one by one."""
    held: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = {}
    for group in plan.groups:
        for member in group.members:
            place = held.setdefault((member.tensor, member.dim), [])
            place.append((group.name, member.index.reshape(-1)))
    for (tensor, dim), parts in held.items():
        together = np.concatenate([index for _, index in parts])
        if together.size and int(np.bincount(together).max()) > 1:
            names = " and ".join(f"'{n}'" for n in dict.fromkeys(n for n, _ in parts))
            yield f"units of {names} share slices of '{tensor}' along dimension {dim}"


# ---------------------------------------------------------------- what a plan makes of every layer


class LayerRow(NamedTuple):
    """A layer before and after: outputs, and multiply-adds for one sample."""

    name: str
    kind: str
    width: int
    kept: int
    macs: int
    macs_kept: int


def layer_rows(plan: PruningPlan) -> list[LayerRow]:
    """Return every layer before and after the cut; computed from ``keep``, so never out of date."""
    slices = plan.slices()
    return [_row(layer, slices.get(layer.weight, {})) for layer in plan.layers]


def macs_of(plan: PruningPlan) -> int | None:
    """Return the multiply-adds that are left; ``None`` where the plan does not list its layers."""
    return sum(row.macs_kept for row in layer_rows(plan)) if plan.layers else None


def _row(layer: PlanLayer, gone: dict[int, list[int]]) -> LayerRow:
    shape = [n - len(gone.get(dim, ())) for dim, n in enumerate(layer.shape)]
    full = max(1, math.prod(layer.shape))
    return LayerRow(
        layer.weight.removesuffix(".weight"),
        layer.kind,
        layer.shape[layer.out_dim],
        shape[layer.out_dim],
        layer.macs,
        layer.macs * math.prod(shape) // full,
    )
