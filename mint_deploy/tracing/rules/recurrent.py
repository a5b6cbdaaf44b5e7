"""LSTM, GRU, RNN and their cells: what must be known before their steps are watched.

PyTorch opens a recurrent layer into linear layers, splits and element-wise operators, step by step, so the gates
tie themselves. Two things are not seen there: the first state is a constant of the layer's width, and one
attribute, ``hidden_size``, counts the units of every layer and direction of a module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mint_deploy.tracing.labels import compress
from mint_deploy.tracing.ledger import Layer
from mint_deploy.tracing.literals import after
from mint_deploy.tracing.rules.table import Op, freeze_everything, rule

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["BEFORE"]

Before = Callable[["Tracer", tuple[Any, ...], dict[str, Any]], None]
#: name of a Python-level function -> what is done before it runs
BEFORE: dict[str, Before] = {}


def before(*names: str) -> Callable[[Before], Before]:
    """Register under names of functions."""

    def register(made: Before) -> Before:
        BEFORE.update(dict.fromkeys(names, made))
        return made

    return register


@before("lstm", "gru", "rnn_tanh", "rnn_relu")
def _layers(t: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``(input, [batch sizes,] state, weights, has_biases, layers, dropout, train, bidirectional, ..)``."""
    packed = len(args) > 3 and isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
    given = args[2:] if packed else args[1:]
    if len(given) < 3 or not isinstance(given[1], (list, tuple)):
        return
    states = list(given[0]) if isinstance(given[0], (list, tuple)) else [given[0]]
    weights, has_biases = list(given[1]), bool(given[2])
    projected = len(states) == 2 and states[0].shape[-1] != states[1].shape[-1]
    each = (4 if has_biases else 2) + projected
    if projected:
        why = f"a projected LSTM: PyTorch tells it by 'proj_size' unlike 'hidden_size' {t.where()}"
        for tensor in weights:
            for name in t.parameters_behind(tensor):
                t.book.freeze_tensor(name, why)
    units = [_units(t, weights[i + 1]) for i in range(0, len(weights), each)]
    for nodes in units[1:]:
        if nodes is not None and units[0] is not None:
            t.book.unite(nodes, units[0])
    if units and units[0] is not None and not projected:
        for state in states:
            _start(t, state, units[0])


@before("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cells(t: Tracer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """``(input, state, weight_ih, weight_hh, ..)``."""
    if len(args) < 4:
        return
    nodes = _units(t, args[3])
    if nodes is not None:
        for state in args[1] if isinstance(args[1], (list, tuple)) else [args[1]]:
            _start(t, state, nodes)


def _units(t: Tracer, weight: Tensor) -> Tensor | None:
    """The hidden units are what ``weight_hh [gates * H, H]`` reads."""
    axes = t.parameter_axes(weight) if t.is_parameter(weight) else None
    return axes[1] if axes is not None else None


def _start(t: Tracer, state: Tensor, units: Tensor) -> None:
    """A first state that no layer computed is made of the units themselves."""
    if t.labels(state) is not None:
        return
    if t.is_parameter(state):
        axes = t.parameter_axes(state)
        if axes is None:
            t.computed_from(state, None)
            t.book.freeze(units, f"a rearranged parameter is the first state {t.where()}")
            return
        t.book.unite(axes[-1], units)
    t.put(state, units.expand(state.shape))


# ---------------------------------------------------------------- sequences of several lengths


@rule("_pack_padded_sequence")
def _pack(t: Tracer, op: Op) -> Tensor | None:
    """``[T, B, *]`` and lengths -> ``[sum of lengths, *]``: rows are chosen, channels pass."""
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    (narrow,), varies = compress(labels)
    if varies[0] or varies[1]:
        freeze_everything(t, op, "positions that hold unlike channels are packed")
        return None
    t.put(op.out[0], narrow[0].expand(op.out[0].shape))
    return None


@after("_pad_packed_sequence")
def _unpack(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    """The padding of a channel belongs to it."""
    if not compress(labels)[1][0]:
        t.put(result[0], labels[:1].expand(result[0].shape))


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def _embedding(t: Tracer, op: Op) -> Tensor | None:
    """A table of rows that numbers choose: every row stays, its columns are units."""
    weight, out = op.args[0], op.out if op.name == "embedding" else op.out[0]
    axes = t.parameter_axes(weight) if t.labels(weight) is None else None
    if axes is None:
        freeze_everything(t, op, "a table that is computed is looked up")
        return None
    t.book.freeze(axes[0], f"rows are chosen by number {t.where()}")
    for numbers in op.inputs[1:]:
        t.book.freeze(t.labels(numbers), f"chooses rows of a table {t.where()}")
    t.book.touch(axes[1])
    name = t.parameter_name(weight)
    dim = t.dimension_of(name, axes[1])
    if name not in t.book.layers:  # tied to an output layer, it stays what that is
        t.add_layer(
            Layer(
                name="", kind="embedding", weight=name, bias=None, in_dim=1 - dim, out_dim=dim,
                groups=1, taps=1, positions=0,
            ),
            out,
        )  # fmt: skip
    t.put(out, axes[1].expand(out.shape))
    return None
