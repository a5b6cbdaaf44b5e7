"""The ranking: its facts against numpy, its lines at every width, and the two commands that print it."""

from __future__ import annotations

import io
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from mint_deploy import cli
from mint_deploy.artifacts import GroupImportance, Importance
from mint_deploy.cli.ranking import BARS, lines, say
from mint_deploy.report.ranking import heights, means, ranking, spread_text, whole
from mint_deploy.scores_file import read_scores


def scores_of(
    losses: dict[str, Any],
    *,
    criterion: str = "mint",
    estimator: str | None = "gaussian",
    comparable: bool = True,
    spread: float | None = None,
    least: int = 0,
    **more: Any,
) -> Importance:
    groups = {}
    for name, given_ in losses.items():
        loss = np.asarray(given_, dtype=np.float64)
        groups[name] = GroupImportance(
            loss=loss,
            order=np.argsort(loss, kind="stable"),
            spread=None if spread is None else spread * loss,
            least=least,
        )
    return Importance(
        groups=groups,
        criterion=criterion,
        estimator=estimator,
        seed=4,
        comparable=comparable,
        settings=more,
    )


SMALL = {"conv1": [0.5, 0.0002, 0.02, 1e-9], "conv2": [0.3, 0.1, 0.2]}


def printed(body: dict[str, Any], width: int = 100, **more: Any) -> list[str]:
    made = lines(body, width=width, seconds=more.pop("seconds", {}), **more)
    return ["".join(piece for piece, _ in line) for line in made]


def row_of(said: list[str], name: str) -> str:
    return next(line for line in said if line.startswith(f"  {name}"))


# ---------------------------------------------------------------- the facts


def test_the_facts_of_a_group_are_those_of_its_losses() -> None:
    body = ranking(scores_of(SMALL, spread=0.25, least=1, images=600))
    assert (body["criterion"], body["estimator"], body["seed"]) == ("mint", "gaussian", 4)
    assert (body["images"], body["unit"], body["of_output"]) == (600, "nats", True)
    first, second = body["groups"]
    assert (first["name"], first["units"]) == ("conv1", 4)
    assert first["nothing"] == 2  # below 0.001 nats
    assert (first["least"], first["greatest"]) == (1e-9, 0.5)
    assert first["first"] == [3, 1, 2, 0]
    assert first["columns"] == [1e-9, 0.0002, 0.02, 0.5]
    assert first["relative_spread"] == pytest.approx(0.25)
    assert (second["nothing"], second["stays"]) == (0, 1)
    assert "kept" not in first


def test_nearly_nothing_is_a_hundredth_of_the_mean_where_the_unit_is_another() -> None:
    losses = {"a": [100.0, 100.0, 0.3, 0.9, 2.0]}  # mean 40.64
    for criterion, estimator, comparable in (
        ("magnitude", None, False),
        ("lamp", None, True),
        ("mint", "acmi", True),
        ("mint", "gaussian", False),
    ):
        scores = scores_of(losses, criterion=criterion, estimator=estimator, comparable=comparable)
        body = ranking(scores)
        assert not body["of_output"]
        assert body["groups"][0]["nothing"] == 1, (criterion, estimator)
        assert "1 %" in body["nearly"]
    assert ranking(scores_of(losses, criterion="lamp"))["unit"] == ""
    assert ranking(scores_of(losses, criterion="mine", unit="bits"))["unit"] == "bits"
    assert ranking(scores_of(losses, estimator="gmi"))["unit"] == ""  # a share of edges, no nats
    assert ranking(scores_of(losses, estimator="acmi"))["unit"] == "nats"


def test_a_plan_says_what_leaves() -> None:
    body = ranking(scores_of(SMALL), keep={"conv1": [0, 2]})
    first, second = body["groups"]
    assert first["kept"] == 2
    assert first["leaves"] == [1.0, 1.0, 0.0, 0.0]
    assert "kept" not in second


def test_a_plan_by_hand_may_keep_whom_the_order_would_not() -> None:
    body = ranking(scores_of(SMALL), keep={"conv1": (3,), "conv2": ()})
    assert body["groups"][0]["leaves"] == [0.0, 1.0, 1.0, 1.0]
    assert body["groups"][1]["kept"] == 0


def test_machines_get_every_unit() -> None:
    scores = scores_of(SMALL, spread=0.5)
    body = whole(scores)
    for row, group in zip(body["groups"], scores.groups.values(), strict=True):
        assert row["loss"] == group.loss.tolist()
        assert row["order"] == group.order.tolist()
        assert group.spread is not None
        assert row["spread"] == group.spread.tolist()
    assert [row["spread"] for row in whole(scores_of(SMALL))["groups"]] == [None, None]


LOSSES = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=90)


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.booleans(), st.sampled_from(["mint", "random"]))
def test_no_losses_are_too_strange(losses: list[float], comparable: bool, criterion: str) -> None:
    scores = scores_of({"a": losses}, comparable=comparable, criterion=criterion, spread=0.1)
    body = ranking(scores, keep={"a": range(len(losses) // 2)})
    group = body["groups"][0]
    assert 0 <= group["nothing"] <= group["units"] == len(losses)
    known = [v for v in losses if np.isfinite(v)]
    assert (group["least"] is None) == (not known)
    assert len(printed(body)) > 4


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.integers(1, 64))
def test_columns_are_means_of_neighbours(losses: list[float], most: int) -> None:
    values = np.nan_to_num(np.asarray(losses), nan=0.0, posinf=1.0, neginf=-1.0)
    made = means(values, most)
    assert len(made) == min(most, len(values))
    edges = np.linspace(0, len(values), len(made) + 1).astype(int)
    parts = [values[a:b].mean() for a, b in itertools.pairwise(edges)]
    np.testing.assert_allclose(made, parts, rtol=1e-9, atol=1e-30)


@settings(max_examples=80, deadline=None)
@given(LOSSES)
def test_heights_are_between_nothing_and_one_and_follow_the_losses(losses: list[float]) -> None:
    made = heights(losses)
    assert all(0.0 <= h <= 1.0 for h in made)
    pairs = sorted((v, h) for v, h in zip(losses, made, strict=True) if np.isfinite(v))
    assert [h for _, h in pairs] == sorted(h for _, h in pairs)


def test_a_scale_is_logarithmic_and_has_one_to_four_decades() -> None:
    assert heights([1e-3, 1e-2, 1e-1, 1.0]) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert heights([1e-9, 1e-4, 1e-2, 1.0]) == pytest.approx([0, 0, 0.5, 1])
    assert heights([0.9, 1.0]) == pytest.approx([1 + np.log10(0.9), 1])  # noise is not blown up
    assert heights([2.0, 2.0]) == [1.0, 1.0]
    assert heights([0.0, -1.0, float("nan")]) == [0.0, 0.0, 0.0]
    assert heights([0.1, 1.0], (1e-2, 1.0)) == pytest.approx([0.5, 1.0])


def test_groups_that_compare_share_one_scale() -> None:
    losses = {"small": [1e-4, 2e-4], "large": [0.5, 1.0]}
    assert ranking(scores_of(losses))["scale"] == pytest.approx([1e-4, 1.0])
    assert ranking(scores_of(losses, comparable=False))["scale"] is None
    same = printed(ranking(scores_of(losses)))
    own = printed(ranking(scores_of(losses, comparable=False)))
    assert BARS[-1] in row_of(same, "large")
    assert BARS[-1] not in row_of(same, "small")
    assert BARS[-1] in row_of(own, "small")


def test_spread_as_text() -> None:
    assert [spread_text(v) for v in (None, 0.123, 9.99, 10.0)] == ["", "12 %", "999 %", ">999 %"]


# ---------------------------------------------------------------- the lines


def test_the_lines_say_what_a_person_asks(tmp_path: Path) -> None:
    body = ranking(scores_of(SMALL, spread=0.25, least=1, images=1600, floor="output"))
    said = printed(body, seconds={"sample": 8.6, "score": 0.25, "plan": 1}, run=tmp_path / "my run")
    text = " ".join(said)
    head = (
        "7 units in 2 groups ranked by mint (gaussian) in 250 ms, on 1,600 images (seen in 8.60 s)"
    )
    assert said[0].startswith(head)
    assert "seed 4" in said[0] + said[1]
    assert "Settings: floor output." in text
    assert "can be compared between groups, in nats of the predicted distribution" in text
    assert "in the order of the network" in text
    assert "each below 0.001 nats" in text
    row = row_of(said, "conv1")
    assert re.search(r"^  conv1 +4 +2  \S{4} +1\.0e-9 to +0\.50 +25 %  3 1 2 0$", row), row
    assert "2 units in 2 groups stay whatever the budget." in text
    assert "2 of 7 units are free." in text
    assert said[-1] == f"next: mint-deploy plan '{tmp_path}/my run' --macs 0.5"


def test_groups_that_do_not_compare_are_not_ranked_against_each_other() -> None:
    losses = {f"conv{i}": [0.1 * (i + 1), 0.3] for i in range(5)}
    text = " ".join(printed(ranking(scores_of(losses, criterion="magnitude", comparable=False))))
    assert "cannot be compared between groups" in text
    assert "costs least" not in text
    assert "nats" not in text
    text = " ".join(printed(ranking(scores_of(losses))))
    assert "A unit costs least (its group's mean) in conv0 (0.20), conv1 (0.25)," in text
    assert "most in conv4 (0.40), conv3" in text


def test_another_estimator_claims_no_nats_of_the_output() -> None:
    text = " ".join(printed(ranking(scores_of(SMALL, estimator="acmi"))))
    assert "between groups, in nats." in text
    assert "predicted distribution" not in text


def test_criteria_without_data_name_no_images() -> None:
    said = printed(ranking(scores_of(SMALL, criterion="random", estimator=None, comparable=False)))
    assert said[0] == "7 units in 2 groups ranked by random, seed 4"


def test_no_groups_at_all() -> None:
    said = printed(ranking(scores_of({})), run=Path("run"))
    assert said[1] == "No group has a score: every group stays whole."
    assert said[-1].startswith("next: ")


HOSTILE = ("\x1b[31mred\x1b[0m", "a\nb", "[bold]x[/]", "名" * 40, "x" * 300, "", "'; rm -rf /")


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(20, 160),
    units=st.lists(st.integers(1, 300), min_size=1, max_size=6),
    spread=st.booleans(),
    comparable=st.booleans(),
    size=st.sampled_from([1e-13, 1.0, 1e9]),
)
def test_no_line_is_wider_than_the_terminal(
    width: int, units: list[int], spread: bool, comparable: bool, size: float
) -> None:
    rng = np.random.default_rng(0)
    losses = {f"{HOSTILE[i]}{i}": size * rng.exponential(size=n) for i, n in enumerate(units)}
    body = ranking(
        scores_of(losses, comparable=comparable, spread=0.1 if spread else None, a="b" * 300)
    )
    said = printed(body, width)
    assert max(map(len, said)) <= max(72, min(100, width))
    assert not re.search("[\x00-\x1f\x7f]", "".join(said))
    head = next(i for i, line in enumerate(said) if line.startswith("  group"))
    assert said[head + len(units) + 1] == "", "a group has more than one line"


def test_all_groups_of_a_long_network_have_their_line() -> None:
    losses = {f"features.denseblock{i}.conv": np.ones(32) for i in range(300)}
    said = printed(ranking(scores_of(losses)), 80)
    assert sum(bool(re.match(r"  feat\S+conv +32 ", line)) for line in said) == 300
    assert len(said) < 320


def test_many_units_are_not_all_named() -> None:
    said = printed(ranking(scores_of({"a": np.arange(1, 31)})))
    assert row_of(said, "a").endswith("0 1 2 3 4 5 6 7 8 9 10 11 ..")


# ---------------------------------------------------------------- terminals


class Terminal(io.TextIOWrapper):
    """A stream of some encoding that may be a terminal."""

    def __init__(self, encoding: str, tty: bool) -> None:
        self.raw_bytes = io.BytesIO()
        self.tty = tty
        super().__init__(self.raw_bytes, encoding=encoding, write_through=True)

    def isatty(self) -> bool:
        return self.tty

    @property
    def text(self) -> str:
        return self.raw_bytes.getvalue().decode(self.encoding)


@pytest.mark.parametrize("tty", [False, True])
def test_colours_are_for_terminals(monkeypatch: pytest.MonkeyPatch, tty: bool) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")  # nothing is wrapped
    stream = Terminal("utf-8", tty)
    monkeypatch.setattr(sys, "stdout", stream)
    body = ranking(scores_of({**SMALL, "[bold red]x[/]": [1.0]}))
    say(body, run=Path("run"))
    assert ("\x1b[" in stream.text) == tty
    plain = re.sub(r"\x1b\[[\d;]*m", "", stream.text)
    assert "[bold red]x[/]" in plain  # a name is text, never markup
    assert plain.splitlines() == printed(body, run=Path("run"))


def test_a_stream_without_unicode_gets_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal("ascii", tty=True)
    monkeypatch.setattr(sys, "stdout", stream)
    say(ranking(scores_of({**SMALL, "名": [1.0]}, spread=0.1)))
    assert "=" in row_of(stream.text.splitlines(), "conv1") or "#" in stream.text
    assert "+-" in stream.text


# ---------------------------------------------------------------- the commands


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*args: str) -> Said:
        monkeypatch.setattr(sys, "argv", ["mint-deploy", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Said(int(ended.value.code or 0), out, err)

    return run


NET = ("net.py:make", "--data", "npz:data.npz", "--workers", "1", "--out", "run")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tiny.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "90")
    return tmp_path


@pytest.mark.parametrize("criterion", ["mint", "magnitude", "random"])
def test_score_prints_a_ranking_of_any_criterion(
    here: Path, command: Command, criterion: str
) -> None:
    found = command("score", *NET, "--criterion", criterion)
    assert found.code == 0, found.err
    said = found.out.splitlines()
    scores = read_scores(here / "run" / "scores.npz")
    assert f"ranked by {criterion}" in said[0]
    assert max(map(len, said)) <= 90
    for name, group in scores.groups.items():
        row = row_of(said, name).split()
        assert row[:2] == [name, str(len(group.loss))]
        assert f"  {' '.join(map(str, group.order[:4]))}" in row_of(said, name)
    assert said[-1] == "next: mint-deploy plan run --macs 0.5"
    assert ("images" in said[0]) == (criterion == "mint")
    assert re.search(r"in [\d.]+ (ms|s|µs)", said[0])

    inspected = command("inspect", "run/scores.npz").out.splitlines()
    assert inspected[0] == "run/scores.npz: arrays of Importance"
    rows = [line for line in said if line.startswith("  ")]
    assert [line for line in inspected if line.startswith("  ")] == rows

    again = command("score", *NET, "--criterion", criterion)
    assert again.out.startswith("'score' was done before")
    assert again.out.endswith(found.out.split("\n", 2)[2])


def test_score_as_json_is_one_object_with_every_unit(here: Path, command: Command) -> None:
    found = command("score", *NET, "--criterion", "magnitude", "--json", "--quiet")
    assert found.err == ""
    body = json.loads(found.out)
    assert {"run", "done", "kept", "warnings", "report", "scores", "seconds"} == set(body)
    scores = read_scores(here / "run" / "scores.npz")
    assert [g["name"] for g in body["scores"]["groups"]] == list(scores.groups)
    for row in body["scores"]["groups"]:
        group = scores.groups[row["name"]]
        assert row["loss"] == group.loss.tolist()
        assert row["order"] == group.order.tolist()
        assert row["spread"] is None
    assert body["seconds"]["score"] > 0
    inspected = json.loads(command("inspect", "run/scores.npz", "--json").out)
    assert inspected["ranking"] == body["scores"]
    assert inspected["kind"] == "Importance"


def test_a_damaged_file_is_told_and_is_exit_code_2(here: Path, command: Command) -> None:
    (here / "scores.npz").write_bytes(b"PK nothing")
    found = command("inspect", "scores.npz")
    assert found.code == 2
    assert "damaged" in found.err
    assert "Traceback" not in found.err
