"""Networks with attention in the ways in which people write it; see nets.py."""

from __future__ import annotations

import abc
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadNet(nn.Module):
    """``nn.MultiheadAttention`` between two linear layers; ``weights`` asks for its averaged weights."""

    def __init__(self, *, batch_first: bool = True, weights: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=batch_first)
        self.head = nn.Linear(16, 5)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x))
        y, _ = self.attention(x, x, x, need_weights=self.weights)
        return self.head(F.gelu(y)).mean(1)


class Unbiased(MultiheadNet):
    """Without biases PyTorch's own projection becomes one product more than ours."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.stem(x)).transpose(1, 2).contiguous().transpose(1, 2)
        y, _ = self.attention(x, x, x, need_weights=False)
        return self.head(F.gelu(y)).mean(1)


def multihead_time_first() -> nn.Module:
    return MultiheadNet(batch_first=False)


def multihead_with_weights() -> nn.Module:
    return MultiheadNet(weights=True)


class CrossAttention(nn.Module):
    """Queries of one sequence, keys and values of another of different width; appended keys; no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(7, 12)
        self.attention = nn.MultiheadAttention(
            16,
            4,
            bias=False,
            add_bias_kv=True,
            add_zero_attn=True,
            kdim=12,
            vdim=12,
            batch_first=True,
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = F.relu(self.left(x)), F.relu(self.right(y))
        z, _ = self.attention(x, y, y, need_weights=False)
        return self.head(x + z)


class Encoder(nn.Module):
    """``nn.TransformerEncoder``; ``norm_first`` as in ViT."""

    def __init__(self, *, norm_first: bool = True, causal: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(
            16, 4, 24, 0.0, "gelu", batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        mask = None
        if self.causal:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return self.head(self.encoder(self.stem(x), mask=mask, is_causal=self.causal)[:, -1])


def encoder_post_norm() -> nn.Module:
    return Encoder(norm_first=False)


def encoder_causal() -> nn.Module:
    return Encoder(causal=True)


class Seq2Seq(nn.Module):
    """``nn.Transformer``: encoder and decoder with cross attention, two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(7, 16)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, 0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(self.transformer(self.left(x), self.right(y)))


class _Residual(nn.Module, abc.ABC):
    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, width), nn.Linear(width, 5)
        self.num_heads, self.head_dim = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.proj(self.mix(self.norm(x))))

    @abc.abstractmethod
    def mix(self, x: Tensor) -> Tensor:
        """What the networks below differ in."""


class Fused(_Residual):
    """timm's: packed projection, both numbers are attributes, fused attention, scale from the width."""

    def mix(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return y.transpose(1, 2).reshape(b, n, self.num_heads * self.head_dim)


class WidthFromInput(_Residual):
    """The classic: the result is shaped by the INPUT's width, so heads cannot leave."""

    def mix(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, c)


class Normed(_Residual):
    """Queries and keys are normalised over the head's width."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(self.head_dim), nn.LayerNorm(self.head_dim)

    def mix(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(qkv[0]), self.k_norm(qkv[1])
        y = F.scaled_dot_product_attention(q, k, qkv[2])
        return y.transpose(1, 2).reshape(b, n, -1)


class Separate(nn.Module):
    """BERT's: three projections, ``-1`` for the heads, a scale computed from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.proj, self.width = nn.Linear(16, 16), 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        shape = (*x.shape[:-1], -1, self.width)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        weights = (torch.matmul(q, k.transpose(2, 3)) / math.sqrt(self.width)).softmax(-1)
        y = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.head(x + self.proj(y.view(*y.shape[:-2], -1)))


class GroupedQueries(nn.Module):
    """Four query heads on two key and value heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 16), nn.Linear(16, 5)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.proj, self.heads, self.shared = nn.Linear(16, 16), 4, 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b, n = x.shape[:2]
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        k, v = (
            layer(x).view(b, n, self.shared, -1).transpose(1, 2).repeat_interleave(2, 1)
            for layer in (self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(b, n, -1)))


class RelativeBias(_Residual):
    """A learnt bias for each head and distance is looked up and added to the scores (Swin, T5)."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(13, self.num_heads))
        place = torch.arange(7)
        self.register_buffer("index", place[:, None] - place[None] + 6)

    def mix(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        scores = qkv[0] @ qkv[1].transpose(-2, -1) * 0.5 + bias.unsqueeze(0)
        return (scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(b, n, -1)


class ChannelAttention(_Residual):
    """XCiT's and MaxViT's other half: attention between channels, over positions."""

    def mix(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 4, 1)
        q, k, v = F.normalize(qkv[0], dim=-1), F.normalize(qkv[1], dim=-1), qkv[2]
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return (weights @ v).permute(0, 3, 1, 2).reshape(b, n, -1)


class Rotary(_Residual):
    """Rotary positions: halves of each head are turned against one another."""

    def mix(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        half = self.head_dim // 2
        angle = torch.arange(n)[:, None] / 10.0 ** torch.arange(half)[None]
        sin, cos = angle.sin().to(x.dtype), angle.cos().to(x.dtype)

        def turn(y: Tensor) -> Tensor:
            a, c = y[..., :half], y[..., half:]
            return torch.cat([a * cos - c * sin, a * sin + c * cos], -1)

        y = F.scaled_dot_product_attention(turn(qkv[0]), turn(qkv[1]), qkv[2])
        return y.transpose(1, 2).reshape(b, n, -1)
