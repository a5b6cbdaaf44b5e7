"""What groups of a layer's outputs take from groups of its inputs, on plain arrays.

    matrix = md.dependency(outputs, inputs, estimator="gmi", out_groups=64, in_groups=64)

The estimators are files of :mod:`mint_deploy.estimators`; each says what it measures, in which unit, and whose it
is.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import numpy.typing as npt

from mint_deploy import plugins
from mint_deploy.artifacts import Floats
from mint_deploy.errors import DataError, MintDeployError, UnknownName
from mint_deploy.estimators._coordinates import Groups

__all__ = ["dependency"]


def dependency(
    outputs: npt.ArrayLike,
    inputs: npt.ArrayLike,
    *,
    estimator: str = "gmi",
    out_groups: Groups = 64,
    in_groups: Groups = 64,
    condition: str = "all",
    seed: int = 0,
    **settings: Any,
) -> Floats:
    """Estimate the dependence of every group of outputs on every group of inputs, given other inputs.

    Args:
        outputs: ``[N, C_out]``, what a layer computed: one value a channel (its spatial mean, say), a row each.
        inputs: ``[N, C_in]``, what it read, the same sample in the same row.
        estimator: ``gmi`` (a share, below 0 to 1), ``acmi`` or ``gaussian`` (both in nats).
        out_groups: into how many runs of neighbouring channels the outputs are joined, or lists of channels;
            ``None``, or as many as there are channels or more: each channel alone.
        in_groups: the same for the inputs.
        condition: what is known beside the group: ``all`` other inputs, ``none``, ``top-k`` (the inputs that
            correlate most with it) or ``pca`` (leading directions of the others).
        seed: of whatever is random.
        settings: of the estimator, such as ``k`` or ``progress``; see its own ``dependency``.

    Returns:
        ``[G_out, G_in]``.

    Raises:
        DataError: not two matrices of the same rows, too few rows, or values that are not finite.
        UnknownName: no such estimator, condition or setting.
        MintDeployError: groups or settings that make no sense.
    """
    module = plugins.load("estimator", estimator)
    if not hasattr(module, "dependency"):
        names = plugins.known("estimator")
        able = [n for n in names if hasattr(plugins.load("estimator", n), "dependency")]
        raise UnknownName("estimator on plain arrays", estimator, able)
    known = [p for p in inspect.signature(module.dependency).parameters if p not in _GIVEN]
    for name in settings:
        if name not in known:
            raise UnknownName(f"setting of estimator '{estimator}'", name, known)
    X, P = _matrix("outputs", outputs), _matrix("inputs", inputs)
    if len(X) != len(P):
        raise DataError(
            f"outputs have {len(X)} rows and inputs {len(P)}; expected the same samples in the same rows"
        )
    found: Floats = module.dependency(
        X,
        P,
        out_groups=_groups("out_groups", out_groups, X.shape[1]),
        in_groups=_groups("in_groups", in_groups, P.shape[1]),
        condition=condition,
        seed=seed,
        **settings,
    )
    return found


#: what this function hands on by itself
_GIVEN = ("outputs", "inputs", "out_groups", "in_groups", "condition", "seed")


def _matrix(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return ``values`` as a finite matrix ``[N, C]``."""
    made = np.asarray(values)
    if made.ndim != 2 or not made.size:
        raise DataError(
            f"{name} have the shape {list(made.shape)}; expected [samples, channels]: average "
            "over the positions of a feature map first"
        )
    if made.dtype.kind not in "fiub":
        raise DataError(f"{name} are of type {made.dtype}; expected numbers")
    wrong = np.argwhere(~np.isfinite(made))
    if len(wrong):
        row, channel = wrong[0]
        raise DataError(
            f"{name} hold {len(wrong)} values that are not finite, the first ({made[row, channel]}) in row "
            f"{row}, channel {channel}; expected numbers: leave such rows out of both, or mend what made them"
        )
    return made


def _groups(name: str, groups: Groups, channels: int) -> Groups:
    """Return ``None`` where every channel is a group."""
    if isinstance(groups, int | np.integer):
        if groups < 1:
            raise MintDeployError(
                f"{name}={groups} makes no sense; expected 1 or more, or None for one each"
            )
        return None if groups >= channels else int(groups)
    return groups
