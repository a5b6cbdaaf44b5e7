"""Layer-adaptive magnitude (*LAMP*, Lee et al. 2021), of whole filters, by torch-pruning.

With the squared norms of a layer's filters in ascending order, ``score(u) = |F_u|^2 / sum_{v >= u} |F_v|^2``:
its share of what is still there when it is next to leave. The paper defines it for single weights; for filters
it is torch-pruning's, read from the filters' output side alone. The last filter of every layer scores 1, so no
layer can be emptied, and a global threshold is what the paper is about: losses are comparable.

A unit that several layers produce takes the mean of its scores in each. No data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, Importance, Member, Moments
from mint_deploy.criteria._ranking import ranked
from mint_deploy.criteria._torch_pruning import importance_of, producers_of
from mint_deploy.graph import Graph, Group

__all__ = ["score"]


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by their share of the norm that is left; groups without filters are left out."""
    groups = {
        name: ranked(name, _shares(graph, group, filters))
        for name, group in graph.groups.items()
        if (filters := producers_of(graph, group))
    }
    return Importance(
        groups=groups,
        criterion="lamp",
        estimator=None,
        seed=seed,
        comparable=True,
        settings=settings,
    )


def _shares(graph: Graph, group: Group, filters: list[Member]) -> Floats:
    from torch_pruning.pruner.importance import LAMPImportance

    measure = LAMPImportance(p=2, group_reduction="sum")
    total = np.zeros(group.size)
    for member in filters:
        if bool(
            graph.tensors[member.tensor].any()
        ):  # else 0 / 0: a layer of zeros counts for nothing
            total += importance_of(graph, member, measure)
    return total / len(filters)
