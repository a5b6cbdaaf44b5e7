"""An engine and its engine.json: what it was built for, and whether that is this machine.

    engine.plan   what TensorRT loads: for one version, one GPU, one image of the board
    engine.json   an :class:`mint_deploy.artifacts.Engine`: ``builder`` says for which machine,
                  ``flags`` with which settings, from which ONNX file (SHA-256), with which timing cache

TensorRT itself finds out late, by a crash or a slow engine. Here the plan is compared with its hash
and the machine with the record before anything is loaded; a difference is refused together with
the command that builds the engine anew. Standard library only: this file travels to the board.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import struct
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mint_deploy import files
from mint_deploy.artifacts import Engine
from mint_deploy.errors import DataError, EngineMismatch

__all__ = ["differences", "plan_version", "read", "rebuild_command", "require", "write"]

#: what must agree, and what it is called in a message
_MUST = {
    "tensorrt": "TensorRT",
    "sm": "compute capability",
    "device": "GPU",
    "l4t": "L4T",
    "tpc_pg_mask": "TPC mask",
}
#: head of a plan: tag, serialisation version, and the version of TensorRT in the last four bytes
_HEAD = struct.Struct("<4sI16x4B")
_TAG = b"ftrt"
_PROGRAM = "mint_deploy_device.pyz"


def write(engine: Engine, folder: str | os.PathLike[str]) -> Engine:
    """Write ``engine.json`` into ``folder`` and return the engine."""
    files.write_value(Path(folder) / "engine.json", engine)
    return engine


def read(place: str | os.PathLike[str]) -> Engine:
    """Read an engine by its folder, its ``engine.json`` or its plan beside one.

    The plan is looked for beside ``engine.json`` first, so that a folder may be moved.

    Raises:
        DataError: no such file, damaged, or of another kind.
    """
    where = Path(place)
    record = where if where.suffix == ".json" else (
        where / "engine.json" if where.is_dir() else where.with_name("engine.json")
    )  # fmt: skip
    engine = files.read_value(record, Engine)
    beside = record.parent / Path(engine.path).name
    path = beside if beside.is_file() or not Path(engine.path).is_file() else Path(engine.path)
    if where.is_file() and where.suffix != ".json" and where.name != path.name:
        raise DataError(
            f"{record} describes {path.name}, not {where.name}; build {where.name} anew"
        )
    return dataclasses.replace(engine, path=str(path))


def plan_version(path: str | os.PathLike[str]) -> str | None:
    """Return the TensorRT that wrote a plan, from its first 28 bytes; None where it does not say.

    The layout is that of ``trtexec --getPlanVersionOnly`` (sampleEngines.cpp); 8.5 wrote another.
    """
    with Path(path).open("rb") as stream:
        head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    tag, serialisation, *version = _HEAD.unpack(head)
    return ".".join(map(str, version)) if tag == _TAG and serialisation == 0 else None


# ---------------------------------------------------------------- does it belong here


def differences(built: Mapping[str, str], here: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Return what keeps an engine from running here: name -> (built for, found).

    What either side does not know is not compared. Where the TPC mask is not known, the power mode
    stands in for it; of CUDA only the major version counts, and the driver does not.
    """
    # CUDA names a GPU otherwise than the board's kernel does: names count where CUDA gave both
    by_cuda = "sm" in built and "sm" in here
    found = {}
    for key, name in _MUST.items():
        known = key in built and key in here and (by_cuda or key != "device")
        if known and built[key] != here[key]:
            found[name] = (built[key], here[key])
    if not ("tpc_pg_mask" in built and "tpc_pg_mask" in here):
        modes = built.get("power_mode"), here.get("power_mode")
        if None not in modes and modes[0] != modes[1]:
            found["power mode"] = (str(modes[0]), str(modes[1]))
    cuda = built.get("cuda", ""), here.get("cuda", "")
    if all(cuda) and cuda[0].split(".")[0] != cuda[1].split(".")[0]:
        found["CUDA"] = cuda
    return found


def require(engine: Engine, here: Mapping[str, str]) -> None:
    """Refuse an engine whose file was altered, or that was built for another machine.

    Args:
        engine: from :func:`read`, or as it was built.
        here: from :func:`mint_deploy._trt_here.facts`.

    Raises:
        DataError: there is no plan.
        EngineMismatch: the difference, and the command that builds it anew.
    """
    path = Path(engine.path)
    if not path.is_file():
        raise DataError(f"there is no engine {path}; build it: {rebuild_command(engine)}")
    anew = f"build it anew: {rebuild_command(engine)}"
    if (digest := files.sha256(path)) != engine.sha256:
        size = path.stat().st_size
        wanted = engine.flags.get("bytes")
        cut = f"; it has {size} bytes of {wanted}" if wanted and wanted != size else ""
        raise EngineMismatch(
            "the plan with SHA-256", engine.sha256[:12], digest[:12],
            advice=f"{path.name} is damaged or was replaced{cut}; {anew}",
        )  # fmt: skip
    if wrong := differences(engine.builder, here):
        built = ", ".join(f"{name} {was}" for name, (was, _) in wrong.items())
        found = ", ".join(f"{name} {now}" for name, (_, now) in wrong.items())
        raise EngineMismatch("a machine with", built, found, advice=anew)


def rebuild_command(engine: Engine) -> str:
    """Return the one command that builds an engine anew on this machine, ready for a shell."""
    folder = Path(engine.path).resolve().parent
    source = str(engine.flags.get("onnx", "model.onnx"))
    target: dict[str, Any] = {"precision": engine.precision, **(engine.flags.get("target") or {})}
    program = folder / _PROGRAM
    started = Path(sys.argv[0]) if sys.argv[0].endswith(".pyz") else None
    if (folder / "deploy.json").is_file() and (program.is_file() or started is not None):
        run = ["python3", str(program if program.is_file() else started)]
        extra = ["--runtime", engine.runtime, "--precision", engine.precision]
        return shlex.join([*run, "build", str(folder), *extra])
    onnx = os.path.normpath(folder / source)
    code = (
        "from mint_deploy.runtimes import tensorrt; "
        f"tensorrt.build({onnx!r}, {target!r}, {str(folder)!r})"
    )
    return shlex.join(["python3", "-c", code])
