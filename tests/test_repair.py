"""Repair: the least-squares refit against regression on the raw activations."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from nets import build
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.batchnorm import recalibrate_batchnorm_
from mint_deploy.data import as_part
from mint_deploy.errors import PlanError
from mint_deploy.plan import make_plan
from mint_deploy.repair import refit, repair
from mint_deploy.trace import trace


class Chain(nn.Module):
    """Two layers; ``bias`` and ``norm`` of the second can be chosen."""

    def __init__(self, *, conv: bool, bias: bool, norm: bool) -> None:
        super().__init__()
        if conv:
            self.first: nn.Module = nn.Conv2d(2, 8, 3, padding=1)
            self.second: nn.Module = nn.Conv2d(8, 4, 3, padding=1, bias=bias)
        else:
            self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4, bias=bias)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(F.relu(self.first(x))))


def cut_first(model: nn.Module, x: Tensor, keep: list[int]) -> tuple[nn.Module, md.PruningPlan]:
    graph = trace(model, x[:2])
    plan = make_plan(graph, {"first": keep})
    return md.cut(model, plan), plan


def squared_error(slim: nn.Module, model: nn.Module, x: Tensor) -> float:
    taken: list[Tensor] = []
    for net in (slim, model):
        handle = net.second.register_forward_hook(lambda *a: taken.append(a[2].detach()))
        net(x)
        handle.remove()
    return float((taken[0] - taken[1]).square().mean())


@pytest.mark.parametrize(
    ("conv", "bias", "norm"),
    [(False, True, False), (False, False, False), (True, True, False), (True, False, True)],
)
def test_refit_equals_regression_on_the_activations(conv: bool, bias: bool, norm: bool) -> None:
    torch.manual_seed(0)
    model = Chain(conv=conv, bias=bias, norm=norm).eval()
    # few enough images that every position of each is sampled
    x = torch.randn(100, 2, 6, 6) if conv else torch.randn(400, 5)
    keep = [0, 2, 3, 5, 6]
    slim, plan = cut_first(model, x, keep)
    graph = trace(model, x[:2])
    moments = md.sample(model, graph, x, images=len(x))
    fixed = repair(slim, moments, plan)
    hidden = F.relu(model.first(x)).detach()
    rows = (
        F.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1) if conv else hidden
    ).double()
    taps = 9 if conv else 1
    kept = [c * taps + t for c in keep for t in range(taps)]
    weight = model.second.weight.detach().flatten(1).double()
    target = rows @ weight.T
    design = rows[:, kept]
    if bias or norm:
        design, target = design - design.mean(0), target - target.mean(0)
    expected = torch.linalg.lstsq(design, target).solution.T
    torch.testing.assert_close(
        fixed.second.weight.detach().flatten(1).double(), expected, rtol=2e-3, atol=2e-3
    )
    if not norm:
        assert squared_error(fixed, model, x) < squared_error(slim, model, x)


def test_redundant_units_are_made_up_for_completely() -> None:
    """Two copies of every filter: without one copy of each, the refitted network is the dense one."""
    torch.manual_seed(0)
    model = Chain(conv=True, bias=True, norm=False).eval()
    with torch.no_grad():
        for layer in (model.first.weight, model.first.bias):
            layer[4:] = layer[:4]
    x = torch.randn(300, 2, 6, 6)
    graph = trace(model, x[:2])
    moments = md.sample(model, graph, x, images=300)
    scores = md.score(graph, moments)
    plan = md.plan(graph, scores, target="cpu", ratio=0.5, round_to=1)
    kept = next(g for g in plan.groups if g.name == "first").keep
    assert sorted(u % 4 for u in kept) == [0, 1, 2, 3]
    fixed = repair(md.cut(model, plan), moments, plan)
    torch.testing.assert_close(fixed(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["grouped", "unet", "flatten_linear", "resnet8", "c2f"])
def test_refit_brings_the_output_nearer(name: str) -> None:
    torch.manual_seed(0)
    model, inputs = build(name)
    x = torch.randn(256, *inputs[0].shape[1:])
    recalibrate_batchnorm_(model, as_part(x))  # statistics that belong to these images
    graph = trace(model, inputs)
    moments = md.sample(model, graph, x, images=256)
    plan = md.plan(graph, md.score(graph, moments), target="cpu", ratio=0.25, round_to=1)
    slim = md.cut(model, plan)
    fixed = repair(slim, moments, plan, data=x, images=256)
    plain = repair(slim, None, plan, data=x, images=256)
    with torch.no_grad():
        want, got, without = model(x), fixed(x), plain(x)
    assert (got - want).square().mean() < (without - want).square().mean()


def test_the_cut_model_is_not_changed_and_untouched_layers_stay() -> None:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    x = torch.randn(64, *inputs[0].shape[1:])
    moments = md.sample(model, graph, x, images=64)
    plan = make_plan(graph, {"layer1.0.conv1": range(8)})
    slim = md.cut(model, plan)
    before = copy.deepcopy(slim.state_dict())
    fixed = repair(slim, moments, plan)
    assert all(torch.equal(before[n], t) for n, t in slim.state_dict().items())
    changed = {n for n, t in fixed.state_dict().items() if not torch.equal(before[n], t)}
    assert changed == {"layer1.0.conv2.weight"}


def test_moments_of_another_cut_are_refused() -> None:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    moments = md.sample(model, graph, torch.randn(64, *inputs[0].shape[1:]), images=64)
    plan = make_plan(graph, {"layer1.0.conv1": range(8)})
    with pytest.raises(PlanError, match=r"do not fit the cut model"):
        refit(copy.deepcopy(model), moments, plan)
