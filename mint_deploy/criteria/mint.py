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
    known = _settings(module.rank)
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(module.rank).parameters.values()):
        known |= _settings(module.dependency)  # what it hands on
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of estimator '{estimator}'", name, sorted(known))
    if moments is None:
        raise DataError("criterion 'mint' needs moments; call sample(model, graph, data) first")
    ranked: Importance = module.rank(graph, moments, seed=seed, progress=progress, **settings)
    return ranked


def _settings(function: Callable[..., Any]) -> set[str]:
    """Return the names of a function's settings, less what every estimator is given."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - {"seed", "progress"}
