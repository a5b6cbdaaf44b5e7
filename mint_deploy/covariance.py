"""The covariance to work with: shrunk where rows are few, never singular, and its inverse."""

from __future__ import annotations

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Floats, Ints
from mint_deploy.errors import DataError

__all__ = ["ENOUGH_ROWS", "RIDGE", "covariance", "inverse", "upper"]

#: ridge, as a share of each tap's variance, and of the mean variance for taps that hardly vary
RIDGE, FLOOR = 1e-6, 1e-9
#: fewer rows than this per tap: the covariance is shrunk
ENOUGH_ROWS = 5


def covariance(moments: ConsumerMoments) -> Floats:
    """Return the covariance ``[D, D]`` to work with: shrunk where rows are few, always with a ridge.

    The correlations are shrunk towards none, by the oracle-approximating amount (Chen, Wiesel, Eldar, Hero 2010);
    each tap keeps its own variance, so that a dead channel stays dead however few the rows.
    """
    S = moments.covariance
    p, n = len(S), moments.rows
    variance = np.diag(S)
    scale = float(variance.mean())
    if scale <= 0:
        return np.eye(p) * RIDGE
    if n < ENOUGH_ROWS * p and p > 1:
        deviation = np.sqrt(np.maximum(variance, 0.0))
        inverse_deviation = np.divide(1.0, deviation, out=np.zeros(p), where=deviation > 0)
        square = float((((S * inverse_deviation).T * inverse_deviation) ** 2).sum())
        alive = int((deviation > 0).sum())  # the trace of the correlations
        top = (1 - 2 / p) * square + alive**2
        bottom = (n + 1 - 2 / p) * (square - alive**2 / p)
        rho = min(1.0, top / bottom) if bottom > 0 else 1.0
        S = (1 - rho) * S + rho * np.diag(variance)
    S = S.copy()
    np.fill_diagonal(S, variance + RIDGE * variance + FLOOR * scale)
    return S


def inverse(S: Floats) -> Floats:
    """Return the symmetric inverse of a positive definite ``[D, D]`` (Cholesky).

    Raises:
        DataError: the matrix is not positive definite.
    """
    from scipy.linalg.lapack import dpotri

    K: Floats = dpotri(_factor(S), lower=True, overwrite_c=True)[0]
    K += np.tril(K, -1).T
    return np.ascontiguousarray(K)


def upper(S: Floats, order: Ints) -> Floats:
    """Return the upper triangular ``U`` of ``S = U U^T`` with rows and columns of ``S`` in ``order [D]``.

    It is the Cholesky factor from the last row to the first.

    Raises:
        DataError: the matrix is not positive definite.
    """
    back = order[::-1]
    return _factor(S[np.ix_(back, back)])[::-1, ::-1]


def _factor(S: Floats) -> Floats:
    from scipy.linalg.lapack import dpotrf

    factor: Floats
    # S is symmetric, and its transpose lies in memory as LAPACK wants it
    factor, wrong = dpotrf(S.T, lower=True, clean=True)
    if wrong:
        raise DataError(
            f"a covariance of {len(S)} taps is not positive definite (at {wrong}); look for NaN or "
            "infinite values in the moments, or sample anew"
        )
    return factor
