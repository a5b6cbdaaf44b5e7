"""A label for every element of every activation.

Labels live in a store beside the data's own storage, addressed with the same strides. So a view of
the data is the same view of its labels, and a write through a view writes labels: nothing about
views has to be derived. ``-1`` means: a constant (or not seen).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NONE", "LabelStore", "compress", "pairs"]

NONE = -1


class LabelStore:
    """Labels of all storages seen; keeps those storages alive, so that no address is used twice."""

    def __init__(self, dtype: torch.dtype = torch.int32) -> None:
        self._dtype = dtype
        self._stores: dict[int, tuple[Tensor, int]] = {}
        self._alive: list[object] = []

    @staticmethod
    def key(tensor: Tensor) -> int:
        """Return the identity of the storage behind ``tensor``."""
        return int(tensor.untyped_storage()._cdata)

    def hold(self, tensor: Tensor) -> None:
        """Keep a storage alive without giving it labels."""
        self._alive.append(tensor.untyped_storage())

    def __contains__(self, tensor: Tensor) -> bool:
        return self.key(tensor) in self._stores

    def get(self, tensor: Tensor) -> Tensor | None:
        """Return the labels of ``tensor`` (same shape; a view that may be written), or ``None``."""
        held = self._stores.get(self.key(tensor))
        if held is None or held[1] != tensor.element_size():
            return None
        return held[0].as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())

    def put(self, tensor: Tensor, labels: Tensor) -> None:
        """Write ``labels`` (broadcast to the shape of ``tensor``) at the place of its data."""
        key = self.key(tensor)
        if key not in self._stores:
            storage = tensor.untyped_storage()
            size = max(1, storage.nbytes() // tensor.element_size())
            self._stores[key] = (
                torch.full((size,), NONE, dtype=self._dtype),
                tensor.element_size(),
            )
            self.hold(tensor)
        place = self.get(tensor)
        if place is not None:
            place.copy_(labels.expand(tensor.shape))


def compress(*labels: Tensor) -> tuple[list[Tensor], list[bool]]:
    """Narrow to length 1 every axis along which none of the (equally shaped) labels varies.

    Returns the narrowed labels and, per axis, whether any of them varies along it.
    """
    out = list(labels)
    varies = [False] * out[0].dim()
    for axis in reversed(range(out[0].dim())):
        if out[0].shape[axis] <= 1:
            continue
        firsts = [x.narrow(axis, 0, 1) for x in out]
        if all(_same_along(x, first, axis) for x, first in zip(out, firsts, strict=True)):
            out = firsts
        else:
            varies[axis] = True
    return out, varies


def _same_along(labels: Tensor, first: Tensor, axis: int) -> bool:
    if labels.stride(axis) == 0:
        return True
    if not torch.equal(labels.narrow(axis, 1, 1), first):  # most axes that vary do so at once
        return False
    return bool((labels == first).all())


def pairs(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct pairs of labels that meet, neither of them a constant; int64 ``[P]``."""
    a, b = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]  # torch leaves it bare
    (a, b), _ = compress(a, b)
    flat_a, flat_b = a.reshape(-1).long(), b.reshape(-1).long()
    meets = (flat_a != flat_b) & (flat_a >= 0) & (flat_b >= 0)
    flat_a, flat_b = flat_a[meets], flat_b[meets]
    if flat_a.numel() > 4096:
        joined = torch.unique(flat_a * (1 << 31) + flat_b)
        flat_a, flat_b = joined >> 31, joined & ((1 << 31) - 1)
    return flat_a, flat_b
