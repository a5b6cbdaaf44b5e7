"""Copies of a network on which a cut is tried: permuted, masked, redrawn, sabotaged.

All of them work on the slices that a plan names, so they test the plan and not the tracer's opinion.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_deploy.artifacts import PlanGroup, PruningPlan
from mint_deploy.attention import open_attention
from mint_deploy.errors import MintDeployError, TraceError
from mint_deploy.inputs import Call, call, in_dtype, outputs_of, random_like
from mint_deploy.reference import Restricted
from mint_deploy.settle import settle_
from mint_deploy.tracing.parameters import tensors_of
from mint_deploy.tracing.plainly import plainly
from mint_deploy.user_model import copied

__all__ = [
    "baseline",
    "masked",
    "opened_error",
    "permuted",
    "prepared",
    "redrawn",
    "reference",
    "relative_error",
    "run",
    "sabotaged",
]


def prepared(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy in evaluation mode, in ``dtype``, on the CPU."""
    made = copied(model).to("cpu").eval()
    for tensor in tensors_of(made).values():
        tensor.data = in_dtype(tensor.data, dtype)
    return made


class _OneType(TorchFunctionMode):
    """Casts written in the code (``x.float()``) lead to ``dtype``, so that no step rounds coarser."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("float", "half", "bfloat16", "double") and args:
            return args[0].to(self.dtype)

        def same(value: Any) -> Any:
            is_float = isinstance(value, torch.dtype) and value.is_floating_point
            return self.dtype if is_float else value

        named = {name: same(value) for name, value in (kwargs or {}).items()}
        return func(*map(same, args), **named)


def run(model: nn.Module, inputs: Call) -> list[Tensor]:
    """Return the floating outputs of a model, all of it in its own dtype, random state untouched."""
    with torch.random.fork_rng(devices=[]), _in_own_type(model):
        torch.default_generator.manual_seed(0)  # the plain call also queues one for CUDA
        return outputs_of(call(model, inputs))


@contextmanager
def _in_own_type(model: nn.Module) -> Iterator[None]:
    """Whatever is made or cast in between has the dtype of the model's weights."""
    default = torch.get_default_dtype()
    floating = (t.dtype for t in tensors_of(model).values() if t.is_floating_point())
    dtype = next(floating, default)
    torch.set_default_dtype(dtype)
    try:
        with _OneType(dtype):
            yield
    finally:
        torch.set_default_dtype(default)


def baseline(model: nn.Module, inputs: Call) -> list[Tensor]:
    """Return the outputs of a network, which need not run in the dtype of the check.

    A copy runs, so that a network that counts its calls starts every time from the same state.

    Raises:
        TraceError: it raises in this dtype.
    """
    try:
        return run(copy.deepcopy(model), inputs)
    except MintDeployError:
        raise
    except Exception as error:
        dtype = next(iter(tensors_of(model).values())).dtype
        raise TraceError(
            f"cuts are checked in {str(dtype).removeprefix('torch.')}, where the model raises "
            f"{type(error).__name__}: {error}; give inputs that it accepts, and let it follow their dtype"
        ) from error


def relative_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the largest ``max|a - b| / max|b|`` over the outputs; shapes that differ or NaN: inf."""
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if a.shape != b.shape:
            return float("inf")
        differs = a != b  # infinities (masked scores) are equal to themselves
        if not bool(differs.any()):
            continue
        scale = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
        error = float((a - b)[differs].abs().max()) / max(scale, 1e-30)
        if not error < float("inf"):
            return float("inf")
        worst = max(worst, error)
    return worst


def redrawn(
    model: nn.Module, plan: PruningPlan, inputs: Call, seed: int, *, alive: bool = False
) -> tuple[nn.Module, Call, list[Tensor]]:
    """Return a copy whose values are redrawn, inputs of noise, and the outputs.

    So no small scale hides a wrong cut. ``alive`` shifts all units upwards: few of them are silent behind
    a ReLU then, but deep networks attenuate more. Where the output is not a number (a logarithm, say),
    the given inputs take the noise's place, then only the tensors that the plan cuts are redrawn, then none.
    """
    noise = random_like(inputs, seed)
    for everything in (True, False):
        made = _redrawn(model, plan, seed, everything=everything, alive=alive)
        for given in (noise, inputs):
            settled(made, given, seed, alive=alive)
            outputs = baseline(made, given)
            if all(bool(x.isfinite().any()) and not bool(x.isnan().any()) for x in outputs):
                return made, given, outputs
    return copy.deepcopy(model), inputs, baseline(model, inputs)


def settled(model: nn.Module, inputs: Call, seed: int, *, alive: bool) -> None:
    """Set the running statistics of a redrawn network to what it meets, in its own dtype."""
    with _in_own_type(model):
        settle_(model, inputs, seed, alive=alive)


def _redrawn(
    model: nn.Module, plan: PruningPlan, seed: int, *, everything: bool, alive: bool
) -> nn.Module:
    """Redraw every parameter, or only the tensors of which the plan owns slices.

    Weights are normal with the variance of He et al. 2015, scales and variances uniform in
    (0.5, 1.5), shifts and running means normal with deviation 0.5. Buffers change where a
    group owns slices of them (others, such as position tables, keep their values).
    """
    made = copy.deepcopy(model)
    random = torch.Generator().manual_seed(seed)
    owned = {m.tensor for g in plan.groups for m in g.members}
    trained = {id(p) for p in made.parameters()} if everything else set()
    with torch.no_grad():
        for name, tensor in tensors_of(made).items():
            if not tensor.is_floating_point() or (id(tensor) not in trained and name not in owned):
                continue
            last = name.rpartition(".")[2]
            noise = torch.empty_like(tensor, dtype=torch.float32)
            if "bias" in last or last == "running_mean":
                noise.normal_(generator=random).mul_(0.5)
                if alive:
                    noise.abs_().mul_(-1 if last == "running_mean" else 1)
            elif tensor.dim() > 1 and min(tensor.shape[:2]) > 0 and tensor[0].numel() > 1:
                fan_in = max(1, tensor[0].numel())
                noise.normal_(generator=random).mul_((2.0 / fan_in) ** 0.5)
            else:
                noise.uniform_(0.5, 1.5, generator=random)
            tensor.copy_(noise)
    return made


def masked(model: nn.Module, plan: PruningPlan) -> nn.Module:
    """Return a copy in which every consumer ignores the units that the plan removes."""
    made = copy.deepcopy(model)
    tensors = tensors_of(made)
    with torch.no_grad():
        for group in plan.groups:
            removed = list(group.removed)
            for member in group.members:
                if member.reads and removed:
                    gone = torch.from_numpy(member.index[removed].reshape(-1))
                    tensors[member.tensor].index_fill_(member.dim, gone, 0.0)
    return made


def reference(model: nn.Module, plan: PruningPlan, inputs: Call) -> list[Tensor]:
    """Return what the cut network must compute: the dense one's outputs on the kept units alone.

    Raises:
        SurgeryError: the network ran otherwise than when it was traced.
    """
    made = masked(model, plan)
    if not plan.statistics:
        return run(made, inputs)
    for module in made.modules():  # as it was traced, so that calls are counted alike
        open_attention(module)
    restricted = Restricted(plan)
    with plainly(), restricted:
        outputs = run(made, inputs)
    restricted.check()
    return outputs


def opened_error(model: nn.Module, inputs: Call, base: list[Tensor]) -> float:
    """Return how far the network with opened attention is from itself, whose outputs are ``base``."""
    if not any(type(m) is nn.MultiheadAttention for m in model.modules()):
        return 0.0
    made = copy.deepcopy(model)
    for module in made.modules():
        open_attention(module)
    return relative_error(run(made, inputs), base)


def _cycle(size: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a permutation that leaves nothing in its place."""
    order = np.empty(size, dtype=np.int64)
    places = random.permutation(size)
    order[places] = np.roll(places, 1)
    return order


def permuted(model: nn.Module, plan: PruningPlan, seed: int) -> nn.Module:
    """Return a copy in which the units of every group that is cut change places, in all their slices."""
    made = copy.deepcopy(model)
    tensors = tensors_of(made)
    random = np.random.default_rng(seed)
    with torch.no_grad():
        for group in plan.groups:
            order = _cycle(group.size, random)
            if not group.removed:
                continue
            for member in group.members:
                tensor = tensors[member.tensor]
                places = torch.from_numpy(member.index.reshape(-1))
                sources = torch.from_numpy(member.index[order].reshape(-1))
                tensor.index_copy_(
                    member.dim, places, tensor.index_select(member.dim, sources).clone()
                )
    return made


def sabotaged(slim: nn.Module, plan: PruningPlan, group: PlanGroup, seed: int) -> nn.Module:
    """Return a copy of the slim network that is wrong in one place.

    Two kept units of ``group`` change places in one of its tensors, and only there. With one unit left its
    slice is doubled instead.
    """
    made = copy.deepcopy(slim)
    tensors = tensors_of(made)
    random = np.random.default_rng(seed)
    member = group.members[int(random.integers(len(group.members)))]
    # Where one tensor holds all of a unit, moving all of it is no mistake: part of its slices move.
    columns = member.index.shape[1]
    part = slice(max(1, columns // 2)) if len(group.members) == 1 else slice(columns)
    gone = np.zeros(member.length, dtype=bool)
    for other in plan.groups:
        for m in other.members:
            if m.tensor == member.tensor and m.dim == member.dim:
                gone[m.index[list(other.removed)].reshape(-1)] = True
    new_place = np.cumsum(~gone) - 1
    tensor = tensors[member.tensor]
    with torch.no_grad():
        if len(group.keep) > 1:
            a, b = random.choice(group.keep, size=2, replace=False)
            first = torch.from_numpy(new_place[member.index[a][part]])
            second = torch.from_numpy(new_place[member.index[b][part]])
            both, swapped = torch.cat([first, second]), torch.cat([second, first])
            tensor.index_copy_(member.dim, both, tensor.index_select(member.dim, swapped).clone())
        else:
            place = torch.from_numpy(new_place[member.index[group.keep[0]]])
            tensor.index_copy_(member.dim, place, 2 * tensor.index_select(member.dim, place))
    return made
