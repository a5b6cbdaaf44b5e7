"""What each layer of an ONNX file costs: multiply-adds, weights and activations, for one sample.

Counted are the layers with weights (Conv, ConvTranspose, Gemm, MatMul). What stands between them
(ReLU, addition, padding) is fused by runtimes and left out. Needs onnx, not torch.
"""

from __future__ import annotations

import math
import os
from typing import Any

import onnx

from mint_deploy.errors import ModelError

__all__ = ["layer_costs"]

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def layer_costs(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return ``[{name, macs, weight_elements, activation_elements}]`` in the order of execution.

    ``activation_elements`` are those that the layer reads and writes. An open batch counts as 1.

    Raises:
        ModelError: not an ONNX file, or one without the shapes of its tensors.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
        graph = onnx.shape_inference.infer_shapes(model).graph
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError has no public base class
        raise ModelError(f"{path} is not an ONNX file ({error}); export it anew") from error
    shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    batch = next((s[0] for v in graph.input if (s := _shape(v)) and v.name not in weights), 1)
    out = []
    for node in graph.node:
        if node.op_type not in _WEIGHTED:
            continue
        read, written = shapes.get(node.input[0]), shapes.get(node.output[0])
        other = weights.get(node.input[1]) or shapes.get(node.input[1])
        if read is None or written is None or other is None:
            raise ModelError(
                f"layer '{node.name}' of {path} has tensors without a shape; export it anew"
            )
        out.append(
            {
                "name": node.name.rpartition("/")[0] or node.name,
                "macs": _macs(node, read, written, other) // batch,
                "weight_elements": sum(math.prod(weights[n]) for n in node.input if n in weights),
                "activation_elements": (
                    math.prod(read)
                    + math.prod(written)
                    + (0 if node.input[1] in weights else math.prod(other))
                )
                // batch,
            }
        )
    return out


def _macs(
    node: Any, read: tuple[int, ...], written: tuple[int, ...], weight: tuple[int, ...]
) -> int:
    """Multiply-adds of the whole batch."""
    if node.op_type == "Conv":
        return math.prod(written) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(read) * math.prod(weight[1:])
    if node.op_type == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return math.prod(written) * read[0 if transposed else 1]
    return math.prod(written) * read[-1]


def _shape(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(int(d.dim_value) if d.HasField("dim_value") else 1 for d in dims)
