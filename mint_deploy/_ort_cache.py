"""Optimised models kept on disk, so that the next session loads what this one worked out.

The name of an entry is a hash of all that it depends on: the model with its external data, ONNX
Runtime's version, the flags, and the processor (layouts for AVX-512 are wrong for AVX2). Another
model, version or machine is another name, so nothing here is ever stale. Beside each model lies its
own hash: one that was cut short or altered is passed over and written anew. Standard library only.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Callable, Mapping
from pathlib import Path

from mint_deploy import files
from mint_deploy.errors import DataError

__all__ = ["MOST_BYTES", "default_folder", "entry_key", "find", "forget", "keep", "processor"]

#: entries that are kept; the ones used longest ago go first
_MOST_ENTRIES = 32
#: a larger model is not cached: its file would be no single protobuf message
MOST_BYTES = 1 << 30


def default_folder() -> Path:
    """Return the folder of the entries: ``$MINT_DEPLOY_CACHE``, else the user's cache folder."""
    own = os.environ.get("MINT_DEPLOY_CACHE")
    if own:
        return Path(own) / "onnxruntime"
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "mint-deploy" / "onnxruntime"


def processor(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return what of this machine decides an optimised model: architecture, model, instructions, GPU."""
    lines = {platform.machine()}
    with contextlib.suppress(OSError):
        for line in Path(cpuinfo).read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("flags", "features", "model name", "cpu part"):
                lines.add(f"{key.strip()}={' '.join(sorted(value.split()))}")
    for name in ("/proc/driver/nvidia/version", "/etc/nv_tegra_release"):
        with contextlib.suppress(OSError):
            lines.add(Path(name).read_text(encoding="utf-8", errors="replace").splitlines()[0])
    for gpu in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            text = gpu.read_text(encoding="utf-8", errors="replace").splitlines()
            lines.update(line for line in text if line.startswith("Model:"))
    return "\n".join(sorted(lines))


def entry_key(digest: str, version: str, flags: Mapping[str, str], machine: str) -> str:
    """Return the name of the entry: the hash of everything that an optimised model depends on.

    Args:
        digest: of the model (:func:`mint_deploy.onnx_wire.digest`).
        version: of ONNX Runtime.
        flags: those that decide what is optimised and how.
        machine: as :func:`processor` gives it.
    """
    parts = {"model": digest, "onnxruntime": version, "flags": dict(flags), "machine": machine}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def find(folder: Path, key: str) -> Path | None:
    """Return the optimised model of an entry; None where there is none that is whole."""
    model = folder / f"{key}.onnx"
    try:
        note = files.read_json(folder / f"{key}.json", kind="OptimisedModel")
        if note.get("sha256") != files.sha256(model):
            return None
        os.utime(model)
    except (DataError, OSError):
        return None
    return model


def keep(folder: Path, key: str, write: Callable[[Path], None]) -> None:
    """Have ``write`` make the optimised model at the path that it is given, and keep it.

    A killed process leaves no entry, or one without its hash, which :func:`find` passes over.
    """
    with files.atomic(folder / f"{key}.onnx") as part:
        write(part)
        found = files.sha256(part)
    files.write_json(folder / f"{key}.json", {"sha256": found}, kind="OptimisedModel")
    with contextlib.suppress(OSError):  # somebody else may be tidying up as well
        entries = sorted(folder.glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        for old in entries[:-_MOST_ENTRIES]:
            forget(folder, old.stem)


def forget(folder: Path, key: str) -> None:
    """Drop an entry."""
    for suffix in (".json", ".onnx"):
        (folder / f"{key}{suffix}").unlink(missing_ok=True)
