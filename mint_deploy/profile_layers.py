"""Times of nodes become times of our layers: what a runtime ran, read back through the ONNX file.

A fused kernel keeps the layer of its convolution. What belongs to no layer with weights (re-ordering, additions
that were not fused) keeps ``layer=None``. How runtimes name things, on the files that our exporter writes:

    layer1.0.conv1/Conv               a node as it was                            ONNX Runtime, OpenVINO, TensorRT
    fused fc/Gemm                     with its activation                         ONNX Runtime
    relu_1_nchwc                      the tensor that the fused kernel writes     ONNX Runtime on AVX
    fc/MatMul/MatMulAddFusion         the node that a fusion began with           ONNX Runtime
    c1/Conv/WithoutBiases             the node, its bias taken apart              OpenVINO
    conv1/Conv + relu                 everything that was fused                   TensorRT
    Conv_3                            a node without a name: its place            ONNX Runtime
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable
from typing import Any

from mint_deploy.artifacts import LayerTime, Measurement
from mint_deploy.layer_times import LayerRow, joined
from mint_deploy.onnx_figures import figures
from mint_deploy.onnx_layers import OnnxGraph, read_graph

__all__ = ["LayerRow", "joined", "layer_of_node", "named", "with_figures", "with_layers"]

#: what ONNX Runtime adds to a name to make it another
_ADDED = re.compile(r"(_nchwc)?(_token_\d+)?$")
#: kernels that hold the weights of a layer, by what their operator's name contains
_HEAVY = (
    "conv",
    "gemm",
    "matmul",
    "fullyconnected",
    "innerproduct",
    "lstm",
    "gru",
    "rnn",
    "subgraph",
)
#: what a runtime may fuse behind a layer, so that the kernel is named after a tensor further on
_FUSED = {
    *("Relu", "LeakyRelu", "PRelu", "Clip", "Elu", "Selu", "Softplus", "Gelu", "Swish", "Mish"),
    *("Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Add", "Sub", "Mul", "Div", "Identity"),
    *("BatchNormalization", "Cast", "QuantizeLinear", "DequantizeLinear"),
}


def named(times: Iterable[LayerTime], path: str | os.PathLike[str]) -> tuple[LayerTime, ...]:
    """Return ``times`` with the layer and the width of each node that the file knows; others stay as they are.

    Args:
        times: as a runtime's profiler gave them.
        path: the ONNX file that the runtime was given.

    Raises:
        ModelError: no such file, or not ONNX.
    """
    find = _Finder(read_graph(path))
    out = []
    for row in times:
        node = find.node(row.name, row.op)
        if node is not None:
            layer, width = find.graph.layer_of(node), find.graph.width_of(node)
            row = dataclasses.replace(row, layer=layer, width=width)
        out.append(row)
    return tuple(out)


def layer_of_node(path: str | os.PathLike[str]) -> dict[str, str]:
    """Return ONNX node -> our layer, of the nodes with weights: for a parser that knows its own fusions.

    Raises:
        ModelError: no such file, or not ONNX.
    """
    graph = read_graph(path)
    return {n.name: layer for n in graph.nodes if n.name and (layer := graph.layer_of(n))}


class _Finder:
    """The nodes of a file, by every name that a runtime may use."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self._nodes = {n.name: n for n in graph.nodes if n.name}
        self._by_place = {f"{n.op_type}_{i}": n for i, n in graph.places.items() if not n.name}

    def node(self, name: str, op: str) -> Any:
        """Return the node with weights that a kernel computes, or None."""
        for part in name.split(" + "):
            found = self._one(part.strip().removeprefix("fused "), op)
            if found is not None and self.graph.weight_of(found) is not None:
                return found
        return None

    def _one(self, name: str, op: str) -> Any:
        if name in self._nodes:
            return self._nodes[name]
        if name in self._by_place:
            return self._by_place[name]
        tensor = next((t for t in (name, _ADDED.sub("", name)) if t in self.graph.makers), None)
        if tensor is not None:
            return self._behind(tensor) if any(h in op.lower() for h in _HEAVY) else None
        while "/" in name:  # what was added to the name of a node stands behind it
            name = name.rpartition("/")[0]
            if name in self._nodes:
                return self._nodes[name]
        return None

    def _behind(self, tensor: str) -> Any:
        """Return the only layer whose output reaches ``tensor`` through what may be fused; None: not one."""
        found, waiting, seen = [], [tensor], set()
        while waiting:
            maker = self.graph.makers.get(waiting.pop())
            if maker is None or id(maker) in seen:
                continue
            seen.add(id(maker))
            if self.graph.weight_of(maker) is not None and maker.op_type not in _FUSED:
                found.append(maker)
            elif maker.op_type in _FUSED:
                waiting += [n for n in maker.input if n and n not in self.graph.weights]
        return found[0] if len(found) == 1 else None


# ---------------------------------------------------------------- into a measurement


def with_layers(
    measurement: Measurement,
    path: str | os.PathLike[str],
    times: Iterable[LayerTime] = (),
    reason: str = "",
) -> Measurement:
    """Return ``measurement`` with the times of its layers, or with the reason why it has none."""
    layers = named(times, path) if not reason else ()
    nulls = {k: v for k, v in measurement.nulls.items() if k != "layers"}
    if not layers:
        nulls["layers"] = reason or "the runtime's profiler named no node"
    return dataclasses.replace(measurement, layers=layers, nulls=nulls)


def with_figures(measurement: Measurement, path: str | os.PathLike[str]) -> Measurement:
    """Return ``measurement`` with the computed figures of its file; what is missing has its reason.

    Raises:
        ModelError: no such file.
    """
    found, nulls = figures(path)
    kept = {k: v for k, v in measurement.nulls.items() if k not in found}
    return dataclasses.replace(
        measurement, figures={**measurement.figures, **found}, nulls={**kept, **nulls}
    )
