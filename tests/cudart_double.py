"""A contract double of libcudart: the functions that we call, on host memory, with every rule checked.

Addresses are those of real allocations, so that a copy past an end, from freed memory or of the
wrong kind fails the test instead of passing by luck. A stream in capture records and does not run;
a graph runs what was recorded. What was taken must be given back: :meth:`Cudart.left` says what was
not. Signatures: the CUDA Runtime API reference; arguments arrive as the ctypes objects that the real
library would get.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

NAMES = {
    0: "cudaSuccess", 1: "cudaErrorInvalidValue", 2: "cudaErrorMemoryAllocation",
    35: "cudaErrorInsufficientDriver", 100: "cudaErrorNoDevice", 400: "cudaErrorInvalidResourceHandle",
    900: "cudaErrorStreamCaptureUnsupported",
}  # fmt: skip


class _Function:
    """Something that takes ``restype`` like a foreign function."""

    restype: Any = ctypes.c_int

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)


class Cudart:
    """One process's CUDA runtime with one GPU.

    ``fail`` maps a function's name to (the call that fails, counted from 1; the error).
    """

    def __init__(
        self, *, device: str = "Orin", sm: tuple[int, int] = (8, 7), runtime: int = 12060,
        count: int = 1, total: int = 8 << 30,
    ) -> None:  # fmt: skip
        self.device, self.sm, self.runtime, self.count, self.total = (
            device,
            sm,
            runtime,
            count,
            total,
        )
        self.fail: dict[str, tuple[int, int]] = {}
        self.calls: dict[str, int] = {}
        self.log: list[str] = []
        self.memory: dict[int, tuple[str, ctypes.Array]] = {}
        self.streams: dict[int, list[Callable[[], None]] | None] = {}
        self.events: dict[int, float] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 0x1000
        self._clock = 0.0

    def __getattr__(self, name: str) -> _Function:
        if not name.startswith("cuda"):
            raise AttributeError(name)
        try:
            call = object.__getattribute__(self, f"_{name}")
        except AttributeError:
            raise AttributeError(f"undefined symbol: {name}") from None

        def checked(*arguments: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            self.log.append(name)
            at, error = self.fail.get(name, (0, 0))
            return error if self.calls[name] == at else call(*arguments)

        found = _Function(checked)
        self.__dict__[name] = found
        return found

    def left(self) -> list[str]:
        """What was taken and not given back."""
        return (
            [f"{kind} memory of {len(m)} bytes" for kind, m in self.memory.values()]
            + [f"stream {s}" for s in self.streams]
            + [f"event {e}" for e in self.events]
            + [f"graph {g}" for g in self.graphs]
        )

    def run(self, stream: int, work: Callable[[], None]) -> int:
        """Do it now, or record it where the stream is in capture."""
        if stream not in self.streams:
            return 400
        recorded = self.streams[stream]
        if recorded is not None:
            recorded.append(work)
        else:
            work()
        return 0

    def capturing(self, stream: int) -> bool:
        return self.streams.get(stream) is not None

    def find(self, address: int, size: int, kind: str) -> bool:
        """Whether ``size`` bytes from ``address`` lie within one allocation of that kind."""
        return any(
            what == kind and start <= address and address + size <= start + len(held)
            for start, (what, held) in self.memory.items()
        )

    def handle(self) -> int:
        self._next += 0x10
        return self._next

    # ------------------------------------------------------------ the functions

    def _cudaGetErrorName(self, code: Any) -> bytes:
        return NAMES.get(code.value, "cudaErrorUnknown").encode()

    def _cudaGetErrorString(self, code: Any) -> bytes:
        return f"words for {code.value}".encode()

    def _cudaGetLastError(self) -> int:
        return 0

    def _cudaGetDeviceCount(self, count: Any) -> int:
        count._obj.value = self.count
        return 0 if self.count else 100

    def _cudaSetDevice(self, device: Any) -> int:
        return 0 if 0 <= device.value < self.count else 101

    def _cudaRuntimeGetVersion(self, version: Any) -> int:
        version._obj.value = self.runtime
        return 0

    def _cudaDriverGetVersion(self, version: Any) -> int:
        version._obj.value = self.runtime
        return 0

    def _cudaDeviceGetAttribute(self, value: Any, which: Any, device: Any) -> int:
        value._obj.value = {75: self.sm[0], 76: self.sm[1], 18: 1}[which.value]
        return 0

    def _cudaGetDeviceProperties(self, buffer: Any, device: Any) -> int:
        buffer.value = self.device.encode()
        return 0

    def _cudaMemGetInfo(self, free: Any, total: Any) -> int:
        used = sum(len(m) for _, m in self.memory.values())
        free._obj.value, total._obj.value = self.total - used, self.total
        return 0

    def _take(self, kind: str, pointer: Any, size: Any) -> int:
        if sum(len(m) for _, m in self.memory.values()) + size.value > self.total:
            return 2
        # what is not written yet must not look like a result
        held = ctypes.create_string_buffer(b"\xa5" * size.value, size.value)
        pointer._obj.value = ctypes.addressof(held)
        self.memory[ctypes.addressof(held)] = (kind, held)
        return 0

    def _give(self, kind: str, address: Any) -> int:
        if self.memory.get(address.value, ("", None))[0] != kind:
            return 1
        del self.memory[address.value]
        return 0

    def _cudaMalloc(self, pointer: Any, size: Any) -> int:
        return self._take("device", pointer, size)

    def _cudaFree(self, address: Any) -> int:
        return self._give("device", address)

    def _cudaHostAlloc(self, pointer: Any, size: Any, flags: Any) -> int:
        return self._take("host", pointer, size)

    def _cudaFreeHost(self, address: Any) -> int:
        return self._give("host", address)

    def _cudaMemcpyAsync(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        where = {1: ("device", "host"), 2: ("host", "device")}[kind.value]
        if not self.find(to.value, size.value, where[0]) or not self.find(
            source.value, size.value, where[1]
        ):
            return 1
        return self.run(stream.value, lambda: ctypes.memmove(to.value, source.value, size.value))

    def _cudaStreamCreateWithFlags(self, stream: Any, flags: Any) -> int:
        stream._obj.value = self.handle()
        self.streams[stream._obj.value] = None
        return 0

    def _cudaStreamSynchronize(self, stream: Any) -> int:
        if stream.value not in self.streams:
            return 400
        return 900 if self.capturing(stream.value) else 0

    def _cudaStreamDestroy(self, stream: Any) -> int:
        return 0 if self.streams.pop(stream.value, False) is None else 400

    def _cudaEventCreate(self, event: Any) -> int:
        event._obj.value = self.handle()
        self.events[event._obj.value] = 0.0
        return 0

    def _cudaEventRecord(self, event: Any, stream: Any) -> int:
        def mark() -> None:
            self.events[event.value] = self._clock

        return self.run(stream.value, mark) if event.value in self.events else 400

    def _cudaEventElapsedTime(self, ms: Any, first: Any, second: Any) -> int:
        ms._obj.value = self.events[second.value] - self.events[first.value]
        return 0

    def _cudaEventDestroy(self, event: Any) -> int:
        return 0 if self.events.pop(event.value, None) is not None else 400

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> int:
        if stream.value not in self.streams or self.capturing(stream.value):
            return 400
        self.streams[stream.value] = []
        return 0

    def _cudaStreamEndCapture(self, stream: Any, graph: Any) -> int:
        recorded = self.streams.get(stream.value)
        if recorded is None:
            return 400
        self.streams[stream.value] = None
        graph._obj.value = self.handle()
        self.graphs[graph._obj.value] = recorded
        return 0

    def _cudaGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: Any) -> int:
        executable._obj.value = self.handle()
        self.graphs[executable._obj.value] = self.graphs[graph.value]
        return 0

    def _cudaGraphDestroy(self, graph: Any) -> int:
        return 0 if self.graphs.pop(graph.value, None) is not None else 400

    def _cudaGraphExecDestroy(self, graph: Any) -> int:
        return self._cudaGraphDestroy(graph)

    def _cudaGraphLaunch(self, graph: Any, stream: Any) -> int:
        if graph.value not in self.graphs or self.capturing(stream.value):
            return 400
        for work in self.graphs[graph.value]:
            work()
        return 0

    def tick(self, ms: float) -> None:
        """Let GPU time pass: what the double of an engine does while it computes."""
        self._clock += ms
