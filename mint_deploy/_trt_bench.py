"""Dense and slim measured through ``trtexec``, where the Python package ``tensorrt`` is missing.

    build each -> restarts: a fresh trtexec for each engine, A B, B A, ... -> Measurement, Comparison

The latency is the GPU's own time of a query, without transfers, from the exported times. What that
program cannot tell stands in ``nulls`` and ``doubts``: nothing is compared with PyTorch, and no call
from Python is timed. Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mint_deploy import statistics, trtexec
from mint_deploy._bench_base import MeasuringStopped, Progress, now, positive, task_spec
from mint_deploy.artifacts import Comparison, Engine, LayerTime, Machine, Measurement, TensorSpec
from mint_deploy.doubts import FEW_RESTARTS, doubts
from mint_deploy.errors import ConfigError
from mint_deploy.looks import Watch
from mint_deploy.machine import probe
from mint_deploy.runtimes import tensorrt

__all__ = ["NO_PARITY", "stands_in", "through_trtexec"]

NO_PARITY = (
    "the engine's outputs were not compared with PyTorch's: trtexec measures and hands no outputs "
    "back; install the Python package tensorrt and run verify"
)
_NO_HOST = (
    "the time is the GPU's alone, without transfers and without the call from Python, which trtexec "
    "does not make; it may not be compared with the times of other runtimes"
)
_APART = (
    "dense and slim took turns by whole runs of trtexec, not by blocks: what the machine did "
    "meanwhile may have happened to one of them"
)
_NULLS = {
    "parity": NO_PARITY,
    "host_ns": _NO_HOST,
    **dict.fromkeys(
        ("peak_rss_bytes", "import_rss_bytes", "gpu_bytes", "load_ns", "warmup_ns", "energy_mj"),
        "measured through trtexec, which does not export it",
    ),
}
_CONFIDENCE = 0.95


def stands_in(runtime: str) -> bool:
    """Whether ``trtexec`` has to measure here: TensorRT is wanted, and only that program runs it."""
    return runtime == "tensorrt" and tensorrt.missing() is not None and trtexec.find() is not None


def through_trtexec(
    paths: Mapping[str, Path],
    *,
    target: Mapping[str, Any],
    inputs: Mapping[str, tuple[TensorSpec, ...]],
    batch: int,
    restarts: int = 5,
    budget_s: float = 60.0,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> tuple[list[Measurement], list[Comparison]]:
    """Build every file with this machine's ``trtexec``, measure in turns, compare with the first.

    Args:
        paths: label -> ONNX file; the engines are kept in ``engines/`` beside it.
        target: what is built for.
        inputs: label -> the inputs of its file.
        batch: samples a query.
        restarts: runs of ``trtexec`` a file, exactly; two or more.
        budget_s: seconds of measuring, for all of them together; ``trtexec`` measures whole
            seconds, two runs of one second each at least. Building comes on top.
        machine: who measures; probed where absent.
        progress: called with what is done, the whole, and a note.

    Raises:
        ConfigError: fewer than two restarts, or a setting that this TensorRT does not take.
        ModelError: a file that it does not take.
        EngineMismatch: an engine that does not run here.
        MeasuringStopped: Ctrl-C after a whole restart; it carries what was measured.
    """
    if restarts < 2:
        raise ConfigError(f"restarts is {restarts}; an interval needs at least 2")
    positive(budget_s=budget_s, batch=batch)
    machine, started = machine or probe(), now()
    whole = len(paths) * (restarts + 1)
    tell = progress or (lambda *_: None)
    engines: dict[str, Engine] = {}
    for label, path in paths.items():
        tell(len(engines), whole, f"building {label}")
        engines[label] = tensorrt.build(path, {**target, "batch": batch}, machine=machine)
    # each run measures once for the times and once more for the layers
    seconds = max(1, int(budget_s / (2 * restarts * len(paths))))
    kept: dict[str, list[tuple[int, ...]]] = {label: [] for label in paths}
    layers: dict[str, tuple[LayerTime, ...]] = {}
    states, watch, begin = [], Watch(), time.monotonic()
    stopped: KeyboardInterrupt | None = None
    try:
        for restart in range(restarts):
            order = list(paths) if restart % 2 == 0 else list(paths)[::-1]
            one: dict[str, tuple[int, ...]] = {}
            for label in order:
                tell(
                    len(paths) * (restart + 1) + len(one), whole, f"restart {restart + 1}: {label}"
                )
                times, layers[label] = trtexec.measure(
                    engines[label], batch=batch, seconds=seconds, machine=machine
                )
                one[label] = times.compute_ns
            for label, found in one.items():
                kept[label].append(found)
            states.append(watch.look())
            tell(len(paths) * (restart + 2), whole, f"{time.monotonic() - begin:.0f} s")
    except KeyboardInterrupt as error:
        if len(states) < 2:
            raise
        stopped = error
    notes: tuple[str, ...] = ()
    if stopped is not None:
        notes = (f"interrupted after {len(states)} restarts",)
    measured = [
        Measurement(
            task=task_spec(
                label,
                _ran(engine, seconds),
                "single_stream",
                1,
                [replace(spec, shape=(batch, *spec.shape[1:])) for spec in inputs[label]],
            ),
            machine=machine,
            restarts_ns=tuple(kept[label]),
            warmup_ns=(),
            peak_rss_bytes=None,
            import_rss_bytes=None,
            load_ns=(),
            converged=stopped is None,
            started=started,
            layers=layers[label],
            states=tuple(states),
            nulls=_NULLS,
            doubts=(
                NO_PARITY,
                _NO_HOST,
                *doubts(kept[label], machine, interleaved=True, states=states),
                *notes,
            ),
        )
        for label, engine in engines.items()
    ]
    compared = [_compared(measured[0], other, notes) for other in measured[1:]]
    if stopped is not None:
        raise MeasuringStopped(notes[0], measured, compared) from stopped
    return measured, compared


def _ran(engine: Engine, seconds: int) -> Engine:
    """The engine with what decided its times as flags: they are part of a measurement's key."""
    flags = {
        "measured_by": "trtexec",
        "tensorrt": engine.builder["tensorrt"],
        "typing": str(engine.flags["settings"]["typing"]),
        "time": "GPU",
        "transfers": "left out",
        "seconds": str(seconds),
    }
    return replace(engine, flags=flags)


def _compared(a: Measurement, b: Measurement, notes: tuple[str, ...]) -> Comparison:
    logs = [
        math.log(statistics.median(y) / statistics.median(x))
        for x, y in zip(a.restarts_ns, b.restarts_ns, strict=True)
    ]
    found = statistics.ratio_interval(logs, confidence=_CONFIDENCE)
    few = f"{found.n} restarts: the interval is to be trusted from {FEW_RESTARTS} on"
    return Comparison(
        a=a.task.label,
        b=b.task.label,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        confidence=found.confidence,
        restarts=found.n,
        doubts=(_APART, *notes, *((few,) if found.n < FEW_RESTARTS else ())),
    )
