"""The GPU's part of the machine record, from NVML: who, driver, clocks, limits, modes.

NVML has no question for locked clocks (``nvidia-smi --lock-gpu-clocks``): whether they are shows in
the looks after each restart, where a clock that is not locked moves. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mint_deploy._nvml import MEMORY, Gpu, NvmlError

__all__ = ["describe"]


def describe(gpu: Gpu) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields of one GPU, and for those that it does not tell the reason."""
    questions: dict[str, Callable[[], Any]] = {
        "name": gpu.name,
        "count": gpu.count,
        "driver_version": gpu.driver,
        "cuda": gpu.cuda,
        "memory_bytes": gpu.memory_bytes,
        "sm_mhz": gpu.clock_mhz,
        "sm_max_mhz": gpu.max_clock_mhz,
        "sm_applications_mhz": gpu.applications_clock_mhz,
        "memory_mhz": lambda: gpu.clock_mhz(MEMORY),
        "memory_max_mhz": lambda: gpu.max_clock_mhz(MEMORY),
        "power_limit_w": gpu.power_limit_w,
        "power_limit_default_w": gpu.default_power_limit_w,
        "persistence": gpu.persistence,
        "compute_mode": gpu.compute_mode,
        "mig": gpu.mig,
        "ecc": gpu.ecc,
        "energy_counter": lambda: gpu.energy_mj() >= 0,
    }
    found: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    for name, question in questions.items():
        found[name], reason = _answer(question)
        if reason is not None:
            reasons[name] = reason
    return found, reasons


def _answer(question: Callable[[], Any]) -> tuple[Any, str | None]:
    try:
        return question(), None
    except NvmlError as error:
        return None, str(error)
