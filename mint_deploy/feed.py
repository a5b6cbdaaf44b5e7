"""Samples as calls of the network: one tensor, a tuple of arguments, or a dict of keyword arguments.

Networks of one input take what :func:`mint_deploy.data.as_part` takes. For others give

    {"ids": [N, T], "mask": [N, T]}              keyword arguments
    (left [N, ...], right [N, ...])              positional arguments (the second has two axes or more)
    ({...} or (..., ...), labels [N])            either, with labels
    a torch Dataset whose items are such a dict, such a tuple, or a pair of it and a label
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data import default_collate

from mint_deploy.artifacts import Ints
from mint_deploy.data import Part, as_part, balanced_rows
from mint_deploy.errors import DataError
from mint_deploy.inputs import Call, as_call

__all__ = ["Feed", "as_feed"]


class _Source(Protocol):
    def __len__(self) -> int: ...

    def take(self, rows: Ints) -> Call: ...


class _Arrays:
    """A tree of tensors ``[N, ...]``."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = tree_map(torch.as_tensor, inputs)
        tensors = tree_flatten(self.inputs)[0]
        lengths = {len(x) if x.dim() else 0 for x in tensors}
        if len(lengths) != 1 or not lengths - {0}:
            raise DataError(
                f"the inputs have {sorted(lengths) or 'no'} samples; expected tensors of as many, at least one"
            )
        self.count = lengths.pop()

    def __len__(self) -> int:
        return self.count

    def take(self, rows: Ints) -> Call:
        return as_call(tree_map(lambda x: x[torch.from_numpy(rows)], self.inputs))


class _Items:
    """A torch Dataset whose items are trees; labels stand beside them."""

    def __init__(self, items: Any, *, labelled: bool) -> None:
        self.items, self.labelled = items, labelled

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Ints) -> Call:
        taken = [self.items[int(i)] for i in rows]
        return as_call(default_collate([t[0] for t in taken] if self.labelled else taken))


class Feed:
    """Some rows of a source, as batches of calls.

    Args:
        name: what the data is called in messages.
        source: a Part, or where the trees lie.
        rows: which of its samples; None: all.
        labels: of those samples, int64 ``[n]``, or None.
    """

    def __init__(
        self,
        name: str,
        source: Part | _Source,
        rows: Ints | None = None,
        labels: Ints | None = None,
    ) -> None:
        self.name, self.source, self.labels = name, source, labels
        self.rows = np.arange(len(source)) if rows is None else rows

    def __len__(self) -> int:
        return len(self.rows)

    def subset(self, indices: Sequence[int] | Ints) -> Feed:
        """Return the feed of these samples, counted within this one."""
        chosen = np.asarray(indices, np.int64)
        labels = None if self.labels is None else self.labels[chosen]
        return Feed(self.name, self.source, self.rows[chosen], labels)

    def balanced(self, images: int, seed: int) -> Feed:
        """Return ``images`` samples, mixed, as many of each class as there are where there are labels."""
        order = balanced_rows(self.labels, len(self), images, seed)
        return self.subset(order)

    def batches(
        self, size: int, *, seed: int | None = None
    ) -> Iterator[tuple[Call, Tensor | None]]:
        """Yield ``((args, kwargs), labels or None)`` of at most ``size`` samples."""
        feed = (
            self
            if seed is None
            else self.subset(np.random.default_rng(seed).permutation(len(self)))
        )
        for start in range(0, len(feed), size):
            rows = feed.rows[start : start + size]
            labels = None
            if feed.labels is not None:
                labels = torch.from_numpy(feed.labels[start : start + size])
            if isinstance(feed.source, Part):
                x, _ = next(feed.source.subset(rows).batches(len(rows)))
                yield ((x,), {}), labels
            else:
                yield feed.source.take(rows), labels

    @property
    def elements(self) -> int:
        """How many numbers one sample has."""
        if isinstance(self.source, Part):
            return int(np.prod(self.source.input_shape))
        (args, kwargs) = self.source.take(self.rows[:1])
        return sum(x.numel() for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor))


def as_feed(data: Any) -> Feed:
    """Take ``data`` as samples of a network with one input or several (see above).

    Raises:
        DataError: nothing of the kind, or inputs of different lengths.
    """
    if isinstance(data, Feed):
        return data
    if isinstance(data, Mapping):
        return Feed("data", _Arrays(dict(data)))
    if isinstance(data, (tuple, list)) and len(data) > 1:
        first, last = data[0], data[-1]
        if len(data) == 2 and isinstance(first, (Mapping, tuple, list)):
            inputs = _Arrays(dict(first) if isinstance(first, Mapping) else tuple(first))
            return Feed("data", inputs, labels=_labels(last, len(inputs)))
        if all(isinstance(x, (Tensor, np.ndarray)) for x in data) and last.ndim > 1:
            return Feed("data", _Arrays(tuple(data)))
    if not isinstance(data, (Part, Tensor, np.ndarray, tuple, list)) and _is_dataset(data):
        item = data[0]
        pair = isinstance(item, (tuple, list)) and len(item) == 2
        if pair and isinstance(item[0], (Mapping, tuple, list)):
            given = [np.asarray(data[i][1]).item() for i in range(len(data))]
            return Feed("data", _Items(data, labelled=True), labels=_labels(given, len(data)))
        if isinstance(item, Mapping) or (isinstance(item, (tuple, list)) and len(item) > 2):
            return Feed("data", _Items(data, labelled=False))
    part = as_part(data)
    return Feed(part.name, part, labels=part.labels)


def _is_dataset(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and len(data) > 0


def _labels(given: Any, count: int) -> Ints:
    labels = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given)
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        raise DataError(
            f"labels are {labels.dtype} of shape {list(labels.shape)}; expected whole numbers [{count}], "
            "one a sample"
        )
    return labels.astype(np.int64)
