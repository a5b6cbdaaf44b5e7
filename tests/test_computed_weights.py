"""Weights that are computed from parameters: the axes that survive are cut, the others say why not."""

from __future__ import annotations

import pytest
import torch
from computed_nets import CASES, NOTHING, build
from masking import random_keep
from torch import nn

from mint_deploy.graph import Graph
from mint_deploy.plan import make_plan
from mint_deploy.trace import trace
from mint_deploy.verify import prove


def free(graph: Graph, tensor: str, dim: int) -> tuple[int, list[str]]:
    """How many indices along one dimension of a tensor can leave, and the reasons of the rest."""
    held = [
        m.index.size
        for g in graph.groups.values()
        for m in g.members
        if (m.tensor, m.dim) == (tensor, dim)
    ]
    why = [
        graph.frozen[n]
        for n, g in graph.frozen_groups.items()
        if (tensor, dim) in {(m.tensor, m.dim) for m in g.members}
    ]
    return sum(held), why


@pytest.mark.parametrize("name", CASES)
def test_each_axis_of_a_computed_weight_is_cut_or_says_why_not(name: str) -> None:
    case = CASES[name]
    model, x = build(name)
    graph = trace(model, x)
    inputs, why = free(graph, "stem.0.weight", 0)
    outputs, why_not = free(graph, "last.0.weight", 1)
    assert (inputs, outputs) == case.free
    if case.why:
        reasons = [*why, *why_not]
        told = [reason for reason in reasons if case.why in reason]
        assert told, reasons
        assert all("(in '" in reason or "(in the network" in reason for reason in told)
    keep = random_keep(graph, seed=3, least=0.4)
    slim, done, proof = prove(model, make_plan(graph, keep), x)
    assert proof.max_error < 1e-10
    assert all(g.status == "proven" for g in proof.groups.values())
    if case.free != NOTHING:
        assert case.weight in {m.tensor for g in done.groups for m in g.members}
        assert slim.last[0].in_channels < 12


@pytest.mark.parametrize("name", ["weight_norm", "weight_norm_old", "pruned"])
def test_a_module_with_a_computed_weight_describes_itself_anew(name: str) -> None:
    model, x = build(name)
    graph = trace(model, x)
    keep = {n: range(g.size - 3) for n, g in graph.groups.items()}
    slim, _, _ = prove(model, make_plan(graph, keep), x)
    inputs = 13 if name == "pruned" else 16
    assert (slim.conv.out_channels, slim.conv.in_channels) == (9, inputs)
    assert slim.conv.weight.shape == (9, inputs, 3, 3)
    assert model.conv.weight.shape == (12, 16, 3, 3)
    slim.train()(x).sum().backward()
    again = trace(slim.eval(), x)
    prove(slim, make_plan(again, random_keep(again, least=0.4)), x)


def test_two_parts_of_one_weight_are_cut_where_they_lie() -> None:
    model, x = build("joined")
    graph = trace(model, x)
    places = {
        (m.tensor, m.dim): m.index[:, 0].tolist()
        for g in graph.groups.values()
        for m in g.members
        if m.tensor in ("a", "b")
    }
    assert places["a", 0] == list(range(5))
    assert places["b", 0] == list(range(7))
    assert graph.layers["a"].positions == graph.layers["b"].positions


def test_the_scale_of_a_filter_leaves_with_it() -> None:
    model, x = build("weight_norm")
    graph = trace(model, x)
    (group,) = [g for g in graph.groups.values() if g.name == "conv"]
    assert {m.tensor.rpartition(".")[2] for m in group.members} >= {
        "original0",
        "original1",
        "bias",
    }
    assert group.size == 12


def test_a_squashed_scale_is_cut_with_its_channels() -> None:
    class Squashed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.s = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.randn(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(torch.relu(self.a(x)) * torch.sigmoid(self.s) * self.s.softmax(0).sum())

    model, x = Squashed().eval(), torch.randn(2, 6)
    graph = trace(model, x)
    assert free(graph, "s", 0) == (0, free(graph, "s", 0)[1])
    assert any("a statistic ('softmax')" in why for why in free(graph, "a.weight", 0)[1])
