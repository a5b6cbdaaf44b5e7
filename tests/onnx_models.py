"""Small ONNX files for the tests of the device half, written with onnx alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_conv(
    path: Path, *, channels: int = 8, size: int = 8, depth: int = 2, batch: int | None = None
) -> Path:
    """``depth`` 3x3 convolutions with ReLU on ``[N, 3, size, size]``; no ``batch``: N is open."""
    rng = np.random.default_rng(0)
    nodes, weights, width, last = [], [], 3, "input"
    for i in range(depth):
        kernel = rng.standard_normal((channels, width, 3, 3)).astype(np.float32) / (3 * width**0.5)
        weights.append(numpy_helper.from_array(kernel, f"w{i}"))
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"]))
        width, last = channels, f"r{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["output"]))
    first = "N" if batch is None else batch
    graph = helper.make_graph(
        nodes,
        "conv",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [first, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [first, channels])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path
