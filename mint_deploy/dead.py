"""Units that do nothing, and why: proven from the weights, or seen on a sample.

A unit of a pruning group is *dead* where the network computes the same without it. What a unit does, it does
through the slices with which layers read it (the gate proves that of every group), so each of those is asked:

``unread``
    its weights are zero there, or they lead only into units that have no effect themselves.
``zero``
    zero arrives there for every input: weights and shift of its producers are zero, or a ReLU makes them so.
``constant``
    another constant arrives for every input (a BatchNorm's scale is zero, its shift is not). The reader's
    bias, or the running mean of the BatchNorm behind it, takes over what the constant did there. That is exact
    only where the reader pads nothing with zeros: at a border the constant has fewer taps. Otherwise the unit
    stays, and :attr:`Dead.stuck` says why.
``sample``
    no variance in all rows of the moments. Only asked for with moments; nothing is proven about other images.

Coupled units (a residual stream) are dead where the sum that arrives is. Groups in which a
statistic over channels (LayerNorm) is computed are left out: it changes even if a zero leaves.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mint_deploy.artifacts import ConsumerMoments, Floats, Ints, Member, Moments
from mint_deploy.errors import PlanError
from mint_deploy.gate import prepared, run
from mint_deploy.graph import Graph
from mint_deploy.inputs import as_call, cast
from mint_deploy.tracing.constancy import Constancy, Reading
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.user_model import unwrapped

__all__ = ["EXACT", "KINDS", "Dead", "DeadUnit", "Fold", "dead_units"]

EXACT = ("unread", "zero", "constant")
KINDS = (*EXACT, "sample")
#: a channel whose standard deviation on the sample is below this share of its mean does not vary
_STILL = 1e-12

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """What takes over for a constant unit at one reader.

    ``channels`` of what ``reader`` reads (dimension ``dim`` of that weight, in all ``groups``) hold ``values``;
    ``sign`` times the shift that they cause is added to ``into``.
    """

    reader: str
    dim: int
    groups: int
    into: str
    sign: int
    channels: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadUnit:
    """One unit that can leave, its kind (see the module), and what must be folded first."""

    unit: int
    kind: str
    folds: tuple[Fold, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Dead:
    """The dead units of every group that has some.

    ``stuck`` (group -> reason -> units): constant for every input, and yet not removable exactly.
    ``images`` is the size of the sample where it was asked, else 0.
    """

    groups: Mapping[str, tuple[DeadUnit, ...]] = field(default_factory=dict)
    stuck: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    images: int = 0
    notes: tuple[str, ...] = ()

    def units(self, group: str, kinds: Collection[str] = KINDS) -> tuple[int, ...]:
        """Return the dead units of a group, sorted."""
        return tuple(sorted(d.unit for d in self.groups.get(group, ()) if d.kind in kinds))

    def count(self, *kinds: str) -> int:
        """Return how many units are dead, of these kinds (none given: of any)."""
        return sum(len(self.units(name, kinds or KINDS)) for name in self.groups)

    def __str__(self) -> str:
        said = {
            "unread": "that no layer reads",
            "zero": "that are zero for every input",
            "constant": "that are constant for every input (folded onward)",
            "sample": f"that are constant on {self.images} images",
        }
        lines = [f"{self.count()} dead units"]
        lines += [f"  {self.count(k)} {text}" for k, text in said.items() if self.count(k)]
        for name in self.groups:
            parts = [f"{k} {list(self.units(name, [k]))}" for k in KINDS if self.units(name, [k])]
            lines.append(f"  {name}: " + ", ".join(parts))
        for name, reasons in self.stuck.items():
            lines += [f"  {name}: {list(u)} stay: {why}" for why, u in reasons.items()]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def dead_units(
    model: nn.Module, graph: Graph, example_inputs: Any, moments: Moments | None = None
) -> Dead:
    """Find the units without which ``model`` computes the same. One forward pass, in float64.

    Args:
        model: the traced model; it is not altered.
        graph: from :func:`mint_deploy.trace`.
        example_inputs: as given to ``trace``; their values do not matter, their sizes do.
        moments: of the same model; with them also what does not vary on the sample is found.

    Raises:
        PlanError: the graph belongs to another model.
        TraceError: the model does not run in float64, or the inputs hold no tensor.
    """
    model = unwrapped(model)
    tensors = tensors_of(model)
    wrong = [n for n, s in graph.shapes.items() if n not in tensors or tensors[n].shape != s]
    if wrong:
        raise PlanError(
            f"the graph belongs to another model: '{wrong[0]}' differs; trace this model"
        )
    dense, inputs = prepared(model, torch.float64), cast(as_call(example_inputs), torch.float64)
    seen = Constancy(dense)
    given = [x for x in tree_flatten(inputs)[0] if isinstance(x, Tensor)]
    seen.run(dense, lambda: run(dense, inputs), given)
    found = _Search(graph, tensors, seen)
    groups, stuck = found.exact()
    if moments is not None:
        groups = found.with_sample(groups, moments)
    return Dead(
        groups=groups,
        stuck=stuck,
        images=moments.images if moments is not None else 0,
        notes=(f"constants were not looked for: {seen.lost}",) if seen.lost else (),
    )


@dataclass(slots=True)
class _Slice:
    """How one layer reads a group, per index ``[L]`` of the dimension that it reads.

    What arrives there is ``constant``, or even ``zero``; ``values`` ``[groups, L]``. ``weights`` ``[L, rows]``:
    which are other than zero; ``owner`` ``[rows, 2]``: group and unit that each row makes.
    """

    member: Member
    weights: Tensor
    owner: Ints
    groups: int
    reading: Reading | None
    constant: Bools
    zero: Bools
    values: Floats

    @property
    def foldable(self) -> bool:
        return self.reading is not None and self.reading.uniform and bool(self.reading.into)

    def all(self, per_index: Bools) -> Bools:
        """``[L]`` -> ``[units]``: it holds for every slice of the unit."""
        return np.asarray(per_index[self.member.index].all(axis=1))

    def unread(self, rows: Bools) -> Bools:
        """Return whether each index is read with zeros by all rows but ``rows``, ``[L]``."""
        live = torch.from_numpy(~rows)
        if bool(live.all()):
            return np.asarray(~self.weights.any(1).numpy())
        return np.asarray(~self.weights[:, live].any(1).numpy())


class _Search:
    """Which units are without effect, group by group, until nothing more follows."""

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], seen: Constancy) -> None:
        self.graph = graph
        self.names = [n for n, g in graph.groups.items() if n not in _left_out(graph)]
        self.owners = self._owners()
        self.slices = {
            name: [
                self._slice(m, tensors[m.tensor], seen)
                for m in graph.groups[name].members
                if m.reads
            ]
            for name in self.names
        }
        self.names = [n for n in self.names if self.slices[n]]
        #: what the unit is may change freely, nobody hears it; what arrives does not depend on the input
        self.free = {n: np.zeros(graph.groups[n].size, dtype=bool) for n in graph.groups}
        self.silent = {n: np.zeros(graph.groups[n].size, dtype=bool) for n in graph.groups}
        self._spread()

    def _owners(self) -> dict[tuple[str, int], Ints]:
        out: dict[tuple[str, int], Ints] = {}
        for g, group in enumerate(self.graph.groups.values()):
            for member in group.members:
                if not member.reads:
                    rows = out.setdefault(
                        (member.tensor, member.dim),
                        np.full((member.length, 2), -1, dtype=np.int64),
                    )
                    rows[member.index] = np.stack(
                        [np.full_like(member.index, g), np.indices(member.index.shape)[0]], axis=-1
                    )
        return out

    def _slice(self, member: Member, tensor: Tensor, seen: Constancy) -> _Slice:
        layer = self.graph.layers.get(member.tensor)
        reads = layer is not None and (
            member.dim == layer.in_dim or (layer.groups > 1 and member.dim == 1)
        )
        front = (tensor.detach() != 0).cpu().movedim(member.dim, 0)
        if layer is None or not reads:
            weights, rows = front.flatten(1), np.full((front[0].numel(), 2), -1, dtype=np.int64)
        else:
            weights = front.flatten(2).any(2) if front.dim() > 2 else front
            rows = self.owners.get(
                (member.tensor, layer.out_dim), np.full((weights.shape[1], 2), -1, dtype=np.int64)
            )
        groups = layer.groups if layer is not None else 1
        constant = zero = np.zeros(member.length, dtype=bool)
        values = np.zeros((groups, member.length))
        reading = None if seen.lost else seen.readings.get((member.tensor, member.dim))
        if reads and reading is not None and layer is not None and reading.calls == layer.calls:
            values = reading.value.numpy().reshape(groups, -1)
            constant = np.asarray(reading.constant.numpy().reshape(groups, -1).all(axis=0))
            zero = np.asarray(constant & (values == 0).all(axis=0))
        else:
            reading = None
        return _Slice(member, weights, rows, groups, reading, constant, zero, values)

    def _rows(self, part: _Slice, flags: Mapping[str, Bools]) -> Bools:
        """Return the flag of the unit that each row of a reader makes; rows of no unit: False."""
        out = np.zeros(len(part.owner), dtype=bool)
        for g, name in enumerate(self.graph.groups):
            mine = part.owner[:, 0] == g
            if mine.any():
                out[mine] = flags[name][part.owner[mine, 1]]
        return out

    def _unheard(self, part: _Slice) -> tuple[Bools, Bools]:
        """Return, per index: nobody hears it; and: nobody hears it that depends on it.

        The second is for a value that changes with the input: what it leads into is known to be the same for
        every input, so for every value of it.
        """
        free = self._rows(part, self.free)
        unread = part.unread(free)
        through = part.unread(free | self._rows(part, self.silent))
        return unread, unread | (through & ~part.constant)

    def _spread(self) -> None:
        changed = True
        while changed:
            changed = False
            for name in self.names:
                parts = [(p, self._unheard(p)[1]) for p in self.slices[name]]
                free = np.logical_and.reduce([p.all(unheard) for p, unheard in parts])
                silent = np.logical_and.reduce([p.all(u | p.constant) for p, u in parts])
                for flags, now in ((self.free, free), (self.silent, silent)):
                    changed |= bool((now & ~flags[name]).any())
                    flags[name] = flags[name] | now

    def exact(
        self,
    ) -> tuple[dict[str, tuple[DeadUnit, ...]], dict[str, dict[str, tuple[int, ...]]]]:
        """Return what is dead for every input, and what is constant and stays."""
        groups: dict[str, tuple[DeadUnit, ...]] = {}
        stuck: dict[str, dict[str, tuple[int, ...]]] = {}
        for name in self.names:
            parts = [(p, self._unheard(p)[1]) for p in self.slices[name]]
            units = []
            for unit in np.flatnonzero(self.silent[name]).tolist():
                folds, kind, why = [], "unread", ""
                for part, unheard in parts:
                    heard = part.member.index[unit][~unheard[part.member.index[unit]]]
                    kind = "zero" if len(heard) and kind == "unread" else kind
                    left = heard[~part.zero[heard]]
                    if len(left) and part.reading is not None and not part.foldable:
                        why = why or _why_not(part.member.tensor, part.reading)
                    elif len(left) and part.reading is not None:
                        folds.append(_fold(part, part.reading, left, part.values[:, left]))
                if why:
                    stuck.setdefault(name, {})[why] = (*stuck.get(name, {}).get(why, ()), unit)
                    continue
                kind = "constant" if folds else kind
                units.append(DeadUnit(unit=unit, kind=kind, folds=tuple(folds)))
            if units:
                groups[name] = tuple(units)
        return groups, stuck

    def with_sample(
        self, groups: Mapping[str, tuple[DeadUnit, ...]], moments: Moments
    ) -> dict[str, tuple[DeadUnit, ...]]:
        """Add what does not vary in the rows of ``moments``."""
        out = dict(groups)
        for name in self.names:
            gone = {d.unit for d in groups.get(name, ())}
            parts = []
            for part in self.slices[name]:
                still, values = _still(moments.consumers.get(part.member.tensor), part)
                unheard = self._unheard(part)[1] | part.zero | (still & (values == 0).all(axis=0))
                parts.append((part, still, values, unheard))
            whole = [p.all(u | (s & p.foldable)) for p, s, _, u in parts]
            more = []
            for unit in np.flatnonzero(np.logical_and.reduce(whole)).tolist():
                if unit in gone:
                    continue
                folds = []
                for part, _, values, unheard in parts:
                    left = part.member.index[unit][~unheard[part.member.index[unit]]]
                    if len(left) and part.reading is not None:
                        folds.append(_fold(part, part.reading, left, values[:, left]))
                more.append(DeadUnit(unit=unit, kind="sample", folds=tuple(folds)))
            if more:
                out[name] = (*out.get(name, ()), *more)
        return {name: out[name] for name in self.graph.groups if name in out}


def _left_out(graph: Graph) -> set[str]:
    """Groups of which a unit's slices at its readers do not say everything."""
    scaled = {p.group for fold in graph.folds for p in fold.positions}
    return scaled | {name for name, group in graph.groups.items() if group.restricted}


def _why_not(tensor: str, reading: Reading) -> str:
    reader = tensor.rpartition(".")[0] or tensor
    if not reading.uniform:
        return f"constant, but '{reader}' pads it with zeros, so that the border differs"
    return f"constant, but '{reader}' has neither a bias nor a BatchNorm of its own to take it up"


def _fold(part: _Slice, reading: Reading, index: Ints, values: Floats) -> Fold:
    channels = index[None, :] + part.member.length * np.arange(part.groups)[:, None]
    return Fold(
        reader=part.member.tensor,
        dim=part.member.dim,
        groups=part.groups,
        into=reading.into,
        sign=reading.sign,
        channels=tuple(channels.reshape(-1).tolist()),
        values=tuple(values.reshape(-1).tolist()),
    )


def _still(known: ConsumerMoments | None, part: _Slice) -> tuple[Bools, Floats]:
    """Return which indices never vary on the sample, ``[L]``, and their values ``[groups, L]``."""
    length = part.member.length
    if known is None or known.channels != part.groups * length:
        return np.zeros(length, dtype=bool), np.zeros((part.groups, length))
    mean = known.mean.reshape(known.channels, known.taps)
    variance = np.diag(known.covariance).reshape(known.channels, known.taps)
    size = np.abs(mean).max(axis=1, keepdims=True)
    quiet = (variance <= (_STILL * size) ** 2) & (np.abs(mean - mean[:, :1]) <= _STILL * size)
    return quiet.all(axis=1).reshape(part.groups, -1).all(axis=0), mean[:, 0].reshape(
        part.groups, -1
    )
