"""What is put into the buckets of :mod:`._hash`: the coordinates of every output, input and condition.

A *side* has coordinates ``[D, N]`` of unit variance and groups of them; a group's bucket is the sum of the words
of its coordinates' cells. A condition on all the other inputs is the sum over all less its own, so that no
condition costs more than its group: the whole stays linear in rows and channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import Floats, Ints
from mint_deploy.errors import DataError, MintDeployError, UnknownName
from mint_deploy.estimators._hash import Keys, cells

__all__ = [
    "CONDITIONS",
    "Groups",
    "Side",
    "both",
    "condition_of",
    "condition_size",
    "features",
    "listed",
    "side_of",
]

CONDITIONS = ("all", "none", "top-k", "pca")

Groups = int | Sequence[Sequence[int] | Ints] | None

#: a channel whose deviation is below this share of its largest value is constant (float32 rows)
_STILL = 1e-6


@dataclass(frozen=True, slots=True)
class Side:
    """Coordinates ``[D, N]`` and the groups of them; ``without``: a group is all but those it lists."""

    values: Floats
    groups: list[Ints]
    without: bool = False

    def keys(self, epsilon: float, offset: float, random: np.random.Generator) -> Keys:
        """Return the bucket of every group and row, ``[G, N]``; ``random`` draws the words alone."""
        count = len(self.values)
        salts = random.integers(0, 2**64, count, dtype=np.uint64)
        words = cells(self.values, epsilon, offset, salts)
        found = np.zeros((len(self.groups), self.values.shape[1]), dtype=np.uint64)
        for g, own in enumerate(self.groups):
            found[g] = words[own].sum(0, dtype=np.uint64)
        return words.sum(0, dtype=np.uint64) - found if self.without else found


def features(what: str, values: npt.NDArray[Any]) -> Floats:
    """Return ``[N, C]`` as ``[C, N]`` of zero mean and unit variance; constant channels are zero.

    Raises:
        DataError: no matrix, or not all of it finite.
    """
    if values.ndim != 2:
        raise DataError(f"{what} have the shape {list(values.shape)}; expected [samples, channels]")
    made = np.ascontiguousarray(values.T, dtype=np.float64)
    if not np.isfinite(made).all():
        raise DataError(f"the {what} hold NaN or infinite values; check the data they come from")
    return _standard(made)


def both(outputs: npt.NDArray[Any], inputs: npt.NDArray[Any]) -> tuple[Floats, Floats]:
    """Return outputs and inputs as :func:`features`, from matrices ``[N, C]`` of the same rows.

    Raises:
        DataError: other than two matrices of the same two or more rows, or NaN in them.
    """
    X, P = features("outputs", outputs), features("inputs", inputs)
    if X.shape[1] != P.shape[1] or X.shape[1] < 2:
        raise DataError(
            f"outputs have {X.shape[1]} rows and inputs {P.shape[1]}; expected the same samples in both, "
            "two at the least"
        )
    return X, P


def condition_size(condition: str, k: int | None, usual: Mapping[str, int]) -> int:
    """Return ``k``, or what is ``usual`` for this condition.

    Raises:
        UnknownName: no such condition.
        MintDeployError: a ``k`` below 1.
    """
    if condition not in CONDITIONS:
        raise UnknownName("condition", condition, CONDITIONS)
    k = usual.get(condition, 1) if k is None else k
    if not k >= 1:
        raise MintDeployError(f"k={k} makes no sense; expected 1 or more")
    return k


def _standard(values: Floats) -> Floats:
    largest = np.abs(values).max(1, keepdims=True, initial=0.0)
    centred = values - values.mean(1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(1, keepdims=True))
    still = deviation <= _STILL * largest
    return np.asarray(np.where(still, 0.0, centred / np.where(still, 1.0, deviation)))


def listed(groups: Groups, channels: int, side: str) -> list[Ints]:
    """Return the channels of each group: all alone, so many runs, or as given.

    Raises:
        MintDeployError: channels that are not there, an empty group, or more groups than channels.
    """
    if groups is None:
        groups = channels
    if isinstance(groups, int | np.integer):
        if not 1 <= groups <= max(1, channels):
            raise MintDeployError(
                f"{side}_groups={groups} cannot share {channels} channels; expected 1 to {channels}"
            )
        return [
            np.asarray(run, dtype=np.int64) for run in np.array_split(np.arange(channels), groups)
        ]
    made = [np.asarray(own, dtype=np.int64).reshape(-1) for own in groups]
    for own in made:
        if not len(own) or own.min() < 0 or own.max() >= channels:
            raise MintDeployError(
                f"{side}_groups has a group {own.tolist()[:8]}; expected some of the channels 0 to {channels - 1}"
            )
    return made


def side_of(values: Floats, groups: list[Ints], dims: int) -> Side:
    """Return groups of channels as they are, those of more than ``dims`` as principal components."""
    parts, own, at = [], [], 0
    for channels in groups:
        part = values[channels]
        if len(part) > dims:
            part = _standard(_directions(part)[:, :dims].T @ part)
        parts.append(part)
        own.append(np.arange(at, at + len(part)))
        at += len(part)
    return Side(np.concatenate(parts), own)


def condition_of(values: Floats, groups: list[Ints], kind: str, k: int) -> Side:
    """Return the condition of every group of inputs (one for all of them where there is none).

    Args:
        values: the inputs, ``[C_in, N]``, standardised.
        groups: of the inputs.
        kind: one of :data:`CONDITIONS`.
        k: inputs in ``top-k``, directions in ``pca``.
    """
    if kind == "none":
        return Side(values[:0], [np.arange(0)])
    if kind == "all":
        return Side(values, groups, without=True)
    if kind == "top-k":
        near = np.abs(values @ values.T)
        return Side(values, [_nearest(near, own, k) for own in groups])
    V = _directions(values)[:, :k]
    together = V.T @ values
    parts = [_standard(together - V[own].T @ values[own]) for own in groups]
    places = np.arange(len(parts) * V.shape[1]).reshape(len(parts), -1)
    return Side(np.concatenate(parts), list(places))


def _nearest(near: Floats, own: Ints, k: int) -> Ints:
    """Return the ``k`` other channels that correlate most with one of a group (ties: the first)."""
    best = near[own].max(0)
    best[own] = -1.0
    order = np.argsort(-best, kind="stable")[:k]
    return np.asarray(order[best[order] >= 0])


def _directions(values: Floats) -> Floats:
    """Return the principal directions ``[C, C]`` of ``[C, N]``, leading first, with a fixed sign."""
    _, V = np.linalg.eigh(values @ values.T)
    V = V[:, ::-1]
    return np.asarray(V * np.where(V[np.abs(V).argmax(0), np.arange(V.shape[1])] < 0, -1.0, 1.0))
