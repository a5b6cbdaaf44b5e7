"""Who measured: the machine, the state of its clocks, and the versions that matter.

``probe`` puts together what its parts read: the processor (:mod:`mint_deploy._machine_cpu`), the
control group's quota (:mod:`mint_deploy._cgroup`), the GPU (:mod:`mint_deploy._machine_gpu`), a
Jetson (:mod:`mint_deploy._machine_board`), container and virtual machine
(:mod:`mint_deploy._machine_where`), versions (:mod:`mint_deploy._machine_versions`). What cannot be
read is None, and ``details["nulls"]`` says why. Standard library only; torch and onnxruntime are
asked for their version, never imported.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from mint_deploy import _cgroup, _machine_board, _machine_cpu, _machine_gpu, _nvml, _sysfs, sensors
from mint_deploy._machine_versions import versions
from mint_deploy._machine_where import virtualization
from mint_deploy.artifacts import Machine

__all__ = ["probe"]

#: as NVML's own reasons, but none of them has been asked
_ELSEWHERE = "NVML describes the machine that this process runs on, not another root"


def probe(root: str | os.PathLike[str] = "/", *, gpu: _nvml.Gpu | None = None) -> Machine:
    """Describe this machine.

    Args:
        root: where /proc and /sys are looked for (tests move it).
        gpu: the GPU to describe; the first of this process where absent.

    Returns:
        The record; fields that cannot be read are None, with the reason in ``details["nulls"]``.
    """
    base = Path(root)
    nulls: dict[str, str] = {}
    cpu = _machine_cpu.parse_cpuinfo(_sysfs.text(base / "proc/cpuinfo") or "")
    memory = _machine_cpu.parse_meminfo(_sysfs.text(base / "proc/meminfo") or "")
    load = _machine_cpu.parse_load(_sysfs.text(base / "proc/loadavg") or "")
    ticks = _machine_cpu.parse_stat(_sysfs.text(base / "proc/stat") or "")
    clocks, no_clocks = _machine_cpu.clocks(base)
    mhz = clocks.pop("mhz") or cpu["mhz"]
    governor = clocks.pop("governor")
    power = _machine_board.parse_nvpmodel(_sysfs.ask(["nvpmodel", "-q"]) or "")
    board = _sysfs.text(base / "proc/device-tree/model") or None
    found_gpu, no_gpu = (gpu, None) if gpu is not None else _gpu(base)
    card, no_card = _machine_gpu.describe(found_gpu) if found_gpu is not None else ({}, {})
    jetson, no_jetson = _machine_board.describe(base, power.get("name"))
    is_jetson = bool(jetson["soc"] or jetson["l4t"])
    name = card.get("name")
    if name is None and is_jetson and _machine_board.gpu_clock(base) is not None:
        name = f"{(jetson['soc'] or 'Tegra').capitalize()} (integrated)"
    virtual = virtualization(base, cpu["hypervisor"])
    meter, no_energy = sensors.find_meter(base)

    def need(what: str, value: Any, reason: str) -> None:
        if value is None:
            nulls[what] = reason

    nulls.update((name, why) for name, why in no_clocks.items() if name not in ("governor", "mhz"))
    need("governor", governor, no_clocks.get("governor", ""))
    need("frequency_mhz", mhz, "neither cpufreq in /sys nor 'cpu MHz' in /proc/cpuinfo")
    need("load_average", load.get("1"), "no /proc/loadavg")
    need("board", board, "no /proc/device-tree/model: not a single-board computer")
    need("gpu", name, no_gpu or no_card.get("name", ""))
    need("power_mode", power.get("name"), "nvpmodel is not on PATH or gave no answer")
    need("virtualization", virtual, "no sign of a container or a hypervisor")
    need("cpu", cpu["model"], "no model in /proc/cpuinfo")
    need("memory_bytes", memory.get("total_bytes"), "no MemTotal in /proc/meminfo")
    need("energy", meter, no_energy or "")
    quota, affinity = _cgroup.quota_cores(base), _affinity()
    need("cpu_quota_cores", quota, "no quota: cpu.max and cpu.cfs_quota_us set none")
    steal = ticks["steal"] / ticks["total"] if ticks else None
    need("steal_since_boot", steal, "no CPU times in /proc/stat")
    nulls.update({f"gpu.{k}": why for k, why in no_card.items() if k != "name"})
    details: dict[str, Any] = {
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "processors": cpu["processors"] or os.cpu_count(),
        "affinity_cores": affinity,
        "cpu_quota_cores": quota,
        "simd": cpu["simd"],
        **clocks,
        "memory_available_bytes": memory.get("available_bytes"),
        "load": load,
        "steal_since_boot": steal,
        "energy": meter.what if meter else None,
        "nulls": nulls,
    }
    need("memory_available_bytes", details["memory_available_bytes"], "no MemAvailable")
    if card:
        details["gpu"] = card
    if is_jetson:
        details["jetson"] = jetson
        nulls.update({f"jetson.{k}": why for k, why in no_jetson.items()})
    if power:
        details["nvpmodel"] = power
    return Machine(
        hostname=platform.node(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu["model"] or platform.processor() or "unknown",
        cores=min(float(affinity), quota or float(affinity)),
        memory_bytes=memory.get("total_bytes", 0),
        python=platform.python_version(),
        versions=versions(base),
        board=board,
        gpu=name,
        governor=governor,
        frequency_mhz=mhz,
        load_average=load.get("1"),
        virtualization=virtual,
        power_mode=power.get("name"),
        details=details,
    )


def _affinity() -> int:
    """CPUs that the scheduler may use for this process."""
    mask = getattr(os, "sched_getaffinity", None)
    return len(mask(0)) if mask else os.cpu_count() or 1


def _gpu(root: Path) -> tuple[_nvml.Gpu | None, str | None]:
    return _nvml.first_gpu() if root == Path("/") else (None, _ELSEWHERE)
