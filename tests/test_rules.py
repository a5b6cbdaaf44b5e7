"""One operator or idiom at a time: the groups that must come out, or the reason why not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from masking import absent_error, cut_error, random_keep
from rule_nets import CASES, build

from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import as_call
from mint_deploy.plan import make_plan
from mint_deploy.trace import trace
from mint_deploy.verify import prove


def of_stem(graph: Graph) -> tuple[list[int], list[str]]:
    """Sizes of the free groups and reasons of the frozen ones that hold the stem's outputs."""
    place = ("stem.0.weight", 0)
    free = [
        g.size for g in graph.groups.values() if place in {(m.tensor, m.dim) for m in g.members}
    ]
    frozen = [
        graph.frozen[n]
        for n, g in graph.frozen_groups.items()
        if place in {(m.tensor, m.dim) for m in g.members}
    ]
    return sorted(free), frozen


@pytest.mark.parametrize("name", CASES)
def test_what_an_operator_couples_or_freezes(name: str) -> None:
    case = CASES[name]
    model, x = build(name)
    graph = trace(model, x)
    sizes, reasons = of_stem(graph)
    assert sizes == sorted(case.stem)
    if case.why:
        assert reasons
        assert any(case.why in reason for reason in reasons)
    elif sum(sizes) == 16:
        assert not reasons
    untried = find_groups(model, as_call(x))
    assert (set(untried.groups) != set(graph.groups)) == case.probed
    plan = make_plan(graph, random_keep(graph, seed=len(name)))
    if case.hooks_see:
        assert cut_error(model, plan, (x,)) < 1e-10
    # zeros written over channels, or weights repeated by hand, are not absent to the crossing
    if any(g.removed for g in plan.groups) and name not in ("set_half_to_zero", "blur_repeated"):
        assert absent_error(model, plan, (x,)) < 1e-10
    _, _, proof = prove(model, plan, x)
    assert proof.max_error < 1e-10
    rolled_back = [g.reason for g in proof.groups.values() if g.status == "rolled back"]
    assert all(reason.startswith("no power") for reason in rolled_back)


@pytest.mark.parametrize("name", ["add", "grouped", "batch_of_channels", "fixed_order", "cbam"])
def test_a_batch_of_one_tells_the_same(name: str) -> None:
    model, x = build(name)
    both = trace(model, x), trace(model, x[:1])
    assert of_stem(both[0])[0] == of_stem(both[1])[0]
    assert both[0].cost.macs == both[1].cost.macs


def indices(name: str, tensor: str, dim: int) -> list[list[int]]:
    """Which indices of one tensor leave with each unit of the stem."""
    model, x = build(name)
    graph = trace(model, x)
    found = []
    for group in graph.groups.values():
        places = {(m.tensor, m.dim): m.index for m in group.members}
        if ("stem.0.weight", 0) in places:
            order = np.argsort(places["stem.0.weight", 0][:, 0])
            found += places[tensor, dim][order].tolist()
    return found


def test_channels_keep_their_places_through_each_movement() -> None:
    flat = np.arange(32).reshape(2, 16)
    assert indices("flip", "last.0.weight", 1) == [[15 - c] for c in range(16)]
    assert indices("repeat", "last.0.weight", 1) == flat.T.tolist()
    assert indices("repeat_interleave", "last.0.weight", 1) == flat.reshape(16, 2).tolist()
    assert indices("pixel_unshuffle", "last.0.weight", 1) == np.arange(64).reshape(16, 4).tolist()
    assert indices("pixel_shuffle", "stem.0.weight", 0) == np.arange(16).reshape(4, 4).tolist()
    assert indices("space_to_depth", "last.0.weight", 1) == np.arange(64).reshape(4, 16).T.tolist()
    assert indices("chunk", "last.0.weight", 1) == [[c, c + 8] for c in range(8)]
    assert indices("maxout", "stem.0.weight", 0) == [[2 * c, 2 * c + 1] for c in range(8)]
    assert indices("grouped", "stem.0.weight", 0) == [[c, c + 4, c + 8, c + 12] for c in range(4)]
    assert indices("grouped", "conv.weight", 1) == [[c] for c in range(4)]
    assert indices("pad_channels_by_attribute", "last.0.weight", 1) == [[4 + c] for c in range(16)]
    assert indices("concatenated_coordinates", "last.0.weight", 1) == [[c] for c in range(16)]


@pytest.mark.parametrize(
    ("name", "attribute", "after"),
    [
        ("depthwise", "conv.groups", 12),
        ("split_by_attributes", "first", 3),
        ("split_by_attributes", "rest", 9),
        ("slice_by_attribute", "first", 3),
    ],
)
def test_an_attribute_that_counts_channels_is_rewritten(
    name: str, attribute: str, after: int
) -> None:
    model, x = build(name)
    graph = trace(model, x)
    keep = {n: range(g.size - g.size // 4) for n, g in graph.groups.items()}
    slim, _, _ = prove(model, make_plan(graph, keep), x)
    path, _, last = attribute.rpartition(".")
    assert getattr(slim.get_submodule(path), last) == after
    assert type(getattr(slim.get_submodule(path), last)) is int


def test_branches_that_depend_on_values_are_noted() -> None:
    model, x = build("branch")
    graph = trace(model, x)
    assert any("traced on the given inputs" in note for note in graph.notes)
    assert make_plan(graph, {}).notes == graph.notes


def test_an_exact_int_in_the_code_is_traced_without_origins() -> None:
    model, x = build("exact_int")
    graph = trace(model, x)
    assert of_stem(graph) == ([16], [])
    assert torch.equal(model(x), model(x))
