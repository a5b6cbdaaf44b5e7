"""The reference that a cut network must equal: the dense one, which computes on the kept channels alone.

Where nothing is computed *over* channels, that is the dense network whose consumers ignore the removed
units. A LayerNorm, a softmax over channels or the product of queries and keys would still see them: there
:class:`Restricted` runs the operator on the kept positions, and leaves the others what they were.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mint_deploy.artifacts import PruningPlan, Statistic
from mint_deploy.errors import SurgeryError

__all__ = ["OPERATORS", "Restricted"]


class Restricted(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it bare
    """While active, the statistics that ``plan`` names run over the channels that stay.

    :meth:`check` raises where the network did not come by all of them.
    """

    def __init__(self, plan: PruningPlan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it bare
        self._wanted = {(s.op, s.call): (s, kept_positions(plan, s)) for s in plan.statistics}
        self._operators = {s.op for s in plan.statistics}
        self._calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.removesuffix("_")
        if name not in self._operators:
            return func(*args, **kwargs)
        call = self._calls[name]
        self._calls[name] += 1
        statistic, kept = self._wanted.get((name, call), (None, None))
        if statistic is None or kept is None or len(kept) == statistic.length:
            return func(*args, **kwargs)
        factor = args[1] if name in ("addmm", "baddbmm") else args[0]
        found = factor.shape[statistic.axis] if factor.dim() >= -statistic.axis else None
        if found != statistic.length:
            raise SurgeryError(
                f"call {call} of '{name}' meets {found} channels, {statistic.length} were traced "
                f"{statistic.where}; the network runs otherwise than when it was traced"
            )
        return OPERATORS[name](func, args, kwargs, kept, statistic.axis)

    def check(self) -> None:
        """Check that every statistic was met.

        Raises:
            SurgeryError: the network ran otherwise than when it was traced.
        """
        for (name, call), (statistic, _) in self._wanted.items():
            if self._calls[name] <= call:
                raise SurgeryError(
                    f"call {call} of '{name}' {statistic.where} was traced and did not come again; the "
                    "network runs otherwise than when it was traced"
                )


def kept_positions(plan: PruningPlan, statistic: Statistic) -> Tensor:
    """Return the positions along a statistic's axis that stay, int64."""
    stays = torch.ones(statistic.length, dtype=torch.bool)
    removed = {g.name: list(g.removed) for g in plan.groups}
    for positions in statistic.of:
        stays[positions.index[removed.get(positions.group, [])].reshape(-1)] = False
    return stays.nonzero()[:, 0]


Run = Callable[[Any, tuple[Any, ...], dict[str, Any], Tensor, int], Any]


def _reduced(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, axis: int
) -> Any:
    """The axis is gone from the result, or of length 1."""
    return func(args[0].index_select(axis, kept), *args[1:], **kwargs)


def _along(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, axis: int
) -> Any:
    """The axis is still there."""
    whole = func(*args, **kwargs)
    return whole.index_copy(axis, kept, _reduced(func, args, kwargs, kept, axis))


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, _: int) -> Any:
    """``a @ b`` with channels along the last axis of ``a``."""
    return func(args[0].index_select(-1, kept), args[1].index_select(-2, kept), **kwargs)


def _product_added(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, _: int
) -> Any:
    """``c + a @ b``; the axis is that of ``a``."""
    a, b = args[1].index_select(-1, kept), args[2].index_select(-2, kept)
    return func(args[0], a, b, **kwargs)


def _layer_norm(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, axis: int
) -> Any:
    x, shape = args[0], list(args[1])
    shape[axis] = len(kept)
    rest = [
        p.index_select(axis, kept) if isinstance(p, Tensor) and p.shape[axis] > 1 else p
        for p in args[2:]
    ]
    whole = func(*args, **kwargs)
    part = func(x.index_select(axis, kept), shape, *rest, **kwargs)
    return (whole[0].index_copy(axis, kept, part[0]), *part[1:])


def _group_norm(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Tensor, _axis: int
) -> Any:
    x, weight, bias, batch, _, positions, groups, eps = args
    rest = [p if p is None else p.index_select(0, kept) for p in (weight, bias)]
    part_of = x.index_select(1, kept).contiguous()
    part = func(part_of, *rest, batch, len(kept), positions, groups, eps)
    return (func(*args, **kwargs)[0].index_copy(1, kept, part[0]), *part[1:])


#: how each operator that can be a statistic runs on kept positions alone
OPERATORS: dict[str, Run] = {
    **dict.fromkeys(
        (
            "mean", "sum", "amax", "amin", "prod", "logsumexp", "linalg_vector_norm", "norm", "max",
            "min", "var", "std", "var_mean", "std_mean", "any", "all", "nansum",
        ),
        _reduced,
    ),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _along),
    **dict.fromkeys(("mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _product_added),
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    "native_group_norm": _group_norm,
}  # fmt: skip
