"""Criteria on graphs: who counts, who is left out, and what is read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import build
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.criteria import read_scores, write_scores
from mint_deploy.errors import DataError, UnknownName
from mint_deploy.trace import trace


def images(inputs: tuple[Tensor, ...], count: int = 64) -> Tensor:
    return torch.randn(count, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, md.Graph, md.Moments]:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    return model, graph, md.sample(model, graph, images(inputs), images=64)


def test_every_order_is_a_permutation_and_every_loss_a_number(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    for criterion in ("mint", "magnitude", "random"):
        scores = md.score(graph, moments, criterion=criterion)
        assert set(scores.groups) == set(graph.groups)
        for name, found in scores.groups.items():
            assert sorted(found.order.tolist()) == list(range(graph.groups[name].size))
            assert np.isfinite(found.loss).all()
            assert (found.loss >= 0).all()


def test_scores_repeat_and_only_random_follows_the_seed(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    for criterion, changes in (("mint", False), ("magnitude", False), ("random", True)):
        orders = [
            np.concatenate([g.order for g in scores.groups.values()])
            for scores in (md.score(graph, moments, criterion=criterion, seed=s) for s in (0, 0, 1))
        ]
        assert (orders[0] == orders[1]).all()
        assert (orders[0] != orders[2]).any() == changes


def test_magnitude_is_the_l1_norm_of_the_filter() -> None:
    model, inputs = build("flatten_linear")
    graph = trace(model, inputs)
    scores = md.score(graph, criterion="magnitude")
    norms = model.features[0][0].weight.detach().abs().flatten(1).sum(1)
    found = scores.groups["features.0.0"]
    assert found.order.tolist() == norms.argsort().tolist()
    np.testing.assert_allclose(found.loss, (norms / norms.mean()).numpy(), rtol=1e-5)


def test_a_residual_stream_is_judged_by_all_its_readers(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    """A channel of the stream that no consumer reads with any weight leaves first."""
    model, _, _ = resnet
    model, inputs = build("resnet8")
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d) and name in ("layer1.0.conv1", "layer2.0.conv1"):
                module.weight[:, 5] = 0  # two of the three stages stop reading it
    graph = trace(model, inputs)
    moments = md.sample(model, graph, images(inputs), images=64)
    member = next(m for m in graph.groups["conv1"].members if m.tensor == "layer3.0.conv1.weight")
    before = md.score(graph, moments).groups["conv1"]
    assert before.loss[5] > 0
    with torch.no_grad():
        model.layer3[0].conv1.weight[:, member.index[5]] = 0
        linear = next(m for m in graph.groups["conv1"].members if m.tensor == "linear.weight")
        model.linear.weight[:, linear.index[5]] = 0
    after = md.score(graph, md.sample(model, graph, images(inputs), images=64)).groups["conv1"]
    assert after.order[0] == 5
    assert after.loss[5] == 0


@pytest.mark.parametrize("name", ["grouped", "depthwise_twice", "unet", "c2f"])
def test_structures_are_scored(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    scores = md.score(graph, md.sample(model, graph, images(inputs), images=64))
    assert set(scores.groups) == set(graph.groups)


def test_the_spread_is_what_the_sample_leaves_open() -> None:
    """Twice the images, less spread; and two samples differ by about as much as it says."""
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    x = images(inputs, 6000)
    few = md.score(graph, md.sample(model, graph, x[:150], images=150))
    many = md.score(graph, md.sample(model, graph, x, images=6000))
    ratios, again = [], md.score(graph, md.sample(model, graph, x[150:300], images=150))
    for name, found in few.groups.items():
        assert found.spread is not None
        assert (found.spread >= 0).all()
        ratios.append((many.groups[name].spread / many.groups[name].loss).mean())
        ratios[-1] /= (found.spread / found.loss).mean()
    assert np.median(ratios) < 0.7
    differ = [
        np.median(np.abs(np.sort(again.groups[n].loss) - np.sort(g.loss)) / np.sort(g.loss))
        for n, g in few.groups.items()
    ]
    said = [np.median(g.spread / g.loss) for g in few.groups.values()]
    assert 0.2 < np.median(differ) / np.median(said) < 5


def test_a_group_without_evidence_is_left_out_and_stays_whole(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    lost = {n: c for n, c in moments.consumers.items() if n != "layer1.0.conv2.weight"}
    partial = md.Moments(
        consumers=lost, images=moments.images, seed=0, dataset=moments.dataset, settings={}
    )
    scores = md.score(graph, partial)
    assert "layer1.0.conv1" not in scores.groups
    plan = md.plan(graph, scores, target="cpu", macs=0.6)
    group = next(g for g in plan.groups if g.name == "layer1.0.conv1")
    assert not group.removed
    assert any("no evidence" in note for note in plan.notes)


def test_errors(resnet: tuple[nn.Module, md.Graph, md.Moments]) -> None:
    _, graph, moments = resnet
    with pytest.raises(DataError, match="needs moments"):
        md.score(graph, None)
    with pytest.raises(UnknownName, match="did you mean 'magnitude'"):
        md.score(graph, criterion="magnitud")
    with pytest.raises(UnknownName, match="no estimator named 'gausian'"):
        md.score(graph, moments, estimator="gausian")
    with pytest.raises(UnknownName, match="no setting of estimator 'gaussian' named 'flor'"):
        md.score(graph, moments, flor="output")
    with pytest.raises(UnknownName, match="did you mean 'paired'"):
        md.score(graph, moments, estimator="gmi", pared=False)
    other, inputs = build("resnet20")
    with pytest.raises(DataError, match="belong to another model"):
        md.score(trace(other, inputs), _renamed(moments, "layer1.0.conv2.weight"))


def _renamed(moments: md.Moments, name: str) -> md.Moments:
    found = moments.consumers["layer3.0.conv2.weight"]
    return md.Moments(consumers={name: found}, images=1, seed=0, dataset="", settings={})


def test_round_trip(resnet: tuple[nn.Module, md.Graph, md.Moments], tmp_path: Path) -> None:
    _, graph, moments = resnet
    scores = md.score(graph, moments)
    write_scores(tmp_path / "s.npz", scores)
    again = read_scores(tmp_path / "s.npz")
    assert again.comparable
    assert again.criterion == "mint"
    for name, found in scores.groups.items():
        np.testing.assert_array_equal(again.groups[name].order, found.order)
        np.testing.assert_array_equal(again.groups[name].loss, found.loss)
    with pytest.raises(DataError, match="expected 'Importance'"):
        read_scores(_moments_file(tmp_path))


def _moments_file(folder: Path) -> Path:
    from mint_deploy.files import write_arrays

    write_arrays(folder / "m.npz", {"kind": "Moments"}, {})
    return folder / "m.npz"
