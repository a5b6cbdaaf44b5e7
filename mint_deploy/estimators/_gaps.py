"""Squared distances in features and conditions, nearest rows and pairs of them (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mint_deploy.estimators._mst import Float32s, jit

__all__ = ["ROUNDING", "distances", "nearest", "partners"]

#: share of a float32 that may be left of zero once its parts are taken away
ROUNDING = np.float32(4e-6)


@jit
def distances(
    out: Float32s,
    base: Float32s,
    minus_rows: Float32s,
    minus: Float32s,
    plus_rows: Float32s,
    plus: Float32s,
) -> None:
    """Write squared distances into the first ``n`` columns of ``out [R, >= n]``.

    Args:
        out: is overwritten, because fresh memory costs more than the arithmetic.
        base: ``[R, >= n]``, from which to begin, or empty.
        minus_rows: features ``[D, R]`` of the rows whose squared distances to
        minus: ``[D, n]`` are taken away.
        plus_rows: features of the rows whose squared distances to
        plus: are added.
    """
    n = plus.shape[1]
    for i in range(len(out)):
        row = out[i, :n]
        if base.size:
            row[:] = base[i, :n]
            for d in range(len(minus)):
                mine, line = minus_rows[d, i], minus[d]
                for j in range(n):
                    row[j] -= (line[j] - mine) * (line[j] - mine)
            for j in range(n):  # what rounding leaves of nothing is nothing: equal rows tie
                row[j] = row[j] if row[j] > ROUNDING * base[i, j] else np.float32(0)
        else:
            row[:] = np.float32(0)
        for d in range(len(plus)):
            mine, line = plus_rows[d, i], plus[d]
            for j in range(n):
                row[j] += (line[j] - mine) * (line[j] - mine)


@jit
def nearest(gaps: Float32s, n: int, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where in each row of ``gaps [R, >= n]`` the least of the first ``n`` entries lies.

    Of equal ones it is the first from ``starts [R]`` on, cyclically: random starts, random choice.
    """
    found = np.empty(len(gaps), np.int64)
    for i in range(len(gaps)):
        row, at = gaps[i], starts[i]
        for j in range(starts[i], n):
            if row[j] < row[at]:
                at = j
        for j in range(starts[i]):
            if row[j] < row[at]:
                at = j
        found[i] = at
    return found


@jit
def partners(gaps: Float32s, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Pair vertices ``[n]`` with near ones: each in ``order`` takes the nearest that is still free.

    Of equally near ones it takes the first in ``order``. The last of an odd number keeps to itself.
    """
    n = len(order)
    partner = np.full(n, -1, np.int64)
    for i in range(n):
        v = order[i]
        if partner[v] >= 0:
            continue
        at = v
        for j in range(i + 1, n):
            w = order[j]
            if partner[w] < 0 and (at == v or gaps[v, w] < gaps[v, at]):
                at = w
        partner[v], partner[at] = at, v
    return partner
