"""The gate: right cuts are proven, wrong ones never are, and what fails is rolled back with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import rule_nets
import torch
from masking import cut_error, random_keep
from nets import NETS, ZOO_NETS, build
from snapshots import assert_untouched, snapshot
from torch import Tensor, nn

from mint_deploy import steps
from mint_deploy.artifacts import PruningPlan
from mint_deploy.culprits import culprits, keep_only
from mint_deploy.dead import Dead
from mint_deploy.errors import MintDeployError, PlanError, SurgeryError, TraceError
from mint_deploy.files import read_json, read_value
from mint_deploy.gate import masked, permuted, prepared, relative_error, run, sabotaged
from mint_deploy.inputs import as_call, cast
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.tracing import literals, rules
from mint_deploy.tracing.labels import NONE
from mint_deploy.verify import POWER, TOLERANCE, prove, verify

LARGE = ("resnet50", "densenet121", "vgg16_bn", "vgg16_bn_literal_view")


def planned(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...], PruningPlan]:
    model, inputs = build(name)
    graph = trace(model, inputs, probe=False)
    return model, inputs, make_plan(graph, random_keep(graph, seed, least=0.3))


# ---------------------------------------------------------------- right cuts


#: nothing of it can be cut; or what can is told apart only by the probe
UNPLANNED = ("one_layer", "seq2seq", "width_from_input")


@pytest.mark.parametrize("name", [n for n in NETS if n not in (*UNPLANNED, *LARGE)])
def test_right_cuts_are_proven(name: str) -> None:
    model, inputs, plan = planned(name)
    before = snapshot(model)
    slim, done, proof = prove(model, plan, inputs, sample=8)
    assert_untouched(model, before)
    assert proof.max_error < 1e-11
    assert proof.least_power is not None
    assert proof.least_power >= POWER * TOLERANCE
    assert done is plan
    assert {g.status for g in proof.groups.values()} == {"proven"}
    assert proof.sampled == min(8, len(plan.groups))
    assert sum(p.numel() for p in slim.parameters()) == plan.after.params


def test_the_proof_says_what_was_looked_at() -> None:
    model, inputs, plan = planned("option_b")
    plan = keep_only(plan, ["stem.0", "conv1"])
    proof = verify(model, cut(model, plan), plan, inputs)
    assert [g.status for g in proof.groups.values()] == ["proven", "proven", "whole"]
    assert proof.groups["conv2"].power is None
    assert proof.groups["conv1"].layers == ("conv1", "bn1", "conv2")
    assert (proof.groups["conv1"].size, proof.sampled) == (16, 2)
    assert proof.seconds > 0
    assert proof.max_error == max(
        proof.permutation, proof.restriction, proof.permutation_redrawn, proof.restriction_redrawn
    )


def test_an_empty_plan_is_proven_without_a_sample() -> None:
    model, inputs, plan = planned("option_b")
    whole = keep_only(plan, [])
    proof = verify(model, cut(model, whole), whole, inputs)
    assert (proof.max_error, proof.sampled, proof.least_power) == (0, 0, None)
    assert {g.status for g in proof.groups.values()} == {"whole"}


def test_training_mode_half_precision_and_wrappers_are_proven_too() -> None:
    model, inputs, plan = planned("option_b")
    model.train().half()
    given = tuple(x.half() for x in inputs)
    slim, _, proof = prove(torch.compile(model), plan, given)
    assert proof.max_error < 1e-11
    assert slim.training
    assert slim.conv1.weight.dtype == torch.float16


class Body(nn.Module):
    """A stem, a body given as a function, a head."""

    def __init__(self, body: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner, self.head = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        for name, part in parts.items():
            setattr(self, name, part)
        self.body = body
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self, torch.relu(self.stem(x))))


def inner(net: Any, x: Tensor) -> Tensor:
    return torch.relu(net.inner(x))


def proven(model: nn.Module, keep: dict[str, Any] | None = None) -> Any:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    graph = trace(model, x)
    keep = keep or {n: range(g.size // 2) for n, g in graph.groups.items()}
    return prove(model, make_plan(graph, keep), x)


def test_casts_written_in_the_code_follow_the_gates_precision() -> None:
    def islands(net: Any, x: Tensor) -> Tensor:
        y = nn.functional.softplus(inner(net, x.float()).to(torch.float32)).half().float()
        return y + torch.ones(1, dtype=torch.float32)

    _, _, proof = proven(Body(islands))
    assert proof.max_error < 1e-11
    assert torch.get_default_dtype() == torch.float32


def test_constants_made_in_the_forward_pass_follow_too() -> None:
    def blurred(net: Any, x: Tensor) -> Tensor:
        return nn.functional.linear(inner(net, x), torch.eye(x.shape[0] + 6) * 2)

    _, _, proof = proven(Body(blurred), {"stem": range(5)})
    assert proof.max_error < 1e-11


def test_a_tiny_layer_scale_does_not_blind_the_gate() -> None:
    def scaled(net: Any, x: Tensor) -> Tensor:
        return inner(net, x) * net.scale

    model = Body(scaled, scale=nn.Parameter(torch.full((10,), 1e-6)))
    _, _, proof = proven(model)
    assert proof.least_power > 1e-4


def test_parameters_that_must_not_be_redrawn_are_left_alone() -> None:
    def logarithm(net: Any, x: Tensor) -> Tensor:
        return inner(net, x) + torch.log(net.level - 99).sum()

    _, _, proof = proven(Body(logarithm, level=nn.Parameter(torch.tensor([100.0, 101.0]))))
    assert proof.max_error < 1e-11
    assert {g.status for g in proof.groups.values()} == {"proven"}


def test_inputs_that_must_not_be_noise_are_taken_as_given() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(torch.relu(net.inner(torch.relu(net.stem(torch.log(x))))))

    model = Body(inner)
    model.forward = forward.__get__(model)
    x = torch.rand(4, 6) + 0.1
    graph = trace(model, x)
    assert set(graph.groups) == {"stem", "inner"}
    _, _, proof = prove(model, make_plan(graph, {"stem": range(5)}), x)
    assert proof.max_error < 1e-11


# ---------------------------------------------------------------- wrong cuts


@pytest.mark.parametrize("name", ["option_b", "squeeze_excite", "channel_shuffle", "depthwise"])
def test_two_swapped_units_anywhere_are_seen(name: str) -> None:
    model, inputs, plan = planned(name)
    for group in plan.groups:
        if len(group.keep) < 2:
            continue
        for seed in range(3):
            wrong = sabotaged(cut(model, plan), plan, group, seed)
            with pytest.raises(SurgeryError, match="of the cut network is not what the plan"):
                verify(model, wrong, plan, inputs)


def test_other_units_than_planned_are_seen() -> None:
    model, inputs, plan = planned("option_b")
    group = plan.groups[1]
    shifted = tuple((u + 1) % group.size for u in group.keep)
    other = dataclasses.replace(
        plan,
        groups=tuple(
            dataclasses.replace(g, keep=tuple(sorted(shifted))) if g is group else g
            for g in plan.groups
        ),
    )
    with pytest.raises(SurgeryError, match="of the cut network is not what the plan leaves"):
        verify(model, cut(model, other), plan, inputs)
    fewer = keep_only(plan, [])
    with pytest.raises(SurgeryError, match=r"has shape \[8, 3, 3, 3\], the plan leaves"):
        verify(model, cut(model, fewer), plan, inputs)


def test_a_value_that_was_changed_after_the_cut_is_seen() -> None:
    model, inputs, plan = planned("option_b")
    slim = cut(model, plan)
    with torch.no_grad():
        slim.head.bias[0] += 1e-6
    with pytest.raises(SurgeryError, match=r"'head.bias' of the cut network is not"):
        verify(model, slim, plan, inputs)


def test_a_forward_pass_that_differs_is_seen() -> None:
    model, inputs, plan = planned("option_b")
    slim = cut(model, plan)
    slim.bn1.eps = 0.1
    with pytest.raises(
        SurgeryError, match=r"differs from the masked one .*; nothing was kept of it"
    ):
        verify(model, slim, plan, inputs)


def incomplete(plan: PruningPlan, group: str, tensor: str) -> PruningPlan:
    """The plan without one member of a group."""
    return dataclasses.replace(
        plan,
        groups=tuple(
            dataclasses.replace(g, members=tuple(m for m in g.members if m.tensor != tensor))
            if g.name == group
            else g
            for g in plan.groups
        ),
    )


def test_a_coupling_that_is_missing_is_rolled_back_and_the_rest_is_cut() -> None:
    model, inputs, plan = planned("option_b")
    wrong = incomplete(plan, "conv1", "bn1.running_mean")
    slim, done, proof = prove(model, wrong, inputs)
    assert proof.groups["conv1"].status == "rolled back"
    assert "raises RuntimeError" in proof.groups["conv1"].reason
    assert done.frozen["conv1"] == proof.groups["conv1"].reason
    assert slim.conv1.out_channels == 16
    assert slim.stem[0].out_channels < 8
    assert proof.groups["stem.0"].status == "proven"
    assert proof.max_error < 1e-11
    assert [g.keep for g in done.groups if g.name != "conv1"] == [
        g.keep for g in plan.groups if g.name != "conv1"
    ]


def test_permutation_alone_sees_a_coupling_that_no_shape_betrays() -> None:
    """A buffer read by position: the cut one is as long, and wrong."""

    def ranked(net: Any, x: Tensor) -> Tensor:
        y = torch.relu(net.inner(x))
        return y * torch.linspace(0.5, 1.5, 10)[: y.shape[1]]

    model = Body(ranked)
    x = torch.randn(4, 6)
    graph = trace(model, x, probe=False)
    plan = make_plan(graph, {"inner": range(7), "stem": range(9)})
    dense, given = prepared(model, torch.float64), cast(as_call(x), torch.float64)
    base = run(dense, given)
    assert relative_error(run(masked(dense, plan), given), run(cut(dense, plan), given)) < 1e-12
    assert relative_error(run(permuted(dense, plan, 0), given), base) > 1e-3
    _, done, proof = prove(model, plan, x)
    assert proof.groups["inner"].status == "rolled back"
    assert "cannot change places" in done.frozen["inner"]
    assert "inner" in trace(model, x).frozen


def test_a_literal_that_breaks_only_at_run_time_freezes_its_group_alone() -> None:
    def literal(net: Any, x: Tensor) -> Tensor:
        return inner(net, x) + torch.zeros(10)

    model = Body(literal)
    x = torch.randn(4, 6)
    graph = trace(model, x, probe=False)
    plan = make_plan(graph, {n: range(g.size // 2) for n, g in graph.groups.items()})
    slim, done, proof = prove(model, plan, x)
    assert (slim.stem.out_features, slim.inner.out_features) == (6, 10)
    assert (
        "once cut, the network raises RuntimeError: The size of tensor a (5)"
        in (done.frozen["inner"])
    )
    assert [g.status for g in proof.groups.values()] == ["proven", "rolled back"]
    probed = trace(model, x)
    assert list(probed.groups) == ["stem"]
    assert probed.frozen["inner"].startswith("once cut")


def test_where_nothing_can_be_cut_the_reasons_are_given() -> None:
    model, inputs, plan = planned("option_b")
    for group in plan.groups:
        plan = incomplete(plan, group.name, group.members[1].tensor)
    with pytest.raises(SurgeryError, match=r"no group of the plan could be cut: stem\.0: "):
        prove(model, plan, inputs)


def test_groups_that_fail_only_together_lose_one_of_them() -> None:
    def either(net: Any, x: Tensor) -> Tensor:
        y = inner(net, x)
        if x.shape[1] < 12 and y.shape[1] < 10:
            raise ValueError("not both")
        return y

    model = Body(either)
    x = torch.randn(4, 6)
    plan = make_plan(trace(model, x, probe=False), {"stem": range(6), "inner": range(5)})
    _, done, proof = prove(model, plan, x)
    assert sorted(g.status for g in proof.groups.values()) == ["proven", "rolled back"]
    assert "not both" in next(iter(done.frozen[n] for n in ("stem", "inner") if n in done.frozen))


def test_a_bad_plan_is_named_not_rolled_back() -> None:
    model, inputs, plan = planned("option_b")
    other, _, _ = planned("unet")
    with pytest.raises(PlanError, match="does not fit this model"):
        prove(other, plan, inputs)
    outside = dataclasses.replace(plan.groups[0], keep=(0, 99))
    with pytest.raises(PlanError, match="distinct sorted indices"):
        prove(model, dataclasses.replace(plan, groups=(outside, *plan.groups[1:])), inputs)


def test_inputs_that_do_not_fit_are_named() -> None:
    model, _, plan = planned("option_b")
    with pytest.raises(TraceError, match="float64, where the model raises RuntimeError"):
        prove(model, plan, torch.randn(2, 7, 8, 8))
    with pytest.raises(TraceError, match="no tensor"):
        prove(model, plan, None)


def test_nan_is_no_proof() -> None:
    model, inputs, plan = planned("option_b")
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(TraceError, match="NaN"):
        prove(model, plan, inputs)


# ---------------------------------------------------------------- power


def test_a_branch_that_counts_for_nothing_has_no_power_and_stays() -> None:
    def dead(net: Any, x: Tensor) -> Tensor:
        return net.side(x) + net.gain * net.out(torch.relu(net.hidden(x)))

    model = Body(
        dead, gain=0.0, side=nn.Linear(12, 10), hidden=nn.Linear(12, 8), out=nn.Linear(8, 10)
    )
    x = torch.randn(4, 6)
    plan = make_plan(trace(model, x), {"hidden": range(4), "stem": range(6)})
    with pytest.raises(SurgeryError, match="'hidden': no power: a sabotaged cut"):
        verify(model, cut(model, plan), plan, x)
    slim, done, proof = prove(model, plan, x)
    assert done.frozen["hidden"].startswith("no power")
    assert (slim.hidden.out_features, slim.stem.out_features) == (8, 6)
    assert proof.groups["stem"].status == "proven"
    with pytest.raises(SurgeryError, match="no group of the plan could be cut: hidden: no power"):
        prove(model, keep_only(plan, ["hidden"]), x)


def test_single_units_that_are_silent_at_first_are_still_proven() -> None:
    model, inputs = build("depthwise")
    graph = trace(model, inputs)
    for unit in range(6):
        plan = make_plan(graph, {n: [unit] for n in graph.groups})
        _, _, proof = prove(model, plan, inputs, seed=unit)
        assert {g.status for g in proof.groups.values()} == {"proven"}


def test_sampled_groups_are_seeded_and_named() -> None:
    model, inputs, plan = planned("resnet20")
    proofs = [verify(model, cut(model, plan), plan, inputs, sample=3, seed=s) for s in (0, 0, 1)]
    looked = [{n for n, g in p.groups.items() if g.power is not None} for p in proofs]
    assert [len(names) for names in looked] == [3, 3, 3]
    assert looked[0] == looked[1] != looked[2]
    assert proofs[0].groups == proofs[1].groups


def test_the_plan_on_file_costs_what_was_carried_out(tmp_path: Path) -> None:
    def dead(net: Any, x: Tensor) -> Tensor:
        return inner(net, x) + net.gain * net.out(torch.relu(net.hidden(x)))

    model = Body(dead, gain=0.0, hidden=nn.Linear(12, 8), out=nn.Linear(8, 10))
    x = torch.randn(4, 6)
    graph = trace(model, x)
    wanted = make_plan(graph, {"hidden": range(4), "stem": range(6)})
    said: list[str] = []
    kept: list[PruningPlan] = []
    job = SimpleNamespace(
        plan=wanted, dense=model, folded=model, dead=Dead(), example=x, graph=graph, run=tmp_path,
        source=SimpleNamespace(spec="net"), target="cpu", request=SimpleNamespace(seed=0),
        progress=SimpleNamespace(warn=said.append), judge=lambda *args: None,
        keep=lambda *args, plan: kept.append(plan),
    )  # fmt: skip
    steps.cut(job)
    made = read_value(tmp_path / "plan.json", PruningPlan)
    assert made.digest() == kept[0].digest() != wanted.digest()
    assert made.after.params == sum(p.numel() for p in cut(model, made).parameters())
    assert made.after.params > wanted.after.params
    body = read_json(tmp_path / "cut.json", kind="Cut")
    assert body["cost_after"]["params"] == made.after.params
    assert body["groups"]["hidden"]["status"] == "rolled back"
    assert said[0].startswith("group hidden was not cut: no power")


# ---------------------------------------------------------------- the parts


def test_relative_error_compares_shapes_numbers_and_infinities() -> None:
    a = torch.tensor([1.0, -4.0])
    assert relative_error([a], [a]) == 0
    assert relative_error([a + torch.tensor([0.0, 0.2])], [a]) == pytest.approx(0.05)
    assert relative_error([a, a * 2], [a, a]) == 1
    assert relative_error([a[:1]], [a]) == float("inf")
    assert relative_error([a * float("nan")], [a]) == float("inf")
    low = torch.tensor([1.0, -float("inf")])
    assert relative_error([low], [low]) == 0
    assert relative_error([a], [low]) == float("inf")
    assert relative_error([low], [a]) == float("inf")
    assert relative_error([a[:0]], [a[:0]]) == 0
    assert relative_error([torch.ones(2)], [torch.zeros(2)]) > 1e20


def test_culprits_are_found_by_bisection_without_touching_the_network() -> None:
    model, inputs, plan = planned("resnet20")
    bad = ["layer1.1.conv1", "layer3.0.conv1", "layer3.2.conv1"]
    for name in bad:
        plan = incomplete(plan, name, name.replace("conv1", "bn1") + ".bias")
    dense, given = prepared(model, torch.float64), cast(as_call(inputs), torch.float64)
    before = snapshot(dense)
    found = culprits(dense, plan, given, run(dense, given), TOLERANCE, seed=0)
    assert sorted(found) == bad
    assert_untouched(dense, before)


# ---------------------------------------------------------------- mutations of the rules


RIGHT = dict(rules.RULES)
#: reasons that come from trying, not from a rule
TRIED = ("once cut", "its units cannot change places", "no power")


def _cat_forgets_its_last_operand(t: Any, op: Any) -> Tensor | None:
    labels = [t.labels(x) for x in op.args[0]]
    if any(x is None for x in labels):
        return RIGHT["cat"](t, op)
    labels[-1] = torch.full_like(labels[-1], NONE)
    return torch.cat(labels, op.arg(1, "dim", 0))


def _cat_shifts(t: Any, op: Any) -> Tensor | None:
    joined = RIGHT["cat"](t, op)
    return None if joined is None else joined.roll(1, op.arg(1, "dim", 0))


def _add_unites_nothing(t: Any, op: Any) -> Tensor | None:
    first = t.labels(op.args[0])
    return rules.pointwise(t, op) if first is None else first.expand(op.out.shape)


def _norm_is_not_tied(t: Any, op: Any) -> None:
    t.put(op.out[0], t.labels(op.args[0]))


def _depthwise_is_not_tied(t: Any, op: Any) -> Tensor | None:
    groups = int(op.args[8])
    if groups == 1 or op.args[1].shape[1] > 1:
        return RIGHT["convolution"](t, op)
    RIGHT["convolution"](t, op)  # the layer is still on record
    t.book._edges.pop()
    return t.labels(op.args[0]).expand(op.out.shape)


def _conv_reads_nothing(t: Any, op: Any) -> Tensor | None:
    read, t.read_channels = t.read_channels, lambda *args, **kwargs: None
    try:
        return RIGHT["convolution"](t, op)
    finally:
        t.read_channels = read


def _conv_reads_backwards(t: Any, op: Any) -> Tensor | None:
    read = t.read_channels
    t.read_channels = lambda nodes, labels, axis: read(nodes.flip(0), labels, axis=axis)
    try:
        return RIGHT["convolution"](t, op)
    finally:
        t.read_channels = read


def _parameters_are_not_tied(t: Any, op: Any) -> Tensor | None:
    tie, t.tie_parameter = t.tie_parameter, lambda *args: None
    try:
        return rules.pointwise(t, op)
    finally:
        t.tie_parameter = tie


def _pad_counts_nothing(t: Any, op: Any) -> Tensor | None:
    count, t.count = t.count, lambda *args, **kwargs: None
    try:
        return RIGHT["constant_pad_nd"](t, op)
    finally:
        t.count = count


def _linear_forgets_its_bias(t: Any, op: Any) -> Tensor | None:
    tie, t.tie_parameter = t.tie_parameter, lambda *args: None
    try:
        return RIGHT["addmm"](t, op)
    finally:
        t.tie_parameter = tie


def _norm_over_channels_is_free(t: Any, op: Any) -> None:
    x = op.args[0]
    for p in op.inputs[1:]:
        t.tie_parameter(p, t.labels(x))
    t.put(op.out[0], t.labels(x))


def _mean_over_channels_is_free(t: Any, op: Any) -> Tensor | None:
    labels = t.labels(op.args[0])
    for axis in sorted(int(d) % labels.dim() for d in op.args[1]):
        labels = labels.narrow(axis, 0, 1)
    return labels.expand(op.out.shape)


def _pixels_stay_in_place(t: Any, op: Any) -> Tensor | None:
    labels = t.labels(op.args[0])
    return labels[:, : op.out.shape[1], :1, :1].expand(op.out.shape)


def built(name: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if name in NETS:
        return build(name)
    model, x = rule_nets.build(name)
    return model, (x,)


def _nothing(*args: Any) -> None:
    return None


#: what is made wrong: (table, key, replacement, net on which it must be noticed)
MUTATIONS: dict[str, tuple[dict[str, Any], str, Any, str]] = {
    "cat forgets an operand": (rules.RULES, "cat", _cat_forgets_its_last_operand, "inception"),
    "cat shifts its channels": (rules.RULES, "cat", _cat_shifts, "inception"),
    "add unites nothing": (rules.RULES, "add", _add_unites_nothing, "option_b"),
    "batch norm is not tied": (rules.RULES, "native_batch_norm", _norm_is_not_tied, "option_b"),
    "depthwise is not tied": (rules.RULES, "convolution", _depthwise_is_not_tied, "squeeze_excite"),
    "convolution reads nothing": (rules.RULES, "convolution", _conv_reads_nothing, "unet"),
    "convolution reads backwards": (rules.RULES, "convolution", _conv_reads_backwards, "inception"),
    "a raw scale is not tied": (rules.RULES, "mul", _parameters_are_not_tied, "depthwise"),
    "a gate unites nothing": (rules.RULES, "mul", _add_unites_nothing, "squeeze_excite"),
    "padding is not counted": (rules.RULES, "constant_pad_nd", _pad_counts_nothing, "resnet8"),
    "linear forgets its bias": (rules.RULES, "addmm", _linear_forgets_its_bias, "flatten_linear"),
    "group norm is free": (
        rules.RULES, "native_group_norm", _norm_over_channels_is_free, "group_norm"
    ),
    "layer norm is free": (
        rules.RULES, "native_layer_norm", _norm_over_channels_is_free, "layer_norm"
    ),
    "a mean over channels is free": (rules.RULES, "amax", _mean_over_channels_is_free, "channel_max"),
    "pixel shuffle moves nothing": (
        rules.RULES, "pixel_shuffle", _pixels_stay_in_place, "pixel_shuffle"
    ),
    "a shuffle is not seen": (rules.RULES, "channel_shuffle", rules.pointwise, "shuffle_v2"),
    "an in-place write is not seen": (rules.RULES, "copy", _nothing, "in_place_slices"),
    "chunk is not tied": (literals.AFTER, "chunk", _nothing, "c2f"),
    "a literal split is not seen": (literals.AFTER, "split", _nothing, "literal_split"),
    "a literal slice is not seen": (literals.AFTER, "__getitem__", _nothing, "literal_slice"),
    "a view is not seen": (literals.AFTER, "unflatten", _nothing, "unflatten"),
    "a literal view is not seen": (literals.AFTER, "view", _nothing, "literal_view"),
}  # fmt: skip


@pytest.fixture
def mutant(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One rule is wrong; the name of the net that meets it."""
    table, key, replacement, net = MUTATIONS[request.param]
    if table is rules.RULES and key == "channel_shuffle":
        monkeypatch.setitem(table, "native_channel_shuffle", replacement)
    monkeypatch.setitem(table, key, replacement)
    return net


@pytest.mark.parametrize("mutant", MUTATIONS, indirect=True)
def test_a_wrong_rule_is_noticed_by_the_probe(mutant: str) -> None:
    model, inputs = built(mutant)
    assert any(reason.startswith("once cut") for reason in trace(model, inputs).frozen.values()), (
        "the probe must freeze what the wrong rule set free"
    )


@pytest.mark.parametrize("mutant", MUTATIONS, indirect=True)
def test_a_wrong_rule_is_never_proven_by_the_gate(mutant: str) -> None:
    model, inputs = built(mutant)
    graph = trace(model, inputs, probe=False)
    noticed = 0
    for seed in range(3):
        plan = make_plan(graph, random_keep(graph, seed, least=0.3))
        try:
            slim, done, proof = prove(model, plan, inputs)
        except SurgeryError as refused:
            assert "no group of the plan could be cut" in str(refused)  # noqa: PT017  # both may be
            noticed += 1
            continue
        rolled_back = [n for n, g in proof.groups.items() if g.status == "rolled back"]
        assert all(done.frozen[n].startswith(TRIED) for n in rolled_back)
        # What is left of the plan is right.
        assert cut_error(model, done, inputs) < 1e-10
        assert verify(model, slim, done, inputs).max_error < 1e-11
        noticed += any(not done.frozen[n].startswith("no power") for n in rolled_back)
    assert noticed


@pytest.mark.parametrize("name", sorted({m[3] for m in MUTATIONS.values()}))
def test_without_a_mutation_nothing_is_noticed(name: str) -> None:
    model, inputs = built(name)
    assert not any(r.startswith(TRIED) for r in trace(model, inputs).frozen.values())


def test_every_error_of_the_gate_can_be_shown_to_the_user() -> None:
    for error in (SurgeryError, PlanError, TraceError):
        assert issubclass(error, MintDeployError)
    assert set(ZOO_NETS) > set(LARGE)


@pytest.mark.parametrize("name", ["layer_norm", "encoder", "group_norm"])
def test_a_cut_through_a_statistic_is_said_to_be_no_zeroing(name: str) -> None:
    model, inputs, plan = planned(name)
    _, _, proof = prove(model, plan, inputs)
    assert {n for n, g in proof.groups.items() if g.restricted} == plan.restricted != set()
    assert proof.zero_difference > 1e-3
    assert proof.max_error < 1e-11


def test_without_a_statistic_a_cut_is_as_if_zeroed() -> None:
    model, inputs, plan = planned("option_b")
    _, _, proof = prove(model, plan, inputs)
    assert not any(g.restricted for g in proof.groups.values())
    assert proof.zero_difference == 0


def test_a_statistic_that_is_left_out_is_noticed() -> None:
    model, inputs, plan = planned("layer_norm")
    slim = cut(model, plan)
    with pytest.raises(SurgeryError, match="differs from the masked one"):
        verify(model, slim, dataclasses.replace(plan, statistics=()), inputs)


def test_a_network_that_runs_otherwise_than_traced_is_not_proven() -> None:
    model, inputs, plan = planned("layer_norm")
    later = [dataclasses.replace(s, call=s.call + 1) for s in plan.statistics]
    slim = cut(model, plan)
    with pytest.raises(SurgeryError, match="did not come again"):
        verify(model, slim, dataclasses.replace(plan, statistics=tuple(later)), inputs)
    other = [dataclasses.replace(s, length=s.length + 1) for s in plan.statistics]
    with pytest.raises(SurgeryError, match="runs otherwise than when it was traced"):
        verify(model, slim, dataclasses.replace(plan, statistics=tuple(other)), inputs)
