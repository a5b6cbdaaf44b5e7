"""OpenVINO: reads the ONNX file itself and compiles it for this CPU, with nothing left to its hints.

By itself it computes in bfloat16 where the processor has that, takes all cores, pins its threads,
and accepts a missing input or a wrong type without a word. Here float32 is float32 unless bf16 or
f16 is chosen (an INT8 model brings its own quantisation nodes), threads and streams are what was
asked for, no thread is pinned (two models in turns would share one core), and inputs are checked.
What it really took is read back and recorded. Properties: docs.openvino.ai, CPU device.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy import onnx_wire
from mint_deploy._unsupported import first_line, unsupported
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import (
    ConfigError,
    DataError,
    ModelError,
    RuntimeMissing,
    UnknownName,
)
from mint_deploy.runtimes import (
    DYNAMIC,
    Arrays,
    check_inputs,
    closed,
    option,
    same_file,
    save_engine,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from typing_extensions import Self  # typing has it from Python 3.11 on

    _Array = np.ndarray[Any, np.dtype[Any]]

__all__ = ["HINTS", "MEND", "PRECISIONS", "OpenVinoRunner", "build", "missing", "runner"]

MEND = "pip install openvino"
#: what the hint is for: one query after the other, or as many as possible at once
HINTS = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
#: precision of the computation -> what a device must be able to do
PRECISIONS = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
#: the same in the words of :class:`mint_deploy.artifacts.Engine`
_OURS = {"bf16": "bf16", "f16": "fp16"}
#: read back from what was compiled
_RECORDED = (
    "NUM_STREAMS",
    "INFERENCE_NUM_THREADS",
    "ENABLE_HYPER_THREADING",
    "EXECUTION_MODE_HINT",
)


def missing() -> str | None:
    """Say why OpenVINO cannot be used here, or None."""
    if importlib.util.find_spec("openvino") is None:
        return "the package openvino is not installed"
    return None


def _library() -> Any:
    """Import the library itself (this module has its name, and imports are absolute)."""
    try:
        import openvino
    except ImportError as error:
        raise RuntimeMissing("openvino", str(error), MEND) from error
    return openvino


@functools.cache
def _core(library: Any) -> Any:
    """Return the one Core of this process, which stays.

    Its CPU plugin gives the main thread an alternate stack for signals and takes the memory back when the Core
    goes (OpenVINO 2026.4). With two of them the second puts the first's stack back, whose memory may be gone:
    the next Ctrl-C would end in a segmentation fault.
    """
    return library.Core()


def _version(library: Any) -> str:
    return str(library.__version__).partition("-")[0]


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Engine:
    """Check that ``model`` is an ONNX file that OpenVINO compiles, and return it as an engine.

    The engine is the ONNX file itself; only ``engine.json`` is written into ``out``.

    Args:
        model: the file; weights in other files must lie in its folder.
        target: its ``precision`` is recorded (int8 stands in the file).
        out: a folder for ``engine.json``.
        settings: of :func:`runner`.

    Raises:
        RuntimeMissing: openvino is not installed.
        ModelError: no such file, one that wants to read outside of its folder, or one that OpenVINO
            refuses; its reason is quoted, and an operator that it lacks named with its node.
    """
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no such file: {path}; expected an ONNX model")
    engine = Engine(
        path=str(path),
        runtime="openvino",
        precision=str(option(target, "precision", "fp32")),
        sha256=onnx_wire.digest(path),
        builder={"openvino": _version(_library())},
    )
    with runner(engine, **settings) as live:
        return save_engine(live.engine, out)


def runner(
    engine: Engine,
    *,
    threads: int = 1,
    precision: str | None = None,
    hint: str | None = None,
    streams: int | None = None,
) -> OpenVinoRunner:
    """Return a runner of ``engine``; it is compiled when it is entered.

    A setting that is None is the engine's own flag, and where that has none the first value named.

    Args:
        engine: as :func:`build` made it.
        threads: threads of all streams together.
        precision: of the computation: ``f32``, ``bf16`` or ``f16``.
        hint: ``latency`` or ``throughput``.
        streams: queries that are worked on at once; one for latency, as OpenVINO likes for throughput.

    Raises:
        ConfigError: ``threads`` or ``streams`` below 1, or a precision that this CPU has not.
        UnknownName: no such precision or hint.
        EngineMismatch: the file is no longer the one that was built.
        RuntimeMissing: openvino is not installed.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more")
    if streams is not None and streams < 1:
        raise ConfigError(f"streams is {streams}, expected 1 or more")
    had = {str(k): str(v) for k, v in engine.flags.items()}
    precision = precision or had.get("INFERENCE_PRECISION_HINT", "f32")
    hint = hint or had.get("PERFORMANCE_HINT", "latency").lower()
    for kind, name, known in (("precision", precision, PRECISIONS), ("hint", hint, HINTS)):
        if name not in known:
            raise UnknownName(kind, name, known)
    library = _library()
    core = _core(library)
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if PRECISIONS[precision] not in able:
        raise ConfigError(
            f"precision {precision} is not computed by this CPU ({', '.join(able)}), and OpenVINO "
            "would take f32 without a word; choose f32"
        )
    wanted = (
        str(streams) if streams else had.get("NUM_STREAMS", "" if hint == "throughput" else "1")
    )
    flags = {
        "device": "CPU",
        "intra_op_threads": str(threads),
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": HINTS[hint],
        "INFERENCE_NUM_THREADS": str(threads),
        **({"NUM_STREAMS": wanted} if wanted else {}),
        "ENABLE_CPU_PINNING": "NO",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    }
    same_file(engine)
    ours = _OURS.get(precision, engine.precision)
    return OpenVinoRunner(dataclasses.replace(engine, flags=flags, precision=ours), threads, core)


class _Request:
    """A request of a compiled model, and the arrays whose memory it reads.

    The same arrays again need no check and no new tensors, which together cost 150 microseconds beside a model
    that leaves nothing of Python in the caches; what was written into them meanwhile is seen all the same.
    """

    __slots__ = ("_known", "_memory", "live")

    def __init__(self, live: Any) -> None:
        self.live = live
        #: what its tensors point into
        self._memory: list[_Array] = []
        self._known: tuple[tuple[str, _Array, tuple[int, ...], np.dtype[Any]], ...] = ()

    def has(self, inputs: Arrays) -> bool:
        """Say whether it reads these arrays already, and they are as they were."""
        return len(inputs) == len(self._known) > 0 and all(
            inputs.get(name) is array and array.shape == shape and array.dtype == dtype
            for name, array, shape, dtype in self._known
        )

    def read(self, specs: Sequence[TensorSpec], inputs: Arrays, tensor: Callable[..., Any]) -> None:
        """Read these from now on; what OpenVINO cannot read in place is copied, and copied each time."""
        self._known = ()
        self._memory = [np.ascontiguousarray(inputs[spec.name]) for spec in specs]
        for i, array in enumerate(self._memory):
            # it takes no read-only memory, though it only reads
            shared = array.flags.writeable
            self.live.set_input_tensor(i, tensor(array, shared_memory=shared))
        given = [inputs[spec.name] for spec in specs]
        if all(a is b and a.flags.writeable for a, b in zip(self._memory, given, strict=True)):
            self._known = tuple((n, a, a.shape, a.dtype) for n, a in inputs.items())


class OpenVinoRunner:
    """One compiled model; its properties are those in ``engine.flags``, the last of them read back."""

    def __init__(self, engine: Engine, threads: int, core: Any) -> None:
        self.engine, self.threads = engine, threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._asked, self._core, self._library = engine, core, _library()
        self._compiled: Any = None
        #: requests that nobody is using: each thread that calls takes one
        self._free: list[_Request] = []

    def __enter__(self) -> Self:
        compiled = self._compile()
        told = {name: str(compiled.get_property(name)) for name in _RECORDED}
        told["EXECUTION_MODE_HINT"] = told["EXECUTION_MODE_HINT"].rpartition(".")[2]
        self.engine = dataclasses.replace(self._asked, flags={**self._asked.flags, **told})
        names = onnx_wire.read_wire(self._asked.path)
        self.inputs = tuple(_spec(p, names.inputs) for p in compiled.inputs)
        self.outputs = tuple(_spec(p, names.outputs) for p in compiled.outputs)
        self._compiled, self._free = compiled, [_Request(compiled.create_infer_request())]
        return self

    def _compile(self, **more: str) -> Any:
        path, flags = self._asked.path, self._asked.flags
        properties = {k: v for k, v in flags.items() if k.isupper()}
        try:
            model = self._core.read_model(path)
            compiled = self._core.compile_model(model, flags["device"], {**properties, **more})
        except Exception as error:
            name = f"OpenVINO {_version(self._library)}"
            nodes = unsupported(path, str(error))
            if nodes:
                raise ModelError(
                    f"{name} cannot run {nodes}, in {path}; rewrite that layer, or choose another "
                    "runtime"
                ) from error
            raise ModelError(
                f"{name} cannot load {path}: {first_line(error)}; export it anew"
            ) from error
        took = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if took != flags["INFERENCE_PRECISION_HINT"]:
            raise ConfigError(
                f"precision {flags['INFERENCE_PRECISION_HINT']} was asked for and OpenVINO took {took}"
            )
        return compiled

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run the model once; see :meth:`mint_deploy.runtimes.Runner.infer`."""
        if self._compiled is None:
            raise closed("openvino")
        try:
            request = self._free.pop()
        except IndexError:
            request = _Request(self._compiled.create_infer_request())
        self._run(request, inputs)
        results = {
            spec.name: request.live.get_output_tensor(i).data.copy()
            for i, spec in enumerate(self.outputs)
        }
        self._free.append(request)
        return results

    def _run(self, request: _Request, inputs: Arrays) -> None:
        if not request.has(inputs):
            check_inputs(self.inputs, inputs, Path(self.engine.path).name)
            request.read(self.inputs, inputs, self._library.Tensor)
        try:
            request.live.infer(share_outputs=True)
        except RuntimeError as error:
            given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
            raise DataError(
                f"{Path(self.engine.path).name} fails on {given} ({first_line(error)})"
            ) from error

    def profile(self, inputs: Arrays, calls: int = 30) -> list[tuple[str, str, float]]:
        """Return name, operator and median nanoseconds of each node that ran, in whole microseconds.

        The counters are on in a compiled model of its own. The operator carries its kernel, as in
        ``Convolution brgconv_avx2_f32``: it tells in which precision the node really ran.
        """
        if self._compiled is None:
            raise closed("openvino")
        request = _Request(self._compile(PERF_COUNT="YES").create_infer_request())
        found: dict[str, tuple[str, list[float]]] = {}
        for _ in range(calls):
            self._run(request, inputs)
            for row in request.live.profiling_info:
                if row.status.name == "EXECUTED":
                    kind = f"{row.node_type} {row.exec_type}"
                    ns = row.real_time.total_seconds() * 1e9
                    found.setdefault(row.node_name, (kind, []))[1].append(ns)
        return [(name, kind, float(np.median(ns))) for name, (kind, ns) in found.items()]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._compiled, self._free = None, []


def _spec(port: Any, known: tuple[str, ...]) -> TensorSpec:
    """A port of a compiled model under the name that the ONNX file gives it."""
    name = next((n for n in known if n in port.get_names()), port.get_any_name())
    shape = tuple(d.get_length() if d.is_static else DYNAMIC for d in port.get_partial_shape())
    return TensorSpec(name=name, shape=shape, dtype=port.get_element_type().to_dtype().name)
