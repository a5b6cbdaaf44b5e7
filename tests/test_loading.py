"""``load`` into a fresh model, or a clear error that lists what differs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import safetensors.torch
import torch
from nets import build
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.artifacts import PruningPlan
from mint_deploy.errors import DataError, ModelError, PlanError
from mint_deploy.export import parity_of
from mint_deploy.files import write_value
from mint_deploy.loading import load, read_tensors, save
from mint_deploy.parity import write_parity
from mint_deploy.plan_file import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace


class Net(nn.Module):
    """A small network whose class, layers and forward the tests change one by one."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.norm(self.stem(x)).relu()).relu().mean((2, 3)))


class Gelu(Net):
    """The same tensors, another forward."""

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.gelu(self.norm(self.stem(x)))
        return self.head(self.body(y).relu().mean((2, 3)))


class Renamed(nn.Module):
    """The same network with a layer under another name, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.extra = nn.Linear(4, 4)


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, nn.Module, PruningPlan]:
    """A run folder with a plan, weights and samples; and the slim network in it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Net().eval(), torch.randn(4, 3, 8, 8)
    graph = trace(model, x)
    plan = make_plan(graph, {n: range(0, g.size, 2) for n, g in graph.groups.items()})
    slim = cut(model, plan)
    write_value(tmp_path / "plan.json", plan)
    save(slim, tmp_path / "slim.safetensors", metadata={"plan": plan.digest()})
    write_parity(tmp_path / "parity.npz", parity_of({"dense": model, "slim": slim}, x))
    return tmp_path, slim, plan


Run = tuple[Path, nn.Module, PruningPlan]


def refused(folder: Path, model: object, *words: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(folder, model=model)
    for word in words:
        assert word in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("wrap", [None, "compiled", "factory"])
def test_a_fresh_model_becomes_the_slim_one(wrap: str | None, run: Run) -> None:
    folder, slim, _ = run
    fresh: object = {
        None: Net(),
        "compiled": torch.compile(Net(), backend="eager"),
        "factory": Net,
    }[wrap]
    loaded = load(folder, model=fresh)
    assert type(loaded) is Net
    for name, tensor in slim.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_a_renamed_layer_is_named_on_both_sides(run: Run) -> None:
    text = refused(
        run[0], Renamed,
        "written for the class test_loading.Net",
        "does not fit the model test_loading.Renamed",
        "'first.weight' is missing in the file", "'extra.bias' is missing in the file",
        "'stem.weight' is not in the model",
    )  # fmt: skip
    assert "give the model that it was made of" in text


def test_a_wider_layer_is_named_with_both_shapes(run: Run) -> None:
    with pytest.raises(PlanError) as caught:
        load(run[0], model=lambda: Net(width=12))
    assert "'stem.weight' has shape [12, 3, 3, 3], the plan expects 8" in str(caught.value)


def test_a_layer_that_the_plan_does_not_touch_is_compared_too(run: Run) -> None:
    def wider_head() -> nn.Module:
        net = Net()
        net.head = nn.Linear(6, 9)
        return net

    refused(run[0], wider_head, "'head.weight' has shape [4, 3], expected [9, 3]")


def test_another_forward_is_noticed_on_the_samples_of_the_run(run: Run) -> None:
    text = refused(run[0], Gelu, "every tensor fits", "its forward computes something else")
    assert "test_loading.Gelu" in text
    (run[0] / "parity.npz").unlink()
    assert type(load(run[0], model=Gelu)) is Gelu, "without samples there is no way to know"


def test_a_forward_that_fails_is_told(run: Run) -> None:
    class Broken(Net):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("not today")

    refused(run[0], Broken, "ValueError: not today")


def test_ten_differences_are_listed_and_the_rest_counted(run: Run) -> None:
    text = refused(run[0], lambda: build("resnet20")[0], "and ", " more")
    assert text.count("is missing in the file") == 10


def test_other_dtypes_are_named(run: Run) -> None:
    refused(run[0], lambda: Net().double(), "'stem.weight' is float32, expected float64")


def test_nothing_is_copied_where_something_differs(run: Run) -> None:
    folder, slim, _ = run
    tensors = safetensors.torch.load_file(folder / "slim.safetensors")
    tensors["head.bias"] = torch.zeros(9)
    safetensors.torch.save_file(tensors, folder / "other.safetensors")
    before = {n: t.clone() for n, t in slim.state_dict().items()}
    with torch.no_grad():
        slim.stem.weight.add_(1.0)
    with pytest.raises(ModelError, match=r"'head.bias' has shape \[9\], expected \[4\]"):
        read_tensors(slim, folder / "other.safetensors")
    assert torch.equal(slim.stem.weight, before["stem.weight"] + 1.0)


def test_weights_of_another_cut_are_not_taken_for_this_one(run: Run) -> None:
    folder, _, plan = run
    group = plan.groups[0]
    text = (folder / "plan.json").read_text()
    old, new = str(list(group.keep)), str([u + 1 for u in group.keep])
    assert old in text
    (folder / "plan.json").write_text(text.replace(f'"keep": {old}', f'"keep": {new}', 1))
    refused(folder, Net, "holds the weights of another cut", f"mint-deploy cut {folder}")


def test_weights_that_somebody_trained_further_are_taken(run: Run) -> None:
    folder, slim, _ = run
    with torch.no_grad():
        slim.head.bias.add_(5.0)
    state = {f"module.{n}": t.clone() for n, t in slim.state_dict().items()}
    safetensors.torch.save_file(state, folder / "slim.safetensors")
    assert torch.equal(load(folder, model=Net).head.bias, slim.head.bias)


def test_buffers_that_are_not_saved_may_be_missing(tmp_path: Path) -> None:
    class Masked(Net):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.scale

    model, x = Masked().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    plan = make_plan(graph, {n: range(3) for n in graph.groups})
    slim = cut(model, plan)
    write_value(tmp_path / "plan.json", plan)
    safetensors.torch.save_file(slim.state_dict(), tmp_path / "slim.safetensors")
    assert torch.equal(load(tmp_path, model=Masked)(x), slim(x))


def test_an_edited_plan_is_refused_with_its_file(run: Run) -> None:
    folder = run[0]
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text.replace('"keep": [0, ', '"keep": [0, 0, ', 1))
    with pytest.raises(PlanError, match=r"plan.json is not a plan.*names 0 twice"):
        load(folder, model=Net)


def test_no_run_and_no_network(run: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*nothing/plan\.json"):
        load(tmp_path / "nothing", model=Net)
    with pytest.raises(ModelError, match="the factory returned dict"):
        load(run[0], model=dict)
    write_value(run[0] / "plan.json", dataclasses.replace(run[2], model="Net (in memory)"))
    with pytest.raises(
        ModelError, match=r"made in Python, of a Net \(in memory\); give a fresh one"
    ):
        load(run[0])


def test_a_pt2_file_needs_no_class(run: Run, tmp_path: Path) -> None:
    _, slim, _ = run
    x = torch.randn(4, 3, 8, 8)
    md.save_pt2(slim, tmp_path / "net.pt2", x)
    with torch.no_grad():
        assert torch.equal(md.load(tmp_path / "net.pt2")(x), slim.eval()(x))
