"""From united nodes to pruning groups.

A *unit* is a connected component of nodes; units with slices in the same dimensions of the same tensors, as
many in each, form a group. Everything is sorted arrays: a network of 100,000 nodes takes milliseconds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

import numpy as np

from mint_deploy.artifacts import Constant, Ints, Member, Positions, ScaleFold, Statistic
from mint_deploy.tracing.ledger import Layer
from mint_deploy.tracing.tracer import Tracer

__all__ = ["Assembled", "Found", "assemble", "without_groups"]


@dataclass
class Found:
    """A group as it was found; ``components`` gives the component of each unit."""

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    components: Ints
    restricted: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass
class Assembled:
    """Everything that the tracer's book says, in groups."""

    groups: list[Found] = field(default_factory=list)
    frozen_groups: list[Found] = field(default_factory=list)
    frozen: dict[str, str] = field(default_factory=dict)
    constants: list[Constant] = field(default_factory=list)
    statistics: list[Statistic] = field(default_factory=list)
    folds: list[ScaleFold] = field(default_factory=list)
    component: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    _place: Ints = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))

    def locate(self) -> None:
        """Note, for each component, its group (by position) and unit; ``-1`` where it is in none."""
        self._place = np.full((int(self.component.max(initial=-1)) + 1, 2), -1, dtype=np.int64)
        for position, group in enumerate(self.groups):
            self._place[group.components, 0] = position
            self._place[group.components, 1] = np.arange(group.size)

    def units_at(self, labels: Ints) -> dict[str, Ints]:
        """Return, per group, the units that sit at labelled positions (as often as they do)."""
        found = self._place[self.component[labels[labels >= 0]]]
        present = np.unique(found[:, 0][found[:, 0] >= 0])
        return {self.groups[g].name: found[found[:, 0] == g, 1] for g in present}

    def positions_of(self, line: Ints) -> list[Positions] | None:
        """Return where along a line of labels the units lie; ``None`` if some lie more often than others."""
        place = np.full((len(line), 2), -1, dtype=np.int64)
        place[line >= 0] = self._place[self.component[line[line >= 0]]]
        out = []
        for g in np.unique(place[:, 0][place[:, 0] >= 0]):
            at = np.flatnonzero(place[:, 0] == g)
            units, times = np.unique(place[at, 1], return_counts=True)
            if len(units) != self.groups[g].size or len(set(times.tolist())) > 1:
                return None
            index = at[np.argsort(place[at, 1], kind="stable")].reshape(len(units), -1)
            out.append(Positions(group=self.groups[g].name, index=index))
        return out


def assemble(tracer: Tracer) -> Assembled:
    """Close the tracer's book and sort its units into groups."""
    book = tracer.book
    component, reasons, touched = book.components()
    made = Assembled(component=component)
    tensors, dims, starts = _dimensions(book.shapes)
    nodes = touched[touched < book.parameter_nodes]
    which = np.searchsorted(starts, nodes, side="right") - 1
    rows = np.stack([component[nodes], which, nodes - starts[which]], axis=1)
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    for components, parts in _by_signature(rows, reasons):
        made_group = _group(tracer, components, parts, tensors, dims, rows)
        name = _unique(made_group.name, made.frozen, made.groups)
        made_group.name = name
        why = reasons.get(int(components[0]))
        if why is None and not made_group.producers:
            why = ["no layer produces it"]
        if why is None and made_group.size == 1:
            why = ["a single unit"]
        if why is None:
            made.groups.append(made_group)
        else:
            made.frozen_groups.append(made_group)
            made.frozen[name] = "; ".join(why[:2]) + (" ..." if len(why) > 2 else "")
    order = {weight: i for i, weight in enumerate(book.layers)}
    made.groups.sort(key=lambda g: order[g.producers[0]])
    made.locate()
    _count_constants(tracer, made)
    _see_statistics(tracer, made)
    for touched_nodes, line in tracer.book.assumed:
        for name in made.units_at(touched_nodes.numpy()):
            found = next(g for g in made.groups if g.name == name)
            found.assumed = tuple(dict.fromkeys((*found.assumed, line)))
    return made


def _see_statistics(tracer: Tracer, made: Assembled) -> None:
    """Say of every statistic over channels which units it is made of; freeze what cannot be said."""
    bad: dict[str, str] = {}
    for seen in tracer.book.statistics:
        if made.positions_of(seen.labels.numpy()) is None:
            why = f"'{seen.op}' over some of its units {seen.where}"
            bad.update(dict.fromkeys(made.units_at(seen.labels.numpy()), why))
    _freeze_groups(made, bad)
    for seen in tracer.book.statistics:
        of = made.positions_of(seen.labels.numpy())
        if of:
            made.statistics.append(
                Statistic(
                    op=seen.op,
                    call=seen.call,
                    axis=seen.axis,
                    length=len(seen.labels),
                    of=tuple(of),
                    where=seen.where,
                )
            )
            for positions in of:
                group = next(g for g in made.groups if g.name == positions.group)
                why = (
                    f"'{seen.op.strip('_').removeprefix('native_')}' over its channels {seen.where}"
                )
                group.restricted = tuple(dict.fromkeys((*group.restricted, why)))
    for fold in tracer.book.folds:
        of = made.positions_of(fold.labels.numpy())
        if of:
            made.folds.append(
                ScaleFold(
                    tensor=fold.tensor,
                    rows=tuple(fold.rows.tolist()),
                    width=len(fold.labels),
                    positions=tuple(of),
                )
            )


def _freeze_groups(made: Assembled, bad: dict[str, str]) -> None:
    for group in [g for g in made.groups if g.name in bad]:
        made.groups.remove(group)
        made.frozen_groups.append(group)
        made.frozen[group.name] = bad[group.name]
    made.constants = list(without_groups(made.constants, bad))
    made.locate()


def _dimensions(shapes: dict[str, tuple[int, ...]]) -> tuple[list[str], list[int], Ints]:
    tensors, dims, starts, total = [], [], [], 0
    for name, shape in shapes.items():
        for dim, size in enumerate(shape):
            tensors.append(name)
            dims.append(dim)
            starts.append(total)
            total += size
    return tensors, dims, np.asarray(starts, dtype=np.int64)


def _by_signature(rows: Ints, reasons: dict[int, list[str]]) -> Iterable[tuple[Ints, Ints]]:
    """Yield ``(components, tensor dimensions)`` of each group; ``rows`` is sorted."""
    if not len(rows):
        return
    keys, counts = np.unique(rows[:, :2], axis=0, return_counts=True)
    random = np.random.default_rng(0)
    weights = random.integers(1, 2**63, size=(2, int(keys[:, 1].max()) + 1), dtype=np.uint64)
    mixed = weights[0][keys[:, 1]] ^ (weights[1][keys[:, 1]] * counts.astype(np.uint64))
    components, first = np.unique(keys[:, 0], return_index=True)
    signature = np.add.reduceat(mixed, first)
    # Units that are frozen for the same reasons stay together, apart from those that are free.
    known: dict[tuple[str, ...], int] = {(): 0}
    why = [known.setdefault(tuple(reasons.get(int(c), ())), len(known)) for c in components]
    joined = np.stack([signature, np.array(why, dtype=np.uint64)], axis=1)
    _, group = np.unique(joined, axis=0, return_inverse=True)
    ends = np.append(first[1:], len(keys))
    for g in range(int(group.max()) + 1):
        members = np.flatnonzero(group.reshape(-1) == g)
        yield components[members], keys[first[members[0]] : ends[members[0]], 1]


def _group(
    tracer: Tracer, components: Ints, parts: Ints, tensors: list[str], dims: list[int], rows: Ints
) -> Found:
    layers = tracer.book.layers
    low = np.searchsorted(rows[:, 0], components, side="left")
    high = np.searchsorted(rows[:, 0], components, side="right")
    table = np.stack([rows[a:b, 1:] for a, b in zip(low, high, strict=True)])
    outputs = {(w, layer.out_dim): w for w, layer in layers.items()}
    inputs = {(w, layer.in_dim): w for w, layer in layers.items() if layer.groups == 1}
    grouped = {w: layer for w, layer in layers.items() if layer.groups > 1}
    inputs |= {(w, layer.in_dim): w for w, layer in grouped.items() if _mixes(tracer, layer)}
    named = {int(p): (tensors[p], dims[p]) for p in parts}
    producers = [outputs[n] for n in named.values() if n in outputs]
    producers.sort(key=list(layers).index)
    consumers = [inputs[n] for n in named.values() if n in inputs]
    if producers:
        lead = next(p for p, n in named.items() if n[0] == producers[0] and n in outputs)
        name = layers[producers[0]].name
    else:
        lead = int(parts[0])
        name = f"{named[lead][0]}[{named[lead][1]}]"
    columns = {int(p): table[0, :, 0] == p for p in parts}
    order = np.argsort(table[:, columns[lead], 1][:, 0], kind="stable")
    table = table[order]
    members = tuple(
        Member(
            tensor=tensor,
            dim=dim,
            length=tracer.book.shapes[tensor][dim],
            index=np.ascontiguousarray(table[:, columns[p], 1]),
            reads=(tensor, dim) in inputs,
        )
        for p, (tensor, dim) in named.items()
    )
    return Found(
        name=name,
        size=len(components),
        members=members,
        producers=tuple(producers),
        consumers=tuple(sorted(consumers, key=list(layers).index)),
        components=components[order],
    )


def _mixes(tracer: Tracer, layer: Layer) -> bool:
    """Whether a grouped convolution mixes channels (depthwise ones do not)."""
    inputs = tracer.book.shapes[layer.weight][layer.in_dim]
    return (inputs if layer.in_dim else inputs // layer.groups) > 1


def _unique(name: str, frozen: dict[str, str], groups: list[Found]) -> str:
    taken = set(frozen) | {g.name for g in groups}
    number, made = 1, name
    while made in taken:
        number += 1
        made = f"{name}#{number}"
    return made


def _count_constants(tracer: Tracer, made: Assembled) -> None:
    """Attach the attributes that count units; a group that they contradict is frozen."""
    by_attribute: dict[str, list[Constant]] = {}
    where: dict[str, str] = {}
    bad: dict[str, str] = {}
    for counted in tracer.book.constants:
        placed = made.units_at(counted.labels.numpy())
        factors = set()
        of = []
        for name, units in placed.items():
            distinct, times = np.unique(units, return_counts=True)
            factors.update(times.tolist())
            of.append((name, tuple(distinct.tolist())))
        where[counted.attribute] = counted.where
        if len(factors) > 1:
            why = f"'{counted.attribute}' counts its units unevenly {counted.where}"
            bad.update(dict.fromkeys(placed, why))
            continue
        constant = Constant(
            attribute=counted.attribute,
            value=counted.value,
            of=tuple(of),
            factor=factors.pop() if factors else 1,
        )
        known = by_attribute.setdefault(counted.attribute, [])
        if constant not in known:
            known.append(constant)
    for attribute, uses in by_attribute.items():
        if len(uses) > 1:
            why = f"'{attribute}' counts different channels in different places {where[attribute]}"
            bad.update({name: why for use in uses for name, _ in use.of})
        elif uses[0].of:
            made.constants.append(uses[0])
    _freeze_groups(made, bad)


def without_groups(constants: Iterable[Constant], gone: Container[str]) -> tuple[Constant, ...]:
    """Return the constants less what they count in groups that stay whole."""
    kept = []
    for constant in constants:
        of = tuple((name, units) for name, units in constant.of if name not in gone)
        if of:
            kept.append(dataclasses.replace(constant, of=of))
    return tuple(kept)
