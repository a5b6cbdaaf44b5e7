"""The offline scenario: samples a second over several batches, and where the knee is.

A pass measures every batch once, each in a fresh process, and passes are repeated while the time
allows, up and down in turns; so each batch has several restarts, and the k-th of all batches belong
together. The knee's uncertainty comes from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike

from mint_deploy import files, plugins, statistics
from mint_deploy._bench_base import MeasuringStopped, Progress, Settings, now, positive
from mint_deploy._bench_child import PATIENCE_S, Child
from mint_deploy._bench_files import metered
from mint_deploy._bench_turns import Record, Turns
from mint_deploy.artifacts import Engine, Machine, Measurement
from mint_deploy.errors import ConfigError, MintDeployError
from mint_deploy.machine import probe
from mint_deploy.runtimes import DYNAMIC
from mint_deploy.statistics import Interval

__all__ = ["Throughput", "throughput"]

#: the smallest batch within this share of the best throughput is the knee
_KNEE = 0.95
#: a batch of the first pass may take this share of all its time; the rest is for other passes
_FIRST = 0.5
#: about what a process takes before it measures, and the shortest time in which it may measure
_START_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """The offline scenario: a Measurement a batch; ``nulls`` says why a batch has none."""

    measurements: tuple[Measurement, ...]
    nulls: Mapping[str, str] = field(default_factory=dict)

    @property
    def samples_per_s(self) -> dict[int, float]:
        """Batch -> samples a second: all samples over all the time they took."""
        return {
            m.task.batch: m.task.batch * m.task.streams * len(ns) / sum(ns) * 1e9
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

    @property
    def intervals(self) -> dict[int, Interval]:
        """Batch -> samples a second with the 95 % interval over its restarts, where it has two."""
        return {
            batch: statistics.ratio_interval(logs)
            for batch, logs in self._logs().items()
            if len(logs) > 1
        }

    @property
    def knee_range(self) -> tuple[int, int] | None:
        """The smallest and the largest batch that may be the knee, at 95 % a batch.

        Each batch is held against the best pass by pass. None where a batch was measured once.
        """
        rates, logs = self.samples_per_s, self._logs()
        passes = min((len(found) for found in logs.values()), default=0)
        if len(rates) < 2 or passes < 2:
            return None
        best = max(rates, key=lambda batch: rates[batch])
        found = {
            batch: statistics.ratio_interval(
                [one - most for one, most in zip(logs[batch], logs[best], strict=False)]
            )
            for batch in sorted(rates)
        }
        low = next(b for b, share in found.items() if share.high >= _KNEE)
        high = next(b for b, share in found.items() if share.low >= _KNEE)
        return low, high

    def _logs(self) -> dict[int, list[float]]:
        """Batch -> the logarithm of its samples a second, one a restart."""
        return {
            m.task.batch: [
                math.log(m.task.batch * m.task.streams * len(ns) / sum(ns) * 1e9)
                for ns in m.restarts_ns
                if ns
            ]
            for m in self.measurements
            if any(m.restarts_ns)
        }


def throughput(
    path: str | PathLike[str],
    batches: Sequence[int] = (1, 2, 4, 8, 16, 32),
    threads: int = 1,
    *,
    runtime: str = "onnxruntime",
    label: str = "model",
    restarts: int = 5,
    budget_s: float = 20.0,
    settings: Settings | None = None,
    pin: bool = True,
    seed: int = 0,
    machine: Machine | None = None,
    target: object = None,
    progress: Progress | None = None,
    patience_s: float = PATIENCE_S,
) -> Throughput:
    """Measure samples a second over ``batches``, each in fresh processes.

    A model whose batch is fixed is measured at that batch alone; for the others ``nulls`` says so.
    A batch that fails (memory) ends the first pass and is named there too, unless it is the first.

    Args:
        path: the file.
        batches: samples a call, in any order.
        threads: compute threads of a session.
        runtime: name of a runtime that runs files.
        label: what the results are called.
        restarts: of each batch at most; one is made in any case, the others where time allows.
        budget_s: seconds for everything; the first round of calls of each batch is made anyway.
        settings: when a restart has enough.
        pin: hold a process to as many cores as it has threads.
        seed: of the random inputs.
        machine: who measures; probed where absent.
        target: what the engine is built for.
        progress: called with batches done, batches in all at most, and a note.
        patience_s: seconds of silence after which a process is given up.

    Raises:
        ConfigError: no batch, or one below 1.
        ModelError: a file that the runtime does not load.
        MeasuringStopped: Ctrl-C after a whole restart; it carries what was measured.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches are {list(batches)}, expected one or more, each above 0")
    positive(budget_s=budget_s, threads=threads, restarts=restarts)
    begin, started, machine = time.monotonic(), now(), machine or probe()
    engine = plugins.load("runtime", runtime).build(path, target, None)
    wanted, nulls = _possible(runtime, engine, batches, label, threads, patience_s)
    energy = metered(runtime)
    one = {
        batch: Turns(
            records={label: Record(engine)},
            runtime=runtime,
            threads=threads,
            batch=batch,
            settings=settings or Settings(min_s=0.25, min_count=20),
            scenario="offline",
            pin=pin,
            seed=seed,
            patience_s=patience_s,
            **energy,
        )
        for batch in wanted
    }
    sweep = _Sweep(one, nulls, label, restarts, begin, budget_s, progress)
    stopped: KeyboardInterrupt | None = None
    try:
        sweep.run()
    except KeyboardInterrupt as error:
        if not sweep.finished:
            raise
        stopped = error
        for turns in one.values():
            turns.drop_unfinished()
    note = f"interrupted after {len(sweep.finished)} batches: this is what was measured by then"
    found = tuple(
        turns.measurement(
            label,
            machine,
            started,
            converged=None if stopped is None else False,
            notes=() if stopped is None else (note,),
        )
        for turns in sweep.finished
    )
    if stopped is not None:
        raise MeasuringStopped(note, found) from stopped
    return Throughput(measurements=found, nulls=nulls)


def _possible(
    runtime: str,
    engine: Engine,
    batches: Sequence[int],
    label: str,
    threads: int,
    patience_s: float,
) -> tuple[list[int], dict[str, str]]:
    """The batches that the model takes, and why the others have no figure."""
    with Child(label, patience_s=patience_s) as child:
        specs = child.ask("open", runtime=runtime, engine=files.encode(engine), threads=threads)[
            "inputs"
        ]
    wanted = sorted(set(batches))
    fixed = specs[0]["shape"][0] if specs and specs[0]["shape"] else DYNAMIC
    if fixed == DYNAMIC:
        return wanted, {}
    why = f"the model's batch is fixed at {fixed}; export it with an open batch"
    return [fixed], {str(b): why for b in wanted if b != fixed}


@dataclass(slots=True)
class _Sweep:
    """Passes over the batches until there are enough of them, or the time is over."""

    turns: dict[int, Turns]
    nulls: dict[str, str]
    label: str
    restarts: int
    begin: float
    budget_s: float
    progress: Progress | None

    @property
    def finished(self) -> list[Turns]:
        """Those with a restart."""
        return [turns for turns in self.turns.values() if turns.done]

    def run(self) -> None:
        """Make the passes."""
        for k in range(self.restarts):
            started = time.monotonic()
            if not self._pass(k):
                break
            took = time.monotonic() - started
            if self._left_s() < took:
                break
        self._tell(len(self.turns) * self.restarts, "measured")

    def _left_s(self) -> float:
        return self.begin + self.budget_s - time.monotonic()

    def _tell(self, done: int, note: str) -> None:
        if self.progress:
            self.progress(done, len(self.turns) * self.restarts, note)

    def _pass(self, k: int) -> bool:
        """Measure every batch once; False where one failed."""
        order = sorted(self.turns, reverse=k % 2 == 1)
        longest = max(_FIRST * self.budget_s / len(order), 2 * _START_S)
        for i, batch in enumerate(order):
            self._tell(
                k * len(order) + i, f"batch {batch}, pass {k + 1} of {self.restarts} at most"
            )
            share = max(self._left_s(), 0.0) / (len(order) - i)
            try:
                self.turns[batch].restart([self.label], min(share, longest))
            except MintDeployError as error:
                if not self.finished:
                    raise
                if k == 0:
                    why = f"batch {batch} failed before"
                    self.nulls.update(dict.fromkeys(map(str, order[i + 1 :]), why))
                    self.nulls[str(batch)] = str(error)
                return False
        return True
