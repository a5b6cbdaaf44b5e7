"""The consumers of a group as a criterion meets them: which taps are its units', and what reads them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Floats, Moments
from mint_deploy.covariance import covariance, inverse
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph, Group

__all__ = ["Reader", "columns", "forget", "readers_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One consumer as a group's units meet it.

    ``precision`` is ``[U b, U b]`` (the inverse covariance of all its taps, restricted to the group's),
    ``weight`` ``[outputs, U b]``, both ordered by unit, ``b`` taps each; ``variance`` is ``[outputs]``,
    ``sensitivity`` ``[outputs, outputs]`` (see :class:`~mint_deploy.artifacts.ConsumerMoments`).
    """

    name: str
    precision: Floats
    weight: Floats
    variance: Floats
    sensitivity: Floats


def columns(moments: ConsumerMoments, channels: np.ndarray) -> np.ndarray:
    """Return the tap columns of input channels ``[..., m]`` as ``[..., m * taps]``."""
    wide = channels[..., None] * moments.taps + np.arange(moments.taps)
    return np.asarray(wide.reshape(*channels.shape[:-1], -1))


def readers_of(
    group: Group,
    moments: Moments,
    cache: dict[str, tuple[Floats, Floats]] | None = None,
) -> list[Reader]:
    """Return every consumer of a group as the estimators want it.

    A grouped convolution reads the same positions in each of its groups: one reader for each.
    """
    cache = {} if cache is None else cache
    out = []
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
        width = known.channels // known.groups
        rows = len(known.weight) // known.groups
        S: Floats | None = None
        for g in range(known.groups):
            key = f"{member.tensor}/{g}"
            mine = slice(g * rows, (g + 1) * rows)
            W = np.asarray(known.weight[mine], dtype=np.float64)
            if key not in cache:
                S = covariance(known) if S is None else S
                block = columns(known, np.arange(g * width, (g + 1) * width))
                own = S if known.groups == 1 else S[np.ix_(block, block)]
                cache[key] = (np.einsum("oi,oi->o", W @ own, W), inverse(own))
            variance, K = cache[key]
            at = columns(known, member.index).reshape(-1)
            out.append(
                Reader(
                    name=key,
                    precision=K[np.ix_(at, at)],
                    weight=W[:, at],
                    variance=variance,
                    sensitivity=known.sensitivity[mine, mine],
                )
            )
    return out


def forget(graph: Graph, cache: dict[str, tuple[Floats, Floats]], done: int) -> None:
    """Drop inverses that no later group needs: large networks have gigabytes of them."""
    later = {m.tensor for g in list(graph.groups.values())[done + 1 :] for m in g.members}
    for key in [k for k in cache if k.rpartition("/")[0] not in later]:
        del cache[key]
