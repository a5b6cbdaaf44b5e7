"""``trace``: find the pruning groups of a network, then probe each of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from mint_deploy.culprits import crashing, culprits, keep_only, trouble
from mint_deploy.errors import TraceError
from mint_deploy.gate import prepared, redrawn
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import Call, as_call, cast
from mint_deploy.plan import make_plan
from mint_deploy.tracing.heads import HEADS, WIDTH
from mint_deploy.user_model import unwrapped
from mint_deploy.verify import TOLERANCE

__all__ = ["trace"]

#: float32 rounding was measured at 1e-5 and below on the networks of the tests
PROBE_TOLERANCE = 1e-4


def trace(
    model: nn.Module, example_inputs: Any, *, probe: bool = True, attention: str = HEADS
) -> Graph:
    """Find which slices of ``model`` leave together, what is frozen, and why.

    Args:
        model: any ``nn.Module``; it is not altered (a deep copy runs).
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments; one or two
            samples are enough. Branches that depend on values are traced on these, and
            ``graph.notes`` says so.
        probe: cut some units of every group of a redrawn copy and compare it with the masked one;
            groups that fail are frozen with what happened. Five forward passes for a well-behaved network.
        attention: whole ``heads`` leave, or the ``width`` of every head, where the code allows either. Heads
            that cannot leave (their number is written in the code) are tried by width, if that frees more.

    Returns:
        A :class:`mint_deploy.graph.Graph`; ``print`` explains it.

    Raises:
        TraceError: the model cannot be copied or run on these inputs, returns no floating tensor, or
            returns NaN.
    """
    inner = unwrapped(model)
    inputs = as_call(example_inputs)
    if attention not in (HEADS, WIDTH):
        raise TraceError(f"attention is '{attention}'; expected '{HEADS}' or '{WIDTH}'")
    graph = find_groups(inner, inputs, attention=attention)
    if not probe or not graph.groups:
        return graph
    probed = _probed(inner, graph, inputs)
    if graph.attention == HEADS and len(probed.groups) < len(graph.groups):
        other = find_groups(inner, inputs, attention=WIDTH)
        other = _probed(inner, other, inputs)
        if other.cuttable_macs_share > probed.cuttable_macs_share:
            return other
    return probed


def _probed(model: nn.Module, graph: Graph, inputs: Call) -> Graph:
    """Return the graph with the groups frozen whose cut fails."""
    plan = make_plan(graph, _uneven(graph))
    dense = prepared(model, torch.float32)
    drawn, noise, base = redrawn(dense, plan, cast(inputs, torch.float32), seed=0, alive=True)
    if not trouble(drawn, plan, noise, base, PROBE_TOLERANCE, seed=0):
        return graph
    alike = {name: group.assumed for name, group in graph.groups.items()}
    bad = crashing(drawn, plan, noise, alike)
    rest = keep_only(plan, [g.name for g in plan.groups if g.name not in bad])
    if bad and not trouble(drawn, rest, noise, base, PROBE_TOLERANCE, seed=0):
        return graph.without(bad)
    # A wrong cut, or rounding in an ill-conditioned network? float64 decides, without and with a lift.
    dense = prepared(model, torch.float64)
    for alive in (False, True):
        rest = keep_only(plan, [g.name for g in plan.groups if g.name not in bad])
        drawn, noise, base = redrawn(dense, plan, cast(inputs, torch.float64), seed=0, alive=alive)
        bad |= culprits(drawn, rest, noise, base, TOLERANCE, 0, alike)
    return graph.without(bad)


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
