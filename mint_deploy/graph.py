"""The dependency graph of a network: which slices leave together, which stay, and why.

``find_groups`` runs a deep copy of the model once on labels (see :mod:`mint_deploy.tracing`) and turns what it
finds into *pruning groups*. ``print(graph)`` explains them.
"""

from __future__ import annotations

import dataclasses
import os
import traceback
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

from mint_deploy.artifacts import (
    Constant,
    Cost,
    Ints,
    Member,
    ScaleFold,
    Statistic,
    TensorSpec,
)
from mint_deploy.attention import open_attention
from mint_deploy.errors import MintDeployError, TraceError
from mint_deploy.inputs import Call, call, not_nan, outputs_of, specs_of
from mint_deploy.tracing.assemble import Found, assemble, without_groups
from mint_deploy.tracing.heads import HEADS, turned
from mint_deploy.tracing.ledger import Layer
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.tracing.plainly import plainly
from mint_deploy.tracing.tracer import Tracer, mark_attributes
from mint_deploy.user_model import copied

__all__ = ["Graph", "Group", "Layer", "LiveBytes", "find_groups"]

_HERE = Path(__file__).parent
_NOT_THE_USERS = (
    *(f"{p}{os.sep}" for p in (Path(torch.__file__).parent, _HERE / "tracing")),
    str(_HERE / "inputs.py"),
    str(Path(__file__)),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A pruning group: ``size`` units that own the same kind of slices in the same tensors.

    ``producers`` and ``consumers`` are weights' names: whose outputs the units are, and who reads them.
    ``restricted``: where the network computes over the group's channels (LayerNorm, say), so that a cut
    restricts that to the channels that stay. ``assumed``: lines of the user's code that are believed to adapt.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    restricted: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveBytes:
    """One activation of the traced forward pass; ``units[name]`` are the units of a group it holds."""

    nbytes: int
    birth: int
    last_use: int
    channels: int = 0
    units: Mapping[str, Ints] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """What can be cut, what is frozen and why, and what everything costs.

    ``tensors`` are the traced model's own parameters and buffers by name (not copies). ``attention``:
    ``heads`` or ``width``, whichever leaves; empty where no product of activations was seen.
    """

    groups: Mapping[str, Group]
    frozen: Mapping[str, str]
    frozen_groups: Mapping[str, Group]
    layers: Mapping[str, Layer]
    constants: tuple[Constant, ...]
    shapes: Mapping[str, tuple[int, ...]]
    parameters: frozenset[str]
    element_bytes: Mapping[str, int]
    live: tuple[LiveBytes, ...]
    tensors: Mapping[str, torch.Tensor]
    inputs: tuple[TensorSpec, ...]
    batch: int
    notes: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    folds: tuple[ScaleFold, ...] = ()
    attention: str = ""

    @property
    def units(self) -> int:
        """Number of units that can leave."""
        return sum(g.size for g in self.groups.values())

    @property
    def cost(self) -> Cost:
        """What the whole network costs for one sample."""
        return self.cost_of({})

    def sizes(self, keep: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Return the shape of every tensor once only ``keep`` stays (groups not named stay whole)."""
        sizes = {name: list(shape) for name, shape in self.shapes.items()}
        for name, kept in keep.items():
            gone = self.groups[name].size - len(kept)
            for member in self.groups[name].members:
                sizes[member.tensor][member.dim] -= gone * member.index.shape[1]
        return sizes

    def layer_macs(self, sizes: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """Return multiply-adds per layer (key: its weight) for one sample."""
        return {
            weight: layer.positions * int(np.prod(sizes[weight], dtype=np.int64)) // self.batch
            for weight, layer in self.layers.items()
        }

    def cost_of(self, keep: Mapping[str, Sequence[int]]) -> Cost:
        """Return the cost for one sample once only ``keep`` stays."""
        sizes = self.sizes(keep)
        counts = {name: int(np.prod(s, dtype=np.int64)) for name, s in sizes.items()}
        return Cost(
            macs=sum(self.layer_macs(sizes).values()),
            params=sum(n for name, n in counts.items() if name in self.parameters),
            weight_bytes=sum(n * self.element_bytes[name] for name, n in counts.items()),
            peak_activation_bytes=self._peak(keep),
        )

    def _peak(self, keep: Mapping[str, Sequence[int]]) -> int:
        if not self.live:
            return 0
        kept = {}
        for name, units in keep.items():
            kept[name] = np.zeros(self.groups[name].size, dtype=bool)
            kept[name][list(units)] = True
        change = np.zeros(max(a.last_use for a in self.live) + 2)
        for a in self.live:
            gone = sum(int((~kept[name][u]).sum()) for name, u in a.units.items() if name in kept)
            share = 1 - gone / a.channels if a.channels else 1.0
            change[a.birth] += a.nbytes * share
            change[a.last_use + 1] -= a.nbytes * share
        return round(float(change.cumsum().max()) / self.batch)

    def without(self, groups: Mapping[str, str]) -> Graph:
        """Return the graph with ``groups`` frozen for the given reasons."""
        return dataclasses.replace(
            self,
            groups={n: g for n, g in self.groups.items() if n not in groups},
            frozen={**self.frozen, **groups},
            frozen_groups={
                **self.frozen_groups,
                **{n: g for n, g in self.groups.items() if n in groups},
            },
            constants=without_groups(self.constants, groups),
            statistics=_less(self.statistics, groups),
            folds=tuple(f for f in self.folds if not {p.group for p in f.positions} & set(groups)),
        )

    def macs_share(self, group: Group) -> float:
        """Return the share of all multiply-adds in layers that a group's width enters."""
        macs = self.layer_macs(self.shapes)
        touched = {m.tensor for m in group.members} & set(macs)
        return sum(macs[w] for w in touched) / max(1, sum(macs.values()))

    @property
    def cuttable_macs_share(self) -> float:
        """Return the share of multiply-adds in layers that at least one prunable group enters."""
        macs = self.layer_macs(self.shapes)
        touched = {m.tensor for g in self.groups.values() for m in g.members}
        return sum(n for w, n in macs.items() if w in touched) / max(1, sum(macs.values()))

    def __str__(self) -> str:
        cost = self.cost
        lines = [
            (
                f"{len(self.groups)} pruning groups, {self.units} units; {cost.macs / 1e6:.1f} M MACs, "
                f"{cost.params / 1e6:.3f} M parameters; layers that can be cut hold "
                f"{self.cuttable_macs_share:.0%} of the MACs"
            )
        ]
        for group in self.groups.values():
            couple = ", ".join(p.removesuffix(".weight") for p in group.producers[1:4])
            couple = (
                f"  with {couple}{' ...' if len(group.producers) > 4 else ''}" if couple else ""
            )
            lines.append(f"  {group.name:<32} {group.size:>5} units{couple}")
        lines += [
            f"  {name:<32} restricted: {'; '.join(group.restricted[:2])}"
            for name, group in self.groups.items()
            if group.restricted
        ]
        lines += [f"  {name:<32} frozen: {reason}" for name, reason in self.frozen.items()]
        return "\n".join(lines)


def _less(statistics: Iterable[Statistic], gone: Container[str]) -> tuple[Statistic, ...]:
    """Return the statistics without the groups that stay whole."""
    kept = []
    for statistic in statistics:
        of = tuple(p for p in statistic.of if p.group not in gone)
        if of:
            kept.append(dataclasses.replace(statistic, of=of))
    return tuple(kept)


def find_groups(model: nn.Module, inputs: Call, *, attention: str = HEADS) -> Graph:
    """Find the pruning groups of ``model`` by running a deep copy of it once on labels.

    ``attention``: whole ``heads`` leave, or the ``width`` of every head (where the code allows either).
    :func:`mint_deploy.trace.trace` calls this and then probes what was found.

    Raises:
        TraceError: the model cannot be copied or run on these inputs, or returns no tensor.
    """
    inputs = tree_map_only(torch.Tensor, lambda x: x.to("cpu"), inputs)
    try:
        graph = _found(model, inputs, attention, marked=True)
    except MintDeployError:
        raise
    except Exception:  # noqa: BLE001  # whatever the user's code raises, on marked numbers or at all
        _run_plain(_copied(model), inputs)
        # Code that inspects the exact type of its whole numbers: trace without their origins.
        try:
            graph = _found(model, inputs, attention, marked=False)
        except MintDeployError:
            raise
        except Exception as error:
            raise TraceError(
                f"the model runs, but raises {type(error).__name__} while it is watched: {error} "
                f"({_line_of(error)})"
            ) from error
    return dataclasses.replace(graph, tensors=tensors_of(model))


def _found(model: nn.Module, inputs: Call, attention: str, *, marked: bool) -> Graph:
    """Trace; where attention can be cut in two ways, trace again the way that is wanted."""
    tracer = _traced(made := _copied(model), inputs, marked=marked, turns={}, wanted=attention)
    turns = turned(tracer.views, attention)
    if turns:
        tracer = _traced(
            made := _copied(model), inputs, marked=marked, turns=turns, wanted=attention
        )
    return _as_graph(made, inputs, tracer, attention)


def _copied(model: nn.Module) -> nn.Module:
    return copied(model).to("cpu").eval()


def _run_plain(model: nn.Module, inputs: Call) -> None:
    """Run without the tracer, so that the user's own errors appear as such."""
    try:
        with torch.random.fork_rng(devices=[]):
            call(model, inputs)
    except MintDeployError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{list(s.shape)} {s.dtype}" for s in specs_of(inputs))
        raise TraceError(
            f"the model raises {type(error).__name__} on inputs {shapes}: {error} "
            f"({_line_of(error)}); give example inputs that it accepts"
        ) from error


def _line_of(error: Exception) -> str:
    """Return the last line of the user's code that was running."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)] or frames
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}"


def _traced(
    model: nn.Module, inputs: Call, *, marked: bool, turns: Mapping[int, int], wanted: str
) -> Tracer:
    for module in model.modules():
        open_attention(module)
    if marked:
        mark_attributes(model)
    with torch.random.fork_rng(devices=[]), plainly():
        before = torch.get_rng_state()
        tracer = Tracer(model, marked=marked, turns=turns, wanted=wanted)
        args, kwargs = tree_map_only(torch.Tensor, torch.clone, inputs)
        not_nan(outputs_of(tracer.run(model, args, kwargs)))
        if not torch.equal(before, torch.get_rng_state()):
            tracer.book.notes.append(
                "random numbers are drawn in evaluation mode (dropout without training=self.training?): "
                "groups that they pass cannot be checked, and stay"
            )
    return tracer


def _as_graph(model: nn.Module, inputs: Call, tracer: Tracer, attention: str) -> Graph:
    sizes = [x.shape for x in tree_flatten(inputs)[0] if isinstance(x, torch.Tensor)]
    batch = sizes[0][0] if sizes[0] else 1
    found = assemble(tracer)
    return Graph(
        groups={g.name: _as_group(g) for g in found.groups},
        frozen=found.frozen,
        frozen_groups={g.name: _as_group(g) for g in found.frozen_groups},
        layers=tracer.book.layers,
        constants=tuple(found.constants),
        shapes=tracer.book.shapes,
        parameters=frozenset(n for n, _ in model.named_parameters()),
        element_bytes={n: t.element_size() for n, t in tracer.tensors.items()},
        live=tuple(
            LiveBytes(
                nbytes=a.nbytes,
                birth=a.birth,
                last_use=a.last_use,
                channels=0 if a.channels is None else len(a.channels),
                units={} if a.channels is None else found.units_at(a.channels.long().numpy()),
            )
            for a in tracer.activations.values()
        ),
        tensors={},
        inputs=specs_of(inputs),
        batch=max(1, batch),
        statistics=tuple(found.statistics),
        folds=tuple(found.folds),
        attention=attention if tracer.views.attended else "",
        notes=tuple(dict.fromkeys(tracer.book.notes)),
    )


def _as_group(found: Found) -> Group:
    return Group(
        name=found.name,
        size=found.size,
        members=found.members,
        producers=found.producers,
        consumers=found.consumers,
        restricted=found.restricted,
        assumed=found.assumed,
    )
