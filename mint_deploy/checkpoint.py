"""Where a training stands, as one safetensors file that a killed process cannot leave half-written.

The tensors are ``model.*`` (parameters and buffers), ``momentum.*`` (the optimiser's) and
``best.*`` (the best state so far, unless that is the present one); the file's metadata holds, as
JSON, the step, the best score, the settings of the training and a hash over the tensors. No
random state is kept: all randomness of a training derives from its seed and the step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mint_deploy import files
from mint_deploy.artifacts import SCHEMA
from mint_deploy.errors import DataError, RunFolderError

__all__ = ["Snapshot", "read_checkpoint", "write_checkpoint"]

_KEY = "mint_deploy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The state after ``step`` steps. ``best`` is None where nothing was scored yet."""

    step: int
    model: Mapping[str, Tensor]
    momentum: Mapping[str, Tensor]
    best: Mapping[str, Tensor] | None = None
    best_step: int | None = None
    best_score: float | None = None


def write_checkpoint(path: Path, snapshot: Snapshot, settings: Mapping[str, Any]) -> None:
    """Write ``snapshot`` to ``path``, atomically; ``settings`` must be plain JSON values."""
    parts = {"model": snapshot.model, "momentum": snapshot.momentum}
    if snapshot.best is not None and snapshot.best_step != snapshot.step:
        parts["best"] = snapshot.best
    tensors = {
        f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
        for part, named in parts.items()
        for name, tensor in named.items()
    }
    head = {
        "kind": "Checkpoint",
        "schema": SCHEMA,
        "step": snapshot.step,
        "best_step": snapshot.best_step,
        "best_score": snapshot.best_score,
        "settings": dict(settings),
        "sha256": _digest(tensors),
    }
    with files.atomic(path) as part_file:
        save_file(tensors, part_file, {_KEY: json.dumps(head, allow_nan=False)})


def read_checkpoint(path: Path, settings: Mapping[str, Any]) -> Snapshot | None:
    """Read back what :func:`write_checkpoint` wrote; None where there is no file.

    Raises:
        DataError: the file is damaged, or is no checkpoint of ours.
        RunFolderError: it is of a training with other settings; they are named.
    """
    if not path.exists():
        return None
    again = f"remove {path} to begin this training anew"
    try:
        with safe_open(path, framework="pt") as stored:
            head = json.loads((stored.metadata() or {})[_KEY])
            names = stored.keys()
            tensors: dict[str, Tensor] = {name: stored.get_tensor(name) for name in names}
        step, schema, found = int(head["step"]), int(head["schema"]), dict(head["settings"])
        best_step, best_score, sha256 = head["best_step"], head["best_score"], head["sha256"]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is damaged or no checkpoint ({error!r}); {again}") from error
    if schema > SCHEMA:
        raise DataError(f"{path} was written by a newer mint-deploy (schema {schema}); {again}")
    if sha256 != _digest(tensors):
        raise DataError(f"{path} is damaged (its tensors do not match their hash); {again}")
    wanted = json.loads(json.dumps(dict(settings)))
    if found != wanted:
        differ = [
            f"{key} (there {_short(found.get(key))}, now {_short(wanted.get(key))})"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key)
        ]
        raise RunFolderError(
            f"{path} is of a training with other settings: {', '.join(differ)}; {again}, or give "
            "the same settings as before"
        )
    named: dict[str, dict[str, Tensor]] = {"model": {}, "momentum": {}, "best": {}}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        named.setdefault(part, {})[name] = tensor
    return Snapshot(
        step=step,
        model=named["model"],
        momentum=named["momentum"],
        best=None if best_step is None else named["best" if best_step != step else "model"],
        best_step=best_step,
        best_score=best_score,
    )


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _short(value: object) -> str:
    """Hashes by their first digits."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
