"""Positions that are chosen, gathered, scattered, sampled or transformed; channels pass them by, or stay.

What runs over positions treats each channel for itself. What orders, compares or picks *channels* fixes their
number and their order: those stay, and the reason names the operator.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_deploy.tracing.labels import compress
from mint_deploy.tracing.ledger import Layer
from mint_deploy.tracing.rules.statistics import axes_of
from mint_deploy.tracing.rules.table import Op, freeze_everything, outputs, rule

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer


def _varies(labels: Tensor, axes: Iterable[int]) -> bool:
    varies = compress(labels)[1]
    return any(varies[axis] for axis in axes)


def _first(labels: Tensor, axes: Iterable[int]) -> Tensor:
    """Narrow axes along which nothing varies to length 1."""
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    return labels


def _steers(t: Tracer, op: Op, tensors: Iterable[Tensor | None]) -> None:
    """Activations that say where to look: a channel among them would change what they say."""
    for tensor in tensors:
        if tensor is None:
            continue
        t.book.freeze(t.labels(tensor), f"says which positions '{op.name}' takes {t.where()}")
        for name in t.parameters_behind(tensor):
            t.book.freeze_tensor(name, f"says which positions '{op.name}' takes {t.where()}")


# ---------------------------------------------------------------- chosen by indices


@rule("roll", "index_select", "index", "gather", "take_along_dim")
def _select(t: Tracer, op: Op) -> Tensor | None:
    """Along positions, channels pass; channels that fixed indices choose keep their number."""
    labels = t.labels(op.args[0])
    if labels is None:
        if any(t.labels(x) is not None for x in op.inputs[1:]) or not t.moves_parameter(op):
            freeze_everything(t, op, f"'{op.name}' with indices")
        return None
    if op.name == "index":
        given = list(op.args[1])
        chosen = [i for i, index in enumerate(given) if index is not None]
        if any(x is not None and x.dtype == torch.bool for x in given):
            return _masked(t, op, labels)
    elif op.name == "roll":
        chosen = axes_of(op.arg(2, "dims", ()), labels.dim())
    else:
        chosen = [int(op.args[1]) % labels.dim()]
    known = [x for x in map(t.labels, op.inputs[1:]) if x is not None]
    if known and (_varies(labels, chosen) or any(any(compress(x)[1]) for x in known)):
        freeze_everything(t, op, f"'{op.name}' with indices that are computed")
        return None
    _steers(t, op, op.inputs[1:])
    for axis in chosen:
        t.book.keep_length(labels, axis, f"channels are chosen by fixed indices {t.where()}")
    moved: Tensor = op.func(labels.contiguous(), *op.args[1:], **op.kwargs)
    return moved


def _masked(t: Tracer, op: Op, labels: Tensor) -> Tensor | None:
    """``x[mask]``: as many rows as there are positions in the mask."""
    axes: list[int] = []
    at = 0
    for index in op.args[1]:
        wide = index.dim() if index is not None and index.dtype == torch.bool else 1
        axes += list(range(at, at + wide)) if index is not None else []
        at += wide
    first = op.args[1][0]
    rows = first.dim() if first is not None and first.dtype == torch.bool else 0
    if _varies(labels, axes) or axes != list(range(rows)):
        freeze_everything(t, op, f"'{op.name}' with a mask over channels")
        return None
    _steers(t, op, op.inputs[1:])
    return _first(labels, axes).reshape(1, *labels.shape[rows:]).expand(op.out.shape)


@rule(
    "scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_put",
    "_index_put_impl", "masked_scatter",
)  # fmt: skip
def _scatter(t: Tracer, op: Op) -> Tensor | None:
    """Writing at chosen positions: what is written is of the same channel as what was there."""
    own = op.args[0]
    labels = t.labels(own)
    if op.name in ("index_put", "_index_put_impl", "masked_scatter"):
        source = op.args[2]
    else:
        source = op.arg(3, "source" if op.name in ("index_add", "index_copy") else "src")
    written = t.labels(source) if isinstance(source, Tensor) else None
    steering = [x for x in op.inputs[1:] if x is not source]
    if op.name in ("index_put", "_index_put_impl", "masked_scatter"):
        plain = written is None and not (isinstance(source, Tensor) and t.is_parameter(source))
        chosen = (
            [i for i, x in enumerate(op.args[1]) if x is not None]
            if op.name != "masked_scatter"
            else []
        )
        bools = any(x.dtype == torch.bool for x in steering)
        if (
            labels is None
            or not plain
            or (bools and any(compress(labels)[1]))
            or _varies(labels, chosen)
        ):
            freeze_everything(t, op, f"'{op.name}' at chosen places")
            return None
        _steers(t, op, steering)
        return labels
    axis = int(op.args[1]) % max(1, own.dim())
    crossed = any(
        x is not None and x.dim() == own.dim() and _varies(x, [axis]) for x in (labels, written)
    )
    computed = any(x is not None and any(compress(x)[1]) for x in map(t.labels, steering))
    if crossed or computed or t.is_parameter(own):
        freeze_everything(t, op, f"'{op.name}' over channels")
        return None
    _steers(t, op, steering)
    known = [_first(x, [axis]) for x in (labels, written) if x is not None and x.dim() == own.dim()]
    if not known or any(x.shape != known[0].shape for x in known):
        freeze_everything(t, op, f"'{op.name}' of unlike shapes")
        return None
    t.book.unite(known[0], known[-1])
    return torch.where(known[0] >= 0, known[0], known[-1])


# ---------------------------------------------------------------- ordered


@rule("argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "median", "nanmedian", "mode")
def _ordered(t: Tracer, op: Op) -> Tensor | None:
    """The largest, the order: of positions for each channel, or of channels, which stay."""
    labels = t.labels(op.args[0])
    if labels is None:
        freeze_everything(t, op)
        return None
    at = 2 if op.name in ("topk", "kthvalue") else 1
    last = -1 if op.name in ("topk", "kthvalue", "sort", "argsort", "mode") else None
    dim = op.arg(at, "dim", last)
    axes = axes_of(dim if not isinstance(dim, bool) else -1, labels.dim())
    if _varies(labels, axes):
        freeze_everything(t, op, f"'{op.name}' over channels")
        return None
    narrow = _first(labels, axes)
    for out in outputs(op.out):
        t.put(out, narrow if out.dim() == labels.dim() else narrow.squeeze(tuple(axes)))
    return None


@rule("tril", "triu")
def _triangle(t: Tracer, op: Op) -> Tensor | None:
    """A triangle of positions; one of channels would change its shape."""
    labels = t.labels(op.args[0])
    if labels is None or _varies(labels, [labels.dim() - 2, labels.dim() - 1]):
        freeze_everything(t, op, f"'{op.name}' over channels")
        return None
    return labels


@rule("_cdist_forward", "_euclidean_dist", "cdist", "pairwise_distance", "pdist", "_pdist_forward")
def _distances(t: Tracer, op: Op) -> Tensor | None:
    freeze_everything(t, op, f"distances over channels ('{op.name}')")
    return None


# ---------------------------------------------------------------- sampled


@rule("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "cudnn_grid_sampler")
def _sampled(t: Tracer, op: Op) -> Tensor | None:
    x, grid = op.args[:2]
    labels = t.labels(x)
    space = range(2, x.dim())
    if labels is None or _varies(labels, space):
        freeze_everything(t, op, f"'{op.name}' of channels that differ along space")
        return None
    _steers(t, op, [grid])
    return _first(labels, space).expand(op.out.shape)


@rule("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "_roi_align_forward")
def _regions(t: Tracer, op: Op) -> Tensor | None:
    """``[N, C, H, W]`` and boxes -> ``[boxes, C, h, w]``; the position-sensitive kind mixes channels."""
    labels = t.labels(op.args[0])
    if labels is None or op.name.startswith("ps_") or _varies(labels, (0, 2, 3)):
        freeze_everything(t, op, f"'{op.name}' takes channels by position")
        return None
    _steers(t, op, op.inputs[1:])
    for out in outputs(op.out):
        t.put(out, _first(labels, (0, 2, 3)))
    return None


@rule("deform_conv2d")
def _deformable(t: Tracer, op: Op) -> Tensor | None:
    """A convolution whose taps move; who moves them is left alone."""
    x, weight, offset, mask, bias = op.args[:5]
    groups, offset_groups = int(op.args[11]), int(op.args[12])
    labels, axes = t.labels(x), t.parameter_axes(weight)
    if labels is None or axes is None or groups > 1 or offset_groups > 1:
        freeze_everything(t, op, "a deformable convolution in groups, or with a computed weight")
        return None
    _steers(t, op, [offset, mask])
    t.read_channels(axes[1], labels, axis=1)
    t.book.touch(axes[0])
    t.tie_parameter(bias, axes[0])
    t.add_layer(
        Layer(
            name="", kind="conv", weight=t.parameter_name(weight),
            bias=t.parameter_name(bias) if t.is_parameter(bias) else None, in_dim=1, out_dim=0,
            groups=1, taps=weight.shape[2:].numel(),
            positions=op.out.shape[2:].numel() * x.shape[0],
        ),
        op.out,
    )  # fmt: skip
    return axes[0].view(1, -1, 1, 1).expand(op.out.shape)


@rule("max_unpool2d", "max_unpool3d")
def _unpooled(t: Tracer, op: Op) -> Tensor | None:
    """Values go back to where their channel's largest were."""
    labels, where = t.labels(op.args[0]), t.labels(op.args[1])
    space = range(labels.dim() - int(op.name[-2]), labels.dim()) if labels is not None else ()
    if labels is None or _varies(labels, space):
        freeze_everything(t, op)
        return None
    if where is not None:
        t.book.unite(labels, where)
    return _first(labels, space).expand(op.out.shape)


@rule(
    "fractional_max_pool2d", "fractional_max_pool3d", "_upsample_nearest_exact1d",
    "_upsample_nearest_exact3d", "upsample_bicubic1d",
)  # fmt: skip
def _resized(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None or _varies(labels, range(2, labels.dim())):
        freeze_everything(t, op)
        return None
    for out in outputs(op.out):
        t.put(out, _first(labels, range(2, labels.dim())))
    return None


# ---------------------------------------------------------------- windows


@rule("im2col")
def _windows(t: Tracer, op: Op) -> Tensor | None:
    """``[N, C, H, W]`` -> ``[N, C * taps, windows]``: every channel lies at as many places as there are taps."""
    x, taps = op.args[0], int(torch.tensor(op.args[1]).prod())
    labels = t.labels(x)
    at = x.dim() - 3
    if labels is None or _varies(labels, (at + 1, at + 2)):
        freeze_everything(t, op)
        return None
    line = _first(labels, (at + 1, at + 2)).flatten(-2).contiguous()
    return line.repeat_interleave(taps, at).expand(op.out.shape)


@rule("col2im")
def _folded(t: Tracer, op: Op) -> Tensor | None:
    """The inverse: the taps of a channel leave together."""
    x, taps = op.args[0], int(torch.tensor(op.args[2]).prod())
    labels = t.labels(x)
    at = x.dim() - 2
    if labels is None or _varies(labels, [at + 1]):
        freeze_everything(t, op)
        return None
    rows = _first(labels, [at + 1]).squeeze(-1)
    rows = rows.reshape(*rows.shape[:-1], -1, taps)
    t.book.unite(rows, rows[..., :1])
    channels: Tensor = rows[..., :1, None].expand(*rows.shape[:-1], 1, 1)
    return channels.expand(op.out.shape)


# ---------------------------------------------------------------- Fourier


@rule("_fft_r2c", "_fft_c2r", "_fft_c2c")
def _fourier(t: Tracer, op: Op) -> Tensor | None:
    """Over positions each channel has its own spectrum; over channels it belongs to all."""
    labels = t.labels(op.args[0])
    if labels is None:
        freeze_everything(t, op)
        return None
    axes = axes_of(op.args[1], labels.dim())
    if _varies(labels, axes):
        freeze_everything(t, op, f"a Fourier transform over channels ('{op.name}')")
        return None
    return _first(labels, axes).expand(op.out.shape)
