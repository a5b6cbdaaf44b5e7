"""The benchmarks of the gate and beside other timers: what they count, promise, resume and print."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import conv_model
import gate
import numpy as np
import onnxruntime
import pytest
import timers
import timers_sides
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy.onnx_figures import figures

BENCHMARKS = Path(gate.__file__).parent
SETTINGS = {"limit": 0.03, "seconds": 60.0, "seed": 0, "models": "abc"}
ABOUT = {"machine": "2 cores, x86_64, Python 3.11.7", "date": "2025-01-02", "load_before": 0.5}


def row(kind: str, index: int, state: str, **more) -> dict:
    return {
        "kind": kind, "index": index, "settings": SETTINGS, "state": state, "ratio": 1.0, "low": 0.99,
        "high": 1.01, "restarts": 7, "seconds": 20.0, **ABOUT, **more,
    }  # fmt: skip


def rows(kind: str, **counts: int) -> list[dict]:
    states = [s for s, n in counts.items() for _ in range(n)]
    return [row(kind, i, s) for i, s in enumerate(states)]


# ---------------------------------------------------------------- the models


def test_b_has_a_tenth_more_of_the_same(tmp_path):
    a = conv_model.onnx_file(tmp_path / "a.onnx")
    b = conv_model.onnx_file(tmp_path / "b.onnx", conv_model.LAYERS + gate.MORE)
    again = conv_model.onnx_file(tmp_path / "again.onnx")
    assert a.read_bytes() == again.read_bytes()
    macs = [figures(p)[0]["macs"] for p in (a, b)]
    assert macs[1] / macs[0] == pytest.approx(1.10, abs=0.01)


def test_the_module_is_the_file(tmp_path):
    import torch

    path = conv_model.onnx_file(tmp_path / "m.onnx", 3)
    x = np.random.default_rng(0).standard_normal((1, 3, conv_model.SIZE, conv_model.SIZE))
    x = x.astype(np.float32)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = conv_model.torch_module(3)(torch.from_numpy(x)).numpy()
    assert np.allclose(session.run(None, {"input": x})[0], expected, atol=1e-4)
    assert 0.1 < expected.std() < 10  # nothing dies away, so nothing is faster than it should be


# ---------------------------------------------------------------- the promises


@pytest.mark.parametrize(
    ("kind", "counts", "kept"),
    [
        ("aa", {"pass": 49, "fail": 1}, True),
        ("aa", {"pass": 40, "inconclusive": 10}, True),
        ("aa", {"pass": 39, "inconclusive": 11}, False),
        ("aa", {"pass": 48, "fail": 2}, False),
        ("ab", {"fail": 45, "inconclusive": 5}, True),
        ("ab", {"fail": 44, "inconclusive": 6}, False),
        ("ab", {"fail": 49, "pass": 1}, False),
        ("busy aa", {"inconclusive": 49, "fail": 1}, True),
        ("busy aa", {"pass": 48, "fail": 2}, False),
        ("busy ab", {"inconclusive": 49, "pass": 1}, True),
        ("busy ab", {"fail": 48, "pass": 2}, False),
    ],
)
def test_the_promises_of_the_issue(kind, counts, kept):
    assert (gate.broken(kind, rows(kind, **counts)) == []) == kept


@given(st.sampled_from(sorted(gate.KINDS)), st.lists(st.sampled_from(gate.STATES), max_size=50))
def test_a_promise_that_is_broken_stays_broken(kind, states):
    """Whatever is still to come: an early verdict is never taken back."""
    made = [row(kind, i, s) for i, s in enumerate(states)]
    if gate.broken(kind, made):
        for rest in gate.STATES:
            whole = [*made, *(row(kind, i, rest) for i in range(len(made), 50))]
            assert gate.broken(kind, whole)


@given(st.sampled_from(sorted(gate.KINDS)), st.lists(st.sampled_from(gate.STATES), max_size=49))
def test_what_is_not_broken_yet_can_still_be_kept(kind, states):
    made = [row(kind, i, s) for i, s in enumerate(states)]
    if not gate.broken(kind, made):
        endings = (
            [*made, *(row(kind, i, rest) for i in range(len(made), 50))] for rest in gate.STATES
        )
        assert any(not gate.broken(kind, whole) for whole in endings)


def test_wrong_means_wrong():
    """A model is never slower than itself, and one that is 10 % slower never holds a limit of 3 %."""
    for kind, (slower, _) in gate.KINDS.items():
        wrong = "pass" if slower else "fail"
        least, most = gate.PROMISES[kind][wrong]
        assert (least, most <= 1) == (0, True)


# ---------------------------------------------------------------- resuming


@given(st.sets(st.integers(0, 20)), st.integers(0, 25))
def test_what_is_done_is_not_done_again(done, count):
    made = [row("aa", i, "pass") for i in done]
    left = gate.pending(made, SETTINGS, "aa", count)
    assert sorted({*left, *done} & set(range(count))) == list(range(count))
    assert not set(left) & done
    assert gate.pending(made, SETTINGS, "ab", count) == list(range(count))
    assert gate.pending(made, {**SETTINGS, "limit": 0.05}, "aa", count) == list(range(count))


def test_a_line_that_a_kill_cut_off_is_left_out_and_written_behind(tmp_path):
    path = tmp_path / "deep" / "gate.jsonl"
    gate.append(path, row("aa", 0, "pass"))
    with path.open("a") as stream:
        stream.write('{"kind": "aa", "ind')
    assert gate.read(path) == [row("aa", 0, "pass")]
    gate.append(path, row("aa", 1, "fail"))
    assert gate.read(path) == [row("aa", 0, "pass"), row("aa", 1, "fail")]
    assert gate.read(tmp_path / "none.jsonl") == []


def run(monkeypatch, path: Path, **given_more) -> list[tuple[str, int]]:
    """Run the benchmark with comparisons that cost nothing, and return what was compared."""
    asked = []

    def compare_once(a, b, *, limit, seconds, seed):
        asked.append((f"{a}{b}", seed))
        return {
            k: row("", 0, "pass")[k]
            for k in ("state", "ratio", "low", "high", "restarts", "seconds")
        }

    def long_run(a, b, **_):
        asked.append((f"{a}{b}", -1))
        return {"ratio": 1.1, "low": 1.09, "high": 1.11, "restarts": 99}

    busy = []
    monkeypatch.setattr(gate, "compare_once", compare_once)
    monkeypatch.setattr(gate, "truth", long_run)
    whole = gate.neighbour
    monkeypatch.setattr(gate, "neighbour", lambda seed, busy: busy_or_not(seed, busy))

    def busy_or_not(seed, is_busy):
        busy.append(is_busy)
        return whole(seed, busy=False)

    given_options = argparse.Namespace(
        **{
            "only": None,
            "count": 2,
            "limit": 0.03,
            "seconds": 60.0,
            "truth_seconds": 9.0,
            **given_more,
        }
    )
    files = {"a": "A", "again": "a", "slow": "B"}
    gate.run(given_options, path, SETTINGS, files)
    return asked


def test_a_run_makes_each_comparison_once_by_turns(monkeypatch, tmp_path):
    path = tmp_path / "gate.jsonl"
    asked = run(monkeypatch, path)
    assert asked[0] == ("AB", -1)  # the long run comes first
    assert [pair for pair, _ in asked[1:]] == ["Aa", "AB", "Aa", "AB"] * 2
    assert [seed for _, seed in asked[1:]] == [0] * 4 + [1] * 4
    assert run(monkeypatch, path) == []
    assert len(run(monkeypatch, path, count=3)) == 4
    made = gate.read(path)
    assert Counter(r["kind"] for r in made) == {"truth": 1, **dict.fromkeys(gate.KINDS, 3)}


@pytest.mark.parametrize(
    ("only", "kinds"), [("aa", {"aa"}), ("ab", {"ab"}), ("busy", {"busy aa", "busy ab"})]
)
def test_a_part_can_be_asked_for(monkeypatch, tmp_path, only, kinds):
    run(monkeypatch, tmp_path / "gate.jsonl", only=only, truth_seconds=0)
    assert {r["kind"] for r in gate.read(tmp_path / "gate.jsonl")} == kinds


# ---------------------------------------------------------------- the page


def test_the_page_says_what_was_made_and_what_was_not():
    made = [*rows("aa", **{"pass": 50}), *rows("ab", fail=2, **{"pass": 1})]
    long = {
        "kind": "truth",
        "of": "abc",
        "ratio": 1.1021,
        "low": 1.09,
        "high": 1.11,
        "restarts": 80,
    }
    text = gate.page([*made, long], SETTINGS)
    cells = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:-1]]
        for line in text.splitlines()
        if line.startswith("| ")
    }
    assert cells["aa"][:4] == ["50", "50", "0", "0"]
    assert cells["aa"][-1] == "kept"
    assert cells["ab"][:4] == ["3", "1", "0", "2"]
    assert "1 pass, at most 0 promised" in cells["ab"][-1]
    assert cells["busy aa"][-1] == "not run here"
    assert "1.1021 [1.0900, 1.1100], 80 restarts" in text
    assert "not run here" in gate.page([], SETTINGS)


def test_the_neighbour_works_and_is_gone():
    before = time.process_time_ns()
    with gate.neighbour(0) as nothing:
        assert nothing is None
        time.sleep(0.3)
    assert time.process_time_ns() - before < 1e9  # its work is not ours
    with gate.neighbour(0, busy=False):
        pass


# ---------------------------------------------------------------- beside other timers


def turn(pair: str, index: int, ours: float, theirs: float | None = None) -> dict:
    settings = {"seconds": 2.0, "layers": 20, "versions": {"onnxruntime": "1"}}
    times = {"ours_ns": ours} | ({} if theirs is None else {"theirs_ns": theirs})
    return {"pair": pair, "turn": index, "settings": settings, **times, **ABOUT}


@given(
    st.lists(st.booleans(), min_size=40, max_size=200),
    st.floats(1.0, 2.0),
    st.floats(0.95, 1.05),
)
def test_two_speeds_of_the_machine_do_not_move_the_ratio(slow, factor, true):
    """Both sides meet the same seconds, fast or slow; where half is slow a median would jump."""
    theirs = [1e7 * (factor if s else 1.0) for s in slow]
    # more calls fit into a fast second than into a slow one, on both sides alike
    ours = [true * ns for ns in theirs]
    found = timers_sides.steady_ns(ours) / timers_sides.steady_ns(theirs)
    assert found == pytest.approx(true, rel=1e-9)


@given(st.integers(90, 110), st.floats(1.0, 1.5))
def test_a_few_calls_more_at_the_slow_speed_weigh_as_much_as_they_are(slow, factor):
    """About half of 200 calls are slow: a median would jump by the whole difference at 100."""
    fast = timers_sides.steady_ns([1e7] * 100 + [1e7 * factor] * 100)
    found = timers_sides.steady_ns([1e7] * (200 - slow) + [1e7 * factor] * slow)
    assert abs(found / fast - 1) <= (factor - 1) * 10 / 190 + 1e-9


def test_calls_with_a_pause_and_the_slowest_are_left_out():
    calm = [1e7] * 95
    paused = [1e7 + 1e9 * timers_sides.SLICE_S] * 5
    assert timers_sides.steady_ns([*calm, *paused]) == pytest.approx(1e7)
    assert timers_sides.steady_ns([*calm, *[9e7] * 4]) == pytest.approx(1e7)
    assert timers_sides.steady_ns([3e6]) == 3e6


def test_the_interval_must_lie_within_the_limits():
    near = [turn("plain", i, 1.001e6 + i, 1e6) for i in range(6)]
    far = [turn("plain", i, 1.05e6 + i, 1e6) for i in range(6)]
    wide = [turn("plain", i, 1e6 * (1.1 if i % 2 else 0.9), 1e6) for i in range(6)]
    assert [timers.judged(found)[3] for found in (near, far, wide)] == [True, False, False]
    assert timers.judged(near[:1]) is None
    assert math.isclose(timers.judged(far)[0], 1.05, rel_tol=1e-3)


def test_the_table_says_what_is_kept_and_what_was_not_run():
    made = [turn("plain", i, 2e6 + i, 2e6) for i in range(6)]
    made += [turn("null", i, 900.0 + i) for i in range(3)]
    text = timers.page(made, made[0]["settings"])
    assert "| plain | 6 | 2.00 | 2.00 | 1.000 | 1.000 to 1.000 | yes |" in text
    assert "| openvino | 0 | - | - | - | - | not run here |" in text
    assert "901 ns a call (median of 3 processes; at most 2000: kept)" in text
    slow = [turn("null", i, 2900.0) for i in range(3)]
    assert "broken" in timers.table(slow, made[0]["settings"])


def test_the_turns_are_resumed(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        timers, "timed", lambda sides, *_: asked.extend(sides) or [1e6] * len(sides)
    )
    monkeypatch.setattr(timers, "has_benchmark_app", lambda: False)
    path, settings = tmp_path / "timers.jsonl", {"seconds": 1.0}
    pairs = ["plain", "openvino", "null"]
    timers.run(pairs, 2, path, settings, tmp_path / "m.onnx")
    first = ["theirs plain", "ours plain", "ours null"]
    twice = [*first, "ours plain", "theirs plain", "ours null"]
    assert asked == twice, "who begins alternates"
    timers.run(pairs, 2, path, settings, tmp_path / "m.onnx")
    assert asked == twice
    timers.run(pairs, 1, path, {"seconds": 2.0}, tmp_path / "m.onnx")
    assert asked == twice + first


def timers_file(folder: Path) -> Path:
    return conv_model.onnx_file(folder / "m.onnx", 2, size=timers_sides.SIZE, pool=True)


@pytest.mark.parametrize("side", ["ours plain", "theirs plain", "ours null"])
def test_a_side_times_the_file(tmp_path, side, monkeypatch):
    monkeypatch.setattr(timers_sides, "WARM_S", 0.05)
    path, order = timers_file(tmp_path), []
    times = timers_sides.SIDES[side](path, 0.05, lambda: order.append("ready"))
    assert order == ["ready"]
    assert all(1e2 < ns < 1e9 for ns in times)


def test_a_side_that_fails_is_told(tmp_path):
    with pytest.raises(SystemExit, match="ours plain"):
        timers.timed(["ours plain"], tmp_path / "none.onnx", 0.1)


def test_two_sides_run_by_slices_and_leave_no_process(tmp_path):
    path = timers_file(tmp_path)
    found = timers.timed(["theirs plain", "ours plain"], path, 0.3)
    assert all(1e3 < ns < 1e8 for ns in found)
    # what is told of one is found out while the other is stopped: that one is ended, too
    with pytest.raises(SystemExit, match="ours plain"):
        timers.timed(["ours plain", "theirs plain"], tmp_path / "none.onnx", 0.1)
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # one that has just ended
            assert str(tmp_path).encode() not in command.read_bytes()


# ---------------------------------------------------------------- the real thing


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gate_from_end_to_end(tmp_path):
    """One comparison of each kind: no wrong verdict but what the promise leaves open."""
    script = [sys.executable, str(BENCHMARKS / "gate.py"), "--count", "1", "--truth-seconds", "60"]
    subprocess.run([*script, "--results", str(tmp_path)], check=False)
    made = gate.read(tmp_path / "gate.jsonl")
    assert Counter(r["kind"] for r in made) == {"truth": 1, **dict.fromkeys(gate.KINDS, 1)}
    states = {r["kind"]: r["state"] for r in made if r["kind"] != "truth"}
    assert states["ab"] != "pass"
    assert all(r["seconds"] <= 61 for r in made if "seconds" in r)
    assert "| busy ab | 1 |" in (tmp_path / "gate.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_timers_from_end_to_end(tmp_path):
    script = [
        sys.executable,
        str(BENCHMARKS / "timers.py"),
        "--turns",
        "2",
        "--results",
        str(tmp_path),
    ]
    subprocess.run(script, check=False)
    made = gate.read(tmp_path / "timers.jsonl")
    counts = Counter(r["pair"] for r in made)
    assert counts["plain"] == counts["torch"] == counts["null"] == 2
    assert counts["openvino"] == (2 if timers.has_benchmark_app() else 0)
    for r in made:
        if r["pair"] != "null":
            assert 0.2 < math.exp(timers.log_ratio(r)) < 5
    nothing = sorted(r["ours_ns"] for r in made if r["pair"] == "null")
    assert nothing[0] <= timers.NULL_NS


@pytest.mark.parametrize("name", ["gate", "timers"])
def test_the_results_that_are_committed_keep_the_promises(name):
    path = BENCHMARKS / "results" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(
            f"benchmarks/results/{name}.jsonl is not here: python benchmarks/{name}.py makes it"
        )
    made = gate.read(path)
    settings = [json.loads(s) for s in {json.dumps(r["settings"]) for r in made if "settings" in r}]
    for found in settings:
        if name == "gate":
            assert not [
                w for kind in gate.KINDS for w in gate.broken(kind, gate.of(made, found, kind))
            ]
        else:
            verdicts = [timers.judged(timers.of(made, pair, found)) for pair in timers.PAIRS]
            assert all(v is None or v[3] for v in verdicts)


def test_the_defaults_are_those_of_the_issue():
    made = gate.options([])
    assert (made.only, made.count, made.limit, made.seconds) == (None, 50, 0.03, 60.0)
