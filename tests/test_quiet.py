"""How quiet a machine is: what follows from the blocks, and the ten seconds themselves, shortened."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import _quiet_block, files, quiet
from mint_deploy.artifacts import Machine
from mint_deploy.errors import MintDeployError

# ---------------------------------------------------------------- the smallest difference


@given(p=st.floats(0.001, 0.999), df=st.integers(1, 200))
def test_the_quantile_of_chi_squared(p, df):
    assert quiet._chi2(p, df) == pytest.approx(scipy.stats.chi2.ppf(p, df), rel=1e-8)


def test_eight_blocks_of_equal_models_and_what_they_could_tell():
    ratios = [0.01, -0.01, 0.02, -0.02, 0.005, -0.005, 0.015, -0.015]
    found = quiet.smallest_difference(ratios, block_s=1.25)
    spread = float(np.std(ratios, ddof=1))
    assert found.restarts == 48
    t = scipy.stats.t.ppf([0.975, 0.9], 47).sum()
    assert found.value == pytest.approx(math.expm1(t * spread / math.sqrt(48)), rel=1e-9)
    assert found.low < found.value < found.high
    # nobody knows a spread well from eight values
    assert found.high / found.low > 2


def test_a_spread_of_nothing_tells_everything():
    found = quiet.smallest_difference([0.0] * 5, block_s=1.0)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


@given(
    spread=st.floats(0.001, 0.2), factor=st.floats(1.1, 5), block_s=st.floats(0.5, 20),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_noise_raises_it_and_time_lowers_it(spread, factor, block_s, seed):
    drawn = np.random.default_rng(seed).normal(0, spread, 8)
    found = quiet.smallest_difference(drawn, block_s)
    assert quiet.smallest_difference(factor * drawn, block_s).value > found.value
    assert quiet.smallest_difference(drawn, block_s, seconds=240).value < found.value
    # where two models really stand does not matter, only how steadily
    shifted = quiet.smallest_difference(drawn + 0.3, block_s)
    assert shifted.value == pytest.approx(found.value, rel=1e-6)


def test_it_is_what_nine_comparisons_in_ten_see():
    """Draw comparisons of that true difference; 95 % intervals leave out 1 in 90 % of them."""
    rng = np.random.default_rng(1)
    spread, restarts = 0.02, 20
    ratios = rng.normal(0, spread, 10_000)  # so many that the spread is known
    found = quiet.smallest_difference(ratios, block_s=60 / restarts)
    assert found.restarts == restarts
    drawn = rng.normal(math.log1p(found.value), spread, (2000, restarts))
    reach = scipy.stats.t.ppf(0.975, restarts - 1) * drawn.std(axis=1, ddof=1) / math.sqrt(restarts)
    seen = (drawn.mean(axis=1) - reach > 0).mean()
    assert 0.87 < seen < 0.93


# ---------------------------------------------------------------- the work


def test_the_work_is_the_same_in_every_process():
    class Nobody:
        def mhz(self):
            return 1000.0

    first, second = _quiet_block.Block(), _quiet_block.Block()
    told = []
    products = first.run(None, 0.0, Nobody(), lambda: told.append(1))
    assert second.run(products, 0.0, Nobody(), lambda: None) == products
    for block in (first, second):
        assert block.done
        assert [len(side) for side in block.ns] == [20, 20]  # A B B A, ten pieces a turn
        assert block.mhz == [1000.0] * 4
    assert told == [1]
    # about two milliseconds, where nothing disturbs
    assert 0.5e6 < min(first.ns[0] + first.ns[1]) < 20e6


def test_a_process_that_dies_is_told(monkeypatch):
    with _quiet_block._Busy() as busy:
        assert busy.ask(calibrate=0.1) >= 1
        busy._process.kill()
        busy._process.wait()
        with pytest.raises(MintDeployError, match=r"died or gave no answer.*exit code -9"):
            busy.ask(products=1, pieces=1)
    monkeypatch.setattr(_quiet_block, "_PATIENCE_S", 0.05)
    with _quiet_block._Busy() as busy:
        busy._process.send_signal(signal.SIGSTOP)
        with pytest.raises(MintDeployError, match="no answer within"):
            busy.ask(products=1, pieces=1)


# ---------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def seen():
    told = []
    found = quiet.observe(2.5, progress=lambda *step: told.append(step))
    return found, told


def test_what_two_seconds_show(seen):
    found, _ = seen
    assert not found.interrupted
    assert found.seconds >= 2.4
    assert found.runs >= 2 * 40  # a round A B B A a block at the least
    assert len(found.log_ratios) == len(found.blocks_ns) == len(found.states) == 2
    assert found.piece_ns <= min(found.blocks_ns)
    assert 0 <= found.slowdown.median <= found.slowdown.p95 <= found.slowdown.worst
    assert found.difference is None
    assert "at least 3" in found.nulls["difference"]
    assert found.overhead_ns > 0
    assert found.timer.resolution_ns > 0
    assert found.timer.reading_ns > 0
    weights = [advice.weight for advice in found.advice]
    assert weights == sorted(weights, reverse=True)
    assert all(advice.text and advice.command for advice in found.advice)
    for name in ("steal", "other_cpu", "frequency_mhz", "throttled", "quota_stops"):
        assert getattr(found, name) is not None or found.nulls[name], name
    json.dumps(files.encode(found), allow_nan=False)


def test_progress_goes_up_to_the_end(seen):
    _, told = seen
    assert all(total == 2.5 for _, total, _ in told)
    done = [done for done, _, _ in told]
    assert done == sorted(done)
    assert done[-1] == pytest.approx(2.5, abs=0.3)
    assert {note for _, _, note in told} == {"block 1 of 2", "block 2 of 2"}


class _Fake:
    """A block that takes no time: A and B are equal up to what the test says."""

    ratios: ClassVar[list[float]] = []
    stop_at = 99

    def __init__(self):
        self.ns, self.mhz, self.done = ([], []), [2000.0, 2000.0], False

    def run(self, products, end, watch, tell):
        n = len(_Fake.ratios)
        if n == _Fake.stop_at:
            self.ns[0].append(1_000_000)
            raise KeyboardInterrupt
        _Fake.ratios.append((0.01, -0.01, 0.02, -0.02, 0.0, 0.01, -0.01, 0.0)[n])
        self.ns[0].extend([1_000_000] * 9)
        self.ns[1].extend([round(1_000_000 * math.exp(_Fake.ratios[-1]))] * 9)
        self.done = True
        return 7


@pytest.fixture
def fake(monkeypatch):
    _Fake.ratios, _Fake.stop_at = [], 99
    monkeypatch.setattr(quiet, "Block", _Fake)
    return _Fake


def _machine() -> Machine:
    return Machine(
        hostname="h", system="s", cpu="c", cores=2, memory_bytes=1, python="3", versions={},
        details={"nulls": {}},
    )  # fmt: skip


def test_ten_seconds_are_eight_blocks(fake, tmp_path):
    found = quiet.observe(10.0, machine=_machine(), root=tmp_path)
    assert len(found.log_ratios) == 8
    assert found.log_ratios == pytest.approx(fake.ratios, abs=1e-5)
    assert found.difference.value > 0
    assert found.frequency_mhz == (2000.0, 2000.0)
    assert found.slowdown.worst == pytest.approx(math.exp(0.04) - 1, abs=1e-3)
    assert found.steal is None
    assert found.unseen_cpu is None
    assert "CPU times" in found.nulls["steal"]


def test_ended_early_it_shows_what_it_has(fake, tmp_path):
    fake.stop_at = 5
    found = quiet.observe(10.0, machine=_machine(), root=tmp_path)
    assert found.interrupted
    assert len(found.log_ratios) == 5  # the broken block compares nothing
    assert found.runs == 5 * 18 + 1
    assert found.difference is not None


def test_ended_before_the_first_block(fake, tmp_path, monkeypatch):
    fake.stop_at = 0
    found = quiet.observe(10.0, machine=_machine(), root=tmp_path)
    assert found.interrupted
    assert found.runs == 1
    assert found.difference is None
    monkeypatch.setattr(_Fake, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    found = quiet.observe(10.0, machine=_machine(), root=tmp_path)
    assert found.piece_ns is found.slowdown is found.spread is None
    assert {"piece_ns", "slowdown", "spread", "difference"} <= set(found.nulls)


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_no_time_at_all_is_refused(seconds):
    with pytest.raises(MintDeployError, match="expected a number above 0"):
        quiet.observe(seconds)


def test_a_busy_neighbour_is_named_and_costs(tmp_path):
    """Beside processes that take every core: others, named, first advice."""
    if "other_cpu" in quiet.Watch().nulls:
        pytest.skip("this system tells no CPU times")
    script = tmp_path / "neighbour.py"
    script.write_text("while True:\n    pass\n", encoding="utf-8")
    # started by a process that ends, so that they are not our children
    code = (
        "import subprocess, sys; ps = [subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL,"
        " stderr=subprocess.DEVNULL, start_new_session=True) for _ in range(2)];"
        " print(*(p.pid for p in ps))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, sys.executable, str(script)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    pids = [int(word) for word in done.stdout.split()]
    try:
        found = quiet.observe(2.5, machine=_machine())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    theirs = next(p for p in found.processes if p.name.endswith("neighbour.py"))
    assert set(theirs.pids) == set(pids)
    assert found.other_cpu >= theirs.cores - 0.1 > 0
    first = next(a for a in found.advice if a.command.startswith("kill -STOP"))
    assert "neighbour.py" in first.text
    assert any("other processes used" in text for text in found.doubts)
