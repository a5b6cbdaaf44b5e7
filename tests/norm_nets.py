"""Small networks with normalisation, attention, raw parameters and escapes; see nets.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pattern_nets import Headed, unit
from torch import Tensor, nn


class LSTMClassifier(nn.Module):
    """``[N, T, 12]`` -> a projection, an LSTM, a linear layer on its last step."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 16)
        self.lstm = nn.LSTM(16, 10, batch_first=True)
        self.hidden, self.head = nn.Linear(10, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.lstm(F.relu(self.project(x)))
        return self.head(F.relu(self.hidden(y[:, -1])))


class Attention(nn.Module):
    """A patch embedding, a class token, one pre-norm transformer block (ViT)."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(torch.randn(1, 17, width) * 0.1)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        n, t = x.shape[:2]
        qkv = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.project(y.transpose(1, 2).reshape(n, t, -1))
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm(x)[:, 0])


class LayerNormNet(nn.Module):
    """Normalisation over the labelled axis: the statistics change with a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = unit(3, 8)
        self.linear1, self.norm = nn.Linear(8, 16), nn.LayerNorm(16)
        self.linear2 = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).mean((2, 3))
        return self.linear2(F.gelu(self.norm(self.linear1(x))))


class GroupNormNet(Headed):
    """Statistics over groups of four channels."""

    def __init__(self) -> None:
        super().__init__(16, 8)
        self.norm, self.last = nn.GroupNorm(4, 16), unit(16, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.norm(x)))


class ConvNeXt(Headed):
    """Channels last, LayerNorm, and a layer scale of 1e-6 that hides what is wrong behind it."""

    def __init__(self) -> None:
        super().__init__(12, 12)
        self.depthwise, self.norm = nn.Conv2d(12, 12, 7, padding=3, groups=12), nn.LayerNorm(12)
        self.up, self.down = nn.Linear(12, 48), nn.Linear(48, 12)
        self.scale = nn.Parameter(torch.full((12,), 1e-6))

    def body(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.down(F.gelu(self.up(y)))
        return x + y.permute(0, 3, 1, 2)


class WeightedFusion(nn.Module):
    """Two levels of a pyramid added with learnt weights, a scalar for each (BiFPN)."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low = unit(3, 8), unit(8, 16, stride=2)
        self.lateral_high, self.lateral_low = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 8, 1)
        self.weights = nn.Parameter(torch.tensor([0.7, 0.4]))
        self.out = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        low = F.interpolate(self.lateral_low(self.low(high)), scale_factor=2.0, mode="nearest")
        weights = F.relu(self.weights)
        weights = weights / (weights.sum() + 1e-4)
        return self.out(F.silu(weights[0] * self.lateral_high(high) + weights[1] * low))


class WeightNorm(Headed):
    """A convolution whose weight is computed on each forward."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.last = unit(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.normed(x)))


class Buffer(Headed):
    """A buffer that scales each channel."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.register_buffer("mask", torch.rand(8, 1, 1) + 0.5)
        self.last = unit(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x * self.mask)


class ItemEscape(Headed):
    """A value that leaves PyTorch and comes back as a Python number."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.last = unit(8, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(x / (1.0 + float(x.abs().max().item())))


class ChannelMax(Headed):
    """The largest channel at each place, beside the channels themselves."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.last = unit(9, 8)

    def body(self, x: Tensor) -> Tensor:
        return self.last(torch.cat([x, x.amax(1, keepdim=True)], 1))


class TwoOutputs(Headed):
    """A dictionary with logits and the features themselves."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.inner, self.last = unit(8, 12), unit(12, 8)

    def forward(self, x: Tensor) -> dict[str, Tensor]:  # type: ignore[override]  # on purpose
        features = self.last(self.inner(self.stem(x)))
        return {"logits": self.head(features.mean((2, 3))), "features": features}


class OneLayer(nn.Module):
    """Nothing can be cut: the only layer's outputs are the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Conv2d(3, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x).mean((2, 3))
