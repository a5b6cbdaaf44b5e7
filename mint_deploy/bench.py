"""The scenario loop: a runner and a clock become a Measurement with every raw latency kept.

``measure`` runs a runner of this process. ``interleave`` compares files: each restart starts fresh
processes, one a model, that take turns in blocks (A B B A ...), so that whatever the machine does
meanwhile happens to both. ``throughput`` sweeps the batch. The measurer knows neither the model,
nor the plan, nor which one is hoped to win.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from mint_deploy import plugins, sensors, statistics
from mint_deploy._bench_base import (
    MOST_CALLS,
    SCENARIOS,
    STREAMS,
    MeasuringStopped,
    Progress,
    Settings,
    now,
    positive,
    streams_of,
    task_spec,
)
from mint_deploy._bench_cores import on_gpu
from mint_deploy._bench_files import interleave
from mint_deploy._bench_streams import Burst
from mint_deploy._bench_sweep import Throughput, throughput
from mint_deploy._bench_worker import random_inputs, timed, warm_up
from mint_deploy.artifacts import Machine, Measurement, TensorSpec
from mint_deploy.doubts import doubts
from mint_deploy.looks import Watch
from mint_deploy.machine import probe
from mint_deploy.measurement_file import read, save
from mint_deploy.runtimes import Arrays, Runner

__all__ = ["SCENARIOS", "STREAMS", "MeasuringStopped", "Settings", "Throughput", "interleave",
           "measure", "overhead_ns", "random_inputs", "read", "save", "throughput"]  # fmt: skip

_IN_PROCESS = "measured inside this process; peak memory needs a fresh one (interleave)"


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the latencies."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def overhead_ns(calls: int = 20_000, *, streams: int = 1) -> float:
    """Return what one call costs in the harness itself: wall time around the null runtime, ns.

    Args:
        calls: of each of five rounds, whose median counts.
        streams: queries of a burst; with several, a call is a burst, started and gathered.
    """
    positive(calls=calls, streams=streams)
    with ExitStack() as stack:
        nothing = stack.enter_context(plugins.load("runtime", "null").runner())
        call = _call(stack, nothing, streams)
        stack.enter_context(_no_collection())
        timed(call, {}, calls)
        rounds = []
        for _ in range(5):
            begin = time.perf_counter_ns()
            timed(call, {}, calls)
            rounds.append((time.perf_counter_ns() - begin) / calls)
    return statistics.median(rounds)


def _call(stack: ExitStack, runner: Runner, streams: int) -> Callable[[Arrays], object]:
    """What is timed: one query, or a burst of several to the same runner."""
    if streams == 1:
        return runner.infer
    return stack.enter_context(Burst([runner.infer] * streams))


# ---------------------------------------------------------------- one runner, in this process


def measure(
    runner: Runner,
    inputs: Arrays,
    *,
    scenario: str = "single_stream",
    streams: int | None = None,
    label: str = "model",
    settings: Settings = Settings(min_s=1.0),  # noqa: B008  frozen, so a default may be shared
    budget_s: float = 30.0,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Measurement:
    """Measure an open runner on ``inputs``, in this process.

    Args:
        runner: entered already.
        inputs: name -> array; the first dimension is the batch.
        scenario: ``single_stream`` (a query after the other), ``offline`` (the same on whole
            batches; see :func:`throughput` for the sweep) or ``multi_stream`` (bursts of queries,
            each from a thread of its own, all to this one runner).
        streams: queries of a burst under ``multi_stream``: 8.
        label: what the result is called.
        settings: when enough is measured.
        budget_s: seconds for warm-up and measuring together; at least one call is always timed.
        machine: who measures; probed where absent.
        progress: called with seconds done, seconds at most, and a note.

    Raises:
        UnknownName: no such scenario.
        ConfigError: several streams under another scenario.
        DataError: the runner refuses the inputs.
    """
    several = streams_of(scenario, streams)
    positive(budget_s=budget_s)
    machine, watch = machine or probe(), Watch()
    meter, no_meter = sensors.find_meter(gpu=on_gpu(runner.engine.runtime))
    idle = sensors.idle_w(meter) if meter else 0.0
    started, begin = now(), time.perf_counter()
    samples: list[int] = []
    with ExitStack() as stack:
        call = _call(stack, runner, several)
        stack.enter_context(_no_collection())
        warm = warm_up(call, inputs, settings.warmup_s, settings.warmup_count, budget_s / 3)
        before, clock = (meter.read_uj() if meter else ()), time.perf_counter()
        per_call = max(statistics.median(warm[len(warm) // 2 :]), 1.0)
        chunk = int(min(max(0.05e9 / per_call, 1), MOST_CALLS))
        while True:
            left = begin + budget_s - time.perf_counter()
            samples += timed(call, inputs, chunk, max(left, 0.0))
            converged = settings.enough(samples)
            passed = time.perf_counter() - begin
            if progress:
                progress(min(passed, budget_s), budget_s, f"{len(samples)} calls of {label}")
            if converged or passed >= budget_s:
                break
    nulls = dict.fromkeys(("peak_rss_bytes", "import_rss_bytes", "gpu_bytes"), _IN_PROCESS)
    nulls |= watch.gaps
    energy = None
    if meter:
        used = meter.between_mj(before, meter.read_uj())
        seconds = time.perf_counter() - clock
        energy = sensors.per_inference_mj(used, idle, seconds, len(samples))
        no_meter = "the energy used does not stand out from the idle share"
    if energy is None:
        nulls["energy_mj"] = no_meter or "no energy counter"
    fed = [TensorSpec(name=n, shape=a.shape, dtype=str(a.dtype)) for n, a in inputs.items()]
    states = (watch.look(),)
    return Measurement(
        task=task_spec(
            label,
            runner.engine,
            scenario,
            runner.threads,
            fed,
            streams=several,
            flags={"stream_runners": "one for all"} if several > 1 else {},
        ),
        machine=machine,
        restarts_ns=(tuple(samples),),
        warmup_ns=tuple(warm),
        peak_rss_bytes=None,
        import_rss_bytes=None,
        load_ns=(),
        converged=converged,
        started=started,
        energy_mj=energy,
        states=states,
        nulls=nulls,
        doubts=doubts(
            (samples,), machine, threads=runner.threads, converged=converged, states=states
        ),
    )
