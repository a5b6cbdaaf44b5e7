"""MobileNetV2 for ImageNet (Sandler et al., 2018): inverted residuals with linear bottlenecks.

Names of the tensors: features.0.0, features.1.conv.0.0, ..., features.18.0, classifier.1.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mint_deploy.models._zoo import IMAGENET_MEAN, IMAGENET_STD, Entry

__all__ = ["ZOO", "InvertedResidual", "MobileNetV2", "mobilenet_v2"]

#: expansion, output channels, repeats, stride of the first (table 2 of the paper)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1 x 1 up, depthwise 3 x 3, linear 1 x 1 down; added to the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        inner = inputs * expansion
        layers: list[nn.Module] = [] if expansion == 1 else [_unit(inputs, inner, 1)]
        layers.append(_unit(inner, inner, 3, stride=stride, groups=inner))
        layers += [nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, outputs, H/stride, W/stride]``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals between a strided convolution and a 1 x 1 convolution."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [_unit(3, 32, 3, stride=2)]
        channels = 32
        for expansion, outputs, repeats, stride in STAGES:
            for i in range(repeats):
                step = stride if i == 0 else 1
                layers.append(InvertedResidual(channels, outputs, expansion=expansion, stride=step))
                channels = outputs
        layers.append(_unit(channels, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, classes]``."""
        x = F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        return self.classifier(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _unit(
    inputs: int, outputs: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU6."""
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def mobilenet_v2() -> MobileNetV2:
    """Return MobileNetV2 1.0 for ImageNet (3,504,872 parameters)."""
    return MobileNetV2()


ZOO = {
    "mobilenet-v2": Entry(
        factory=mobilenet_v2, input_shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
}
