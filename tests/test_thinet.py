"""ThiNet against its own definition: sums over sampled positions, by brute force, and greedy by enumeration."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build
from torch import Tensor, nn

import mint_deploy as md
from mint_deploy.artifacts import ConsumerMoments, Member, Moments
from mint_deploy.criteria.thinet import forward_selection, gram
from mint_deploy.errors import DataError
from mint_deploy.graph import Group
from mint_deploy.trace import trace


def consumer(
    rows: np.ndarray, weight: np.ndarray, *, taps: int = 1, groups: int = 1, name: str = "next"
) -> ConsumerMoments:
    """Moments of sampled taps ``[N, D]``; ``weight [outputs, D / groups]``."""
    return ConsumerMoments(
        name=name,
        kind="conv",
        channels=rows.shape[1] // taps,
        taps=taps,
        groups=groups,
        bias=None,
        normalised=False,
        rows=len(rows),
        mean=rows.mean(0),
        covariance=np.cov(rows.T, bias=True).reshape(rows.shape[1], -1),
        weight=weight,
        sensitivity=np.zeros(len(weight)),
    )


def group_of(index: np.ndarray, length: int, *names: str) -> Group:
    """A group whose units are the input channels ``index [units, m]`` of each consumer."""
    members = tuple(Member(tensor=n, dim=1, length=length, index=index, reads=True) for n in names)
    return Group(name="g", size=len(index), members=members, producers=("p",), consumers=names)


def moments_of(*consumers: ConsumerMoments) -> Moments:
    return Moments(consumers={c.name: c for c in consumers}, images=1, seed=0, dataset="made")


def contributions(
    rows: np.ndarray, weight: np.ndarray, index: np.ndarray, taps: int, groups: int = 1
) -> np.ndarray:
    """``x [units, N, outputs]``: what each unit's channels add to each output, row by row."""
    width = rows.shape[1] // groups
    each = len(weight) // groups
    out = np.zeros((len(index), len(rows), len(weight)))
    for u, channels in enumerate(index):
        for g in range(groups):
            at = [c * taps + t for c in channels for t in range(taps)]
            block = rows[:, g * width : (g + 1) * width][:, at]
            mine = slice(g * each, (g + 1) * each)
            out[u, :, mine] += block @ weight[mine][:, at].T
    return out


def objective(x: np.ndarray, chosen: list[int]) -> float:
    """Their equation 6, summed over outputs: the mean square of what the removed units added."""
    return float((x[chosen].sum(0) ** 2).mean(0).sum()) if chosen else 0.0


def brute_force(x: np.ndarray) -> tuple[np.ndarray, list[int]]:
    loss, order = np.zeros(len(x)), []
    while len(order) < len(x):
        rest = [u for u in range(len(x)) if u not in order]
        best, out = min((objective(x, [*order, u]), u) for u in rest)
        loss[out] = best - objective(x, order)
        order.append(out)
    return loss, order


@pytest.mark.parametrize(("taps", "groups", "wide"), [(1, 1, 1), (9, 1, 1), (4, 1, 2), (4, 3, 1)])
def test_the_gram_matrix_gives_the_objective_of_every_set(
    taps: int, groups: int, wide: int
) -> None:
    random = np.random.default_rng(taps + groups + wide)
    units, outputs = 4, 6
    width = units * wide
    rows = random.normal(size=(200, groups * width * taps)) + random.normal(
        size=groups * width * taps
    )
    weight = random.normal(size=(outputs, width * taps))
    index = random.permutation(width).reshape(units, wide)
    G = gram(
        group_of(index, width, "next"),
        moments_of(consumer(rows, weight, taps=taps, groups=groups)),
    )
    assert G is not None
    x = contributions(rows, weight, index, taps, groups)
    for count in range(1, units + 1):
        for chosen in itertools.combinations(range(units), count):
            assert G[np.ix_(chosen, chosen)].sum() == pytest.approx(
                objective(x, list(chosen)), rel=1e-9
            )


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_the_greedy_order_is_that_of_brute_force(seed: int, units: int) -> None:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(60, units)) @ random.normal(size=(units, units)) + 0.5
    weight = random.normal(size=(3, units))
    index = np.arange(units)[:, None]
    G = gram(group_of(index, units, "next"), moments_of(consumer(rows, weight)))
    assert G is not None
    loss, order = forward_selection(G)
    expected, expected_order = brute_force(contributions(rows, weight, index, 1))
    assert order.tolist() == expected_order
    np.testing.assert_allclose(loss, expected, rtol=1e-7, atol=1e-9)
    assert loss.sum() == pytest.approx(G.sum(), rel=1e-9)


def test_two_channels_that_cancel_leave_together() -> None:
    """The point of greedy selection: alone each is dear, together they are free."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 500))
    rows = np.stack([a, a, 0.4 * b, 3.0 * b], 1)
    weight = np.array([[1.0, -1.0, 1.0, 1.0]])
    G = gram(group_of(np.arange(4)[:, None], 4, "next"), moments_of(consumer(rows, weight)))
    assert G is not None
    loss, order = forward_selection(G)
    assert order[0] == 2  # the faint one
    assert set(order[1:3].tolist()) == {0, 1}  # then the pair, although 0 alone costs as much as a
    assert loss[order[1]] > 0.5
    assert loss[order[1]] + loss[order[2]] == pytest.approx(0.0, abs=0.2)
    assert loss[order[2]] < 0


def test_a_constant_channel_counts_by_its_mean() -> None:
    """Uncentred, as in the paper: what never varies still contributes (its bias is not compensated)."""
    random = np.random.default_rng(0)
    rows = np.stack([np.full(100, 5.0), random.normal(size=100)], 1)
    weight = np.ones((1, 2))
    G = gram(group_of(np.arange(2)[:, None], 2, "next"), moments_of(consumer(rows, weight)))
    assert G is not None
    assert G[0, 0] == pytest.approx(25.0)
    assert forward_selection(G)[1].tolist() == [1, 0]


def test_the_matrices_of_several_consumers_add() -> None:
    random = np.random.default_rng(3)
    one = consumer(random.normal(size=(50, 3)), random.normal(size=(2, 3)), name="a")
    two = consumer(random.normal(size=(70, 27)), random.normal(size=(4, 27)), taps=9, name="b")
    index = np.arange(3)[:, None]
    both = gram(group_of(index, 3, "a", "b"), moments_of(one, two))
    apart = [gram(group_of(index, 3, n), moments_of(c)) for n, c in (("a", one), ("b", two))]
    assert both is not None
    assert apart[0] is not None
    assert apart[1] is not None
    np.testing.assert_allclose(both, apart[0] + apart[1], rtol=1e-12)


# ---------------------------------------------------------------- on networks


class Chain(nn.Module):
    """One hidden layer read by a convolution without padding, so that every position can be sampled."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x))).flatten(1)


def test_on_a_network_removal_changes_the_sampled_outputs_by_the_loss() -> None:
    """Run the network with the first units zeroed: the mean squared change is the sum of their losses."""
    model = Chain().eval()
    images = torch.randn(40, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    graph = trace(model, images[:2])
    moments = md.sample(model, graph, images, images=40)
    G = gram(graph.groups["first"], moments)
    assert G is not None
    loss, order = forward_selection(G)
    with torch.no_grad():
        hidden = F.relu(model.first(images))
        for count in (1, 2, 4):
            gone = order[:count].copy()
            removed = torch.zeros_like(hidden)
            removed[:, gone] = hidden[:, gone]
            change = F.conv2d(removed, model.second.weight, stride=2)
            # every one of the 2 x 2 positions was sampled: nothing is left to chance
            expected = float((change**2).mean((0, 2, 3)).sum())
            assert loss[gone].sum() == pytest.approx(expected, rel=1e-4)


def test_losses_are_never_negative_and_uniform_ratios_are_asked_for() -> None:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    images = torch.randn(48, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = md.score(graph, md.sample(model, graph, images, images=48), criterion="thinet")
    assert not scores.comparable
    assert set(scores.groups) == set(graph.groups)
    for found in scores.groups.values():
        assert (found.loss >= 0).all()
        assert sorted(found.order.tolist()) == list(range(len(found.order)))


def test_what_was_not_sampled_is_left_out() -> None:
    model, inputs = build("flatten_linear")
    graph = trace(model, inputs)
    images = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    moments = md.sample(model, graph, images, images=32)
    lost = next(n for n in moments.consumers if n in graph.groups["features.0.0"].consumers)
    fewer = {n: c for n, c in moments.consumers.items() if n != lost}
    scores = md.score(graph, dataclasses.replace(moments, consumers=fewer), criterion="thinet")
    assert "features.0.0" not in scores.groups
    assert len(scores.groups) == len(graph.groups) - 1


def test_without_moments_or_with_another_models() -> None:
    model, inputs = build("resnet8")
    graph = trace(model, inputs)
    with pytest.raises(DataError, match="'thinet' needs moments; call sample"):
        md.score(graph, criterion="thinet")
    random = np.random.default_rng(0)
    wrong = consumer(
        random.normal(size=(20, 5)), random.normal(size=(2, 5)), name="layer1.0.conv2.weight"
    )
    with pytest.raises(DataError, match=r"of 5 channels .* reads 32 .* belong to another model"):
        md.score(graph, moments_of(wrong), criterion="thinet")
