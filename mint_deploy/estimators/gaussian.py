r"""Conditional information of jointly Gaussian taps, greedily, with the survivors refitted.

A consumer computes ``y = W t`` from taps ``t`` with covariance ``S``. Let ``K = S_A^{-1}`` over the surviving
taps ``A`` and let ``W`` be the survivors' least-squares weights. When the taps ``u`` of one unit leave and the
others are refitted, the residual variance of output ``o`` grows by

    d_o = W_ou (K_uu)^{-1} W_ou^T,

because ``(K_uu)^{-1}`` is the covariance of ``t_u`` given the other survivors. Against a noise floor of
variance ``n_o`` the information that leaves is

    loss = sum_o 1/2 log(1 + d_o / (s2_o + n_o))                                          [nats]

with ``s2_o`` the residual variance already there (zero at first, grown by each ``d_o``). The floor:

``output`` (the default)
    the outputs are turned into the eigenvectors of ``F``, the Gram matrix of the Jacobian of the network's outputs
    (:mod:`mint_deploy.sensitivity`), and ``n_o = 1 / F_o`` with ``F_o`` its eigenvalues: the error variance that
    becomes as large as the variance of the network's OUTPUT. Losses then compare between layers. While errors are
    small, ``loss = trace(F E) / 2`` with ``E`` the covariance of the error: structured pruning by K-FAC (kin to
    Wang et al. 2019, *EigenDamage*), with the Jacobian in the place of the Fisher information.
``variance``
    ``n_o = noise v_o``, a share of the output's own variance. As ``noise`` grows, the order becomes that of
    backward least-squares channel selection, kin to ThiNet (Luo et al. 2017) and He et al. 2017.

The unit with the least loss leaves; ``K`` and ``W`` are downdated,

    K <- K_RR - K_Ru (K_uu)^{-1} K_uR,      W <- W_R - W_u (K_uu)^{-1} K_uR,

so one inverse a layer is enough. Conditioning on the *survivors* keeps one of two equal filters, where
conditioning on all the others drops both. A unit read by several consumers leaves all of them at once: the losses
add. The conditional-information view is MINT's (Ganesh, Corso, Sekeh 2020), the surgeon's update Hassibi and
Stork's (1993).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mint_deploy.artifacts import Floats, GroupImportance, Importance, Ints, Moments
from mint_deploy.blas import LARGE, few_threads, threads
from mint_deploy.errors import MintDeployError, UnknownName
from mint_deploy.estimators._gaussian_arrays import dependency
from mint_deploy.graph import Graph, Group
from mint_deploy.readers import Cached, Leaving, Reader, forget, leaving, readers_of

__all__ = ["NEEDS", "along", "dependency", "eliminate", "rank", "states_of"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments", "sensitivity")

FLOORS = ("output", "variance")
#: the variance floor, as a share of each output's variance
NOISE = 0.01
#: columns of the precision whose downdates wait for each other
DELAY = 96


def rank(
    graph: Graph,
    moments: Moments,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    floor: str = "output",
    noise: float = NOISE,
) -> Importance:
    """Eliminate the units of every group that some sampled consumer reads.

    Where the moments have halves, ``spread`` is half the difference between the losses that either half
    sees as the units leave in this order: the standard error of the mean of the two.
    """
    cache: dict[str, Cached] = {}
    found: dict[str, GroupImportance | None] = {}

    def one(name: str) -> None:
        found[name] = _ranked(graph.groups[name], moments, cache, floor, noise)
        forget(graph, cache, found)
        if progress is not None:
            progress(len(found), len(graph.groups))

    large = {n for n, g in graph.groups.items() if _largest(g, moments) > LARGE}
    cores = threads()
    with few_threads(), ThreadPoolExecutor(cores) as pool:  # a group a core
        waiting = [pool.submit(one, name) for name in graph.groups if name not in large]
        try:
            for done in waiting:
                done.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name in large:  # all cores for one of them, whose matrices are the memory
        one(name)
    groups = {n: g for n in graph.groups if (g := found[n]) is not None}
    return Importance(
        groups=groups,
        criterion="mint",
        estimator="gaussian",
        seed=seed,
        comparable=floor == "output"
        and any(c.sensitivity.any() for c in moments.consumers.values()),
        settings={"floor": floor, **({"noise": noise} if floor == "variance" else {})},
    )


def _largest(group: Group, moments: Moments) -> int:
    """Return how many taps the widest reader of a group has."""
    known = (moments.consumers.get(m.tensor) for m in group.members if m.reads)
    return max((len(c.mean) // c.groups for c in known if c is not None), default=0)


def _ranked(
    group: Group,
    moments: Moments,
    cache: dict[str, Cached],
    floor: str,
    noise: float,
) -> GroupImportance | None:
    variance = floor != "output"
    readers = readers_of(group, moments, cache, variance=variance)
    if not readers:
        return None
    loss, order = eliminate(readers, group.size, floor=floor, noise=noise)
    seen = [
        along(leaving(group, half, order, variance=variance), order, floor=floor, noise=noise)
        for half in moments.halves
    ]
    spread = np.abs(seen[0] - seen[1]) / 2 if len(seen) == 2 else None
    return GroupImportance(loss=loss, order=order, spread=spread)


def eliminate(
    readers: Sequence[Reader], units: int, *, floor: str = "output", noise: float = NOISE
) -> tuple[Floats, Ints]:
    """Eliminate all units one by one.

    Args:
        readers: the consumers of the group.
        units: number of units ``U``.
        floor: ``output`` or ``variance``, see above. Without any sensitivity (the network could not be run
            backwards) ``variance`` it is.
        noise: for ``variance``: the floor as a share of each output's variance; ``inf`` gives ``d_o / v_o``.

    Returns:
        ``loss [U]`` at the moment each unit leaves, and ``order [U]``, first out first.

    Raises:
        MintDeployError: an unknown floor, or a noise that is not positive.
    """
    states = states_of(readers, units, floor, noise)
    loss = np.zeros(units)
    order = np.empty(units, dtype=np.int64)
    for step in range(units):
        total = np.zeros(units)
        for state in states:
            total += state.losses(units)
        out = int(np.argmin(total))
        loss[out], order[step] = total[out], out
        for state in states:
            state.drop(out)
    return loss, order


def along(
    readers: Iterable[Leaving], order: Ints, *, floor: str = "output", noise: float = NOISE
) -> Floats:
    """Return ``loss [U]`` of units that leave in a given order; settings and errors of :func:`eliminate`."""
    readers = list(readers)
    floor = _floor(readers, floor, noise)
    loss = np.zeros(len(order))
    for reader in readers:
        judge = _Judge(reader, floor, noise)
        left = reader.rows if judge.basis is None else reader.rows @ judge.basis
        growth = (left * left).reshape(len(order), -1, left.shape[1]).sum(1)
        loss[order] += judge.lost(growth, np.cumsum(growth, 0) - growth)
    return loss


def states_of(readers: Sequence[Reader], units: int, floor: str, noise: float) -> list[_State]:
    """Return every reader as it is before any unit leaves; settings and errors of :func:`eliminate`."""
    floor = _floor(readers, floor, noise)
    return [_State(r, units, floor, noise) for r in readers]


def _floor(readers: Sequence[Reader | Leaving], floor: str, noise: float) -> str:
    if floor not in FLOORS:
        raise UnknownName("noise floor", floor, FLOORS)
    if not noise > 0:
        raise MintDeployError(f"noise={noise:g} is not positive; expected a share of the variance")
    if floor == "output" and not any(r.sensitivity.any() for r in readers):
        return "variance"
    return floor


class _Judge:
    """What growing residuals cost at one consumer.

    ``basis [outputs, kept]`` turns the outputs into those that count (None: as they are); ``felt`` is how much
    one unit of variance counts in each, the inverse of the noise floor.
    """

    def __init__(self, reader: Reader | Leaving, floor: str, noise: float) -> None:
        self.basis: Floats | None = None
        if floor == "output":
            felt, basis = np.linalg.eigh(reader.sensitivity)
            counts = felt > 1e-12 * max(float(felt[-1]), 1e-300)
            self.felt, self.basis = felt[counts], basis[:, counts]
        else:
            variance = reader.variance
            if variance is None:
                raise MintDeployError(
                    "the floor 'variance' needs the variance of the outputs, which was not made; "
                    "make the readers with variance=True"
                )
            alive = variance > 1e-24 * float(variance.max(initial=0.0))
            safe = np.where(alive, variance, 1.0)
            share = 1.0 if np.isinf(noise) else noise
            self.felt = np.where(alive, 1.0 / (share * safe), 0.0)
        self.linear = floor == "variance" and bool(np.isinf(noise))

    def lost(self, growth: Floats, residual: Floats) -> Floats:
        """Return the loss ``[...]`` of residuals ``[..., outputs]`` that grow."""
        if self.linear:
            return np.asarray(growth @ self.felt)
        share = growth * (self.felt / (1.0 + self.felt * residual))
        return np.asarray(0.5 * np.log1p(share).sum(-1))


class _State:
    """What is left of one reader: precision and weights of the survivors, residual so far.

    The precision is downdated lazily: ``K`` is as it was at the last flush, and what left since is kept as
    factors ``V``, so that now it is ``K - V V^T``. A step needs one block column of it and its diagonal
    blocks; every :data:`DELAY` columns one matrix product brings all of it up to date. Equal to downdating at
    once (the tests recompute), and limited by arithmetic where that is limited by memory.
    """

    def __init__(self, reader: Reader, units: int, floor: str, noise: float) -> None:
        self.b = reader.weight.shape[1] // units
        self.at = np.arange(units)  # which unit each block of K is
        self.alive = np.ones(units, dtype=bool)  # by block
        self.K = reader.precision
        self.blocks = _diagonal(self.K, self.b)
        self.V = np.empty((len(self.K), DELAY + self.b))
        self.pending = 0
        self.judge = _Judge(reader, floor, noise)
        W = reader.weight.astype(np.float64)
        if self.judge.basis is not None:
            W = self.judge.basis.T @ W
        self.W = np.ascontiguousarray(W.T)  # [U b, O]
        self.residual = np.zeros(len(W))

    def losses(self, units: int) -> Floats:
        """Return the loss of every survivor, were it the next to leave; infinite for those that left."""
        W = self.W.reshape(len(self.at), self.b, -1)
        growth = np.maximum((np.linalg.inv(self.blocks) @ W * W).sum(1), 0.0)
        out = np.full(units, np.inf)
        out[self.at[self.alive]] = self.judge.lost(growth[self.alive], self.residual)
        return out

    def drop(self, unit: int) -> float:
        """Let one survivor leave and refit the others; return what was lost."""
        block = int(np.searchsorted(self.at, unit))
        mine = slice(block * self.b, (block + 1) * self.b)
        V = self.V[:, : self.pending]
        column = self.K[:, mine] - V @ V[mine].T
        root = np.linalg.inv(np.linalg.cholesky(self.blocks[block])).T
        v, w = column @ root, root.T @ self.W[mine]
        growth = (w * w).sum(0)
        lost = float(self.judge.lost(growth, self.residual))
        self.residual += growth
        self.W -= v @ w
        self.alive[block] = False
        wide = v.reshape(len(self.at), self.b, self.b)
        self.blocks -= wide @ wide.transpose(0, 2, 1)
        self.blocks[~self.alive] = np.eye(self.b)
        self.V[:, self.pending : self.pending + self.b] = v
        self.pending += self.b
        if self.pending >= DELAY:
            self._flush()
        return lost

    def _flush(self) -> None:
        """Bring the precision up to date, and forget the blocks that left."""
        stay = np.repeat(self.alive, self.b)
        V = self.V[stay, : self.pending]
        self.K = self.K[np.ix_(stay, stay)]
        self.K -= V @ V.T
        self.W, self.blocks = self.W[stay], self.blocks[self.alive]
        self.at = self.at[self.alive]
        self.alive = np.ones(len(self.at), dtype=bool)
        self.V = np.empty((len(self.K), DELAY + self.b))
        self.pending = 0


def _diagonal(K: Floats, b: int) -> Floats:
    """Return the diagonal blocks ``[U, b, b]``."""
    U = len(K) // b
    return np.array(K.reshape(U, b, U, b)[np.arange(U), :, np.arange(U), :])
