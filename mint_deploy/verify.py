"""The gate: a cut is kept only where it is proven equal to the masked network.

Right after the cut, in float64, per output tensor, on the given inputs:

1. **Permutation.** Permuting the units of every group in all their slices leaves the DENSE network's
   output unchanged: the coupling is complete.
2. **Restriction.** ``slim(x)`` equals the dense network whose consumers ignore the removed units, and whose
   statistics over channels (LayerNorm, a product of queries and keys) run over those that stay
   (:mod:`mint_deploy.reference`). Groups that cross one are *restricted*: a cut of them is not as if their units
   were zeroed, and the proof says by how much.
3. **Power.** Both also hold on a copy with redrawn values, and for a (seeded) sample of groups a cut that
   is sabotaged in one tensor is seen by 100 times the tolerance. Otherwise: *no power*, never *proven*.

Groups that fail are found by bisection, rolled back, and frozen with the reason. The tolerance is 1e-8,
not the 1e-6 that would do: exact cuts were measured at 3e-14 and below on every network of the tests,
and a hundred times a smaller tolerance is seen through deeper networks.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.culprits import culprits, keep_only
from mint_deploy.errors import PlanError, SurgeryError, TraceError
from mint_deploy.gate import (
    baseline,
    masked,
    opened_error,
    permuted,
    prepared,
    redrawn,
    reference,
    relative_error,
    run,
    sabotaged,
)
from mint_deploy.inputs import Call, as_call, cast, not_nan
from mint_deploy.surgery import cut
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.user_model import unwrapped

__all__ = ["POWER", "TOLERANCE", "GroupProof", "Proof", "prove", "verify"]

TOLERANCE = 1e-8
POWER = 100.0
SABOTAGED_GROUPS = 32
#: swapped units can both be silent on the inputs at hand: other pairs and tensors are tried then
SABOTAGE_TRIES = 4
#: ... and then other values
REDRAWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupProof:
    """What the gate says of one group. ``power`` is ``None`` where the group was not sampled."""

    size: int
    kept: int
    layers: tuple[str, ...]
    power: float | None
    status: str
    reason: str = ""
    restricted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """The gate's result; errors are relative to the largest output value.

    ``zero_difference``: how far the output is from the dense network's with the removed units zeroed, where
    groups are *restricted* (their channels enter a statistic); 0 elsewhere.
    """

    permutation: float
    restriction: float
    permutation_redrawn: float
    restriction_redrawn: float
    least_power: float | None
    sampled: int
    zero_difference: float = 0.0
    groups: Mapping[str, GroupProof] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def max_error(self) -> float:
        """The largest of the four errors."""
        return max(
            self.permutation, self.restriction, self.permutation_redrawn, self.restriction_redrawn
        )


def verify(
    model: nn.Module,
    slim: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    sample: int = SABOTAGED_GROUPS,
) -> Proof:
    """Prove that ``slim`` is ``model`` less what ``plan`` removes; call it right after ``cut``.

    Raises:
        SurgeryError: tensors that are not the planned slices, an error over ``tolerance``, or no power
            to see one.
        TraceError: the uncut model does not run in float64.
    """
    start = time.perf_counter()
    model = unwrapped(model)
    _check_bits(cut(model, plan), slim)
    inputs = cast(as_call(example_inputs), torch.float64)
    dense = prepared(model, torch.float64)
    # Where a scale is taken up by weights, those are rounded anew: the arithmetic is checked without that.
    own = cut(dense, plan) if plan.folds else prepared(slim, torch.float64)
    base = not_nan(baseline(dense, inputs))
    permutation = relative_error(run(permuted(dense, plan, seed), inputs), base)
    if plan.statistics:  # the reference opens attention: it must compute what PyTorch's does
        permutation = max(permutation, opened_error(dense, inputs, base))
    slim_outputs = run(own, inputs)
    restriction = relative_error(slim_outputs, reference(dense, plan, inputs))
    zeroed = run(masked(dense, plan), inputs) if plan.statistics else slim_outputs
    permutation_drawn = restriction_drawn = 0.0
    powers = dict.fromkeys(_sampled(plan, sample, seed), 0.0)
    for attempt in range(REDRAWS):
        drawn, noise, base = redrawn(dense, plan, inputs, seed + attempt, alive=attempt > 0)
        moved = relative_error(run(permuted(drawn, plan, seed + attempt), noise), base)
        permutation_drawn = max(permutation_drawn, moved)
        drawn_slim = cut(drawn, plan)
        base = baseline(drawn_slim, noise)
        off = relative_error(base, reference(drawn, plan, noise))
        restriction_drawn = max(restriction_drawn, off)
        _measure_power(powers, drawn_slim, plan, noise, base, POWER * tolerance, seed)
        if all(power >= POWER * tolerance for power in powers.values()):
            break
    proof = Proof(
        permutation=permutation,
        restriction=restriction,
        permutation_redrawn=permutation_drawn,
        restriction_redrawn=restriction_drawn,
        least_power=min(powers.values(), default=None),
        sampled=len(powers),
        zero_difference=relative_error(slim_outputs, zeroed),
        groups={
            g.name: GroupProof(
                size=g.size,
                kept=len(g.keep),
                layers=tuple(dict.fromkeys(m.tensor.rpartition(".")[0] for m in g.members)),
                power=powers.get(g.name),
                status="proven" if g.removed else "whole",
                restricted=g.name in plan.restricted,
            )
            for g in plan.groups
        },
        seconds=time.perf_counter() - start,
    )
    if not proof.max_error <= tolerance:
        raise SurgeryError(
            f"the cut network differs from the masked one by {proof.max_error:.3g} relative, at most "
            f"{tolerance:.3g} was expected; nothing was kept of it (trace again with representative "
            "inputs, or ignore the layers concerned)"
        )
    blind = {name: power for name, power in powers.items() if power < POWER * tolerance}
    if blind:
        raise _NoPowerError(blind)
    return proof


def _check_bits(expected: nn.Module, slim: nn.Module) -> None:
    """Whatever the values hide from the inputs at hand: the slim network holds what the plan leaves."""
    found = tensors_of(slim)
    for name, tensor in tensors_of(expected).items():
        other = found.get(name)
        if other is None or other.shape != tensor.shape:
            shape = None if other is None else list(other.shape)
            raise SurgeryError(
                f"'{name}' of the cut network has shape {shape}, the plan leaves {list(tensor.shape)}"
            )
        differs = other.cpu() != tensor.cpu()
        if bool((differs & ~(other.isnan() & tensor.isnan()).cpu()).any()):
            raise SurgeryError(
                f"'{name}' of the cut network is not what the plan leaves of the dense one; verify right "
                "after the cut, before repair and training"
            )


class _NoPowerError(SurgeryError):
    """Sabotaged cuts of these groups (name -> change of the output) cannot be told from right ones."""

    def __init__(self, blind: Mapping[str, float]) -> None:
        self.groups = {
            name: f"no power: a sabotaged cut of it changes the output by only {power:.3g}"
            for name, power in blind.items()
        }
        named = "; ".join(f"'{n}': {why}" for n, why in list(self.groups.items())[:3])
        super().__init__(f"{named}; nothing can be proven about it, so leave it whole (ignore)")


def _sampled(plan: PruningPlan, sample: int, seed: int) -> list[str]:
    """Return a seeded sample of the groups that are cut, in order."""
    touched = [g.name for g in plan.groups if g.removed]
    if len(touched) <= sample:
        return touched
    chosen = np.random.default_rng(seed).choice(len(touched), sample, replace=False)
    return [touched[i] for i in sorted(chosen)]


def _measure_power(
    powers: dict[str, float],
    slim: nn.Module,
    plan: PruningPlan,
    inputs: Call,
    base: list[torch.Tensor],
    enough: float,
    seed: int,
) -> None:
    """Note in ``powers`` how far sabotaged cuts are off, for the groups where that is not enough yet."""
    groups = {g.name: g for g in plan.groups}
    for name in [n for n, power in powers.items() if power < enough]:
        for attempt in range(SABOTAGE_TRIES):
            wrong = sabotaged(slim, plan, groups[name], seed + attempt)
            powers[name] = max(powers[name], relative_error(run(wrong, inputs), base))
            if powers[name] >= enough:
                break


def prove(
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    *,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    sample: int = SABOTAGED_GROUPS,
) -> tuple[nn.Module, PruningPlan, Proof]:
    """Cut and prove; groups that fail are rolled back and frozen, and the work goes on.

    Returns the slim model, the plan as it was carried out, and the proof.

    Raises:
        SurgeryError: nothing could be cut, or the rest cannot be proven.
        PlanError: the plan belongs to another model.
    """
    start = time.perf_counter()
    rolled_back: dict[str, str] = {}
    while True:
        try:
            slim = cut(model, plan)
            proof = verify(
                model, slim, plan, example_inputs, tolerance=tolerance, seed=seed, sample=sample
            )
            break
        except (PlanError, TraceError):
            raise
        except Exception as problem:
            blamed = _blamed(problem, model, plan, example_inputs, tolerance, seed)
            if not blamed:
                raise
            rolled_back |= blamed
            left = [g.name for g in plan.groups if g.removed and g.name not in rolled_back]
            if not left:
                raise SurgeryError(
                    "no group of the plan could be cut: "
                    + "; ".join(f"{n}: {why}" for n, why in list(rolled_back.items())[:3])
                ) from problem
            plan = dataclasses.replace(keep_only(plan, left), frozen={**plan.frozen, **blamed})
    groups = {
        name: dataclasses.replace(g, status="rolled back", reason=rolled_back[name])
        if name in rolled_back
        else g
        for name, g in proof.groups.items()
    }
    return (
        slim,
        plan,
        dataclasses.replace(proof, groups=groups, seconds=time.perf_counter() - start),
    )


def _blamed(
    problem: Exception,
    model: nn.Module,
    plan: PruningPlan,
    example_inputs: Any,
    tolerance: float,
    seed: int,
) -> dict[str, str]:
    """Return the groups to roll back after ``problem``, with the reasons."""
    if isinstance(problem, _NoPowerError):
        return problem.groups
    inputs = cast(as_call(example_inputs), torch.float64)
    dense = prepared(unwrapped(model), torch.float64)
    bad: dict[str, str] = {}
    for attempt in range(
        REDRAWS
    ):  # the same draws as in verify: some mistakes show in later ones alone
        drawn, noise, base = redrawn(dense, plan, inputs, seed + attempt, alive=attempt > 0)
        bad = culprits(drawn, plan, noise, base, tolerance, seed + attempt)
        if bad:
            break
    rest = keep_only(plan, [g.name for g in plan.groups if g.name not in bad])
    return bad | culprits(dense, rest, inputs, baseline(dense, inputs), tolerance, seed)
