"""A Jetson's part of the machine record: image, power mode, processors switched on, clocks held.

The GPU of a board has its clock under /sys/class/devfreq and its mask of switched-off TPCs (two SMs
each, on the boards since Xavier) in ``tpc_pg_mask``; how many the board really has is what the most
generous of its own power modes in /etc/nvpmodel.conf switches on. ``jetson_clocks`` holds clocks by
making the lowest equal to the highest, which is how it is recognised (its own ``--show`` needs
root). The forms are those of JetPack 5 to 7; none of them was at hand. Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mint_deploy import _sysfs

__all__ = ["describe", "gpu_clock", "parse_l4t", "parse_modes", "parse_nvpmodel"]

#: L4T -> JetPack, by the first numbers that tell; the longest that fits counts
_JETPACK = {
    "32.6.1": "4.6",
    "32.7": "4.6",
    "35.1": "5.0",
    "35": "5.1",
    "36.3": "6.0",
    "36.4": "6.1 or 6.2",
    "36.4.3": "6.2",
    "36.5": "6.2",
    "38.2": "7.0",
    "38.4": "7.1",
    "39": "7.2",
}
_GPU_NAMES = re.compile(r"\.(gpu|gm20b|gp10b|gv11b|ga10b)$|^gpu-gpc-0$")
_MASKS = ("sys/devices/gpu.0/tpc_pg_mask", "sys/devices/platform/gpu.0/tpc_pg_mask")
_SMS_A_TPC = 2


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


def parse_modes(text: str) -> dict[str, dict[str, int]]:
    """Read /etc/nvpmodel.conf: name of each power mode -> ``id``, and ``mask`` of TPCs that are off."""
    modes: dict[str, dict[str, int]] = {}
    mode: dict[str, int] = {}
    for line in text.splitlines():
        if found := re.match(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=([^\s>]+)", line):
            mode = modes[found[2]] = {"id": int(found[1])}
        elif found := re.match(r"TPC_POWER_GATING\s+TPC_PG_MASK\s+(\d+)", line):
            mode["mask"] = int(found[1])
    return modes


def jetpack(l4t: str) -> str | None:
    """Return the JetPack that an L4T belongs to, as far as its number tells."""
    fits = [n for n in _JETPACK if l4t == n or l4t.startswith(f"{n}.")]
    return _JETPACK[max(fits, key=len)] if fits else None


def gpu_clock(root: Path) -> Path | None:
    """Return the devfreq folder of the board's GPU."""
    places = sorted(root.glob("sys/class/devfreq/*"))
    return next((place for place in places if _GPU_NAMES.search(place.name)), None)


def describe(root: Path, mode: str | None) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a board's fields, and for those that are None the reason; ``mode`` is the power mode.

    ``soc``, ``l4t``, ``jetpack``, ``gpu_mhz``, ``gpu_min_mhz``, ``gpu_max_mhz``, ``tpc_pg_mask``,
    ``sms_off`` (SMs fewer than the most generous power mode has), ``widest_mode`` (that mode's number
    and name) and ``clocks_held``.
    """
    compatible = _sysfs.text(root / "proc/device-tree/compatible") or ""
    soc = re.search(r"tegra\d+", compatible)
    l4t = parse_l4t(_sysfs.text(root / "etc/nv_tegra_release") or "").get("l4t")
    folder = gpu_clock(root)
    hz = {
        name: _sysfs.number(folder / f"{name}_freq") if folder else None
        for name in ("cur", "min", "max")
    }
    mhz = {name: None if value is None else value / 1e6 for name, value in hz.items()}
    modes = parse_modes(_sysfs.text(root / "etc/nvpmodel.conf") or "")
    masks = [m for place in _MASKS if (m := _sysfs.number(root / place)) is not None]
    mask = masks[0] if masks else modes.get(mode or "", {}).get("mask")
    off, widest = _missing(mask, modes)
    out: dict[str, Any] = {
        "soc": soc[0] if soc else None,
        "l4t": l4t,
        "jetpack": jetpack(l4t) if l4t else None,
        "gpu_mhz": mhz["cur"],
        "gpu_min_mhz": mhz["min"],
        "gpu_max_mhz": mhz["max"],
        "tpc_pg_mask": mask,
        "sms_off": off,
        "widest_mode": widest,
        "clocks_held": _held(root, mhz),
    }
    reasons = {
        "soc": "no tegra in /proc/device-tree/compatible",
        "l4t": "no release in /etc/nv_tegra_release",
        "jetpack": f"L4T {l4t} is not in our table" if l4t else "L4T is not known",
        "gpu_mhz": "no GPU under /sys/class/devfreq",
        "gpu_min_mhz": "no GPU under /sys/class/devfreq",
        "gpu_max_mhz": "no GPU under /sys/class/devfreq",
        "tpc_pg_mask": "neither tpc_pg_mask in /sys nor the power mode in /etc/nvpmodel.conf",
        "widest_mode": "no masks of TPCs in /etc/nvpmodel.conf",
        "sms_off": "without the mask of the TPCs and /etc/nvpmodel.conf nobody knows",
        "clocks_held": "the limits of the GPU's and the CPUs' clocks cannot be read",
    }
    return out, {name: reasons[name] for name, value in out.items() if value is None}


def _missing(
    mask: int | None, modes: dict[str, dict[str, int]]
) -> tuple[int | None, dict[str, Any] | None]:
    """SMs that another power mode would switch on, and that mode."""
    known = {name: mode for name, mode in modes.items() if "mask" in mode}
    if not known:
        return None, None
    # among equals the mode that holds nothing else back
    order = sorted(known, key=lambda n: (known[n]["mask"].bit_count(), not n.startswith("MAXN")))
    widest = known[order[0]]
    named = {"id": widest["id"], "name": order[0]}
    if mask is None:
        return None, named
    return _SMS_A_TPC * max(mask.bit_count() - widest["mask"].bit_count(), 0), named


def _held(root: Path, gpu: dict[str, float | None]) -> bool | None:
    """Whether the clocks of CPUs and GPU are held: lowest equal to highest, everywhere."""
    pairs = [(gpu["min"], gpu["max"])]
    for folder in root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"):
        low, high = (_sysfs.number(folder / f"scaling_{end}_freq") for end in ("min", "max"))
        pairs.append((low, high))
    known = [low == high for low, high in pairs if low is not None and high is not None]
    return all(known) if known else None
