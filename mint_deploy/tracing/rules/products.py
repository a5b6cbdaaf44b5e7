"""Products of two activations: attention, and whatever else multiplies what was computed.

``a [B, M, K] @ b [B, K, N]``: labels along ``B`` (heads) leave together on both sides; along ``K`` they are
united pairwise, and the product is a statistic over those that stay; along ``M`` or ``N`` they pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_deploy.tracing.heads import HEADS, WIDTH
from mint_deploy.tracing.labels import NONE, compress
from mint_deploy.tracing.rules.table import Op, freeze_everything

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["product"]


def product(t: Tracer, op: Op, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return the labels of ``a @ b (+ bias)``; ``a`` and ``b`` are labels of two or three axes."""
    labels = _labels_of(t, op, a.view(-1, *a.shape[-2:]), b.view(-1, *b.shape[-2:]))
    if labels is None:
        return None
    labels = labels.expand(max(a.shape[0] if a.dim() > 2 else 1, 1), *op.out.shape[-2:])
    out = labels.reshape(op.out.shape)
    if bias is not None:
        known = t.labels(bias)
        if known is not None:
            t.book.unite(known.expand(op.out.shape), out)
            out = torch.where(out >= 0, out, known.to(out.dtype).expand(op.out.shape))
        elif t.is_parameter(bias):
            t.tie_parameter(bias, out)
    return out


def _labels_of(t: Tracer, op: Op, a: Tensor, b: Tensor) -> Tensor | None:
    heads_a, rows, inner_a = compress(a)[1]
    heads_b, inner_b, columns = compress(b)[1]
    if inner_a or inner_b:
        return _contracted(t, op, a, b, free=rows or columns, heads=(heads_a, heads_b))
    left, right = a[:, :, :1], b[:, :1, :]
    if rows and columns:
        freeze_everything(t, op, "product of channels with channels")
        return None
    if not rows and not columns:
        return _head_by_head(t, left[:, :1], right, heads_a, heads_b)
    side, other, heads = (left, right, heads_b) if rows else (right, left, heads_a)
    t.views.attend(side, WIDTH)
    if bool((other >= 0).any()):
        if heads:
            t.book.freeze(other, f"heads meet an activation that has none {t.where()}")
        else:
            t.book.freeze(other, f"weights positions of all channels {t.where()}")
    return side


def _contracted(
    t: Tracer, op: Op, a: Tensor, b: Tensor, *, free: bool, heads: tuple[bool, bool]
) -> Tensor | None:
    """Sum over channels: the same channel of both sides leaves."""
    known = bool((a >= 0).any()) and bool((b >= 0).any())
    if free or any(heads) or not known or op.name in ("dot", "mv"):
        why = "product over channels with " + (
            "channels beside them" if free else "heads beside them" if known else "a fixed matrix"
        )
        freeze_everything(t, op, why)
        return None
    t.views.attend(a, WIDTH)
    t.views.attend(b, WIDTH)
    t.book.unite(a[:, 0, :], b[:, :, 0])
    wide = a if compress(a)[1][2] else b.transpose(1, 2)
    t.statistic(op, wide, 2)
    return torch.full((1, 1, 1), NONE, dtype=a.dtype)


def _head_by_head(t: Tracer, a: Tensor, b: Tensor, heads_a: bool, heads_b: bool) -> Tensor:
    """Nothing but heads on either side."""
    if heads_a and heads_b:
        t.views.attend(a, HEADS)
        t.views.attend(b, HEADS)
        t.book.unite(a, b)
    elif heads_a or heads_b:
        single, several = (b, a) if heads_a else (a, b)
        if bool((single >= 0).any()):
            t.book.freeze(single, f"weights positions of all channels {t.where()}")
        return several
    elif bool((a >= 0).any()) and bool((b >= 0).any()):
        t.book.unite(a, b)
    return torch.where(a >= 0, a, b)
