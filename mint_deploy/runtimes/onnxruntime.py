"""ONNX Runtime: runs an ONNX file, with every setting that moves a clock figure made explicit.

One intra-op thread unless asked otherwise, one inter-op thread, sequential execution, all graph
optimisations, one named provider, and no spinning: a worker thread that spins after its run takes
the core from the other model of an interleaved comparison. What was set is recorded in the engine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy import files
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import (
    ConfigError,
    DataError,
    EngineMismatch,
    ModelError,
    RuntimeMissing,
    UnknownName,
)
from mint_deploy.runtimes import DYNAMIC, Arrays, closed, option, save_engine

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["MEND", "OnnxRuntimeRunner", "build", "missing", "runner"]

#: our names for the levels of graph optimisation
GRAPH_LEVELS = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}
_DTYPES = {
    "float": "float32",
    "float16": "float16",
    "double": "float64",
    "int8": "int8",
    "uint8": "uint8",
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "int64": "int64",
    "uint64": "uint64",
    "bool": "bool",
}
MEND = "pip install onnxruntime"


def missing() -> str | None:
    """Say why ONNX Runtime cannot be used here, or None."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "the package onnxruntime is not installed"
    return None


def _library() -> Any:
    """Import the library itself (this module has its name, and imports are absolute)."""
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeMissing("onnxruntime", str(error), MEND) from error
    return onnxruntime


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
) -> Engine:
    """Check that ``model`` is an ONNX file that ONNX Runtime loads, and return it as an engine.

    The engine is the ONNX file itself; only ``engine.json`` is written into ``out``.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
        ModelError: no such file, or one that ONNX Runtime refuses; its reason is quoted.
    """
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no such file: {path}; expected an ONNX model")
    engine = Engine(
        path=str(path),
        runtime="onnxruntime",
        precision=str(option(target, "precision", "fp32")),
        sha256=files.sha256(path),
        builder={"onnxruntime": str(_library().__version__)},
    )
    with runner(engine) as live:
        return save_engine(live.engine, out)


def runner(
    engine: Engine,
    *,
    threads: int = 1,
    provider: str = "CPUExecutionProvider",
    graph: str = "all",
    spin: bool = False,
) -> OnnxRuntimeRunner:
    """Return a runner of ``engine``; the session is made when it is entered.

    Raises:
        ConfigError: ``threads`` below 1, or an unknown level of graph optimisation.
        EngineMismatch: the file is no longer the one that was built.
        RuntimeMissing: onnxruntime or the provider is not installed.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more")
    if graph not in GRAPH_LEVELS:
        raise UnknownName("level of graph optimisation", graph, GRAPH_LEVELS)
    available = _library().get_available_providers()
    if provider not in available:
        raise RuntimeMissing(
            "onnxruntime",
            f"it has no provider {provider!r} (it has: {', '.join(available)})",
            "pip install onnxruntime-gpu" if "CUDA" in provider else MEND,
        )
    if not Path(engine.path).is_file():
        raise ModelError(f"no such file: {engine.path}; expected an ONNX model")
    if engine.sha256 and (found := files.sha256(engine.path)) != engine.sha256:
        raise EngineMismatch(
            "the file with SHA-256", engine.sha256[:12], found[:12], advice="build it anew"
        )
    flags = {
        "provider": provider,
        "graph_optimization": graph,
        "execution_mode": "sequential",
        "intra_op_threads": str(threads),
        "inter_op_threads": "1",
        "spinning": "on" if spin else "off",
        "memory_arena": "on",
        "memory_pattern": "on",
    }
    return OnnxRuntimeRunner(dataclasses.replace(engine, flags=flags), threads)


class OnnxRuntimeRunner:
    """One session; its settings are those in ``engine.flags``."""

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine, self.threads = engine, threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self._session: Any = None
        self._names: list[str] = []

    def __enter__(self) -> Self:
        library, flags = _library(), self.engine.flags
        options = library.SessionOptions()
        options.intra_op_num_threads = int(flags["intra_op_threads"])
        options.inter_op_num_threads = int(flags["inter_op_threads"])
        options.execution_mode = library.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = getattr(
            library.GraphOptimizationLevel, GRAPH_LEVELS[flags["graph_optimization"]]
        )
        options.enable_cpu_mem_arena = flags["memory_arena"] == "on"
        options.enable_mem_pattern = flags["memory_pattern"] == "on"
        options.log_severity_level = 3
        spin = "1" if flags["spinning"] == "on" else "0"
        options.add_session_config_entry("session.intra_op.allow_spinning", spin)
        options.add_session_config_entry("session.inter_op.allow_spinning", spin)
        try:
            session = library.InferenceSession(
                self.engine.path, sess_options=options, providers=[flags["provider"]]
            )
        except Exception as error:
            raise ModelError(
                f"ONNX Runtime {library.__version__} cannot load {self.engine.path}: "
                f"{_first_line(error)}; export it anew"
            ) from error
        if session.get_providers()[0] != flags["provider"]:
            raise RuntimeMissing(
                "onnxruntime",
                f"{flags['provider']} fell back to {session.get_providers()[0]}",
                "check the driver and the libraries of the provider",
            )
        self._session = session
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        return self

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run the session once; see :meth:`mint_deploy.runtimes.Runner.infer`."""
        if self._session is None:
            raise closed("onnxruntime")
        try:
            results = self._session.run(self._names, inputs)
        except Exception as error:
            expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
            given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
            raise DataError(
                f"{Path(self.engine.path).name} takes {expected}; was given {given or 'nothing'} "
                f"({_first_line(error)})"
            ) from error
        return dict(zip(self._names, results, strict=True))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session = None


def _spec(node: Any) -> TensorSpec:
    """A session's description of a tensor, with ``DYNAMIC`` for each named or open dimension."""
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(d if isinstance(d, int) and d >= 0 else DYNAMIC for d in node.shape)
    return TensorSpec(name=node.name, shape=shape, dtype=_DTYPES.get(kind, kind))


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
