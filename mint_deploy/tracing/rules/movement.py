"""Data movement: the same operator runs on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_deploy.tracing.labels import NONE, compress
from mint_deploy.tracing.rules.table import Op, freeze_everything, pointwise, rule

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer


@rule("cat", "stack")
def _cat(t: Tracer, op: Op) -> Tensor | None:
    """Run on labels; a parameter takes its labels from its neighbours, constants hold their place."""
    tensors = list(op.args[0])
    axis = int(op.arg(1, "dim", 0))
    labels = [t.labels(x) for x in tensors]
    reference = next((x for x in labels if x is not None), None)
    if reference is None:
        if t.moves_parameter(op):
            return None
        for tensor in tensors:
            if t.is_parameter(tensor):
                t.computed_from(tensor, op)
        return None
    axis %= reference.dim() + (op.name == "stack")
    across = op.name == "cat" and any(
        compress(x)[1][axis] for x in labels if x is not None and x.dim() > axis
    )
    filled = []
    for tensor, known in zip(tensors, labels, strict=True):
        if known is None and across:
            sink = t.book.sink(f"sits beside constant channels in a concatenation {t.where()}")
            known = torch.full(tensor.shape, sink, dtype=torch.int32)
        elif known is None:
            known = torch.full(tensor.shape, NONE, dtype=torch.int32)
            if t.is_parameter(tensor) and op.name == "cat":
                known = reference.narrow(axis, 0, 1).expand(tensor.shape)
                t.tie_parameter(tensor, known)
        filled.append(known.to(torch.int32))
    _keep_one_length(t, [x for x in labels if x is not None], axis, stacked=op.name == "stack")
    joined: Tensor = torch.cat(filled, axis) if op.name == "cat" else torch.stack(filled, axis)
    return joined


def _keep_one_length(t: Tracer, labels: list[Tensor], axis: int, *, stacked: bool) -> None:
    """Operands side by side along ``axis`` have one length along every other: their channels leave together."""
    varies = [compress(x)[1] for x in labels]
    if not stacked and any(v[axis] for v in varies if len(v) > axis):
        return
    rows = [x for x, v in zip(labels, varies, strict=True) if any(v)]
    if not stacked:
        rows = [x.narrow(axis, 0, 1) for x in rows]
    for row in rows[1:]:
        t.book.unite(rows[0], row)


@rule("constant_pad_nd")
def _pad(t: Tracer, op: Op) -> Tensor | None:
    """Zeros in space inherit their channel's label; zeros beside channels are units of their own."""
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    amounts = list(op.args[1])
    written = t.argument("pad", 1)
    origins = (
        list(written)
        if isinstance(written, (tuple, list)) and len(written) == len(amounts)
        else amounts
    )
    varies = compress(labels)[1]
    for i in range(0, len(amounts), 2):
        axis = labels.dim() - 1 - i // 2
        before, after = int(amounts[i]), int(amounts[i + 1])
        if not before and not after:
            continue
        if before < 0 or after < 0:
            if varies[axis]:
                t.book.freeze(labels, f"negative padding of channels {t.where()}")
                return labels.narrow(axis, 0, 1).expand(op.out.shape)
            shape = list(labels.shape)
            shape[axis] += before + after
            labels = labels.narrow(axis, 0, 1).expand(shape)
            continue
        edges = []
        for amount, origin in ((before, origins[i]), (after, origins[i + 1])):
            shape = [*labels.shape[:axis], amount, *labels.shape[axis + 1 :]]
            if not varies[axis]:
                edges.append(labels.narrow(axis, 0, 1).expand(shape))
                continue
            nodes = t.book.fresh(amount)
            t.count(origin, nodes, "padded channels")
            view = [1] * labels.dim()
            view[axis] = amount
            edges.append(nodes.view(view).expand(shape).to(labels.dtype))
        labels = torch.cat([edges[0], labels, edges[1]], axis)
    return labels


@rule("pixel_shuffle", "pixel_unshuffle", "repeat", "flip", "repeat_interleave")
def _move(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None:
        if not t.moves_parameter(op):
            freeze_everything(t, op)
        return None
    moved: Tensor = op.func(labels.contiguous(), *op.args[1:], **op.kwargs)
    return moved


@rule("channel_shuffle", "native_channel_shuffle")
def _shuffle(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    groups = int(op.args[1])
    rows = labels.view(labels.shape[0], groups, -1, *labels.shape[2:])
    t.book.unite(rows, rows[:, :1])
    return rows.transpose(1, 2).flatten(1, 2)


@rule("copy", "fill", "zero", "masked_fill", "where")
def _write(t: Tracer, op: Op) -> Tensor | None:
    """What is written takes the place of what was there: both are the same channel from now on."""
    if op.name not in ("copy", "fill", "zero"):
        return pointwise(t, op)
    known = t.labels(op.args[0])
    source = t.labels(op.args[1]) if op.name == "copy" else None
    if known is None or source is None:
        return (
            source if source is not None else (known if known is not None else torch.tensor(NONE))
        )
    source = source.expand(known.shape)
    t.book.unite(known, source)
    return torch.where(source >= 0, source, known)


@rule(
    "new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like",
    "full_like", "rand_like", "randn_like", "new_empty_strided",
)  # fmt: skip
def _made_anew(t: Tracer, op: Op) -> Tensor | None:
    """A new constant: only a shape was read from the input."""
    return None


@rule("_local_scalar_dense", "equal")
def _escape(t: Tracer, op: Op) -> Tensor | None:
    for tensor in op.inputs:
        if t.labels(tensor) is not None:
            t.escape(t.labels(tensor))
        for name in t.parameters_behind(tensor):
            t.book.freeze_tensor(name, f"its values leave PyTorch {t.where()}")
    return None


@rule("glu")
def _glu(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    first, second = labels.chunk(2, int(op.arg(1, "dim", -1)))
    t.book.unite(first, second)
    return first


@rule(
    "clone", "contiguous", "_to_copy", "bernoulli", "native_dropout", "dropout", "rrelu_with_noise",
    "_prelu_kernel", "hardtanh", "threshold", "elu", "leaky_relu", "softplus", "gelu",
    "relu", "relu6", "hardswish", "hardsigmoid", "silu", "mish", "celu", "selu", "clamp",
)  # fmt: skip
def _same_shape(t: Tracer, op: Op) -> Tensor | None:
    return pointwise(t, op)
