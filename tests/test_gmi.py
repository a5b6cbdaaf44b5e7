"""The gmi estimator: against Monte Carlo from known densities, a literal form of itself, and known structures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

import mint_deploy as md
from mint_deploy.errors import DataError, MintDeployError, UnknownName
from mint_deploy.estimators import _conditions, gmi
from mint_deploy.estimators._conditions import LEAST_ROWS, Pairs
from mint_deploy.estimators._coordinates import CONDITIONS, condition_of, features, listed
from mint_deploy.estimators.gmi import dependency

NORMAL = np.random.default_rng


def one(x: np.ndarray, p: np.ndarray, **settings: Any) -> float:
    """The dependence of one output on the first input, the others being the condition."""
    p = p.reshape(len(p), -1)
    rest = list(range(1, p.shape[1]))
    groups = [[0], rest] if rest else [[0]]
    return float(dependency(x.reshape(len(x), -1), p, in_groups=groups, **settings)[0, 0])


def pair(seed: int, rho: float, rows: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    x, e = NORMAL(seed).normal(size=(2, rows))
    return x, rho * x + np.sqrt(1 - rho**2) * e


def chain(seed: int, rows: int, dims: int = 1, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """X - Z - P: given Z, X says nothing of P."""
    random = NORMAL(seed)
    Z = random.normal(size=(rows, dims))
    cause = Z.sum(1) / np.sqrt(dims)
    x, p = (cause + noise * random.normal(size=rows) for _ in range(2))
    return x, np.column_stack([p, Z])


# ---------------------------------------------------------------- what it estimates


def closed_form(rho: float) -> float:
    """1 - 2 E_f[g / (f + g)] by Monte Carlo, f a normal density of correlation rho, g without."""
    x, y = pair(99, rho, 400_000)
    log_ratio = -0.5 * np.log(1 - rho**2) - ((rho * x) ** 2 - 2 * rho * x * y + (rho * y) ** 2) / (
        2 * (1 - rho**2)
    )
    return float(1 - 2 * np.mean(1 / (1 + np.exp(log_ratio))))


@pytest.mark.parametrize("rho", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("condition", ["all", "none"])
def test_equals_monte_carlo_from_known_densities(rho: float, condition: str) -> None:
    found = [one(*pair(seed, rho), condition=condition, seed=seed) for seed in range(8)]
    assert np.mean(found) == pytest.approx(closed_form(rho), abs=0.02)
    if rho == 0.8:
        assert closed_form(rho) == pytest.approx(0.226, abs=0.003)


def test_monotone_in_the_correlation() -> None:
    found = [
        np.mean([one(*pair(seed, rho, 1500), seed=seed) for seed in range(4)])
        for rho in (0.0, 0.4, 0.6, 0.8, 0.9, 0.97, 1.0)
    ]
    assert found == sorted(found)
    assert found[0] < 0.03
    assert found[-1] > 0.9


def test_sees_what_is_not_linear() -> None:
    x = NORMAL(0).normal(size=2000)
    assert one(x**2, x) > 0.7
    assert one(np.abs(x) > 0.7, x) > 0.25


def test_scale_and_shift_change_nothing() -> None:
    x, p = chain(0, 900, 3)
    found = one(x, p)
    assert one(x * 4, p) == found
    scaled = one(x * 1e-3 - 7, p * np.array([1e4, 1e-3, 3.0, 0.5]) + np.array([1, -5, 100, 0]))
    assert scaled == pytest.approx(found, abs=1.01 / 300)  # an edge may turn in float32


def test_seeds_and_row_order_change_it_only_in_distribution() -> None:
    """The spread at 2,000 rows: a standard deviation of 0.02 (m = 666)."""
    x, y = pair(0, 0.8, 2000)
    found = np.array([one(x, y, seed=seed) for seed in range(20)])
    assert one(x, y, seed=3) == found[3]
    assert 0.005 < found.std() < 0.035
    shuffled = []
    for seed in range(20):
        order = NORMAL(seed).permutation(len(x))
        shuffled.append(one(x[order], y[order]))
    assert abs(np.mean(shuffled) - found.mean()) < 0.02
    assert np.std(shuffled) < 0.035


def test_unpaired_rows_score_nothing() -> None:
    """The published code draws outputs and inputs independently: then there is nothing to measure."""
    x, y = pair(1, 0.95)
    settings: dict[str, Any]
    for settings in ({"condition": "none"}, {"condition": "all"}):
        right = [one(x, y, seed=s, **settings) for s in range(5)]
        wrong = [one(x, y, seed=s, paired=False, **settings) for s in range(5)]
        assert np.mean(right) > 0.4
        assert abs(np.mean(wrong)) < 0.02


def test_values_are_not_clipped() -> None:
    x, p = NORMAL(0).normal(size=(2, 400, 30))
    found = dependency(x, p, condition="none")
    assert found.min() < -0.05
    assert abs(found.mean()) < 0.01


# ---------------------------------------------------------------- the condition


def test_the_bias_of_conditional_independence_falls_with_the_rows() -> None:
    """The nearest row is not at the same place; the null beside the value shows how much that makes."""
    bias, null = [], []
    for rows in (200, 800, 3200):
        both = [[one(*chain(s, rows), seed=s, null=n) for s in range(12)] for n in (False, True)]
        bias.append(np.mean(both[0]))
        null.append(np.mean(both[1]))
    assert bias[0] > bias[1] > bias[2]
    assert 0.03 < bias[2] < 0.08
    np.testing.assert_allclose(null[1:], bias[1:], atol=0.05)
    assert null[0] > 0.03


def test_wide_groups_are_biased_and_the_null_says_so() -> None:
    """Twenty channels each that follow from twenty others: the nearest row is far off."""
    found, null = [], []
    for seed in range(3):
        random = NORMAL(seed)
        Z = random.normal(size=(2000, 20))
        x, p = (Z @ random.normal(size=(20, 20)) / 4.5 for _ in range(2))
        x, p = (v + 0.5 * random.normal(size=v.shape) for v in (x, p))
        both = np.column_stack([p, Z])
        for values, settings in ((found, {}), (null, {"null": True})):
            values.append(
                dependency(x, both, out_groups=1, in_groups=2, seed=seed, **settings)[0, 0]
            )
    assert 0.15 < np.mean(found) < 0.25
    assert np.mean(null) == pytest.approx(np.mean(found), abs=0.06)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_null_of_true_dependence_is_small(condition: str) -> None:
    x, y = pair(0, 0.95)
    p = np.column_stack([y, NORMAL(5).normal(size=(len(y), 2))])
    assert one(x, p, condition=condition) > 0.2
    assert abs(one(x, p, condition=condition, null=True)) < 0.12


@pytest.mark.parametrize("condition", ["all", "top-k"])
def test_given_its_cause_an_effect_says_little(condition: str) -> None:
    x, p = chain(0, 2000, noise=0.3)
    free, given = (one(x, p, condition=c) for c in ("none", condition))
    assert free > 0.25
    assert given < free / 2


def test_many_conditions_drown_what_few_show() -> None:
    """X = Y + noise beside 62 inputs that have nothing to do with it: why the literal form fails."""
    p = NORMAL(0).normal(size=(2000, 63))
    x = p[:, 0] + 0.1 * NORMAL(1).normal(size=2000)
    found = {c: dependency(x[:, None], p, in_groups=None, condition=c) for c in CONDITIONS}
    assert found["all"][0, 0] < 0.12
    for condition in ("none", "top-k", "pca"):
        assert found[condition][0, 0] > 0.35
        assert found[condition].argmax() == 0
        assert found[condition][0, 1:].max() < 0.2


def literal(
    x: np.ndarray, p: np.ndarray, into: Any, out: Any, condition: str, k: int
) -> np.ndarray:
    """The estimator spelt out: rows replaced one by one, whole vectors, scipy's trees."""
    X, P = features("outputs", x), features("inputs", p)
    groups = listed(into, len(P), "in")
    side = condition_of(P, groups, condition, k)
    pairs = Pairs.of(P, groups, side, 0)
    m = len(pairs.B)
    found = []
    for g, own in enumerate(groups):
        others = np.setdiff1d(np.arange(len(P)), own)
        Z = P[others] if side.without else side.values[side.groups[g % len(side.groups)]]
        true = pairs.vertices[pairs.labels == 0]
        broken = pairs.vertices[pairs.labels == 1]
        given = pairs.B[cdist(Z[:, broken].T, Z[:, pairs.B].T).argmin(1)]
        column = []
        for c in listed(out, len(X), "out"):
            rows = np.concatenate(
                [
                    np.concatenate([X[c][:, true], P[own][:, true], Z[:, true]]).T,
                    np.concatenate([X[c][:, broken], P[own][:, given], Z[:, broken]]).T,
                ]
            )
            tree = minimum_spanning_tree(cdist(rows, rows)).tocoo()
            assert tree.nnz == 2 * m - 1
            column.append(1 - ((tree.row < m) != (tree.col < m)).sum() / m)
        found.append(column)
    return np.array(found).T


@pytest.mark.parametrize(
    ("condition", "k"), [("all", 1), ("top-k", 1), ("top-k", 4), ("pca", 2), ("pca", 12)]
)
@pytest.mark.parametrize("into", [None, 4, [[0, 5], [2], [1, 3, 4, 6, 7, 8]]])
@pytest.mark.parametrize("few", [0, 1000], ids=["taken away", "spelt out"])
def test_the_fast_form_is_the_literal_one(
    condition: str, k: int, into: Any, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Distances that are added and taken away, matrices or not: the same trees."""
    monkeypatch.setattr(_conditions, "FEW", few)
    random = NORMAL(2)
    p = random.normal(size=(200, 14)) @ random.normal(size=(14, 14))
    x = p @ random.normal(size=(14, 6)) + random.normal(size=(200, 6))
    found = dependency(x, p, in_groups=into, out_groups=3, condition=condition, k=k)
    expected = literal(x, p, into, 3, condition, k)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, atol=1.01 / 66)  # an edge may turn in float32
    assert (np.abs(found - expected) < 1e-12).mean() > 0.9


# ---------------------------------------------------------------- what is odd


def test_given_nothing_rows_are_replaced_at_random() -> None:
    """One group of all inputs has no others: what rounding leaves of their distance decides nothing."""
    x = NORMAL(0).normal(size=(900, 1))
    p = x + 0.5 * NORMAL(1).normal(size=(900, 40))
    found, free = (
        [dependency(x, p, in_groups=1, condition=c, seed=s)[0, 0] for s in range(8)]
        for c in ("all", "none")
    )
    assert np.mean(found) == pytest.approx(np.mean(free), abs=0.03)
    assert np.mean(free) > 0.1


def test_equal_rows_of_a_wide_condition_tie() -> None:
    """Taken away from all, a distance of nothing is rounding: it must not choose whose values are taken."""
    found = []
    for seed in range(8):
        x, y = pair(seed, 0.95, 1500)
        wide = np.column_stack([y, np.repeat(NORMAL(seed).integers(0, 2, (1500, 1)), 40, axis=1)])
        found.append(one(x, wide, seed=seed))
    assert np.mean(found) == pytest.approx(closed_form(0.95), abs=0.025)


def test_constant_channels_say_nothing_and_change_nothing() -> None:
    x, p = chain(3, 900, 3)
    wide = np.insert(p, 2, 5.0, axis=1)
    found = dependency(x[:, None], wide, condition="all")
    np.testing.assert_allclose(np.delete(found, 2, axis=1), dependency(x[:, None], p), atol=0.02)
    constant = [
        dependency(x[:, None], wide, condition=c, seed=s)[0, 2]
        for c in ("none", "top-k", "pca")
        for s in range(5)
    ]
    assert abs(np.mean(constant)) < 0.03
    flat = np.ones((60, 2))
    assert np.isfinite(dependency(flat, flat)).all()


def test_dead_relus_tie_by_the_hundred_and_favour_nothing() -> None:
    """Most rows at zero: the replaced values come from all of them, not from the first."""
    random = NORMAL(0)
    z, p, x = np.maximum(random.normal(size=(3, 3000)) - 1.2, 0)
    found = [one(x, np.column_stack([p, z]), seed=s) for s in range(6)]
    assert abs(np.mean(found)) < 0.04
    found = [one(p + 0.05 * x, np.column_stack([p, z]), seed=s) for s in range(6)]
    assert np.mean(found) > 0.1


def test_few_rows_are_refused_and_the_least_are_enough() -> None:
    rows = NORMAL(0).normal(size=(LEAST_ROWS, 3))
    assert dependency(rows, rows).shape == (3, 3)
    with pytest.raises(DataError, match="11 rows are too few"):
        dependency(rows[1:], rows[1:])


def test_more_channels_than_rows() -> None:
    p = NORMAL(0).normal(size=(40, 100))
    for condition in CONDITIONS:
        assert np.isfinite(dependency(p[:, :2], p, in_groups=5, condition=condition)).all()


def test_errors_say_what_was_given() -> None:
    rows = NORMAL(0).normal(size=(30, 3))
    with pytest.raises(UnknownName, match="no condition named 'al'; did you mean 'all'"):
        dependency(rows, rows, condition="al")
    with pytest.raises(MintDeployError, match="k=0 makes no sense"):
        dependency(rows, rows, condition="pca", k=0)
    with pytest.raises(DataError, match="30 rows and inputs 29"):
        dependency(rows, rows[1:])
    rows[4, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        dependency(rows, rows)


def test_the_batched_form_gives_the_same_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """``device`` names torch's: here its CPU, through the code that a GPU runs."""
    random = NORMAL(0)
    p = random.normal(size=(120, 6))
    x = p[:, :4] + random.normal(size=(120, 4))
    for condition in CONDITIONS:
        for null in (False, True):
            found = dependency(x, p, condition=condition, null=null, device="cpu:0")
            expected = dependency(x, p, condition=condition, null=null)
            np.testing.assert_allclose(found, expected, atol=1.01 / 40)


@pytest.mark.gpu
def test_cuda_gives_the_same_matrix() -> None:
    p = NORMAL(0).normal(size=(300, 16))
    found = dependency(p[:, :8], p, device="cuda")
    np.testing.assert_allclose(found, dependency(p[:, :8], p), atol=1.01 / 100)


# ---------------------------------------------------------------- long runs


def test_progress_reaches_the_number_of_trees() -> None:
    seen: list[tuple[int, int]] = []
    rows = NORMAL(0).normal(size=(30, 5))
    dependency(rows, rows, out_groups=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2 * i, 10) for i in range(1, 6)]


CHILD = """
import os, signal, sys
import numpy as np
from mint_deploy.estimators import _conditions, gmi
gmi._TILE = 12
rows = np.random.default_rng(0).normal(size=(30, 6))
def step(done, total):
    print(done, flush=True)
    if done == 24:
        os.kill(os.getpid(), signal.SIGKILL)
gmi.dependency(rows, rows, progress=step, checkpoint=sys.argv[1])
"""


def test_a_killed_run_goes_on_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.npz"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=False
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert child.stdout.split() == ["6", "12", "18", "24"]
    monkeypatch.setattr(gmi, "_TILE", 12)
    rows = NORMAL(0).normal(size=(30, 6))
    seen: list[int] = []
    found = dependency(rows, rows, progress=lambda done, _: seen.append(done), checkpoint=path)
    assert seen == [18, 24, 30, 36]  # the first tile was kept
    assert (found == dependency(rows, rows)).all()
    seen.clear()
    again = dependency(rows, rows, progress=lambda done, _: seen.append(done), checkpoint=path)
    assert (again == found).all()
    assert seen == []
    assert [p.name for p in tmp_path.iterdir()] == ["kept.npz"]


def test_a_checkpoint_of_another_call_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.npz"
    rows = NORMAL(0).normal(size=(30, 4))
    dependency(rows, rows, checkpoint=path)
    others: list[dict[str, Any]] = [
        {"condition": "none"},
        {"seed": 1},
        {"null": True},
        {"in_groups": 2},
        {"paired": False},
    ]
    for other in others:
        with pytest.raises(DataError, match="written for other data, groups or settings"):
            dependency(rows, rows, checkpoint=path, **other)
    with pytest.raises(DataError, match="written for other data"):
        dependency(rows + rows**2, rows, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        dependency(rows, rows, checkpoint=path)


MEMORY = """
import resource
import numpy as np
from mint_deploy.estimators.gmi import dependency
rows = np.random.default_rng(0).normal(size=(48, 512))
dependency(rows[:, :4], rows[:, :4])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = dependency(rows, rows)
print(found.shape[0] * found.shape[1], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_memory_does_not_grow_with_the_pairs() -> None:
    """512 x 512 trees of 32 vertices: their matrices would take a gigabyte."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True, env=os.environ
    )
    trees, added_kib = map(int, done.stdout.split())
    assert trees * 32 * 32 * 4 > 1e9
    assert added_kib < 150 * 1024


def test_the_package_shows_it() -> None:
    rows = NORMAL(0).normal(size=(60, 6))
    expected = dependency(rows, rows, out_groups=3)
    assert (md.dependency(rows, rows, out_groups=3) == expected).all()
