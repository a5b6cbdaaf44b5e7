"""Our harness beside what others time with: the same file, one thread, fresh processes that share a core.

    python benchmarks/timers.py                               # 15 turns of each pair, ten minutes
    python benchmarks/timers.py --only openvino --turns 3     # plain, openvino, torch or null
    python benchmarks/timers.py --table                       # results/timers.md from what is there

    plain       onnxruntime in our harness against a loop around session.run with a clock
    openvino    openvino in our harness against OpenVINO's own benchmark_app (float32, one stream, one thread)
    torch       the pytorch runtime in our harness against torch.utils.benchmark.Timer
    null        the runtime that computes nothing: what a call costs in the harness itself

A virtual core changes its speed by 40 % from second to second, with what the machine's other tenants do. So a
turn starts two processes on one core, ours and theirs; both load, warm up and wait; then they run by slices of a
fifth of a second (SIGSTOP, SIGCONT) through the same seconds. Of the calls of a side the mean counts: between two
speeds a median jumps from one to the other where half of the calls have either. Calls that a pause fell into are
left out, and then the slowest 5 %. Ours are those of `measure`, whose loop is that of every measurement here;
those of benchmark_app come from its own loop, before it sums them up.

Promised: the 90 % interval over the turns lies within 3 % of 1, and the null runtime costs at most 2 microseconds
a call. Every turn is a line of results/timers.jsonl and is not made again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from conv_model import LAYERS, onnx_file
from gate import append, machine, read
from timers_sides import SEED, SIZE, SLICE_S, has_benchmark_app

HERE = Path(__file__).resolve().parent
TURNS, SECONDS, WITHIN, CONFIDENCE, NULL_NS = 15, 8.0, 0.03, 0.9, 2000.0
PAIRS = ("plain", "openvino", "torch")


# ---------------------------------------------------------------- one turn


def timed(sides: Sequence[str], path: Path, seconds: float, core: int | None = None) -> list[float]:
    """Run sides in fresh processes, by slices; return what a call of each takes, in nanoseconds.

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
            errors = stack.enter_context(tempfile.TemporaryFile("w+"))
            process = subprocess.Popen(
                [sys.executable, str(HERE / "timers_sides.py"), side, *more],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                env={**os.environ, **threads},
            )  # fmt: skip
            stack.callback(_end, process)
            found.append((side, process, errors))
            # one after the other: a side that loads takes the core from nobody who measures
            if _line(process) != "ready":
                sys.exit(_died(side, errors))
        _by_slices([process for _, process, _ in found])
        times = []
        for side, process, errors in found:
            said = _line(process)
            if process.wait() or not said:
                sys.exit(_died(side, errors))
            times.append(float(json.loads(said)["ns"]))
    return times


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _died(side: str, errors: Any) -> str:
    errors.seek(0)
    return f"{side}: {errors.read().strip().splitlines()[-1:]}"


def _by_slices(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Let one process run at a time, until all have ended."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
        with contextlib.suppress(BrokenPipeError):
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
    while living := [p for p in processes if p.poll() is None]:
        for process in living:
            process.send_signal(signal.SIGCONT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SLICE_S)
            process.send_signal(signal.SIGSTOP)


def _end(process: subprocess.Popen[str]) -> None:
    """Leave nothing of a process that was not waited for."""
    if process.poll() is None:
        process.kill()
    process.communicate()


# ---------------------------------------------------------------- what was found

Row = Mapping[str, Any]


def log_ratio(row: Row) -> float:
    """Return the logarithm of ours over theirs in one turn."""
    return math.log(row["ours_ns"]) - math.log(row["theirs_ns"])


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
        ours, theirs = (median(r[side] for r in found) / 1e6 for side in ("ours_ns", "theirs_ns"))
        ratio, low, high, inside = verdict
        lines.append(
            f"| {pair} | {len(found)} | {ours:.2f} | {theirs:.2f} | {ratio:.3f} | {low:.3f} to {high:.3f} | "
            f"{'yes' if inside else 'no'} |"
        )
    nothing = [r["ours_ns"] for r in of(rows, "null", settings)]
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
        f"{LAYERS} equal convolutions on {SIZE} x {SIZE}, seed {SEED}"
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
            if pair == "openvino" and not has_benchmark_app():
                print("openvino: not run here, there is no benchmark_app: pip install openvino")
                continue
            load = round(os.getloadavg()[0], 2)
            # who begins, and on which core, by turns
            both = ["ours", "theirs"] if turn % 2 else ["theirs", "ours"]
            order = ["ours"] if pair == "null" else both
            cores = sorted(os.sched_getaffinity(0))
            sides = [f"{who} {pair}" for who in order]
            found = timed(sides, model, settings["seconds"], cores[turn // 2 % len(cores)])
            took = {f"{who}_ns": ns for who, ns in zip(order, found, strict=True)}
            key = {"pair": pair, "turn": turn, "settings": settings, "load_before": load}
            append(path, {**key, **about, **took})
            shown = (
                f"{took['ours_ns']:.0f} ns"
                if pair == "null"
                else f"{math.exp(log_ratio(took)):.3f}"
            )
            print(f"{pair}, turn {turn}: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=[*PAIRS, "null"])
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each process")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    settings = {
        "seconds": given.seconds,
        "slice_s": SLICE_S,
        "layers": LAYERS,
        "size": SIZE,
        "versions": versions(),
    }
    path = given.results / "timers.jsonl"
    try:
        if not given.table:
            with tempfile.TemporaryDirectory() as folder:
                model = onnx_file(Path(folder) / "model.onnx", size=SIZE, pool=True)
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
