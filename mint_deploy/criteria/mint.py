"""MINT: how much information a unit passes on to the next layers, given the other survivors."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from mint_deploy import plugins
from mint_deploy.artifacts import Importance, Moments
from mint_deploy.errors import DataError, UnknownName
from mint_deploy.graph import Graph

__all__ = ["needs", "score"]

DEFAULT = "gaussian"
#: what every estimator is given
_OURS = {"seed", "progress"}


def needs(estimator: str | None = None) -> tuple[str, ...]:
    """Return what :func:`mint_deploy.sample` has to gather for an estimator."""
    found: tuple[str, ...] = plugins.load("estimator", estimator or DEFAULT).NEEDS
    return found


def score(
    graph: Graph,
    moments: Moments | None = None,
    *,
    seed: int = 0,
    estimator: str = DEFAULT,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Importance:
    """Score every group that some sampled consumer reads; others are left out (and stay whole).

    Raises:
        DataError: no moments, or moments of another model.
        UnknownName: no such estimator, or it has no such setting.
    """
    module = plugins.load("estimator", estimator)
    known = [
        p.name
        for p in inspect.signature(module.rank).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of estimator '{estimator}'", name, sorted({*known} - _OURS))
    if moments is None:
        raise DataError("criterion 'mint' needs moments; call sample(model, graph, data) first")
    ranked: Importance = module.rank(graph, moments, seed=seed, progress=progress, **settings)
    return ranked
