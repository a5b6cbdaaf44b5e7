"""A masked forward pass that owes nothing to the engine: what a cut network must compute.

Hooks zero the channels that a plan removes where a module reads them. Which channels those are follows from
the modules' own types and from the plan's indices; neither the gate nor ``Member.reads`` is asked.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from typing import Any

import torch
from conformance import absent
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map_only

from mint_deploy.artifacts import PruningPlan
from mint_deploy.graph import Graph
from mint_deploy.surgery import cut

Inputs = tuple[Tensor, ...] | Mapping[str, Tensor]


def random_keep(graph: Graph, seed: int = 0, least: float = 0.0) -> dict[str, list[int]]:
    """Random units of every group, at least the share ``least`` of them; one or more of each leaves."""
    draw = random.Random(seed)
    keep = {}
    for name, group in graph.groups.items():
        low = max(1, round(least * group.size))
        keep[name] = sorted(
            draw.sample(range(group.size), draw.randint(low, max(low, group.size - 1)))
        )
    return keep


def reading_dim(module: nn.Module) -> int | None:
    """The dimension of ``module.weight`` that runs over the channels it mixes; None: it mixes none."""
    if isinstance(module, nn.Linear):
        return 1
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 0
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        return None if depthwise else 1
    return None


def removed_channels(model: nn.Module, plan: PruningPlan) -> dict[nn.Module, list[int]]:
    """Which channels of its input each reading module has to do without."""
    slices: dict[tuple[str, int], list[int]] = {}
    for group in plan.groups:
        gone = [u for u in range(group.size) if u not in group.keep]
        for member in group.members:
            slices.setdefault((member.tensor, member.dim), []).extend(
                int(i) for i in member.index[gone].reshape(-1)
            )
    first = {}
    for name, tensor in model.named_parameters():
        first.setdefault(id(tensor), name)
    out = {}
    for module in model.modules():
        dim = reading_dim(module)
        name = first.get(id(getattr(module, "weight", None)))
        channels = slices.get((name or "", -1 if dim is None else dim), [])
        if dim is None or not channels:
            continue
        groups = getattr(module, "groups", 1) if dim else 1  # transposed: every input has a row
        width = module.weight.shape[1] if groups > 1 else 0
        out[module] = [c + g * width for c in channels for g in range(groups)]
    return out


def outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that a model returns."""
    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
    args, kwargs = tree_map_only(Tensor, torch.clone, (args, kwargs))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [x for x in tree_flatten(model(*args, **kwargs))[0] if isinstance(x, Tensor)]


def masked_outputs(model: nn.Module, plan: PruningPlan, inputs: Inputs) -> list[Tensor]:
    """The dense model's outputs when every module reads zeros for what the plan removes."""
    model = copy.deepcopy(model)

    def hook(module: nn.Module, args: tuple[Any, ...], channels: list[int]) -> tuple[Any, ...]:
        x = args[0].clone()
        if isinstance(module, nn.Linear):
            x[..., channels] = 0
        else:
            x[:, channels] = 0
        return (x, *args[1:])

    for module, channels in removed_channels(model, plan).items():
        module.register_forward_pre_hook(lambda m, args, c=channels: hook(m, args, c))
    return outputs(model, inputs)


def to_double(inputs: Inputs) -> Any:
    return tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)


def absent_error(model: nn.Module, plan: PruningPlan, inputs: Inputs) -> float:
    """The same against the dense network run with NaN for all that left, statistics over the rest."""
    given = tuple(inputs.values()) if isinstance(inputs, Mapping) else inputs
    model = copy.deepcopy(model).double().eval()
    wanted = absent.reference(model, plan.slices(), given)
    return absent.relative_error(absent.outputs(cut(model, plan), given), wanted)


def cut_error(model: nn.Module, plan: PruningPlan, inputs: Inputs) -> float:
    """Largest relative difference in float64 between the cut network and the masked one."""
    model = copy.deepcopy(model).double().eval()
    inputs = to_double(inputs)
    found, wanted = outputs(cut(model, plan), inputs), masked_outputs(model, plan, inputs)
    assert [x.shape for x in found] == [x.shape for x in wanted]
    assert all(bool(x.isfinite().all()) for x in wanted)
    errors = [
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))
        for a, b in zip(found, wanted, strict=True)
        if b.is_floating_point()
    ]
    assert errors
    return max(errors)
