"""Our groups as torch-pruning's importance classes want them (torch-pruning >= 1.6, loaded when called).

An importance of ``torch_pruning.pruner.importance`` takes a ``Group``: items of a dependency (a module, and the
pruning function of one of its sides) with ``idxs`` (slices of that side) and ``root_idxs`` (whose unit each
slice is). It reads nothing of a module but its type, ``weight`` and ``weight.grad``. So a member of one of our
groups becomes a *shell*: the weight with the member's dimension in front, ``[length, rest]``, as an
``nn.Linear`` whose outputs are those slices (for a Conv the same sums over the same numbers, transposed or
grouped or not), or a BatchNorm for its scale. Shells are copies in float64 on the CPU: the user's model is only
read.

What has no side that torch-pruning knows is left out: norms without running statistics, free parameters
(tokens, position and attention tables), embeddings, and the directions of a weight norm, which are not the
weights in use. A recurrent layer's matrices, and those of attention, are linear maps like others.

A layer's slices are all given, also those that belong to other groups, because FPGM and LAMP compare the
filters of a whole layer. Two traps of torch-pruning 1.6.1, both met so: some classes sort ``idxs`` in place but
not ``root_idxs`` (here they ascend), and a sum over several slices of each unit has as many entries as there
are slices (what follows the units is cut off). It adds and averages raw scores of different layers; how several
layers of a group count is each paper's own affair, so every member is a torch-pruning group by itself, and our
criteria say how they join.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from mint_deploy.artifacts import Floats, Member
from mint_deploy.graph import Graph, Group

__all__ = ["Measure", "importance_of", "norms_of", "producers_of"]

#: weights of more numbers than this (a layer of 256 MiB in float64) are judged in float32
LARGE = 2**25

#: an importance class of torch-pruning, made: ``importance(group) -> [units]``
Measure = Callable[[Any], "Tensor | None"]
#: ``prepare(weight [length, rest], member) -> (what the shell holds, its gradient)``
Prepare = Callable[[Tensor, Member], tuple[Tensor, "Tensor | None"]]


def producers_of(graph: Graph, group: Group) -> list[Member]:
    """Return the members that are filters: the output side of a Conv or Linear whose weight is plain."""
    return [
        m
        for m in group.members
        if m.tensor in group.producers
        and m.dim == graph.layers[m.tensor].out_dim
        and graph.layers[m.tensor].kind != "embedding"
        and not _is_direction(graph, m.tensor)
    ]


def norms_of(graph: Graph, group: Group) -> list[Member]:
    """Return the members that are the scales of a BatchNorm (it has a running variance)."""
    return [
        m
        for m in group.members
        if m.tensor.endswith("weight")
        and m.tensor.removesuffix("weight") + "running_var" in graph.tensors
        and m.tensor not in graph.layers
    ]


def importance_of(
    graph: Graph,
    member: Member,
    measure: Measure,
    prepare: Prepare = lambda weight, _: (weight, None),
) -> Floats:
    """Return ``measure`` of the units, float64 ``[units]``, by the slices of one member.

    Args:
        graph: whose tensors the member names.
        member: from :func:`producers_of` or :func:`norms_of`.
        measure: an importance of torch-pruning that adds up a unit's slices (``group_reduction="sum"``).
        prepare: what the shell holds ``[length, any]`` and its gradient; the weight itself by default.
    """
    from torch_pruning.dependency import Dependency, Node
    from torch_pruning.dependency import Group as TheirGroup
    from torch_pruning.pruner import function

    weight = graph.tensors[member.tensor].detach().cpu()
    weight = weight.double() if weight.numel() <= LARGE else weight.float()
    held, gradient = prepare(weight.movedim(member.dim, 0).reshape(member.length, -1), member)
    if held.shape[1] == 1 and weight.ndim == 1:
        shell: nn.Module = nn.BatchNorm1d(1, device="meta")
        prune, held = function.prune_batchnorm_out_channels, held[:, 0]
    else:
        shell, prune = nn.Linear(1, 1, device="meta"), function.prune_linear_out_channels
    shell.weight = nn.Parameter(held, requires_grad=False)
    shell.weight.grad = gradient
    units = len(member.index)
    owner = np.full(member.length, -1)
    owner[member.index] = np.arange(units)[:, None]
    others = np.flatnonzero(owner < 0)  # of other groups: each counts as a unit, after ours
    owner[others] = units + np.arange(len(others))
    made = TheirGroup()
    node = Node(shell, None, member.tensor)
    made.add_dep(Dependency(prune, prune, node, node), list(range(member.length)))
    made[0].root_idxs = owner.tolist()
    found = measure(made)
    return np.zeros(units) if found is None else found.double().numpy()[:units].copy()


def _is_direction(graph: Graph, tensor: str) -> bool:
    """Whether a tensor is the direction of a weight norm (either way that PyTorch writes one)."""
    stem = tensor.removesuffix("_v")
    return ".parametrizations." in tensor or (stem != tensor and f"{stem}_g" in graph.tensors)
