"""Which BatchNorm follows which layer, and which precedes one, from names and shared channels alone.

The graph knows that a layer's output goes into a BatchNorm and which channels both share, not which of several
it is. Modules are mostly registered in the order in which they run, so: of the BatchNorms with the same
channels as a layer, the first one registered after it that no layer before it took; if there is none, the first
that is left. What no layer took stands before layers (pre-activation): as many as there are readers of those
channels are theirs in turn, and otherwise it is the last one registered before the reader. (The first BatchNorm
of a pre-activation stream reads what the stem made, and yet stands on the way to its block alone: it is told by
there being one for each reader and fewer layers that write into one.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mint_deploy.artifacts import Floats, Ints
from mint_deploy.graph import Graph

__all__ = ["Norm", "norms_after", "norms_before", "numbers", "sides_of"]

#: what PyTorch adds to the variance
EPSILON = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Norm:
    """One BatchNorm: ``scale [C]`` is ``|gamma|`` (or 1), ``deviation [C]`` the root of its variance.

    ``place`` counts in the order of registration; ``channels`` are its indices in every group it crosses.
    """

    name: str
    place: int
    scale: Floats
    deviation: Floats
    channels: dict[str, Ints]


def sides_of(graph: Graph) -> dict[tuple[str, int], dict[str, Ints]]:
    """Return for each tensor and dimension the groups there (prunable or frozen) and their indices."""
    found: dict[tuple[str, int], dict[str, Ints]] = {}
    for name, group in (*graph.groups.items(), *graph.frozen_groups.items()):
        for member in group.members:
            found.setdefault((member.tensor, member.dim), {})[name] = member.index
    return found


def norms_after(graph: Graph) -> dict[str, Norm]:
    """Return the BatchNorm behind each layer that one follows (key: the layer's weight)."""
    sides, place = sides_of(graph), {name: i for i, name in enumerate(graph.tensors)}
    every = _norms(graph, sides)
    left = list(every)
    writers = {w: sides.get((w, x.out_dim), {}) for w, x in graph.layers.items() if x.normalised}
    readers = [sides.get((w, x.in_dim), {}) for w, x in graph.layers.items()]
    found: dict[str, Norm] = {}
    for weight in sorted(writers, key=lambda w: place.get(w, 0)):
        side = writers[weight]
        fits = [n for n in left if _same(n.channels, side)]
        known = sum(_same(n.channels, side) for n in every)
        written, read = (sum(_same(s, side) for s in x) for x in (writers.values(), readers))
        if (
            not fits or written < known == read
        ):  # more than are written: each stands before a reader
            continue
        later = [n for n in fits if n.place > place.get(weight, 0)]
        found[weight] = min(later or fits, key=lambda n: n.place)
        left.remove(found[weight])
    return found


def norms_before(graph: Graph, after: Mapping[str, Norm]) -> dict[str, Norm]:
    """Return the BatchNorm before each layer that reads one which follows no layer."""
    sides, place = sides_of(graph), {name: i for i, name in enumerate(graph.tensors)}
    taken = {norm.name for norm in after.values()}
    left = [n for n in _norms(graph, sides) if n.name not in taken]
    found = {}
    for weight, layer in graph.layers.items():
        side = sides.get((weight, layer.in_dim), {})
        fits = sorted((n for n in left if _same(n.channels, side)), key=lambda n: n.place)
        if not fits:
            continue
        readers = [w for w, r in graph.layers.items() if _same(side, sides.get((w, r.in_dim), {}))]
        if len(readers) == len(fits):  # one for each, in their orders
            found[weight] = fits[readers.index(weight)]
        elif earlier := [n for n in fits if n.place < place.get(weight, 0)]:
            found[weight] = earlier[-1]
    return found


def _norms(graph: Graph, sides: Mapping[tuple[str, int], dict[str, Ints]]) -> list[Norm]:
    order = {name: i for i, name in enumerate(graph.tensors)}
    found = []
    for (variance, _), channels in sides.items():
        stem = variance.removesuffix("running_var")
        if stem == variance:
            continue
        gamma = graph.tensors.get(f"{stem}weight")
        deviation = np.sqrt(numbers(graph.tensors[variance]) + EPSILON)
        found.append(
            Norm(
                name=stem,
                place=order[variance if gamma is None else f"{stem}weight"],
                scale=np.ones_like(deviation) if gamma is None else np.abs(numbers(gamma)),
                deviation=deviation,
                channels=channels,
            )
        )
    return found


def _same(one: Mapping[str, Ints], other: Mapping[str, Ints]) -> bool:
    """Whether two sides have the same groups at the same places."""
    return one.keys() == other.keys() and all(np.array_equal(one[k], other[k]) for k in one)


def numbers(tensor: Tensor) -> Floats:
    """Return a tensor's values in float64."""
    return np.asarray(tensor.detach().cpu().double().numpy())
