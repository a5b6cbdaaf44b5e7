"""What one call of a convolution or linear layer reads: taps at random positions, and means over all.

The taps of an output position are the ``k x k`` values of each input channel that the kernel covers there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = ["Draw", "Read", "layer_call", "reading"]

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
#: up to one position in so many is drawn with replacement
FEW = 8


class Read(NamedTuple):
    """How a layer reads ``x``: ``channels`` of ``taps`` each, through ``weight [outputs, ...]``.

    ``patches`` is None where single positions are read; ``x`` is then ``[N, positions, channels]``.
    """

    x: Tensor
    channels: int
    taps: int
    weight: Tensor
    patches: Patches | None
    transposed: bool

    def rows(self, per_image: int, draw: Draw) -> Tensor:
        """Return ``[images * positions, channels * taps]`` of random positions in every image."""
        if self.patches is not None:
            return self.patches.gather(self.x, per_image, draw)
        x = self.x
        count = min(per_image, x.shape[1])
        if count < x.shape[1]:
            at = draw.positions(x.shape[0], x.shape[1], count)
            x = x.gather(1, at.to(x.device)[:, :, None].expand(-1, -1, x.shape[2]))
        return x.reshape(-1, self.channels)

    def inputs(self) -> Tensor:
        """Return the mean over positions, ``[images, channels]``."""
        return self.x.mean(1) if self.patches is None else self.x.flatten(2).mean(2)

    def outputs(self, result: Tensor) -> Tensor:
        """Return the mean over positions of what the layer computed, ``[images, outputs]``."""
        if self.patches is None and not self.transposed:  # a linear layer: channels last
            return result.reshape(len(self.x), -1, result.shape[-1]).mean(1)
        shape = (len(self.x), -1, result.shape[result.dim() - self._space(result) :].numel())
        return result.reshape(shape).mean(2)

    def _space(self, result: Tensor) -> int:
        if self.patches is not None:
            return len(self.patches.kernel)
        return result.dim() - 2  # a transposed convolution of a batch


def layer_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return the weight of a call of a convolution or linear layer, None for any other call."""
    name = getattr(function, "__name__", "")
    if name != "linear" and name not in _CONVOLUTIONS and name not in _TRANSPOSED:
        return None
    weight = args[1] if len(args) > 1 else kwargs.get("weight")
    return weight if isinstance(weight, Tensor) else None


def reading(
    function: Any, weight: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any], groups: int
) -> Read | None:
    """Return how the layer reads its input; None where its groups share outputs in another way."""
    name = function.__name__
    x: Tensor = args[0] if args else kwargs["input"]

    def given(index: int, key: str, default: Any) -> Any:
        return args[index] if len(args) > index else kwargs.get(key, default)

    if name == "linear":
        channels = x.shape[-1]
        x = x.reshape(len(x), -1, channels) if x.dim() > 1 else x.view(1, 1, -1)
        return Read(x, channels, 1, weight, None, transposed=False)
    if name in _TRANSPOSED:
        if groups > 1:
            return None
        space = _TRANSPOSED[name]
        x = x[None] if x.dim() == space + 1 else x
        flat = weight.flatten(1).t()
        return Read(x.flatten(2).transpose(1, 2), x.shape[1], 1, flat, None, transposed=True)
    space = _CONVOLUTIONS[name]
    patches = Patches(
        weight.shape[2:],
        given(3, "stride", 1),
        given(4, "padding", 0),
        given(5, "dilation", 1),
    )
    x = x[None] if x.dim() == space + 1 else x
    taps = weight.shape[2:].numel()
    return Read(x, x.shape[1], taps, weight.flatten(1), patches, transposed=False)


class Patches:
    """Gathers the taps of random output positions of a convolution."""

    def __init__(self, kernel: torch.Size, stride: Any, padding: Any, dilation: Any) -> None:
        space = len(kernel)
        self.kernel = list(kernel)
        self.stride, self.dilation = _spread(stride, space), _spread(dilation, space)
        if padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, kernel, strict=True)]
            self.pads = [(t // 2, t - t // 2) for t in total]
        else:
            amounts = _spread(0 if padding == "valid" else padding, space)
            self.pads = [(p, p) for p in amounts]

    def gather(self, x: Tensor, per_image: int, draw: Draw) -> Tensor:
        """Return ``[images * positions, channels * taps]``."""
        extent = [
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, (before, after), k, s, d in zip(
                x.shape[2:], self.pads, self.kernel, self.stride, self.dilation, strict=True
            )
        ]
        positions = math.prod(extent)
        count = min(per_image, positions)
        padded = any(p for pads in self.pads for p in pads)
        if math.prod(self.kernel) == 1 and not padded:
            steps: tuple[Any, ...] = (..., *(slice(None, None, s) for s in self.stride))
            taken = x[steps].flatten(2)
            if count < positions:
                at = draw.positions(len(x), positions, count)
                taken = taken.gather(2, at.to(x.device)[:, None].expand(-1, x.shape[1], -1))
            return taken.transpose(1, 2).reshape(-1, x.shape[1])
        index, inside = draw.once(
            (len(x), count, *x.shape[2:], *self.kernel, *self.stride, *self.dilation, *self.pads),
            lambda: self._places(draw.positions(len(x), positions, count), extent, x.shape[2:]),
        )
        taps = index.shape[1] // count
        index = index[:, None].to(x.device).expand(-1, x.shape[1], -1)
        found = x.flatten(2).gather(2, index).view(len(x), x.shape[1], count, taps)
        if padded:
            found = found * inside.view(len(x), 1, count, taps).to(x.device)
        return found.transpose(1, 2).flatten(2).flatten(0, 1)

    def _places(self, at: Tensor, extent: list[int], space: torch.Size) -> tuple[Tensor, Tensor]:
        """Return the flat index ``[N, count * taps]`` of every tap, and whether it is inside the input."""
        place = torch.unravel_index(at.reshape(-1), extent)
        offsets = torch.zeros(at.numel(), 1, dtype=torch.int64)
        inside = torch.ones(1, 1, dtype=torch.bool)
        size = 1
        for axis in reversed(range(len(extent))):
            length, before = space[axis], self.pads[axis][0]
            reach = torch.arange(self.kernel[axis]) * self.dilation[axis] - before
            along = place[axis][:, None] * self.stride[axis] + reach
            within = (along >= 0) & (along < length)
            inside = (within[:, :, None] & inside[:, None, :]).flatten(1)
            along.clamp_(0, length - 1)
            offsets = (along[:, :, None] * size + offsets[:, None, :]).flatten(1)
            size *= length
        return offsets.view(len(at), -1), inside.view(len(at), -1)


class Draw:
    """Random positions; layers of one shape share them within a batch."""

    def __init__(self, seed: int) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.known: dict[tuple[object, ...], tuple[Tensor, Tensor]] = {}

    def once(
        self, key: tuple[object, ...], make: Callable[[], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return what ``make`` returned for this key, until :meth:`turn`."""
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def turn(self) -> None:
        """Draw anew from here on."""
        self.known.clear()

    def positions(self, images: int, positions: int, count: int) -> Tensor:
        """Return ``[images, count]`` positions; few of many are drawn with replacement, which is quicker."""
        if count * FEW <= positions:
            return torch.randint(positions, (images, count), generator=self.random)
        drawn = torch.rand((images, positions), generator=self.random)
        return drawn.topk(count, dim=1).indices


def _spread(value: Any, space: int) -> list[int]:
    return [int(value)] * space if isinstance(value, int) else [int(v) for v in value]
