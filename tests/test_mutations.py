"""Every rule of the tracer matters: replaced by a wrong one, in several ways, some network tells.

The networks of the other tests are traced once as they are; each meets some of the rules. Then one rule after
the other is replaced, and what is found on the networks that meet it must differ from what is right. Where
the gate still lets a cut through, the independent crossing by absence must agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import computed_nets
import indexing_nets
import pytest
import recurrent_nets
import rule_nets
import torch
from conformance.absent import Mismatch
from masking import absent_error, random_keep
from nets import PATTERN_NETS, build
from torch import Tensor, nn

from mint_deploy.errors import MintDeployError, SurgeryError
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import as_call
from mint_deploy.plan import make_plan
from mint_deploy.tracing import literals, rules
from mint_deploy.tracing.rules.table import outputs
from mint_deploy.verify import prove

RIGHT = {"rule": dict(rules.RULES), "check": dict(literals.AFTER)}
TABLES = {"rule": rules.RULES, "check": literals.AFTER}


class Small(nn.Module):
    """``stem`` -> body -> ``head``, for what no other test's network meets."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], stem: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = stem, body, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, self.stem(x)))


def halves_swapped(net: Any, x: Tensor) -> Tensor:
    first, second = x.split(x.shape[1] // 2, 1)
    return torch.cat([second, first], 1)


def small(body: Callable[[Any, Tensor], Tensor], stem: nn.Module, x: Tensor) -> Any:
    return Small(body, stem).eval(), x


def resized(net: Any, x: Tensor) -> Tensor:
    return nn.functional.interpolate(x, scale_factor=2, mode="nearest-exact").amax(2)


def pooled(net: Any, x: Tensor) -> Tensor:
    return nn.functional.avg_pool1d(x, 2)


#: whose heads lose width, not number
BY_WIDTH = " by width"

POOL: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    **{name: lambda n=name: build(n) for name in PATTERN_NETS},
    "resnet8": lambda: build("resnet8"),
    f"attention{BY_WIDTH}": lambda: build("attention"),
    "embedding": lambda: small(
        lambda m, x: x.mean(1), nn.Embedding(5, 8), torch.tensor([[0, 1, 4], [2, 3, 3]])
    ),
    "resized": lambda: small(resized, nn.Conv1d(3, 8, 1), torch.randn(2, 3, 4)),
    "channels pooled": lambda: small(pooled, nn.Linear(4, 16), torch.randn(2, 4)),
    "halves swapped": lambda: small(halves_swapped, nn.Linear(4, 8), torch.randn(2, 4)),
    **{f"rule {name}": lambda n=name: rule_nets.build(n) for name in rule_nets.CASES},
    **{f"index {name}": lambda n=name: indexing_nets.build(n) for name in indexing_nets.CASES},
    **{f"recurrent {name}": lambda n=name: recurrent_nets.build(n) for name in recurrent_nets.NETS},
    **{f"weight {name}": lambda n=name: computed_nets.build(n) for name in computed_nets.CASES},
}


def inputs_of(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    model, inputs = POOL[name]()
    return model, inputs if isinstance(inputs, tuple) else (inputs,)


def label(function: Any) -> str:
    return function.__name__.strip("_")


FUNCTIONS: dict[tuple[str, str], Any] = {
    (kind, label(f)): f for kind, table in RIGHT.items() for f in table.values()
}


def plain(reason: str) -> str:
    """A reason without the line of code: under a mutant that line is this file's."""
    return reason.split(" (")[0]


def fingerprint(graph: Graph) -> tuple[Any, ...]:
    """All that a graph says, but for the words of its reasons."""
    return (
        {
            g.name: sorted((m.tensor, m.dim, m.index.tolist()) for m in g.members)
            for g in graph.groups.values()
        },
        set(graph.frozen),
        sorted(map(repr, graph.constants)),
        {(s.op, s.call, s.axis, s.length, len(s.of)) for s in graph.statistics},
        len(graph.folds),
        graph.cost,
        {g.name: [plain(r) for r in g.restricted] for g in graph.groups.values()},
        [plain(n) for n in graph.notes],
    )


# ---------------------------------------------------------------- ways of being wrong


def dropped(function: Any, *args: Any) -> None:
    """The result is a constant; nothing is checked."""


def first_operand(function: Any, *args: Any) -> None:
    """The result has the first operand's labels, nothing is united, tied or frozen."""
    t, op = args[0], args[1]
    known = [x for x in map(t.labels, op.inputs) if x is not None and x.numel()]
    for out in outputs(op.out) if known else ():
        labels = known[0]
        if labels.numel() == out.numel():
            labels = labels.reshape(out.shape)
        elif labels.dim() == out.dim():
            for axis, (have, want) in enumerate(zip(labels.shape, out.shape, strict=True)):
                if have != want:  # what is too long is cut off, what is too short repeats
                    labels = labels.repeat_interleave(-(-want // have), axis).narrow(axis, 0, want)
        else:
            labels = labels.reshape(-1)[0].expand(out.shape)
        t.put(out, labels.expand(out.shape))


def without(*methods: str) -> Any:
    """The rule runs, but what it says by these methods is not heard."""

    def mutant(function: Any, *args: Any) -> Any:
        t = args[0]
        owners = [(o, m) for m in methods for o in (t, t.book) if hasattr(type(o), m)]
        for owner, method in owners:
            setattr(owner, method, lambda *_, **__: None)
        try:
            return function(*args)
        finally:
            for owner, method in owners:
                delattr(owner, method)

    return mutant


WAYS: dict[str, Callable[[], Any]] = {
    "drops labels": lambda: dropped,
    "first operand": lambda: first_operand,
    "unites nothing": lambda: without("unite", "read_channels", "tie_parameter"),
    "freezes nothing": lambda: without("freeze", "freeze_tensor", "keep_length"),
    "counts nothing": lambda: without("count", "statistic", "fold_scale"),
}

#: (rule or check, its name, what is wrong with it) -> a network on which that shows
WITNESSES: dict[tuple[str, str, str], str] = {
    ("rule", "batch_norm", "drops labels"): "flatten_linear",
    ("rule", "batch_norm", "first operand"): "flatten_linear",
    ("rule", "batch_norm", "unites nothing"): "flatten_linear",
    ("rule", "layer_norm", "drops labels"): "attention",
    ("rule", "layer_norm", "first operand"): "attention",
    ("rule", "layer_norm", "unites nothing"): "attention",
    ("rule", "layer_norm", "counts nothing"): "attention",
    ("rule", "group_norm", "drops labels"): "group_norm",
    ("rule", "group_norm", "first operand"): "group_norm",
    ("rule", "group_norm", "unites nothing"): "group_norm",
    ("rule", "group_norm", "counts nothing"): "group_norm",
    ("rule", "softmax", "drops labels"): "multihead",
    ("rule", "softmax", "first operand"): "rule softmax_of_channels",
    ("rule", "softmax", "counts nothing"): "rule softmax_of_channels",
    ("rule", "cumulated", "drops labels"): "rule cumulated_channels",
    ("rule", "cumulated", "first operand"): "rule cumulated_channels",
    ("rule", "cumulated", "freezes nothing"): "rule cumulated_channels",
    ("rule", "reduce", "drops labels"): "option_b",
    ("rule", "reduce", "first operand"): "option_b",
    ("rule", "reduce", "counts nothing"): "item_escape",
    ("rule", "spatial", "first operand"): "channels pooled",
    ("rule", "spatial", "unites nothing"): "channels pooled",
    ("rule", "spatial", "drops labels"): "flatten_linear",
    ("rule", "select", "drops labels"): "relative_bias",
    ("rule", "select", "first operand"): "relative_bias",
    ("rule", "select", "freezes nothing"): "rule roll",
    ("rule", "scatter", "drops labels"): "rule scatter",
    ("rule", "scatter", "first operand"): "rule scatter",
    ("rule", "scatter", "freezes nothing"): "rule scatter",
    ("rule", "ordered", "drops labels"): "rule argmax",
    ("rule", "ordered", "first operand"): "rule argmax",
    ("rule", "ordered", "freezes nothing"): "rule argmax",
    ("rule", "triangle", "drops labels"): "index triangle",
    ("rule", "triangle", "first operand"): "index triangle_of_channels",
    ("rule", "triangle", "freezes nothing"): "index triangle_of_channels",
    ("rule", "distances", "drops labels"): "index distances",
    ("rule", "distances", "freezes nothing"): "index distances",
    ("rule", "sampled", "drops labels"): "index grid_sample",
    ("rule", "sampled", "first operand"): "index grid_sample_computed",
    ("rule", "sampled", "freezes nothing"): "index grid_sample_computed",
    ("rule", "unpooled", "drops labels"): "rule unpool",
    ("rule", "windows", "drops labels"): "rule unfold",
    ("rule", "windows", "first operand"): "rule unfold",
    ("rule", "folded", "drops labels"): "index fold",
    ("rule", "folded", "first operand"): "index fold",
    ("rule", "folded", "unites nothing"): "index folded_taps",
    ("rule", "fourier", "drops labels"): "rule fourier_filter",
    ("rule", "fourier", "first operand"): "index spectrum_of_channels",
    ("rule", "fourier", "freezes nothing"): "index spectrum_of_channels",
    ("rule", "convolution", "drops labels"): "flatten_linear",
    ("rule", "convolution", "first operand"): "flatten_linear",
    ("rule", "convolution", "unites nothing"): "flatten_linear",
    ("rule", "convolution", "freezes nothing"): "rule depthwise_literal",
    ("rule", "convolution", "counts nothing"): "squeeze_excite",
    ("rule", "matmul", "drops labels"): "flatten_linear",
    ("rule", "matmul", "first operand"): "flatten_linear",
    ("rule", "matmul", "unites nothing"): "flatten_linear",
    ("rule", "matmul", "freezes nothing"): "rule matmul_left",
    ("rule", "matmul", "counts nothing"): "rule non_local",
    ("rule", "cat", "drops labels"): "unet",
    ("rule", "cat", "first operand"): "unet",
    ("rule", "cat", "unites nothing"): "attention",
    ("rule", "pad", "drops labels"): "cross_attention",
    ("rule", "pad", "first operand"): "rule pad_channels_by_attribute",
    ("rule", "pad", "freezes nothing"): "rule crop_channels",
    ("rule", "pad", "counts nothing"): "resnet8",
    ("rule", "move", "drops labels"): "pixel_shuffle",
    ("rule", "move", "first operand"): "rule blur_repeated",
    ("rule", "shuffle", "drops labels"): "shuffle_v2",
    ("rule", "shuffle", "first operand"): "shuffle_v2",
    ("rule", "shuffle", "unites nothing"): "shuffle_v2",
    ("rule", "write", "drops labels"): "in_place_slices",
    ("rule", "write", "first operand"): "in_place_slices",
    ("rule", "write", "unites nothing"): "rule set_half_to_another",
    ("rule", "made_anew", "first operand"): "in_place_slices",
    ("rule", "escape", "drops labels"): "item_escape",
    ("rule", "escape", "first operand"): "item_escape",
    ("rule", "escape", "freezes nothing"): "rule item",
    ("rule", "glu", "drops labels"): "rule glu",
    ("rule", "glu", "first operand"): "rule glu",
    ("rule", "glu", "unites nothing"): "rule glu",
    ("rule", "same_shape", "drops labels"): "flatten_linear",
    ("rule", "same_shape", "first operand"): "relative_bias",
    ("rule", "same_shape", "unites nothing"): "rule prelu",
    ("rule", "pack", "drops labels"): "recurrent lstm_packed",
    ("rule", "pack", "first operand"): "recurrent lstm_packed",
    ("check", "chunk", "drops labels"): "shuffle_v2",
    ("check", "chunk", "unites nothing"): "shuffle_v2",
    ("check", "chunk", "freezes nothing"): "rule chunk_uneven",
    ("check", "split", "drops labels"): "literal_split",
    ("check", "split", "freezes nothing"): "literal_split",
    ("check", "split", "counts nothing"): "literal_split",
    ("check", "split", "unites nothing"): "halves swapped",
    ("check", "one_by_one", "drops labels"): "rule unbound",
    ("check", "one_by_one", "freezes nothing"): "rule unbound",
    ("check", "narrow", "drops labels"): "rule narrow_by_attributes",
    ("check", "narrow", "freezes nothing"): "rule narrow_by_literals",
    ("check", "narrow", "counts nothing"): "rule narrow_by_attributes",
    ("check", "item", "drops labels"): "literal_slice",
    ("check", "item", "unites nothing"): "in_place_slices",
    ("check", "item", "freezes nothing"): "literal_slice",
    ("check", "item", "counts nothing"): "literal_slice",
    ("check", "view", "drops labels"): "attention",
    ("check", "view", "unites nothing"): "attention",
    ("check", "view", "freezes nothing"): "literal_view",
    ("check", "view", "counts nothing"): "attention",
    ("check", "normalised_shape", "drops labels"): "attention",
    ("check", "normalised_shape", "counts nothing"): "attention",
    ("check", "escapes", "drops labels"): "rule numpy",
    ("check", "escapes", "freezes nothing"): "rule numpy",
    ("check", "unpack", "drops labels"): "recurrent lstm_packed",
    ("rule", "embedding", "drops labels"): "embedding",
    ("rule", "embedding", "first operand"): "embedding",
    ("rule", "resized", "drops labels"): "resized",
    ("check", "attention", "drops labels"): "attention by width",
    ("check", "attention", "counts nothing"): "attention by width",
}  # fmt: skip

#: mutants that are no other tracer, or that this file's networks do not meet, with the reason
EQUIVALENT: dict[tuple[str, str, str], str] = {
    ("rule", "made_anew", "drops labels"): "a constant made anew has none: this IS the rule",
    ("rule", "unpooled", "first operand"): "its second operand, the places, has the same labels",
    ("rule", "resized", "first operand"): "alike all over space, labels are the same resized or not",
    ("rule", "distances", "first operand"): "nothing to unite in a distance from itself",
    ("rule", "regions", "drops labels"): "torchvision's; with stand-ins, test_indexing_rules.py tells",
    ("rule", "regions", "first operand"): "torchvision's; with stand-ins, test_indexing_rules.py tells",
    ("rule", "deformable", "drops labels"): "torchvision's; with stand-ins, test_indexing_rules.py tells",
    ("rule", "deformable", "first operand"): "torchvision's; with stand-ins, test_indexing_rules.py tells",
}  # fmt: skip


@contextmanager
def replaced(kind: str, name: str, way: Any) -> Iterator[None]:
    function, table = FUNCTIONS[kind, name], TABLES[kind]
    keys = [key for key, f in RIGHT[kind].items() if f is function]
    try:
        table.update(dict.fromkeys(keys, lambda *args: way(function, *args)))
        yield
    finally:
        table.update(dict.fromkeys(keys, function))


def found(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Graph]:
    model, inputs = inputs_of(name)
    how = "width" if name.endswith(BY_WIDTH) else "heads"
    return model, inputs, find_groups(model, as_call(inputs), attention=how)


@cache
def right(name: str) -> tuple[Any, ...]:
    return fingerprint(found(name)[2])


def noticed(kind: str, rule: str, way: str, name: str) -> bool:
    """Whether the mutant is told from the right tracer on this network; it must not be proven if wrong."""
    wanted = right(name)
    with replaced(kind, rule, WAYS[way]()):
        try:
            model, inputs, graph = found(name)
        except MintDeployError:
            return True
        if fingerprint(graph) == wanted:
            return False
        never_proven_wrong(model, inputs, graph)
    return True


def never_proven_wrong(model: nn.Module, inputs: tuple[Tensor, ...], graph: Graph) -> None:
    if not graph.groups:
        return
    plan = make_plan(graph, random_keep(graph, 1, least=0.3))
    try:
        _, done, _ = prove(model, plan, inputs)
    except SurgeryError:
        return
    try:
        error = absent_error(model, done, inputs)
    except Mismatch as wrong:
        raise AssertionError(f"proven, yet there is no such network: {wrong}") from wrong
    assert error < 1e-8


@pytest.mark.parametrize("mutant", WITNESSES, ids=": ".join)
def test_every_wrong_rule_is_noticed(mutant: tuple[str, str, str]) -> None:
    assert noticed(*mutant, WITNESSES[mutant])


def test_every_rule_has_its_mutants() -> None:
    """A new rule needs a network that tells it from one that drops labels or unites nothing."""
    known = {**WITNESSES, **EQUIVALENT}
    for kind, rule in FUNCTIONS:
        assert (kind, rule, "drops labels") in known
        assert kind == "check" or (kind, rule, "first operand") in known
    assert not WITNESSES.keys() & EQUIVALENT.keys()


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS)
def test_no_wrong_rule_is_proven_on_any_network(way: str) -> None:
    for kind, rule in FUNCTIONS:
        for name in POOL:
            if kind == "rule" or way != "first operand":
                noticed(kind, rule, way, name)
