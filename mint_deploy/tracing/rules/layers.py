"""Convolution, linear, matrix products: who reads which channels, who makes new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mint_deploy.tracing.labels import NONE, compress
from mint_deploy.tracing.ledger import Layer
from mint_deploy.tracing.rules.computed import how_computed
from mint_deploy.tracing.rules.products import product
from mint_deploy.tracing.rules.table import Op, freeze_everything, rule

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def _convolution(t: Tracer, op: Op) -> Tensor | None:
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    transposed, groups = bool(op.args[6]), int(op.args[8])
    axes = t.parameter_axes(weight)
    if axes is None:
        freeze_everything(t, op, how_computed(t, weight))
        return None
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    labels = t.labels(x)
    if labels is None:
        t.book.freeze(axes[in_dim], "reads a constant " + t.where())
        labels = torch.full((), NONE, dtype=torch.int32).expand(x.shape)
    nodes_in, nodes_out = axes[in_dim], axes[out_dim]
    if groups > 1:
        nodes_out = _grouped(t, op, labels, axes, groups, transposed=transposed)
    else:
        t.read_channels(nodes_in, labels, axis=1)
    t.book.touch(nodes_out)
    if bias is not None:
        t.tie_parameter(bias, nodes_out)
    kernel = weight.shape[2:].numel()
    positions = (x if transposed else op.out).shape[2:].numel() * x.shape[0]
    t.add_layer(
        Layer(
            name="",
            kind="conv_transpose" if transposed else "conv",
            weight=t.parameter_name(weight),
            bias=t.parameter_name(bias) if bias is not None and t.is_parameter(bias) else None,
            in_dim=in_dim,
            out_dim=out_dim,
            groups=groups,
            taps=kernel,
            positions=positions,
        ),
        op.out,
        t.parameters_behind(weight)[1:],
    )
    return nodes_out.view(-1, *[1] * (op.out.dim() - 2)).expand(op.out.shape)


def _grouped(
    t: Tracer, op: Op, labels: Tensor, axes: list[Tensor], groups: int, *, transposed: bool
) -> Tensor:
    """Grouped and depthwise convolution: every group keeps the same positions; returns output nodes.

    Depthwise (one input channel a group): the input channel, its slices of the weight and its
    ``multiplier`` outputs are one unit, and ``groups`` counts the units.
    """
    channels = labels.shape[1]
    per_group = channels // groups
    if transposed:
        return _grouped_transposed(t, labels, axes, groups)
    outputs = axes[0].view(groups, -1)
    if per_group == 1:
        t.read_channels(outputs[:, 0], labels, axis=1)
        if outputs.shape[1] > 1:
            t.book.unite(outputs, outputs[:, :1])
        t.count(t.argument("groups", 6), outputs[:, 0], "groups of a depthwise convolution")
        return axes[0]
    positions = axes[1].repeat(groups)
    t.read_channels(positions, labels, axis=1)
    t.book.unite(outputs, outputs[:1])
    return axes[0]


def _grouped_transposed(t: Tracer, labels: Tensor, axes: list[Tensor], groups: int) -> Tensor:
    """The same with the weight's dimensions swapped: ``[inputs, outputs a group, ..]``."""
    t.read_channels(axes[0], labels, axis=1)
    if len(axes[0]) == groups:
        t.count(t.argument("groups", 6), axes[0], "groups of a depthwise convolution")
        return axes[0].repeat_interleave(len(axes[1]))
    rows = axes[0].view(groups, -1)
    t.book.unite(rows, rows[:1])
    return axes[1].repeat(groups)


@rule("addmm", "mm", "bmm", "baddbmm", "linear", "addbmm", "dot", "mv", "addmv")
def _matmul(t: Tracer, op: Op) -> Tensor | None:
    bias: Tensor | None = None
    if op.name == "linear":
        a, b, bias = op.args[0], op.args[1].t(), op.arg(2, "bias")
    elif op.name in ("addmm", "baddbmm"):
        bias, a, b = op.args[0], op.args[1], op.args[2]
    elif op.name in ("mm", "bmm"):
        a, b = op.args[0], op.args[1]
    else:
        freeze_everything(t, op)
        return None
    labels_a, labels_b = t.labels(a), t.labels(b)
    axes_b = t.parameter_axes(b) if labels_b is None else None
    if labels_a is not None and axes_b is not None:
        return _linear(t, op, a, labels_a, b, axes_b, bias)
    if labels_a is None and labels_b is None and axes_b is not None and not t.is_parameter(a):
        labels_a = torch.full((), NONE, dtype=torch.int32).expand(a.shape)
        return _linear(t, op, a, labels_a, b, axes_b, bias)
    if labels_a is not None and labels_b is not None:
        return product(t, op, labels_a, labels_b, bias)
    if labels_b is not None and not t.is_parameter(a):
        return product(t, op, torch.full_like(a, NONE, dtype=torch.int32), labels_b, bias)
    if labels_a is not None and not t.is_parameter(b):
        return product(t, op, labels_a, torch.full_like(b, NONE, dtype=torch.int32), bias)
    freeze_everything(t, op, "a parameter multiplies an activation from the left")
    return None


def _linear(
    t: Tracer, op: Op, a: Tensor, labels: Tensor, b: Tensor, axes: list[Tensor], bias: Tensor | None
) -> Tensor | None:
    """``[.., M, K] @ [K, N]`` with a parameter on the right."""
    nodes_in, nodes_out = axes[-2], axes[-1]
    _, varies = compress(labels)
    if varies[-2] and not varies[-1] and a.shape[-1] > 1:
        why = "mixes positions, not channels " + t.where()
        t.book.freeze(nodes_in, why)
        t.book.freeze(nodes_out, why)
        return labels[..., :1].expand(op.out.shape)
    if bool((labels < 0).all()):
        t.book.freeze(nodes_in, "reads a constant " + t.where())
    t.read_channels(nodes_in, labels, axis=-1)
    t.book.touch(nodes_out)
    if bias is not None:
        t.tie_parameter(bias, nodes_out)
    name = t.parameter_name(b)
    in_dim = t.dimension_of(name, nodes_in)
    t.add_layer(
        Layer(
            name="",
            kind="linear",
            weight=name,
            bias=t.parameter_name(bias) if bias is not None and t.is_parameter(bias) else None,
            in_dim=in_dim,
            out_dim=1 - in_dim,
            groups=1,
            taps=1,
            positions=a.shape[:-1].numel(),
        ),
        op.out,
        t.parameters_behind(b)[1:],
    )
    return nodes_out.expand(op.out.shape)
