"""The processor's part of the machine record: model, clocks and their limits, SMT, load, steal.

Every parser is a pure function of a file's text. Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mint_deploy import _sysfs

__all__ = ["clocks", "parse_cpuinfo", "parse_load", "parse_meminfo", "parse_stat"]

#: part numbers of /proc/cpuinfo on Arm: the cores of the boards this is for
_ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd40": "Neoverse-V1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
    "0xd83": "Neoverse-V3AE",
}
_SIMD = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx_vnni",
    "amx_int8",
    "neon",
    "asimd",
    "asimddp",
    "sve",
)
_NO_CPUFREQ = "no cpufreq in /sys (usual in a virtual machine)"


def parse_cpuinfo(text: str) -> dict[str, Any]:
    """Read /proc/cpuinfo: ``model``, ``processors``, ``mhz``, ``simd``, ``hypervisor``."""
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip().lower(), []).append(value.strip())

    def first(*keys: str) -> str | None:
        return next((fields[k][0] for k in keys if fields.get(k) and fields[k][0]), None)

    model = first("model name")
    if model is None and (part := first("cpu part")) is not None:
        model = _ARM_PARTS.get(part.lower(), f"Arm part {part}")
    model = model or first("cpu model", "hardware", "uarch", "machine")
    flags = set((first("flags", "features") or "").split())
    speeds = [float(v) for v in fields.get("cpu mhz", []) if re.fullmatch(r"\d+(\.\d+)?", v)]
    return {
        "model": model,
        "processors": len(fields.get("processor", [])),
        "mhz": max(speeds) if speeds else None,
        "simd": [name for name in _SIMD if name in flags],
        "hypervisor": "hypervisor" in flags,
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """Read /proc/meminfo: ``total_bytes`` and ``available_bytes``, those that are there."""
    out = {}
    for name, key in (("MemTotal", "total_bytes"), ("MemAvailable", "available_bytes")):
        found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
        if found:
            out[key] = int(found[1]) * 1024
    return out


def parse_load(text: str) -> dict[str, float]:
    """Read /proc/loadavg: the load of the last 1, 5 and 15 minutes."""
    found = re.match(r"(\d+\.?\d*) (\d+\.?\d*) (\d+\.?\d*)\b", text)
    if not found:
        return {}
    return {name: float(v) for name, v in zip(("1", "5", "15"), found.groups(), strict=True)}


def parse_stat(text: str) -> dict[str, int]:
    """Read /proc/stat: clock ticks ``busy``, ``steal`` and ``total`` of all CPUs, and ``cpus``.

    Busy is work (user, nice, system, interrupts); waiting for a disk is not. Empty where the first
    line is not there or counts nothing (some sandboxes show zeros).
    """
    found = re.match(r"cpu +((?:\d+ ?)+)", text)
    if not found:
        return {}
    ticks = [int(v) for v in found[1].split()] + [0] * 8
    user, nice, system, idle, waiting, hard, soft, steal = ticks[:8]
    busy = user + nice + system + hard + soft
    total = busy + idle + waiting + steal
    if not total:
        return {}
    cpus = len(re.findall(r"^cpu\d+ ", text, re.MULTILINE))
    return {"busy": busy, "steal": steal, "total": total, "cpus": cpus}


# ---------------------------------------------------------------- the clock's settings


def clocks(root: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what is set for the clocks of all CPUs, and for what is None the reason.

    ``governor``, ``mhz`` (the fastest CPU now), the limits that are set ``frequency_min_mhz`` and
    ``frequency_max_mhz``, those of the hardware ``hardware_min_mhz`` and ``hardware_max_mhz``,
    ``frequency_driver``, ``energy_preference``, ``turbo`` and ``smt``.
    """
    cpus = root / "sys/devices/system/cpu"
    folders = sorted(cpus.glob("cpu[0-9]*/cpufreq"))

    def words(name: str) -> str | None:
        found = {_sysfs.text(folder / name) for folder in folders} - {None, ""}
        return ", ".join(sorted(map(str, found))) or None

    def khz(name: str) -> list[float]:
        found = [_sysfs.number(folder / name) for folder in folders]
        return [v / 1000 for v in found if v is not None and v > 0]

    smt = {"1": True, "0": False}.get(_sysfs.text(cpus / "smt/active") or "")
    out: dict[str, Any] = {
        "governor": words("scaling_governor"),
        "mhz": max(khz("scaling_cur_freq"), default=None),
        "frequency_min_mhz": min(khz("scaling_min_freq"), default=None),
        "frequency_max_mhz": max(khz("scaling_max_freq"), default=None),
        "hardware_min_mhz": min(khz("cpuinfo_min_freq"), default=None),
        "hardware_max_mhz": max(khz("cpuinfo_max_freq"), default=None),
        "frequency_driver": words("scaling_driver"),
        "energy_preference": words("energy_performance_preference"),
        "turbo": _turbo(cpus, folders),
        "smt": smt,
    }
    why = "the frequency driver does not tell" if folders else _NO_CPUFREQ
    reasons = {
        "energy_preference": "no energy_performance_preference: only intel_pstate and amd_pstate",
        "turbo": "neither intel_pstate/no_turbo nor cpufreq/boost in /sys/devices/system/cpu",
        "smt": "no /sys/devices/system/cpu/smt",
    }
    return out, {name: reasons.get(name, why) for name, value in out.items() if value is None}


def _turbo(cpus: Path, folders: list[Path]) -> bool | None:
    """Whether the clock may go above its nominal one."""
    off = _sysfs.number(cpus / "intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    for path in (cpus / "cpufreq/boost", *(folder / "boost" for folder in folders)):
        on = _sysfs.number(path)
        if on is not None:
            return on != 0
    return None
