"""The consumers of a group as a criterion meets them: which taps are its units', and what reads them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Floats, Ints, Moments
from mint_deploy.covariance import covariance, inverse, upper
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph, Group

__all__ = ["Cached", "Leaving", "Reader", "columns", "forget", "leaving", "readers_of"]

#: variance of the outputs, and the inverse covariance of the taps
Cached = tuple[Floats | None, Floats]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One consumer as a group's units meet it.

    ``precision`` is ``[U b, U b]`` (the inverse covariance of all its taps, restricted to the group's),
    ``weight`` ``[outputs, U b]``, both ordered by unit, ``b`` taps each; ``variance`` is ``[outputs]``, None where
    it was not asked for, ``sensitivity`` ``[outputs, outputs]`` (see
    :class:`~mint_deploy.artifacts.ConsumerMoments`).
    """

    name: str
    precision: Floats
    weight: Floats
    variance: Floats | None
    sensitivity: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """One consumer as it meets units that leave in a known order.

    ``rows`` is ``[U b, outputs]``, in that order: the squares of a unit's ``b`` rows sum to what its leaving adds
    to the residual variance of each output. ``variance`` and ``sensitivity`` as in :class:`Reader`.
    """

    rows: Floats
    variance: Floats | None
    sensitivity: Floats


def columns(moments: ConsumerMoments, channels: np.ndarray) -> np.ndarray:
    """Return the tap columns of input channels ``[..., m]`` as ``[..., m * taps]``."""
    wide = channels[..., None] * moments.taps + np.arange(moments.taps)
    return np.asarray(wide.reshape(*channels.shape[:-1], -1))


@dataclass(frozen=True, slots=True)
class _Share:
    """What one of a consumer's groups has to do with a pruning group: its taps, its outputs, its weights."""

    name: str
    known: ConsumerMoments
    block: np.ndarray | None
    outputs: slice
    weight: Floats
    at: np.ndarray

    def covariance(self) -> Floats:
        S = covariance(self.known)
        return S if self.block is None else S[np.ix_(self.block, self.block)]

    @property
    def sensitivity(self) -> Floats:
        return self.known.sensitivity[self.outputs, self.outputs]

    def variance(self, S: Floats, wanted: bool) -> Floats | None:
        """Return the variance of the outputs, where it is wanted or is all that can be the noise floor."""
        if not wanted and self.sensitivity.any():
            return None
        W = self.weight
        return np.asarray(np.einsum("oi,oi->o", W @ S, W))


def _shares(group: Group, moments: Moments) -> Iterator[_Share]:
    """Yield every consumer of a group; a grouped convolution reads the same positions in each of its groups."""
    for member in group.members:
        known = moments.consumers.get(member.tensor)
        if known is None or not member.reads:
            continue
        if known.channels * known.taps != len(known.mean) or (
            known.groups == 1 and member.length != known.channels
        ):
            raise DataError(
                f"the moments of '{member.tensor}' belong to another model; sample anew"
            )
        width, rows = known.channels // known.groups, len(known.weight) // known.groups
        for g in range(known.groups):
            mine = slice(g * rows, (g + 1) * rows)
            alone = known.groups == 1
            yield _Share(
                f"{member.tensor}/{g}",
                known,
                None if alone else columns(known, np.arange(g * width, (g + 1) * width)),
                mine,
                np.asarray(known.weight[mine], dtype=np.float64),
                columns(known, member.index).reshape(-1),
            )


def readers_of(
    group: Group,
    moments: Moments,
    cache: dict[str, Cached] | None = None,
    *,
    variance: bool = True,
) -> list[Reader]:
    """Return every consumer of a group as the estimators want it.

    A grouped convolution reads the same positions in each of its groups: one reader for each. Without
    ``variance`` only consumers of no sensitivity have one: where the network's outputs judge, none is needed.
    """
    cache = {} if cache is None else cache
    out = []
    for share in _shares(group, moments):
        if share.name not in cache:
            S = share.covariance()
            cache[share.name] = (share.variance(S, variance), inverse(S))
        own, K = cache[share.name]
        out.append(
            Reader(
                name=share.name,
                precision=K[np.ix_(share.at, share.at)],
                weight=share.weight[:, share.at],
                variance=own,
                sensitivity=share.sensitivity,
            )
        )
    return out


def leaving(
    group: Group, moments: Moments, order: Ints, *, variance: bool = True
) -> Iterator[Leaving]:
    """Yield every consumer of a group as it meets the units that leave in a known ``order``.

    With ``K = L L^T`` the precision in that order, survivors and other taps last, downdating it unit by unit is
    its Cholesky factorisation, and the rows of ``L^{-1} W`` are what each step takes off. As ``K`` is the inverse
    of the covariance ``S = U U^T`` with ``U = L^{-T}``, they are those of ``U^T W``: no inverse is needed.
    ``variance`` as for :func:`readers_of`.
    """
    from scipy.linalg.blas import dtrmm

    for share in _shares(group, moments):
        b = len(share.at) // len(order)
        first = share.at.reshape(-1, b)[order].reshape(-1)
        S = share.covariance()
        others = np.setdiff1d(np.arange(len(S)), first)
        U = upper(S, np.concatenate([first, others]))[: len(first), : len(first)]
        yield Leaving(
            rows=dtrmm(1.0, U, share.weight[:, first].T, trans_a=True),
            variance=share.variance(S, variance),
            sensitivity=share.sensitivity,
        )


def forget(graph: Graph, cache: dict[str, Cached], done: Collection[str]) -> None:
    """Drop inverses that no group but those ``done`` needs: large networks have gigabytes of them."""
    later = {m.tensor for name, g in graph.groups.items() if name not in done for m in g.members}
    for key in [k for k in list(cache) if k.rpartition("/")[0] not in later]:
        cache.pop(key, None)
