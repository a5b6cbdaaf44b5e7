"""torch-pruning agrees, where it is exact: on plain networks of convolutions.

Same slices coupled, unit by unit; same shapes and bits after the same cut. (Traps of torch-pruning: it switches
the model to evaluation mode, its groups hold the modules they were built from, and dictionaries given as defaults
are shared; so each test builds its own graph on its own copy and passes none.)
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from masking import random_keep
from nets import NETS, build
from torch import Tensor, nn

from mint_deploy.graph import Graph, Group
from mint_deploy.plan import make_plan
from mint_deploy.surgery import cut
from mint_deploy.trace import trace

tp = pytest.importorskip("torch_pruning", reason="torch-pruning is not installed (extra 'test')")

PLAIN = [name for name, case in NETS.items() if case.plain]
#: not `plain` because inputs, gates or widths are unusual, and yet torch-pruning couples them alike
ALSO = ["unet", "inception", "squeeze_excite", "depthwise", "buffer"]
Slice = tuple[str, int, int]


def dependencies(model: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    """torch-pruning's graph of (its own copy of) the model, raw parameters told to it."""
    raw = [
        (p, next(d for d, n in enumerate(p.shape) if n > 1))
        for m in model.modules()
        for p in m._parameters.values()
        if p is not None
        and not isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear, nn.BatchNorm2d))
    ]
    graph = tp.DependencyGraph()
    graph.build_dependency(model, example_inputs=inputs, unwrapped_parameters=raw, verbose=False)
    return graph


def slices_of(group: Any, model: nn.Module) -> set[Slice]:
    """A group of torch-pruning as (tensor, dimension, index), like ours."""
    names = {id(m): n for n, m in model.named_modules()}
    raw = {id(p): n for n, p in model.named_parameters()}
    out: set[Slice] = set()
    for dependency, indices in group:
        module, pruner = dependency.target.module, dependency.handler.__name__
        if id(module) in raw:
            dim = next(d for d, n in enumerate(module.shape) if n > 1)
            out |= {(raw[id(module)], dim, int(i)) for i in indices}
            continue
        if id(module) not in names:
            continue
        stem = names[id(module)]
        reads = "in_channels" in pruner
        if isinstance(module, nn.BatchNorm2d):
            places = [(n, 0) for n in ("weight", "bias", "running_mean", "running_var")]
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            depthwise = getattr(module, "groups", 1) > 1
            if reads and depthwise:
                continue  # the same slice as its output
            transposed = isinstance(module, nn.ConvTranspose2d)
            places = [("weight", int(reads != transposed))]
            if not reads and module.bias is not None:
                places.append(("bias", 0))
        else:
            continue
        out |= {(f"{stem}.{n}", d, int(i)) for n, d in places for i in indices}
    return out


def ours(group: Group, units: list[int]) -> set[Slice]:
    return {(m.tensor, m.dim, int(i)) for m in group.members for i in m.index[units].reshape(-1)}


def entry(model: nn.Module, group: Group) -> tuple[nn.Module, Any, np.ndarray]:
    """Where torch-pruning may start: the first producer, its pruner, and the index of each unit."""
    member = next(m for m in group.members if m.tensor == group.producers[0] and not m.reads)
    module = model.get_submodule(member.tensor.rpartition(".")[0])
    depthwise = isinstance(module, nn.Conv2d) and module.groups > 1
    pruner = (
        tp.prune_depthwise_conv_out_channels
        if depthwise
        else tp.prune_linear_out_channels
        if isinstance(module, nn.Linear)
        else tp.prune_conv_out_channels
    )
    return module, pruner, member.index


def known_to_it(graph: Graph, slices: set[Slice]) -> set[Slice]:
    """Without buffers that are no BatchNorm's: torch-pruning does not know those."""
    norms = ("running_mean", "running_var")
    return {s for s in slices if s[0] in graph.parameters or s[0].rpartition(".")[2] in norms}


@pytest.mark.parametrize("name", PLAIN + ALSO)
def test_the_same_slices_leave_together(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs, probe=False)
    theirs = copy.deepcopy(model)
    oracle = dependencies(theirs, inputs)
    random = np.random.default_rng(0)
    for group in graph.groups.values():
        module, pruner, index = entry(theirs, group)
        sample = random.choice(
            group.size, min(group.size, 2 if group.size > 32 else 4), replace=False
        )
        for unit in sample:
            found = oracle.get_pruning_group(module, pruner, idxs=index[unit].tolist())
            wanted = known_to_it(graph, ours(group, [int(unit)]))
            assert slices_of(found, theirs) == wanted, (group.name, int(unit))


@pytest.mark.parametrize("name", PLAIN)
def test_no_group_of_theirs_is_missing(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs, probe=False)
    theirs = copy.deepcopy(model)
    oracle = dependencies(theirs, inputs)
    every = [*graph.groups.values(), *graph.frozen_groups.values()]
    known: set[frozenset[tuple[str, int]]] = {
        frozenset((m.tensor, m.dim) for m in g.members) for g in every
    }
    seen = 0
    for group in oracle.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]):
        places = {(n, d) for n, d, _ in slices_of(group, theirs)}
        covered = [k for k in known if k <= places]
        # One of theirs may be several of ours where channels lie side by side (concatenations).
        assert covered
        assert set().union(*covered) == places
        seen += 1
    assert seen >= 2


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_units_leave_the_same_bits(name: str) -> None:
    model, inputs = build(name)
    graph = trace(model, inputs, probe=False)
    keep = random_keep(graph, seed=1, least=0.5)
    slim = cut(model, make_plan(graph, keep))
    theirs = copy.deepcopy(model)
    oracle = dependencies(theirs, inputs)
    for group_name, group in graph.groups.items():
        module, pruner, index = entry(theirs, group)
        gone = sorted(set(range(group.size)) - set(keep[group_name]))
        found = oracle.get_pruning_group(module, pruner, idxs=index[gone].reshape(-1).tolist())
        assert oracle.check_pruning_group(found)
        found.prune()
    state, other = slim.state_dict(), theirs.state_dict()
    assert {n: t.shape for n, t in state.items()} == {n: t.shape for n, t in other.items()}
    assert all(torch.equal(state[n], other[n]) for n in state)


def test_it_is_not_an_oracle_for_padded_shortcuts() -> None:
    """Why this engine exists: on the first CIFAR ResNet torch-pruning does not couple the streams."""
    model, inputs = build("resnet20")
    graph = trace(model, inputs, probe=False)
    theirs = copy.deepcopy(model)
    oracle = dependencies(theirs, inputs)
    group = graph.groups["conv1"]
    module, pruner, index = entry(theirs, group)
    found = slices_of(oracle.get_pruning_group(module, pruner, idxs=index[0].tolist()), theirs)
    assert found != ours(group, [0])
