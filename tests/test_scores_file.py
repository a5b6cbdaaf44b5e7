"""scores.npz: what was written comes back, old files load, and a bad file is named, whatever is wrong."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mint_deploy import criteria, files
from mint_deploy.artifacts import SCHEMA, GroupImportance, Importance
from mint_deploy.errors import DataError
from mint_deploy.scores_file import read_scores, write_scores


def group_of(units: int, seed: int, *, spread: bool = False, least: int = 0) -> GroupImportance:
    rng = np.random.default_rng(seed)
    loss = rng.exponential(size=units)
    return GroupImportance(
        loss=loss,
        order=rng.permutation(units),
        spread=0.1 * loss if spread else None,
        least=least,
    )


def scores_of(**changes: Any) -> Importance:
    rng = np.random.default_rng(5)
    return replace(
        Importance(
            groups={
                "layer1.conv": group_of(6, 1, spread=True, least=2),
                "layer2.conv": group_of(9, 2),
            },
            criterion="mint",
            estimator="gmi",
            seed=7,
            comparable=True,
            settings={"images": 500, "condition": "top-k", "noise": 0.01},
            dependency={
                "layer2.conv.weight": rng.random((4, 3)),
                "head.weight": rng.random((2, 9)),
            },
        ),
        **changes,
    )


def same(a: Importance, b: Importance) -> None:
    assert list(a.groups) == list(b.groups)
    for name, group in a.groups.items():
        again = b.groups[name]
        np.testing.assert_array_equal(again.loss, group.loss)
        np.testing.assert_array_equal(again.order, group.order)
        assert again.least == group.least
        assert (again.spread is None) == (group.spread is None)
        if group.spread is not None:
            np.testing.assert_array_equal(again.spread, group.spread)
    for field in ("criterion", "estimator", "seed", "comparable"):
        assert getattr(a, field) == getattr(b, field)
    assert dict(a.settings) == dict(b.settings)
    assert list(a.dependency) == list(b.dependency)
    for name, matrix in a.dependency.items():
        np.testing.assert_array_equal(b.dependency[name], np.float32(matrix))


# ---------------------------------------------------------------- what comes back


def test_everything_comes_back(tmp_path: Path) -> None:
    scores = scores_of()
    write_scores(tmp_path / "scores.npz", scores)
    again = read_scores(tmp_path / "scores.npz")
    same(scores, again)
    assert again.dependency["head.weight"].dtype == np.float32
    assert again.groups["layer1.conv"].loss.dtype == np.float64
    assert again.groups["layer1.conv"].order.dtype == np.int64


NAMES = st.text(min_size=1, max_size=12)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    groups=st.dictionaries(
        NAMES, st.tuples(st.integers(1, 20), st.booleans(), st.integers(0, 3)), max_size=5
    ),
    consumers=st.dictionaries(NAMES, st.tuples(st.integers(1, 5), st.integers(0, 5)), max_size=3),
    settings_=st.dictionaries(NAMES, st.one_of(st.integers(), st.booleans(), NAMES), max_size=3),
    comparable=st.booleans(),
)
def test_any_scores_come_back(
    tmp_path: Path, groups: Any, consumers: Any, settings_: Any, comparable: bool
) -> None:
    """Whatever the names are: they stand in the header, never in the names of arrays."""
    rng = np.random.default_rng(0)
    scores = Importance(
        groups={
            name: group_of(units, i, spread=spread, least=least)
            for i, (name, (units, spread, least)) in enumerate(groups.items())
        },
        criterion="taylor",
        estimator=None,
        seed=3,
        comparable=comparable,
        settings=settings_,
        dependency={name: rng.normal(size=shape) for name, shape in consumers.items()},
    )
    write_scores(tmp_path / "s.npz", scores)
    same(scores, read_scores(tmp_path / "s.npz"))


def test_losses_that_are_no_numbers_come_back_as_they_are(tmp_path: Path) -> None:
    loss = np.array([np.nan, np.inf, -1.0, 0.0])
    group = GroupImportance(loss=loss, order=np.arange(4), spread=np.full(4, np.nan))
    write_scores(tmp_path / "s.npz", scores_of(groups={"a": group}))
    again = read_scores(tmp_path / "s.npz").groups["a"]
    np.testing.assert_array_equal(again.loss, loss)
    assert again.spread is not None
    assert np.isnan(again.spread).all()


def test_equal_scores_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        write_scores(tmp_path / name, scores_of())
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_matrix_takes_four_bytes_a_cell(tmp_path: Path) -> None:
    write_scores(tmp_path / "s.npz", scores_of(dependency={"a": np.ones((512, 512))}))
    assert (tmp_path / "s.npz").stat().st_size < 512 * 512 * 4 + 10_000


def test_the_criteria_still_lend_their_names() -> None:
    assert criteria.read_scores is read_scores
    assert criteria.write_scores is write_scores


# ---------------------------------------------------------------- files of before


def test_a_file_of_before_spread_least_and_dependency_loads(tmp_path: Path) -> None:
    scores = scores_of()
    arrays = {}
    for i, group in enumerate(scores.groups.values()):
        arrays[f"{i}.loss"], arrays[f"{i}.order"] = group.loss, group.order
    header = {
        "kind": "Importance",
        "groups": list(scores.groups),
        "criterion": scores.criterion,
        "estimator": scores.estimator,
        "seed": scores.seed,
        "comparable": scores.comparable,
        "settings": scores.settings,
    }
    files.write_arrays(tmp_path / "old.npz", header, arrays)
    plain = {name: replace(group, spread=None, least=0) for name, group in scores.groups.items()}
    same(replace(scores, groups=plain, dependency={}), read_scores(tmp_path / "old.npz"))


# ---------------------------------------------------------------- bad files


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_scores(tmp_path / "none.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "scores.npz"
    write_scores(path, scores_of())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match=r"scores\.npz is damaged"):
        read_scores(path)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_flipped_byte_is_noticed_or_harmless(tmp_path: Path, at: int, byte: int) -> None:
    path = tmp_path / "scores.npz"
    write_scores(path, scores_of())
    whole = bytearray(path.read_bytes())
    whole[at % len(whole)] = byte
    path.write_bytes(bytes(whole))
    try:
        same(scores_of(), read_scores(path))
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right, only others are not


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "damaged"), (b"PK\x03\x04", "damaged"), (b"{}", "damaged"), (b"\x80\x04.", "damaged")],
)
def test_other_kinds_of_content(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "s.npz").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_scores(tmp_path / "s.npz")


def test_other_files_of_ours_are_named(tmp_path: Path) -> None:
    files.write_arrays(tmp_path / "m.npz", {"kind": "Moments"}, {})
    with pytest.raises(DataError, match="is a 'Moments', expected 'Importance'"):
        read_scores(tmp_path / "m.npz")
    np.savez(tmp_path / "foreign.npz", a=np.ones(3))
    with pytest.raises(DataError, match="not written by mint-deploy"):
        read_scores(tmp_path / "foreign.npz")


def test_a_pickle_in_it_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    write_scores(path, scores_of())
    evil = np.empty(1, dtype=object)
    evil[0] = {"a": 1}
    np.save(tmp_path / "evil.npy", evil, allow_pickle=True)
    with zipfile.ZipFile(path, "a") as archive:
        archive.write(tmp_path / "evil.npy", "evil.npy")
    with pytest.raises(DataError, match="damaged"):
        read_scores(path)


HEAD = {
    "kind": "Importance", "groups": ["a"], "criterion": "mint", "estimator": None, "seed": 0,
    "comparable": False, "settings": {},
}  # fmt: skip
ARRAYS = {"0.loss": np.ones(3), "0.order": np.arange(3)}


@pytest.mark.parametrize(
    ("header", "arrays", "said"),
    [
        ({"groups": ["a", "b"]}, {}, r"KeyError: '1\.loss'"),
        ({"criterion": None, "groups": None}, {}, "TypeError"),
        ({"settings": 3}, {}, "TypeError"),
        ({"least": [1, 2], "groups": ["a"]}, {"0.order": np.array([0, 1, 1])}, "each of its units"),
        ({}, {"0.order": np.arange(2)}, r"losses \(3,\) and an order \(2,\)"),
        ({}, {"0.order": np.array([1, 2, 3])}, "group 'a'"),
        ({}, {"0.loss": np.ones((3, 1))}, "group 'a'"),
        ({}, {"0.spread": np.ones(2)}, r"spreads \(2,\)"),
        ({"dependency": ["w"]}, {}, r"dependency\.0"),
        ({"dependency": ["w"]}, {"dependency.0": np.ones(4)}, "two dimensions"),
        ({"groups": ["a"], "least": ["many"]}, {}, "ValueError"),
    ],
)
def test_what_does_not_fit_is_named_and_says_what_to_do(
    tmp_path: Path, header: dict[str, Any], arrays: dict[str, Any], said: str
) -> None:
    path = tmp_path / "s.npz"
    files.write_arrays(path, {**HEAD, **header}, {**ARRAYS, **arrays})
    with pytest.raises(DataError, match=said) as raised:
        read_scores(path)
    assert "mint-deploy score" in str(raised.value)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    "key", ["groups", "criterion", "estimator", "seed", "comparable", "settings"]
)
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    header = {k: v for k, v in HEAD.items() if k != key}
    files.write_arrays(tmp_path / "s.npz", header, ARRAYS)
    with pytest.raises(DataError, match=key):
        read_scores(tmp_path / "s.npz")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    files.write_arrays(tmp_path / "s.npz", {**HEAD, "schema": SCHEMA + 1}, ARRAYS)
    with pytest.raises(DataError, match="update mint-deploy"):
        read_scores(tmp_path / "s.npz")
