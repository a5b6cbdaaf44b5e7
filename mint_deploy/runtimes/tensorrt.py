"""TensorRT: builds an engine on the machine that runs it, and runs it through its Python API.

Built through the Python API where ``tensorrt`` imports, through ``trtexec`` where it does not; both
write the same files with the same settings. Loaded only where :mod:`mint_deploy.engine_file` finds
the engine to belong. CUDA is called through ctypes (:mod:`mint_deploy._trt_cuda`): nothing but
numpy and what JetPack brings is needed. Latencies are those of ``infer``: from host arrays to host
arrays, copies included; ``trtexec`` gives the GPU's own time.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy import _trt_build, engine_file, trtexec
from mint_deploy._trt_api import MEND, Api
from mint_deploy._trt_build import Builder, Progress
from mint_deploy._trt_cuda import Cuda
from mint_deploy._trt_exports import Layer, read_layers
from mint_deploy._trt_here import facts
from mint_deploy._trt_session import Session
from mint_deploy.artifacts import Engine, Machine, TensorSpec
from mint_deploy.errors import (
    ConfigError,
    DataError,
    EngineMismatch,
    MintDeployError,
    ModelError,
    RuntimeMissing,
)
from mint_deploy.runtimes import Arrays, closed

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["MEND", "TensorRTRunner", "build", "layers", "missing", "runner"]

#: where engines go that nobody asked to keep, beside their model
_KEPT = "engines"


def missing() -> str | None:
    """Say why an engine cannot be run here, or None."""
    if importlib.util.find_spec("tensorrt") is None:
        also = "; trtexec is here, and builds" if trtexec.find() else ""
        return f"the Python package tensorrt is not installed{also}"
    try:
        Cuda()
    except MintDeployError as error:
        return str(error)
    return None


def _builder(progress: Progress | None) -> Builder:
    """The Python API, else ``trtexec``; where neither is here, the error says so of both."""
    if importlib.util.find_spec("tensorrt") is not None:
        return Api(progress)
    if trtexec.find() is None:
        raise RuntimeMissing(
            "tensorrt", "neither the Python package tensorrt nor trtexec is here", MEND
        )
    return trtexec.Trtexec()


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
    *,
    builds: int | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build an engine of an ONNX file for this machine.

    Args:
        model: an ONNX file.
        target: a Target or its JSON object; see :func:`mint_deploy.recipe.build_settings`.
        out: the folder of ``engine.plan`` and ``engine.json``. None: ``engines/`` beside the
            model, where an engine of the same file, settings and machine is used again.
        builds: build so often and keep the fastest; default: the target's ``builds``, else 1.
        machine: who builds; probed where absent.
        progress: called with what is done, the whole, and a note.

    Raises:
        RuntimeMissing: neither the Python package nor ``trtexec`` is here, or no GPU.
        ModelError: no ONNX file, an operator or shapes that this TensorRT does not take.
        ConfigError: settings that it does not take.
        MintDeployError: the build failed: memory with numbers, or its last words.
    """
    source = Path(model)
    if not source.is_file():
        raise ModelError(f"no such file: {source}; expected an ONNX model")
    builder = _builder(progress)
    if out is not None:
        return _trt_build.make(
            builder, source, out, target, builds=builds, machine=machine, progress=progress
        )
    here = facts(builder.version, machine=machine)
    key = _trt_build.key_of(source, target, here)
    folder = source.parent / _KEPT / f"{source.stem}-{key[:12]}"
    kept = _kept(folder, here)
    return kept or _trt_build.make(
        builder, source, folder, target, builds=builds, machine=machine, progress=progress
    )


def _kept(folder: Path, here: dict[str, str]) -> Engine | None:
    """An engine of an earlier build, where it is whole and of this machine."""
    try:
        engine = engine_file.read(folder)
        engine_file.require(engine, here)
    except (DataError, EngineMismatch):
        return None
    return engine


def runner(
    engine: Engine,
    *,
    threads: int = 1,
    streams: int = 1,
    cuda_graph: bool = True,
) -> TensorRTRunner:
    """Return a runner of an engine; it is loaded when the runner is entered.

    Args:
        engine: from :func:`build` or :func:`mint_deploy.engine_file.read`.
        threads: recorded; TensorRT computes on the GPU.
        streams: queries under way at once, for ``burst``.
        cuda_graph: record a query once and launch it as one.

    Raises:
        ConfigError: ``threads`` or ``streams`` below 1.
        RuntimeMissing: the Python package tensorrt or CUDA is not here.
        EngineMismatch: the engine was altered, or belongs to another machine; with the command
            that builds it anew.
    """
    for name, value in (("threads", threads), ("streams", streams)):
        if value < 1:
            raise ConfigError(f"{name} is {value}, expected 1 or more")
    api = Api()
    engine_file.require(engine, facts(api.version, cuda=Cuda()))
    return TensorRTRunner(api, engine, threads, streams, cuda_graph)


class TensorRTRunner:
    """A loaded engine; its settings are those in ``engine.flags``."""

    def __init__(
        self, api: Api, engine: Engine, threads: int, streams: int, cuda_graph: bool
    ) -> None:
        self._session: Session | None = None
        self._api, self.threads = api, threads
        self._built, self._streams = engine, streams
        settings = engine.flags.get("settings") or {}
        self._dla_core: int | None = settings.get("dla_core")
        self._graphs = cuda_graph and self._dla_core is None
        flags = {
            "tensorrt": engine.builder.get("tensorrt", api.version),
            "typing": str(settings.get("typing", "")),
            "dla_core": "none" if self._dla_core is None else str(self._dla_core),
            "power_mode": engine.builder.get("power_mode", ""),
            "cuda_graph": "on" if self._graphs else "off",
            "transfers": "included, page-locked",
            "streams": str(streams),
            "intra_op_threads": str(threads),
        }
        self.engine = dataclasses.replace(engine, flags=flags)
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def __enter__(self) -> Self:
        session = Session(
            self._api,
            Path(self.engine.path),
            streams=self._streams,
            cuda_graph=self._graphs,
            dla_core=self._dla_core,
            anew=engine_file.rebuild_command(self._built),
        )
        self._session = session.__enter__()
        self.inputs, self.outputs = session.inputs, session.outputs
        return self

    def _live(self) -> Session:
        if self._session is None:
            raise closed("tensorrt")
        return self._session

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run once; see :meth:`mint_deploy.runtimes.Runner.infer`."""
        return self._live().infer(inputs)

    def burst(self, queries: Sequence[Arrays]) -> list[dict[str, np.ndarray[Any, np.dtype[Any]]]]:
        """Run several queries at once, one a stream; in rounds where there are more than streams.

        Raises:
            DataError: an input that is missing, unknown or of the wrong shape or type.
        """
        return self._live().burst(queries)

    def profile(self, inputs: Arrays, calls: int = 30) -> list[tuple[str, str, float]]:
        """Return name, kind and median nanoseconds of each layer, from a session of its own.

        A layer has the name of the first ONNX node that it stands for, where the engine says that.
        """
        self._live()
        with Session(self._api, Path(self.engine.path), cuda_graph=False, dla_core=self._dla_core,
                     anew=engine_file.rebuild_command(self._built)) as apart:  # fmt: skip
            rows = apart.profile(inputs, calls)
        try:
            known = {layer.name: layer for layer in layers(self.engine)}
        except DataError:
            known = {}  # the file beside the plan is gone: the names are TensorRT's own
        found = [(known.get(name, Layer(name=name)), ns) for name, ns in rows]
        return [((layer.origins or (layer.name,))[0], layer.kind, ns) for layer, ns in found]

    def compute_ns(self, batch: int | None = None, *, count: int = 200) -> list[int]:
        """Return the nanoseconds that the GPU took for each of ``count`` queries, copies left out.

        ``batch``: samples a query; default: the largest that the engine takes.
        """
        live = self._live()
        shapes = {n: (batch or high[0], *high[1:]) for n, (_, high) in live.limits.items()}
        return live.compute_ns(shapes, count=count)

    @property
    def device_bytes(self) -> int:
        """Memory of the GPU that one query's intermediate tensors take."""
        return self._live().device_bytes

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._session is not None:
            self._session.__exit__(kind, error, trace)
            self._session = None


def layers(engine: Engine) -> tuple[Layer, ...]:
    """Return what became of each layer, from the file that the build kept beside the plan.

    Raises:
        DataError: the file is missing or damaged.
    """
    return read_layers(Path(engine.path).with_name(_trt_build.LAYERS))
