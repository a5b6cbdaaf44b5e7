"""An ONNX file as our layers: which node belongs to which, and the shapes between them.

A runtime names what it ran after nodes, and a fused kernel after a tensor; both lead back to the layer whose
weights are read there. Our exporter names nodes ``layer1.0.conv1/Conv``; other files are read as well as they
allow: by the weight's name, or the node's own. Needs onnx, not torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from mint_deploy.errors import ModelError

__all__ = ["OnnxGraph", "Shape", "read_graph", "subgraphs"]

#: None: a dimension that the file leaves open
Shape = tuple[int | None, ...]

#: where the operators of our layers read their weights; MatMul may have them on either side
WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (1, 0),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (3,),
    "BatchNormalization": (1,),
    "InstanceNormalization": (1,),
    "LayerNormalization": (1,),
    "GroupNormalization": (1,),
    "RMSNormalization": (1,),
    "PRelu": (1,),
}
#: what may stand between a weight in the file and the layer that reads it
_THROUGH = ("DequantizeLinear", "Transpose", "Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraph:
    """One file with its batch pinned: an open one counts as 1.

    ``weights``: name -> TensorProto of every initializer and constant; ``types``: tensor -> its element type's
    number; ``batch``: the first dimension of the first input; ``places``: place in the file -> node.
    """

    path: str
    nodes: tuple[Any, ...]
    places: Mapping[int, Any]
    shapes: Mapping[str, Shape]
    types: Mapping[str, int]
    weights: Mapping[str, Any]
    makers: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int
    open_batch: bool

    def source(self, name: str) -> str | None:
        """Return the weight that a tensor holds, through de-quantisation and views; None: it is computed."""
        while name not in self.weights:
            maker = self.makers.get(name)
            if maker is None or maker.op_type not in _THROUGH:
                return None
            name = maker.input[0]
        return name

    def weight_of(self, node: Any) -> str | None:
        """Return the name of the weight that makes a node one of our layers; None: it has none."""
        for index in WEIGHTS.get(node.op_type, ()):
            if index < len(node.input) and (found := self.source(node.input[index])) is not None:
                return found
        return None

    def layer_of(self, node: Any) -> str | None:
        """Return the dotted name of the layer whose weights a node reads; None: it reads none."""
        weight = self.weight_of(node)
        return None if weight is None else layer_name(node, weight)

    def width_of(self, node: Any) -> int | None:
        """Return the output channels of a layer; None where the node has no weights."""
        weight = self.weight_of(node)
        if weight is None:
            return None
        index = next(i for i, n in enumerate(node.input) if self.source(n) == weight)
        dims = self.shapes.get(node.input[index]) or tuple(self.weights[weight].dims)
        axis, times = 0, 1
        if node.op_type == "ConvTranspose":
            axis, times = 1, _attribute(node, "group", 1)
        elif node.op_type == "Gemm":
            axis = 0 if _attribute(node, "transB", 0) else 1
        elif node.op_type.startswith(("MatMul", "QLinearMatMul")):
            axis = -1 if index else -2
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            axis, times = -1, 1
            dims = tuple(self.weights[self.source(node.input[2]) or weight].dims)
        if len(dims) < (-axis if axis < 0 else axis + 1) or dims[axis] is None:
            return None
        return int(dims[axis]) * times  # type: ignore[arg-type]  # None was asked about above


def layer_name(node: Any, weight: str = "") -> str:
    """Return the layer's name: from the node's (``layer1.0.conv1/Conv``), the weight's, or the node's own."""
    stem = str(node.name).rpartition("/")[0]
    if stem and not stem.startswith("/"):
        return stem
    if weight.endswith(".weight"):
        return weight.removesuffix(".weight")
    return stem.strip("/").replace("/", ".") or str(node.name) or weight or str(node.op_type)


def read_graph(path: str | os.PathLike[str]) -> OnnxGraph:
    """Read an ONNX file (its weights may lie beside it) and infer the shapes of its tensors.

    Raises:
        ModelError: no such file, or not ONNX.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
        if not model.graph.node:
            raise ModelError(f"{path} is not an ONNX file with a graph; export it anew")
        was_open = _pin_batch_(model.graph)
        graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except ModelError:
        raise
    except Exception as error:  # protobuf's DecodeError has no public base class
        raise ModelError(f"{path} is not an ONNX file ({error}); export it anew") from error
    weights = {tensor.name: tensor for tensor in graph.initializer}
    weights |= {t.values.name: t.values for t in graph.sparse_initializer}
    places = {}
    for i, node in enumerate(graph.node):
        value = _constant(node)
        if value is not None:
            weights[node.output[0]] = value
        elif node.op_type != "Constant":
            places[i] = node
    values = (*graph.value_info, *graph.output, *graph.input)
    shapes: dict[str, Shape] = {v.name: s for v in values if (s := _shape(v)) is not None}
    if was_open:  # a first dimension that inference lost on its way is still the batch
        shapes = {
            k: (1, *s[1:]) if s[:1] == (None,) and None not in s[1:] else s
            for k, s in shapes.items()
        }
    shapes |= {name: tuple(tensor.dims) for name, tensor in weights.items()}
    fed = [v for v in graph.input if v.name not in weights]
    first = next((s for v in fed if (s := _shape(v))), (1,))
    return OnnxGraph(
        path=os.fspath(path),
        nodes=tuple(places.values()),
        places=places,
        shapes=shapes,
        types={v.name: int(v.type.tensor_type.elem_type) for v in values},
        weights=weights,
        makers={name: node for node in places.values() for name in node.output if name},
        inputs=tuple(v.name for v in fed),
        outputs=tuple(v.name for v in graph.output),
        batch=first[0] or 1,
        open_batch=was_open,
    )


def _pin_batch_(graph: Any) -> bool:
    """Make an open first dimension of the inputs 1, wherever its name stands; whether there was one.

    What stays open is forgotten, so that inference finds it anew.
    """
    weights = {tensor.name for tensor in graph.initializer}
    names, found = set(), False
    for value in graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name not in weights and dims and not dims[0].HasField("dim_value"):
            found = True
            names.add(dims[0].dim_param)
            dims[0].dim_value = 1
    for value in (*graph.input, *graph.value_info, *graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param and dim.dim_param in names:
                dim.dim_value = 1
    kept = [v for v in graph.value_info if None not in (_shape(v) or ())]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in graph.output:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    return found


def _constant(node: Any) -> Any:
    """Return the tensor of a Constant node, or None."""
    if node.op_type != "Constant":
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _shape(value: Any) -> Shape | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim)


def _attribute(node: Any, name: str, default: int) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), default)


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs that a node carries (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs
