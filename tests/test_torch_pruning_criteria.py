"""The criteria that go through torch-pruning: against torch-pruning's own graph, and against the papers."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from nets import NETS, build
from slopes import gradients_of
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.criteria._torch_pruning import importance_of, norms_of, producers_of
from mint_deploy.errors import DataError, ModelError
from mint_deploy.graph import Graph, Group
from mint_deploy.trace import trace

PLAIN = ["flatten_linear", "option_b", "resnet8", "unet"]
THROUGH = ("fpgm", "lamp", "bn_scale", "taylor")


def moments_with(gradients: dict[str, np.ndarray]) -> md.Moments:
    return md.Moments(consumers={}, images=2, seed=0, dataset="made", gradients=gradients)


def made(name: str) -> tuple[nn.Module, Graph, md.Moments]:
    model, inputs = build(name)
    return model, trace(model, inputs), moments_with(gradients_of(model, inputs))


def filters(model: nn.Module, weight: str) -> Tensor:
    """Rows: the filters of a layer, in float64."""
    module = model.get_submodule(weight.removesuffix(".weight"))
    W = module.weight.detach().double()
    return (W.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else W).flatten(1)


def single(graph: Graph) -> list[Group]:
    """Groups with one producer whose units are its filters, one each."""
    return [
        g
        for g in graph.groups.values()
        if len(g.producers) == 1 and producers_of(graph, g)[0].index.shape[1] == 1
    ]


# ---------------------------------------------------------------- torch-pruning's own graph agrees


def theirs(
    model: nn.Module, inputs: tuple[Tensor, ...], group: Group, importance: Any, only_root: bool
) -> np.ndarray:
    """The same importance of a group as torch-pruning finds it by itself on its own copy."""
    copied = copy.deepcopy(model)
    graph = tp.DependencyGraph()
    graph.build_dependency(copied, example_inputs=inputs, verbose=False)
    root = copied.get_submodule(group.producers[0].removesuffix(".weight"))
    prune = (
        tp.prune_linear_out_channels if isinstance(root, nn.Linear) else tp.prune_conv_out_channels
    )
    found = graph.get_pruning_group(root, prune, idxs=list(range(group.size)))
    if only_root:
        for item in found.items[1:]:
            if isinstance(item.dep.target.module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                found.items.remove(item)
    return importance(found).double().numpy()


@pytest.mark.parametrize("name", ["flatten_linear", "unet", "inception"])
def test_magnitude_orders_as_torch_pruning_does(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    oracle = tp.importance.GroupMagnitudeImportance(
        p=1,
        normalizer=None,
        group_reduction="first",
        target_types=[nn.modules.conv._ConvNd, nn.Linear],
    )
    scores = md.score(graph, criterion="magnitude")
    seen = 0
    for group in single(graph):
        expected = theirs(model, inputs, group, oracle, only_root=False)
        found = scores.groups[group.name]
        np.testing.assert_allclose(found.loss, expected / expected.mean(), rtol=1e-5)
        assert (np.diff(expected[found.order]) >= -1e-5 * expected.max()).all()
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", ["flatten_linear", "inception"])
def test_lamp_and_bn_scale_are_those_of_its_own_groups(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs)
    convs = [nn.modules.conv._ConvNd, nn.Linear]
    lamp = tp.importance.LAMPImportance(group_reduction="first")
    lamp.target_types = convs
    scale = tp.importance.BNScaleImportance(normalizer=None)
    for criterion, oracle in (("lamp", lamp), ("bn_scale", scale)):
        scores = md.score(graph, criterion=criterion)
        assert scores.comparable
        for group in single(graph):
            if group.name in scores.groups:
                expected = theirs(model, inputs, group, oracle, only_root=True)
                np.testing.assert_allclose(scores.groups[group.name].loss, expected, rtol=2e-4)


# ---------------------------------------------------------------- the papers


@pytest.mark.parametrize("name", PLAIN)
def test_fpgm_is_the_sum_of_distances_between_filters(name: str) -> None:
    model, graph, _ = made(name)
    scores = md.score(graph, criterion="fpgm")
    assert not scores.comparable
    for group in single(graph):
        W = filters(model, group.producers[0])
        rows = W[producers_of(graph, group)[0].index[:, 0]]  # the units; others may share the layer
        far = torch.stack([(row - W).norm(dim=1).sum() for row in rows])
        np.testing.assert_allclose(scores.groups[group.name].loss, far / far.mean(), rtol=1e-4)


def test_fpgm_tells_filters_apart_that_differ_in_sign() -> None:
    """Distances between absolute values, which torch-pruning takes, would see one filter four times."""
    model, inputs = build("flatten_linear")
    W = model.features[0][0].weight
    with torch.no_grad():
        W[:4] = W[:1]
        W[1] *= -1.0
    far = md.score(trace(model, inputs), criterion="fpgm").groups["features.0.0"].loss
    assert far[1] > 1.2 * far[0]
    np.testing.assert_allclose(far[[2, 3]], far[0], rtol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_lamp_is_the_share_of_what_is_left(name: str) -> None:
    model, graph, _ = made(name)
    scores = md.score(graph, criterion="lamp")
    for group in single(graph):
        member = producers_of(graph, group)[0]
        norms = filters(model, member.tensor).square().sum(1).numpy()
        expected, left = np.zeros(len(norms)), norms.sum()
        for unit in np.argsort(norms):
            expected[unit] = norms[unit] / left
            left -= norms[unit]
        assert expected.max() == pytest.approx(1.0)
        found = scores.groups[group.name].loss
        np.testing.assert_allclose(found, expected[member.index[:, 0]], rtol=1e-3)


def test_bn_scale_is_the_mean_of_the_scales() -> None:
    model, graph, _ = made("resnet8")
    scores = md.score(graph, criterion="bn_scale")
    inner = scores.groups["layer1.0.conv1"]
    gamma = model.layer1[0].bn1.weight.detach().abs()
    np.testing.assert_allclose(inner.loss, gamma.numpy(), rtol=1e-6)
    norms = (model.bn1, model.layer1[0].bn2, model.layer2[0].bn2, model.layer3[0].bn2)
    stream = [n.weight.detach()[o : o + 32] for n, o in zip(norms, (0, 0, 16, 48), strict=True)]
    np.testing.assert_allclose(
        scores.groups["conv1"].loss, torch.stack(stream).abs().mean(0), rtol=1e-6
    )


def test_bn_scale_leaves_out_groups_without_and_refuses_networks_without() -> None:
    _, graph, _ = made("unet")
    scores = md.score(graph, criterion="bn_scale")
    assert set(graph.groups) - set(scores.groups) == {"up2", "up1"}
    plan = md.plan(graph, scores, target="cpu", macs=0.7)
    assert any("'up2' stays whole" in note for note in plan.notes)
    _, graph, _ = made("attention")
    with pytest.raises(ModelError, match="no prunable group of this network has one"):
        md.score(graph, criterion="bn_scale")


def change(model: nn.Module, moments: md.Moments, *names: str) -> np.ndarray:
    """``sum g w`` of every output of a layer, over the parameters given."""
    total = np.zeros(1)
    for name in names:
        product = model.get_parameter(name).detach().double() * torch.from_numpy(
            moments.gradients[name]
        )
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.ConvTranspose2d):
            product = product.transpose(0, 1)
        total = (
            total + product.flatten(1).sum(1).numpy()
            if product.dim() > 1
            else total + product.numpy()
        )
    return total


@pytest.mark.parametrize("name", PLAIN)
def test_taylor_is_the_squared_first_order_change(name: str) -> None:
    model, graph, moments = made(name)
    scores = md.score(graph, moments, criterion="taylor")
    assert scores.comparable
    seen = set()
    for group in single(graph):
        norms = norms_of(graph, group)
        if norms:
            stem = norms[0].tensor.removesuffix("weight")
            expected = change(model, moments, f"{stem}weight", f"{stem}bias") ** 2
        else:
            expected = change(model, moments, group.producers[0]) ** 2
        expected = expected[producers_of(graph, group)[0].index[:, 0]]
        found = scores.groups[group.name].loss
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7 * expected.max())
        seen.add(bool(norms))
    assert any(seen), "no group with a BatchNorm was compared"


def test_taylor_adds_over_the_responses_of_a_stream() -> None:
    """``grouped``: a stem with BatchNorm, and a layer without that adds to the same channels."""
    model, graph, moments = made("grouped")
    stem = change(model, moments, "stem.1.weight", "stem.1.bias") ** 2
    leave = change(model, moments, "leave.weight") ** 2
    found = md.score(graph, moments, criterion="taylor").groups["stem.0"].loss
    np.testing.assert_allclose(found, stem + leave, rtol=1e-4)


@pytest.mark.parametrize(("group", "names"), [
    ("features.1.0", ("features.1.1.weight", "features.1.1.bias")), ("linear1", ("linear1.weight",)),
])  # fmt: skip
def test_taylor_predicts_what_a_small_step_does_to_the_loss(group: str, names: list[str]) -> None:
    """Scale one response down by 1e-5: the loss changes by 1e-5 of the root of its score."""
    model, inputs = build("flatten_linear", batch=8)
    graph = trace(model, inputs)
    moments = moments_with(gradients_of(model, inputs))
    loss = md.score(graph, moments, criterion="taylor").groups[group].loss
    model.double()
    labels = torch.arange(8) % 5

    def cross_entropy() -> float:
        with torch.no_grad():
            return float(F.cross_entropy(model(*[x.double() for x in inputs]), labels))

    before = cross_entropy()
    for unit in np.argsort(loss)[-4:].tolist():
        with torch.no_grad():
            for name in names:
                model.get_parameter(name)[unit] *= 1 - 1e-5
        shift = abs(cross_entropy() - before) * 1e5
        assert shift == pytest.approx(loss[unit] ** 0.5, rel=0.01)
        with torch.no_grad():
            for name in names:
                model.get_parameter(name)[unit] /= 1 - 1e-5


# ---------------------------------------------------------------- taylor's evidence


def test_gradients_are_asked_for() -> None:
    _, graph, moments = made("resnet8")
    for found in (None, dataclasses.replace(moments, gradients={})):
        with pytest.raises(DataError, match=r"needs the gradient .* evidence=.*'gradients'"):
            md.score(graph, found, criterion="taylor")


def test_gradients_of_another_model_are_refused() -> None:
    _, graph, moments = made("resnet8")
    other = moments_with(made("flatten_linear")[2].gradients)
    with pytest.raises(DataError, match="belong to another model"):
        md.score(graph, other, criterion="taylor")
    wrong = {**moments.gradients, "bn1.bias": np.zeros(5, dtype=np.float32)}
    with pytest.raises(DataError, match=r"'bn1.bias' is \(5,\), and the parameter \(32,\)"):
        md.score(graph, moments_with(wrong), criterion="taylor")
    wrong["bn1.bias"] = np.full(32, np.nan, dtype=np.float32)
    with pytest.raises(DataError, match=r"'bn1.bias' holds NaN"):
        md.score(graph, moments_with(wrong), criterion="taylor")


def test_groups_whose_responses_are_frozen_stay_whole() -> None:
    _, graph, moments = made("resnet8")
    fewer = {n: g for n, g in moments.gradients.items() if "layer1.0.bn1" not in n}
    scores = md.score(graph, moments_with(fewer), criterion="taylor")
    assert set(graph.groups) - set(scores.groups) == {"layer1.0.conv1"}


def test_the_samplers_gradients_are_what_it_takes() -> None:
    model, inputs = build("flatten_linear", batch=12)
    graph = trace(model, inputs)
    labels = torch.arange(12) % 5
    moments = md.sample(
        model,
        graph,
        (inputs[0], labels),
        images=12,
        evidence=("moments", "sensitivity", "gradients"),
    )
    ours = md.score(graph, moments, criterion="taylor")
    by_hand = md.score(graph, moments_with(gradients_of(model, inputs)), criterion="taylor")
    for name, found in by_hand.groups.items():
        np.testing.assert_allclose(ours.groups[name].loss, found.loss, rtol=1e-3, atol=1e-12)


# ---------------------------------------------------------------- the adapter


@pytest.mark.parametrize("criterion", THROUGH)
@pytest.mark.parametrize("name", ["resnet8", "depthwise_twice"])
def test_the_model_and_the_random_state_are_untouched(name: str, criterion: str) -> None:
    model, graph, moments = made(name)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    md.score(graph, moments, criterion=criterion)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("criterion", THROUGH)
def test_slices_find_their_units_in_any_order(criterion: str) -> None:
    """Renumbering the units of a group renumbers the losses and nothing else (idxs are sorted in there)."""
    _, graph, moments = made("grouped")
    random = np.random.default_rng(0)
    plain = md.score(graph, moments, criterion=criterion)
    for name, group in graph.groups.items():
        p = random.permutation(group.size)
        members = tuple(dataclasses.replace(m, index=m.index[p]) for m in group.members)
        mixed = dataclasses.replace(
            graph, groups={**graph.groups, name: dataclasses.replace(group, members=members)}
        )
        found = md.score(mixed, moments, criterion=criterion)
        np.testing.assert_allclose(
            found.groups[name].loss, plain.groups[name].loss[p], rtol=1e-5, atol=1e-12
        )


def test_several_slices_of_a_unit_add_up() -> None:
    model, graph, _ = made("grouped")
    group = graph.groups["enter.0"]
    member = producers_of(graph, group)[0]
    assert member.index.shape == (4, 4)
    norm = tp.importance.GroupMagnitudeImportance(p=1, group_reduction="sum", normalizer=None)
    rows = filters(model, "enter.0.weight").abs().sum(1).numpy()
    np.testing.assert_allclose(
        importance_of(graph, member, norm), rows[member.index].sum(1), rtol=1e-5
    )


@pytest.mark.parametrize("name", list(NETS)[8:])
def test_whatever_the_tracer_accepts_is_scored(name: str) -> None:
    """Attention, recurrence, tables, computed weights: what torch-pruning has no type for is left out."""
    model, inputs = build(name)
    graph = trace(model, inputs, probe=False)
    random = np.random.default_rng(0)
    gradients = {
        n: random.normal(size=p.shape).astype(np.float32) for n, p in model.named_parameters()
    }
    for criterion in ("fpgm", "lamp", "taylor"):
        scores = md.score(graph, moments_with(gradients), criterion=criterion)
        for group_name, group in graph.groups.items():
            known = bool(producers_of(graph, group))
            assert (group_name in scores.groups) == known
            if known:
                found = scores.groups[group_name]
                assert sorted(found.order.tolist()) == list(range(group.size))
                assert np.isfinite(found.loss).all()
                assert (found.loss >= 0).all()


def test_directions_of_a_weight_norm_are_no_filters() -> None:
    _, graph, _ = made("weight_norm")
    assert producers_of(graph, graph.groups["normed"]) == []
    scores = md.score(graph, criterion="lamp")
    assert set(scores.groups) == {"last.0"}


def test_norms_are_told_by_their_running_statistics() -> None:
    _, graph, _ = made("attention")
    assert all(norms_of(graph, g) == [] for g in graph.groups.values())
    _, graph, _ = made("depthwise_twice")
    found = [m.tensor for m in norms_of(graph, graph.groups["stem.0"])]
    assert found == ["stem.1.weight", "depthwise.1.weight"]


@pytest.mark.parametrize("criterion", ["fpgm", "lamp", "magnitude"])
def test_a_layer_of_zeros_is_finite(criterion: str) -> None:
    model, inputs = build("flatten_linear")
    with torch.no_grad():
        model.features[1][0].weight.zero_()
    found = md.score(trace(model, inputs), criterion=criterion).groups["features.1.0"]
    assert np.isfinite(found.loss).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_is_read(dtype: torch.dtype) -> None:
    model, inputs = build("flatten_linear")
    graph = trace(model, inputs)
    expected = md.score(graph, criterion="lamp")
    model.to(dtype)
    found = md.score(dataclasses.replace(graph, tensors=model.state_dict()), criterion="lamp")
    for name, group in expected.groups.items():
        np.testing.assert_allclose(found.groups[name].loss, group.loss, rtol=0.05)
