"""CUDA through ctypes on libcudart: what a runner of engines needs, and nothing else.

Chosen over cuda-python, PyCUDA and torch because a board with JetPack has libcudart already and
numpy is all else that is needed. Calls and enumerations: the CUDA Runtime API reference; every one
used here is in 11.4 (JetPack 5) to 13 with the same signature. Every call is checked: an error is
raised with its name, what it means here and what to do. Standard library and numpy only.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
from pathlib import Path
from typing import Any

import numpy as np

from mint_deploy.errors import MintDeployError, RuntimeMissing

__all__ = ["Cuda", "CudaError", "Pinned", "find_library"]

#: enumerations of the runtime API that are used here
_TO_DEVICE, _TO_HOST = 1, 2
_NON_BLOCKING, _THREAD_LOCAL = 1, 1
_SM_MAJOR, _SM_MINOR, _INTEGRATED = 75, 76, 18
_NAME_BYTES, _PROPERTIES_BYTES = 256, 8192

#: newest first; where the dynamic loader, the toolkit, JetPack and the pip packages put it
_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")
_TOOLKITS = ("usr/local/cuda/lib64", "usr/local/cuda/targets/aarch64-linux/lib")
MEND = "sudo apt-get install cuda-cudart-12-6 (on a Jetson: nvidia-jetpack)"

_NOTHING = "start the process anew; if it comes again, report it with the lines above"
#: error -> what to do
_ADVICE = {
    "cudaErrorMemoryAllocation": "use a smaller batch or fewer streams, or stop other programs",
    "cudaErrorNoDevice": "no NVIDIA GPU is visible here; check CUDA_VISIBLE_DEVICES and nvidia-smi",
    "cudaErrorInsufficientDriver": "there is no NVIDIA driver, or it is older than this CUDA; update it",
    "cudaErrorSystemDriverMismatch": "driver and CUDA do not belong together; reinstall the driver",
    "cudaErrorSystemNotReady": "the driver is still starting; wait, or restart the machine",
    "cudaErrorInitializationError": "CUDA does not start; restart the machine, check nvidia-smi",
    "cudaErrorNoKernelImageForDevice": "built for another GPU; build the engine anew on this machine",
    "cudaErrorUnsupportedPtxVersion": "built for a newer driver; update the driver or build anew",
    "cudaErrorStreamCaptureUnsupported": "the network cannot be captured; run with cuda_graph=False",
    "cudaErrorStreamCaptureInvalidated": "the network cannot be captured; run with cuda_graph=False",
    "cudaErrorStreamCaptureImplicit": "the network cannot be captured; run with cuda_graph=False",
    "cudaErrorGraphExecUpdateFailure": "run with cuda_graph=False",
    "cudaErrorIllegalAddress": f"a kernel read outside its memory; {_NOTHING}",
    "cudaErrorECCUncorrectable": "the GPU's memory is faulty; restart the machine, then replace it",
    "cudaErrorLaunchTimeout": "the display's watchdog ended the kernel; run without a desktop",
    "cudaErrorDevicesUnavailable": "the GPU is in use by another program, exclusively; end it",
}


class CudaError(MintDeployError):
    """A call that CUDA refused; ``name`` is its own name, such as ``cudaErrorMemoryAllocation``."""

    def __init__(self, call: str, name: str, text: str, note: str = "") -> None:
        self.name = name
        extra = f" ({note})" if note else ""
        super().__init__(
            f"CUDA: {call} failed with {name}: {text}{extra}; {_ADVICE.get(name, _NOTHING)}"
        )


def find_library(root: str | os.PathLike[str] = "/") -> list[str]:
    """Return the names and paths under which libcudart may be loaded, in the order to try."""
    found = list(_NAMES)
    for folder in _TOOLKITS:
        found += [str(p) for p in sorted(Path(root, folder).glob("libcudart.so*"), reverse=True)]
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        found += sorted(map(str, Path(place).glob("*/lib/libcudart.so*")), reverse=True)
    return found


def _open() -> Any:
    """Load libcudart, or say where it was looked for."""
    tried: list[str] = []
    for name in find_library():
        try:
            return ctypes.CDLL(name)
        except OSError as error:  # noqa: PERF203  one of a handful of names has it
            tried.append(f"{name}: {error}")
    raise RuntimeMissing("tensorrt", f"libcudart cannot be loaded ({tried[0]})", MEND)


class Pinned:
    """Host memory that the GPU copies from and to directly, as a numpy array; freed by its owner."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str) -> None:
        self.address = address
        kind = np.dtype(dtype)
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        memory = (ctypes.c_char * max(self.nbytes, 1)).from_address(address)
        count = self.nbytes // kind.itemsize
        self.array: np.ndarray[Any, np.dtype[Any]] = np.frombuffer(
            memoryview(memory).cast("B"), dtype=kind, count=count
        ).reshape(shape)


class Cuda:
    """The calls, checked; addresses and handles are plain integers.

    Asking about the machine takes no memory of the GPU; :meth:`use` does.

    Raises:
        RuntimeMissing: libcudart is not here.
        CudaError: there is no GPU, or its driver does not start.
    """

    def __init__(self, device: int = 0) -> None:
        self._library = _open()
        for name, result in (("cudaGetErrorName", ctypes.c_char_p),
                             ("cudaGetErrorString", ctypes.c_char_p)):  # fmt: skip
            getattr(self._library, name).restype = result
        if self.device_count() < 1:
            raise CudaError("cudaGetDeviceCount", "cudaErrorNoDevice", "there is no GPU")
        self.device = device

    def _call(self, name: str, *arguments: Any, note: str = "") -> None:
        code = int(getattr(self._library, name)(*arguments))
        if code:
            called, text = (
                (getattr(self._library, which)(ctypes.c_int(code)) or b"?").decode(
                    "utf-8", "replace"
                )
                for which in ("cudaGetErrorName", "cudaGetErrorString")
            )
            # an error that is not sticky is cleared, so that the next call does not report it again
            self._library.cudaGetLastError()
            raise CudaError(name, called, text, note)

    def use(self) -> None:
        """Make the device that of this thread; from CUDA 12 on this sets it up."""
        self._call("cudaSetDevice", ctypes.c_int(self.device))

    # ------------------------------------------------------------ the machine

    def device_count(self) -> int:
        """GPUs that this process may use."""
        count = ctypes.c_int(0)
        self._call("cudaGetDeviceCount", ctypes.byref(count))
        return count.value

    def runtime_version(self) -> str:
        """Of the CUDA runtime that was loaded: ``12.6``."""
        return self._version("cudaRuntimeGetVersion")

    def driver_version(self) -> str:
        """The newest CUDA that the driver knows: ``12.6``."""
        return self._version("cudaDriverGetVersion")

    def _version(self, call: str) -> str:
        number = ctypes.c_int(0)
        self._call(call, ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}"

    def _attribute(self, which: int) -> int:
        value = ctypes.c_int(0)
        self._call(
            "cudaDeviceGetAttribute",
            ctypes.byref(value),
            ctypes.c_int(which),
            ctypes.c_int(self.device),
        )
        return value.value

    def sm(self) -> str:
        """Compute capability: ``8.7`` on Orin."""
        return f"{self._attribute(_SM_MAJOR)}.{self._attribute(_SM_MINOR)}"

    def integrated(self) -> bool:
        """Whether GPU and CPU share one memory, as on a Jetson."""
        return bool(self._attribute(_INTEGRATED))

    def name(self) -> str:
        """The GPU's name: the first field of its properties in every release."""
        buffer = ctypes.create_string_buffer(_PROPERTIES_BYTES)
        self._call("cudaGetDeviceProperties", buffer, ctypes.c_int(self.device))
        return buffer.raw[:_NAME_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU's memory."""
        free, total = ctypes.c_size_t(0), ctypes.c_size_t(0)
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    # ------------------------------------------------------------ memory

    def allocate(self, nbytes: int) -> int:
        """Memory of the GPU; at least one byte, so that an empty tensor has an address."""
        pointer = ctypes.c_void_p()
        size = ctypes.c_size_t(max(nbytes, 1))
        self._call("cudaMalloc", ctypes.byref(pointer), size, note=f"{nbytes / 2**20:.1f} MiB")
        return int(pointer.value or 0)

    def free(self, address: int) -> None:
        """Give memory of the GPU back."""
        self._call("cudaFree", ctypes.c_void_p(address))

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Pinned:
        """Page-locked host memory of a shape and type."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        pointer = ctypes.c_void_p()
        size, flags = ctypes.c_size_t(max(nbytes, 1)), ctypes.c_uint(0)
        note = f"{nbytes / 2**20:.1f} MiB, page-locked"
        self._call("cudaHostAlloc", ctypes.byref(pointer), size, flags, note=note)
        return Pinned(int(pointer.value or 0), shape, dtype)

    def free_pinned(self, memory: Pinned) -> None:
        """Give page-locked memory back; its array must not be used any more."""
        self._call("cudaFreeHost", ctypes.c_void_p(memory.address))

    def to_device(self, address: int, source: Pinned, stream: int) -> None:
        """Enqueue a copy to the GPU."""
        self._copy(address, source.address, source.nbytes, _TO_DEVICE, stream)

    def to_host(self, target: Pinned, address: int, stream: int) -> None:
        """Enqueue a copy from the GPU."""
        self._copy(target.address, address, target.nbytes, _TO_HOST, stream)

    def _copy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        self._call(
            "cudaMemcpyAsync", ctypes.c_void_p(target), ctypes.c_void_p(source),
            ctypes.c_size_t(nbytes), ctypes.c_int(kind), ctypes.c_void_p(stream),
        )  # fmt: skip

    # ------------------------------------------------------------ streams, events, graphs

    def _handle(self, call: str, *arguments: Any) -> int:
        handle = ctypes.c_void_p()
        self._call(call, ctypes.byref(handle), *arguments)
        return int(handle.value or 0)

    def stream(self) -> int:
        """A queue of its own, which does not wait for the default one."""
        return self._handle("cudaStreamCreateWithFlags", ctypes.c_uint(_NON_BLOCKING))

    def synchronize(self, stream: int) -> None:
        """Wait until everything in the queue is done."""
        self._call("cudaStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Give a queue back."""
        self._call("cudaStreamDestroy", ctypes.c_void_p(stream))

    def event(self) -> int:
        """A mark whose time can be read."""
        return self._handle("cudaEventCreate")

    def record(self, event: int, stream: int) -> None:
        """Put a mark into the queue."""
        self._call("cudaEventRecord", ctypes.c_void_p(event), ctypes.c_void_p(stream))

    def elapsed_ns(self, first: int, second: int) -> int:
        """Nanoseconds of GPU time between two marks that were both reached."""
        ms = ctypes.c_float(0.0)
        marks = ctypes.c_void_p(first), ctypes.c_void_p(second)
        self._call("cudaEventElapsedTime", ctypes.byref(ms), *marks)
        return round(ms.value * 1e6)

    def destroy_event(self, event: int) -> None:
        """Give a mark back."""
        self._call("cudaEventDestroy", ctypes.c_void_p(event))

    def begin_capture(self, stream: int) -> None:
        """From now on what goes into the queue is recorded, not run."""
        mode = ctypes.c_int(_THREAD_LOCAL)
        self._call("cudaStreamBeginCapture", ctypes.c_void_p(stream), mode)

    def end_capture(self, stream: int) -> int:
        """What was recorded, ready to be launched."""
        graph = ctypes.c_void_p()
        self._call("cudaStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            flags = ctypes.c_ulonglong(0)
            return self._handle("cudaGraphInstantiateWithFlags", graph, flags)
        finally:
            self._call("cudaGraphDestroy", graph)

    def launch(self, graph: int, stream: int) -> None:
        """Run a recorded graph."""
        self._call("cudaGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Give a graph back."""
        self._call("cudaGraphExecDestroy", ctypes.c_void_p(graph))
