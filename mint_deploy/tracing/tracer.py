"""Run a network once under two modes: Python-level calls above, ATen operators below."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from mint_deploy.tracing.heads import HEADS, Views
from mint_deploy.tracing.labels import LabelStore, compress
from mint_deploy.tracing.ledger import Activation, CountedConstant, Fold, Layer, Seen
from mint_deploy.tracing.modes import Calls, Operators, written
from mint_deploy.tracing.numbers import ATTRIBUTE, Whole, attribute_of, from_shape, is_computed
from mint_deploy.tracing.parameters import Parameters
from mint_deploy.tracing.place import told
from mint_deploy.tracing.rules import RULES, Op, compute, freeze_everything, pointwise
from mint_deploy.tracing.sizes import Late, check_late

__all__ = ["Tracer", "mark_attributes"]

#: these change a tensor's shape and no element: labels lie with the storage, nothing is to be done
_RESHAPED_IN_PLACE = {
    "as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "detach_",
}  # fmt: skip
_HERE = f"{Path(__file__).parent}{os.sep}"
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def mark_attributes(model: nn.Module) -> None:
    """Make whole numbers in the modules' attributes remember where they stand (in place)."""
    for prefix, module in model.named_modules():
        stem = f"{prefix}." if prefix else ""
        for name, value in list(vars(module).items()):
            if name.startswith("_") or isinstance(value, bool):
                continue
            if type(value) is int:
                setattr(module, name, Whole(value, ATTRIBUTE, stem + name))
            elif type(value) in (tuple, list) and value and all(type(v) is int for v in value):
                marked = [Whole(v, ATTRIBUTE, f"{stem}{name}[{i}]") for i, v in enumerate(value)]
                setattr(module, name, type(value)(marked))


class Tracer(Parameters):
    """What the rules ask for: labels of activations, nodes of parameters, where we are."""

    def __init__(
        self,
        model: nn.Module,
        *,
        marked: bool = True,
        turns: Mapping[int, int] | None = None,
        wanted: str = HEADS,
    ) -> None:
        self.marked = marked
        self.views = Views(turns or {}, wanted)
        super().__init__(model)
        self.activations: dict[int, Activation] = {}
        self.call: tuple[str, tuple[Any, ...], dict[str, Any]] = ("", (), {})
        self.watching = True
        self._producers: dict[int, str] = {}
        self._modules: list[str] = []
        self._calls: Counter[str] = Counter()
        self.late: list[Late] = []
        self.made: set[int] = set()
        self.said = ""
        self._clock = 0

    # ------------------------------------------------------------ running

    def run(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run the (marked) model once; inputs are frozen, and so is what reaches the outputs."""
        source = torch.tensor(self.book.sink("meets the network's input"))
        for tensor in tree_flatten((args, dict(kwargs)))[0]:
            if isinstance(tensor, Tensor):
                self._labels.put(tensor, source)
        with ExitStack() as stack:
            stack.enter_context(self._named_modules(model))
            stack.enter_context(torch.no_grad())
            stack.enter_context(Calls(self))
            stack.enter_context(Operators(self))
            result = model(*args, **kwargs)
        check_late(self)
        for tensor in tree_flatten(result)[0]:
            if isinstance(tensor, Tensor):
                self.book.freeze(self.labels(tensor), "reaches the network's output")
                for name in self.parameters_behind(tensor):
                    self.book.freeze_tensor(name, "is an output of the network")
                held = self.activations.get(LabelStore.key(tensor))
                if held is not None:
                    held.last_use = self._clock + 1
        return result

    @contextmanager
    def _named_modules(self, model: nn.Module) -> Any:
        handles = []
        for name, module in model.named_modules():
            handles.append(
                module.register_forward_pre_hook(lambda *_, name=name: self._modules.append(name))
            )
            handles.append(module.register_forward_hook(self._leave_module))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave_module(self, *_: Any) -> None:
        self._modules.pop()

    @contextmanager
    def unwatched(self) -> Any:
        """Operators on labels are none of the network's."""
        self.watching = False
        try:
            yield
        finally:
            self.watching = True

    def operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        """Apply the rule of one ATen operator."""
        name = func._schema.name.split("::")[-1]
        mutates = func._schema.is_mutable
        base = name[:-1] if mutates and name.endswith("_") else name
        call = self._calls[base]
        self._calls[base] += 1
        inputs = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        outs = [x for x in tree_flatten(out)[0] if isinstance(x, Tensor)]
        self._account(inputs, outs)
        relevant = any(x in self._labels or self.is_parameter(x) for x in inputs)
        keys = {LabelStore.key(x) for x in inputs}
        aliases = bool(outs) and not mutates and all(LabelStore.key(x) in keys for x in outs)
        if aliases and any(x in self._labels and self.labels(x) is None for x in outs):
            for tensor in inputs:
                self.book.freeze(self.labels(tensor), f"is viewed as another type {self.where()}")
        if not relevant or aliases or name in _RESHAPED_IN_PLACE:
            return
        op = Op(base, func, args, kwargs, out, inputs, call)
        changed = written(func, args, kwargs) if mutates else []
        parameters = [x for x in changed if self.is_parameter(x)]
        if parameters and all(LabelStore.key(x) in keys for x in outs):
            for parameter in [n for x in parameters for n in self.parameters_behind(x)]:
                self.book.freeze_tensor(parameter, f"is written in the forward pass {self.where()}")
            return
        changed = [x for x in changed if not self.is_parameter(x)]
        changed += [x for x in outs if LabelStore.key(x) not in keys]
        if not any(x in self._labels for x in inputs) and compute(self, op):
            return
        rule = RULES.get(base)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = pointwise
        if rule is None:
            freeze_everything(self, op)
            return
        labels = rule(self, op)
        if labels is not None:
            for tensor in changed:
                self.put(tensor, labels)

    def _account(self, inputs: list[Tensor], outs: list[Tensor]) -> None:
        self._clock += 1
        for tensor in inputs:
            held = self.activations.get(LabelStore.key(tensor))
            if held is not None:
                held.last_use = self._clock
        for tensor in outs:
            key = LabelStore.key(tensor)
            if key not in self.activations and key not in self._parameters:
                nbytes = tensor.untyped_storage().nbytes()
                self.activations[key] = Activation(nbytes, self._clock, self._clock)
                self._labels.hold(tensor)

    # ------------------------------------------------------------ labels of activations

    def argument(self, name: str, position: int) -> Any:
        """Return an argument of the Python-level call as it was written."""
        _, args, kwargs = self.call
        return args[position] if len(args) > position else kwargs.get(name)

    def __contains__(self, tensor: Tensor) -> bool:
        try:
            return tensor in self._labels
        except NotImplementedError:
            # PyTorch's answer, not ours: a wrapper of torch.func has no storage, so it can have no labels of its
            # own. The tensors inside of it pass through the same operators below, and are looked up there.
            return False

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Write labels for an activation."""
        labels = labels.to(torch.int32)
        self._labels.put(tensor, labels)
        held = self.activations.get(LabelStore.key(tensor))
        if held is not None and tensor.dim() > 1 and labels.dim() == tensor.dim():
            (narrow,), varies = compress(labels)
            held.channels = narrow.reshape(-1).clone() if any(varies) else None

    def line(self) -> str:
        """Return which line of the user's code runs, ``file.py:12``; "" where none does."""
        frame: FrameType | None = sys._getframe(1)
        place = told(frame)
        if place is not None:
            return place.line
        while frame is not None:
            path = frame.f_code.co_filename
            if not path.startswith((_HERE, _TORCH)) and not path.startswith("<"):
                inner = frame.f_code.co_name == "_traced"
                return "" if inner else f"{Path(path).name}:{frame.f_lineno}"
            frame = frame.f_back
        return ""

    def where(self) -> str:
        """Say which module runs and which line of the user's code."""
        if self.said:
            return self.said
        line, place = self.line(), told(sys._getframe(1))
        module = place.module if place else self._modules[-1] if self._modules else ""
        inside = f"in '{module}'" if module else "in the network"
        return f"({inside}, {line})" if line else f"({inside})"

    def read_channels(self, nodes: Tensor, labels: Tensor, *, axis: int) -> None:
        """Tie the channels along ``axis`` to the input slices ``nodes`` of a weight."""
        shape = [1] * labels.dim()
        shape[axis] = -1
        self.book.unite(labels, nodes.view(shape).expand(labels.shape))
        self.book.touch(nodes)

    def count(self, number: Any, labels: Tensor, what: str, *, axis: int = 0) -> None:
        """``number`` counts the channels ``labels`` along ``axis``: adapt, rewrite, or keep it."""
        path = attribute_of(number)
        if from_shape(number) and int(number) != -1:
            return
        if is_computed(number) and what != "padded channels":
            self.book.assume(labels, self.line())
            return
        if path is None:
            how = f"computed from '{number.path}'" if is_computed(number) else "written in the code"
            self.book.keep_length(labels, axis, f"{what}: its number is {how} {self.where()}")
            if labels.shape[axis] == 1 or what == "padded channels":
                self.book.freeze(labels, f"{what}: their number is {how} {self.where()}")
            return
        line = labels.movedim(axis, 0).reshape(labels.shape[axis], -1)[:, 0]
        value = int(number) // number.samples
        line = line[: len(line) // number.samples].long()
        self.book.constants.append(CountedConstant(path, value, line, self.where()))

    def statistic(self, op: Op, labels: Tensor, axis: int) -> None:
        """``op`` computes over the channels along ``axis`` of its first operand: over those that stay."""
        (narrow,), varies = compress(labels)
        if not varies[axis]:
            return
        if sum(varies) > 1:
            self.book.freeze(labels, f"'{op.name}' over channels beside others {self.where()}")
            return
        line = narrow.reshape(-1).long().clone()
        seen = Seen(op.name, op.call, axis - labels.dim(), line, self.where())
        self.book.statistics.append(seen)
        self.book.touch(line)

    def fold_scale(self, query: Tensor, labels: Tensor) -> None:
        """A scale of ``1 / sqrt(width)`` changes with the width: the query's layer makes up for it."""
        weight = self._producers.get(LabelStore.key(query))
        layer = self.book.layers.get(weight) if weight else None
        width = labels.shape[-1]
        if layer is None or layer.kind != "linear" or layer.out_dim:
            self.book.freeze(
                labels,
                f"a scale follows from the head width, which no layer takes up {self.where()}",
            )
            return
        outputs = self.book.shapes[layer.weight][0]
        places = torch.arange(query.untyped_storage().nbytes() // query.element_size())
        rows = places.as_strided(query.shape, query.stride(), query.storage_offset()) % outputs
        line = labels.movedim(-1, 0).reshape(width, -1)[:, 0].long()
        for name in (layer.weight, layer.bias):
            if name is not None:
                self.book.folds.append(Fold(name, torch.unique(rows), line))

    def escape(self, labels: Tensor | None) -> None:
        """Values of an activation become Python's or numpy's: nobody sees what is done with them."""
        self.book.freeze(labels, f"its values leave PyTorch {self.where()}")
        self.book.notes.append(
            f"values of activations steer Python code {self.where()}: traced on the given inputs"
        )

    # ------------------------------------------------------------ layers

    def add_layer(self, layer: Layer, out: Tensor, also: Sequence[str] = ()) -> None:
        """Record a Conv or Linear as it ran (a shared one: once more); ``also`` other parts of its weight."""
        for name in also:
            self.add_layer(replace(layer, weight=name), out)
        self._producers[LabelStore.key(out)] = layer.weight
        if layer.weight in self._unmasked:
            nodes = self.book.nodes(layer.weight, layer.in_dim)
            self.book.freeze(nodes, self._unmasked[layer.weight])
        known = self.book.layers.get(layer.weight)
        if known is not None and (known.kind != "embedding" or layer.kind == known.kind):
            known.positions += layer.positions
            known.calls += 1
            if known.in_dim != layer.in_dim:
                self.book.freeze_tensor(layer.weight, f"is used in both directions {self.where()}")
            return
        name = self._modules[-1] if self._modules else ""
        owner = layer.weight.rpartition(".")[0]
        if owner.startswith(f"{name}.") and "parametrizations" not in owner:
            name = owner  # a module that uses another one's weight: attention and its out_proj
        layer.name = name or owner or layer.weight
        self.book.layers[layer.weight] = layer

    def mark_normalised(self, x: Tensor) -> None:
        """The output of a layer goes into BatchNorm: a shift of its mean is absorbed there."""
        weight = self._producers.get(LabelStore.key(x))
        if weight is not None:
            self.book.layers[weight].normalised = True
