r"""How much the network's output feels an error at the outputs of each layer.

    F = E sum_positions g g^T,        g = d (e . z) / d y at one position of the layer's output y [outputs],

with ``z`` the network's outputs, each scaled to unit variance and divided by the root of their number, and ``e``
standard normal: ``F`` is the Gram matrix of the Jacobian. An error of covariance ``E`` at every position,
independent from position to position, changes the network's outputs by a mean square of ``trace(F E)``, as a share
of their variance. It has the place of the output factor of K-FAC (Martens and Grosse 2015; Grosse and Martens 2016
for convolutions): errors that cancel further on, because the next layers read only their sum, cost nothing.

K-FAC's own factor, the Fisher information of the predicted distribution, was measured beside it and is worse
(docs/scoring.md; one budget, one seed): a confident prediction feels no small error, and so says nothing about
large ones.
No labels are needed.

The same backward pass gives the mean gradient of the labelled loss, for the criteria that ask for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from mint_deploy.artifacts import Floats
from mint_deploy.errors import DataError
from mint_deploy.inference import first_output
from mint_deploy.inputs import Call, outputs_of
from mint_deploy.taps import layer_call
from mint_deploy.training import label_loss

__all__ = ["Backwards"]

#: positions of one image whose gradients are looked at; the others are taken to be like them
POSITIONS = 256


class Backwards:
    """Runs a network forwards and backwards, batch by batch, and sums what is felt where.

    Args:
        model: in evaluation mode.
        names: id of a weight -> its name, of the layers whose outputs count.
        seed: of the projections and positions.
        gradients: also sum the gradient of the labelled loss, for every parameter.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[int, str],
        *,
        seed: int = 0,
        gradients: bool = False,
    ) -> None:
        self.model, self.names = model, names
        self.random = torch.Generator().manual_seed(seed)
        self.total: dict[str, Tensor] = {}
        self.seen = 0
        # parameters that are frozen have no gradient, and count as unchanged by a cut
        self.wanted = {n: p for n, p in model.named_parameters() if gradients and p.requires_grad}
        self.slopes: dict[str, Tensor] = {}

    def step(self, call: Call, labels: Tensor | None = None) -> None:
        """Run one batch in both directions.

        Raises:
            RuntimeError: autograd cannot run this network backwards.
        """

        def felt(x: Tensor) -> Tensor:
            return x.detach().requires_grad_(True).clone() if x.is_floating_point() else x

        args, kwargs = tree_map_only(Tensor, felt, call)
        with torch.enable_grad(), _Outputs(self.names) as watch:
            result = self.model(*args, **kwargs)
            projected = _projection(outputs_of(result), self.random)
        count = len(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)))
        kept = [y for _, _, y in watch.kept]
        if kept and projected.requires_grad:
            grads: Sequence[Tensor | None] = torch.autograd.grad(
                projected, kept, allow_unused=True, retain_graph=bool(self.wanted)
            )
            for (name, linear, _), g in zip(watch.kept, grads, strict=True):
                if g is not None:
                    self._add(name, _rows(g.detach(), linear=linear, random=self.random))
        self.seen += count
        if self.wanted:
            self._slope(result, labels, count)

    def _add(self, name: str, rows: Tensor) -> None:
        felt = (rows.t() @ rows).double().cpu()
        self.total[name] = self.total[name] + felt if name in self.total else felt

    def _slope(self, result: Any, labels: Tensor | None, count: int) -> None:
        if labels is None:
            raise DataError("gradients of the loss need labels; give (x, y)")
        with torch.enable_grad():
            loss = label_loss(first_output(result), labels) * count
        slopes = torch.autograd.grad(loss, list(self.wanted.values()), allow_unused=True)
        for name, slope in zip(self.wanted, slopes, strict=True):
            if slope is not None:
                found = slope.detach().cpu()
                self.slopes[name] = self.slopes[name] + found if name in self.slopes else found

    def felt(self) -> dict[str, Floats]:
        """Return ``F [outputs, outputs]`` of every layer that was seen."""
        return {name: (f / max(1, self.seen)).numpy() for name, f in self.total.items()}

    def gradients(self, images: int) -> dict[str, npt.NDArray[np.float32]]:
        """Return the mean gradient of the loss over the images, by parameter."""
        return {n: (g / max(1, images)).float().numpy() for n, g in self.slopes.items()}


class _Outputs(TorchFunctionMode):
    """Keeps the outputs of the layers that are asked for."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.kept: list[tuple[str, bool, Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        weight = layer_call(func, args, kwargs)
        known = None if weight is None else self.names.get(id(weight))
        if known is not None and result.requires_grad:
            self.kept.append((known, func.__name__ == "linear", result))
            return result.clone()  # a later in-place operator must not change what is kept
        return result


def _rows(g: Tensor, *, linear: bool, random: torch.Generator) -> Tensor:
    """Return gradients as ``[images * positions, outputs]``; few of many positions stand for all."""
    if linear:
        g = g.reshape(len(g), -1, g.shape[-1]) if g.dim() > 1 else g.view(1, 1, -1)
    else:
        g = g.flatten(2).transpose(1, 2)
    positions = g.shape[1]
    if positions > POSITIONS:
        at = torch.randint(positions, (len(g), POSITIONS), generator=random).to(g.device)
        g = g.gather(1, at[:, :, None].expand(-1, -1, g.shape[2]))
        g = g * (positions / POSITIONS) ** 0.5
    return g.reshape(-1, g.shape[-1])


def _projection(outputs: list[Tensor], random: torch.Generator) -> Tensor:
    """Return a scalar whose gradient has the Gram matrix of the Jacobian as its second moment."""
    total = outputs[0].new_zeros(())
    for z in outputs:
        flat = z.float().flatten(1)
        noise = torch.randn(flat.shape, generator=random).to(flat.device)
        scale = float(flat.detach().std(correction=0)) or 1.0
        total = total + (flat * noise).sum() / (scale * flat.shape[1] ** 0.5)
    return total
