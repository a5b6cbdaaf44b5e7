"""One bit beside every element of every activation: may it depend on the network's input?

Weights and buffers do not. A convolution's output channel does only if it reads, with a weight other than zero, a
channel that does; a BatchNorm's only if its scale is not zero; a product only if no factor is a zero that
nobody can change. An operator without a rule passes the bit from any operand to its whole result: what is called
constant is constant, and what is missed costs a unit and never a wrong cut.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mint_deploy.tracing.labels import LabelStore
from mint_deploy.tracing.rules.statistics import axes_of

__all__ = ["CONVOLUTIONS", "NORMS", "PRODUCTS", "ROUNDING", "Bits", "by_channel", "uniform"]

#: two values of a constant that differ by less, relatively, differ by rounding
ROUNDING = 1e-12
CONVOLUTIONS = {"convolution", "_convolution"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear"}
NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "_batch_norm_no_update", "cudnn_batch_norm",
}  # fmt: skip
_WINDOWS = {
    "max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d",
}  # fmt: skip
_MOVES = {
    "cat", "stack", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle",
    "native_channel_shuffle", "repeat", "flip", "roll", "repeat_interleave", "reflection_pad1d",
    "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "clone", "contiguous", "copy", "_to_copy",
}  # fmt: skip
_POINTWISE = {
    "relu", "relu6", "hardtanh", "threshold", "elu", "leaky_relu", "softplus", "gelu", "silu", "mish",
    "celu", "selu", "hardswish", "hardsigmoid", "clamp", "_prelu_kernel", "where", "masked_fill",
}  # fmt: skip
#: numbers made from sizes, which another image changes, or from nothing
_COUNTED = {
    "arange", "linspace", "logspace", "eye", "tril_indices", "triu_indices", "empty", "empty_like",
    "new_empty", "empty_strided", "new_empty_strided",
}  # fmt: skip
#: of a constant, these too change with the size
_SUMS = {"sum", "nansum", "prod", "cumsum", "cumprod", "norm", "linalg_vector_norm", "logsumexp"}


class Bits:
    """The bits of all activations, and what each operator does to them.

    ``lost`` says why nothing can be said any more; "" where all is well.
    """

    def __init__(self) -> None:
        self.lost = ""
        self._marks = LabelStore(torch.int8)

    def lose(self, why: str) -> None:
        """Nothing can be said any more (the first reason stays)."""
        self.lost = self.lost or why

    def hold(self, tensor: Tensor) -> None:
        """Keep a storage alive, so that its address means it and nothing else."""
        self._marks.hold(tensor)

    def of(self, tensor: Tensor) -> Tensor:
        """Return whether each element may depend on the input, bool of the same shape."""
        marks = self._marks.get(tensor)
        if marks is not None:
            return marks > 0
        return torch.tensor(tensor in self._marks).expand(tensor.shape)

    def mark(self, tensor: Tensor, bits: Tensor) -> None:
        """Write the bits of ``tensor`` (broadcast to its shape)."""
        if tensor.layout == torch.strided:
            self._marks.put(tensor, bits.to(torch.int8))
        elif bool(bits.any()):
            self.lose(f"activations are stored as {tensor.layout}")

    def after(
        self, base: str, func: Any, args: Any, kwargs: Any, inputs: list[Tensor], outs: list[Tensor]
    ) -> Tensor:
        """Return the bits of an operator's (first) result."""
        if torch.Tag.nondeterministic_seeded in func.tags or base in _COUNTED:
            return torch.tensor(True)
        found = [self.of(x) for x in inputs]
        if base in CONVOLUTIONS:
            return self._convolution(args, outs[0])
        if base in _WINDOWS:
            return self._windows(base, args[0], outs[0])
        if base in ("mean", "amax", "amin") and args[0].dim() and args[0].is_floating_point():
            return self._reduced(args, kwargs, outs[0])
        if not any(bool(x.any()) for x in found):
            return torch.tensor(base in _SUMS and any(bool((x != 0).any()) for x in inputs))
        if base in PRODUCTS:
            return self._product(base, args, kwargs)
        if base in NORMS:
            return self._batch_norm(func, args)
        if base == "mul":
            a, b = (self._factor(x) for x in (args[0], args[1]))
            return (a[0] & b[1]) | (b[0] & a[1])
        if base in _MOVES:
            return self._moved(base, func, args, kwargs)
        if base in ("index_select", "index", "gather") and not any(
            bool(x.any()) for x in found[1:]
        ):
            moved: Tensor = func(found[0].contiguous(), *args[1:], **kwargs)
            return moved
        if base in _POINTWISE or torch.Tag.pointwise in func.tags:
            return _either(found)
        return torch.tensor(True)

    def _factor(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return, per element of an operand, whether it depends on the input; whether it may be other than 0."""
        if not isinstance(x, Tensor):
            return torch.tensor(False), torch.tensor(bool(x != 0))
        bits = self.of(x)
        return bits, bits | (x != 0)

    def _moved(self, base: str, func: Any, args: Any, kwargs: Any) -> Tensor:
        if base == "copy":
            return self.of(args[1]).expand(args[0].shape)
        if base in ("clone", "contiguous", "_to_copy"):
            return self.of(args[0])
        first = args[0]
        if base in ("cat", "stack"):
            moved: Tensor = func([self.of(x).contiguous() for x in first], *args[1:], **kwargs)
            return moved
        rest = args[1:2] if base == "constant_pad_nd" else args[1:]
        moved = func(self.of(first).contiguous().to(torch.float32), *rest, **kwargs)
        return moved > 0

    def _convolution(self, args: Any, out: Tensor) -> Tensor:
        """Per channel: where its padding or stride lets no input in is not asked."""
        x, weight, bias, transposed, groups = args[0], args[1], args[2], args[6], int(args[8])
        if bool(self.of(weight).any()) or (bias is not None and bool(self.of(bias).any())):
            return torch.tensor(True)
        reads = (weight != 0).flatten(2).any(2)
        if transposed:
            reads = reads.view(groups, -1, reads.shape[1]).transpose(1, 2).flatten(0, 1)
        channels = by_channel(self.of(x), 1).any(1)
        parts = channels.view(groups, 1, -1) & reads.view(groups, -1, reads.shape[1])
        return _over_channels(parts.any(2).flatten() | ~uniform(by_channel(out, 1)), out)

    def _product(self, base: str, args: Any, kwargs: Any) -> Tensor:
        bias: Any = None
        if base == "linear":
            a, b, bias = args[0], args[1].t(), args[2] if len(args) > 2 else kwargs.get("bias")
        elif base in ("addmm", "baddbmm"):
            bias, a, b = args[:3]
        else:
            a, b = args[:2]
        (bits_a, may_a), (bits_b, may_b) = self._factor(a), self._factor(b)
        found = torch.zeros((), dtype=torch.bool)
        if not bool(bits_b.any()) and b.dim() == 2:  # a layer: per feature
            features = bits_a.flatten(0, -2).any(0)
            found = (features.float() @ may_b.float() > 0).expand(*a.shape[:-1], -1)
        else:
            for left, right in ((bits_a, may_b), (may_a, bits_b)):
                found = found | (torch.matmul(left.float(), right.float()) > 0)
        return found if bias is None else found | self.of(bias)

    def _batch_norm(self, func: Any, args: Any) -> Tensor:
        x, weight = args[0], args[1]
        training = "no_training" not in func._schema.name and "no_update" not in func._schema.name
        if training and (func._overloadname == "no_stats" or bool(args[5])):
            return torch.tensor(True)
        if any(bool(self.of(p).any()) for p in args[1:5] if isinstance(p, Tensor)):
            return torch.tensor(True)
        if weight is None:
            return self.of(x)
        return self.of(x) & _over_channels(weight != 0, x)

    def _windows(self, base: str, x: Tensor, out: Tensor) -> Tensor:
        """Pooling and interpolation, each channel for itself; an uneven constant counts as changing."""
        axis = x.dim() - next(int(c) for c in base if c.isdigit()) - 1
        bits = by_channel(self.of(x), axis).any(1) | ~uniform(by_channel(x, axis))
        return _over_channels(bits | ~uniform(by_channel(out, axis)), out, axis)

    def _reduced(self, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        x = args[0]
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        axes = axes_of(dims, x.dim())
        spread = x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)
        uneven: Tensor = spread > ROUNDING * x.abs().amax(axes, keepdim=True)
        bits = self.of(x).any(dim=axes[0], keepdim=True)
        for axis in axes[1:]:
            bits = bits.any(dim=axis, keepdim=True)
        return (bits | uneven).view(out.shape)


def _either(found: list[Tensor]) -> Tensor:
    bits = found[0]
    for other in found[1:]:
        bits = bits | other
    return bits


def by_channel(x: Tensor, axis: int) -> Tensor:
    """``[.., C, ..]`` -> ``[C, everything else]``."""
    return x.movedim(axis, 0).reshape(x.shape[axis], -1)


def _over_channels(channels: Tensor, like: Tensor, axis: int = 1) -> Tensor:
    """``[C]`` -> the shape of ``like``, the same everywhere in a channel."""
    shape = [1] * like.dim()
    shape[axis] = -1
    return channels.view(shape).expand(like.shape)


def uniform(values: Tensor) -> Tensor:
    """Whether each row of ``[C, n]`` holds one value, up to rounding."""
    if not values.shape[1]:
        return torch.ones(len(values), dtype=torch.bool)
    low, high = values.amin(1), values.amax(1)
    return (high - low) <= ROUNDING * torch.maximum(low.abs(), high.abs())
