"""An ONNX file in the hand: names a person recognises, pinned versions, and what it says of itself.

Both of PyTorch's exporters leave names of their own (``node_Conv_848``) and one leaves the source
paths of the machine it ran on; here they become ``layer1.0.conv1/Conv`` and nothing. No torch here.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx

from mint_deploy.artifacts import TensorSpec
from mint_deploy.errors import ModelError, TargetError
from mint_deploy.runtimes import DYNAMIC

__all__ = [
    "OnnxFacts",
    "batchnorm_left",
    "describe",
    "finish",
    "pin_outputs_",
    "read_onnx",
    "tidy_",
]

#: the operators whose second input is a weight that has a layer's name
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_SCOPES = "pkg.torch.onnx.name_scopes"
_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFacts:
    """What an ONNX file says of itself; an open dimension of a tensor is ``DYNAMIC`` (-1)."""

    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    metadata: Mapping[str, str]
    operators: Mapping[str, int]


def read_onnx(path: str | os.PathLike[str]) -> OnnxFacts:
    """Read an ONNX file and say what it is.

    Raises:
        ModelError: no such file, or not ONNX.
    """
    try:
        model = onnx.load(os.fspath(path), load_external_data=False)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError has no public base class
        raise ModelError(f"{path} is not an ONNX file ({error}); export it anew") from error
    if not model.graph.node:
        raise ModelError(f"{path} is not an ONNX file with a graph; export it anew")
    return describe(model)


def describe(model: Any) -> OnnxFacts:
    """Say what an ONNX model is."""
    counts: dict[str, int] = {}
    for node in _nodes(model.graph):
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    weights = {tensor.name for tensor in model.graph.initializer}
    return OnnxFacts(
        opset=max((o.version for o in model.opset_import if o.domain in _STANDARD), default=0),
        ir_version=int(model.ir_version),
        inputs=tuple(_spec(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_spec(v) for v in model.graph.output),
        metadata={p.key: p.value for p in model.metadata_props},
        operators=dict(sorted(counts.items())),
    )


def _spec(value: Any) -> TensorSpec:
    tensor = value.type.tensor_type
    dims = tuple(int(d.dim_value) if d.HasField("dim_value") else DYNAMIC for d in tensor.shape.dim)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    return TensorSpec(name=value.name, shape=dims, dtype=str(dtype))


def _nodes(graph: Any) -> Iterator[Any]:
    """Yield every node, those of sub-graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


# ---------------------------------------------------------------- names


def tidy_(model: Any, *, prefix: str = "model.") -> None:
    """Name weights and nodes after the layers, drop the exporter's notes and weights nobody reads.

    Args:
        model: a ModelProto, changed in place.
        prefix: what stands before every layer's name because the network was wrapped.
    """
    graph = model.graph
    _drop_unread(graph)
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.node:
        layer = _layer(node, weights)
        if layer is not None:
            layer = f"{layer}.".removeprefix(prefix).rstrip(".")
            node.name = f"{layer}/{node.op_type}" if layer else node.op_type
            if layer and node.op_type in _WEIGHTED:
                for part, name in zip(("weight", "bias"), node.input[1:], strict=False):
                    if name in weights:
                        names.setdefault(name, f"{layer}.{part}")
        stem, count = node.name or node.op_type, 1
        node.name = stem
        while node.name in taken:
            count += 1
            node.name = f"{stem}_{count}"
        taken.add(node.name)
    _rename_weights(graph, {name: name.removeprefix(prefix) for name in weights} | names)
    _strip_notes(model)


def _drop_unread(graph: Any) -> None:
    read = {name for node in _nodes(graph) for name in node.input}
    read |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _rename_weights(graph: Any, names: Mapping[str, str]) -> None:
    """Rename initializers; a name that something else has is not taken."""
    used = {name for node in _nodes(graph) for name in (*node.input, *node.output)}
    used |= {value.name for value in (*graph.input, *graph.output)}
    done = {}
    for tensor in graph.initializer:
        new = names[tensor.name]
        if new not in used:
            used.add(new)
            done[tensor.name] = tensor.name = new
    for node in _nodes(graph):
        for i, name in enumerate(node.input):
            node.input[i] = done.get(name, name)


def _layer(node: Any, weights: set[str]) -> str | None:
    """Return the dotted name of the module that a node belongs to, or None: not known."""
    if node.op_type in _WEIGHTED and len(node.input) > 1 and node.input[1] in weights:
        name, _, kind = str(node.input[1]).rpartition(".")
        if kind == "weight" and name:
            return name
    for prop in node.metadata_props:
        if prop.key == _SCOPES:  # the newer exporter: "['', 'model', 'model.layer1', 'relu_1']"
            with contextlib.suppress(ValueError, SyntaxError, LookupError):
                return str(ast.literal_eval(prop.value)[-2])
    if node.name.startswith("/"):  # the older one: /model/layer1/layer1.0/conv1/Conv
        path: list[str] = []
        for part in node.name.split("/")[1:-1]:
            if path and part.startswith(f"{path[-1]}."):
                path.pop()
            path.append(part)
        return ".".join(path)
    return None


def _strip_notes(model: Any) -> None:
    """Drop what the exporter noted of its work: it names files of the machine that it ran on."""
    graph = model.graph
    weights = {tensor.name for tensor in graph.initializer}
    named = {name for node in _nodes(graph) for name in node.output}
    infos = [v for v in graph.value_info if v.name in named and v.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(sorted(infos, key=lambda value: str(value.name)))
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for item in (model, graph, *_nodes(graph), *values):
        item.doc_string = ""
        del item.metadata_props[:]
    graph.name = "network"


# ---------------------------------------------------------------- pinning and checking


def batchnorm_left(model: Any) -> str:
    """Say how much BatchNorm is left in the graph, and whether a runtime can still fold it."""
    maker = {name: node.op_type for node in model.graph.node for name in node.output}
    left = [n for n in model.graph.node if n.op_type == "BatchNormalization"]
    if not left:
        return "all folded"
    behind = sum(maker.get(node.input[0]) in _WEIGHTED for node in left)
    return f"{len(left)} left, {behind} of them behind a layer that a runtime can fold them into"


def pin_outputs_(model: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Write the known shape of each output; ``DYNAMIC`` becomes an open dimension with a name."""
    for value in model.graph.output:
        if value.name in shapes:
            del value.type.tensor_type.shape.dim[:]
            for axis, size in enumerate(shapes[value.name]):
                dim = value.type.tensor_type.shape.dim.add()
                if size == DYNAMIC:
                    dim.dim_param = f"{value.name}_{axis}" if axis else "batch"
                else:
                    dim.dim_value = size


def finish(model: Any, *, opset: int, ir_version: int, metadata: Mapping[str, str]) -> bytes:
    """Pin the versions, infer the shapes, check the model in full, and return the bytes of a file.

    Raises:
        TargetError: the exporter did not write the opset that was asked for.
        ModelError: an operator outside of standard ONNX (named), or what the checker says.
    """
    facts = describe(model)
    if facts.opset != opset:
        raise TargetError(
            f"the target asks for opset {opset} and PyTorch's exporter wrote {facts.opset}; "
            f"choose another opset in the target"
        )
    for node in _nodes(model.graph):
        if node.domain not in _STANDARD:
            raise ModelError(
                f"layer '{node.name}' became the operator {node.domain}.{node.op_type}, which is "
                "not standard ONNX and which no target's parser is sure to know; rewrite that layer"
            )
    del model.functions[:]
    for entry in [o for o in model.opset_import if o.domain not in _STANDARD]:
        model.opset_import.remove(entry)
    model.ir_version = ir_version
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    try:
        model = onnx.shape_inference.infer_shapes(
            model, check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"the exported ONNX model is not valid: {error}") from error
    written: bytes = model.SerializeToString(deterministic=True)
    return written
