"""A detector of YOLOv8's shape and size: C2f, SPPF, an upward and a downward path, three heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(self, c_in: int, c_out: int, k: int = 1, s: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, c: int, add: bool) -> None:
        super().__init__()
        self.cv1, self.cv2, self.add = Conv(c, c, 3), Conv(c, c, 3), add

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.add else y


class C2f(nn.Module):
    """Split in two, one half goes on step by step, all steps are joined."""

    def __init__(self, c_in: int, c_out: int, n: int = 1, add: bool = True) -> None:
        super().__init__()
        self.c = c_out // 2
        self.cv1, self.cv2 = Conv(c_in, 2 * self.c), Conv((2 + n) * self.c, c_out)
        self.m = nn.ModuleList(Bottleneck(self.c, add) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, c: int, k: int = 5) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(c, c // 2), Conv(2 * c, c)
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(3):
            y.append(F.max_pool2d(y[-1], self.k, 1, self.k // 2))
        return self.cv2(torch.cat(y, 1))


class Yolo(nn.Module):
    """``[N, 3, H, W]`` -> three maps of boxes and scores at strides 8, 16 and 32."""

    def __init__(self, width: int = 16, classes: int = 80) -> None:
        super().__init__()
        a, b, c, d, e = (width * 2**i for i in range(5))
        self.stem = nn.Sequential(Conv(3, a, 3, 2), Conv(a, b, 3, 2), C2f(b, b))
        self.p3 = nn.Sequential(Conv(b, c, 3, 2), C2f(c, c, 2))
        self.p4 = nn.Sequential(Conv(c, d, 3, 2), C2f(d, d, 2))
        self.p5 = nn.Sequential(Conv(d, e, 3, 2), C2f(e, e), SPPF(e))
        self.up4, self.up3 = C2f(e + d, d, add=False), C2f(d + c, c, add=False)
        self.down3, self.down4 = Conv(c, c, 3, 2), Conv(d, d, 3, 2)
        self.out4, self.out5 = C2f(c + d, d, add=False), C2f(d + e, e, add=False)
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(n, c, 3), Conv(c, c, 3), nn.Conv2d(c, 64, 1)) for n in (c, d, e)
        )
        self.scores = nn.ModuleList(
            nn.Sequential(Conv(n, c, 3), Conv(c, c, 3), nn.Conv2d(c, classes, 1)) for n in (c, d, e)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        x3 = self.p3(self.stem(x))
        x4 = self.p4(x3)
        x5 = self.p5(x4)
        y4 = self.up4(torch.cat([F.interpolate(x5, scale_factor=2.0), x4], 1))
        y3 = self.up3(torch.cat([F.interpolate(y4, scale_factor=2.0), x3], 1))
        y4 = self.out4(torch.cat([self.down3(y3), y4], 1))
        y5 = self.out5(torch.cat([self.down4(y4), x5], 1))
        heads = zip(self.boxes, self.scores, (y3, y4, y5), strict=True)
        return [torch.cat([box(y), score(y)], 1) for box, score, y in heads]


def small_yolo() -> nn.Module:
    return Yolo(width=8, classes=4)
