"""First-order change of the loss when a unit leaves (*Taylor*, Molchanov et al. 2019), by torch-pruning.

Setting the parameters ``S`` of a response to zero changes the loss by ``-sum_S g w`` to first order, ``g`` its
gradient, and the importance of the response is that squared, ``(sum_S g w)^2`` (their equation 8, for a set).
As in the paper ``S`` is

    where BatchNorm follows   its scale and shift, ``(g_gamma gamma + g_beta beta)^2``: their "FO-BN", best there
    elsewhere                 the weights of the filter: their "FO"

and a unit of several responses (a residual stream; several channels) has their sum. Other forms were tried on
ResNet-56 and choose worse units, in this order: the filters everywhere, ``sum |g w|`` over filters (the default
of torch-pruning), ``(sum g w)^2`` over the readers, single weights (their equation 9).

``g`` is the mean over labelled images in evaluation mode (``moments.gradients``), where the paper averages the
squares of batches seen while it trains on. All changes are of one loss: comparable over the whole network, as
in the paper. Frozen parameters have no gradient, and count as unchanged by a cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mint_deploy.artifacts import Floats, Importance, Member, Moments
from mint_deploy.criteria._ranking import ranked
from mint_deploy.criteria._torch_pruning import importance_of, norms_of, producers_of
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph, Group

__all__ = ["NEEDS", "score"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments", "sensitivity", "gradients")


def score(
    graph: Graph, moments: Moments | None = None, *, seed: int = 0, **settings: Any
) -> Importance:
    """Rank units by how much the labelled loss changes, to first order and squared, when they leave.

    Groups of which no gradient is known (embeddings alone, frozen layers) are left out and stay whole.

    Raises:
        DataError: no gradients, gradients of another model, or gradients that are not numbers.
    """
    if moments is None or not moments.gradients:
        raise DataError(
            "criterion 'taylor' needs the gradient of the loss on labelled images; call sample(model, graph, "
            "data, evidence=('moments', 'sensitivity', 'gradients')) with data that has labels"
        )
    groups = {}
    for name, group in graph.groups.items():
        places = [m for m in _places(graph, group) if m.tensor in moments.gradients]
        if places:
            changes = [_squared_change(graph, m, moments) for m in places]
            groups[name] = ranked(name, np.asarray(np.sum(changes, axis=0)))
    if graph.groups and not groups:
        raise DataError(
            f"the moments hold gradients of {', '.join(list(moments.gradients)[:3])}, ..., but of no layer that "
            "can be cut here; they belong to another model, or its layers are frozen: sample anew"
        )
    return Importance(
        groups=groups,
        criterion="taylor",
        estimator=None,
        seed=seed,
        comparable=True,
        settings=settings,
    )


def _places(graph: Graph, group: Group) -> list[Member]:
    """Return where the unit's responses are: scales of BatchNorm, and filters that none follows."""
    norms = norms_of(graph, group)
    filters = producers_of(graph, group)
    return norms + [m for m in filters if not (norms and graph.layers[m.tensor].normalised)]


def _squared_change(graph: Graph, member: Member, moments: Moments) -> Floats:
    from torch_pruning.pruner.importance import GroupTaylorImportance

    measure = GroupTaylorImportance(group_reduction="sum", normalizer=None, multivariable=True)

    def with_gradient(weight: Tensor, member: Member) -> tuple[Tensor, Tensor]:
        slope = _gradient(graph, member.tensor, moments).movedim(member.dim, 0)
        slope = slope.reshape(member.length, -1).to(weight.dtype)
        bias = member.tensor.removesuffix("weight") + "bias"
        if (
            member.tensor not in graph.layers and bias in moments.gradients
        ):  # a norm: its shift leaves too
            shift = graph.tensors[bias].detach().cpu().to(weight.dtype)
            weight = torch.stack([weight[:, 0], shift], 1)
            slope = torch.stack([slope[:, 0], _gradient(graph, bias, moments).to(weight.dtype)], 1)
        return weight, slope

    return np.asarray(importance_of(graph, member, measure, with_gradient) ** 2)


def _gradient(graph: Graph, name: str, moments: Moments) -> Tensor:
    found, shape = moments.gradients[name], tuple(graph.tensors[name].shape)
    if found.shape != shape:
        raise DataError(
            f"the gradient of '{name}' is {found.shape}, and the parameter {shape}; the moments belong to "
            "another model: sample anew"
        )
    if not np.isfinite(found).all():
        raise DataError(
            f"the gradient of '{name}' holds NaN or infinite values; check the images, the labels and the "
            "weights, and sample anew"
        )
    return torch.from_numpy(found)
