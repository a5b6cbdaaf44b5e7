"""One operator or idiom each, between a stem of 16 channels and a last layer; see test_rules.py.

``CASES[name]`` holds the module's body ``f(net, x)``, its parts, the width that the last layer reads, and what
must come out: the sizes of the stem's groups (empty: frozen), and words of the reason where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from pattern_nets import unit
from torch import Tensor, nn

Body = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class Case:
    """``stem``: sizes of the groups in which the stem's 16 channels are; ``why``: of the frozen rest."""

    body: Body
    stem: tuple[int, ...] = (16,)
    why: str = ""
    width: int = 16
    parts: Callable[[], dict[str, Any]] = field(default=dict)
    #: seen only by trying: the reason comes from the probe
    probed: bool = False
    #: a raw parameter is read by a functional call, which no hook sees: the gate alone can tell
    hooks_see: bool = True


class Between(nn.Module):
    """``stem`` -> body -> ``last`` -> mean -> ``head``."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.stem, self.last, self.head = unit(3, 16), unit(case.width, 8), nn.Linear(8, 5)
        for name, part in case.parts().items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.body = case.body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.body(self, self.stem(x))).mean((2, 3)))


def build(name: str, *, batch: int = 2) -> tuple[nn.Module, Tensor]:
    """The net in eval mode without gradients (in-place and ``out=`` are allowed then), and an input."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Between(CASES[name]).eval().requires_grad_(requires_grad=False)
        return net, torch.randn(batch, 3, 8, 8)


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def conv(groups: int = 1, kernel: int = 3, out: int = 16, inputs: int = 16) -> nn.Conv2d:
    return nn.Conv2d(inputs, out, kernel, padding=kernel // 2, groups=groups)


# ---------------------------------------------------------------- bodies that take several lines


def _half_zero(net: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, : x.shape[1] // 2] = 0
    return x


def _half_of_another(net: Any, x: Tensor) -> Tensor:
    y = net.other(x)
    x = x.clone()
    x[:, : y.shape[1]] = y
    return x


def _all_of_another(net: Any, x: Tensor) -> Tensor:
    y = net.other(x)
    x = x.clone()
    x[:] = y
    return x


def _add_out(net: Any, x: Tensor) -> Tensor:
    z = torch.empty_like(x)
    torch.add(x, net.other(x), out=z)
    return z


def _cat_out(net: Any, x: Tensor) -> Tensor:
    z = x.new_empty(0)
    torch.cat([x, net.other(x)], 1, out=z)
    return z


def _complex(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    z = x.view(n, c // 2, 2, h, w).permute(0, 1, 3, 4, 2).contiguous()
    z = torch.view_as_complex(z)
    return torch.view_as_real(z * z).permute(0, 1, 4, 2, 3).reshape(n, c, h, w)


def _batch_of_channels(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return F.max_pool2d(x.reshape(n * c, 1, h, w), 3, 1, 1).view(n, c, h, w)


def _maxout(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c // 2, 2, h, w).max(2)[0]


def _matmul_right(net: Any, x: Tensor) -> Tensor:
    return (x.permute(0, 2, 3, 1) @ net.w).permute(0, 3, 1, 2)


def _matmul_left(net: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return (net.w @ x.flatten(2)).view(n, -1, h, w)


def _non_local(net: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    q, k, v = net.q(x).flatten(2).transpose(1, 2), net.k(x).flatten(2), net.v(x).flatten(2)
    return x + (v @ F.softmax(q @ k, -1).transpose(1, 2)).view(n, -1, h, w)


def _channel_attention(net: Any, x: Tensor) -> Tensor:
    q = x.flatten(2)
    return torch.bmm(F.softmax(torch.bmm(q, q.transpose(1, 2)), -1), q).view(x.shape)


def _cbam(net: Any, x: Tensor) -> Tensor:
    a = net.up(F.relu(net.down(x.mean((2, 3))))) + net.up(F.relu(net.down(x.amax((2, 3)))))
    return x * torch.sigmoid(a)[:, :, None, None]


def _eca(net: Any, x: Tensor) -> Tensor:
    y = F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2)
    return x * torch.sigmoid(net.conv(y).transpose(-1, -2).unsqueeze(-1))


def _selective_kernel(net: Any, x: Tensor) -> Tensor:
    a, b = net.a(x), net.b(x)
    z = net.up(F.relu(net.down((a + b).mean((2, 3)))))
    w = F.softmax(z.view(z.shape[0], 2, -1), 1)
    return a * w[:, 0, :, None, None] + b * w[:, 1, :, None, None]


def _coordinates(net: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    grid = torch.meshgrid(torch.linspace(-1, 1, h), torch.linspace(-1, 1, w), indexing="ij")
    return torch.cat([x, torch.stack(grid).to(x.dtype).expand(n, -1, -1, -1)], 1)


def _temporal_shift(net: Any, x: Tensor) -> Tensor:
    c = x.shape[1] // 4
    out = torch.zeros_like(x)
    out[:1, :c] = x[1:, :c]
    out[1:, c : 2 * c] = x[:1, c : 2 * c]
    out[:, 2 * c :] = x[:, 2 * c :]
    return out


def _partial_split(net: Any, x: Tensor) -> Tensor:
    a, b = torch.split(x, [net.first, net.rest], 1)
    return torch.cat([net.conv(a), b], 1)


def _partial_in_place(net: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, : net.first] = net.conv(x[:, : net.first])
    return x


def _swapped_halves(net: Any, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def _gated_halves(net: Any, x: Tensor) -> Tensor:
    a, b = x.tensor_split(2, 1)
    return a * torch.sigmoid(b)


def _shared_over_halves(net: Any, x: Tensor) -> Tensor:
    a, b = x.split(x.shape[1] // 2, 1)
    return torch.cat([net.conv(a), net.conv(b)], 1)


def _standardised(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    return F.conv2d(x, w - w.mean((1, 2, 3), keepdim=True), net.conv.bias, padding=1)


def _half_of_weight(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.conv.weight[:16], net.conv.bias[:16], padding=1)


def _exact_type(net: Any, x: Tensor) -> Tensor:
    if type(net.number) is not int or type(x.shape[1]) is not int:
        raise TypeError("only a plain int will do")
    return x * net.number


def _unpooled(net: Any, x: Tensor) -> Tensor:
    y, index = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(y, index, 2)


def _unfolded(net: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    return F.unfold(x, 3, padding=1).view(n, -1, h, w)


def _spatial_softmax(net: Any, x: Tensor) -> Tensor:
    return F.softmax(x.flatten(2), -1).view(x.shape)


def _sliced_quarters(net: Any, x: Tensor) -> Tensor:
    pixels = [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return torch.cat(pixels, 1)


def _blur_with_buffer(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.k.repeat(x.shape[1], 1, 1, 1), padding=1, groups=x.shape[1])


PARTIAL = {"first": 4, "rest": 12}
COMPUTED, CHOSEN = "computed", "fixed indices"

CASES: dict[str, Case] = {
    # element-wise
    "add": Case(lambda m, x: x + m.other(x), parts=lambda: {"other": unit(16, 16)}),
    "subtract_in_place": Case(
        lambda m, x: m.other(x).sub_(x), parts=lambda: {"other": unit(16, 16)}
    ),
    "where": Case(lambda m, x: torch.where(x > 0.5, x, -x)),
    "maximum": Case(
        lambda m, x: torch.max(x, m.other(x)), parts=lambda: {"other": unit(16, 16)}
    ),
    "clamp": Case(lambda m, x: x.clamp(0.1, 0.9)),
    "prelu": Case(lambda m, x: m.act(x - 0.3), parts=lambda: {"act": nn.PReLU(16)}),
    "prelu_single": Case(lambda m, x: m.act(x - 0.3), parts=lambda: {"act": nn.PReLU()}),
    "glu": Case(lambda m, x: F.glu(x, 1), stem=(8,), width=8),
    "raw_scale": Case(lambda m, x: x * m.s, parts=lambda: {"s": raw(16, 1, 1)}),
    "raw_scale_viewed": Case(
        lambda m, x: x * m.s.view(1, -1, 1, 1), parts=lambda: {"s": raw(16)}
    ),
    "raw_scale_sliced": Case(
        lambda m, x: x * m.s[: x.shape[1]].view(1, -1, 1, 1), parts=lambda: {"s": raw(16)}
    ),
    "raw_scale_squashed": Case(
        lambda m, x: x * torch.sigmoid(m.s), parts=lambda: {"s": raw(16, 1, 1)}
    ),
    "scalar_parameter": Case(lambda m, x: x * m.s, parts=lambda: {"s": raw(1)}),
    "buffer": Case(lambda m, x: x - m.b, parts=lambda: {"b": torch.randn(1, 16, 1, 1)}),
    "literal_constant": Case(
        lambda m, x: x + torch.ones(1, 16, 1, 1, dtype=x.dtype), (), "once cut", probed=True
    ),
    "constant_from_shape": Case(
        lambda m, x: x * torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)[:, None, None],
        (), "off by", probed=True,
    ),
    "divided_by_width": Case(lambda m, x: x / x.shape[1], (), "off by", probed=True),
    "dropout": Case(lambda m, x: F.dropout2d(x, 0.5, training=m.training)),
    "cast": Case(lambda m, x: F.softplus(x.float()).type_as(x)),
    "set_half_to_zero": Case(_half_zero, (8,)),
    "set_half_to_another": Case(_half_of_another, (8,), parts=lambda: {"other": unit(16, 8)}),
    "set_all_to_another": Case(_all_of_another, parts=lambda: {"other": unit(16, 16)}),
    "out_argument": Case(_add_out, parts=lambda: {"other": unit(16, 16)}),
    "cat_out_argument": Case(_cat_out, width=32, parts=lambda: {"other": unit(16, 16)}),
    "masked_fill": Case(lambda m, x: x.masked_fill(x > 0.5, 0.0)),
    "squeezed_in_place": Case(lambda m, x: x.unsqueeze_(0).squeeze_(0)),
    "complex": Case(_complex, (), "another type"),
    "fourier_filter": Case(
        lambda m, x: torch.fft.ifft2(torch.fft.fft2(x) * m.w).real, (), "another type",
        parts=lambda: {"w": nn.Parameter(torch.randn(16, 8, 8, dtype=torch.complex64))},
    ),
    "fourier_space": Case(lambda m, x: torch.fft.irfft2(torch.fft.rfft2(x))),
    # convolution and products
    "depthwise": Case(lambda m, x: m.conv(x), parts=lambda: {"conv": conv(16)}),
    "depthwise_functional": Case(
        lambda m, x: F.conv2d(x, m.k, padding=1, groups=x.shape[1]),
        parts=lambda: {"k": raw(16, 1, 3, 3)},
    ),
    "depthwise_own_count": Case(
        lambda m, x: F.conv2d(x, m.k, groups=m.k.shape[0]), parts=lambda: {"k": raw(16, 1, 1, 1)}
    ),
    "depthwise_literal": Case(
        lambda m, x: F.conv2d(x, m.k, groups=16), (), "groups", parts=lambda: {"k": raw(16, 1, 1, 1)}
    ),
    "blur": Case(
        lambda m, x: F.conv2d(x, m.k, padding=1, groups=x.shape[1]),
        parts=lambda: {"k": torch.rand(16, 1, 3, 3)},
    ),
    "blur_repeated": Case(_blur_with_buffer, parts=lambda: {"k": torch.rand(1, 1, 3, 3)}),
    "grouped": Case(lambda m, x: m.conv(x), (4,), parts=lambda: {"conv": conv(4)}),
    "transposed": Case(
        lambda m, x: m.up(x), parts=lambda: {"up": nn.ConvTranspose2d(16, 16, 2, stride=2)}
    ),
    "transposed_grouped": Case(
        lambda m, x: m.up(x), (4,),
        parts=lambda: {"up": nn.ConvTranspose2d(16, 16, 2, stride=2, groups=4)},
    ),
    "standardised_weight": Case(
        _standardised, (), COMPUTED, parts=lambda: {"conv": conv()}
    ),
    "half_of_a_weight": Case(
        _half_of_weight, parts=lambda: {"conv": conv(out=32)}, probed=True, hooks_see=False
    ),
    "spectral_norm": Case(
        lambda m, x: m.conv(x), (), COMPUTED,
        parts=lambda: {"conv": nn.utils.parametrizations.spectral_norm(conv())},
    ),
    "twice_the_same": Case(lambda m, x: m.conv(m.conv(x)), parts=lambda: {"conv": conv()}),
    "both_directions": Case(
        lambda m, x: F.conv_transpose2d(m.conv(x), m.conv.weight, padding=1),
        (), "both directions", parts=lambda: {"conv": conv(out=8)},
    ),
    "mapped": Case(lambda m, x: torch.vmap(lambda y: m.conv(y[None])[0])(x), parts=lambda: {"conv": conv()}),
    "einsum": Case(
        lambda m, x: torch.einsum("nchw,dc->ndhw", x, m.w), parts=lambda: {"w": raw(16, 16)},
        hooks_see=False,
    ),
    "matmul_right": Case(_matmul_right, parts=lambda: {"w": raw(16, 16)}, hooks_see=False),
    "matmul_left": Case(_matmul_left, (), "from the left", parts=lambda: {"w": raw(16, 16)}),
    "non_local": Case(
        _non_local,
        parts=lambda: {"q": conv(kernel=1, out=8), "k": conv(kernel=1, out=8), "v": conv(kernel=1)},
        hooks_see=False,
    ),
    "channel_attention": Case(_channel_attention, (), "channels with channels"),
    # normalisation
    "instance_norm": Case(
        lambda m, x: m.norm(x), parts=lambda: {"norm": nn.InstanceNorm2d(16, affine=True)}
    ),
    "instance_norm_tracked": Case(
        lambda m, x: m.norm(x),
        parts=lambda: {"norm": nn.InstanceNorm2d(16, affine=True, track_running_stats=True)},
    ),
    "layer_norm_of_space": Case(
        lambda m, x: m.norm(x), parts=lambda: {"norm": nn.LayerNorm([8, 8])}
    ),
    "layer_norm_of_all": Case(
        lambda m, x: m.norm(x), parts=lambda: {"norm": nn.LayerNorm([16, 8, 8])}, hooks_see=False
    ),
    "group_norm": Case(
        lambda m, x: m.norm(x), (4,), parts=lambda: {"norm": nn.GroupNorm(4, 16)}, hooks_see=False
    ),
    "local_response_norm": Case(lambda m, x: F.local_response_norm(x, 3), (), "channels"),
    "normalised_vectors": Case(lambda m, x: F.normalize(x, dim=1), hooks_see=False),
    "softmax_of_channels": Case(lambda m, x: F.softmax(x, 1), hooks_see=False),
    "softmax_of_space": Case(_spatial_softmax),
    "cumulated_channels": Case(lambda m, x: x.cumsum(1), (), "over channels"),
    # reductions, gates
    "maxout": Case(_maxout, (8,), width=8),
    "channel_mean": Case(lambda m, x: x * x.mean(1, keepdim=True), hooks_see=False),
    "argmax": Case(lambda m, x: x * (x.argmax(1, keepdim=True) % 2), (), "'argmax' over"),
    "top_channels": Case(lambda m, x: x.topk(4, dim=1)[0], (), "'topk' over", width=4),
    "cbam": Case(
        _cbam, parts=lambda: {"down": nn.Linear(16, 8), "up": nn.Linear(8, 16)}
    ),
    "efficient_channel_attention": Case(
        _eca, (), "single unit", parts=lambda: {"conv": nn.Conv1d(1, 1, 3, padding=1)}
    ),
    "selective_kernel": Case(
        _selective_kernel,
        parts=lambda: {
            "a": unit(16, 16), "b": unit(16, 16), "down": nn.Linear(16, 8), "up": nn.Linear(8, 32),
        },
    ),
    # space
    "upsample": Case(lambda m, x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "average_pool": Case(lambda m, x: F.avg_pool2d(x, 2)),
    "reflect_pad": Case(lambda m, x: F.pad(x, (1, 1, 1, 1), mode="reflect")),
    "crop": Case(lambda m, x: F.pad(x, (-1, -1, -1, -1))),
    "unpool": Case(_unpooled),
    "unfold": Case(_unfolded, width=144),
    "space_to_depth": Case(_sliced_quarters, width=64),
    # data movement
    "pad_channels_by_attribute": Case(
        lambda m, x: F.pad(x, (0, 0, 0, 0, m.amount, m.amount)), width=24,
        parts=lambda: {"amount": 4},
    ),
    "pad_channels_on_one_side": Case(
        lambda m, x: F.pad(x, (0, 0, 0, 0, 0, m.amount)), width=20, parts=lambda: {"amount": 4}
    ),
    "pad_channels_by_literal": Case(lambda m, x: F.pad(x, (0, 0, 0, 0, 4, 4)), width=24),
    "crop_channels": Case(
        lambda m, x: F.pad(x, (0, 0, 0, 0, -1, -1)), (), "negative padding", width=14
    ),
    "pixel_shuffle": Case(lambda m, x: F.pixel_shuffle(x, 2), (4,), width=4),
    "pixel_unshuffle": Case(lambda m, x: F.pixel_unshuffle(x, 2), width=64),
    "channel_shuffle": Case(lambda m, x: F.channel_shuffle(x, 4), (4,)),
    "repeat": Case(lambda m, x: x.repeat(1, 2, 1, 1), width=32),
    "repeat_interleave": Case(lambda m, x: x.repeat_interleave(2, 1), width=32),
    "flip": Case(lambda m, x: x.flip(1)),
    "roll": Case(lambda m, x: x.roll(1, 1), (), CHOSEN),
    "fixed_order": Case(
        lambda m, x: x[:, m.order], (), CHOSEN, parts=lambda: {"order": torch.randperm(16)}
    ),
    "stack_and_sum": Case(
        lambda m, x: torch.stack([x, m.other(x)]).sum(0), parts=lambda: {"other": unit(16, 16)}
    ),
    "single_channels": Case(
        lambda m, x: torch.stack([x[:, 3], x[:, 5]], 1), (), "picked out", width=2
    ),
    "unbound": Case(lambda m, x: torch.stack(x.unbind(1), 1), (), "picked out"),
    "scatter": Case(
        lambda m, x: torch.zeros_like(x).scatter_add(1, torch.zeros_like(x, dtype=torch.int64), x),
        (), "'scatter_add' over",
    ),
    "concatenated_coordinates": Case(_coordinates, width=18),
    "concatenated_zeros": Case(
        lambda m, x: torch.cat([x, torch.zeros_like(x)], 1), (), "once cut", width=32, probed=True
    ),
    # numbers in the code
    "chunk": Case(_swapped_halves, (8,)),
    "chunk_uneven": Case(
        lambda m, x: torch.cat(x.chunk(3, 1)[::-1], 1), (), "unequal parts"
    ),
    "tensor_split": Case(_gated_halves, (8,), width=8),
    "split_by_shape": Case(_shared_over_halves, (8,), parts=lambda: {"conv": conv(inputs=8, out=8)}),
    "split_by_attributes": Case(
        _partial_split, (4, 12), parts=lambda: {**PARTIAL, "conv": conv(inputs=4, out=4)}
    ),
    "split_by_literals": Case(
        lambda m, x: torch.cat(x.split([4, 12], 1)[::-1], 1), (), "written in the code"
    ),
    "slice_by_attribute": Case(
        _partial_in_place, (4, 12), parts=lambda: {**PARTIAL, "conv": conv(inputs=4, out=4)}
    ),
    "slice_by_literal": Case(lambda m, x: x[:, 4:], (12,), "written in the code", width=12),
    "slice_from_the_end": Case(lambda m, x: x[:, :-4], (12,), "written in the code", width=12),
    "slice_by_negative_shape": Case(lambda m, x: x[:, -x.shape[1] // 2 :], (8,), width=8),
    "slice_by_uneven_shape": Case(
        lambda m, x: x[:, : x.shape[1] // 4], (), "uneven share", width=4
    ),
    "slice_beyond": Case(lambda m, x: x[:, :99]),
    "every_second": Case(lambda m, x: x[:, ::2], (), "every n-th", width=8),
    "narrow_by_attributes": Case(
        lambda m, x: torch.cat([x.narrow(1, m.first, m.rest), x.narrow(1, 0, m.first)], 1),
        parts=lambda: dict(PARTIAL),
    ),
    "narrow_by_literals": Case(
        lambda m, x: torch.cat([x.narrow(1, 4, 12), x.narrow(1, 0, 4)], 1), (), "written in the code"
    ),
    "temporal_shift": Case(_temporal_shift, (), "uneven share"),
    "batch_of_channels": Case(_batch_of_channels),
    "view_by_literals": Case(
        lambda m, x: x.view(-1, 2, 8, 8, 8).transpose(1, 2).reshape(-1, 16, 8, 8),
        (), "written in the code",
    ),
    "view_by_literal_halves": Case(
        lambda m, x: x.view(-1, 2, x.shape[1] // 2, 8, 8).flatten(1, 2), (8,)
    ),
    "unflatten": Case(lambda m, x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), (8,)),
    "exact_int": Case(_exact_type, parts=lambda: {"number": 3}),
    # out of PyTorch's sight
    "numpy": Case(lambda m, x: torch.from_numpy(x.numpy() * 2), (), "leave PyTorch"),
    "list": Case(lambda m, x: torch.tensor(x.tolist()).to(x), (), "leave PyTorch"),
    "item": Case(lambda m, x: x / (1 + x[0, 0, 0, 0].item()), (), "leave PyTorch"),
    "branch": Case(lambda m, x: x if x.flatten()[0] > -9 else -x, (), "leave PyTorch"),
    "detached_data": Case(lambda m, x: x.data * 2),
}  # fmt: skip
