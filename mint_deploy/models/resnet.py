"""ResNet-50 for ImageNet (He et al., 2015): bottlenecks, *option B* shortcuts (1 x 1 convolutions).

The stride stands on the 3 x 3 convolution, as in the weights that are commonly published.
Names of the tensors: conv1, bn1, layer1.0.conv1, ..., layer1.0.downsample.0, ..., fc.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mint_deploy.models._zoo import IMAGENET_MEAN, IMAGENET_STD, Entry

__all__ = ["ZOO", "Bottleneck", "ResNet", "resnet50"]


class Bottleneck(nn.Module):
    """1 x 1 down, 3 x 3, 1 x 1 up to four times ``width``, and a shortcut."""

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, 4 * width, H/stride, W/stride]``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + shortcut)


class ResNet(nn.Module):
    """Four stages of bottleneck blocks with 64, 128, 256 and 512 inner channels."""

    def __init__(self, blocks: tuple[int, int, int, int], classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(64, 64, blocks[0], stride=1)
        self.layer2 = _stage(256, 128, blocks[1], stride=2)
        self.layer3 = _stage(512, 256, blocks[2], stride=2)
        self.layer4 = _stage(1024, 512, blocks[3], stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W]`` -> logits ``[N, classes]``."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _stage(inputs: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    outputs = width * Bottleneck.expansion
    first = Bottleneck(inputs, width, stride)
    return nn.Sequential(first, *(Bottleneck(outputs, width, 1) for _ in range(blocks - 1)))


def resnet50() -> ResNet:
    """Return ResNet-50 for ImageNet (25,557,032 parameters)."""
    return ResNet((3, 4, 6, 3))


ZOO = {
    "resnet50": Entry(
        factory=resnet50, input_shape=(3, 224, 224), mean=IMAGENET_MEAN, std=IMAGENET_STD
    )
}
