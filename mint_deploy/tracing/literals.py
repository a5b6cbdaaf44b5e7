"""What numbers in Python code demand: split sizes, slices, views.

ATen cannot tell ``chunk(2)`` from ``split(16)``, or a computed view size from a literal one. Here the
Python-level call is seen with its own arguments. A number that follows from a shape adapts; one that is
a module's attribute is rewritten with the cut; one that is written in the code fixes its axis.

Where an axis is divided into equal parts (``chunk``, a view into heads or shuffle groups), the same
positions of every part leave together: the parts stay equal whatever is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mint_deploy.tracing.labels import compress
from mint_deploy.tracing.numbers import (
    SHAPE,
    Whole,
    attribute_of,
    from_shape,
    is_computed,
    is_literal,
)

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["AFTER", "counted_result"]

After = Callable[["Tracer", Tensor, Tensor, tuple[Any, ...], dict[str, Any], Any], None]
#: name of a Python-level function -> check(tracer, x, labels of x, args, kwargs, result)
AFTER: dict[str, After] = {}


def after(*names: str) -> Callable[[After], After]:
    """Register a check under names of functions."""

    def register(made: After) -> After:
        AFTER.update(dict.fromkeys(names, made))
        return made

    return register


def counted_result(name: str, result: Any) -> Any:
    """Give sizes read from a tensor their origin: ``x.shape``, ``x.size()``, ``x.numel()``."""
    if isinstance(result, torch.Size):
        return torch.Size([Whole(int(n), SHAPE) for n in result])
    if isinstance(result, int) and not isinstance(result, bool) and name in ("size", "numel"):
        return Whole(result, SHAPE)
    return result


def _arg(args: tuple[Any, ...], kwargs: dict[str, Any], at: int, *names: str) -> Any:
    if len(args) > at:
        return args[at]
    return next((kwargs[n] for n in names if n in kwargs), None)


def _tie(t: Tracer, labels: Tensor, axis: int, parts: int) -> None:
    """The same position of each of ``parts`` equal parts of an axis leaves together."""
    before, after_ = labels.shape[:axis], labels.shape[axis + 1 :]
    rows = labels.reshape(*before, parts, -1, *after_)
    t.book.unite(rows, rows.narrow(axis, 0, 1))


def _boundary(t: Tracer, labels: Tensor, axis: int, value: Any) -> None:
    """A slice that begins or ends at ``value`` along a channel axis."""
    size = labels.shape[axis]
    at = min(int(value) + size if int(value) < 0 else int(value), size)
    if at in (0, size) and (int(value) >= 0 or at == 0):
        return
    if isinstance(value, Whole) and value.origin == SHAPE:
        if at * 2 == size:
            _tie(t, labels, axis, 2)
        else:
            t.book.keep_length(
                labels, axis, f"a slice at an uneven share of the channels {t.where()}"
            )
        return
    part = labels.narrow(axis, at, size - at) if int(value) < 0 else labels.narrow(axis, 0, at)
    t.count(value, part, "slice", axis=axis)


# ---------------------------------------------------------------- dividing an axis


@after("chunk", "tensor_split")
def _chunk(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    parts = _arg(args, kwargs, 1, "chunks", "indices_or_sections", "sections")
    axis = int(_arg(args, kwargs, 2, "dim") or 0) % x.dim()
    if not compress(labels)[1][axis]:
        return
    if isinstance(parts, int) and labels.shape[axis] % parts == 0:
        _tie(t, labels, axis, int(parts))
    else:
        t.book.keep_length(labels, axis, f"divided into unequal parts {t.where()}")


@after("split", "split_with_sizes", "unsafe_split")
def _split(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    sizes = _arg(args, kwargs, 1, "split_size_or_sections", "split_size", "split_sizes")
    axis = int(_arg(args, kwargs, 2, "dim") or 0) % x.dim()
    if not compress(labels)[1][axis]:
        return
    lengths = [piece.shape[axis] for piece in result]
    written = [sizes] * len(lengths) if isinstance(sizes, int) else list(sizes)
    equal = len(set(lengths)) == 1
    if equal and all(from_shape(w) for w in written):
        _tie(t, labels, axis, len(lengths))
        return
    if equal and isinstance(sizes, int) and attribute_of(sizes):
        _tie(t, labels, axis, len(lengths))
        t.count(sizes, labels.narrow(axis, 0, lengths[0]), "split size", axis=axis)
        return
    start = 0
    for length, origin in zip(lengths, written, strict=True):
        origin = int(origin) if from_shape(origin) else origin
        t.count(origin, labels.narrow(axis, start, length), "split size", axis=axis)
        start += length


@after("unbind", "select")
def _one_by_one(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    axis = int(_arg(args, kwargs, 1, "dim") or 0) % x.dim()
    t.book.keep_length(labels, axis, f"single channels are picked out {t.where()}")


@after("narrow")
def _narrow(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    axis = int(_arg(args, kwargs, 1, "dim")) % x.dim()
    start, length = _arg(args, kwargs, 2, "start"), _arg(args, kwargs, 3, "length")
    if compress(labels)[1][axis]:
        _boundary(t, labels, axis, start)
        part = labels.narrow(axis, int(start), int(length))
        t.count(int(length) if from_shape(length) else length, part, "narrow", axis=axis)


@after("__getitem__", "__setitem__")
def _item(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    varies = compress(labels)[1]
    consumed = sum(1 for i in index if i is not None and i is not Ellipsis)
    axis = 0
    for entry in index:
        if entry is None:
            continue
        if entry is Ellipsis:
            axis += x.dim() - consumed
            continue
        if isinstance(entry, Tensor) and entry.dtype == torch.bool:
            axis += entry.dim()
            continue
        if axis < x.dim() and varies[axis]:
            if isinstance(entry, slice):
                if entry.step not in (None, 1):
                    t.book.keep_length(labels, axis, f"every n-th channel is taken {t.where()}")
                else:
                    for value in (entry.start, entry.stop):
                        if value is not None:
                            _boundary(t, labels, axis, value)
            elif isinstance(entry, int):
                t.book.keep_length(labels, axis, f"single channels are picked out {t.where()}")
        axis += 1


# ---------------------------------------------------------------- views


def _blocks(before: torch.Size, after_: torch.Size) -> list[tuple[list[int], list[int]]]:
    """Match the axes of two shapes of equal size into the smallest blocks of equal products."""
    ins = [i for i, n in enumerate(before) if n != 1]
    outs = [j for j, n in enumerate(after_) if n != 1]
    blocks = []
    i = j = 0
    while i < len(ins) and j < len(outs):
        left, right = [ins[i]], [outs[j]]
        a, b = before[ins[i]], after_[outs[j]]
        while a != b:
            if a < b:
                i += 1
                a *= before[ins[i]]
                left.append(ins[i])
            else:
                j += 1
                b *= after_[outs[j]]
                right.append(outs[j])
        blocks.append((left, right))
        i, j = i + 1, j + 1
    return blocks


@after("view", "reshape", "unflatten", "_unsafe_view")
def _view(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    if not isinstance(result, Tensor) or not x.numel():
        return
    name_of_size = ("size", "shape", "sizes")
    if isinstance(_arg(args, kwargs, 1, "dtype"), torch.dtype):
        t.book.freeze(labels, f"its bytes are viewed as another type {t.where()}")
        return
    shape = result.shape
    if t.call[0] == "unflatten":
        axis = int(_arg(args, kwargs, 1, "dim")) % x.dim()
        sizes = list(_arg(args, kwargs, 2, *name_of_size))
        written: list[Any] = [-1] * len(shape)
        written[axis : axis + len(sizes)] = sizes
    else:
        first = _arg(args, kwargs, 1, *name_of_size)
        written = list(first) if isinstance(first, (tuple, list)) else list(args[1:])
    out = t.labels(result)
    if out is None or len(written) != len(shape):
        return
    varies = compress(labels)[1]
    t.views.calls += 1
    for left, right in _blocks(x.shape, shape):
        if any(varies[axis] for axis in left):
            _view_block(t, result, out, right, written, last=x.dim() - 1 in left)


def _view_block(
    t: Tracer, result: Tensor, out: Tensor, axes: list[int], written: list[Any], *, last: bool
) -> None:
    """One block of a view that holds channels: along which axis it adapts, what that ties.

    ``last``: the block divides the last axis.
    """
    varies = compress(out)[1]
    free = [axis for axis in axes if not is_literal(written[axis]) and varies[axis]]
    if len(axes) == 1 and not free:
        free = [axis for axis in axes if not is_literal(written[axis])]
    if not free:
        for axis in axes:
            t.book.keep_length(out, axis, f"the view's sizes are written in the code {t.where()}")
        return
    keep = max(free, key=lambda axis: (_readiness(written[axis]), axis))
    if len(free) > 1:
        at = free.index(keep)
        guess = t.views.take_for_heads(keep, free[at - 1]) if last and at else keep
        keep = t.views.choose(free, guess, out)
    tied = out
    for axis in axes:
        if axis != keep and varies[axis]:
            t.book.unite(out, out.narrow(axis, 0, 1))
            tied = tied.narrow(axis, 0, 1)
    if attribute_of(written[keep]) or is_computed(written[keep]):
        t.count(written[keep], out, "view size", axis=keep)
    if any(is_computed(written[axis]) for axis in axes):
        t.book.assume(out, t.line())
    if tied is not out:
        t.put(result, tied.clone())


def _readiness(number: Any) -> int:
    """What follows from a shape adapts by itself; an attribute is rewritten; the rest is hoped for."""
    return 2 if from_shape(number) else 1 if attribute_of(number) else 0


@after("scaled_dot_product_attention")
def _attention(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    if kwargs.get("scale") is None and compress(labels)[1][-1]:
        t.fold_scale(x, labels)


@after("layer_norm", "rms_norm")
def _normalised_shape(
    t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any
) -> None:
    written = list(_arg(args, kwargs, 1, "normalized_shape"))
    for i, number in enumerate(written):
        axis = x.dim() - len(written) + i
        if compress(labels)[1][axis]:
            t.count(number, labels, "normalised shape", axis=axis)


@after("numpy", "tolist", "__array__")
def _escapes(t: Tracer, x: Tensor, labels: Tensor, args: Any, kwargs: Any, result: Any) -> None:
    t.escape(labels)
