"""A slim network lives like any other: trained, wrapped, saved, read back, copied, compiled, exported."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from masking import cut_error, outputs
from snapshots import assert_untouched, snapshot
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

import mint_deploy as md
from mint_deploy.artifacts import PruningPlan
from mint_deploy.files import write_value
from mint_deploy.loading import load, read_tensors, save
from mint_deploy.plan_file import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace


class Block(nn.Module):
    """A grouped convolution and a channel shuffle, as in ShuffleNet."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(width, width, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.shuffle = nn.ChannelShuffle(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.shuffle(self.norm(self.grouped(x)).relu())


class Lively(nn.Module):
    """Everything at once: grouped, shuffled, normalised; one module used twice, one weight in two."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.block = Block(16)
        self.mix = nn.Conv2d(16, 16, 1)
        self.again = self.mix
        self.left, self.right = nn.Linear(16, 12), nn.Linear(16, 12)
        self.right.weight = self.left.weight
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.mix(self.block(self.stem(x))).relu()).mean((2, 3))
        return self.head(self.left(y).relu() + self.right(y.square()).relu())


@pytest.fixture
def born() -> tuple[nn.Module, nn.Module, PruningPlan, tuple[Tensor]]:
    """A dense network, the slim one, the plan between them, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, x = Lively().eval(), torch.randn(4, 3, 8, 8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.normal_(module.running_mean, 0, 0.3)
    graph = trace(model, x)
    assert len(graph.groups) >= 3
    plan = make_plan(graph, {n: range(1, g.size, 2) for n, g in graph.groups.items()})
    slim = cut(model, plan)
    assert slim.block.grouped.groups == 4
    assert slim.block.grouped.weight.shape[0] < 16
    assert slim.right.weight is slim.left.weight
    assert slim.again is slim.mix
    assert cut_error(model, plan, (x,)) < 1e-10
    return model, slim, plan, (x,)


@pytest.fixture
def alone() -> Iterator[None]:
    """One process that is a whole world; no port is opened."""
    distributed.init_process_group(
        "gloo",
        store=distributed.HashStore(),
        rank=0,
        world_size=1,
        timeout=dt.timedelta(seconds=30),
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


Born = tuple[nn.Module, nn.Module, PruningPlan, tuple[Tensor]]


def step(
    model: nn.Module, inputs: tuple[Tensor], optimiser: torch.optim.Optimizer | None = None
) -> float:
    """One step of training; the loss before it."""
    optimiser = optimiser or torch.optim.SGD(model.parameters(), lr=0.05)
    optimiser.zero_grad()
    loss = nn.functional.cross_entropy(model(*inputs), torch.arange(4))
    loss.backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())
    optimiser.step()
    return float(loss.detach())


def test_it_is_trained_further(born: Born) -> None:
    _, slim, _, inputs = born
    slim.train()
    optimiser = torch.optim.Adam(slim.parameters(), lr=0.02)
    losses = [step(slim, inputs, optimiser) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert slim.right.weight is slim.left.weight
    assert int(slim.block.norm.num_batches_tracked) == 30


@pytest.mark.filterwarnings("ignore:.*barrier.*:UserWarning")
def test_it_is_wrapped_in_ddp_and_every_parameter_is_used(born: Born, alone: None) -> None:
    _, slim, _, inputs = born
    single = copy.deepcopy(slim).train()
    wrapped = DistributedDataParallel(slim.train(), find_unused_parameters=False)
    losses = [step(wrapped, inputs) for _ in range(3)]
    assert losses == [step(single, inputs) for _ in range(3)]
    for a, b in zip(wrapped.module.parameters(), single.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_wrapped_model_is_traced_cut_and_proven_like_its_inside(born: Born, alone: None) -> None:
    model, slim, plan, inputs = born
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    before = snapshot(wrapped)
    assert list(trace(wrapped, inputs).groups) == [g.name for g in plan.groups]
    found = md.cut(wrapped, plan)
    assert type(found) is Lively
    assert torch.equal(outputs(found, inputs)[0], outputs(slim, inputs)[0])
    assert md.verify(wrapped, found, plan, inputs).max_error < 1e-11
    assert_untouched(wrapped, before)


def test_a_plain_state_dict_is_saved_and_read_back(born: Born, tmp_path: Path) -> None:
    model, slim, plan, inputs = born
    with torch.no_grad():
        for p in slim.parameters():
            p.add_(0.01)
    torch.save(slim.state_dict(), tmp_path / "slim.pt")
    fresh = cut(Lively(), plan)
    fresh.load_state_dict(torch.load(tmp_path / "slim.pt", weights_only=True), strict=True)
    assert torch.equal(outputs(fresh.eval(), inputs)[0], outputs(slim, inputs)[0])
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_state_dict(torch.load(tmp_path / "slim.pt", weights_only=True))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_saved_from_inside_a_wrapper_load_into_the_run(
    prefix: str, born: Born, tmp_path: Path
) -> None:
    """Somebody trained the slim network further and put the weights into the run folder."""
    _, slim, plan, inputs = born
    with torch.no_grad():
        slim.head.bias.add_(1.0)
    write_value(tmp_path / "plan.json", plan)
    state = {f"{prefix}{n}": t.clone() for n, t in slim.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "slim.safetensors")
    loaded = load(tmp_path, model=Lively)
    assert torch.equal(outputs(loaded, inputs)[0], outputs(slim, inputs)[0])
    assert loaded.right.weight is loaded.left.weight


def test_it_is_copied_deeply(born: Born) -> None:
    _, slim, _, inputs = born
    twin = copy.deepcopy(slim)
    assert torch.equal(outputs(twin, inputs)[0], outputs(slim, inputs)[0])
    assert twin.right.weight is twin.left.weight
    with torch.no_grad():
        twin.head.bias.add_(1.0)
    assert not torch.equal(twin.head.bias, slim.head.bias)


def test_it_is_compiled(born: Born) -> None:
    _, slim, plan, inputs = born
    compiled = torch.compile(slim, backend="eager", fullgraph=True)
    assert torch.equal(outputs(compiled, inputs)[0], outputs(slim, inputs)[0])
    again = trace(compiled, inputs)
    assert {n: g.size for n, g in again.groups.items()} == {
        g.name: len(g.keep) for g in plan.groups
    }


def test_it_is_exported(born: Born, tmp_path: Path) -> None:
    _, slim, _, inputs = born
    expected = outputs(slim, inputs)[0]
    program = torch.export.export(slim, inputs)
    with torch.no_grad():
        assert torch.equal(program.module()(*inputs), expected)
    md.save_pt2(slim, tmp_path / "slim.pt2", inputs)
    with torch.no_grad():
        assert torch.equal(md.load(tmp_path / "slim.pt2")(*inputs), expected)
    md.export(slim, tmp_path / "slim.onnx", inputs, "cpu", dynamic_batch=True)
    session = onnxruntime.InferenceSession(tmp_path / "slim.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: inputs[0].numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_life_in_sequence(born: Born, tmp_path: Path) -> None:
    """Cut, trained, saved, loaded, cut again, trained again, saved as one plan on the original."""
    model, slim, first, inputs = born
    step(slim.train(), inputs)
    save(slim, tmp_path / "once.safetensors", metadata={})
    once = cut(model, first)
    read_tensors(once, tmp_path / "once.safetensors")
    assert torch.equal(outputs(once.eval(), inputs)[0], outputs(slim.eval(), inputs)[0])
    graph = trace(once, inputs)
    second = make_plan(graph, {n: range(g.size - 1) for n, g in graph.groups.items() if g.size > 1})
    twice = cut(once, second)
    step(twice.train(), inputs)
    both = md.compose(first, second)
    write_value(tmp_path / "plan.json", both)
    save(twice, tmp_path / "slim.safetensors", metadata={"plan": both.digest()})
    loaded = load(tmp_path, model=Lively)
    assert torch.equal(outputs(loaded, inputs)[0], outputs(twice.eval(), inputs)[0])
