"""Surgery: remove the slices of a plan from a copy of a model, for good.

``cut`` changes no value of what stays. It needs no tracing: the plan holds the slices, so a plan replays
on any fresh copy of its model, and ``load`` is ``cut`` followed by reading the weights.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from mint_deploy.artifacts import Constant, PruningPlan
from mint_deploy.errors import DataError, ModelError, PlanError
from mint_deploy.files import atomic, read_value
from mint_deploy.tracing.tracer import tensors_of

__all__ = ["cut", "load", "read_tensors", "save"]


def cut(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy of ``model`` without the slices that ``plan`` removes; ``model`` is untouched.

    Values, mode, ``requires_grad``, dtype, device, hooks and memory format of what stays are kept.
    :func:`mint_deploy.verify.prove` cuts and proves in one go.

    Raises:
        PlanError: the plan belongs to another model, or was edited into something impossible; every
            difference is named.
    """
    model = getattr(model, "_orig_mod", model)
    check_plan(model, plan)
    slim = copy.deepcopy(model)
    slices = plan.slices()
    owners = _owners(slim)
    modules: dict[int, nn.Module] = {}
    for name, dims in slices.items():
        places = owners[name]
        old = getattr(places[0][0], places[0][1])
        new = _without(old, dims)
        for module, attribute in places:
            setattr(module, attribute, new)
            modules[id(module)] = module
    for module in modules.values():
        _describe_anew(module)
    removed = {g.name: set(g.removed) for g in plan.groups}
    for constant in plan.constants:
        _rewrite(slim, constant, removed)
    return slim


def check_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Check that ``plan`` fits ``model``.

    Raises:
        PlanError: with the first ten differences.
    """
    tensors = tensors_of(model)
    wrong = []
    for group in plan.groups:
        keep = list(group.keep)
        if not keep:
            wrong.append(f"group '{group.name}' keeps nothing; at least one unit must stay")
        elif keep != sorted(set(keep)) or keep[0] < 0 or keep[-1] >= group.size:
            wrong.append(
                f"group '{group.name}' keeps {keep[:4]}{'...' if len(keep) > 4 else ''}; expected "
                f"distinct sorted indices from 0 to {group.size - 1}"
            )
        for member in group.members:
            found = tensors.get(member.tensor)
            if found is None:
                wrong.append(f"'{member.tensor}' is not in the model")
            elif found.dim() <= member.dim or found.shape[member.dim] != member.length:
                wrong.append(
                    f"'{member.tensor}' has shape {list(found.shape)}, the plan expects "
                    f"{member.length} along dimension {member.dim}"
                )
            elif len(member.index) != group.size:
                wrong.append(f"'{member.tensor}' lists {len(member.index)} of {group.size} units")
            elif member.index.size and (
                int(member.index.min()) < 0 or int(member.index.max()) >= member.length
            ):
                wrong.append(f"'{member.tensor}' has indices outside its {member.length} entries")
    if wrong:
        rest = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise PlanError(
            f"the plan made for '{plan.model}' does not fit this model: "
            + "; ".join(dict.fromkeys(wrong[:10]))
            + rest
            + "; give the model that the plan was made for, or make a new plan"
        )


def _owners(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """Every module attribute that holds each distinct tensor, under the tensor's first name."""
    first = {id(t): name for name, t in tensors_of(model).items()}
    owners: dict[str, list[tuple[nn.Module, str]]] = {name: [] for name in first.values()}
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for attribute, tensor in held.items():
                if tensor is not None:
                    owners[first[id(tensor)]].append((module, attribute))
    return owners


def _without(old: Tensor, dims: Mapping[int, list[int]]) -> Tensor:
    """Return ``old`` less the indices in ``dims``, of the same kind and memory format."""
    new = old.detach()
    for dim, gone in dims.items():
        stays = torch.ones(old.shape[dim], dtype=torch.bool)
        stays[gone] = False
        new = new.index_select(dim, stays.nonzero()[:, 0].to(new.device))
    for rank, memory in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if (
            old.dim() == rank
            and not old.is_contiguous()
            and old.is_contiguous(memory_format=memory)
        ):
            new = new.contiguous(memory_format=memory)
    if isinstance(old, nn.Parameter):
        return nn.Parameter(new, requires_grad=old.requires_grad)
    return new


# ---------------------------------------------------------------- what modules say of themselves


def _conv(m: Any) -> None:
    first, second = m.weight.shape[:2]
    m.out_channels, m.in_channels = first, second * m.groups
    if m.transposed:
        m.in_channels, m.out_channels = first, second * m.groups


def _linear(m: Any) -> None:
    m.out_features, m.in_features = m.weight.shape


def _norm(m: Any) -> None:
    known = m.weight if m.weight is not None else m.running_mean
    if known is not None:
        m.num_features = known.shape[0]


def _embedding(m: Any) -> None:
    m.num_embeddings, m.embedding_dim = m.weight.shape


def _prelu(m: Any) -> None:
    m.num_parameters = m.weight.numel()


_DESCRIBE: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
)


def _describe_anew(module: nn.Module) -> None:
    """Let a module's own sizes (``out_channels`` ...) agree with its new tensors."""
    for kind, describe in _DESCRIBE:
        if isinstance(module, kind):
            describe(module)


_ITEM = re.compile(r"^(?P<name>\w+)(?:\[(?P<item>\d+)\])?$")


def _rewrite(model: nn.Module, constant: Constant, removed: Mapping[str, set[int]]) -> None:
    """Give a module's attribute that counts units its new value."""
    path, _, last = constant.attribute.rpartition(".")
    match = _ITEM.match(last)
    try:
        module = model.get_submodule(path)
        if match is None:
            raise AttributeError(last)
        held = getattr(module, match["name"])
        old = held if match["item"] is None else held[int(match["item"])]
    except (AttributeError, IndexError) as error:
        raise PlanError(
            f"the plan rewrites '{constant.attribute}', which the model does not have"
        ) from error
    if int(old) != constant.value:
        raise PlanError(
            f"the plan expects '{constant.attribute}' to be {constant.value}, found {old}; "
            "give the model that the plan was made for"
        )
    gone = sum(len(removed.get(name, set()) & set(units)) for name, units in constant.of)
    new = constant.value - constant.factor * gone
    if match["item"] is None:
        setattr(module, match["name"], new)
    else:
        items = list(held)
        items[int(match["item"])] = new
        setattr(module, match["name"], type(held)(items))
    if isinstance(module, nn.modules.conv._ConvNd):
        _conv(module)


# ---------------------------------------------------------------- files


def save(model: nn.Module, path: str | os.PathLike[str], *, metadata: Mapping[str, str]) -> None:
    """Write a model's tensors as safetensors, atomically; shared tensors once."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors_of(model).items()}
    with atomic(path) as part:
        safetensors.torch.save_file(tensors, part, metadata=dict(metadata))


def read_tensors(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Read tensors written by :func:`save` into ``model`` (in place).

    Raises:
        DataError: missing or damaged file.
        ModelError: the tensors do not fit; what differs is listed.
    """
    try:
        stored = safetensors.torch.load_file(path)
    except FileNotFoundError as error:
        raise DataError(f"cannot read {path}: no such file") from error
    except Exception as error:
        raise DataError(f"{path} is damaged or not safetensors ({error})") from error
    own = tensors_of(model)
    wrong = [f"'{n}' is missing" for n in own if n not in stored]
    wrong += [f"'{n}' is not in the model" for n in stored if n not in own]
    wrong += [
        f"'{n}' has shape {list(stored[n].shape)}, expected {list(t.shape)}"
        for n, t in own.items()
        if n in stored and stored[n].shape != t.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise ModelError(f"{path} does not fit the model: {'; '.join(wrong[:10])}{more}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(stored[name])


def load(run: str | os.PathLike[str], model: Any = None) -> nn.Module:
    """Load the slim model of a run folder: replay its plan on a fresh model, then read the weights.

    Args:
        run: the run folder (``plan.json`` and ``slim.safetensors``).
        model: a fresh model or a callable that makes one; ``None``: what the run was started with.

    Raises:
        DataError: files are missing or damaged.
        ModelError, PlanError: the model is not the one that the plan was made for.
    """
    folder = Path(run)
    plan = read_value(folder / "plan.json", PruningPlan)
    if model is None:
        from mint_deploy.models import load_model

        model = load_model(plan.model).model
    elif not isinstance(model, nn.Module):
        model = model()
    if not isinstance(model, nn.Module):
        raise ModelError(f"the factory returned {type(model).__name__}, expected a torch.nn.Module")
    slim = cut(model, plan)
    read_tensors(slim, folder / "slim.safetensors")
    return slim.eval()
