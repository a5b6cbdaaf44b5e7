"""Ranking whole graphs with gmi: units, consumers, weights, limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from nets import build
from torch import nn

import mint_deploy as md
from mint_deploy.artifacts import Importance, Moments, PooledRows
from mint_deploy.errors import DataError, MintDeployError, UnknownName
from mint_deploy.estimators.gmi import NEEDS, dependency, rank
from mint_deploy.trace import trace


def sampled(name: str, images: int = 96) -> tuple[nn.Module, Any, Moments]:
    model, inputs = build(name)
    x = torch.randn(images, *inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    graph = trace(model, inputs)
    return model, graph, md.sample(model, graph, x, images=images, evidence=NEEDS)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, Any, Moments]:
    return sampled("resnet8")


def test_needs_are_what_sampling_knows() -> None:
    assert NEEDS == ("moments", "sensitivity", "pooled")


@pytest.mark.parametrize(
    "name", ["resnet8", "grouped", "depthwise_twice", "unet", "c2f", "flatten_linear"]
)
def test_every_structure_is_ranked(name: str) -> None:
    _, graph, moments = sampled(name, 48)
    found = md.score(graph, moments, estimator="gmi", out_groups=2)
    assert set(found.groups) == set(graph.groups)
    for group, importance in found.groups.items():
        size = graph.groups[group].size
        assert sorted(importance.order.tolist()) == list(range(size))
        assert importance.loss.shape == (size,)
        assert (importance.loss >= 0).all()
        assert (np.diff(importance.loss[importance.order]) >= 0).all()
    for consumer, matrix in found.dependency.items():
        known = moments.consumers[consumer]
        assert matrix.shape[1] == known.channels // known.groups
        assert matrix.shape[0] <= max(2, known.groups)
        assert np.isfinite(matrix).all()


def test_a_score_is_the_mean_over_outputs_summed_over_consumers(resnet: Any) -> None:
    _, graph, moments = resnet
    found = rank(graph, moments, seed=2, condition="none", out_groups=3, weighted=False)
    assert found.comparable
    assert (found.criterion, found.estimator, found.seed) == ("mint", "gmi", 2)
    for name, group in graph.groups.items():
        expected = np.zeros(group.size)
        for member in group.members:
            if member.reads:
                rows = moments.pooled[member.tensor]
                values = dependency(
                    rows.outputs,
                    rows.inputs,
                    out_groups=min(3, rows.outputs.shape[1]),
                    condition="none",
                    seed=2,
                )
                assert (found.dependency[member.tensor] == values).all()
                expected += values.mean(0)[member.index[:, 0]]
        np.testing.assert_allclose(found.groups[name].loss, np.maximum(expected, 0), atol=1e-12)
        assert found.groups[name].order.tolist() == np.argsort(expected, kind="stable").tolist()


def test_units_of_several_channels_are_joined() -> None:
    """After a flatten each unit owns several inputs of the linear layer: one joint group."""
    _, graph, moments = sampled("flatten_linear", 60)
    group, member = next(
        (g, m) for g in graph.groups.values() for m in g.members if m.reads and m.index.shape[1] > 1
    )
    rows = moments.pooled[member.tensor]
    found = rank(graph, moments, condition="none", out_groups=None, weighted=False)
    expected = dependency(rows.outputs, rows.inputs, in_groups=list(member.index), condition="none")
    matrix = found.dependency[member.tensor]
    for unit, channels in enumerate(member.index):
        assert (matrix[:, channels] == expected[:, unit, None]).all()
    assert (found.groups[group.name].order == np.argsort(expected.mean(0), kind="stable")).all()


def test_each_group_of_a_grouped_convolution_reads_its_own() -> None:
    _, graph, moments = sampled("grouped", 60)
    name = next(n for n, c in moments.consumers.items() if c.groups > 1)
    known, rows = moments.consumers[name], moments.pooled[name]
    width = known.channels // known.groups
    tall = rows.outputs.shape[1] // known.groups
    found = rank(graph, moments, condition="none", out_groups=None, weighted=False).dependency[name]
    blocks = [
        dependency(
            rows.outputs[:, b * tall : (b + 1) * tall],
            rows.inputs[:, b * width : (b + 1) * width],
            condition="none",
        )
        for b in range(known.groups)
    ]
    assert (found == np.concatenate(blocks)).all()


def test_what_the_consumer_follows_stays(resnet: Any) -> None:
    """Rows in which the outputs follow one input: that unit leaves last. Unpaired, it is one of many."""
    _, graph, moments = resnet
    group = next(g for g in graph.groups.values() if len(g.consumers) == 1)
    (name,) = group.consumers
    random = np.random.default_rng(0)
    inputs = random.normal(size=(900, group.size)).astype(np.float32)
    outputs = moments.pooled[name].outputs.shape[1]
    noise = random.normal(size=(900, outputs)).astype(np.float32)
    rows = PooledRows(inputs=inputs, outputs=3 * inputs[:, [4]] + noise)
    moved = dataclasses.replace(moments, pooled={name: rows})

    def ranked(**settings: Any) -> Importance:
        return rank(
            graph, moved, **{"condition": "none", "out_groups": 4, "weighted": False, **settings}
        )

    found = ranked()
    assert set(found.groups) == {group.name}  # no evidence for the others
    assert found.groups[group.name].order[-1] == 4
    assert found.dependency[name][:, 4].min() > 0.4
    wrong = [ranked(paired=False, seed=s).dependency[name][:, 4].mean() for s in range(6)]
    assert abs(np.mean(wrong)) < 0.05
    # weighted by a layer that does not look at it, the unit is nothing
    known = moments.consumers[name]
    weight = np.array(known.weight).reshape(len(known.weight), known.channels, -1)
    weight[:, 4] = 0
    blind = dataclasses.replace(known, weight=weight.reshape(known.weight.shape))
    moved = dataclasses.replace(moved, consumers={**moments.consumers, name: blind})
    assert (ranked(weighted=True).dependency[name][:, 4] == 0).all()
    assert ranked(weighted=False).groups[group.name].order[-1] == 4


def test_weights_scale_by_their_norm_relative_to_the_largest(resnet: Any) -> None:
    _, graph, moments = resnet
    plain = rank(graph, moments, out_groups=None, weighted=False)
    scaled = rank(graph, moments, out_groups=None)
    for name, matrix in plain.dependency.items():
        known = moments.consumers[name]
        norms = np.linalg.norm(
            np.asarray(known.weight, dtype=np.float64).reshape(
                len(known.weight), known.channels, -1
            ),
            axis=2,
        )
        np.testing.assert_allclose(scaled.dependency[name], matrix * norms / norms.max(), rtol=1e-6)


@pytest.mark.parametrize(("share", "size", "least"), [(0.9, 16, 2), (0.5, 16, 8), (1.0, 16, 0)])
def test_most_removed_is_an_upper_limit(resnet: Any, share: float, size: int, least: int) -> None:
    _, graph, moments = resnet
    found = rank(graph, moments, most_removed=share, condition="none", out_groups=1)
    assert {g.least for n, g in found.groups.items() if graph.groups[n].size == size} <= {least}


def test_progress_and_settings(resnet: Any) -> None:
    _, graph, moments = resnet
    seen: list[tuple[int, int]] = []
    found = rank(
        graph,
        moments,
        out_groups=1,
        condition="top-k",
        k=2,
        progress=lambda done, of: seen.append((done, of)),
    )
    consumers = {c for g in graph.groups.values() for c in g.consumers}
    assert seen == [(i + 1, len(consumers)) for i in range(len(consumers))]
    assert found.settings["k"] == 2
    assert found.settings["condition"] == "top-k"


def test_what_is_refused(resnet: Any) -> None:
    _, graph, moments = resnet
    with pytest.raises(DataError, match="needs paired rows and the moments have none"):
        rank(graph, dataclasses.replace(moments, pooled={}))
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(MintDeployError, match="is no share of a group"):
            rank(graph, moments, most_removed=share)
    with pytest.raises(UnknownName, match="no condition named 'most'"):
        rank(graph, moments, condition="most")
    name, rows = next(iter(moments.pooled.items()))
    holed = rows.inputs.copy()
    holed[3, 0] = np.nan
    for wrong, said in (
        (PooledRows(inputs=holed, outputs=rows.outputs), f"what '{name}' read holds NaN"),
        (PooledRows(inputs=rows.inputs[:, 1:], outputs=rows.outputs), "belong to another model"),
        (PooledRows(inputs=rows.inputs[:9], outputs=rows.outputs[:9]), "9 rows are too few"),
    ):
        with pytest.raises(DataError, match=said):
            rank(graph, dataclasses.replace(moments, pooled={name: wrong}))
