"""Small networks in which data moves between channels; see nets.py for the list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def unit(
    inputs: int, outputs: int, *, stride: int = 1, groups: int = 1, kernel: int = 3
) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Headed(nn.Module):
    """A stem of 3 -> ``stem`` channels, a body (subclass), and an averaged linear head."""

    def __init__(self, stem: int, out: int) -> None:
        super().__init__()
        self.stem = unit(3, stem)
        self.head = nn.Linear(out, 5)

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class FlattenLinear(nn.Module):
    """Each channel feeds 4 x 4 neighbouring inputs of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(unit(3, 8), unit(8, 12), nn.MaxPool2d(2))
        self.linear1 = nn.Linear(12 * 16, 20)
        self.linear2 = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.features(x), 1)
        return self.linear2(F.relu(self.linear1(x)))


class OptionB(Headed):
    """A residual block whose shortcut is a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.conv1, self.bn1 = nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.down = nn.Conv2d(8, 16, 1, 2)

    def body(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.down(x))


class UNet(nn.Module):
    """Down, up by a transposed convolution, and the skip beside it (Ronneberger et al., 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = unit(3, 8), unit(8, 16), unit(16, 32)
        self.up2 = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.join2 = unit(32, 16)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join1 = unit(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        y = self.join2(torch.cat([self.up2(c), b], 1))
        y = self.join1(torch.cat([self.up1(y), a], 1))
        return self.out(y)


class SqueezeExcite(Headed):
    """A gate for each channel, computed from all of them, on a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.depthwise = unit(16, 16, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)

    def body(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        gate = F.adaptive_avg_pool2d(x, 1)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(gate))))


class SpatialGate(Headed):
    """A gate of one channel, broadcast over all."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.gate = nn.Conv2d(8, 1, 1)
        self.last = unit(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x * torch.sigmoid(self.gate(x)))


class ChannelShuffle(Headed):
    """Grouped convolutions with a shuffle of two groups between them (ShuffleNet)."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.first, self.second = unit(16, 16, groups=2, kernel=1), unit(16, 16, groups=2, kernel=1)

    def body(self, x: Tensor) -> Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.second(x)


class ShuffleV2(Headed):
    """Half of the channels pass, half are computed, then both are shuffled (ShuffleNetV2)."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.branch1 = nn.Sequential(unit(8, 8, kernel=1), unit(8, 8, groups=8))
        self.branch2 = nn.Sequential(unit(8, 8, kernel=1), unit(8, 8, groups=8))

    def body(self, x: Tensor) -> Tensor:
        for branch in (self.branch1, self.branch2):
            a, b = x.chunk(2, dim=1)
            x = F.channel_shuffle(torch.cat([a, branch(b)], 1), 2)
        return x


class C2f(Headed):
    """YOLOv8's block: chunk, a growing list, cat; then SPPF's pooled pyramid."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.enter = unit(8, 16, kernel=1)
        self.blocks = nn.ModuleList(nn.Sequential(unit(8, 8), unit(8, 8)) for _ in range(2))
        self.leave = unit(32, 16, kernel=1)
        self.squeeze, self.pyramid = unit(16, 8, kernel=1), unit(32, 8, kernel=1)

    def body(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        parts.extend(parts[-1] + block(parts[-1]) for block in self.blocks)
        pooled = [self.squeeze(self.leave(torch.cat(parts, 1)))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        return self.pyramid(torch.cat(pooled, 1))


class Inception(Headed):
    """Branches of different widths side by side."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.one, self.three, self.pool = unit(8, 4, kernel=1), unit(8, 6), unit(8, 6, kernel=1)

    def body(self, x: Tensor) -> Tensor:
        pooled = self.pool(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat((self.one(x), self.three(x), pooled), 1)


class PixelShuffle(nn.Module):
    """Four channels become one of twice the side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.widen = unit(3, 8), nn.Conv2d(8, 32, 3, padding=1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.shuffle(self.widen(self.stem(x)))))


class Depthwise(Headed):
    """A depthwise convolution and a raw scale and shift for each channel."""

    def __init__(self) -> None:
        super().__init__(12, 10)
        self.depthwise, self.point = unit(12, 12, groups=12), unit(12, 10, kernel=1)
        self.scale = nn.Parameter(torch.rand(1, 12, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.randn(12, 1, 1))

    def body(self, x: Tensor) -> Tensor:
        return self.point(self.depthwise(x) * self.scale + self.shift)


class DepthwiseTwice(Headed):
    """A depthwise convolution that makes two channels of each, and a raw scale."""

    def __init__(self) -> None:
        super().__init__(8, 10)
        self.depthwise, self.point = unit(8, 16, groups=8), unit(16, 10, kernel=1)
        self.scale = nn.Parameter(torch.rand(16, 1, 1) + 0.5)

    def body(self, x: Tensor) -> Tensor:
        return self.point(self.depthwise(x) * self.scale)


class Grouped(Headed):
    """Three by three in four groups, between 1 x 1 convolutions, with a residual (ResNeXt)."""

    def __init__(self) -> None:
        super().__init__(12, 12)
        self.enter, self.middle = unit(12, 16, kernel=1), unit(16, 16, groups=4)
        self.leave = nn.Conv2d(16, 12, 1)

    def body(self, x: Tensor) -> Tensor:
        return F.relu(x + self.leave(self.middle(self.enter(x))))


class Siamese(nn.Module):
    """One trunk for two inputs; the head reads their difference."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(unit(3, 8), unit(8, 12))
        self.head = nn.Linear(12, 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head((self.trunk(a) - self.trunk(b)).abs().mean((2, 3)))


class LiteralSplit(Headed):
    """The widths of the split are written as numbers."""

    def __init__(self) -> None:
        super().__init__(12, 12)
        self.a, self.b = unit(8, 8), unit(4, 4)

    def body(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, [8, 4], dim=1)
        return torch.cat([self.a(a), self.b(b)], 1)


class LiteralSlice(Headed):
    """The borders of the slices are written as numbers."""

    def __init__(self) -> None:
        super().__init__(12, 12)
        self.a, self.b = unit(8, 8), unit(4, 4)

    def body(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, :8]), self.b(x[:, 8:12])], 1)


class LiteralView(nn.Module):
    """The flattened width is written as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(unit(3, 8), unit(8, 6, stride=2))
        self.hidden, self.head = nn.Linear(96, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).view(-1, 96)
        return self.head(F.relu(self.hidden(x)))


class ComputedView(LiteralView):
    """The same with the width computed from the tensor."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = x.view(x.shape[0], x.shape[1] * 16)
        return self.head(F.relu(self.hidden(x)))


class InPlaceSlices(Headed):
    """An empty tensor filled slice by slice, then one slice is changed in place."""

    def __init__(self) -> None:
        super().__init__(8, 16)
        self.a, self.b = unit(8, 8), unit(8, 8)

    def body(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        width = a.shape[1]
        y = x.new_empty(x.shape[0], width + b.shape[1], *x.shape[2:])
        y[:, :width] = a
        y[:, width:] = b
        y[:, :width] += x
        return y.mul_(0.5)
