"""TensorRT's own program ``trtexec``, driven with an argument list to build an engine.

What a release calls its flags stands in :mod:`mint_deploy.recipe` and nowhere else. Standard
library only: this file travels to the board.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mint_deploy import files
from mint_deploy.artifacts import Engine
from mint_deploy.errors import MintDeployError, ModelError, RuntimeMissing
from mint_deploy.recipe import build_arguments

__all__ = ["MEND", "arguments", "build", "find", "parse_version"]

#: where JetPack puts it, off PATH
_JETPACK = Path("/usr/src/tensorrt/bin/trtexec")
MEND = "sudo apt-get install libnvinfer-bin (on a Jetson: nvidia-jetpack)"


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


def arguments(
    version: str, precision: str, onnx: Path, engine: Path, timing_cache: Path
) -> list[str]:
    """Return the arguments of a build under TensorRT ``version``.

    Raises:
        ConfigError: a version that is not known, a precision that it does not take as a flag, or
            int8.
    """
    return build_arguments(version, precision, onnx, engine, timing_cache)


def build(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    precision: str = "fp32",
    *,
    environment: Mapping[str, str] | None = None,
) -> Engine:
    """Build ``engine.plan`` from an ONNX file with this machine's TensorRT, and ``engine.json``.

    The plan appears under its name only when it is complete; the timing cache is kept beside it.

    Raises:
        RuntimeMissing: there is no ``trtexec`` here, with the command that installs it.
        ConfigError: a precision that this TensorRT does not take.
        MintDeployError: the build failed; its last lines are quoted.
    """
    environment = {**os.environ} if environment is None else dict(environment)
    program = find(environment.get("PATH")) or find()
    if program is None:
        raise RuntimeMissing("tensorrt", "trtexec is neither on PATH nor part of JetPack", MEND)
    source, folder = Path(model), Path(out)
    if not source.is_file():
        raise ModelError(f"no such file: {source}; expected an ONNX model")
    banner = _run([program, "--help"], environment)[1]
    version = parse_version(banner).get("version")
    if version is None:
        raise MintDeployError(
            f"{program} does not say which TensorRT it belongs to; expected a line with "
            f"'[TensorRT v...]'; install it anew: {MEND}"
        )
    plan = folder / "engine.plan"
    with files.atomic(plan) as part:
        given = arguments(version, precision, source, part, folder / "timing.cache")
        code, log = _run([program, *given], environment)
        if code != 0 or part.stat().st_size == 0:
            lines = [line.strip() for line in log.splitlines() if line.strip()]
            last = " | ".join([s for s in lines if "[E]" in s][-3:] or lines[-3:])
            raise MintDeployError(
                f"TensorRT {version} could not build {source.name} (exit code {code}): {last}; "
                "a board that runs out of memory helps itself with swap space"
            )
    engine = Engine(
        path=plan.name,
        runtime="tensorrt",
        precision=precision,
        sha256=files.sha256(plan),
        flags={"onnx_sha256": files.sha256(source), "arguments": [a.split("=")[0] for a in given]},
        builder={"tensorrt": version},
    )
    files.write_value(folder / "engine.json", engine)
    return engine


def _run(command: list[str], environment: Mapping[str, str]) -> tuple[int, str]:
    """Run it and return its exit code with all it printed."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=dict(environment),
        check=False,
    )
    return done.returncode, done.stdout
