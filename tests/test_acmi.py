"""SNACS: against closed forms, known structures, and what its limits promise."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build
from scipy.stats import spearmanr
from torch import Generator as TorchGenerator
from torch import Tensor, nn, randn

import mint_deploy as md
from mint_deploy.artifacts import ConsumerMoments, Moments, PooledRows
from mint_deploy.errors import DataError, MintDeployError, UnknownName
from mint_deploy.estimators import acmi
from mint_deploy.estimators._acmi_limits import critical, fidelity, least_units
from mint_deploy.estimators._coordinates import CONDITIONS
from mint_deploy.estimators.acmi import dependency
from mint_deploy.trace import trace


def gaussian(seed: int, rows: int, *, columns: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def alone(x: np.ndarray, y: np.ndarray, **settings: object) -> float:
    found = dependency(x, y, condition="none", **settings)  # type: ignore[arg-type]  # settings of tests
    return float(found[0, 0])


# ---------------------------------------------------------------- discrete: exact


def test_equals_the_closed_form_of_a_discrete_joint_distribution() -> None:
    """Rows that stand in exact proportion to p(x, y, z): the plug-in IS the information."""
    counts = np.random.default_rng(0).integers(1, 9, (3, 4, 2))
    p = counts / counts.sum()
    rows = np.repeat(list(itertools.product(range(3), range(4), range(2))), counts.ravel(), axis=0)
    x, y, z = rows.T.astype(float)
    p_z, p_xz, p_yz = p.sum((0, 1)), p.sum(1), p.sum(0)
    given_z = (p * np.log(p * p_z / (p_xz[:, None] * p_yz[None]))).sum()
    p_xy = p.sum(2)
    plain = (p_xy * np.log(p_xy / np.outer(p_xy.sum(1), p_xy.sum(0)))).sum()
    inputs = np.stack([y, z], 1)
    fine = {"epsilon": 0.05, "seed": 3}
    found = {c: dependency(x[:, None], inputs, condition=c, **fine) for c in CONDITIONS}  # type: ignore[arg-type]  # settings
    assert found["none"][0, 0] == pytest.approx(plain, rel=1e-12)
    # of two inputs, all the others, the nearest other and the other's direction are the same
    for condition in ("all", "top-k"):
        assert found[condition][0, 0] == pytest.approx(given_z, rel=1e-12)
    assert dependency(x[:, None], inputs, condition="pca", k=1, **fine)[0, 0] == pytest.approx(
        given_z, rel=1e-12
    )


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 5))
def test_discrete_features_are_counted_as_they_are(seed: int, a: int, b: int) -> None:
    from sklearn.metrics import mutual_info_score

    random = np.random.default_rng(seed)
    x, y = random.integers(0, a, 200), random.integers(0, b, 200)
    found = alone(7.0 * x[:, None] - 3, -0.1 * y[:, None], epsilon=0.02, seed=seed)
    assert found == pytest.approx(mutual_info_score(x, y), abs=1e-12)
    assert found >= 0


# ---------------------------------------------------------------- continuous: known structures


def test_monotone_in_the_correlation_and_near_the_closed_form_of_gaussians() -> None:
    rows, values = 20_000, []
    base, noise = gaussian(1, rows), gaussian(2, rows)
    correlations = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 0.97)
    for r in correlations:
        y = r * base + math.sqrt(1 - r * r) * noise
        values.append(alone(base, y, epsilon=0.3))
    assert values == sorted(values)
    for r, value in zip(correlations[:-1], values[:-1], strict=True):
        # buckets lose a little, finite rows add about (K - 1)^2 / 2N
        assert value == pytest.approx(-0.5 * math.log(1 - r * r), abs=0.035)


def test_the_geometric_measure_meets_its_reference_value() -> None:
    """Two Gaussians with correlation 0.8: 0.226 (method.md, by Monte Carlo)."""
    base = gaussian(1, 40_000)
    y = 0.8 * base + 0.6 * gaussian(2, 40_000)
    assert alone(base, y, epsilon=0.4, measure="geometric") == pytest.approx(0.226, abs=0.02)


def test_a_chain_is_cut_by_what_lies_between() -> None:
    z = gaussian(0, 4000)
    x, y = z + 0.5 * gaussian(1, 4000), z + 0.5 * gaussian(2, 4000)
    inputs = np.hstack([y, z])
    for k_like in ({"condition": "top-k"}, {"condition": "pca", "k": 1}):
        found = dependency(x, inputs, epsilon=0.5, **k_like)  # type: ignore[arg-type]  # settings
        assert found[0, 0] < 0.25 * alone(x, y, epsilon=0.5)
        assert found[0, 1] > 2 * found[0, 0]  # while z keeps telling of x


def test_a_collider_joins_what_was_independent() -> None:
    x, y = gaussian(1, 4000), gaussian(2, 4000)
    inputs = np.hstack([y, x + y])
    apart = alone(x, y)
    given_both = dependency(x, inputs)[0, 0]
    assert apart < 0.02
    assert given_both > 0.2


def test_common_cause_and_independence_beside_many_others() -> None:
    """An input of its own outweighs one that has a near-copy, and noise has next to nothing."""
    cause, own, noise = gaussian(1, 2000), gaussian(2, 2000), gaussian(3, 2000)
    copies = np.hstack([cause + 0.05 * gaussian(s, 2000) for s in (4, 5)])
    x = cause + own + 0.3 * gaussian(6, 2000)
    found = dependency(x, np.hstack([copies, own, noise]))[0]
    assert found[2] > 5 * found[:2].max()
    assert found[3] < 0.2 * found[2]
    plain = dependency(x, np.hstack([copies, own, noise]), condition="none")[0]
    assert plain[:2].min() > 0.5 * plain[2]  # without the condition the copies look as good


def test_duplicates_are_useless_given_each_other_and_equal_without() -> None:
    y, other = gaussian(1, 1000), gaussian(2, 1000)
    x = y + 0.3 * gaussian(3, 1000)
    inputs = np.hstack([y, y, other])
    assert dependency(x, inputs)[0, :2].max() < 1e-12
    plain = dependency(x, inputs, condition="none")[0]
    assert plain[0] == plain[1] > 20 * plain[2]


def test_rows_that_do_not_belong_together_score_nothing() -> None:
    y = gaussian(1, 2000)
    x = y + 0.1 * gaussian(2, 2000)
    shuffled = np.random.default_rng(0).permutation(x)
    assert alone(x, y) > 0.8
    assert alone(shuffled, y) < 0.02


def test_the_literal_condition_of_many_others_leaves_nothing() -> None:
    """As published: every row is a bucket of its own, so the score is zero. The default still sees."""
    inputs = gaussian(1, 1000, columns=60)
    x = inputs[:, :1] + 0.1 * gaussian(2, 1000)
    assert dependency(x, inputs, condition="all").max() == 0
    found = dependency(x, inputs)[0]
    assert found.argmax() == 0
    assert found[0] > 5 * np.delete(found, 0).max()


def test_the_nearest_other_ranks_redundant_layers_best() -> None:
    """The choice of the default: rank correlation with the Gaussian closed form, given ALL the others."""
    random = np.random.default_rng(0)
    causes = random.normal(size=(1000, 12))
    inputs = causes @ random.normal(size=(12, 24)) / 3 + 0.6 * random.normal(size=(1000, 24))
    inputs[:, :6] = inputs[:, 6:12] + 0.1 * random.normal(size=(1000, 6))
    W = random.normal(size=(16, 24)) * random.exponential(size=24)
    clean = inputs @ W.T
    outputs = clean + 0.15 * clean.std(0) * random.normal(size=clean.shape)
    precision = np.diag(np.linalg.inv(np.cov(inputs.T)))
    truth = 0.5 * np.log1p(W**2 / precision / (0.15 * clean.std(0))[:, None] ** 2).mean(0)
    rank = {
        c: spearmanr(dependency(outputs, inputs, condition=c, weights=W).mean(0), truth)[0]
        for c in ("none", "pca", "top-k")
    }
    assert rank["top-k"] > 0.85
    assert rank["top-k"] > max(rank["none"], rank["pca"]) + 0.1


# ---------------------------------------------------------------- invariances


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from(CONDITIONS), st.sampled_from(acmi.MEASURES))
def test_rows_may_be_permuted_and_features_rescaled(
    seed: int, condition: str, measure: str
) -> None:
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(120, 5))
    outputs = inputs @ random.normal(size=(5, 3)) + 0.5 * random.normal(size=(120, 3))

    def score(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return dependency(x, y, condition=condition, measure=measure, k=2, seed=seed)

    found = score(outputs, inputs)
    assert (found >= 0).all()
    order = random.permutation(120)
    np.testing.assert_allclose(score(outputs[order], inputs[order]), found, atol=1e-12)
    scale, shift = random.uniform(0.1, 10, 5), random.normal(size=5)
    np.testing.assert_allclose(score(outputs * 8 - 4, inputs * scale + shift), found, atol=1e-12)


def test_equal_seeds_repeat_and_others_differ_a_little() -> None:
    inputs = gaussian(1, 500, columns=6)
    outputs = inputs @ gaussian(2, 6, columns=4) + gaussian(3, 500, columns=4)
    one, again, other = (dependency(outputs, inputs, seed=s) for s in (5, 5, 6))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    np.testing.assert_allclose(one, other, atol=0.12)


def test_weights_scale_the_scores_and_none_means_nothing() -> None:
    inputs, outputs = gaussian(1, 300, columns=4), gaussian(2, 300, columns=3)
    outputs[:, 0] += inputs[:, 1]
    plain = dependency(outputs, inputs)
    W = gaussian(3, 3, columns=4)
    W[:, 2] = 0
    np.testing.assert_allclose(dependency(outputs, inputs, weights=W), plain * np.abs(W))
    assert (dependency(outputs, inputs, weights=W)[:, 2] == 0).all()
    taps = np.repeat(W[:, :, None], 9, axis=2).reshape(3, 4, 3, 3)
    taps[:, :, 0, 0] *= -1
    np.testing.assert_allclose(dependency(outputs, inputs, weights=taps), plain * np.abs(W))
    pairs = dependency(outputs, inputs, in_groups=[[0, 1], [3]], out_groups=1, weights=W)
    bare = dependency(outputs, inputs, in_groups=[[0, 1], [3]], out_groups=1)
    assert pairs[0, 0] == pytest.approx(bare[0, 0] * np.abs(W[:, :2]).mean())


# ---------------------------------------------------------------- groups


def test_groups_may_be_counted_off_or_listed() -> None:
    inputs, outputs = gaussian(1, 400, columns=6), gaussian(2, 400, columns=4)
    outputs[:, 3] += inputs[:, 4]
    counted = dependency(outputs, inputs, out_groups=2, in_groups=3)
    named = dependency(
        outputs, inputs, out_groups=[[0, 1], [2, 3]], in_groups=[[0, 1], np.array([2, 3]), (4, 5)]
    )
    np.testing.assert_array_equal(counted, named)
    assert counted.shape == (2, 3)
    assert np.unravel_index(counted.argmax(), (2, 3)) == (1, 2)
    single = dependency(outputs, inputs, out_groups=4, in_groups=6)
    np.testing.assert_array_equal(single, dependency(outputs, inputs))


def test_a_pair_of_channels_tells_what_neither_does_alone() -> None:
    """The parity of two coins: joined, they tell everything."""
    coins = np.random.default_rng(0).integers(0, 2, (2000, 2)).astype(float)
    x = (coins.sum(1) % 2)[:, None]
    joined = dependency(x, coins, in_groups=1, condition="none")[0, 0]
    assert joined == pytest.approx(math.log(2), abs=0.01)
    assert dependency(x, coins, condition="none").max() < 0.01


def test_wide_groups_are_turned_into_few_components() -> None:
    """Forty-nine channels hashed as they are would fill a bucket a row and tell log N of anything."""
    signal = gaussian(1, 500)
    wide = signal + 0.5 * gaussian(2, 500, columns=49)
    x, noise = signal + 0.3 * gaussian(3, 500), gaussian(4, 500)
    outputs = np.hstack([x, noise])
    found = dependency(outputs, wide, in_groups=1, condition="none")[:, 0]
    literal = dependency(outputs, wide, in_groups=1, condition="none", dims=49)[:, 0]
    assert found[0] > 3 * found[1]
    assert literal[1] > 0.8 * literal[0]


# ---------------------------------------------------------------- edges


def test_constant_channels_and_dead_relus_score_zero() -> None:
    inputs, outputs = gaussian(1, 200, columns=5), gaussian(2, 200, columns=3)
    outputs += inputs[:, :3]
    inputs[:, 1], inputs[:, 3] = 0.0, 7.25
    outputs[:, 2] = -1e-3
    almost = np.float32(100) + np.float32(1e-6) * inputs[:, 4].astype(np.float32)
    inputs[:, 4] = almost  # the rounding of a constant is no information
    for condition in CONDITIONS:
        found = dependency(outputs, inputs, condition=condition)
        assert np.isfinite(found).all()
        assert (found[:, [1, 3, 4]] == 0).all()
        assert (found[2] == 0).all()
    assert dependency(outputs, inputs)[0, 0] > 0.1
    assert (dependency(outputs, np.zeros((200, 4))) == 0).all()


def test_half_dead_relus_are_counted() -> None:
    base = gaussian(1, 2000)
    rare = np.maximum(base - 2.5, 0)  # fires on 0.6 % of the rows
    found = dependency(
        np.maximum(base, 0), np.hstack([np.maximum(base, 0), rare]), condition="none"
    )
    assert found[0, 0] > found[0, 1] > 0


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_few_rows_are_defined(rows: int) -> None:
    for condition in CONDITIONS:
        found = dependency(
            gaussian(1, rows, columns=3), gaussian(2, rows, columns=4), condition=condition
        )
        assert found.shape == (3, 4)
        assert np.isfinite(found).all()
        assert (found >= 0).all()
        assert (found <= math.log(rows) + 1e-12).all()


def test_a_single_input_has_no_others() -> None:
    y = gaussian(1, 500)
    x = y + gaussian(2, 500)
    plain = alone(x, y)
    for condition in ("all", "top-k", "pca"):
        assert dependency(x, y, condition=condition)[0, 0] == pytest.approx(plain, rel=1e-12)
    assert dependency(x, np.hstack([y, y]), k=99).shape == (1, 2)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"condition": "topk"}, UnknownName, "did you mean 'top-k'"),
        ({"measure": "renyi"}, UnknownName, "known: geometric, shannon"),
        ({"epsilon": 0.0}, MintDeployError, "epsilon=0 is no width"),
        ({"epsilon": float("nan")}, MintDeployError, "epsilon=nan"),
        ({"grids": 0}, MintDeployError, "grids=0 makes no sense"),
        ({"k": 0}, MintDeployError, "k=0"),
        ({"dims": -1}, MintDeployError, "dims=-1"),
        ({"in_groups": 5}, MintDeployError, "in_groups=5 cannot share 4 channels"),
        ({"out_groups": [[0], []]}, MintDeployError, r"out_groups has a group \[\]"),
        ({"in_groups": [[0, 4]]}, MintDeployError, "channels 0 to 3"),
        ({"inputs": np.zeros((9, 4))}, DataError, "10 rows and inputs 9"),
        ({"inputs": np.zeros(10)}, DataError, r"shape \[10\]; expected \[samples, channels\]"),
        ({"inputs": np.full((10, 4), np.nan)}, DataError, "the inputs hold NaN"),
        ({"outputs": np.full((10, 3), np.inf)}, DataError, "the outputs hold NaN or infinite"),
    ],
)
def test_bad_settings_and_data_are_named(
    change: dict[str, object], error: type[Exception], words: str
) -> None:
    given: dict[str, object] = {
        "outputs": gaussian(1, 10, columns=3),
        "inputs": gaussian(2, 10, columns=4),
        **change,
    }
    with pytest.raises(error, match=words):
        dependency(given.pop("outputs"), given.pop("inputs"), **given)  # type: ignore[arg-type]  # on purpose


def test_one_row_is_refused() -> None:
    with pytest.raises(DataError, match="two at the least"):
        dependency(np.zeros((1, 2)), np.zeros((1, 2)))


def test_progress_ends_at_its_end() -> None:
    told: list[tuple[int, int]] = []
    dependency(
        gaussian(1, 50, columns=20), gaussian(2, 50, columns=3), grids=3,
        progress=lambda *at: told.append(at),
    )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == (60, 60)


# ---------------------------------------------------------------- upper limits and critical filters


def consumer(
    S: np.ndarray, W: np.ndarray, *, taps: int = 1, groups: int = 1, felt: np.ndarray | None = None
) -> ConsumerMoments:
    return ConsumerMoments(
        name="consumer", kind="conv", channels=len(S) // taps, taps=taps, groups=groups,
        bias=None, normalised=False, rows=1000, mean=np.zeros(len(S)), covariance=S, weight=W,
        sensitivity=np.zeros((len(W), len(W))) if felt is None else np.diag(felt),
    )  # fmt: skip


def test_fidelity_is_the_correlation_of_what_is_left() -> None:
    """Against data: hold the taps of the units gone at their mean and correlate."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(3000, 12)) @ random.normal(size=(12, 12))
    W = random.normal(size=(5, 12))
    felt = random.uniform(0.1, 2, 5)
    centred = rows - rows.mean(0)
    moments = consumer(centred.T @ centred / 3000, W, taps=2, felt=felt)
    order = np.array([3, 0, 5, 1, 2, 4])
    found = fidelity(moments, order[:, None])
    whole = centred @ W.T
    weight = felt * whole.var(0)
    for gone in range(7):
        left = centred.copy()
        left[:, [2 * u + t for u in order[:gone] for t in range(2)]] = 0
        kept = left @ W.T
        r = [
            np.corrcoef(a, b)[0, 1] if a.any() else 0.0
            for a, b in zip(kept.T, whole.T, strict=True)
        ]
        assert found[gone] == pytest.approx(float(np.dot(weight, r) / weight.sum()), abs=1e-9)


def test_fidelity_of_tiles_equals_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    A = random.normal(size=(30, 30))
    moments = consumer(A @ A.T, random.normal(size=(4, 30)), taps=3)
    index = random.permutation(10)[:, None]
    whole = fidelity(moments, index)
    monkeypatch.setattr("mint_deploy.estimators._acmi_limits._TILE", 7)
    np.testing.assert_allclose(fidelity(moments, index), whole, rtol=1e-12)


def test_fidelity_of_a_grouped_convolution_is_that_of_its_groups() -> None:
    random = np.random.default_rng(2)
    A = random.normal(size=(8, 8))
    S, W = A @ A.T, random.normal(size=(6, 4))
    index = np.arange(4)[:, None]
    found = fidelity(consumer(S, W, groups=2), index)
    apart = [fidelity(consumer(S[b, b], W[o]), index) for b, o in halves(4, 3)]
    share = [np.einsum("od,de,oe->", W[o], S[b, b], W[o]) for b, o in halves(4, 3)]
    np.testing.assert_allclose(found, np.average(apart, axis=0, weights=share), rtol=1e-12)


def halves(wide: int, tall: int) -> list[tuple[slice, slice]]:
    return [(slice(g * wide, (g + 1) * wide), slice(g * tall, (g + 1) * tall)) for g in range(2)]


def test_least_follows_the_fidelity() -> None:
    """One unit carries everything: it stays, whoever else leaves; equal units leave as far as drop says."""
    W = np.array([[10.0, 0.1, 0.1, 0.1]])
    index, order = np.arange(4)[:, None], np.array([3, 2, 1, 0])
    assert least_units([(consumer(np.eye(4), W), index)], order) == 1
    assert least_units([(consumer(np.eye(4), W), index)], order[::-1].copy()) == 4
    even = consumer(np.eye(16), np.ones((1, 16)))
    index, order = np.arange(16)[:, None], np.arange(16)
    # of n independent equal units k carry the correlation sqrt(k / n)
    for drop in (0.3, 0.5, 0.7, 0.99):
        expected = math.ceil(16 * (1 - drop) ** 2 - 1e-9)
        assert least_units([(even, index)], order, drop=drop) == expected
    assert least_units([(even, index)], order, drop=1.0) == 0


def test_the_tightest_consumer_sets_the_limit() -> None:
    index, order = np.arange(4)[:, None], np.arange(4)
    loose = consumer(np.eye(4), np.array([[0.1, 0.1, 0.1, 10.0]]))
    tight = consumer(np.eye(4), np.array([[10.0, 0.1, 0.1, 0.1]]))
    assert least_units([(loose, index)], order) == 1
    assert least_units([(loose, index), (tight, index)], order) == 4
    silent = consumer(np.eye(4), np.zeros((1, 4)))
    assert least_units([(silent, index)], order) == 0


@pytest.mark.parametrize("drop", [0.0, -1.0, 1.5, float("nan")])
def test_a_drop_that_is_no_share_is_refused(drop: float) -> None:
    index = np.arange(2)[:, None]
    with pytest.raises(MintDeployError, match="no share of a range"):
        least_units([(consumer(np.eye(2), np.ones((1, 2))), index)], np.arange(2), drop=drop)


def test_critical_units_stand_out_by_their_share_of_the_weights() -> None:
    strength = np.ones((4, 20))
    strength[:, 7] = 12.0
    index = np.arange(20)[:, None]
    assert np.flatnonzero(critical([(strength, index)], 2.0)).tolist() == [7]
    # an output's scale does not matter, a share does
    scaled = strength * np.array([[1e-3], [1.0], [10.0], [1e3]])
    assert np.flatnonzero(critical([(scaled, index)], 2.0)).tolist() == [7]
    assert not critical([(strength, index)], None).any()
    assert not critical([(np.ones((4, 20)), index)], 0.0).any()
    assert not critical([(np.zeros((4, 20)), index)], 2.0).any()
    with pytest.raises(MintDeployError, match="protect=-1 is negative"):
        critical([(strength, index)], -1.0)


# ---------------------------------------------------------------- on graphs


def sampled(name: str, rows: int = 96) -> tuple[nn.Module, md.Graph, md.Moments]:
    model, inputs = build(name)
    graph = trace(model, inputs)
    images: Tensor = randn(rows, *inputs[0].shape[1:], generator=TorchGenerator().manual_seed(0))
    evidence = ("moments", "sensitivity", "pooled")
    return model, graph, md.sample(model, graph, images, images=rows, evidence=evidence)


@pytest.fixture(scope="module")
def resnet() -> tuple[nn.Module, md.Graph, md.Moments]:
    return sampled("resnet8")


def test_what_rank_says_of_a_network(resnet: tuple[nn.Module, md.Graph, md.Moments]) -> None:
    _, graph, moments = resnet
    told: list[tuple[int, int]] = []
    scores = md.score(
        graph, moments, criterion="mint", estimator="acmi", progress=lambda *at: told.append(at)
    )
    assert (scores.criterion, scores.estimator, scores.comparable) == ("mint", "acmi", True)
    assert set(scores.groups) == set(graph.groups)
    assert told[-1][0] == told[-1][1] == len(scores.dependency)
    for name, found in scores.groups.items():
        group = graph.groups[name]
        expected = np.zeros(group.size)
        for member in group.members:
            if member.reads:
                columns = scores.dependency[member.tensor].mean(0)
                expected += columns[member.index[:, 0]]
        np.testing.assert_allclose(found.loss, expected, rtol=1e-12)
        assert sorted(found.order.tolist()) == list(range(group.size))
        free = acmi.rank(graph, moments, protect=None, drop=1.0).groups[name]
        assert free.order.tolist() == np.argsort(free.loss, kind="stable").tolist()
        assert free.least == 0
        assert 0 < found.least < group.size
    for name, matrix in scores.dependency.items():
        weight = graph.tensors[name]
        assert matrix.shape == (weight.shape[0], weight.shape[1])
        assert (matrix >= 0).all()


def test_protected_units_are_last_and_counted(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    name = "layer2.0.conv1"
    reader = next(m for m in graph.groups[name].members if m.reads)
    known = moments.consumers[reader.tensor]
    weight = np.array(known.weight)
    loud = 5
    weight[:, loud * known.taps : (loud + 1) * known.taps] += 5.0
    changed = with_consumer(moments, dataclasses.replace(known, weight=weight))
    # what it passes on is nothing, and still it may not leave
    rows = changed.pooled[reader.tensor]
    inputs = rows.inputs.copy()
    inputs[:, loud] = 0
    changed = with_rows(changed, reader.tensor, dataclasses.replace(rows, inputs=inputs))
    found = acmi.rank(graph, changed).groups[name]
    assert found.loss[loud] == 0
    assert found.order[-1] == loud
    assert found.least >= 1
    free = acmi.rank(graph, changed, protect=None).groups[name]
    assert free.order[0] == loud
    made = md.plan(graph, acmi.rank(graph, changed), ratio=0.9, round_to=1)
    assert loud in next(g.keep for g in made.groups if g.name == name)


def with_consumer(moments: Moments, consumer: ConsumerMoments) -> Moments:
    return dataclasses.replace(moments, consumers={**moments.consumers, consumer.name: consumer})


def with_rows(moments: Moments, name: str, rows: PooledRows) -> Moments:
    return dataclasses.replace(moments, pooled={**moments.pooled, name: rows})


def test_a_unit_without_weights_scores_zero_and_leaves_first(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    name = "layer2.0.conv1"
    reader = next(m for m in graph.groups[name].members if m.reads)
    known = moments.consumers[reader.tensor]
    weight = np.array(known.weight)
    weight[:, 3 * known.taps : 4 * known.taps] = 0
    changed = with_consumer(moments, dataclasses.replace(known, weight=weight))
    for phi in ("weights", "contributions"):
        found = acmi.rank(graph, changed, phi=phi).groups[name]
        assert found.order[0] == 3
        assert found.loss[3] == 0
    assert acmi.rank(graph, changed, phi="none").groups[name].loss[3] > 0


def test_contributions_do_not_change_with_the_scale_of_a_layer(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    """The same function, written with other scales: an input halved, its weights doubled, outputs times 8."""
    _, graph, moments = resnet
    name = next(iter(moments.pooled))
    known, rows = moments.consumers[name], moments.pooled[name]
    scaled = with_consumer(moments, dataclasses.replace(known, weight=known.weight * 16))
    scaled = with_rows(scaled, name, PooledRows(inputs=rows.inputs / 2, outputs=rows.outputs * 8))
    one, other = (acmi.rank(graph, m, phi="contributions") for m in (moments, scaled))
    np.testing.assert_allclose(other.dependency[name], one.dependency[name], rtol=1e-5)
    by_weights = acmi.rank(graph, scaled).dependency[name]
    assert not np.allclose(by_weights, acmi.rank(graph, moments).dependency[name], rtol=0.1)


@pytest.mark.parametrize(
    "name", ["flatten_linear", "grouped", "depthwise_twice", "unet", "c2f", "shuffle_v2"]
)
def test_structures_are_scored(name: str) -> None:
    _, graph, moments = sampled(name, 48)
    scores = acmi.rank(graph, moments)
    assert set(scores.groups) == set(graph.groups)
    for found in scores.groups.values():
        assert np.isfinite(found.loss).all()
        assert (found.loss >= 0).all()
    md.plan(graph, scores, macs=0.8, round_to=1)


def test_a_unit_of_several_channels_is_joined() -> None:
    """Channels of one unit have one score, and a linear layer behind a flatten is read unit by unit."""
    _, graph, moments = sampled("flatten_linear", 48)
    group, member = next(
        (g, m) for g in graph.groups.values() for m in g.members if m.reads and m.index.shape[1] > 1
    )
    scores = acmi.rank(graph, moments)
    matrix = scores.dependency[member.tensor]
    for unit in range(group.size):
        own = matrix[:, member.index[unit]]
        assert (own == own[:, :1]).all()
    rows = moments.pooled[member.tensor]
    known = moments.consumers[member.tensor]
    largest = max(
        np.abs(moments.consumers[n].weight.reshape(len(p.outputs.T), -1, moments.consumers[n].taps))
        .mean(2)
        .max()
        for n, p in moments.pooled.items()
    )
    expected = dependency(
        rows.outputs, rows.inputs, in_groups=list(member.index), weights=known.weight / largest
    )
    np.testing.assert_allclose(matrix[:, member.index[:, 0]], expected, rtol=1e-6)


def test_a_grouped_convolution_is_read_group_by_group() -> None:
    _, graph, moments = sampled("grouped", 96)
    name, known = next((n, c) for n, c in moments.consumers.items() if c.groups > 1)
    found = acmi.rank(graph, moments, phi="none").dependency[name]
    rows = moments.pooled[name]
    wide, tall = known.channels // known.groups, rows.outputs.shape[1] // known.groups
    assert found.shape == (rows.outputs.shape[1], wide)
    for g in range(known.groups):
        block = slice(g * tall, (g + 1) * tall)
        expected = dependency(rows.outputs[:, block], rows.inputs[:, g * wide : (g + 1) * wide])
        np.testing.assert_allclose(found[block], expected, rtol=1e-12)


def test_rank_repeats_and_follows_its_settings(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    one, again, other = (acmi.rank(graph, moments, seed=s) for s in (1, 1, 2))
    for name, matrix in one.dependency.items():
        np.testing.assert_array_equal(matrix, again.dependency[name])
    assert any((m != other.dependency[n]).any() for n, m in one.dependency.items())
    literal = acmi.rank(graph, moments, condition="all", epsilon=0.5)
    assert max(g.loss.max() for g in literal.groups.values()) < 1e-3
    assert literal.settings["condition"] == "all"


def test_rank_names_what_is_wrong(resnet: tuple[nn.Module, md.Graph, md.Moments]) -> None:
    _, graph, moments = resnet
    name, rows = next(iter(moments.pooled.items()))
    with pytest.raises(DataError, match=r"needs paired rows .* sample with\s+evidence="):
        acmi.rank(graph, dataclasses.replace(moments, pooled={}))
    for what in ("inputs", "outputs"):
        broken = getattr(rows, what).copy()
        broken[3, 0] = np.nan
        bad = with_rows(moments, name, dataclasses.replace(rows, **{what: broken}))
        with pytest.raises(DataError, match=f"'{name}' .* NaN or infinite"):
            acmi.rank(graph, bad)
    cut = with_rows(moments, name, dataclasses.replace(rows, inputs=rows.inputs[:, 1:]))
    with pytest.raises(DataError, match=f"the moments of '{name}' belong to another model"):
        acmi.rank(graph, cut)
    with pytest.raises(UnknownName, match="no phi named 'weight'; did you mean 'weights'"):
        acmi.rank(graph, moments, phi="weight")


def test_a_group_without_rows_is_left_out(
    resnet: tuple[nn.Module, md.Graph, md.Moments],
) -> None:
    _, graph, moments = resnet
    gone = {m.tensor for m in graph.groups["layer1.0.conv1"].members if m.reads}
    less = {n: p for n, p in moments.pooled.items() if n not in gone}
    scores = acmi.rank(graph, dataclasses.replace(moments, pooled=less))
    assert "layer1.0.conv1" not in scores.groups
    assert len(scores.groups) == len(graph.groups) - 1
