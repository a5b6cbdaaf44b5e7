"""L1 norm of the filter (*Pruning Filters for Efficient ConvNets*, Li et al. 2017).

A unit that several layers produce (a residual stream) takes the mean of its filters' norms, each
divided by the mean norm of its layer. Needs no data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import GroupImportance, Importance, Moments
from mint_deploy.graph import Graph, Group

__all__ = ["score"]


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by the L1 norm of what produces them; loss is the relative norm."""
    groups = {}
    for name, group in graph.groups.items():
        loss = _norms(graph, group)
        groups[name] = GroupImportance(loss=loss, order=np.argsort(loss, kind="stable"))
    return Importance(
        groups=groups, criterion="magnitude", estimator=None, seed=seed, settings=settings
    )


def _norms(graph: Graph, group: Group) -> np.ndarray:
    total = np.zeros(group.size)
    for member in group.members:
        layer = graph.layers.get(member.tensor)
        if layer is None or member.dim != layer.out_dim or member.tensor not in group.producers:
            continue
        weight = graph.tensors[member.tensor].detach().abs().double()
        rows = weight.movedim(member.dim, 0).flatten(1).sum(1).cpu().numpy()
        norms = rows[member.index].sum(1)
        total += norms / max(float(norms.mean()), 1e-300)
    return total / max(1, len(group.producers))
