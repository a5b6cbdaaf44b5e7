"""Files in fresh processes that take turns: the order, the blocks, what is recorded."""

from __future__ import annotations

import dataclasses
import itertools
import os

import numpy as np
import pretended
import pytest
from onnx_models import save_conv
from strange_runtime import QUICK, RUNTIME, install

from mint_deploy import _bench_energy, _bench_files, _bench_turns, files, sensors
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.bench import Settings, interleave
from mint_deploy.errors import ConfigError, DataError, ModelError, UnknownName

#: exactly so many restarts as are asked for
FIXED = {"half_width": None, "settings": QUICK}


@pytest.fixture
def strange(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch)


@pytest.fixture
def pretence(monkeypatch):
    return pretended.install(monkeypatch)


# ---------------------------------------------------------------- real processes


def test_two_files_are_measured_in_turns_and_compared(tmp_path):
    big = save_conv(tmp_path / "big.onnx", channels=32, size=16, depth=4)
    small = save_conv(tmp_path / "small.onnx", channels=8, size=16, depth=4)
    told = []
    settings = Settings(warmup_s=0.02, min_s=0.02, min_count=30, precision=1e9)
    measured, compared = interleave(
        {"dense": big, "slim": small},
        restarts=2,
        half_width=None,
        settings=settings,
        progress=lambda *a: told.append(a),
    )
    assert [m.task.label for m in measured] == ["dense", "slim"]
    assert [m.partner for m in measured] == ["slim", "dense"]
    for m, path in zip(measured, (big, small), strict=True):
        assert m.task.sha256 == files.sha256(path)
        assert m.task.inputs == (TensorSpec(name="input", shape=(1, 3, 16, 16)),)
        assert dict(m.task.flags)["spinning"] == "off"
        assert len(m.restarts_ns) == len(m.load_ns) == len(m.states) == 2
        assert all(len(ns) >= 30 for ns in m.restarts_ns)
        assert [sum(blocks) for blocks in m.blocks] == [len(ns) for ns in m.restarts_ns]
        assert all(ns > 0 for ns in m.load_ns)
        assert m.peak_rss_bytes > m.import_rss_bytes > 10 * 2**20
        assert m.warmup_ns
        assert m.gpu_bytes is None
        assert "computes on the CPU" in m.nulls["gpu_bytes"]
        blank = {
            f"states.{f.name}"
            for f in dataclasses.fields(m.states[0])
            if getattr(m.states[0], f.name) is None
        }
        assert blank <= set(m.nulls), "each null figure with its reason"
        assert not m.sequential
    (c,) = compared
    assert (c.a, c.b, c.restarts, c.confidence) == ("dense", "slim", 2, 0.95)
    assert c.low <= c.ratio <= c.high
    assert c.ratio < 0.8  # a quarter of the channels
    assert any("2 restarts" in text for text in c.doubts)
    assert any("2 restarts" in text for text in measured[0].doubts)
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert told[-1][:2] == (2, 2)
    assert "slim takes" in told[-1][2]


def test_only_one_process_computes_at_a_time(strange, tmp_path):
    log = tmp_path / "log"
    paths = {name: strange(f"log 0.002 {log}", name) for name in ("a", "b")}
    interleave(paths, runtime=RUNTIME, restarts=2, **FIXED)
    spans = [tuple(map(int, line.split()[1:])) for line in log.read_text().splitlines()]
    assert len(spans) > 40
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("pin", [True, False])
def test_the_processes_of_a_restart_are_held_to_the_same_core(strange, tmp_path, pin):
    source = tmp_path / "strange_pkg" / "strange.py"
    say = f"open({str(tmp_path / 'cores')!r}, 'a').write(f'{{sorted(os.sched_getaffinity(0))}}\\n')"
    source.write_text(source.read_text().replace("self.calls += 1", f"self.calls += 1; {say}"))
    paths = {name: strange("sleep 0.001", name) for name in ("a", "b")}
    (m, _), _ = interleave(paths, runtime=RUNTIME, restarts=2, pin=pin, **FIXED)
    said = set((tmp_path / "cores").read_text().splitlines())
    everything = str(sorted(os.sched_getaffinity(0)))
    several = len(os.sched_getaffinity(0)) > 1
    if pin and several:
        assert len(said) == 1
        assert said != {everything}
        assert dict(m.task.flags)["cores"].startswith("1 of ")
    else:
        assert said == {everything}
        assert dict(m.task.flags)["cores"] == "all"


def test_inputs_of_ones_own_reach_the_model(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    inputs = {"input": np.ones((2, 3, 8, 8), np.float32)}
    (m,), _ = interleave({"m": path}, inputs=inputs, restarts=1, **FIXED)
    assert m.task.batch == 2
    wrong = {"input": np.ones((2, 4, 8, 8), np.float32)}
    with pytest.raises(DataError, match=r"'m': m.onnx takes input float32 \[-1, 3, 8, 8\]"):
        interleave({"m": path}, inputs=wrong, restarts=1, **FIXED)


def test_a_batch_that_is_fixed_at_another_number_is_refused(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=1)
    with pytest.raises(ConfigError, match="fixed at 1; use batch 1"):
        interleave({"m": path}, batch=8, restarts=1)


# ---------------------------------------------------------------- the order and the blocks


def _blocks(asked):
    """The labels of the blocks, a word for each restart."""
    out = []
    for label, what, _ in asked:
        if what == "open" and (not out or out[-1]):
            out.append("")
        if what == "block":
            out[-1] += label
    return out


@pytest.mark.parametrize(
    ("labels", "rounds"),
    [("ab", ["abba", "baab", "abba"]), ("abc", ["abccba", "cbaabc", "abccba"])],
)
def test_blocks_go_forth_and_back_and_who_begins_alternates(pretence, labels, rounds):
    settings = dataclasses.replace(QUICK, min_count=100)
    fixed = {**FIXED, "settings": settings}
    interleave(dict.fromkeys(labels, ""), runtime="null", restarts=3, **fixed)
    for found, whole in zip(_blocks(pretence.asked), rounds, strict=True):
        # blocks of 20 ms are 20 calls here, two of them a round: three rounds reach 100 calls
        assert found == whole * 3
    starts = [what for _, what, _ in pretence.asked if what in ("start", "stop")]
    assert starts == (["start"] * len(labels) + ["stop"] * len(labels)) * 3


def test_a_block_is_about_twenty_milliseconds_and_its_first_call_is_not_counted(pretence):
    pretence.call_s.update(a=0.002, b=0.004)
    (a, b), (c,) = interleave({"a": "", "b": ""}, runtime="null", restarts=2, **FIXED)
    assert {(d["count"], d["settle"]) for _, d in pretence.of("block")} == {(5, 1)}
    # two blocks of five reach ten calls; the first call of each block is warm-up, after four
    assert [len(ns) for ns in a.restarts_ns] == [10, 10]
    assert a.blocks == b.blocks == ((5, 5), (5, 5))
    assert len(a.warmup_ns) == 2 * (4 + 2)
    assert (a.load_ns, b.peak_rss_bytes, b.import_rss_bytes) == ((7, 7), 50, 30)
    assert [s.load_average for s in a.states] == [0.5, 0.5]
    assert c.ratio == pytest.approx(2)


@pytest.mark.parametrize(
    ("call_s", "block"),
    [(0.004, (5, 1)), (0.015, (2, 1)), (0.03, (2, 1)), (0.06, (1, 0)), (0.5, (1, 0))],
)
def test_slow_models_have_two_calls_a_block_and_very_slow_ones_nothing_to_settle(
    pretence, call_s, block
):
    pretence.call_s.update(a=call_s, b=call_s)
    interleave({"a": "", "b": ""}, runtime="null", restarts=2, **FIXED)
    assert {(d["count"], d["settle"]) for _, d in pretence.of("block")} == {block}


def test_alone_there_is_nothing_to_settle(pretence):
    (a,), compared = interleave({"a": ""}, runtime="null", restarts=1, **FIXED)
    assert {d["settle"] for _, d in pretence.of("block")} == {0}
    assert compared == []
    assert a.partner is None


def test_three_are_each_compared_with_the_first(pretence):
    measured, compared = interleave(dict.fromkeys("abc", ""), runtime="null", restarts=2, **FIXED)
    assert [(c.a, c.b) for c in compared] == [("a", "b"), ("a", "c")]
    assert measured[1].partner == "a, c"


def test_an_order_effect_cancels(pretence):
    """Whoever's block comes second of two neighbours is 10 % slower: the ratio stays 1."""
    first = []

    def later(label, what):
        if what == "block":
            slow = bool(first) and first.pop() != label
            if not slow:
                first.append(label)
            pretence.call_s.update(dict.fromkeys("ab", 0.0011 if slow else 0.001))

    pretence.before = later
    fixed = {**FIXED, "settings": dataclasses.replace(QUICK, min_count=40)}
    (a, b), (c,) = interleave({"a": "", "b": ""}, runtime="null", restarts=2, **fixed)
    assert len(set(a.restarts_ns[0])) == len(set(b.restarts_ns[0])) == 2
    assert c.ratio == pytest.approx(1, abs=1e-6)


# ---------------------------------------------------------------- energy


class _Meter:
    """Ten millijoules pass during each block of A, thirty during each of B."""

    what = "pretended"

    def __init__(self, pretence, resolution_s):
        self.pretence, self.resolution_s = pretence, resolution_s
        self.total, self.seen = 0, None

    def read_uj(self):
        last = self.pretence.asked[-1] if self.pretence.asked else ("", "", {})
        if last[1] == "block" and self.seen is not last:
            self.seen = last
            self.total += {"a": 10_000, "b": 30_000}[last[0]]
        return (self.total,)

    def between_mj(self, before, after):
        return (after[0] - before[0]) / 1000


def _with_meter(monkeypatch, meter):
    given = {"meter": meter, "idle_w": 0.0, "no_meter": None}
    monkeypatch.setattr(_bench_files, "metered", lambda runtime: given)


def test_energy_of_each_model_is_counted_over_its_own_blocks(pretence, monkeypatch):
    _with_meter(monkeypatch, _Meter(pretence, 0.001))
    (a, b), _ = interleave({"a": "", "b": ""}, runtime="null", restarts=2, **FIXED)
    # blocks of 20 calls at 1 ms, and the one that settles
    assert a.energy_mj == pytest.approx(10 / 21)
    assert b.energy_mj == pytest.approx(30 / 21)
    assert "energy_mj" not in a.nulls


def test_a_slow_counter_tells_of_two_models_by_a_pass_of_each_alone(pretence, monkeypatch):
    monkeypatch.setattr(_bench_energy, "STEPS", 1)
    _with_meter(monkeypatch, _Meter(pretence, 0.1))
    more = {**FIXED, "budget_s": 4.0}
    (a, b), _ = interleave({"a": "", "b": ""}, runtime="null", restarts=2, **more)
    # 0.1 s in pieces of 13 calls of a millisecond
    assert a.energy_mj == pytest.approx(10 / 104)
    assert b.energy_mj == pytest.approx(30 / 104)
    assert not {"energy_mj"} & (set(a.nulls) | set(b.nulls))
    passes = [x for x, r, more in pretence.asked if r == "block" and more["count"] == 13]
    assert passes == [*8 * ["a"], *8 * ["b"]], "once, each alone"
    for m in (a, b):
        assert all(
            sum(blocks) == len(ns) for blocks, ns in zip(m.blocks, m.restarts_ns, strict=True)
        )


def test_where_there_is_no_time_for_the_pass_it_says_so(pretence, monkeypatch):
    _with_meter(monkeypatch, _Meter(pretence, 0.1))
    more = {**FIXED, "budget_s": 4.0}
    (a, _), _ = interleave({"a": "", "b": ""}, runtime="null", restarts=2, **more)
    assert a.energy_mj is None
    assert "pretended moves every 0.1 s" in a.nulls["energy_mj"]
    assert "no time for a pass of 2 s a file" in a.nulls["energy_mj"]


def test_a_slow_counter_tells_the_energy_of_one_model_over_its_blocks(pretence, monkeypatch):
    _with_meter(monkeypatch, _Meter(pretence, 0.1))
    (a,), _ = interleave({"a": ""}, runtime="null", restarts=1, **FIXED)
    assert a.energy_mj == pytest.approx(10 / 20)


def test_the_gpus_memory_is_asked_for_where_one_computes(pretence, monkeypatch):
    asked = iter([(100, None), (300, None), (None, "gone")])
    monkeypatch.setattr(sensors, "gpu_process_bytes", lambda pid: next(asked))
    engine = Engine(path="", runtime="some_cuda", precision="fp32", sha256="")
    turns = _bench_turns.Turns(
        records={"a": _bench_turns.Record(engine)}, runtime="some_cuda", threads=1, batch=1,
        settings=QUICK,
    )  # fmt: skip
    for _ in range(3):
        turns.restart(["a"], 1.0)
    assert turns.records["a"].gpu == (300, None)
    assert turns.cores() is None  # the threads of a GPU's driver are left alone


# ---------------------------------------------------------------- what makes no sense


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"restarts": 1}, "at least 2 for an interval"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"confidence": 95}, "confidence is 95"),
        ({"half_width": -0.01}, "half_width is -0.01"),
        ({"half_width": float("nan")}, "half_width is nan"),
        ({"limit": -1.5}, "limit is -1.5"),
        ({"streams": 4}, "streams is 4 under single_stream"),
        ({"scenario": "multi_stream", "streams": 0}, "streams is 0"),
    ],
)
def test_settings_of_the_comparison_that_make_no_sense(pretence, wrong, words):
    with pytest.raises(ConfigError, match=words):
        interleave({"a": "", "b": ""}, runtime="null", **wrong)
    assert not pretence.asked


def test_no_file_and_a_file_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="no file to measure"):
        interleave({})
    with pytest.raises(ConfigError, match="there is one file"):
        interleave({"a": tmp_path / "absent.onnx"}, limit=0.1)
    with pytest.raises(ModelError, match="no such file"):
        interleave({"a": tmp_path / "absent.onnx"})
    with pytest.raises(UnknownName, match="no runtime named"):
        interleave({"a": tmp_path / "absent.onnx"}, runtime="tensort")
    with pytest.raises(UnknownName, match="did you mean 'multi_stream'"):
        interleave({"a": tmp_path / "absent.onnx"}, scenario="multi_streams")
