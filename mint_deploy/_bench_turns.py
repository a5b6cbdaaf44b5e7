"""One process restart: a fresh process for each model, and turns in blocks until it is enough."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from mint_deploy import files, sensors, statistics
from mint_deploy._bench_base import BLOCK_S, MOST_CALLS, Settings, task_spec
from mint_deploy._bench_child import Child
from mint_deploy.artifacts import Engine, Machine, Measurement, TensorSpec
from mint_deploy.doubts import doubts

__all__ = ["Record", "Turns"]

_NO_PEAK = "this system has no /proc/self/status to read the peak memory from"
#: called with the share of the slice that is over
Tell = Callable[[float], None]


@dataclass(slots=True)
class Record:
    """What is gathered of one model over the restarts."""

    engine: Engine
    fed: list[TensorSpec] = field(default_factory=list)
    restarts: list[list[int]] = field(default_factory=list)
    warm: list[int] = field(default_factory=list)
    load: list[int] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    converged: bool = True
    used_mj: float = 0.0
    busy_s: float = 0.0
    calls: int = 0


@dataclass(slots=True)
class Turns:
    """The settings of one comparison, and its records."""

    records: dict[str, Record]
    runtime: str
    threads: int
    batch: int
    seed: int
    inputs: str | None
    settings: Settings
    patience_s: float
    meter: sensors.EnergyMeter | None
    idle_w: float

    def restart(self, order: Sequence[str], slice_s: float, tell: Tell | None = None) -> None:
        """Start a process for each label, let them take turns for ``slice_s``, stop them."""
        end = time.monotonic() + slice_s
        with ExitStack() as stack:
            # they start side by side: nothing is timed before all have imported their runtime
            children = {
                label: stack.enter_context(Child(label, patience_s=self.patience_s))
                for label in order
            }
            for label in order:
                self._open(label, children[label])
            warm_s = max(end - time.monotonic(), 0.0) * 0.4 / len(order)
            per_call = {}
            for label in order:
                ns = children[label].ask(
                    "warm",
                    seconds=self.settings.warmup_s,
                    count=self.settings.warmup_count,
                    limit_s=warm_s,
                )["ns"]
                self.records[label].warm += ns
                per_call[label] = max(statistics.median(ns[len(ns) // 2 :]) / 1e9, 1e-9)
            self._turns(order, children, per_call, end, tell)
            for label in order:
                peak = children[label].ask("peak")["peak_rss_bytes"]
                record = self.records[label]
                if peak is not None:
                    record.memory[-1] = (peak, record.memory[-1][1])

    def _open(self, label: str, child: Child) -> list[TensorSpec]:
        record = self.records[label]
        opened = child.ask(
            "open", runtime=self.runtime, engine=files.encode(record.engine), threads=self.threads
        )
        record.load.append(opened["load_ns"])
        record.memory.append((0, opened["import_rss_bytes"] or 0))
        record.engine = files.decode(Engine, opened["engine"])
        fed = child.ask("feed", batch=self.batch, seed=self.seed, inputs=self.inputs)
        record.fed = [files.decode(TensorSpec, spec) for spec in fed["inputs"]]
        record.restarts.append([])
        return [files.decode(TensorSpec, spec) for spec in opened["inputs"]]

    def _turns(
        self,
        order: Sequence[str],
        children: Mapping[str, Child],
        per_call: Mapping[str, float],
        end: float,
        tell: Tell | None,
    ) -> None:
        """Blocks A B B A, A B B A ... until every model has enough, or the slice is over."""
        slowest, round_s = max(per_call.values()), 2 * sum(per_call.values())
        # the first call of a block finds the caches full of the other model: it is warm-up
        settle = 1 if len(order) > 1 and slowest < BLOCK_S else 0
        begin = time.monotonic()
        fits = (end - begin) / round_s - settle
        count = int(max(min(BLOCK_S / slowest, fits, MOST_CALLS), 1))
        while True:
            for label in (*order, *reversed(order)):
                self._block(label, children[label], count, settle, 10 * count * per_call[label])
            enough = [self.settings.enough(self.records[label].restarts[-1]) for label in order]
            time_left = end - time.monotonic()
            if tell:
                tell(1 - max(time_left, 0.0) / max(end - begin, 1e-9))
            if all(enough):
                return
            if time_left < (count + settle) * round_s:
                for label, reached in zip(order, enough, strict=True):
                    self.records[label].converged &= reached
                return

    def _block(self, label: str, child: Child, count: int, settle: int, limit_s: float) -> None:
        record, meter = self.records[label], self.meter
        before, begin = (meter.read_uj() if meter else ()), time.perf_counter()
        answer = child.ask("block", count=count, settle=settle, limit_s=max(limit_s, 10 * BLOCK_S))
        if meter:
            record.used_mj += meter.between_mj(before, meter.read_uj())
            record.busy_s += time.perf_counter() - begin
        record.warm += answer["settle_ns"]
        record.calls += len(answer["settle_ns"]) + len(answer["ns"])
        record.restarts[-1] += answer["ns"]

    def measurement(
        self, label: str, scenario: str, machine: Machine, started: str, no_meter: str | None
    ) -> Measurement:
        """Turn the record of ``label`` into a value."""
        record, nulls, energy = self.records[label], {}, None
        peak, imported = max(record.memory) if record.memory else (0, 0)
        if not peak:
            nulls["peak_rss_bytes"] = nulls["import_rss_bytes"] = _NO_PEAK
        if self.meter:
            energy = sensors.per_inference_mj(
                record.used_mj, self.idle_w, record.busy_s, record.calls
            )
            no_meter = "the energy used does not stand out from the idle share"
        if energy is None:
            nulls["energy_mj"] = no_meter or "no energy counter"
        others = [other for other in self.records if other != label]
        return Measurement(
            task=task_spec(label, record.engine, scenario, self.threads, record.fed),
            machine=machine,
            restarts_ns=tuple(tuple(ns) for ns in record.restarts),
            warmup_ns=tuple(record.warm),
            peak_rss_bytes=peak or None,
            import_rss_bytes=imported or None,
            load_ns=tuple(record.load),
            converged=record.converged,
            started=started,
            partner=", ".join(others) or None,
            energy_mj=energy,
            nulls=nulls,
            doubts=doubts(
                record.restarts,
                machine,
                threads=self.threads,
                converged=record.converged,
                interleaved=bool(others),
            ),
        )
