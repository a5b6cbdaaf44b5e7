"""The covariance to work with: shrunk where rows are few, never singular, and its inverse."""

from __future__ import annotations

import numpy as np

from mint_deploy.artifacts import ConsumerMoments, Floats
from mint_deploy.errors import DataError

__all__ = ["ENOUGH_ROWS", "RIDGE", "covariance", "inverse"]

#: ridge, as a share of the mean variance of the taps: keeps dead and constant channels finite
RIDGE = 1e-6
#: fewer rows than this per tap: the covariance is shrunk
ENOUGH_ROWS = 5


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
    """Return the symmetric inverse of a positive definite ``[D, D]`` (Cholesky).

    Raises:
        DataError: the matrix is not positive definite.
    """
    from scipy.linalg.lapack import dpotrf, dpotri

    factor, wrong = dpotrf(S, lower=True, clean=True)
    if wrong:
        raise DataError(
            f"a covariance of {len(S)} taps is not positive definite (at {wrong}); look for NaN or "
            "infinite values in the moments, or sample anew"
        )
    K: Floats = dpotri(factor, lower=True, overwrite_c=True)[0]
    K += np.tril(K, -1).T
    return np.ascontiguousarray(K)
