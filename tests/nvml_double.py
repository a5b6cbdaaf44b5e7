"""A stand-in for libnvidia-ml.so.1: it fills what it is given by reference, as the library does."""

from __future__ import annotations

from typing import Any

from mint_deploy import _nvml

NOT_SUPPORTED, NO_PERMISSION, NOT_FOUND = 3, 4, 6
_WORDS = {3: b"Not Supported", 4: b"Insufficient Permissions", 6: b"Not Found"}


class Says(int):
    """An answer that is NVML's error of this number."""


H100 = {
    "nvmlInit_v2": None,
    "nvmlDeviceGetHandleByIndex_v2": 0x5EED,
    "nvmlDeviceGetHandleByUUID": 0xFEED,
    "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": 0xBEEF,
    "nvmlDeviceGetCount_v2": 2,
    "nvmlDeviceGetName": b"NVIDIA H100 80GB HBM3",
    "nvmlSystemGetDriverVersion": b"570.124.06",
    "nvmlSystemGetCudaDriverVersion_v2": 12080,
    "nvmlDeviceGetMemoryInfo": {"total_bytes": 85520809984},
    "nvmlDeviceGetClockInfo": {_nvml.SM: 345, _nvml.MEMORY: 2619},
    "nvmlDeviceGetMaxClockInfo": {_nvml.SM: 1980, _nvml.MEMORY: 2619},
    "nvmlDeviceGetApplicationsClock": {_nvml.SM: 1980},
    "nvmlDeviceGetPowerManagementLimit": 700000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700000,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetMigMode": 0,
    "nvmlDeviceGetEccMode": 1,
    "nvmlDeviceGetTemperature": {0: 41},
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
    "nvmlDeviceGetViolationStatus": {_nvml.POWER: 0, _nvml.HEAT: 0},
    "nvmlDeviceGetComputeRunningProcesses_v3": {4711: 600 * 2**20, 4712: 2**64 - 1},
}


class Library:
    """What ctypes would have loaded; ``answers`` by function, a number, bytes or a table.

    A dict under the second argument is a table: by clock, by policy. ``asked`` keeps the calls.
    """

    def __init__(self, **changes: Any) -> None:
        self.answers: dict[str, Any] = {**H100, **changes}
        self.asked: list[tuple[Any, ...]] = []

        def words(code: int) -> bytes:
            return _WORDS.get(code, b"Unknown Error")

        self.nvmlErrorString = words  # a function, for its restype is set

    def __getattr__(self, name: str) -> Any:
        answers = self.__dict__.get("answers", {})
        if name not in answers or answers[name] is Ellipsis:
            raise AttributeError(name)
        return lambda *arguments: self._answer(name, arguments)

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        self.asked.append((name, *arguments))
        answer = self.answers[name]
        if "RunningProcesses" in name:
            return self._table(answer, *arguments[1:])
        if isinstance(answer, dict) and "total_bytes" not in answer:
            answer = answer.get(arguments[1], Says(NOT_SUPPORTED))
        if isinstance(answer, Says):
            return int(answer)
        if isinstance(answer, bytes):
            arguments[-2].value = answer
        elif name == "nvmlDeviceGetMemoryInfo":
            arguments[-1]._obj.total_bytes = answer["total_bytes"]
        elif name == "nvmlDeviceGetViolationStatus":
            arguments[-1]._obj.held_back_ns = answer
        elif name in ("nvmlDeviceGetMigMode", "nvmlDeviceGetEccMode"):
            arguments[1]._obj.value = answer
        elif answer is not None:
            arguments[-1]._obj.value = answer
        return 0

    @staticmethod
    def _table(answer: Any, count: Any, table: Any) -> int:
        if isinstance(answer, Says):
            return int(answer)
        room, count._obj.value = count._obj.value, len(answer)
        if len(answer) > room:
            return 7
        for row, (pid, used) in zip(table, answer.items(), strict=False):
            row.pid, row.used_bytes = pid, used
        return 0


def gpu(**changes: Any) -> _nvml.Gpu:
    """Return an H100 that idles, with other answers where they are given."""
    return _nvml.open_gpu(Library(**changes))
