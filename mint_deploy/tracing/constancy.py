"""Which channels are the same whatever the input: followed through the network, not sampled.

The network runs once, with a bit beside every element (see :mod:`.bits`). For each Conv and Linear it is noted
which of the channels that it reads are constant, and what in it, or behind it, can take over what a
constant does there.

What is not followed: Python code that computes with the image size. A constant from there holds for the size
at hand.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mint_deploy.tracing.bits import (
    CONVOLUTIONS,
    NORMS,
    PRODUCTS,
    ROUNDING,
    Bits,
    by_channel,
    uniform,
)
from mint_deploy.tracing.labels import LabelStore
from mint_deploy.tracing.parameters import tensors_of

__all__ = ["Constancy", "Reading"]

_ESCAPES = {"numpy", "tolist", "__array__", "__dlpack__", "data_ptr", "untyped_storage", "storage"}


@dataclass(slots=True)
class Reading:
    """What one layer reads, over all its calls.

    ``constant`` ``[C]``: the channel holds the same ``value`` for every input, everywhere. ``uniform``: a
    constant at its input shifts each output by the same amount everywhere (no zero padding). ``into``: the
    bias (``sign`` 1) or the running mean (-1) that can take such a shift up; "" where nothing can.
    """

    constant: Tensor
    value: Tensor
    calls: int = 1
    uniform: bool = True
    into: str = ""
    sign: int = 1


@dataclass(slots=True)
class _Output:
    """What becomes of a layer's output: the running means of the BatchNorms that read it, and the rest."""

    means: set[str] = field(default_factory=set)
    elsewhere: bool = False


class Constancy(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """Follows what depends on the input through one run of a network.

    ``readings`` (key: weight's name and the dimension that runs over what it reads) is there after :meth:`run`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self.readings: dict[tuple[str, int], Reading] = {}
        self.bits = Bits()
        self._names = {t.data_ptr(): n for n, t in tensors_of(model).items() if t.numel()}
        self._tensors = tensors_of(model)
        self._owned = {LabelStore.key(t) for t in self._tensors.values()}
        self._producers: dict[int, str] = {}
        self._outputs: dict[str, _Output] = {}
        self._biases: dict[str, set[str]] = {}
        self._uses: dict[str, int] = {}
        self._watching = True

    @property
    def lost(self) -> str:
        """Why nothing can be said about this network; "" where all is well."""
        return self.bits.lost

    # ------------------------------------------------------------ running

    def run(self, model: nn.Module, forward: Callable[[], Any], inputs: Iterable[Tensor]) -> None:
        """Follow one forward pass of ``model``; ``forward`` runs it on ``inputs``."""
        for tensor in inputs:
            self.bits.mark(tensor, torch.ones((), dtype=torch.bool))
        before = {n: t._version for n, t in self._tensors.items()}
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_Escapes(self))
            stack.enter_context(self)
            result = forward()
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self._leaves(tensor)
        now = tensors_of(model)
        if any(now.get(n) is not t or t._version != before[n] for n, t in self._tensors.items()):
            self.bits.lose("parameters or buffers are written in the forward pass")
        for (weight, _), reading in self.readings.items():
            self._settle(weight, reading)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self._watching:
            self._watching = False
            try:
                self._operator(func, args, kwargs, out)
            finally:
                self._watching = True
        return out

    def escaped(self, tensor: Tensor) -> None:
        """Values of ``tensor`` become Python's or numpy's."""
        if self._watching and bool(self.bits.of(tensor).any()):
            self.bits.lose("values of activations steer Python code")

    def _name(self, tensor: Any) -> str:
        """Return the parameter or buffer that ``tensor`` is, whole; "" where it is none."""
        name = self._names.get(tensor.data_ptr(), "") if isinstance(tensor, Tensor) else ""
        return name if name and self._tensors[name].numel() == tensor.numel() else ""

    # ------------------------------------------------------------ operators

    def _operator(self, func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> None:
        name = func._schema.name.split("::")[-1]
        mutates = func._schema.is_mutable
        base = name[:-1] if mutates and name.endswith("_") else name
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        outs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        keys = {LabelStore.key(x) for x in inputs}
        if not mutates and outs and all(LabelStore.key(x) in keys for x in outs):
            return
        if base in ("_local_scalar_dense", "equal", "is_nonzero"):
            self._leaves(*inputs)
            if any(bool(self.bits.of(x).any()) for x in inputs):
                self.bits.lose("values of activations steer Python code")
            return
        for tensor in inputs:
            known = self._name(tensor)
            if known:
                self._uses[known] = self._uses.get(known, 0) + 1
        if base in NORMS:
            self._normalised(args)
        else:
            self._leaves(*inputs)
        bits = self.bits.after(base, func, args, kwargs, inputs, outs)
        for tensor in _written(func, args, kwargs) if mutates else []:
            if LabelStore.key(tensor) in self._owned:
                self.bits.lose("parameters or buffers are written in the forward pass")
            self.bits.mark(tensor, bits)
        for i, tensor in enumerate(x for x in outs if LabelStore.key(x) not in keys):
            self.bits.mark(tensor, bits if not i else bits.any())
        if base in CONVOLUTIONS or base in PRODUCTS:
            self._layer(base, args, kwargs, outs[0])

    # ------------------------------------------------------------ who reads what

    def _layer(self, base: str, args: Any, kwargs: Any, out: Tensor) -> None:
        bias: Any = None
        if base in CONVOLUTIONS:
            x, weight, bias = args[:3]
            transposed = bool(args[6])
            plain = not any(args[4]) and not (transposed and weight[0, 0].numel() > 1)
            even = plain and not (transposed and any(s > 1 for s in args[3]))
            at, axis = (0 if transposed else 1), 1
        else:
            if base == "linear":
                x, weight = args[0], args[1].t()
                bias = args[2] if len(args) > 2 else kwargs.get("bias")
            elif base == "addmm":
                bias, x, weight = args[:3]
            else:
                x, weight = args[:2]
            at, axis, even = 0, x.dim() - 1, True
        name = self._name(weight)
        if not name or weight.dim() < 2:
            return
        own = self._tensors[name]
        turned = base in PRODUCTS and weight.stride() != own.stride()
        if weight.shape != (own.t().shape if turned else own.shape):
            return
        dim = 1 - at if turned else at
        values = by_channel(x.detach().double(), axis)
        constant = ~by_channel(self.bits.of(x), axis).any(1) & uniform(values)
        seen = Reading(constant=constant, value=values[:, 0].clone(), uniform=even)
        known = self.readings.get((name, dim))
        if known is not None:
            same = (known.value - seen.value).abs() <= ROUNDING * known.value.abs()
            seen.constant = seen.constant & known.constant & same
            seen.calls, seen.uniform = known.calls + 1, known.uniform and even
        self.readings[name, dim] = seen
        self._producers[LabelStore.key(out)] = name
        self.bits.hold(out)
        self._outputs.setdefault(name, _Output())
        if bias is not None:
            self._biases.setdefault(name, set()).add(self._name(bias))

    def _normalised(self, args: Any) -> None:
        weight = self._producers.get(LabelStore.key(args[0]))
        if weight is not None:
            self._outputs[weight].means.add(self._name(args[3]) if len(args) > 3 else "")

    def _leaves(self, *tensors: Tensor) -> None:
        for tensor in tensors:
            weight = self._producers.get(LabelStore.key(tensor))
            if weight is not None:
                self._outputs[weight].elsewhere = True

    def _settle(self, weight: str, reading: Reading) -> None:
        """Find what can take up a shift of the layer's outputs: its bias, or the next BatchNorm's mean."""
        biases, out = self._biases.get(weight, set()), self._outputs[weight]
        for names, holds, sign in ((biases, True, 1), (out.means, not out.elsewhere, -1)):
            name = next(iter(names), "")
            own = self._tensors.get(name)
            alone = len(names) == 1 and self._uses.get(name, 0) == reading.calls
            if holds and alone and own is not None and own.dim() == 1:
                reading.into, reading.sign = name, sign
                return


class _Escapes(TorchFunctionMode):
    """Sees values leave PyTorch where no operator does."""

    def __init__(self, constancy: Constancy) -> None:
        super().__init__()
        self.constancy = constancy

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ESCAPES and args and isinstance(args[0], Tensor):
            self.constancy.escaped(args[0])
        return func(*args, **(kwargs or {}))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that an operator writes into."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]
