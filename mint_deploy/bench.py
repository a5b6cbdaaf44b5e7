"""The scenario loop: a runner and a clock become a Measurement with every raw latency kept.

``measure`` runs a runner of this process. ``interleave`` compares files: each restart starts fresh
processes, one a model, that take turns in blocks (A B B A ...), so that whatever the machine does
meanwhile happens to both. ``throughput`` sweeps the batch. The measurer knows neither the model,
nor the plan, nor which one is hoped to win.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mint_deploy import artifacts, files, plugins, sensors, statistics
from mint_deploy._bench_base import (
    MOST_CALLS,
    SCENARIOS,
    Progress,
    Settings,
    now,
    positive,
    scenario_named,
    task_spec,
)
from mint_deploy._bench_files import Throughput, interleave, throughput
from mint_deploy._bench_worker import random_inputs, timed, warm_up
from mint_deploy._version import __version__
from mint_deploy.artifacts import Comparison, Machine, Measurement, TensorSpec
from mint_deploy.doubts import doubts
from mint_deploy.errors import DataError
from mint_deploy.machine import probe
from mint_deploy.runtimes import Arrays, Runner

__all__ = ["SCENARIOS", "Settings", "Throughput", "interleave", "measure", "overhead_ns",
           "random_inputs", "read", "save", "throughput"]  # fmt: skip

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


def overhead_ns(calls: int = 20_000) -> float:
    """Return what one call costs in the harness itself: wall time around the null runtime, ns."""
    with plugins.load("runtime", "null").runner() as nothing, _no_collection():
        timed(nothing.infer, {}, calls)
        rounds = []
        for _ in range(5):
            begin = time.perf_counter_ns()
            timed(nothing.infer, {}, calls)
            rounds.append((time.perf_counter_ns() - begin) / calls)
    return statistics.median(rounds)


# ---------------------------------------------------------------- one runner, in this process


def measure(
    runner: Runner,
    inputs: Arrays,
    *,
    scenario: str = "single_stream",
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
        scenario: ``single_stream`` (a query after the other) or ``offline`` (the same on whole
            batches; see :func:`throughput` for the sweep).
        label: what the result is called.
        settings: when enough is measured.
        budget_s: seconds for warm-up and measuring together; at least one call is always timed.
        machine: who measures; probed where absent.
        progress: called with seconds done, seconds at most, and a note.

    Raises:
        UnknownName: no such scenario.
        DataError: the runner refuses the inputs.
    """
    scenario_named(scenario)
    positive(budget_s=budget_s)
    machine = machine or probe()
    meter, no_meter = sensors.find_meter()
    idle = sensors.idle_w(meter) if meter else 0.0
    started, begin = now(), time.perf_counter()
    samples: list[int] = []
    with _no_collection():
        warm = warm_up(runner.infer, inputs, settings.warmup_s, settings.warmup_count, budget_s / 3)
        before, clock = (meter.read_uj() if meter else ()), time.perf_counter()
        per_call = max(statistics.median(warm[len(warm) // 2 :]), 1.0)
        chunk = int(min(max(0.05e9 / per_call, 1), MOST_CALLS))
        while True:
            left = begin + budget_s - time.perf_counter()
            samples += timed(runner.infer, inputs, chunk, max(left, 0.0))
            converged = settings.enough(samples)
            passed = time.perf_counter() - begin
            if progress:
                progress(min(passed, budget_s), budget_s, f"{len(samples)} calls of {label}")
            if converged or passed >= budget_s:
                break
    nulls = {"peak_rss_bytes": _IN_PROCESS, "import_rss_bytes": _IN_PROCESS}
    energy = None
    if meter:
        used = meter.between_mj(before, meter.read_uj())
        seconds = time.perf_counter() - clock
        energy = sensors.per_inference_mj(used, idle, seconds, len(samples))
        no_meter = "the energy used does not stand out from the idle share"
    if energy is None:
        nulls["energy_mj"] = no_meter or "no energy counter"
    fed = [TensorSpec(name=n, shape=a.shape, dtype=str(a.dtype)) for n, a in inputs.items()]
    return Measurement(
        task=task_spec(label, runner.engine, scenario, runner.threads, fed),
        machine=machine,
        restarts_ns=(tuple(samples),),
        warmup_ns=tuple(warm),
        peak_rss_bytes=None,
        import_rss_bytes=None,
        load_ns=(),
        converged=converged,
        started=started,
        energy_mj=energy,
        nulls=nulls,
        doubts=doubts((samples,), machine, threads=runner.threads, converged=converged),
    )


# ---------------------------------------------------------------- in a run folder


def save(
    folder: str | os.PathLike[str],
    measurements: Sequence[Measurement],
    comparisons: Sequence[Comparison] = (),
) -> None:
    """Write ``measurements.jsonl``, a Measurement a line, and ``comparison.json``."""
    head = {
        "kind": "Measurement",
        "schema": artifacts.SCHEMA,
        "written_by": f"mint-deploy {__version__}",
    }
    lines = (json.dumps({**head, **files.encode(m)}, allow_nan=False) for m in measurements)
    with files.atomic(Path(folder) / "measurements.jsonl") as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    files.write_json(
        Path(folder) / "comparison.json", {"comparisons": list(comparisons)}, kind="Comparisons"
    )


def read(path: str | os.PathLike[str]) -> list[Measurement]:
    """Read the measurements of a run folder, or of one ``.jsonl`` file (a baseline).

    Raises:
        DataError: missing, damaged, of another kind or of a newer schema; the line is named.
    """
    where = Path(path)
    where = where / "measurements.jsonl" if where.is_dir() else where
    try:
        lines = where.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"cannot read {where}: {error}; measure first: mint-deploy bench"
        ) from error
    out = [_parsed(line, f"{where}, line {i}") for i, line in enumerate(lines, 1) if line.strip()]
    if not out:
        raise DataError(f"{where} holds no measurement; measure first: mint-deploy bench")
    return out


def _parsed(line: str, where: str) -> Measurement:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where} is damaged or not JSON ({error}); measure anew") from error
    if not isinstance(data, dict) or data.get("kind") != "Measurement":
        raise DataError(f"{where} is not a measurement; expected a file that bench wrote")
    schema = data.get("schema")
    if not isinstance(schema, int) or schema > artifacts.SCHEMA:
        raise DataError(
            f"{where} has schema {schema!r}, this version reads up to {artifacts.SCHEMA}; "
            "update mint-deploy"
        )
    body = {k: v for k, v in data.items() if k not in ("kind", "schema", "written_by")}
    return files.decode(Measurement, body, where=where)
