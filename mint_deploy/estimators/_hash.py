r"""Information counted in the buckets of a random grid, in time linear in the rows (numba).

The dependence graph of EDGE (Noshad, Zeng, Hero, ICASSP 2019, arXiv 1801.09125), with a third side for the
condition: a row falls into bucket ``i`` of its X, ``j`` of its Y and ``k`` of its Z, where a bucket is a cell of
the grid ``floor((v + b) / epsilon)`` with a random offset ``b`` (their hash ``H_1``). The cell
of a vector is one 64-bit key, the *sum* of a mixed word for each of its coordinates: a coordinate can be taken out
of a key again by subtraction, so that "all the others" costs one subtraction for each input and not a pass over
all (some two cells collide with a probability of about ``N^2 / 2^64``). Keys are renamed to small whole numbers,
and a triple is then counted in a dense table where that has at most ``8 N`` cells, in an open-addressing hash
table beyond: both are linear in ``N``. With the counts, over the occupied cells,

    shannon    I = sum_ijk N_ijk / N  log t_ijk,              t_ijk = N_ijk N_k / (N_ik N_jk)      [nats]
    geometric  I = sum_ijk N_ijk / N  (t_ijk - 1) / (t_ijk + 1)                                    [0 to 1]

Both are divergences of the empirical joint distribution of buckets from its conditionally independent
counterpart ``q``, so neither is ever negative. ``geometric`` equals ``1 - 2 E[1 / (1 + t)]``, the quantity that
the spanning tree of ``gmi`` estimates; written as ``E_q g(t)``, it has ``g(t) = (t - 1)^2 / (2 (t + 1))`` where
Shannon has ``t log t``.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import Floats, Ints

__all__ = ["MEASURES", "Labels", "cells", "information", "rename"]

Keys = npt.NDArray[np.uint64]
Ids = npt.NDArray[np.int32]
#: names of buckets ``[variables, N]``, and how many each variable has
Labels = tuple[Ids, Ints]

MEASURES = ("shannon", "geometric")

#: a dense table has at most this many cells for each row
_DENSE = 8
#: outputs that one thread takes at a time
_TILE = 16


def cells(values: Floats, epsilon: float, offset: float, salts: Keys) -> Keys:
    """Return the word of every coordinate's cell.

    Args:
        values: ``[C, N]``, one coordinate a row.
        epsilon: width of the cells.
        offset: where the cells begin, 0 to ``epsilon``, the same for all, so that equal coordinates share cells.
        salts: ``[C]``, a random word for each coordinate, so that equal levels of two differ.

    Returns:
        ``[C, N]``; the key of a vector is the sum (modulo 2^64) of its coordinates' words.
    """
    levels = np.floor((values + offset) / epsilon).astype(np.int64).view(np.uint64)
    return _mixed(levels * np.uint64(0x9E3779B97F4A7C15) + salts[:, None])


def _mixed(x: Keys) -> Keys:
    """Mix 64-bit words (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def rename(keys: Keys) -> Labels:
    """Rename the keys ``[V, N]`` of each variable to ``0, 1, ...`` in order of appearance."""
    ids = np.empty(keys.shape, dtype=np.int32)
    return ids, _rename(np.ascontiguousarray(keys), ids, _slots(keys.shape[1]))


def information(
    x: Labels,
    y: Labels,
    z: Labels,
    which: Ints,
    *,
    measure: str = "shannon",
    done: Callable[[int], None] | None = None,
) -> Floats:
    """Return ``I(X_c; Y_g | Z_{which[c, g]})`` for every pair.

    Args:
        x: buckets of the outputs, ``[C, N]``.
        y: buckets of the inputs, ``[G, N]``.
        z: buckets of the conditions, ``[Z, N]``; a condition with one bucket is none.
        which: ``[C, G]``, the condition of each pair.
        measure: ``shannon`` or ``geometric``.
        done: called with the number of outputs done so far.

    Returns:
        ``[C, G]``; exactly zero where X or Y has one bucket.
    """
    rows, outputs = x[0].shape[1], len(x[0])
    logs = np.log(np.maximum(np.arange(rows + 1), 1))
    found = np.zeros(which.shape)

    def tile(first: int) -> None:
        _pairs(
            *x, *y, *z, which, logs, measure == "geometric", _DENSE * rows, _slots(rows),
            first, min(first + _TILE, outputs), found,
        )  # fmt: skip

    starts = range(0, outputs, _TILE)
    with ThreadPoolExecutor(max_workers=numba.get_num_threads()) as pool:
        for first, _ in zip(starts, pool.map(tile, starts), strict=True):
            if done is not None:
                done(min(first + _TILE, outputs))
    return found


def _slots(rows: int) -> int:
    """Return a power of two that leaves a hash table of ``rows`` keys at least half empty."""
    return int(2 ** np.ceil(np.log2(max(2, 2 * rows))))


# ---------------------------------------------------------------- kernels


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile, and keep the machine code where there is a place to keep it."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder that can be written: compile in every process
        return numba.njit(nogil=True)(function)


@_compiled
def _rename(keys: Keys, ids: Ids, slots: int) -> Ints:
    variables, rows = keys.shape
    found = np.empty(variables, dtype=np.int64)
    held = np.empty(slots, dtype=np.uint64)
    name = np.empty(slots, dtype=np.int32)
    mask = np.uint64(slots - 1)
    for v in range(variables):
        name[:] = -1
        names = 0
        for n in range(rows):
            at = keys[v, n] & mask
            while name[at] >= 0 and held[at] != keys[v, n]:
                at = (at + np.uint64(1)) & mask
            if name[at] < 0:
                held[at] = keys[v, n]
                name[at] = names
                names += 1
            ids[v, n] = name[at]
        found[v] = names
    return found


@_compiled
def _slot(held: Ints, count: Ids, key: int, mask: int) -> Any:
    """Return the slot of a key, taken or free (linear probing from a mixed start)."""
    start = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64((start ^ (start >> np.uint64(32))) & np.uint64(mask))
    while count[at] > 0 and held[at] != key:
        at = (at + 1) & mask
    return at


@_compiled
def _dense(
    x: Ids,
    y: Ids,
    z: Ids,
    kx: int,
    ky: int,
    kz: int,
    logs: Floats,
    geometric: bool,
    table: Ids,
    of_x: Ints,
    of_y: Ints,
) -> float:
    """Return N times the information of one pair, counted in a table ``[kz, ky, kx]``."""
    table[: kx * ky * kz] = 0
    for n in range(len(x)):
        table[(z[n] * ky + y[n]) * kx + x[n]] += 1
    total = 0.0
    for k in range(kz):
        base, of_z = k * ky * kx, 0
        of_x[:kx] = 0
        for j in range(ky):
            of_y[j] = 0
            for i in range(kx):
                count = table[base + j * kx + i]
                of_x[i] += count
                of_y[j] += count
                if not geometric:
                    total += count * logs[count]
            of_z += of_y[j]
            if not geometric:
                total -= of_y[j] * logs[of_y[j]]
        if geometric:
            for j in range(ky):
                for i in range(kx):
                    count = table[base + j * kx + i]
                    if count > 0:
                        joint, apart = float(count) * of_z, float(of_x[i]) * of_y[j]
                        total += count * (joint - apart) / (joint + apart)
        else:
            total += of_z * logs[of_z]
            for i in range(kx):
                total -= of_x[i] * logs[of_x[i]]
    return total


@_compiled
def _sparse(
    x: Ids,
    y: Ids,
    z: Ids,
    kx: int,
    ky: int,
    kz: int,
    logs: Floats,
    geometric: bool,
    held: Ints,
    count: Ids,
    slot: Ints,
) -> float:
    """The same with a hash table for each of XYZ, XZ and YZ (``held``, ``count`` are ``[3, slots]``)."""
    rows, mask = len(x), held.shape[1] - 1
    count[:] = 0
    of_z = np.zeros(kz, dtype=np.int64)
    for n in range(rows):
        of_z[z[n]] += 1
        xz, yz = np.int64(z[n]) * kx + x[n], np.int64(z[n]) * ky + y[n]
        for t, key in enumerate((yz * kx + x[n], xz, yz)):
            at = _slot(held[t], count[t], key, mask)
            held[t, at] = key
            count[t, at] += 1
            slot[t, n] = at
    total = 0.0
    for n in range(rows):
        both, of_x, of_y = count[0, slot[0, n]], count[1, slot[1, n]], count[2, slot[2, n]]
        if geometric:
            joint, apart = float(both) * of_z[z[n]], float(of_x) * of_y
            total += (joint - apart) / (joint + apart)
        else:
            total += logs[both] + logs[of_z[z[n]]] - logs[of_x] - logs[of_y]
    return total


@_compiled
def _pairs(
    x: Ids,
    kx: Ints,
    y: Ids,
    ky: Ints,
    z: Ids,
    kz: Ints,
    which: Ints,
    logs: Floats,
    geometric: bool,
    limit: int,
    slots: int,
    first: int,
    last: int,
    found: Floats,
) -> None:
    """Fill the rows ``first`` to ``last`` of ``found`` with the information of their pairs."""
    rows = x.shape[1]
    table = np.empty(limit, dtype=np.int32)
    of_x, of_y = np.empty(kx.max(), dtype=np.int64), np.empty(ky.max(), dtype=np.int64)
    held = np.empty((3, slots), dtype=np.int64)
    count = np.empty((3, slots), dtype=np.int32)
    slot = np.empty((3, rows), dtype=np.int64)
    for c in range(first, last):
        for g in range(len(ky)):
            w = which[c, g]
            if kx[c] == 1 or ky[g] == 1 or kz[w] == rows:
                found[c, g] = 0.0  # a constant, or a condition that names the row
            elif kx[c] * ky[g] * kz[w] <= limit:
                total = _dense(
                    x[c], y[g], z[w], kx[c], ky[g], kz[w], logs, geometric, table, of_x, of_y
                )
                found[c, g] = max(0.0, total / rows)
            else:
                total = _sparse(
                    x[c], y[g], z[w], kx[c], ky[g], kz[w], logs, geometric, held, count, slot
                )
                found[c, g] = max(0.0, total / rows)
