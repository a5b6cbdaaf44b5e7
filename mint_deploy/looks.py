"""Looks at the machine while something is measured: what moved since the last look.

A :class:`Watch` is made before the measuring; each :meth:`Watch.look` then costs a few dozen small
reads (no process is started) and says what happened in between: CPU time that the hypervisor gave to
others, CPU time of other processes, throttling, and what clocks and temperatures are now. One's own
share is taken out by the CPU times of this process, of those that it has waited for, and of its
children that still run. Standard library only: this file travels to the board.

Sources: proc_pid_stat(5), Documentation/admin-guide/thermal and hwmon of the kernel, NVML.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mint_deploy import _cgroup, _machine_board, _nvml, _sysfs
from mint_deploy._machine_cpu import parse_cpuinfo, parse_load, parse_stat
from mint_deploy.artifacts import MachineState

__all__ = ["Watch", "parse_pid_stat"]

#: CPUs whose clock and throttling are read: a server has more than a look should cost
_MOST_CPUS = 16
#: cooling devices that slow a processor down; fans and displays do not
_SLOWS = re.compile(r"cpufreq|devfreq|throttl|^Processor", re.IGNORECASE)
#: sensors that tell a processor's temperature; without any of them the hottest zone counts
_CHIP = re.compile(r"cpu|gpu|pkg|soc|tj|core|k10temp|zenpower", re.IGNORECASE)
_BELIEVABLE_C = (-30.0, 150.0)


def parse_pid_stat(text: str) -> int | None:
    """Read /proc/PID/stat: clock ticks of the process and of the children that it has waited for.

    The name in brackets may hold blanks and brackets; what follows the last one is numbers.
    """
    # utime, stime, cutime, cstime are fields 14 to 17 of the line, and state is field 3
    ticks = text.rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) if len(ticks) == 4 and all(map(str.isdecimal, ticks)) else None


@dataclass(frozen=True, slots=True)
class _Reading:
    """Counters that only grow; None where there is none."""

    ticks: dict[str, int]
    own_ticks: int | None
    throttles: int | None
    held_back_ns: tuple[int, ...]
    stops: int | None


class Watch:
    """Looks at one machine; ``nulls`` says for each field that it never tells why it does not.

    Args:
        root: where /proc and /sys are looked for (tests move it).
        gpu: the GPU to look at; this process's first where absent.
    """

    def __init__(self, root: str | os.PathLike[str] = "/", *, gpu: _nvml.Gpu | None = None) -> None:
        self._root = Path(root)
        no_gpu: str | None = "NVML describes the machine that this process runs on"
        if gpu is None and self._root == Path("/"):
            gpu, no_gpu = _nvml.first_gpu()
        self._gpu = gpu
        folder = _machine_board.gpu_clock(self._root)
        self._board_gpu = folder / "cur_freq" if folder else None
        cpus = list(_allowed(self._root / "sys/devices/system/cpu"))
        self._clocks = [p for cpu in cpus if (p := cpu / "cpufreq/scaling_cur_freq").exists()]
        self._counters = _throttle_counters(cpus)
        self._counters += sorted(self._root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt"))
        self._cooling = _cooling(self._root)
        self._temperatures = _thermometers(self._root)
        self._groups = [f for f in _cgroup.folders(self._root) if (f / "cpu.stat").exists()]
        self._before = self._read(())
        self.nulls = self._reasons(no_gpu or "")

    @property
    def gaps(self) -> dict[str, str]:
        """``nulls`` under the names that a Measurement's have: ``states.steal`` and the like."""
        return {f"states.{name}": reason for name, reason in self.nulls.items()}

    def look(self, own_pids: Sequence[int] = ()) -> MachineState:
        """Return what happened since the last look, or since the watch was made.

        Args:
            own_pids: processes that belong to the measuring. Children of this process that run now
                or have been waited for are known anyway.
        """
        before, now = self._before, self._read(own_pids)
        self._before = now
        passed = {k: now.ticks[k] - before.ticks[k] for k in now.ticks if k in before.ticks}
        total = passed.get("total", 0)
        other = None
        if total > 0 and now.own_ticks is not None and before.own_ticks is not None:
            theirs = passed["busy"] - (now.own_ticks - before.own_ticks)
            # the clock tick is coarse: an idle machine may come out a tick below nothing
            other = max(theirs / total * now.ticks["cpus"], 0.0)
        return MachineState(
            load_average=parse_load(_sysfs.head(self._root / "proc/loadavg") or "").get("1"),
            steal=max(passed["steal"], 0) / total if total > 0 else None,
            other_cpu=other,
            frequency_mhz=self.mhz(),
            throttled=self._throttled(before, now),
            temperature_c=self._temperature(),
            gpu_mhz=self._gpu_mhz(),
            quota_stops=None if now.stops is None or before.stops is None
            else now.stops - before.stops,
        )  # fmt: skip

    # ------------------------------------------------------------ counters

    def _read(self, own_pids: Sequence[int]) -> _Reading:
        counts = [v for path in self._counters if (v := _sysfs.number(path)) is not None]
        return _Reading(
            ticks=parse_stat(_sysfs.head(self._root / "proc/stat", 1 << 16) or ""),
            own_ticks=self._own_ticks(own_pids),
            throttles=sum(counts) if counts else None,
            held_back_ns=self._held_back(),
            stops=_cgroup.stops(self._groups),
        )

    def _own_ticks(self, own_pids: Sequence[int]) -> int | None:
        """Ticks of this process, of ``own_pids`` and of all their children, dead or alive."""
        proc = self._root / "proc"
        own = parse_pid_stat(_sysfs.head(proc / "self/stat") or "")
        if own is None:
            return None
        queue, seen = [*map(str, own_pids), *_children(proc / "self")], {str(os.getpid())}
        while queue:
            pid = queue.pop()
            if pid not in seen:
                seen.add(pid)
                own += parse_pid_stat(_sysfs.head(proc / pid / "stat") or "") or 0
                queue += _children(proc / pid)
        return own

    def _held_back(self) -> tuple[int, ...]:
        """Nanoseconds for which power and heat have kept the GPU's clock down."""
        if self._gpu is None:
            return ()
        try:
            return tuple(self._gpu.held_back_ns(p) for p in (_nvml.POWER, _nvml.HEAT))
        except _nvml.NvmlError:
            return ()

    def _throttled(self, before: _Reading, now: _Reading) -> int | None:
        """Events counted since the last look, and one for each limit that acts now or has acted."""
        found = []
        if now.throttles is not None and before.throttles is not None:
            found.append(max(now.throttles - before.throttles, 0))
        if self._cooling:
            found.append(sum((_sysfs.number(path) or 0) > 0 for path in self._cooling))
        pairs = zip(before.held_back_ns, now.held_back_ns, strict=False)
        if now.held_back_ns:
            found.append(sum(late > early for early, late in pairs))
        return sum(found) if found else None

    # ------------------------------------------------------------ what is so now

    def mhz(self) -> float | None:
        """The fastest of the clocks; without cpufreq what /proc/cpuinfo says of the first CPUs."""
        found = [v / 1000 for path in self._clocks if (v := _sysfs.number(path)) is not None]
        if found:
            return max(found)
        told = parse_cpuinfo(_sysfs.head(self._root / "proc/cpuinfo") or "")["mhz"]
        return None if told is None else float(told)

    def _temperature(self) -> float | None:
        found = [v / 1000 for path in self._temperatures if (v := _sysfs.number(path)) is not None]
        low, high = _BELIEVABLE_C
        chips = [v for v in found if low < v < high]
        if self._gpu is not None:
            # where it does not tell, the CPU's temperature remains
            with contextlib.suppress(_nvml.NvmlError):
                chips.append(float(self._gpu.temperature_c()))
        return max(chips, default=None)

    def _gpu_mhz(self) -> float | None:
        if self._gpu is not None:
            try:
                return float(self._gpu.clock_mhz())
            except _nvml.NvmlError:
                return None
        hz = None if self._board_gpu is None else _sysfs.number(self._board_gpu)
        return None if hz is None else hz / 1e6

    def _reasons(self, no_gpu: str) -> dict[str, str]:
        """Why a field of every look will be None."""
        first, out = self._before, {}
        if not first.ticks:
            out["steal"] = out["other_cpu"] = "no CPU times in /proc/stat"
        elif first.own_ticks is None:
            out["other_cpu"] = "no /proc/self/stat, so that this process cannot be told from others"
        if not (_sysfs.head(self._root / "proc/loadavg") or ""):
            out["load_average"] = "no /proc/loadavg"
        if self.mhz() is None:
            out["frequency_mhz"] = "neither cpufreq in /sys nor 'cpu MHz' in /proc/cpuinfo"
        if first.throttles is None and not self._cooling and not first.held_back_ns:
            out["throttled"] = "no throttle counter in /sys (usual in a virtual machine)"
        if self._temperature() is None:
            out["temperature_c"] = "no thermal zone in /sys (usual in a virtual machine)"
        if self._gpu_mhz() is None:
            out["gpu_mhz"] = no_gpu or "NVML does not tell this GPU's clock"
        if first.stops is None:
            out["quota_stops"] = "no nr_throttled in the control group's cpu.stat"
        return out


# ---------------------------------------------------------------- where things are


def _allowed(folder: Path) -> Iterator[Path]:
    """The first CPUs that this process may run on (all, where the affinity is not known)."""
    mask = getattr(os, "sched_getaffinity", None)
    mine = {f"cpu{n}" for n in mask(0)} if mask else set()
    found = sorted(folder.glob("cpu[0-9]*"), key=lambda p: int(re.sub(r"\D", "", p.name) or 0))
    # a tree that a test made may hold other CPUs than this machine
    yield from ([p for p in found if p.name in mine] or found)[:_MOST_CPUS]


def _throttle_counters(cpus: Sequence[Path]) -> list[Path]:
    """The cores' counters, and of each package one: it is the same for all its CPUs."""
    cores = [cpu / "thermal_throttle/core_throttle_count" for cpu in cpus]
    packages: dict[int | None, Path] = {}
    for cpu in cpus:
        path = cpu / "thermal_throttle/package_throttle_count"
        if path.exists():
            packages.setdefault(_sysfs.number(cpu / "topology/physical_package_id"), path)
    return [*(path for path in cores if path.exists()), *packages.values()]


def _cooling(root: Path) -> list[Path]:
    """States of the cooling devices that slow a processor down; above 0 they do."""
    return [
        folder / "cur_state"
        for folder in sorted(root.glob("sys/class/thermal/cooling_device*"))
        if _SLOWS.search(_sysfs.text(folder / "type") or "")
    ]


def _thermometers(root: Path) -> list[Path]:
    """Files of thousandths of degrees: the processors' if any says so, else all of them."""
    zones = {
        folder / "temp": _sysfs.text(folder / "type") or ""
        for folder in sorted(root.glob("sys/class/thermal/thermal_zone*"))
    }
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = _sysfs.text(folder / "name") or ""
        zones.update(dict.fromkeys(sorted(folder.glob("temp*_input"))[:_MOST_CPUS], name))
    chips = [path for path, kind in zones.items() if _CHIP.search(kind)]
    return (chips or list(zones))[: 2 * _MOST_CPUS]


def _children(process: Path) -> list[str]:
    """Ids of a process's children, where the kernel lists them."""
    out: list[str] = []
    try:
        threads = os.listdir(process / "task")  # noqa: PTH208  names alone, and a tenth of the time
    except OSError:
        return out
    for thread in threads:
        out += (_sysfs.head(process / "task" / thread / "children") or "").split()
    return out
