"""How long to train, how fast, and on how much at a time.

The learning rate rises linearly for a twentieth of the steps, then falls along a half cosine
(Loshchilov & Hutter 2017, arXiv 1608.03983), step by step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mint_deploy.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mint_deploy.data import Part

__all__ = ["Recipe", "recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything about a training but the network, the data and the loss.

    ``lr`` is the peak, reached after ``warmup`` steps. An epoch is ``steps_per_epoch`` whole
    batches of ``batch`` samples; ``steps`` in all. ``clip`` bounds the norm of the gradient.
    """

    steps: int
    steps_per_epoch: int
    batch: int
    lr: float
    warmup: int
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 5.0
    augment: bool = True
    seed: int = 0

    def learning_rate(self, step: int) -> float:
        """Return the rate of step ``step`` (the first is 0): positive, at most ``lr``."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        share = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * share))


def recipe(
    train: Part,
    *,
    epochs: float,
    steps: int | None,
    batch: int,
    lr: float,
    weight_decay: float,
    augment: bool,
    seed: int,
) -> Recipe:
    """Fit a recipe to the size of ``train``; ``steps``, where given, overrules ``epochs``.

    Raises:
        ConfigError: a number that makes no sense.
        DataError: no samples.
    """
    for name, value, least in (
        ("epochs", epochs, 0.0),
        ("steps", 0 if steps is None else steps, 0),
        ("batch", batch, 1),
        ("weight decay", weight_decay, 0.0),
    ):
        if not math.isfinite(value) or value < least:
            raise ConfigError(f"{name} is {value}, expected a number of at least {least}")
    if not (math.isfinite(lr) and lr > 0):
        raise ConfigError(f"the learning rate is {lr}, expected a positive number such as 0.01")
    if not len(train):
        raise DataError(f"part '{train.name}' is empty; at least one sample is needed")
    batch = min(batch, len(train))
    per_epoch = len(train) // batch
    if steps is None:
        steps = max(1, round(epochs * per_epoch)) if epochs else 0
    return Recipe(
        steps=steps,
        steps_per_epoch=per_epoch,
        batch=batch,
        lr=lr,
        warmup=max(1, round(0.05 * steps)),
        weight_decay=weight_decay,
        augment=augment,
        seed=seed,
    )
