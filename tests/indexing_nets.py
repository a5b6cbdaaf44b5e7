"""Operators that choose, order, sample or transform; one each between a stem of 16 channels and a last layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pattern_nets import unit
from rule_nets import Between, Case
from torch import Tensor, nn


def _grid(net: Any, x: Tensor) -> Tensor:
    lines = torch.linspace(-1, 1, x.shape[-1] + 2, dtype=x.dtype)[1:-1]
    return torch.stack(torch.meshgrid(lines, lines, indexing="xy"), -1).expand(len(x), -1, -1, -1)


def sampled(net: Any, x: Tensor) -> Tensor:
    return F.grid_sample(x, _grid(net, x), align_corners=False)


def warped(net: Any, x: Tensor) -> Tensor:
    flow = torch.tanh(net.flow(x)).permute(0, 2, 3, 1)
    return F.grid_sample(x, _grid(net, x) + 0.1 * flow, align_corners=False)


def folded(net: Any, x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), x.shape[-2:], 3, padding=1)


def folded_taps(net: Any, x: Tensor) -> Tensor:
    return F.fold(net.widen(x).flatten(2), 16, 2, stride=2)


def attention_over_windows(net: Any, x: Tensor) -> Tensor:
    windows = F.unfold(x, 2, stride=2).unflatten(1, (x.shape[1], 4))
    return windows.amax(2).unflatten(2, (4, 4))


def best_rows(net: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    best = net.score(flat).topk(16, dim=1).indices
    rows = flat.gather(1, best.expand(-1, -1, flat.shape[-1]))
    return rows.transpose(1, 2).unflatten(2, (4, 4))


def rows_of_list(net: Any, x: Tensor) -> Tensor:
    return x[:, :, net.rows]


def rows_selected(net: Any, x: Tensor) -> Tensor:
    return x.index_select(2, net.rows).roll(1, 3)


def window_shift(net: Any, x: Tensor) -> Tensor:
    return torch.roll(x, (2, -1), (2, 3))


def masked_rows(net: Any, x: Tensor) -> Tensor:
    flat = x.permute(0, 2, 3, 1).flatten(0, 2)
    kept = flat[net.mask.repeat(len(x))]
    return kept.t().reshape(1, -1, len(x) * 4, 8)


def scattered_rows(net: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2)
    index = net.order.expand_as(flat)
    return torch.zeros_like(flat).scatter(2, index, flat).view_as(x)


def added_rows(net: Any, x: Tensor) -> Tensor:
    return torch.zeros_like(x).index_add(2, net.rows.sort().values, x[:, :, : len(net.rows)])


def sorted_space(net: Any, x: Tensor) -> Tensor:
    return x.flatten(2).sort(-1).values.view_as(x)


def best_places(net: Any, x: Tensor) -> Tensor:
    return x.flatten(2).topk(16, -1).values.unflatten(2, (4, 4))


def median_of_space(net: Any, x: Tensor) -> Tensor:
    return x - x.flatten(2).median(-1).values[..., None, None]


def zeroed_corner(net: Any, x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, net.rows] = 0.0
    return x


def triangle(net: Any, x: Tensor) -> Tensor:
    return x.tril() + x.triu(1) * 0.5


def triangle_of_channels(net: Any, x: Tensor) -> Tensor:
    return x.movedim(1, -1).tril().movedim(-1, 1)


def spectrum_gate(net: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(x) * net.filter[:, None, None])


def spectrum_of_channels(net: Any, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x, dim=1), dim=1)


def distances(net: Any, x: Tensor) -> Tensor:
    flat = x.flatten(2).transpose(1, 2)
    return x * torch.cdist(flat, flat).mean(1).unflatten(1, x.shape[2:])[:, None]


def deformed(net: Any, x: Tensor) -> Tensor:
    return net.deform(x)


def volume(net: Any, x: Tensor) -> Tensor:
    return net.conv(x.unflatten(3, (4, 2))).flatten(3)


def line(net: Any, x: Tensor) -> Tensor:
    return net.conv(x.flatten(2)).view(len(x), -1, 8, 8)


def picked_by_buffer(net: Any, x: Tensor) -> Tensor:
    return x.index_select(1, net.channels)


def sorted_channels(net: Any, x: Tensor) -> Tensor:
    return x.sort(1).values


def gathered_channels(net: Any, x: Tensor) -> Tensor:
    return x.gather(1, torch.zeros_like(x, dtype=torch.int64))


PLACES = {"rows": torch.tensor([3, 1, 2, 5, 0, 4, 7, 6])}
CASES: dict[str, Case] = {
    "grid_sample": Case(sampled),
    "grid_sample_computed": Case(warped, parts=lambda: {"flow": nn.Conv2d(16, 2, 1)}),
    "fold": Case(folded),
    "folded_taps": Case(folded_taps, parts=lambda: {"widen": nn.Conv2d(16, 64, 1)}),
    "windows": Case(attention_over_windows),
    "best_rows": Case(best_rows, parts=lambda: {"score": nn.Linear(16, 1)}),
    "rows_of_list": Case(rows_of_list, parts=lambda: dict(PLACES)),
    "rows_selected": Case(rows_selected, parts=lambda: dict(PLACES)),
    "window_shift": Case(window_shift),
    "masked_rows": Case(
        masked_rows, parts=lambda: {"mask": torch.arange(64) % 2 == 0}
    ),
    "scattered_rows": Case(scattered_rows, parts=lambda: {"order": torch.randperm(64)}),
    "added_rows": Case(added_rows, parts=lambda: dict(PLACES)),
    "sorted_space": Case(sorted_space),
    "best_places": Case(best_places),
    "median_of_space": Case(median_of_space),
    "zeroed_rows": Case(zeroed_corner, parts=lambda: {"rows": torch.tensor([0, 3])}),
    "triangle": Case(triangle),
    "spectrum_gate": Case(
        spectrum_gate, parts=lambda: {"filter": nn.Parameter(torch.rand(16) + 0.5)}
    ),
    "volume": Case(volume, parts=lambda: {"conv": nn.Conv3d(16, 16, 3, padding=1)}),
    "line": Case(line, parts=lambda: {"conv": nn.Conv1d(16, 16, 3, padding=1)}),
    "grouped_transposed_depthwise": Case(
        lambda m, x: m.up(x), parts=lambda: {"up": nn.ConvTranspose2d(16, 16, 2, 2, groups=16)}
    ),
    "grouped_transposed_twice": Case(
        lambda m, x: m.up(x), width=32,
        parts=lambda: {"up": nn.ConvTranspose2d(16, 32, 2, 2, groups=16)},
    ),
    "cumulated_space": Case(lambda m, x: x.cumsum(2)),
    "trilinear": Case(
        lambda m, x: F.interpolate(x[:, :, None], scale_factor=2, mode="trilinear").mean(2)
    ),
    # traps: what orders or picks channels, or has them say where to look
    "triangle_of_channels": Case(triangle_of_channels, (), "'tril' over channels"),
    "spectrum_of_channels": Case(spectrum_of_channels, (), "Fourier transform over channels"),
    "distances": Case(distances, (), "distances over channels"),
    "picked_by_buffer": Case(
        picked_by_buffer, (), "fixed indices", parts=lambda: {"channels": torch.randperm(16)}
    ),
    "sorted_channels": Case(sorted_channels, (), "'sort' over channels"),
    "gathered_channels": Case(gathered_channels, (), "fixed indices"),
    "cumulated_channels": Case(lambda m, x: x.cumsum(1), (), "'cumsum' over channels"),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Between(CASES[name]).eval().requires_grad_(requires_grad=False)
        return net, torch.randn(2, 3, 8, 8)


class Regions(nn.Module):
    """Features, boxes of them by a custom operator, a head; ``other`` feeds the boxes' operator, too."""

    def __init__(self, align: Any) -> None:
        super().__init__()
        self.stem, self.last, self.head = unit(3, 16), unit(16, 8), nn.Linear(8, 5)
        self.align = align

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        regions = self.align(self.stem(x), boxes)
        return self.head(self.last(regions).mean((2, 3)))
