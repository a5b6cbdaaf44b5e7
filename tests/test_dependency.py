"""``md.dependency`` on plain arrays: what it takes and refuses, and the gaussian form against determinants."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mint_deploy as md
from mint_deploy import plugins
from mint_deploy.errors import DataError, MintDeployError, UnknownName

NORMAL = np.random.default_rng
ESTIMATORS = ("gmi", "acmi", "gaussian")


def layer(seed: int, rows: int = 400, inputs: int = 10, outputs: int = 4) -> tuple[Any, Any]:
    random = NORMAL(seed)
    P = random.normal(size=(rows, inputs)) @ random.normal(size=(inputs, inputs)) / 3
    W = random.normal(size=(inputs, outputs))
    return P @ W + random.normal(size=(rows, outputs)), P


# ---------------------------------------------------------------- every estimator


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("condition", ["all", "none", "top-k", "pca"])
def test_every_estimator_and_condition(estimator: str, condition: str) -> None:
    X, P = layer(0)
    given_ = {"estimator": estimator, "condition": condition, "seed": 3}
    found = md.dependency(X, P, out_groups=2, in_groups=5, **given_)
    assert found.shape == (2, 5)
    assert np.isfinite(found).all()
    assert (md.dependency(X, P, out_groups=2, in_groups=5, **given_) == found).all()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_every_estimator_finds_the_one_that_matters(estimator: str) -> None:
    P = NORMAL(0).normal(size=(900, 5))
    X = P[:, [3]] + 0.2 * NORMAL(1).normal(size=(900, 1))
    for condition in ("all", "none"):
        found = md.dependency(X, P, estimator=estimator, condition=condition)
        assert found.shape == (1, 5)
        if (estimator, condition) != ("acmi", "all"):  # every row a bucket of its own: all zero
            assert found.argmax() == 3


def test_gmi_is_the_default_and_each_channel_alone_where_groups_suffice() -> None:
    X, P = layer(1)
    found = md.dependency(X, P)
    assert found.shape == (4, 10)
    for groups in (None, 10, 11, 64, [[i] for i in range(10)]):
        assert (md.dependency(X, P, estimator="gmi", in_groups=groups) == found).all()


def test_groups_are_runs_of_neighbours_or_as_listed() -> None:
    X, P = layer(2)
    runs = [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]
    for estimator in ESTIMATORS:
        given_: dict[str, Any] = {"estimator": estimator, "condition": "none"}
        found = md.dependency(X, P, in_groups=3, **given_)
        assert (md.dependency(X, P, in_groups=runs, **given_) == found).all()
        turned = md.dependency(X, P, in_groups=runs[::-1], **given_)
        if estimator != "acmi":  # which draws at random, in the order of the groups
            np.testing.assert_allclose(turned[:, ::-1], found, rtol=1e-9)


def test_lists_float32_and_whole_numbers_are_taken() -> None:
    X, P = layer(3, rows=40)
    whole = np.round(P * 100).astype(np.int64)
    for inputs in (P.astype(np.float32), whole, P.tolist(), P > 0):
        assert np.isfinite(md.dependency(X.tolist(), inputs)).all()


def test_what_is_refused_and_what_is_said() -> None:
    X, P = layer(4, rows=50)
    holed = P.copy()
    holed[7, 2] = np.nan
    holed[9, 1] = np.inf
    cases: list[tuple[type[Exception], str, Any, Any, dict[str, Any]]] = [
        (UnknownName, "no estimator named 'gm'; did you mean 'gmi'", X, P, {"estimator": "gm"}),
        (UnknownName, "no condition named 'some'", X, P, {"condition": "some"}),
        (
            UnknownName,
            "setting of estimator 'gmi' named 'nul'; did you mean 'null'",
            X,
            P,
            {"nul": 1},
        ),
        (DataError, "outputs have 50 rows and inputs 49", X, P[1:], {}),
        (
            DataError,
            r"outputs have the shape \[50\]; expected \[samples, channels\]",
            X[:, 0],
            P,
            {},
        ),
        (DataError, r"inputs have the shape \[50, 10, 1\]", X, P[..., None], {}),
        (DataError, r"inputs have the shape \[50, 0\]", X, P[:, :0], {}),
        (
            DataError,
            r"2 values that are not finite, the first \(nan\) in row 7, channel 2",
            X,
            holed,
            {},
        ),
        (DataError, "inputs are of type <U1", X, np.full((50, 2), "x"), {}),
        (DataError, "11 rows are too few", X[:11], P[:11], {}),
        (MintDeployError, "in_groups=0 makes no sense", X, P, {"in_groups": 0}),
        (MintDeployError, "out_groups has a group", X, P, {"out_groups": [[0, 4]]}),
        (MintDeployError, "k=0 makes no sense", X, P, {"condition": "top-k", "k": 0}),
        (MintDeployError, "ridge=0", X, P, {"estimator": "gaussian", "ridge": 0.0}),
    ]
    for kind, said, outputs, inputs, given_ in cases:
        with pytest.raises(kind, match=said):
            md.dependency(outputs, inputs, **given_)


def test_an_estimator_for_graphs_alone_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(plugins.load("estimator", "acmi"), "dependency")
    X, P = layer(5, rows=50)
    with pytest.raises(
        UnknownName, match=r"no estimator on plain arrays named 'acmi'.*gaussian, gmi"
    ):
        md.dependency(X, P, estimator="acmi")


# ---------------------------------------------------------------- gaussian


def determinants(
    X: np.ndarray, P: np.ndarray, out: list[int], own: list[int], Z: list[int], ridge: float
) -> float:
    """I(X_c; P_g | Z) from four determinants of the joint covariance."""
    both = np.concatenate([X, P], axis=1)
    both = (both - both.mean(0)) / both.std(0)
    S = both.T @ both / len(both) + ridge * np.eye(both.shape[1])
    own, Z = ([X.shape[1] + i for i in group] for group in (own, Z))

    def log(channels: list[int]) -> float:
        return float(np.linalg.slogdet(S[np.ix_(channels, channels)])[1])

    return 0.5 * (log(out + Z) + log(own + Z) - log(out + own + Z) - log(Z))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.sampled_from([1e-6, 1e-2]))
def test_gaussian_is_the_ratio_of_determinants(seed: int, ridge: float) -> None:
    X, P = layer(seed, rows=60)
    out, into = [[0, 1], [2], [3]], [[0, 4], [1, 2, 3], [5], [6, 7, 8, 9]]
    near = np.abs(np.corrcoef(P.T))
    for condition in ("all", "none", "top-k"):
        found = md.dependency(
            X,
            P,
            estimator="gaussian",
            out_groups=out,
            in_groups=into,
            condition=condition,
            k=2,
            ridge=ridge,
        )
        for c, channels in enumerate(out):
            for g, own in enumerate(into):
                others = [i for i in range(10) if i not in own]
                close = sorted(others, key=lambda i: -near[own][:, i].max())[:2]
                Z = {"all": others, "none": [], "top-k": close}[condition]
                expected = determinants(X, P, channels, own, Z, ridge)
                assert found[c, g] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_gaussian_of_two_correlated_variables_is_known() -> None:
    x, e = NORMAL(0).normal(size=(2, 400_000, 1))
    found = md.dependency(0.8 * x + 0.6 * e, x, estimator="gaussian")[0, 0]
    assert found == pytest.approx(-0.5 * np.log(1 - 0.64), abs=0.01)


def test_gaussian_given_the_cause_is_nothing_and_given_a_noise_more() -> None:
    random = NORMAL(1)
    cause, noise = random.normal(size=(2, 100_000))
    x, p = (cause + 0.3 * random.normal(size=100_000) for _ in range(2))
    known = np.column_stack([p, cause])
    assert md.dependency(x[:, None], p[:, None], estimator="gaussian")[0, 0] > 0.8
    assert md.dependency(x[:, None], known, estimator="gaussian")[0, 0] < 1e-3
    mixed = np.column_stack([cause + noise, noise])  # the second explains the first's noise away
    found = {
        c: md.dependency(cause[:, None], mixed, estimator="gaussian", condition=c)
        for c in ("none", "all", "pca")
    }
    assert found["none"][0, 1] < 1e-3
    assert found["all"][0, 1] > 2


def test_gaussian_pca_conditions_on_directions_of_the_others() -> None:
    X, P = layer(6)
    found = md.dependency(X, P, estimator="gaussian", condition="pca", k=10)
    every = md.dependency(X, P, estimator="gaussian", condition="all")
    few = md.dependency(X, P, estimator="gaussian", condition="pca", k=1)
    free = md.dependency(X, P, estimator="gaussian", condition="none")
    # all directions less the own share are all that the others can say
    assert np.abs(found - every).mean() < np.abs(few - every).mean()
    assert np.abs(few - free).mean() > 1e-3


def test_gaussian_where_nothing_is_regular() -> None:
    """Constant and equal channels, outputs that are functions of inputs, fewer rows than channels."""
    random = NORMAL(2)
    P = random.normal(size=(300, 6))
    P[:, 1], P[:, 2] = 4.0, P[:, 0]
    X = np.column_stack([P[:, 3] + P[:, 4], np.ones(300)])
    for condition in ("all", "none", "top-k", "pca"):
        found = md.dependency(X, P, estimator="gaussian", condition=condition)
        assert np.isfinite(found).all()
        assert found.min() >= 0
        assert found[1].max() < 1e-6
        assert found[:, 1].max() < 1e-6
    given_all = md.dependency(X, P, estimator="gaussian")
    assert given_all[0, 3] > 4  # a function of it: as much as the ridge lets through
    assert given_all[0, 0] < 0.01
    wide = random.normal(size=(15, 40))
    assert np.isfinite(md.dependency(wide[:, :3], wide, estimator="gaussian")).all()


def test_gaussian_says_how_far_it_is() -> None:
    X, P = layer(7)
    seen: list[tuple[int, int]] = []
    md.dependency(
        X, P, estimator="gaussian", in_groups=5, progress=lambda done, of: seen.append((done, of))
    )
    assert seen == [(i + 1, 5) for i in range(5)]
