"""The multi_stream scenario: bursts of concurrent queries."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from onnx_models import save_conv
from strange_runtime import QUICK, RUNTIME, install

from mint_deploy import bench, plugins
from mint_deploy._bench_streams import Burst
from mint_deploy.bench import Settings, interleave, measure
from mint_deploy.errors import ConfigError, DataError, ModelError


@pytest.fixture
def strange(tmp_path, monkeypatch):
    return install(tmp_path, monkeypatch)


# ---------------------------------------------------------------- a burst


def test_the_queries_of_a_burst_run_at_the_same_time():
    """None of them gets past the barrier before all have reached it."""
    together = threading.Barrier(5, timeout=20)
    with Burst([lambda inputs: together.wait()] * 5) as burst:
        for _ in range(3):
            burst({})


def test_a_burst_is_over_when_its_last_query_is():
    naps = [0.0, 0.15, 0.01]
    done = []

    def query(seconds):
        def infer(inputs):
            time.sleep(seconds)
            done.append(inputs["x"])

        return infer

    with Burst([query(s) for s in naps]) as burst:
        begin = time.perf_counter()
        burst({"x": 7})
        assert time.perf_counter() - begin >= 0.15
        assert done == [7, 7, 7]


def test_an_error_of_a_query_is_raised_once_all_are_done_and_the_next_burst_runs():
    calls = []

    def fails(inputs):
        calls.append("fails")
        if len(calls) < 3:
            raise ModelError("too big")

    def works(inputs):
        time.sleep(0.05)
        calls.append("works")

    with Burst([fails, works]) as burst:
        with pytest.raises(ModelError, match="too big"):
            burst({})
        assert sorted(calls) == ["fails", "works"]
        burst({})
    assert len(calls) == 4


def test_its_threads_end_with_it():
    before = threading.active_count()
    with Burst([lambda inputs: None] * 4) as burst:
        burst({})
        assert threading.active_count() == before + 4
    assert threading.active_count() == before


# ---------------------------------------------------------------- in this process


def test_measure_makes_bursts_of_eight_queries_to_the_one_runner():
    seen = set()
    with plugins.load("runtime", "null").runner() as live:
        real = live.infer

        class Spy:
            engine, threads, inputs, outputs = live.engine, live.threads, live.inputs, live.outputs
            calls = 0

            def infer(self, inputs):
                seen.add(threading.get_ident())
                Spy.calls += 1
                return real(inputs)

        found = measure(
            Spy(), {"input": np.zeros((2, 1), np.float32)}, scenario="multi_stream", settings=QUICK
        )
    assert found.task.streams == bench.STREAMS == 8
    assert found.task.scenario == "multi_stream"
    assert dict(found.task.flags)["stream_runners"] == "one for all"
    assert len(seen) == 8
    # a latency is that of a burst
    assert Spy.calls == 8 * (len(found.restarts_ns[0]) + len(found.warmup_ns))


@pytest.mark.parametrize("scenario", ["single_stream", "offline"])
def test_other_scenarios_have_one_stream(scenario):
    with plugins.load("runtime", "null").runner() as live:
        found = measure(live, {}, scenario=scenario, settings=QUICK)
        assert found.task.streams == 1
        assert "stream_runners" not in dict(found.task.flags)
        with pytest.raises(ConfigError, match=f"streams is 2 under {scenario}"):
            measure(live, {}, scenario=scenario, streams=2)


def test_what_starting_and_gathering_a_burst_takes_is_known():
    alone, eight = bench.overhead_ns(500), bench.overhead_ns(500, streams=8)
    assert 0 < alone < eight
    # generous: about 0.1 ms on a busy machine of two cores
    assert eight < 20e6


# ---------------------------------------------------------------- in processes


def test_each_stream_has_a_session_and_a_thread_of_its_own(strange, tmp_path):
    """A query of 20 ms: four at once take far less than four after another."""
    log = tmp_path / "log"
    source = tmp_path / "strange_pkg" / "strange.py"
    said = (
        "import threading; "
        f"open({str(log)!r}, 'a').write(f'{{id(self)}} {{threading.get_ident()}}\\n')"
    )
    source.write_text(source.read_text().replace("self.calls += 1", f"self.calls += 1; {said}"))
    path = strange("sleep 0.02")
    settings = Settings(warmup_s=0, warmup_count=1, min_s=0, min_count=10, precision=1e9)
    (m,), _ = interleave(
        {"m": path}, runtime=RUNTIME, scenario="multi_stream", streams=4, restarts=1,
        half_width=None, settings=settings,
    )  # fmt: skip
    pairs = {tuple(line.split()) for line in log.read_text().splitlines()}
    assert len(pairs) == 4
    assert len({runner for runner, _ in pairs}) == len({thread for _, thread in pairs}) == 4
    assert m.task.streams == 4
    assert dict(m.task.flags)["stream_runners"] == "one a stream"
    assert 20e6 <= np.median(m.restarts_ns[0]) < 60e6


def test_two_files_in_bursts_are_compared(strange):
    paths = {"a": strange("sleep 0.004", "a"), "b": strange("sleep 0.008", "b")}
    (a, b), (c,) = interleave(
        paths, runtime=RUNTIME, scenario="multi_stream", streams=3, restarts=2, half_width=None,
        settings=QUICK,
    )  # fmt: skip
    assert a.task.streams == b.task.streams == 3
    assert c.ratio == pytest.approx(2, abs=0.6)


def test_a_real_session_answers_bursts(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    (m,), _ = interleave(
        {"m": path}, scenario="multi_stream", streams=2, restarts=1, half_width=None,
        settings=QUICK,
    )  # fmt: skip
    assert len(m.restarts_ns[0]) >= 10
    assert m.peak_rss_bytes > m.import_rss_bytes


def test_an_error_in_a_stream_is_told_like_any_other(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    with pytest.raises(DataError, match=r"'m': m.onnx takes input"):
        interleave(
            {"m": path}, scenario="multi_stream", streams=2, restarts=1,
            inputs={"input": np.ones((1, 4, 8, 8), np.float32)},
        )  # fmt: skip
