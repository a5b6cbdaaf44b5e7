"""Spanning trees against scipy's: weights, edges, ties; and the batched torch form against numba's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial.distance import cdist

from mint_deploy.estimators import _mst_torch
from mint_deploy.estimators._conditions import Common
from mint_deploy.estimators._gaps import distances, nearest, partners
from mint_deploy.estimators._mst import LANES, crossings, padded, tree

NONE = np.zeros((0, 0), dtype=np.float32)


def points(seed: int, dims: int, n: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(dims, n)).astype(np.float32)


def matrix_of(features: np.ndarray) -> np.ndarray:
    n = features.shape[1]
    out = np.zeros((n, padded(n)), dtype=np.float32)
    nothing = features[:0]
    distances(out, NONE, nothing, nothing, features, features)
    return out


def scipys(features: np.ndarray) -> tuple[set[tuple[int, int]], float]:
    """scipy drops edges of length zero, so it is given the distances plus one."""
    found = minimum_spanning_tree(cdist(features.T, features.T, "sqeuclidean") + 1).tocoo()
    edges = {tuple(sorted(e)) for e in zip(found.row.tolist(), found.col.tolist(), strict=True)}
    return edges, float(found.data.sum()) - (features.shape[1] - 1)


def as_set(edges: np.ndarray) -> set[tuple[int, int]]:
    return {tuple(sorted(e)) for e in edges.tolist()}


@pytest.mark.parametrize("n", [2, 3, LANES - 1, LANES, LANES + 1, 300])
@pytest.mark.parametrize("shared", [0, 1, 7])
def test_edges_and_weight_are_scipys(n: int, shared: int) -> None:
    """With and without a matrix, from the smallest tree to several blocks of lanes."""
    own, common = points(n, 2, n), points(n + 1, shared, n)
    expected, weight = scipys(np.concatenate([own, common]))
    for edges, total in (
        tree(matrix_of(common), own) if shared else tree(None, own),
        tree(None, np.concatenate([common, own])),
    ):
        assert as_set(edges) == expected
        assert total == pytest.approx(weight, rel=1e-5)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(2, 150), st.integers(1, 4), st.booleans())
def test_duplicates_and_ties_keep_the_weight(seed: int, n: int, levels: int, matrix: bool) -> None:
    """On a coarse grid most distances tie and many are zero: the edges differ, the weight does not."""
    features = np.random.default_rng(seed).integers(0, levels, size=(2, n)).astype(np.float32)
    _, weight = scipys(features)
    edges, total = tree(matrix_of(features[:1]) if matrix else None, features)
    if matrix:
        _, weight = scipys(np.concatenate([features, features[:1]]))
    assert total == pytest.approx(weight, abs=1e-3)
    assert len(edges) == n - 1
    reached = {0}
    for parent, child in edges.tolist():  # a tree, in the order of visits
        assert parent in reached
        assert child not in reached
        reached.add(child)
    assert reached == set(range(n))


def test_the_first_feature_may_be_constant() -> None:
    features = np.concatenate([np.zeros((1, 90), dtype=np.float32), points(0, 2, 90)])
    assert as_set(tree(None, features)[0]) == scipys(features)[0]


def test_crossings_count_edges_between_labels() -> None:
    own, labels = points(3, 6, 200), np.random.default_rng(0).integers(0, 2, 200).astype(np.int8)
    starts, common = np.array([0, 1, 3, 6]), points(4, 2, 200)
    expected = []
    for a, b in itertools.pairwise(starts):
        edges, _ = scipys(np.concatenate([common, own[a:b]]))
        expected.append(sum(labels[i] != labels[j] for i, j in edges))
    assert crossings(None, common, own, starts, labels).tolist() == expected
    assert crossings(matrix_of(common), common[:0], own, starts, labels).tolist() == expected
    turned = np.asfortranarray(own)
    assert crossings(None, common, turned, starts, labels).tolist() == expected


def test_one_label_crosses_nothing_and_alternating_twins_always() -> None:
    own, starts = points(5, 1, 100), np.array([0, 1])
    assert crossings(None, own[:0], own, starts, np.zeros(100, np.int8)).tolist() == [0]
    line = np.arange(100, dtype=np.float32)[None]
    labels = (np.arange(100) % 2).astype(np.int8)
    assert crossings(None, line[:0], line, starts, labels).tolist() == [99]


def test_ties_favour_no_class() -> None:
    """All points equal: half of the edges cross on average, whatever the share of the classes."""
    starts, own = np.array([0, 1]), np.zeros((1, 400), dtype=np.float32)
    for share in (0.5, 0.3):
        found = []
        for seed in range(200):
            labels = (np.random.default_rng(seed).random(400) < share).astype(np.int8)
            found.append(crossings(None, own[:0], own, starts, labels)[0] / 399)
        expected = 2 * share * (1 - share)
        assert np.mean(found) == pytest.approx(expected, abs=0.04)


def test_distances_begin_at_a_base_add_and_take_away() -> None:
    base, minus, plus = points(6, 9, 70), points(7, 2, 70), points(8, 3, 70)
    out = np.full((70, padded(70)), 7.0, dtype=np.float32)
    distances(out, matrix_of(np.concatenate([base, minus])), minus, minus, plus, plus)
    expected = cdist(base.T, base.T, "sqeuclidean") + cdist(plus.T, plus.T, "sqeuclidean")
    np.testing.assert_allclose(out[:, :70], expected, atol=2e-5 * expected.max())
    assert out[:, :70].min() >= 0
    assert (out[:, 70:] == 7.0).all()


def test_what_rounding_leaves_of_equal_rows_is_nothing() -> None:
    """Else it would choose which of equally near rows is the nearest."""
    exact = np.random.default_rng(0).normal(size=(5, 70))
    base = np.zeros((70, padded(70)), dtype=np.float32)
    base[:, :70] = cdist(exact.T, exact.T, "sqeuclidean")
    minus, out = exact.astype(np.float32), np.empty_like(base)
    distances(out, base, minus, minus, minus[:0], minus[:0])
    assert (out[:, :70] == 0).all()


def test_nearest_is_the_least_and_ties_are_spread() -> None:
    gaps = np.random.default_rng(0).random((50, 30)).astype(np.float32)
    starts = np.random.default_rng(1).integers(0, 20, 50)
    assert nearest(gaps, 20, starts).tolist() == gaps[:, :20].argmin(1).tolist()
    same = np.zeros((50, 30), dtype=np.float32)
    assert nearest(same, 20, starts).tolist() == starts.tolist()
    same[:, :15] = 1.0
    assert set(nearest(same, 20, starts)) == set(range(15, 20))


@pytest.mark.parametrize("n", [10, 11])
def test_partners_pair_all_with_near_ones(n: int) -> None:
    line = np.sort(np.random.default_rng(2).integers(0, 100, n // 2)).repeat(2)
    line = np.append(line, 500)[:n].astype(np.float32)[None] + 0.01 * np.arange(n)
    gaps = matrix_of(line.astype(np.float32))
    found = partners(gaps, np.random.default_rng(3).permutation(n))
    assert found[found].tolist() == list(range(n))
    assert (found == np.arange(n)).sum() == n % 2


# ---------------------------------------------------------------- torch


def common_of(seed: int, n: int, based: bool) -> Common:
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(n) % 2).astype(np.int8)
    plus, minus = points(seed, 2, n), points(seed + 1, 2, n)
    if not based:
        return Common(None, plus[:0], plus, ROWS, labels)
    base = matrix_of(np.concatenate([minus, points(seed + 2, 3, n)]))
    return Common(base, minus, plus, ROWS, labels)


ROWS = np.random.default_rng(9).permutation(120)[:90]


def both(device: str, *, based: bool) -> tuple[np.ndarray, np.ndarray]:
    commons = [common_of(10 * g, 90, based) for g in range(5)]
    other = common_of(77, 90, based)
    commons.insert(2, other._replace(rows=ROWS[::-1].copy()))
    outputs, starts = points(1, 7, 120), np.array([0, 1, 3, 7])
    found = _mst_torch.crossings(commons, outputs, starts, device)
    expected = []
    for c in commons:
        matrix = np.zeros((90, padded(90)), dtype=np.float32)
        c.fill(matrix)
        expected.append(crossings(matrix, c.plus[:0], outputs.take(c.rows, 1), starts, c.labels))
    return found, np.stack(expected, axis=1)


@pytest.mark.parametrize("based", [True, False])
def test_torch_counts_as_numba(based: bool) -> None:
    found, expected = both("cpu", based=based)
    assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("limits", [(1, 1), (90 * 90 * 8, 4)])
def test_torch_in_tiles(limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mst_torch, "_BYTES", limits[0])
    monkeypatch.setattr(_mst_torch, "_TREES", limits[1])
    found, expected = both("cpu", based=True)
    assert found.tolist() == expected.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("based", [True, False])
def test_cuda_counts_as_numba(based: bool) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    found, expected = both("cuda", based=based)
    assert found.tolist() == expected.tolist()
