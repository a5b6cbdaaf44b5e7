"""The control group's CPU quota: how many cores it grants, and how often it stopped the process.

Both versions: ``cpu.max`` of cgroup v2, ``cpu.cfs_quota_us`` and ``cpu.cfs_period_us`` of v1. A
quota of any group above holds too, and the smallest is the one that counts. Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path

from mint_deploy import _sysfs

__all__ = ["folders", "parse_quota", "parse_stops", "quota_cores", "stops"]


def parse_quota(text: str) -> float | None:
    """Read quota and period in microseconds: 1.5 (cores) for ``150000 100000``.

    None for ``max 100000`` and ``-1 100000``: nothing is limited.
    """
    found = re.match(r"(\d+)\s+(\d+)", text)
    if not found or int(found[1]) == 0 or int(found[2]) == 0:
        return None
    return int(found[1]) / int(found[2])


def parse_stops(text: str) -> int | None:
    """Read ``nr_throttled`` of cpu.stat: periods in which the quota was used up and all stopped."""
    found = re.search(r"^nr_throttled (\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None


def folders(root: Path) -> list[Path]:
    """Return the folders of this process's CPU groups, its own first, those above behind.

    Inside a container the path in /proc/self/cgroup may be the host's; the mount's own root is then
    the container's group, and it is always the last of the list.
    """
    base = root / "sys/fs/cgroup"
    lines = (_sysfs.text(root / "proc/self/cgroup") or "").splitlines()
    out: list[Path] = []
    for entry in [*(line.split(":", 2) for line in lines), ["0", "", "/"], ["1", "cpu", "/"]]:
        controllers, path = entry[1:] if len(entry) == 3 else ("none", "")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for mount in [base / controllers, base / "cpu"] if controllers else [base]:
            own = mount / path.strip("/")
            while own not in out:
                out.append(own)
                if own == mount:
                    break
                own = own.parent
    return out


def quota_cores(root: Path) -> float | None:
    """Return the cores that the control groups grant this process; None where nothing limits it."""
    granted = []
    for folder in folders(root):
        second = [_sysfs.text(folder / f"cpu.cfs_{name}_us") or "" for name in ("quota", "period")]
        for text in (_sysfs.text(folder / "cpu.max") or "", " ".join(second)):
            cores = parse_quota(text)
            if cores is not None:
                granted.append(cores)
    return min(granted, default=None)


def stops(found: list[Path]) -> int | None:
    """Return how often a quota has stopped the nearest of the groups ``found`` that counts it."""
    for folder in found:
        count = parse_stops(_sysfs.head(folder / "cpu.stat") or "")
        if count is not None:
            return count
    return None
