"""``trace``: find the pruning groups of a network, then probe each of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from mint_deploy.gate import prepared, redrawn
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import as_call, cast, random_like
from mint_deploy.plan import make_plan
from mint_deploy.verify import culprits

__all__ = ["trace"]

#: float32 rounding stays far below, a wrong cut of a redrawn network far above
PROBE_TOLERANCE = 1e-3


def trace(model: nn.Module, example_inputs: Any, *, probe: bool = True) -> Graph:
    """Find which slices of ``model`` leave together, what is frozen, and why.

    Args:
        model: any ``nn.Module``; it is not altered (a deep copy runs).
        example_inputs: a tensor, a tuple of arguments, or a dict of keyword arguments; one or two
            samples are enough. Branches that depend on values are traced on these, and
            ``graph.notes`` says so.
        probe: cut one unit of every group of a redrawn copy and compare it with the masked one; groups
            that fail are frozen with what happened. Three forward passes for a well-behaved network.

    Returns:
        A :class:`mint_deploy.graph.Graph`; ``print`` explains it.

    Raises:
        TraceError: the model cannot be copied or run on these inputs, or returns no tensor.
    """
    inner = getattr(model, "_orig_mod", model)  # torch.compile wraps the module
    inputs = as_call(example_inputs)
    graph = find_groups(inner, inputs)
    if not probe or not graph.groups:
        return graph
    smallest = make_plan(graph, {n: range(g.size - 1) for n, g in graph.groups.items()})
    drawn = redrawn(prepared(inner, torch.float32), smallest, seed=0)
    noise = random_like(cast(inputs, torch.float32), seed=0)
    bad = culprits(drawn, smallest, noise, PROBE_TOLERANCE, seed=0)
    return graph.without(bad) if bad else graph
