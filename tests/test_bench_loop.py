"""How many restarts there are: until the question is answered, the time is over, or Ctrl-C comes."""

from __future__ import annotations

import pretended
import pytest
from strange_runtime import QUICK

from mint_deploy import _bench_turns, stopping
from mint_deploy.bench import MeasuringStopped, Settings, interleave

TWO = {"a": "", "b": ""}


@pytest.fixture
def pretence(monkeypatch):
    found = pretended.install(monkeypatch)
    found.start_s = 0.5
    return found


def measure(paths=TWO, **settings):
    return interleave(paths, runtime="null", **{"settings": QUICK, **settings})


# ---------------------------------------------------------------- how many


def test_a_quiet_machine_needs_five_restarts(pretence):
    pretence.call_s.update(a=0.002, b=0.001)
    (a, b), (c,) = measure()
    assert len(a.restarts_ns) == len(b.restarts_ns) == c.restarts == stopping.FIRST_LOOK
    assert c.ratio == pytest.approx(0.5)
    assert a.sequential
    assert a.converged
    assert not any("not converged" in text for text in (*a.doubts, *c.doubts))


def test_a_noisy_machine_needs_more_and_the_interval_is_as_wide_as_was_wanted(pretence):
    pretence.spread.update(a=0.005, b=0.005)
    (a, b), (c,) = measure(half_width=0.01)
    assert c.restarts > 5
    assert stopping.is_look(c.restarts)  # it ends at a look, and at no other count
    assert (c.high - c.low) / 2 / c.ratio <= 0.01
    # whoever reads the measurements makes the same interval of them
    found = stopping.between(a, b, confidence=0.95)
    assert (found.low, found.high) == (c.low, c.high)
    assert b.converged


def test_a_wide_question_is_answered_sooner_than_a_narrow_one(pretence):
    pretence.spread.update(a=0.01, b=0.01)
    wide = measure(half_width=0.05)[1][0].restarts
    narrow = measure(half_width=0.01)[1][0].restarts
    assert wide < narrow


def test_a_limit_ends_it_when_its_side_is_known(pretence):
    pretence.spread.update(a=0.02, b=0.02)
    pretence.call_s.update(a=0.001, b=0.0013)
    far = measure(limit=0.05)[1][0]
    assert far.restarts <= 7
    assert far.low > 1.05
    pretence.call_s.update(b=0.00106)
    near = measure(limit=0.05, budget_s=40)[1][0]
    assert near.restarts > 14


def test_the_time_ends_it_and_the_doubt_says_what_was_wanted(pretence):
    pretence.spread.update(a=0.1, b=0.1)
    began = pretence.now_s
    (a, b), (c,) = measure(budget_s=20)
    assert pretence.now_s - began < 21
    assert 8 <= c.restarts <= 20
    assert not a.converged
    assert not b.converged
    (doubt,) = [text for text in c.doubts if "not converged" in text]
    assert "±1 % was wanted" in doubt
    assert sum("not converged" in text for text in a.doubts) == 1
    assert doubt in a.doubts


def test_a_limit_that_is_not_decided_is_called_so(pretence):
    pretence.spread.update(a=0.1, b=0.1)
    (a, _), (c,) = measure(budget_s=10, limit=0.01)
    assert not a.converged
    assert any("not decided" in text and "1.01" in text for text in c.doubts)


def test_every_other_file_must_be_known_well_enough(pretence):
    pretence.spread.update(c=0.01)
    _, compared = measure({"a": "", "b": "", "c": ""}, half_width=0.01)
    assert len({c.restarts for c in compared}) == 1
    assert compared[0].restarts > 5
    assert all((c.high - c.low) / 2 / c.ratio <= 0.01 for c in compared)


def test_a_file_alone_is_measured_until_its_median_is_known(pretence):
    pretence.spread.update(a=0.01)
    (m,), compared = measure({"a": ""}, half_width=0.01)
    assert not compared
    assert len(m.restarts_ns) > 5
    assert m.converged


def test_what_each_restart_lacks_is_made_up_by_their_number(pretence):
    """150 calls of 0.2 s do not fit into one restart, and need not."""
    pretence.call_s.update(a=0.2, b=0.2)
    (a, _), (c,) = measure(settings=Settings(), budget_s=200)
    assert max(map(len, a.restarts_ns)) < 150 <= sum(map(len, a.restarts_ns))
    assert c.restarts > 5
    assert a.converged
    few = measure(settings=Settings(min_count=10**6), budget_s=20)[0][0]
    assert not few.converged


@pytest.mark.parametrize("restarts", [2, 3, 8])
def test_the_number_asked_for_is_the_least_and_exact_without_a_question(pretence, restarts):
    assert measure(restarts=restarts, half_width=None)[1][0].restarts == restarts
    assert measure(restarts=restarts)[1][0].restarts == max(restarts, stopping.FIRST_LOOK)
    # a budget that is over already: what was asked for, and no more
    assert measure(restarts=restarts, budget_s=0.001)[1][0].restarts == restarts


def test_sixty_seconds_are_enough_for_eight_restarts_of_a_slow_start(pretence):
    """Two processes that take 1.5 s each to start, on a machine where nothing is precise enough."""
    pretence.start_s, pretence.spread = 1.5, {"a": 0.3, "b": 0.3}
    pretence.call_s.update(a=0.02, b=0.02)
    began = pretence.now_s
    settings = Settings(min_count=10**6)
    _, (c,) = measure(settings=settings)
    assert c.restarts >= 8
    assert pretence.now_s - began <= 61


def test_without_a_question_the_median_of_each_restart_counts(pretence):
    settings = Settings(min_count=10**6)
    (a, _), (c,) = measure(restarts=2, half_width=None, budget_s=3, settings=settings)
    assert not a.converged
    assert not a.sequential
    assert any("not converged within the time budget: a, b" in text for text in c.doubts)


# ---------------------------------------------------------------- progress


def test_progress_shows_the_interval_as_it_shrinks(pretence):
    pretence.spread.update(a=0.02, b=0.02)
    told = []
    measure(half_width=0.01, progress=lambda *a: told.append(a))
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert told[-1][0] == told[-1][1] == 60.0
    notes = [n for _, _, n in told]
    assert notes[0] == "restart 1, a and b in turns"
    widths = [float(n.rpartition("± ")[2].split(" ")[0]) for n in notes if "±" in n]
    assert widths[-1] < widths[0] / 2
    assert notes[-1].startswith("14 restarts, b takes ") or "restarts, b takes" in notes[-1]


def test_progress_of_a_fixed_number_counts_restarts(pretence):
    told = []
    measure(restarts=3, half_width=None, progress=lambda *a: told.append(a))
    assert told[0][:2] == (0, 3)
    assert told[-1][:2] == (3, 3)
    assert "restart 2 of 3" in {note.split(",")[0] for _, _, note in told}


# ---------------------------------------------------------------- Ctrl-C


@pytest.mark.parametrize("during", ["open", "warm", "block", "peak"])
@pytest.mark.parametrize("whole", [1, 3, 7])
def test_an_interrupt_keeps_the_whole_restarts(pretence, during, whole):
    pretence.spread.update(a=0.1, b=0.1)

    def interrupt(label, what):
        if what == during and label == "b" and len(pretence.of("start")) == 2 * whole + 2:
            raise KeyboardInterrupt

    pretence.before = interrupt
    with pytest.raises(MeasuringStopped, match=f"interrupted after {whole} restarts") as stopped:
        measure()
    assert not pretence.living
    a, b = stopped.value.measured
    for m in (a, b):
        counts = {len(m.restarts_ns), len(m.load_ns), len(m.states), len(m.blocks)}
        assert counts == {whole}
        assert f"interrupted after {whole} restarts" in m.doubts[0]
        assert not m.converged
    assert len(stopped.value.compared) == (whole > 1)
    for c in stopped.value.compared:
        assert c.restarts == whole
        assert "interrupted" in c.doubts[0]


def test_an_interrupt_between_two_records_leaves_no_half_restart(pretence, monkeypatch):
    real = _bench_turns.Record.add
    added = []

    def add(self, once):
        real(self, once)
        added.append(self)
        if len(added) == 5:  # A of the third restart is in its record, B is not
            raise KeyboardInterrupt

    monkeypatch.setattr(_bench_turns.Record, "add", add)
    with pytest.raises(MeasuringStopped, match="interrupted after 2 restarts") as stopped:
        measure()
    for m in stopped.value.measured:
        counts = {len(m.restarts_ns), len(m.load_ns), len(m.states), len(m.blocks)}
        assert counts == {2}


def test_an_interrupt_before_any_whole_restart_keeps_nothing(pretence):
    def interrupt(label, what):
        if what == "block":
            raise KeyboardInterrupt

    pretence.before = interrupt
    with pytest.raises(KeyboardInterrupt) as stopped:
        measure()
    assert not isinstance(stopped.value, MeasuringStopped)
    assert not pretence.living


def test_an_interrupt_of_a_fixed_number_is_kept_too(pretence):
    def interrupt(label, what):
        if what == "block" and len(pretence.of("start")) == 3:
            raise KeyboardInterrupt

    pretence.before = interrupt
    with pytest.raises(MeasuringStopped) as stopped:
        measure({"a": ""}, restarts=5, half_width=None)
    (m,) = stopped.value.measured
    assert len(m.restarts_ns) == 2
    assert not m.converged
    # told once, and not as a lack of time
    assert not any("not converged" in text for text in m.doubts)
