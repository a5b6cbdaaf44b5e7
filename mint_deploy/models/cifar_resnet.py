"""ResNet-20 and -56 for 32 x 32 images (He et al., 2015, section 4.2), ResNet-8 for 8 x 8 digits.

The shortcut between stages is the paper's *option A*: every second pixel, and zeros for the
channels that are new. It has no parameters, so its two channel counts live in whole-number
attributes, which a cut rewrites. Names of the tensors: conv1, bn1, layer1.0.conv1, ..., linear.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mint_deploy.models._zoo import CIFAR10_CLASSES, IMAGENET_MEAN, IMAGENET_STD, Entry

__all__ = ["ZOO", "BasicBlock", "CifarResNet", "PaddedShortcut", "resnet8", "resnet20", "resnet56"]


class PaddedShortcut(nn.Module):
    """``[N, C, H, W]`` -> ``[N, before + C + after, H/2, W/2]``: subsampled, zero-padded."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        """Take every second pixel and pad the channels on both sides."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        """Return the two channel counts for ``print(model)``."""
        return f"before={self.before}, after={self.after}"


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, added, then ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        new = outputs - inputs
        self.shortcut: nn.Module = (
            nn.Identity() if stride == 1 and not new else PaddedShortcut(new // 2, new - new // 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` -> ``[N, outputs, H/stride, W/stride]``."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """``6 * blocks + 2`` layers in three stages of 16, 32 and 64 channels."""

    def __init__(
        self,
        blocks: int,
        *,
        classes: int = 10,
        channels: int = 3,
        widths: tuple[int, int, int] = (16, 32, 64),
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[0], blocks, stride=1)
        self.layer2 = _stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = _stage(widths[1], widths[2], blocks, stride=2)
        self.linear = nn.Linear(widths[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """``[N, channels, H, W]`` -> logits ``[N, classes]``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return self.linear(x)  # type: ignore[no-any-return]  # nn.Module.__call__ is untyped


def _stage(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet8() -> CifarResNet:
    """Return the demo network: one block a stage, for scikit-learn's digits ``[N, 1, 8, 8]``.

    Twice the usual widths: narrower, and one inference is mostly the runtime's own overhead, so that no
    compression could be seen in its latency.
    """
    return CifarResNet(1, channels=1, widths=(32, 64, 128))


def resnet20() -> CifarResNet:
    """Return ResNet-20 for CIFAR-10 (269,722 parameters)."""
    return CifarResNet(3)


def resnet56() -> CifarResNet:
    """Return ResNet-56 for CIFAR-10 (853,018 parameters)."""
    return CifarResNet(9)


ZOO = {
    "resnet8-digits": Entry(
        factory=resnet8,
        input_shape=(1, 8, 8),
        mean=(0.3053,),
        std=(0.3760,),
        class_names=tuple("0123456789"),
        default_data="digits",
    ),
    "resnet20-cifar10": Entry(
        factory=resnet20,
        input_shape=(3, 32, 32),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=CIFAR10_CLASSES,
    ),
    "resnet56-cifar10": Entry(
        factory=resnet56,
        input_shape=(3, 32, 32),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        class_names=CIFAR10_CLASSES,
    ),
}
