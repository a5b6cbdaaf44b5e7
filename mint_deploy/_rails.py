"""A Jetson's power rails: INA3221 sensors under /sys/class/hwmon, integrated over time.

The sensors show power (volts times amperes) and count no energy, so a light thread of the process
that reads them takes a sample twenty times a second and adds up trapezoids; in the comparison of
files that is never the process that computes. The rail that feeds the whole module is taken where
there is one (``VDD_IN`` on Orin Nano and NX, ``VIN`` on Thor), else the sum of those that are
named, less what hangs behind another of them (AGX Orin: the memory's rail behind ``VIN_SYS_5V0``).
Names of rails: NVIDIA's developer guide; none of these boards was at hand. Standard library only.
"""

from __future__ import annotations

import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

from mint_deploy import _sysfs

__all__ = ["Rails", "find_rails"]

PERIOD_S = 0.05
_WHOLE = ("VDD_IN", "VIN", "POM_5V_IN", "5V_IN")
#: rails that hang behind VIN_SYS_5V0
_BEHIND_5V = "VDDQ"


@dataclass(frozen=True, slots=True)
class Rail:
    """One channel: files of millivolts and milliamperes, or one of microwatts."""

    name: str
    millivolts: Path | None
    milliamperes: Path | None
    microwatts: Path | None = None

    def read_uw(self) -> int | None:
        """Return microwatts now, or None where the sensor gives no answer."""
        if self.microwatts is not None:
            return _sysfs.number(self.microwatts)
        if self.millivolts is None or self.milliamperes is None:
            return None
        volts, amperes = _sysfs.number(self.millivolts), _sysfs.number(self.milliamperes)
        return None if volts is None or amperes is None else volts * amperes


class _Sum:
    """The energy so far; shared by the rails and their thread, and kept by neither alone."""

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        self._rails, self._lock = rails, threading.Lock()
        self._uj, self._uw, self._at = 0.0, 0, 0.0

    def sample(self) -> int:
        """Take a sample, add the trapezoid since the last one, return microjoules so far."""
        with self._lock:
            now = time.perf_counter()
            read = [rail.read_uw() for rail in self._rails]
            # a sensor that is busy keeps its last power
            power = self._uw if None in read else sum(v for v in read if v is not None)
            if self._at:
                self._uj += (self._uw + power) / 2 * (now - self._at)
            self._uw, self._at = power, now
            return int(self._uj)

    def follow(self, stop: threading.Event, period_s: float) -> None:
        """Sample until told to stop."""
        while not stop.wait(period_s):
            self.sample()


class Rails:
    """An energy counter over rails; the thread starts with the first reading, and ends with this."""

    size_uj = 2**63
    resolution_s = 2 * PERIOD_S

    def __init__(self, rails: tuple[Rail, ...], period_s: float = PERIOD_S) -> None:
        self.name = f"{', '.join(rail.name for rail in rails)} (INA3221)"
        self._sum, self._period_s = _Sum(rails), period_s
        self._thread: threading.Thread | None = None

    def read_uj(self) -> int:
        """Return microjoules since the first reading."""
        if self._thread is None:
            stop = threading.Event()
            # the thread holds the sum alone, so that it ends when nobody holds the rails any more
            weakref.finalize(self, stop.set)
            self._thread = threading.Thread(
                target=self._sum.follow, args=(stop, self._period_s), name="rails", daemon=True
            )
            self._thread.start()
        return self._sum.sample()


def find_rails(root: Path) -> Rails | None:
    """Return the rails that together are the board's power; None where there is no such sensor."""
    found: list[Rail] = []
    for folder in sorted(root.glob("sys/class/hwmon/hwmon*")):
        kind = _sysfs.text(folder / "name")
        if kind == "ina3221":
            found += [rail for n in (1, 2, 3) if (rail := _channel(folder, n)) is not None]
        elif kind == "ina238" and _sysfs.number(folder / "power1_input") is not None:
            found.append(Rail("VIN", None, None, folder / "power1_input"))
    whole = [rail for rail in found if rail.name in _WHOLE][:1]
    names = {rail.name for rail in found}
    parts = [r for r in found if not (r.name.startswith(_BEHIND_5V) and "VIN_SYS_5V0" in names)]
    chosen = tuple(whole or parts)
    return Rails(chosen) if chosen else None


def _channel(folder: Path, n: int) -> Rail | None:
    """One channel of an INA3221, unless nothing is connected to it."""
    label = _sysfs.text(folder / f"in{n}_label")
    rail = Rail(label or "", folder / f"in{n}_input", folder / f"curr{n}_input")
    connected = label and label != "NC" and rail.read_uw() is not None
    return rail if connected else None
