"""The sides of benchmarks/timers.py, each in a process of its own: our harness, and what others time with.

    python benchmarks/timers_sides.py 'ours plain' --model FILE --seconds 8

A process loads, warms up, says ``ready`` and waits for a line of input before it measures. Its last line is what a
call takes, as JSON. The network answers with a few means: ours copies what OpenVINO answers, and benchmark_app,
which wants no answer, does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from conv_model import torch_module

#: height and width of the images: about 20 ms a call at 20 layers on one core
SIZE = 64
SEED, WARM_S, SLICE_S, SLOWEST = 0, 0.5, 0.2, 0.05

#: called by a side that is warm; returns when it may begin
Ready = Callable[[], None]


def _ours(live: Any, inputs: Mapping[str, Any], seconds: float, ready: Ready) -> list[float]:
    from mint_deploy.bench import Settings, measure

    _warm(lambda: live.infer(inputs))
    ready()
    settings = Settings(warmup_s=WARM_S / 10, min_s=seconds, min_count=5, precision=1e9)
    found = measure(live, inputs, settings=settings, budget_s=4 * seconds + 30)
    return [float(ns) for ns in found.restarts_ns[0]]


def _ours_of_file(path: Path, seconds: float, ready: Ready, runtime: str) -> list[float]:
    from mint_deploy import plugins
    from mint_deploy.bench import random_inputs

    plugin = plugins.load("runtime", runtime)
    with plugin.runner(plugin.build(path)) as live:
        return _ours(live, random_inputs(live.inputs, seed=SEED), seconds, ready)


def ours_plain(path: Path, seconds: float, ready: Ready) -> list[float]:
    return _ours_of_file(path, seconds, ready, "onnxruntime")


def ours_openvino(path: Path, seconds: float, ready: Ready) -> list[float]:
    return _ours_of_file(path, seconds, ready, "openvino")


def ours_torch(path: Path, seconds: float, ready: Ready) -> list[float]:  # noqa: ARG001  all have it
    import torch

    from mint_deploy import plugins

    example = torch.randn(1, 3, SIZE, SIZE)
    made = plugins.load("runtime", "pytorch").runner(
        torch_module(pool=True), example_inputs=[example]
    )
    with made as live:
        return _ours(live, {"input": example.numpy()}, seconds, ready)


def theirs_plain(path: Path, seconds: float, ready: Ready) -> list[float]:
    """What anybody would write first."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    dice = np.random.default_rng(SEED)
    x = {"input": dice.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)}
    times = []
    _warm(lambda: session.run(None, x))
    ready()
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        start = time.perf_counter_ns()
        session.run(None, x)
        times.append(float(time.perf_counter_ns() - start))
    return times


def has_benchmark_app() -> bool:
    """Say whether OpenVINO's own timer is there."""
    return importlib.util.find_spec("openvino") is not None


def theirs_openvino(path: Path, seconds: float, ready: Ready) -> list[float]:
    """Run benchmark_app, and take the latencies from its loop before it rounds their median."""
    from openvino.tools.benchmark import main as app
    from openvino.tools.benchmark.benchmark import Benchmark

    loop, times = Benchmark.sync_inference, []

    def listened(self: Any, request: Any, queue: Any) -> Any:
        _warm(request.infer)
        ready()
        result = loop(self, request, queue)
        times.extend(1e6 * ms for ms in result[0])
        return result

    Benchmark.sync_inference = listened
    sys.argv = [
        "benchmark_app", "-m", str(path), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1",
        "-nthreads", "1", "-infer_precision", "f32", "-pin", "NO", "-t", str(math.ceil(seconds)),
    ]  # fmt: skip
    app.main()
    return times


def theirs_torch(path: Path, seconds: float, ready: Ready) -> list[float]:  # noqa: ARG001  all have it
    import torch
    from torch.utils.benchmark import Timer

    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        timer = Timer("model(x)", globals={"model": torch_module(pool=True), "x": x}, num_threads=1)
        _warm(lambda: timer.timeit(1))
        ready()
        # one call at a time: a pause would fall into most of the blocks of blocked_autorange
        times = []
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            times.append(1e9 * timer.timeit(1).median)
        return times


def ours_null(path: Path, seconds: float, ready: Ready) -> list[float]:  # noqa: ARG001  all have it
    from mint_deploy.bench import overhead_ns

    ready()
    return [overhead_ns()]


def _warm(call: Callable[[], object]) -> None:
    end = time.perf_counter() + WARM_S
    while time.perf_counter() < end:
        call()


SIDES: dict[str, Callable[[Path, float, Ready], list[float]]] = {
    "ours plain": ours_plain,
    "theirs plain": theirs_plain,
    "ours openvino": ours_openvino,
    "theirs openvino": theirs_openvino,
    "ours torch": ours_torch,
    "theirs torch": theirs_torch,
    "ours null": ours_null,
}


def steady_ns(times: Sequence[float]) -> float:
    """Return the mean of the calls that no pause fell into, without their slowest 5 %, in nanoseconds."""
    longest = median(times) + 1e9 * SLICE_S / 2
    whole = sorted(ns for ns in times if ns <= longest)
    return statistics.fmean(whole[: max(math.floor((1 - SLOWEST) * len(whole)), 1)])


def be_a_side(side: str, path: Path, seconds: float, core: int | None) -> None:
    """Answer on standard output: that it is ready, then, after a line of input, what a call takes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    if core is not None:
        os.sched_setaffinity(0, {core})

    def ready() -> None:
        print("ready", file=answers, flush=True)
        sys.stdin.readline()

    found = steady_ns(SIDES[side](path, seconds, ready))
    print(json.dumps({"ns": found}), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("side", choices=sorted(SIDES))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--core", type=int, help="where it runs; anywhere by itself")
    given = parser.parse_args()
    be_a_side(given.side, given.model, given.seconds, given.core)


if __name__ == "__main__":
    main()
