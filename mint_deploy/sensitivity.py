"""How much the network's output feels an error at each output of each layer.

For a classifier the measure is the Fisher information: with labels drawn from the model's own prediction,
``F_o = E sum_positions (d log p / d y_o)^2``, so an independent error of variance ``d`` at every position of
``y_o`` moves the predicted distribution by ``F_o d / 2`` nats to second order (Amari; *Fisher pruning*, Theis
et al. 2018). For other outputs a random projection stands in for the log-likelihood (each output scaled to
unit variance), which makes ``F_o`` the squared norm of the Jacobian. No labels are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_deploy.data import Part
from mint_deploy.inference import evaluating
from mint_deploy.inputs import outputs_of

__all__ = ["sensitivities"]

_LAYERS = {
    "linear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip


class _Outputs(TorchFunctionMode):
    """Keeps the outputs of the layers that are asked for."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.kept: list[tuple[str, str, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name in _LAYERS:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            known = self.names.get(id(weight))
            if known is not None and result.requires_grad:
                self.kept.append((known, name, result))
                return result.clone()  # a later in-place operator must not change what is kept
        return result


def sensitivities(
    model: nn.Module,
    names: dict[int, str],
    part: Part,
    *,
    seed: int = 0,
    batch: int = 32,
    device: str = "cpu",
) -> dict[str, Tensor]:
    """Return ``F [outputs]`` (float64) of every layer whose weight is in ``names`` (id -> name)."""
    random = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    seen = 0
    with evaluating(model, device) as place:
        for x, _ in part.batches(batch):
            with torch.enable_grad(), _Outputs(names) as watch:
                result = model(x.to(place).requires_grad_(True))
                likelihood = _likelihood(outputs_of(result), random)
                kept = [y for _, _, y in watch.kept]
                if not kept or not likelihood.requires_grad:
                    break
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                likelihood, kept, allow_unused=True
            )
            for (name, function, _), g in zip(watch.kept, grads, strict=True):
                if g is None:
                    continue
                axis = g.dim() - 1 if function == "linear" else 1
                others = [a for a in range(g.dim()) if a != axis]
                felt = g.detach().double().square().sum(others).cpu()
                total[name] = total[name] + felt if name in total else felt
            seen += len(x)
    return {name: felt / max(1, seen) for name, felt in total.items()}


def _likelihood(outputs: list[Tensor], random: torch.Generator) -> Tensor:
    """Return a scalar whose gradient has the Fisher information as its second moment."""
    if len(outputs) == 1 and outputs[0].dim() == 2 and outputs[0].shape[1] > 1:
        logs = outputs[0].float().log_softmax(1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=random)
        return logs.gather(1, drawn.to(logs.device)).sum()
    total = outputs[0].new_zeros(())
    for y in outputs:
        flat = y.float().flatten(1)
        noise = torch.randn(flat.shape, generator=random).to(flat.device)
        scale = flat.detach().std().clamp_min(1e-12) * flat.shape[1] ** 0.5
        total = total + (flat * noise).sum() / scale
    return total
