"""Bad input gets a named error with what to do, and the user's model is never altered."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import build
from snapshots import assert_untouched, snapshot
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import MintDeployError, PlanError, SurgeryError, TraceError
from mint_deploy.plan_file import make_plan
from mint_deploy.verify import prove

IMAGE = (2, 3, 8, 8)


def coarse(*shape: int) -> Tensor:
    """A quantised tensor; PyTorch says that it will drop them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8)


class Net(nn.Module):
    """Two convolutions; what comes in and what goes out can be replaced."""

    def __init__(
        self,
        out: Callable[[Tensor], Any] | None = None,
        before: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        self.out, self.before = out, before

    def forward(self, x: Tensor) -> Any:
        x = self.before(x) if self.before else x
        y = self.second(self.first(x).relu()).mean((2, 3))
        return self.out(y) if self.out else y


@pytest.fixture
def x() -> Tensor:
    return torch.randn(IMAGE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def plan(x: Tensor) -> PruningPlan:
    return make_plan(md.trace(Net().eval(), x), {"first": [0, 2, 5]})


def named(
    error: type[MintDeployError], words: str, run: Callable[[], object], model: object = None
) -> str:
    """``run`` raises ``error`` with ``words``; the model is what it was, and so is the random state."""
    before = snapshot(model) if isinstance(model, nn.Module) else None
    random = torch.get_rng_state()
    with pytest.raises(error) as caught:
        run()
    assert words in str(caught.value)
    assert torch.equal(torch.get_rng_state(), random)
    if before is not None:
        assert_untouched(model, before)
    return str(caught.value)


# ---------------------------------------------------------------- what is no model


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "found an object of type NoneType; give the network itself"),
        (Net, "found the class Net; call it"),
        (lambda: Net(), "found a function; if it makes the network, call it"),
        (Net().state_dict(), "found tensors by name; they go into a network with load_state_dict"),
        ("resnet56", "found an object of type str"),
    ],
)
def test_what_is_no_model_is_named(given: Any, words: str, x: Tensor, plan: PruningPlan) -> None:
    named(TraceError, words, lambda: md.trace(given, x))
    named(TraceError, words, lambda: md.cut(given, plan))
    slim = Net()
    named(TraceError, words, lambda: md.verify(given, slim, plan, x))


@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_exported_program_says_what_to_give(x: Tensor) -> None:
    program = torch.export.export(Net().eval(), (x,))
    named(TraceError, "its .module() is one", lambda: md.trace(program, x))
    assert md.trace(program.module(), x).groups


def quantised() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        return torch.ao.quantization.quantize_dynamic(
            nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), {nn.Linear}
        )


def quantised_buffer() -> nn.Module:
    model = Net().eval()
    model.register_buffer("table", coarse(3))
    return model


def half_meta() -> nn.Module:
    model = Net().eval()
    model.second.to("meta")
    return model


def meta_buffer() -> nn.Module:
    model = Net().eval()
    model.register_buffer("table", torch.zeros(3, device="meta"))
    return model


def scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        return torch.jit.trace(Net().eval(), torch.zeros(IMAGE))


def half_scripted() -> nn.Module:
    with pytest.warns(DeprecationWarning, match="deprecated"):
        inner = torch.jit.trace(nn.Conv2d(3, 8, 3), torch.zeros(IMAGE))
    return nn.Sequential(inner, nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(8, 3), nn.ReLU(), nn.LazyConv2d(4, 3)).eval()


def uncopyable() -> nn.Module:
    model = Net().eval()
    model.rows = (row for row in [1])
    return model


ODD: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "quantised layers": (
        quantised,
        "'0' is quantised (Linear); cut the float model, then quantise",
    ),
    "a quantised tensor": (quantised_buffer, "'table' is quantised"),
    "meta parameters": (half_meta, "'second.weight' is a meta tensor; load real weights first"),
    "a meta buffer": (meta_buffer, "'table' is a meta tensor"),
    "TorchScript": (scripted, "the model is TorchScript; give the Python module"),
    "TorchScript inside": (half_scripted, "'0' is TorchScript; give the Python module"),
    "lazy layers": (lazy, "'0.weight' has no shape yet; run the model once"),
    "what cannot be copied": (uncopyable, "the model cannot be copied"),
}


@pytest.mark.parametrize("name", ODD)
def test_models_that_cannot_be_cut_are_named(name: str, x: Tensor, plan: PruningPlan) -> None:
    make, words = ODD[name]
    model = make()
    named(TraceError, words, lambda: md.trace(model, x))
    if "meta" not in name:  # shapes are enough for a cut
        named(TraceError, words, lambda: md.cut(model, plan))
    if "quantised" not in name or "layers" in name:
        named(TraceError, words, lambda: md.save_pt2(model, "never.pt2", x))
    assert not Path("never.pt2").exists()


def test_a_plan_replays_on_a_model_without_values(plan: PruningPlan) -> None:
    with torch.device("meta"):
        model = Net()
    slim = md.cut(model, plan)
    assert slim.first.weight.shape == (3, 3, 3, 3)
    assert slim.first.weight.is_meta


def test_a_model_without_layers_has_nothing_to_cut(x: Tensor) -> None:
    graph = md.trace(nn.ReLU(), x)
    with pytest.raises(PlanError, match="nothing in this model can be cut"):
        md.plan(graph, md.score(graph, None, criterion="magnitude"), macs=0.5)


# ---------------------------------------------------------------- example inputs


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        (None, "hold no tensor (found NoneType); give a tensor, a tuple of arguments or a dict"),
        (np.zeros(IMAGE, np.float32), "hold no tensor (found ndarray)"),
        ((), "hold no tensor (found tuple)"),
        (torch.zeros(0, 3, 8, 8), "hold no sample (shapes [0, 3, 8, 8]); give one or two"),
        (torch.zeros(IMAGE, device="meta"), "hold a meta tensor; give real values in float"),
        (coarse(*IMAGE), "hold a quantised tensor"),
        (torch.zeros(2, 4, 8, 8), "on inputs [2, 4, 8, 8] float32: Given groups=1"),
        (torch.zeros(8), "on inputs [8] float32"),
        (torch.zeros(2, 3, 2, 2), "Kernel size can't be greater than actual input size"),
        (torch.zeros(IMAGE, dtype=torch.long), "on inputs [2, 3, 8, 8] int64"),
        (torch.zeros(IMAGE, dtype=torch.half), "on inputs [2, 3, 8, 8] float16"),
        (torch.zeros(IMAGE).to_sparse(), "raises RuntimeError"),
        ([torch.zeros(IMAGE)] * 2, "forward() takes 2 positional arguments but 3 were given"),
        ({"y": torch.zeros(IMAGE)}, "got an unexpected keyword argument 'y'"),
        (torch.full(IMAGE, float("nan")), "returns NaN on the example inputs"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: Any, words: str) -> None:
    model = Net().eval()
    named(TraceError, words, lambda: md.trace(model, inputs), model)


def test_inputs_that_do_not_fit_are_named_by_the_gate_too(plan: PruningPlan, x: Tensor) -> None:
    model = Net().eval()
    slim = md.cut(model, plan)
    wrong = torch.zeros(2, 4, 8, 8)
    for run in (lambda: md.verify(model, slim, plan, wrong), lambda: prove(model, plan, wrong)):
        named(TraceError, "to have 3 channels", run, model)
    named(TraceError, "hold no tensor", lambda: prove(model, plan, None), model)


@pytest.mark.parametrize("odd", ["requires_grad", "inference", "not contiguous", "dict", "tuple"])
def test_inputs_of_other_kinds_are_taken(odd: str, x: Tensor) -> None:
    model = Net().eval()
    given: Any = x
    if odd == "requires_grad":
        given = x.clone().requires_grad_()
    elif odd == "inference":
        with torch.inference_mode():
            given = x.clone()
    elif odd == "not contiguous":
        given = x.transpose(2, 3)
    elif odd == "dict":
        given = {"x": x}
    elif odd == "tuple":
        given = (x,)
    graph = md.trace(model, given)
    assert list(graph.groups) == ["first"]
    slim, _, proof = prove(model, make_plan(graph, {"first": [1, 2]}), given)
    assert proof.max_error < 1e-11
    assert all(p.grad is None for p in [*model.parameters(), *slim.parameters()])
    if odd == "requires_grad":
        assert given.grad is None


# ---------------------------------------------------------------- forward, and what it returns


def fails(x: Tensor) -> Tensor:
    raise RuntimeError("no such luck")


def asserts(x: Tensor) -> Tensor:
    assert x.shape[1] == 4, "four channels"
    return x


def stops(x: Tensor) -> Tensor:
    return next(iter(()))


@pytest.mark.parametrize(
    ("before", "words"),
    [
        (fails, "raises RuntimeError on inputs [2, 3, 8, 8] float32: no such luck"),
        (asserts, "raises AssertionError on inputs [2, 3, 8, 8] float32: four channels"),
        (stops, "raises StopIteration"),
        (lambda x: x.numpy() @ None, "raises ValueError"),
    ],
)
def test_a_model_that_raises_is_quoted_with_its_line(
    before: Callable[[Tensor], Tensor], words: str, x: Tensor
) -> None:
    model = Net(before=before).eval()
    text = named(TraceError, words, lambda: md.trace(model, x), model)
    assert "test_bad_input.py:" in text
    assert "give example inputs that it accepts" in text


class Box:
    """A result of one's own, which nobody can look into."""

    def __init__(self, y: Tensor) -> None:
        self.y = y


@dataclasses.dataclass
class Result:
    """The same as a dataclass that PyTorch was not told of."""

    y: Tensor


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (lambda y: None, "found NoneType"),
        (lambda y: "cat", "found str"),
        (lambda y: float(y.sum()), "found float"),
        (lambda y: y.argmax(1), "found torch.int64"),
        (lambda y: y > 0, "found torch.bool"),
        (lambda y: y.numpy(), "found ndarray"),
        (lambda y: [1, "cat"], "found list"),
        (lambda y: {}, "found dict"),
        (lambda y: (row for row in y), "found generator"),
        (Box, "found Box"),
        (Result, "found Result"),
    ],
)
def test_results_without_a_tensor_are_named(
    out: Callable[[Tensor], Any], words: str, x: Tensor
) -> None:
    model = Net(out).eval()
    text = named(TraceError, words, lambda: md.trace(model, x), model)
    assert "return tensors (scores rather than their argmax), or a tuple, list or dict" in text


def test_a_sparse_result_is_named(x: Tensor) -> None:
    model = Net(lambda y: y.to_sparse()).eval()
    named(TraceError, "SparseTensorImpl", lambda: md.trace(model, x), model)


def test_tensors_among_other_things_will_do(x: Tensor) -> None:
    model = Net(lambda y: {"scores": y, "name": "cat", "none": None, "best": y.argmax(1)}).eval()
    graph = md.trace(model, x)
    assert prove(model, make_plan(graph, {"first": [1, 2]}), x)[2].max_error < 1e-11


@pytest.mark.parametrize("out", [lambda y: torch.ones(3), lambda y: y * 0])
def test_an_output_that_says_nothing_proves_nothing(
    out: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    model = Net(out).eval()
    graph = md.trace(model, x)
    plan = make_plan(graph, {"first": [1, 2]})
    named(SurgeryError, "no group of the plan could be cut", lambda: prove(model, plan, x), model)


# ---------------------------------------------------------------- plans


@pytest.mark.parametrize("given", [None, {"first": [1]}, [1, 2]])
def test_what_is_no_plan_is_named(given: Any) -> None:
    model = Net().eval()
    named(PlanError, "expected a PruningPlan or the path", lambda: md.cut(model, given), model)


def test_the_plan_of_another_model_lists_what_differs(plan: PruningPlan, x: Tensor) -> None:
    other, inputs = build("unet")
    for run in (lambda: md.cut(other, plan), lambda: prove(other, plan, inputs)):
        text = named(PlanError, "does not fit this model", run, other)
        assert "'first.weight' is not in the model" in text
        assert "give the model that the plan was made for" in text
    wide = Net().eval()
    wide.first = nn.Conv2d(3, 12, 3)
    wide.second = nn.Conv2d(12, 4, 3)
    words = "'first.weight' has shape [12, 3, 3, 3], the plan expects 8 along dimension 0"
    named(PlanError, words, lambda: md.cut(wide, plan), wide)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ([0, 8], "which names 8, which is outside; expected distinct sorted indices from 0 to 7"),
        ([-1, 3], "which names -1, which is outside"),
        ([2, 2, 3], "which names 2 twice"),
        ([3, 2], "which is not sorted"),
        ([], "keeps nothing"),
    ],
)
def test_indices_that_cannot_be(keep: list[int], words: str, plan: PruningPlan, x: Tensor) -> None:
    model = Net().eval()
    wrong = dataclasses.replace(plan.groups[0], keep=tuple(keep))
    edited = dataclasses.replace(plan, groups=(wrong,))
    named(PlanError, words, lambda: md.cut(model, edited), model)
    named(PlanError, words, lambda: prove(model, edited, x), model)


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ([0, 8], "must keep some of its units 0 to 7"),
        ([1, 1], "is to keep a unit twice: [1, 1]"),
        (["1"], "must keep whole numbers"),
        ([1.5], "must keep whole numbers"),
        (3, "must keep whole numbers"),
        ([], "must keep some of its units"),
    ],
)
def test_indices_that_cannot_be_are_refused_when_a_plan_is_made(
    keep: Any, words: str, x: Tensor
) -> None:
    model = Net().eval()
    graph = md.trace(model, x)
    named(PlanError, words, lambda: make_plan(graph, {"first": keep}), model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "give exactly one budget of ratio, macs, params; found none"),
        ({"macs": 0.5, "ratio": 0.5}, "found ratio, macs"),
        ({"macs": 2}, "macs=2 is not a fraction"),
        ({"macs": float("nan")}, "macs=nan is not a fraction"),
        ({"macs": "half"}, "macs='half' is not a number"),
        ({"ratio": 1}, "ratio=1 is not a fraction"),
        ({"macs": 0.5, "round_to": 0}, "round_to=0 is no step between widths"),
        ({"macs": 0.5, "ignore": ["thirst"]}, "no layer 'thirst' to ignore; did you mean 'first'?"),
        ({"macs": 0.5, "allocation": "fair"}, "no allocation 'fair'"),
        ({"macs": 0.001}, "macs 0.001 is out of reach: the nearest is"),
    ],
)
def test_budgets_that_cannot_be(settings: dict[str, Any], words: str, x: Tensor) -> None:
    model = Net().eval()
    graph = md.trace(model, x)
    scores = md.score(graph, None, criterion="magnitude")
    named(PlanError, words, lambda: md.plan(graph, scores, **settings), model)


def test_a_width_that_is_no_multiple_says_the_near_ones(plan: PruningPlan) -> None:
    model = Net().eval()
    rounded = dataclasses.replace(plan.groups[0], round_to=2)
    edited = dataclasses.replace(plan, groups=(rounded,))
    words = "keeps 3 of 8 units, and its round_to is 2: keep 2 or 4, or write round_to 1"
    named(PlanError, words, lambda: md.cut(model, edited), model)


def test_an_edit_that_breaks_a_balance_is_never_cut() -> None:
    """Each unit of a balanced group has one channel in every chunk; half a unit cannot leave."""
    model, inputs = build("grouped")
    graph = md.trace(model, inputs)
    name, group = next((n, g) for n, g in graph.groups.items() if g.members[0].index.shape[1] > 1)
    plan = make_plan(graph, {name: range(group.size - 1)})
    place = next(i for i, g in enumerate(plan.groups) if g.name == name)

    def with_members(*members: Any) -> PruningPlan:
        wrong = dataclasses.replace(plan.groups[place], members=members)
        groups = (*plan.groups[:place], wrong, *plan.groups[place + 1 :])
        return dataclasses.replace(plan, groups=groups)

    first, *rest = plan.groups[place].members
    lame = dataclasses.replace(first, index=first.index[:, :1])
    for members in ((lame, *rest), tuple(rest)):
        named(
            SurgeryError,
            "no group of the plan could be cut",
            lambda members=members: prove(model, with_members(*members), inputs),
            model,
        )
    twice = dataclasses.replace(first, index=np.repeat(first.index[:, :1], 2, axis=1))
    words = f"share slices of '{first.tensor}'"
    named(PlanError, words, lambda: md.cut(model, with_members(twice, *rest)), model)
    uneven = dataclasses.replace(first, index=first.index[:-1])
    named(PlanError, "lists", lambda: md.cut(model, with_members(uneven, *rest)), model)


def test_a_slim_model_that_is_not_the_plans_is_named(plan: PruningPlan, x: Tensor) -> None:
    model = Net().eval()
    words = "of the cut network has shape [8, 3, 3, 3], the plan leaves [3, 3, 3, 3]"
    named(SurgeryError, words, lambda: md.verify(model, model, plan, x), model)
    slim = md.cut(model, plan)
    with torch.no_grad():
        slim.first.weight[0, 0, 0, 0] += 1e-3
    words = "is not what the plan leaves of the dense one"
    named(SurgeryError, words, lambda: md.verify(model, slim, plan, x), model)


# ---------------------------------------------------------------- the model is never altered


def everything(model: nn.Module) -> dict[str, Any]:
    """Beside what ``snapshot`` sees: memory formats, devices, gradients, versions, training flags."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return {
        "tensors": {
            n: (
                t.device, t.dtype, t.stride(), t.requires_grad, t.is_leaf, t._version,
                None if t.grad is None else t.grad.clone(),
            )
            for n, t in tensors
        },
        "modules": {n: (type(m), m.training, list(vars(m))) for n, m in model.named_modules()},
        "state": list(model.state_dict()),
    }  # fmt: skip


def surroundings() -> tuple[Any, ...]:
    """What a program shares with its libraries."""
    return (
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002  # the global state is what must not move
    )


@pytest.fixture(
    params=["float32", "float16", "bfloat16", "float64", "channels_last", "train", "inference"]
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def prepared(kind: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network with shared modules and buffers, in one of the states that users keep theirs in."""
    model, inputs = build("option_b")
    model.conv2.weight.requires_grad_(requires_grad=False)
    model.register_buffer("unused", torch.arange(3), persistent=False)
    if kind.startswith(("float", "bfloat")):
        dtype = getattr(torch, kind)
        model.to(dtype)
        inputs = tuple(x.to(dtype) for x in inputs)
    elif kind == "channels_last":
        model.to(memory_format=torch.channels_last)
        inputs = tuple(x.contiguous(memory_format=torch.channels_last) for x in inputs)
    elif kind == "train":
        model.train()
        model.bn1.eval()
        model(*inputs).sum().backward()
    elif kind == "inference":
        with torch.inference_mode():
            model = copy.deepcopy(model)
            inputs = tuple(x.clone() for x in inputs)
    return model, inputs


def compare(a: Any, b: Any) -> None:
    """Deep equality with tensors inside."""
    assert a.keys() == b.keys()
    assert a["modules"] == b["modules"]
    assert a["state"] == b["state"]
    for name, (*facts, grad) in a["tensors"].items():
        *others, other = b["tensors"][name]
        assert facts == others, name
        assert (grad is None) == (other is None)
        assert grad is None or torch.equal(grad, other)


def test_the_model_and_its_surroundings_are_what_they_were(kind: str) -> None:
    if kind == "inference":
        model, inputs = prepared(kind)
        versions = False
    else:
        model, inputs = prepared(kind)
        versions = True
    calls: list[str] = []
    model.conv1.register_forward_hook(lambda *_: calls.append("forward"))
    model.conv1.register_forward_pre_hook(lambda *_: calls.append("before"))
    model.conv1.weight.register_hook(lambda g: g) if kind != "inference" else None
    bits = snapshot(model)
    before = everything(model) if versions else None
    given = [(x.clone(), x.stride(), x.requires_grad) for x in inputs]
    around = surroundings()
    graph = md.trace(model, inputs)
    plan = make_plan(graph, {n: range(0, g.size, 2) for n, g in graph.groups.items()})
    slim = md.cut(model, plan)
    made, done, proof = prove(model, plan, inputs)
    md.verify(model, slim, plan, inputs)
    scores = md.score(graph, None, criterion="magnitude")
    md.plan(graph, scores, ratio=0.5)
    assert proof.max_error < 1e-8
    assert done.digest() == plan.digest()
    assert surroundings() == around
    assert_untouched(model, bits)
    if before is not None:
        compare(everything(model), before)
    for x, (value, stride, wants) in zip(inputs, given, strict=True):
        assert torch.equal(x, value)
        assert (x.stride(), x.requires_grad) == (stride, wants)
    for one in (slim, made):
        assert {n: (m.training, type(m)) for n, m in one.named_modules()} == {
            n: (m.training, type(m)) for n, m in model.named_modules()
        }
        mine, its = dict(model.named_parameters()), dict(one.named_parameters())
        assert {n: (p.dtype, p.device, p.requires_grad) for n, p in its.items()} == {
            n: (p.dtype, p.device, p.requires_grad) for n, p in mine.items()
        }
    assert calls.count("forward") == calls.count("before"), "hooks run in copies, in pairs"


def test_errors_leave_the_surroundings_as_they_were(x: Tensor) -> None:
    models = (Net(before=fails), Net(lambda y: None), Net(stops))
    around = surroundings()
    for model in models:
        with pytest.raises(MintDeployError):
            md.trace(model, x)
    assert surroundings() == around


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
def test_a_model_on_a_gpu_stays_there_and_copies_are_moved() -> None:
    model, inputs = build("option_b")
    model.cuda()
    before = {n: (t.device, t.data_ptr(), t.clone()) for n, t in model.state_dict().items()}
    for given in (inputs, tuple(x.cuda() for x in inputs)):
        graph = md.trace(model, given)
        plan = make_plan(graph, {n: range(0, g.size, 2) for n, g in graph.groups.items()})
        slim, _, proof = prove(model, plan, given)
        assert proof.max_error < 1e-11
        assert {p.device for p in slim.parameters()} == {p.device for p in model.parameters()}
    for name, tensor in model.state_dict().items():
        device, place, value = before[name]
        assert (tensor.device, tensor.data_ptr()) == (device, place)
        assert torch.equal(tensor, value)
