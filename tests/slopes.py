"""The gradient of a loss by hand: what a criterion that asks for gradients is given in tests."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradients_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """One backward pass of the cross-entropy with made-up labels; the model is left as it was."""
    outputs = model(*inputs)
    labels = torch.arange(len(outputs)) % outputs.shape[1]
    if outputs.dim() > 2:
        labels = labels.view(-1, *[1] * (outputs.dim() - 2)).expand(
            len(outputs), *outputs.shape[2:]
        )
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(F.cross_entropy(outputs, labels), parameters, allow_unused=True)
    return {n: g.numpy() for n, g in zip(names, found, strict=True) if g is not None}
