"""What holds for every criterion there is, whoever adds it: on chains, streams, groups, forks and attention."""

from __future__ import annotations

import copy
import dataclasses
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from nets import build
from slopes import gradients_of
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy import plugins
from mint_deploy.artifacts import GroupImportance, Importance
from mint_deploy.criteria._torch_pruning import norms_of
from mint_deploy.errors import DataError, ModelError
from mint_deploy.graph import Graph
from mint_deploy.scores_file import read_scores, write_scores
from mint_deploy.trace import trace
from mint_deploy.verify import prove

CRITERIA = plugins.known("criterion")
NETS = ["resnet8", "flatten_linear", "grouped", "depthwise_twice", "unet", "c2f", "attention"]
#: the criteria that need nothing but the weights; all others have NEEDS (``mint``: its estimators')
DATA_FREE = {"bn_scale", "fpgm", "lamp", "magnitude", "nisp", "random"}


class Setting(NamedTuple):
    model: nn.Module
    inputs: tuple[Tensor, ...]
    graph: Graph
    moments: md.Moments
    dead: dict[str, int]


def looked_at(model: nn.Module, inputs: tuple[Tensor, ...], dead: dict[str, int]) -> Setting:
    graph = trace(model, inputs)
    images = torch.randn(32, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    moments = md.sample(model, graph, images, images=32)
    slopes = gradients_of(model, (images[:8],))
    return Setting(model, inputs, graph, dataclasses.replace(moments, gradients=slopes), dead)


@cache
def lively(name: str) -> Setting:
    model, inputs = build(name)
    return looked_at(model, inputs, {})


@cache
def dying(name: str) -> Setting:
    """In every group one unit is dead: filters, scales and shifts of zero, all that makes it."""
    model, inputs = build(name)
    graph = trace(model, inputs)
    parameters = dict(model.named_parameters())
    dead = {n: g.size // 2 for n, g in graph.groups.items()}
    with torch.no_grad():
        for name, group in graph.groups.items():
            for member in group.members:
                if not member.reads and member.tensor in parameters:
                    gone = torch.from_numpy(member.index[dead[name]])
                    parameters[member.tensor].index_fill_(member.dim, gone, 0.0)
    return looked_at(model, inputs, dead)


def scored(criterion: str, net: str, *, dead: bool = False, seed: int = 0) -> Importance:
    """Score, or skip where a network has nothing that the criterion goes by and it says so."""
    at = dying(net) if dead else lively(net)
    try:
        return scores_of(criterion, net, dead, seed)
    except ModelError as error:
        assert criterion == "bn_scale"  # the one that may refuse
        assert not any(norms_of(at.graph, g) for g in at.graph.groups.values())
        pytest.skip(str(error))


@cache
def scores_of(criterion: str, net: str, dead: bool, seed: int) -> Importance:
    at = dying(net) if dead else lively(net)
    moments = None if criterion in DATA_FREE else at.moments
    return md.score(at.graph, moments, criterion=criterion, seed=seed)


def check(found: GroupImportance, size: int) -> None:
    assert found.loss.shape == found.order.shape == (size,)
    assert found.loss.dtype == np.float64
    assert found.order.dtype == np.int64
    assert sorted(found.order.tolist()) == list(range(size))
    assert np.isfinite(found.loss).all()
    assert (found.loss >= 0).all()
    assert 0 <= found.least <= size


def test_the_list_of_data_free_criteria_is_true() -> None:
    for name in CRITERIA:
        module = plugins.load("criterion", name)
        assert (hasattr(module, "NEEDS") or hasattr(module, "needs")) != (name in DATA_FREE)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_are_whole_finite_and_repeat(criterion: str, net: str) -> None:
    at = lively(net)
    before = copy.deepcopy(at.model.state_dict())
    state = torch.get_rng_state()
    scores = scored(criterion, net)
    again = scores_of.__wrapped__(criterion, net, False, 0)
    assert scores.criterion == criterion
    assert set(scores.groups) <= set(at.graph.groups)
    assert scores.groups
    for name, found in scores.groups.items():
        check(found, at.graph.groups[name].size)
        np.testing.assert_array_equal(again.groups[name].loss, found.loss)
        np.testing.assert_array_equal(again.groups[name].order, found.order)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in at.model.state_dict().items())
    assert all(p.grad is None for p in at.model.parameters())


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "random"])
def test_dead_units_leave_first_and_harm_nobody(criterion: str, net: str) -> None:
    at = dying(net)
    scores = scored(criterion, net, dead=True)
    for name, found in scores.groups.items():
        group, dead = at.graph.groups[name], at.dead[name]
        check(found, group.size)
        place = found.order.tolist().index(dead)
        if criterion == "nisp" and not _silenced(at.graph, name):
            continue  # it looks at what reads a unit, and sees the unit itself by its norm alone
        if criterion == "fpgm":  # a filter of zeros is near the others, not at distance zero
            assert place <= group.size // 8, (name, place)
            continue
        assert found.loss[dead] <= 1e-6 * found.loss.max(), name
        ahead = found.loss[
            found.order[:place]
        ]  # others may be dead by chance: a ReLU that never opens
        assert (ahead <= 1e-6 * found.loss.max()).all(), (name, ahead)


def _silenced(graph: Graph, name: str) -> bool:
    """Whether every layer that produces a group has a norm behind it."""
    return all(graph.layers[p].normalised for p in graph.groups[name].producers)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_the_whole_way_to_a_proven_cut(criterion: str, net: str) -> None:
    at = lively(net)
    scores = scored(criterion, net)
    plan = md.plan(at.graph, scores, target="cpu", ratio=0.3, round_to=1)
    assert {g.name for g in plan.groups if g.removed} <= set(scores.groups)
    slim, done, proof = prove(at.model, plan, at.inputs, sample=1)
    assert proof.max_error < 1e-8
    assert done.criterion == criterion
    assert done.after.params < done.before.params
    assert slim(*at.inputs).shape == at.model(*at.inputs).shape
    for group in done.groups:
        if group.removed:  # the first in the order are those that left
            first = scores.groups[group.name].order[: len(group.removed)]
            assert sorted(first.tolist()) == list(group.removed)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_both_allocations_reach_a_budget(criterion: str) -> None:
    at, scores = lively("resnet8"), scored(criterion, "resnet8")
    for allocation in ("uniform", "global"):
        plan = md.plan(at.graph, scores, target="cpu", macs=0.6, round_to=1, allocation=allocation)
        assert 0.5 < plan.after.macs / plan.before.macs <= 0.6


@pytest.mark.parametrize("criterion", CRITERIA)
def test_scores_survive_their_file(criterion: str, tmp_path: object) -> None:
    scores = scored(criterion, "resnet8")
    write_scores(f"{tmp_path}/scores.npz", scores)
    again = read_scores(f"{tmp_path}/scores.npz")
    assert (again.criterion, again.comparable) == (criterion, scores.comparable)
    for name, found in scores.groups.items():
        np.testing.assert_array_equal(again.groups[name].order, found.order)


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - DATA_FREE))
def test_criteria_with_needs_say_what_to_do_without(criterion: str) -> None:
    with pytest.raises(DataError, match=r"needs .*call sample\("):
        md.score(lively("resnet8").graph, criterion=criterion)


def test_only_random_follows_the_seed() -> None:
    for criterion in CRITERIA:
        made = [scored(criterion, "flatten_linear", seed=seed) for seed in (0, 1)]
        orders = [np.concatenate([g.order for g in s.groups.values()]) for s in made]
        assert (orders[0] != orders[1]).any() == (criterion == "random"), criterion
