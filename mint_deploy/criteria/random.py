"""The honest control: units leave in random order."""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import GroupImportance, Importance, Moments
from mint_deploy.graph import Graph

__all__ = ["score"]


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Give every unit the same loss and a seeded random place in the order."""
    random = np.random.default_rng(seed)
    return Importance(
        groups={
            name: GroupImportance(
                loss=np.full(group.size, 1.0 / group.size), order=random.permutation(group.size)
            )
            for name, group in graph.groups.items()
        },
        criterion="random",
        estimator=None,
        seed=seed,
        settings=settings,
    )
