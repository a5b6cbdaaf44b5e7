"""The pieces of random networks on feature maps ``[N, C, H, W]``; see random_nets.py.

Each piece is written as a user would write it: numbers stand in attributes, follow from shapes, or are literals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIDE = 4
Gene = tuple[str, int, int]
Forward = Callable[[Any, Tensor], Tensor]


class Piece(nn.Module):
    """A body as a function, its parts, and the number of channels that come out."""

    def __init__(self, out: int, body: Forward, **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.after = [out]  # in a list: an attribute that counts nothing

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


Make = Callable[[int, int, int], Piece]
KINDS: dict[str, Make] = {}


def piece(make: Make) -> Make:
    KINDS[make.__name__.strip("_")] = make
    return make


def conv(inputs: int, outputs: int, *, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=bool(outputs % 2)
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


def width(a: int) -> int:
    return (4, 6, 8, 12)[a % 4]


# ---------------------------------------------------------------- layers


@piece
def plain(c: int, a: int, b: int) -> Piece:
    out = width(a)
    return Piece(out, lambda m, x: m.f(x), f=conv(c, out, kernel=(1, 3)[b % 2]))


@piece
def bare(c: int, a: int, b: int) -> Piece:
    act = (F.relu, F.silu, torch.tanh, F.hardswish)[b % 4]
    return Piece(width(a), lambda m, x: act(m.f(x)), f=nn.Conv2d(c, width(a), 1))


@piece
def depthwise(c: int, a: int, b: int) -> Piece:
    out = c * (1 + a % 2)
    return Piece(out, lambda m, x: m.f(x), f=conv(c, out, groups=c))


@piece
def depthwise_functional(c: int, a: int, b: int) -> Piece:
    k = nn.Parameter(torch.randn(c, 1, 3, 3))
    if b % 2:
        return Piece(c, lambda m, x: F.conv2d(x, m.k, padding=1, groups=x.shape[1]), k=k)
    return Piece(c, lambda m, x: F.conv2d(x, m.k, padding=1, groups=c), k=k)


@piece
def grouped(c: int, a: int, b: int) -> Piece:
    groups = 2 if c % 2 == 0 else 1
    out = groups * (2 + a % 4)
    return Piece(out, lambda m, x: m.f(x), f=conv(c, out, groups=groups))


@piece
def transposed(c: int, a: int, b: int) -> Piece:
    up = nn.ConvTranspose2d(c, width(a), 2, stride=2)
    return Piece(width(a), lambda m, x: F.max_pool2d(m.up(x), 2), up=up)


@piece
def shared(c: int, a: int, b: int) -> Piece:
    return Piece(c, lambda m, x: m.f(m.f(x)) if b % 2 else m.f(x) + m.f(x.flip(3)), f=conv(c, c))


@piece
def tied(c: int, a: int, b: int) -> Piece:
    f, g = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
    g.weight = f.weight
    return Piece(c, lambda m, x: torch.relu(m.g(torch.relu(m.f(x)))), f=f, g=g)


# ---------------------------------------------------------------- several paths


@piece
def residual(c: int, a: int, b: int) -> Piece:
    f, g = conv(c, width(a)), nn.Conv2d(width(a), c, 3, padding=1)
    return Piece(c, lambda m, x: F.relu(x + m.g(m.f(x))), f=f, g=g)


@piece
def residual_in_place(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        y += x
        return F.relu_(y)

    return Piece(c, body, f=conv(c, c)[:2])


@piece
def residual_by_convolution(c: int, a: int, b: int) -> Piece:
    out = width(a)
    return Piece(out, lambda m, x: m.f(x) - m.short(x), f=conv(c, out), short=nn.Conv2d(c, out, 1))


@piece
def residual_padded(c: int, a: int, b: int) -> Piece:
    before, after = a % 3, 1 + b % 3
    out = c + before + after
    return Piece(
        out,
        lambda m, x: m.f(x) + F.pad(x, (0, 0, 0, 0, m.before, m.behind)),
        f=conv(c, out), before=before, behind=after,
    )  # fmt: skip


@piece
def concatenated(c: int, a: int, b: int) -> Piece:
    parts = {"f": conv(c, width(a)), "g": conv(c, width(b), kernel=1)}
    if b % 2:
        return Piece(c + width(a), lambda m, x: torch.cat([x, m.f(x)], 1), f=parts["f"])
    return Piece(width(a) + width(b), lambda m, x: torch.cat((m.f(x), m.g(x)), dim=1), **parts)


@piece
def stacked(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        branches = torch.stack([m.f(x), m.g(x)], a % 3)
        return branches.sum(a % 3) if b % 2 else branches.amax(a % 3)

    return Piece(c, body, f=conv(c, c), g=conv(c, c, kernel=1))


@piece
def filled_by_slices(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        k = y.shape[1]
        out = x.new_zeros(x.shape[0], k + x.shape[1], *x.shape[2:])
        out[:, :k] = y
        out[:, k:] = x
        out[:, :k] += 1
        return out

    return Piece(c + width(a), body, f=conv(c, width(a)))


@piece
def overwritten(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        y = m.f(x)
        x = x.clone()
        x[:, : y.shape[1]] = y
        return x

    return Piece(c, body, f=conv(c, c // 2 if c % 2 == 0 and a % 2 else c))


# ---------------------------------------------------------------- dividing channels


@piece
def chunked(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        return torch.cat([m.f(second), first], 1)

    return Piece(c, body, f=conv(c // 2, c // 2)) if c % 2 == 0 else plain(c, a, b)


@piece
def split_by_attribute(c: int, a: int, b: int) -> Piece:
    first = 1 + a % (c - 1)

    def body(m: Any, x: Tensor) -> Tensor:
        left, right = x.split([m.first, m.rest], dim=1)
        return torch.cat([m.f(left), right], 1)

    return Piece(c, body, f=conv(first, first), first=first, rest=c - first)


@piece
def split_by_literal(c: int, a: int, b: int) -> Piece:
    first = 1 + a % (c - 1)

    def body(m: Any, x: Tensor) -> Tensor:
        left, right = torch.split(x, [first, c - first], dim=1)
        return torch.cat([m.f(left), right], 1)

    return Piece(c, body, f=conv(first, first))


@piece
def sliced(c: int, a: int, b: int) -> Piece:
    half = c // 2
    bodies: list[Forward] = [
        lambda m, x: x[:, : x.shape[1] // 2],
        lambda m, x: x[:, m.half :],
        lambda m, x: x[:, :half],
        lambda m, x: x[:, -half:],
        lambda m, x: x[:, ::2],
    ]
    which = a % 5
    outs = [half, c - half, half, half, (c + 1) // 2]
    return Piece(outs[which], bodies[which], half=half) if c >= 4 else plain(c, a, b)


@piece
def gated_halves(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        if b % 2:
            return F.glu(x, 1)
        first, second = x.tensor_split(2, 1)
        return first * torch.sigmoid(second)

    return Piece(c // 2, body) if c % 2 == 0 and c >= 4 else plain(c, a, b)


@piece
def shuffled(c: int, a: int, b: int) -> Piece:
    def by_hand(m: Any, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        return x.view(n, 2, k // 2, h, w).transpose(1, 2).reshape(n, k, h, w)

    if c % 2:
        return plain(c, a, b)
    return Piece(c, by_hand if b % 2 else lambda m, x: F.channel_shuffle(x, 2))


@piece
def pixel_shuffled(c: int, a: int, b: int) -> Piece:
    if c % 4:
        return plain(c, a, b)
    if b % 2:
        return Piece(c * 4, lambda m, x: F.interpolate(F.pixel_unshuffle(x, 2), size=(SIDE, SIDE)))
    return Piece(c // 4, lambda m, x: F.max_pool2d(F.pixel_shuffle(x, 2), 2))


@piece
def maxout(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        return x.view(n, k // 2, 2, h, w).amax(2)

    return Piece(c // 2, body) if c % 2 == 0 and c >= 4 else plain(c, a, b)


@piece
def repeated(c: int, a: int, b: int) -> Piece:
    if b % 2:
        return Piece(2 * c, lambda m, x: x.repeat(1, 2, 1, 1))
    return Piece(2 * c, lambda m, x: x.repeat_interleave(2, dim=1))


@piece
def padded(c: int, a: int, b: int) -> Piece:
    bodies: list[Forward] = [
        lambda m, x: F.pad(x, (0, 0, 0, 0, m.amount, 0)),
        lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 2)),
        lambda m, x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1),
        lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")[:, :, 1:-1, 1:-1],
    ]
    return Piece(c + (2, 3, 0, 0)[a % 4], bodies[a % 4], amount=2)


# ---------------------------------------------------------------- scales, gates, norms


@piece
def scaled(c: int, a: int, b: int) -> Piece:
    s, t = nn.Parameter(torch.rand(c, 1, 1) + 0.5), torch.randn(1, c, 1, 1)
    bodies: list[Forward] = [
        lambda m, x: x * m.s + m.t,
        lambda m, x: (x - m.t).mul_(m.s),
        lambda m, x: x * m.s.view(1, -1, 1, 1),
        lambda m, x: x * torch.exp(m.s),
    ]
    return Piece(c, bodies[a % 4], s=s, t=t)


@piece
def squeezed(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        gate = torch.sigmoid(m.up(F.silu(m.down(F.adaptive_avg_pool2d(x, 1)))))
        return x * gate

    return Piece(c, body, down=nn.Conv2d(c, 3, 1), up=nn.Conv2d(3, c, 1))


@piece
def spatially_gated(c: int, a: int, b: int) -> Piece:
    return Piece(c, lambda m, x: x * torch.sigmoid(m.gate(x)), gate=nn.Conv2d(c, 1, 1))


@piece
def normalised(c: int, a: int, b: int) -> Piece:
    norms: list[nn.Module] = [
        nn.InstanceNorm2d(c, affine=True),
        nn.GroupNorm(2 if c % 2 == 0 else 1, c),
        nn.LayerNorm([SIDE, SIDE]),
        nn.PReLU(c),
    ]
    return Piece(c, lambda m, x: m.norm(x), norm=norms[a % 4])


@piece
def over_channels(c: int, a: int, b: int) -> Piece:
    bodies: list[Forward] = [
        lambda m, x: F.softmax(x, 1),
        lambda m, x: x - x.mean(1, keepdim=True),
        lambda m, x: x.roll(1, 1),
        lambda m, x: x[:, list(range(x.shape[1]))[::-1]],
        lambda m, x: x.flip(1),
        lambda m, x: x / x.shape[1],
        lambda m, x: x + torch.ones(1, c, 1, 1, dtype=x.dtype),
    ]
    return Piece(c, bodies[a % 7])


@piece
def pooled(c: int, a: int, b: int) -> Piece:
    bodies: list[Forward] = [
        lambda m, x: F.max_pool2d(x, 3, 1, 1),
        lambda m, x: F.avg_pool2d(x, 3, 1, 1),
        lambda m, x: F.interpolate(F.avg_pool2d(x, 2), scale_factor=2.0, mode="bilinear"),
        lambda m, x: x * F.adaptive_max_pool2d(x, 1),
    ]
    return Piece(c, bodies[a % 4])


@piece
def flat_and_back(c: int, a: int, b: int) -> Piece:
    def body(m: Any, x: Tensor) -> Tensor:
        n, k, h, w = x.shape
        if b % 2:
            return m.f(x.flatten(2).transpose(1, 2)).transpose(1, 2).view(n, -1, h, w)
        return F.relu(x.reshape(n * k, h, w)).view(n, k, h, w)

    return Piece(c, body, f=nn.Linear(c, c))
