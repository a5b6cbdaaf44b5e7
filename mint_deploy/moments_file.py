"""Moments as one npz: no pickle, written whole or not at all.

History: until schema 1 of November 2026 ``sensitivity`` was its diagonal alone; such files are read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Moments, PooledRows
from mint_deploy.errors import DataError
from mint_deploy.files import read_arrays, write_arrays

__all__ = ["read_moments", "write_moments"]

_FIELDS = ("kind", "channels", "taps", "groups", "bias", "normalised", "rows")
_ARRAYS = ("mean", "covariance", "weight", "sensitivity")


def write_moments(path: str | os.PathLike[str], moments: Moments) -> None:
    """Write moments as npz; the halves of the sample in single precision."""
    arrays: dict[str, np.ndarray] = {}
    heads: dict[str, Mapping[str, Any]] = {}
    for i, (name, c) in enumerate(moments.consumers.items()):
        arrays |= {f"{i}.{key}": np.asarray(getattr(c, key)) for key in _ARRAYS}
        heads[name] = {key: getattr(c, key) for key in _FIELDS}
        for h, half in enumerate(moments.halves):
            arrays[f"{i}.half{h}"] = half.consumers[name].covariance.astype(np.float32)
            arrays[f"{i}.half{h}.mean"] = half.consumers[name].mean
            heads[name] = {**heads[name], f"half{h}": half.consumers[name].rows}
    for i, rows in enumerate(moments.pooled.values()):
        arrays[f"pooled{i}.inputs"], arrays[f"pooled{i}.outputs"] = rows.inputs, rows.outputs
    for i, gradient in enumerate(moments.gradients.values()):
        arrays[f"gradient{i}"] = gradient
    header = {
        "kind": "Moments",
        "consumers": heads,
        "pooled": list(moments.pooled),
        "gradients": list(moments.gradients),
        "images": moments.images,
        "halves": [half.images for half in moments.halves],
        "seed": moments.seed,
        "dataset": moments.dataset,
        "settings": moments.settings,
    }
    write_arrays(path, header, arrays)


def read_moments(path: str | os.PathLike[str]) -> Moments:
    """Read moments back.

    Raises:
        DataError: missing, damaged, or another kind of file.
    """
    header, arrays = read_arrays(path)
    if header.get("kind") != "Moments":
        raise DataError(f"{path} is a {header.get('kind')!r}, expected 'Moments'")
    try:
        return _decoded(header, arrays)
    except KeyError as error:
        raise DataError(f"{path} is damaged: {error} is missing; sample anew") from error


def _decoded(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Moments:
    whole: dict[str, ConsumerMoments] = {}
    counts = header.get("halves", [])
    halves: list[dict[str, ConsumerMoments]] = [{} for _ in counts]
    for i, (name, head) in enumerate(header["consumers"].items()):
        sensitivity = arrays[f"{i}.sensitivity"]
        known = {
            **{key: head[key] for key in _FIELDS},
            "name": name,
            "weight": arrays[f"{i}.weight"],
            "sensitivity": np.diag(sensitivity) if sensitivity.ndim == 1 else sensitivity,
        }
        whole[name] = ConsumerMoments(
            **known, mean=arrays[f"{i}.mean"], covariance=arrays[f"{i}.covariance"]
        )
        for h, half in enumerate(halves):
            half[name] = ConsumerMoments(
                **{**known, "rows": head[f"half{h}"]},
                mean=arrays[f"{i}.half{h}.mean"],
                covariance=arrays[f"{i}.half{h}"].astype(np.float64),
            )
    shared = {key: header[key] for key in ("seed", "dataset", "settings")}
    return Moments(
        consumers=whole,
        images=header["images"],
        **shared,
        pooled={
            name: PooledRows(
                inputs=arrays[f"pooled{i}.inputs"], outputs=arrays[f"pooled{i}.outputs"]
            )
            for i, name in enumerate(header.get("pooled", []))
        },
        gradients={
            name: arrays[f"gradient{i}"] for i, name in enumerate(header.get("gradients", []))
        },
        halves=tuple(
            Moments(consumers=half, images=count, **shared)
            for half, count in zip(halves, counts, strict=True)
        ),
    )
