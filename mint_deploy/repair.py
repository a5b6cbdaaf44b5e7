"""Repair without training: least-squares refit of the consumers, then BatchNorm re-calibration.

The moments that scored the units also say how the survivors make up for what left. For a consumer with
weights ``W`` and tap covariance ``S``, the survivors ``R`` predict the dense output best with

    W' = W S_{:,R} (S_RR)^{-1},      b' = b + W mu - W' mu_R.

Where no bias and no BatchNorm follows, the regression goes through the origin (``S + mu mu^T``); so it does
for transposed convolutions, whose kernel positions each shift the mean differently.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from mint_deploy.artifacts import ConsumerMoments, Floats, Moments, PruningPlan
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.covariance import covariance
from mint_deploy.data import as_part
from mint_deploy.errors import PlanError
from mint_deploy.readers import columns
from mint_deploy.tracing.parameters import tensors_of

__all__ = ["refit", "repair"]


def repair(
    slim: nn.Module,
    moments: Moments | None,
    plan: PruningPlan,
    *,
    data: Any = None,
    images: int = 2000,
    seed: int = 0,
) -> nn.Module:
    """Return a repaired copy of ``slim`` (right after ``cut``).

    Args:
        slim: the cut model.
        moments: of the dense model; ``None`` leaves the weights alone.
        plan: the plan that cut it.
        data: images for BatchNorm; ``None`` leaves its statistics alone.
        images: how many of them.
        seed: which of them.

    Raises:
        PlanError: the moments or the plan belong to another model.
    """
    made = copy.deepcopy(slim)
    if moments is not None:
        refit(made, moments, plan)
    if data is not None:
        recalibrate_batchnorm_(made, as_part(data), images=images, seed=seed)
    return made


def refit(slim: nn.Module, moments: Moments, plan: PruningPlan) -> list[str]:
    """Refit in place every consumer that lost inputs; return their weights' names."""
    slices = plan.slices()
    tensors = tensors_of(slim)
    reads = {(m.tensor, m.dim) for g in plan.groups for m in g.members if m.reads}
    done = []
    for name, known in moments.consumers.items():
        in_dim = next((dim for tensor, dim in reads if tensor == name), None)
        gone = slices.get(name, {})
        if in_dim is None or not gone.get(in_dim):
            continue
        if name not in tensors:
            raise PlanError(f"'{name}' is not in the model; give the model that the plan cut")
        _refit_one(tensors, name, known, gone, in_dim)
        done.append(name)
    return done


def _refit_one(
    tensors: Mapping[str, torch.Tensor],
    name: str,
    known: ConsumerMoments,
    gone: Mapping[int, list[int]],
    in_dim: int,
) -> None:
    weight = tensors[name]
    out_dim = 1 - in_dim
    transposed = known.kind == "conv_transpose"
    kernel = int(np.prod(weight.shape[2:])) if weight.dim() > 2 else 1
    outputs = len(known.weight) // (kernel if transposed else 1)
    rows = np.setdiff1d(np.arange(outputs), gone.get(out_dim, []))
    kept_in = np.setdiff1d(np.arange(known.channels // known.groups), gone[in_dim])
    if transposed:
        rows = (rows[:, None] * kernel + np.arange(kernel)).reshape(-1)
    S = covariance(known)
    centred = not transposed and (known.bias is not None or known.normalised)
    if not centred:
        S = S + np.outer(known.mean, known.mean)
    per_group = len(known.weight) // known.groups
    width = known.channels // known.groups
    new, shift = [], []
    for g in range(known.groups):
        mine = rows[(rows >= g * per_group) & (rows < (g + 1) * per_group)]
        full = columns(known, np.arange(g * width, (g + 1) * width))
        kept = columns(known, g * width + kept_in)
        W = np.asarray(known.weight[mine], dtype=np.float64)
        refitted = _least_squares(W, S[np.ix_(full, kept)], S[np.ix_(kept, kept)])
        new.append(refitted)
        shift.append(W @ known.mean[full] - refitted @ known.mean[kept])
    joined = torch.from_numpy(np.concatenate(new))
    if transposed:
        joined = joined.t()
    if joined.numel() != weight.numel():
        raise PlanError(f"the moments of '{name}' do not fit the cut model; sample and plan anew")
    with torch.no_grad():
        weight.copy_(joined.reshape(weight.shape))
        if centred and known.bias is not None:
            bias = tensors[known.bias]
            bias.add_(torch.from_numpy(np.concatenate(shift)).to(bias.dtype))


def _least_squares(W: Floats, S_all: Floats, S_kept: Floats) -> Floats:
    """Return ``W S_{:,R} (S_RR)^{-1}``."""
    from scipy.linalg import cho_factor, cho_solve

    factor = cho_factor(S_kept, lower=True, check_finite=False)
    solved: Floats = cho_solve(factor, (W @ S_all).T, check_finite=False).T
    return solved
