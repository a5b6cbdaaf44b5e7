r"""The channels whose removal changes the next layer's sampled outputs least (*ThiNet*, Luo et al. 2017).

Output ``o`` of a consumer is a sum ``sum_c x_oc`` of what each of its input channels contributes, and a set
``T`` of channels is sought whose part is small (their equation 6, over sampled positions and here over all
outputs):

    J(T) = sum_o E[(sum_{c in T} x_oc)^2],        x_oc = W_oc t_c

with ``t_c [taps]`` the taps of channel ``c`` and ``W_oc`` the weights that read them. It needs the *uncentred*
second moments ``M = covariance + mean mean^T`` of the taps alone:

    J(T) = sum_{c, c' in T} G_cc',     G_cc' = sum_o W_oc M_cc' W_oc'^T         [units, units]

that is, blocks of ``(W^T W) * M`` summed. As in the paper ``T`` grows greedily by the channel with the least
new ``J``, ``v_c = G_cc + 2 sum_{t in T} G_ct``; a step costs one row of ``G``. A unit's loss is how much ``J``
grows when it leaves; growth below zero (it cancels what has left already) counts as zero there, and in full in
the order.

The paper has one consumer; where several read a unit (a residual stream), their ``G`` add. The groups of a
grouped convolution are consumers of their own. The paper's next step, least squares on the survivors, is our
``repair``. Layers are cut by the same share: losses are not comparable.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, GroupImportance, Importance, Ints, Moments
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph, Group
from mint_deploy.readers import columns

__all__ = ["NEEDS", "forward_selection", "gram", "score"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments",)


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank the units of every group that some sampled consumer reads; others are left out (and stay whole).

    Raises:
        DataError: no moments, or moments of another model.
    """
    if moments is None:
        raise DataError("criterion 'thinet' needs moments; call sample(model, graph, data) first")
    groups = {}
    for name, group in graph.groups.items():
        G = gram(group, moments)
        if G is not None:
            loss, order = forward_selection(G)
            groups[name] = GroupImportance(loss=np.maximum(loss, 0.0), order=order)
    return Importance(
        groups=groups, criterion="thinet", estimator=None, seed=seed, settings=settings
    )


def gram(group: Group, moments: Moments) -> Floats | None:
    """Return ``G [units, units]``, summed over the sampled consumers of a group; ``None`` without any.

    Raises:
        DataError: the moments belong to another model.
    """
    total: Floats | None = None
    for member in group.members:
        known = moments.consumers.get(member.tensor)
        if known is None or not member.reads:
            continue
        width = known.channels // known.groups
        if known.channels * known.taps != len(known.mean) or member.length != width:
            raise DataError(
                f"the moments of '{member.tensor}' are of {known.channels} channels in {known.groups} groups, "
                f"and this model reads {member.length} in each; they belong to another model: sample anew"
            )
        W = np.asarray(known.weight, dtype=np.float64).reshape(known.groups, -1, width * known.taps)
        at = columns(known, member.index).reshape(-1)
        b = len(at) // group.size
        for g in range(known.groups):
            place = g * width * known.taps + at
            M = known.covariance[np.ix_(place, place)] + np.outer(
                known.mean[place], known.mean[place]
            )
            read = W[g][:, at]
            blocks = ((read.T @ read) * M).reshape(group.size, b, group.size, b)
            total = blocks.sum((1, 3)) if total is None else total + blocks.sum((1, 3))
    return total


def forward_selection(G: Floats) -> tuple[Floats, Ints]:
    """Let all units leave one by one, always the one that makes ``sum G`` over those gone grow least.

    Args:
        G: Gram matrix of the units' contributions, symmetric ``[units, units]``.

    Returns:
        ``loss [units]``, the growth as each leaves (the sum of all is ``G.sum()``), and ``order [units]``.
    """
    value = np.diag(G).copy()
    loss, order = np.zeros(len(G)), np.empty(len(G), dtype=np.int64)
    gone = np.zeros(len(G), dtype=bool)
    for step in range(len(G)):
        out = int(np.argmin(np.where(gone, np.inf, value)))
        loss[out], order[step], gone[out] = value[out], out, True
        value += 2.0 * G[out]
    return loss, order
