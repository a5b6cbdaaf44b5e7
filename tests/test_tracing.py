"""Numbers, labels and the book of the tracer; what each operator does is in test_rules.py."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mint_deploy.tracing.assemble import assemble
from mint_deploy.tracing.labels import NONE, LabelStore, compress, pairs
from mint_deploy.tracing.ledger import Ledger
from mint_deploy.tracing.numbers import Whole, attribute_of, from_shape
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.tracing.tracer import Tracer, mark_attributes

# ---------------------------------------------------------------- numbers


def test_a_whole_number_is_an_int_to_everybody_else() -> None:
    width = Whole(8, "attribute", "body.width")
    assert isinstance(width, int)
    assert (width, hash(width), list(range(width))) == (8, hash(8), list(range(8)))
    assert torch.zeros(width).shape == (8,)
    assert type(pickle.loads(pickle.dumps(width))) is int
    assert copy.deepcopy({"n": width})["n"] is width


@pytest.mark.parametrize(
    "made",
    [
        lambda n: n // 2, lambda n: 2 * n, lambda n: n * 2, lambda n: n - 1, lambda n: 1 + n,
        lambda n: n % 5, lambda n: 64 // n, lambda n: -n, lambda n: n * n, lambda n: 20 - n,
        lambda n: 20 % n,
    ],
)  # fmt: skip
def test_arithmetic_on_a_shape_stays_a_shape_and_on_an_attribute_is_remembered_as_computed(
    made: object,
) -> None:
    shape, attribute = Whole(8), Whole(8, "attribute", "body.width")
    assert made(shape) == made(8) == made(attribute)
    assert from_shape(made(shape))
    assert not from_shape(made(attribute))
    assert attribute_of(made(attribute)) is None
    assert made(attribute).path == "body.width"


def test_a_shape_mixed_with_an_attribute_does_not_follow_from_the_shape() -> None:
    assert not from_shape(Whole(8) - Whole(2, "attribute", "a"))
    assert not from_shape(Whole(2, "attribute", "a") + Whole(8))
    assert from_shape(Whole(8) - Whole(2))


def test_division_that_leaves_the_whole_numbers_loses_the_origin() -> None:
    assert type(Whole(8) / 2) is float
    assert not from_shape(int(Whole(8) / 2))


def test_origins_are_told_apart() -> None:
    assert attribute_of(Whole(8, "attribute", "a.b")) == "a.b"
    assert attribute_of(Whole(8)) is None
    assert attribute_of(8) is None
    assert [from_shape(v) for v in (Whole(8), -1, 8, Whole(8, "attribute", "a"), None)] == [
        True, True, False, False, False,
    ]  # fmt: skip


def test_attributes_are_marked_with_their_paths_and_flags_are_left_alone() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.width, self.sizes, self.flag, self.share = 8, [2, 6], True, 0.5
            self.mixed = (1, "a")

    model = nn.Sequential(Inner())
    mark_attributes(model)
    inner = model[0]
    assert attribute_of(inner.width) == "0.width"
    assert [attribute_of(v) for v in inner.sizes] == ["0.sizes[0]", "0.sizes[1]"]
    assert inner.sizes == [2, 6]
    assert isinstance(inner.sizes, list)
    assert inner.flag is True
    assert type(inner.mixed[0]) is int
    assert type(inner.training) is bool


# ---------------------------------------------------------------- labels


def test_labels_alias_exactly_as_the_data_does() -> None:
    store = LabelStore()
    x = torch.zeros(2, 6)
    store.put(x, torch.arange(6).expand(2, 6))
    assert store.get(x.view(2, 3, 2))[0].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert store.get(x.t()[4]).tolist() == [4, 4]
    assert store.get(x[:, 1::2])[1].tolist() == [1, 3, 5]
    store.put(x[:, 2:4], torch.tensor([70, 80]))
    assert store.get(x)[0].tolist() == [0, 1, 70, 80, 4, 5]
    assert store.get(torch.zeros(2, 6)) is None
    assert x in store
    assert x.clone() not in store


def test_what_was_never_labelled_is_a_constant() -> None:
    store = LabelStore()
    x = torch.zeros(4)
    store.put(x[1:3], torch.tensor([5, 6]))
    assert store.get(x).tolist() == [NONE, 5, 6, NONE]


def test_elements_of_another_size_have_no_labels() -> None:
    store = LabelStore()
    x = torch.zeros(4)
    store.put(x, torch.arange(4))
    assert store.get(x.view(torch.int32)).tolist() == [0, 1, 2, 3]
    assert store.get(x.view(torch.int64)) is None


def test_compress_narrows_the_axes_that_say_nothing() -> None:
    labels = torch.arange(3).view(1, 3, 1).expand(2, 3, 4)
    (narrow,), varies = compress(labels)
    assert narrow.shape == (1, 3, 1)
    assert varies == [False, True, False]
    other = torch.zeros(2, 3, 4, dtype=torch.int64)
    other[1] = 1
    (a, b), varies = compress(labels, other)
    assert a.shape == b.shape == (2, 3, 1)
    assert varies == [True, True, False]


def test_pairs_are_what_meets_and_differs() -> None:
    a = torch.tensor([[0], [1], [NONE]])
    b = torch.tensor([[0, 7]])
    first, second = pairs(a, b)
    assert sorted(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 7), (1, 0), (1, 7)]


def test_many_pairs_come_once_each() -> None:
    many = torch.arange(5000) % 50
    first, second = pairs(many.view(-1, 1), torch.tensor([[100, 101]]))
    assert first.numel() == 100
    assert set(second.tolist()) == {100, 101}


# ---------------------------------------------------------------- the book


def book() -> Ledger:
    return Ledger(shapes={"a": (4, 3), "b": (4,), "c": (2, 4)})


def units(ledger: Ledger, nodes: torch.Tensor) -> list[int]:
    component, _, _ = ledger.components()
    return component[nodes.numpy()].tolist()


def reasons(ledger: Ledger, nodes: torch.Tensor) -> list[list[str]]:
    component, why, _ = ledger.components()
    return [why.get(int(c), []) for c in component[nodes.numpy()]]


def test_every_index_of_every_dimension_is_a_node_of_its_own() -> None:
    ledger = book()
    assert ledger.nodes("a", 0).tolist() == [0, 1, 2, 3]
    assert ledger.nodes("a", 1).tolist() == [4, 5, 6]
    assert ledger.nodes("c", 1).tolist() == [13, 14, 15, 16]
    assert ledger.fresh(2).tolist() == [17, 18]
    assert ledger.parameter_nodes == 17


def test_united_nodes_are_one_unit_also_over_others() -> None:
    ledger = book()
    ledger.unite(ledger.nodes("a", 0), ledger.nodes("b", 0))
    ledger.unite(ledger.nodes("b", 0), ledger.nodes("c", 1))
    a = units(ledger, ledger.nodes("a", 0))
    assert a == units(ledger, ledger.nodes("c", 1))
    assert len(set(a)) == 4
    assert set(a).isdisjoint(units(ledger, ledger.nodes("a", 1)))


def test_a_freeze_reaches_the_whole_unit_and_no_other() -> None:
    ledger = book()
    ledger.unite(ledger.nodes("a", 0), ledger.nodes("b", 0))
    ledger.freeze(ledger.nodes("b", 0)[:1], "because")
    ledger.freeze(ledger.nodes("b", 0)[:1], "because")
    assert reasons(ledger, ledger.nodes("a", 0)) == [["because"], [], [], []]


def test_a_sink_freezes_what_it_meets_and_joins_nothing() -> None:
    ledger = book()
    sink = torch.tensor(ledger.sink("meets a wall"))
    ledger.unite(sink, ledger.nodes("a", 0))
    ledger.unite(ledger.nodes("b", 0), sink)
    assert reasons(ledger, ledger.nodes("a", 0)) == [["meets a wall"]] * 4
    assert reasons(ledger, ledger.nodes("b", 0)) == [["meets a wall"]] * 4
    assert len({*units(ledger, ledger.nodes("a", 0)), *units(ledger, ledger.nodes("b", 0))}) == 8


def test_a_fixed_length_freezes_unless_the_axis_holds_one_unit_at_each_place() -> None:
    ledger = book()
    ledger.keep_length(ledger.nodes("a", 0).view(2, 2), 0, "fixed")
    assert reasons(ledger, ledger.nodes("a", 0)) == [["fixed"]] * 4
    ledger = book()
    heads = ledger.nodes("a", 0).view(2, 2)
    ledger.unite(heads, heads[:1])
    ledger.keep_length(heads, 0, "fixed")
    assert reasons(ledger, ledger.nodes("a", 0)) == [[]] * 4
    ledger.unite(heads, heads[:, :1])
    assert reasons(ledger, ledger.nodes("a", 0)) == [["fixed"]] * 4


def test_a_fixed_length_of_an_axis_without_channels_says_nothing() -> None:
    ledger = book()
    ledger.keep_length(ledger.nodes("a", 0).view(4, 1).expand(4, 3), 1, "fixed")
    assert reasons(ledger, ledger.nodes("a", 0)) == [[]] * 4


def test_only_nodes_that_a_rule_met_form_units() -> None:
    ledger = book()
    assert ledger.components()[2].size == 0
    ledger.unite(ledger.nodes("a", 0), ledger.nodes("b", 0))
    ledger.touch(torch.tensor([[NONE, 13]]))
    assert ledger.components()[2].tolist() == [0, 1, 2, 3, 7, 8, 9, 10, 13]


# ---------------------------------------------------------------- watching a forward pass


def traced(model: nn.Module, *inputs: torch.Tensor) -> Tracer:
    model = copy.deepcopy(model).eval()
    mark_attributes(model)
    tracer = Tracer(model)
    tracer.run(model, inputs, {})
    return tracer


def test_shared_parameters_are_one_tensor_under_their_first_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert list(tensors_of(model)) == ["0.weight", "0.bias", "1.bias"]


def test_layers_know_what_they_are_and_how_often_they_run() -> None:
    conv = nn.Conv2d(3, 6, 3, padding=1)
    model = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 3, 2, 2), conv)
    layers = traced(model, torch.randn(2, 3, 4, 4)).book.layers
    assert list(layers) == ["0.weight", "2.weight"]
    first, second = layers["0.weight"], layers["2.weight"]
    assert (first.kind, first.bias, first.in_dim, first.out_dim) == ("conv", "0.bias", 1, 0)
    assert (first.taps, first.groups, first.calls, first.normalised) == (9, 1, 2, True)
    assert first.positions == 2 * 16 + 2 * 64
    assert (second.kind, second.in_dim, second.out_dim) == ("conv_transpose", 0, 1)
    assert (second.positions, second.normalised) == (2 * 16, False)


def test_the_place_in_the_users_code_is_told() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x).renorm(2, 0, 1.0)

    made = assemble(traced(nn.Sequential(Odd()), torch.randn(2, 4)))
    assert "no rule for the operator 'renorm' (in '0', test_tracing.py:" in made.frozen["0.layer"]


def test_every_unit_of_a_group_lies_at_the_same_kind_of_places() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 2)
    )
    made = assemble(traced(model, torch.randn(2, 3, 4, 4)))
    group = next(g for g in made.groups if g.name == "0")
    members = {(m.tensor, m.dim): m for m in group.members}
    assert set(members) == {
        ("0.weight", 0), ("0.bias", 0), ("1.weight", 0), ("1.bias", 0), ("1.running_mean", 0),
        ("1.running_var", 0), ("3.weight", 1),
    }  # fmt: skip
    assert np.array_equal(members["0.bias", 0].index, np.arange(4)[:, None])
    assert np.array_equal(members["3.weight", 1].index, np.arange(16).reshape(4, 4))
    assert [m for m, member in members.items() if member.reads] == [("3.weight", 1)]
    assert (group.producers, group.consumers) == (("0.weight",), ("3.weight",))


def test_a_transposed_weight_and_a_packed_one_are_understood() -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Parameter(torch.randn(8, 4))
            self.shift = nn.Parameter(torch.randn(8))
            self.out = nn.Parameter(torch.randn(4, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w, b = self.both.chunk(2), self.shift.chunk(2)
            y = nn.functional.linear(x, w[0], b[0]) * nn.functional.linear(x, w[1], b[1])
            return y @ self.out

    tracer = traced(Packed(), torch.randn(2, 4))
    component, reasons_, _ = tracer.book.components()
    both = component[tracer.book.nodes("both", 0).numpy()].tolist()
    assert both[:4] == both[4:]
    assert both[:4] == component[tracer.book.nodes("out", 0).numpy()].tolist()
    assert both == component[tracer.book.nodes("shift", 0).numpy()].tolist()
    assert not any(c in reasons_ for c in both)


def test_the_copy_that_ran_has_no_hooks_left() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).eval()
    Tracer(model).run(model, (torch.randn(2, 4),), {})
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
