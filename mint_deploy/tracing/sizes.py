"""Sizes that make tensors: ``zeros(b, 64, h, w)`` filled slice by slice, ``expand(b, 64, h, w)``.

A tensor that is made says nothing of its channels; what is written into it later does. So the numbers in
such calls, and in slices of what they made, are noted and held against the labels that are there in the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mint_deploy.tracing.labels import LabelStore, compress
from mint_deploy.tracing.literals import AFTER

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["Late", "check_late", "note_late"]

#: functions whose first arguments are the sizes; those of a tensor come after it
_SIZES_AT = {
    **dict.fromkeys(("zeros", "ones", "empty", "full", "rand", "randn"), 0),
    **dict.fromkeys(("new_zeros", "new_ones", "new_empty", "new_full", "expand"), 1),
    **dict.fromkeys(("view", "reshape"), 1),  # of parameters; activations have rules for them
}


@dataclass(frozen=True, slots=True)
class Late:
    """A call whose numbers are looked at in the end; ``sizes`` of what it makes, if it makes a tensor."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    sizes: list[Any] | None
    where: str


def note_late(
    t: Tracer, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
) -> None:
    """Note a call that makes a tensor, or takes a part of one that nothing was written into yet."""
    at = _SIZES_AT.get(name)
    if name in ("view", "reshape") and not t.is_parameter(args[0]):
        at = None
    if at is not None and isinstance(out, Tensor):
        first = args[at] if len(args) > at else kwargs.get("size")
        sizes = list(first) if isinstance(first, (tuple, list)) else list(args[at:])
        if len(sizes) == out.dim() and all(isinstance(n, int) for n in sizes):
            t.late.append(Late(name, args, kwargs, out, sizes, t.where()))
            t.made.add(LabelStore.key(out))
    elif (
        name in AFTER
        and t.made
        and args
        and isinstance(args[0], Tensor)
        and LabelStore.key(args[0]) in t.made
        and args[0] not in t
    ):
        t.late.append(Late(name, args, kwargs, out, None, t.where()))


def check_late(t: Tracer) -> None:
    """Hold what was noted against the labels of the end."""
    for late in t.late:
        t.said, t.call = late.where, (late.name, late.args, late.kwargs)
        if late.sizes is not None:
            _count_sizes(t, late.name, late.out, late.sizes)
            continue
        labels = t.labels(late.args[0])
        if labels is not None:
            AFTER[late.name](t, late.args[0], labels, late.args, late.kwargs, late.out)
    t.said = ""


def _count_sizes(t: Tracer, name: str, out: Tensor, sizes: list[Any]) -> None:
    labels = t.labels(out)
    axes = t.parameter_axes(out) if labels is None and t.is_parameter(out) else None
    for axis, number in enumerate(sizes):
        if int(number) == -1:
            continue
        if int(number) == -1:  # expand(b, -1, -1): as it is
            continue
        if axes is not None:
            if out.shape[axis] > 1 and out.stride(axis):
                t.count(number, axes[axis], f"size of '{name}'")
        elif labels is not None and compress(labels)[1][axis]:
            t.count(number, labels, f"size of '{name}'", axis=axis)
