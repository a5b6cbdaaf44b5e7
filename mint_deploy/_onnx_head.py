"""What the builder of an engine asks of an ONNX file, on a board where the package onnx is not.

    read(path) -> Head      inputs, nodes in the parser's order, precisions beside fp32

:mod:`mint_deploy.onnx_wire` decodes the file; nothing is mapped or read of the weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ModelError
from mint_deploy.onnx_wire import Message, WireNode, decode, last, wire_node

__all__ = ["Head", "read"]

#: TensorProto.DataType -> numpy's name
_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_FLOAT16 = 10
_QUANTISED = ("QuantizeLinear", "DequantizeLinear")
_OPEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What stands in the file beside its weights.

    An open dimension of an input is -1; ``nodes`` are those of the graph itself, where TensorRT's
    parser counts them; ``holds`` the precisions that stand in the file beside fp32: ``fp16`` as
    weights of that type, ``int8`` as quantisation nodes.
    """

    inputs: tuple[TensorSpec, ...]
    nodes: tuple[WireNode, ...]
    holds: frozenset[str]


def read(path: str | os.PathLike[str]) -> Head:
    """Read the head of an ONNX file.

    Raises:
        ModelError: no such file, or it is no ONNX file, or it ends too early.
    """
    where = Path(path)
    if not where.is_file():
        raise ModelError(f"no such file: {where}; expected an ONNX model")
    if where.stat().st_size == 0:
        raise ModelError(f"{where} is empty; expected an ONNX model")
    model = decode(where)
    if not model.get("graph") or not last(model, "ir_version", 0):
        raise ModelError(
            f"{where} is no ONNX model, or is damaged (it holds no graph); export or copy it anew"
        )
    graph: Message = last(model, "graph", {})
    weights = graph.get("initializer", [])
    nodes = tuple(wire_node(node) for node in graph.get("node", []))
    found = {
        "fp16": any(last(weight, "data_type", 0) == _FLOAT16 for weight in weights),
        "int8": any(node.op_type in _QUANTISED for node in nodes),
    }
    # old files list their initialisers among the inputs
    stored = {last(weight, "name", "") for weight in weights}
    inputs = (_spec(value) for value in graph.get("input", []))
    return Head(
        inputs=tuple(spec for spec in inputs if spec.name not in stored),
        nodes=nodes,
        holds=frozenset(name for name, there in found.items() if there),
    )


def _spec(value: Message) -> TensorSpec:
    """Return a ValueInfo as a value; a dimension with a name or with nothing is open."""
    tensor: Message = last(last(value, "type", {}), "tensor_type", {})
    kind = last(tensor, "elem_type", 0)
    dims = last(tensor, "shape", {}).get("dim", [])
    return TensorSpec(
        name=last(value, "name", ""),
        shape=tuple(last(dim, "dim_value", _OPEN) for dim in dims),
        dtype=_TYPES.get(kind, f"type {kind}"),
    )
