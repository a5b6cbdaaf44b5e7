"""What to do about what disturbs a measurement: each a phrase that names its command.

Shared by the doubts of a measurement and by ``doctor --machine``. Where the process runs in a
container the knobs are the host's, which :func:`where` says. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mint_deploy.artifacts import Machine

__all__ = ["GOVERNOR", "JETSON", "LOOK", "lock_gpu", "part", "turbo_off", "where"]

LOOK = "mint-deploy doctor --machine says what"
GOVERNOR = "sudo cpupower frequency-set -g performance"
JETSON = "sudo jetson_clocks"
_INTEL = "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
_OTHERS = "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"


def part(machine: Machine, name: str) -> Mapping[str, Any]:
    """Return a group of the record's details (``gpu``, ``jetson``), empty where there is none."""
    found = machine.details.get(name)
    return found if isinstance(found, Mapping) else {}


def where(machine: Machine) -> str:
    """Return `` on the host`` in a container: its own /sys cannot be written."""
    return " on the host" if (machine.virtualization or "").startswith("container") else ""


def turbo_off(machine: Machine) -> str:
    """Return the command that keeps the clock at its nominal one, by the frequency driver."""
    driver = str(machine.details.get("frequency_driver") or "")
    return _INTEL if driver.startswith("intel") else _OTHERS


def lock_gpu(machine: Machine) -> str:
    """Return the command that locks the GPU's clock: three quarters of the highest is held anywhere.

    Higher ones may need more power than the limit allows, and then move again.
    """
    highest = part(machine, "gpu").get("sm_max_mhz")
    mhz = f"{int(highest * 0.75 // 15 * 15)}" if isinstance(highest, (int, float)) else "MHZ"
    return f"sudo nvidia-smi --lock-gpu-clocks={mhz}"
