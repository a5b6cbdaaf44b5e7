"""Budgets become widths: reachable, rounded, and refused with a reason where they are not."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from masking import cut_error
from nets import build
from torch import Tensor, nn

from mint_deploy.artifacts import GroupImportance, Importance, PruningPlan
from mint_deploy.errors import PlanError
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import as_call
from mint_deploy.plan import LEAST_KEPT, make_plan, plan
from mint_deploy.surgery import cut
from mint_deploy.target import load_target
from mint_deploy.trace import trace

_traced: dict[str, tuple[nn.Module, tuple[Tensor, ...], Graph]] = {}


def traced(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Graph]:
    if name not in _traced:
        model, inputs = build(name)
        _traced[name] = (model, inputs, trace(model, inputs))
    return _traced[name]


def importance(
    graph: Graph, *, comparable: bool = False, scale: Callable[[str], float] = lambda _: 1.0
) -> Importance:
    """Unit 0 is worth most, the last one least; ``scale`` weighs the groups."""
    groups = {}
    for name, group in graph.groups.items():
        loss = np.linspace(2.0, 1.0, group.size) * scale(name)
        groups[name] = GroupImportance(loss=loss, order=np.arange(group.size)[::-1].copy())
    return Importance(
        groups=groups, criterion="by position", estimator=None, seed=7, comparable=comparable
    )


def widths(made: PruningPlan) -> dict[str, int]:
    return {g.name: len(g.keep) for g in made.groups}


def share(made: PruningPlan, kind: str) -> float:
    return getattr(made.after, kind) / getattr(made.before, kind)


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize("name", ["resnet20", "resnet56", "mobilenet_v2", "densenet121", "unet"])
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_budget_is_kept_and_not_far_undershot(name: str, kind: str, allocation: str) -> None:
    _, _, graph = traced(name)
    for amount in (0.8, 0.5, 0.3):
        made = plan(graph, importance(graph), **{kind: amount}, round_to=1, allocation=allocation)
        assert amount - 0.05 < share(made, kind) <= amount
        assert made.budget == {kind: amount}


@pytest.mark.parametrize("name", ["resnet20", "mobilenet_v2"])
def test_the_cost_in_a_plan_is_that_of_the_cut_network(name: str) -> None:
    model, inputs, graph = traced(name)
    made = plan(graph, importance(graph), macs=0.5)
    slim = cut(model, made)
    assert made.after == find_groups(slim, as_call(inputs)).cost
    assert made.before == graph.cost
    assert made.after.params == sum(p.numel() for p in slim.parameters())
    assert cut_error(model, made, inputs) < 1e-10


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_less_is_never_wider_or_dearer(kind: str, allocation: str) -> None:
    _, _, graph = traced("resnet20")
    last = None
    for amount in (1.0, 0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2):
        made = plan(graph, importance(graph), **{kind: amount}, round_to=2, allocation=allocation)
        assert share(made, kind) <= amount
        if last is not None:
            assert getattr(made.after, kind) <= getattr(last.after, kind)
            if allocation == "global":
                assert all(w <= widths(last)[n] for n, w in widths(made).items())
        last = made


def test_the_whole_is_a_budget_too() -> None:
    _, _, graph = traced("resnet20")
    for budget in ({"ratio": 0.0}, {"macs": 1.0}, {"params": 1.0}):
        made = plan(graph, importance(graph), **budget)
        assert made.after == made.before
        assert made.slices() == {}


def test_a_ratio_removes_the_same_share_everywhere() -> None:
    _, _, graph = traced("resnet20")
    for ratio in (0.25, 0.5, 0.75):
        made = plan(graph, importance(graph), ratio=ratio, round_to=1, allocation="global")
        for group in made.groups:
            assert len(group.keep) == round(group.size * (1 - ratio))


def test_what_stays_is_what_the_criterion_wants_most() -> None:
    _, _, graph = traced("resnet20")
    scores = importance(graph)
    random = np.random.default_rng(0)
    for name, group in graph.groups.items():
        order = random.permutation(group.size)
        scores.groups[name] = GroupImportance(loss=scores.groups[name].loss, order=order)  # type: ignore[index]  # a dict
    made = plan(graph, scores, ratio=0.5, round_to=1)
    for group in made.groups:
        order = scores.groups[group.name].order
        assert list(group.keep) == sorted(order[group.size - len(group.keep) :])
        assert set(group.removed) == set(order[: group.size - len(group.keep)].tolist())


# ---------------------------------------------------------------- allocation


def test_uniform_shares_the_loss_and_global_takes_the_cheapest_first() -> None:
    _, _, graph = traced("resnet20")
    dear = "layer1.0.conv1"
    scores = importance(graph, scale=lambda name: 1e6 if name == dear else 1.0)
    even = plan(graph, scores, macs=0.6, round_to=1, allocation="uniform")
    greedy = plan(graph, scores, macs=0.6, round_to=1, allocation="global")
    assert widths(greedy)[dear] == 16
    shares = [len(g.keep) / g.size for g in even.groups if g.name != dear]
    assert max(shares) - min(shares) < 0.13
    spread = [len(g.keep) / g.size for g in greedy.groups]
    assert max(spread) - min(spread) > 0.3


def test_auto_follows_what_the_criterion_says_of_itself() -> None:
    _, _, graph = traced("resnet20")
    for comparable, same_as in ((False, "uniform"), (True, "global")):
        scores = importance(graph, comparable=comparable, scale=lambda n: float(len(n)))
        auto = plan(graph, scores, macs=0.5, round_to=1)
        assert (
            auto.digest() == plan(graph, scores, macs=0.5, round_to=1, allocation=same_as).digest()
        )
    other = plan(graph, scores, macs=0.5, round_to=1, allocation="uniform")
    assert other.digest() != auto.digest()


def test_global_leaves_the_groups_that_save_most_per_loss() -> None:
    """On a chain of equal losses the widest saving goes first: compared with trying all plans."""
    _, _, graph = traced("flatten_linear")
    scores = importance(graph, comparable=True)
    made = plan(graph, scores, macs=0.5, round_to=4, allocation="global")
    lost = sum(float(scores.groups[g.name].loss[list(g.removed)].sum()) for g in made.groups)
    best = np.inf
    for a in (8, 4):
        for b in (12, 8, 4):
            for c in (20, 16, 12, 8, 4):
                keep = {"features.0.0": range(a), "features.1.0": range(b), "linear1": range(c)}
                if graph.cost_of(keep).macs <= 0.5 * graph.cost.macs:
                    gone = {n: range(len(k), graph.groups[n].size) for n, k in keep.items()}
                    loss = sum(float(scores.groups[n].loss[list(u)].sum()) for n, u in gone.items())
                    best = min(best, loss)
    assert np.isfinite(best)
    assert lost <= 1.5 * best


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("round_to", [1, 2, 4, 8, 16])
def test_widths_are_multiples_or_whole(round_to: int) -> None:
    _, _, graph = traced("mobilenet_v2")
    made = plan(graph, importance(graph), macs=0.6, round_to=round_to)
    for group in made.groups:
        assert len(group.keep) == group.size or len(group.keep) % group.round_to == 0
        expected = round_to
        while expected > 1 and group.size < 4 * expected:
            expected //= 2
        assert group.round_to == expected
        assert len(group.keep) >= LEAST_KEPT * group.size


def test_the_targets_rounding_is_used_and_can_be_overridden() -> None:
    _, _, graph = traced("resnet50")
    assert {g.round_to for g in plan(graph, importance(graph), macs=0.5, target="gpu").groups} == {
        8
    }
    chip = dataclasses.replace(load_target("gpu"), round_to=16)
    made = plan(graph, importance(graph), macs=0.5, target=chip)
    assert {g.round_to for g in made.groups} == {16}
    assert (made.target, made.seed, made.criterion) == ("gpu", 7, "by position")
    over = plan(graph, importance(graph), macs=0.5, target=chip, round_to=4)
    assert {g.round_to for g in over.groups} == {4}


def test_narrow_groups_take_smaller_steps_and_the_plan_says_so() -> None:
    _, _, graph = traced("resnet20")
    made = plan(graph, importance(graph), macs=0.6, round_to=16)
    steps = {g.name: g.round_to for g in made.groups}
    assert {steps["conv1"], steps["layer2.0.conv1"], steps["layer3.0.conv1"]} == {4, 8, 16}
    said = [note for note in made.notes if "narrower than 4 x 16" in note]
    assert len(said) == 2
    assert "steps of 4" in said[0]
    assert "conv1" in said[0]
    assert "may give no speed" in said[0]
    assert "and 1 more" in said[0]
    wide = plan(graph, importance(graph), macs=0.6, round_to=1)
    assert not any("narrower" in note for note in wide.notes)


def test_a_share_of_every_group_stays() -> None:
    _, _, graph = traced("resnet20")
    made = plan(graph, importance(graph), macs=0.4, round_to=1, least_kept=0.5, allocation="global")
    assert all(len(g.keep) >= g.size / 2 for g in made.groups)
    with pytest.raises(PlanError, match="out of reach"):
        plan(graph, importance(graph), macs=0.2, round_to=1, least_kept=0.5)
    whole = plan(graph, importance(graph), ratio=0.5, least_kept=1.0)
    assert whole.slices() == {}


# ---------------------------------------------------------------- layers to leave alone


def test_ignored_layers_keep_their_groups_whole() -> None:
    _, _, graph = traced("resnet20")
    made = plan(
        graph, importance(graph), macs=0.7, ignore=["layer1.*", "layer3.2.conv1"], round_to=1
    )
    got = widths(made)
    for name in ("layer1.0.conv1", "layer1.1.conv1", "layer1.2.conv1", "layer3.2.conv1"):
        assert got[name] == graph.groups[name].size
    assert got["conv1"] == 16, "layer1's second convolutions write into this stream"
    assert got["layer3.1.conv1"] < 64
    by_prefix = plan(graph, importance(graph), macs=0.7, ignore=["layer1"], round_to=1)
    assert {n: w for n, w in widths(by_prefix).items() if n.startswith("layer1")} == {
        n: 16 for n in got if n.startswith("layer1")
    }


def test_ignoring_a_reader_does_not_freeze_what_it_reads() -> None:
    _, _, graph = traced("flatten_linear")
    made = plan(graph, importance(graph), ratio=0.5, ignore=["linear1"], round_to=1)
    assert widths(made) == {"features.0.0": 4, "features.1.0": 6, "linear1": 20}


def test_a_depthwise_layer_to_ignore_keeps_the_stream_through_it() -> None:
    _, _, graph = traced("depthwise")
    made = plan(graph, importance(graph), ratio=0.5, ignore=["depthwise.0"], round_to=1)
    assert widths(made) == {"stem.0": 12, "point.0": 5}


def test_an_unknown_layer_to_ignore_is_answered_with_the_nearest() -> None:
    _, _, graph = traced("resnet20")
    with pytest.raises(
        PlanError, match=r"no layer 'layer1.0.convl' to ignore; did you mean 'layer1.0.conv[12]'"
    ):
        plan(graph, importance(graph), macs=0.5, ignore=["layer1.0.convl"])
    with pytest.raises(PlanError, match=r"no layer 'zzz\*' to ignore \(layers: conv1, "):
        plan(graph, importance(graph), macs=0.5, ignore=["zzz*"])


def test_a_group_without_evidence_stays_and_the_plan_says_so() -> None:
    _, _, graph = traced("resnet20")
    scores = importance(graph)
    del scores.groups["conv1"]  # type: ignore[attr-defined]  # a dict
    made = plan(graph, scores, macs=0.7, round_to=1)
    assert widths(made)["conv1"] == 16
    assert any("'conv1' stays whole: the criterion has no evidence" in n for n in made.notes)


# ---------------------------------------------------------------- out of reach


@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_a_budget_out_of_reach_names_the_nearest_and_what_holds_it_back(
    kind: str, allocation: str
) -> None:
    _, _, graph = traced("resnet20")
    scores = importance(graph)
    with pytest.raises(PlanError, match="out of reach") as caught:
        plan(graph, scores, **{kind: 0.001}, allocation=allocation)
    nearest = caught.value.nearest
    assert nearest is not None
    assert 0.001 < nearest < 0.2
    assert len(caught.value.held_by) == 3
    assert all("at its least width" in held for held in caught.value.held_by)
    # What the message names can be had.
    found = re.search(r"the nearest is (0\.\d+) of the", str(caught.value))
    assert found is not None
    for amount in (nearest, float(found[1])):
        made = plan(graph, scores, **{kind: amount}, allocation=allocation)
        assert share(made, kind) <= amount + 1e-12
    least = {g.name: len(g.keep) for g in plan(graph, scores, **{kind: nearest}).groups}
    assert all(w < graph.groups[n].size for n, w in least.items())


def test_the_reasons_of_the_holders_are_told() -> None:
    _, _, graph = traced("literal_split")
    scores = importance(graph)
    with pytest.raises(PlanError, match="frozen: split size: its number is written in the code"):
        plan(graph, scores, macs=0.05)
    _, _, graph = traced("resnet20")
    with pytest.raises(PlanError, match="ignored"):
        plan(graph, importance(graph), macs=0.3, ignore=["*"])
    scores = importance(graph)
    scores.groups.clear()  # type: ignore[attr-defined]  # a dict
    with pytest.raises(PlanError, match="no evidence"):
        plan(graph, scores, macs=0.3)


def test_where_all_is_frozen_the_reasons_are_told() -> None:
    _, _, graph = traced("one_layer")
    scores = Importance(groups={}, criterion="none", estimator=None, seed=0)
    with pytest.raises(PlanError, match=r"nothing in this model can be cut: .*network's output"):
        plan(graph, scores, macs=0.5)


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({}, "exactly one budget of ratio, macs, params; found none"),
        ({"macs": 0.5, "params": 0.5}, "found macs, params"),
        ({"macs": 0.0}, "macs=0 is not a fraction; expected the fraction kept, above 0 up to 1"),
        ({"macs": 1.5}, "macs=1.5"),
        ({"params": -0.1}, "params=-0.1"),
        ({"ratio": 1.0}, "ratio=1 is not a fraction; expected the fraction removed, from 0"),
        ({"ratio": -0.2}, "ratio=-0.2"),
        ({"macs": float("nan")}, "macs=nan"),
        ({"macs": 0.5, "allocation": "best"}, "no allocation 'best'; known: auto, uniform, global"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(budget: dict[str, object], words: str) -> None:
    _, _, graph = traced("resnet20")
    with pytest.raises(PlanError, match=re.escape(words)):
        plan(graph, importance(graph), **budget)  # type: ignore[arg-type]  # on purpose


# ---------------------------------------------------------------- plans by hand


def test_a_plan_by_hand_leaves_the_rest_whole() -> None:
    _, _, graph = traced("option_b")
    made = make_plan(graph, {"conv1": (3, 1, 15)}, model="mine", notes=["hello"])
    assert made.groups[1].keep == (1, 3, 15)
    assert [len(g.keep) for g in made.groups] == [8, 3, 16]
    assert (made.model, made.criterion, made.notes) == ("mine", "by hand", ("hello",))
    assert made.after == graph.cost_of({"conv1": [1, 3, 15]})
    assert made.inputs == graph.inputs


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ({"conv9": [1]}, "no pruning group 'conv9' can be cut; known: stem.0, conv1, conv2"),
        ({"head": [1]}, "it is frozen: reaches the network's output"),
        ({"conv1": []}, "group 'conv1' must keep some of its units 0 to 15"),
        ({"conv1": [16]}, "units 0 to 15"),
        ({"conv1": [-1, 3]}, "units 0 to 15"),
    ],
)
def test_a_plan_by_hand_that_cannot_be_is_refused(keep: dict[str, list[int]], words: str) -> None:
    _, _, graph = traced("option_b")
    with pytest.raises(PlanError, match=re.escape(words)):
        make_plan(graph, keep)


def test_equal_cuts_have_equal_digests_whatever_chose_them() -> None:
    _, _, graph = traced("option_b")
    one = make_plan(graph, {"conv1": range(8)}, criterion="a", seed=1)
    two = make_plan(graph, {"conv1": range(8), "stem.0": range(8)}, criterion="b", notes=["x"])
    assert one.digest() == two.digest()
    assert one.digest() != make_plan(graph, {"conv1": range(1, 9)}).digest()


def test_a_plan_from_a_model_in_half_precision_counts_its_bytes() -> None:
    model, inputs = build("option_b")
    graph = trace(model.half(), tuple(x.half() for x in inputs))
    made = make_plan(graph, {"conv1": range(8)})
    slim = cut(model, made)
    held = [*slim.parameters(), *slim.buffers()]
    assert made.after.weight_bytes == sum(t.numel() * t.element_size() for t in held)
    assert {t.dtype for t in slim.parameters()} == {torch.float16}


# ---------------------------------------------------------------- what the criterion protects


def protecting(graph: Graph, least: dict[str, int], *, comparable: bool = False) -> Importance:
    scores = importance(graph, comparable=comparable)
    groups = {
        name: dataclasses.replace(found, least=least.get(name, 0))
        for name, found in scores.groups.items()
    }
    return dataclasses.replace(scores, groups=groups)


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("budget", [{"ratio": 0.75}, {"macs": 0.35}, {"params": 0.35}])
def test_a_group_keeps_what_the_criterion_protects(
    budget: dict[str, float], allocation: str
) -> None:
    _, _, graph = traced("resnet20")
    free = widths(plan(graph, importance(graph), **budget, round_to=4, allocation=allocation))
    first, second = [n for n, g in graph.groups.items() if free[n] < g.size - 3][:2]
    size = graph.groups[first].size
    scores = protecting(graph, {first: size - 3, second: 1})
    made = plan(graph, scores, **budget, round_to=4, allocation=allocation)
    assert widths(made)[first] == size  # size - 3, rounded up to a possible width
    for kind in {"macs", "params"} & set(budget):
        assert share(made, kind) <= budget[kind]
    kept = next(g.keep for g in made.groups if g.name == second)
    assert kept == tuple(range(len(kept)))  # and those that stay are the last of the order


def test_least_is_rounded_up_to_a_possible_width() -> None:
    _, _, graph = traced("resnet20")
    name = next(n for n, g in graph.groups.items() if g.size == 64)
    for least, width in ((0, 8), (1, 8), (8, 8), (9, 16), (40, 40), (41, 48), (64, 64), (99, 64)):
        made = plan(graph, protecting(graph, {name: least}), ratio=0.9, round_to=8)
        assert widths(made)[name] == width


def test_what_is_protected_wins_over_an_upper_width() -> None:
    _, _, graph = traced("resnet20")
    name = next(n for n, g in graph.groups.items() if g.size == 64)
    made = plan(graph, protecting(graph, {name: 32}), ratio=0.0, round_to=8, at_most={name: 16})
    assert widths(made)[name] == 32


def test_protection_is_told_where_it_holds_a_budget_back() -> None:
    _, _, graph = traced("resnet20")
    everything = {name: group.size for name, group in graph.groups.items()}
    with pytest.raises(PlanError, match="out of reach") as caught:
        plan(graph, protecting(graph, everything), macs=0.5)
    assert all("protected by the criterion" in held for held in caught.value.held_by)
    assert caught.value.nearest == 1.0
    # a least below the planner's own holds nothing back, and is not blamed
    with pytest.raises(PlanError) as caught:
        plan(graph, protecting(graph, dict.fromkeys(everything, 1)), macs=0.001)
    assert all("at its least width" in held for held in caught.value.held_by)
