"""Measuring files in fresh processes: two models in turns, or one over several batches."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from mint_deploy import files, plugins, sensors, statistics
from mint_deploy._bench_base import Progress, Settings, now, positive
from mint_deploy._bench_child import PATIENCE_S, Child
from mint_deploy._bench_turns import Record, Turns
from mint_deploy.artifacts import Comparison, Machine, Measurement
from mint_deploy.doubts import FEW_RESTARTS
from mint_deploy.errors import ConfigError, MintDeployError
from mint_deploy.machine import probe
from mint_deploy.runtimes import DYNAMIC, Arrays

__all__ = ["Throughput", "interleave", "throughput"]

#: the smallest batch within this share of the best throughput is the knee
_KNEE = 0.95


def interleave(
    paths: Mapping[str, str | PathLike[str]],
    *,
    runtime: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    inputs: Arrays | None = None,
    restarts: int = 5,
    budget_s: float = 60.0,
    settings: Settings | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    machine: Machine | None = None,
    target: object = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> tuple[list[Measurement], list[Comparison]]:
    """Measure files in turns, and compare each with the first.

    Every restart starts one fresh process a file and runs blocks A B B A ...; only one of them
    computes at a time, and who begins alternates. The ratio's interval is taken over restarts.

    Args:
        paths: label -> file; the first label is A of every comparison. A single file is measured
            alone.
        runtime: name of a runtime that runs files.
        threads: compute threads of each session.
        batch: samples a call.
        inputs: name -> array, the same for all; random numbers where absent.
        restarts: process restarts; 5 or more for an interval to be trusted.
        budget_s: seconds for everything. It ends warm-up and measuring early, not the first round
            of blocks of a restart; what it cut short is called not converged.
        settings: when a model of a restart has enough.
        confidence: of the interval.
        seed: of the random inputs.
        machine: who measures; probed where absent.
        target: what the engines are built for (its precision is recorded).
        progress: called with restarts done, restarts in all, and a note.
        patience_s: seconds of silence after which a process is given up.

    Returns:
        A Measurement a label in the order of ``paths``, and a Comparison for each but the first.

    Raises:
        ConfigError: a setting that makes no sense; the batch is fixed at another number.
        ModelError: a file that the runtime does not load.
        MintDeployError: a measuring process died or fell silent; how and its last words.
    """
    if not paths:
        raise ConfigError("no file to measure was given")
    if restarts < (2 if len(paths) > 1 else 1):
        raise ConfigError(
            f"restarts is {restarts}; two files need at least 2 for an interval, "
            f"and {FEW_RESTARTS} for one to be trusted"
        )
    positive(budget_s=budget_s, threads=threads, batch=batch)
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence is {confidence}, expected a number between 0 and 1")
    begin, started, machine = time.monotonic(), now(), machine or probe()
    plugin = plugins.load("runtime", runtime)
    with tempfile.TemporaryDirectory(prefix="mint-deploy-") as folder:
        fed = None
        if inputs is not None:
            fed = str(Path(folder) / "inputs.npz")
            files.write_arrays(fed, {}, inputs)
        meter, no_meter = sensors.find_meter()
        bench = Turns(
            records={k: Record(plugin.build(path, target, None)) for k, path in paths.items()},
            runtime=runtime,
            threads=threads,
            batch=batch,
            seed=seed,
            inputs=fed,
            settings=settings or Settings(),
            patience_s=patience_s,
            meter=meter,
            idle_w=sensors.idle_w(meter) if meter else 0.0,
        )
        labels = list(paths)
        for r in range(restarts):
            note = f"restart {r + 1} of {restarts}, {' and '.join(labels)} in turns"

            def tell(part: float, r: int = r, note: str = note) -> None:
                if progress:
                    progress(r + min(part, 1.0), restarts, note)

            tell(0.0)
            left = begin + budget_s - time.monotonic()
            bench.restart(labels if r % 2 == 0 else labels[::-1], left / (restarts - r), tell)
    if progress:
        progress(restarts, restarts, "measured")
    measured = [bench.measurement(k, "single_stream", machine, started, no_meter) for k in labels]
    first = measured[0]
    return measured, [_compared(first, other, confidence, seed) for other in measured[1:]]


def _compared(a: Measurement, b: Measurement, confidence: float, seed: int) -> Comparison:
    found = statistics.ratio_interval(
        statistics.log_ratios(a.restarts_ns, b.restarts_ns), confidence=confidence, seed=seed
    )
    notes = []
    if found.n < FEW_RESTARTS:
        notes.append(f"{found.n} restarts: the interval is to be trusted from {FEW_RESTARTS} on")
    late = [m.task.label for m in (a, b) if not m.converged]
    if late:
        notes.append(f"not converged within the time budget: {', '.join(late)}")
    return Comparison(
        a=a.task.label,
        b=b.task.label,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        confidence=confidence,
        restarts=found.n,
        doubts=tuple(notes),
    )


# ---------------------------------------------------------------- offline: a sweep over batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The offline scenario: a Measurement a batch; ``nulls`` says why a batch has none."""

    measurements: tuple[Measurement, ...]
    nulls: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples_per_s(self) -> dict[int, float]:
        """Batch -> samples a second: all samples over all the time they took."""
        return {
            m.task.batch: m.task.batch * len(ns) / sum(ns) * 1e9
            for m in self.measurements
            if (ns := [v for restart in m.restarts_ns for v in restart])
        }

    @property
    def knee(self) -> int | None:
        """The smallest batch within 5 % of the best throughput; a larger one only adds latency."""
        rates = self.samples_per_s
        if len(rates) < 2:
            return None
        return min(b for b, rate in rates.items() if rate >= _KNEE * max(rates.values()))


def throughput(
    path: str | PathLike[str],
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    threads: int = 1,
    *,
    runtime: str = "onnxruntime",
    label: str = "model",
    budget_s: float = 20.0,
    settings: Settings | None = None,
    seed: int = 0,
    machine: Machine | None = None,
    target: object = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> Throughput:
    """Measure samples a second over ``batches``, each in a fresh process.

    A model whose batch is fixed is measured at that batch alone; for the others ``nulls`` says so.
    A batch that fails (memory) ends the sweep and is named there too, unless it is the first.

    Raises:
        ConfigError: no batch, or one below 1.
        ModelError: a file that the runtime does not load.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches are {list(batches)}, expected one or more, each above 0")
    positive(budget_s=budget_s, threads=threads)
    begin, machine = time.monotonic(), machine or probe()
    engine = plugins.load("runtime", runtime).build(path, target, None)
    meter, no_meter = sensors.find_meter()
    idle = sensors.idle_w(meter) if meter else 0.0
    settings = settings or Settings(min_count=20)

    def bench(batch: int) -> Turns:
        return Turns(
            {label: Record(engine)}, runtime, threads, batch, seed, None, settings, patience_s,
            meter, idle,
        )  # fmt: skip

    wanted, nulls = sorted(set(batches)), {}
    with Child(label, patience_s=patience_s) as child:
        specs = child.ask("open", runtime=runtime, engine=files.encode(engine), threads=threads)[
            "inputs"
        ]
    fixed = specs[0]["shape"][0] if specs and specs[0]["shape"] else DYNAMIC
    if fixed != DYNAMIC:
        nulls = {
            str(b): f"the model's batch is fixed at {fixed}; export it with an open batch"
            for b in wanted
            if b != fixed
        }
        wanted = [fixed]
    out: list[Measurement] = []
    for i, batch in enumerate(wanted):
        if progress:
            progress(i, len(wanted), f"batch {batch}")
        one, started = bench(batch), now()
        left = max(begin + budget_s - time.monotonic(), 0.0) / (len(wanted) - i)
        try:
            one.restart([label], left)
        except MintDeployError as error:
            if not out:
                raise
            nulls.update(dict.fromkeys(map(str, wanted[i + 1 :]), f"batch {batch} failed before"))
            nulls[str(batch)] = str(error)
            break
        out.append(one.measurement(label, "offline", machine, started, no_meter))
    if progress:
        progress(len(wanted), len(wanted), "measured")
    return Throughput(measurements=tuple(out), nulls=nulls)
