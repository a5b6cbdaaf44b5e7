"""Part: samples of one purpose, as normalised batches. Splits: the three parts of a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mint_deploy.data._stores import Ints, Store
from mint_deploy.errors import DataError

__all__ = ["Part", "Piece", "Splits", "balanced_rows"]

#: images narrower than this are not mirrored: digits and letters, not photographs
MIRRORED_SIDE = 16
#: samples of each part that go into the digest with all their bytes
SAMPLED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One part in the making: a store, the rows of it (None: all) and their labels."""

    store: Store
    rows: Ints | None = None
    labels: Ints | None = None


class Part:
    """Some rows of a store: what one split, or one use of it, sees.

    Args:
        name: ``train``, ``validation``, ``test``, or what the user gave.
        store: where the samples lie.
        rows: which of them, ``[n]``.
        labels: the class of each row, ``[n]``, or None.
        mean: per channel, subtracted: of pixels in 0..1 for images, else of the values as they are.
        std: per channel, divided by.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        *,
        rows: Ints | None = None,
        labels: Ints | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        self.name = name
        self._store = store
        self._rows = np.arange(len(store)) if rows is None else rows
        self._labels = labels
        self._mean, self._std = mean, std

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        kind = "unlabelled" if self._labels is None else f"{len(np.unique(self._labels))} classes"
        return f"Part({self.name}: {len(self)} of {list(self.input_shape)}, {kind})"

    @property
    def labels(self) -> Ints | None:
        """The class of each sample, int64 ``[n]``, or None for data without labels."""
        return self._labels

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, channels first, without the batch."""
        return self._store.shape

    @property
    def piece(self) -> Piece:
        """Store, rows and labels, to build another part of."""
        return Piece(store=self._store, rows=self._rows, labels=self._labels)

    @property
    def normalisation(self) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
        """Mean and std, as they were given."""
        mean, std = self._mean, self._std
        return mean if mean is None else tuple(mean), std if std is None else tuple(std)

    def batches(
        self,
        size: int,
        *,
        seed: int | None = None,
        augment: bool = False,
        drop_last: bool = False,
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield ``(x, y)``: normalised float32 ``[<= size, ...]``, int64 ``[<= size]`` or None.

        Args:
            size: samples a batch.
            seed: shuffles; None keeps the order. Equal seeds give equal batches.
            augment: shift images by up to an eighth of their side (zeros come in) and mirror
                those in colour of 16 pixels and more, at random by ``seed``.
            drop_last: leave out a last batch that is smaller.

        Raises:
            DataError: an image that cannot be read, an item that is mis-shaped or not finite.
        """
        if size < 1:
            raise DataError(f"batches of {size} samples were asked for; expected at least 1")
        rng = np.random.default_rng(0 if seed is None else seed)
        order = np.arange(len(self)) if seed is None else rng.permutation(len(self))
        stop = len(order) - len(order) % size if drop_last else len(order)
        for start in range(0, stop, size):
            chosen = order[start : start + size]
            raw = self._store.take(self._rows[chosen], int(rng.integers(1 << 31)))
            if augment:
                raw = _augmented(raw, rng)
            y = None if self._labels is None else torch.from_numpy(self._labels[chosen])
            yield self._normalised(raw), y

    def subset(self, indices: Sequence[int] | npt.NDArray[Any]) -> Part:
        """Return the part of these samples, counted within this part.

        Raises:
            DataError: an index that is out of range.
        """
        chosen = np.asarray(indices, np.int64).reshape(-1)
        wrong = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(wrong):
            raise DataError(
                f"sample {wrong[0]} of part '{self.name}' was asked for; it has {len(self)}"
            )
        labels = None if self._labels is None else self._labels[chosen]
        return self._with(self.name, self._rows[chosen], labels)

    def balanced(self, images: int, seed: int) -> Part:
        """Return ``images`` samples (or all, if fewer), mixed, as many of each class as there are.

        Without labels they are drawn at random.
        """
        return self.subset(balanced_rows(self._labels, len(self), images, seed))

    def _with(self, name: str, rows: Ints, labels: Ints | None) -> Part:
        return Part(name, self._store, rows=rows, labels=labels, mean=self._mean, std=self._std)

    def _normalised(self, raw: npt.NDArray[Any]) -> Tensor:
        if raw.dtype == np.uint8:
            x = torch.from_numpy(raw).permute(0, 3, 1, 2).to(torch.float32).contiguous().div_(255)
        else:
            x = torch.from_numpy(np.ascontiguousarray(raw))
        # grey images count as contiguous with any stride of their one channel; view() fails on some
        x = x.flatten().view(x.shape)
        along = (1, -1) + (1,) * (x.ndim - 2)
        if self._mean is not None:
            x = x - torch.tensor(self._mean, dtype=torch.float32).view(along)
        if self._std is not None:
            x = x / torch.tensor(self._std, dtype=torch.float32).view(along)
        return x

    def _feed(self, digest: hashlib._Hash) -> None:
        """Put name, rows, labels and the bytes of some samples into a running hash."""
        digest.update(f"{self.name}{len(self)}{self.input_shape}".encode())
        digest.update(self._rows.astype("<i8").tobytes())
        if self._labels is not None:
            digest.update(self._labels.astype("<i8").tobytes())
        for i in np.unique(np.linspace(0, len(self) - 1, SAMPLED).astype(np.int64)):
            digest.update(self._store.fingerprint(int(self._rows[i])))


def balanced_rows(labels: Ints | None, count: int, images: int, seed: int) -> Ints:
    """Return ``images`` of ``count`` rows (or all, if fewer), mixed, of each class as many as there are.

    Without labels they are drawn at random.

    Raises:
        DataError: less than one image was asked for.
    """
    if images < 1:
        raise DataError(f"{images} images were asked for; expected at least 1")
    rng = np.random.default_rng(seed)
    images = min(images, count)
    if labels is None:
        return rng.permutation(count)[:images]
    waiting = [rng.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    chosen: list[Ints] = []
    while images:
        waiting = [rows for rows in waiting if len(rows)]
        share = images // len(waiting)
        if not share:  # fewer than one each: some classes, at random
            picked = rng.permutation(len(waiting))[:images]
            waiting, share = [waiting[i] for i in picked], 1
        taken = [rows[:share] for rows in waiting]
        waiting = [rows[share:] for rows in waiting]
        chosen += taken
        images -= sum(len(rows) for rows in taken)
    return rng.permutation(np.concatenate(chosen))


def _augmented(raw: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[Any]:
    """Shift and mirror images: uint8 ``[n, H, W, C]`` or float32 ``[n, C, H, W]``."""
    if raw.ndim != 4:
        return raw  # no images
    last = raw.dtype == np.uint8
    images = raw if last else raw.transpose(0, 2, 3, 1)
    n, height, width, channels = images.shape
    down, right = max(1, height // 8), max(1, width // 8)
    padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    ys = rng.integers(0, 2 * down + 1, n)[:, None] + np.arange(height)
    xs = rng.integers(0, 2 * right + 1, n)[:, None] + np.arange(width)
    if channels > 1 and min(height, width) >= MIRRORED_SIDE:
        mirrored = rng.random(n) < 0.5
        xs[mirrored] = xs[mirrored, ::-1]
    out = padded[np.arange(n)[:, None, None], ys[:, :, None], xs[:, None, :]]
    return out if last else np.ascontiguousarray(out.transpose(0, 3, 1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Splits:
    """A data set in three parts that share no sample.

    ``train`` is for sampling, fine-tuning; ``validation`` for choices; ``test`` for final figures
    alone, or None where the data has none. ``mean``, ``std`` (per channel, of pixels in 0..1) and
    ``resize`` (``(height, width)``: each image is scaled to cover it and its centre is cut out) are
    what was applied, or None. ``digest`` is a hash of names, shapes, labels and sampled bytes.
    """

    name: str
    train: Part
    validation: Part
    test: Part | None
    classes: int | None
    class_names: tuple[str, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    resize: tuple[int, int] | None
    input_shape: tuple[int, ...]
    digest: str
    labelled: bool
