"""BatchNorm statistics measured anew, for a network whose weights have changed since."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mint_deploy.errors import DataError, ModelError
from mint_deploy.inference import evaluating

if TYPE_CHECKING:
    from mint_deploy.data import Part

__all__ = ["recalibrate_batchnorm_"]


def recalibrate_batchnorm_(
    model: nn.Module,
    part: Part,
    *,
    images: int = 2000,
    seed: int = 0,
    batch: int = 250,
    device: str | torch.device = "cpu",
) -> None:
    """Replace the running statistics of every BatchNorm by those of ``images`` samples.

    The new mean and variance are the plain averages over equal batches drawn without repetition
    (not an exponential average, so the old ones leave no trace). Everything else, dropout
    included, runs in eval mode; modes and momenta are as before afterwards. A network without
    BatchNorm is left alone. If anything fails, the old statistics are put back.

    Args:
        model: changed in place, its running statistics alone.
        part: samples, with or without labels.
        images: at most so many, in whole batches.
        seed: chooses them.
        batch: samples in a batch; fewer where the part is smaller.
        device: where to run.

    Raises:
        DataError: fewer than two samples, so there is no variance.
        ModelError: a statistic is not finite; the layer is named.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not norms:
        return
    images = min(images, len(part))
    batch = min(batch, images)
    if batch < 2:
        raise DataError(
            f"BatchNorm needs at least 2 samples in a batch to measure a variance; part "
            f"'{part.name}' has {len(part)} samples, {images} to be used in batches of {batch}"
        )
    old = {name: {k: b.clone() for k, b in m.named_buffers()} for name, m in norms.items()}
    momenta = {name: module.momentum for name, module in norms.items()}
    done = False
    try:
        with evaluating(model, device) as place, torch.no_grad():
            for module in norms.values():
                module.reset_running_stats()
                module.momentum = None  # the cumulative average
                module.training = True
            batches = part.batches(batch, seed=seed)
            for _, (x, _y) in zip(range(images // batch), batches, strict=False):
                model(x.to(place))
        for name, module in norms.items():
            for statistic in ("running_mean", "running_var"):
                if not bool(torch.isfinite(getattr(module, statistic)).all()):
                    raise ModelError(
                        f"{statistic} of BatchNorm '{name}' is not finite on part '{part.name}'; "
                        "look for NaN in the weights before it and in the data"
                    )
        done = True
    finally:
        for name, module in norms.items():
            module.momentum = momenta[name]
            if not done:
                for key, buffer in module.named_buffers():
                    buffer.copy_(old[name][key])
