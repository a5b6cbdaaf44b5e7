"""Weight files: safetensors, and PyTorch's own with nothing but tensors in them. No code is run."""

from __future__ import annotations

import pickle  # only for the name of the error that torch.load raises
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from mint_deploy.errors import ModelError

__all__ = ["check_finite", "fit_weights", "read_weights", "without_prefixes"]

PICKLED = (".th", ".pt", ".pth")
#: keys under which training scripts keep the state dict
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
#: prefixes that DataParallel and torch.compile put before every name
PREFIXES = ("module.", "_orig_mod.")
SHOWN = 10


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name, on the CPU; wrappers and ``module.`` prefixes are taken off.

    Raises:
        ModelError: no such file, damaged, holds code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no weights file {path}; check --weights")
    if path.suffix == ".safetensors":
        try:
            return without_prefixes(safetensors.torch.load_file(path))
        except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
            raise ModelError(f"{path} is damaged or not safetensors ({error})") from error
    if path.suffix not in PICKLED:
        raise ModelError(
            f"{path} has the ending '{path.suffix}'; weights are read from .safetensors, "
            f"{', '.join(PICKLED)}"
        )
    return _unwrap(_load_pickled(path), path)


def _load_pickled(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # the rest of PyTorch's message is advice to load the file unsafely, so it is not passed on
        code = re.search(r"GLOBAL (\S+)|(Trying to (?:call|set)[^.\n]*)", str(error))
        if isinstance(error, pickle.UnpicklingError) and code:
            raise ModelError(
                f"{path} holds more than tensors ({code[1] or code[2]}), so it was refused and "
                "nothing in it was run. Expected a state dict: where you trust the file, write "
                "torch.save(model.state_dict(), ...) or safetensors from it and give that"
            ) from error
        raise ModelError(
            f"{path} is damaged or not a file of tensors ({type(error).__name__}); expected what "
            "torch.save(model.state_dict(), ...) writes"
        ) from error


def _unwrap(data: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(data, Mapping):
        for name in WRAPPERS:
            if isinstance(data.get(name), Mapping):
                data = data[name]
                break
    if not isinstance(data, Mapping):
        raise ModelError(
            f"{path} holds a {type(data).__name__}; expected a dict of tensors by name, or one "
            f"under {', '.join(WRAPPERS)}"
        )
    tensors = {str(k): v for k, v in data.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = ", ".join(str(k) for k in list(data)[:SHOWN]) or "nothing"
        raise ModelError(
            f"{path} holds no tensors (found: {keys}); expected a dict of tensors by name, or one "
            f"under {', '.join(WRAPPERS)}"
        )
    return without_prefixes(tensors)


def without_prefixes(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off what DataParallel and torch.compile put before every name, if all names have it."""
    for prefix in PREFIXES * 2:  # either may be the outer one
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def fit_weights(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    rename: Callable[[str], str] | None = None,
) -> None:
    """Copy ``tensors`` into ``model`` in place; every name and shape has to agree.

    BatchNorm's ``num_batches_tracked`` may be absent, as in files of old PyTorch versions.

    Raises:
        ModelError: names or shapes differ (the first ten of each are listed), or NaN or Inf.
    """
    if rename is not None:
        tensors = {rename(name): tensor for name, tensor in tensors.items()}
    own = {name: t for name, t in model.state_dict().items() if isinstance(t, Tensor)}
    counters = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [
        _listing("missing in the file", sorted(own.keys() - tensors.keys() - counters)),
        _listing("unknown to the model", sorted(tensors.keys() - own.keys())),
        _listing(
            "of another shape",
            [
                f"{name} (file {list(tensors[name].shape)}, model {list(t.shape)})"
                for name, t in own.items()
                if name in tensors and tensors[name].shape != t.shape
            ],
        ),
    ]
    if any(problems):
        told = "; ".join(p for p in problems if p)
        raise ModelError(
            f"{source} does not fit the model: {told}. Expected the state dict of this very "
            "network; check MODEL and --weights"
        )
    try:
        model.load_state_dict(dict(tensors), strict=False)
    except RuntimeError as error:
        raise ModelError(f"{source} does not fit the model: {error}") from error


def _listing(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{len(names)} {what}: {', '.join(names[:SHOWN])}{more}"


def check_finite(named: Iterable[tuple[str, Any]], *, source: str) -> None:
    """Check that no tensor holds NaN or Inf.

    Raises:
        ModelError: one does; it is named, with how many of its values are affected.
    """
    for name, tensor in named:
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise ModelError(
                f"{source}: tensor '{name}' holds {wrong} of {tensor.numel()} values that are NaN "
                "or Inf; expected finite weights: load an earlier checkpoint"
            )
