"""The offline scenario: passes over the batches, and the knee with its uncertainty."""

from __future__ import annotations

import dataclasses
import functools
import math
import random

import pretended
import pytest
from onnx_models import save_conv
from strange_runtime import QUICK, RUNTIME, install

from mint_deploy import plugins
from mint_deploy.bench import MeasuringStopped, Throughput, measure, throughput
from mint_deploy.errors import ConfigError, ModelError


@pytest.fixture
def strange(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch)


@pytest.fixture
def pretence(monkeypatch):
    return pretended.install(monkeypatch)


def test_throughput_over_open_batches(tmp_path):
    path = save_conv(tmp_path / "m.onnx", channels=8, size=8)
    told = []
    found = throughput(
        path, (4, 1), settings=QUICK, label="net", restarts=2, progress=lambda *a: told.append(a)
    )
    assert [m.task.batch for m in found.measurements] == [1, 4]
    assert all(m.task.scenario == "offline" for m in found.measurements)
    assert all(m.task.label == "net" for m in found.measurements)
    assert all(m.peak_rss_bytes for m in found.measurements)
    assert all(len(m.restarts_ns) == len(m.states) == 2 for m in found.measurements)
    ns = [v for restart in found.measurements[1].restarts_ns for v in restart]
    assert found.samples_per_s[4] == pytest.approx(4 * len(ns) / sum(ns) * 1e9)
    assert found.knee in (1, 4)
    low, high = found.knee_range
    assert low <= high
    assert not found.nulls
    assert told[-1][:2] == (4, 4)


def test_a_fixed_batch_says_why_the_others_are_missing(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=2)
    found = throughput(path, (1, 2, 8), settings=QUICK, restarts=1)
    assert [m.task.batch for m in found.measurements] == [2]
    assert set(found.nulls) == {"1", "8"}
    assert "fixed at 2; export it with an open batch" in found.nulls["8"]
    assert found.knee is None
    assert found.knee_range is None


def test_it_goes_on_to_the_batch_that_fails(strange, tmp_path):
    source = tmp_path / "strange_pkg" / "strange.py"
    source.write_text(
        source.read_text().replace(
            "self.calls += 1",
            "self.calls += 1\n        if len(inputs['input']) > 2: raise ModelError('too big')",
        )
    )
    path = strange("sleep 0.001")
    found = throughput(path, (1, 2, 4, 8), runtime=RUNTIME, settings=QUICK)
    assert [m.task.batch for m in found.measurements] == [1, 2]
    assert "too big" in found.nulls["4"]
    assert "batch 4 failed before" in found.nulls["8"]
    with pytest.raises(ModelError, match="too big"):
        throughput(path, (4,), runtime=RUNTIME, settings=QUICK)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"batches": ()}, "batches are"),
        ({"batches": (0,)}, "batches are"),
        ({"batches": (1, -2)}, "batches are"),
        ({"restarts": 0}, "restarts is 0"),
        ({"budget_s": -1}, "budget_s is -1"),
    ],
)
def test_what_makes_no_sense(tmp_path, wrong, words):
    with pytest.raises(ConfigError, match=words):
        throughput(tmp_path / "x.onnx", **wrong)


# ---------------------------------------------------------------- passes


def _order(pretence):
    return [d["batch"] for _, d in pretence.of("feed")]


def test_passes_go_up_and_down_while_the_time_allows(pretence):
    pretence.start_s = 1.0
    found = throughput("", (1, 2, 4), runtime="null", settings=QUICK, restarts=3, budget_s=60)
    assert _order(pretence) == [1, 2, 4, 4, 2, 1, 1, 2, 4]
    assert all(len(m.restarts_ns) == 3 for m in found.measurements)
    assert all(m.converged for m in found.measurements)
    pretence.asked.clear()
    # a pass takes 3 s, and the look at the model one: there is time for two
    throughput("", (1, 2, 4), runtime="null", settings=QUICK, restarts=9, budget_s=8)
    assert _order(pretence) == [1, 2, 4, 4, 2, 1]


def test_one_pass_is_made_in_any_case(pretence):
    pretence.start_s = 1.0
    found = throughput("", (1, 2), runtime="null", settings=QUICK, budget_s=0.1)
    assert _order(pretence) == [1, 2]
    assert found.knee_range is None  # measured once: which it is cannot be sure


def test_a_failure_in_a_later_pass_keeps_what_there_is(pretence):
    def fail(label, what):
        if what == "block" and len(_order(pretence)) == 4:
            raise ModelError("no memory left")

    pretence.before = fail
    found = throughput("", (1, 2), runtime="null", settings=QUICK)
    assert [len(m.restarts_ns) for m in found.measurements] == [1, 2]
    assert not found.nulls


@pytest.mark.parametrize(("at", "kept"), [(2, [1]), (3, [1, 1]), (4, [1, 2])])
def test_an_interrupt_keeps_the_whole_restarts(pretence, at, kept):
    def interrupt(label, what):
        if what == "block" and len(_order(pretence)) == at:
            raise KeyboardInterrupt

    pretence.before = interrupt
    with pytest.raises(MeasuringStopped, match=f"interrupted after {len(kept)} batches") as stopped:
        throughput("", (1, 2), runtime="null", settings=QUICK)
    assert [len(m.restarts_ns) for m in stopped.value.measured] == kept
    assert all("interrupted" in m.doubts[0] for m in stopped.value.measured)
    assert not pretence.living


def test_an_interrupt_before_the_first_keeps_nothing(pretence):
    def interrupt(label, what):
        if what == "block":
            raise KeyboardInterrupt

    pretence.before = interrupt
    with pytest.raises(KeyboardInterrupt) as stopped:
        throughput("", (1, 2), runtime="null", settings=QUICK)
    assert not isinstance(stopped.value, MeasuringStopped)


# ---------------------------------------------------------------- the knee


@functools.cache
def _some():
    with plugins.load("runtime", "null").runner() as live:
        return measure(live, {}, scenario="offline", settings=QUICK)


def _one(batch, *restarts_ns):
    m = _some()
    task = dataclasses.replace(m.task, batch=batch)
    return dataclasses.replace(m, task=task, restarts_ns=restarts_ns)


def _sweep(per_call_ns, *, restarts=1, noise=0.0, seed=0):
    """A sweep whose batches take so long a call, with restarts that differ."""
    rng = random.Random(seed)
    rows = []
    for batch, ns in per_call_ns.items():
        found = [(round(ns * math.exp(rng.gauss(0, noise))),) * 20 for _ in range(restarts)]
        rows.append(_one(batch, *found))
    return Throughput(measurements=tuple(rows))


def test_the_knee_is_the_smallest_batch_near_the_best():
    found = _sweep({1: 1000, 2: 1100, 4: 1600, 8: 3150})
    assert found.samples_per_s[8] == pytest.approx(8 / 3150 * 1e9)
    assert found.knee == 4
    assert found.knee_range is None
    assert found.intervals == {}


def test_the_knee_is_sure_where_restarts_agree_and_a_range_where_they_do_not():
    calls = {1: 100_000, 2: 110_000, 4: 170_000, 8: 315_000}
    sure = _sweep(calls, restarts=5, noise=0.001)
    assert sure.knee_range == (sure.knee, sure.knee) == (8, 8)
    vague = _sweep(calls, restarts=5, noise=0.1)
    low, high = vague.knee_range
    assert low < 8
    assert high == max(vague.samples_per_s, key=vague.samples_per_s.get)
    assert low <= vague.knee <= high
    # 94 % of the best at batch 4: it may be the knee as soon as there is a doubt
    assert _sweep({**calls, 4: 167_500}, restarts=5, noise=0.02).knee_range[0] == 4


def test_samples_a_second_have_an_interval_over_restarts():
    found = _sweep({1: 100_000, 4: 200_000}, restarts=6, noise=0.02)
    for batch, rate in {1: 1e4, 4: 2e4}.items():
        one = found.intervals[batch]
        assert one.low < one.ratio < one.high
        assert one.ratio == pytest.approx(rate, rel=0.05)
        assert one.n == 6


def test_the_range_holds_the_knee_as_often_as_it_says():
    """Batch 4 reaches 97 % of the best: it is the knee, whatever one sweep finds."""
    calls = {1: 100_000, 2: 115_000, 4: 162_000, 8: 314_000}
    missed = 0
    for seed in range(60):
        low, high = _sweep(calls, restarts=5, noise=0.03, seed=seed).knee_range
        missed += not low <= 4 <= high
    assert missed <= 8
