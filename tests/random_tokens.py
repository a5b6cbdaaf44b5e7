"""The pieces of random networks on tokens ``[N, T, C]``: attention, transformers, recurrent layers, mixers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from random_pieces import SIDE, Make, Piece, width
from torch import Tensor, nn

TOKENS = SIDE * SIDE
#: the kinds whose input and output are tokens
TOKEN_KINDS: dict[str, Make] = {}


def token_piece(make: Make) -> Make:
    TOKEN_KINDS[make.__name__] = make
    return make


def heads_of(a: int) -> tuple[int, int]:
    """Number of heads and their width."""
    return ((2, 4), (4, 2), (1, 8), (3, 4))[a % 4]


@token_piece
def linear(c: int, a: int, b: int) -> Piece:
    out = width(a)
    norm = (nn.Identity, nn.LayerNorm, nn.RMSNorm)[b % 3](out)
    return Piece(out, lambda m, x: F.gelu(m.norm(m.f(x))), f=nn.Linear(c, out), norm=norm)


@token_piece
def feed_forward(c: int, a: int, b: int) -> Piece:
    hidden, norm = width(a), (nn.LayerNorm, nn.RMSNorm)[b % 2](c)
    if b % 4 < 2:
        return Piece(
            c, lambda m, x: x + m.down(F.gelu(m.up(m.norm(x)))),
            norm=norm, up=nn.Linear(c, hidden), down=nn.Linear(hidden, c),
        )  # fmt: skip

    def swiglu(m: Any, x: Tensor) -> Tensor:
        first, second = m.up(m.norm(x)).chunk(2, dim=-1)
        return x + m.down(F.silu(first) * second)

    up, down = nn.Linear(c, 2 * hidden, bias=False), nn.Linear(hidden, c)
    return Piece(c, swiglu, norm=norm, up=up, down=down)


@token_piece
def mixer(c: int, a: int, b: int) -> Piece:
    """A layer over the positions between two transpositions."""

    def body(m: Any, x: Tensor) -> Tensor:
        return x + m.down(F.gelu(m.up(m.norm(x).transpose(1, 2)))).transpose(1, 2)

    up, down = nn.Linear(TOKENS, width(a)), nn.Linear(width(a), TOKENS)
    return Piece(c, body, norm=nn.LayerNorm(c), up=up, down=down)


@token_piece
def normed_streams(c: int, a: int, b: int) -> Piece:
    out = c + width(a)
    norm = (nn.LayerNorm, nn.RMSNorm)[b % 2](out)
    return Piece(
        out, lambda m, x: m.norm(torch.cat([m.f(x), x], -1)), f=nn.Linear(c, width(a)), norm=norm
    )


@token_piece
def multihead(c: int, a: int, b: int) -> Piece:
    """PyTorch's own module between two layers; packed, or of other widths of keys and values."""
    heads, size = heads_of(a)
    inner, weights = heads * size, bool(b % 2)
    packed = bool(b // 2 % 2)
    attention = (
        nn.MultiheadAttention(inner, heads, batch_first=True, bias=bool(b // 4 % 2))
        if packed
        else nn.MultiheadAttention(inner, heads, kdim=c, vdim=c, batch_first=True)
    )

    def body(m: Any, x: Tensor) -> Tensor:
        q = m.before(x)
        k = q if packed else x
        return F.relu(m.attention(q, k, k, need_weights=weights)[0]) + q

    return Piece(inner, body, before=nn.Linear(c, inner), attention=attention)


@token_piece
def multihead_residual(c: int, a: int, b: int) -> Piece:
    heads = 4 if c % 4 == 0 and a % 2 else 2 if c % 2 == 0 else 1

    def body(m: Any, x: Tensor) -> Tensor:
        y = m.norm(x)
        return x + m.attention(y, y, y, need_weights=False)[0]

    attention = nn.MultiheadAttention(c, heads, batch_first=True)
    return Piece(c, body, norm=nn.LayerNorm(c), attention=attention)


@token_piece
def encoder_layer(c: int, a: int, b: int) -> Piece:
    heads = 2 if c % 2 == 0 else 1
    layer = nn.TransformerEncoderLayer(
        c, heads, width(a), 0.0, ("relu", "gelu")[b // 2 % 2], batch_first=True,
        norm_first=bool(b % 2),
    )  # fmt: skip
    return Piece(c, lambda m, x: m.layer(x), layer=layer)


def _scores(m: Any, q: Tensor, k: Tensor, v: Tensor, how: int) -> Tensor:
    """Attention with the scale from the shape, from an attribute, by default, or as a number."""
    if how == 0:
        return F.scaled_dot_product_attention(q, k, v)
    if how == 1:
        return ((q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])).softmax(-1) @ v
    if how == 2:
        return torch.matmul((torch.matmul(q, k.transpose(-1, -2)) * m.scale).softmax(-1), v)
    return F.scaled_dot_product_attention(q, k, v, scale=0.5)


@token_piece
def packed_attention(c: int, a: int, b: int) -> Piece:
    """timm's; the numbers are attributes, or one of them is ``-1``."""
    heads, size = heads_of(a)
    form, how = b % 3, b // 3 % 4

    def body(m: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        y = m.qkv(m.norm(x))
        if form == 0:
            y = y.reshape(n, t, 3, m.num_heads, m.head_dim)
        elif form == 1:
            y = y.reshape(n, t, 3, m.num_heads, -1)
        else:
            y = y.view(n, t, 3, -1, m.head_dim)
        q, k, v = y.permute(2, 0, 3, 1, 4).unbind(0)
        return x + m.proj(_scores(m, q, k, v, how).transpose(1, 2).reshape(n, t, -1))

    return Piece(
        c, body, norm=nn.LayerNorm(c), qkv=nn.Linear(c, 3 * heads * size, bias=bool(a % 2)),
        proj=nn.Linear(heads * size, c), num_heads=heads, head_dim=size, scale=size**-0.5,
    )  # fmt: skip


@token_piece
def separate_attention(c: int, a: int, b: int) -> Piece:
    """BERT's: three projections."""
    heads, size = heads_of(a)
    form, how = b % 3, b // 3 % 4

    def split(m: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if form == 0:
            return x.view(n, t, m.num_heads, m.head_dim).transpose(1, 2)
        if form == 1:
            return x.view(n, t, -1, m.head_dim).transpose(1, 2)
        return x.unflatten(-1, (m.num_heads, -1)).transpose(1, 2)

    def body(m: Any, x: Tensor) -> Tensor:
        q, k, v = (split(m, f(x)) for f in (m.q, m.k, m.v))
        y = _scores(m, q, k, v, how).transpose(1, 2).flatten(2)
        return F.relu(m.proj(y)) + x

    q, k, v = (nn.Linear(c, heads * size) for _ in range(3))
    return Piece(
        c, body, q=q, k=k, v=v, proj=nn.Linear(heads * size, c),
        num_heads=heads, head_dim=size, scale=size**-0.5,
    )  # fmt: skip


@token_piece
def shaped_by_input(c: int, a: int, b: int) -> Piece:
    """The classic: all numbers follow from the input's width."""
    heads = 2 if c % 2 == 0 else 1

    def body(m: Any, x: Tensor) -> Tensor:
        n, t, k = x.shape
        qkv = m.qkv(x).reshape(n, t, 3, m.num_heads, k // m.num_heads).permute(2, 0, 3, 1, 4)
        weights = (qkv[0] @ qkv[1].transpose(-2, -1) * m.scale).softmax(-1)
        return m.proj((weights @ qkv[2]).transpose(1, 2).reshape(n, t, k))

    return Piece(
        c, body, qkv=nn.Linear(c, 3 * c), proj=nn.Linear(c, c), num_heads=heads,
        scale=(c // heads) ** -0.5,
    )  # fmt: skip


@token_piece
def recurrent(c: int, a: int, b: int) -> Piece:
    """LSTM, GRU or RNN over the positions; one or two ways, one or two layers, time first or second."""
    out, both, deep = (3, 4, 6, 8)[a % 4], bool(b % 2), 1 + b // 2 % 2
    kind = (nn.LSTM, nn.GRU, nn.RNN)[b // 4 % 3]
    first = bool(a // 4 % 2)
    f = kind(c, out, deep, bidirectional=both, batch_first=first)

    def body(m: Any, x: Tensor) -> Tensor:
        return m.f(x)[0] if first else m.f(x.transpose(0, 1))[0].transpose(0, 1)

    return Piece(out * (1 + both), body, f=f)


@token_piece
def recurrent_state(c: int, a: int, b: int) -> Piece:
    """The last state gates all positions."""

    def body(m: Any, x: Tensor) -> Tensor:
        _, state = m.f(x)
        state = state[0] if isinstance(state, tuple) else state
        return x * torch.sigmoid(m.gate(state[-1]))[:, None]

    f = (nn.LSTM, nn.GRU)[b % 2](c, width(a), batch_first=True)
    return Piece(c, body, f=f, gate=nn.Linear(width(a), c))


@token_piece
def class_token(c: int, a: int, b: int) -> Piece:
    """A learnt token and positions are added; the token's sum is spread, so the count stays."""

    def body(m: Any, x: Tensor) -> Tensor:
        x = torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1) + m.position
        return x[:, 1:] + x[:, :1]

    token = nn.Parameter(torch.randn(1, 1, c))
    return Piece(c, body, token=token, position=nn.Parameter(torch.randn(1, TOKENS + 1, c)))


@token_piece
def token_statistics(c: int, a: int, b: int) -> Piece:
    bodies: list[Callable[[Any, Tensor], Tensor]] = [
        lambda m, x: x.softmax(-1) * x,
        lambda m, x: x - x.mean(dim=-1, keepdim=True),
        lambda m, x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda m, x: x + x.max(-1, keepdim=True).values,
        lambda m, x: F.layer_norm(x, (x.shape[-1],)),
        lambda m, x: F.normalize(x, dim=-1) * m.s,
    ]
    return Piece(c, bodies[a % 6], s=nn.Parameter(torch.rand(c) + 0.5))
