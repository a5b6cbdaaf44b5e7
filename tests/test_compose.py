"""A slim model can be cut again, and one plan on the original says both cuts, bit for bit."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from masking import cut_error, outputs, random_keep
from nets import build
from torch import Tensor, nn

from mint_deploy.artifacts import Constant, Member, PlanGroup, PruningPlan
from mint_deploy.compose import compose
from mint_deploy.errors import PlanError
from mint_deploy.files import write_value
from mint_deploy.plan_file import is_costed, make_plan, read_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.verify import prove


def is_plain(value: object) -> bool:
    """Numbers, texts, and lists of them (an LSTM has lists of parameters)."""
    if isinstance(value, (tuple, list)):
        return all(map(is_plain, value))
    return isinstance(value, (int, float, str))


def attributes(model: nn.Module) -> dict[str, dict[str, object]]:
    """What every module says of itself."""
    return {
        name: {k: v for k, v in vars(module).items() if is_plain(v)}
        for name, module in model.named_modules()
    }


def assert_equal(one: nn.Module, two: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Two cut models are the same: bits, shapes, numbers in their modules, and outputs."""
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert tensor.shape == b[name].shape, name
        assert torch.equal(tensor, b[name]), name
    assert attributes(one) == attributes(two)
    for x, y in zip(outputs(one, inputs), outputs(two, inputs), strict=True):
        assert torch.equal(x, y)


def random_plan(model: nn.Module, inputs: tuple[Tensor, ...], seed: int) -> PruningPlan:
    graph = trace(model, inputs)
    return make_plan(graph, random_keep(graph, seed, least=0.5))


#: several indices to a unit, constants in attributes, shared modules, chunks, shuffles, norms
NETS = [
    "resnet8", "resnet20", "flatten_linear", "grouped", "depthwise", "depthwise_twice", "c2f",
    "channel_shuffle", "shuffle_v2", "unet", "pixel_shuffle", "siamese", "squeeze_excite", "inception",
    "buffer", "weighted_fusion", "convnext", "layer_norm", "group_norm", "attention", "in_place_slices",
    "multihead", "encoder", "separate_attention", "relative_bias", "lstm",
]  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_one_plan_equals_two_cuts(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    first = random_plan(model, inputs, seed=1)
    slim = cut(model, first)
    second = random_plan(slim, inputs, seed=2)
    composed = compose(first, second)
    assert_equal(cut(model, composed), cut(slim, second), inputs)
    assert (composed.before, composed.after) == (first.before, second.after)
    assert is_costed(composed)
    write_value(tmp_path / "plan.json", composed)
    assert_equal(cut(model, read_plan(tmp_path / "plan.json")), cut(slim, second), inputs)


@pytest.mark.parametrize(
    "name",
    ["resnet20", "flatten_linear", "grouped", "shuffle_v2", "layer_norm", "encoder", "attention"],
)
def test_a_composed_plan_is_proven_like_any_other(name: str) -> None:
    model, inputs = build(name)
    first = random_plan(model, inputs, seed=3)
    second = random_plan(cut(model, first), inputs, seed=4)
    composed = compose(first, second)
    slim, done, proof = prove(model, composed, inputs)
    assert done.digest() == composed.digest()
    assert proof.max_error < 1e-11
    if not composed.statistics:  # else the masked network is another one
        assert cut_error(model, composed, inputs) < 1e-10
    assert_equal(slim, cut(cut(model, first), second), inputs)


def test_heads_narrowed_twice_are_scaled_once() -> None:
    """The scale of attention is folded into the queries: two factors, or their product, to rounding."""
    model, inputs = build("attention")
    graph = trace(model, inputs, attention="width")
    assert graph.folds
    first = make_plan(graph, random_keep(graph, 1, least=0.5))
    slim = cut(model, first)
    again = trace(slim, inputs, attention="width")
    second = make_plan(again, random_keep(again, 2, least=0.5))
    composed = compose(first, second)
    one, two = cut(model, composed), cut(slim, second)
    for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        outputs(one, inputs)[0], outputs(two, inputs)[0], rtol=1e-5, atol=1e-6
    )
    assert prove(model, composed, inputs)[2].max_error < 1e-11


def test_three_cuts_in_either_order_of_composing() -> None:
    model, inputs = build("resnet20")
    a = random_plan(model, inputs, seed=5)
    one = cut(model, a)
    b = random_plan(one, inputs, seed=6)
    two = cut(one, b)
    c = random_plan(two, inputs, seed=7)
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert_equal(cut(model, left), cut(two, c), inputs)
    assert_equal(cut(model, right), cut(two, c), inputs)
    assert left.digest() == right.digest()


def test_units_that_are_single_after_the_first_cut_stay() -> None:
    model, inputs = build("option_b")
    graph = trace(model, inputs)
    first = make_plan(graph, {n: [g.size - 1] for n, g in graph.groups.items() if n != "conv1"})
    slim = cut(model, first)
    again = trace(slim, inputs)
    assert "stem.0" in again.frozen, "a single unit is frozen in the slim trace"
    second = make_plan(again, {"conv1": [0, 3, 5]})
    composed = compose(first, second)
    assert "stem.0" not in composed.frozen
    assert {g.name: g.keep for g in composed.groups} == {
        "stem.0": (7,), "conv1": (0, 3, 5), "conv2": (15,),
    }  # fmt: skip
    assert_equal(cut(model, composed), cut(slim, second), inputs)


def test_constants_rewritten_twice_end_where_both_cuts_end() -> None:
    model, inputs = build("resnet20")
    graph = trace(model, inputs)
    first = make_plan(graph, {n: range(g.size // 4, g.size) for n, g in graph.groups.items()})
    slim = cut(model, first)
    again = trace(slim, inputs)
    second = make_plan(again, {n: range(1, g.size, 2) for n, g in again.groups.items()})
    assert first.constants
    assert {c.attribute for c in second.constants} == {c.attribute for c in first.constants}
    both = cut(slim, second)
    at_once = cut(model, compose(first, second))
    for constant in first.constants:
        path, _, last = constant.attribute.rpartition(".")
        values = [getattr(m.get_submodule(path), last) for m in (model, slim, both, at_once)]
        assert values[2] == values[3]
    assert_equal(at_once, both, inputs)


def test_a_group_that_the_first_plan_lacks_comes_with_the_second() -> None:
    """The first plan was made with a layer ignored, as by a graph without its group."""
    model, inputs = build("flatten_linear")
    graph = trace(model, inputs)
    name = "linear1"
    first = make_plan(graph.without({name: "left alone"}), {"features.1.0": [0, 2, 3, 7]})
    slim = cut(model, first)
    second = random_plan(slim, inputs, seed=8)
    assert any(g.name == name and g.removed for g in second.groups)
    composed = compose(first, second)
    assert name not in composed.frozen
    assert_equal(cut(model, composed), cut(slim, second), inputs)
    slices = composed.slices()
    assert max(slices["linear1.weight"][1]) > 4 * 16, "in the original's indices"


def test_a_first_cut_of_another_layout_moves_the_second_plans_own_groups() -> None:
    """Units of the second plan that lie beside the first plan's units in the same dimension."""
    members = (Member(tensor="weight", dim=0, length=8, index=np.array([[0], [1], [2], [3]])),)
    first = PlanGroup(name="a", size=4, keep=(1, 3), round_to=1, members=members)
    model, inputs = build("one_layer")
    base = make_plan(trace(model, inputs), {})
    one = dataclasses.replace(base, groups=(first,), constants=(), layers=())
    # after the first cut: 6 entries, of which 2 to 5 were 4 to 7
    beside = Member(tensor="weight", dim=0, length=6, index=np.array([[2, 3], [4, 5]]))
    other = PlanGroup(name="a", size=2, keep=(1,), round_to=1, members=(beside,))
    two = dataclasses.replace(base, groups=(other,), constants=(), layers=())
    composed = compose(one, two)
    assert [g.name for g in composed.groups] == ["a", "a#2"]
    assert composed.groups[1].members[0].index.tolist() == [[4, 5], [6, 7]]
    assert composed.groups[1].members[0].length == 8
    assert composed.slices() == {"weight": {0: [0, 2, 4, 5]}}


# ---------------------------------------------------------------- what does not go together


def test_a_plan_for_another_model_is_refused_with_what_differs() -> None:
    model, inputs = build("option_b")
    first = random_plan(model, inputs, seed=1)
    with pytest.raises(PlanError, match="was not made for what the first leaves") as caught:
        compose(first, first)
    assert "the second expects" in str(caught.value)
    other, images = build("unet")
    with pytest.raises(PlanError, match="the second plan has a layer 'down1"):
        compose(first, random_plan(other, images, seed=1))
    broken = dataclasses.replace(first, groups=(dataclasses.replace(first.groups[0], keep=()),))
    with pytest.raises(PlanError, match=r"cannot be carried out: group 'stem\.0' keeps nothing"):
        compose(broken, first)


def test_groups_that_fall_apart_when_one_channel_each_is_left() -> None:
    """Depthwise by then, whole groups of channels leave: units that the original does not have."""
    model, inputs = build("grouped")
    graph = trace(model, inputs)
    name = next(n for n, g in graph.groups.items() if g.members[0].index.shape[1] == 4)
    first = make_plan(graph, {name: [0]})
    slim = cut(model, first)
    again = trace(slim, inputs)
    finer = next(n for n, g in again.groups.items() if name == n)
    second = make_plan(again, {finer: range(again.groups[finer].size // 2)})
    assert cut_error(slim, second, inputs) < 1e-10
    with pytest.raises(PlanError, match="keep both plans, one after the other"):
        compose(first, second)


def test_a_second_cut_through_the_middle_of_a_unit_is_refused() -> None:
    model, inputs = build("flatten_linear")
    first = random_plan(model, inputs, seed=1)
    slim = cut(model, first)
    second = random_plan(slim, inputs, seed=2)
    victim = next(g for g in second.groups if len(g.members) > 1 and g.removed)
    halved = dataclasses.replace(victim, members=victim.members[:1])
    groups = tuple(halved if g is victim else g for g in second.groups)
    with pytest.raises(PlanError, match=r"removes 1 of the \d+ slices of unit"):
        compose(first, dataclasses.replace(second, groups=groups))


def test_numbers_that_do_not_follow_are_refused() -> None:
    model, inputs = build("resnet20")
    first = random_plan(model, inputs, seed=1)
    second = random_plan(cut(model, first), inputs, seed=2)
    wrong = dataclasses.replace(second.constants[0], value=99)
    with pytest.raises(PlanError, match=r"first plan leaves '.*' at \d+, the second expects 99"):
        compose(first, dataclasses.replace(second, constants=(wrong, *second.constants[1:])))
    group = next(g for g in second.groups if g.removed)
    double = Constant(
        attribute=first.constants[0].attribute,
        value=second.constants[0].value,
        of=((group.name, tuple(range(group.size))),),
        factor=7,
    )
    with pytest.raises(PlanError, match="keep both plans, one after the other"):
        compose(first, dataclasses.replace(second, constants=(double, *second.constants[1:])))
