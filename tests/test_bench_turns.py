"""Files in fresh processes that take turns, and the sweep over batches."""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any, ClassVar

import numpy as np
import pytest
from onnx_models import save_conv
from strange_runtime import QUICK, RUNTIME, install

from mint_deploy import _bench_files, _bench_turns, bench, files, plugins
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.bench import Settings, interleave, measure, throughput
from mint_deploy.errors import ConfigError, DataError, ModelError, UnknownName


@pytest.fixture
def strange(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch)


def test_two_files_are_measured_in_turns_and_compared(tmp_path):
    big = save_conv(tmp_path / "big.onnx", channels=32, size=16, depth=4)
    small = save_conv(tmp_path / "small.onnx", channels=8, size=16, depth=4)
    told = []
    settings = Settings(warmup_s=0.02, min_s=0.02, min_count=30, precision=0.1)
    measured, compared = interleave(
        {"dense": big, "slim": small},
        restarts=3,
        settings=settings,
        progress=lambda *a: told.append(a),
    )
    assert [m.task.label for m in measured] == ["dense", "slim"]
    assert [m.partner for m in measured] == ["slim", "dense"]
    for m, path in zip(measured, (big, small), strict=True):
        assert m.task.sha256 == files.sha256(path)
        assert m.task.inputs == (TensorSpec(name="input", shape=(1, 3, 16, 16)),)
        assert dict(m.task.flags)["spinning"] == "off"
        assert len(m.restarts_ns) == len(m.load_ns) == 3
        assert all(len(ns) >= 30 for ns in m.restarts_ns)
        assert all(ns > 0 for ns in m.load_ns)
        assert m.peak_rss_bytes > m.import_rss_bytes > 10 * 2**20
        assert m.warmup_ns
    (c,) = compared
    assert (c.a, c.b, c.restarts, c.confidence) == ("dense", "slim", 3, 0.95)
    assert c.low <= c.ratio <= c.high
    assert c.ratio < 0.7  # a quarter of the channels
    assert any("3 restarts" in text for text in c.doubts)
    assert any("3 restarts" in text for text in measured[0].doubts)
    done = [d for d, _, _ in told]
    assert done == sorted(done)
    assert told[-1][:2] == (3, 3)


def test_only_one_process_computes_at_a_time(strange, tmp_path):
    log = tmp_path / "log"
    paths = {name: strange(f"log 0.002 {log}", name) for name in ("a", "b")}
    interleave(paths, runtime=RUNTIME, restarts=2, settings=QUICK)
    spans = [tuple(map(int, line.split()[1:])) for line in log.read_text().splitlines()]
    assert len(spans) > 40
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


class _Pretended:
    """Stands for a process: answers at once and keeps what it was asked."""

    asked: ClassVar[list[tuple[str, str, dict[str, Any]]]] = []
    call_s: ClassVar[dict[str, float]] = {}

    def __init__(self, label, *, patience_s):
        self._label = label

    def __enter__(self):
        self.asked.append((self._label, "start", {}))
        return self

    def __exit__(self, *_):
        self.asked.append((self._label, "stop", {}))

    def ask(self, what, **details):
        self.asked.append((self._label, what, details))
        ns = int(self.call_s.get(self._label, 0.001) * 1e9)
        engine = files.encode(Engine(path="", runtime="null", precision="none", sha256=""))
        return {
            "open": {"load_ns": 7, "import_rss_bytes": 30, "engine": engine, "inputs": []},
            "feed": {"inputs": [{"name": "input", "shape": [1, 1], "dtype": "float32"}]},
            "warm": {"ns": [ns] * 4},
            "block": {
                "ns": [ns] * details.get("count", 0),
                "settle_ns": [ns] * details.get("settle", 0),
            },
            "peak": {"peak_rss_bytes": 50},
        }[what]


@pytest.fixture
def pretended(monkeypatch):
    monkeypatch.setattr(_Pretended, "asked", [])
    monkeypatch.setattr(_Pretended, "call_s", {})
    monkeypatch.setattr(_bench_turns, "Child", _Pretended)
    return _Pretended


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
def test_blocks_go_forth_and_back_and_who_begins_alternates(pretended, labels, rounds):
    settings = dataclasses.replace(QUICK, min_count=100)
    interleave(dict.fromkeys(labels, ""), runtime="null", restarts=3, settings=settings)
    for found, whole in zip(_blocks(pretended.asked), rounds, strict=True):
        # blocks of 20 ms are 20 calls here, two of them a round: three rounds reach 100 calls
        assert found == whole * 3
    starts = [(label, what) for label, what, _ in pretended.asked if what in ("start", "stop")]
    assert [what for _, what in starts] == (["start"] * len(labels) + ["stop"] * len(labels)) * 3


def test_a_block_is_about_twenty_milliseconds_and_its_first_call_is_not_counted(pretended):
    pretended.call_s.update(a=0.001, b=0.004)
    (a, b), (c,) = interleave({"a": "", "b": ""}, runtime="null", restarts=2, settings=QUICK)
    blocks = [details for _, what, details in pretended.asked if what == "block"]
    assert {(d["count"], d["settle"]) for d in blocks} == {(5, 1)}
    # two blocks of five reach ten calls; the first call of each block is warm-up, after four
    assert [len(ns) for ns in a.restarts_ns] == [10, 10]
    assert len(a.warmup_ns) == 2 * (4 + 2)
    assert (a.load_ns, b.peak_rss_bytes, b.import_rss_bytes) == ((7, 7), 50, 30)
    assert c.ratio == pytest.approx(4)


def test_a_slow_model_gets_single_calls_and_alone_there_is_nothing_to_settle(pretended):
    pretended.call_s.update(a=0.5, b=0.7)
    interleave({"a": "", "b": ""}, runtime="null", restarts=2, settings=QUICK)
    blocks = [details for _, what, details in pretended.asked if what == "block"]
    assert {(d["count"], d["settle"]) for d in blocks} == {(1, 0)}
    pretended.asked.clear()
    pretended.call_s.update(a=0.001)
    interleave({"a": ""}, runtime="null", restarts=1, settings=QUICK)
    assert {d["settle"] for _, what, d in pretended.asked if what == "block"} == {0}


def test_energy_of_each_model_is_counted_over_its_own_blocks(pretended, monkeypatch):
    class Meter:
        """Ten millijoules pass during each block of A, thirty during each of B."""

        total = 0

        def read_uj(self):
            label, what, _ = pretended.asked[-1]
            if what == "block" and getattr(self, "seen", None) is not pretended.asked[-1]:
                self.seen = pretended.asked[-1]
                self.total += {"a": 10_000, "b": 30_000}[label]
            return (self.total,)

        def between_mj(self, before, after):
            return (after[0] - before[0]) / 1000

    monkeypatch.setattr(_bench_files.sensors, "find_meter", lambda: (Meter(), None))
    monkeypatch.setattr(_bench_files.sensors, "idle_w", lambda _: 0.0)
    (a, b), _ = interleave({"a": "", "b": ""}, runtime="null", restarts=2, settings=QUICK)
    # blocks of 20 calls at 1 ms, and the one that settles
    assert a.energy_mj == pytest.approx(10 / 21)
    assert b.energy_mj == pytest.approx(30 / 21)
    assert "energy_mj" not in a.nulls


def test_the_same_file_twice_gives_one(strange):
    paths = {name: strange("sleep 0.001", name) for name in ("a", "b")}
    settings = Settings(warmup_s=0, warmup_count=2, min_s=0, min_count=40, precision=0.5)
    _, (c,) = interleave(paths, runtime=RUNTIME, restarts=5, settings=settings)
    assert c.ratio == pytest.approx(1, abs=0.25)


def test_a_model_half_as_slow_again_is_found_so(strange):
    paths = {"a": strange("sleep 0.004", "a"), "b": strange("sleep 0.006", "b")}
    _, (c,) = interleave(paths, runtime=RUNTIME, restarts=3, settings=QUICK)
    assert c.ratio == pytest.approx(1.5, abs=0.25)


def test_a_file_alone_and_three_together(strange):
    paths = {name: strange("sleep 0.0001", name) for name in "abc"}
    measured, compared = interleave({"a": paths["a"]}, runtime=RUNTIME, restarts=1, settings=QUICK)
    assert len(measured) == 1
    assert compared == []
    assert measured[0].partner is None
    measured, compared = interleave(paths, runtime=RUNTIME, restarts=2, settings=QUICK)
    assert [(c.a, c.b) for c in compared] == [("a", "b"), ("a", "c")]
    assert measured[1].partner == "a, c"


def test_the_budget_is_kept_and_its_cut_is_doubted(strange):
    paths = {name: strange("sleep 0.01", name) for name in ("a", "b")}
    begin = time.monotonic()
    measured, (c,) = interleave(
        paths, runtime=RUNTIME, restarts=2, budget_s=2.0, settings=Settings(min_count=10**6)
    )
    assert time.monotonic() - begin < 9
    assert not any(m.converged for m in measured)
    assert any("not converged within the time budget: a, b" in text for text in c.doubts)


def test_a_budget_already_over_still_gives_a_round(strange):
    paths = {name: strange("sleep 0.01", name) for name in ("a", "b")}
    measured, (c,) = interleave(paths, runtime=RUNTIME, restarts=2, budget_s=0.001)
    assert all(len(ns) >= 2 for m in measured for ns in m.restarts_ns)
    assert c.restarts == 2


def test_inputs_of_ones_own_reach_the_model(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    inputs = {"input": np.ones((2, 3, 8, 8), np.float32)}
    (m,), _ = interleave({"m": path}, inputs=inputs, restarts=1, settings=QUICK)
    assert m.task.batch == 2
    wrong = {"input": np.ones((2, 4, 8, 8), np.float32)}
    with pytest.raises(DataError, match=r"'m': m.onnx takes input float32 \[-1, 3, 8, 8\]"):
        interleave({"m": path}, inputs=wrong, restarts=1, settings=QUICK)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"restarts": 1}, "at least 2 for an interval"),
        ({"budget_s": 0}, "budget_s is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"batch": -1}, "batch is -1"),
        ({"confidence": 95}, "confidence is 95"),
    ],
)
def test_settings_of_the_comparison_that_make_no_sense(strange, wrong, words):
    paths = {name: strange("sleep 0", name) for name in ("a", "b")}
    with pytest.raises(ConfigError, match=words):
        interleave(paths, runtime=RUNTIME, **wrong)


def test_no_file_and_a_file_that_is_no_model(tmp_path):
    with pytest.raises(ConfigError, match="no file to measure"):
        interleave({})
    with pytest.raises(ModelError, match="no such file"):
        interleave({"a": tmp_path / "absent.onnx"})
    with pytest.raises(UnknownName, match="no runtime named"):
        interleave({"a": tmp_path / "absent.onnx"}, runtime="tensort")


def test_a_batch_that_is_fixed_at_another_number_is_refused(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=1)
    with pytest.raises(ConfigError, match="fixed at 1; use batch 1"):
        interleave({"m": path}, batch=8, restarts=1)


# ---------------------------------------------------------------- throughput


def test_throughput_over_open_batches(tmp_path):
    path = save_conv(tmp_path / "m.onnx", channels=8, size=8)
    told = []
    found = throughput(
        path, (1, 4), settings=QUICK, label="net", progress=lambda *a: told.append(a)
    )
    assert [m.task.batch for m in found.measurements] == [1, 4]
    assert all(m.task.scenario == "offline" for m in found.measurements)
    assert all(m.task.label == "net" for m in found.measurements)
    assert all(m.peak_rss_bytes for m in found.measurements)
    rates = found.samples_per_s
    one = found.measurements[1]
    ns = one.restarts_ns[0]
    assert rates[4] == pytest.approx(4 * len(ns) / sum(ns) * 1e9)
    assert found.knee in (1, 4)
    assert not found.nulls
    assert told[-1][:2] == (2, 2)


def test_throughput_of_a_fixed_batch_says_why_the_others_are_missing(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=2)
    found = throughput(path, (1, 2, 8), settings=QUICK)
    assert [m.task.batch for m in found.measurements] == [2]
    assert set(found.nulls) == {"1", "8"}
    assert "fixed at 2; export it with an open batch" in found.nulls["8"]
    assert found.knee is None


def test_throughput_goes_on_to_the_batch_that_fails(strange, tmp_path):
    source = tmp_path / "strange_pkg" / "strange.py"
    source.write_text(
        source.read_text().replace(
            "self.calls += 1",
            "self.calls += 1\n        if len(inputs['input']) > 2: raise ModelError('too big')",
        )
    )
    found = throughput(strange("sleep 0.001"), (1, 2, 4, 8), runtime=RUNTIME, settings=QUICK)
    assert [m.task.batch for m in found.measurements] == [1, 2]
    assert "too big" in found.nulls["4"]
    assert "batch 4 failed before" in found.nulls["8"]
    with pytest.raises(ModelError, match="too big"):
        throughput(strange("sleep 0.001"), (4,), runtime=RUNTIME, settings=QUICK)


def test_the_knee_is_the_smallest_batch_near_the_best():
    def one(batch, per_call_ns):
        with plugins.load("runtime", "null").runner() as live:
            m = measure(live, {}, scenario="offline", settings=QUICK)
        task = dataclasses.replace(m.task, batch=batch)
        return dataclasses.replace(m, task=task, restarts_ns=((per_call_ns,) * 20,))

    rows = (one(1, 1000), one(2, 1100), one(4, 1600), one(8, 3150))
    found = bench.Throughput(measurements=rows)
    assert found.samples_per_s[8] == pytest.approx(8 / 3150 * 1e9)
    assert found.knee == 4


@pytest.mark.parametrize("batches", [(), (0,), (1, -2)])
def test_batches_that_make_no_sense(tmp_path, batches):
    with pytest.raises(ConfigError, match="batches are"):
        throughput(tmp_path / "x.onnx", batches)
