"""A loaded engine: its tensors by name, memory for them, streams, CUDA graphs.

    host array -> page-locked memory -> GPU -> kernels -> page-locked memory -> host array

One execution context, one stream and one set of buffers for each query that may be under way at
once. For each combination of input shapes the buffers are made once, and with CUDA graphs all of a
query, copies included, is recorded once and launched as one. Standard library and numpy only.
"""

from __future__ import annotations

import statistics
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy._trt_api import Api
from mint_deploy._trt_cuda import Cuda, CudaError, Pinned
from mint_deploy._trt_dialects import version_of
from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ConfigError, DataError, InternalError, ModelError
from mint_deploy.runtimes import DYNAMIC, Arrays

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["Session"]

#: names of TensorRT's data types that numpy has too
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
    "BOOL": "bool", "UINT8": "uint8",
}  # fmt: skip
#: combinations of input shapes whose buffers are kept
_MOST_SHAPES = 8

Shape = tuple[int, ...]


@dataclass(slots=True)
class _Buffers:
    """Memory of one query of certain shapes: host and GPU, by the tensor's name."""

    host: dict[str, Pinned] = field(default_factory=dict)
    device: dict[str, int] = field(default_factory=dict)
    runs: int = 0
    graph: int | None = None


@dataclass(slots=True)
class _Lane:
    """A context, its stream, and buffers for the shapes that were asked for so far."""

    context: Any
    stream: int
    buffers: dict[tuple[Shape, ...], _Buffers] = field(default_factory=dict)
    bound: tuple[Shape, ...] | None = None


class Session:
    """An engine in memory; everything is given back on leaving.

    Args:
        api: the TensorRT that loads it.
        plan: the plan file.
        streams: queries that may be under way at once.
        cuda_graph: record a query once and launch it as one; needs shapes that stay.
        dla_core: the accelerator that the engine was built for; graphs do not go with it.
        anew: the command that an error names where the engine does not load.

    Raises:
        EngineMismatch: the plan is of another version or GPU.
        CudaError: a call that CUDA refused.
    """

    def __init__(
        self,
        api: Api,
        plan: Path,
        *,
        streams: int = 1,
        cuda_graph: bool = True,
        dla_core: int | None = None,
        anew: str = "build it anew",
    ) -> None:
        self._api, self._plan, self._count = api, plan, streams
        self._graphs = cuda_graph and dla_core is None
        self._dla_core, self._anew = dla_core, anew
        # several threads may ask at once: a context and its memory serve one query at a time
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []
        self._stack = ExitStack()
        self._cuda: Cuda | None = None
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.limits: dict[str, tuple[Shape, Shape]] = {}
        self.device_bytes = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            cuda = self._cuda = Cuda()
            cuda.use()
            engine = self._api.load(self._plan, dla_core=self._dla_core, anew=self._anew)
            self._describe(engine)
            self._check_streams()
            for _ in range(self._count):
                stream = cuda.stream()
                stack.callback(cuda.destroy_stream, stream)
                context = engine.create_execution_context()
                if context is None:
                    raise ModelError(
                        f"TensorRT cannot make a context for {self._plan.name}: "
                        f"{(self._api.lines or ['it said nothing'])[-1]}"
                    )
                lane = _Lane(context=context, stream=stream)
                stack.callback(self._release, lane)
                self._lanes.append(lane)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()
        self._lanes.clear()

    def _describe(self, engine: Any) -> None:
        trt = self._api.trt
        inputs, outputs = [], []
        for i in range(engine.num_io_tensors):
            name = engine.get_tensor_name(i)
            kind = engine.get_tensor_dtype(name).name
            if kind not in _DTYPES:
                raise ModelError(
                    f"tensor '{name}' has type {kind}, which numpy has not; export it as float"
                )
            shape = tuple(DYNAMIC if d < 0 else int(d) for d in engine.get_tensor_shape(name))
            spec = TensorSpec(name=name, shape=shape, dtype=_DTYPES[kind])
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                inputs.append(spec)
                low, _, high = (
                    engine.get_tensor_profile_shape(name, 0) if DYNAMIC in shape else (shape,) * 3
                )
                self.limits[name] = tuple(map(int, low)), tuple(map(int, high))
            else:
                outputs.append(spec)
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        # 11 has the second name alone, 8.5 the first
        size = (
            "device_memory_size_v2"
            if hasattr(engine, "device_memory_size_v2")
            else "device_memory_size"
        )
        self.device_bytes = int(getattr(engine, size))

    def _check_streams(self) -> None:
        """Before 10, two contexts may not use the same optimisation profile at once."""
        open_batch = any(DYNAMIC in spec.shape for spec in self.inputs)
        if self._count > 1 and open_batch and version_of(self._api.version) < (10, 0, 0):
            raise ConfigError(
                f"TensorRT {self._api.version} runs an engine with an open batch in one stream, "
                f"{self._count} were asked for; export a fixed batch, or use one stream"
            )

    # ------------------------------------------------------------ queries

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run one query; the arrays returned are the caller's own."""
        return self.burst([inputs])[0]

    def burst(self, queries: Sequence[Arrays]) -> list[dict[str, np.ndarray[Any, np.dtype[Any]]]]:
        """Run several queries at once, one a stream, in rounds where there are more than streams."""
        with self._lock:
            return self._burst(queries)

    def _burst(self, queries: Sequence[Arrays]) -> list[dict[str, np.ndarray[Any, np.dtype[Any]]]]:
        out: list[dict[str, np.ndarray[Any, np.dtype[Any]]]] = []
        for start in range(0, len(queries), self._count):
            under_way = []
            for lane, inputs in zip(
                self._lanes, queries[start : start + self._count], strict=False
            ):
                buffers = self._feed(lane, inputs)
                self._enqueue(lane, buffers, copies=True)
                under_way.append((lane, buffers))
            for lane, buffers in under_way:
                self._live().synchronize(lane.stream)
                out.append({s.name: buffers.host[s.name].array.copy() for s in self.outputs})
        return out

    def compute_ns(
        self, shapes: Mapping[str, Shape] | None = None, *, count: int = 200, warmup: int = 20
    ) -> list[int]:
        """Return the nanoseconds of GPU time of ``count`` queries on zeros, copies left out."""
        with self._lock:
            return self._compute_ns(shapes or {}, count, warmup)

    def _compute_ns(self, shapes: Mapping[str, Shape], count: int, warmup: int) -> list[int]:
        cuda, lane = self._live(), self._lanes[0]
        given = {s.name: shapes.get(s.name, self.limits[s.name][1]) for s in self.inputs}
        zeros = {s.name: np.zeros(given[s.name], s.dtype) for s in self.inputs}
        buffers = self._feed(lane, zeros)
        out: list[int] = []
        with ExitStack() as stack:
            marks = cuda.event(), cuda.event()
            for mark in marks:
                stack.callback(cuda.destroy_event, mark)
            graph = None
            for i in range(warmup + count):
                if i == 1 and self._graphs:
                    graph = self._recorded(lane, buffers, copies=False)
                    stack.callback(cuda.destroy_graph, graph)
                cuda.record(marks[0], lane.stream)
                if graph is None:
                    self._execute(lane)
                else:
                    cuda.launch(graph, lane.stream)
                cuda.record(marks[1], lane.stream)
                cuda.synchronize(lane.stream)
                if i >= warmup:
                    out.append(cuda.elapsed_ns(*marks))
        return out

    def profile(self, inputs: Arrays, calls: int) -> list[tuple[str, float]]:
        """Return name and median nanoseconds of each layer, as TensorRT's profiler reports them.

        The profiler makes the layers wait for each other, so a session that was profiled is not
        one to measure with; graphs must be off.
        """
        profiler = _profiler(self._api.trt)
        with self._lock:
            lane = self._lanes[0]
            buffers = self._feed(lane, inputs)
            self._work(lane, buffers, copies=True)
            self._live().synchronize(lane.stream)
            lane.context.profiler = profiler
            for _ in range(calls):
                self._execute(lane)
                self._live().synchronize(lane.stream)
        return [(name, statistics.median(ms) * 1e6) for name, ms in profiler.found.items()]

    def _live(self) -> Cuda:
        if self._cuda is None:
            raise InternalError("a session of TensorRT that was not entered")
        return self._cuda

    def _feed(self, lane: _Lane, inputs: Arrays) -> _Buffers:
        """Check the inputs, bind memory for their shapes, and fill it."""
        self._check(inputs)
        key = tuple(tuple(inputs[s.name].shape) for s in self.inputs)
        if lane.bound != key:
            self._bind(lane, key)
        buffers = lane.buffers[key]
        for spec in self.inputs:
            np.copyto(buffers.host[spec.name].array, inputs[spec.name])
        return buffers

    def _check(self, inputs: Arrays) -> None:
        expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
        given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items()) or "nothing"
        if set(inputs) != {s.name for s in self.inputs}:
            raise DataError(f"{self._plan.name} takes {expected}; was given {given}")
        for spec in self.inputs:
            value, (low, high) = inputs[spec.name], self.limits[spec.name]
            fits = value.dtype == spec.dtype and len(value.shape) == len(low)
            if not fits or not all(
                a <= d <= b for a, d, b in zip(low, value.shape, high, strict=True)
            ):
                limits = "" if low == high else f", from {list(low)} to {list(high)}"
                hint = (
                    "; build with a larger max_batch" if fits and value.shape[0] > high[0] else ""
                )
                raise DataError(
                    f"{self._plan.name} takes {expected}{limits}; was given {given}{hint}"
                )

    def _bind(self, lane: _Lane, key: tuple[Shape, ...]) -> None:
        """Tell the context the shapes, and where each tensor lies.

        A graph holds the state of the context that it was recorded from, so none survives this.
        """
        cuda, context = self._live(), lane.context
        for recorded in lane.buffers.values():
            recorded.runs = 0
            if recorded.graph is not None:
                cuda.destroy_graph(recorded.graph)
                recorded.graph = None
        for spec, shape in zip(self.inputs, key, strict=True):
            if not context.set_input_shape(spec.name, shape):
                raise DataError(f"{self._plan.name} refuses {list(shape)} for '{spec.name}'")
        if key not in lane.buffers:
            if len(lane.buffers) >= _MOST_SHAPES:
                self._give_back(lane.buffers.pop(next(iter(lane.buffers))))
            made = lane.buffers[key] = _Buffers()
            for spec in (*self.inputs, *self.outputs):
                shape = tuple(int(d) for d in context.get_tensor_shape(spec.name))
                if any(d < 0 for d in shape):
                    raise ModelError(
                        f"the shape of '{spec.name}' depends on the values of the inputs, which this "
                        "runner cannot prepare memory for; export the network without that step"
                    )
                host = made.host[spec.name] = cuda.pinned(shape, spec.dtype)
                made.device[spec.name] = cuda.allocate(host.nbytes)
        for name, address in lane.buffers[key].device.items():
            context.set_tensor_address(name, address)
        lane.bound = key

    def _enqueue(self, lane: _Lane, buffers: _Buffers, *, copies: bool) -> None:
        """Start a query: as it is the first time, recorded from the second on."""
        if self._graphs and buffers.runs >= 1:
            if buffers.graph is None:
                buffers.graph = self._recorded(lane, buffers, copies=copies)
            self._live().launch(buffers.graph, lane.stream)
        else:
            self._work(lane, buffers, copies=copies)
        buffers.runs += 1

    def _recorded(self, lane: _Lane, buffers: _Buffers, *, copies: bool) -> int:
        cuda = self._live()
        cuda.synchronize(lane.stream)
        cuda.begin_capture(lane.stream)
        try:
            self._work(lane, buffers, copies=copies)
        except BaseException:
            # the stream must not stay in capture; what went wrong is what is raised
            with suppress(CudaError):
                cuda.destroy_graph(cuda.end_capture(lane.stream))
            raise
        return cuda.end_capture(lane.stream)

    def _work(self, lane: _Lane, buffers: _Buffers, *, copies: bool) -> None:
        cuda = self._live()
        for spec in self.inputs if copies else ():
            cuda.to_device(buffers.device[spec.name], buffers.host[spec.name], lane.stream)
        self._execute(lane)
        for spec in self.outputs if copies else ():
            cuda.to_host(buffers.host[spec.name], buffers.device[spec.name], lane.stream)

    def _execute(self, lane: _Lane) -> None:
        if not lane.context.execute_async_v3(lane.stream):
            said = (self._api.lines or ["it said nothing"])[-1]
            raise DataError(f"TensorRT could not run {self._plan.name}: {said}")

    # ------------------------------------------------------------ giving back

    def _release(self, lane: _Lane) -> None:
        # where the GPU failed, what it did is of no interest any more; its memory is given back
        with suppress(CudaError):
            self._live().synchronize(lane.stream)
        for buffers in lane.buffers.values():
            self._give_back(buffers)
        lane.buffers.clear()
        lane.bound = None

    def _give_back(self, buffers: _Buffers) -> None:
        cuda = self._live()
        if buffers.graph is not None:
            cuda.destroy_graph(buffers.graph)
        for address in buffers.device.values():
            cuda.free(address)
        for memory in buffers.host.values():
            cuda.free_pinned(memory)
        buffers.device.clear()
        buffers.host.clear()


def _profiler(trt: Any) -> Any:
    """A profiler that keeps the milliseconds of each layer, in the order of the engine."""

    class Kept(trt.IProfiler):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.found: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.found.setdefault(layer_name, []).append(ms)

    return Kept()
