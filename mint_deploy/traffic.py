"""What every layer computes and moves through memory: the evidence to predict a board's time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mint_deploy.graph import Graph
from mint_deploy.inference import evaluating

__all__ = ["layer_traffic"]


def layer_traffic(
    model: nn.Module, graph: Graph, keep: Mapping[str, Iterable[int]], example: Tensor
) -> list[dict[str, Any]]:
    """Return ``{name, macs, weight_elements, activation_elements}`` of each layer, for one sample.

    Args:
        model: the dense network, or the slim one that ``keep`` made of it.
        graph: of the dense network.
        keep: group -> the units that stay; empty for the dense network.
        example: samples ``[N, ...]``.

    Activations are those read plus those written. They are seen where a layer is a module; of one
    that is called as a function they count as none, so that a time made of them is a lower bound.
    """
    sizes = graph.sizes({name: list(units) for name, units in keep.items()})
    macs = graph.layer_macs(sizes)
    modules = dict(model.named_modules())
    seen: dict[str, int] = {}
    hooks = []
    for layer in graph.layers.values():
        if layer.name in modules:
            note = _counter(seen, layer.name)
            hooks.append(modules[layer.name].register_forward_hook(note))
    try:
        with evaluating(model), torch.no_grad():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return [
        {
            "name": layer.name,
            "macs": macs[weight],
            "weight_elements": int(np.prod(sizes[weight], dtype=np.int64)),
            "activation_elements": seen.get(layer.name, 0) // len(example),
        }
        for weight, layer in graph.layers.items()
    ]


def _counter(seen: dict[str, int], name: str) -> Any:
    def note(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [x for x in (*inputs, output) if isinstance(x, Tensor)]
        seen[name] = seen.get(name, 0) + sum(x.numel() for x in tensors)

    return note
