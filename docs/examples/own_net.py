"""A network of one's own: a residual net with three convolutions for 8 x 8 grey images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class OwnNet(nn.Module):
    """``[N, 1, 8, 8]`` -> logits ``[N, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 32, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(32)
        self.hidden = nn.Linear(32 * 4 * 4, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Stem, one residual block, pooling, two linear layers."""
        x = F.relu(self.stem(x))
        y = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(x + self.norm2(self.conv2(y)))
        x = F.max_pool2d(x, 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def make_net() -> nn.Module:
    """Return the network; its weights come from the file that ``--weights`` names."""
    return OwnNet()
