"""One process restart: a fresh process for each model, and turns in blocks until it is enough.

A restart is kept whole or not at all: one that is interrupted leaves no trace in the records.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from mint_deploy import _bench_energy, files, sensors, statistics
from mint_deploy._bench_base import BLOCK_S, MOST_CALLS, Settings, task_spec
from mint_deploy._bench_child import Child
from mint_deploy._bench_cores import cores_of, on_gpu
from mint_deploy.artifacts import Engine, Machine, MachineState, Measurement, TensorSpec
from mint_deploy.doubts import doubts
from mint_deploy.looks import Watch

__all__ = ["Record", "Turns"]

_NO_PEAK = "this system has no /proc/self/status to read the peak memory from"
_NOT_APART = "the energy used does not stand out from the idle share"
#: a call shorter than this is slower when it is the first after another model's: it is not counted
_SETTLES_S = 0.05
#: the first round of blocks is made, whatever the time; it lasts about this long if calls are short
_SHORTEST_S = 0.1
#: a block is never given less time than this, however short its calls are
_PATIENT_S = 0.5
#: called with the share of the slice that is over
Tell = Callable[[float], None]


@dataclass(slots=True)
class Once:
    """What one restart gathers of one model."""

    child: Child
    load_ns: int = 0
    fed: list[TensorSpec] = field(default_factory=list)
    ns: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    warm: list[int] = field(default_factory=list)
    memory: tuple[int, int] = (0, 0)
    gpu: tuple[int | None, str | None] = (None, None)
    per_call_s: float = 0.0
    enough: bool = False
    used_mj: float = 0.0
    busy_s: float = 0.0
    calls: int = 0


@dataclass(slots=True)
class Record:
    """What is gathered of one model over the restarts."""

    engine: Engine
    fed: list[TensorSpec] = field(default_factory=list)
    restarts: list[list[int]] = field(default_factory=list)
    blocks: list[tuple[int, ...]] = field(default_factory=list)
    warm: list[int] = field(default_factory=list)
    load: list[int] = field(default_factory=list)
    memory: list[tuple[int, int]] = field(default_factory=list)
    gpu: tuple[int | None, str | None] = (None, None)
    enough: bool = True
    used_mj: float = 0.0
    busy_s: float = 0.0
    calls: int = 0

    def add(self, once: Once) -> None:
        """Take a whole restart in."""
        self.fed = once.fed
        self.restarts.append(once.ns)
        self.blocks.append(tuple(once.blocks))
        self.warm += once.warm
        self.load.append(once.load_ns)
        self.memory.append(once.memory)
        if self.gpu[0] is None or (once.gpu[0] or 0) > self.gpu[0]:
            self.gpu = once.gpu
        self.enough &= once.enough
        self.used_mj += once.used_mj
        self.busy_s += once.busy_s
        self.calls += once.calls


@dataclass(slots=True, kw_only=True)
class Turns:
    """The settings of one comparison, and its records."""

    records: dict[str, Record]
    runtime: str
    threads: int
    batch: int
    settings: Settings
    scenario: str = "single_stream"
    streams: int = 1
    pin: bool = True
    seed: int = 0
    inputs: str | None = None
    patience_s: float = 300.0
    meter: sensors.EnergyMeter | None = None
    idle_w: float = 0.0
    no_meter: str | None = None
    watch: Watch = field(default_factory=lambda: Watch())  # noqa: PLW0108  tests replace it
    states: list[MachineState] = field(default_factory=list)
    #: restarts that others have made before, for whose turn it is of the cores
    cores_from: int = 0

    @property
    def done(self) -> int:
        """Whole restarts."""
        return len(self.states)

    def cores(self) -> tuple[int, ...] | None:
        """The cores of the next restart, None for all."""
        if not self.pin or on_gpu(self.runtime):
            return None
        return cores_of(self.cores_from + self.done, self.threads * self.streams)

    def restart(
        self,
        order: Sequence[str],
        slice_s: float,
        tell: Tell | None = None,
        *,
        longest_s: float = math.inf,
    ) -> None:
        """Start a process for each label, let them take turns, stop them.

        Args:
            order: who begins.
            slice_s: seconds for everything.
            tell: called with the share of the measuring that is over.
            longest_s: seconds for warm-up and measuring, once the processes have started.
        """
        energy_s = self._passes_s(len(order), slice_s)
        end = time.monotonic() + slice_s - energy_s
        with ExitStack() as stack:
            # they start side by side: nothing is timed before all have imported their runtime
            once = {
                label: Once(stack.enter_context(Child(label, patience_s=self.patience_s)))
                for label in order
            }
            for label in order:
                self._open(label, once[label])
            end = min(end, time.monotonic() + longest_s)
            warm_s = max(end - time.monotonic(), 0.0) * 0.4 / len(order)
            for label in order:
                self._warm(once[label], warm_s)
            self._turns(order, once, end, tell)
            if energy_s and self.meter is not None:
                for one in once.values():
                    one.used_mj, one.busy_s, one.calls = _bench_energy.steady(
                        one.child, self.meter, one.per_call_s
                    )
            for label in order:
                self._memory(once[label])
            state = self.watch.look([one.child.pid for one in once.values()])
        for label in order:
            self.records[label].add(once[label])
        self.states.append(state)

    def _passes_s(self, models: int, slice_s: float) -> float:
        """Seconds of the first restart for the energy of each model alone; 0 where blocks tell, or in a hurry."""
        meter = self.meter
        if meter is None or models == 1 or self.done or not _bench_energy.is_coarse(meter):
            return 0.0
        whole = models * _bench_energy.pass_s(meter)
        return whole if whole <= _bench_energy.SHARE * slice_s else 0.0

    def _open(self, label: str, once: Once) -> None:
        record = self.records[label]
        opened = once.child.ask(
            "open",
            runtime=self.runtime,
            engine=files.encode(record.engine),
            threads=self.threads,
            streams=self.streams,
            cores=self.cores(),
        )
        once.load_ns = opened["load_ns"]
        once.memory = (0, opened["import_rss_bytes"] or 0)
        record.engine = files.decode(Engine, opened["engine"])
        fed = once.child.ask("feed", batch=self.batch, seed=self.seed, inputs=self.inputs)
        once.fed = [files.decode(TensorSpec, spec) for spec in fed["inputs"]]

    def _warm(self, once: Once, limit_s: float) -> None:
        once.warm = once.child.ask(
            "warm",
            seconds=self.settings.warmup_s,
            count=self.settings.warmup_count,
            limit_s=limit_s,
        )["ns"]
        late = once.warm[len(once.warm) // 2 :]
        once.per_call_s = max(statistics.median(late) / 1e9, 1e-9)

    def _memory(self, once: Once) -> None:
        peak = once.child.ask("peak")["peak_rss_bytes"]
        once.memory = (peak or 0, once.memory[1])
        if on_gpu(self.runtime):
            once.gpu = sensors.gpu_process_bytes(once.child.pid)
        else:
            once.gpu = (None, f"{self.runtime} computes on the CPU")

    def _turns(
        self, order: Sequence[str], once: Mapping[str, Once], end: float, tell: Tell | None
    ) -> None:
        """Blocks A B B A, A B B A ... until every model has enough, or the slice is over."""
        slowest = max(one.per_call_s for one in once.values())
        round_s = 2 * sum(one.per_call_s for one in once.values())
        # the first call of a block finds the caches full of the other model: it is warm-up
        settle = 1 if len(order) > 1 and slowest < _SETTLES_S else 0
        begin = time.monotonic()
        fits = max(end - begin, _SHORTEST_S) / round_s - settle
        count = int(max(min(max(BLOCK_S / slowest, 1 + settle), fits, MOST_CALLS), 1))
        while True:
            for label in (*order, *reversed(order)):
                self._block(once[label], count, settle)
            for one in once.values():
                one.enough = self.settings.enough(one.ns)
            time_left = end - time.monotonic()
            if tell:
                tell(1 - max(time_left, 0.0) / max(end - begin, 1e-9))
            if all(one.enough for one in once.values()) or time_left < (count + settle) * round_s:
                return

    def _block(self, once: Once, count: int, settle: int) -> None:
        meter = self.meter
        if meter is not None and len(self.records) > 1 and _bench_energy.is_coarse(meter):
            meter = None
        limit_s = max(10 * count * once.per_call_s, _PATIENT_S)
        before, begin = (meter.read_uj() if meter else ()), time.perf_counter()
        answer = once.child.ask("block", count=count, settle=settle, limit_s=limit_s)
        if meter:
            once.used_mj += meter.between_mj(before, meter.read_uj())
            once.busy_s += time.perf_counter() - begin
            once.calls += len(answer["settle_ns"]) + len(answer["ns"])
        once.warm += answer["settle_ns"]
        once.ns += answer["ns"]
        once.blocks.append(len(answer["ns"]))

    # ------------------------------------------------------------ the result

    def enough_in_all(self, label: str) -> bool:
        """Whether all restarts together have the time and the count that one was to have."""
        return self.settings.long_enough(
            [v for restart in self.records[label].restarts for v in restart]
        )

    def drop_unfinished(self) -> None:
        """Take back what an interrupt left of a restart in the records of some models."""
        for record in self.records.values():
            for kept in (record.restarts, record.blocks, record.load, record.memory):
                del kept[self.done :]

    def measurement(
        self,
        label: str,
        machine: Machine,
        started: str,
        *,
        converged: bool | None = None,
        sequential: bool = False,
        notes: Sequence[str] = (),
    ) -> Measurement:
        """Turn the record of ``label`` into a value.

        Args:
            label: one of ``records``.
            machine: who measures.
            started: when the measuring began.
            converged: whether what was wanted was reached; None: whether each restart had enough.
            sequential: whether the number of restarts was found by looking at the interval.
            notes: doubts that stand before the others.
        """
        record = self.records[label]
        others = [other for other in self.records if other != label]
        peak, imported = max(record.memory) if record.memory else (0, 0)
        energy, nulls = self._energy(record, alone=not others)
        nulls |= self.watch.gaps
        if not peak:
            nulls["peak_rss_bytes"] = nulls["import_rss_bytes"] = _NO_PEAK
        if record.gpu[0] is None:
            nulls["gpu_bytes"] = record.gpu[1] or "NVML does not say"
        reached = record.enough if converged is None else converged
        return Measurement(
            task=task_spec(
                label,
                record.engine,
                self.scenario,
                self.threads,
                record.fed,
                streams=self.streams,
                flags=self._flags(),
            ),
            machine=machine,
            restarts_ns=tuple(tuple(ns) for ns in record.restarts),
            warmup_ns=tuple(record.warm),
            peak_rss_bytes=peak or None,
            import_rss_bytes=imported or None,
            load_ns=tuple(record.load),
            converged=reached,
            started=started,
            partner=", ".join(others) or None,
            energy_mj=energy,
            gpu_bytes=record.gpu[0],
            states=tuple(self.states),
            blocks=tuple(record.blocks),
            sequential=sequential,
            nulls=nulls,
            doubts=(
                *notes,
                *doubts(
                    record.restarts,
                    machine,
                    threads=self.threads,
                    converged=reached or bool(notes),
                    interleaved=bool(others),
                    states=self.states,
                ),
            ),
        )

    def _flags(self) -> dict[str, str]:
        """What the harness has set: part of the key, because it moves the figures."""
        cores = self.cores()
        held = f"{len(cores)} of {len(os.sched_getaffinity(0))}" if cores else "all"
        several = {"stream_runners": "one a stream"} if self.streams > 1 else {}
        return {"cores": held, **several}

    def _energy(self, record: Record, *, alone: bool) -> tuple[float | None, dict[str, str]]:
        """Millijoules a call, or None and why."""
        meter = self.meter
        if meter is None:
            return None, {"energy_mj": self.no_meter or "no energy counter"}
        if not alone and not record.calls:
            return None, {
                "energy_mj": f"the counter {meter.what} moves every {meter.resolution_s:g} s, which does not tell "
                f"blocks of {BLOCK_S:g} s apart, and there was no time for a pass of "
                f"{_bench_energy.pass_s(meter):g} s a file; give it more --seconds"
            }
        found = sensors.per_inference_mj(record.used_mj, self.idle_w, record.busy_s, record.calls)
        return found, {} if found is not None else {"energy_mj": _NOT_APART}
