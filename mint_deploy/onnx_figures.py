"""The figures of a model file that no clock moves: bytes, parameters, multiply-adds, peak activations.

    file_bytes              the file, and the files beside it that hold its weights
    params, weight_bytes    the numbers that its layers hold, and the bytes that they are stored in
    macs                    multiply-adds for one sample
    peak_activation_bytes   the most that is alive at once, for one call with the file's batch (an open one: 1)

Computed from the ONNX file itself, so they hold for any ONNX and on any machine. What cannot be computed is
missing, with its reason. Needs onnx, not torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from mint_deploy.errors import ModelError
from mint_deploy.onnx_cost import costs_of
from mint_deploy.onnx_layers import OnnxGraph, read_graph, subgraphs

__all__ = ["FIGURES", "figures"]

FIGURES = ("file_bytes", "params", "macs", "weight_bytes", "peak_activation_bytes")

_STANDARD = ("", "ai.onnx")
#: operators that multiply, and that are not counted
_UNCOUNTED = ("Einsum", "Attention", "DeformConv", "DFT", "STFT")
#: inputs that are not weights: statistics, scales, zero points, sizes
_NO_WEIGHT = {
    "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3),
    "Resize": (1, 2, 3),
    "Upsample": (1,),
}
#: inputs that are weights though they are whole numbers
_WHOLE = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}
#: operators whose output is their input under another shape
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")
_FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
}
_HALF_BYTES = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}


def figures(path: str | os.PathLike[str]) -> tuple[dict[str, float], dict[str, str]]:
    """Return the figures of a file by name, and for each that is missing why it is missing.

    A file that is not ONNX (an engine) has ``file_bytes`` alone.

    Raises:
        ModelError: no such file.
    """
    if not Path(path).is_file():
        raise ModelError(f"no such file: {path}; expected a model")
    found: dict[str, float] = {"file_bytes": float(Path(path).stat().st_size)}
    try:
        graph = read_graph(path)
    except ModelError as error:
        return found, dict.fromkeys(FIGURES[1:], str(error))
    found["file_bytes"] += sum(_beside(graph))
    held = [graph.weights[name] for name in sorted(_parameters(graph))]
    found["params"] = float(sum(math.prod(t.dims) for t in held))
    found["weight_bytes"] = float(sum(_bytes(math.prod(t.dims), t.data_type) for t in held))
    nulls = {}
    counted: dict[str, Callable[[OnnxGraph], float]] = {
        "macs": _macs,
        "peak_activation_bytes": _peak,
    }
    for name, count in counted.items():
        value = _tried(count, graph)
        if isinstance(value, str):
            nulls[name] = value
        else:
            found[name] = value
    inner = next((n.op_type for n in graph.nodes if any(subgraphs(n))), None)
    if inner:
        for name in ("params", "weight_bytes"):
            del found[name]
            nulls[name] = f"the file has branches or loops ({inner}), whose weights are not counted"
    return found, nulls


def _tried(count: Callable[[OnnxGraph], float], graph: OnnxGraph) -> float | str:
    """Return the figure, or why there is none."""
    try:
        return count(graph)
    except ModelError as error:
        return str(error)


def _beside(graph: OnnxGraph) -> Iterator[int]:
    """Yield the size of each file that holds weights of this one."""
    places = {
        entry.value
        for tensor in graph.weights.values()
        for entry in tensor.external_data
        if entry.key == "location"
    }
    for place in sorted(places):
        path = Path(graph.path).parent / place
        if path.is_file():
            yield path.stat().st_size


def _bytes(count: int, kind: int) -> int:
    if kind in _HALF_BYTES:
        return (count + 1) // 2
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)


# ---------------------------------------------------------------- weights


def _parameters(graph: OnnxGraph) -> set[str]:
    """Return the weights: no single numbers, no statistics of BatchNorm, no scales, no shapes."""
    found = set()
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            tensor = graph.weights.get(name)
            if tensor is None or not tensor.dims or index in _NO_WEIGHT.get(node.op_type, ()):
                continue
            if tensor.data_type in _FLOATS or index in _WHOLE.get(node.op_type, ()):
                found.add(name)
    return found


# ---------------------------------------------------------------- multiply-adds


def _macs(graph: OnnxGraph) -> float:
    for node in graph.nodes:
        if node.domain not in _STANDARD or node.op_type in _UNCOUNTED or any(subgraphs(node)):
            name = f"{node.domain}.{node.op_type}".lstrip(".")
            raise ModelError(f"the operator {name} ('{node.name}') is not counted")
    return float(sum(cost["macs"] for cost in costs_of(graph)))


# ---------------------------------------------------------------- activations


def _peak(graph: OnnxGraph) -> float:
    """Return the most bytes alive at once, node by node in the file's order.

    A tensor lives from the node that writes it to the last that reads it; the caller's inputs until their last
    reader, what is returned until the end. Nothing is computed in place, and a view takes no bytes.
    """
    owner: dict[str, str] = {}
    for node in graph.nodes:
        if any(subgraphs(node)):
            raise ModelError(
                f"the file has branches or loops ({node.op_type}), so what is alive at once is not known"
            )
        if node.op_type in _VIEWS and node.input[0] not in graph.weights:
            owner[node.output[0]] = owner.get(node.input[0], node.input[0])
    last: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        for name in (*node.input, *node.output):
            last[owner.get(name, name)] = i
    for name in graph.outputs:
        last[owner.get(name, name)] = len(graph.nodes)
    alive = {name: _size(graph, name) for name in graph.inputs}
    peak = sum(alive.values())
    for i, node in enumerate(graph.nodes):
        for name in node.output:
            if name and name not in owner:
                alive[name] = _size(graph, name)
        peak = max(peak, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last.get(name, -1) > i}
    return float(peak)


def _size(graph: OnnxGraph, name: str) -> int:
    shape, kind = graph.shapes.get(name), graph.types.get(name, 0)
    if shape is None or None in shape or not kind:
        raise ModelError(
            f"the size of the tensor '{name}' is not known from the file; "
            "export it with a fixed size of the inputs"
        )
    if kind == onnx.TensorProto.STRING:
        raise ModelError(f"the tensor '{name}' holds texts, whose bytes are not known")
    return _bytes(math.prod(n for n in shape if n is not None), kind)
