"""The trees of :mod:`._mst` on a GPU: Prim's algorithm on thousands of pairs at once (torch).

One step visits one vertex in every tree of a batch: gather the rows of the two matrices, add, relax, find the
minima. That is a dozen passes over ``[trees, n]``, limited by the device's memory. The distances are the CPU's up
to the order of float32 sums, so where they are distinct the edges are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mint_deploy.artifacts import Ints
from mint_deploy.estimators._conditions import Common
from mint_deploy.estimators._gaps import ROUNDING
from mint_deploy.estimators._mst import Float32s

__all__ = ["crossings"]

#: bytes of matrices of either side that are held at a time, and trees of a batch
_BYTES, _TREES = 4 << 30, 8192


def crossings(
    commons: Sequence[Common],
    outputs: Float32s,
    starts: Ints,
    device: str,
) -> npt.NDArray[np.int32]:
    """Return how many edges of each tree join vertices of different classes, ``[T, len(commons)]``.

    Args:
        commons: what the trees of each column share; all of one number of vertices.
        outputs: ``[sum of widths, N]``, of which tree ``t`` has ``starts[t]`` to ``starts[t + 1]``.
        starts: ``[T + 1]``.
        device: a torch device.
    """
    n, trees = len(commons[0].rows), len(starts) - 1
    tall = max(1, min(trees, _BYTES // (4 * n * n)))
    wide = max(1, min(_TREES // tall, _BYTES // (4 * n * n)))
    X = torch.from_numpy(outputs).to(device)
    bases = {id(c.base): torch.from_numpy(c.base) for c in commons if c.base is not None}
    bases = {key: base[:, :n].to(device) for key, base in bases.items()}
    found = np.empty((trees, len(commons)), dtype=np.int32)
    for first in range(0, trees, tall):
        part = range(first, min(first + tall, trees))
        rows, D = None, torch.empty(0)
        for g in range(0, len(commons), wide):
            block = list(commons[g : g + wide])
            while block:  # columns whose vertices are the same rows go together
                same = [c for c in block if c.rows is block[0].rows]
                if rows is not block[0].rows:
                    rows = block[0].rows
                    at = torch.from_numpy(rows).to(device)
                    D = torch.stack([_squares(X[starts[t] : starts[t + 1]][:, at]) for t in part])
                E = torch.stack([_matrix(c, bases.get(id(c.base)), device) for c in same])
                labels = torch.stack([torch.from_numpy(c.labels) for c in same]).to(device)
                columns = [i for i, c in enumerate(commons) if any(c is s for s in same)]
                found[part.start : part.stop, columns] = _prim(E, D, labels).T
                block = [c for c in block if all(c is not s for s in same)]
    return found


def _squares(features: Tensor) -> Tensor:
    """Return squared distances ``[n, n]`` between the columns of ``[D, n]``."""
    n = features.shape[1]
    total = features.new_zeros((n, n))
    for line in features:
        total += (line[:, None] - line) ** 2
    return total


def _matrix(common: Common, base: Tensor | None, device: str) -> Tensor:
    plus = _squares(torch.from_numpy(common.plus).to(device))
    if base is None:
        return plus
    left = base - _squares(torch.from_numpy(common.minus).to(device))
    return torch.where(left > float(ROUNDING) * base, left, 0.0) + plus


def _prim(E: Tensor, D: Tensor, labels: Tensor) -> npt.NDArray[np.int32]:
    """Return the crossings ``[G, T]`` of all pairs of ``E [G, n, n]`` and ``D [T, n, n]``."""
    (G, n, _), T = E.shape, len(D)
    place = E.device
    rows_e = torch.arange(G, device=place).repeat_interleave(T) * n
    rows_d = torch.arange(T, device=place).repeat(G) * n
    of = labels.repeat_interleave(T, 0)
    E, D = E.reshape(G * n, n), D.reshape(T * n, n)
    best = torch.full((G * T, n), torch.inf, device=place)
    gone = torch.zeros_like(best)
    parents = torch.zeros_like(of)
    crossed = torch.zeros(G * T, dtype=torch.int32, device=place)
    at = torch.zeros((G * T, 1), dtype=torch.int64, device=place)
    for _ in range(n - 1):
        best.scatter_(1, at, torch.inf)
        gone.scatter_(1, at, torch.inf)
        v = at[:, 0]
        W = E.index_select(0, rows_e + v).add_(D.index_select(0, rows_d + v)).add_(gone)
        parents = torch.where(W.lt(best), of.gather(1, at), parents)
        best = torch.minimum(best, W, out=best)
        at = best.argmin(1, keepdim=True)
        crossed += (of.gather(1, at) != parents.gather(1, at))[:, 0]
    out: npt.NDArray[np.int32] = crossed.reshape(G, T).cpu().numpy()
    return out
