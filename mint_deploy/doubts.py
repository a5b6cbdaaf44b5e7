"""What a measurement holds against itself: each doubt is a sentence with its number and its remedy.

Pure functions of raw latencies, the machine record and the looks after each restart, so that an old
measurement can be doubted anew. Standard library and numpy only: this file travels to the board.
"""

from __future__ import annotations

from collections.abc import Sequence

from mint_deploy import statistics
from mint_deploy._advice import GOVERNOR, JETSON, LOOK, lock_gpu, part, turbo_off, where
from mint_deploy.artifacts import Machine, MachineState

__all__ = ["FEW_RESTARTS", "doubts"]

#: a t interval over fewer restarts than this covers less than it says
FEW_RESTARTS = 5
_SPREAD, _DRIFT, _DISAGREE = 0.10, 0.05, 0.10
#: share of the CPU time taken by the hypervisor, and cores used by others, from which on it matters
_STEAL, _OTHERS = 0.01, 0.10
#: a clock that is locked stays within this share of itself
_LOCKED = 0.02


def doubts(
    restarts_ns: Sequence[Sequence[int]],
    machine: Machine,
    *,
    threads: int = 1,
    converged: bool = True,
    interleaved: bool = False,
    states: Sequence[MachineState] = (),
) -> tuple[str, ...]:
    """Return what speaks against figures from ``restarts_ns`` on ``machine``.

    Spread and drift are taken within each restart, and the median over restarts is judged: a slow
    restart is a difference between restarts, not a drift.

    Args:
        restarts_ns: latencies in nanoseconds, one sequence a process restart.
        machine: who measured.
        threads: compute threads of a session.
        converged: whether the measuring reached the precision that was asked for.
        interleaved: whether restarts are compared with those of another model.
        states: the looks at the machine, one after each restart.
    """
    return (
        *_of_samples(restarts_ns, converged=converged, interleaved=interleaved),
        *_of_states(states, machine),
        *_of_machine(machine, threads),
        *_of_gpu(states, machine),
    )


def _of_samples(
    restarts_ns: Sequence[Sequence[int]], *, converged: bool, interleaved: bool
) -> list[str]:
    out = []
    seen = [samples for samples in restarts_ns if len(samples)]
    if not converged:
        out.append(
            "not converged: the time budget ended before the minimum time, the minimum count and "
            f"the wanted precision of the median were reached; measure for longer, or {LOOK} "
            "disturbs this machine"
        )
    if interleaved and len(seen) < FEW_RESTARTS:
        out.append(
            f"{len(seen)} restarts: the interval is to be trusted from {FEW_RESTARTS} on; "
            f"measure with --restarts {FEW_RESTARTS} or more"
        )
    if not seen:
        return out
    spread = statistics.median([statistics.spread(s) for s in seen])
    if spread > _SPREAD:
        out.append(
            f"the middle half of the latencies spans {spread:.0%} of the median "
            f"(over {_SPREAD:.0%}): something else runs here, or the clocks move; {LOOK}"
        )
    drift = statistics.median([statistics.drift(s) for s in seen])
    if abs(drift) > _DRIFT:
        remedy = "let it cool, or lock a lower clock" if drift > 0 else "warm up for longer"
        out.append(
            f"latency drifts by {drift:+.0%} from the first to the last third "
            f"(over {_DRIFT:.0%}): warming up, or throttling; {remedy}"
        )
    middles = [statistics.median(s) for s in seen]
    apart = (max(middles) - min(middles)) / statistics.median(middles)
    if len(middles) > 1 and apart > _DISAGREE:
        out.append(
            f"the medians of the restarts lie {apart:.0%} apart (over {_DISAGREE:.0%}): "
            "a restart is not like the next; measure with more restarts, while nothing else runs"
        )
    return out


def _of_states(states: Sequence[MachineState], machine: Machine) -> list[str]:
    """What the looks saw happen while it was measured."""
    out = []
    throttled = sum(s.throttled or 0 for s in states)
    if throttled:
        hottest = max(
            (s.temperature_c for s in states if s.temperature_c is not None), default=None
        )
        heat = "" if hottest is None else f" (hottest {hottest:.0f} °C)"
        out.append(
            f"the processor slowed itself down {_times(throttled)} while it was measured{heat}: heat "
            "or power ran out; cool it, let it rest between runs, or lock a lower clock"
        )
    stops = sum(s.quota_stops or 0 for s in states)
    if stops:
        quota = machine.details.get("cpu_quota_cores")
        of = f" of {quota:g} cores" if isinstance(quota, (int, float)) else ""
        out.append(
            f"the CPU quota{of} stopped the measuring {_times(stops)}: a stop can last 0.1 s; grant "
            "more (docker run --cpus, or the pod's CPU limit), or use fewer threads"
        )
    steals = [s.steal for s in states if s.steal is not None]
    if steals and sum(steals) / len(steals) > _STEAL:
        out.append(
            f"the hypervisor gave {sum(steals) / len(steals):.1%} of the CPU time to others (over "
            f"{_STEAL:.0%}; {max(steals):.1%} in the worst restart): a neighbour on the same host; "
            "measure at another hour, or on an instance with cores of its own"
        )
    others = [s.other_cpu for s in states if s.other_cpu is not None]
    if others and sum(others) / len(others) > _OTHERS:
        out.append(
            f"other processes used {sum(others) / len(others):.1f} cores on average while it was "
            f"measured (over {_OTHERS:.1f}): they take turns, caches and clocks; stop them "
            "(mint-deploy doctor --machine names them)"
        )
    return out


def _of_machine(machine: Machine, threads: int) -> list[str]:
    """What its settings would let happen."""
    out = []
    if machine.load_average is not None and machine.load_average > machine.cores:
        out.append(
            f"load average {machine.load_average:.1f} on {machine.cores:g} cores before the "
            "measuring began: other work took part; stop it (mint-deploy doctor --machine names it)"
        )
    if machine.governor is not None and machine.governor != "performance":
        out.append(
            f"the CPU governor is '{machine.governor}', not 'performance': clocks move; "
            f"{GOVERNOR}{where(machine)}"
        )
    low, high = (machine.details.get(f"frequency_{end}_mhz") for end in ("min", "max"))
    if machine.details.get("turbo") is True and (low is None or low != high):
        span = "" if low is None or high is None else f" (limits {low:.0f} to {high:.0f} MHz)"
        out.append(
            f"CPU turbo is on{span}: the clock depends on heat and on who else computes; "
            f"{turbo_off(machine)}{where(machine)}"
        )
    if threads > 1 and threads >= machine.cores:
        out.append(
            f"{threads} threads take every core ({machine.cores:g}): on a shared machine this "
            f"widens the spread several-fold; leave one free: --threads {max(threads - 1, 1)}"
        )
    jetson = part(machine, "jetson")
    if jetson.get("sms_off"):
        mode = f" in power mode {machine.power_mode}" if machine.power_mode else ""
        widest = jetson.get("widest_mode") or {}
        out.append(
            f"{jetson['sms_off']} SMs fewer than this board has are switched on{mode}: a figure of "
            f"this mode alone; sudo nvpmodel -m {widest.get('id', 0)} switches on all"
        )
    if jetson.get("clocks_held") is False:
        low, high = (jetson.get(f"gpu_{end}_mhz") for end in ("min", "max"))
        span = "" if low is None or high is None else f" (GPU {low:.0f} to {high:.0f} MHz)"
        out.append(f"the board's clocks are not locked{span}: they follow the load; {JETSON}")
    return out


def _of_gpu(states: Sequence[MachineState], machine: Machine) -> list[str]:
    """A GPU's clock that moved: NVML does not tell whether it is locked, the looks do."""
    seen = [s.gpu_mhz for s in states if s.gpu_mhz is not None]
    now = part(machine, "gpu").get("sm_mhz")
    seen += [float(now)] if seen and isinstance(now, (int, float)) else []
    if not seen or part(machine, "jetson") or max(seen) - min(seen) <= _LOCKED * max(seen):
        return []
    text = (
        f"the GPU's clocks are not locked: seen between {min(seen):.0f} and {max(seen):.0f} MHz; "
        f"{lock_gpu(machine)} (and --reset-gpu-clocks afterwards)"
    )
    return [text]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
