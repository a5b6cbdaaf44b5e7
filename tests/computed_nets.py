"""Layers whose weight is computed in the forward pass, one way each; see test_computed_weights.py."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pattern_nets import unit
from torch import Tensor, nn
from torch.nn.utils import parametrizations

Body = Callable[[Any, Tensor], Tensor]


class Computed(nn.Module):
    """``stem`` (16) -> body (12) -> ``last`` -> mean -> ``head``."""

    def __init__(self, body: Body, **parts: Any) -> None:
        super().__init__()
        self.stem, self.last, self.head = unit(3, 16), unit(12, 8), nn.Linear(8, 5)
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(F.relu(self.body(self, self.stem(x)))).mean((2, 3)))


def conv(**settings: Any) -> nn.Conv2d:
    return nn.Conv2d(16, 12, 3, padding=1, **settings)


def raw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def old_weight_norm(layer: nn.Module, **settings: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what older code still calls
        return nn.utils.weight_norm(layer, **settings)


def standardised(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    mean, var = w.mean((1, 2, 3), keepdim=True), w.var((1, 2, 3), keepdim=True, unbiased=False)
    return F.conv2d(x, (w - mean) / (var + 1e-5).sqrt(), net.conv.bias, padding=1)


def std_and_mean(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    std, mean = torch.std_mean(w, dim=[1, 2, 3], keepdim=True)
    return F.conv2d(x, (w - mean) / (std + 1e-5), net.conv.bias, padding=1)


def scaled_standardised(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    w = F.batch_norm(
        w.reshape(1, w.shape[0], -1), None, None, weight=(net.gain * 0.7).view(-1),
        training=True, momentum=0.0, eps=1e-6,
    ).reshape_as(w)  # fmt: skip
    return F.conv2d(x, w, net.conv.bias, padding=1)


def masked_weight(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.conv.weight * net.mask, net.conv.bias, padding=1)


def unfaithful(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, torch.sigmoid(net.conv.weight), net.conv.bias, padding=1)


def normed_rows(net: Any, x: Tensor) -> Tensor:
    w = F.normalize(net.conv.weight.flatten(1), dim=1).view(net.conv.weight.shape)
    return F.conv2d(x, w, net.conv.bias, padding=1)


def softmax_of_weight(net: Any, x: Tensor) -> Tensor:
    w = torch.softmax(net.conv.weight, 1)
    return F.conv2d(x, w, net.conv.bias, padding=1)


def joined(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, torch.cat([net.a, net.b]), padding=1)


def low_rank(net: Any, x: Tensor) -> Tensor:
    w = net.point.weight.flatten(1) + net.up @ net.down
    return F.conv2d(x, w[..., None, None])


def hyper(net: Any, x: Tensor) -> Tensor:
    w = net.make(net.code).view(12, 16, 1, 1)
    return F.conv2d(x, w)


def modulated(net: Any, x: Tensor) -> Tensor:
    style = net.style(x.mean((2, 3)))[:1]
    w = net.conv.weight * style[:, :, None, None]
    return F.conv2d(x, w, padding=1)


def transposed(net: Any, x: Tensor) -> Tensor:
    return F.linear(x.movedim(1, -1), net.w.t()).movedim(-1, 1)


def flipped(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.conv.weight.flip(0).abs(), padding=1)


def quantised(net: Any, x: Tensor) -> Tensor:
    w = net.conv.weight
    scale = w.detach().abs().amax((1, 2, 3), keepdim=True) / 127
    return F.conv2d(x, torch.round(w / scale) * scale, net.conv.bias, padding=1)


def pruned() -> nn.Module:
    return torch.nn.utils.prune.l1_unstructured(conv(), "weight", 0.3)


#: both sides; the output side alone; nothing
BOTH, OUTPUTS, NOTHING = (16, 12), (0, 12), (0, 0)


@dataclass(frozen=True)
class Case:
    """``free``: how many inputs and outputs of the computed layer can leave; ``why``: of the rest."""

    body: Body
    free: tuple[int, int]
    why: str = ""
    parts: Callable[[], dict[str, Any]] = lambda: {"conv": conv()}
    weight: str = "conv.weight"


def module(net: Any, x: Tensor) -> Tensor:
    return net.conv(x)


CASES: dict[str, Case] = {
    "absolute": Case(lambda m, x: F.conv2d(x, m.conv.weight.abs(), padding=1), BOTH),
    "mask": Case(
        masked_weight, BOTH, parts=lambda: {"conv": conv(), "mask": torch.randint(2, (12, 16, 3, 3)).float()}
    ),
    "mask_of_filters": Case(
        masked_weight, BOTH, parts=lambda: {"conv": conv(), "mask": torch.rand(12, 1, 1, 1) + 0.5}
    ),
    "mask_of_inputs": Case(
        masked_weight, BOTH, parts=lambda: {"conv": conv(), "mask": torch.rand(16, 1, 1) + 0.5}
    ),
    "pruned": Case(
        module, BOTH, parts=lambda: {"conv": pruned()}, weight="conv.weight_orig"
    ),
    "flipped": Case(flipped, BOTH),
    "transposed": Case(transposed, BOTH, parts=lambda: {"w": raw(16, 12)}, weight="w"),
    "sigmoid": Case(unfaithful, OUTPUTS, "'sigmoid', of which zero is not zero"),
    "weight_norm": Case(
        module, OUTPUTS, "weight norm: its norm is over this axis",
        parts=lambda: {"conv": parametrizations.weight_norm(conv())},
        weight="conv.parametrizations.weight.original1",
    ),
    "weight_norm_old": Case(
        module, OUTPUTS, "weight norm: its norm is over this axis",
        parts=lambda: {"conv": old_weight_norm(conv())}, weight="conv.weight_v",
    ),
    "weight_norm_of_all": Case(
        module, NOTHING, "a statistic", parts=lambda: {"conv": old_weight_norm(conv(), dim=None)},
        weight="conv.weight_v",
    ),
    "weight_norm_transposed": Case(
        module, NOTHING, "weight norm",
        parts=lambda: {"conv": parametrizations.weight_norm(nn.ConvTranspose2d(16, 12, 2, 2))},
        weight="conv.parametrizations.weight.original1",
    ),
    "standardised": Case(standardised, OUTPUTS, "a statistic ('mean')"),
    "std_and_mean": Case(std_and_mean, OUTPUTS, "a statistic ('std_mean')"),
    "scaled_standardised": Case(
        scaled_standardised, OUTPUTS, "a statistic ('native_batch_norm')",
        parts=lambda: {"conv": conv(), "gain": raw(12, 1, 1, 1)},
    ),
    "normed_rows": Case(normed_rows, OUTPUTS, "a statistic ('linalg_vector_norm')"),
    "quantised": Case(quantised, OUTPUTS, "a statistic ('amax')"),
    "softmax": Case(softmax_of_weight, OUTPUTS, "a statistic ('softmax')"),
    "spectral_norm": Case(
        module, NOTHING, "product of parameters ('mv')",
        parts=lambda: {"conv": parametrizations.spectral_norm(conv())},
        weight="conv.parametrizations.weight.original",
    ),
    "orthogonal": Case(
        lambda m, x: m.conv(x.movedim(1, -1)).movedim(-1, 1), NOTHING, "parametrizations.weight",
        parts=lambda: {"conv": parametrizations.orthogonal(nn.Linear(16, 12))},
        weight="conv.parametrizations.weight.original",
    ),
    "low_rank": Case(
        low_rank, NOTHING, "product of parameters",
        parts=lambda: {
            "point": nn.Conv2d(16, 12, 1), "up": raw(12, 2), "down": raw(2, 16),
        },
        weight="point.weight",
    ),
    "joined": Case(
        joined, BOTH, parts=lambda: {"a": raw(5, 16, 3, 3), "b": raw(7, 16, 3, 3)}, weight="a"
    ),
    "hypernetwork": Case(
        hyper, NOTHING, "product of parameters ('addmm')",
        parts=lambda: {"make": nn.Linear(4, 192), "code": torch.randn(4)}, weight="make.weight",
    ),
    "modulated": Case(
        modulated, NOTHING, "its weight is computed in the forward pass",
        parts=lambda: {"conv": conv(), "style": nn.Linear(16, 16)},
    ),
}  # fmt: skip


def build(name: str) -> tuple[Computed, Tensor]:
    case = CASES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Computed(case.body, **case.parts()).eval(), torch.randn(2, 3, 8, 8)
