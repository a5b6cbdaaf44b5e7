"""``survey``: from a traced network to what a person wants to see of it (an :class:`Overview`)."""

from __future__ import annotations

import math

from mint_deploy.graph import Graph, Group
from mint_deploy.overview import Overview, Share, SurveyedGroup, SurveyedLayer
from mint_deploy.plan import possible_widths
from mint_deploy.target import Target, load_target

__all__ = ["survey"]


def survey(
    graph: Graph, *, model: str = "", target: str | Target = "cpu", probed: bool = True
) -> Overview:
    """Return the layers and groups of ``graph``, with what each costs and joins.

    Args:
        graph: from :func:`mint_deploy.trace`.
        model: its name, to be shown.
        target: its ``round_to`` decides which widths are possible.
        probed: whether the groups were tried, and not only read off the graph.

    Raises:
        TargetError: the target's file is wrong.
        UnknownName: there is no such target.
    """
    chip = load_target(target) if isinstance(target, str) else target
    found = [*graph.groups.values(), *graph.frozen_groups.values()]
    place = {weight: i for i, weight in enumerate(graph.layers)}
    found.sort(key=lambda g: (min((place[w] for w in g.producers), default=-1), g.name))
    macs = graph.layer_macs(graph.shapes)
    cost = graph.cost
    return Overview(
        model=model,
        target=chip.name,
        round_to=chip.round_to,
        macs=cost.macs,
        params=cost.params,
        cuttable_macs_share=graph.cuttable_macs_share,
        probed=probed,
        inputs=graph.inputs,
        layers=_layers(graph, found, macs),
        groups=tuple(_group(graph, g, place, macs, chip.round_to) for g in found),
        notes=graph.notes,
    )


def _layers(graph: Graph, groups: list[Group], macs: dict[str, int]) -> tuple[SurveyedLayer, ...]:
    """Return every layer with the groups that its outputs and its inputs belong to."""
    makes: dict[str, list[tuple[int, Share]]] = {w: [] for w in graph.layers}
    reads: dict[str, list[tuple[int, Share]]] = {w: [] for w in graph.layers}
    for position, group in enumerate(groups):
        for member in group.members:
            layer = graph.layers.get(member.tensor)
            if layer is None or not member.index.size:
                continue
            first = int(member.index.min())
            if member.dim == layer.out_dim:
                makes[layer.weight].append((first, (position, int(member.index.size))))
            if member.reads:
                reads[layer.weight].append((first, (position, int(member.index.size))))
    return tuple(
        SurveyedLayer(
            name=layer.name,
            kind=layer.kind,
            width=graph.shapes[weight][layer.out_dim],
            macs=macs[weight],
            params=sum(
                math.prod(graph.shapes[n]) for n in (weight, layer.bias) if n in graph.parameters
            ),
            makes=tuple(share for _, share in sorted(makes[weight])),
            reads=tuple(share for _, share in sorted(reads[weight] or makes[weight])),
        )
        for weight, layer in graph.layers.items()
    )


def _group(
    graph: Graph, group: Group, place: dict[str, int], macs: dict[str, int], round_to: int
) -> SurveyedGroup:
    restricted = "; ".join(group.restricted[:2])
    status = "restricted" if restricted else "cuttable"
    step, widths = possible_widths(group.size, round_to)
    owned = _owned(group)
    return SurveyedGroup(
        name=group.name,
        width=group.size,
        status="frozen" if group.name in graph.frozen else status,
        reason=graph.frozen.get(group.name, restricted),
        layers=tuple(place[w] for w in group.producers),
        readers=tuple(place[w] for w in group.consumers),
        step=step,
        least=widths[-1],
        macs=round(sum(macs[n] * share for n, share in owned.items() if n in macs)),
        params=round(
            sum(math.prod(graph.shapes[n]) * s for n, s in owned.items() if n in graph.parameters)
        ),
    )


def _owned(group: Group) -> dict[str, float]:
    """Return, for each tensor that the group enters, which part of its numbers are its slices."""
    stays: dict[str, dict[int, float]] = {}
    for member in group.members:
        dims = stays.setdefault(member.tensor, {})
        dims[member.dim] = dims.get(member.dim, 1.0) - member.index.size / member.length
    return {name: 1.0 - math.prod(dims.values()) for name, dims in stays.items()}
