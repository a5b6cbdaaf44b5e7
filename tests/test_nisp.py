"""NISP against autograd: the gradient of the sum of the outputs in the network of absolute weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import build, enliven
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import mint_deploy as md
from mint_deploy.criteria._batchnorms import norms_after, norms_before
from mint_deploy.criteria.nisp import propagated
from mint_deploy.errors import ModelError
from mint_deploy.graph import Graph
from mint_deploy.trace import trace


def absolute(model: nn.Module) -> nn.Module:
    """Every weight positive, nothing added, circular padding: ReLU does nothing and no position is at an edge."""
    made = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            p.abs_() if name.endswith("weight") else p.zero_()
        for module in made.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.zero_()
            if isinstance(module, nn.Conv2d):
                module.padding_mode = "circular"
    return made


def oracle(
    model: nn.Module, graph: Graph, inputs: tuple[Tensor, ...], also: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The same sums by autograd: for each group, the gradient at what every producer computes, normalised.

    ``also``: layers whose output is also read as it is, beside a BatchNorm.
    """
    made = absolute(model)
    outputs: dict[str, Tensor] = {}
    deviation: dict[int, Tensor] = {}
    for name, module in made.named_modules():
        if isinstance(module, _BatchNorm):

            def note(m: nn.Module, args: tuple[Tensor, ...]) -> None:
                deviation[id(args[0])] = (m.running_var + m.eps).sqrt()

            module.register_forward_pre_hook(note)
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):

            def keep(_m: nn.Module, _a: object, out: Tensor, name: str = name) -> None:
                out.retain_grad()
                outputs.setdefault(f"{name}.weight", out)

            module.register_forward_hook(keep)
    result = made(*[x.double().abs() + 0.1 for x in inputs])
    result.sum().backward()
    found = {}
    for name, group in graph.groups.items():
        total = np.zeros(group.size)
        for member in group.members:
            if member.tensor not in group.producers or member.reads:
                continue
            out = outputs[member.tensor]
            slope = out.grad
            assert slope is not None
            axis = 1 if out.dim() == 4 else out.dim() - 1
            s = slope.movedim(axis, 0).flatten(1).sum(1)
            if member.tensor not in also:
                s = s * deviation.get(id(out), torch.ones_like(s))
            total += s.numpy()[member.index].sum(1)
        found[name] = total / total.sum()
    return found


def assert_equal_to_autograd(
    model: nn.Module, inputs: tuple[Tensor, ...], also: tuple[str, ...] = ()
) -> None:
    graph = trace(model, inputs)
    expected = oracle(model, graph, inputs, also)
    scores = md.score(graph, criterion="nisp")
    assert set(scores.groups) == set(expected)
    for name, found in scores.groups.items():
        np.testing.assert_allclose(found.loss, expected[name], rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(found.order, np.argsort(found.loss, kind="stable"))


# ---------------------------------------------------------------- networks of one's own


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Residual(nn.Module):
    """Two blocks of two layers, one of a single layer, on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)) for _ in range(2)
        )
        self.single = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.enter(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.leave(x + self.single(x))


class Concat(nn.Module):
    """Two branches side by side, one of them read once more on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 7), nn.Linear(5, 4), nn.Linear(11, 6)
        self.aside, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.relu(self.a(x)), F.relu(self.b(x))
        return self.head(F.relu(self.c(torch.cat([a, b], -1)) + self.aside(b)))


class Convolutions(nn.Module):
    """Strides, kernels of several sizes, BatchNorm, pooling, a depthwise layer, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU(),
            nn.Conv2d(10, 10, 3, padding=1, groups=10), nn.BatchNorm2d(10), nn.ReLU(),
            nn.Conv2d(10, 5, 1), nn.MaxPool2d(2), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(5 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).flatten(1))


class PreActivation(nn.Module):
    """BatchNorm before the layers, as in DenseNet: it stands between the stream and its readers."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (6, 8, 6, 8, 6))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in ((6, 8), (8, 6), (6, 8), (8, 6))
        )
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for i in (0, 2):
            inner = self.convs[i](F.relu(self.norms[i](x)))
            x = x + self.convs[i + 1](F.relu(self.norms[i + 1](inner)))
        return self.head(F.relu(self.norms[4](x)).mean((2, 3)))


def lively(factory: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory().eval()
        enliven(model)
    return model


@pytest.mark.parametrize("factory", [Chain, Residual, Concat])
def test_fully_connected_networks(factory: Callable[[], nn.Module]) -> None:
    assert_equal_to_autograd(lively(factory), (torch.randn(1, 5),))


def test_convolutions_norms_depthwise_and_flatten() -> None:
    assert_equal_to_autograd(lively(Convolutions), (torch.randn(1, 3, 16, 16),))


def test_normalisation_before_the_layers() -> None:
    """Registered apart from the layers: only the order says which BatchNorm is whose."""
    assert_equal_to_autograd(lively(PreActivation), (torch.randn(1, 3, 8, 8),), ("enter.weight",))


@pytest.mark.parametrize("name", ["resnet8", "option_b", "flatten_linear", "unet", "pixel_shuffle"])
def test_real_structures(name: str) -> None:
    model, inputs = build(name, batch=1)
    assert_equal_to_autograd(model, inputs)


def test_units_of_several_channels_are_near() -> None:
    """Their importance is shared evenly among their channels, so that sums are right on average alone."""
    model, inputs = build("grouped", batch=1)
    graph = trace(model, inputs)
    expected = oracle(model, graph, inputs)
    for name, found in md.score(graph, criterion="nisp").groups.items():
        np.testing.assert_allclose(found.loss, expected[name], rtol=0.06)


# ---------------------------------------------------------------- by hand, and what must hold


def test_by_hand() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -2.0], [0.5, 0.0]]))
        model[4].weight.copy_(torch.tensor([[1.0, -1.0], [-3.0, 0.0]]))
    scores = md.score(trace(model, torch.randn(1, 1)), criterion="nisp")
    # |W|^T 1 = (1 + 3, 1); |W|^T (4, 1) = (4 + 0.5, 8)
    np.testing.assert_allclose(scores.groups["2"].loss, [0.8, 0.2])
    np.testing.assert_allclose(scores.groups["0"].loss, [4.5 / 12.5, 8 / 12.5])
    assert scores.groups["0"].order.tolist() == [0, 1]
    assert not scores.comparable


def test_a_unit_that_leads_nowhere_has_no_importance() -> None:
    """Its only reader is read with a weight of zero: magnitude cannot see that, two layers away."""
    model = lively(Chain)
    with torch.no_grad():
        model.layers[4].weight[:, 3] = 0
        model.layers[2].weight[:, 5] = 0
        model.layers[2].weight[3, 5] = 7.0
    scores = md.score(trace(model, torch.randn(1, 5)), criterion="nisp")
    first = scores.groups["layers.0"]
    assert first.order[0] == 5
    assert first.loss[5] == 0


def test_a_channel_that_its_norm_silences_leaves_first() -> None:
    model, inputs = build("resnet8")
    with torch.no_grad():
        model.layer1[0].bn1.weight[7] = 0
    scores = md.score(trace(model, inputs), criterion="nisp")
    assert scores.groups["layer1.0.conv1"].order[0] == 7


def test_the_scale_of_a_filter_before_a_norm_does_not_matter() -> None:
    model, inputs = build("resnet8")
    before = md.score(trace(model, inputs), criterion="nisp")
    block = model.layer2[0]
    with torch.no_grad():
        block.conv1.weight[3] *= 100.0
        block.bn1.running_mean[3] *= 100.0
        block.bn1.running_var[3] *= 1e4
    after = md.score(trace(model, inputs), criterion="nisp")
    for name, found in before.groups.items():
        np.testing.assert_allclose(after.groups[name].loss, found.loss, rtol=1e-4)


def test_hundreds_of_layers_do_not_overflow() -> None:
    """Gains of 1e3 a layer: 10^900 in all."""
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(300)]
    with torch.no_grad():
        for layer in layers:
            layer.weight.mul_(1000)
    graph = trace(nn.Sequential(*layers), torch.zeros(1, 4), probe=False)
    scores = md.score(graph, criterion="nisp")
    assert len(scores.groups) == 299
    for found in scores.groups.values():
        assert np.isfinite(found.loss).all()
        assert found.loss.sum() == pytest.approx(1.0)
        assert (found.loss > 0).all()


def test_weights_that_are_no_numbers_are_named() -> None:
    model = lively(Chain)
    with torch.no_grad():
        model.layers[4].weight[0, 2] = float("nan")
    graph = trace(lively(Chain), torch.randn(1, 5))
    graph.tensors["layers.4.weight"].data.copy_(model.layers[4].weight)
    with pytest.raises(ModelError, match=r"unit 0 of group 'layers.0' has the score nan"):
        md.score(graph, criterion="nisp")


# ---------------------------------------------------------------- which norm is whose


def truth(model: nn.Module, inputs: tuple[Tensor, ...]) -> dict[str, str]:
    """By identity of the tensors: the BatchNorm that reads what a layer made."""
    made: dict[int, str] = {}
    kept, found = [], {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):

            def reads(_m: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if id(args[0]) in made:
                    found[made[id(args[0])]] = f"{name}."

            handles.append(module.register_forward_pre_hook(reads))
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):

            def makes(_m: nn.Module, _a: object, out: Tensor, name: str = name) -> None:
                kept.append(out)
                made[id(out)] = f"{name}.weight"

            handles.append(module.register_forward_hook(makes))
    with torch.no_grad():
        model(*inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "name", ["resnet8", "option_b", "unet", "c2f", "inception", "shuffle_v2", "grouped"]
)
def test_every_norm_is_found_behind_its_layer(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    expected = truth(model, inputs)
    assert {w: n.name for w, n in norms_after(graph).items()} == expected
    assert norms_before(graph, norms_after(graph)) == {}


def test_norms_before_layers() -> None:
    model = lively(PreActivation)
    graph = trace(model, torch.randn(2, 3, 8, 8))
    after = norms_after(graph)
    # the stem's output is normalised on the way into the first block alone, not in the stream
    assert {w: n.name for w, n in after.items()} == {
        "convs.0.weight": "norms.1.",
        "convs.2.weight": "norms.3.",
    }
    before = {w: n.name for w, n in norms_before(graph, after).items()}
    assert before == {
        "convs.0.weight": "norms.0.",
        "convs.2.weight": "norms.2.",
        "head.weight": "norms.4.",
    }


def test_only_groups_that_something_reads_are_scored() -> None:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    assert set(graph.groups) <= set(propagated(graph))
    assert "linear" not in propagated(graph)
