"""What scores say to a person: a row for each group, with the units in the order in which they leave.

One place for the command line, ``inspect`` and the report. A loss is printed with its unit where there is one:
a setting ``unit`` names it, and ``gaussian`` and ``acmi`` count nats, ``gaussian`` those of the network's
predicted distribution. A unit costs *nearly nothing* below 0.001 of the latter, elsewhere below a hundredth of its
group's mean loss.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, GroupImportance, Importance

__all__ = ["heights", "means", "ranking", "spread_text", "whole"]

#: below it a unit costs nearly nothing: in nats, and else as a share of the group's mean loss
NATS, SHARE = 1e-3, 1e-2
#: estimators of MINT that count in nats
NATURAL = ("gaussian", "acmi")
#: units named as the first to leave
FIRST = 12
#: columns of the picture of one group
COLUMNS = 64
#: decades that a logarithmic picture shows below the greatest loss
DECADES = 4.0


def ranking(
    scores: Importance, keep: Mapping[str, Collection[int]] | None = None
) -> dict[str, Any]:
    """Return the facts of scores as plain values, the groups in the order of the network.

    Args:
        scores: of any criterion.
        keep: group -> units that stay, where a plan says so.

    Returns:
        ``criterion estimator seed images comparable unit of_output settings nearly scale groups``. A group has
        ``name units nothing least greatest relative_spread stays first``: ``nothing`` counts the units that cost
        nearly nothing, ``relative_spread`` is the median of standard error over loss (None where it is not
        known), ``stays`` how many units stay whatever the budget, ``first`` the first to leave; and ``columns``
        (see :func:`means`) with, where a plan is known, ``kept`` and ``leaves``, the share of each column that
        leaves. ``scale`` is the ``[low, high]`` of a logarithmic picture of all groups, None where they cannot be
        compared.
    """
    of_output = bool(
        scores.criterion == "mint" and scores.estimator == "gaussian" and scores.comparable
    )
    every = np.concatenate([np.empty(0), *(g.loss for g in scores.groups.values())])
    return {
        "criterion": scores.criterion,
        "estimator": scores.estimator,
        "seed": scores.seed,
        "images": scores.settings.get("images"),
        "comparable": bool(scores.comparable),
        "unit": _unit(scores),
        "of_output": of_output,
        "settings": {k: v for k, v in scores.settings.items() if k not in ("images", "unit")},
        "nearly": f"below {NATS:g} nats" if of_output else "below 1 % of its group's mean",
        "scale": list(_bounds(every)) if scores.comparable else None,
        "groups": [
            _row(name, group, NATS if of_output else None, None if keep is None else keep.get(name))
            for name, group in scores.groups.items()
        ],
    }


def whole(scores: Importance) -> dict[str, Any]:
    """Return :func:`ranking` for machines: each group with ``loss order spread`` of all its units too.

    ``dependency`` has the shape of each consumer's matrix.
    """
    body = ranking(scores)
    for row, group in zip(body["groups"], scores.groups.values(), strict=True):
        row.update(
            loss=group.loss.tolist(),
            order=group.order.tolist(),
            spread=None if group.spread is None else group.spread.tolist(),
        )
    body["dependency"] = {name: list(m.shape) for name, m in scores.dependency.items()}
    return body


def _unit(scores: Importance) -> str:
    given = scores.settings.get("unit")
    if isinstance(given, str):
        return given
    nats = scores.criterion == "mint" and scores.estimator in NATURAL and scores.comparable
    return "nats" if nats else ""


def _row(
    name: str, group: GroupImportance, limit: float | None, keep: Collection[int] | None
) -> dict[str, Any]:
    loss = group.loss[group.order]
    known = loss[np.isfinite(loss)]
    if limit is None:
        limit = SHARE * float(np.abs(known).mean()) if known.size else 0.0
    row: dict[str, Any] = {
        "name": name,
        "units": int(loss.size),
        "nothing": int((known < limit).sum()),
        "least": float(known.min()) if known.size else None,
        "greatest": float(known.max()) if known.size else None,
        "relative_spread": _spread(group),
        "stays": int(group.least),
        "first": [int(u) for u in group.order[:FIRST]],
        "columns": means(loss, COLUMNS),
    }
    if keep is not None:
        leaves = ~np.isin(group.order, np.fromiter(keep, dtype=np.int64))
        row["kept"] = int((~leaves).sum())
        row["leaves"] = means(leaves.astype(np.float64), COLUMNS)
    return row


def _spread(group: GroupImportance) -> float | None:
    """Return the median of standard error over loss, of the units whose loss is not nothing."""
    if group.spread is None:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        share = group.spread / np.abs(group.loss)
    share = share[np.isfinite(share)]
    return float(np.median(share)) if share.size else None


def spread_text(spread: float | None) -> str:
    """Return a group's spread as text: ``12 %``; nothing where it is not known."""
    if spread is None:
        return ""
    return f"{100 * spread:.0f} %" if spread < 9.995 else ">999 %"


# ---------------------------------------------------------------- pictures of losses


def means(values: Floats, most: int) -> list[float]:
    """Return ``values [U]`` as at most ``most`` means of neighbours, runs of (nearly) equal length."""
    if len(values) <= most:
        return [float(v) for v in values]
    edges = np.arange(most) * len(values) // most
    count = np.diff(np.append(edges, len(values)))
    return [float(v) for v in np.add.reduceat(values, edges) / count]


def heights(columns: Sequence[float], scale: Sequence[float] | None = None) -> list[float]:
    """Return how high each column stands on a logarithmic scale: 0 for ``low`` and below, 1 for ``high``.

    Args:
        columns: losses; NaN and what is not positive stand at 0.
        scale: ``(low, high)``; None: their own, one to four decades.
    """
    low, high = scale if scale is not None else _bounds(np.asarray(columns, dtype=np.float64))
    if not 0 < low < high:
        return [0.0] * len(columns)
    span = math.log(high / low)
    return [
        min(1.0, max(0.0, math.log(v / low) / span)) if v > 0 and math.isfinite(v) else 0.0
        for v in columns
    ]


def _bounds(values: Floats) -> tuple[float, float]:
    """Return the least and the greatest positive value, moved to be one to four decades apart."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size:
        return 0.0, 0.0
    high = float(positive.max())
    return min(high / 10, max(float(positive.min()), high * 10**-DECADES)), high
