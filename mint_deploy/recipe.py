"""How a board turns an ONNX file into what it runs: every setting explicit, under every TensorRT.

    build_settings      a target and what the ONNX file holds -> what to build, or why it cannot be
    build_arguments     those settings as the flags of a release (:mod:`mint_deploy._trt_dialects`)
    measure_arguments   a figure that means the same under every release: the time of the GPU
                        without transfers, launched as a CUDA graph, the host spinning, the profiler
                        in a run of its own
    recipe              all of it, as the build.json of a bundle

Standard library only: this file travels to the board.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from mint_deploy._trt_dialects import DIALECTS, MEANING, Dialect, dialect_of, has_dla
from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.errors import ConfigError, ModelError
from mint_deploy.target import PRECISIONS, Target

__all__ = [
    "DIALECTS",
    "MEANING",
    "BuildSettings",
    "Dialect",
    "build_arguments",
    "build_settings",
    "dialect_of",
    "measure_arguments",
    "recipe",
    "workspace_mib",
]

#: calls that a p99 needs (99 % confidence that at most one in a hundred is slower)
P99_CALLS = 662
#: samples that an engine takes at most where nobody says how many it is to take
LARGEST_UNTOLD = 16

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """All that decides what an engine becomes; ``trtexec`` and the Python API both take it.

    ``typing`` is ``weak`` or ``strong``; ``workspace_mib`` None is TensorRT's own limit;
    ``profile`` maps an input with open dimensions to its smallest, usual and largest shape.
    """

    precision: str = "fp32"
    typing: str = "weak"
    workspace_mib: int | None = None
    dla_core: int | None = None
    level: int = 3
    averaging: int = 8
    profile: Mapping[str, tuple[Shape, Shape, Shape]] = field(default_factory=dict)


# ---------------------------------------------------------------- what to build


def build_settings(
    version: str, target: object, inputs: Sequence[TensorSpec], holds: Collection[str] = ()
) -> BuildSettings:
    """Derive the settings of a build from a target and from what the ONNX file holds.

    Args:
        version: of TensorRT.
        target: a Target, its JSON object or None; read are ``precision``, ``batch`` (tuned for it),
            ``max_batch`` (taken too; default: ``batch`` alone, or 16 where that is not said),
            ``memory_bytes``, ``workspace_mib``, ``dla_core`` and ``typing``.
        inputs: of the ONNX file; an open dimension is negative.
        holds: the precisions that stand in the file beside fp32: ``fp16``, ``int8``.

    Raises:
        ConfigError: what this release cannot do: a precision, the accelerator.
        ModelError: an input whose open dimension is not the batch.
    """
    dialect = dialect_of(version)
    precision = str(_option(target, "precision", "fp32"))
    typing = _typing(version, dialect, precision, str(_option(target, "typing", "")), holds)
    core = _option(target, "dla_core", None)
    told = _option(target, "batch", None)
    batch = int(told or 1)
    # an engine for one batch is the fastest for it, where somebody says which that is
    untold = batch if told is not None or core is not None else LARGEST_UNTOLD
    largest = max(batch, int(_option(target, "max_batch", untold)))
    profile = _profile(inputs, batch, largest)
    if core is not None:
        _check_dla(version, precision, profile)
    scratch = _option(target, "workspace_mib", workspace_mib(_option(target, "memory_bytes", None)))
    return BuildSettings(
        precision=precision,
        typing=typing,
        workspace_mib=None if scratch is None else int(scratch),
        dla_core=None if core is None else int(core),
        profile=profile,
    )


def _option(target: object, name: str, default: Any) -> Any:
    value = target.get(name) if isinstance(target, Mapping) else getattr(target, name, None)
    return default if value is None else value


def _typing(
    version: str, dialect: Dialect, precision: str, asked: str, holds: Collection[str]
) -> str:
    """Choose who decides the types, and refuse a precision that nobody could bring about."""
    if asked not in ("", "weak", "strong"):
        raise ConfigError(f"typing is '{asked}', expected weak or strong")
    if precision not in PRECISIONS:
        raise ConfigError(f"precision {precision} is not known; known: {', '.join(PRECISIONS)}")
    if precision == "int8" and "int8" not in holds:
        raise ConfigError(
            "precision int8 needs an ONNX file with quantisation nodes, which this one has not; "
            "quantise it first, or build with --precision fp16 or fp32"
        )
    if asked == "strong" and dialect.strong is None:
        raise ConfigError(f"TensorRT {version} has no strong typing; it came with 10")
    if asked == "weak" and not dialect.weak:
        raise ConfigError(f"TensorRT {version} has no weak typing; leave typing out")
    typed = dialect.strong is not None and "fp16" in holds
    typing = asked or ("strong" if typed or not dialect.weak else "weak")
    if typing == "strong" and precision == "fp16" and "fp16" not in holds:
        raise ConfigError(
            f"TensorRT {version} takes the precision from the ONNX file, and this one is fp32; "
            "export it in fp16, or build with --precision fp32"
        )
    return typing


def _profile(
    inputs: Sequence[TensorSpec], batch: int, largest: int
) -> dict[str, tuple[Shape, Shape, Shape]]:
    found: dict[str, tuple[Shape, Shape, Shape]] = {}
    for spec in inputs:
        inner = [i for i, size in enumerate(spec.shape) if size < 0 and i > 0]
        if inner:
            raise ModelError(
                f"input '{spec.name}' {list(spec.shape)} leaves dimension {inner[0]} open; an "
                "engine is built for fixed sizes: export it with all but the batch fixed"
            )
        if re.search(r"[,']", spec.name):
            raise ModelError(
                f"input '{spec.name}' has a comma or a quotation mark in its name, which trtexec "
                "cannot take; export it under another name"
            )
        if spec.shape and spec.shape[0] < 0:
            rest = tuple(spec.shape[1:])
            # one batch alone: the kernels are chosen for it
            smallest = batch if largest == batch else 1
            found[spec.name] = ((smallest, *rest), (batch, *rest), (largest, *rest))
    return found


def _check_dla(
    version: str, precision: str, profile: Mapping[str, tuple[Shape, Shape, Shape]]
) -> None:
    if not has_dla(version):
        raise ConfigError(
            f"TensorRT {version} does not drive the Deep Learning Accelerator; releases up to 10.7 "
            "do, and 11.4.1 or newer on AGX Orin; build for the GPU"
        )
    if precision == "fp32":
        raise ConfigError(
            "the Deep Learning Accelerator computes in fp16 and int8; build with --precision fp16"
        )
    for name, (low, _, high) in profile.items():
        if low != high:
            raise ConfigError(
                f"the Deep Learning Accelerator wants fixed shapes, and input '{name}' is to take "
                f"batches from {low[0]} to {high[0]}; build for one batch, or for the GPU"
            )


def workspace_mib(memory_bytes: int | None) -> int | None:
    """A quarter of the board's memory, 4 GiB at most: the CPU shares it and can run out."""
    return None if memory_bytes is None else max(64, min(4096, memory_bytes // 4 >> 20))


# ---------------------------------------------------------------- arguments of trtexec


def build_arguments(
    version: str,
    settings: BuildSettings,
    onnx: str | os.PathLike[str],
    engine: str | os.PathLike[str],
    timing_cache: str | os.PathLike[str],
    *,
    layers: str | os.PathLike[str] | None = None,
) -> list[str]:
    """Return the arguments with which ``trtexec`` builds an engine and does nothing else.

    Args:
        version: of TensorRT.
        settings: from :func:`build_settings`.
        onnx: the file to read.
        engine: the file to write.
        timing_cache: read and written, so that the next build chooses alike.
        layers: write what became of each layer to this JSON file.

    Raises:
        ConfigError: settings that this release does not take.
    """
    dialect = dialect_of(version)
    if settings.typing == "weak":
        if settings.precision not in dialect.weak:
            raise ConfigError(
                f"TensorRT {version} takes the precision from the ONNX file; use strong typing"
            )
        types = dialect.weak[settings.precision]
    elif dialect.strong is None:
        raise ConfigError(f"TensorRT {version} has no strong typing; it came with 10")
    else:
        types = dialect.strong
    scratch, core = settings.workspace_mib, settings.dla_core
    ends = zip(("min", "opt", "max"), range(3), strict=True)
    return [
        f"--onnx={os.fspath(onnx)}",
        f"--saveEngine={os.fspath(engine)}",
        f"--timingCacheFile={os.fspath(timing_cache)}",
        dialect.build_only,
        "--noTF32",
        *types,
        *([f"{dialect.level}={settings.level}"] if dialect.level else []),
        f"--avgTiming={settings.averaging}",
        "--sparsity=disable",
        "--profilingVerbosity=detailed",
        *([f"--memPoolSize=workspace:{scratch}"] if scratch is not None else []),
        *([f"--useDLACore={core}", "--allowGPUFallback"] if core is not None else []),
        *([f"--exportLayerInfo={os.fspath(layers)}"] if layers else []),
        *(
            f"--{end}Shapes={_spec({n: shapes[i] for n, shapes in settings.profile.items()})}"
            for end, i in ends
            if settings.profile
        ),
    ]


def measure_arguments(
    version: str,
    engine: str | os.PathLike[str],
    times: str | os.PathLike[str],
    *,
    profile: str | os.PathLike[str] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    transfers: bool = False,
    streams: int = 1,
    dla_core: int | None = None,
    seconds: int = 10,
) -> list[str]:
    """Return the arguments with which ``trtexec`` measures an engine and writes every time.

    Args:
        version: of TensorRT.
        engine: the plan file.
        times: the JSON file of all times.
        profile: the JSON file of the times of each layer, from a run of its own.
        shapes: of the inputs whose batch is open.
        transfers: measure end to end, the copies to and from the device included.
        streams: queries under way at once.
        dla_core: the accelerator that the engine was built for; CUDA graphs do not go with it.
        seconds: measure at least so long.
    """
    dialect = dialect_of(version)
    wanted = MEANING | {"transfers": transfers, "cuda_graph": dla_core is None}
    flags = [dialect.measuring[name][0 if on else 1] for name, on in wanted.items()]
    return [
        f"--loadEngine={os.fspath(engine)}",
        f"--exportTimes={os.fspath(times)}",
        *([f"--exportProfile={os.fspath(profile)}"] if profile else []),
        "--warmUp=500",
        f"--duration={seconds}",
        f"--iterations={P99_CALLS}",
        "--avgRuns=10",
        "--percentile=50,90,99",
        f"{dialect.streams}={streams}",
        *(flag for flag in flags if flag),
        *([f"--useDLACore={dla_core}"] if dla_core is not None else []),
        *([f"--shapes={_spec(shapes)}"] if shapes else []),
    ]


def _spec(shapes: Mapping[str, Shape]) -> str:
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


# ---------------------------------------------------------------- build.json


def recipe(target: Target, networks: Mapping[str, ExportedModel]) -> dict[str, Any]:
    """Return what build.json holds: how each network is built and measured on the target.

    ``networks`` are ``{"dense": ..., "slim": ...}``; what an exported file holds beside fp32 is the
    entry ``precision`` of its metadata. Where no recipe is known, ``reason`` says why.
    """
    body: dict[str, Any] = {"runtime": target.runtime, "precision": target.precision}
    if target.runtime == "openvino" or target.runtime.startswith("onnxruntime"):
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
    except (ConfigError, ModelError) as error:
        return body | {"tensorrt": target.tensorrt, "reason": str(error)}
    name = dialect_of(target.tensorrt).name
    return body | {"tensorrt": target.tensorrt, "dialect": name, "commands": steps}


def _steps(target: Target, version: str, model: ExportedModel) -> dict[str, list[str]]:
    stem = PurePath(model.path).name.removesuffix(".onnx")
    settings = build_settings(
        version, target, model.inputs, [model.metadata.get("precision", "fp32")]
    )
    build = build_arguments(
        version, settings, f"{stem}.onnx", f"{stem}.plan", "timing.cache",
        layers=f"{stem}.layers.json",
    )  # fmt: skip
    measure = measure_arguments(
        version,
        f"{stem}.plan",
        f"{stem}.times.json",
        profile=f"{stem}.profile.json",
        shapes={name: opt for name, (_, opt, _) in settings.profile.items()},
        dla_core=settings.dla_core,
    )
    return {"build": ["trtexec", *build], "measure": ["trtexec", *measure]}
