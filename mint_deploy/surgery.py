"""Surgery: remove the slices of a plan from a copy of a model, for good.

``cut`` changes no value of what stays. It needs no tracing: the plan holds the slices, so a plan replays
on any fresh copy of its model (see :mod:`mint_deploy.loading`).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm

from mint_deploy.artifacts import Constant, PruningPlan, ScaleFold
from mint_deploy.attention import SlimMultiheadAttention, open_attention
from mint_deploy.errors import PlanError
from mint_deploy.plan_file import faults_of, listing, read_plan
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.user_model import check_model, copied, unwrapped

__all__ = ["check_plan", "cut"]


def cut(model: nn.Module, plan: PruningPlan | str | os.PathLike[str]) -> nn.Module:
    """Return a copy of ``model`` without the slices that ``plan`` removes; ``model`` is untouched.

    Values, mode, ``requires_grad``, dtype, device, hooks and memory format of what stays are kept.
    :func:`mint_deploy.verify.prove` cuts and proves in one go.

    Args:
        model: any module that is not TorchScript or quantised.
        plan: a plan, or the path of a plan file, which may have been edited.

    Raises:
        PlanError: the plan belongs to another model, or was edited into something impossible; every
            difference is named.
        TraceError: the model cannot be copied, or is of a kind that cannot be cut.
    """
    model, plan = unwrapped(model), _as_plan(plan)
    check_model(model, meta=True)
    check_plan(model, plan)
    slim = copied(model, meta=True)
    slices = plan.slices()
    _open_attention(slim, slices)
    owners = _owners(slim)
    modules: dict[int, nn.Module] = {}
    for name, dims in slices.items():
        places = owners[name]
        old = getattr(places[0][0], places[0][1])
        new = _without(old, dims)
        for module, attribute in places:
            setattr(module, attribute, new)
            modules[id(module)] = module
    for module in [*modules.values(), *_parametrised_by(slim, modules)]:
        _compute_anew(module)
        _describe_anew(module)
    removed = {g.name: set(g.removed) for g in plan.groups}
    for constant in plan.constants:
        _rewrite(slim, constant, removed)
    for fold in plan.folds:
        _take_up_scale(slim, fold, slices, removed)
    return slim


def _as_plan(plan: Any) -> PruningPlan:
    if isinstance(plan, (str, os.PathLike)):
        return read_plan(plan)
    if not isinstance(plan, PruningPlan):
        raise PlanError(
            f"expected a PruningPlan or the path of a plan file, found a {type(plan).__name__}; make one "
            "with mint_deploy.plan"
        )
    return plan


def check_plan(model: nn.Module, plan: PruningPlan) -> None:
    """Check that ``plan`` can be carried out, on ``model``.

    Raises:
        PlanError: with the first ten differences.
    """
    tensors = tensors_of(model)
    wrong = faults_of(plan)
    for member in (member for group in plan.groups for member in group.members):
        found = tensors.get(member.tensor)
        if found is None:
            wrong.append(f"'{member.tensor}' is not in the model")
        elif found.dim() <= member.dim or found.shape[member.dim] != member.length:
            wrong.append(
                f"'{member.tensor}' has shape {list(found.shape)}, the plan expects "
                f"{member.length} along dimension {member.dim}"
            )
    if wrong:
        raise PlanError(
            f"the plan made for '{plan.model}' does not fit this model: {listing(wrong)}; give the model "
            "that the plan was made for, or make a new plan"
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


def _open_attention(slim: nn.Module, slices: Mapping[str, object]) -> None:
    """Modules that tie their heads to their input's width give way to ones that do not."""
    touched = {name.rpartition(".")[0] for name in slices}
    for name, module in slim.named_modules():
        if name in touched or f"{name}.out_proj" in touched:
            open_attention(module)


def _take_up_scale(
    slim: nn.Module,
    fold: ScaleFold,
    slices: Mapping[str, Mapping[int, list[int]]],
    removed: Mapping[str, set[int]],
) -> None:
    """Multiply the rows that make queries, so that a narrower head keeps the scale of the wide one."""
    gone = sum(p.index[sorted(removed.get(p.group, set()))].size for p in fold.positions)
    if not gone:
        return
    tensor = tensors_of(slim)[fold.tensor]
    cut_rows = set(slices.get(fold.tensor, {}).get(0, ()))
    before = tensor.shape[0] + len(cut_rows)
    left = [row for row in range(before) if row not in cut_rows]
    rows = set(fold.rows)
    places = torch.tensor([new for new, old in enumerate(left) if old in rows])
    with torch.no_grad():
        tensor[places.to(tensor.device)] *= math.sqrt((fold.width - gone) / fold.width)


def _multihead(m: Any) -> None:
    packed = m.in_proj_weight is not None
    m.embed_dim = (m.in_proj_weight if packed else m.q_proj_weight).shape[1]
    m.kdim, m.vdim = (
        (m.embed_dim, m.embed_dim)
        if packed
        else (m.k_proj_weight.shape[1], m.v_proj_weight.shape[1])
    )


def _group_norm(m: Any) -> None:
    if m.weight is not None:
        m.num_channels = m.weight.shape[0]


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


def _recurrent(m: Any) -> None:
    first = "" if isinstance(m, nn.RNNCellBase) else "_l0"
    m.input_size = getattr(m, f"weight_ih{first}").shape[1]
    if not getattr(m, "proj_size", 0):
        m.hidden_size = getattr(m, f"weight_hh{first}").shape[1]
    if isinstance(m, nn.RNNBase):
        m._init_flat_weights()  # it keeps references to its weights, which are others now


_DESCRIBE: tuple[tuple[type[nn.Module], Callable[[Any], None]], ...] = (
    (nn.modules.conv._ConvNd, _conv),
    (nn.Linear, _linear),
    (nn.modules.batchnorm._NormBase, _norm),
    (nn.Embedding, _embedding),
    (nn.PReLU, _prelu),
    (nn.GroupNorm, _group_norm),
    (SlimMultiheadAttention, _multihead),
    (nn.RNNBase, _recurrent),
    (nn.RNNCellBase, _recurrent),
)


def _parametrised_by(model: nn.Module, changed: Mapping[int, nn.Module]) -> list[nn.Module]:
    """Return the modules that compute a tensor from one that was cut (``torch.nn.utils.parametrize``)."""
    return [
        module
        for module in model.modules()
        if is_parametrized(module)
        and any(id(x) in changed for x in cast("nn.ModuleDict", module.parametrizations).values())
    ]


def _compute_anew(module: nn.Module) -> None:
    """Let hooks that compute a tensor before each call (the older weight norm, pruning masks) do so now."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, (WeightNorm, BasePruningMethod)):
            with torch.no_grad():
                hook(module, ())


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
    gone = sum(len(removed.get(name, set()) & set(units)) for name, units in constant.of)
    try:
        module = model.get_submodule(path)
        if not gone and type(module) is nn.MultiheadAttention:
            return  # whole, so it was not opened
        if match is None:
            raise AttributeError(last)
        held = getattr(module, match["name"])
        old = held if match["item"] is None else held[int(match["item"])]
    except (AttributeError, IndexError) as error:
        exported = constant.attribute.startswith("code.")
        hint = "; it was made for its exported program (--export-level)" if exported else ""
        raise PlanError(
            f"the plan rewrites '{constant.attribute}', which the model does not have{hint}"
        ) from error
    new = constant.value - constant.factor * gone
    if int(old) not in (constant.value, new):  # the new one: what the module said of itself
        raise PlanError(
            f"the plan expects '{constant.attribute}' to be {constant.value}, found {old}; "
            "give the model that the plan was made for"
        )
    if match["item"] is None:
        setattr(module, match["name"], new)
    else:
        items = list(held)
        items[int(match["item"])] = new
        setattr(module, match["name"], type(held)(items))
    if isinstance(module, nn.modules.conv._ConvNd):
        _conv(module)
