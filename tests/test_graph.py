"""Groups of whole networks: complete, exact or frozen with a reason, and costed."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from masking import absent_error, cut_error, outputs, random_keep, reading_dim
from nets import NETS, PATTERN_NETS, ZOO_NETS, build
from snapshots import assert_untouched, snapshot
from torch import Tensor, nn

from mint_deploy.errors import TraceError
from mint_deploy.graph import Graph, find_groups
from mint_deploy.inputs import as_call
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace
from mint_deploy.verify import prove

#: what can be cut of each pattern: the sizes of its groups, in the order of their layers
FREE = {
    "flatten_linear": [8, 12, 20],
    "option_b": [8, 16, 16],
    "unet": [8, 16, 32, 16, 16, 8, 8],
    "squeeze_excite": [16, 4],
    "spatial_gate": [8, 8],
    "channel_shuffle": [8, 4, 8],
    "shuffle_v2": [4],
    "c2f": [8, 8, 8, 8, 16, 8, 8],
    "inception": [8, 6, 4, 6],
    "pixel_shuffle": [8, 8],
    "depthwise": [12, 10],
    "depthwise_twice": [8, 10],
    "grouped": [12, 4, 4],
    "siamese": [8, 12],
    "lstm": [16, 10, 8],
    "attention": [16, 4, 64],
    "literal_split": [8, 4],
    "literal_slice": [4, 8, 4],
    "literal_view": [8, 12],
    "computed_view": [8, 6, 12],
    "layer_norm": [8, 16],
    "group_norm": [4, 8],
    "convnext": [12, 48],
    "in_place_slices": [8],
    "weighted_fusion": [8, 16, 8],
    "weight_norm": [8, 8],
    "buffer": [8, 8],
    "item_escape": [8, 8],
    "channel_max": [8, 8],
    "two_outputs": [8, 12],
    "one_layer": [],
    "multihead": [16, 4, 16],
    "multihead_unbiased": [16, 2, 16],
    "multihead_time_first": [16, 4, 16],
    "multihead_with_weights": [16, 4, 16],
    "cross_attention": [16, 12, 4],
    "encoder": [16, 4, 24, 4, 24],
    "encoder_post_norm": [16, 4, 24, 4, 24],
    "encoder_causal": [16, 4, 24, 4, 24],
    "seq2seq": [4, 24, 4, 4, 24],
    "fused_attention": [16, 4],
    "width_from_input": [],
    "normed_attention": [16, 4],
    "separate_attention": [16, 4],
    "grouped_queries": [16, 2],
    "relative_bias": [16, 4],
    "channel_attention": [16, 4],
    "rotary": [16, 4],
    "yolo": [
        8, 16, 8, 8, 16, 32, 16, 16, 16, 32, 64, 32, 32, 32, 64, 128, 64, 64, 128, 64, 128, 32, 32,
        32, 64, 16, 16, 16, 32, 32, 32, 32, 32, 64, 64, 64, 64, 64, 128, *[32] * 12,
    ],
}  # fmt: skip

#: attention both ways: the groups where whole heads leave, and where their widths do
ATTENTION = {
    "attention": ([16, 4, 64], [16, 4, 64]),
    "multihead": ([16, 4, 16], [16, 4, 4, 16]),
    "multihead_unbiased": ([16, 2, 16], [16, 8, 8, 16]),
    "multihead_with_weights": ([16, 4, 16], [16, 4, 4, 16]),
    "cross_attention": ([16, 12, 4], [16, 12, 4, 4]),
    "encoder": ([16, 4, 24, 4, 24], [16, 4, 4, 24, 4, 4, 24]),
    "seq2seq": ([4, 24, 4, 4, 24], [4, 4, 24, 4, 4, 4, 4, 24]),
    "fused_attention": ([16, 4], [16, 4]),
    "normed_attention": ([16, 4], [16]),
    "separate_attention": ([16, 4], [16]),
    "grouped_queries": ([16, 2], [16, 4, 4]),
    "relative_bias": ([16, 4], [16, 4]),
    "rotary": ([16, 4], [16]),
}

#: groups that a statistic over their channels crosses, by a word of the operator
RESTRICTED = {
    "attention": "layer_norm",
    "layer_norm": "layer_norm",
    "group_norm": "group_norm",
    "convnext": "layer_norm",
    "item_escape": "max",
    "channel_max": "amax",
    "multihead_with_weights": "mean",
}

#: words of the reason why something of a net stays
WHY = {
    "spatial_gate": "gates all channels",
    "seq2seq": "must be equal to d_model",
    "width_from_input": "is invalid for input of size",
    "literal_split": "split size: its number is written in the code",
    "literal_slice": "slice: its number is written in the code",
    "literal_view": "sizes are written in the code",
    "vgg16_bn_literal_view": "sizes are written in the code",
    "weight_norm": "weight norm: its norm is over this axis",
    "two_outputs": "reaches the network's output",
    "one_layer": "reaches the network's output",
}

#: weights that a module of another kind owns, or that are computed
COMPUTED = ("weight_norm", "lstm")
PACKED = [n for n in NETS if n.startswith(("multihead", "cross_att", "encoder", "seq2seq"))]

_graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...], Graph]] = {}


def traced(name: str) -> tuple[nn.Module, tuple[Tensor, ...], Graph]:
    """Each net is traced once for all tests of this file; nobody alters it."""
    if name not in _graphs:
        model, inputs = build(name)
        _graphs[name] = (model, inputs, trace(model, inputs))
    return _graphs[name]


# ---------------------------------------------------------------- what is found


def test_the_table_is_complete() -> None:
    assert set(FREE) == set(PATTERN_NETS)
    assert set(WHY) <= set(NETS)


@pytest.mark.parametrize("name", FREE)
def test_what_can_be_cut_of_each_pattern(name: str) -> None:
    _, _, graph = traced(name)
    assert [g.size for g in graph.groups.values()] == FREE[name]


@pytest.mark.parametrize("name", WHY)
def test_what_stays_says_why(name: str) -> None:
    _, _, graph = traced(name)
    assert any(WHY[name] in reason for reason in graph.frozen.values())


@pytest.mark.parametrize("name", NETS)
def test_statistics_over_channels_are_said(name: str) -> None:
    _, _, graph = traced(name)
    said = " ".join(why for g in graph.groups.values() for why in g.restricted)
    assert RESTRICTED.get(name, "") in said
    crossed = {p.group for s in graph.statistics for p in s.of}
    assert crossed == {n for n, g in graph.groups.items() if g.restricted}
    for statistic in graph.statistics:
        assert 0 < sum(p.index.size for p in statistic.of) <= statistic.length
        assert all(p.index.shape[0] == graph.groups[p.group].size for p in statistic.of)
    assert bool(crossed) == ("restricted: " in str(graph))


@pytest.mark.parametrize(
    ("name", "groups"),
    [
        ("resnet8", 6), ("resnet20", 12), ("resnet56", 30), ("vgg16_bn", 13),
        ("vgg16_bn_literal_view", 12), ("resnet50", 37), ("mobilenet_v2", 25), ("densenet121", 120),
    ],
)  # fmt: skip
def test_the_zoo_can_be_cut_everywhere(name: str, groups: int) -> None:
    _, _, graph = traced(name)
    assert len(graph.groups) == groups
    assert graph.cuttable_macs_share > 0.999


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_in_a_group_or_frozen_with_a_reason(name: str) -> None:
    model, _, graph = traced(name)
    assert set(graph.frozen) == set(graph.frozen_groups)
    assert all(reason.strip() for reason in graph.frozen.values())
    assert not set(graph.groups) & set(graph.frozen)
    every = {**graph.groups, **graph.frozen_groups}
    seen: dict[tuple[str, int], list[int]] = {}
    for group in every.values():
        for m in group.members:
            assert m.index.shape[0] == group.size
            assert m.length == graph.shapes[m.tensor][m.dim]
            seen.setdefault((m.tensor, m.dim), []).extend(m.index.reshape(-1).tolist())
    for places in seen.values():
        assert len(places) == len(set(places)), "a slice belongs to two units"
    for layer in graph.layers.values():
        assert sorted(seen[layer.weight, layer.out_dim]) == list(
            range(graph.shapes[layer.weight][layer.out_dim])
        )
    watched = {layer.name for layer in graph.layers.values()}
    if name not in COMPUTED:
        own = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert watched >= set(own)


@pytest.mark.parametrize("name", [n for n in NETS if n not in PACKED])
def test_a_member_reads_exactly_where_a_module_mixes_channels(name: str) -> None:
    model, _, graph = traced(name)
    reading = {
        (f"{n}.weight", reading_dim(m))
        for n, m in model.named_modules()
        if reading_dim(m) is not None
    }
    reading |= {
        (f"{n}.{w}", 1)
        for n, m in model.named_modules()
        if isinstance(m, nn.RNNBase)
        for w in m._flat_weights_names
        if w.startswith("weight")
    }
    for group in graph.groups.values():
        for m in group.members:
            assert m.reads == ((m.tensor, m.dim) in reading)


@pytest.mark.parametrize("name", [n for n in NETS if FREE.get(n, True)])
def test_a_random_cut_equals_an_independent_masked_forward(name: str) -> None:
    model, inputs, graph = traced(name)
    for seed in range(1 if name in ZOO_NETS else 3):
        plan = make_plan(graph, random_keep(graph, seed, least=0.3))
        assert any(g.removed for g in plan.groups)
        assert absent_error(model, plan, inputs) < 1e-10
        if name in ZOO_NETS:
            assert cut_error(model, plan, inputs) < 1e-10


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("what", ["heads", "width"])
def test_heads_and_their_widths_equal_an_independent_masked_forward(name: str, what: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs, attention=what)
    assert graph.attention == what
    assert [g.size for g in graph.groups.values()] == ATTENTION[name][what == "width"]
    for seed in range(2):
        plan = make_plan(graph, random_keep(graph, seed, least=0.3))
        if (name, what) != (
            "cross_attention",
            "width",
        ):  # appended zero keys have no absent channels
            assert absent_error(model, plan, inputs) < 1e-10
        _, _, proof = prove(model, plan, inputs)
        assert {g.status for g in proof.groups.values()} == {"proven"}


def test_the_masked_forward_tells_a_wrong_cut() -> None:
    model, inputs, graph = traced("option_b")
    right = make_plan(graph, {"conv1": range(8), "stem.0": range(5)})
    assert cut_error(model, right, inputs) < 1e-10
    slim = cut(copy.deepcopy(model).double(), right)
    with torch.no_grad():
        slim.conv2.weight[:, [0, 1]] = slim.conv2.weight[:, [1, 0]]
    found, wanted = outputs(slim, (inputs[0].double(),)), outputs(model, inputs)
    assert float((found[0] - wanted[0]).abs().max()) > 1e-3


def test_padded_shortcuts_couple_the_streams_of_two_stages() -> None:
    _, _, graph = traced("resnet20")
    stage1, stage2 = graph.groups["conv1"], graph.groups["layer2.0.conv2"]
    assert {"conv1.weight", "layer1.0.conv2.weight", "layer1.2.conv2.weight"} <= set(
        stage1.producers
    )
    # 16 channels come from stage 1 (shortcut in the middle), 16 are the padding
    assert (stage1.size, stage2.size) == (16, 16)
    of_stage2 = {m.tensor: m.index for m in stage1.members}["layer2.0.conv2.weight"]
    assert of_stage2[:, 0].tolist() == list(range(8, 24))


def test_groups_explain_themselves() -> None:
    _, _, graph = traced("literal_split")
    text = str(graph)
    assert text.splitlines()[0].startswith("2 pruning groups, 12 units; ")
    assert "layers that can be cut hold 69% of the MACs" in text
    assert (
        "frozen: split size: its number is written in the code (in the network, pattern_nets.py:"
        in text
    )
    assert "with " in str(traced("resnet20")[2])


# ---------------------------------------------------------------- what it costs


def counted(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds for one sample, counted by hooks on the modules."""
    total = 0

    def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Linear):
            total += out.shape[:-1].numel() * module.weight.numel()
        else:
            space = args[0] if isinstance(module, nn.ConvTranspose2d) else out
            total += space.shape[0] * space.shape[2:].numel() * module.weight.numel()

    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            module.register_forward_hook(hook)
    outputs(model, inputs)
    return total // inputs[0].shape[0]


@pytest.mark.parametrize("name", [n for n in NETS if n not in (*COMPUTED, *PACKED)])
def test_macs_parameters_and_bytes_are_counted(name: str) -> None:
    model, inputs, graph = traced(name)
    cost = graph.cost
    assert cost.macs == counted(model, inputs)
    assert cost.params == sum(p.numel() for p in model.parameters())
    held = [*model.parameters(), *model.buffers()]
    assert cost.weight_bytes == sum(t.numel() * t.element_size() for t in held)
    assert cost.peak_activation_bytes > 0


@pytest.mark.parametrize("name", [n for n in NETS if FREE.get(n, True)])
def test_the_predicted_cost_is_the_cost_of_the_cut_network(name: str) -> None:
    model, inputs, graph = traced(name)
    keep = random_keep(graph, seed=3, least=0.3)
    slim = cut(model, make_plan(graph, keep))
    predicted = graph.cost_of(keep)
    found = find_groups(slim, as_call(inputs)).cost
    # a bias that is looked up is an activation of no channels; nor are copies inside an operator counted alike
    if name in ("relative_bias", "multihead_unbiased"):
        assert predicted.peak_activation_bytes >= found.peak_activation_bytes
        found = dataclasses.replace(found, peak_activation_bytes=predicted.peak_activation_bytes)
    assert predicted == found
    assert predicted.params == sum(p.numel() for p in slim.parameters())
    if name not in (*COMPUTED, *PACKED):
        assert predicted.macs == counted(slim, inputs)
    assert predicted.macs < graph.cost.macs
    sizes = graph.sizes(keep)
    assert {n: list(t.shape) for n, t in slim.named_parameters()}.items() <= sizes.items()


def test_costs_are_those_of_one_sample_whatever_the_batch() -> None:
    for name in ("option_b", "unet", "siamese", "attention"):
        costs = {trace(m, x, probe=False).cost for m, x in (build(name, batch=b) for b in (1, 4))}
        assert len(costs) == 1


def test_wider_is_never_cheaper() -> None:
    _, _, graph = traced("resnet20")
    last = None
    for width in range(1, 17):
        cost = graph.cost_of({"conv1": range(width)})
        if last is not None:
            assert cost.macs > last.macs
            assert cost.params > last.params
            assert cost.peak_activation_bytes >= last.peak_activation_bytes
        last = cost
    assert last == graph.cost


def test_what_is_frozen_later_leaves_with_its_constants() -> None:
    model, inputs = build("depthwise")
    graph = trace(model, inputs)
    assert [c.attribute for c in graph.constants] == ["depthwise.0.groups"]
    less = graph.without({"stem.0": "because"})
    assert "stem.0" not in less.groups
    assert less.frozen["stem.0"] == "because"
    assert less.frozen_groups["stem.0"] is graph.groups["stem.0"]
    assert less.constants == ()
    assert less.units == graph.units - 12
    assert 0 < less.cuttable_macs_share <= graph.cuttable_macs_share
    assert "because" in str(less)


def test_the_share_of_a_group_is_that_of_the_layers_it_enters() -> None:
    _, _, graph = traced("flatten_linear")
    macs = graph.layer_macs(graph.shapes)
    group = graph.groups["linear1"]
    expected = (macs["linear1.weight"] + macs["linear2.weight"]) / sum(macs.values())
    assert graph.macs_share(group) == pytest.approx(expected)


# ---------------------------------------------------------------- inputs and outputs of other forms


class Several(nn.Module):
    """Two inputs by name, one of whole numbers, nested ones too; results in a dict of a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.inner = nn.Linear(8, 10)
        self.outer = nn.Linear(10, 8)

    def forward(
        self, left: Tensor, right: Tensor, pick: Tensor, extra: list[Tensor] | None = None
    ) -> dict[str, object]:
        y = torch.relu(self.a(left) + self.b(right))
        for x in extra or []:
            y = y + self.b(x)
        z = self.outer(torch.relu(self.inner(y)))
        out = self.c(y + z)
        return {"scores": [out, out[:, :1]], "picked": pick + 1, "width": y.shape[1]}


def several(batch: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "left": torch.randn(batch, 6),
        "right": torch.randn(batch, 4),
        "pick": torch.arange(batch),
    }


def test_inputs_by_name_and_results_in_a_dict() -> None:
    model = Several().eval()
    inputs = several()
    graph = trace(model, inputs)
    assert {n: g.size for n, g in graph.groups.items()} == {"a": 8, "inner": 10}
    assert [(s.name, s.shape, s.dtype) for s in graph.inputs] == [
        ("left", (3, 6), "float32"), ("right", (3, 4), "float32"), ("pick", (3,), "int64"),
    ]  # fmt: skip
    assert cut_error(model, make_plan(graph, random_keep(graph)), inputs) < 1e-10


def test_several_inputs_by_position_and_in_a_list() -> None:
    model = Several().eval()
    given = several()
    flat = trace(model, tuple(given.values()))
    nested = trace(model, (*given.values(), [torch.randn(3, 4), torch.randn(3, 4)]))
    assert set(flat.groups) == set(nested.groups) == {"a", "inner"}
    assert nested.cost.macs == flat.cost.macs + 2 * 4 * 8


def test_a_list_of_arguments_is_a_call() -> None:
    model, inputs = build("siamese")
    assert set(trace(model, list(inputs)).groups) == set(trace(model, inputs).groups)


def test_a_wrapper_of_torch_compile_is_looked_through() -> None:
    model, inputs = build("option_b")
    wrapped = torch.compile(model)
    graph = trace(wrapped, inputs)
    assert {m.tensor for g in graph.groups.values() for m in g.members} <= set(model.state_dict())
    slim = cut(wrapped, make_plan(graph, {"conv1": range(8)}))
    assert type(slim) is type(model)
    assert slim.conv1.out_channels == 8


# ---------------------------------------------------------------- the user's model stays as it is


@pytest.mark.parametrize("name", ["resnet8", "shuffle_v2", "attention", "weight_norm", "buffer"])
@pytest.mark.parametrize("training", [False, True])
def test_the_users_model_is_not_altered_by_a_trace(name: str, training: bool) -> None:
    model, inputs = build(name)
    model.train(training)
    first = next(model.parameters())
    first.requires_grad_(requires_grad=False)
    calls = []
    handle = next(model.children()).register_forward_hook(lambda *_: calls.append(1))
    before, kept = snapshot(model), [x.clone() for x in inputs]
    state, default = torch.get_rng_state(), torch.get_default_dtype()
    graph = trace(model, inputs)
    assert_untouched(model, before)
    assert all(torch.equal(a, b) for a, b in zip(kept, inputs, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() == default
    assert torch.is_grad_enabled()
    assert all(graph.tensors[n] is t for n, t in model.named_parameters())
    handle.remove()


def test_a_model_in_training_mode_gives_the_same_graph() -> None:
    model, inputs = build("mobilenet_v2")
    graph = traced("mobilenet_v2")[2]
    assert set(trace(model.train(), inputs, probe=False).groups) == set(graph.groups)
    assert model.training


# ---------------------------------------------------------------- models and inputs that cannot be


class Careless(nn.Module):
    """Runs ``forward`` as given."""

    def __init__(self, forward: object) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.run = forward

    def forward(self, *args: Tensor, **kwargs: Tensor) -> object:
        return self.run(self, *args, **kwargs)


def fails(model: nn.Module, inputs: object, *words: str) -> None:
    with pytest.raises(TraceError) as caught:
        trace(model, inputs)
    for word in words:
        assert word in str(caught.value)


def test_a_model_that_raises_is_quoted_with_the_line() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        raise ValueError("no such luck")

    fails(
        Careless(forward),
        torch.randn(2, 4),
        "ValueError",
        "no such luck",
        "test_graph.py:",
        "[2, 4]",
    )


def test_inputs_of_the_wrong_shape_are_named() -> None:
    model, _ = build("option_b")
    fails(model, torch.randn(2, 5, 8, 8), "[2, 5, 8, 8] float32", "give example inputs")


def test_no_tensor_among_the_inputs() -> None:
    model, _ = build("option_b")
    fails(model, None, "hold no tensor", "NoneType")
    fails(model, {"x": 3}, "hold no tensor")


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_meta_and_quantised_tensors_are_refused() -> None:
    model, inputs = build("option_b")
    fails(model, inputs[0].to("meta"), "meta", "real values")
    fails(copy.deepcopy(model).to("meta"), inputs, "stem.0.weight", "meta")
    x = torch.quantize_per_tensor(inputs[0], 0.1, 0, torch.quint8)
    fails(model, x, "quantised")
    model.register_buffer("table", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8))
    fails(model, inputs, "'table' is quantised")


@pytest.mark.parametrize(
    ("result", "word"), [(None, "NoneType"), (3, "int"), ("text", "str"), ({}, "dict")]
)
def test_results_without_a_tensor_are_refused(result: object, word: str) -> None:
    fails(Careless(lambda m, x: result), torch.randn(2, 4), "no floating tensor", word)


def test_results_of_whole_numbers_alone_are_refused() -> None:
    chosen = Careless(lambda m, x: m.last(m.layer(x)).argmax(-1))
    fails(chosen, torch.randn(2, 4), "torch.int64", "argmax")


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = Careless(lambda m, x: m.last(m.layer(x)))
    model.stream = (i for i in range(3))
    fails(model, torch.randn(2, 4), "cannot be copied", "generator")


def test_nan_is_refused_before_anything_is_cut() -> None:
    model, inputs = build("option_b")
    with torch.no_grad():
        model.conv1.weight[0, 0, 0, 0] = float("nan")
    fails(model, inputs, "NaN")


def test_infinity_in_the_output_is_no_trouble() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        out = net.last(torch.relu(net.layer(x)))
        return out.masked_fill(torch.tensor([True, False, False]), float("-inf"))

    model = Careless(forward).eval()
    graph = trace(model, torch.randn(2, 4))
    assert list(graph.groups) == ["layer"]


def test_a_model_that_refuses_marked_numbers_is_traced_without() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        if type(net.number) is not int or any(type(n) is not int for n in x.shape):
            raise TypeError("plain ints only")
        return net.last(torch.relu(net.layer(x)))

    model = Careless(forward).eval()
    model.number = 4
    assert list(trace(model, torch.randn(2, 4)).groups) == ["layer"]


def test_torchscript_is_refused_with_what_to_give() -> None:
    model, inputs = build("flatten_linear")
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    fails(scripted, torch.randn(2, 4), "the model is TorchScript", "Python module")
    model.features[0] = scripted
    fails(model, inputs, "'features.0' is TorchScript")


def test_layers_without_a_shape_yet_are_refused() -> None:
    lazy = nn.Sequential(nn.LazyLinear(6), nn.Linear(6, 2))
    fails(lazy, torch.randn(2, 4), "'0.weight' has no shape yet", "run the model once")


def test_random_numbers_in_evaluation_mode_are_noted() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        return net.last(nn.functional.dropout(torch.relu(net.layer(x)), 0.5))

    graph = trace(Careless(forward).eval(), torch.randn(2, 4))
    assert not graph.groups
    assert "random numbers are drawn in evaluation mode" in graph.notes[0]
    assert not any("random" in note for note in traced("lstm")[2].notes)


def test_a_model_that_counts_its_calls_is_cut_like_any_other() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        net.calls += 1
        net.steps.add_(1)
        return net.last(torch.relu(net.layer(x)) * net.steps) / net.calls

    model = Careless(forward).eval()
    model.calls = 1
    model.register_buffer("steps", torch.zeros(1))
    x = torch.randn(2, 4)
    graph = trace(model, x)
    assert list(graph.groups) == ["layer"]
    assert prove(model, make_plan(graph, {"layer": range(3)}), x)[2].max_error < 1e-11
    assert (model.calls, float(model.steps)) == (1, 0)


def test_a_constant_goes_on_counting_what_is_still_free() -> None:
    """A depthwise layer over two branches, of which trying freezes one."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 8, 1)
            self.depthwise = nn.Conv2d(14, 14, 3, groups=14)
            self.last = nn.Conv2d(14, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x) + torch.ones(6, 1, 1, dtype=x.dtype)
            return self.last(self.depthwise(torch.cat([a, self.b(x)], 1)).relu())

    model, x = Branches().eval(), torch.randn(2, 3, 6, 6)
    graph = trace(model, x)
    assert list(graph.groups) == ["b"]
    assert graph.frozen["a"].startswith("once cut")
    (constant,) = graph.constants
    assert (constant.attribute, [name for name, _ in constant.of]) == ("depthwise.groups", ["b"])
    slim, _, proof = prove(model, make_plan(graph, {"b": range(5)}), x)
    assert (slim.depthwise.groups, proof.groups["b"].status) == (11, "proven")


def test_units_that_cannot_change_places_say_so() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(net.layer(x))
        return net.last(y * torch.linspace(1, 2, 6, dtype=x.dtype)[: y.shape[1]])

    graph = trace(Careless(forward).eval(), torch.randn(2, 4))
    assert not graph.groups
    assert graph.frozen["layer"].startswith(("its units cannot change places", "once cut"))


def test_a_model_that_fails_only_while_watched_says_so() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("somebody looks")
        return net.last(net.layer(x))

    fails(Careless(forward), torch.randn(2, 4), "while it is watched", "somebody looks")


def test_a_cut_that_only_fails_together_or_at_run_time_is_found_by_the_probe() -> None:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        y = torch.relu(net.layer(x))
        return net.last(y[:, torch.arange(6)])

    model = Careless(forward).eval()
    graph = trace(model, torch.randn(2, 4))
    assert not graph.groups
    assert "fixed indices" in graph.frozen["layer"]

    def hidden(net: nn.Module, x: Tensor) -> Tensor:
        return net.last(torch.relu(net.layer(x)) * torch.ones(6, dtype=x.dtype))

    graph = trace(Careless(hidden).eval(), torch.randn(2, 4))
    assert graph.frozen["layer"].startswith("once cut, the network raises RuntimeError")


def test_frozen_groups_hold_their_members_for_the_explanation() -> None:
    _, _, graph = traced("one_layer")
    assert np.array_equal(graph.frozen_groups["only"].members[0].index, np.arange(5)[:, None])
    assert isinstance(graph.frozen, Mapping)
    assert graph.cuttable_macs_share == 0
