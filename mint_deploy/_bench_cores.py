"""Which cores a restart computes on: the same for every model of it, others in the next.

Two processes on two cores have two neighbours: the ratio of a file to itself then differs from
restart to restart several times as much as with both on one core (``python
benchmarks/neighbours.py``). So a restart holds its processes to as many cores as they have threads,
where there are more, and the next but one takes other cores. Standard library only.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cores_of", "on_gpu"]

#: restarts that stay on the same cores: one for each order of the models
_STAY = 2


def on_gpu(runtime: str) -> bool:
    """Whether a runtime of this name computes on a GPU; its host threads are not held to cores."""
    return "tensorrt" in runtime or "cuda" in runtime


def cores_of(
    restart: int, wanted: int, root: str | os.PathLike[str] = "/"
) -> tuple[int, ...] | None:
    """Return the cores for a restart, or None where every core is needed or nothing can be held.

    Args:
        restart: its number, from 0.
        wanted: threads that compute at the same time.
        root: where /sys is looked for (tests move it).
    """
    mask = getattr(os, "sched_getaffinity", None)
    cores = _fastest(sorted(mask(0)), Path(root)) if mask else []
    if not 0 < wanted < len(cores):
        return None
    first = restart // _STAY * wanted
    return tuple(sorted(cores[(first + i) % len(cores)] for i in range(wanted)))


def _fastest(cores: list[int], root: Path) -> list[int]:
    """Those with the highest limit of the clock: a board's or a laptop's slow cores are left out."""
    limits = {}
    for core in cores:
        path = root / f"sys/devices/system/cpu/cpu{core}/cpufreq/cpuinfo_max_freq"
        try:
            limits[core] = int(path.read_text())
        except (OSError, ValueError):
            return cores
    # cores of one kind may differ by a step or two of their turbo
    return [core for core in cores if limits[core] >= 0.9 * max(limits.values())]
