"""Cuts, plans as files, and models that come back: what stays is bit for bit what it was."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from masking import cut_error, outputs
from nets import build
from snapshots import assert_untouched, snapshot
from torch import Tensor, nn

from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import DataError, ModelError, PlanError
from mint_deploy.files import read_value, write_value
from mint_deploy.graph import Graph
from mint_deploy.loading import load, save
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace


def half(graph: Graph) -> PruningPlan:
    """Every second unit of every group stays."""
    return make_plan(graph, {n: range(0, g.size, 2) for n, g in graph.groups.items()})


def planned(name: str) -> tuple[nn.Module, tuple[Tensor, ...], PruningPlan]:
    model, inputs = build(name)
    return model, inputs, half(trace(model, inputs))


def stays(plan: PruningPlan, name: str, dim: int, length: int) -> list[int]:
    gone = set(plan.slices().get(name, {}).get(dim, []))
    return [i for i in range(length) if i not in gone]


# ---------------------------------------------------------------- what a cut does


@pytest.mark.parametrize("name", ["resnet8", "unet", "depthwise", "flatten_linear", "c2f"])
def test_what_stays_keeps_its_bits(name: str) -> None:
    model, _, plan = planned(name)
    slim = dict(cut(model, plan).state_dict())
    assert slim.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        for dim in range(tensor.dim()):
            tensor = tensor[(slice(None),) * dim + (stays(plan, key, dim, tensor.shape[dim]),)]
        assert torch.equal(slim[key], tensor)


@pytest.mark.parametrize("name", ["resnet8", "channel_shuffle", "siamese", "squeeze_excite"])
def test_the_users_model_is_not_altered_and_shares_no_memory_with_the_cut_one(name: str) -> None:
    model, _, plan = planned(name)
    before = snapshot(model)
    slim = cut(model, plan)
    with torch.no_grad():
        for tensor in [*slim.parameters(), *slim.buffers()]:
            tensor.zero_()
    assert_untouched(model, before)


def test_modules_describe_what_they_have_become() -> None:
    model, _, plan = planned("depthwise")
    slim = cut(model, plan)
    assert (slim.stem[0].out_channels, slim.stem[1].num_features) == (6, 6)
    depthwise = slim.depthwise[0]
    assert (depthwise.in_channels, depthwise.out_channels, depthwise.groups) == (6, 6, 6)
    assert (slim.point[0].in_channels, slim.point[0].out_channels) == (6, 5)
    assert (slim.head.in_features, slim.head.out_features) == (5, 5)
    model, _, plan = planned("unet")
    slim = cut(model, plan)
    assert (slim.up2.in_channels, slim.up2.out_channels) == (16, 8)
    model, _, plan = planned("grouped")
    middle = cut(model, plan).middle[0]
    assert (middle.in_channels, middle.out_channels, middle.groups) == (8, 8, 4)
    assert "Conv2d(8, 8" in repr(middle)


def test_padded_shortcuts_are_rewritten_and_their_streams_cut() -> None:
    model, inputs = build("resnet20")
    graph = trace(model, inputs)
    assert "conv1" in graph.groups, "the residual stream of the first stage"
    streams = {n: range(10) for n in ("conv1", "layer2.0.conv2")}
    inner = {"layer1.0.conv1": range(7), "layer3.2.conv1": range(5, 40)}
    plan = make_plan(graph, {**streams, **inner})
    slim = cut(model, plan)
    attributes = {c.attribute: c.value for c in plan.constants}
    assert attributes, "the widths of the padding are attributes of the model"
    changed = []
    for path, old in attributes.items():
        owner, _, last = path.rpartition(".")
        new = getattr(slim.get_submodule(owner), last)
        assert getattr(model.get_submodule(owner), last) == old
        changed.append(new != old)
    assert any(changed)
    assert (slim.conv1.out_channels, slim.layer1[0].conv1.out_channels) == (10, 7)
    assert slim.layer2[0].conv2.out_channels < model.layer2[0].conv2.out_channels
    assert slim.layer3[2].conv1.out_channels == 35
    assert cut_error(model, plan, inputs) < 1e-10
    assert outputs(slim, inputs)[0].shape == (2, 10)


def test_a_plan_that_removes_nothing_makes_an_equal_copy() -> None:
    model, inputs, plan = planned("option_b")
    whole = dataclasses.replace(
        plan, groups=tuple(dataclasses.replace(g, keep=tuple(range(g.size))) for g in plan.groups)
    )
    slim = cut(model, whole)
    assert slim is not model
    assert torch.equal(outputs(slim, inputs)[0], outputs(model, inputs)[0])
    assert whole.slices() == {}


# ---------------------------------------------------------------- what a cut preserves


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    model, inputs = build("option_b")
    model.to(dtype)
    inputs = tuple(x.to(dtype) for x in inputs)
    plan = half(trace(model, inputs))
    slim = cut(model, plan)
    assert {t.dtype for t in slim.parameters()} == {dtype}
    assert outputs(slim, inputs)[0].dtype == dtype
    assert plan.before.weight_bytes == sum(
        t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()]
    )
    assert cut_error(model, plan, inputs) < 1e-10


def test_mixed_dtypes_stay_mixed() -> None:
    model, inputs = build("layer_norm")

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = model.stem.bfloat16()
            self.head = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.bfloat16()).float().mean((2, 3)))

    mixed = Mixed().eval()
    plan = half(trace(mixed, inputs))
    slim = cut(mixed, plan)
    assert slim.body[0].weight.dtype == torch.bfloat16
    assert slim.head.weight.dtype == torch.float32
    assert slim.head.in_features == 4


def test_channels_last_stays_channels_last() -> None:
    model, inputs, plan = planned("option_b")
    model.to(memory_format=torch.channels_last)
    slim = cut(model, plan)
    weight = slim.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    plain = cut(build("option_b")[0], plan)
    assert plain.conv1.weight.is_contiguous()
    assert torch.equal(weight, plain.conv1.weight)
    graph = trace(model, inputs[0].contiguous(memory_format=torch.channels_last))
    assert {n: g.size for n, g in graph.groups.items()} == {g.name: g.size for g in plan.groups}


def test_mode_and_gradients_stay() -> None:
    model, _, plan = planned("option_b")
    model.train()
    model.bn1.eval()
    model.conv2.weight.requires_grad_(requires_grad=False)
    slim = cut(model, plan)
    modes = {n: m.training for n, m in model.named_modules()}
    assert {n: m.training for n, m in slim.named_modules()} == modes
    wanted = {n: p.requires_grad for n, p in model.named_parameters()}
    assert {n: p.requires_grad for n, p in slim.named_parameters()} == wanted
    assert all(p.is_leaf for p in slim.parameters())


def test_hooks_and_other_attributes_stay() -> None:
    model, inputs, plan = planned("option_b")
    seen: list[int] = []
    model.conv1.register_forward_hook(lambda m, args, out: seen.append(out.shape[1]))
    model.class_names, model.stem.note = ["a", "b"], {"kept": True}
    slim = cut(model, plan)
    outputs(slim, inputs)
    assert seen == [8]
    assert (slim.class_names, slim.stem.note) == (["a", "b"], {"kept": True})
    assert type(slim) is type(model)


def test_buffers_stay_buffers_and_out_of_the_state_if_they_were() -> None:
    model, inputs = build("buffer")
    mask = model.mask
    del model.mask
    model.register_buffer("mask", mask, persistent=False)
    slim = cut(model, half(trace(model, inputs)))
    assert slim.mask.shape == (4, 1, 1)
    assert not isinstance(slim.mask, nn.Parameter)
    assert "mask" not in slim.state_dict()
    assert "mask" in dict(slim.named_buffers())


class Tied(nn.Module):
    """One weight in two layers, one layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Linear(6, 12), nn.Linear(6, 12)
        self.again.weight = self.first.weight
        self.middle, self.last = nn.Linear(12, 12), nn.Linear(12, 3)
        self.alias = self.middle

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x)) + torch.relu(self.again(x.flip(1)))
        return self.last(self.alias(torch.relu(self.middle(y))))


def test_shared_modules_and_tied_weights_stay_shared() -> None:
    torch.manual_seed(0)
    model, x = Tied().eval(), torch.randn(4, 6)
    graph = trace(model, x)
    assert [g.size for g in graph.groups.values()] == [12]
    plan = make_plan(graph, {n: range(0, 12, 3) for n in graph.groups})
    slim = cut(model, plan)
    assert slim.again.weight is slim.first.weight
    assert slim.alias is slim.middle
    assert slim.first.weight.shape == (4, 6)
    assert slim.middle.weight.shape == (4, 4)
    assert (slim.again.out_features, slim.middle.in_features) == (4, 4)
    assert slim.again.bias.shape == (4,)
    assert cut_error(model, plan, (x,)) < 1e-10
    assert len(list(slim.parameters())) == len(list(model.parameters()))


def test_a_slim_model_can_be_trained_copied_and_saved_like_any_other() -> None:
    model, inputs, plan = planned("resnet8")
    slim = cut(model, plan).train()
    before = outputs(copy.deepcopy(slim).eval(), inputs)[0]
    optimiser = torch.optim.SGD(slim.parameters(), lr=0.1)
    slim(*inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in slim.parameters())
    optimiser.step()
    assert not torch.equal(outputs(slim.eval(), inputs)[0], before)
    other = cut(model, plan)
    other.load_state_dict(slim.state_dict())
    assert torch.equal(outputs(other.eval(), inputs)[0], outputs(slim.eval(), inputs)[0])


def test_a_slim_model_can_be_traced_and_cut_again() -> None:
    model, inputs, plan = planned("resnet20")
    slim = cut(model, plan)
    again = trace(slim, inputs)
    assert {n: g.size for n, g in again.groups.items()} == {
        g.name: len(g.keep) for g in plan.groups
    }
    second = make_plan(again, {n: range(g.size // 2) for n, g in again.groups.items()})
    slimmer = cut(slim, second)
    keep = {
        g.name: [g.keep[u] for u in h.keep] for g, h in zip(plan.groups, second.groups, strict=True)
    }
    at_once = cut(model, make_plan(trace(model, inputs), keep))
    for (name, a), b in zip(
        slimmer.state_dict().items(), at_once.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert torch.equal(outputs(slimmer, inputs)[0], outputs(at_once, inputs)[0])
    assert cut_error(slim, second, inputs) < 1e-10


# ---------------------------------------------------------------- plans as files


@pytest.mark.parametrize("name", ["resnet20", "shuffle_v2", "flatten_linear", "inception", "c2f"])
def test_a_plan_survives_its_file_and_replays_on_a_fresh_model(name: str, tmp_path: Path) -> None:
    model, inputs, plan = planned(name)
    write_value(tmp_path / "plan.json", plan)
    read = read_value(tmp_path / "plan.json", PruningPlan)
    assert read.digest() == plan.digest()
    assert read.slices() == plan.slices()
    for a, b in zip(read.groups, plan.groups, strict=True):
        assert (a.name, a.size, a.keep, a.round_to) == (b.name, b.size, b.keep, b.round_to)
        for m, n in zip(a.members, b.members, strict=True):
            assert (m.tensor, m.dim, m.length, m.reads) == (n.tensor, n.dim, n.length, n.reads)
            assert np.array_equal(m.index, n.index)
    assert dataclasses.replace(read, groups=()) == dataclasses.replace(plan, groups=())
    fresh, _ = build(name)
    one, two = cut(fresh, read), cut(model, plan)
    assert torch.equal(outputs(one, inputs)[0], outputs(two, inputs)[0])


def test_a_plan_is_small_enough_for_a_person(tmp_path: Path) -> None:
    _, _, plan = planned("flatten_linear")
    write_value(tmp_path / "plan.json", plan)
    body = json.loads((tmp_path / "plan.json").read_text())
    assert body["kind"] == "PruningPlan"
    group = next(g for g in body["groups"] if g["name"] == "linear1")
    assert (group["size"], group["keep"]) == (20, list(range(0, 20, 2)))
    reader = next(m for m in body["groups"][1]["members"] if m["tensor"] == "linear1.weight")
    assert reader["index"] == {"start": 0, "step": 16, "block": 16, "units": 12}


def test_a_plan_edited_by_hand_cuts_as_edited(tmp_path: Path) -> None:
    model, inputs, plan = planned("option_b")
    file = tmp_path / "plan.json"
    write_value(file, plan)
    body = json.loads(file.read_text())
    group = next(g for g in body["groups"] if g["name"] == "conv1")
    group["keep"] = [1, 2, 3, 9, 15]
    file.write_text(json.dumps(body))
    edited = read_value(file, PruningPlan)
    assert edited.digest() != plan.digest()
    slim = cut(model, edited)
    assert torch.equal(slim.bn1.weight, model.bn1.weight[[1, 2, 3, 9, 15]])
    assert cut_error(model, edited, inputs) < 1e-10


def test_slices_name_what_leaves() -> None:
    model, inputs = build("flatten_linear")
    graph = trace(model, inputs)
    plan = make_plan(graph, {"features.1.0": [u for u in range(12) if u not in (2, 5)]})
    slices = plan.slices(model)
    assert slices["features.1.0.weight"] == {0: [2, 5]}
    assert slices["features.1.1.running_mean"] == {0: [2, 5]}
    assert slices["linear1.weight"] == {1: [*range(32, 48), *range(80, 96)]}
    assert "linear2.weight" not in slices
    assert set(slices) <= set(model.state_dict())


# ---------------------------------------------------------------- plans that do not fit


def edited(plan: PruningPlan, **change: Any) -> PruningPlan:
    first = dataclasses.replace(plan.groups[0], **change)
    return dataclasses.replace(plan, groups=(first, *plan.groups[1:]))


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ((), "keeps nothing"),
        ((1, 1, 2), "distinct sorted indices from 0 to 7"),
        ((3, 2), "distinct sorted indices"),
        ((0, 8), "from 0 to 7"),
        ((-1, 2), "from 0 to 7"),
    ],
)
def test_indices_that_cannot_be_are_named(keep: tuple[int, ...], words: str) -> None:
    model, _, plan = planned("option_b")
    before = snapshot(model)
    with pytest.raises(PlanError, match="does not fit") as caught:
        cut(model, edited(plan, keep=keep))
    assert "group 'stem.0'" in str(caught.value)
    assert words in str(caught.value)
    assert_untouched(model, before)


def test_the_plan_of_another_model_is_refused_with_what_differs() -> None:
    _, _, plan = planned("option_b")
    other, _ = build("unet")
    with pytest.raises(PlanError) as caught:
        cut(other, dataclasses.replace(plan, model="option-b"))
    text = str(caught.value)
    assert "'option-b'" in text
    assert "'stem.0.weight' is not in the model" in text
    assert "more" in text
    wider = build("option_b")[0]
    wider.conv1 = nn.Conv2d(8, 20, 3, 2, 1)
    with pytest.raises(PlanError, match=r"'conv1.weight' has shape \[20, 8, 3, 3\].*expects 16"):
        cut(wider, plan)


def test_members_that_were_tampered_with_are_refused() -> None:
    model, _, plan = planned("option_b")
    member = plan.groups[0].members[0]
    outside = dataclasses.replace(member, index=member.index + 5)
    short = dataclasses.replace(member, index=member.index[:3])
    for wrong, words in ((outside, "outside its"), (short, "lists 3 of 8 units")):
        with pytest.raises(PlanError, match=words):
            cut(model, edited(plan, members=(wrong, *plan.groups[0].members[1:])))


def test_a_changed_constant_is_refused() -> None:
    model, _, plan = planned("depthwise")
    model.depthwise[0].groups = 4
    with pytest.raises(PlanError, match=r"'depthwise.0.groups' to be 12, found 4"):
        cut(model, plan)
    missing = dataclasses.replace(
        plan, constants=(dataclasses.replace(plan.constants[0], attribute="nowhere.groups"),)
    )
    with pytest.raises(PlanError, match=r"'nowhere.groups', which the model does not have"):
        cut(build("depthwise")[0], missing)


def test_damaged_plan_files_are_named(tmp_path: Path) -> None:
    _, _, plan = planned("option_b")
    file = tmp_path / "plan.json"
    write_value(file, plan)
    text = file.read_text()
    for broken, words in (
        (text[: len(text) // 2], "damaged"),
        (text.replace('"PruningPlan"', '"Moments"'), "expected a 'PruningPlan'"),
        (text.replace('"keep"', '"kept"', 1), "unknown key 'kept'"),
        (text.replace('"units": 8', '"units": "x"', 1), "not a member"),
    ):
        file.write_text(broken)
        with pytest.raises(DataError, match=words):
            read_value(file, PruningPlan)


# ---------------------------------------------------------------- run folders


@pytest.fixture
def run_folder(tmp_path: Path) -> tuple[Path, nn.Module, tuple[Tensor, ...]]:
    """A folder with ``plan.json`` and ``slim.safetensors``; the slim weights were changed since."""
    model, inputs, plan = planned("resnet8")
    slim = cut(model, plan)
    with torch.no_grad():
        for p in slim.parameters():
            p.add_(0.01)
    write_value(tmp_path / "plan.json", dataclasses.replace(plan, model="resnet8-digits"))
    save(slim, tmp_path / "slim.safetensors", metadata={"plan": plan.digest()})
    return tmp_path, slim, inputs


@pytest.mark.parametrize("given", ["factory", "module", "name"])
def test_a_run_folder_loads_into_a_fresh_model(
    given: str, run_folder: tuple[Path, nn.Module, tuple[Tensor, ...]]
) -> None:
    folder, slim, inputs = run_folder
    fresh: dict[str, Any] = {
        "factory": lambda: build("resnet8", seed=5)[0],
        "module": build("resnet8", seed=6)[0],
        "name": None,
    }
    loaded = load(folder, model=fresh[given])
    assert not loaded.training
    assert torch.equal(outputs(loaded, inputs)[0], outputs(slim, inputs)[0])
    if given == "module":
        assert fresh["module"].conv1.out_channels == 32


def test_metadata_travels_and_nothing_is_pickled(
    run_folder: tuple[Path, nn.Module, tuple[Tensor, ...]],
) -> None:
    folder, _, _ = run_folder
    with safetensors.safe_open(folder / "slim.safetensors", "pt") as stored:
        assert set(stored.metadata()) == {"plan", "class"}


def test_shared_tensors_are_stored_once_and_come_back_shared(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Tied().eval()
    plan = half(trace(model, torch.randn(2, 6)))
    slim = cut(model, plan)
    write_value(tmp_path / "plan.json", plan)
    save(slim, tmp_path / "slim.safetensors", metadata={})
    assert "again.weight" not in safetensors.torch.load_file(tmp_path / "slim.safetensors")
    torch.manual_seed(1)
    loaded = load(tmp_path, model=Tied)
    assert loaded.again.weight is loaded.first.weight
    assert torch.equal(loaded.first.weight, slim.first.weight)


Change = Callable[[Path], object]


def _other_width(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "slim.safetensors")
    tensors["conv1.weight"] = tensors["conv1.weight"][:3].clone()
    tensors["extra"] = tensors.pop("linear.bias")
    safetensors.torch.save_file(tensors, folder / "slim.safetensors")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f: (f / "plan.json").unlink(), DataError, ["cannot read", "plan.json"]),
        (lambda f: (f / "slim.safetensors").unlink(), DataError, ["no such file"]),
        (lambda f: (f / "slim.safetensors").write_bytes(b"no"), DataError, ["damaged"]),
        (
            _other_width, ModelError,
            [
                "'conv1.weight' has shape [3, 1, 3, 3], expected [16, 1, 3, 3]",
                "'linear.bias' is missing", "'extra' is not in the model",
            ],
        ),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_load_lists_what_differs(
    change: Change,
    error: type[Exception],
    words: list[str],
    run_folder: tuple[Path, nn.Module, tuple[Tensor, ...]],
) -> None:
    folder, _, _ = run_folder
    change(folder)
    with pytest.raises(error) as caught:
        load(folder, model=lambda: build("resnet8")[0])
    for word in words:
        assert word in str(caught.value)


def test_a_factory_for_another_model_or_for_none_is_named(
    run_folder: tuple[Path, nn.Module, tuple[Tensor, ...]],
) -> None:
    folder, _, _ = run_folder
    with pytest.raises(ModelError, match=r"'layer1\.1\.conv1\.weight' is missing"):
        load(folder, model=lambda: build("resnet20")[0])
    with pytest.raises(ModelError, match="returned int"):
        load(folder, model=lambda: 3)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    model, _, _ = planned("option_b")
    target = tmp_path / "slim.safetensors"
    save(model, target, metadata={"a": "1"})
    before = target.read_bytes()
    with pytest.raises(TypeError):
        save(model, target, metadata={"a": 1})  # safetensors takes text alone
    assert target.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["slim.safetensors"]
