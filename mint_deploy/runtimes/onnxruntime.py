"""ONNX Runtime: runs an ONNX file, with every setting that moves a clock figure made explicit.

One intra-op thread unless asked otherwise, one inter-op thread, sequential execution, all graph
optimisations, one named provider, and no spinning: a worker thread that spins after its run takes
the core from the other model of an interleaved comparison. What was set is recorded in the engine's
flags; flags that an engine brings along hold unless a setting says otherwise. Nodes that run on
another provider than the one asked for are counted and named there too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from mint_deploy import _ort_cache, _ort_providers, _ort_session, onnx_wire
from mint_deploy._ort_session import GRAPH_LEVELS
from mint_deploy._unsupported import first_line
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import (
    ConfigError,
    DataError,
    ModelError,
    RuntimeMissing,
    UnknownName,
)
from mint_deploy.runtimes import DYNAMIC, Arrays, closed, no_samples, option, same_file, save_engine

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["GRAPH_LEVELS", "MEND", "OnnxRuntimeRunner", "build", "missing", "runner"]

ON_FALLBACK = ("report", "refuse")
_DTYPES = {"float": "float32", "double": "float64"}
MEND = _ort_providers.mend(_ort_providers.CPU)


def missing() -> str | None:
    """Say why ONNX Runtime cannot be used here, or None."""
    return _ort_providers.why_not(_ort_providers.CPU)


def build(
    model: str | os.PathLike[str],
    target: object = None,
    out: str | os.PathLike[str] | None = None,
    *,
    runtime: str = "onnxruntime",
    **settings: Any,
) -> Engine:
    """Check that ``model`` is an ONNX file that ONNX Runtime loads, and return it as an engine.

    The engine is the ONNX file itself; only ``engine.json`` is written into ``out``.

    Args:
        model: the file; weights in other files must lie in its folder.
        target: its ``precision`` is recorded.
        out: a folder for ``engine.json``.
        runtime: the plug-in's name that the engine carries.
        settings: of :func:`runner`.

    Raises:
        RuntimeMissing: onnxruntime is not installed.
        ModelError: no such file, one that wants to read outside of its folder, or one that ONNX
            Runtime refuses; its reason is quoted, and an operator that it lacks named with its node.
    """
    path = Path(model)
    if not path.is_file():
        raise ModelError(f"no such file: {path}; expected an ONNX model")
    engine = Engine(
        path=str(path),
        runtime=runtime,
        precision=str(option(target, "precision", "fp32")),
        sha256=onnx_wire.digest(path),
        builder={"onnxruntime": str(_ort_providers.library().__version__)},
    )
    with runner(engine, **settings) as live:
        return save_engine(live.engine, out)


def runner(
    engine: Engine,
    *,
    threads: int = 1,
    provider: str | None = None,
    graph: str | None = None,
    spin: bool | None = None,
    arena: bool | None = None,
    pattern: bool | None = None,
    on_fallback: str | None = None,
    provider_options: Mapping[str, object] | None = None,
    cache: bool | str | os.PathLike[str] | None = None,
) -> OnnxRuntimeRunner:
    """Return a runner of ``engine``; the session is made when it is entered.

    A setting that is None is the engine's own flag, and where that has none the first value named.

    Args:
        engine: as :func:`build` made it.
        threads: intra-op threads.
        provider: ``cpu``, ``cuda``, ``tensorrt``, or an execution provider's full name.
        graph: level of graph optimisation: ``all``, ``extended``, ``basic`` or ``none``.
        spin: whether waiting threads spin (no).
        arena: whether the CPU's memory comes from an arena (yes).
        pattern: whether memory is planned once for equal shapes (yes).
        on_fallback: ``report`` nodes that the provider cannot run, or ``refuse`` the model.
        provider_options: the provider's own options; ours are in :mod:`mint_deploy._ort_providers`.
        cache: keep the optimised model (no), and where: a folder, or True for the user's own.

    Raises:
        ConfigError: ``threads`` below 1.
        UnknownName: no such provider, level of graph optimisation, or way with a fallback.
        EngineMismatch: the file is no longer the one that was built.
        RuntimeMissing: onnxruntime or the provider is not installed.
    """
    if threads < 1:
        raise ConfigError(f"threads is {threads}, expected 1 or more")
    had = {str(k): str(v) for k, v in engine.flags.items()}
    flags: dict[str, str] = {
        "provider": _ort_providers.named(provider or had.get("provider", "cpu")),
        "graph_optimization": _one_of(
            "level of graph optimisation",
            graph or had.get("graph_optimization", "all"),
            GRAPH_LEVELS,
        ),
        "execution_mode": "sequential",
        "intra_op_threads": str(threads),
        "inter_op_threads": "1",
        "spinning": _switch(spin, had.get("spinning", "off")),
        "memory_arena": _switch(arena, had.get("memory_arena", "on")),
        "memory_pattern": _switch(pattern, had.get("memory_pattern", "on")),
    }
    asked = flags["provider"]
    _ort_providers.library()  # loaded here, so that opening a session costs the session alone
    if (why := _ort_providers.why_not(asked)) is not None:
        raise RuntimeMissing(engine.runtime, why, _ort_providers.mend(asked))
    digest = same_file(engine)
    kept = had.get("optimised_cache", "on" if asked == _ort_providers.TENSORRT else "off")
    flags["optimised_cache"] = _switch(None if cache is None else cache is not False, kept)
    folder = None
    if flags["optimised_cache"] == "on":
        own = isinstance(cache, (str, os.PathLike))
        folder = Path(cache) if own else _ort_cache.default_folder()  # type: ignore[arg-type]  # own says that it is a path
    if asked != _ort_providers.CPU:
        way = on_fallback or had.get("on_fallback", "report")
        flags["on_fallback"] = _one_of("way with a fallback", way, ON_FALLBACK)
    mark = _ort_session.OPTION
    before = {k.removeprefix(mark): v for k, v in had.items() if k.startswith(mark)}
    wishes = {**before, **{str(k): _text(v) for k, v in (provider_options or {}).items()}}
    for key, value in sorted(_ort_providers.options(asked, engine.precision, wishes).items()):
        flags[f"{mark}{key}"] = value
    return OnnxRuntimeRunner(dataclasses.replace(engine, flags=flags), threads, digest, folder)


def _one_of(kind: str, name: str, known: Mapping[str, str] | tuple[str, ...]) -> str:
    if name not in known:
        raise UnknownName(kind, name, known)
    return name


def _switch(wish: bool | None, else_: str) -> str:
    return else_ if wish is None else ("on" if wish else "off")


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


class OnnxRuntimeRunner:
    """One session; its settings are those in ``engine.flags``.

    Once entered, ``placement`` maps each provider to its nodes (None: this ONNX Runtime does not
    tell; all of them on the CPU provider are not listed), and ``from_cache`` says whether an
    optimised model was loaded.
    """

    def __init__(self, engine: Engine, threads: int, digest: str, folder: Path | None) -> None:
        self.engine, self.threads = engine, threads
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()
        self.placement: dict[str, tuple[str, ...]] | None = None
        self.from_cache = False
        self._asked, self._digest, self._folder = engine, digest, folder
        self._session: Any = None
        self._names: list[str] = []

    def __enter__(self) -> Self:
        session, self.from_cache = _ort_session.open_session(
            self._with_engine_cache(), self._digest, self._folder
        )
        provider = self._asked.flags["provider"]
        if provider != _ort_providers.CPU:
            self.placement = _ort_session.placement(session)
            self.engine = dataclasses.replace(
                self._asked, flags={**self._asked.flags, "fallback": self._fallback(provider)}
            )
        self._session = session
        self.inputs = tuple(_spec(node) for node in session.get_inputs())
        self.outputs = tuple(_spec(node) for node in session.get_outputs())
        self._names = [spec.name for spec in self.outputs]
        return self

    def _fallback(self, provider: str) -> str:
        """Say what runs elsewhere; a model of which nothing runs on its provider is refused."""
        if self.placement is None:
            return "not told by this onnxruntime; 1.24 and newer do, and so does profile()"
        if self.placement and provider not in self.placement:
            raise ModelError(
                f"no node of {self.engine.path} runs on {provider} "
                f"({_ort_session.fallback(provider, self.placement)}); choose another provider"
            )
        return _ort_session.fallback(provider, self.placement)

    def _with_engine_cache(self) -> Engine:
        """Tell TensorRT where to keep what it builds; a place on this machine is no flag to record."""
        engine = self._asked
        if self._folder is None or engine.flags["provider"] != _ort_providers.TENSORRT:
            return engine
        version = str(_ort_providers.library().__version__)
        key = _ort_cache.entry_key(self._digest, version, engine.flags, _ort_cache.processor())
        place = self._folder / f"tensorrt-{key}"
        place.mkdir(parents=True, exist_ok=True)
        places = {"trt_engine_cache_path": place, "trt_timing_cache_path": self._folder}
        extra = {f"{_ort_session.OPTION}{k}": str(v) for k, v in places.items()}
        extra[f"{_ort_session.OPTION}trt_engine_cache_enable"] = "1"
        return dataclasses.replace(engine, flags={**engine.flags, **extra})

    def infer(self, inputs: Arrays) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """Run the session once; see :meth:`mint_deploy.runtimes.Runner.infer`."""
        if self._session is None:
            raise closed(self.engine.runtime)
        for array in inputs.values():
            if not array.size:
                raise no_samples(inputs)
        try:
            results = self._session.run(self._names, inputs)
        except Exception as error:
            expected = ", ".join(f"{s.name} {s.dtype} {list(s.shape)}" for s in self.inputs)
            given = ", ".join(f"{n} {v.dtype} {list(v.shape)}" for n, v in inputs.items())
            raise DataError(
                f"{Path(self.engine.path).name} takes {expected}; was given {given or 'nothing'} "
                f"({first_line(error)})"
            ) from error
        return dict(zip(self._names, results, strict=True))

    def profile(self, inputs: Arrays, calls: int = 30) -> list[tuple[str, str, float]]:
        """Return name, operator and median nanoseconds of each node, from a session of its own.

        A fused node has the runtime's name. On a GPU it is the start of a kernel that is timed.
        """
        if self._session is None:
            raise closed(self.engine.runtime)
        self.infer(inputs)
        rows = _ort_session.profile(self._with_engine_cache(), inputs, calls)
        if self._asked.flags["provider"] != _ort_providers.CPU and self.placement is None:
            found: dict[str, tuple[str, ...]] = {}
            for name, op, where, _ in rows:
                found[where] = (*found.get(where, ()), f"{name} ({op})")
            self.placement = found
        return [(name, op, ns) for name, op, _, ns in rows]

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
