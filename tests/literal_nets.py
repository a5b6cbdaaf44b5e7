"""Small networks whose widths are written in their code, as literals that no module attribute holds."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

C = 16


class HardView(nn.Module):
    """VGG with ``view(n, 16 * 4 * 4)`` written out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(C * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.drop(self.features(x).view(x.shape[0], 256)))


class Stem(nn.Module):
    """A convolution, the part under test, and a classifier that reads channels."""

    width = C

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, C, 3, padding=1)
        self.norm = nn.BatchNorm2d(C)
        self.make()
        self.head = nn.Conv2d(self.width, 24, 1)
        self.fc = nn.Linear(24, 10)

    def make(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.norm(self.stem(x))))
        return self.fc(F.relu(self.head(x)).mean((2, 3)))


class Splits(Stem):
    width = 12

    def make(self) -> None:
        self.a, self.b = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(8, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        one, two = torch.split(x, 8, 1)
        return torch.cat([self.a(one), self.b(two)], 1)


class UnevenSplits(Stem):
    def make(self) -> None:
        self.a = nn.Conv2d(6, 10, 3, padding=1)

    def middle(self, x: Tensor) -> Tensor:
        one, two = x.split([10, 6], 1)
        return torch.cat([one + self.a(two), two], 1)


class Slices(Stem):
    def make(self) -> None:
        self.a, self.b = nn.Conv2d(10, 10, 1), nn.Conv2d(6, 6, 1)

    def middle(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x[:, :10]), self.b(x[:, -6:])], 1)


class OwnParameters(Stem):
    """A depthwise convolution by function, ``groups`` a literal."""

    def make(self) -> None:
        self.kernel = nn.Parameter(torch.randn(C, 1, 3, 3) / 3)
        self.shift = nn.Parameter(torch.randn(C))

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.kernel, self.shift, padding=1, groups=16)


class Heads(Stem):
    """Attention over positions; ``c // 4`` is a number once exported."""

    def make(self) -> None:
        self.qkv, self.out = nn.Linear(C, 48), nn.Linear(16, C)

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        heads = c // 4
        y = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(y).reshape(n, h * w, 3, heads, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, h * w, 16)
        return x + self.out(y).transpose(1, 2).reshape(n, 16, h, w)


class Shuffle(Stem):
    def middle(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        return x.view(n, 2, 8, h, w).transpose(1, 2).reshape(n, 16, h, w)


class Chunks(Stem):
    width = 8

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return (a * torch.sigmoid(b)).reshape(x.shape[0], 8, 8, 8)


class Expanded(Stem):
    """A gate per channel, expanded to sizes that are written."""

    def middle(self, x: Tensor) -> Tensor:
        gate = x.mean((2, 3), keepdim=True)
        return x * gate.expand(x.shape[0], 16, 8, 8)


class Filled(Stem):
    """Zeros of a written size, filled slice by slice, in place."""

    width = 24

    def make(self) -> None:
        self.a = nn.Conv2d(C, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        out = torch.zeros(x.shape[0], 24, 8, 8)
        out[:, :16] = x
        out[:, 16:24] += self.a(x)
        return out


class Normalised(Stem):
    """LayerNorm over channels by function, its shape a literal."""

    def make(self) -> None:
        self.scale, self.offset = nn.Parameter(torch.rand(C) + 0.5), nn.Parameter(torch.randn(C))

    def middle(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x.permute(0, 2, 3, 1), (16,), self.scale, self.offset)
        return y.permute(0, 3, 1, 2)


class Constants(Stem):
    """A constant that the code holds beside the parameters, and a part without gradients."""

    def make(self) -> None:
        self.mean = torch.linspace(-1, 1, C).view(1, C, 1, 1)

    def middle(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            level = x.reshape(x.shape[0], 16, 64).amax(2).view(-1, 16, 1, 1)
        return x - self.mean - level


LITERAL_NETS = (
    HardView, Splits, UnevenSplits, Slices, OwnParameters, Heads, Shuffle, Chunks, Expanded, Filled,
    Normalised, Constants,
)  # fmt: skip
