"""Who measured: the machine, the state of its clocks, and the versions that matter.

Every parser is a pure function from the text of a file or command to a dict; ``probe`` reads the
sources and puts the fields together. What cannot be read is None, and ``details["nulls"]`` says
why. Standard library only; torch and onnxruntime are asked for their version, never imported.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from mint_deploy._version import __version__
from mint_deploy.artifacts import Machine

__all__ = ["parse_cgroup_quota", "parse_cpuinfo", "parse_l4t", "parse_load", "parse_meminfo",
           "parse_nvidia_smi", "parse_nvpmodel", "probe"]  # fmt: skip

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
#: distributions whose version travels with a measurement; the second is the name shown
_PACKAGES = {
    "numpy": "numpy",
    "onnxruntime": "onnxruntime",
    "onnxruntime-gpu": "onnxruntime",
    "torch": "torch",
    "tensorrt": "tensorrt",
    "openvino": "openvino",
}
_SMI_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "clocks.sm",
    "clocks.max.sm",
    "power.limit",
)


# ---------------------------------------------------------------- parsers: text -> dict


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
    speeds = [float(v) for v in fields.get("cpu mhz", []) if re.fullmatch(r"[\d.]+", v)]
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
    found = re.match(r"([\d.]+) ([\d.]+) ([\d.]+)", text)
    if not found:
        return {}
    return {name: float(v) for name, v in zip(("1", "5", "15"), found.groups(), strict=True)}


def parse_cgroup_quota(text: str) -> dict[str, float]:
    """Read a CPU quota: ``cpu.max`` of cgroup v2, or quota and period of v1 in one line.

    ``{"cores": 1.5}`` for ``150000 100000``; no entry for ``max 100000`` or ``-1 100000``.
    """
    found = re.match(r"(\d+)\s+(\d+)", text)
    if not found or int(found[1]) == 0 or int(found[2]) == 0:
        return {}
    return {"cores": int(found[1]) / int(found[2])}


def parse_nvidia_smi(text: str) -> dict[str, Any]:
    """Read ``nvidia-smi --query-gpu=... --format=csv,noheader,nounits``: the first GPU.

    A field that a board does not report (``[N/A]``, ``[Not Supported]``) is None.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    values = [v.strip() for v in lines[0].split(",")] if lines else []
    if len(values) != len(_SMI_FIELDS):
        return {}
    out: dict[str, Any] = {"count": len(lines)}
    for name, value in zip(_SMI_FIELDS, values, strict=True):
        known = value and not value.startswith("[") and value != "N/A"
        numeric = name not in ("name", "driver_version")
        out[name] = (float(value) if numeric else value) if known else None
    return out


def parse_l4t(text: str) -> dict[str, str]:
    """Read /etc/nv_tegra_release: ``{"l4t": "36.4.3"}``."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return {"l4t": f"{found[1]}.{found[2]}"} if found else {}


def parse_nvpmodel(text: str) -> dict[str, str]:
    """Read ``nvpmodel -q``: ``{"name": "MAXN", "id": "0"}``."""
    found = re.search(r"NV Power Mode:\s*(\S+)(?:\s+(\d+))?", text)
    if not found:
        return {}
    return {"name": found[1], **({"id": found[2]} if found[2] else {})}


# ---------------------------------------------------------------- sources


def _read(path: Path) -> str | None:
    """The text of a small file without NULs and blanks around it; None where unreadable."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return None


def _ask(command: Sequence[str]) -> str | None:
    """What a command prints, or None where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def _versions() -> dict[str, str]:
    """Versions of the packages that move a clock figure, without importing any of them."""
    found = {"mint-deploy": __version__}
    for package, name in _PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.setdefault(name, metadata.version(package))
    return found


def _quota(root: Path) -> float | None:
    """Cores that the control group grants this process, or None where nothing limits it."""
    groups = _read(root / "proc/self/cgroup") or ""
    own = next((line[3:].strip("/") for line in groups.splitlines() if line.startswith("0::")), "")
    base = root / "sys/fs/cgroup"
    folders = [base / own, *(base / own).parents]
    texts = [_read(f / "cpu.max") or "" for f in folders[: folders.index(base) + 1]]
    first = base / "cpu"
    v1 = [_read(first / name) or "" for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    quotas = [parse_cgroup_quota(text) for text in (*texts, " ".join(v1))]
    cores = [q["cores"] for q in quotas if q]
    return min(cores) if cores else None


def _cores(root: Path) -> float:
    """Cores this process may use: its affinity mask, cut down by the control group's quota."""
    affinity = getattr(os, "sched_getaffinity", None)
    count = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    return min(count, _quota(root) or count)


def _virtualization(root: Path, hypervisor: bool) -> str | None:
    """``container docker``, ``machine KVM`` ..., both joined by ``in``; None on bare metal."""
    layers = []
    if (root / ".dockerenv").exists():
        layers.append("container docker")
    elif (root / "run/.containerenv").exists():
        layers.append("container podman")
    elif found := re.search(r"(docker|kubepods|lxc)", _read(root / "proc/1/cgroup") or ""):
        layers.append(f"container {found[1]}")
    if hypervisor:
        product = _read(root / "sys/class/dmi/id/product_name")
        layers.append(f"machine {product}" if product else "machine (hypervisor flag)")
    return " in ".join(layers) or None


def probe(root: str | os.PathLike[str] = "/") -> Machine:
    """Describe this machine; ``root`` is where /proc and /sys are looked for (tests move it).

    Fields that cannot be read are None, with the reason in ``details["nulls"]``.
    """
    base = Path(root)
    nulls: dict[str, str] = {}
    cpu = parse_cpuinfo(_read(base / "proc/cpuinfo") or "")
    memory = parse_meminfo(_read(base / "proc/meminfo") or "")
    load = parse_load(_read(base / "proc/loadavg") or "")
    frequency = base / "sys/devices/system/cpu/cpu0/cpufreq"
    governor, khz = _read(frequency / "scaling_governor"), _read(frequency / "scaling_cur_freq")
    mhz = int(khz) / 1000 if khz and khz.isdigit() else cpu["mhz"]
    board = _read(base / "proc/device-tree/model") or None
    release = _read(base / "etc/nv_tegra_release")
    query = f"--query-gpu={','.join(_SMI_FIELDS)}"
    smi = _ask(["nvidia-smi", query, "--format=csv,noheader,nounits"])
    gpu = parse_nvidia_smi(smi or "")
    power = parse_nvpmodel(_ask(["nvpmodel", "-q"]) or "")
    virtual = _virtualization(base, cpu["hypervisor"])

    def need(name: str, value: Any, reason: str) -> None:
        if value is None:
            nulls[name] = reason

    need("governor", governor, "no cpufreq in /sys (usual in a virtual machine)")
    need("frequency_mhz", mhz, "neither cpufreq in /sys nor 'cpu MHz' in /proc/cpuinfo")
    need("load_average", load.get("1"), "no /proc/loadavg")
    need("board", board, "no /proc/device-tree/model: not a single-board computer")
    need("gpu", gpu.get("name"), "nvidia-smi is not on PATH or found no GPU")
    need("power_mode", power.get("name"), "nvpmodel is not on PATH or gave no answer")
    need("virtualization", virtual, "no sign of a container or a hypervisor")
    need("cpu", cpu["model"], "no model in /proc/cpuinfo")
    need("memory_bytes", memory.get("total_bytes"), "no MemTotal in /proc/meminfo")
    smt = _read(base / "sys/devices/system/cpu/smt/active")
    need("smt", smt, "no /sys/devices/system/cpu/smt")
    details: dict[str, Any] = {
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "processors": cpu["processors"] or os.cpu_count(),
        "cpu_quota_cores": _quota(base),
        "simd": cpu["simd"],
        "smt": {"1": True, "0": False}.get(smt or ""),
        "memory_available_bytes": memory.get("available_bytes"),
        "load": load,
        "nulls": nulls,
    }
    if gpu:
        details["gpu"] = gpu
    if release:
        details.update(parse_l4t(release))
    if power:
        details["nvpmodel"] = power
    return Machine(
        hostname=platform.node(),
        system=f"{platform.system()} {platform.machine()}",
        cpu=cpu["model"] or platform.processor() or "unknown",
        cores=_cores(base),
        memory_bytes=memory.get("total_bytes", 0),
        python=platform.python_version(),
        versions=_versions(),
        board=board,
        gpu=gpu.get("name"),
        governor=governor,
        frequency_mhz=mhz,
        load_average=load.get("1"),
        virtualization=virtual,
        power_mode=power.get("name"),
        details=details,
    )
