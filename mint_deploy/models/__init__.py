"""The zoo, and how a MODEL on the command line becomes a network.

A file here without a leading underscore defines networks and lists them in its ``ZOO``; dropping a
file in adds its names. MODEL may also be ``package.module:factory`` or ``path/to/file.py:factory``,
a callable without arguments that returns an ``nn.Module``.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mint_deploy import user_code
from mint_deploy.errors import ModelError, TraceError, UnknownName
from mint_deploy.models._weights import (
    check_finite,
    fit_weights,
    read_weights,
    without_prefixes,
)
from mint_deploy.models._zoo import Entry
from mint_deploy.user_model import check_model

__all__ = [
    "LoadedModel",
    "load_model",
    "read_weights",
    "state_digest",
    "without_prefixes",
    "zoo_names",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network in eval mode and what is known about it.

    ``input_shape`` is ``(C, H, W)`` without the batch. ``mean`` and ``std`` are per channel, of
    pixels in 0..1. ``default_data`` is the data SPEC of a network that comes with one. ``digest``
    is the SHA-256 of the state dict. ``trained`` tells whether weights were given (for a factory of
    the user's it is taken for granted). What is not known is None.
    """

    model: nn.Module
    name: str
    spec: str
    input_shape: tuple[int, ...] | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    class_names: tuple[str, ...] | None
    default_data: str | None
    digest: str
    trained: bool


def load_model(spec: str, weights: str | Path | None = None, *, seed: int = 0) -> LoadedModel:
    """Make the network that ``spec`` names and fit ``weights`` to it.

    ``seed`` decides the initial weights where none are given; the global random state is kept.

    Raises:
        UnknownName: no such network in the zoo.
        ModelError: a factory that fails or returns no module; weights that cannot be read, do not
            fit (the tensors are named), or are not finite.
    """
    entry: Entry | None = None
    if user_code.is_reference(spec):
        factory = user_code.load_object(spec, error=ModelError)
        place, _, attribute = spec.rpartition(":")
        name = re.sub(r"[^\w.-]+", "-", f"{Path(place).stem}-{attribute}")
    else:
        entry = _entry(spec)
        factory, name = entry.factory, spec
    model = _make(factory, spec, seed)
    if weights is not None:
        rename = entry.rename if entry else None
        fit_weights(model, read_weights(weights), source=str(weights), rename=rename)
    check_finite(model.state_dict().items(), source=str(weights or spec))
    return LoadedModel(
        model=model.eval(),
        name=name,
        spec=spec,
        input_shape=entry.input_shape if entry else None,
        mean=entry.mean if entry else None,
        std=entry.std if entry else None,
        class_names=entry.class_names if entry else None,
        default_data=entry.default_data if entry else None,
        digest=state_digest(model),
        trained=weights is not None or entry is None,
    )


def zoo_names() -> list[str]:
    """Return the names of the zoo's networks, sorted."""
    return sorted(_zoo())


def state_digest(model: nn.Module) -> str:
    """Return the SHA-256 of the state dict: names, types, shapes, values; in the names' order."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            tensor = value.detach().cpu().contiguous()
            digest.update(f"{tensor.dtype}{list(tensor.shape)}".encode())
            if tensor.numel():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(value).encode())
    return digest.hexdigest()


def _zoo() -> Mapping[str, Entry]:
    entries: dict[str, Entry] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith("_"):
            entries.update(importlib.import_module(f"{__name__}.{module.name}").ZOO)
    return entries


def _entry(spec: str) -> Entry:
    entries = _zoo()
    if spec in entries:
        return entries[spec]
    if Path(spec).suffix in {".safetensors", ".th", ".pt", ".pth", ".onnx", ".h5", ".ckpt"}:
        raise ModelError(
            f"'{spec}' is a file of weights, not a network; name the network that it belongs to (a "
            "zoo name, package.module:factory or path/to/file.py:factory) and give the file with "
            "--weights"
        )
    raise UnknownName("model", spec, entries)


def _make(factory: Any, spec: str, seed: int) -> nn.Module:
    """Call the factory under ``seed`` (an ``nn.Module`` instance is taken as it is)."""
    if isinstance(factory, nn.Module):
        model: Any = copy.deepcopy(factory)  # the user's own stays as it is
    elif callable(factory):
        before = torch.get_rng_state()
        torch.default_generator.manual_seed(seed)
        try:
            model = user_code.call(factory, spec, error=ModelError)
        finally:
            torch.set_rng_state(before)
    else:
        raise ModelError(f"{spec} is a {type(factory).__name__}; expected a function or class")
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; expected an nn.Module")
    try:
        check_model(model)
    except TraceError as error:
        raise ModelError(f"{spec} returned a network that cannot be cut: {error}") from error
    if next(model.parameters(), None) is None:
        raise ModelError(f"{spec} returned a network without parameters: nothing to compress")
    return model
