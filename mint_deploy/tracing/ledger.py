"""The book that the tracer writes: nodes, unions, freezes, layers, constants.

A *node* is one index of one dimension of one parameter or buffer. Labels of activations are node
numbers. Nodes that are united must leave together; what stays connected in the end is a unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from mint_deploy.tracing.labels import compress, pairs

__all__ = ["Activation", "CountedConstant", "Fold", "Layer", "Ledger", "Seen"]


@dataclass(slots=True)
class Layer:
    """One Conv or Linear as it ran: which of its weight's dimensions is input, which output.

    ``macs`` and ``outputs`` are per forward pass of the traced batch; ``outputs`` is the number of
    output positions (batch and space), so that ``macs = outputs * weight elements``.
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    in_dim: int
    out_dim: int
    groups: int
    taps: int
    positions: int
    calls: int = 1
    normalised: bool = False


@dataclass(slots=True)
class CountedConstant:
    """A module attribute whose value counts the labelled positions in ``labels``."""

    attribute: str
    value: int
    labels: Tensor
    where: str


@dataclass(slots=True)
class Seen:
    """A statistic over the channels ``labels`` (one for each position of ``axis``), as it was seen."""

    op: str
    call: int
    axis: int
    labels: Tensor
    where: str


@dataclass(slots=True)
class Fold:
    """A scale that follows from the head width ``labels``; the rows of ``tensor`` can take it up."""

    tensor: str
    rows: Tensor
    labels: Tensor


@dataclass(slots=True)
class Activation:
    """One storage of the forward pass, for the peak of live bytes."""

    nbytes: int
    birth: int
    last_use: int
    channels: Tensor | None = None


@dataclass
class Ledger:
    """Collects what the rules find; :meth:`components` closes the book."""

    shapes: dict[str, tuple[int, ...]]
    layers: dict[str, Layer] = field(default_factory=dict)
    constants: list[CountedConstant] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    statistics: list[Seen] = field(default_factory=list)
    folds: list[Fold] = field(default_factory=list)
    assumed: list[tuple[Tensor, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._base: dict[tuple[str, int], int] = {}
        total = 0
        for name, shape in self.shapes.items():
            for dim, size in enumerate(shape):
                self._base[name, dim] = total
                total += size
        self.parameter_nodes = self.size = total
        self._edges: list[tuple[Tensor, Tensor]] = []
        self._frozen: list[tuple[Tensor, str]] = []
        self._sinks: dict[int, str] = {}
        self._lengths: list[tuple[Tensor, int, str]] = []
        self._touched: list[Tensor] = []

    # ------------------------------------------------------------ nodes

    def nodes(self, name: str, dim: int) -> Tensor:
        """Return the node numbers of one dimension of one parameter, int64 ``[size]``."""
        base = self._base[name, dim]
        return torch.arange(base, base + self.shapes[name][dim])

    def fresh(self, count: int) -> Tensor:
        """Return ``count`` new nodes that belong to no parameter."""
        made = torch.arange(self.size, self.size + count)
        self.size += count
        return made

    def sink(self, reason: str) -> int:
        """Return a node that freezes whatever it meets, without joining those to one another."""
        node = int(self.fresh(1)[0])
        self._sinks[node] = reason
        return node

    def reason_of(self, node: int) -> str:
        """Return what a sink says; "" for any other node."""
        return self._sinks.get(node, "")

    # ------------------------------------------------------------ what the rules say

    def unite(self, a: Tensor, b: Tensor) -> None:
        """The labels that meet in ``a`` and ``b`` (broadcast) leave together."""
        first, second = pairs(a, b)
        if first.numel():
            self._edges.append((first, second))
        self.touch(a)
        self.touch(b)

    def touch(self, labels: Tensor) -> None:
        """Mark nodes as met by some rule: only those can form units."""
        (narrow,), _ = compress(labels)
        self._touched.append(narrow.reshape(-1).long())

    def freeze(self, labels: Tensor | None, reason: str) -> None:
        """These labels stay, for this reason."""
        if labels is None:
            return
        (narrow,), _ = compress(labels)
        flat = torch.unique(narrow.reshape(-1).long())
        self._frozen.append((flat[flat >= 0], reason))

    def assume(self, labels: Tensor, line: str) -> None:
        """The code at ``line`` is believed to adapt to these channels; the probe has the last word."""
        (narrow,), _ = compress(labels)
        flat = torch.unique(narrow.reshape(-1).long())
        self.assumed.append((flat[flat >= 0], line))

    def freeze_tensor(self, name: str, reason: str) -> None:
        """Every index of every dimension of a parameter stays."""
        for dim in range(len(self.shapes[name])):
            self.freeze(self.nodes(name, dim), reason)

    def keep_length(self, labels: Tensor, axis: int, reason: str) -> None:
        """The code fixes the length of ``axis``: labels that would shorten it stay.

        Decided at the end: where all labels along the axis belong to one unit (heads, say), the
        axis keeps its length whatever leaves.
        """
        (narrow,), varies = compress(labels)
        if varies[axis]:
            self._lengths.append((narrow.clone(), axis, reason))

    # ------------------------------------------------------------ closing the book

    def components(self) -> tuple[np.ndarray, dict[int, list[str]], np.ndarray]:
        """Return ``(component of each node, reasons of each frozen component, touched nodes)``."""
        if self._edges:
            a = torch.cat([e[0] for e in self._edges]).numpy()
            b = torch.cat([e[1] for e in self._edges]).numpy()
        else:
            a = b = np.empty(0, dtype=np.int64)
        sinks = np.fromiter(self._sinks, dtype=np.int64, count=len(self._sinks))
        a_sink, b_sink = np.isin(a, sinks), np.isin(b, sinks)
        joins = ~(a_sink | b_sink)
        matrix = coo_matrix(
            (np.ones(joins.sum(), dtype=bool), (a[joins], b[joins])), shape=(self.size, self.size)
        )
        _, component = connected_components(matrix, directed=False)
        reasons: dict[int, list[str]] = {}

        def freeze(nodes: np.ndarray, reason: str) -> None:
            for comp in np.unique(component[nodes]):
                known = reasons.setdefault(int(comp), [])
                if reason not in known:
                    known.append(reason)

        for nodes, reason in self._frozen:
            freeze(nodes.numpy(), reason)
        for near, far in ((a[a_sink], b[a_sink]), (b[b_sink], a[b_sink])):
            for sink in np.unique(near):
                freeze(far[near == sink], self._sinks[int(sink)])
        for labels, axis, reason in self._lengths:
            values = labels.long().numpy()
            seen = np.where(values >= 0, component[values], -1)
            if (seen != np.take(seen, [0], axis=axis)).any() or len(np.unique(seen)) == 1:
                freeze(np.unique(values[values >= 0]), reason)
        touched = (
            torch.unique(torch.cat(self._touched)).numpy()
            if self._touched
            else np.empty(0, dtype=np.int64)
        )
        return component, reasons, touched[touched >= 0]
