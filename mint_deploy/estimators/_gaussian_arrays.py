r"""Conditional information of jointly Gaussian groups, in closed form from one covariance of plain rows.

With ``S`` the covariance of standardised outputs ``X`` and inputs ``P``, and with what a condition ``Z`` leaves of
it, ``S_{.|Z} = S - S_{.Z} S_ZZ^{-1} S_{Z.}``,

    I(X_c; P_g | Z) = 1/2 log( det S_{c|Z} / det S_{c|Z,g} ),
    S_{c|Z,g} = S_{c|Z} - S_{cg|Z} S_{gg|Z}^{-1} S_{gc|Z}                                            [nats]

(Cover and Thomas, *Elements of information theory*, chapter 8). Where ``Z`` is all the other inputs, one inverse
``K = S_PP^{-1}`` serves every group: ``S_{gg|Z} = (K_gg)^{-1}`` and ``S_{Xg|Z} = (S_XP K)_g (K_gg)^{-1}``.

A ridge on the diagonal, as if every feature carried so much noise of its own, keeps everything finite: outputs
that are functions of their inputs, equal channels, constant ones (which say nothing), and fewer rows than features
(where the values say more of the ridge than of the data).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mint_deploy.artifacts import Floats, Ints
from mint_deploy.errors import MintDeployError

if TYPE_CHECKING:  # it loads numba, which the greedy elimination beside this file does not need
    from mint_deploy.estimators._coordinates import Groups

__all__ = ["dependency"]

#: inputs (or directions) in the condition, where not given
_K = {"top-k": 3, "pca": 3}


def dependency(
    outputs: npt.NDArray[Any],
    inputs: npt.NDArray[Any],
    *,
    out_groups: Groups = None,
    in_groups: Groups = None,
    condition: str = "all",
    k: int | None = None,
    ridge: float = 1e-6,
    seed: int = 0,  # noqa: ARG001  # estimators share one signature; nothing here is random
    progress: Callable[[int, int], None] | None = None,
) -> Floats:
    """Return what each group of outputs takes from each group of inputs, given others, in nats.

    Args:
        outputs: ``[N, C_out]``, the same sample in the same row as in ``inputs``.
        inputs: ``[N, C_in]``.
        out_groups: lists of channels, or how many runs of channels of (nearly) equal length; ``None``: each alone.
        in_groups: the same for the inputs.
        condition: ``all`` (other inputs), ``none``, ``top-k`` (those that correlate most with the group) or
            ``pca`` (the leading principal directions of all inputs, less the group's own share).
        k: inputs in ``top-k``, directions in ``pca``; 3 where not given.
        ridge: variance added to every standardised feature.
        seed: nothing here is random.
        progress: called with ``(input groups done, input groups)``.

    Returns:
        ``[G_out, G_in]``, never negative.

    Raises:
        DataError: other than two matrices of the same two or more rows, or NaN in them.
        MintDeployError: a setting that makes no sense.
        UnknownName: no such condition.
    """
    from mint_deploy.estimators._coordinates import both, condition_of, condition_size, listed

    k = condition_size(condition, k, _K)
    if not 0 < ridge < np.inf:
        raise MintDeployError(f"ridge={ridge:g} is no variance; expected a positive number")
    X, P = both(outputs, inputs)
    rows = X.shape[1]
    out, into = listed(out_groups, len(X), "out"), listed(in_groups, len(P), "in")
    side = condition_of(P, into, condition, k)
    S_X = X @ X.T / rows + ridge * np.eye(len(X))
    S_P = P @ P.T / rows + ridge * np.eye(len(P))
    S_XP = X @ P.T / rows
    blocks = _by_width(out)
    K = np.linalg.inv(S_P) if side.without else S_P
    W = S_XP @ K
    left = S_X - W @ S_XP.T
    found = np.empty((len(out), len(into)))
    for g, own in enumerate(into):
        if side.without:
            within = np.linalg.inv(K[np.ix_(own, own)])
            cross = W[:, own] @ within
            spread = left + cross @ W[:, own].T
        else:
            Z = side.values[side.groups[g % len(side.groups)]]
            S_Z = Z @ Z.T / rows + ridge * np.eye(len(Z))
            S_XZ, S_gZ = X @ Z.T / rows, P[own] @ Z.T / rows
            toward = np.linalg.solve(S_Z, np.concatenate([S_XZ, S_gZ]).T)
            to_X, to_g = toward[:, : len(X)], toward[:, len(X) :]
            spread, cross = S_X - S_XZ @ to_X, S_XP[:, own] - S_XZ @ to_g
            within = S_P[np.ix_(own, own)] - S_gZ @ to_g
        told = cross @ np.linalg.solve(within, cross.T)
        for which, channels in blocks:
            at = (channels[:, :, None], channels[:, None, :])
            before, after = (np.linalg.slogdet(S[at])[1] for S in (spread, spread - told))
            found[which, g] = np.maximum(0.5 * (before - after), 0.0)
        if progress is not None:
            progress(g + 1, len(into))
    return found


def _by_width(groups: list[Ints]) -> list[tuple[Ints, Ints]]:
    """Return groups of equal width together: their numbers ``[n]`` and their channels ``[n, width]``."""
    widths = np.array([len(own) for own in groups])
    return [
        (which, np.stack([groups[i] for i in which]))
        for which in (np.flatnonzero(widths == w) for w in np.unique(widths))
    ]
