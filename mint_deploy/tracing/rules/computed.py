"""Weights that are computed from parameters before they are used.

Every element of such a weight stands for one element of its main parameter, so it is cut as that one is. What is
computed element by element keeps all axes; a statistic over an axis (weight norm, standardisation) changes when
an index of that axis leaves, so the axis stays, and the others can still be cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_deploy.tracing.rules.statistics import SPATIAL, axes_of
from mint_deploy.tracing.rules.table import Op, freeze_everything, outputs

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["compute", "how_computed"]

#: what makes zero of zero, so that a removed input can be masked in the parameter itself
_KEEPS_ZERO = {
    "mul", "div", "neg", "abs", "sqrt", "sign", "sgn", "tanh", "relu", "relu6", "sin", "sinh", "asin",
    "atan", "erf", "expm1", "log1p", "square", "round", "floor", "ceil", "trunc", "silu", "gelu",
    "elu", "selu", "celu", "leaky_relu", "positive", "nan_to_num",
}  # fmt: skip
_REDUCTIONS = {
    "mean", "sum", "amax", "amin", "prod", "logsumexp", "linalg_vector_norm", "norm", "max", "min",
    "var", "std", "var_mean", "std_mean", "any", "all", "nansum",
}  # fmt: skip
_POINTWISE = {"masked_fill", "clamp", "hardtanh", "threshold", "softplus", "where"}
_PRODUCTS = {"mm", "bmm", "mv", "dot", "vdot", "addmm", "addmv", "baddbmm", "outer", "ger"}
_ALONG = {"_softmax", "_log_softmax", "_safe_softmax", "cumsum", "cumprod", "logcumsumexp"}
_BATCH_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update", "_batch_norm_with_update",
}  # fmt: skip
_STAYS = {"constant_pad_nd", "roll", "glu", "native_layer_norm", "native_group_norm"}


def compute(t: Tracer, op: Op) -> bool:
    """Follow an operator that no activation enters; whether it is one that computes with parameters."""
    if not any(t.is_parameter(x) for x in op.inputs):
        return False
    if op.name in _PRODUCTS and all(t.is_parameter(x) for x in op.inputs):
        freeze_everything(t, op, f"a weight is computed as a product of parameters ('{op.name}')")
        return True
    if op.name in _STAYS:
        freeze_everything(t, op, f"a weight is computed by '{op.name}'")
        return True
    for names, follow in _FOLLOWED:
        if op.name in names:
            follow(t, op)
            return True
    moved = {"clone", "_to_copy", "contiguous", "copy", "fill", "zero"}
    if op.name in _POINTWISE or (torch.Tag.pointwise in op.func.tags and op.name not in moved):
        _pointwise(t, op)
        return True
    return False


def how_computed(t: Tracer, weight: Tensor) -> str:
    """Say how a weight came about that cannot be cut."""
    labels = t.labels(weight)
    known = (
        t.book.reason_of(int(labels.reshape(-1)[0]))
        if labels is not None and labels.numel()
        else ""
    )
    return known.partition(" (in ")[0] or "its weight is computed in the forward pass"


def _lines(t: Tracer, x: Tensor, axis: int) -> list[Tensor]:
    """Nodes that change along one axis of a parameter's view: a line for each dimension that does."""
    lines = t.parameter_lines(x, axis)
    return lines if lines is not None else [t.book.nodes(n, d) for n, d in _all_nodes(t, x)]


def _all_nodes(t: Tracer, x: Tensor) -> list[tuple[str, int]]:
    names = t.parameters_behind(x)
    return [(n, d) for n in names for d in range(len(t.book.shapes[n]))]


def _hold(t: Tracer, x: Tensor, axis: int, reason: str) -> None:
    if x.shape[axis] > 1:
        for nodes in _lines(t, x, axis):
            t.book.freeze(nodes, reason)


def _tie(t: Tracer, a: Tensor, axis_a: int, b: Tensor, axis_b: int, op: Op) -> None:
    """The same index of two parameters' axes leaves together; axes that mix dimensions stay."""
    first, second = _lines(t, a, axis_a), _lines(t, b, axis_b)
    if len(first) == 1 and len(second) == 1 and len(first[0]) == len(second[0]):
        t.book.unite(first[0], second[0])
    elif not all(
        len(x) == len(y) and bool((x == y).all()) for x, y in zip(first, second, strict=False)
    ) or len(first) != len(second):
        for nodes in (*first, *second):
            t.book.freeze(
                nodes, f"a weight is computed by '{op.name}' on reshaped parameters {t.where()}"
            )


def _pointwise(t: Tracer, op: Op) -> None:
    """Element by element: parameters that meet leave together; what they make stands for the widest."""
    out = outputs(op.out)[0]
    parameters = [x for x in op.inputs if t.is_parameter(x)]
    if out.numel() == 1:
        return
    main = next((x for x in parameters if x.shape == out.shape), None)
    if main is None:
        freeze_everything(
            t, op, f"a weight is computed by '{op.name}' from parameters that broadcast"
        )
        return
    for other in op.inputs:
        if other is main or other.numel() <= 1:
            continue
        for axis in range(other.dim()):
            at = axis + out.dim() - other.dim()
            if other.shape[axis] <= 1:
                continue
            if t.is_parameter(other):
                _tie(t, main, at, other, axis, op)
            else:
                _hold(
                    t,
                    main,
                    at,
                    f"a weight meets a constant of its own size ('{op.name}') {t.where()}",
                )
    numerator = op.name != "div" or op.args[0] is main
    if not (op.name in _KEEPS_ZERO and numerator):
        t.unmasked(
            main, f"its weight is computed by '{op.name}', of which zero is not zero {t.where()}"
        )
    t.stand_for(out, main)


def _statistic(op: Op, t: Tracer) -> str:
    return f"its weight is computed: a statistic ('{op.name.strip('_')}') over it {t.where()}"


def _reduce(t: Tracer, op: Op) -> None:
    x = op.args[0]
    at = 2 if op.name in ("linalg_vector_norm", "norm") else 1
    dims = op.arg(at, "dim")
    axes = axes_of(None if isinstance(dims, bool) else dims, x.dim())
    for axis in axes:
        _hold(t, x, axis, _statistic(op, t))
    for out in outputs(op.out):
        if out.numel() > 1:
            t.stand_for(out, x, first=axes)


def _along(t: Tracer, op: Op) -> None:
    x = op.args[0]
    for axis in axes_of(op.args[1], x.dim())[:1]:
        _hold(t, x, axis, _statistic(op, t))
    t.unmasked(x, f"its weight is computed by '{op.name}' {t.where()}")
    t.stand_for(outputs(op.out)[0], x)


def _batch_norm(t: Tracer, op: Op) -> None:
    """Standardisation by the fused operator: statistics over everything but axis 1."""
    x = op.args[0]
    if not t.is_parameter(x):
        for p in op.inputs:
            t.computed_from(p, op)
        return
    for axis in range(x.dim()):
        if axis != 1:
            _hold(t, x, axis, _statistic(op, t))
    for p in op.args[1:5]:
        if isinstance(p, Tensor) and t.is_parameter(p):
            _tie(t, x, 1, p, 0, op)
        elif isinstance(p, Tensor):
            _hold(t, x, 1, f"a weight meets a constant of its own size ('{op.name}') {t.where()}")
    t.unmasked(x, _statistic(op, t))
    t.stand_for(op.out[0], x)


def _weight_norm(t: Tracer, op: Op) -> None:
    """``g v / |v|``: the norm is over all axes but one."""
    v, g = op.args[0], op.args[1]
    kept = int(op.arg(2, "dim", 0)) % v.dim()
    reason = f"weight norm: its norm is over this axis {t.where()}; remove the weight norm, and it can be cut"
    for axis in range(v.dim()):
        if axis != kept:
            _hold(t, v, axis, reason)
    if g.numel() > 1:
        _tie(t, v, kept, g, kept if g.dim() == v.dim() else 0, op)
    t.unmasked(v, reason)
    t.stand_for(op.out[0], v)


def _resized(t: Tracer, op: Op) -> None:
    """A table over space (positions) is brought to another size: each channel for itself."""
    x, out = op.args[0], outputs(op.out)[0]
    space = list(range(x.dim() - SPATIAL[op.name], x.dim()))
    t.stand_for(out, x, first=space)


_FOLLOWED: tuple[tuple[set[str], Callable[[Tracer, Op], None]], ...] = (
    (_REDUCTIONS, _reduce),
    (_ALONG, _along),
    (_BATCH_NORMS, _batch_norm),
    ({"_weight_norm_interface"}, _weight_norm),
    (set(SPATIAL), _resized),
)
