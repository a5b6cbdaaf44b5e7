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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mint_deploy.tracing.heads import HEADS, Views
from mint_deploy.tracing.labels import LabelStore, compress
from mint_deploy.tracing.ledger import Activation, CountedConstant, Fold, Layer, Ledger, Seen
from mint_deploy.tracing.literals import AFTER, counted_result
from mint_deploy.tracing.numbers import ATTRIBUTE, Whole, attribute_of, from_shape, is_computed
from mint_deploy.tracing.place import told
from mint_deploy.tracing.rules import BEFORE, RULES, Op, compute, freeze_everything, pointwise
from mint_deploy.tracing.sizes import Late, check_late, note_late

__all__ = ["Tracer", "mark_attributes", "tensors_of"]

#: these change a tensor's shape and no element: labels lie with the storage, nothing is to be done
_RESHAPED_IN_PLACE = {
    "as_strided_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_", "swapdims_", "detach_",
}  # fmt: skip
_HERE = f"{Path(__file__).parent}{os.sep}"
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every distinct parameter and buffer by its first name (shared ones once)."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


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


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Return the tensors that an operator writes into: in place, or by ``out=``."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[i] if i < len(args) else kwargs.get(argument.name))
    return [x for x in tree_flatten(found)[0] if isinstance(x, Tensor)]


class _Calls(TorchFunctionMode):
    """Sees Python-level calls with their own arguments; gives sizes their origin."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.t = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        outer = self.t.call
        self.t.call = (name, args, kwargs)
        try:
            before = BEFORE.get(name)
            if before is not None:
                with self.t.unwatched():
                    before(self.t, args, kwargs)
            result = func(*args, **kwargs)
            if name in ("__get__", "size", "numel"):
                return counted_result(name, result) if self.t.marked else result
            note_late(self.t, name, args, kwargs, result)
            check = AFTER.get(name)
            if check is not None and args and isinstance(args[0], Tensor) and args[0] in self.t:
                with self.t.unwatched():
                    labels = self.t.labels(args[0])
                    if labels is not None:
                        check(self.t, args[0], labels, args, kwargs, result)
            return result
        finally:
            self.t.call = outer


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """Sees every ATen operator and applies its rule to the labels."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self.t = tracer

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.t.watching:
            self.t.operator(func, args, kwargs, out)
        return out


class Tracer:
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
        self.tensors = tensors_of(model)
        self.book = Ledger(shapes={n: tuple(p.shape) for n, p in self.tensors.items()})
        self.activations: dict[int, Activation] = {}
        self.call: tuple[str, tuple[Any, ...], dict[str, Any]] = ("", (), {})
        self.watching = True
        self._labels, self._ids = LabelStore(), LabelStore(torch.int64)
        self._parameters: dict[int, list[str]] = {}
        self._first_id: dict[str, int] = {}
        self._producers: dict[int, str] = {}
        self._unmasked: dict[str, str] = {}
        self._modules: list[str] = []
        self._calls: Counter[str] = Counter()
        self.late: list[Late] = []
        self.made: set[int] = set()
        self.said = ""
        self._clock = 0
        total = 0
        for name, tensor in self.tensors.items():
            self._parameters.setdefault(LabelStore.key(tensor), []).append(name)
            self._first_id[name] = total
            total += tensor.numel()

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
            stack.enter_context(_Calls(self))
            stack.enter_context(_Operators(self))
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
        written = _written(func, args, kwargs) if mutates else []
        parameters = [x for x in written if self.is_parameter(x)]
        if parameters and all(LabelStore.key(x) in keys for x in outs):
            for parameter in [n for x in parameters for n in self.parameters_behind(x)]:
                self.book.freeze_tensor(parameter, f"is written in the forward pass {self.where()}")
            return
        written = [x for x in written if not self.is_parameter(x)]
        written += [x for x in outs if LabelStore.key(x) not in keys]
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
            for tensor in written:
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
        except NotImplementedError:  # a wrapper of torch.func: its inner tensors are seen below
            return False

    def labels(self, tensor: Tensor) -> Tensor | None:
        """Return the labels of an activation, or ``None`` (constant, parameter)."""
        return self._labels.get(tensor)

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

    # ------------------------------------------------------------ parameters

    def parameters_behind(self, tensor: Tensor) -> list[str]:
        """Names of the parameters that ``tensor`` is a view or a rearrangement of."""
        names = self._parameters.get(LabelStore.key(tensor), [])
        if len(names) > 1:
            names = [n for n in names if self._within(n, tensor)]
        if names:
            return names
        ids = self._ids.get(tensor)
        if ids is None:
            return []
        which = self._owner(torch.stack([ids.min(), ids.max()]) if ids.numel() else ids)
        if len(which) == 2 and which[0] != which[1]:
            which = self._owner(ids)
        return [list(self._first_id)[i] for i in torch.unique(which).tolist()]

    def _owner(self, ids: Tensor) -> Tensor:
        """Return which parameter, in their order, each element number belongs to."""
        starts = torch.tensor(list(self._first_id.values()))
        return torch.searchsorted(starts, ids.contiguous(), right=True) - 1

    def _within(self, name: str, tensor: Tensor) -> bool:
        owner = self.tensors[name]
        start = owner.storage_offset()
        return start <= tensor.storage_offset() < start + max(1, owner.numel())

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` is a parameter or buffer, a view of one, or one rearranged."""
        return LabelStore.key(tensor) in self._parameters or tensor in self._ids

    def parameter_name(self, tensor: Tensor) -> str:
        """Return the first parameter behind ``tensor``."""
        return self.parameters_behind(tensor)[0]

    def parameter_axes(self, tensor: Tensor) -> list[Tensor] | None:
        """Return the nodes along each axis of a (view of a) parameter; ``None`` if it is computed."""
        names = self.parameters_behind(tensor)
        if len(names) != 1:
            return self._joined_axes(tensor) if names else None
        owner = self.tensors[names[0]]
        ids = self._ids.get(tensor)
        if ids is None and tensor.shape == owner.shape and tensor.stride() == owner.stride():
            return [self.book.nodes(names[0], d) for d in range(owner.dim())]
        used: set[int] = set()
        axes: list[Tensor | None] = []
        for axis, size in enumerate(tensor.shape):
            where = self._coordinates(names[0], owner, tensor, ids, axis)
            moving = [d for d, c in enumerate(where) if size > 1 and bool((c != c[0]).any())]
            if len(moving) > 1:
                return None
            used.update(moving)
            axes.append(self.book.nodes(names[0], moving[0])[where[moving[0]]] if moving else None)
        spare = [d for d in range(owner.dim()) if d not in used and owner.shape[d] == 1]
        out = []
        for axis, nodes in enumerate(axes):
            if nodes is None and tensor.shape[axis] == 1 and spare:
                nodes = self.book.nodes(names[0], spare.pop(0))
            out.append(nodes if nodes is not None else self.book.fresh(tensor.shape[axis]))
        return out

    def _joined_axes(self, tensor: Tensor) -> list[Tensor] | None:
        """Return the nodes of parameters that lie side by side along one axis."""
        ids = self._ids.get(tensor)
        if ids is None:
            return None
        (which,), varies = compress(self._owner(ids))
        if sum(varies) != 1:
            return None
        along, out = varies.index(True), []
        _, lengths = torch.unique_consecutive(which.reshape(-1), return_counts=True)
        start = 0
        for length in lengths.tolist():
            axes = self.parameter_axes(tensor.narrow(along, start, length))
            if axes is None:
                return None
            out.append(axes)
            start += length
        for axes in out[1:]:
            for axis, nodes in enumerate(axes):
                if axis != along:
                    self.book.unite(nodes, out[0][axis])
        joined = torch.cat([axes[along] for axes in out])
        return [joined if axis == along else nodes for axis, nodes in enumerate(out[0])]

    def parameter_lines(self, tensor: Tensor, axis: int) -> list[Tensor] | None:
        """Return the nodes that change along one axis of a parameter, by dimension; ``None``: of several."""
        names = self.parameters_behind(tensor)
        if len(names) != 1:
            return None
        owner, ids = self.tensors[names[0]], self._ids.get(tensor)
        where = self._coordinates(names[0], owner, tensor, ids, axis)
        return [
            self.book.nodes(names[0], d)[line]
            for d, line in enumerate(where)
            if bool((line != line[:1]).any())
        ]

    def stand_for(self, out: Tensor, source: Tensor, first: Sequence[int] = ()) -> None:
        """The elements of ``out`` are computed from those of ``source``, a parameter, and are cut as they are.

        Along ``first`` (statistics) the first element stands for all; ``out`` may lack those axes.
        """
        known = self._parameters.get(LabelStore.key(source), [])
        plain = len(known) == 1 and self.tensors[known[0]].numel() == source.numel() == out.numel()
        if not first and plain and source.is_contiguous() and out.is_contiguous():
            whole = self.tensors[known[0]]
            if whole.is_contiguous() and not whole.storage_offset() and not out.storage_offset():
                self._parameters[LabelStore.key(out)] = known
                self._ids.hold(out)
                return
        numbers = self._numbers(source)
        for axis in first:
            numbers = numbers.narrow(axis, 0, 1)
        if out.dim() != numbers.dim():
            numbers = numbers.squeeze(tuple(first))
        self._ids.put(out, numbers)

    def unmasked(self, tensor: Tensor, reason: str) -> None:
        """Zeros in the parameter behind ``tensor`` are no zeros in what is computed from it."""
        for name in self.parameters_behind(tensor):
            self._unmasked.setdefault(name, reason)

    def _coordinates(
        self, name: str, owner: Tensor, tensor: Tensor, ids: Tensor | None, axis: int
    ) -> list[Tensor]:
        """Return, per dimension of the parameter, the coordinate along one axis of its view."""
        size = tensor.shape[axis]
        if ids is not None:
            numbers = ids.movedim(axis, 0).reshape(size, -1)[:, 0] - self._first_id[name]
            return list(torch.unravel_index(numbers, owner.shape))
        start = int(tensor.storage_offset()) - int(owner.storage_offset())
        line = start + torch.arange(size) * int(tensor.stride(axis))
        return [
            torch.div(line, max(1, owner.stride(d)), rounding_mode="floor") % owner.shape[d]
            for d in range(owner.dim())
        ]

    def dimension_of(self, name: str, nodes: Tensor) -> int:
        """Return the dimension of a parameter to which a node belongs."""
        for dim in range(len(self.book.shapes[name])):
            if bool(torch.isin(nodes[0], self.book.nodes(name, dim))):
                return dim
        return 1

    def tie_parameter(self, tensor: Tensor, labels: Tensor) -> None:
        """Tie a parameter that broadcasts against ``labels`` along the axes where they vary."""
        known = self.labels(tensor)
        if known is not None:
            self.book.unite(known, labels)
            return
        if not self.is_parameter(tensor):
            return
        axes = self.parameter_axes(tensor)
        if axes is None:
            self.computed_from(tensor, None)
            self.book.freeze(labels, f"meets a rearranged parameter {self.where()}")
            return
        varies = compress(labels)[1]
        offset = labels.dim() - tensor.dim()
        for axis, nodes in enumerate(axes):
            if tensor.shape[axis] > 1 and varies[axis + offset]:
                shape = [1] * labels.dim()
                shape[axis + offset] = -1
                self.book.unite(labels, nodes.view(shape))

    def computed_from(self, tensor: Tensor, op: Op | None) -> None:
        """A parameter goes through a computation of its own: its slices stay."""
        how = f" by '{op.name}'" if op is not None else ""
        for name in self.parameters_behind(tensor):
            self.book.freeze_tensor(name, f"is computed with before its use{how} {self.where()}")

    def moves_parameter(self, op: Op) -> bool:
        """Rearranging or copying parameters alone: carry the element numbers; whether it could."""
        movers = {
            "clone", "_to_copy", "contiguous", "cat", "stack", "repeat", "flip", "index_select",
            "index",
        }  # fmt: skip
        if op.name not in movers or not isinstance(op.out, Tensor):
            return False
        if op.name in ("index", "index_select"):
            if not self.is_parameter(op.args[0]) or any(
                self.labels(x) is not None for x in op.inputs
            ):
                return False
            self._ids.put(op.out, op.func(self._numbers(op.args[0]), *op.args[1:], **op.kwargs))
            return True
        if not all(self.is_parameter(x) for x in op.inputs):
            return False
        numbered = {id(x): self._numbers(x) for x in op.inputs}
        if op.name in ("clone", "_to_copy", "contiguous"):
            moved = numbered[id(op.inputs[0])]
        elif op.name in ("cat", "stack"):
            moved = op.func([numbered[id(x)] for x in op.args[0]], *op.args[1:], **op.kwargs)
        else:
            moved = op.func(numbered[id(op.inputs[0])], *op.args[1:], **op.kwargs)
        self._ids.put(op.out, moved)
        return True

    def _numbers(self, tensor: Tensor) -> Tensor:
        """Element numbers of a (view of a) parameter, int64, same shape."""
        ids = self._ids.get(tensor)
        if ids is not None:
            return ids
        name = self.parameter_name(tensor)
        owner = self.tensors[name]
        flat = torch.arange(owner.numel()).view(owner.shape)
        store = torch.empty_like(owner, dtype=torch.int64).copy_(flat) + self._first_id[name]
        return store.as_strided(
            tensor.size(), tensor.stride(), tensor.storage_offset() - owner.storage_offset()
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
