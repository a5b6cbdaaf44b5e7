"""Training that drives the scales of BatchNorm to zero, so that ``bn_scale`` has something to go by.

*Network Slimming* (Liu et al. 2017) adds ``strength * sum |gamma|`` to the loss; *SSS* (Huang & Wang 2018)
minimises the same sum by proximal gradient steps, whose scales become exactly zero. Here the loss is stepped by
the optimiser of :mod:`mint_deploy.training` (SGD with momentum ``m``), and after every step each scale is moved
towards zero:

    gamma <- sign(gamma) max(0, |gamma| - t),        t = strength * rate / (1 - m)

A steady gradient moves a weight by ``rate / (1 - m)`` times itself in a step, so that with this threshold
training rests where ``loss + strength * sum |gamma|`` does. Over a whole training a scale whose gradient is
zero shrinks by the sum of the thresholds: with a mean rate of 0.01 and momentum 0.9 by ``0.1 * strength *
steps``. The papers' 1e-4 is meant for tens of thousands of steps; a few hundred ask for a strength of 1e-2.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mint_deploy.data import Part, Splits, as_part
from mint_deploy.errors import ConfigError, ModelError
from mint_deploy.inference import first_output, usable_device
from mint_deploy.models import state_digest
from mint_deploy.recover import RECOVERY_RATE, distillation_loss
from mint_deploy.schedule import recipe
from mint_deploy.training import Loss, ProgressHook, fit, label_loss

__all__ = ["sparsify"]

#: softens the probabilities where the network learns from itself
TEMPERATURE = 4.0


def sparsify(
    model: nn.Module,
    data: Splits | Part,
    *,
    strength: float = 1e-4,
    epochs: float = 1.0,
    steps: int | None = None,
    lr: float | None = None,
    batch: int = 128,
    weight_decay: float = 5e-4,
    augment: bool = True,
    loss: Loss | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    checkpoint: Path | None = None,
    checkpoint_every: int = 50,
    progress: ProgressHook | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train a copy of ``model`` with an L1 penalty on its BatchNorm scales, and return its last state.

    Args:
        model: the dense network, trained; untouched.
        data: Splits (the train part is used), or one Part, or what :func:`mint_deploy.data.as_part` accepts.
            Without labels the network learns to answer as it did (it is its own teacher).
        strength: of the penalty, see above; 0 trains without one.
        epochs: passes over the training part, or a fraction of one.
        steps: in place of ``epochs``.
        lr: the peak learning rate; None: 0.02 for a batch of 128, in proportion to the batch.
        batch: samples a step.
        weight_decay: on weights, not on biases and norms.
        augment: whether the part may vary its images.
        loss: ``loss(logits, labels)`` in place of cross-entropy.
        seed: of everything random here.
        device: where to train.
        checkpoint: a file to keep up to date, and to take up where it exists.
        checkpoint_every: steps between two writes; an epoch's end writes too.
        progress: called with (steps done, steps in all, note) after every step.
        should_stop: asked before every step; True keeps a checkpoint and raises Interrupted.

    Raises:
        ConfigError: a setting that makes no sense.
        DataError: no samples, or a damaged checkpoint.
        ModelError: no BatchNorm scale that is trained, or the training diverged.
        RunFolderError: the checkpoint is of a training with other settings.
        Interrupted: ``should_stop`` said so.
    """
    if not (math.isfinite(strength) and strength >= 0):
        raise ConfigError(f"the strength is {strength}, expected a number of at least 0, like 1e-4")
    if not _scales(model):
        raise ModelError(
            "the network has no BatchNorm with a scale that requires a gradient, so there is nothing to make "
            "sparse; choose a criterion that needs no sparsity training, for example mint"
        )
    train, place = as_part(data), usable_device(device)
    plan = recipe(
        train,
        epochs=epochs,
        steps=steps,
        batch=batch,
        lr=RECOVERY_RATE * min(batch, len(train)) / 128 if lr is None else lr,
        weight_decay=weight_decay,
        augment=augment,
        seed=seed,
    )
    by_labels = loss or label_loss
    teacher = copy.deepcopy(model).to(place).eval()

    def objective(logits: Tensor, x: Tensor, y: Tensor | None) -> Tensor:
        if y is not None:
            return by_labels(logits, y)
        with torch.no_grad():
            wanted = first_output(teacher(x))
        return distillation_loss(logits, wanted, TEMPERATURE)

    def shrink(student: nn.Module, rate: float) -> None:
        threshold = strength * rate / (1 - plan.momentum)
        for scale in _scales(student):
            scale.copy_(scale.sign() * (scale.abs() - threshold).clamp_min_(0))

    return fit(
        model,
        train,
        objective,
        plan,
        after_step=shrink if strength else None,
        settings={
            "sparsity": strength,
            "teacher": state_digest(model) if train.labels is None else None,
            "data": [data.digest if isinstance(data, Splits) else train.name, len(train)],
            "loss": None
            if loss is None
            else getattr(loss, "__qualname__", type(loss).__qualname__),
        },
        device=place,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        progress=progress,
        should_stop=should_stop,
    )


def _scales(model: nn.Module) -> list[Tensor]:
    return [
        m.weight
        for m in model.modules()
        if isinstance(m, _BatchNorm) and m.affine and m.weight.requires_grad
    ]
