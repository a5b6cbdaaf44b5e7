"""Which units matter: one criterion a file, each with ``score(graph, moments, *, seed, **settings)``."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mint_deploy import plugins
from mint_deploy.artifacts import GroupImportance, Importance, Moments
from mint_deploy.errors import DataError
from mint_deploy.files import read_arrays, write_arrays
from mint_deploy.graph import Graph

__all__ = ["read_scores", "score", "write_scores"]


def score(
    graph: Graph,
    moments: Moments | None = None,
    *,
    criterion: str = "mint",
    estimator: str | None = None,
    seed: int = 0,
    **settings: Any,
) -> Importance:
    """Score every unit of every prunable group.

    Args:
        graph: from :func:`mint_deploy.trace`.
        moments: from :func:`mint_deploy.sample`; ``None`` for criteria that need no data.
        criterion: a module of ``mint_deploy.criteria``, or a dotted name of one's own.
        estimator: for ``mint``: a module of ``mint_deploy.estimators`` (default ``gaussian``).
        seed: of whatever is random.
        settings: handed to the criterion.

    Raises:
        UnknownName: no such criterion or estimator.
        DataError: the criterion needs moments and got none.
    """
    module = plugins.load("criterion", criterion)
    if estimator is not None:
        settings["estimator"] = estimator
    made: Importance = module.score(graph, moments, seed=seed, **settings)
    return made


def write_scores(path: str | os.PathLike[str], scores: Importance) -> None:
    """Write scores as npz (no pickle)."""
    arrays: dict[str, np.ndarray] = {}
    for i, group in enumerate(scores.groups.values()):
        arrays[f"{i}.loss"], arrays[f"{i}.order"] = group.loss, group.order
    header = {
        "kind": "Importance",
        "groups": list(scores.groups),
        "criterion": scores.criterion,
        "estimator": scores.estimator,
        "seed": scores.seed,
        "comparable": scores.comparable,
        "settings": scores.settings,
    }
    write_arrays(path, header, arrays)


def read_scores(path: str | os.PathLike[str]) -> Importance:
    """Read scores back.

    Raises:
        DataError: missing, damaged, or another kind of file.
    """
    header, arrays = read_arrays(path)
    if header.get("kind") != "Importance":
        raise DataError(f"{path} is a {header.get('kind')!r}, expected 'Importance'")
    return Importance(
        groups={
            name: GroupImportance(
                loss=arrays[f"{i}.loss"].astype(np.float64),
                order=arrays[f"{i}.order"].astype(np.int64),
            )
            for i, name in enumerate(header["groups"])
        },
        criterion=header["criterion"],
        estimator=header["estimator"],
        seed=header["seed"],
        comparable=header["comparable"],
        settings=header["settings"],
    )
