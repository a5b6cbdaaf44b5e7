"""Lossless extras: what does nothing leaves, apart from what a budget asks for.

``remove_dead(model, graph, example_inputs)`` finds the dead units (:mod:`mint_deploy.dead`), folds the constant
ones onward, checks both on real inputs and on noise in float64 before anything is cut, rolls back what fails, and
then cuts through the gate like any other plan.

In a run with a budget the same units come first: :func:`dead_first` puts them at the head of the elimination order
at no loss, and :func:`widest` is the width that each group has once they are gone, still a multiple of
``round_to``: 64 channels with three dead ones stay 64 wide, because 61 are slower.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mint_deploy.artifacts import Cost, Importance, Moments, PruningPlan
from mint_deploy.dead import EXACT, KINDS, Dead, DeadUnit, dead_units
from mint_deploy.errors import PlanError, SurgeryError
from mint_deploy.gate import baseline, masked, prepared, relative_error, run
from mint_deploy.graph import Graph
from mint_deploy.inputs import Call, as_call, cast, not_nan, random_like
from mint_deploy.plan import make_plan, possible_widths
from mint_deploy.plan_file import recosted
from mint_deploy.surgery import cut
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.user_model import unwrapped
from mint_deploy.verify import TOLERANCE, prove

__all__ = [
    "Lossless",
    "dead_first",
    "fold_constants",
    "proven",
    "remove_dead",
    "summary",
    "widest",
]

#: what leaves first where not all dead units can: what is proven before what was sampled
_ORDER = {kind: i for i, kind in enumerate(KINDS)}
_NOISES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Lossless:
    """What was removed without loss: group -> kind -> units; costs are for one sample.

    ``exact`` is the cost once all that is dead for every input has left, ``after`` that without what is constant
    on the sample, too.
    ``left``: dead units that stay, for the width of their group or because nothing else would be left of it.
    ``rolled_back``: group -> why its dead units stay after all. ``error``: of the slim network's outputs against
    the dense one's, in float64, relative, on the given inputs.
    """

    removed: Mapping[str, Mapping[str, tuple[int, ...]]]
    left: Mapping[str, tuple[int, ...]]
    stuck: Mapping[str, Mapping[str, tuple[int, ...]]]
    rolled_back: Mapping[str, str]
    before: Cost
    exact: Cost
    after: Cost
    images: int = 0
    error: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def count(self, *kinds: str) -> int:
        """Return how many units left, of these kinds (none given: of any)."""
        chosen = kinds or KINDS
        return sum(len(u) for by in self.removed.values() for k, u in by.items() if k in chosen)

    def __str__(self) -> str:
        def units(count: int) -> str:
            return f"{count} dead unit{'' if count == 1 else 's'}"

        first = (
            f"{units(self.count(*EXACT))} removed, lossless: MACs {self.before.macs:,} -> "
            f"{self.exact.macs:,}, parameters {self.before.params:,} -> {self.exact.params:,}"
        )
        parts = [first]
        if self.count("sample"):
            parts.append(
                f"{self.count('sample')} more removed that are constant on {self.images} images: MACs -> "
                f"{self.after.macs:,}, parameters -> {self.after.params:,}"
            )
        stay = sum(map(len, self.left.values()))
        if stay:
            parts.append(
                f"{units(stay)} {'stays' if stay == 1 else 'stay'}: widths are multiples of what was asked for, "
                "layers left alone stay whole, and one unit of each group stays"
            )
        return "; ".join(parts)


def remove_dead(
    model: nn.Module,
    graph: Graph,
    example_inputs: Any,
    *,
    moments: Moments | None = None,
    round_to: int = 1,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> tuple[nn.Module, PruningPlan, Lossless]:
    """Remove the units without which the network computes the same.

    Args:
        model: the traced model; it is not altered.
        graph: from :func:`mint_deploy.trace`.
        example_inputs: real inputs, on which the result is compared; with ``moments``, of the sample.
        moments: also remove what does not vary on the sample: lossless on it, and on nothing else.
        round_to: widths become multiples of it; the rest of the dead units stays. 1: all of them leave.
        tolerance: largest relative difference of the outputs, in float64.
        seed: of the noise and of the gate.

    Returns:
        The slim model, the plan that was carried out (empty where nothing is dead) and what it came to. Where
        constants were folded, the slim model's biases differ from the plan's slices: the plan's notes say so.

    Raises:
        PlanError: the graph belongs to another model, or ``round_to`` is not positive.
        SurgeryError: the slim network does not compute the same.
    """
    if round_to < 1:
        raise PlanError(f"round_to is {round_to}, expected a positive whole number")
    model = unwrapped(model)
    found = dead_units(model, graph, example_inputs, moments)
    dead, rolled_back = proven(
        model, graph, found, example_inputs, round_to=round_to, tolerance=tolerance, seed=seed
    )
    gone = _gone(graph, dead, round_to)
    folded = fold_constants(model, dead, gone)
    plan = make_plan(
        graph, _keep(graph, gone), criterion="dead units", seed=seed, notes=_notes(dead, gone)
    )
    if any(gone.values()):
        slim, plan, proof = prove(folded, plan, example_inputs, seed=seed)
        bad = {n: g.reason for n, g in proof.groups.items() if g.status == "rolled back"}
        rolled_back, gone = rolled_back | bad, {n: u for n, u in gone.items() if n not in bad}
        plan = recosted(plan, graph)
        folded = fold_constants(model, dead, gone)
        slim = cut(folded, plan)
    else:
        slim = copy.deepcopy(model)
    inputs = cast(as_call(example_inputs), torch.float64)
    dense = prepared(model, torch.float64)
    exact = cut(fold_constants(dense, dead, gone), plan)
    error = relative_error(run(exact, inputs), not_nan(baseline(dense, inputs)))
    if not error <= tolerance:
        raise SurgeryError(
            f"without its dead units the network differs by {error:.3g} relative, at most {tolerance:.3g} was "
            "expected; nothing was kept of it (trace again with representative inputs)"
        )
    return slim, plan, summary(graph, dead, plan, rolled_back=rolled_back, error=error)


def proven(
    model: nn.Module,
    graph: Graph,
    dead: Dead,
    example_inputs: Any,
    *,
    round_to: int = 1,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> tuple[Dead, dict[str, str]]:
    """Check in float64 that the network computes the same when nobody reads its dead units.

    On the given inputs, and on noise for what is dead for every input. Groups that fail are taken out.

    Returns:
        The dead units that hold, and for each group that was rolled back the reason.

    Raises:
        TraceError: the model does not run in float64.
    """
    if not dead.groups:
        return dead, {}
    dense, inputs = prepared(model, torch.float64), cast(as_call(example_inputs), torch.float64)
    trials: list[tuple[Call, list[Tensor], Collection[str]]] = [
        (inputs, not_nan(baseline(dense, inputs)), KINDS)
    ]
    for number in range(_NOISES):
        noise = random_like(inputs, seed + number)
        base = baseline(dense, noise)
        if all(bool(x.isfinite().all()) for x in base):
            trials.append((noise, base, EXACT))

    def off(names: Iterable[str]) -> float:
        worst = 0.0
        for given, base, kinds in trials:
            part = _only(dead, names, kinds)
            gone = _gone(graph, part, round_to)
            plan = make_plan(graph, _keep(graph, gone))
            folded = fold_constants(dense, part, gone)
            worst = max(worst, relative_error(run(masked(folded, plan), given), base))
        return worst

    if off(dead.groups) <= tolerance:
        return dead, {}
    good: list[str] = []
    bad: dict[str, str] = {}
    for name in dead.groups:
        error = off([*good, name])
        if error <= tolerance:
            good.append(name)
        else:
            bad[name] = f"without its dead units the output is off by {error:.2g}"
    return _only(dead, good, KINDS), bad


def _only(dead: Dead, names: Iterable[str], kinds: Collection[str]) -> Dead:
    groups: dict[str, tuple[DeadUnit, ...]] = {}
    for name in names:
        units = tuple(d for d in dead.groups[name] if d.kind in kinds)
        if units:
            groups[name] = units
    return dataclasses.replace(dead, groups=groups)


def _gone(graph: Graph, dead: Dead, round_to: int) -> dict[str, list[int]]:
    """Return the units that leave: all dead ones, less what rounding up the width keeps."""
    gone = {}
    for name, units in dead.groups.items():
        size = graph.groups[name].size
        alive = max(1, size - len(units))
        width = min(size, math.ceil(alive / round_to) * round_to)
        leaving = sorted(units, key=lambda d: (_ORDER[d.kind], d.unit))[: size - width]
        gone[name] = sorted(d.unit for d in leaving)
    return gone


def _keep(graph: Graph, gone: Mapping[str, Collection[int]]) -> dict[str, list[int]]:
    return {
        name: sorted(set(range(graph.groups[name].size)) - set(units))
        for name, units in gone.items()
    }


def _notes(dead: Dead, gone: Mapping[str, Collection[int]]) -> list[str]:
    folded = [n for n, units in dead.groups.items() for d in units if d.folds and d.unit in gone[n]]
    if not folded:
        return []
    note = (
        f"{len(folded)} of the units are constants that were folded into biases or running means before the "
        "cut; read the slim network's own weights after replaying this plan"
    )
    return [note]


def summary(
    graph: Graph,
    dead: Dead,
    plan: PruningPlan,
    *,
    rolled_back: Mapping[str, str] | None = None,
    error: float = 0.0,
) -> Lossless:
    """Return what of ``dead`` a plan removes, and what that alone saves."""
    removed: dict[str, dict[str, tuple[int, ...]]] = {}
    left: dict[str, tuple[int, ...]] = {}
    gone: dict[str, set[int]] = {}
    leaving = {g.name: set(g.removed) for g in plan.groups}
    for name in dead.groups:
        mine = set(dead.units(name)) & leaving.get(name, set())
        kinds = {k: tuple(u for u in dead.units(name, [k]) if u in mine) for k in KINDS}
        if mine:
            removed[name], gone[name] = {k: u for k, u in kinds.items() if u}, mine
        if stay := tuple(u for u in dead.units(name) if u not in mine):
            left[name] = stay
    return Lossless(
        removed=removed,
        left=left,
        stuck=dead.stuck,
        rolled_back=dict(rolled_back or {}),
        before=graph.cost,
        exact=graph.cost_of(_keep(graph, {n: gone[n] & set(dead.units(n, EXACT)) for n in gone})),
        after=graph.cost_of(_keep(graph, gone)),
        images=dead.images,
        error=error,
        notes=dead.notes,
    )


# ---------------------------------------------------------------- before a budget's cut


def dead_first(scores: Importance, dead: Dead) -> Importance:
    """Return the scores with the dead units at the head of their group's order, at no loss."""
    groups = dict(scores.groups)
    for name in dead.groups:
        if name not in groups:
            continue
        loss, order = groups[name].loss.copy(), groups[name].order
        first = np.array(dead.units(name), dtype=np.int64)
        loss[first] = 0.0
        order = np.concatenate([first, order[~np.isin(order, first)]])
        groups[name] = dataclasses.replace(groups[name], loss=loss, order=order)
    return dataclasses.replace(scores, groups=groups)


def widest(graph: Graph, dead: Dead, round_to: int) -> dict[str, int]:
    """Return the width of each group with dead units once they are gone: one that the target likes."""
    out = {}
    for name, units in dead.groups.items():
        size = graph.groups[name].size
        _, widths = possible_widths(size, round_to)
        out[name] = min(w for w in widths if w >= size - len(units))
    return out


# ---------------------------------------------------------------- folding


def fold_constants(
    model: nn.Module, dead: Dead, gone: Mapping[str, Collection[int]] | None = None
) -> nn.Module:
    """Return a copy of ``model`` in which nobody reads constant units; it computes the same.

    What their constants did is in a bias or a running mean then, so that a cut may remove them.

    Args:
        model: the model whose ``dead`` units are known; untouched.
        dead: from :func:`mint_deploy.dead.dead_units`.
        gone: only these units (group -> units); ``None``: all dead units.
    """
    made = copy.deepcopy(unwrapped(model))
    tensors = tensors_of(made)
    folds = [
        fold
        for name, units in dead.groups.items()
        for unit in units
        if gone is None or unit.unit in gone.get(name, ())
        for fold in unit.folds
    ]
    reads: dict[str, Tensor] = {}
    shifts: dict[str, Tensor] = {}
    with torch.no_grad():
        for fold in folds:
            if fold.reader not in reads:  # [what is read, outputs], summed over the kernel
                front = tensors[fold.reader].double().cpu().movedim(fold.dim, 0)
                reads[fold.reader] = front.flatten(2).sum(2) if front.dim() > 2 else front
            read = reads[fold.reader]
            shift = shifts.setdefault(fold.into, read.new_zeros(read.shape[1]))
            per_group = read.shape[1] // fold.groups
            for channel, value in zip(fold.channels, fold.values, strict=True):
                g, index = divmod(channel, len(read))
                rows = slice(g * per_group, (g + 1) * per_group)
                shift[rows] += fold.sign * value * read[index, rows]
        for name, shift in shifts.items():
            own = tensors[name]
            own.copy_((own.double() + shift.to(own.device)).to(own.dtype))
        for fold in folds:
            own = tensors[fold.reader]
            here = sorted({channel % own.shape[fold.dim] for channel in fold.channels})
            own.index_fill_(fold.dim, torch.tensor(here, device=own.device), 0.0)
    return made
