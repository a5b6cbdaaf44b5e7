"""An ONNX file becomes engine.plan and engine.json, whoever drives TensorRT.

    settings -> k builds -> each measured -> the best kept, the spread reported -> engine.json

Two builds of one network differ: the builder times kernels and takes what won. With several builds
each starts without a timing cache, so that their spread shows what that luck is worth; the cache of
the best is kept, and a later single build starts from it and chooses alike. Standard library only:
this file travels to the board.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mint_deploy import _onnx_head, engine_file, files, onnx_wire
from mint_deploy._trt_dialects import dialect_of
from mint_deploy._trt_here import facts, memory, shares_memory
from mint_deploy._trt_log import Circumstances, fell_back
from mint_deploy.artifacts import Engine, Machine
from mint_deploy.errors import ConfigError, DataError
from mint_deploy.machine import probe
from mint_deploy.recipe import BuildSettings, build_settings
from mint_deploy.runtimes import option

__all__ = ["CACHE", "LAYERS", "PLAN", "Builder", "Job", "Progress", "key_of", "make"]

PLAN, CACHE, LAYERS = "engine.plan", "timing.cache", "engine.layers.json"
#: what a target says about a build: it travels in engine.json, so that the build can be repeated
_TARGET_KEYS = (
    "precision", "batch", "max_batch", "memory_bytes", "workspace_mib", "dla_core", "typing", "builds",
)  # fmt: skip

#: called with what is done, the whole, and a note
Progress = Callable[[float, float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One build: what to read, what to write, with which settings, and what an error should tell."""

    onnx: Path
    plan: Path
    cache: Path
    layers: Path
    settings: BuildSettings
    about: Circumstances


class Builder(Protocol):
    """``trtexec``, or the Python API."""

    #: "trtexec" or "python", and the version of TensorRT
    by: str
    version: str

    def build(self, job: Job) -> tuple[str, list[str]]:
        """Build a plan; return the log, and the settings as they were given to TensorRT."""
        ...

    def measure(self, job: Job) -> list[int]:
        """Return the nanoseconds that the GPU took for each query."""
        ...


def make(
    builder: Builder,
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    target: object = None,
    *,
    builds: int | None = None,
    machine: Machine | None = None,
    progress: Progress | None = None,
) -> Engine:
    """Build ``engine.plan`` and ``engine.json`` in ``out``; nothing is left of a build that failed.

    Args:
        builder: who builds.
        model: an ONNX file.
        out: the folder; ``timing.cache`` and ``engine.layers.json`` are kept there too.
        target: see :func:`mint_deploy.recipe.build_settings`; a board's own memory where the target
            does not say how much there is.
        builds: build so often, keep the fastest; default: the target's ``builds``, else 1.
        machine: who builds; probed where absent.
        progress: called before and after each build.

    Raises:
        ModelError: no ONNX file, one that reads outside of its folder, an operator or shapes that
            this TensorRT does not take.
        ConfigError: settings that it does not take.
        MintDeployError: the build failed: memory with numbers, or its last words.
    """
    source, folder = Path(model), Path(out)
    head = _onnx_head.read(source)
    # with its external data, which may not lie outside of its folder
    source_sha256 = onnx_wire.digest(source)
    wanted = _wanted(target)
    count = builds if builds is not None else int(wanted.get("builds", 1))
    if count < 1:
        raise ConfigError(f"builds is {count}, expected 1 or more")
    settings = build_settings(builder.version, wanted, head.inputs, head.holds)
    machine = machine or probe()
    here = facts(builder.version, machine=machine)
    total, swap = memory()
    about = Circumstances(
        version=builder.version, model=source.name, memory_bytes=total, swap_bytes=swap,
        workspace_mib=settings.workspace_mib, nodes=head.nodes,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".engine.", suffix=".part", dir=folder) as part:
        tries = []
        for i in range(count):
            place = Path(part) / str(i)
            place.mkdir()
            cache = place / CACHE
            if count == 1 and _same_machine(folder, here):
                cache.write_bytes((folder / CACHE).read_bytes())
            job = Job(
                onnx=source, plan=place / PLAN, cache=cache, layers=place / LAYERS,
                settings=settings, about=about,
            )  # fmt: skip
            if progress:
                progress(i, count, f"build {i + 1} of {count} of {source.name}")
            tries.append(_try(builder, job, measured=count > 1))
        if progress:
            progress(count, count, f"{source.name} is built")
        best = min(tries, key=lambda t: t.median_ns or 0)
        engine = Engine(
            path=str(folder / PLAN),
            runtime="tensorrt",
            precision=settings.precision,
            sha256=files.sha256(best.job.plan),
            builder={**here, "by": builder.by},
            flags={
                "onnx": os.path.relpath(source.resolve(), folder.resolve()),
                "onnx_sha256": source_sha256,
                "bytes": best.job.plan.stat().st_size,
                "dialect": dialect_of(builder.version).name,
                "settings": files.encode(settings),
                "arguments": best.arguments,
                "target": wanted,
                "timing_cache": {"file": CACHE, "sha256": _digest(best.job.cache)},
                "builds": [t.record() for t in tries],
                "spread": _spread(tries),
                **({"fell_back": best.fell_back} if settings.dla_core is not None else {}),
            },
        )
        for name in (LAYERS, CACHE, PLAN):
            made = best.job.plan.with_name(name)
            if made.is_file():
                with files.atomic(folder / name) as final:
                    made.replace(final)
    return engine_file.write(engine, folder)


def _wanted(target: object) -> dict[str, Any]:
    """What the target says about a build, and on a board its memory where the target does not."""
    wanted = {key: v for key in _TARGET_KEYS if (v := option(target, key, None)) is not None}
    if "memory_bytes" not in wanted and shares_memory():
        wanted["memory_bytes"] = memory()[0]
    return wanted


def key_of(model: Path, target: object, here: Mapping[str, str]) -> str:
    """Return what tells two engines apart: the file, what is asked of it, and for which machine."""
    asked = {"onnx": onnx_wire.digest(model), "target": _wanted(target), "here": dict(here)}
    text = json.dumps(files.encode(asked), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _same_machine(folder: Path, here: Mapping[str, str]) -> bool:
    """Whether the timing cache of ``folder`` is of this machine, as far as its engine tells."""
    if not (folder / CACHE).is_file():
        return False
    try:
        built = engine_file.read(folder).builder
    except DataError:
        return True  # it came with a bundle: TensorRT checks the cache itself
    return not engine_file.differences(built, here)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """One build of several."""

    job: Job
    arguments: list[str]
    fell_back: list[str]
    seconds: float
    median_ns: float | None

    def record(self) -> dict[str, Any]:
        return {
            "seconds": round(self.seconds, 1),
            "bytes": self.job.plan.stat().st_size,
            "sha256": files.sha256(self.job.plan),
            "median_ms": None if self.median_ns is None else self.median_ns / 1e6,
        }


def _try(builder: Builder, job: Job, *, measured: bool) -> _Try:
    begin = time.monotonic()
    log, arguments = builder.build(job)
    seconds = time.monotonic() - begin
    return _Try(
        job=job,
        arguments=[_without_folder(a, job) for a in arguments],
        fell_back=fell_back(log),
        seconds=seconds,
        median_ns=statistics.median(builder.measure(job)) if measured else None,
    )


def _without_folder(argument: str, job: Job) -> str:
    """An argument as it means the same elsewhere: files by name."""
    for path in (job.onnx, job.plan, job.cache, job.layers):
        argument = argument.replace(str(path), path.name)
    return argument


def _spread(tries: list[_Try]) -> float | None:
    """How much slower the slowest build is than the fastest: 0.05 is 5 %; None for one build."""
    medians = [t.median_ns for t in tries if t.median_ns]
    return max(medians) / min(medians) - 1 if len(medians) > 1 else None


def _digest(path: Path) -> str | None:
    return files.sha256(path) if path.is_file() else None
