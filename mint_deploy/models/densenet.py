"""DenseNet-121 for ImageNet (Huang et al., 2016): every layer reads all earlier ones of its block.

Names of the tensors: features.conv0, features.norm0, features.denseblock1.denselayer1.norm1, ...,
features.transition1.conv, ..., features.norm5, classifier. Old weight files say ``norm.1`` for
``norm1``; both are read.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mint_deploy.models._zoo import IMAGENET_MEAN, IMAGENET_STD, Entry

__all__ = ["ZOO", "DenseLayer", "DenseNet", "densenet121"]


class DenseLayer(nn.Module):
    """1 x 1 to four times ``growth``, 3 x 3 to ``growth``; normalisation comes first."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, growth, H, W]``."""
        y = self.conv1(F.relu(self.norm1(x)))
        return self.conv2(F.relu(self.norm2(y)))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


class DenseBlock(nn.ModuleDict):
    """``layers`` dense layers; the output is the input and all their outputs side by side."""

    def __init__(self, inputs: int, layers: int, growth: int) -> None:
        super().__init__()
        for i in range(layers):
            self[f"denselayer{i + 1}"] = DenseLayer(inputs + i * growth, growth)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, inputs + layers * growth, H, W]``."""
        features = [x]
        for layer in self.values():
            features.append(layer(torch.cat(features, 1)))
        return torch.cat(features, 1)


class Transition(nn.Module):
    """Halves the channels, then both sides of the image."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, inputs / 2, H/2, W/2]``."""
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


class DenseNet(nn.Module):
    """Four dense blocks with transitions between them."""

    def __init__(
        self, blocks: tuple[int, ...] = (6, 12, 24, 16), growth: int = 32, classes: int = 1000
    ) -> None:
        super().__init__()
        channels = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, channels, 7, 2, padding=3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(channels))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(3, stride=2, padding=1))
        for i, layers in enumerate(blocks, start=1):
            self.features.add_module(f"denseblock{i}", DenseBlock(channels, layers, growth))
            channels += layers * growth
            if i < len(blocks):
                self.features.add_module(f"transition{i}", Transition(channels))
                channels //= 2
        self.features.add_module(f"norm{len(blocks) + 1}", nn.BatchNorm2d(channels))
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, classes]``."""
        x = F.relu(self.features(x))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def densenet121() -> DenseNet:
    """Return DenseNet-121 for ImageNet (7,978,856 parameters)."""
    return DenseNet()


def modern_name(name: str) -> str:
    """``denselayer1.norm.1.weight`` (files from before 2018) -> ``denselayer1.norm1.weight``."""
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


ZOO = {
    "densenet121": Entry(
        factory=densenet121,
        input_shape=(3, 224, 224),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        rename=modern_name,
    )
}
