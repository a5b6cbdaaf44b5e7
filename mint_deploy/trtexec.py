"""TensorRT's own program ``trtexec``, driven with an argument list: build, measure, profile.

It is what a board has where the Python package ``tensorrt`` is missing. What a release calls its
flags stands in :mod:`mint_deploy._trt_dialects` and nowhere else; what it found out is read from
its JSON exports, never from the console. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from mint_deploy import _trt_build, engine_file
from mint_deploy._trt_build import Job, Progress
from mint_deploy._trt_exports import Times, layer_times, read_layers, read_profile, read_times
from mint_deploy._trt_here import facts
from mint_deploy._trt_log import explain, wrong_engine
from mint_deploy.artifacts import Engine, LayerTime, Machine
from mint_deploy.errors import MintDeployError, RuntimeMissing
from mint_deploy.recipe import Shape, build_arguments, measure_arguments
from mint_deploy.runtimes import option

__all__ = ["MEND", "Trtexec", "build", "find", "measure", "parse_version", "profile"]

#: where JetPack puts it, off PATH
_JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
MEND = "sudo apt-get install libnvinfer-bin (on a Jetson: nvidia-jetpack)"
#: how long each of several builds is measured, to choose one
_CHOOSE_S = 2


def find(path: str | None = None) -> str | None:
    """Return the program's path: on PATH, else where JetPack puts it, else None."""
    found = shutil.which("trtexec", path=path)
    if found is None and path is None and os.access(_JETPACK, os.X_OK):
        found = str(_JETPACK)
    return found


def parse_version(text: str) -> dict[str, str]:
    """Read the banner of ``trtexec``: ``[TensorRT v8502]`` is 8.5.2, ``v100300`` is 10.3.0."""
    found = re.search(r"\[TensorRT v(\d{4,6})\]", text)
    if not found:
        return {}
    number, wide = int(found[1]), len(found[1]) > 4
    major, rest = divmod(number, 10_000 if wide else 1_000)
    return {"version": ".".join(map(str, (major, *divmod(rest, 100))))}


class Trtexec:
    """The program of this machine, ready to run; ``environment`` replaces the process's own.

    Raises:
        RuntimeMissing: it is not here, with the command that installs it.
        MintDeployError: it does not say which TensorRT it belongs to.
    """

    by = "trtexec"

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = {**os.environ} if environment is None else dict(environment)
        program = find(self._environment.get("PATH")) or find()
        if program is None:
            raise RuntimeMissing("tensorrt", "trtexec is neither on PATH nor part of JetPack", MEND)
        self._program = program
        version = parse_version(self._run(["--help"])[1]).get("version")
        if version is None:
            raise MintDeployError(
                f"{program} does not say which TensorRT it belongs to; expected a line with "
                f"'[TensorRT v...]'; install it anew: {MEND}"
            )
        self.version = version

    def _run(self, arguments: list[str]) -> tuple[int, str]:
        """Run it and return its exit code with all it printed."""
        done = subprocess.run(
            [self._program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=self._environment,
            check=False,
        )
        return done.returncode, done.stdout

    def build(self, job: Job) -> tuple[str, list[str]]:
        """Build a plan; see :class:`mint_deploy._trt_build.Builder`."""
        given = build_arguments(
            self.version, job.settings, job.onnx, job.plan, job.cache, layers=job.layers
        )
        code, log = self._run(given)
        if code != 0 or not job.plan.is_file() or job.plan.stat().st_size == 0:
            raise explain(log, code, job.about)
        return log, given

    def measure(self, job: Job) -> list[int]:
        """Return the nanoseconds of each query on the GPU."""
        usual = {name: opt for name, (_, opt, _) in job.settings.profile.items()}
        times = self.times(job.plan, usual, job.settings.dla_core, seconds=_CHOOSE_S)[0]
        return list(times.compute_ns)

    def times(
        self,
        plan: Path,
        shapes: Mapping[str, Shape],
        dla_core: int | None,
        *,
        seconds: int,
        transfers: bool = False,
        streams: int = 1,
        anew: str = "build it anew",
    ) -> tuple[Times, tuple[LayerTime, ...]]:
        """Run a plan and return its times and those of its layers; see :func:`measure`."""
        with tempfile.TemporaryDirectory(prefix="mint-trtexec-") as folder:
            times, layers = Path(folder) / "times.json", Path(folder) / "profile.json"
            given = measure_arguments(
                self.version, plan, times, profile=layers, shapes=shapes, transfers=transfers,
                streams=streams, dla_core=dla_core, seconds=seconds,
            )  # fmt: skip
            code, log = self._run(given)
            if code != 0:
                raise wrong_engine(log, advice=anew)
            return read_times(times), read_profile(layers)


def build(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    precision: str | None = None,
    *,
    target: object = None,
    builds: int | None = None,
    environment: Mapping[str, str] | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build ``engine.plan`` from an ONNX file with this machine's ``trtexec``, and ``engine.json``.

    The plan appears under its name only when it is complete; the timing cache and the layers are
    kept beside it.

    Args:
        model: an ONNX file; a batch that it leaves open gets an optimisation profile.
        out: the folder.
        precision: ``fp32``, ``fp16`` or ``int8``; default: the target's, else fp32.
        target: a Target or its JSON object; see :func:`mint_deploy.recipe.build_settings`.
        builds: build so often and keep the fastest; the spread stands in ``engine.flags``.
        environment: of the program, instead of this process's own.
        machine: who builds; probed where absent.
        progress: called before and after each build.

    Raises:
        RuntimeMissing: there is no ``trtexec`` here, with the command that installs it.
        ConfigError: a precision or an accelerator that this TensorRT does not take.
        ModelError: no ONNX file, an operator that its parser lacks, shapes it does not take.
        MintDeployError: the build failed: memory with numbers, or its last lines.
    """
    wanted = target_with(target, precision)
    return _trt_build.make(
        Trtexec(environment), model, out, wanted, builds=builds, machine=machine, progress=progress
    )


def target_with(target: object, precision: str | None) -> object:
    """Return a target whose precision is the one asked for, as a mapping where it must change."""
    if precision is None or option(target, "precision", None) == precision:
        return target
    known = target if isinstance(target, Mapping) else {
        name: getattr(target, name) for name in getattr(target, "__dataclass_fields__", ())
    }  # fmt: skip
    return {**known, "precision": precision}


def measure(
    engine: Engine,
    *,
    batch: int | None = None,
    transfers: bool = False,
    streams: int = 1,
    seconds: int = 10,
    environment: Mapping[str, str] | None = None,
    machine: Machine | None = None,
) -> tuple[Times, tuple[LayerTime, ...]]:
    """Measure a built engine with ``trtexec``: every query's times, and the time of each layer.

    The figure means the same under every TensorRT: see :mod:`mint_deploy.recipe`. The layers come
    from a run of their own, with the profiler on.

    Args:
        engine: from :func:`mint_deploy.engine_file.read`.
        batch: samples a query; default: what the engine was tuned for.
        transfers: from host to host instead of on the GPU alone.
        streams: queries under way at once.
        seconds: measure at least so long.
        environment: of the program, instead of this process's own.
        machine: who measures; probed where absent.

    Raises:
        RuntimeMissing: there is no ``trtexec`` here.
        EngineMismatch: the engine was altered or belongs elsewhere, with the command that rebuilds.
        DataError: an export that is missing or damaged.
    """
    program = Trtexec(environment)
    engine_file.require(engine, facts(program.version, machine=machine))
    settings = engine.flags.get("settings") or {}
    shapes = {
        name: (batch or opt[0], *opt[1:]) for name, (_, opt, _) in settings["profile"].items()
    }
    times, rows = program.times(
        Path(engine.path), shapes, settings.get("dla_core"), seconds=seconds, transfers=transfers,
        streams=streams, anew=engine_file.rebuild_command(engine),
    )  # fmt: skip
    return times, profile(engine, rows)


def profile(
    engine: Engine, rows: tuple[LayerTime, ...], ours: Mapping[str, str] | None = None
) -> tuple[LayerTime, ...]:
    """Put kinds, origins and widths to the times of an engine's layers, where its file is beside it.

    ``ours`` maps an ONNX node to the name of its layer in our graph.
    """
    known = Path(engine.path).with_name(_trt_build.LAYERS)
    return layer_times(rows, read_layers(known), ours) if known.is_file() else rows
