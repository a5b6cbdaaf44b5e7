"""The report's section on the scores: the losses of each group, and what consumers take from their inputs.

The plan, where there is one, says which units leave: they are marked in both. Matrices of dependency (where the
estimator made them) are kept as levels of colour, see :func:`mint_deploy.report.heatmap.cells`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, PruningPlan
from mint_deploy.report import heatmap
from mint_deploy.report.folder import UNREADABLE, Folder
from mint_deploy.report.ranking import ranking
from mint_deploy.scores_file import read_scores

__all__ = ["scores"]

#: so many matrices are kept in full; of more, each in a quarter of the cells
FULL = 8


def scores(folder: Folder) -> dict[str, Any] | None:
    """Return the section, or None before anything was scored.

    Raises:
        DataError: scores.npz is damaged.
    """
    if not folder.has("scores.npz"):
        return None
    found = read_scores(folder.path / "scores.npz")
    try:
        plan = folder.plan()
    except UNREADABLE:  # told in the sections that need the plan
        plan = None
    sizes = {name: len(group.loss) for name, group in found.groups.items()}
    groups = plan.groups if plan else ()
    keep = {g.name: g.keep for g in groups if sizes.get(g.name) == g.size}
    most = heatmap.MOST if len(found.dependency) <= FULL else heatmap.MOST // 2
    gone = _Gone(plan)
    maps = [
        {
            "consumer": weight.removesuffix(".weight"),
            **heatmap.cells(
                matrix,
                most=most,
                rows_gone=gone.of(weight, gone.out_dim(weight), matrix.shape[0]),
                columns_gone=gone.of(weight, 1 - gone.out_dim(weight), matrix.shape[1]),
            ),
        }
        for weight, matrix in found.dependency.items()
        if matrix.size
    ]
    return {**ranking(found, keep), "planned": bool(keep), "maps": maps}


class _Gone:
    """Which channels of each weight the plan takes away."""

    def __init__(self, plan: PruningPlan | None) -> None:
        self._slices = plan.slices() if plan else {}
        members = [m for g in plan.groups for m in g.members] if plan else []
        self._lengths = {(m.tensor, m.dim): m.length for m in members}
        self._out = {layer.weight: layer.out_dim for layer in plan.layers} if plan else {}

    def out_dim(self, weight: str) -> int:
        return self._out.get(weight, 0)

    def of(self, weight: str, dim: int, groups: int) -> Floats | None:
        """Return the share of each of ``groups`` runs of channels that leaves; None where none can.

        Channels are shared out in runs of nearly equal length, as ``numpy.array_split`` does it.
        """
        length = self._lengths.get((weight, dim), 0)
        if length < groups:
            return None
        leaves = np.zeros(length)
        leaves[self._slices.get(weight, {}).get(dim, [])] = 1.0
        return np.array([part.mean() for part in np.array_split(leaves, groups)])
