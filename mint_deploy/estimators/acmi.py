r"""Adaptive conditional mutual information (SNACS): counted on a random grid, scaled by the consumer's weights.

For every output group ``c`` and input group ``g`` of a consumer, on paired rows (the same image in the same row),

    score(c, g) = phi(c, g) I(X_c; Y_g | Z_g)

with ``I`` counted in hash buckets (:mod:`._hash`), averaged over a few random grids, in nats. A unit's loss is the
mean of its column over the outputs, summed over the consumers that read it; the least leaves first. How far a
group may be cut and which units may never leave: :mod:`._acmi_limits`.

Sources, and where we differ
    *SNACS* (Ganesh, Blanchard, Corso, Yasaei Sekeh, *Slimming Neural Networks using Adaptive Connectivity Scores*,
    arXiv 2006.12463). We could read its abstract and the authors' repository (Sekeh-Lab/SNACS), not the numbered
    equations of the text: what stands here as SNACS is what that repository does. The estimate is multiplied by
    ``phi``, the mean over a group's taps of the weights scaled linearly from the network's least (0) to its
    largest (1). So a weight of zero counts more than a strongly negative one. We take ``|w|`` over the largest
    of the consumers instead: no weight, no score. Beside it ``contributions``: ``|w|`` times the deviation of the
    input over that of the output, which no rescaling of a layer changes.
    (Others of theirs: 1, squares, ``exp(-w^2 / 2)``.)
    *EDGE* (Noshad, Zeng, Hero, arXiv 1801.09125; its code was read). There the widths follow from distances to
    neighbours, the estimate from ten widths, and each logarithm is clipped to ``[0.001, U]`` bits. Here features
    have unit variance, the width is a setting, the grids differ in their offsets alone (evenly apart, as there,
    from a random start), and nothing is clipped.
    Two functions ``g`` of the densities' ratio are there: ``shannon``, and ``geometric``, that of MINT.

The condition
    ``all``, as published: all other inputs. Of their dozens of dimensions every row is a bucket of its own, then
    ``N_k = 1``, each logarithm is that of 1 and every score is zero. It is kept to show that.
    ``top-k``, the default with ``k = 1``: the inputs that correlate most with the group (not with the output:
    what makes an input redundant is what resembles it). ``pca``: the ``k`` leading principal directions of all
    inputs, less the group's own share. ``none``: no condition.
    On synthetic layers (48 inputs of 24 causes, 32 outputs, 1,000 rows; mean of three layers; a small one is
    in the tests) the rank correlation of the units' scores with the closed form of Gaussians, given ALL others,
    was, without weights, with ``weights`` and with ``contributions``:

    ===================  ================  ================  ================
    condition            half near-copies  no copies         rectified
    ===================  ================  ================  ================
    none                 0.20 0.69 0.73    0.62 0.91 0.97    0.62 0.91 0.99
    top-1                0.68 0.94 0.96    0.56 0.90 0.98    0.41 0.90 0.98
    top-2                0.63 0.91 0.95    0.48 0.90 0.99    0.24 0.89 0.98
    pca, 2               0.39 0.72 0.78    0.51 0.89 0.99    0.42 0.89 0.99
    ``|w|`` s.d. alone        0.78              0.98              1.00
    ===================  ================  ================  ================

    So the condition pays where inputs are redundant, and elsewhere the weights say it all. Each further dimension
    thins the buckets. The bias correction of Miller and Madow moved no figure by more than 0.09, up or down, and
    is left out. Of two exact copies each is useless given the other: both score zero, where ``gaussian`` keeps
    one.

Groups of more than ``dims`` channels (a unit that a linear layer reads at 49 positions) would fill a bucket a row
as well; they are first turned into their ``dims`` leading principal components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import (
    ConsumerMoments,
    Floats,
    GroupImportance,
    Importance,
    Ints,
    Moments,
    PooledRows,
)
from mint_deploy.errors import MintDeployError, UnknownName
from mint_deploy.estimators._acmi_limits import critical, least_units
from mint_deploy.estimators._coordinates import (
    Groups,
    both,
    condition_of,
    condition_size,
    listed,
    side_of,
)
from mint_deploy.estimators._hash import MEASURES, information, rename
from mint_deploy.estimators._pooled import channels_of_units
from mint_deploy.graph import Graph

__all__ = ["NEEDS", "dependency", "rank"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments", "sensitivity", "pooled")

PHIS = ("weights", "contributions", "none")

#: inputs (or directions) in the condition, where not given
_K = {"top-k": 1, "pca": 2}


def rank(
    graph: Graph,
    moments: Moments,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    phi: str = "weights",
    drop: float = 0.7,
    protect: float | None = 2.0,
    **settings: Any,
) -> Importance:
    """Score the units of every group that some sampled consumer reads.

    Args:
        graph: from :func:`mint_deploy.trace`.
        moments: with ``pooled`` rows.
        seed: of the grids.
        progress: called with ``(consumers done, consumers)``.
        phi: ``weights`` (scaled by the consumer's, as SNACS), ``contributions`` or ``none``.
        drop: a group is cut until its consumers' fidelity has lost this share of its range; 1: no limit.
        protect: units this many deviations more critical than the mean never leave; ``None``: none.
        settings: of :func:`dependency`.

    Returns:
        Losses in nats (scaled by ``phi``); ``dependency`` of a consumer is ``[outputs, inputs / groups]``, in
        which the columns of a unit with several channels are equal.

    Raises:
        DataError: no pooled rows, rows that are not numbers, or moments of another model.
        UnknownName: no such condition, measure or phi.
    """
    if phi not in PHIS:
        raise UnknownName("phi", phi, PHIS)
    readers = {
        name: _Reader(moments.consumers[name], moments.pooled[name], units)
        for name, units in channels_of_units(graph, moments, "acmi").items()
    }
    strengths = {name: _strength(reader) for name, reader in readers.items()}
    largest = max((float(s.max(initial=0.0)) for s in strengths.values()), default=0.0) or 1.0
    scores = {}
    for i, (name, reader) in enumerate(readers.items()):
        scale = None if phi == "none" else strengths[name] / largest
        if phi == "contributions":
            scale = strengths[name] * _deviations(reader)
        scores[name] = _matrix(reader, scale, seed=seed, **settings)
        if progress is not None:
            progress(i + 1, len(readers))
    groups = {}
    for name, group in graph.groups.items():
        found = [m for m in group.members if m.reads and m.tensor in readers]
        if not found:
            continue
        loss = np.zeros(group.size)
        for member in found:
            loss += scores[member.tensor].mean(0)[member.index[:, 0]]
        kept = critical([(strengths[m.tensor], m.index) for m in found], protect)
        order = np.lexsort((np.arange(group.size), loss, kept)).astype(np.int64)
        limit = least_units([(readers[m.tensor].moments, m.index) for m in found], order, drop=drop)
        groups[name] = GroupImportance(loss=loss, order=order, least=max(limit, int(kept.sum())))
    return Importance(
        groups=groups,
        criterion="mint",
        estimator="acmi",
        seed=seed,
        comparable=True,
        settings={"phi": phi, "drop": drop, "protect": protect, **settings},
        dependency=scores,
    )


@dataclass(frozen=True, slots=True)
class _Reader:
    """A consumer: its moments, its rows, and which of its input channels belong together."""

    moments: ConsumerMoments
    rows: PooledRows
    units: list[Ints]


def _strength(reader: _Reader) -> Floats:
    """Return the mean ``|w|`` over the taps, ``[outputs, inputs / groups]``."""
    weight = np.abs(reader.moments.weight.astype(np.float64))
    outputs = reader.rows.outputs.shape[1]
    inputs = weight.shape[1] // reader.moments.taps
    # a transposed kernel's positions count as outputs in the weight, not in the rows
    return np.asarray(weight.reshape(outputs, -1, inputs, reader.moments.taps).mean((1, 3)))


def _deviations(reader: _Reader) -> Floats:
    """Return each input's deviation over each output's, ``[outputs, inputs / groups]``; 0 of dead outputs."""
    groups, rows = reader.moments.groups, reader.rows
    read = rows.inputs.std(0, dtype=np.float64).reshape(groups, 1, -1)
    made = rows.outputs.std(0, dtype=np.float64).reshape(groups, -1, 1)
    ratio = np.where(made > 0, read / np.where(made > 0, made, 1.0), 0.0)
    return np.asarray(ratio.reshape(-1, read.shape[2]))


def _matrix(reader: _Reader, weights: Floats | None, *, seed: int, **settings: Any) -> Floats:
    """Return the scores ``[outputs, inputs / groups]`` of one consumer, group by group of it."""
    inputs, outputs = reader.rows.inputs, reader.rows.outputs
    groups = reader.moments.groups
    wide, tall = inputs.shape[1] // groups, outputs.shape[1] // groups
    found = np.empty((outputs.shape[1], wide))
    for g in range(groups):
        block = slice(g * tall, (g + 1) * tall)
        values = dependency(
            outputs[:, block],
            inputs[:, g * wide : (g + 1) * wide],
            in_groups=reader.units,
            seed=seed,
            weights=None if weights is None else weights[block],
            **settings,
        )
        for u, channels in enumerate(reader.units):
            found[block, channels] = values[:, u, None]
    return found


def dependency(
    outputs: npt.NDArray[Any],
    inputs: npt.NDArray[Any],
    *,
    out_groups: Groups = None,
    in_groups: Groups = None,
    condition: str = "top-k",
    k: int | None = None,
    measure: str = "shannon",
    epsilon: float = 1.0,
    grids: int = 4,
    dims: int = 2,
    weights: npt.NDArray[Any] | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Return what each group of outputs takes from each group of inputs, given others.

    Args:
        outputs: ``[N, C_out]``, the same sample in the same row as in ``inputs``.
        inputs: ``[N, C_in]``.
        out_groups: lists of channels, or how many runs of channels of (nearly) equal length; ``None``: each alone.
        in_groups: the same for the inputs.
        condition: ``all``, ``none``, ``top-k`` or ``pca``, see above.
        k: inputs in ``top-k`` (1), directions in ``pca`` (2).
        measure: ``shannon`` (nats) or ``geometric`` (0 to 1).
        epsilon: width of the buckets, in standard deviations of a feature.
        grids: random grids to average over.
        dims: groups of more channels are turned into so many principal components.
        weights: ``[C_out, C_in, ...]``: a score is multiplied by the mean of its groups' ``|w|``.
        seed: of the grids.
        progress: called with ``(done, in all)``.

    Returns:
        ``[G_out, G_in]``, never negative, exactly zero where either side is constant.

    Raises:
        DataError: other than two matrices of the same two or more rows, or NaN in them.
        MintDeployError: a setting that makes no sense.
        UnknownName: no such condition or measure.
    """
    k = condition_size(condition, k, _K)
    if measure not in MEASURES:
        raise UnknownName("measure", measure, MEASURES)
    for key, value in (("grids", grids), ("dims", dims)):
        if not value >= 1:
            raise MintDeployError(f"{key}={value} makes no sense; expected 1 or more")
    if not 0 < epsilon < np.inf:
        raise MintDeployError(f"epsilon={epsilon:g} is no width; expected a positive number")
    X, P = both(outputs, inputs)
    out, into = listed(out_groups, len(X), "out"), listed(in_groups, len(P), "in")
    sides = (side_of(X, out, dims), side_of(P, into, dims), condition_of(P, into, condition, k))
    which = np.tile(np.arange(len(into)) % len(sides[2].groups), (len(out), 1))
    total = np.zeros(which.shape)
    random = np.random.default_rng(seed)
    start = random.random()
    for grid in range(grids):
        offset = epsilon * ((start + grid / grids) % 1)
        x, y, z = (rename(side.keys(epsilon, offset, random)) for side in sides)

        def done(outputs: int, grid: int = grid) -> None:
            if progress is not None:
                progress(grid * len(out) + outputs, grids * len(out))

        total += information(x, y, z, which, measure=measure, done=done)
    total /= grids
    return total if weights is None else total * _scale(weights, out, into)


def _scale(weights: npt.NDArray[Any], out: list[Ints], into: list[Ints]) -> Floats:
    """Return the mean ``|w|`` of each pair of groups, ``[G_out, G_in]``."""
    taps = np.abs(np.asarray(weights, dtype=np.float64))
    taps = taps.reshape(*taps.shape[:2], -1).mean(2)
    rows = np.stack([taps[own].mean(0) for own in out])
    return np.stack([rows[:, own].mean(1) for own in into], axis=1)
