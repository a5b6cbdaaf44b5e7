"""Dead units: found whatever killed them, removed without a trace in the outputs, left where in doubt."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nets import build
from torch import Tensor, nn

from mint_deploy import files
from mint_deploy.artifacts import GroupImportance, Importance, PruningPlan
from mint_deploy.data import load_data
from mint_deploy.dead import EXACT, Dead, DeadUnit, dead_units
from mint_deploy.errors import PlanError
from mint_deploy.graph import Graph
from mint_deploy.lossless import (
    dead_first,
    fold_constants,
    proven,
    remove_dead,
    summary,
    widest,
)
from mint_deploy.models import load_model
from mint_deploy.moments import sample
from mint_deploy.plan import plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace


def difference(model: nn.Module, slim: nn.Module, x: Tensor) -> float:
    """Largest relative difference of two networks' outputs, run as they are."""
    with torch.no_grad():
        a, b = slim.eval()(x), model.eval()(x)
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """Redraw everything, in double precision, so that no unit is dead by chance."""
    torch.manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.5)
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 1.5)
    return model


def check(model: nn.Module, x: Tensor, **options: Any) -> tuple[Dead, nn.Module, PruningPlan]:
    """Remove what is dead; the outputs are the same on other inputs than those that were looked at."""
    before = copy.deepcopy(model.state_dict())
    graph = trace(model, x)
    dead = dead_units(model, graph, x)
    slim, made, report = remove_dead(model, graph, x, **options)
    assert not report.rolled_back
    for seed in range(3):
        torch.manual_seed(seed)
        other = 3 * torch.randn_like(x)
        assert difference(model, slim, other) < 1e-8
    assert report.count() == sum(len(g.removed) for g in made.groups)
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True)
    )
    return dead, slim, made


# ---------------------------------------------------------------- one way to die at a time


class Plain(nn.Module):
    """Conv-BN-ReLU twice; the second one reads without padding unless told."""

    def __init__(self, *, padding: int = 0, bias: bool = False) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.b, self.m = nn.Conv2d(8, 8, 3, padding=padding, bias=bias), nn.BatchNorm2d(8)
        self.c = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.a(x)))
        x = torch.relu(self.m(self.b(x)))
        return self.c(x.mean((2, 3)))


X = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def no_weights(net: Plain) -> None:
    net.a.weight[2] = 0
    net.n.running_mean[2], net.n.bias[2] = 1.0, 0.0


def no_scale(net: Plain) -> None:
    net.n.weight[2], net.n.bias[2] = 0.0, 0.0


def behind_relu(net: Plain) -> None:
    net.n.weight[2], net.n.bias[2] = 0.0, -0.3


def not_read(net: Plain) -> None:
    net.b.weight[:, 2] = 0


def still(net: Plain) -> None:
    net.n.weight[2], net.n.bias[2] = 0.0, 0.8


@pytest.mark.parametrize(
    ("kill", "kind"),
    [
        (no_weights, "zero"),
        (no_scale, "zero"),
        (behind_relu, "zero"),
        (not_read, "unread"),
        (still, "constant"),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
@pytest.mark.parametrize("bias", [False, True])
def test_every_way_to_be_dead_is_found(
    kill: Callable[[Plain], None], kind: str, bias: bool
) -> None:
    net = lively(Plain(bias=bias))
    with torch.no_grad():
        kill(net)
    dead, slim, made = check(net, X)
    assert dead.units("a") == (2,)
    assert dead.units("a", [kind]) == (2,)
    assert dead.units("b") == ()
    assert slim.a.out_channels == 7
    assert [g.removed for g in made.groups] == [(2,), ()]


def test_a_living_network_stays_whole() -> None:
    net = lively(Plain())
    dead, slim, _ = check(net, X)
    assert not dead.groups
    assert dead.count() == 0
    assert torch.equal(slim.a.weight, net.a.weight)
    assert slim.a.weight is not net.a.weight


def test_a_constant_before_zero_padding_stays_and_says_why() -> None:
    net = lively(Plain(padding=1))
    with torch.no_grad():
        still(net)
        net.n.weight[3], net.n.bias[3] = 0.0, -1.0  # zero has no border
    dead, slim, _ = check(net, X)
    assert dead.units("a") == (3,)
    (reason, units), *_ = dead.stuck["a"].items()
    assert units == (2,)
    assert "'b' pads it with zeros" in reason
    assert slim.a.out_channels == 7


def test_a_constant_that_nothing_takes_up_stays() -> None:
    net = lively(
        nn.Sequential(
            nn.Conv2d(3, 6, 1),
            nn.ReLU(),
            nn.Conv2d(6, 5, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(5, 2, 1),
        )
    )
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, 0.5
    dead, _, _ = check(net, X)
    assert dead.units("0") == ()
    assert "neither a bias nor a BatchNorm" in next(iter(dead.stuck["0"]))


def test_what_follows_from_a_constant_is_constant_too() -> None:
    net = lively(Plain())
    with torch.no_grad():
        still(net)
        net.b.weight[5] = 0
        net.b.weight[5, 2] = 1.0  # reads the constant alone
    dead, slim, _ = check(net, X)
    assert dead.units("a", ["constant"]) == (2,)
    assert dead.units("b", ["constant"]) == (5,) or dead.units("b", ["zero"]) == (5,)
    assert (slim.a.out_channels, slim.b.out_channels) == (7, 7)


def test_who_is_read_only_by_the_dead_is_dead() -> None:
    net = lively(Plain())
    with torch.no_grad():
        behind = net.m
        behind.weight[4], behind.bias[4] = 0.0, 0.7  # constant: folded into the classifier's bias
        net.b.weight[:, 6] = 0
        net.b.weight[4, 6] = 2.0  # a's unit 6 leads to that one alone
        net.c.weight[:, 1] = 0
        net.b.weight[:, 3] = 0
        net.b.weight[1, 3] = 2.0  # a's unit 3 leads to one that the classifier does not read
    dead, slim, _ = check(net, X)
    assert dead.units("a") == (3, 6)
    assert dead.units("b") == (1, 4)
    assert (slim.a.out_channels, slim.b.out_channels) == (6, 6)


def test_a_stuck_constant_hears_no_more_than_it_says() -> None:
    """Who leads only into a BatchNorm of scale zero is dead, even where that constant has to stay."""
    net = lively(nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1),
    ))  # fmt: skip
    with torch.no_grad():
        net[3].weight[2], net[3].bias[2] = 0.0, 0.9
        net[2].weight[:, 5] = 0
        net[2].weight[2, 5] = 3.0
    dead, slim, _ = check(net, X)
    assert dead.units("0", ["unread"]) == (5,)
    assert dead.units("2") == ()
    assert slim[0].out_channels == 5


def test_something_always_stays() -> None:
    net = lively(Plain())
    with torch.no_grad():
        net.a.weight.zero_()
        net.n.bias.fill_(-1.0)
    dead, slim, _ = check(net, X)
    assert len(dead.units("a")) == 8
    assert slim.a.out_channels == 1
    assert slim.b.out_channels == 1  # all of them are constants then


# ---------------------------------------------------------------- coupled, grouped, gated


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.n = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.stem(x)))
        x = torch.relu(x + self.two(torch.relu(self.one(x))))
        return self.head(x)


def test_a_residual_unit_is_dead_where_every_part_of_the_sum_is() -> None:
    net = lively(Residual())
    with torch.no_grad():
        for unit in (1, 4):
            net.n.weight[unit], net.n.bias[unit] = 0.0, -0.5
        net.two.weight[4], net.two.bias[4] = 0.0, 0.0  # unit 1 gets something on the way
    dead, slim, _ = check(net, X)
    assert dead.units("stem") == (4,)
    assert (slim.stem.out_channels, slim.two.out_channels, slim.head.in_channels) == (5, 5, 5)


def test_a_residual_constant_goes_to_one_reader_and_is_zero_at_another() -> None:
    net = lively(Residual())
    with torch.no_grad():
        net.n.weight[1], net.n.bias[1] = 0.0, -0.5
        net.two.weight[1], net.two.bias[1] = 0.0, 0.4  # 0 for `one`, 0.4 for `head`
    dead, _, _ = check(net, X)
    (unit,) = dead.groups["stem"]
    assert (unit.unit, unit.kind) == (1, "constant")
    assert [(f.reader, f.into, f.values) for f in unit.folds] == [
        ("head.weight", "head.bias", (0.4,))
    ]


class Mixed(nn.Module):
    """Depthwise, grouped and transposed convolution, squeeze and excite, a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dw = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.g = nn.Conv2d(8, 8, 1, groups=2)
        self.t = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.e = nn.Conv2d(12, 5, 1)
        self.side = nn.Conv2d(3, 6, 1)
        self.out = nn.Conv2d(5, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.dw(torch.relu(self.a(x))))
        gate = torch.sigmoid(self.up(torch.relu(self.down(y.mean((2, 3), keepdim=True)))))
        y = torch.relu(self.g(y * gate))
        y = nn.functional.max_pool2d(torch.relu(self.t(y)), 2)
        return self.out(torch.relu(self.e(torch.cat([y, torch.relu(self.side(x))], 1))))


def test_other_layers_pass_on_what_is_known() -> None:
    net = lively(Mixed())
    with torch.no_grad():
        # the same position of both groups is one unit of the group that `g` reads
        for unit in (1, 5):
            net.a.weight[unit], net.a.bias[unit] = 0.0, -1.0
            net.dw.bias[unit] = -1.0
        net.t.weight[:, 2], net.t.bias[2] = 0.0, -0.1
        net.side.weight[3], net.side.bias[3] = 0.0, 0.6
        net.out.weight[:, 4] = 0
        net.down.weight[3], net.down.bias[3] = 0.0, 0.3  # constant behind a mean: into up's bias
    dead, slim, _ = check(net, X)
    assert dead.units("t") == (2,)
    assert dead.units("side") == (3,)
    assert dead.units("e") == (4,)
    assert dead.units("down", ["constant"]) == (3,)
    assert dead.units("a") == (1,)
    assert slim.g.in_channels == 6
    assert slim.e.in_channels == 10


def test_a_constant_in_a_grouped_reader_is_folded_group_by_group() -> None:
    net = lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.ReLU(),
            nn.Conv2d(8, 6, 1, groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 2, 1),
        )
    )
    with torch.no_grad():
        net[0].weight[[2, 6]] = 0.0
        net[0].bias[2], net[0].bias[6] = 0.7, 0.2
    dead, slim, _ = check(net, X)
    assert dead.count("constant") == 1
    assert slim[2].in_channels == 6


@pytest.mark.parametrize("kernel", [1, 2])
def test_a_transposed_reader_takes_a_constant_up_only_where_it_is_even(kernel: int) -> None:
    net = lively(nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 5, kernel, stride=kernel), nn.ReLU(),
        nn.Conv2d(5, 2, 1),
    ))  # fmt: skip
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, 0.7
    dead, _, _ = check(net, X)
    assert dead.units("0") == ((1,) if kernel == 1 else ())


def test_flattened_channels_and_linear_layers() -> None:
    net = lively(nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 16, 10), nn.BatchNorm1d(10),
        nn.ReLU(), nn.Linear(10, 3),
    ))  # fmt: skip
    with torch.no_grad():
        net[0].weight[1], net[0].bias[1] = 0.0, 0.7
        net[0].weight[2], net[0].bias[2] = 0.0, -0.7
        net[5].weight[7], net[5].bias[7] = 0.0, 1.5
    dead, slim, _ = check(net, X)
    assert dead.units("0", ["constant"]) == (1,)
    assert dead.units("0", ["zero"]) == (2,)
    assert dead.units("4", ["constant"]) == (7,)
    assert (slim[4].in_features, slim[4].out_features) == (64, 9)


# ---------------------------------------------------------------- where nothing may be claimed


class Steered(Plain):
    """What looks constant on one branch is not on the other."""

    how = "item"

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.n(self.a(x)))
        if self.how == "item":
            shift = float(x.mean()) * 0.1
        else:
            shift = torch.from_numpy(x.mean((0, 2, 3)).numpy()[:1].copy()) * 0.1
        y = torch.relu(self.m(self.b(y + shift)))
        return self.c(y.mean((2, 3)))


@pytest.mark.parametrize("how", ["item", "numpy"])
def test_values_that_leave_pytorch_end_the_search_for_constants(how: str) -> None:
    net = lively(Steered())
    net.how = how
    with torch.no_grad():
        behind_relu(net)
    graph = trace(net, X)
    dead = dead_units(net, graph, X)
    assert dead.count("zero", "constant") == 0
    assert "values of activations steer Python code" in dead.notes[0]


class Counting(Plain):
    """A buffer that the forward pass writes: the next call sees another value."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(8, 1, 1))
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        y = torch.relu(self.n(self.a(x)) * (self.calls > 1))
        return self.c(torch.relu(self.m(self.b(y))).mean((2, 3)))


@pytest.mark.parametrize("in_place", [True, False])
def test_a_network_that_remembers_is_not_judged(in_place: bool) -> None:
    net = lively(Counting(in_place=in_place))
    with torch.no_grad():
        behind_relu(net)
    dead = dead_units(net, trace(net, X), X)
    assert dead.count("zero", "constant") == 0
    assert "written in the forward pass" in dead.notes[0]


class Unevenly(nn.Module):
    """A constant that is padded by hand, then averaged: what arrives depends on the size of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.d = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.pad(torch.relu(self.a(x)), (1, 1, 1, 1)).mean((2, 3), keepdim=True)
        return self.d(torch.relu(self.c(y)))


def test_a_constant_that_depends_on_the_size_of_the_image_stays() -> None:
    net = lively(Unevenly())
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0.0, 0.7
        net.a.weight[2], net.a.bias[2] = 0.0, -0.7
    dead, slim, _ = check(net, X)
    assert dead.units("a") == (2,)
    larger = torch.randn(1, 3, 17, 13, dtype=torch.float64)
    assert difference(net, slim, larger) < 1e-12


class SharedBias(nn.Module):
    """One bias in two layers: what is added to it is heard twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 5), nn.Linear(5, 5)
        self.c.bias = self.b.bias
        self.d = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.b(torch.relu(self.a(x))))
        return self.d(torch.relu(self.c(y)))


def test_a_bias_that_others_use_takes_nothing_up() -> None:
    net = lively(SharedBias())
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0.0, 0.7
        net.a.weight[3], net.a.bias[3] = 0.0, -0.7
    dead, _, _ = check(net, torch.randn(4, 6, dtype=torch.float64))
    assert dead.units("a") == (3,)


class Beside(nn.Module):
    """The output of `b` goes into a BatchNorm, and past it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Linear(6, 6), nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5)
        self.c = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(torch.relu(self.a(x)))
        return self.c(torch.relu(self.n(y)) + y)


def test_a_running_mean_takes_nothing_up_that_goes_past_it() -> None:
    net = lively(Beside())
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0.0, 0.7
        net.a.weight[3], net.a.bias[3] = 0.0, -0.7
    dead, _, _ = check(net, torch.randn(4, 6, dtype=torch.float64))
    assert dead.units("a") == (3,)


def test_a_constant_times_what_changes_is_no_constant() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.g, self.c = nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.a(x)) * torch.sigmoid(self.g(x)))

    net = lively(Gated())
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0.0, 0.7
        net.a.weight[3], net.a.bias[3] = 0.0, -0.7  # zero times anything
    # a single sample: nothing is seen to vary
    dead, _, _ = check(net, torch.randn(1, 6, dtype=torch.float64))
    assert [dead.units(name) for name in dead.groups] == [(3,)]


def test_what_a_stuck_constant_is_made_of_stays_with_it() -> None:
    net = lively(nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, bias=False), nn.ReLU(),
        nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1),
    ))  # fmt: skip
    with torch.no_grad():
        net[0].weight[5], net[0].bias[5] = 0.0, 0.8
        net[2].weight[2], net[2].weight[:, 5] = 0.0, 0.0
        net[2].weight[2, 5] = 1.5  # reads the constant alone, and is read with zero padding
    dead, _, _ = check(net, X)
    assert not dead.groups
    assert {name: list(why.values()) for name, why in dead.stuck.items()} == {
        "0": [(5,)],
        "2": [(2,)],
    }


def test_a_norm_over_channels_is_left_alone() -> None:
    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.n, self.b = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.n(torch.relu(self.a(x))))

    net = lively(Normed())
    with torch.no_grad():
        net.a.weight[1], net.a.bias[1] = 0.0, 0.0
        net.b.weight[:, 2] = 0
    x = torch.randn(4, 6, dtype=torch.float64)
    dead, slim, _ = check(net, x)
    assert not dead.groups
    assert slim.a.out_features == 8


def test_a_random_network_is_not_constant() -> None:
    class Noisy(Plain):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.n(self.a(x)) + torch.randn(8, 1, 1, dtype=x.dtype))
            return self.c(torch.relu(self.m(self.b(y))).mean((2, 3)))

    net = lively(Noisy())
    with torch.no_grad():
        behind_relu(net)
    assert dead_units(net, trace(net, X, probe=False), X).count("zero", "constant") == 0


# ---------------------------------------------------------------- the last word: outputs


def test_a_wrong_claim_is_rolled_back_and_named() -> None:
    net = lively(Plain())
    with torch.no_grad():
        net.c.weight[:, 1] = 0
    graph = trace(net, X)
    right = dead_units(net, graph, X)
    lie = DeadUnit(unit=3, kind="zero")
    wrong = dataclasses.replace(right, groups={"a": (lie,), **right.groups})
    held, bad = proven(net, graph, wrong, X)
    assert list(held.groups) == ["b"]
    assert list(bad) == ["a"]
    assert "the output is off by" in bad["a"]
    assert proven(net, graph, right, X) == (right, {})


def test_another_graph_is_refused() -> None:
    net, other = lively(Plain()), lively(Residual())
    with pytest.raises(PlanError, match="belongs to another model"):
        dead_units(other, trace(net, X), X)
    with pytest.raises(PlanError, match="round_to is 0"):
        remove_dead(net, trace(net, X), X, round_to=0)


def test_folding_alone_changes_no_output_and_no_shape() -> None:
    net = lively(Plain())
    with torch.no_grad():
        still(net)
    dead = dead_units(net, trace(net, X), X)
    folded = fold_constants(net, dead)
    assert difference(net, folded, X) < 1e-12
    assert [p.shape for p in folded.parameters()] == [p.shape for p in net.parameters()]
    assert bool((folded.b.weight[:, 2] == 0).all())
    assert not torch.equal(folded.m.running_mean, net.m.running_mean)


def test_the_value_is_a_file(tmp_path: Path) -> None:
    net = lively(Plain())
    with torch.no_grad():
        still(net)
        not_read_too = net.b.weight
        not_read_too[:, 5] = 0
    dead = dead_units(net, trace(net, X), X)
    files.write_value(tmp_path / "dead.json", dead)
    assert files.read_value(tmp_path / "dead.json", Dead) == dead
    assert "1 that no layer reads" in str(dead)
    assert "a: unread [5], constant [2]" in str(dead)


# ---------------------------------------------------------------- constant on a sample


def test_what_is_still_on_the_sample_is_reported_apart() -> None:
    net = lively(Plain()).float()
    with torch.no_grad():
        net.n.weight[1], net.n.bias[1] = 0.0, -1.0  # exact
        net.m.bias.fill_(4.0)
        net.n.bias[4] = -50.0  # silent behind the ReLU for all images, but not for every input
        net.m.bias[3] = -50.0
    x = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    graph = trace(net, x[:2])
    moments = sample(net, graph, (x, torch.zeros(64, dtype=torch.int64)), images=64)
    alone = dead_units(net, graph, x[:2])
    assert [alone.units(n) for n in ("a", "b")] == [(1,), ()]
    dead = dead_units(net, graph, x[:2], moments)
    assert dead.units("a", EXACT) == (1,)
    assert dead.units("a", ["sample"]) == (4,)
    assert dead.units("b", ["sample"]) == (3,)
    assert "constant on 64 images" in str(dead)
    slim, _, report = remove_dead(net, graph, x, moments=moments)
    assert "1 dead unit removed, lossless" in str(report)
    assert "2 more removed that are constant on 64 images" in str(report)
    assert report.before.macs > report.exact.macs > report.after.macs
    assert report.count(*EXACT) == 1
    assert report.count("sample") == 2
    assert difference(net, slim, x) < 1e-5  # float32
    assert difference(net, slim, 1000 * x) > 1e-3  # lossless on the sample, and there alone


def test_a_sample_that_deceives_is_rolled_back() -> None:
    net = lively(Plain()).float()
    with torch.no_grad():
        net.m.bias.fill_(4.0)
        net.n.bias[4] = -20.0
    x = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    graph = trace(net, x[:2])
    moments = sample(net, graph, (x, torch.zeros(64, dtype=torch.int64)), images=64)
    slim, _, report = remove_dead(net, graph, 1000 * x, moments=moments)
    assert "off by" in report.rolled_back["a"]
    assert slim.a.out_channels == 8


class Small(nn.Module):
    """No padding, so that every constant can be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12)
        self.b, self.m = nn.Conv2d(12, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.c = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.n(self.a(x)))
        return self.c(torch.relu(self.m(self.b(x))).mean((2, 3)))


def test_a_network_trained_with_a_penalty_on_its_scales() -> None:
    """Real images; the proximal step of the L1 norm leaves scales that are zero and shifts that are not."""
    data = load_data("digits")
    torch.manual_seed(0)
    net = Small().train()
    norms = [net.n, net.m]
    descent = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(6):
        for x, y in data.train.batches(64, seed=epoch):
            descent.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            descent.step()
            with torch.no_grad():
                for norm in norms:
                    norm.weight.copy_(norm.weight.sign() * (norm.weight.abs() - 0.05).clamp_min(0))
    net.eval()
    x = torch.cat([x for x, _ in data.test.batches(100)])
    zeros = [set(torch.nonzero(norm.weight == 0).flatten().tolist()) for norm in norms]
    assert all(0 < len(z) < norm.num_features for z, norm in zip(zeros, norms, strict=True))
    graph = trace(net, x[:2])
    dead = dead_units(net, graph, x[:2])
    assert [set(dead.units(n)) >= z for n, z in zip("ab", zeros, strict=True)] == [True, True]
    assert dead.count("constant")
    slim, _, report = remove_dead(net, graph, x[:2])
    assert report.error < 1e-12
    assert report.after.macs < 0.9 * report.before.macs
    with torch.no_grad():
        assert torch.equal(slim(x).argmax(1), net(x).argmax(1))
        assert difference(net, slim, x) < 1e-5


@pytest.mark.slow
def test_the_published_network_has_silent_units(shared_data: Path) -> None:
    """49 of its 1,072 units are silent on 400 training images, and on images that nobody looked at."""
    made = load_model("resnet56-cifar10", str(shared_data / "weights" / "resnet56-4bfd9763.th"))
    net, spec = made.model.eval(), f"cifar10:{shared_data / 'cifar10'}"
    data = load_data(spec, input_shape=(3, 32, 32), model_mean=made.mean, model_std=made.std)
    x = next(iter(data.train.batches(64)))[0]
    graph = trace(net, x[:2])
    moments = sample(net, graph, data.train, images=400, sensitivity_images=1)
    slim, _, report = remove_dead(net, graph, x, moments=moments)
    assert report.count(*EXACT) == 0
    assert 30 <= report.count("sample") <= 70
    assert not report.rolled_back
    unseen = next(iter(data.test.batches(500)))[0]
    with torch.no_grad():
        assert torch.equal(slim(unseen).argmax(1), net(unseen).argmax(1))


# ---------------------------------------------------------------- together with a budget


def scores_of(graph: Graph) -> Importance:
    draw = np.random.default_rng(0)
    groups = {
        n: GroupImportance(loss=draw.uniform(1, 2, g.size), order=draw.permutation(g.size))
        for n, g in graph.groups.items()
    }
    return Importance(groups=groups, criterion="chance", estimator=None, seed=0, comparable=True)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(self.a(x)))))


def killed(units: dict[str, range]) -> tuple[Wide, Graph, Dead]:
    net = lively(Wide())
    with torch.no_grad():
        for name, gone in units.items():
            getattr(net, name).weight[list(gone)] = 0.0
            getattr(net, name).bias[list(gone)] = -1.0
    graph = trace(net, X)
    return net, graph, dead_units(net, graph, X)


def test_dead_units_leave_first_and_widths_stay_aligned() -> None:
    net, graph, dead = killed({"a": range(30, 41), "b": range(3)})
    assert dead.count("zero") == 14
    assert widest(graph, dead, 8) == {"a": 56, "b": 64}
    first = dead_first(scores_of(graph), dead)
    assert set(first.groups["a"].order[:11].tolist()) == set(range(30, 41))
    assert sorted(first.groups["a"].order.tolist()) == list(range(64))
    assert not first.groups["a"].loss[30:41].any()
    made = plan(graph, first, macs=1.0, round_to=8, at_most=widest(graph, dead, 8))
    assert {g.name: len(g.keep) for g in made.groups} == {"a": 56, "b": 64}
    found = summary(graph, dead, made)
    assert found.count() == 8
    assert sum(map(len, found.left.values())) == 6
    assert found.after == made.after
    assert difference(net, cut(net, made), X) < 1e-12
    assert "8 dead units removed, lossless: MACs" in str(found)
    assert "6 dead units stay" in str(found)


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}, {"ratio": 0.25}])
def test_a_budget_counts_from_the_whole_network(budget: dict[str, float]) -> None:
    _, graph, dead = killed({"a": range(11), "b": range(20, 36)})
    first, limits = dead_first(scores_of(graph), dead), widest(graph, dead, 8)
    made = plan(graph, first, round_to=8, at_most=limits, **budget)
    for group in made.groups:
        assert (
            set(dead.units(group.name)) <= set(group.removed)
            or len(group.keep) == limits[group.name]
        )
        assert len(group.keep) <= limits[group.name]
        assert len(group.keep) % 8 == 0
    kind, amount = next(iter(budget.items()))
    if kind == "ratio":
        assert [len(g.keep) for g in made.groups] == [48, 48]
    else:
        assert getattr(made.after, kind) <= amount * getattr(made.before, kind)


def test_what_is_out_of_reach_is_told_as_a_share_of_the_whole_network() -> None:
    _, graph, dead = killed({"a": range(20)})
    nearest = []
    for limits in ({}, widest(graph, dead, 8)):
        with pytest.raises(PlanError, match="out of reach") as refused:
            plan(graph, dead_first(scores_of(graph), dead), macs=1e-6, round_to=8, at_most=limits)
        nearest.append(refused.value.nearest)
    assert nearest[0] == nearest[1]


def test_removal_alone_can_be_rounded_too() -> None:
    net, graph, dead = killed({"a": range(11), "b": range(3)})
    slim, made, report = remove_dead(net, graph, X, round_to=16)
    assert {g.name: len(g.keep) for g in made.groups} == {"a": 64, "b": 64}
    assert report.count() == 0
    slim, made, report = remove_dead(net, graph, X)
    assert (slim.a.out_channels, slim.b.out_channels) == (53, 61)
    assert report.after == made.after
    assert report.after.macs < report.before.macs
    assert dead.count() == report.count() == 14


# ---------------------------------------------------------------- all of it by chance

WAYS = ("weights", "scale", "shift", "unread", "constant")


def chain(draw: random.Random) -> tuple[nn.Sequential, dict[str, set[int]]]:
    """A random conv-bn-relu net with units killed at random, and those that can leave for certain."""
    layers: list[nn.Module] = []
    widths = [3, *(draw.randint(3, 8) for _ in range(draw.randint(2, 4)))]
    convs = []
    for wide, narrow in itertools.pairwise(widths):
        kernel = draw.choice([1, 3])
        convs.append(len(layers))
        layers += [
            nn.Conv2d(
                wide,
                narrow,
                kernel,
                padding=draw.choice([0, kernel // 2]),
                bias=draw.random() < 0.5,
            ),
            nn.BatchNorm2d(narrow),
            draw.choice([nn.ReLU(inplace=True), nn.ReLU(), nn.Hardtanh(0.0, 6.0)]),
        ]
        if draw.random() < 0.2:
            layers.append(nn.Dropout(0.5))
    convs.append(len(layers) + 2)
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 3)]
    net = nn.Sequential(*layers)
    lively(net, seed=draw.randrange(2**31))
    sure: dict[str, set[int]] = {}
    with torch.no_grad():
        for at, reader in itertools.pairwise(convs):
            conv, norm, after = net[at], net[at + 1], net[reader]
            for unit in range(conv.out_channels):
                if draw.random() > 0.3:
                    continue
                way = draw.choice(WAYS)
                if way == "weights":
                    conv.weight[unit] = 0
                    if conv.bias is not None:
                        conv.bias[unit] = 0
                    norm.running_mean[unit], norm.bias[unit] = abs(norm.running_mean[unit]), -0.1
                elif way == "unread":
                    after.weight[:, unit] = 0
                else:
                    norm.weight[unit] = 0
                    norm.bias[unit] = {"scale": 0.0, "shift": -0.4, "constant": 0.6}[way]
                padded = isinstance(after, nn.Conv2d) and after.padding != (0, 0)
                if way != "constant" or not padded:
                    sure.setdefault(str(at), set()).add(unit)
    return net, sure


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**31))
def test_random_nets_lose_all_their_dead_units_and_nothing_else(seed: int) -> None:
    net, sure = chain(random.Random(seed))
    x = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    graph = trace(net, x)
    dead = dead_units(net, graph, x)
    for name, units in sure.items():
        if name in graph.groups:
            assert units <= set(dead.units(name))
    slim, made, report = remove_dead(net, graph, x)
    assert not report.rolled_back
    for name, units in sure.items():
        if name in graph.groups:
            gone = next(set(g.removed) for g in made.groups if g.name == name)
            assert len(gone) >= min(len(units), graph.groups[name].size - 1)
    for scale in (0.1, 1.0, 10.0):
        assert difference(net, slim, scale * torch.randn_like(x)) < 1e-8


NAMES = (
    "resnet8", "resnet20", "unet", "squeeze_excite", "c2f", "shuffle_v2", "option_b", "in_place_slices",
    "weighted_fusion", "attention", "convnext", "siamese", "lstm",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_units_killed_at_random_in_every_kind_of_net(name: str) -> None:
    model, inputs = build(name)
    model = model.double()
    inputs = tuple(x.double() for x in inputs)
    draw = random.Random(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for unit in draw.sample(range(module.num_features), module.num_features // 4):
                    module.weight[unit], module.bias[unit] = 0.0, draw.choice([-1.0, 0.0, 0.5])
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                rows = draw.sample(range(len(module.weight)), len(module.weight) // 4)
                module.weight[rows] = 0.0
                if module.bias is not None:
                    module.bias[rows] = 0.0
    graph = trace(model, inputs)
    slim, _, report = remove_dead(model, graph, inputs)
    assert not report.rolled_back
    with torch.no_grad():
        other = tuple(2 * torch.randn_like(x) for x in inputs)
        a, b = slim(*other), model(*other)
    for got, wanted in zip(
        a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True
    ):
        assert float((got - wanted).abs().max()) <= 1e-8 * float(wanted.abs().max())
