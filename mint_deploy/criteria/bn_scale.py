"""The scale of BatchNorm (*Network Slimming*, Liu et al. 2017; *SSS*, Huang & Wang 2018), by torch-pruning.

``loss = |gamma|``; a unit with several channels, or behind several BatchNorms (a residual stream), takes the
mean. Both papers cut by one threshold over the whole network: losses are comparable. Groups without BatchNorm
are left out and stay whole: nothing is put in its place, so that the criterion is what it says.

The scales are meant to be trained with a penalty first, which :func:`mint_deploy.sparsity.sparsify` does; on a
network trained without one this is the same ranking, with less to go by. No data.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, Importance, Member, Moments
from mint_deploy.criteria._ranking import ranked
from mint_deploy.criteria._torch_pruning import Measure, importance_of, norms_of
from mint_deploy.errors import ModelError
from mint_deploy.graph import Graph

__all__ = ["score"]


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by the scale of the BatchNorm behind them.

    Raises:
        ModelError: no group has a BatchNorm with scales.
    """
    from torch_pruning.pruner.importance import BNScaleImportance

    measure = BNScaleImportance(group_reduction="sum", normalizer=None)
    groups = {
        name: ranked(name, _mean(graph, scales, measure))
        for name, group in graph.groups.items()
        if (scales := norms_of(graph, group))
    }
    if graph.groups and not groups:
        raise ModelError(
            "criterion 'bn_scale' reads the scales of BatchNorm, and no prunable group of this network has "
            "one; choose another criterion, for example mint or magnitude"
        )
    return Importance(
        groups=groups,
        criterion="bn_scale",
        estimator=None,
        seed=seed,
        comparable=True,
        settings=settings,
    )


def _mean(graph: Graph, scales: list[Member], measure: Measure) -> Floats:
    each = [importance_of(graph, m, measure) / m.index.shape[1] for m in scales]
    return np.asarray(np.mean(each, axis=0))
