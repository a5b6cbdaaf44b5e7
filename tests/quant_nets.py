"""Small float32 ONNX files for the tests of lower precision, and a classifier of digits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Node = tuple[str, Sequence[str], str, dict[str, Any]]


def save(
    path: Path,
    nodes: Sequence[Node],
    weights: dict[str, np.ndarray],
    shape: Sequence[int],
    outputs: Sequence[str] = ("output",),
    *,
    batch: int | None = None,
    opset: int = 17,
) -> Path:
    """Write a graph of ``(operator, inputs, output, attributes)`` on ``input [N, *shape]``."""
    made = [helper.make_node(op, list(i), [o], name=o, **a) for op, i, o, a in nodes]
    first = "N" if batch is None else batch
    graph = helper.make_graph(
        made,
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [first, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model.metadata_props.add(key="mint_deploy.mean", value="[0.5]")
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def gemm(path: Path, weight: np.ndarray, bias: np.ndarray) -> Path:
    """One layer: ``weight [outputs, inputs]``, ``bias [outputs]``."""
    nodes: list[Node] = [("Gemm", ["input", "w", "b"], "output", {"transB": 1})]
    weights = {"w": weight.astype(np.float32), "b": bias.astype(np.float32)}
    return save(path, nodes, weights, [weight.shape[1]])


def residual(path: Path, *, seed: int = 0, batch: int | None = None, width: int = 8) -> Path:
    """A stem, a block with the identity beside it, a block with a convolution beside it, a classifier."""
    rng = np.random.default_rng(seed)

    def kernel(out: int, into: int, side: int) -> np.ndarray:
        scale = (2 / (into * side * side)) ** 0.5
        return (scale * rng.standard_normal((out, into, side, side))).astype(np.float32)

    def bias(out: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(out)).astype(np.float32)

    pads = {"pads": [1, 1, 1, 1]}
    wide = 2 * width
    nodes: list[Node] = [
        ("Conv", ["input", "stem.w", "stem.b"], "stem", pads),
        ("Relu", ["stem"], "r0", {}),
        ("Conv", ["r0", "a1.w", "a1.b"], "a1", pads),
        ("Relu", ["a1"], "r1", {}),
        ("Conv", ["r1", "a2.w", "a2.b"], "a2", pads),
        ("Add", ["a2", "r0"], "s1", {}),
        ("Relu", ["s1"], "r2", {}),
        ("Conv", ["r2", "side.w", "side.b"], "side", {}),
        ("Conv", ["r2", "b1.w", "b1.b"], "b1", pads),
        ("Add", ["b1", "side"], "s2", {}),
        ("Relu", ["s2"], "r3", {}),
        ("GlobalAveragePool", ["r3"], "pool", {}),
        ("Flatten", ["pool"], "flat", {}),
        ("Gemm", ["flat", "fc.w", "fc.b"], "output", {"transB": 1}),
    ]
    weights = {
        "stem.w": kernel(width, 3, 3),
        "a1.w": kernel(width, width, 3),
        "a2.w": kernel(width, width, 3),
        "side.w": kernel(wide, width, 1),
        "b1.w": kernel(wide, width, 3),
        "fc.w": kernel(5, wide, 1).reshape(5, wide),
    }
    weights |= {name.replace(".w", ".b"): bias(len(v)) for name, v in weights.items()}
    return save(path, nodes, weights, [3, 8, 8], batch=batch)


def images(count: int, seed: int = 1, shape: Sequence[int] = (3, 8, 8)) -> np.ndarray:
    """Noise of unit variance ``[count, *shape]``."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, *shape)).astype(np.float32)


def train_on_digits(folder: Path) -> dict[str, Any]:
    """Write a classifier of scikit-learn's digits as ``digits.onnx``: random convolutions, the last layer fitted.

    Returns:
        The path, ``calibrate [N, 1, 8, 8]``, and the held-out ``x`` and ``y``.
    """
    from sklearn.datasets import load_digits

    from mint_deploy.quantize.network import Network

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    x = (found.images[order, None] / 8 - 1).astype(np.float32)
    y = found.target[order]
    rng = np.random.default_rng(1)
    nodes: list[Node] = []
    weights: dict[str, np.ndarray] = {}
    last, width = "input", 1
    for i, (out, stride) in enumerate(((8, 1), (16, 2), (32, 1))):
        scale = (2 / (9 * width)) ** 0.5
        weights[f"conv{i}.w"] = (scale * rng.standard_normal((out, width, 3, 3))).astype(np.float32)
        weights[f"conv{i}.b"] = (0.3 * rng.standard_normal(out)).astype(np.float32)
        about = {"pads": [1, 1, 1, 1], "strides": [stride, stride]}
        nodes.append(("Conv", [last, f"conv{i}.w", f"conv{i}.b"], f"conv{i}", about))
        nodes.append(("Relu", [f"conv{i}"], f"relu{i}", {}))
        last, width = f"relu{i}", out
    nodes += [
        ("AveragePool", [last], "pool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Flatten", ["pool"], "flat", {}),
    ]
    head: Node = ("Gemm", ["flat", "fc.w", "fc.b"], "output", {"transB": 1})
    features = save(folder / "features.onnx", nodes, weights, [1, 8, 8], ["flat"])
    seen = Network(features).infer({"input": x[:1000]})["flat"].astype(np.float64)
    seen = np.hstack([seen, np.ones((len(seen), 1))])
    wanted = np.eye(10)[y[:1000]]
    fitted = np.linalg.solve(seen.T @ seen + np.eye(seen.shape[1]), seen.T @ wanted)
    weights |= {"fc.w": fitted[:-1].T.astype(np.float32), "fc.b": fitted[-1].astype(np.float32)}
    return {
        "path": save(folder / "digits.onnx", [*nodes, head], weights, [1, 8, 8]),
        "calibrate": x[:200],
        "x": x[1000:],
        "y": y[1000:],
    }


def with_outlier(path: Path, out: Path, *, scale: float = 300.0) -> Path:
    """Make one channel between the first two convolutions ``scale`` times as large, and the next one undo it.

    In float32 nothing changes; with one scale for all channels the others are rounded away.
    """
    model = onnx.load(path)
    values = {t.name: t for t in model.graph.initializer}
    convs = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    for node, index in ((convs[0], np.s_[0]), (convs[1], np.s_[:, 0])):
        factor = scale if node is convs[0] else 1 / scale
        for name in node.input[1:] if node is convs[0] else node.input[1:2]:
            array = numpy_helper.to_array(values[name]).copy()
            array[index] *= np.float32(factor)
            values[name].CopyFrom(numpy_helper.from_array(array, name))
    onnx.save(model, out)
    return out


def initializers(path: Path | bytes) -> dict[str, np.ndarray]:
    model = onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path)
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def nodes_of(path: Path | bytes, operator: str) -> list[Any]:
    model = onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path)
    return [node for node in model.graph.node if node.op_type == operator]
