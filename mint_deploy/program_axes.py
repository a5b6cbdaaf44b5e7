"""Which numbers of a program count from where: bounds of slices, and axes that are taken apart.

The 3 of ``view(n, 3, heads, d)``, split into queries, keys and values, cannot lose entries whatever it is, so
that number is no candidate for a cut.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

__all__ = ["from_front", "taken_apart"]

_SAME = {"contiguous", "clone", "detach", "alias", "to"}


def taken_apart(node: Node, name: str) -> set[int]:
    """Return the places among a view's sizes whose axes are taken apart: queries, keys and values."""
    first = {"view": 0, "reshape": 0, "unflatten": 1}.get(str(node.target).split(".")[1])
    if first is None or name not in ("size", "shape", "sizes"):
        return set()
    sizes: Any = node.args[1 + first]
    start: Any = node.args[1] if first else 0
    if first:
        read: Any = node.args[0]
        start %= read.meta["val"].dim()
    return {i for i in range(len(sizes)) if _is_taken_apart(node, start + i)}


def _is_taken_apart(node: Node, axis: int) -> bool:
    """Whether single entries along ``axis`` of a node's result are picked out, axes being moved at most."""
    rank = node.meta["val"].dim()
    for user in node.users:
        schema = getattr(user.target, "_schema", None)
        if schema is None or not user.args or user.args[0] is not node:
            continue
        name = str(schema.name).rpartition("::")[2]
        args: list[Any] = list(user.args[1:])
        if name in ("unbind", "select"):
            if (args[0] if args else 0) % rank == axis:
                return True
        elif name in ("chunk", "split"):
            along = (args[1] if len(args) > 1 else 0) % rank
            if along == axis and all(int(piece.shape[axis]) == 1 for piece in user.meta["val"]):
                return True
        else:
            moved = _moved(name, args, axis, rank)
            if moved is not None and _is_taken_apart(user, moved):
                return True
    return False


def _moved(name: str, args: list[Any], axis: int, rank: int) -> int | None:
    """Return where ``axis`` is after an operator that only moves axes; ``None`` after any other."""
    if name in _SAME:
        return axis
    if name == "permute":
        order: list[int] = [d % rank for d in args[0]]
        return order.index(axis)
    if name == "transpose":
        swapped: dict[int, int] = {args[0] % rank: args[1] % rank, args[1] % rank: args[0] % rank}
        return swapped.get(axis, axis)
    if name == "unsqueeze":
        return axis + int(args[0] % (rank + 1) <= axis)
    if name == "squeeze" and len(args) == 1 and isinstance(args[0], int):
        gone = args[0] % rank
        return None if gone == axis else axis - (gone < axis)
    return None


def from_front(node: Node, name: str, value: int, twins: list[Any]) -> tuple[int, list[Any]]:
    """Count the bounds of slices from the front: ``x[:, :-4]`` ends after a number that can be rewritten."""
    if value >= 0 or name not in ("start", "end") or str(node.target) != "aten.slice.Tensor":
        return value, twins
    sliced: Any = node.args[0]
    axis: Any = node.args[1] if len(node.args) > 1 else 0
    if axis == 0 or any(t != value for t in twins):
        return value, twins
    front = max(0, value + int(sliced.meta["val"].shape[axis]))
    return front, [front for _ in twins]
