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
from mint_deploy.errors import DataError
from mint_deploy.graph import Graph
from mint_deploy.moments import read_moments, write_moments
from mint_deploy.sensitivity import Backwards
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


def test_a_linear_network_has_a_closed_form() -> None:
    """For z = W y the Jacobian is W: F = W^T W / (outputs * their variance)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).eval()
    x = torch.randn(4000, 5)
    names = {id(model[1].weight): "1.weight", id(model[0].weight): "0.weight"}
    found = felt(model, names, x)
    W = model[1].weight.detach().double().numpy()
    share = 3 * model(x).detach().var(correction=0).item()
    np.testing.assert_allclose(found["1.weight"], np.eye(3) / share, rtol=0.15, atol=0.02 / share)
    np.testing.assert_allclose(found["0.weight"], W.T @ W / share, rtol=0.15, atol=0.02 / share)


def test_it_predicts_the_change_of_the_outputs() -> None:
    """An error of covariance E at every position changes the outputs by trace(F E) of their variance."""
    torch.manual_seed(1)
    model = Two(kernel_size=3).eval()
    x = torch.randn(600, 2, 6, 6)
    found = felt(model, {id(model.first.weight): "first"}, x)["first"]
    base = model(x).detach().double()
    A = torch.randn(4, 4) * 1e-3

    def add(_: nn.Module, __: object, y: Tensor) -> Tensor:
        return y + torch.einsum("oi,nihw->nohw", A, torch.randn_like(y))

    handle = model.first.register_forward_hook(add)
    moved = model(x).detach().double()
    handle.remove()
    share = ((moved - base).square().mean() / base.var(correction=0)).item()
    assert share == pytest.approx(np.trace(found @ (A @ A.T).double().numpy()), rel=0.1)


def test_one_output_of_one_sample_is_felt() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).eval()
    found = felt(model, {id(model[0].weight): "0"}, torch.ones(1, 3))
    assert np.isfinite(found["0"]).all()
    assert found["0"].any()


def test_frozen_parameters_and_in_place_relu_are_felt() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3))
    for p in model.parameters():
        p.requires_grad_(False)
    found = felt(model.eval(), {id(model[0].weight): "0.weight"}, torch.randn(32, 2, 6, 6))
    assert (found["0.weight"].diagonal() > 0).any()


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
    found = felt(model, names, torch.randn(16, 3, 16, 16))
    assert all(np.isfinite(f).all() for f in found.values())
    assert found["down1.0.weight"].sum() > 0


def felt(model: nn.Module, names: dict[int, str], x: Tensor) -> dict[str, np.ndarray]:
    watch = Backwards(model.eval(), names, seed=0)
    for part in x.split(32):
        watch.step(((part,), {}))
    return watch.felt()


def test_errors_that_cancel_further_on_cost_nothing() -> None:
    """The next layer reads only the sum of two outputs: what is felt of them has rank one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        model[1].weight[:, 1] = model[1].weight[:, 0]
    F = felt(model, {id(model[0].weight): "0"}, torch.randn(500, 4))["0"]
    assert F[0, 0] > 0
    assert np.array([1, -1]) @ F @ np.array([1, -1]) == pytest.approx(0, abs=1e-6 * F[0, 0])


def test_a_few_of_many_positions_stand_for_all() -> None:
    torch.manual_seed(2)
    model, x = Two(kernel_size=3, padding=1).eval(), torch.randn(256, 2, 40, 40)
    found = felt(model, {id(model.second.weight): "second"}, x)["second"]
    share = 3 * 1600 * model(x).detach().var(correction=0).item()  # each output is a mean of 1,600
    np.testing.assert_allclose(found, np.eye(3) / share, rtol=0.3, atol=0.15 / share)


# ---------------------------------------------------------------- other evidence


def test_pooled_rows_are_paired_means() -> None:
    torch.manual_seed(0)
    model, x = Two(kernel_size=3, stride=2), torch.randn(30, 2, 9, 9)
    graph = trace(model.eval(), x[:2])
    found = md.sample(model, graph, x, images=30, evidence=("moments", "pooled"), seed=3)
    pooled = found.pooled["second.weight"]
    hidden = F.relu(model.first(x)).detach()
    inputs, outputs = hidden.mean((2, 3)), model.second(hidden).detach().mean((2, 3))
    # the same image in the same row, whatever the order of the rows
    order = np.argsort(pooled.inputs[:, 0])
    expected = np.argsort(inputs[:, 0].numpy())
    np.testing.assert_allclose(pooled.inputs[order], inputs.numpy()[expected], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        pooled.outputs[order], outputs.numpy()[expected], rtol=1e-4, atol=1e-6
    )
    assert not found.consumers["second.weight"].sensitivity.any()


@pytest.mark.parametrize("name", ["flatten_linear", "unet", "grouped", "multihead"])
def test_pooled_rows_of_every_kind_of_layer(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    x = torch.randn(24, *inputs[0].shape[1:])
    found = md.sample(model, graph, x, images=24, evidence=("pooled",), batch=7)
    assert found.pooled.keys() == found.consumers.keys()
    for consumer, rows in found.pooled.items():
        layer = graph.layers[consumer]
        assert rows.inputs.shape == (24 * layer.calls, found.consumers[consumer].channels)
        shape = graph.shapes[consumer]
        outputs = shape[layer.out_dim] * (layer.groups if layer.kind == "conv_transpose" else 1)
        assert rows.outputs.shape == (24 * layer.calls, outputs)


def test_gradients_are_those_of_the_mean_loss() -> None:
    torch.manual_seed(0)
    model, x, y = Two(kernel_size=3), torch.randn(40, 2, 6, 6), torch.arange(40) % 3
    graph = trace(model.eval(), x[:2])
    found = md.sample(model, graph, (x, y), images=40, evidence=("gradients",), batch=16)
    F.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        np.testing.assert_allclose(found.gradients[name], p.grad.numpy(), rtol=1e-4, atol=1e-6)
    with pytest.raises(DataError, match="need labels"):
        md.sample(model, graph, x, images=40, evidence=("gradients",))
    with pytest.raises(DataError, match="'gradient' is not known"):
        md.sample(model, graph, x, images=40, evidence=("gradient",))


def test_evidence_survives_the_file(tmp_path: Path) -> None:
    model, x, y = Two(kernel_size=3), torch.randn(40, 2, 6, 6), torch.arange(40) % 3
    graph = trace(model.eval(), x[:2])
    moments = md.sample(
        model, graph, (x, y), images=40, evidence=("sensitivity", "pooled", "gradients"), batch=10
    )
    write_moments(tmp_path / "m.npz", moments)
    again = read_moments(tmp_path / "m.npz")
    np.testing.assert_array_equal(
        again.pooled["second.weight"].outputs, moments.pooled["second.weight"].outputs
    )
    np.testing.assert_array_equal(
        again.gradients["first.weight"], moments.gradients["first.weight"]
    )
    assert [h.images for h in again.halves] == [h.images for h in moments.halves]
    for one, two in zip(again.halves, moments.halves, strict=True):
        np.testing.assert_allclose(
            one.consumers["second.weight"].covariance,
            two.consumers["second.weight"].covariance,
            rtol=1e-6,
        )
        assert one.consumers["second.weight"].rows == two.consumers["second.weight"].rows


def test_a_file_with_the_diagonal_alone_is_read(tmp_path: Path) -> None:
    """As files were written before the Fisher information had its cross terms."""
    from mint_deploy.files import read_arrays, write_arrays

    model, x = Two(kernel_size=3), torch.randn(20, 2, 6, 6)
    _, moments = sampled(model, x, images=20)
    write_moments(tmp_path / "m.npz", moments)
    header, arrays = read_arrays(tmp_path / "m.npz")
    for key in ("pooled", "gradients", "halves"):
        del header[key]
    header["consumers"] = {
        n: {k: v for k, v in head.items() if not k.startswith("half")}
        for n, head in header["consumers"].items()
    }
    old = {
        k: np.diag(v) if k.endswith("sensitivity") else v
        for k, v in arrays.items()
        if "half" not in k
    }
    write_arrays(tmp_path / "old.npz", header, old)
    again = read_moments(tmp_path / "old.npz")
    whole = moments.consumers["second.weight"].sensitivity
    np.testing.assert_array_equal(
        again.consumers["second.weight"].sensitivity, np.diag(np.diag(whole))
    )
    write_arrays(tmp_path / "less.npz", header, {k: v for k, v in old.items() if "mean" not in k})
    with pytest.raises(DataError, match="damaged"):
        read_moments(tmp_path / "less.npz")


# ---------------------------------------------------------------- halves, and stopping early


def test_the_halves_make_the_whole() -> None:
    model, x = Two(kernel_size=3), torch.randn(60, 2, 6, 6)
    _, moments = sampled(model, x, images=60, batch=10)
    whole = moments.consumers["second.weight"]
    one, two = (half.consumers["second.weight"] for half in moments.halves)
    assert one.rows + two.rows == whole.rows
    share = one.rows / whole.rows
    mean = share * one.mean + (1 - share) * two.mean
    np.testing.assert_allclose(mean, whole.mean, rtol=1e-9, atol=1e-12)
    second = [h.covariance + np.outer(h.mean, h.mean) for h in (one, two)]
    np.testing.assert_allclose(
        share * second[0] + (1 - share) * second[1] - np.outer(mean, mean),
        whole.covariance,
        rtol=1e-7,
        atol=1e-10,
    )


def test_sampling_stops_when_the_plan_has_settled() -> None:
    torch.manual_seed(0)
    model, x = Two(kernel_size=1), torch.randn(3000, 2, 4, 4)
    with torch.no_grad():  # two units that matter, two that hardly do
        model.second.weight[:, 2:] *= 1e-3
    graph = trace(model.eval(), x[:2])
    found = md.sample(model, graph, x, images=3000, settle=0.9)
    assert found.images < 3000
    assert found.settings["agreement"] >= 0.9
    assert "the halves agree on 100%" in found.settings["stopped"]
    again = md.sample(model, graph, x, images=3000, settle=0.9)
    assert again.images == found.images
    never = md.sample(model, graph, x, images=3000, settle=1.01)
    assert never.images == 3000
    assert never.settings["stopped"] == "all images seen"


# ---------------------------------------------------------------- networks of several inputs


class Several(nn.Module):
    """Two inputs, given by position or by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 8), nn.Linear(3, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(F.relu(self.left(left) + self.right(right)))}


class Items(torch.utils.data.Dataset[object]):
    def __init__(self, items: list[object]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> object:
        return self.items[i]


def test_tuples_dicts_and_datasets_of_them() -> None:
    torch.manual_seed(0)
    model = Several().eval()
    left, right, y = torch.randn(50, 5), torch.randn(50, 3), torch.arange(50) % 2
    named = {"left": left, "right": right}
    graph = trace(model, {"left": left[:2], "right": right[:2]})
    hidden = F.relu(model.left(left) + model.right(right)).detach().double().numpy()
    expected = np.cov(hidden.T, bias=True)
    pairs = [{"left": a, "right": b} for a, b in zip(left, right, strict=True)]
    given = {
        "dict": named,
        "tuple": (left, right),
        "labelled dict": (named, y),
        "labelled tuple": ((left, right), y),
        "dataset of dicts": Items(list(pairs)),
        "dataset of pairs": Items(list(zip(pairs, y, strict=True))),
        "dataset of labelled tuples": Items(
            list(zip(zip(left, right, strict=True), y, strict=True))
        ),
    }
    for what, data in given.items():
        found = md.sample(model, graph, data, images=50).consumers["head.weight"]
        np.testing.assert_allclose(found.covariance, expected, rtol=1e-4, atol=1e-6, err_msg=what)
        assert found.sensitivity.any(), what
    with pytest.raises(DataError, match=r"\[49, 50\] samples"):
        md.sample(model, graph, {"left": left[:49], "right": right})
    with pytest.raises(DataError, match="expected whole numbers"):
        md.sample(model, graph, (named, torch.randn(50)))


def test_balanced_where_labels_exist() -> None:
    from mint_deploy.feed import as_feed

    y = torch.cat([torch.zeros(90, dtype=torch.int64), torch.ones(10, dtype=torch.int64)])
    feed = as_feed(({"left": torch.randn(100, 2)}, y)).balanced(20, 0)
    assert np.bincount(feed.labels).tolist() == [10, 10]
