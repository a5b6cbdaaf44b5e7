"""What each ATen operator does to labels.

A rule is ``rule(t, op) -> labels of the outputs`` (or ``None`` where it wrote them itself), found by
the operator's name. Data movement runs the SAME operator on the labels: the operator is its own
index map. Element-wise operators are known by ATen's own ``pointwise`` tag. An operator without
a rule freezes everything it touches and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mint_deploy.tracing.labels import NONE, compress
from mint_deploy.tracing.ledger import Layer

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["RULES", "Op", "freeze_everything", "pointwise"]


@dataclass
class Op:
    """One operator call: its name without the in-place mark, arguments, and result."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    inputs: list[Tensor]

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > index:
            return self.args[index]
        return self.kwargs.get(name, default)


Rule = Callable[["Tracer", Op], "Tensor | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under ATen operator names."""

    def register(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, made))
        return made

    return register


def _outputs(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [t for t in out if isinstance(t, Tensor)] if isinstance(out, (tuple, list)) else []


# ---------------------------------------------------------------- no rule, element-wise


def freeze_everything(t: Tracer, op: Op, reason: str = "") -> None:
    """Freeze all that goes in; what comes out freezes whatever it meets."""
    reason = reason or f"no rule for the operator '{op.name}'"
    reason = f"{reason} {t.where()}"
    for tensor in op.inputs:
        t.book.freeze(t.labels(tensor), reason)
        for name in t.parameters_behind(tensor):
            t.book.freeze_tensor(name, reason)
    sink = torch.tensor(t.book.sink(reason))
    for out in _outputs(op.out):
        t.put(out, sink)


def pointwise(t: Tracer, op: Op) -> Tensor | None:
    """Element-wise: labels that meet are united; a parameter that broadcasts along a channel is tied."""
    shape = op.out.shape if isinstance(op.out, Tensor) else _outputs(op.out)[0].shape
    labelled: list[Tensor] = []
    parameters: list[Tensor] = []
    for tensor in op.inputs:
        labels = t.labels(tensor)
        if labels is not None:
            labelled.append(labels[(None,) * (len(shape) - labels.dim())])
        elif tensor.numel() > 1 and t.is_parameter(tensor):
            parameters.append(tensor)
    if not labelled:
        if len(op.inputs) == 1 and parameters and t.moves_parameter(op):
            return None
        for tensor in parameters:
            t.computed_from(tensor, op)
        if parameters:
            return torch.tensor(t.book.sink(f"computed from parameters {t.where()}"))
        return None
    labelled = _without_gates(t, labelled, shape)
    out = labelled[0].expand(shape)
    for other in labelled[1:]:
        other = other.expand(shape)
        t.book.unite(out, other)
        (a, b), _ = compress(out, other)
        out = torch.where(a >= 0, a, b).expand(shape)
    for tensor in parameters:
        t.tie_parameter(tensor, out)
    return out


def _without_gates(t: Tracer, labelled: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """Drop operands of length 1 along an axis where another one's labels vary: gates over channels."""
    if len(labelled) < 2:
        return labelled
    varies = [compress(x)[1] for x in labelled]
    keep = []
    for labels in labelled:
        gates = any(
            labels.shape[axis] == 1 and any(v[axis] for v in varies) for axis in range(len(shape))
        )
        if gates:
            t.book.freeze(labels, f"gates all channels of another activation {t.where()}")
        else:
            keep.append(labels)
    return keep or labelled[:1]


# ---------------------------------------------------------------- convolution, linear, matmul


@rule("convolution", "_convolution", "convolution_overrideable", "mkldnn_convolution")
def _convolution(t: Tracer, op: Op) -> Tensor | None:
    x, weight, bias = op.args[0], op.args[1], op.arg(2, "bias")
    transposed, groups = bool(op.args[6]), int(op.args[8])
    axes = t.parameter_axes(weight)
    if axes is None:
        freeze_everything(t, op, "its weight is computed in the forward pass")
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
            bias=t.parameter_name(bias) if bias is not None else None,
            in_dim=in_dim,
            out_dim=out_dim,
            groups=groups,
            taps=kernel,
            positions=positions,
        ),
        op.out,
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
        t.book.freeze(labels, "grouped transposed convolution " + t.where())
        for nodes in axes:
            t.book.freeze(nodes, "grouped transposed convolution " + t.where())
        outputs = torch.full((op.out.shape[1],), t.book.sink("grouped transposed convolution"))
        return outputs.to(torch.int64)
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
        return _product(t, op, labels_a, labels_b, bias)
    if labels_b is not None and not t.is_parameter(a):
        return _product(t, op, torch.full_like(a, NONE, dtype=torch.int32), labels_b, bias)
    if labels_a is not None and not t.is_parameter(b):
        return _product(t, op, labels_a, torch.full_like(b, NONE, dtype=torch.int32), bias)
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
    )
    return nodes_out.expand(op.out.shape)


def _product(t: Tracer, op: Op, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    """Two activations: labels pass where the contraction is over positions; else all is frozen."""
    _, varies_a = compress(a)
    _, varies_b = compress(b)
    if not varies_a[-1] and not varies_b[-2] and bias is None:
        if not varies_a[-2] and bool((a >= 0).any()) and varies_b[-1]:
            t.book.freeze(a, "weights positions of all channels " + t.where())
            return b[..., :1, :].expand(op.out.shape)
        if varies_a[-2] and not varies_b[-1]:
            t.book.freeze(b, "weights positions of all channels " + t.where())
            return a[..., :1].expand(op.out.shape)
    freeze_everything(t, op, "product of two activations over channels")
    return None


# ---------------------------------------------------------------- normalisation, softmax, reductions


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


@rule("native_layer_norm", "native_group_norm", "_fused_rms_norm", "rms_norm")
def _norm_over_channels(t: Tracer, op: Op) -> Tensor | None:
    """Statistics over channels change when one leaves: frozen, unless nothing varies there."""
    x = op.args[0]
    labels = t.labels(x)
    parameters = [p for p in op.inputs[1:] if t.is_parameter(p)]
    if labels is None:
        for p in parameters:
            t.computed_from(p, op)
        return None
    if op.name == "native_group_norm":
        over = list(range(1, x.dim()))
    else:
        over = list(range(x.dim() - len(op.args[1]), x.dim()))
    _, varies = compress(labels)
    name = op.name.removeprefix("native_").replace("_", " ")
    reason = f"statistics over channels ({name}) {t.where()}"
    if any(varies[axis] for axis in over):
        t.book.freeze(labels, reason)
    for p in parameters:
        for parameter in t.parameters_behind(p):
            t.book.freeze_tensor(parameter, reason)
    out = op.out[0] if isinstance(op.out, (tuple, list)) else op.out
    t.put(out, labels)
    return None


def _axes(dims: Any, rank: int) -> list[int]:
    if dims is None or (isinstance(dims, (tuple, list)) and not dims):
        return list(range(rank))
    dims = dims if isinstance(dims, (tuple, list)) else [dims]
    return [int(d) % max(1, rank) for d in dims]


@rule("_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "_safe_softmax")
def _along_axis(t: Tracer, op: Op) -> Tensor | None:
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    _merge(t, op, labels, _axes(op.args[1], labels.dim())[:1])
    return labels


def _merge(t: Tracer, op: Op, labels: Tensor, axes: list[int]) -> None:
    """What lies along ``axes`` leaves together (stacked branches, say), or stays if that is everything."""
    for axis in axes:
        if compress(labels)[1][axis]:
            t.book.unite(labels, labels.narrow(axis, 0, 1))
            t.book.keep_length(labels, axis, f"'{op.name.strip('_')}' over channels {t.where()}")


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
    axes = _axes(dims, x.dim())
    _merge(t, op, labels, axes)
    for axis in sorted(axes, reverse=True):
        labels = labels.narrow(axis, 0, 1) if x.dim() else labels
    for out in _outputs(op.out):
        kept = labels if out.dim() == x.dim() else labels.squeeze(tuple(axes))
        t.put(out, kept)
    return None


_SPATIAL = {
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


@rule(*_SPATIAL)
def _spatial(t: Tracer, op: Op) -> Tensor | None:
    """Pooling, interpolation, padding by content: each channel for itself."""
    labels = t.labels(op.args[0])
    if labels is None:
        return None
    space = _SPATIAL[op.name]
    flat = labels.flatten(labels.dim() - space)
    (narrow,), _ = compress(flat)
    if narrow.shape[-1] > 1:
        t.book.unite(narrow, narrow[..., :1])
        narrow = narrow.amax(dim=-1, keepdim=True)
    channels = narrow.expand(*flat.shape[:-1], 1)
    for out in _outputs(op.out):
        t.put(out, channels.view(*flat.shape[:-1], *[1] * space))
    return None


# ---------------------------------------------------------------- data movement


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
    joined: Tensor = torch.cat(filled, axis) if op.name == "cat" else torch.stack(filled, axis)
    return joined


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


@rule("roll", "index_select", "index", "gather", "take_along_dim")
def _select(t: Tracer, op: Op) -> Tensor | None:
    """Indices that are written in code or data: axes along which they choose keep their length."""
    labels = t.labels(op.args[0])
    if labels is None or any(t.labels(x) is not None for x in op.inputs[1:]):
        freeze_everything(t, op, f"'{op.name}' with indices")
        return None
    if op.name == "index":
        chosen = [i for i, index in enumerate(op.args[1]) if index is not None]
    elif op.name == "roll":
        chosen = _axes(op.arg(2, "dims", ()), labels.dim())
    else:
        chosen = [int(op.args[1]) % labels.dim()]
    for axis in chosen:
        t.book.keep_length(labels, axis, f"channels are chosen by fixed indices {t.where()}")
    moved: Tensor = op.func(labels.contiguous(), *op.args[1:], **op.kwargs)
    return moved


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
