"""The user's own model: unwrapped, checked for what cannot be cut, and copied, never altered."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mint_deploy.errors import TraceError

__all__ = ["check_model", "copied", "unwrapped"]

_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def unwrapped(model: Any) -> nn.Module:
    """Return the module itself: without what ``torch.compile`` and (D)DP put around it.

    Raises:
        TraceError: it is no module.
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while isinstance(model, nn.Module):
        inner = model.module if isinstance(model, parallel) else getattr(model, "_orig_mod", model)
        if inner is model:
            return model
        model = inner
    raise TraceError(
        f"expected a torch.nn.Module, found {_described(model)}; give the network itself"
    )


def _described(found: Any) -> str:
    if isinstance(found, type):
        return f"the class {found.__name__}; call it"
    if isinstance(found, torch.export.ExportedProgram):
        return "an ExportedProgram; its .module() is one"
    if isinstance(found, Mapping):
        return "tensors by name; they go into a network with load_state_dict"
    if callable(found):
        return f"a {type(found).__name__}; if it makes the network, call it"
    return f"an object of type {type(found).__name__}"


def check_model(model: nn.Module, *, meta: bool = False) -> None:
    """Refuse what cannot be cut; ``meta``: tensors without values will do.

    Raises:
        TraceError: TorchScript, a lazy, meta or quantised tensor or layer; it is named.
    """
    for name, module in model.named_modules():
        where = f"'{name}'" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"{where} is TorchScript; give the Python module that it was made from"
            )
        if type(module).__module__.startswith(_QUANTISED):
            kind = type(module).__name__
            raise TraceError(f"{where} is quantised ({kind}); cut the float model, then quantise")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise TraceError(
                f"'{name}' has no shape yet; run the model once, so that it is initialised"
            )
        if tensor.is_meta and not meta:
            raise TraceError(f"'{name}' is a meta tensor; load real weights first")
        if tensor.is_quantized:
            raise TraceError(f"'{name}' is quantised; cut the float model, then quantise")


def copied(model: nn.Module, *, meta: bool = False) -> nn.Module:
    """Return a deep copy of a model that was checked.

    Raises:
        TraceError: as :func:`check_model`, or it cannot be copied.
    """
    check_model(model, meta=meta)
    # the older weight norm and pruning masks keep what they computed last, with its history
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, dict(computed))
    except Exception as error:
        raise TraceError(
            f"the model cannot be copied ({error}); modules that hold open files, generators or "
            "non-leaf tensors must drop them first"
        ) from error
