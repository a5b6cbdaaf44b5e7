"""One pass over unlabelled images: second moments of what every consumer really reads.

A consumer (Conv, Linear) sees its input channels as *taps*: ``k x k`` neighbouring values around an output
position. At random output positions of every image the taps are gathered and their first and second
moments accumulated in float64. Scores, plan and repair all follow from these (``method.md`` in the design).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mint_deploy.artifacts import ConsumerMoments, Moments
from mint_deploy.data import as_part
from mint_deploy.errors import DataError
from mint_deploy.files import read_arrays, write_arrays
from mint_deploy.graph import Graph
from mint_deploy.inference import evaluating
from mint_deploy.sensitivity import sensitivities

__all__ = ["ROWS_PER_TAP", "read_moments", "sample", "write_moments"]

#: rows asked for, per dimension of the taps (below it, covariances are shrunk)
ROWS_PER_TAP = 8
LEAST_ROWS = 4096

_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}


def sample(
    model: nn.Module,
    graph: Graph,
    data: Any,
    *,
    images: int = 1000,
    sensitivity_images: int = 256,
    seed: int = 0,
    batch: int = 100,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Moments:
    """Accumulate the moments of every layer that reads a prunable group.

    Args:
        model: the dense model that was traced.
        graph: its graph.
        data: anything :func:`mint_deploy.data.as_part` takes; class-balanced where it has labels.
        images: how many samples to look at.
        sensitivity_images: how many of them are also run backwards (see :mod:`.sensitivity`).
        seed: of the choice of images and positions.
        batch: images per forward pass.
        device: where to run.
        progress: called with ``(images done, images)``.

    A network that autograd cannot run backwards is sampled without sensitivities, and the settings say why.

    Raises:
        DataError: no images, or activations that are not numbers (the layer is named).
    """
    part = as_part(data)
    chosen = part.balanced(min(images, len(part)), seed)
    readers = {c for g in graph.groups.values() for c in g.consumers}
    collector = _Collector(model, graph, readers, total=len(chosen), seed=seed)
    done = 0
    with evaluating(model, device) as place, torch.no_grad():
        for x, _ in chosen.batches(batch):
            with collector:
                model(x.to(place))
            done += len(x)
            if progress is not None:
                progress(done, len(chosen))
    if not done:
        raise DataError("no images to sample; give at least a few dozen")
    found = {name: taken.finish() for name, taken in collector.found.items()}
    backwards = "run"
    try:
        felt = sensitivities(
            model,
            {id(p): n for n, p in graph.tensors.items() if n in found},
            chosen.subset(np.arange(min(sensitivity_images, len(chosen)))),
            seed=seed,
            device=device,
        )
    except RuntimeError as error:  # autograd refuses it, or its memory does not suffice
        felt, backwards = {}, f"not run: {str(error).splitlines()[0]}"
    return Moments(
        consumers={name: _with_sensitivity(c, felt.get(name)) for name, c in found.items()},
        images=done,
        seed=seed,
        dataset=part.name,
        settings={"batch": batch, "rows_per_tap": ROWS_PER_TAP, "backwards": backwards},
    )


def _with_sensitivity(c: ConsumerMoments, felt: Tensor | None) -> ConsumerMoments:
    """Attach what was felt at each output; a transposed kernel shares it among its positions."""
    if felt is None:
        return c
    values = felt.numpy().repeat(len(c.weight) // len(felt)) * len(felt) / len(c.weight)
    return dataclasses.replace(c, sensitivity=values)


@dataclass
class _Accumulator:
    """Streaming sums of one consumer; shifted by the first batch's mean, so that little cancels."""

    name: str
    kind: str
    channels: int
    taps: int
    groups: int
    bias: str | None
    normalised: bool
    weight: Tensor
    rows: int = 0
    shift: Tensor = field(default_factory=lambda: torch.empty(0))
    first: Tensor = field(default_factory=lambda: torch.empty(0))
    second: Tensor = field(default_factory=lambda: torch.empty(0))

    def add(self, taps: Tensor) -> None:
        """Add rows ``[R, D]``."""
        taps = taps.double()
        if not self.rows:
            self.shift = taps.mean(0)
            self.first = torch.zeros_like(self.shift)
            self.second = taps.new_zeros(taps.shape[1], taps.shape[1])
        taps = taps - self.shift
        self.first += taps.sum(0)
        self.second.addmm_(taps.t(), taps)
        self.rows += len(taps)

    def finish(self) -> ConsumerMoments:
        mean = self.first / self.rows
        covariance = self.second / self.rows - torch.outer(mean, mean)
        if not bool(torch.isfinite(covariance).all()):
            raise DataError(
                f"the input of '{self.name}' holds NaN or infinite values on the sample; check the "
                "images and the weights before it"
            )
        return ConsumerMoments(
            name=self.name,
            kind=self.kind,
            channels=self.channels,
            taps=self.taps,
            groups=self.groups,
            bias=self.bias,
            normalised=self.normalised,
            rows=self.rows,
            mean=(mean + self.shift).cpu().numpy(),
            covariance=((covariance + covariance.t()) / 2).cpu().numpy(),
            weight=self.weight.detach().float().cpu().numpy(),
            sensitivity=np.zeros(len(self.weight)),
        )


class _Collector(TorchFunctionMode):
    """Watches calls of convolution and linear, whichever module or function makes them."""

    def __init__(
        self, model: nn.Module, graph: Graph, readers: Iterable[str], *, total: int, seed: int
    ) -> None:
        super().__init__()
        names = {id(p): n for n, p in graph.tensors.items()}
        own = dict(model.named_parameters())
        wanted = set(readers)
        self.names = {id(own[n]): n for n in names.values() if n in wanted and n in own}
        self.layers = graph.layers
        self.total = max(1, total)
        self.random = torch.Generator().manual_seed(seed)
        self.found: dict[str, _Accumulator] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "linear" or name in _CONVOLUTIONS or name in _TRANSPOSED:
            weight = args[1] if len(args) > 1 else kwargs.get("weight")
            known = self.names.get(id(weight))
            if known is not None:
                self._see(name, known, weight, args, kwargs)
        return func(*args, **kwargs)

    def _see(
        self, function: str, name: str, weight: Tensor, args: tuple[Any, ...], kwargs: Any
    ) -> None:
        x = args[0] if args else kwargs["input"]
        layer = self.layers[name]
        if function in _TRANSPOSED and layer.groups > 1:
            return  # its groups share outputs otherwise than the taps of a convolution do

        def arg(index: int, key: str, default: Any) -> Any:
            return args[index] if len(args) > index else kwargs.get(key, default)

        space = _CONVOLUTIONS.get(function, 0)
        if space:
            stride, padding, dilation = (
                arg(3, "stride", 1),
                arg(4, "padding", 0),
                arg(5, "dilation", 1),
            )
            taps_of = _Patches(weight.shape[2:], stride, padding, dilation)
            channels, taps, flat = x.shape[-space - 1], weight.shape[2:].numel(), weight.flatten(1)
        elif function == "linear":
            taps_of, channels, taps, flat = None, x.shape[-1], 1, weight
            x = x.reshape(len(x), -1, channels) if x.dim() > 1 else x.view(1, 1, -1)
        else:
            space = _TRANSPOSED[function]
            taps_of, channels, taps = None, x.shape[-space - 1], 1
            flat = weight.flatten(1).t()
            x = x.flatten(2).transpose(1, 2)
        if name not in self.found:
            self.found[name] = _Accumulator(
                name=name,
                kind=layer.kind,
                channels=channels,
                taps=taps,
                groups=layer.groups,
                bias=layer.bias,
                normalised=layer.normalised,
                weight=flat,
            )
        dimension = channels * taps
        wanted = max(ROWS_PER_TAP * dimension, LEAST_ROWS)
        per_image = math.ceil(wanted / self.total / max(1, layer.calls))
        if taps_of is not None:
            self.found[name].add(taps_of.gather(x, per_image, self.random))
            return
        count = min(per_image, x.shape[1])
        if count < x.shape[1]:
            at = torch.rand(x.shape[:2], generator=self.random).topk(count, dim=1).indices
            x = x.gather(1, at.to(x.device)[:, :, None].expand(-1, -1, x.shape[2]))
        self.found[name].add(x.reshape(-1, channels))


class _Patches:
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

    def gather(self, x: Tensor, per_image: int, random: torch.Generator) -> Tensor:
        """Return ``[images * positions, channels * taps]``."""
        if x.dim() == len(self.kernel) + 1:
            x = x[None]
        x = F.pad(x, [p for before_after in reversed(self.pads) for p in before_after])
        extent = [
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        ]
        positions = math.prod(extent)
        count = min(per_image, positions)
        at = torch.rand((len(x), positions), generator=random).topk(count, dim=1).indices
        place = torch.unravel_index(at.reshape(-1), extent)
        # flat index of every tap of every chosen position, over the padded space: [N positions, taps]
        offsets = torch.zeros(at.numel(), 1, dtype=torch.int64)
        size = 1
        for axis in reversed(range(len(extent))):
            reach = torch.arange(self.kernel[axis]) * self.dilation[axis]
            along = place[axis][:, None] * self.stride[axis] + reach
            offsets = (along[:, :, None] * size + offsets[:, None, :]).flatten(1)
            size *= x.shape[2 + axis]
        taps = offsets.shape[1]
        index = offsets.view(len(x), 1, count * taps).to(x.device).expand(-1, x.shape[1], -1)
        found = x.flatten(2).gather(2, index).view(len(x), x.shape[1], count, taps)
        return found.transpose(1, 2).flatten(2).flatten(0, 1)


def _spread(value: Any, space: int) -> list[int]:
    return [int(value)] * space if isinstance(value, int) else [int(v) for v in value]


# ---------------------------------------------------------------- files


def write_moments(path: str | os.PathLike[str], moments: Moments) -> None:
    """Write moments as npz (no pickle)."""
    arrays: dict[str, np.ndarray] = {}
    heads: dict[str, Mapping[str, Any]] = {}
    for i, (name, c) in enumerate(moments.consumers.items()):
        arrays[f"{i}.mean"], arrays[f"{i}.covariance"] = c.mean, c.covariance
        arrays[f"{i}.weight"] = np.asarray(c.weight)
        arrays[f"{i}.sensitivity"] = c.sensitivity
        heads[name] = {
            "kind": c.kind,
            "channels": c.channels,
            "taps": c.taps,
            "groups": c.groups,
            "bias": c.bias,
            "normalised": c.normalised,
            "rows": c.rows,
        }
    header = {
        "kind": "Moments",
        "consumers": heads,
        "images": moments.images,
        "seed": moments.seed,
        "dataset": moments.dataset,
        "settings": moments.settings,
    }
    write_arrays(path, header, arrays)


def read_moments(path: str | os.PathLike[str]) -> Moments:
    """Read moments back.

    Raises:
        DataError: missing, damaged, or another kind of file.
    """
    header, arrays = read_arrays(path)
    if header.get("kind") != "Moments":
        raise DataError(f"{path} is a {header.get('kind')!r}, expected 'Moments'")
    return Moments(
        consumers={
            name: ConsumerMoments(
                name=name,
                mean=arrays[f"{i}.mean"],
                covariance=arrays[f"{i}.covariance"],
                weight=arrays[f"{i}.weight"],
                sensitivity=arrays[f"{i}.sensitivity"],
                **head,
            )
            for i, (name, head) in enumerate(header["consumers"].items())
        },
        images=header["images"],
        seed=header["seed"],
        dataset=header["dataset"],
        settings=header["settings"],
    )
