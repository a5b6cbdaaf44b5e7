"""Counting in buckets against counting in dictionaries, and against scikit-learn."""

from __future__ import annotations

import math
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_deploy.estimators._hash import MEASURES, Labels, cells, information, rename


def labels(values: np.ndarray) -> Labels:
    """Name the values of every row of a matrix of whole numbers."""
    return rename(np.ascontiguousarray(values, dtype=np.int64).view(np.uint64))


def none(rows: int) -> Labels:
    return labels(np.zeros((1, rows)))


def by_hand(x: np.ndarray, y: np.ndarray, z: np.ndarray, measure: str) -> float:
    """Sum over the occupied cells, as the formula stands."""
    rows = list(zip(x.tolist(), y.tolist(), z.tolist(), strict=True))
    both, of_z = Counter(rows), Counter(k for _, _, k in rows)
    of_x, of_y = Counter((i, k) for i, _, k in rows), Counter((j, k) for _, j, k in rows)
    total = 0.0
    for (i, j, k), count in both.items():
        t = count * of_z[k] / (of_x[i, k] * of_y[j, k])
        total += count * (math.log(t) if measure == "shannon" else (t - 1) / (t + 1))
    return total / len(rows)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(2, 200),
    st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 300)),
    st.sampled_from(MEASURES),
)
def test_equals_counting_in_dictionaries(
    seed: int, rows: int, levels: tuple[int, int, int], measure: str
) -> None:
    """Few levels are counted in a dense table, many in a hash table."""
    random = np.random.default_rng(seed)
    x, y, z = (random.integers(0, n, (3, rows)) for n in levels)
    y[1] = x[1]  # one pair depends
    which = random.integers(0, 3, (3, 3))
    found = information(labels(x), labels(y), labels(z), which, measure=measure)
    for c in range(3):
        for g in range(3):
            expected = by_hand(x[c], y[g], z[which[c, g]], measure)
            assert found[c, g] == pytest.approx(expected, abs=1e-12)
            assert found[c, g] >= 0


@pytest.mark.parametrize("measure", MEASURES)
def test_the_dense_table_and_the_hash_table_agree(measure: str) -> None:
    """Rows that stand once, in a bucket of their own, add nothing but make the table large."""
    random = np.random.default_rng(1)
    x, y, z = (random.integers(0, n, (1, 400)) for n in (4, 5, 3))
    which = np.zeros((1, 1), dtype=np.int64)
    dense = information(labels(x), labels(y), labels(z), which, measure=measure)
    lonely = np.arange(1000, 1400)[None]
    wide = [np.concatenate([side, lonely], axis=1) for side in (x, y, z)]
    sparse = information(*(labels(side) for side in wide), which, measure=measure)
    assert sparse[0, 0] == pytest.approx(dense[0, 0] / 2, rel=1e-12)


def test_without_a_condition_it_is_mutual_information() -> None:
    from sklearn.metrics import mutual_info_score

    random = np.random.default_rng(2)
    x, y = random.integers(0, 6, (4, 500)), random.integers(0, 8, (5, 500))
    y[0] = (x[0] + random.integers(0, 2, 500)) % 8
    which = np.zeros((4, 5), dtype=np.int64)
    found = information(labels(x), labels(y), none(500), which)
    expected = [[mutual_info_score(i, j) for j in y] for i in x]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_what_is_known_of_oneself_is_the_entropy() -> None:
    x = np.repeat(np.arange(4), [10, 20, 30, 40])[None]
    share = np.array([0.1, 0.2, 0.3, 0.4])
    which = np.zeros((1, 1), dtype=np.int64)
    found = information(labels(x), labels(x), none(100), which)
    assert found[0, 0] == pytest.approx(-(share * np.log(share)).sum(), rel=1e-12)
    given_itself = information(labels(x), labels(x), labels(x), which)
    assert given_itself[0, 0] == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_exact_independence_and_constants_are_zero(measure: str) -> None:
    x, y = (side.reshape(1, -1) for side in np.meshgrid(np.arange(5), np.arange(7)))
    which = np.zeros((1, 1), dtype=np.int64)
    found = information(labels(x), labels(y), none(35), which, measure=measure)
    assert found[0, 0] == pytest.approx(0, abs=1e-14)
    still = labels(np.ones((1, 35)))
    assert information(still, labels(y), none(35), which, measure=measure)[0, 0] == 0
    assert information(labels(x), still, none(35), which, measure=measure)[0, 0] == 0


@pytest.mark.parametrize("measure", MEASURES)
def test_a_condition_that_names_the_row_leaves_nothing(measure: str) -> None:
    x = np.random.default_rng(0).integers(0, 4, (1, 50))
    rows = labels(np.arange(50)[None])
    which = np.zeros((1, 1), dtype=np.int64)
    assert information(labels(x), labels(x), rows, which, measure=measure)[0, 0] == 0


def test_the_geometric_measure_is_that_of_the_spanning_tree() -> None:
    """``1 - 2 E[g / (f + g)]`` of the joint density f and the independent one g; at most 1 - 1/n."""
    joint = np.array([[0.4, 0.1], [0.1, 0.4]])
    apart = np.outer(joint.sum(1), joint.sum(0))
    expected = 1 - 2 * (joint * apart / (joint + apart)).sum()
    pairs = np.repeat(np.array([[0, 0], [0, 1], [1, 0], [1, 1]]), [40, 10, 10, 40], axis=0).T
    which = np.zeros((1, 1), dtype=np.int64)
    found = information(labels(pairs[:1]), labels(pairs[1:]), none(100), which, measure="geometric")
    assert found[0, 0] == pytest.approx(expected, rel=1e-12)
    divergence = ((joint - apart) ** 2 / (2 * (joint + apart))).sum()  # E_q g(t)
    assert found[0, 0] == pytest.approx(divergence, rel=1e-12)


def test_renaming_is_one_to_one_and_counts_from_zero() -> None:
    random = np.random.default_rng(3)
    keys = random.integers(0, 2**64, (3, 1000), dtype=np.uint64)
    keys[1] = random.integers(0, 7, 1000)
    keys[2] = 2**63  # an awkward constant
    ids, found = rename(keys)
    assert found.tolist() == [1000, 7, 1]
    for own, key, count in zip(ids, keys, found, strict=True):
        assert sorted(set(own.tolist())) == list(range(count))
        assert len(set(zip(own.tolist(), key.tolist(), strict=True))) == count


def test_keys_that_share_their_low_bits_are_told_apart() -> None:
    keys = (np.arange(500, dtype=np.uint64) << np.uint64(40))[None]
    assert rename(keys)[1].tolist() == [500]


def test_a_cell_is_as_wide_as_epsilon_and_begins_at_its_offset() -> None:
    values = np.linspace(-1, 1, 2001)[None]
    salts = np.array([7], dtype=np.uint64)
    words = cells(values, 0.5, 0.2, salts)[0]
    edges = values[0, 1:][words[1:] != words[:-1]]
    np.testing.assert_allclose(edges, [-0.7, -0.2, 0.3, 0.8], atol=1e-3)
    assert len(set(words.tolist())) == 5


def test_the_key_of_a_vector_tells_its_coordinates_apart() -> None:
    """The sum of words is that of the set of coordinates, not of the sum of levels, nor of any order."""
    levels = np.array([[0, 1, 0, 2, 1, 5], [1, 0, 0, 0, 1, 0]], dtype=np.float64)
    salts = np.random.default_rng(0).integers(0, 2**64, 2, dtype=np.uint64)
    words = cells(levels, 1.0, 0.0, salts)
    assert len(set(words.sum(0, dtype=np.uint64).tolist())) == 6
    np.testing.assert_array_equal(words.sum(0, dtype=np.uint64) - words[1], words[0])


def test_keys_of_many_dimensions_do_not_collide() -> None:
    random = np.random.default_rng(4)
    levels = random.integers(0, 2, (40, 20_000)).astype(np.float64)
    salts = random.integers(0, 2**64, 40, dtype=np.uint64)
    keys = cells(levels, 1.0, 0.0, salts).sum(0, dtype=np.uint64)
    assert len(np.unique(keys)) == len(np.unique(levels, axis=1).T)


@pytest.mark.parametrize(("levels", "conditions"), [(6, 8), (40, 400)])
def test_time_is_linear_in_the_rows(levels: int, conditions: int) -> None:
    """Eight times the rows: about eight times the seconds of the processor (of a square, 64 times)."""

    def seconds(rows: int) -> float:
        random = np.random.default_rng(0)
        x, y = (labels(random.integers(0, levels, (8, rows))) for _ in range(2))
        z = labels(random.integers(0, conditions, (1, rows)))
        which = np.zeros((8, 8), dtype=np.int64)
        taken = []
        for _ in range(3):
            start = time.process_time()
            information(x, y, z, which)
            taken.append(time.process_time() - start)
        return min(taken)

    seconds(100)  # compiles
    assert seconds(32_000) < 24 * seconds(4_000)


def test_progress_is_told_for_every_tile() -> None:
    x = labels(np.random.default_rng(0).integers(0, 3, (40, 30)))
    told: list[int] = []
    information(x, x, none(30), np.zeros((40, 40), dtype=np.int64), done=told.append)
    assert told == [16, 32, 40]
