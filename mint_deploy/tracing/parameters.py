"""Parameters and buffers as operators meet them: whole, viewed, rearranged, joined, computed with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mint_deploy.tracing.labels import LabelStore, compress
from mint_deploy.tracing.ledger import Ledger

if TYPE_CHECKING:
    from mint_deploy.tracing.rules import Op

__all__ = ["Parameters", "tensors_of"]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every distinct parameter and buffer by its first name (shared ones once)."""
    out: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor
    return out


class Parameters:
    """Which parameter lies behind a tensor, and which of its slices along each axis."""

    def __init__(self, model: nn.Module) -> None:
        self.tensors = tensors_of(model)
        self.book = Ledger(shapes={n: tuple(p.shape) for n, p in self.tensors.items()})
        self._labels, self._ids = LabelStore(), LabelStore(torch.int64)
        self._parameters: dict[int, list[str]] = {}
        self._first_id: dict[str, int] = {}
        self._unmasked: dict[str, str] = {}
        total = 0
        for name, tensor in self.tensors.items():
            self._parameters.setdefault(LabelStore.key(tensor), []).append(name)
            self._first_id[name] = total
            total += tensor.numel()

    def labels(self, tensor: Tensor) -> Tensor | None:
        """Return the labels of an activation, or ``None`` (constant, parameter)."""
        return self._labels.get(tensor)

    def where(self) -> str:
        """Say which module runs and which line of the user's code."""
        return ""

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
