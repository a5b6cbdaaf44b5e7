"""An independent crossing: run the DENSE network on values some of which are *absent*.

NaN marks what a cut removed: every removed slice of every parameter and buffer is filled with NaN, and
one forward pass in float64 runs on that, operator by operator. Element-wise operators and data movement
carry NaN along by themselves. Operators that contract or reduce get a form that knows about absence, the
definition of a network that never had those channels:

* a convolution or a matrix product skips the pairs that are absent on both sides, and refuses
  (:class:`Mismatch`) a pair that is absent on one side only: a coupling was missed or crossed;
* layer, group and weight normalisation, softmax, mean, sum, variance, norm and maximum count what is present.

Nothing of the engine is asked: the only input is which slices left, so a peer's cut is crossed alike.
What comes out must be present everywhere and equal to the cut network's output.
"""
# ruff: noqa: ARG001, ARG005, SLF001  # rules share one signature; operators have private names

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.flop_counter import flop_registry

from conformance.zeros import filled_with_zeros

Removed = Mapping[str, Mapping[int, Sequence[int]]]
NAN = float("nan")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32)
_aten = torch.ops.aten


class Mismatch(Exception):
    """An operator met a value that is absent on one side only, or the output holds absent values."""


class Double(TorchDispatchMode):
    """Casts and constants written in the code as float32 or coarser become float64."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _FLOATS:
            kwargs["dtype"] = torch.float64
        return self.call(func, args, kwargs)

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        return func(*args, **kwargs)


class Counting(Double):
    """Float64, and the multiply-adds of every convolution and product, as PyTorch's own table says."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator and count it."""
        made = func(*args, **kwargs)
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.macs += count(*args, **kwargs, out_val=made) // 2
        return made


class Absent(Double):
    """Float64, with the forms above for whatever has absent values among its operands."""

    def call(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator with respect to what is absent."""
        rule = _RULES.get(func.overloadpacket)
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if rule is None or not any(x.is_floating_point() and _any_nan(x) for x in given):
            return func(*args, **kwargs)
        return rule(func, args, kwargs)


def _any_nan(x: Tensor) -> bool:
    return bool(x.isnan().any())


def _filled(x: Tensor, value: float = 0.0) -> Tensor:
    return torch.where(x.isnan(), value, x)


def _expect(good: Tensor, what: str) -> None:
    if not bool(good.all()):
        raise Mismatch(f"{what}: absent on one side only")


# ---------------------------------------------------------------- contractions


def _convolution(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x, weight, bias, *rest = args
    transposed, groups = rest[3], rest[5]
    gone = x.isnan().transpose(0, 1).flatten(1)
    channels = gone.all(1)
    _expect(gone.any(1) == channels, "a convolution's input channel")
    taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).isnan()
    if transposed:  # [inputs, outputs / groups, ...]
        taps = taps.transpose(1, 2)
    absent = taps.flatten(2).all(2)  # [groups, outputs / groups]
    reads = taps.all(3)
    whole = (taps.any(3) == reads) | absent[:, :, None]
    _expect(whole, "a convolution's weight")
    # channels of zeros (padding) add nothing either way
    zero = (x == 0).transpose(0, 1).flatten(1).all(1)
    fits = (reads == channels.reshape(groups, 1, -1)) | reads & zero.reshape(groups, 1, -1)
    _expect(fits | absent[:, :, None], "a convolution's input and weight")
    out = func(_filled(x), _filled(weight), None if bias is None else _filled(bias), *rest)
    absent = absent.reshape(-1)
    if bias is not None:
        _expect(bias.isnan() == absent, "a convolution's bias and weight")
    return out.masked_fill(absent.reshape(1, -1, *[1] * (out.dim() - 2)), NAN)


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a [..., n, k] @ b [..., k, m]`` over the ``k`` that are present on both sides.

    What is zero throughout (the first state of a recurrent layer) is absent where the other side is: it adds
    nothing either way.
    """
    na, nb = a.isnan(), b.isnan()
    na = na | ((a == 0) | na).all(-2, keepdim=True) & nb.all(-1).unsqueeze(-2)
    rows, columns = na.all(-1, keepdim=True), nb.all(-2, keepdim=True)
    some = [(na & ~rows).any(-2), (nb & ~columns).any(-1)]
    every = [(na | rows).all(-2), (nb | columns).all(-1)]
    used = ~rows.all(-2) & ~columns.all(-1)  # is there a present row and a present column?
    for one, all_of in zip(some, every, strict=True):
        _expect((one == all_of) | ~used, "a product's operand")
    _expect((some[0] == some[1]) | ~used, "a product's operands")
    return (_filled(a) @ _filled(b)).masked_fill(rows | columns, NAN)


def _addmm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    made = product(args[1], args[2]) * kwargs.get("alpha", 1)
    return made + args[0] * kwargs.get("beta", 1)


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    made = product(args[0].reshape(-1, args[0].shape[-1]), args[1].t())
    made = made.reshape(*args[0].shape[:-1], -1)
    return made if len(args) < 3 or args[2] is None else made + args[2]


# ---------------------------------------------------------------- statistics


def _moments(x: Tensor, dims: Any, keepdim: bool, correction: float = 0) -> tuple[Tensor, Tensor]:
    mean = torch.nanmean(x, dims, keepdim=True)
    count = (~x.isnan()).sum(dims, keepdim=True)
    var = torch.nansum((x - mean) ** 2, dims, keepdim=True) / (count - correction)
    var = var.masked_fill(count == 0, NAN)
    if not keepdim:
        mean, var = (_squeeze(m, x, dims) for m in (mean, var))
    return mean, var


def _squeeze(kept: Tensor, x: Tensor, dims: Any) -> Tensor:
    dims = range(x.dim()) if dims is None else [dims] if isinstance(dims, int) else dims
    gone = {d % x.dim() for d in dims} or set(range(x.dim()))
    return kept.reshape([n for d, n in enumerate(kept.shape) if d not in gone])


def _layer_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    x, shape, weight, bias, eps = args
    dims = list(range(-len(shape), 0))
    mean, var = _moments(x, dims, True)
    return _scaled((x - mean) * (var + eps).rsqrt(), weight, bias), mean, (var + eps).rsqrt()


def _rms_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    x, shape, weight, eps = (*args, None)[:4]
    square = torch.nanmean(x * x, list(range(-len(shape), 0)), keepdim=True)
    scale = (square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return _scaled(x * scale, weight, None), scale


def _group_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, ...]:
    x, weight, bias, *_, groups, eps = args
    grouped = x.reshape(x.shape[0], groups, -1)
    mean, var = _moments(grouped, [2], True)
    made = ((grouped - mean) * (var + eps).rsqrt()).reshape(x.shape)
    along = (-1, *[1] * (x.dim() - 2))
    weight, bias = (None if p is None else p.reshape(along) for p in (weight, bias))
    return _scaled(made, weight, bias), mean, (var + eps).rsqrt()


def _scaled(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _batch_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """In training mode alone (standardised weights) does it count over a labelled axis."""
    x, weight, bias = args[:3]
    training = next(a for a in args[3:] if isinstance(a, bool))
    if not training:
        return func(*args, **kwargs)
    mean, var = _moments(x, [d for d in range(x.dim()) if d != 1], True)
    along = (-1, *[1] * (x.dim() - 2))
    weight, bias = (None if p is None else p.reshape(along) for p in (weight, bias))
    scale = (var + args[-1]).rsqrt()
    return _scaled((x - mean) * scale, weight, bias), mean.flatten(), scale.flatten()


def _weight_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    v, g, dim = (*args, 0)[:3]
    over = [d for d in range(v.dim()) if d != dim % v.dim()]
    length = torch.nansum(v * v, over, keepdim=True).sqrt()
    return v * (g / length), length


def _softmax(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    made = func(_filled(args[0], -torch.inf), *args[1:], **kwargs)
    return made.masked_fill(args[0].isnan(), NAN)


def _mean(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    dims = args[1] if len(args) > 1 else None
    return torch.nanmean(args[0], dims or None, keepdim=args[2] if len(args) > 2 else False)


def _sum(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _over_present(func, args, kwargs, 0.0)


def _greatest(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _over_present(func, args, kwargs, -torch.inf)


def _least(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return _over_present(func, args, kwargs, torch.inf)


def _over_present(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], neutral: float) -> Any:
    """Run with the neutral element in place of what is absent; all absent: absent."""
    made = func(_filled(args[0], neutral), *args[1:], **kwargs)
    gone = func(torch.where(args[0].isnan(), neutral, 1.0), *args[1:], **kwargs)
    if isinstance(made, tuple):
        return (made[0].masked_fill(gone[0] == neutral, NAN), *made[1:])
    return made.masked_fill(gone == neutral, NAN)


def _vector_norm(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return _over_present(func, args, kwargs, 0.0)


def _variance(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    x, dims = (*args, None)[:2]
    correction = kwargs.get("correction")
    found = _moments(x, dims, kwargs.get("keepdim", False), 1 if correction is None else correction)
    name = func.overloadpacket.__name__
    spread = found[1].sqrt() if name.startswith("std") else found[1]
    return (spread, found[0]) if name.endswith("mean") else spread


def _stays_absent(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """For element-wise operators whose comparisons may lose NaN."""
    gone = args[0].isnan()
    made = func(*args, **kwargs)
    return made.masked_fill_(gone, NAN) if made is args[0] else made.masked_fill(gone, NAN)


def _constant_pad(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A border around an absent channel is absent; along the channels, what is added is present."""
    gone = args[0].isnan()
    for i in range(0, len(args[1]), 2):
        dim = gone.dim() - 1 - i // 2
        whole = gone.all(dim, keepdim=True)
        if bool((whole == gone.any(dim, keepdim=True)).all()):
            gone = whole.expand_as(gone)
            size = gone.shape[dim] + args[1][i] + args[1][i + 1]
            gone = gone.narrow(dim, 0, 1).expand(*gone.shape[:dim], size, *gone.shape[dim + 1 :])
        else:
            gone = func(gone, [0] * i + list(args[1][i : i + 2]), False)
    return func(_filled(args[0]), *args[1:], **kwargs).masked_fill(gone, NAN)


_RULES: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((_aten.im2col, _aten.max_unpool2d), filled_with_zeros),
    _aten.convolution: _convolution,
    _aten.mm: lambda f, a, k: product(*a),
    _aten.bmm: lambda f, a, k: product(*a),
    _aten.mv: lambda f, a, k: product(a[0], a[1][:, None])[:, 0],
    _aten.addmm: _addmm,
    _aten.baddbmm: _addmm,
    _aten.linear: _linear,
    _aten.native_layer_norm: _layer_norm,
    _aten.native_group_norm: _group_norm,
    _aten._fused_rms_norm: _rms_norm,
    _aten.native_batch_norm: _batch_norm,
    _aten._native_batch_norm_legit: _batch_norm,
    _aten._weight_norm_interface: _weight_norm,
    _aten._softmax: _softmax,
    _aten._safe_softmax: _softmax,
    _aten._log_softmax: _softmax,
    _aten.mean: _mean,
    _aten.sum: _sum,
    _aten.amax: _greatest,
    _aten.max: _greatest,
    _aten.amin: _least,
    _aten.min: _least,
    _aten.var: _variance,
    _aten.std: _variance,
    _aten.var_mean: _variance,
    _aten.std_mean: _variance,
    _aten.linalg_vector_norm: _vector_norm,
    _aten.constant_pad_nd: _constant_pad,
    **dict.fromkeys(
        (
            *(_aten.relu, _aten.relu_, _aten.threshold, _aten.elu, _aten.elu_, _aten.clamp),
            *(_aten.clamp_, _aten.clamp_min, _aten.leaky_relu, _aten.leaky_relu_),
            *(_aten.hardtanh, _aten.hardtanh_, _aten.hardsigmoid, _aten.hardsigmoid_),
            *(_aten.hardswish, _aten.hardswish_),
        ),
        _stays_absent,
    ),
}


# ---------------------------------------------------------------- the crossing


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each tensor once."""
    return {**dict(model.named_buffers()), **dict(model.named_parameters())}


def outputs(
    model: nn.Module, inputs: Sequence[Tensor], mode: Callable[[], Double] = Double
) -> list[Tensor]:
    """Run a copy of a float64 network and return its floating outputs."""
    model = copy.deepcopy(model).double().eval()
    inputs = [x.double() if x.is_floating_point() else x.clone() for x in inputs]
    before = torch.get_default_dtype()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.set_default_dtype(torch.float64)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
            torch.manual_seed(0)
            with mode():
                found = tree_flatten(model(*inputs))[0]
    finally:
        torch.set_default_dtype(before)
        torch.backends.mha.set_fastpath_enabled(fast)
    return [x for x in found if isinstance(x, Tensor) and x.is_floating_point()]


def macs(model: nn.Module, inputs: Sequence[Tensor]) -> int:
    """Return how many multiply-adds a forward pass takes."""
    mode = Counting()
    outputs(model, inputs, lambda: mode)
    return mode.macs


def without(model: nn.Module, removed: Removed) -> nn.Module:
    """Return a float64 copy with NaN in every removed slice."""
    made = copy.deepcopy(model).double()
    tensors = tensors_of(made)
    with torch.no_grad():
        for name, dims in removed.items():
            for dim, indices in dims.items():
                tensors[name].index_fill_(dim, torch.as_tensor(sorted(set(indices))), NAN)
    return made


def reference(model: nn.Module, removed: Removed, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return what a network without the removed slices computes.

    Raises:
        Mismatch: there is no such network: the slices do not fit one another.
    """
    found = outputs(without(model, removed), inputs, Absent)
    if any(_any_nan(x) for x in found):
        raise Mismatch("the network's output holds absent values")
    return found


def relative_error(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest ``max|a - b| / max|b|`` over the outputs; other shapes: infinity."""
    if [x.shape for x in found] != [x.shape for x in wanted] or not wanted:
        return float("inf")
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, wanted, strict=True)
        if b.numel()
    ]
    return max((float("inf") if math.isnan(e) else e for e in errors), default=float("inf"))
