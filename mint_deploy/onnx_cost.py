"""What each layer of an ONNX file costs: multiply-adds, weights and activations, for one sample.

Counted are the layers with weights and the products of activations (Conv, ConvTranspose, Gemm, MatMul, their
quantised forms, LSTM, GRU, RNN). What stands between them (ReLU, addition, padding) is fused by runtimes and
left out. Needs onnx, not torch.
"""

from __future__ import annotations

import math
import os
from typing import Any

from mint_deploy.errors import ModelError
from mint_deploy.onnx_layers import OnnxGraph, layer_name, read_graph

__all__ = ["costs_of", "layer_costs"]

#: operator -> where its two factors stand among the inputs: what is read, and the weight (or other activation)
_FACTORS = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "ConvInteger": (0, 1),
    "MatMulInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "LSTM": (0, 1),
    "GRU": (0, 1),
    "RNN": (0, 1),
}
_RECURRENT = ("LSTM", "GRU", "RNN")


def layer_costs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return ``[{name, macs, weight_elements, activation_elements}]`` in the order of execution.

    ``activation_elements`` are those that the layer reads and writes. An open batch counts as 1.

    Raises:
        ModelError: not an ONNX file, or one without the shapes of its tensors.
    """
    return costs_of(read_graph(path))


def costs_of(graph: OnnxGraph) -> list[dict[str, Any]]:
    """Return :func:`layer_costs` of a file that is read already."""
    return [_cost(graph, node) for node in graph.nodes if node.op_type in _FACTORS]


def _cost(graph: OnnxGraph, node: Any) -> dict[str, Any]:
    at, by = _FACTORS[node.op_type]
    written = next(name for name in node.output if name)  # an LSTM may leave out its first output
    read, out, other = (_known(graph, node, n) for n in (node.input[at], written, node.input[by]))
    computed = graph.source(node.input[by]) is None
    held = {name for n in node.input if n and (name := graph.source(n)) is not None}
    return {
        "name": layer_name(node, graph.weight_of(node) or ""),
        "macs": _macs(graph, node, read, out, other) // graph.batch,
        "weight_elements": sum(math.prod(graph.weights[n].dims) for n in held),
        "activation_elements": (
            math.prod(read) + math.prod(out) + (math.prod(other) if computed else 0)
        )
        // graph.batch,
    }


def _known(graph: OnnxGraph, node: Any, name: str) -> tuple[int, ...]:
    shape = graph.shapes.get(name)
    if shape is None or None in shape:
        what = "without a shape" if shape is None else "that leave more than the batch open"
        raise ModelError(
            f"layer '{node.name}' of {graph.path} has tensors {what}; export it anew, "
            "with a fixed size of the inputs"
        )
    return tuple(int(n) for n in shape if n is not None)


def _macs(
    graph: OnnxGraph,
    node: Any,
    read: tuple[int, ...],
    written: tuple[int, ...],
    weight: tuple[int, ...],
) -> int:
    """Multiply-adds of the whole batch."""
    if node.op_type in _RECURRENT:  # each step multiplies by the input's and the state's weights
        return (
            read[0] * read[1] * (math.prod(weight) + math.prod(_known(graph, node, node.input[2])))
        )
    if node.op_type == "ConvTranspose":
        return math.prod(read) * math.prod(weight[1:])
    if "Conv" in node.op_type:
        return math.prod(written) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(written) * read[0 if transposed else 1]
    return math.prod(written) * read[-1]
