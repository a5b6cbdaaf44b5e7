r"""Dense Euclidean minimum spanning trees, thousands of them: Prim's algorithm in vector instructions (numba).

Squared distances add, so a tree's distance from ``i`` to ``j`` is

    W_ij = E_ij + sum_d (F_di - F_dj)^2

with a matrix ``E`` (optional) that many trees share and a few features ``F`` of each tree's own, which are cheaper
computed than loaded: no tree ever has a matrix of its own. Prim's algorithm visits ``n`` vertices; a visit is one
pass over those not yet visited, which brings ``best_j = min(best_j, W_vj)`` up to date and finds its minimum. Most
distances improve nothing, and terms only add: where what has been summed of 64 distances is nowhere
below ``best``, the rest is not summed, nothing is stored, and their minimum stands.

Exact, in float32, and without fast-math: distances are not negative, so that their bits order as whole numbers do;
minima are taken of those, and infinity is what a visited vertex keeps. The pass is written in LLVM's vector types:
compilers make no vectors of a loop with such an exit. Without ``E`` the last vertex moves to the place of a
visited one and the pass shrinks; with it, 64 neighbours that have all been visited are passed over, which happens
often where the vertices stand in the order in which a tree of ``E`` visits them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]  # ships no types
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import make_array

__all__ = ["LANES", "Float32s", "Int8s", "crossings", "jit", "padded", "tree"]

Float32s = npt.NDArray[np.float32]
Int8s = npt.NDArray[np.int8]
F = TypeVar("F", bound=Callable[..., Any])

#: vertices that one step of the pass takes; rows of matrices are padded to a multiple of it
LANES = 64
#: lanes of one register: LLVM splits or joins them where a processor has others
WIDTH = 8

#: the bits of infinity in float32, and more than any distance's
INFINITE, MORE = 0x7F800000, 0x7FFFFFFF


def jit(function: F) -> F:
    """Compile without the GIL and without fast-math; keep the machine code where a cache can be written."""
    compiler: Any = numba.njit
    try:
        made: F = compiler(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # nowhere to write: compile in every process
        made = compiler(nogil=True, error_model="numpy")(function)
    return made


# ---------------------------------------------------------------- one step, in vectors

_intrinsic: Any = intrinsic  # numba ships no types

_i32, _i64, _f32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
_FLOATS, _INTS = ir.VectorType(_f32, WIDTH), ir.VectorType(_i32, WIDTH)


def _at(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    made: Any = make_array
    return builder.gep(made(kind)(context, builder, array).data, [offset])


def _vector(builder: Any, pointer: Any, lane: int, kind: Any) -> Any:
    """Return a pointer to the vector that begins ``lane`` elements on."""
    return builder.bitcast(builder.gep(pointer, [_i64(lane)]), kind.as_pointer())


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    one = builder.insert_element(kind(ir.Undefined), value, _i32(0))
    lanes = ir.VectorType(_i32, kind.count)
    return builder.shuffle_vector(one, kind(ir.Undefined), lanes([0] * kind.count))


def _reduced(builder: Any, what: str, vector: Any) -> Any:
    name = f"llvm.vector.reduce.{what}.v{WIDTH}i32"
    return builder.call(
        builder.module.declare_intrinsic(name, fnty=ir.FunctionType(_i32, [_INTS])), [vector]
    )


def _less(builder: Any, one: Any, two: Any) -> Any:
    return builder.select(builder.icmp_signed("<", one, two), one, two)


def _relaxing(with_matrix: bool) -> Any:
    """Make the step: relax ``LANES`` vertices by the visited one; return their least bits, MORE if none improved.

    Its arguments: ``E`` (flat) and the offset there; ``F [dims, pitch]`` (flat), ``dims`` and ``pitch``; how
    many features are summed before it looks whether to go on; the visited vertex's own features; ``best``; the
    visit that each was improved by, and the number of this one; the first of the vertices.
    """
    parts = range(LANES // WIDTH)
    utils: Any = cgutils

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        E, e_at, features, dims, pitch, look, own, best, since, now, at = args
        kinds = signature.args
        result = utils.alloca_once_value(b, _i32(MORE))
        sums = [utils.alloca_once(b, _FLOATS) for _ in parts]
        row = _at(context, b, kinds[0], E, e_at)
        for i, total in enumerate(sums):
            start = _FLOATS([0.0] * WIDTH)
            if with_matrix:
                start = b.load(_vector(b, row, i * WIDTH, _FLOATS), align=4)
            b.store(start, total)
        fused = b.module.declare_intrinsic(
            f"llvm.fmuladd.v{WIDTH}f32", fnty=ir.FunctionType(_FLOATS, [_FLOATS] * 3)
        )

        def summed(start: Any, stop: Any) -> None:
            with utils.for_range_slice(b, start, stop, _i64(1)) as (d, _):
                mine = _splat(b, b.load(_at(context, b, kinds[6], own, d)), _FLOATS)
                line = _at(context, b, kinds[2], features, b.add(b.mul(d, pitch), at))
                for i, total in enumerate(sums):
                    value = b.load(_vector(b, line, i * WIDTH, _FLOATS), align=4)
                    gap = b.fsub(value, mine)
                    b.store(b.call(fused, [gap, gap, b.load(total)]), total)

        summed(_i64(0), look)
        bests, visits = _at(context, b, kinds[7], best, at), _at(context, b, kinds[8], since, at)
        lower = _INTS([0] * WIDTH)
        for i, total in enumerate(sums):
            old = b.load(_vector(b, bests, i * WIDTH, _INTS), align=4)
            nearer = b.icmp_signed("<", b.bitcast(b.load(total), _INTS), old)
            lower = b.or_(lower, b.sext(nearer, _INTS))
        with b.if_then(b.icmp_signed("!=", _reduced(b, "or", lower), _i32(0))):
            summed(look, dims)
            least = _INTS([MORE] * WIDTH)
            stamp = _splat(b, now, _INTS)
            for i, total in enumerate(sums):
                to_best, to_visit = (_vector(b, p, i * WIDTH, _INTS) for p in (bests, visits))
                new, old = b.bitcast(b.load(total), _INTS), b.load(to_best, align=4)
                nearer = b.sext(b.icmp_signed("<", new, old), _INTS)
                new, before = _less(b, new, old), b.load(to_visit, align=4)
                # visits only grow: a maximum, where a choice would be a masked store, which is slow
                later = b.and_(nearer, stamp)
                b.store(
                    b.select(b.icmp_signed(">", later, before), later, before), to_visit, align=4
                )
                b.store(new, to_best, align=4)
                least = _less(b, new, least)
            b.store(_reduced(b, "smin", least), result)
        return b.load(result)

    def relax(context, E, e_at, features, dims, pitch, look, own, best, since, now, at):  # type: ignore[no-untyped-def]  # noqa: ARG001  # numba reads the names
        n = types.int64
        kind = types.int32(E, n, features, n, n, n, own, best, since, types.int32, n)
        return kind, generate

    return _intrinsic(relax)


_relax = _relaxing(with_matrix=False)
_relax_matrix = _relaxing(with_matrix=True)


@_intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def _minimum(_: Any, best: Any, at: Any) -> tuple[Any, Any]:  # noqa: ARG001  # numba reads names
    """Return the least of the ``LANES`` entries of ``best`` from ``at`` on."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        first, least = _at(context, b, signature.args[0], *args), _INTS([MORE] * WIDTH)
        for lane in range(0, LANES, WIDTH):
            least = _less(b, b.load(_vector(b, first, lane, _INTS), align=4), least)
        return _reduced(b, "smin", least)

    return types.int32(best, types.int64), generate


@_intrinsic  # type: ignore[untyped-decorator]  # numba ships no types
def _place(_: Any, best: Any, at: Any, value: Any) -> tuple[Any, Any]:  # noqa: ARG001  # numba reads names
    """Return where among the ``LANES`` entries of ``best`` from ``at`` on ``value`` lies first."""

    def generate(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_i32, LANES)
        first = _at(context, b, signature.args[0], args[0], args[1])
        values = b.load(_vector(b, first, 0, kind), align=4)
        equal = b.icmp_signed("==", values, _splat(b, args[2], kind))
        return b.cttz(b.bitcast(equal, ir.IntType(LANES)), ir.IntType(1)(0))

    return types.int64(best, types.int64, types.int32), generate


# ---------------------------------------------------------------- trees


@jit
def _prim(E: Float32s, features: Float32s, edges: npt.NDArray[np.int32]) -> float:
    """Build one tree; ``features [D, pad]`` is overwritten, ``edges [n - 1, 2]`` filled with (parent, child)."""
    n = len(edges) + 1
    dims, pitch = features.shape
    flat, matrix = features.reshape(-1), E.reshape(-1)
    with_matrix = len(matrix) > 0
    look = 0 if with_matrix else (dims + 1) // 2
    best = np.full(pitch, np.int32(INFINITE), np.int32)
    since = np.zeros(pitch, np.int32)
    order = np.empty(n, np.int32)
    who = np.arange(pitch).astype(np.int32)
    left = np.zeros(pitch // LANES, np.int32)  # of each block: not yet visited, and least bits
    low = np.full(pitch // LANES, np.int32(INFINITE), np.int32)
    for j in range(n):
        left[j // LANES] += 1
    own = np.empty(dims, np.float32)
    total, at, live = 0.0, 0, n
    for step in range(n - 1):
        order[step] = who[at]
        for d in range(dims):
            own[d] = features[d, at]
        block = at // LANES
        if with_matrix:
            features[0, at] = np.inf  # at an infinite distance from all that follow
            best[at] = np.int32(INFINITE)
            left[block] -= 1
        else:
            live -= 1
            for d in range(dims):
                features[d, at] = features[d, live]
            features[0, live] = np.inf
            who[at], best[at], since[at] = who[live], best[live], since[live]
            best[live] = np.int32(INFINITE)
            low[live // LANES] = _minimum(best, live // LANES * LANES)
        low[block] = _minimum(best, block * LANES)
        least, block = np.int32(MORE), 0
        row, now = np.int64(order[step]) * pitch, np.int32(step)
        for i in range((live + LANES - 1) // LANES):
            if left[i] == 0:
                continue
            b = i * LANES
            if with_matrix:
                found = _relax_matrix(
                    matrix, row + b, flat, dims, pitch, look, own, best, since, now, b
                )
            else:
                found = _relax(matrix, 0, flat, dims, pitch, look, own, best, since, now, b)
            if found != MORE:
                low[i] = found
            if low[i] < least:
                least, block = low[i], b
        at = block + _place(best, block, least)
        edges[step, 0] = order[since[at]]
        edges[step, 1] = who[at]
        total += best[at : at + 1].view(np.float32)[0]
    return total


@jit
def _crossings(
    E: Float32s,
    common: Float32s,
    own: Float32s,
    starts: npt.NDArray[np.int64],
    labels: Int8s,
) -> npt.NDArray[np.int32]:
    n, trees = len(labels), len(starts) - 1
    pitch = -(-n // LANES) * LANES
    shared = len(common)
    crossed = np.zeros(trees, np.int32)
    for t in range(trees):
        width = starts[t + 1] - starts[t]
        features = np.zeros((shared + width, pitch), np.float32)
        features[:shared, :n] = common
        features[shared:, :n] = own[starts[t] : starts[t + 1]]
        features[0, n:] = np.inf
        edges = np.empty((n - 1, 2), np.int32)
        _prim(E, features, edges)
        count = 0
        for i in range(n - 1):
            count += labels[edges[i, 0]] != labels[edges[i, 1]]
        crossed[t] = count
    return crossed


_NONE = np.zeros((0, 0), dtype=np.float32)


def crossings(
    matrix: Float32s | None,
    common: Float32s,
    own: Float32s,
    starts: npt.NDArray[np.int64],
    labels: Int8s,
) -> npt.NDArray[np.int32]:
    """Return for each of ``T`` trees how many of its edges join vertices of different labels.

    Args:
        matrix: squared distances ``[n, n]`` that all trees share, rows padded (:func:`padded`), or None.
        common: features ``[D, n]`` that all trees share.
        own: features ``[sum of the trees' widths, n]``; each tree has one at least.
        starts: ``[T + 1]``, tree ``t`` owns the features ``starts[t]`` to ``starts[t + 1]``.
        labels: ``[n]``.
    """
    found: npt.NDArray[np.int32] = _crossings(
        _NONE if matrix is None else matrix,
        np.ascontiguousarray(common),
        np.ascontiguousarray(own),
        starts,
        labels,
    )
    return found


def tree(matrix: Float32s | None, features: Float32s) -> tuple[npt.NDArray[np.int32], float]:
    """Return one tree: its edges ``[n - 1, 2]``, (parent, child) in the order of visits, and its weight."""
    n = features.shape[1]
    wide = np.zeros((len(features), padded(n)), dtype=np.float32)
    wide[:, :n] = features
    wide[0, n:] = np.inf
    edges = np.empty((n - 1, 2), dtype=np.int32)
    return edges, float(_prim(_NONE if matrix is None else matrix, wide, edges))


def padded(n: int) -> int:
    """Return the length of a matrix's row for ``n`` vertices."""
    return -(-n // LANES) * LANES
