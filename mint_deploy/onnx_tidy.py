"""Names a person recognises, in a model that one of PyTorch's exporters wrote.

Both leave names of their own (``node_Conv_848``, ``val_237``), one leaves chains of nodes that
compute a constant, the other the source paths of the machine it ran on. Here the nodes become
``layer1.0.conv1/Conv``, what they write ``layer1.0.conv1/Conv_out``, weights ``layer1.0.conv1.weight``
and other constants ``features.0.2/Clip.min``; chains become constants, and notes nothing. No torch.
"""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

__all__ = ["LAYERS", "STANDARD", "every_node", "tidy_"]

#: the operators whose second input is a weight that has a layer's name
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: the names of ONNX's own domain
STANDARD = ("", "ai.onnx")
_SCOPES = "pkg.torch.onnx.name_scopes"
#: constants are computed up to this size; larger ones are left to the runtime
_LARGEST_CONSTANT = 1 << 20


def every_node(graph: Any) -> Iterator[Any]:
    """Yield every node, those of sub-graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def tidy_(model: Any, *, prefix: str = "model.") -> None:
    """Name weights, nodes and values after the layers, and drop what nobody needs.

    Args:
        model: a ModelProto, changed in place.
        prefix: what stands before every layer's name because the network was wrapped.
    """
    graph = model.graph
    _fold_constants(model)
    _drop_unread(graph)
    weights = {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.node:
        layer = _layer(node, weights)
        if layer is not None:
            layer = f"{layer}.".removeprefix(prefix).rstrip(".")
            node.name = f"{layer}/{node.op_type}" if layer else node.op_type
            if layer and node.op_type in LAYERS:
                for part, name in zip(("weight", "bias"), node.input[1:], strict=False):
                    if name in weights:
                        names.setdefault(name, f"{layer}.{part}")
        node.name = _free(node.name or node.op_type, taken)
        taken.add(node.name)
    for name in weights:
        if name.startswith(prefix):
            names.setdefault(name, name.removeprefix(prefix))
    for node in every_node(graph):
        for name, part in zip(node.input, _parts(node, _opset(model)), strict=False):
            if name in weights:
                names.setdefault(name, f"{node.name or node.op_type}.{part}")
    _rename_weights(graph, names)
    _rename_values(graph)
    _strip_notes(model)


def _free(stem: str, taken: set[str]) -> str:
    name, count = stem, 1
    while name in taken:
        count += 1
        name = f"{stem}_{count}"
    return name


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in STANDARD), default=1)


def _parts(node: Any, opset: int) -> list[str]:
    """Return what ONNX calls the inputs of an operator."""
    with contextlib.suppress(onnx.defs.SchemaError):
        formal = [i.name for i in onnx.defs.get_schema(node.op_type, opset, node.domain).inputs]
        last = formal[-1:] * len(node.input)  # the last may stand for any number of them
        return [*formal, *last]
    return [f"input{i}" for i in range(len(node.input))]


# ---------------------------------------------------------------- constants


def _fold_constants(model: Any) -> None:
    """Compute the nodes that read nothing but small constants, as ONNX's reference does."""
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    done = []
    for i, node in enumerate(graph.node):
        values = None if outputs & {*node.output} else _computed(node, known, _opset(model))
        if values is not None:
            known.update((tensor.name, tensor) for tensor in values)
            done.append((i, values))
    for i, _ in reversed(done):
        del graph.node[i]
    for _, values in done:
        graph.initializer.extend(values)


def _computed(node: Any, known: Mapping[str, Any], opset: int) -> list[Any] | None:
    """Return what ``node`` writes as tensors; None where it is no small constant."""
    inputs = [name for name in node.input if name]
    if (
        node.domain not in STANDARD
        or not all(name in known for name in inputs)
        or any(known[name].ByteSize() > _LARGEST_CONSTANT for name in inputs)
        or any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        or node.op_type.startswith("Random")
        or node.op_type in ("Bernoulli", "Multinomial")
    ):
        return None
    names = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node], "constant", [], [onnx.helper.make_empty_tensor_value_info(n) for n in names]
    )
    graph.initializer.extend(known[name] for name in dict.fromkeys(inputs))
    wrapped = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        found = [np.asarray(value) for value in ReferenceEvaluator(wrapped).run(None, {})]
    except Exception:  # noqa: BLE001  what the reference cannot do is left as it is
        return None
    if sum(value.nbytes for value in found) > _LARGEST_CONSTANT:
        return None
    return [onnx.numpy_helper.from_array(v, n) for v, n in zip(found, names, strict=True)]


def _drop_unread(graph: Any) -> None:
    read = {name for node in every_node(graph) for name in node.input}
    read |= {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)


# ---------------------------------------------------------------- names


def _rename_weights(graph: Any, names: Mapping[str, str]) -> None:
    """Rename initializers; a name that something else has is not taken."""
    used = {name for node in every_node(graph) for name in (*node.input, *node.output)}
    used |= {value.name for value in (*graph.input, *graph.output)}
    done = {}
    for tensor in graph.initializer:
        new = names.get(tensor.name, tensor.name)
        if new not in used:
            used.add(new)
            done[tensor.name] = tensor.name = new
    _rename_inputs(graph, done)


def _rename_values(graph: Any) -> None:
    """Name what a node writes after the node; inputs and outputs of the model keep their names."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    used = fixed | {tensor.name for tensor in graph.initializer}
    used |= {name for node in every_node(graph) for name in (*node.input, *node.output)}
    done: dict[str, str] = {}
    for node in graph.node:
        several = len(node.output) > 1
        for i, name in enumerate(node.output):
            if name and name not in fixed:
                new = _free(f"{node.name}_out{i if several else ''}", used)
                used.add(new)
                done[name] = node.output[i] = new
    _rename_inputs(graph, done)
    for value in graph.value_info:
        value.name = done.get(value.name, value.name)


def _rename_inputs(graph: Any, names: Mapping[str, str]) -> None:
    for node in every_node(graph):
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)


def _layer(node: Any, weights: set[str]) -> str | None:
    """Return the dotted name of the module that a node belongs to, or None: not known."""
    if node.op_type in LAYERS and len(node.input) > 1 and node.input[1] in weights:
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
    named = {name for node in every_node(graph) for name in node.output}
    infos = [v for v in graph.value_info if v.name in named and v.name not in weights]
    del graph.value_info[:]
    graph.value_info.extend(sorted(infos, key=lambda value: str(value.name)))
    values = (*graph.value_info, *graph.input, *graph.output, *graph.initializer)
    for item in (model, graph, *every_node(graph), *values):
        item.doc_string = ""
        del item.metadata_props[:]
    graph.name = "network"
