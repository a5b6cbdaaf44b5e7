"""Energy and GPU memory where the machine has a sensor for it; else None and the reason.

What is counted: on a board the rail into the whole module (:mod:`mint_deploy._rails`), else the CPU
packages (RAPL, through /sys/class/powercap), and beside them the GPU (NVML's own counter) where a
GPU computes. What a counter read before and after does not say is whose energy it was: the idle
share is measured and subtracted, and what other processes used in the meantime is not. A counter
moves in steps (``resolution_s``); blocks not much longer than a step must not be told apart by it.
Standard library only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mint_deploy import _nvml
from mint_deploy._rails import find_rails

__all__ = [
    "Counter",
    "EnergyMeter",
    "find_meter",
    "gpu_process_bytes",
    "idle_w",
    "per_inference_mj",
]


class Counter(Protocol):
    """Something that counts microjoules and may wrap around at ``size_uj``."""

    @property
    def name(self) -> str:
        """What is counted, in words."""

    @property
    def size_uj(self) -> int:
        """Where the counter begins anew."""

    @property
    def resolution_s(self) -> float:
        """How often the counter moves."""

    def read_uj(self) -> int:
        """Return what it shows now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaplZone:
    """One package of /sys/class/powercap; its counter moves about every millisecond."""

    path: Path
    name: str
    size_uj: int
    resolution_s: float = 0.001

    def read_uj(self) -> int:
        """Return what the counter shows now."""
        return int((self.path / "energy_uj").read_text())


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuCounter:
    """The energy counter of one GPU; the driver refreshes it some ten times a second."""

    gpu: _nvml.Gpu
    name: str = "GPU (NVML)"
    size_uj: int = 1000 * 2**64
    resolution_s: float = 0.1

    def read_uj(self) -> int:
        """Return what the counter shows now."""
        return self.gpu.energy_mj() * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeter:
    """The counters that together make the energy of what is measured."""

    counters: tuple[Counter, ...]

    @property
    def what(self) -> str:
        """What is counted, in words: ``package-0 (RAPL) + GPU (NVML)``."""
        return " + ".join(counter.name for counter in self.counters)

    @property
    def resolution_s(self) -> float:
        """The slowest counter's step; energy of shorter blocks cannot be told apart."""
        return max(counter.resolution_s for counter in self.counters)

    def read_uj(self) -> tuple[int, ...]:
        """Return what each counter shows now."""
        return tuple(counter.read_uj() for counter in self.counters)

    def between_mj(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Return millijoules between two readings; a counter that wrapped around is put right."""
        used = (
            (late - early) % counter.size_uj
            for early, late, counter in zip(before, after, self.counters, strict=True)
        )
        return sum(used) / 1000


def find_meter(
    root: str | os.PathLike[str] = "/", *, gpu: bool | _nvml.Gpu | None = False
) -> tuple[EnergyMeter | None, str | None]:
    """Return the meter of this machine, or None and why there is none.

    Args:
        root: where /sys is looked for (tests move it).
        gpu: whether a GPU computes, so that its energy counts too; or the GPU itself.

    Returns:
        The meter and None, or None and the reason. Where a GPU computes and only its counter can
        be read the meter counts the GPU alone, and ``what`` says so.
    """
    base = Path(root)
    rails = find_rails(base)
    if rails is not None:
        return EnergyMeter(counters=(rails,)), None
    zones, reason = _rapl(base / "sys/class/powercap")
    counters: list[Counter] = list(zones)
    if gpu:
        found, no_gpu = (gpu, None) if isinstance(gpu, _nvml.Gpu) else _nvml.first_gpu()
        try:
            if found is None:
                raise _nvml.NvmlError(no_gpu or "no GPU")
            found.energy_mj()
        except _nvml.NvmlError as error:
            # CPU energy alone would pass for that of a model that the GPU computes
            return None, f"the GPU's energy cannot be read: {error}"
        only = "" if zones else " alone"
        counters.append(GpuCounter(gpu=found, name=f"GPU{only} (NVML)"))
    if not counters:
        return None, reason
    return EnergyMeter(counters=tuple(counters)), None


def _rapl(base: Path) -> tuple[list[RaplZone], str | None]:
    """Whole packages only: their sub-zones (cores, memory) lie inside them."""
    if not base.is_dir():
        return [], f"no energy counter: {base} does not exist (usual in a virtual machine)"
    zones: list[RaplZone] = []
    refused = None
    for place in sorted(base.glob("*-rapl:*")):
        try:
            name = (place / "name").read_text().strip()
            if not name.startswith("package"):
                continue
            size = int((place / "max_energy_range_uj").read_text()) + 1
            zone = RaplZone(path=place, name=f"{name} (RAPL)", size_uj=size)
            zone.read_uj()
        except PermissionError:
            refused = place / "energy_uj"
        except (OSError, ValueError) as error:
            return [], f"the energy counter {place} cannot be read: {error}"
        else:
            zones.append(zone)
    if refused is not None:
        return [], f"{refused} is readable for root only; 'sudo chmod a+r {refused}' opens it"
    return zones, None if zones else f"no energy counter: no RAPL package under {base}"


def idle_w(meter: EnergyMeter, seconds: float = 0.5) -> float:
    """Return the power in watts while this process sleeps for ``seconds``."""
    start, before = time.perf_counter(), meter.read_uj()
    time.sleep(seconds)
    used = meter.between_mj(before, meter.read_uj())
    return used / 1000 / (time.perf_counter() - start)


def per_inference_mj(used_mj: float, idle: float, seconds: float, count: int) -> float | None:
    """Return millijoules an inference above idle; None where the reading drowns in the idle share.

    ``used_mj`` was spent in ``seconds`` over ``count`` inferences, ``idle`` is in watts.
    """
    own = used_mj - idle * seconds * 1000
    return own / count if count > 0 and own > 0 else None


def gpu_process_bytes(pid: int, gpu: _nvml.Gpu | None = None) -> tuple[int | None, str | None]:
    """Return the GPU memory that process ``pid`` holds as NVML sees it, or None and the reason.

    Args:
        pid: of a process that computes on the GPU now.
        gpu: where to ask; the first GPU of this process where absent.
    """
    if gpu is None:
        gpu, reason = _nvml.first_gpu()
        if gpu is None:
            return None, reason
    try:
        found = gpu.processes()
    except _nvml.NvmlError as error:
        return None, str(error)
    if pid not in found:
        return None, (
            f"NVML lists {len(found)} processes on the GPU and none of them is {pid}: it does not "
            "compute there, or process ids in a container differ from the driver's"
        )
    if found[pid] is None:
        return None, "NVML lists the process without its memory (WSL, or a right that is missing)"
    return found[pid], None
