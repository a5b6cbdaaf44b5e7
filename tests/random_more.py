"""More pieces of random networks on feature maps: norms, statistics over channels, computed weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import SIDE, Piece, conv, piece, plain, width
from torch import Tensor, nn
from torch.nn.utils import parametrizations


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a feature map, as ConvNeXt writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(channels) + 0.5)
        self.bias = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(var + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


def groups_of(c: int, b: int) -> int:
    """A number of groups that divides ``c``: one, two, or one per channel."""
    return (1, 2 if c % 2 == 0 else 1, c, 4 if c % 4 == 0 else 1)[b % 4]


@piece
def group_normed(c: int, a: int, b: int) -> Piece:
    out = width(a)
    return Piece(
        out, lambda m, x: F.silu(m.norm(m.f(x))),
        f=nn.Conv2d(c, out, 1), norm=nn.GroupNorm(groups_of(out, b), out),
    )  # fmt: skip


@piece
def group_normed_first(c: int, a: int, b: int) -> Piece:
    return Piece(c, lambda m, x: x + F.relu(m.norm(x)), norm=nn.GroupNorm(groups_of(c, b), c))


@piece
def layer_normed(c: int, a: int, b: int) -> Piece:
    forms: list[tuple[nn.Module, Any]] = [
        (nn.LayerNorm(c), lambda m, x: m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)),
        (ChannelNorm(c), lambda m, x: m.norm(x)),
        (nn.LayerNorm([c, SIDE, SIDE]), lambda m, x: m.norm(x)),
        (nn.RMSNorm(c), lambda m, x: x + m.norm(x.movedim(1, -1)).movedim(-1, 1)),
    ]
    norm, body = forms[a % 4]
    return Piece(c, body, norm=norm)


@piece
def layer_normed_streams(c: int, a: int, b: int) -> Piece:
    """Two streams side by side under one norm."""
    out = c + width(a)

    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([x, m.f(x)], 1).permute(0, 2, 3, 1)
        return m.norm(y).permute(0, 3, 1, 2)

    norm = nn.RMSNorm(out) if b % 2 else nn.LayerNorm(out)
    return Piece(out, body, f=conv(c, width(a), kernel=1), norm=norm)


@piece
def convnext(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(m.f(x).permute(0, 2, 3, 1))
        return x + (m.scale * m.down(F.gelu(m.up(y)))).permute(0, 3, 1, 2)

    return Piece(
        c, body, f=nn.Conv2d(c, c, 3, padding=1, groups=c), norm=nn.LayerNorm(c),
        up=nn.Linear(c, width(a)), down=nn.Linear(width(a), c),
        scale=nn.Parameter(torch.rand(c) + 0.5),
    )  # fmt: skip


@piece
def channel_statistics(c: int, a: int, b: int) -> Piece:
    bodies = [
        lambda m, x: x * torch.sigmoid(x.amax(1, keepdim=True)),
        lambda m, x: x - x.max(dim=1, keepdim=True)[0],
        lambda m, x: x / (x.std(1, keepdim=True, unbiased=False) + 1.0),
        lambda m, x: F.normalize(x, dim=1),
        lambda m, x: x + x.sum(1, keepdim=True),
        lambda m, x: torch.log_softmax(x, 1),
        lambda m, x: x * x.softmax(dim=-3),
        lambda m, x: x * x.norm(dim=1, keepdim=True),
        lambda m, x: torch.cat([x, x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1),
    ]
    return Piece(c + 2 * (a % 9 == 8), bodies[a % 9])


@piece
def cbam_spatial(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * torch.sigmoid(m.f(seen))

    return Piece(c, body, f=nn.Conv2d(2, 1, 3, padding=1))


@piece
def weight_normed(c: int, a: int, b: int) -> Piece:
    dim = b % 2
    f = parametrizations.weight_norm(nn.Conv2d(c, width(a), 3, padding=1), dim=dim)
    return Piece(width(a), lambda m, x: F.relu(m.f(x)), f=f)


@piece
def standardised(c: int, a: int, b: int) -> Piece:
    """ResNetV2's: the filters are standardised on each forward."""

    def body(m: Any, x: Tensor) -> Tensor:
        w = m.f.weight
        var, mean = torch.var_mean(w, dim=[1, 2, 3], keepdim=True, correction=0)
        return F.relu(F.conv2d(x, (w - mean) / torch.sqrt(var + 1e-6), m.f.bias, padding=1))

    return Piece(width(a), body, f=nn.Conv2d(c, width(a), 3, padding=1))


@piece
def masked_weights(c: int, a: int, b: int) -> Piece:
    """Unstructured pruning's: a mask of zeros and ones lies over the weight."""
    mask = torch.randint(2, (width(a), c, 1, 1)).float()
    mask[:, 0] = 1
    return Piece(
        width(a), lambda m, x: F.relu(F.conv2d(x, m.f.weight * m.mask, m.f.bias)),
        f=nn.Conv2d(c, width(a), 1), mask=mask,
    )  # fmt: skip


@piece
def transposed_grouped(c: int, a: int, b: int) -> Piece:
    groups = groups_of(c, b)
    out = groups * (1 + a % 3) if groups < c else c
    up = nn.ConvTranspose2d(c, out, 2, stride=2, groups=groups)
    return Piece(out, lambda m, x: F.avg_pool2d(torch.tanh(m.up(x)), 2), up=up)


@piece
def upsampled_by_pixels(c: int, a: int, b: int) -> Piece:
    """Super-resolution's tail, and back."""
    out = 2 + a % 4
    return Piece(
        out, lambda m, x: F.max_pool2d(F.relu(m.shuffle(m.f(x))), 2),
        f=nn.Conv2d(c, 4 * out, 3, padding=1), shuffle=nn.PixelShuffle(2),
    )  # fmt: skip


@piece
def unbound_and_stacked(c: int, a: int, b: int) -> Piece:
    if c % 2:
        return plain(c, a, b)
    dim = b % 2 + 1

    def body(m: Any, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        first, second = x.view(n, 2, k // 2, h, w).unbind(1)
        return torch.stack([m.f(second), F.relu(first)], dim).flatten(1, 2)

    return Piece(c, body, f=nn.Conv2d(c // 2, c // 2, 1))


@piece
def siamese(c: int, a: int, b: int) -> Piece:
    """One encoder on two views of the input, joined."""
    out = width(a)
    f = conv(c, out)
    if b % 2:
        return Piece(out, lambda m, x: (m.f(x) - m.f(x.flip(2))).abs(), f=f)
    return Piece(2 * out, lambda m, x: torch.cat([m.f(x), m.f(x.flip(3))], 1), f=f)


@piece
def activated(c: int, a: int, b: int) -> Piece:
    acts: list[nn.Module] = [
        nn.PReLU(c), nn.PReLU(1), nn.GELU(), nn.SELU(), nn.Softplus(), nn.Dropout2d(0.5),
    ]  # fmt: skip
    return Piece(c, lambda m, x: m.act(x - 0.2), act=acts[a % 6])


@piece
def one_dimensional(c: int, a: int, b: int) -> Piece:
    """Rows as a sequence under 1-D convolutions, then back."""
    out = width(a)

    def body(m: Any, x: Tensor) -> Tensor:
        y = F.relu(m.norm(m.f(x.flatten(2))))
        return y.unflatten(2, (SIDE, SIDE))

    groups = 2 if b % 3 == 0 and c % 2 == 0 else 1
    f = nn.Conv1d(c, out, 3, padding=1, groups=groups)
    return Piece(out, body, f=f, norm=nn.BatchNorm1d(out))


@piece
def three_dimensional(c: int, a: int, b: int) -> Piece:
    out = width(a)

    def body(m: Any, x: Tensor) -> Tensor:
        y = torch.stack([x, x.flip(3)], 2)
        return F.relu(m.norm(m.f(y))).mean(2)

    f = nn.Conv3d(c, out, (2, 3, 3), padding=(0, 1, 1))
    return Piece(out, body, f=f, norm=nn.BatchNorm3d(out))


@piece
def squeezed_by_linear(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        gate = m.up(F.relu(m.down(x.mean((2, 3)))))
        return x * torch.sigmoid(gate)[:, :, None, None]

    return Piece(c, body, down=nn.Linear(c, 4), up=nn.Linear(4, c))
