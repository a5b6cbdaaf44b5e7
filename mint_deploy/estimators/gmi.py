r"""Geometric mutual information by minimum spanning trees: MINT as published, done right.

For a consumer with outputs ``X [N, C_out]`` and inputs ``P [N, C_in]`` (spatial means, the same image in the same
row) the dependence of output group ``c`` on input group ``g`` given other inputs ``Z`` is

    I(c, g) = 1 - 2 E_f[ q / (f + q) ],     f = p(x, p, z),   q = p(x, z) p(p | z)

a Henze-Penrose divergence: 0 for conditional independence, towards 1 for full dependence. No density is
estimated (Friedman and Rafsky 1979): of ``m`` rows drawn from ``f`` and ``m`` from ``q`` (:mod:`._conditions`),
let ``R`` be the edges of their Euclidean minimum spanning tree that join a row of one to a row of the other; then

    I = 1 - R (m + n) / (2 m n) = 1 - R / m        (n = m),

left as it is where it falls below zero: a clipped score makes ties exactly where the cut is made.

Sources: Ganesh, Corso, Yasaei Sekeh, *MINT* (ICPR 2020, arXiv 2003.08472); Yasaei Sekeh and Hero, *Geometric
estimation of multivariate dependency* (Entropy 21(8):787, 2019). Unlike the published code: rows are paired, the
nearest row is searched in the third it is taken from, edges are counted as edges, and features are standardised.
Constant channels are at distance zero and say nothing.

The condition
    ``all``: all other inputs, as published. ``none``; ``top-k``: the ``k`` inputs that correlate most with the
    group; ``pca``: the ``k`` leading principal directions of all inputs, less the group's own share, each of unit
    variance.

What it is worth (``tests/test_gmi.py`` holds it to this)
    Without a condition it equals the divergence of known densities (two normals of correlation 0.8: 0.226) to
    0.02 at 3,000 rows; the standard deviation over seeds is 0.02 at 2,000.
    The nearest row is not at the same place, which is a bias above zero: at conditional independence and 2,000
    rows 0.07 for single channels given one (0.13 at 200 rows), 0.20 for groups of 20 given 20 others.
    ``null=True`` shows it.
    Where the condition has many dimensions that do not matter, distances concentrate: ``X = Y + 0.1 noise`` is
    0.76 alone, 0.47 given the 3 nearest of 62 other inputs, 0.03 given all 62.
    Units of synthetic layers (48 inputs, half of them near-copies or not, 32 outputs, 1,000 rows, 3 seeds): rank
    correlation with the closed form of Gaussians given all others, without and with weights: ``none`` 0.22 to
    0.27, 0.63 to 0.67; ``pca`` with ``k = 1`` 0.21 to 0.29, 0.73 to 0.75; ``top-k`` with ``k = 1`` 0.09 to 0.14,
    0.54 to 0.65; ``all`` below zero. So ``rank`` takes ``pca``. Choosing ``top-k`` by unconditional values of
    this estimator instead of correlations: 0.05 to 0.14, 0.54 to 0.60, no better and not free.

Cost: ``G_out G_in`` trees of ``2 N / 3`` vertices (:mod:`._mst`), and one matrix a thread.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import get_num_threads

from mint_deploy.artifacts import Floats, GroupImportance, Importance, Ints, Moments
from mint_deploy.errors import DataError, MintDeployError
from mint_deploy.estimators import _mst
from mint_deploy.estimators._conditions import Common, Pairs
from mint_deploy.estimators._coordinates import Groups, both, condition_of, condition_size, listed
from mint_deploy.estimators._mst import Float32s
from mint_deploy.estimators._pooled import channels_of_units
from mint_deploy.files import read_arrays, write_arrays
from mint_deploy.graph import Graph

__all__ = ["NEEDS", "dependency", "rank"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments", "sensitivity", "pooled")

#: inputs (or directions) in the condition, where not given
_K = {"top-k": 1, "pca": 1}

#: trees that are made before a checkpoint is written, and that a GPU makes at once
_TILE = 8192
#: features that trees share are cheaper made into a matrix where they are so many more than a tree's own
_FEW = 5


def dependency(
    outputs: npt.NDArray[Any],
    inputs: npt.NDArray[Any],
    *,
    out_groups: Groups = None,
    in_groups: Groups = None,
    condition: str = "all",
    k: int | None = None,
    null: bool = False,
    paired: bool = True,
    seed: int = 0,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Floats:
    """Return what each group of outputs takes from each group of inputs, given others.

    Args:
        outputs: ``[N, C_out]``, the same sample in the same row as in ``inputs``.
        inputs: ``[N, C_in]``.
        out_groups: lists of channels, or how many runs of channels of (nearly) equal length; ``None``: each alone.
        in_groups: the same for the inputs.
        condition: ``all``, ``none``, ``top-k`` or ``pca``, see above.
        k: inputs in ``top-k``, directions in ``pca``; 1 where not given.
        null: break the dependence in all rows first (:mod:`._conditions`): what is found is the bias.
        paired: False draws the outputs' rows in another order, the published code's fault, to show its effect.
        seed: of the thirds, the vertices' order and choices among equals.
        device: ``cpu`` (numba, all cores) or a torch device such as ``cuda``.
        progress: called with ``(trees done, trees)``.
        checkpoint: a file that keeps what is done, and from which the same call goes on.

    Returns:
        ``[G_out, G_in]``, from below 0 to 1.

    Raises:
        DataError: other than two matrices of the same rows, too few of them, NaN; a checkpoint of another call.
        MintDeployError: a setting that makes no sense.
        UnknownName: no such condition.
    """
    k = condition_size(condition, k, _K)
    X, P = both(outputs, inputs)
    out, into = listed(out_groups, len(X), "out"), listed(in_groups, len(P), "in")
    if not paired:
        X = X[:, np.random.default_rng([seed, 2]).permutation(X.shape[1])]
    pairs = Pairs.of(P, into, condition_of(P, into, condition, k), seed)
    own = np.concatenate([X[channels] for channels in out]).astype(np.float32)
    starts = np.cumsum([0, *(len(channels) for channels in out)])
    values, begin = np.full((len(out), len(into)), np.nan), 0
    digest = ""
    if checkpoint is not None:
        digest = _digest(X, P, out, into, (condition, k, null, seed))
        values, begin = _resumed(checkpoint, digest, values)
    width = max(1, _TILE // len(out))
    trees = _Trees(pairs, own, starts, null)
    with ThreadPoolExecutor(get_num_threads()) as pool:
        for first in range(begin, len(into), width):
            part = range(first, min(first + width, len(into)))
            try:
                columns = trees.count(part, device, pool)
                for g, crossed in zip(part, columns, strict=True):
                    values[:, g] = 1.0 - crossed / len(pairs.B)
                    if progress is not None:
                        progress((g + 1) * len(out), values.size)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            if checkpoint is not None:
                header = {"kind": "Dependency", "digest": digest, "columns": part.stop}
                write_arrays(checkpoint, header, {"values": values})
    return values


@dataclass(frozen=True)
class _Trees:
    """All trees of a call: a thread makes a column of them at a time, with a matrix of its own."""

    pairs: Pairs
    outputs: Float32s
    starts: Ints
    null: bool
    own: threading.local = field(default_factory=threading.local)

    def count(self, columns: range, device: str, pool: Executor) -> Iterable[npt.NDArray[np.int32]]:
        """Yield the crossings ``[G_out]`` of each column."""
        if device == "cpu":
            return pool.map(self._column, columns)
        from mint_deploy.estimators import _mst_torch

        commons = list(pool.map(self._common, columns))
        return list(_mst_torch.crossings(commons, self.outputs, self.starts, device).T)

    def _common(self, g: int) -> Common:
        return self.pairs.common(g, null=self.null)

    def _column(self, g: int) -> npt.NDArray[np.int32]:
        common = self._common(g)
        few = _FEW + len(self.outputs) / (len(self.starts) - 1)
        matrix, shared = None, common.plus
        if common.base is not None or len(shared) > few:
            common = common if common.base is not None else common.ordered()
            matrix, shared = self._buffer(len(common.rows)), shared[:0]
            common.fill(matrix)
        outputs = self.outputs.take(common.rows, 1)
        return _mst.crossings(matrix, shared, outputs, self.starts, common.labels)

    def _buffer(self, n: int) -> Float32s:
        """Return this thread's matrix; fresh memory would cost more than filling it."""
        if not hasattr(self.own, "matrix"):
            self.own.matrix = np.zeros((n, _mst.padded(n)), dtype=np.float32)
        matrix: Float32s = self.own.matrix
        return matrix


def _digest(*of: Any) -> str:
    """Return a hash of arrays, lists of arrays and plain settings."""
    total = hashlib.sha256()
    for item in of:
        for part in item if isinstance(item, list) else [item]:
            if isinstance(part, np.ndarray):
                total.update(f"{part.shape}{part.dtype}".encode() + part.tobytes())
            else:
                total.update(repr(part).encode())
    return total.hexdigest()


def _resumed(path: str | os.PathLike[str], digest: str, values: Floats) -> tuple[Floats, int]:
    """Return what a checkpoint has, and the first column that it lacks.

    Raises:
        DataError: it is none, or of another call.
    """
    if not Path(path).exists():
        return values, 0
    header, arrays = read_arrays(path)
    if header.get("kind") != "Dependency" or header.get("digest") != digest:
        raise DataError(
            f"checkpoint {path} was written for other data, groups or settings; expected those of this "
            "call: give another file, or remove it to begin anew"
        )
    return arrays["values"], int(header["columns"])


def rank(
    graph: Graph,
    moments: Moments,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    out_groups: int | None = 16,
    weighted: bool = True,
    most_removed: float = 0.9,
    condition: str = "pca",
    k: int | None = None,
    paired: bool = True,
    device: str = "cpu",
) -> Importance:
    """Score the units of every group that some sampled consumer reads.

    Args:
        graph: from :func:`mint_deploy.trace`.
        moments: with ``pooled`` rows.
        seed: of the thirds.
        progress: called with ``(consumers done, consumers)``.
        out_groups: into how many groups a consumer's outputs are joined at the most; ``None``: each alone.
        weighted: multiply each value by the norm of the weights it stands for, relative to the consumer's largest,
            the step that SNACS adds, and the largest gain here (docs/scoring.md); False as published.
        most_removed: MINT's upper limit: at most this share of a group leaves (0 to 1).
        condition: of :func:`dependency`, as are
        k: inputs or directions in the condition,
        paired: whether rows are,
        device: and where to count.

    Returns:
        A unit's loss is the mean of its column over the outputs, summed over the consumers that read it, and not
        below zero; the order follows from it before it is clipped. ``dependency`` of a consumer is ``[groups of
        outputs, inputs / groups]``; the columns of a unit with several channels are equal.

    Raises:
        DataError: no pooled rows, rows that are not numbers, or moments of another model.
        MintDeployError: a setting that makes no sense.
    """
    if not 0 < most_removed <= 1:
        raise MintDeployError(
            f"most_removed={most_removed:g} is no share of a group; expected above 0 up to 1"
        )
    consumers = channels_of_units(graph, moments, "gmi")
    found = {}
    for i, (name, units) in enumerate(consumers.items()):
        found[name] = _matrix(
            moments,
            name,
            units,
            out_groups,
            weighted,
            {"condition": condition, "k": k, "paired": paired, "seed": seed, "device": device},
        )
        if progress is not None:
            progress(i + 1, len(consumers))
    groups = {}
    for name, group in graph.groups.items():
        members = [m for m in group.members if m.reads and m.tensor in found]
        if members:
            score = np.zeros(group.size)
            for member in members:
                score += found[member.tensor].mean(0)[member.index[:, 0]]
            groups[name] = GroupImportance(
                loss=np.maximum(score, 0.0),
                order=np.argsort(score, kind="stable"),
                least=math.ceil((1 - most_removed) * group.size),
            )
    return Importance(
        groups=groups,
        criterion="mint",
        estimator="gmi",
        seed=seed,
        comparable=True,
        settings={
            "condition": condition,
            "k": _K.get(condition, 1) if k is None else k,
            "out_groups": out_groups,
            "weighted": weighted,
            "most_removed": most_removed,
            "paired": paired,
        },
        dependency=found,
    )


def _matrix(
    moments: Moments,
    name: str,
    units: list[Ints],
    out_groups: int | None,
    weighted: bool,
    settings: dict[str, Any],
) -> Floats:
    """Return ``[groups of outputs, inputs / groups]`` of one consumer, each of its own groups by itself."""
    known, rows = moments.consumers[name], moments.pooled[name]
    width, tall = known.channels // known.groups, rows.outputs.shape[1] // known.groups
    wanted = tall if out_groups is None else max(1, min(tall, out_groups // known.groups))
    # a transposed kernel's positions count as outputs in the weight, not in the rows
    W = known.weight.astype(np.float64).reshape(len(rows.outputs[0]), -1, width, known.taps)
    power = (W**2).sum((1, 3))
    blocks, scales = [], []
    for b in range(known.groups):
        mine = slice(b * tall, (b + 1) * tall)
        out = np.array_split(np.arange(tall), wanted)
        try:
            values = dependency(
                rows.outputs[:, mine],
                rows.inputs[:, b * width : (b + 1) * width],
                out_groups=out,
                in_groups=units,
                **settings,
            )
        except DataError as error:
            raise DataError(f"of '{name}': {error}") from error
        block, scale = np.empty((wanted, width)), np.empty((wanted, width))
        for u, channels in enumerate(units):
            block[:, channels] = values[:, u, None]
            norms = [power[mine][own][:, channels].sum() for own in out]
            scale[:, channels] = np.sqrt(norms)[:, None]
        blocks.append(block)
        scales.append(scale)
    found, scale = np.concatenate(blocks), np.concatenate(scales)
    return found * (scale / max(float(scale.max()), 1e-300)) if weighted else found
