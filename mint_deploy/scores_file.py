"""``scores.npz``: every unit's loss and place, how sure that is, and what made it.

The header holds ``criterion estimator seed comparable settings`` and, in the order of the arrays, ``groups``,
``least`` (units of each group that stay whatever the budget) and ``dependency`` (names of consumers). The arrays
are ``<i>.loss [units]`` (float64), ``<i>.order [units]`` (int64, first out first), ``<i>.spread [units]``
(float64, where it is known) of group ``i``, and ``dependency.<k> [G_out, G_in]`` (float32) of consumer ``k``.
Files of before ``least``, ``spread`` and ``dependency`` load too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mint_deploy.artifacts import SCHEMA, GroupImportance, Importance
from mint_deploy.errors import DataError
from mint_deploy.files import read_arrays, write_arrays

__all__ = ["read_scores", "write_scores"]

Arrays = Mapping[str, np.ndarray]


def write_scores(path: str | os.PathLike[str], scores: Importance) -> None:
    """Write scores as npz (no pickle); dependency matrices as float32.

    Args:
        path: the file, replaced at once.
        scores: what :func:`mint_deploy.score` returned.
    """
    arrays: dict[str, np.ndarray] = {}
    for i, group in enumerate(scores.groups.values()):
        arrays[f"{i}.loss"] = np.asarray(group.loss, dtype=np.float64)
        arrays[f"{i}.order"] = np.asarray(group.order, dtype=np.int64)
        if group.spread is not None:
            arrays[f"{i}.spread"] = np.asarray(group.spread, dtype=np.float64)
    for k, matrix in enumerate(scores.dependency.values()):
        arrays[f"dependency.{k}"] = np.asarray(matrix, dtype=np.float32)
    header = {
        "kind": "Importance",
        "groups": list(scores.groups),
        "criterion": scores.criterion,
        "estimator": scores.estimator,
        "seed": scores.seed,
        "comparable": scores.comparable,
        "settings": scores.settings,
        "least": [int(group.least) for group in scores.groups.values()],
        "dependency": list(scores.dependency),
    }
    write_arrays(path, header, arrays)


def read_scores(path: str | os.PathLike[str]) -> Importance:
    """Read scores back; dependency matrices come as float32.

    Raises:
        DataError: missing, damaged, of a newer schema, or another kind of file.
    """
    header, arrays = read_arrays(path)
    kind = header.get("kind") if isinstance(header, dict) else type(header).__name__
    if kind != "Importance":
        raise DataError(f"{path} is a {kind!r}, expected 'Importance'")
    schema = header.get("schema", SCHEMA)
    if not isinstance(schema, int) or schema > SCHEMA:
        raise DataError(
            f"{path} has schema {schema!r}, this version reads up to {SCHEMA}; update mint-deploy"
        )
    try:
        return _scores(header, arrays)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} does not hold whole scores ({type(error).__name__}: {error}); "
            "run `mint-deploy score` again"
        ) from error


def _scores(header: Mapping[str, Any], arrays: Arrays) -> Importance:
    names = list(header["groups"])
    least = header.get("least") or [0] * len(names)
    return Importance(
        groups={name: _group(name, arrays, i, int(least[i])) for i, name in enumerate(names)},
        criterion=header["criterion"],
        estimator=header["estimator"],
        seed=header["seed"],
        comparable=header["comparable"],
        settings=dict(header["settings"]),
        dependency={
            name: _matrix(name, arrays[f"dependency.{k}"])
            for k, name in enumerate(header.get("dependency") or ())
        },
    )


def _group(name: str, arrays: Arrays, i: int, least: int) -> GroupImportance:
    loss = arrays[f"{i}.loss"].astype(np.float64)
    order = arrays[f"{i}.order"].astype(np.int64)
    spread = arrays.get(f"{i}.spread")
    units = np.arange(loss.size)
    if loss.ndim != 1 or not np.array_equal(np.sort(order), units):
        raise ValueError(
            f"group '{name}' has losses {loss.shape} and an order {order.shape} that does not name "
            "each of its units once"
        )
    if spread is not None and spread.shape != loss.shape:
        raise ValueError(f"group '{name}' has losses {loss.shape} and spreads {spread.shape}")
    return GroupImportance(
        loss=loss,
        order=order,
        spread=None if spread is None else spread.astype(np.float64),
        least=least,
    )


def _matrix(name: str, matrix: np.ndarray) -> Any:
    if matrix.ndim != 2:
        raise ValueError(f"the dependency of '{name}' is {matrix.shape}, expected two dimensions")
    return matrix.astype(np.float32)
