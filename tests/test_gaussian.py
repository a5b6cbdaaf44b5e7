"""The gaussian estimator against brute force: closed forms, least squares, known structures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import build

import mint_deploy as md
from mint_deploy.artifacts import ConsumerMoments
from mint_deploy.covariance import covariance, inverse
from mint_deploy.errors import MintDeployError, UnknownName
from mint_deploy.estimators.gaussian import along, eliminate
from mint_deploy.readers import Reader, leaving, readers_of


def reader(
    S: np.ndarray,
    W: np.ndarray,
    felt: np.ndarray | None = None,
    name: str = "consumer",
) -> Reader:
    return Reader(
        name=name,
        precision=inverse(S),
        weight=W,
        variance=np.einsum("oi,ij,oj->o", W, S, W),
        sensitivity=np.eye(len(W)) if felt is None else np.diag(felt),
    )


def random_problem(seed: int, units: int, taps: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    A = random.normal(size=(units * taps, units * taps))
    return A @ A.T / len(A) + 0.05 * np.eye(len(A)), random.normal(size=(outputs, units * taps))


def residual(S: np.ndarray, W: np.ndarray, kept: list[int]) -> np.ndarray:
    """Variance of W t given the kept taps: by solving the regression anew."""
    total = np.einsum("oi,ij,oj->o", W, S, W)
    if not kept:
        return total
    cross = W @ S[:, kept]
    return total - np.einsum("oi,oi->o", cross, np.linalg.solve(S[np.ix_(kept, kept)], cross.T).T)


def brute_force(
    readers: list[tuple[np.ndarray, np.ndarray, np.ndarray]], units: int, taps: int
) -> tuple[np.ndarray, list[int]]:
    """Greedy elimination in which every loss is computed from scratch."""

    def columns(chosen: list[int]) -> list[int]:
        return [u * taps + b for u in chosen for b in range(taps)]

    alive, order, loss = list(range(units)), [], np.zeros(units)
    while alive:
        offers = []
        for u in alive:
            rest = [v for v in alive if v != u]
            total = 0.0
            for S, W, felt in readers:
                before, after = (residual(S, W, columns(k)) for k in (alive, rest))
                total += 0.5 * np.log((after + 1 / felt) / (before + 1 / felt)).sum()
            offers.append((total, u))
        best, u = min(offers)
        loss[u] = best
        order.append(u)
        alive.remove(u)
    return loss, order


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_equals_brute_force_conditional_information(seed: int, taps: int) -> None:
    S, W = random_problem(seed, 6, taps, 3)
    felt = np.array([0.5, 2.0, 10.0])
    loss, order = eliminate([reader(S, W, felt)], 6)
    expected, expected_order = brute_force([(S, W, felt)], 6, taps)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(loss, expected, rtol=1e-8, atol=1e-12)


def test_errors_of_the_outputs_count_together() -> None:
    """With a full Fisher information the loss is that of its eigenvectors' outputs."""
    S, W = random_problem(11, 6, 2, 4)
    A = np.random.default_rng(0).normal(size=(4, 4))
    F = A @ A.T + 0.1 * np.eye(4)
    whole = Reader(
        name="consumer", precision=inverse(S), weight=W, variance=np.ones(4), sensitivity=F
    )
    loss, order = eliminate([whole], 6)
    felt, basis = np.linalg.eigh(F)
    expected, expected_order = brute_force([(S, basis.T @ W, felt)], 6, 2)
    assert order.tolist() == expected_order
    np.testing.assert_allclose(loss, expected, rtol=1e-8)
    # to first order: half the trace of F times the covariance of the error
    E = np.zeros((4, 4))
    rest = [c for c in range(12) if c // 2 != order[0]]
    lost = W - W @ S[:, rest] @ np.linalg.solve(S[np.ix_(rest, rest)], np.eye(12)[rest])
    E = lost @ S @ lost.T
    small = Reader(
        name="consumer", precision=inverse(S), weight=W, variance=np.ones(4), sensitivity=1e-9 * F
    )
    faint, _ = eliminate([small], 6)
    assert faint[order[0]] == pytest.approx(0.5e-9 * np.trace(F @ E), rel=1e-6)


def test_losses_of_several_consumers_add() -> None:
    first, second = random_problem(1, 5, 1, 4), random_problem(2, 5, 9, 2)
    ones, twos = np.ones(4), np.full(2, 2.0)
    loss, order = eliminate([reader(*first, ones), reader(*second, twos)], 5)

    def add(u_before: list[int], u_after: list[int]) -> float:
        total = 0.0
        for (S, W), taps, felt in ((first, 1, ones), (second, 9, twos)):
            wide = [[u * taps + b for u in k for b in range(taps)] for k in (u_before, u_after)]
            before, after = residual(S, W, wide[0]), residual(S, W, wide[1])
            total += 0.5 * np.log((after + 1 / felt) / (before + 1 / felt)).sum()
        return total

    alive = list(range(5))
    for unit in order:
        rest = [v for v in alive if v != unit]
        assert loss[unit] == pytest.approx(add(alive, rest), rel=1e-8)
        assert loss[unit] == pytest.approx(
            min(add(alive, [v for v in alive if v != u]) for u in alive), rel=1e-8
        )
        alive = rest


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_one_of_every_pair_of_duplicates_survives(seed: int, pairs: int) -> None:
    """Conditioning on all the others would drop both copies; on the survivors, it keeps one."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(4000, pairs)) * random.uniform(0.5, 2.0, pairs)
    rows = np.repeat(rows, 2, axis=1)
    rows = rows + 1e-4 * random.normal(size=rows.shape)
    W = random.normal(size=(4, 2 * pairs)) + np.sign(random.normal(size=(4, 2 * pairs)))
    _, order = eliminate([reader(np.cov(rows.T), W, np.full(4, 100.0))], 2 * pairs)
    first_out = {int(u) // 2 for u in order[:pairs]}
    assert first_out == set(range(pairs))


def test_downdates_equal_recomputation_after_100_steps() -> None:
    S, W = random_problem(3, 120, 1, 8)
    loss, order = eliminate([reader(S, W)], 120)
    for step in (50, 100, 115):
        alive = [u for u in range(120) if u not in set(order[:step].tolist())]
        u = int(order[step])
        rest = [v for v in alive if v != u]
        before, after = residual(S, W, alive), residual(S, W, rest)
        again = 0.5 * np.log((after + 1) / (before + 1)).sum()
        assert loss[u] == pytest.approx(again, rel=1e-8)


def test_common_cause_and_suppressor() -> None:
    """A copy of a common cause is redundant; a suppressor without own correlation is not."""
    random = np.random.default_rng(0)
    cause, noise = random.normal(size=(2, 200_000))
    rows = np.stack([cause, cause + 0.05 * random.normal(size=200_000), noise, cause + noise], 1)
    W = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0]])  # both outputs are the cause
    S = covariance(moments_of(np.cov(rows.T), rows=200_000))
    loss, order = eliminate([reader(S, W, np.full(2, 1e4))], 4)
    # the cause is there twice: itself, and as (cause + noise) - noise; one of the ways is free to go
    assert loss[order[0]] < 0.05
    assert residual(S, W, sorted(order[1:].tolist())).max() < 1e-3
    hidden = np.stack([noise, cause + noise], 1)
    loss, order = eliminate([reader(np.cov(hidden.T), np.array([[-1.0, 1.0]]), np.full(1, 1e4))], 2)
    # the suppressor does not correlate with the output at all, and yet it is dear
    assert loss[order[0]] == pytest.approx(0.5 * np.log(1 + 1e4 / 2), rel=0.01)


def test_units_that_nobody_feels_leave_first() -> None:
    S, W = random_problem(5, 6, 1, 4)
    W[:, 2] = 0.0
    S[:, 2] = S[2] = 0.0
    S[2, 2] = 1.0
    loss, order = eliminate([reader(S, W)], 6)
    assert order[0] == 2
    assert loss[2] == 0.0


def test_dead_and_constant_channels_are_finite_and_go_first() -> None:
    S, W = random_problem(6, 6, 1, 4)
    S[4] = S[:, 4] = 0.0  # a dead ReLU: no variance
    moments = moments_of(S, rows=1000)
    loss, order = eliminate([reader(covariance(moments), W)], 6)
    assert np.isfinite(loss).all()
    assert order[0] == 4


def test_infinite_noise_is_relative_variance() -> None:
    S, W = random_problem(7, 5, 1, 3)
    loss, order = eliminate([reader(S, W)], 5, floor="variance", noise=float("inf"))
    everything = list(range(5))
    total = residual(S, W, [])
    expected = {
        u: ((residual(S, W, [v for v in everything if v != u]) - 0.0) / total).sum()
        for u in everything
    }
    assert loss[order[0]] == pytest.approx(min(expected.values()), rel=1e-8)


def test_variance_floor_does_not_depend_on_the_scale_of_outputs() -> None:
    S, W = random_problem(8, 8, 1, 5)
    scaled = W * np.array([1e-3, 1.0, 1e3, 10.0, 0.1])[:, None]
    one = eliminate([reader(S, W)], 8, floor="variance")
    other = eliminate([reader(S, scaled)], 8, floor="variance")
    assert one[1].tolist() == other[1].tolist()
    np.testing.assert_allclose(one[0], other[0], rtol=1e-8)


def test_without_sensitivity_the_variance_floor_takes_over() -> None:
    S, W = random_problem(9, 5, 1, 3)
    blind = eliminate([reader(S, W, np.zeros(3))], 5)
    plain = eliminate([reader(S, W)], 5, floor="variance")
    np.testing.assert_array_equal(blind[0], plain[0])


def test_bad_settings_are_named() -> None:
    S, W = random_problem(9, 3, 1, 3)
    with pytest.raises(UnknownName, match="did you mean 'variance'"):
        eliminate([reader(S, W)], 3, floor="varience")
    with pytest.raises(MintDeployError, match="noise=0 is not positive"):
        eliminate([reader(S, W)], 3, floor="variance", noise=0.0)


@pytest.mark.parametrize("name", ["resnet8", "grouped", "c2f", "flatten_linear", "depthwise_twice"])
def test_along_its_own_order_the_losses_are_the_same(name: str) -> None:
    """One factorisation in a known order is what downdating unit by unit comes to."""
    model, (example,) = build(name)
    graph = md.trace(model, example)
    images = torch.randn(96, *example.shape[1:], generator=torch.Generator().manual_seed(1))
    moments = md.sample(model, graph, images, seed=0)
    seen = 0
    for group in graph.groups.values():
        readers = readers_of(group, moments)
        if not readers:
            continue
        for setting in ({}, {"floor": "variance"}, {"floor": "variance", "noise": float("inf")}):
            loss, order = eliminate(readers, group.size, **setting)
            found = along(leaving(group, moments, order), order, **setting)
            np.testing.assert_allclose(found, loss, rtol=1e-6, atol=1e-9 * loss.max())
        back = along(leaving(group, moments, order[::-1].copy()), order[::-1].copy())
        seen += group.size > 2 and not np.allclose(back, loss)
    assert seen


def test_downdates_are_equal_however_long_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from mint_deploy.estimators import gaussian

    S, W = random_problem(15, 40, 9, 5)
    found = []
    for delay in (1, 50, 10_000):
        monkeypatch.setattr(gaussian, "DELAY", delay)
        found.append(eliminate([reader(S, W)], 40))
    for loss, order in found[1:]:
        assert order.tolist() == found[0][1].tolist()
        np.testing.assert_allclose(loss, found[0][0], rtol=1e-8)


# ---------------------------------------------------------------- covariance


def moments_of(S: np.ndarray, rows: int) -> ConsumerMoments:
    return ConsumerMoments(
        name="consumer",
        kind="linear",
        channels=len(S),
        taps=1,
        groups=1,
        bias=None,
        normalised=False,
        rows=rows,
        mean=np.zeros(len(S)),
        covariance=S,
        weight=np.ones((1, len(S))),
        sensitivity=np.ones((1, 1)),
    )


def test_many_rows_are_not_shrunk() -> None:
    S, _ = random_problem(1, 10, 1, 1)
    np.testing.assert_allclose(covariance(moments_of(S, rows=50)), S, rtol=1e-4)


def test_few_rows_are_shrunk_towards_the_truth() -> None:
    """Oracle-approximating shrinkage is nearer to the truth than the sample covariance."""
    from sklearn.covariance import oas

    random = np.random.default_rng(0)
    truth = np.diag(np.linspace(0.5, 2.0, 40))
    rows = random.multivariate_normal(np.zeros(40), truth, size=30)
    sample = rows.T @ rows / 30
    shrunk = covariance(moments_of(sample, rows=30))
    assert np.linalg.norm(shrunk - truth) < 0.7 * np.linalg.norm(sample - truth)
    np.testing.assert_allclose(np.diag(shrunk), np.diag(sample), rtol=1e-5)
    # on standardised rows it is scikit-learn's, up to the terms in 2/p that the authors' later note drops
    unit = np.sqrt(np.diag(sample))
    expected, _ = oas(rows / unit, assume_centered=True)
    np.testing.assert_allclose(shrunk / np.outer(unit, unit), expected, atol=0.03)
    assert np.linalg.cond(shrunk) < 100 < np.linalg.cond(sample)


def test_a_dead_channel_stays_dead_however_few_the_rows() -> None:
    S, W = random_problem(12, 8, 3, 4)
    S[9:12] = S[:, 9:12] = 0.0
    loss, order = eliminate([reader(covariance(moments_of(S, rows=10)), W)], 8)
    assert order[0] == 3
    assert loss[3] < 1e-3 * np.sort(loss)[1]


def test_no_variance_at_all_is_defined() -> None:
    K = inverse(covariance(moments_of(np.zeros((4, 4)), rows=10)))
    assert np.isfinite(K).all()
