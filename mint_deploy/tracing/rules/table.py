"""The table of rules, the operator call they see, and the two rules that need no name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mint_deploy.tracing.labels import compress

if TYPE_CHECKING:
    from mint_deploy.tracing.tracer import Tracer

__all__ = ["RULES", "Op", "freeze_everything", "outputs", "pointwise", "rule"]


@dataclass
class Op:
    """One operator call: its name without the in-place mark, arguments, result, and its number."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    inputs: list[Tensor]
    call: int = 0

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        """Return an argument given by position or by name."""
        if len(self.args) > index:
            return self.args[index]
        return self.kwargs.get(name, default)


Rule = Callable[["Tracer", Op], "Tensor | None"]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under ATen operator names."""

    def register(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, made))
        return made

    return register


def outputs(out: Any) -> list[Tensor]:
    """Return the tensors among an operator's results."""
    if isinstance(out, Tensor):
        return [out]
    return [t for t in out if isinstance(t, Tensor)] if isinstance(out, (tuple, list)) else []


# ---------------------------------------------------------------- no rule, element-wise


def _from_parameters(t: Tracer, op: Op) -> str:
    """Return why what goes in is frozen, if all of it was computed from parameters: that reason stands."""
    labels = [x for x in map(t.labels, op.inputs) if x is not None and x.numel()]
    known = {t.book.reason_of(int(x.reshape(-1)[0])) for x in labels}
    return (
        known.pop() if len(known) == 1 and all(k.startswith("a weight is") for k in known) else ""
    )


def freeze_everything(t: Tracer, op: Op, reason: str = "") -> None:
    """Freeze all that goes in; what comes out freezes whatever it meets."""
    reason = reason or f"no rule for the operator '{op.name}'"
    reason = _from_parameters(t, op) or f"{reason} {t.where()}"
    for tensor in op.inputs:
        t.book.freeze(t.labels(tensor), reason)
        for name in t.parameters_behind(tensor):
            t.book.freeze_tensor(name, reason)
    sink = torch.tensor(t.book.sink(reason))
    for out in outputs(op.out):
        t.put(out, sink)


def pointwise(t: Tracer, op: Op) -> Tensor | None:
    """Element-wise: labels that meet are united; a parameter that broadcasts along a channel is tied."""
    shape = op.out.shape if isinstance(op.out, Tensor) else outputs(op.out)[0].shape
    labelled: list[Tensor] = []
    parameters: list[Tensor] = []
    for tensor in op.inputs:
        labels = t.labels(tensor)
        if labels is not None:
            labelled.append(labels[(None,) * (len(shape) - labels.dim())])
        elif tensor.numel() > 1 and t.is_parameter(tensor):
            parameters.append(tensor)
    if not labelled:
        if len(op.inputs) == 1 and parameters and t.moves_parameter(op):
            return None
        for tensor in parameters:
            t.computed_from(tensor, op)
        if parameters:
            return torch.tensor(t.book.sink(f"computed from parameters {t.where()}"))
        return None
    labelled = _without_gates(t, labelled, shape)
    out = labelled[0].expand(shape)
    for other in labelled[1:]:
        other = other.expand(shape)
        t.book.unite(out, other)
        (a, b), _ = compress(out, other)
        out = torch.where(a >= 0, a, b).expand(shape)
    for tensor in parameters:
        t.tie_parameter(tensor, out)
    return out


def _without_gates(t: Tracer, labelled: list[Tensor], shape: torch.Size) -> list[Tensor]:
    """Drop operands of length 1 along an axis where another one's labels vary: gates over channels."""
    if len(labelled) < 2:
        return labelled
    varies = [compress(x)[1] for x in labelled]
    keep = []
    for labels in labelled:
        gates = any(
            labels.shape[axis] == 1 and any(v[axis] for v in varies) for axis in range(len(shape))
        )
        if gates:
            t.book.freeze(labels, f"gates all channels of another activation {t.where()}")
        else:
            keep.append(labels)
    return keep or labelled[:1]
