"""MINT: how much information a unit passes on to the next layers, given the other survivors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mint_deploy import plugins
from mint_deploy.artifacts import ConsumerMoments, Floats, GroupImportance, Importance, Moments
from mint_deploy.errors import DataError
from mint_deploy.estimators.gaussian import Reader, covariance, inverse
from mint_deploy.graph import Graph, Group

__all__ = ["columns", "score"]


def score(
    graph: Graph,
    moments: Moments | None = None,
    *,
    seed: int = 0,
    estimator: str = "gaussian",
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Importance:
    """Score every group that some sampled consumer reads; others are left out (and stay whole).

    Raises:
        DataError: no moments, or moments of another model.
        UnknownName: no such estimator.
    """
    if moments is None:
        raise DataError("criterion 'mint' needs moments; call sample(model, graph, data) first")
    module = plugins.load("estimator", estimator)
    cache: dict[str, tuple[Floats, Floats]] = {}
    groups = {}
    for i, (name, group) in enumerate(graph.groups.items()):
        readers = readers_of(group, moments, cache)
        if readers:
            loss, order = module.eliminate(readers, group.size, **settings)
            groups[name] = GroupImportance(loss=loss, order=order)
        _forget(graph, cache, i)
        if progress is not None:
            progress(i + 1, len(graph.groups))
    return Importance(
        groups=groups,
        criterion="mint",
        estimator=estimator,
        seed=seed,
        comparable=settings.get("floor", "output") == "output"
        and any(c.sensitivity.any() for c in moments.consumers.values()),
        settings={"images": moments.images, "sample_seed": moments.seed, **settings},
    )


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
        for g in range(known.groups):
            key = f"{member.tensor}/{g}"
            if key not in cache:
                block = columns(known, np.arange(g * width, (g + 1) * width))
                S = covariance(known)[np.ix_(block, block)]
                cache[key] = (S, inverse(S))
            S, K = cache[key]
            W = np.asarray(known.weight[g * rows : (g + 1) * rows], dtype=np.float64)
            at = columns(known, member.index).reshape(-1)
            out.append(
                Reader(
                    name=key,
                    precision=K[np.ix_(at, at)],
                    weight=W[:, at],
                    variance=np.einsum("oi,ij,oj->o", W, S, W, optimize=True),
                    sensitivity=known.sensitivity[g * rows : (g + 1) * rows],
                )
            )
    return out


def _forget(graph: Graph, cache: dict[str, tuple[Floats, Floats]], done: int) -> None:
    """Drop inverses that no later group needs: large networks have gigabytes of them."""
    later = {m.tensor for g in list(graph.groups.values())[done + 1 :] for m in g.members}
    for key in [k for k in cache if k.rpartition("/")[0] not in later]:
        del cache[key]
