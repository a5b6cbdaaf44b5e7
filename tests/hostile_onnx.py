"""ONNX files as somebody hostile, or just somebody else, may send them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save_conv


def nested(path):
    """A branch with a sub-graph, a function of its own, and an operator of another domain."""
    floats = TensorProto.FLOAT
    inner = helper.make_graph(
        [helper.make_node("Neg", ["x"], ["n"], name="branch/Neg")], "then", [],
        [helper.make_tensor_value_info("n", floats, ["N"])],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Abs", ["x"], ["a"], name="branch/Abs")], "else", [],
        [helper.make_tensor_value_info("a", floats, ["N"])],
    )  # fmt: skip
    nodes = [
        helper.make_node(
            "If", ["c"], ["y"], name="branch/If", then_branch=inner, else_branch=other
        ),
        helper.make_node("Twice", ["y"], ["z"], name="", domain="my.own"),
    ]
    graph = helper.make_graph(
        nodes, "nested",
        [helper.make_tensor_value_info("x", floats, ["N"]), helper.make_tensor_value_info("w", floats, [1]),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("z", floats, ["N"])],
        [numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )  # fmt: skip
    twice = helper.make_function(
        "my.own", "Twice", ["i"], ["o"], [helper.make_node("Add", ["i", "i"], ["o"], name="twice/Add")],
        [helper.make_opsetid("", 17)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.own", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=[twice])
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def field(number, data):
    """A field of protobuf that holds bytes."""
    out, tag, length = bytearray(), number << 3 | 2, len(data)
    for value in (tag, length):
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        out.append(value)
    return bytes(out) + data


def save_external(folder: Path, location="weights.bin", *, data=True, **more) -> Path:
    """A model whose weight lies in ``location``; ``more`` are further keys of its entry."""
    model = onnx.load(save_conv(folder / "m.onnx"))
    weight = model.graph.initializer[0]
    raw = bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    if data:
        (folder / location).parent.mkdir(parents=True, exist_ok=True)
        (folder / location).write_bytes(raw)
    return folder / "m.onnx"


def evil():
    tensor = TensorProto(name="evil", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    return tensor


def hidden(where):
    """A model with a hostile tensor in one of the places where there may be one."""
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [])
    )
    graph = model.graph
    if where == "initializer":
        graph.initializer.append(evil())
    elif where == "sparse":
        graph.sparse_initializer.add(values=evil())
    elif where == "indices":
        graph.sparse_initializer.add(indices=evil())
    elif where == "constant":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=evil()))
    elif where == "tensors":
        graph.node[0].attribute.add(name="many", type=onnx.AttributeProto.TENSORS).tensors.append(
            evil()
        )
    elif where == "sub-graph":
        inner = helper.make_graph([], "inner", [], [], [evil()])
        graph.node.append(
            helper.make_node("If", ["b"], ["z"], then_branch=inner, else_branch=inner)
        )
    elif where == "graphs":
        graph.node[0].attribute.add(name="all").graphs.add(name="g").initializer.append(evil())
    elif where == "function":
        node = helper.make_node("Constant", [], ["c"], value=evil())
        model.functions.append(helper.make_function("d", "F", [], ["c"], [node], []))
    elif where == "default of a function":
        default = helper.make_attribute("t", evil())
        model.functions.append(
            helper.make_function("d", "F", [], [], [], [], attribute_protos=[default])
        )
    elif where == "training":
        model.training_info.add().initialization.initializer.append(evil())
    elif where == "algorithm":
        model.training_info.add().algorithm.initializer.append(evil())
    return model.SerializeToString()


PLACES = ["initializer", "sparse", "indices", "constant", "tensors", "sub-graph", "graphs", "function",
          "default of a function", "training", "algorithm"]  # fmt: skip
