"""Tensors as a part of the data: the interface of ``mint_deploy.data.Part`` and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor


class Rows:
    """``x [N, ...]`` and ``y [N, ...]`` or None; ``augment`` adds noise by the seed."""

    def __init__(self, x: Tensor, y: Tensor | None = None, name: str = "rows") -> None:
        self.x, self.y, self.name = x, y, name

    def __len__(self) -> int:
        return len(self.x)

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.y is None else self.y.numpy()

    def batches(
        self, size: int, *, seed: int | None = None, augment: bool = False, drop_last: bool = False
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        generator = torch.Generator()
        order = torch.arange(len(self))
        if seed is not None:
            generator.manual_seed(seed)
            order = torch.randperm(len(self), generator=generator)
        for rows in order.split(size):
            if drop_last and len(rows) < size:
                return
            x = self.x[rows]
            if augment:
                x = x + 0.1 * torch.randn(x.shape, generator=generator)
            yield x, None if self.y is None else self.y[rows]


class Fixed(torch.nn.Module):
    """A network that answers with its input: the rows ARE the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def logits_of(classes: list[int], count: int = 3) -> Tensor:
    """Return logits ``[N, count]`` whose largest entries are ``classes``."""
    return 5.0 * torch.nn.functional.one_hot(torch.tensor(classes), count).float()
