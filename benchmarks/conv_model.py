"""The model of the timing benchmarks: equal 3x3 convolutions with ReLU, one after the other.

All layers but the first are alike, so a network with a tenth more of them takes about a tenth longer: 2 to 4 ms at
20 layers on one core. ``onnx_file`` writes it as ONNX, ``torch_module`` is the same in PyTorch.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np

CHANNELS, SIZE, LAYERS = 32, 24, 20


def weights(layers: int, seed: int = 0) -> list[np.ndarray[Any, np.dtype[Any]]]:
    """Return kernels ``[C, C', 3, 3]`` that keep the size of what passes through."""
    random, widths = np.random.default_rng(seed), [3, *[CHANNELS] * layers]
    return [
        (random.standard_normal((b, a, 3, 3)) * (2 / (9 * a)) ** 0.5).astype(np.float32)
        for a, b in itertools.pairwise(widths)
    ]


def onnx_file(
    path: Path, layers: int = LAYERS, seed: int = 0, *, size: int = SIZE, pool: bool = False
) -> Path:
    """Write the network for ``[1, 3, size, size]``; with ``pool`` it answers with means over the positions."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, last = [], "input"
    for i in range(layers):
        out = f"r{i}" if i < layers - 1 else "output"
        nodes += [
            helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1], name=f"layer{i}/Conv"),
            helper.make_node("Relu", [f"c{i}"], [out], name=f"layer{i}/Relu"),
        ]  # fmt: skip
        last = out
    end = 1 if pool else size
    if pool:
        nodes[-1].output[0] = "last"
        nodes.append(helper.make_node("GlobalAveragePool", ["last"], ["output"], name="pool"))
    shapes = {"input": [1, 3, size, size], "output": [1, CHANNELS, end, end]}
    graph = helper.make_graph(
        nodes,
        "convolutions",
        *[[helper.make_tensor_value_info(n, TensorProto.FLOAT, s)] for n, s in shapes.items()],
        [numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights(layers, seed))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def torch_module(layers: int = LAYERS, seed: int = 0, *, pool: bool = False) -> Any:
    """Return the same network as a module in evaluation mode."""
    import torch
    from torch import nn

    parts: list[nn.Module] = []
    for w in weights(layers, seed):
        conv = nn.Conv2d(w.shape[1], w.shape[0], 3, padding=1, bias=False)
        conv.weight.data = torch.from_numpy(w)
        parts += [conv, nn.ReLU()]
    return nn.Sequential(*parts, *[nn.AdaptiveAvgPool2d(1)] * pool).eval()
