"""Our harness beside what others time with: the same file, one thread, fresh processes that share a core.

    python benchmarks/timers.py                               # 15 turns of each pair, ten minutes
    python benchmarks/timers.py --only openvino --turns 3     # plain, openvino, torch or null
    python benchmarks/timers.py --table                       # results/timers.md from what is there

    plain       onnxruntime in our harness against a loop around session.run with a clock
    openvino    openvino in our harness against OpenVINO's own benchmark_app (float32, one stream, one thread)
    torch       the pytorch runtime in our harness against torch.utils.benchmark.Timer
    null        the runtime that computes nothing: what a call costs in the harness itself

A turn starts two processes on one core, ours and theirs, and lets them run by slices of 50 ms (SIGSTOP, SIGCONT),
so that both meet the same machine: in processes one after the other the ratio of a turn spread by 10 to 20 % here.
A call that a pause falls into is one of hundreds, and medians do not see it. Ours is `measure`, whose loop is that
of every measurement here. Promised: the 90 % interval over the turns lies within 3 % of 1, and the null runtime
costs at most 2 microseconds a call. Every turn is a line of results/timers.jsonl and is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from conv_model import LAYERS, SIZE, onnx_file, torch_module
from gate import append, machine, read

HERE = Path(__file__).resolve().parent
SEED, TURNS, SECONDS, WITHIN, CONFIDENCE, NULL_NS = 0, 15, 4.0, 0.03, 0.9, 2000.0
PAIRS = ("plain", "openvino", "torch")
WARM_S, SLICE_S = 0.3, 0.05


# ---------------------------------------------------------------- the sides, each in a process of its own


def _settings(seconds: float) -> Any:
    from mint_deploy.bench import Settings

    return Settings(warmup_s=WARM_S, min_s=seconds, min_count=20, precision=1e9)


def _ours_of_file(path: Path, seconds: float, runtime: str) -> float:
    from mint_deploy import plugins
    from mint_deploy.bench import measure, random_inputs

    plugin = plugins.load("runtime", runtime)
    with plugin.runner(plugin.build(path)) as live:
        inputs = random_inputs(live.inputs, seed=SEED)
        found = measure(live, inputs, settings=_settings(seconds), budget_s=4 * seconds + 30)
    return median(found.restarts_ns[0])


def ours_plain(path: Path, seconds: float) -> float:
    return _ours_of_file(path, seconds, "onnxruntime")


def ours_openvino(path: Path, seconds: float) -> float:
    return _ours_of_file(path, seconds, "openvino")


def ours_torch(path: Path, seconds: float) -> float:  # noqa: ARG001  the signature that the sides share
    import torch

    from mint_deploy import plugins
    from mint_deploy.bench import measure

    example = torch.randn(1, 3, SIZE, SIZE)
    made = plugins.load("runtime", "pytorch").runner(torch_module(), example_inputs=[example])
    with made as live:
        found = measure(
            live, {"input": example.numpy()}, settings=_settings(seconds), budget_s=4 * seconds + 30
        )
    return median(found.restarts_ns[0])


def theirs_plain(path: Path, seconds: float) -> float:
    """What anybody would write first."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = {
        "input": np.random.default_rng(SEED).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)
    }
    times = []
    begin = time.perf_counter()
    while time.perf_counter() < begin + WARM_S:
        session.run(None, x)
    begin = time.perf_counter()
    while time.perf_counter() < begin + seconds:
        start = time.perf_counter_ns()
        session.run(None, x)
        times.append(time.perf_counter_ns() - start)
    return median(times)


def benchmark_app() -> str | None:
    """Return OpenVINO's own timer: beside this Python, or on PATH."""
    beside = Path(sys.executable).with_name("benchmark_app")
    return str(beside) if beside.is_file() else shutil.which("benchmark_app")


def theirs_openvino(path: Path, seconds: float) -> float:
    program = benchmark_app()
    if program is None:
        sys.exit("no benchmark_app: pip install openvino")
    with tempfile.TemporaryDirectory() as folder:
        command = [
            program, "-m", str(path), "-d", "CPU", "-api", "sync", "-hint", "none", "-nstreams", "1",
            "-nthreads", "1", "-infer_precision", "f32", "-pin", "NO", "-t", str(math.ceil(seconds)),
            "-report_type", "no_counters", "-json_stats", "-report_folder", folder,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        report = Path(folder) / "benchmark_report.json"
        if done.returncode or not report.is_file():
            sys.exit(f"benchmark_app: {(done.stderr or done.stdout).strip().splitlines()[-1:]}")
        return 1e6 * app_median_ms(report.read_text(encoding="utf-8"))


def app_median_ms(text: str) -> float:
    """Return the median latency of a report of benchmark_app, in milliseconds (two decimals)."""
    return float(json.loads(text)["execution_results"]["latency (ms)"])


def theirs_torch(path: Path, seconds: float) -> float:  # noqa: ARG001  the signature that the sides share
    import torch
    from torch.utils.benchmark import Timer

    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        timer = Timer("model(x)", globals={"model": torch_module(), "x": x}, num_threads=1)
        timer.timeit(20)
        # one call at a time: a pause would fall into most of the blocks of blocked_autorange
        times = []
        begin = time.perf_counter()
        while time.perf_counter() < begin + seconds:
            times.append(timer.timeit(1).median)
        return 1e9 * median(times)


def ours_null(path: Path, seconds: float) -> float:  # noqa: ARG001  the signature that the sides share
    from mint_deploy.bench import overhead_ns

    return overhead_ns()


SIDES: dict[str, Callable[[Path, float], float]] = {
    "ours plain": ours_plain,
    "theirs plain": theirs_plain,
    "ours openvino": ours_openvino,
    "theirs openvino": theirs_openvino,
    "ours torch": ours_torch,
    "theirs torch": theirs_torch,
    "ours null": ours_null,
}


def timed(sides: Sequence[str], path: Path, seconds: float, core: int | None = None) -> list[float]:
    """Run sides in fresh processes, by slices; return their medians, in nanoseconds.

    Args:
        sides: of ``SIDES``; who is named first begins.
        path: the ONNX file.
        seconds: that each measures, its pauses included.
        core: where all of them run; None: anywhere.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    more = ["--model", str(path), "--seconds", str(seconds)]
    if core is not None:
        more += ["--core", str(core)]
    with contextlib.ExitStack() as stack:
        found = []
        for side in sides:
            out = stack.enter_context(tempfile.TemporaryFile("w+"))
            # a session of its own: benchmark_app is a process of a process
            process = subprocess.Popen(
                [sys.executable, __file__, "--side", side, *more],
                stdout=out, stderr=subprocess.STDOUT, text=True,
                env={**os.environ, **threads}, start_new_session=True,
            )  # fmt: skip
            stack.callback(_end, process)
            found.append((side, process, out))
        _by_slices([process for _, process, _ in found])
        medians = []
        for side, process, out in found:
            out.seek(0)
            said = out.read().strip().splitlines()
            if process.wait():
                sys.exit(f"{side}: {said[-1:]}")
            medians.append(float(json.loads(said[-1])["ns"]))
    return medians


def _by_slices(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let one process run at a time, until all have ended."""
    for process in processes[1:]:
        os.killpg(process.pid, signal.SIGSTOP)
    while living := [p for p in processes if p.poll() is None]:
        for process in living:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                time.sleep(SLICE_S)
                if len(living) > 1:
                    os.killpg(process.pid, signal.SIGSTOP)


def _end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of a process that was not waited for."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


# ---------------------------------------------------------------- what was found

Row = Mapping[str, Any]


def log_ratio(row: Row) -> float:
    """Return the logarithm of ours over theirs in one turn."""
    sides = [[math.log(ns) for ns in row[side]] for side in ("ours", "theirs")]
    return math.fsum(sides[0]) / len(sides[0]) - math.fsum(sides[1]) / len(sides[1])


def of(rows: Sequence[Row], pair: str, settings: Row) -> list[Row]:
    found = {r["turn"]: r for r in rows if r["pair"] == pair and r["settings"] == settings}
    return [found[i] for i in sorted(found)]


def judged(rows: Sequence[Row]) -> tuple[float, float, float, bool] | None:
    """Return the ratio, its interval, and whether that lies where it should; None: too few turns."""
    from mint_deploy.statistics import ratio_interval

    if len(rows) < 2:
        return None
    found = ratio_interval([log_ratio(r) for r in rows], confidence=CONFIDENCE)
    inside = found.low > 1 - WITHIN and found.high < 1 + WITHIN
    return found.ratio, found.low, found.high, inside


def table(rows: Sequence[Row], settings: Row) -> str:
    """Return what was found as Markdown."""
    lines = ["| pair | turns | ours, ms | theirs, ms | ours / theirs | 90 % interval | within 3 % |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for pair in PAIRS:
        found = of(rows, pair, settings)
        verdict = judged(found)
        if verdict is None:
            lines.append(f"| {pair} | {len(found)} | - | - | - | - | not run here |")
            continue
        ours, theirs = (median(ns for r in found for ns in r[s]) / 1e6 for s in ("ours", "theirs"))
        ratio, low, high, inside = verdict
        lines.append(
            f"| {pair} | {len(found)} | {ours:.2f} | {theirs:.2f} | {ratio:.3f} | {low:.3f} to {high:.3f} | "
            f"{'yes' if inside else 'no'} |"
        )
    nothing = [ns for r in of(rows, "null", settings) for ns in r["ours"]]
    said = "not run here"
    if nothing:
        kept = "kept" if median(nothing) <= NULL_NS else "broken"
        said = (
            f"{median(nothing):.0f} ns a call (median of {len(nothing)} processes; "
            f"at most {NULL_NS:.0f}: {kept})"
        )
    return "\n".join([*lines, "", f"The null runtime: {said}."])


def page(rows: Sequence[Row], settings: Row) -> str:
    """Return results/timers.md."""
    made = [r for r in rows if r["settings"] == settings]
    machines = ", ".join(sorted({r["machine"] for r in made})) or "no machine yet"
    dates = sorted({r["date"] for r in made})
    loads = [r["load_before"] for r in made]
    load = f" Load average before a turn: {min(loads):.1f} to {max(loads):.1f}." if loads else ""
    versions = ", ".join(f"{k} {v}" for k, v in settings["versions"].items())
    when = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
    how = (
        f"{settings['seconds']:g} s a process, by slices of {1000 * SLICE_S:g} ms on one core, one thread, "
        f"{LAYERS} equal convolutions, seed {SEED}"
    )
    return (
        f"# Our harness beside other timers\n\n`python benchmarks/timers.py`: {how}.\n"
        f"{machines}; {versions}; {when}.{load}\n\n{table(rows, settings)}\n"
    )


# ---------------------------------------------------------------- the run


def versions() -> dict[str, str]:
    """Return the versions of the libraries that are timed; "none" where one is not installed."""
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: found.get(name, "none") for name in ("onnxruntime", "openvino", "torch")}


def run(only: Sequence[str], turns: int, path: Path, settings: Row, model: Path) -> None:
    """Make the turns that are missing."""
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d")}
    for turn in range(turns):
        for pair in only:
            if turn in {r["turn"] for r in of(read(path), pair, settings)}:
                continue
            if pair == "openvino" and benchmark_app() is None:
                print("openvino: not run here, there is no benchmark_app: pip install openvino")
                continue
            load = round(os.getloadavg()[0], 2)
            row: dict[str, Any] = {"ours": [], "theirs": []}
            # who begins, and on which core, by turns
            both = ["ours", "theirs"] if turn % 2 else ["theirs", "ours"]
            order = ["ours"] if pair == "null" else both
            cores = sorted(os.sched_getaffinity(0))
            sides = [f"{who} {pair}" for who in order]
            found = timed(sides, model, settings["seconds"], cores[turn // 2 % len(cores)])
            for who, ns in zip(order, found, strict=True):
                row[who].append(ns)
            key = {"pair": pair, "turn": turn, "settings": settings, "load_before": load}
            append(path, {**key, **about, **row})
            shown = (
                f"{math.exp(log_ratio(row)):.3f}" if row["theirs"] else f"{row['ours'][0]:.0f} ns"
            )
            print(f"{pair}, turn {turn}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*PAIRS, "null"])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each process")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--side", choices=sorted(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        if given.core is not None:
            os.sched_setaffinity(0, {given.core})
        print(json.dumps({"ns": SIDES[given.side](given.model, given.seconds)}))
        return
    settings = {
        "seconds": given.seconds,
        "slice_s": SLICE_S,
        "layers": LAYERS,
        "versions": versions(),
    }
    path = given.results / "timers.jsonl"
    try:
        if not given.table:
            with tempfile.TemporaryDirectory() as folder:
                model = onnx_file(Path(folder) / "model.onnx")
                run(
                    [given.only] if given.only else [*PAIRS, "null"],
                    given.turns,
                    path,
                    settings,
                    model,
                )
    finally:  # what was made until an interrupt counts too
        rows = read(path)
        given.results.mkdir(parents=True, exist_ok=True)
        (given.results / "timers.md").write_text(page(rows, settings), encoding="utf-8")
    print(table(rows, settings))
    verdicts = [judged(of(rows, pair, settings)) for pair in PAIRS]
    if any(v is not None and not v[3] for v in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
