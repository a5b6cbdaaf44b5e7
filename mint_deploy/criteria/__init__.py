"""Which units matter: one criterion a file, each with ``score(graph, moments, *, seed, **settings)``."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from mint_deploy import plugins
from mint_deploy.artifacts import Importance, Moments
from mint_deploy.graph import Graph
from mint_deploy.scores_file import read_scores, write_scores

__all__ = ["needs", "read_scores", "score", "write_scores"]


def needs(criterion: str = "mint", estimator: str | None = None) -> tuple[str, ...]:
    """Return the evidence that :func:`mint_deploy.sample` has to gather: for a criterion, and for what follows.

    Raises:
        UnknownName: no such criterion or estimator.
    """
    return tuple(sorted({"moments", "sensitivity", *_needs(criterion, estimator)}))


def _needs(criterion: str, estimator: str | None) -> tuple[str, ...]:
    """Return what a criterion itself needs: nothing, where the weights are enough."""
    module = plugins.load("criterion", criterion)
    if hasattr(module, "needs"):  # it depends on the estimator
        return tuple(module.needs(estimator))
    return tuple(getattr(module, "NEEDS", ()))


def score(
    graph: Graph,
    moments: Moments | None = None,
    *,
    criterion: str = "mint",
    estimator: str | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Importance:
    """Score every unit of every prunable group.

    Args:
        graph: from :func:`mint_deploy.trace`.
        moments: from :func:`mint_deploy.sample`; ``None`` for criteria that need no data.
        criterion: a module of ``mint_deploy.criteria``, or a dotted name of one's own.
        estimator: for ``mint``: a module of ``mint_deploy.estimators`` (default ``gaussian``).
        seed: of whatever is random.
        progress: called with ``(done, all)`` by criteria that take a while.
        settings: handed to the criterion.

    Raises:
        UnknownName: no such criterion or estimator.
        DataError: the criterion needs moments and got none.
    """
    module = plugins.load("criterion", criterion)
    if estimator is not None:
        settings["estimator"] = estimator
    if progress is not None and "progress" in inspect.signature(module.score).parameters:
        settings["progress"] = progress
    made: Importance = module.score(graph, moments, seed=seed, **settings)
    if moments is None or not _needs(criterion, estimator):
        return made
    sampled = {"images": moments.images, "sample_seed": moments.seed}
    return dataclasses.replace(made, settings={**sampled, **made.settings})
