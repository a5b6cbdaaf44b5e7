"""What was sampled in pairs of every consumer that reads a group, and which of its channels each unit owns."""

from __future__ import annotations

import numpy as np

from mint_deploy.artifacts import Ints, Moments
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph

__all__ = ["channels_of_units"]


def channels_of_units(graph: Graph, moments: Moments, estimator: str) -> dict[str, list[Ints]]:
    """Return for each sampled consumer of a group its input channels by unit; what no unit owns is alone.

    Raises:
        DataError: no pooled rows, rows that are not numbers, or those of another model.
    """
    if not moments.pooled:
        raise DataError(
            f"estimator '{estimator}' needs paired rows and the moments have none; sample with "
            'evidence=("moments", "sensitivity", "pooled")'
        )
    owned: dict[str, list[Ints]] = {}
    for group in graph.groups.values():
        for member in group.members:
            if member.reads and member.tensor in moments.pooled:
                owned.setdefault(member.tensor, []).extend(member.index)
    for name, units in owned.items():
        known, rows = moments.consumers.get(name), moments.pooled[name]
        named = np.concatenate(units)
        if (
            known is None
            or named.max() >= known.channels // known.groups
            or rows.inputs.shape[1] != known.channels
            or len(known.weight) % rows.outputs.shape[1]
        ):
            raise DataError(f"the moments of '{name}' belong to another model; sample anew")
        for what, values in (("read", rows.inputs), ("computed", rows.outputs)):
            if not np.isfinite(values).all():
                raise DataError(
                    f"what '{name}' {what} holds NaN or infinite values on the sample; check the "
                    "images and the weights before it"
                )
        units.extend(np.setdiff1d(np.arange(known.channels // known.groups), named)[:, None])
    return owned
