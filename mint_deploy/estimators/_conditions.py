"""The two samples that a tree compares: true rows, and rows whose direct dependence is broken.

The rows are shuffled once and cut into three thirds A, B, C of ``m`` rows. Rows of C stay as they are. A row of A
keeps its outputs and its condition, and takes the input group ``g`` from the row of B that is nearest in the
condition (a random row of B where there is no condition). Nearest is searched IN B for each row OF A; of equally
near rows, which dead channels make by the hundred, a random one is taken, else all would take the same.

The *null* breaks the direct dependence in all rows, so that the truth is known to be zero: the rows of A and C are
paired with neighbours in the condition, and the two rows of a pair swap their outputs. (Swapped, not copied from
the nearest row: copies would lie on each other, and be told from the rest by that.) What the estimate then finds
is its bias: the row that gives a group's values is near, not at the same place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mint_deploy.artifacts import Floats, Ints
from mint_deploy.errors import DataError
from mint_deploy.estimators._coordinates import Side
from mint_deploy.estimators._gaps import distances, nearest, partners
from mint_deploy.estimators._mst import Float32s, Int8s, padded, tree

__all__ = ["LEAST_ROWS", "Common", "Pairs"]

#: four rows in each third
LEAST_ROWS = 12
#: conditions of at most so many features are measured by them, exactly, not by taking away from all
FEW = 24


class Common(NamedTuple):
    """What the trees of one input group share.

    Their squared distances are ``base [n, >= n]`` less those of ``minus [D, n]`` plus those of ``plus [D, n]``;
    without a base, of ``plus`` alone. Vertex ``v`` has the outputs of row ``rows[v]`` and the class ``labels[v]``.
    """

    base: Float32s | None
    minus: Float32s
    plus: Float32s
    rows: Ints
    labels: Int8s

    def fill(self, matrix: Float32s) -> None:
        """Write the squared distances that all trees share into ``[n, padded(n)]``."""
        base = _NONE if self.base is None else self.base
        distances(matrix, base, self.minus, self.minus, self.plus, self.plus)

    def ordered(self) -> Common:
        """Return the vertices in the order in which a tree of ``plus`` visits them."""
        order = visits(None, self.plus)
        return Common(
            self.base, self.minus, self.plus.take(order, 1), self.rows[order], self.labels[order]
        )


@dataclass(frozen=True)
class Pairs:
    """The thirds of one layer's inputs.

    ``inputs`` is ``[C_in, N]``, ``groups`` its groups, ``condition`` what each is conditioned on. ``vertices
    [2 m]`` are rows of C and A, and ``labels`` say which are of A. Where the condition is all the others,
    ``base`` has the squared distances of the whole inputs between the vertices, ``across`` those to B.
    """

    inputs: Float32s
    groups: list[Ints]
    condition: Side
    B: Ints
    vertices: Ints
    labels: Int8s
    seed: int
    base: Float32s | None
    across: Float32s | None

    @classmethod
    def of(cls, inputs: Floats, groups: list[Ints], condition: Side, seed: int) -> Pairs:
        """Shuffle and split standardised inputs.

        Raises:
            DataError: fewer rows than :data:`LEAST_ROWS`.
        """
        count = inputs.shape[1]
        if count < LEAST_ROWS:
            raise DataError(
                f"{count} rows are too few for three thirds; expected {LEAST_ROWS} at the least, and several "
                "hundred for figures that mean anything: sample more images"
            )
        random = np.random.default_rng([seed, 0])
        m = count // 3
        A, B, C = random.permutation(count)[: 3 * m].reshape(3, m)
        # vertices in random order: of equal distances the first is taken, whichever its class
        mixed = random.permutation(2 * m)
        vertices, labels = np.concatenate([C, A])[mixed], (mixed >= m).astype(np.int8)
        base = across = None
        if condition.without and min(map(len, groups)) < len(inputs) - FEW:
            base = _squares(inputs[:, vertices], inputs[:, vertices])
            order = visits(base, np.zeros((1, 2 * m), dtype=np.float32))
            vertices, labels = vertices[order], labels[order]
            base[:, : 2 * m] = base[np.ix_(order, order)]
            across = _squares(inputs[:, vertices], inputs[:, B])
        return cls(
            inputs=inputs.astype(np.float32),
            groups=groups,
            condition=condition,
            B=B,
            vertices=vertices,
            labels=labels,
            seed=seed,
            base=base,
            across=across,
        )

    def common(self, g: int, *, null: bool = False) -> Common:
        """Return what the trees of input group ``g`` share; ``null``: break the dependence in all rows."""
        V, broken = self.vertices, np.flatnonzero(self.labels)
        # by its first channel: groups may be listed in any order
        random = np.random.default_rng([self.seed, 1, int(self.groups[g].min())])
        own, others = self.inputs[self.groups[g]], self._others(g)
        base, across = (None, None) if others is not None else (self.base, self.across)
        gaps = self._gaps(None if across is None else across[broken], g, V[broken], self.B)
        donors = V.copy()
        donors[broken] = self.B[nearest(gaps, len(self.B), random.permutation(len(self.B)))]
        rows = V
        if null:
            rows = V[partners(self._gaps(base, g, V, V), random.permutation(len(V)))]
        if others is None:
            return Common(base, own.take(V, 1), own.take(donors, 1), rows, self.labels)
        plus = np.concatenate([others.take(V, 1), own.take(donors, 1)])
        return Common(None, own[:0].take(V, 1), plus, rows, self.labels)

    def _others(self, g: int) -> Float32s | None:
        """Return the features of a condition ``[D, N]``, or None where only their distances are known."""
        if self.condition.without:
            if len(self.inputs) - len(self.groups[g]) > FEW:
                return None
            return np.delete(self.inputs, self.groups[g], axis=0)
        groups = self.condition.groups
        found: Float32s = self.condition.values[groups[g % len(groups)]].astype(np.float32)
        return found

    def _gaps(self, base: Float32s | None, g: int, left: Ints, right: Ints) -> Float32s:
        """Return squared distances in the condition of ``g`` between rows, ``[left, right]``."""
        own, others = self.inputs[self.groups[g]], self._others(g)
        minus = own if others is None else own[:0]
        plus = own[:0] if others is None else others
        out = np.empty((len(left), len(right)), dtype=np.float32)
        sides = (f.take(rows, 1) for f in (minus, plus) for rows in (left, right))
        distances(out, _NONE if base is None else base, *sides)
        return out


_NONE = np.zeros((0, 0), dtype=np.float32)


def visits(matrix: Float32s | None, features: Float32s) -> Ints:
    """Return the vertices ``[n]`` in the order in which their tree visits them."""
    edges, _ = tree(matrix, features)
    return np.concatenate([[0], edges[:, 1]]).astype(np.int64)


def _squares(left: Floats, right: Floats) -> Float32s:
    """Return squared distances ``[R, padded(n)]`` of ``[D, R]`` and ``[D, n]``, zero between equal columns."""
    sizes = (left**2).sum(0)[:, None] + (right**2).sum(0)
    found = sizes - 2.0 * (left.T @ right)
    found[found < 1e-12 * sizes] = 0.0
    out = np.zeros((left.shape[1], padded(right.shape[1])), dtype=np.float32)
    out[:, : right.shape[1]] = found
    return out
