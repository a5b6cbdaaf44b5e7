"""NVIDIA's management library through ctypes: clocks, limits, energy and memory of one GPU.

``libnvidia-ml.so.1`` comes with every driver and its C interface is documented, so no package is
needed. Each question is one C call; what this driver or this GPU does not answer raises
:class:`NvmlError` with the reason. Which GPU: the first that CUDA_VISIBLE_DEVICES lets a process
see (a number there counts in NVML's order, that of the PCI bus). Standard library only.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

__all__ = ["Gpu", "NvmlError", "first_gpu", "open_gpu"]

LIBRARY = "libnvidia-ml.so.1"
_SUCCESS, _INSUFFICIENT_SIZE = 0, 7
#: what NVML writes where a process's memory is not known (under WSL, or without the right to see)
_UNKNOWN = 2**64 - 1
#: nvmlClockType_t
SM, MEMORY = 1, 2
#: nvmlPerfPolicyType_t: held back by power, by heat
POWER, HEAT = 0, 1
_COMPUTE_MODES = {0: "default", 1: "exclusive thread", 2: "prohibited", 3: "exclusive process"}


class NvmlError(Exception):
    """A question that NVML did not answer: why, in words."""


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of versions 2 and 3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used_bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class _OldProcess(ctypes.Structure):
    """nvmlProcessInfo_t of version 1."""

    _fields_ = (("pid", ctypes.c_uint), ("used_bytes", ctypes.c_ulonglong))


class _Memory(ctypes.Structure):
    """nvmlMemory_t."""

    _fields_ = (
        ("total_bytes", ctypes.c_ulonglong),
        ("free_bytes", ctypes.c_ulonglong),
        ("used_bytes", ctypes.c_ulonglong),
    )


class _Violation(ctypes.Structure):
    """nvmlViolationTime_t."""

    _fields_ = (("reference_us", ctypes.c_ulonglong), ("held_back_ns", ctypes.c_ulonglong))


class Gpu:
    """One GPU of an NVML that was opened; ``library`` is the ctypes library, or a test's double."""

    def __init__(self, library: Any, handle: Any) -> None:
        self._library, self._handle = library, handle

    def name(self) -> str:
        """Return what the GPU is called: ``NVIDIA H100 80GB HBM3``."""
        return self._words("nvmlDeviceGetName", self._handle)

    def driver(self) -> str:
        """Return the driver's version."""
        return self._words("nvmlSystemGetDriverVersion")

    def cuda(self) -> str:
        """Return the newest CUDA that the driver runs: ``12.8``."""
        found = ctypes.c_int()
        _call(self._library, "nvmlSystemGetCudaDriverVersion_v2", ctypes.byref(found))
        return f"{found.value // 1000}.{found.value % 1000 // 10}"

    def count(self) -> int:
        """Return how many GPUs this process may ask about."""
        found = ctypes.c_uint()
        _call(self._library, "nvmlDeviceGetCount_v2", ctypes.byref(found))
        return found.value

    def memory_bytes(self) -> int:
        """Return the GPU's whole memory."""
        found = _Memory()
        self._ask("nvmlDeviceGetMemoryInfo", ctypes.byref(found))
        return int(found.total_bytes)

    def clock_mhz(self, kind: int = SM) -> int:
        """Return the clock now, of the processors (``SM``) or the memory."""
        return self._number("nvmlDeviceGetClockInfo", kind)

    def max_clock_mhz(self, kind: int = SM) -> int:
        """Return the highest clock of the hardware."""
        return self._number("nvmlDeviceGetMaxClockInfo", kind)

    def applications_clock_mhz(self, kind: int = SM) -> int:
        """Return the clock that is set for applications."""
        return self._number("nvmlDeviceGetApplicationsClock", kind)

    def power_limit_w(self) -> float:
        """Return the power limit that is set."""
        return self._number("nvmlDeviceGetPowerManagementLimit") / 1000

    def default_power_limit_w(self) -> float:
        """Return the power limit as delivered."""
        return self._number("nvmlDeviceGetPowerManagementDefaultLimit") / 1000

    def persistence(self) -> bool:
        """Whether the driver stays loaded while no process uses the GPU."""
        return bool(self._number("nvmlDeviceGetPersistenceMode"))

    def compute_mode(self) -> str:
        """Return who may compute: ``default``, ``exclusive process`` ..."""
        mode = self._number("nvmlDeviceGetComputeMode")
        return _COMPUTE_MODES.get(mode, f"mode {mode}")

    def mig(self) -> bool:
        """Whether the GPU is cut into instances."""
        now, later = ctypes.c_uint(), ctypes.c_uint()
        self._ask("nvmlDeviceGetMigMode", ctypes.byref(now), ctypes.byref(later))
        return now.value == 1

    def ecc(self) -> bool:
        """Whether the memory corrects errors, which costs bandwidth on some GPUs."""
        now, later = ctypes.c_uint(), ctypes.c_uint()
        self._ask("nvmlDeviceGetEccMode", ctypes.byref(now), ctypes.byref(later))
        return now.value == 1

    def temperature_c(self) -> int:
        """Return the temperature of the chip."""
        return self._number("nvmlDeviceGetTemperature", 0)

    def energy_mj(self) -> int:
        """Return the millijoules used since the driver was loaded (Volta and later)."""
        found = ctypes.c_ulonglong()
        self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.byref(found))
        return found.value

    def held_back_ns(self, policy: int) -> int:
        """Return the time that ``POWER`` or ``HEAT`` has kept the clocks down, ever growing."""
        found = _Violation()
        self._ask("nvmlDeviceGetViolationStatus", policy, ctypes.byref(found))
        return int(found.held_back_ns)

    def processes(self) -> dict[int, int | None]:
        """Return process id -> bytes of GPU memory; None where NVML does not know them."""
        for version, kind in (("_v3", _Process), ("_v2", _Process), ("", _OldProcess)):
            name = f"nvmlDeviceGetComputeRunningProcesses{version}"
            if _has(self._library, name):
                return self._processes(name, kind)
        raise NvmlError("this driver has no nvmlDeviceGetComputeRunningProcesses")

    def _processes(self, name: str, kind: type[ctypes.Structure]) -> dict[int, int | None]:
        room = 32
        while True:
            count, table = ctypes.c_uint(room), (kind * room)()
            try:
                self._ask(name, ctypes.byref(count), table)
            except _TooSmall:
                room = max(count.value, room) * 2
                continue
            rows = [table[i] for i in range(count.value)]
            return {r.pid: None if r.used_bytes == _UNKNOWN else r.used_bytes for r in rows}

    # ------------------------------------------------------------ one C call each

    def _ask(self, name: str, *arguments: Any) -> None:
        _call(self._library, name, self._handle, *arguments)

    def _number(self, name: str, *arguments: Any) -> int:
        found = ctypes.c_uint()
        self._ask(name, *arguments, ctypes.byref(found))
        return found.value

    def _words(self, name: str, *arguments: Any) -> str:
        found = ctypes.create_string_buffer(96)
        _call(self._library, name, *arguments, found, 96)
        return found.value.decode("utf-8", "replace")


class _TooSmall(NvmlError):
    """The table was too short for the answer."""


def _has(library: Any, name: str) -> bool:
    """Whether the library has a function; ctypes looks a name up when it is first read."""
    try:
        getattr(library, name)
    except AttributeError:
        return False
    return True


def _call(library: Any, name: str, *arguments: Any) -> None:
    """Call one function, and raise what NVML says where it does not succeed."""
    if not _has(library, name):
        raise NvmlError(f"this driver has no {name}")
    code = int(getattr(library, name)(*arguments))
    if code == _SUCCESS:
        return
    kind = _TooSmall if code == _INSUFFICIENT_SIZE else NvmlError
    raise kind(f"NVML says '{_meaning(library, code)}' to {name}")


def _meaning(library: Any, code: int) -> str:
    """NVML's own words for an error."""
    try:
        library.nvmlErrorString.restype = ctypes.c_char_p
        found = library.nvmlErrorString(code)
    except (AttributeError, ctypes.ArgumentError):
        found = None
    return found.decode("utf-8", "replace") if isinstance(found, bytes) else f"error {code}"


# ---------------------------------------------------------------- which GPU


def open_gpu(library: Any, visible: str | None = None) -> Gpu:
    """Open NVML and return the first GPU that ``visible`` (CUDA_VISIBLE_DEVICES) names.

    Raises:
        NvmlError: the driver does not answer, or there is no such GPU.
    """
    _call(library, "nvmlInit_v2")
    handle = ctypes.c_void_p()
    first = "0" if visible is None else visible.split(",")[0].strip()
    if first.startswith(("GPU-", "MIG-")):
        _call(library, "nvmlDeviceGetHandleByUUID", first.encode(), ctypes.byref(handle))
        if first.startswith("MIG-"):
            whole = ctypes.c_void_p()
            name = "nvmlDeviceGetDeviceHandleFromMigDeviceHandle"
            _call(library, name, handle, ctypes.byref(whole))
            handle = whole
    elif first.isdigit():
        _call(library, "nvmlDeviceGetHandleByIndex_v2", int(first), ctypes.byref(handle))
    else:
        raise NvmlError(f"CUDA_VISIBLE_DEVICES is '{visible}', which hides every GPU")
    return Gpu(library, handle)


@functools.lru_cache(maxsize=1)
def first_gpu() -> tuple[Gpu | None, str | None]:
    """Return the GPU of this process, or None and why there is none; opened once a process."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None, f"no NVIDIA driver: {LIBRARY} is not here"
    try:
        return open_gpu(library, os.environ.get("CUDA_VISIBLE_DEVICES")), None
    except NvmlError as error:
        return None, str(error)
