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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Floats, Ints
from mint_deploy.errors import MintDeployError, UnknownName

__all__ = ["Reader", "covariance", "eliminate", "inverse"]

FLOORS = ("output", "variance")
#: the variance floor, as a share of each output's variance
NOISE = 0.01
#: ridge, as a share of the mean variance of the taps: keeps dead and constant channels finite
RIDGE = 1e-6
#: fewer rows than this per tap: the covariance is shrunk
ENOUGH_ROWS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """One consumer as a group's units meet it.

    ``precision`` is ``[U b, U b]`` (the inverse covariance of all its taps, restricted to the group's),
    ``weight`` ``[outputs, U b]``, both ordered by unit, ``b`` taps each; ``variance`` and ``sensitivity``
    are ``[outputs]``.
    """

    name: str
    precision: Floats
    weight: Floats
    variance: Floats
    sensitivity: Floats


def covariance(moments: ConsumerMoments) -> Floats:
    """Return the covariance ``[D, D]`` to work with: shrunk where rows are few, always with a ridge.

    Shrinkage is the oracle-approximating one towards a scaled identity (Chen, Wiesel, Eldar, Hero 2010).
    """
    S = moments.covariance
    p, n = len(S), moments.rows
    scale = float(np.trace(S)) / p
    if scale <= 0:
        return np.eye(p) * RIDGE
    if n < ENOUGH_ROWS * p and p > 1:
        square = float((S * S).sum())
        top = (1 - 2 / p) * square + (scale * p) ** 2
        bottom = (n + 1 - 2 / p) * (square - (scale * p) ** 2 / p)
        rho = min(1.0, top / bottom) if bottom > 0 else 1.0
        S = (1 - rho) * S + rho * scale * np.eye(p)
    return S + RIDGE * scale * np.eye(p)


def inverse(S: Floats) -> Floats:
    """Return the symmetric inverse of a positive definite ``[D, D]`` (Cholesky)."""
    from scipy.linalg import cho_factor, cho_solve

    factor = cho_factor(S, lower=True, check_finite=False)
    K: Floats = cho_solve(factor, np.eye(len(S)), check_finite=False)
    return (K + K.T) / 2


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
