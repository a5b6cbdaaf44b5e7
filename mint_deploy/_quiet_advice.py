"""What would make this machine quieter, the most effective first, each with its command.

A piece of advice is given only where what it mends was seen or is set. Its weight is a guess at the
share of the time that it spoils: seen disturbances by what was measured of them, settings by what
they cost on an ordinary machine. Standard library only.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mint_deploy._advice import GOVERNOR, JETSON, lock_gpu, part, turbo_off, where
from mint_deploy._processes import Process
from mint_deploy.artifacts import Machine

__all__ = ["Advice", "advise"]

_NAMED, _PIDS = 3, 8
#: cores below which a process, or all that are unseen, is not worth a word
_LITTLE, _UNSEEN = 0.02, 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What to do and why; the command that does it; ``weight`` orders them."""

    text: str
    command: str
    weight: float


def advise(
    machine: Machine,
    *,
    steal: float | None,
    other_cpu: float | None,
    unseen_cpu: float | None,
    processes: Sequence[Process],
    throttled: int | None,
    quota_stops: int | None,
    seconds: float,
    spread: float | None,
) -> tuple[Advice, ...]:
    """Return the advice for what was seen in ``seconds``, the most effective first."""
    found = [
        *_of_others(machine, unseen_cpu or 0.0, processes),
        *_of_time_taken(steal or 0.0, throttled or 0, (quota_stops or 0) / seconds),
        *_of_settings(machine, busy=(other_cpu or 0.0) > 0.5, spread=spread or 0.0),
        *_of_gpu(machine),
        _longer(),
    ]
    return tuple(sorted(found, key=lambda advice: -advice.weight))


def _of_others(machine: Machine, unseen: float, processes: Sequence[Process]) -> Iterator[Advice]:
    cores = max(machine.cores, 1.0)
    large = [p for p in processes if p.cores >= _LITTLE and not p.kernel][:_NAMED]
    if large:
        pids = [str(pid) for p in large for pid in p.pids[:_PIDS]]
        names = ", ".join(f"{p.name} ({p.cores:.2g} cores)" for p in large)
        yield Advice(
            text=f"stop what else runs, or pause it (kill -CONT lets it go on): {names}",
            command=shlex.join(["kill", "-STOP", *pids])
            if pids
            else "ps -eo pcpu,pid,args --sort=-pcpu",
            weight=min(sum(p.cores for p in large) / cores, 1.0),
        )
    if unseen >= _UNSEEN:
        yield Advice(
            text=f"{unseen:.1f} cores of others' work cannot be seen from here (other containers, "
            "kernel threads, processes that live for a moment): look on the host",
            command="top -b -n 1 | head -20",
            weight=min(unseen / cores, 1.0) * 0.9,
        )


def _of_time_taken(steal: float, throttled: int, stops_a_second: float) -> Iterator[Advice]:
    if steal > 0.002:
        yield Advice(
            text=f"the hypervisor gave {steal:.1%} of the CPU time to others: measure at another "
            "hour, or on an instance with cores of its own",
            command="vmstat 1 10",
            weight=min(3 * steal, 1.0),
        )
    if stops_a_second > 0:
        yield Advice(
            text="the CPU quota of this control group stops the work in the middle: grant more cores",
            command="docker update --cpus 0 CONTAINER",
            weight=min(stops_a_second / 10, 1.0),
        )
    if throttled:
        yield Advice(
            text="the processor slowed itself down: cool it, or lock a clock that it can keep",
            command="sudo cpupower frequency-set -u 2.0GHz",
            weight=0.3,
        )


def _of_settings(machine: Machine, *, busy: bool, spread: float) -> Iterator[Advice]:
    host, details = where(machine), machine.details
    low, high = (details.get(f"frequency_{end}_mhz") for end in ("min", "max"))
    if part(machine, "jetson").get("clocks_held") is False:
        yield Advice(
            text="the board's clocks follow the load: hold them", command=JETSON, weight=0.3
        )
    if machine.governor is not None and machine.governor != "performance":
        yield Advice(
            text=f"the CPU governor is '{machine.governor}': keep the clock up{host}",
            command=GOVERNOR,
            weight=0.1,
        )
    if details.get("turbo") is True and (low is None or low != high):
        yield Advice(
            text=f"turbo lets the clock depend on heat and neighbours: switch it off{host}",
            command=turbo_off(machine),
            weight=0.06,
        )
    if details.get("smt") is True:
        yield Advice(
            text=f"two threads share each core (SMT): switch the second one off{host}",
            command="echo off | sudo tee /sys/devices/system/cpu/smt/control",
            weight=0.1 if busy else 0.02,
        )
    mask = getattr(os, "sched_getaffinity", None)
    cpus = sorted(mask(0)) if mask else []
    if len(cpus) > 1 and not busy and spread > 0.01:
        yield Advice(
            text="keep the measuring on one core, so that it does not wander",
            command=shlex.join(["taskset", "-c", str(cpus[-1]), "mint-deploy", "bench", "..."]),
            weight=0.015,
        )


def _of_gpu(machine: Machine) -> Iterator[Advice]:
    gpu = part(machine, "gpu")
    now, highest = gpu.get("sm_mhz"), gpu.get("sm_max_mhz")
    if isinstance(now, (int, float)) and isinstance(highest, (int, float)) and now < highest / 2:
        yield Advice(
            text=f"the GPU idles at {now:g} of {highest:g} MHz: lock its clock while you measure on it",
            command=lock_gpu(machine),
            weight=0.05,
        )
    if gpu.get("persistence") is False:
        yield Advice(
            text="the GPU's driver is unloaded after each process: keep it",
            command="sudo nvidia-smi --persistence-mode=1",
            weight=0.01,
        )


def _longer() -> Advice:
    return Advice(
        text="whatever remains: four times as long halves the smallest difference",
        command="mint-deploy bench A.onnx --against B.onnx --seconds 240",
        weight=0.0,
    )
