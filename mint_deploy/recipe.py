"""How a board turns an ONNX file into what it runs: the exact arguments, each of them explicit.

TensorRT's program ``trtexec`` changed its flags and its defaults between releases: what measured
end to end in 10 measures the GPU alone in 11, and ``--fp16`` is gone. Here is what each release
calls its flags, chosen so that a figure means the same under all of them: GPU time without
transfers, CUDA graph and spin-wait on. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.errors import ConfigError
from mint_deploy.target import Target

__all__ = ["DIALECTS", "Dialect", "build_arguments", "dialect_of", "measure_arguments", "recipe"]

#: calls that a p99 needs (99 % confidence that at most one in a hundred is slower)
P99_CALLS = 662


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """What the releases from ``since`` on call their flags.

    ``precisions``: precision -> the flags of a build that ask for it; a precision that is missing
    has to stand in the ONNX file.
    """

    name: str
    since: tuple[int, int]
    build_only: str
    optimization: tuple[str, ...]
    precisions: Mapping[str, tuple[str, ...]]
    streams: str
    gpu_time_only: tuple[str, ...]


_WEAK = {"fp32": ("--noTF32",), "fp16": ("--noTF32", "--fp16")}
_OPT_IN = ("--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun")

#: oldest first; from the help texts of trtexec 8.5, 8.6, 10.3 and the migration guides to 10 and 11
DIALECTS = (
    Dialect(
        name="8.5",
        since=(8, 5),
        build_only="--buildOnly",
        optimization=(),
        precisions=_WEAK,
        streams="--streams=1",
        gpu_time_only=_OPT_IN,
    ),
    Dialect(
        name="8.6",
        since=(8, 6),
        build_only="--skipInference",
        optimization=("--builderOptimizationLevel=3",),
        precisions=_WEAK,
        streams="--infStreams=1",
        gpu_time_only=_OPT_IN,
    ),
    Dialect(
        name="10",
        since=(10, 0),
        build_only="--skipInference",
        optimization=("--builderOptimizationLevel=3",),
        precisions=_WEAK,
        streams="--infStreams=1",
        gpu_time_only=_OPT_IN,
    ),
    Dialect(
        name="11",
        since=(11, 0),
        build_only="--skipInference",
        optimization=("--builderOptimizationLevel=3",),
        precisions={"fp32": ("--noTF32",)},
        streams="--infStreams=1",
        gpu_time_only=(),  # the defaults of 11; the flags of 10 are accepted and do nothing
    ),
)
_NEWEST = 11


def dialect_of(version: str) -> Dialect:
    """Return the dialect of a TensorRT version such as ``10.3`` or ``8.5.2``.

    Raises:
        ConfigError: not a version, or one that no dialect here is known for.
    """
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        raise ConfigError(f"'{version}' is no TensorRT version; expected one such as 10.3")
    number = (int(found[1]), int(found[2]))
    known = [d for d in DIALECTS if d.since <= number]
    if not known or number[0] > _NEWEST or number[0] == 9:
        raise ConfigError(
            f"TensorRT {version} is not known here; known are 8.5, 8.6, 10 and {_NEWEST}; build "
            "with trtexec by hand, or use one of these"
        )
    return known[-1]


def build_arguments(
    version: str,
    precision: str,
    onnx: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    timing_cache: str | os.PathLike[str],
    *,
    workspace_mib: int | None = None,
    layers: str | os.PathLike[str] | None = None,
    shapes: Sequence[TensorSpec] = (),
) -> list[str]:
    """Return the arguments with which ``trtexec`` builds an engine and does nothing else.

    Args:
        version: of TensorRT.
        precision: ``fp32`` or ``fp16``.
        onnx: the file to read.
        engine: the file to write.
        timing_cache: read and written, so that the next build chooses alike.
        workspace_mib: at most so much scratch memory; None: TensorRT's own limit.
        layers: write what became of each layer to this JSON file.
        shapes: the shapes of inputs whose batch is open, with the batch filled in.

    Raises:
        ConfigError: a precision that this version does not take as a flag, or int8.
    """
    dialect = dialect_of(version)
    if precision not in ("fp32", "fp16"):
        raise ConfigError(
            f"precision {precision} needs an ONNX file with quantisation nodes, which this bundle "
            "has not; build with --precision fp16 or fp32"
        )
    if precision not in dialect.precisions:
        raise ConfigError(
            f"TensorRT {version} takes the precision from the ONNX file, and this one is fp32; "
            "build with --precision fp32"
        )
    spec = ",".join(f"{s.name}:{'x'.join(map(str, s.shape))}" for s in shapes)
    return [
        f"--onnx={os.fspath(onnx)}",
        f"--saveEngine={os.fspath(engine)}",
        f"--timingCacheFile={os.fspath(timing_cache)}",
        dialect.build_only,
        *dialect.precisions[precision],
        *dialect.optimization,
        "--avgTiming=8",
        "--sparsity=disable",
        "--profilingVerbosity=detailed",
        *([f"--memPoolSize=workspace:{workspace_mib}"] if workspace_mib else []),
        *([f"--exportLayerInfo={os.fspath(layers)}"] if layers else []),
        *([f"--minShapes={spec}", f"--optShapes={spec}", f"--maxShapes={spec}"] if spec else []),
    ]


def measure_arguments(
    version: str,
    engine: str | os.PathLike[str],
    times: str | os.PathLike[str],
    *,
    shapes: Sequence[TensorSpec] = (),
) -> list[str]:
    """Return the arguments with which ``trtexec`` measures an engine and writes every time."""
    dialect = dialect_of(version)
    spec = ",".join(f"{s.name}:{'x'.join(map(str, s.shape))}" for s in shapes)
    return [
        f"--loadEngine={os.fspath(engine)}",
        f"--exportTimes={os.fspath(times)}",
        "--warmUp=500",
        "--duration=10",
        f"--iterations={P99_CALLS}",
        "--avgRuns=10",
        "--percentile=50,90,99",
        dialect.streams,
        *dialect.gpu_time_only,
        *([f"--shapes={spec}"] if spec else []),
    ]


def recipe(target: Target, networks: Mapping[str, ExportedModel]) -> dict[str, Any]:
    """Return what build.json holds: how each network is built and measured on the target.

    ``networks`` are ``{"dense": ..., "slim": ...}``. Where no recipe is known, ``reason`` says why.
    """
    body: dict[str, Any] = {"runtime": target.runtime, "precision": target.precision}
    if target.runtime == "onnxruntime":
        return body | {
            "session": {
                "intra_op_threads": target.threads,
                "inter_op_threads": 1,
                "execution_mode": "sequential",
                "graph_optimization": "all",
                "spinning": "off",
            }
        }
    if target.runtime != "tensorrt":
        return body | {"reason": f"runtime '{target.runtime}' builds by a plug-in of its own"}
    if target.tensorrt is None:
        return body | {"reason": f"target '{target.name}' does not say which TensorRT it has"}
    try:
        steps = {name: _steps(target, target.tensorrt, model) for name, model in networks.items()}
    except ConfigError as error:
        return body | {"tensorrt": target.tensorrt, "reason": str(error)}
    name = dialect_of(target.tensorrt).name
    return body | {"tensorrt": target.tensorrt, "dialect": name, "commands": steps}


def _steps(target: Target, version: str, model: ExportedModel) -> dict[str, list[str]]:
    stem = os.path.basename(model.path).removesuffix(".onnx")  # noqa: PTH119  a name, not a file here
    shapes = [
        TensorSpec(name=s.name, shape=(target.batch, *s.shape[1:]), dtype=s.dtype)
        for s in model.inputs
        if s.shape and s.shape[0] < 0
    ]
    return {
        "build": [
            "trtexec",
            *build_arguments(
                version,
                target.precision,
                f"{stem}.onnx",
                f"{stem}.plan",
                "timing.cache",
                workspace_mib=_workspace_mib(target.memory_bytes),
                layers=f"{stem}.layers.json",
                shapes=shapes,
            ),
        ],
        "measure": [
            "trtexec",
            *measure_arguments(version, f"{stem}.plan", f"{stem}.times.json", shapes=shapes),
        ],
    }


def _workspace_mib(memory_bytes: int | None) -> int | None:
    """A quarter of the board's memory, 4 GiB at most: the CPU shares it and can run out."""
    return None if memory_bytes is None else max(64, min(4096, memory_bytes // 4 >> 20))
