"""Normalisation, softmax, reductions, pooling: what is computed over channels, what beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mint_deploy.tracing.labels import NONE, compress
from mint_deploy.tracing.rules.table import Op, freeze_everything, outputs, pointwise, rule

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["SPATIAL", "axes_of"]


@rule(
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update",
    "_batch_norm_with_update",
    "cudnn_batch_norm",
)
def _batch_norm(t: Tracer, op: Op) -> Tensor | None:
    x = op.args[0]
    labels = t.labels(x)
    tensors = [p for p in op.args[1:5] if isinstance(p, Tensor)]
    if labels is None:
        for p in tensors:
            t.computed_from(p, op)
        return None
    narrow = labels.transpose(0, 1).reshape(labels.shape[1], -1)
    (column,), _ = compress(narrow)
    if column.shape[1] > 1:
        t.book.unite(column, column[:, :1])
        column = column.amax(dim=1, keepdim=True)
    for p in tensors:
        t.tie_parameter(p, column[:, 0])
    t.mark_normalised(x)
    t.put(op.out[0], labels)
    return None


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def _layer_norm(t: Tracer, op: Op) -> Tensor | None:
    """Mean and variance over the last axes: after a cut, over the channels that stay."""
    x = op.args[0]
    labels = t.labels(x)
    parameters = [p for p in op.args[2:4] if isinstance(p, Tensor)]
    if labels is None:
        for p in parameters:
            t.computed_from(p, op)
        return None
    for p in parameters:
        t.tie_parameter(p, labels)
    (narrow,), varies = compress(labels)
    over = [axis for axis in range(x.dim() - len(op.args[1]), x.dim()) if varies[axis]]
    if len(over) > 1:
        t.book.freeze(labels, f"'{op.name}' over several axes of channels {t.where()}")
    elif over:
        t.statistic(op, narrow, over[0])
    t.put(outputs(op.out)[0], labels)
    return None


@rule("native_group_norm")
def _group_norm(t: Tracer, op: Op) -> Tensor | None:
    """Statistics over each of ``groups`` parts of the channels: the parts stay equally wide."""
    x, groups = op.args[0], int(op.args[6])
    labels = t.labels(x)
    parameters = [p for p in op.args[1:3] if isinstance(p, Tensor)]
    if labels is None:
        for p in parameters:
            t.computed_from(p, op)
        return None
    line = labels.transpose(0, 1).reshape(labels.shape[1], -1)
    (line,), varies = compress(line)
    if varies[1]:
        t.book.unite(line, line[:, :1])
    channels = line[:, 0].expand(
        x.shape[1]
    )  # one unit may fill them all (pixel unshuffle of one channel)
    for p in parameters:
        t.tie_parameter(p, channels)
    if groups == len(channels):
        t.count(t.argument("num_groups", 1), channels, "groups of a normalisation")
    else:
        rows = channels.view(groups, -1)
        t.book.unite(rows, rows[:1])
        shape = [1, -1, *[1] * (x.dim() - 2)]
        t.statistic(op, channels.view(shape).expand(1, -1, *[1] * (x.dim() - 2)), 1)
    t.put(outputs(op.out)[0], labels)
    return None


def axes_of(dims: Any, rank: int) -> list[int]:
    """Return the axes that an argument names; none named: all."""
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return list(range(rank))
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    return [int(d) % max(1, rank) for d in dims]


@rule("_softmax", "_log_softmax", "_safe_softmax")
def _softmax(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    _over(t, op, labels, axes_of(op.args[1], labels.dim())[:1])
    return labels


@rule("cumsum", "cumprod", "logcumsumexp", "cummax", "cummin")
def _cumulated(t: Tracer, op: Op) -> Tensor | None:
    """Along positions each channel is for itself; along channels their order counts."""
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    (axis,) = axes_of(op.args[1], labels.dim())[:1]
    if compress(labels)[1][axis]:
        t.book.freeze(labels, f"'{op.name}' over channels, whose order counts {t.where()}")
    for out in outputs(op.out):
        t.put(out, labels)
    return None


def _over(t: Tracer, op: Op, labels: Tensor, axes: list[int]) -> None:
    """Channels along one of ``axes`` are a statistic; branches that lie side by side leave together."""
    varies = compress(labels)[1]
    over = [axis for axis in axes if varies[axis]]
    beside = any(v for axis, v in enumerate(varies) if axis not in axes)
    if not over:
        return
    if beside:
        for axis in over:
            t.book.unite(labels, labels.narrow(axis, 0, 1))
            t.book.keep_length(labels, axis, f"'{op.name.strip('_')}' over branches {t.where()}")
    elif len(over) == 1:
        t.statistic(op, labels, over[0])
    else:
        t.book.freeze(labels, f"'{op.name.strip('_')}' over several axes of channels {t.where()}")


@rule(
    "mean", "sum", "amax", "amin", "prod", "logsumexp", "linalg_vector_norm", "norm", "max", "min",
    "var", "std", "var_mean", "std_mean", "any", "all", "nansum",
)  # fmt: skip
def _reduce(t: Tracer, op: Op) -> Tensor | None:
    x = op.args[0]
    if op.name in ("max", "min") and len(op.inputs) == 2:
        return pointwise(t, op)
    labels = t.labels(x)
    if labels is None:
        freeze_everything(t, op)
        return None
    at = 2 if op.name in ("linalg_vector_norm", "norm") else 1
    dims = op.arg(at, "dim")
    if isinstance(dims, bool):
        dims = None
    axes = axes_of(dims, x.dim())
    _over(t, op, labels, axes)
    varies = compress(labels)[1]
    crossed = any(varies[axis] for axis in axes)
    beside = any(v for axis, v in enumerate(varies) if axis not in axes)
    for axis in sorted(axes, reverse=True):
        labels = labels.narrow(axis, 0, 1) if x.dim() else labels
    if crossed and not beside:
        labels = torch.full_like(labels, NONE)  # of all channels: a channel no more
    for out in outputs(op.out):
        kept = labels if out.dim() == x.dim() else labels.squeeze(tuple(axes))
        t.put(out, kept)
    return None


SPATIAL = {
    "max_pool1d": 1, "max_pool2d_with_indices": 2, "max_pool3d_with_indices": 3, "max_pool2d": 2,
    "avg_pool1d": 1, "avg_pool2d": 2, "avg_pool3d": 3, "_adaptive_avg_pool2d": 2,
    "_adaptive_avg_pool3d": 3, "adaptive_max_pool2d": 2, "adaptive_max_pool3d": 3,
    "upsample_nearest1d": 1, "upsample_nearest2d": 2, "upsample_nearest3d": 3,
    "_upsample_nearest_exact2d": 2, "upsample_linear1d": 1, "upsample_bilinear2d": 2,
    "upsample_trilinear3d": 3, "upsample_bicubic2d": 2, "_upsample_bilinear2d_aa": 2,
    "_upsample_bicubic2d_aa": 2, "reflection_pad1d": 1, "reflection_pad2d": 2,
    "reflection_pad3d": 3, "replication_pad1d": 1, "replication_pad2d": 2,
    "replication_pad3d": 3, "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2,
}  # fmt: skip


@rule(*SPATIAL)
def _spatial(t: Tracer, op: Op) -> Tensor | None:
    """Pooling, interpolation, padding by content: each channel for itself."""
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    space = SPATIAL[op.name]
    flat = labels.flatten(labels.dim() - space)
    (narrow,), _ = compress(flat)
    if narrow.shape[-1] > 1:
        t.book.unite(narrow, narrow[..., :1])
        narrow = narrow.amax(dim=-1, keepdim=True)
    channels = narrow.expand(*flat.shape[:-1], 1)
    for out in outputs(op.out):
        t.put(out, channels.view(*flat.shape[:-1], *[1] * space))
    return None
