"""Moments of taps: equal to what unfolding every position gives, whatever makes the call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import build
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.data import Part, as_part
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph
from mint_deploy.moments import read_moments, write_moments
from mint_deploy.sensitivity import sensitivities
from mint_deploy.trace import trace


class Two(nn.Module):
    """A convolution that reads another one; the second's geometry is given."""

    def __init__(self, **geometry: object) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 3, **geometry)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))).mean((2, 3))


def sampled(model: nn.Module, x: Tensor, **settings: object) -> tuple[Graph, md.Moments]:
    graph = trace(model.eval(), x[:2])
    return graph, md.sample(model, graph, x, **settings)


@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "padding": 1, "stride": 2},
        {"kernel_size": (1, 3), "padding": (0, 1), "dilation": (1, 2)},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 2, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 1},
    ],
)
def test_moments_equal_those_of_every_position(geometry: dict[str, object]) -> None:
    torch.manual_seed(0)
    model, x = Two(**geometry), torch.randn(40, 2, 6, 6)
    _, moments = sampled(model, x, images=40)
    found = moments.consumers["second.weight"]
    hidden = F.relu(model.first(x)).detach()
    layer = model.second
    if layer.padding_mode != "zeros":
        hidden = F.pad(hidden, layer._reversed_padding_repeated_twice, mode=layer.padding_mode)
        padding: object = 0
    elif layer.padding == "same":
        hidden, padding = F.pad(hidden, (1, 1, 1, 1)), 0
    else:
        padding = layer.padding
    rows = F.unfold(hidden, layer.kernel_size, layer.dilation, padding, layer.stride)
    rows = rows.transpose(1, 2).flatten(0, 1).double()
    assert found.rows == len(rows)  # fewer positions than asked for: each once
    np.testing.assert_allclose(found.mean, rows.mean(0).numpy(), atol=1e-6)
    np.testing.assert_allclose(
        found.covariance, np.cov(rows.numpy().T, bias=True), atol=1e-5, rtol=1e-4
    )
    np.testing.assert_allclose(found.weight, layer.weight.detach().flatten(1).numpy())


def test_random_positions_are_unbiased() -> None:
    torch.manual_seed(0)
    model, x = Two(kernel_size=3, padding=1), torch.randn(64, 2, 24, 24)
    _, moments = sampled(model, x, images=64)
    found = moments.consumers["second.weight"]
    rows = F.unfold(F.relu(model.first(x)).detach(), 3, padding=1).transpose(1, 2).flatten(0, 1)
    assert found.rows < len(rows)
    spread = rows.std(0).max().item()
    assert np.abs(found.mean - rows.mean(0).numpy()).max() < 6 * spread / found.rows**0.5


class Functional(nn.Module):
    """Calls with weights of its own, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(6, 5))
        self.shared = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.linear(x, self.first))
        x = F.relu(F.linear(x, self.shared))
        return F.linear(x, weight=self.shared).sum(1, keepdim=True)


def test_functional_calls_and_a_shared_weight_count_every_call() -> None:
    model, x = Functional(), torch.randn(64, 5)
    graph = trace(model.eval(), x[:2])
    assert graph.layers["shared"].calls == 2
    one = F.relu(F.linear(x, model.first))
    two = F.relu(F.linear(one, model.shared))
    rows = torch.cat([one, two]).detach().double().numpy()
    if "shared" in {c for g in graph.groups.values() for c in g.consumers}:
        found = md.sample(model, graph, x, images=64).consumers["shared"]
        assert found.rows == 128
        np.testing.assert_allclose(
            found.covariance, np.cov(rows.T, bias=True), rtol=1e-4, atol=1e-6
        )


def test_flattened_and_transposed_consumers() -> None:
    for name, consumer in (("flatten_linear", "linear1.weight"), ("unet", "up1.weight")):
        model, inputs = build(name)
        graph = trace(model, inputs)
        moments = md.sample(model, graph, torch.randn(64, *inputs[0].shape[1:]), images=64)
        found = moments.consumers[consumer]
        assert found.covariance.shape == (found.channels * found.taps,) * 2
        assert found.weight.shape[1] == found.channels * found.taps
        assert np.linalg.eigvalsh(found.covariance).min() > -1e-9


def test_same_seed_same_moments_other_seed_others() -> None:
    model, x = Two(kernel_size=3), torch.randn(50, 2, 30, 30)
    _, one = sampled(model, x, images=30, seed=1)
    _, two = sampled(model, x, images=30, seed=1)
    _, other = sampled(model, x, images=30, seed=2)
    a, b, c = (m.consumers["second.weight"].covariance for m in (one, two, other))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


def test_batches_do_not_change_what_all_positions_give() -> None:
    model, x = Two(kernel_size=3), torch.randn(50, 2, 6, 6) + 100  # a mean that cancels badly
    _, one = sampled(model, x, images=50, batch=50)
    _, two = sampled(model, x, images=50, batch=7)
    a, b = (m.consumers["second.weight"] for m in (one, two))
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-4, atol=1e-5)


def test_round_trip(tmp_path: Path) -> None:
    model, x = Two(kernel_size=3), torch.randn(20, 2, 6, 6)
    _, moments = sampled(model, x, images=20)
    write_moments(tmp_path / "m.npz", moments)
    again = read_moments(tmp_path / "m.npz")
    assert again.images == 20
    for name, found in moments.consumers.items():
        np.testing.assert_array_equal(again.consumers[name].covariance, found.covariance)
        np.testing.assert_array_equal(again.consumers[name].sensitivity, found.sensitivity)
        assert again.consumers[name].taps == found.taps
    (tmp_path / "m.npz").write_bytes((tmp_path / "m.npz").read_bytes()[:300])
    with pytest.raises(DataError, match="damaged"):
        read_moments(tmp_path / "m.npz")


def test_activations_that_are_not_numbers_name_the_layer() -> None:
    model, x = Two(kernel_size=3), torch.randn(20, 2, 6, 6)
    graph = trace(model.eval(), x[:2])
    with torch.no_grad():
        model.first.bias[1] = float("nan")
    with pytest.raises(DataError, match=r"the input of 'second\.weight' holds NaN"):
        md.sample(model, graph, x, images=20)


def test_the_model_is_left_as_it_was() -> None:
    model, x = Two(kernel_size=3), torch.randn(20, 2, 6, 6)
    graph = trace(model, x[:2])
    model.train()
    model.first.eval()  # a part that the user has frozen
    before = {n: p.clone() for n, p in model.state_dict().items()}
    md.sample(model, graph, x, images=20)
    assert model.training
    assert not model.first.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


# ---------------------------------------------------------------- sensitivity


def test_fisher_of_a_linear_classifier_has_a_closed_form() -> None:
    """For logits W h the gradient at h's layer output y is known: F = E p(1 - p) per logit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    x = torch.randn(4000, 5)
    part = md_part(x)
    names = {id(model[1].weight): "1.weight", id(model[0].weight): "0.weight"}
    found = sensitivities(model, names, part, seed=0)
    p = model(x).detach().double().softmax(1)
    np.testing.assert_allclose(found["1.weight"], (p * (1 - p)).mean(0), rtol=0.1)
    W = model[1].weight.detach().double()
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("ko,nkl,lo->no", W, fisher, W).mean(0)
    np.testing.assert_allclose(found["0.weight"], expected, rtol=0.1)


def test_fisher_predicts_the_change_of_the_output() -> None:
    """A small error of variance d at every position moves the prediction by F d / 2 nats."""
    torch.manual_seed(1)
    model = Two(kernel_size=3).eval()
    with torch.no_grad():
        model.second.weight.mul_(3)
    x = torch.randn(600, 2, 6, 6)
    found = sensitivities(model, {id(model.first.weight): "first"}, md_part(x), seed=0)["first"]
    base = model(x).detach().double().log_softmax(1)
    d = 1e-4
    for o in (0, 3):

        def add(_: nn.Module, __: object, y: Tensor, o: int = o) -> Tensor:
            y = y.clone()
            y[:, o] += d**0.5 * torch.randn_like(y[:, o])
            return y

        handle = model.first.register_forward_hook(add)
        moved = model(x).detach().double().log_softmax(1)
        handle.remove()
        nats = (base.exp() * (base - moved)).sum(1).mean().item()
        assert nats == pytest.approx(found[o].item() * d / 2, rel=0.35)


def test_frozen_parameters_and_in_place_relu_are_felt() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    for p in model.parameters():
        p.requires_grad_(False)
    found = sensitivities(
        model.eval(), {id(model[0].weight): "0.weight"}, md_part(torch.randn(32, 2, 6, 6)), seed=0
    )
    assert (found["0.weight"] > 0).any()


class Overwritten(Two):
    """Autograd refuses it: what a multiplication needs is overwritten."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        z = y * y
        y += 1
        return (z + y).mean((2, 3))


def test_without_a_backward_pass_the_variance_floor_serves_and_says_why() -> None:
    torch.manual_seed(0)
    model, x = Overwritten(kernel_size=3), torch.randn(20, 2, 6, 6)
    graph, moments = sampled(model, x, images=20)
    assert "modified by an inplace operation" in moments.settings["backwards"]
    scores = md.score(graph, moments)
    assert not scores.comparable
    plain = md.score(graph, moments, floor="variance")
    for name, found in scores.groups.items():
        np.testing.assert_array_equal(found.order, plain.groups[name].order)


def test_dense_outputs_use_the_jacobian() -> None:
    model, _ = build("unet")
    names = {id(p): n for n, p in model.named_parameters()}
    found = sensitivities(model, names, md_part(torch.randn(16, 3, 16, 16)), seed=0)
    assert all(bool(torch.isfinite(f).all()) for f in found.values())
    assert found["down1.0.weight"].sum() > 0


def md_part(x: Tensor) -> Part:
    return as_part(x)
