"""Which groups of a failing cut are to blame: found by bisection."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import MintDeployError, SurgeryError
from mint_deploy.gate import permuted, reference, relative_error, run
from mint_deploy.inputs import Call
from mint_deploy.surgery import cut

__all__ = ["crashing", "culprits", "keep_only", "trouble"]


def keep_only(plan: PruningPlan, cut_groups: Sequence[str]) -> PruningPlan:
    """Return the plan with every other group left whole."""
    chosen = set(cut_groups)
    return dataclasses.replace(
        plan,
        groups=tuple(
            g if g.name in chosen else dataclasses.replace(g, keep=tuple(range(g.size)))
            for g in plan.groups
        ),
    )


def _errors_of(
    dense: nn.Module, plan: PruningPlan, inputs: Call, base: list[torch.Tensor], seed: int
) -> tuple[float, float]:
    """Return restriction and permutation error of one plan on one network."""
    slim = run(cut(dense, plan), inputs)
    off = relative_error(slim, reference(dense, plan, inputs))
    return off, relative_error(run(permuted(dense, plan, seed), inputs), base)


def trouble(
    dense: nn.Module,
    plan: PruningPlan,
    inputs: Call,
    base: list[torch.Tensor],
    tolerance: float,
    seed: int,
) -> str:
    """Return what is wrong with a cut of ``dense``, whose outputs are ``base``; "" where nothing is."""
    try:
        off, moved = _errors_of(dense, plan, inputs, base, seed)
    except SurgeryError as problem:
        return str(problem)
    except MintDeployError:
        raise
    except Exception as problem:  # noqa: BLE001  # whatever the user's forward raises once cut
        return _raised(problem)
    if not off <= tolerance:
        return f"once cut, the output is off by {off:.2g}: the code fixes its width somewhere"
    if not moved <= tolerance:
        return (
            f"its units cannot change places, the output moves by {moved:.2g}: their order counts"
        )
    return ""


def _raised(problem: Exception) -> str:
    text = str(problem).strip().splitlines()
    return f"once cut, the network raises {type(problem).__name__}: {(text or [''])[0]}"


def crashing(
    dense: nn.Module, plan: PruningPlan, inputs: Call, alike: Mapping[str, Collection[str]]
) -> dict[str, str]:
    """Find by bisection the groups without which the cut network runs, whatever it computes.

    One pass of the cut network a trial, and most end early: an order of magnitude cheaper than :func:`culprits`.
    """

    def failing(names: Sequence[str]) -> str:
        try:
            run(cut(dense, keep_only(plan, names)), inputs)
        except MintDeployError:
            raise
        except Exception as problem:  # noqa: BLE001  # whatever the user's forward raises once cut
            return _raised(problem)
        return ""

    return _bisect([g.name for g in plan.groups if g.removed], failing, alike)


def culprits(
    dense: nn.Module,
    plan: PruningPlan,
    inputs: Call,
    base: list[torch.Tensor],
    tolerance: float,
    seed: int,
    alike: Mapping[str, Collection[str]] | None = None,
) -> dict[str, str]:
    """Find by bisection the groups whose cut fails on ``dense``, with what happened.

    ``base`` holds the outputs of ``dense`` itself. ``alike``: what the groups rest on (lines of code);
    groups that share it with a culprit, and fail together, are culprits without more trials.
    """

    def failing(names: Sequence[str]) -> str:
        return trouble(dense, keep_only(plan, names), inputs, base, tolerance, seed)

    return _bisect([g.name for g in plan.groups if g.removed], failing, alike or {})


def _bisect(
    names: list[str],
    trouble: Callable[[Sequence[str]], str],
    alike: Mapping[str, Collection[str]],
) -> dict[str, str]:
    bad: dict[str, str] = {}
    left = names
    while left:
        why = trouble(left)
        if not why:
            return bad
        suspects = left
        while len(suspects) > 1:
            half = suspects[: len(suspects) // 2]
            found = trouble(half)
            if found:
                suspects, why = half, found
            else:
                rest = suspects[len(suspects) // 2 :]
                found = trouble(rest)
                # Only together do they fail: the later ones go.
                suspects, why = (rest, found) if found else (rest[:1], why)
        bad[suspects[0]] = why
        shared = set(alike.get(suspects[0], ()))
        others = [n for n in left if n not in bad and shared & set(alike.get(n, ()))]
        if others and (also := trouble(others)):
            bad |= dict.fromkeys(others, also)
        left = [n for n in left if n not in bad]
    return bad
