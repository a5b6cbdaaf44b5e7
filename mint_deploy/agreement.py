"""How far two halves of a sample agree on which units stay: what the sample leaves open.

Each half is scored by itself. In every group the units are compared that would stay at half of its width, and
what two random choices would have in common is taken off:

    agreement = sum_groups (|A and B| - k^2 / U) / sum_groups (k - k^2 / U)          k = U // 2 of U units

1: both halves keep the same units; 0: they agree no more than chance does.
"""

from __future__ import annotations

from collections.abc import Mapping

from mint_deploy.artifacts import GroupImportance, Moments
from mint_deploy.estimators import gaussian
from mint_deploy.graph import Graph

__all__ = ["agreement", "overlap"]


def agreement(graph: Graph, one: Moments, two: Moments) -> float:
    """Score both halves with the ``gaussian`` estimator and return how far they agree, at most 1."""
    return overlap(gaussian.rank(graph, one).groups, gaussian.rank(graph, two).groups)


def overlap(one: Mapping[str, GroupImportance], two: Mapping[str, GroupImportance]) -> float:
    """Return how far two elimination orders of the same groups agree at half of every width."""
    found, possible = 0.0, 0.0
    for name in one.keys() & two.keys():
        a, b = one[name].order, two[name].order
        keep = len(a) // 2
        if keep:
            chance = keep * keep / len(a)
            found += len(set(a[-keep:].tolist()) & set(b[-keep:].tolist())) - chance
            possible += keep - chance
    return found / possible if possible else 1.0
