"""Filters nearest to all the others go (*Filter Pruning via Geometric Median*, He et al. 2019), by torch-pruning.

The loss of filter ``i`` of a layer is ``sum_j ||F_i - F_j||`` (their equation 6): what lies near the geometric
median can be replaced by the rest. The filters' output side alone counts, not the norms or the readers.
torch-pruning 1.6.1 measures distances between ``|F|`` (or ``F^2``); shifted by their least entry the filters
are not negative, and distances are as before, so that it gives the paper's.

A unit that several layers produce takes the mean of its losses, each divided by its layer's mean; a unit of
several filters of one layer their sum. The paper prunes every layer by the same share: losses are not
comparable. No data.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from mint_deploy.artifacts import Floats, Importance, Member, Moments
from mint_deploy.criteria._ranking import ranked
from mint_deploy.criteria._torch_pruning import importance_of, producers_of
from mint_deploy.graph import Graph, Group

__all__ = ["score"]


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by how far their filters are from the other filters; groups without filters are left out."""
    groups = {
        name: ranked(name, _distances(graph, group, filters))
        for name, group in graph.groups.items()
        if (filters := producers_of(graph, group))
    }
    return Importance(groups=groups, criterion="fpgm", estimator=None, seed=seed, settings=settings)


def _distances(graph: Graph, group: Group, filters: list[Member]) -> Floats:
    from torch_pruning.pruner.importance import FPGMImportance

    measure = FPGMImportance(p=1, group_reduction="sum", normalizer=None)

    def shifted(weight: Tensor, _: Member) -> tuple[Tensor, None]:
        return weight - weight.min(), None

    total = np.zeros(group.size)
    for member in filters:
        far = importance_of(graph, member, measure, shifted)
        total += far / max(float(far.mean()), 1e-300)
    return total / len(filters)
