"""``trace``: find the pruning groups of a network, then probe each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.gate import prepared, redrawn
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import Call, as_call, cast
from mint_deploy.plan import make_plan
from mint_deploy.verify import TOLERANCE, culprits, keep_only

__all__ = ["trace"]

#: float32 rounding was measured at 1e-5 and below on the networks of the tests
PROBE_TOLERANCE = 1e-4


def trace(model: nn.Module, example_inputs: Any, *, probe: bool = True) -> Graph:
    """Find which slices of ``model`` leave together, what is frozen, and why.

    Args:
        model: any ``nn.Module``; it is not altered (a deep copy runs).
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments; one or two
            samples are enough. Branches that depend on values are traced on these, and
            ``graph.notes`` says so.
        probe: cut some units of every group of a redrawn copy and compare it with the masked one;
            groups that fail are frozen with what happened. Eight forward passes for a well-behaved network.

    Returns:
        A :class:`mint_deploy.graph.Graph`; ``print`` explains it.

    Raises:
        TraceError: the model cannot be copied or run on these inputs, returns no floating tensor, or
            returns NaN.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    inputs = as_call(example_inputs)
    graph = find_groups(inner, inputs)
    if not probe or not graph.groups:
        return graph
    plan = make_plan(graph, _uneven(graph))
    if not _failing(inner, plan, inputs, torch.float32, PROBE_TOLERANCE):
        return graph
    # A wrong cut, or rounding in an ill-conditioned network? float64 decides.
    return graph.without(_failing(inner, plan, inputs, torch.float64, TOLERANCE))


def _failing(
    model: nn.Module, plan: PruningPlan, inputs: Call, dtype: torch.dtype, tolerance: float
) -> dict[str, str]:
    """Return the groups whose cut fails on redrawn networks, with what happened."""
    dense = prepared(model, dtype)
    bad: dict[str, str] = {}
    for alive in (False, True):
        rest = keep_only(plan, [g.name for g in plan.groups if g.name not in bad])
        drawn, noise, base = redrawn(dense, plan, cast(inputs, dtype), seed=0, alive=alive)
        bad |= culprits(drawn, rest, noise, base, tolerance, seed=0)
    return bad


def _uneven(graph: Graph) -> dict[str, list[int]]:
    """Keep units chosen at random, in every group another number of them.

    Groups of one size that belong together, or a number in the code that is rounded, would pass a trial
    that takes the same from all.
    """
    random = np.random.default_rng(0)
    keep = {}
    for name, group in graph.groups.items():
        kept = group.size - int(random.integers(1, max(1, group.size // 2) + 1))
        keep[name] = sorted(random.choice(group.size, kept, replace=False).tolist())
    return keep
