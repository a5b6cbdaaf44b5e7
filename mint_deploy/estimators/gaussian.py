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
    ``n_o = 1 / F_o``, the error variance at which the network's OUTPUT begins to feel output ``o`` (its Fisher
    information, :mod:`mint_deploy.sensitivity`). Losses are then nats of the predicted distribution, and can be
    compared between layers.
``variance``
    ``n_o = noise v_o``, a share of the output's own variance. As ``noise`` grows, the order becomes that of
    backward least-squares channel selection, kin to ThiNet (Luo et al. 2017) and He et al. 2017.

The unit with the least loss leaves; ``K`` and ``W`` are downdated,

    K <- K_RR - K_Ru (K_uu)^{-1} K_uR,      W <- W_R - W_u (K_uu)^{-1} K_uR,

so one inverse a layer is enough. Conditioning on the *survivors* keeps one of two equal filters, where
conditioning on all the others drops both. A unit read by several consumers leaves all of them at once: the losses
add. The conditional-information view is MINT's (Ganesh, Corso, Sekeh 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mint_deploy.artifacts import Floats, GroupImportance, Importance, Ints, Moments
from mint_deploy.errors import MintDeployError, UnknownName
from mint_deploy.graph import Graph
from mint_deploy.readers import Reader, forget, readers_of

__all__ = ["NEEDS", "eliminate", "rank"]

#: what :func:`mint_deploy.sample` has to gather
NEEDS = ("moments", "sensitivity")

FLOORS = ("output", "variance")
#: the variance floor, as a share of each output's variance
NOISE = 0.01


def rank(
    graph: Graph,
    moments: Moments,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **settings: Any,
) -> Importance:
    """Eliminate the units of every group that some sampled consumer reads."""
    cache: dict[str, tuple[Floats, Floats]] = {}
    groups = {}
    for i, (name, group) in enumerate(graph.groups.items()):
        readers = readers_of(group, moments, cache)
        if readers:
            loss, order = eliminate(readers, group.size, **settings)
            groups[name] = GroupImportance(loss=loss, order=order)
        forget(graph, cache, i)
        if progress is not None:
            progress(i + 1, len(graph.groups))
    return Importance(
        groups=groups,
        criterion="mint",
        estimator="gaussian",
        seed=seed,
        comparable=settings.get("floor", "output") == "output"
        and any(c.sensitivity.any() for c in moments.consumers.values()),
        settings=settings,
    )


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
    if floor not in FLOORS:
        raise UnknownName("noise floor", floor, FLOORS)
    if not noise > 0:
        raise MintDeployError(f"noise={noise:g} is not positive; expected a share of the variance")
    if floor == "output" and not any(r.sensitivity.any() for r in readers):
        floor = "variance"
    loss = np.zeros(units)
    order = np.empty(units, dtype=np.int64)
    alive = np.arange(units)
    states = [_State(r, units, floor, noise) for r in readers]
    for step in range(units):
        total = np.zeros(len(alive))
        for state in states:
            total += state.losses()
        out = int(np.argmin(total))
        loss[alive[out]], order[step] = total[out], alive[out]
        for state in states:
            state.drop(out)
        alive = np.delete(alive, out)
    return loss, order


class _State:
    """What is left of one reader: precision and weights of the survivors, residual so far."""

    def __init__(self, reader: Reader, units: int, floor: str, noise: float) -> None:
        self.b = reader.weight.shape[1] // units
        self.K = reader.precision.copy()
        self.W = reader.weight.astype(np.float64)
        self.residual = np.zeros(len(self.W))
        # "felt": how much one unit of variance counts, the inverse of the noise floor
        if floor == "output":
            self.felt = reader.sensitivity.astype(np.float64)
        else:
            highest = float(reader.variance.max(initial=0.0))
            alive = reader.variance > 1e-24 * highest
            safe = np.where(alive, reader.variance, 1.0)
            share = 1.0 if np.isinf(noise) else noise
            self.felt = np.where(alive, 1.0 / (share * safe), 0.0)
        self.linear = floor == "variance" and bool(np.isinf(noise))

    def losses(self) -> Floats:
        """Return the loss of every survivor, were it the next to leave."""
        n, b = self.K.shape[0] // self.b, self.b
        if b == 1:
            growth = self.W**2 / np.maximum(np.diag(self.K), 1e-300)
        else:
            blocks = self.K.reshape(n, b, n, b)[np.arange(n), :, np.arange(n), :]
            W = self.W.reshape(-1, n, b).transpose(1, 2, 0)
            growth = np.einsum("nbo,nbo->on", W, np.linalg.solve(blocks, W))
        growth = np.maximum(growth, 0.0)
        if self.linear:
            return np.asarray(self.felt @ growth)
        counted = self.felt / (1.0 + self.felt * self.residual)
        return np.asarray(0.5 * np.log1p(counted[:, None] * growth).sum(0))

    def drop(self, unit: int) -> None:
        """Let one survivor (by its present position) leave and refit the others."""
        b = self.b
        gone = slice(unit * b, (unit + 1) * b)
        stay = np.ones(len(self.K), dtype=bool)
        stay[gone] = False
        solved = np.linalg.solve(self.K[gone, gone], self.K[gone][:, stay])
        W_u = self.W[:, gone]
        growth = np.einsum("ob,bo->o", W_u, np.linalg.solve(self.K[gone, gone], W_u.T))
        self.residual += np.maximum(growth, 0.0)
        self.W = self.W[:, stay] - W_u @ solved
        self.K = self.K[np.ix_(stay, stay)] - self.K[stay][:, gone] @ solved
