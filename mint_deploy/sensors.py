"""Energy where the machine has a sensor for it; else None and the reason.

Today: RAPL, the energy counters of x86 packages, through /sys/class/powercap. What a counter read
before and after does not say is whose energy it was: the idle share is measured and subtracted,
and what other processes used in the meantime is not. Standard library only.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["EnergyMeter", "find_meter", "idle_w", "per_inference_mj"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyMeter:
    """Counters in microjoules, one a package: their folders, and where each wraps around."""

    zones: tuple[Path, ...]
    ranges_uj: tuple[int, ...]

    def read_uj(self) -> tuple[int, ...]:
        """Return what each counter shows now."""
        return tuple(int((zone / "energy_uj").read_text()) for zone in self.zones)

    def between_mj(self, before: tuple[int, ...], after: tuple[int, ...]) -> float:
        """Return millijoules between two readings; a counter that wrapped around is put right."""
        used = (
            (late - early) % size
            for early, late, size in zip(before, after, self.ranges_uj, strict=True)
        )
        return sum(used) / 1000


def find_meter(
    root: str | os.PathLike[str] = "/sys/class/powercap",
) -> tuple[EnergyMeter | None, str | None]:
    """Return the meter of this machine, or None and why there is none.

    Only whole packages are counted: their sub-zones (cores, memory) lie inside them.
    """
    base = Path(root)
    if not base.is_dir():
        return None, f"no energy counter: {base} does not exist (usual in a virtual machine)"
    zones, ranges, refused = [], [], None
    for zone in sorted(base.glob("*-rapl:*")):
        try:
            if not (zone / "name").read_text().startswith("package"):
                continue
            size = int((zone / "max_energy_range_uj").read_text()) + 1
            int((zone / "energy_uj").read_text())
        except PermissionError:
            refused = zone / "energy_uj"
        except (OSError, ValueError) as error:
            return None, f"the energy counter {zone} cannot be read: {error}"
        else:
            zones.append(zone)
            ranges.append(size)
    if refused is not None:
        return None, f"{refused} is readable for root only; 'sudo chmod a+r {refused}' opens it"
    if not zones:
        return None, f"no energy counter: no RAPL package under {base}"
    return EnergyMeter(zones=tuple(zones), ranges_uj=tuple(ranges)), None


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
