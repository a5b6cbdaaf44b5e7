"""The interval covers what it says, the stopping rule included; all of the simulation is behind ``slow``."""

from __future__ import annotations

import json

import interval_coverage as ic
import numpy as np
import pytest
from scipy import stats

from mint_deploy import statistics, stopping

#: enough to see a rule that is wrong by far: the naive one is, see below
DRAWS = 200


def _covered(rows, question):
    (share,) = [r["covered"] for r in rows if r["question"] == question]
    return share


@pytest.mark.parametrize("name", ic.GENERATORS)
def test_the_shipped_rule_covers_under_every_generator(name):
    rows = ic.simulate(name, DRAWS, 0, (ic.SHIPPED,))
    # one-sided: so few would be seen once in a thousand times if it covered what is promised
    least = stats.binom.ppf(0.001, DRAWS, ic.PROMISED) / DRAWS
    for question in ic.QUESTIONS:
        assert _covered(rows, question) >= least, question


def test_this_test_would_see_the_plain_interval_fail():
    naive = "t at 95 % (naive)"
    least = stats.binom.ppf(0.001, DRAWS, ic.PROMISED) / DRAWS
    for name in ("normal", "autocorrelated"):
        assert _covered(ic.simulate(name, DRAWS, 0, (naive,)), "limit = truth") < least


@pytest.mark.slow
def test_the_whole_simulation(tmp_path, capsys):
    assert ic.main(["--out", str(tmp_path)]) == 0, capsys.readouterr().out


def test_the_committed_results_are_of_2000_draws_and_hold():
    results = json.loads((ic.RESULTS / "interval_coverage.json").read_text())
    assert results["draws"] == 2000
    assert set(results["generators"]) == set(ic.GENERATORS)
    assert ic.broken(results) == []
    assert (ic.RESULTS / "interval_coverage.md").read_text() == ic.table(results)


# ---------------------------------------------------------------- the simulation itself


@pytest.mark.parametrize("name", ic.GENERATORS)
def test_the_figures_are_those_that_the_harness_makes(name):
    a, b = ic.GENERATORS[name](np.random.default_rng(3), 1)
    sides = [list(x[0].reshape(ic.RESTARTS, -1)) for x in (a, b)]
    lengths = [(ic.CALLS,) * ic.PAIRS] * ic.RESTARTS
    expected = statistics.log_ratios(*sides, (lengths, lengths))
    assert ic.neighbours(a, b)[0] == pytest.approx(expected)
    assert ic.medians(a, b)[0] == pytest.approx(statistics.log_ratios(*sides))


@pytest.mark.parametrize("name", ic.GENERATORS)
def test_the_true_ratio_is_one(name):
    """The mean over 12,000 restarts is nearer to it than a tenth of what one restart is off."""
    a, b = ic.GENERATORS[name](np.random.default_rng(4), 500)
    logs = ic.neighbours(a, b)
    assert abs(logs.mean()) < 0.1 * logs.std()
    logs = ic.medians(a, b) - ic.MEDIANS.get(name, 0.0)
    assert abs(logs.mean()) < 0.1 * logs.std()


def test_medians_of_few_calls_are_drawn_to_one_by_waits_and_quartiles_are_not():
    """A model 10 % slower, two of whose five calls wait; blocks of two calls, as of a slow model."""
    a, b = ic.waiting(np.random.default_rng(7), 100)
    b = b * 1.1
    few = [x[..., :2] for x in (a, b)]
    assert np.exp(ic.pairs(*few).mean()) < 1.08
    sides = [x.reshape(*x.shape[:2], 3, -1) for x in few]
    quartiles = [np.quantile(x, 0.25, axis=-1) for x in sides]
    assert np.exp(np.log(quartiles[1] / quartiles[0]).mean()) == pytest.approx(1.1, abs=0.015)


def test_blocks_are_neighbours_and_run_one_at_a_time():
    a, b = ic.times()
    assert a.shape == b.shape == (ic.RESTARTS, ic.PAIRS)
    assert (abs(a - b) == 1).all()
    both = np.concatenate([a, b], axis=1)
    assert len(np.unique(both)) == both.size
    # A B B A in the first restart, B A A B in the second
    assert ["ab"[int(t in b[0])] for t in sorted(both[0])[:4]] == list("abba")
    assert ["ab"[int(t in b[1])] for t in sorted(both[1])[:4]] == list("baab")


def test_what_wanders_is_as_alike_as_was_asked_for():
    found = ic.ar1(np.random.default_rng(5), (200, 400), 0.8)
    assert found.std() == pytest.approx(1, abs=0.05)
    assert np.mean(found[:, 1:] * found[:, :-1]) == pytest.approx(0.8, abs=0.05)


def test_the_shipped_candidate_is_the_rule_of_the_harness():
    rng = np.random.default_rng(6)
    for _ in range(20):
        logs = 0.01 * rng.standard_normal(ic.RESTARTS)
        for rule in ic.QUESTIONS.values():
            n, low, high = ic.CANDIDATES[ic.SHIPPED](logs, rule)
            found = rule.interval(logs[:n])
            assert (found.low, found.high) == (low, high)
            assert n == ic.RESTARTS or (stopping.is_look(n) and rule.answered(found))
            earlier = [m for m in range(2, n) if stopping.is_look(m)]
            assert not any(rule.answered(rule.interval(logs[:m])) for m in earlier)


def test_it_goes_on_where_it_was_stopped_and_refuses_what_it_does_not_know(tmp_path, capsys):
    few = ["--draws", "20", "--out", str(tmp_path)]
    ic.main([*few, "--only", "normal"])
    first = json.loads((tmp_path / "interval_coverage.json").read_text())
    assert list(first["generators"]) == ["normal"]
    first["generators"]["normal"][0]["covered"] = 0.5  # it is not made again
    (tmp_path / "interval_coverage.json").write_text(json.dumps(first))
    assert ic.main([*few, "--only", "normal,drifting"]) == 1
    second = json.loads((tmp_path / "interval_coverage.json").read_text())
    assert list(second["generators"]) == ["normal", "drifting"]
    assert second["generators"]["normal"] == first["generators"]["normal"]
    assert "normal, width 1 %: 50.0%" in capsys.readouterr().out
    # other draws are another simulation
    ic.main(["--draws", "10", "--out", str(tmp_path), "--only", "normal"])
    third = json.loads((tmp_path / "interval_coverage.json").read_text())
    assert third["draws"] == 10
    for wrong in (["--only", "nonsense"], ["--draws", "0"]):
        with pytest.raises(SystemExit) as ended:
            ic.main([*wrong, "--out", str(tmp_path)])
        assert ended.value.code == 2


def test_the_table_names_every_candidate_and_generator():
    results = {
        "draws": 100,
        "seed": 0,
        "generators": {
            name: [
                {"candidate": c, "question": q, "covered": 0.951, "restarts": 12.4, "half_width": 0.0123}
                for c in ic.CANDIDATES
                for q in ic.QUESTIONS
            ]
            for name in ic.GENERATORS
        },
    }  # fmt: skip
    page = ic.table(results)
    for word in (*ic.CANDIDATES, *ic.GENERATORS, *ic.QUESTIONS):
        assert word in page
    assert "**95.1 %** (12, ±1.2 %)" in page
