r"""How far SNACS lets a group be cut, and which of its units never leave.

*Upper limit.* The authors' code masks a layer's connections at 1, 3, ..., 97 %, judges the layer's new
activations by a support vector machine that learned the labels from the old ones, and takes the last
percentage at which the accuracy is still ``max - 0.7 (max - min)``. (The paper's own constraints we could not
read.) We have neither labels nor passes to spend, but the taps' covariance ``S``, from which a curve of that
kind follows without running anything. With the units of ``R`` held at their mean, an output ``w t`` keeps the
correlation

    q_o(R) = (V - C) / sqrt(V (V - 2 C + Q)),   V = w S w^T,  C = w_R S_R. w^T,  Q = w_R S_RR w_R^T

with itself; ``q`` is its mean over the outputs, weighted by their variance as the network's output feels it
(``F_oo V_o``, :mod:`mint_deploy.sensitivity`). The units leave in the criterion's order, and the limit is the
last cut with ``q >= max q - drop (max q - min q)`` in every consumer. Refitting, BatchNorm and training make
good much of what ``q`` shows lost: it bounds a cut, it does not rank units.

*Critical filters.* A unit's part in one output is its share of that output's ``|w|``; the sum over outputs is
its sensitivity. (The authors' code sums row-normalised weights in the same way, signed ones scaled to 0 to 1,
and saves a fraction that is set by hand for each layer; it skips the *smallest* sums, against the words of the
paper, so we take the largest.) Averaged over the consumers, each relative to its mean, a unit is critical when
it lies more than ``protect`` standard deviations above the mean of its group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import ConsumerMoments, Floats, Ints
from mint_deploy.errors import MintDeployError
from mint_deploy.readers import columns

__all__ = ["critical", "least_units"]

#: taps of which the covariance is held at a time
_TILE = 512


def critical(
    readers: Sequence[tuple[Floats, Ints]], protect: float | None
) -> npt.NDArray[np.bool_]:
    """Return which units ``[U]`` never leave.

    Args:
        readers: of each consumer its ``|w|`` ``[outputs, channels]`` and the channels of each unit ``[U, m]``.
        protect: deviations above the mean; ``None``: no unit is protected.
    """
    units = len(readers[0][1])
    if protect is None:
        return np.zeros(units, dtype=bool)
    if not protect >= 0:
        raise MintDeployError(
            f"protect={protect:g} is negative; expected deviations above the mean"
        )
    total = np.zeros(units)
    for strength, index in readers:
        whole = strength.sum(1, keepdims=True)
        share = strength / np.where(whole > 0, whole, 1.0)
        part = share.sum(0)[index].sum(1)
        total += part / (float(part.mean()) or 1.0)
    return np.asarray(total > total.mean() + protect * total.std() + 1e-12 * total.max(initial=0.0))


def least_units(
    readers: Sequence[tuple[ConsumerMoments, Ints]], order: Ints, *, drop: float = 0.7
) -> int:
    """Return how many units stay at the upper limit of pruning.

    Args:
        readers: the consumers of the group and the channels of each unit ``[U, m]`` (in each of its groups).
        order: first out first, ``[U]``.
        drop: share of the range of the fidelity that a cut may cost, above 0 up to 1 (no limit).

    Raises:
        MintDeployError: ``drop`` outside.
    """
    if not 0 < drop <= 1:
        raise MintDeployError(f"drop={drop:g} is no share of a range; expected above 0 up to 1")
    least = 0
    for moments, index in readers:
        curve = fidelity(moments, index[order])
        bound = curve.max() - drop * (curve.max() - curve.min())
        cut = int(np.flatnonzero(curve >= bound).max())
        least = max(least, len(order) - cut)
    return least


def fidelity(moments: ConsumerMoments, index: Ints) -> Floats:
    """Return ``q`` with the first 0, 1, ..., U units held at their mean, ``[U + 1]``.

    Args:
        moments: of the consumer.
        index: channels of the units, in the order in which they leave, ``[U, m]``.
    """
    units = len(index)
    width = moments.channels // moments.groups * moments.taps
    tall = len(moments.weight) // moments.groups
    at = columns(moments, index).reshape(-1)
    ends = np.arange(1, units + 1) * (len(at) // units) - 1
    felt = (
        np.diag(moments.sensitivity) if moments.sensitivity.any() else np.ones(len(moments.weight))
    )
    total, weight = np.zeros(units + 1), 0.0
    for g in range(moments.groups):
        S = moments.covariance[g * width : (g + 1) * width, g * width : (g + 1) * width]
        W = np.asarray(moments.weight[g * tall : (g + 1) * tall], dtype=np.float64)
        SW = S @ W.T
        V = np.einsum("od,do->o", W, SW)
        # tap by tap, in the order of leaving: what it shares with the whole, and with those gone before
        w = W[:, at].T
        own = w * SW[at]
        both = np.empty_like(w)
        for first in range(0, len(at), _TILE):
            last = min(first + _TILE, len(at))
            block = S[np.ix_(at[first:last], at[:last])]
            below = np.tril(block, first - 1)
            both[first:last] = w[first:last] * (2 * below @ w[:last])
        both += w**2 * np.diag(S)[at][:, None]
        C, Q = np.cumsum(own, 0)[ends], np.cumsum(both, 0)[ends]
        left = V - 2 * C + Q
        alive = (V > 0) & (left > 1e-12 * V)
        q = np.where(alive, (V - C) / np.sqrt(np.where(alive, V * left, 1.0)), 0.0)
        share = V * felt[g * tall : (g + 1) * tall]
        total += np.concatenate([[share.sum()], q @ share])
        weight += float(share.sum())
    return total / weight if weight > 0 else np.ones(units + 1)
