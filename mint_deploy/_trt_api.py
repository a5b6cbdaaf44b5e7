"""TensorRT's Python API, its differences between the releases in one place: build, and load.

    8.5, 8.6   networks with EXPLICIT_BATCH, weakly typed, flags FP16 and INT8
    10         the same without EXPLICIT_BATCH, or strongly typed
    11         strongly typed alone: the flags are gone

The names that each release has were read from its own bindings; the double of the tests has those
and no others. ``tensorrt`` is imported by :func:`library` alone. Standard library only: this file
travels to the board.
"""

from __future__ import annotations

import importlib
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mint_deploy._trt_build import Job, Progress
from mint_deploy._trt_dialects import Dialect, dialect_of
from mint_deploy._trt_exports import Layer, layers
from mint_deploy._trt_log import explain, wrong_engine
from mint_deploy.errors import ConfigError, ModelError, RuntimeMissing
from mint_deploy.recipe import BuildSettings

if TYPE_CHECKING:
    from typing_extensions import Self  # typing has it from Python 3.11 on

__all__ = ["MEND", "Api", "library"]

MEND = "python3 -m pip install tensorrt (on a Jetson: sudo apt-get install python3-libnvinfer)"
_MIB = 1 << 20


def library() -> Any:
    """Import ``tensorrt``.

    Raises:
        RuntimeMissing: it is not installed, or a library of its own is missing.
    """
    try:
        return importlib.import_module("tensorrt")
    except (ImportError, OSError) as error:
        raise RuntimeMissing("tensorrt", str(error), MEND) from error


class Api:
    """One TensorRT with its logger, whose lines are kept as ``trtexec`` would print them."""

    by = "python"

    def __init__(self, progress: Progress | None = None) -> None:
        self.trt = library()
        self.version = ".".join(str(self.trt.__version__).split(".")[:3])
        self._progress = progress
        self.lines: list[str] = []
        self.logger = _logger(self.trt, self.lines)

    @property
    def log(self) -> str:
        """All that TensorRT said so far."""
        return "\n".join(self.lines)

    def _does_not_start(self, error: TypeError) -> RuntimeMissing:
        """What pybind11 makes of a null pointer: CUDA does not start."""
        said = next((line for line in reversed(self.lines) if line[1] in "FEW"), str(error))
        return RuntimeMissing(
            "tensorrt", f"it does not start ({said})", "see what nvidia-smi says of GPU and driver"
        )

    # ------------------------------------------------------------ build

    def build(self, job: Job) -> tuple[str, list[str]]:
        """Build a plan; see :class:`mint_deploy._trt_build.Builder`."""
        self.lines.clear()
        trt, settings, dialect = self.trt, job.settings, dialect_of(self.version)
        try:
            builder = trt.Builder(self.logger)
        except TypeError as error:
            raise self._does_not_start(error) from error
        network = builder.create_network(self._network_flags(dialect, settings.typing))
        parser = trt.OnnxParser(network, self.logger)
        if not parser.parse_from_file(str(job.onnx)):
            self.lines += [_parser_line(parser.get_error(i)) for i in range(parser.num_errors)]
            raise explain(self.log, None, job.about)
        config, given = self._config(builder, network, job, dialect)
        with _Interrupt() as interrupt:
            _watch(trt, config, self._progress, interrupt)
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise explain(self.log, None, job.about)
        with job.plan.open("wb") as stream:
            stream.write(plan)
        cache = config.get_timing_cache()
        if cache is not None:
            job.cache.write_bytes(bytes(cache.serialize()))
        engine = self.load(job.plan, dla_core=settings.dla_core)
        job.layers.write_text(self.inspect(engine), encoding="utf-8")
        return self.log, given

    def _network_flags(self, dialect: Dialect, typing: str) -> int:
        if typing not in dialect.network:
            raise ConfigError(f"TensorRT {self.version} has no {typing} typing")
        flag = dialect.network[typing]
        return 1 << int(getattr(self.trt.NetworkDefinitionCreationFlag, flag)) if flag else 0

    def _config(
        self, builder: Any, network: Any, job: Job, dialect: Dialect
    ) -> tuple[Any, list[str]]:
        """Make the configuration; return it with the list of what was set."""
        trt, settings = self.trt, job.settings
        config = builder.create_builder_config()
        given = [f"network={dialect.network[settings.typing] or 'default'}", "clear:TF32"]
        config.clear_flag(trt.BuilderFlag.TF32)
        if settings.typing == "weak":
            for flag in dialect.weak[settings.precision]:
                name = flag.removeprefix("--").upper()
                config.set_flag(getattr(trt.BuilderFlag, name))
                given.append(f"set:{name}")
        config.avg_timing_iterations = settings.averaging
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        given += [f"avg_timing_iterations={settings.averaging}", "profiling_verbosity=DETAILED"]
        if dialect.level:
            config.builder_optimization_level = settings.level
            given.append(f"builder_optimization_level={settings.level}")
        if settings.workspace_mib is not None:
            config.set_memory_pool_limit(
                trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * _MIB
            )
            given.append(f"WORKSPACE={settings.workspace_mib}MiB")
        if settings.profile:
            given += self._add_profile(builder, config, settings)
        if settings.dla_core is not None:
            given += self._use_dla(builder, config, network, settings.dla_core)
        kept = job.cache.read_bytes() if job.cache.is_file() else b""
        if not config.set_timing_cache(config.create_timing_cache(kept), False):
            config.set_timing_cache(config.create_timing_cache(b""), False)
        return config, given

    def _add_profile(self, builder: Any, config: Any, settings: BuildSettings) -> list[str]:
        profile = builder.create_optimization_profile()
        given = []
        for name, (low, usual, high) in settings.profile.items():
            profile.set_shape(name, low, usual, high)
            given.append(
                f"profile:{name}={'/'.join('x'.join(map(str, s)) for s in (low, usual, high))}"
            )
        if config.add_optimization_profile(profile) < 0:
            raise ModelError(f"TensorRT {self.version} refuses the shapes {', '.join(given)}")
        return given

    def _use_dla(self, builder: Any, config: Any, network: Any, core: int) -> list[str]:
        """Offer every layer to the accelerator; what it cannot run falls back, and is listed."""
        if core >= builder.num_DLA_cores:
            raise ConfigError(
                f"core {core} of the Deep Learning Accelerator was asked for, this machine has "
                f"{builder.num_DLA_cores}; build for the GPU"
            )
        config.default_device_type = self.trt.DeviceType.DLA
        config.DLA_core = core
        config.set_flag(self.trt.BuilderFlag.GPU_FALLBACK)
        for i in range(network.num_layers):
            layer = network.get_layer(i)
            if not config.can_run_on_DLA(layer):
                self.lines.append(
                    f"[W] [TRT] Layer '{layer.name}' ({layer.type.name}): Unsupported on DLA. "
                    "Switching this layer's device type to GPU."
                )
        return [f"DLA_core={core}", "default_device_type=DLA", "set:GPU_FALLBACK"]

    def measure(self, job: Job) -> list[int]:
        """Return the nanoseconds of each query on the GPU, without transfers, as a CUDA graph."""
        from mint_deploy import _trt_session

        with _trt_session.Session(self, job.plan, dla_core=job.settings.dla_core) as live:
            usual = {name: opt for name, (_, opt, _) in job.settings.profile.items()}
            found: list[int] = live.compute_ns(usual)
            return found

    # ------------------------------------------------------------ load

    def load(self, plan: Path, *, dla_core: int | None = None, anew: str = "build it anew") -> Any:
        """Return the engine of a plan.

        Raises:
            EngineMismatch: of another version or GPU, as TensorRT says it.
        """
        before = len(self.lines)
        try:
            runtime = self.trt.Runtime(self.logger)
        except TypeError as error:
            raise self._does_not_start(error) from error
        if dla_core is not None:
            runtime.DLA_core = dla_core
        engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            raise wrong_engine("\n".join(self.lines[before:]), advice=anew)
        return engine

    def inspect(self, engine: Any) -> str:
        """The layers of an engine, as ``--exportLayerInfo`` writes them."""
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(self.trt.LayerInformationFormat.JSON))

    def layers(self, engine: Any) -> tuple[Layer, ...]:
        """The layers of an engine, read."""
        return layers(self.inspect(engine))


def _logger(trt: Any, lines: list[str]) -> Any:
    """A logger that keeps everything but the chatter, in the form of ``trtexec``'s console."""
    letters = {"INTERNAL_ERROR": "F", "ERROR": "E", "WARNING": "W", "INFO": "I"}

    class Kept(trt.ILogger):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            letter = letters.get(severity.name)
            if letter is not None:
                lines.extend(f"[{letter}] [TRT] {message}".splitlines())

    return Kept()


def _parser_line(error: Any) -> str:
    """One refusal of the parser; 10 and later name the node, older ones only count it."""
    named = ""
    if hasattr(error, "node_name") and error.node_name():
        named = f" with name: {error.node_name()} and operator: {error.node_operator()}"
    code = str(error.code()).rpartition(".")[2]
    return f"[E] In node {error.node()}{named} ({error.func()}): {code}: {error.desc()}"


class _Interrupt:
    """Ctrl-C while TensorRT runs: noted, and raised when it is back.

    It calls the logger and the monitor from C++, through which no exception may pass. From 10 on the
    monitor ends the build at its next step; before, a second Ctrl-C ends the process.
    """

    def __init__(self) -> None:
        self.seen = False
        self._before: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, *_: object) -> None:
        self.seen = True
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if self.seen:
            raise KeyboardInterrupt


def _watch(trt: Any, config: Any, progress: Progress | None, interrupt: _Interrupt) -> None:
    """Let the builder report its steps and be ended, from 10 on."""
    if not hasattr(trt, "IProgressMonitor"):
        return

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # ships no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None:
                progress(step, self._steps.get(phase_name, 0) or 1, phase_name)
            return not interrupt.seen

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    config.progress_monitor = Monitor()
