"""Names a person recognises: the same network under other names, and no chain that makes a constant."""

from __future__ import annotations

import nets
import numpy as np
import onnx
import pytest
import torch
from export_nets import samples, target
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from mint_deploy.export import export
from mint_deploy.models.cifar_resnet import CifarResNet
from mint_deploy.onnx_tidy import every_node, tidy_

FLOAT = TensorProto.FLOAT


def value(name, shape=("N", 4)):
    return helper.make_tensor_value_info(name, FLOAT, list(shape))


def made(nodes, inputs=("x",), outputs=("y",), weights=(), infos=()):
    graph = helper.make_graph(
        list(nodes),
        "g",
        [value(n) for n in inputs],
        [value(n, ("K",) if n == "z" else ("K", "L")) for n in outputs],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights],
        value_info=[value(n) for n in infos],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model


def run(model, **inputs):
    onnx.checker.check_model(model, full_check=True)
    return ReferenceEvaluator(model).run(None, inputs)


X = np.arange(8, dtype=np.float32).reshape(2, 4) - 3


# ---------------------------------------------------------------- constants


def test_a_chain_that_makes_a_constant_becomes_one():
    """As the older exporter writes the pads of a shortcut."""
    nodes = [
        helper.make_node(
            "Constant", [], ["two"], value=numpy_helper.from_array(np.array([2], np.int64))
        ),
        helper.make_node(
            "Constant", [], ["zeros"], value=numpy_helper.from_array(np.zeros(2, np.int64))
        ),
        helper.make_node("Concat", ["zeros", "two", "one"], ["cat"], axis=0),
        helper.make_node("Cast", ["cat"], ["pads"], to=TensorProto.INT64),
        helper.make_node("Pad", ["x", "pads"], ["y"], name="/model/short/Pad"),
    ]
    model = made(nodes, weights=[("one", np.array([1], np.int64))])
    before = run(model, x=X)[0]
    tidy_(model)
    assert [n.op_type for n in model.graph.node] == ["Pad"]
    assert [t.name for t in model.graph.initializer] == ["short/Pad.pads"]
    np.testing.assert_array_equal(run(model, x=X)[0], before)


def test_what_is_random_large_or_an_output_is_left_as_it_is():
    small, large = np.ones(4, np.float32), np.ones((600, 600), np.float32)
    nodes = [
        helper.make_node("RandomNormal", [], ["r"], shape=[4]),
        helper.make_node("Add", ["x", "r"], ["a"]),
        helper.make_node("Transpose", ["large"], ["t"]),
        helper.make_node("ReduceMax", ["t"], ["m"], keepdims=0),
        helper.make_node("Mul", ["a", "m"], ["y"]),
        helper.make_node("Neg", ["small"], ["z"]),
    ]
    model = made(nodes, outputs=("y", "z"), weights=[("small", small), ("large", large)])
    tidy_(model)
    assert {n.op_type for n in model.graph.node} == {n.op_type for n in nodes}
    onnx.checker.check_model(model, full_check=True)


def test_what_onnx_itself_cannot_compute_is_left():
    nodes = [
        helper.make_node("Own", ["w"], ["o"], domain="my.own"),
        helper.make_node("Add", ["x", "o"], ["y"]),
    ]
    model = made(
        [helper.make_node("Identity", ["x"], ["y"])], weights=[("w", np.ones(4, np.float32))]
    )
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    tidy_(model)
    assert [n.op_type for n in model.graph.node] == ["Own", "Add"]


def test_a_constant_that_several_read_is_made_once():
    one = numpy_helper.from_array(np.ones(4, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["c"], value=one),
        helper.make_node("Add", ["x", "c"], ["a"], name="/model/first/Add"),
        helper.make_node("Mul", ["a", "c"], ["y"], name="/model/second/Mul"),
    ]
    model = made(nodes)
    tidy_(model)
    assert [t.name for t in model.graph.initializer] == ["first/Add.B"], (
        "after the first that reads it"
    )
    np.testing.assert_array_equal(run(model, x=X)[0], X + 1)


# ---------------------------------------------------------------- names


def test_values_are_named_after_their_nodes_and_the_models_own_names_stay():
    nodes = [
        helper.make_node("Split", ["x"], ["left", "right"], axis=1),
        helper.make_node("Add", ["left", "right"], ["sum"], name="/model/a/Add"),
        helper.make_node("Neg", ["sum"], ["y"], name="/model/a/Neg"),
    ]
    model = made(nodes, infos=())
    before = run(model, x=X)[0]
    tidy_(model)
    split, add, neg = model.graph.node
    assert list(split.output) == ["Split_out0", "Split_out1"]
    assert (add.name, list(add.output), list(neg.input)) == ("a/Add", ["a/Add_out"], ["a/Add_out"])
    assert list(neg.output) == ["y"]
    np.testing.assert_array_equal(run(model, x=X)[0], before)


def test_the_shapes_follow_the_new_names():
    nodes = [
        helper.make_node("Neg", ["x"], ["n"], name="/model/a/Neg"),
        helper.make_node("Abs", ["n"], ["y"]),
    ]
    model = made(nodes, infos=["n"])
    tidy_(model)
    assert [v.name for v in model.graph.value_info] == ["a/Neg_out"]


def test_a_branch_goes_on_reading_what_is_around_it():
    inner = helper.make_graph([helper.make_node("Neg", ["n"], ["i"])], "then", [], [value("i")])
    other = helper.make_graph(
        [helper.make_node("Identity", ["n"], ["j"])], "else", [], [value("j")]
    )
    nodes = [
        helper.make_node("Abs", ["x"], ["n"], name="/model/a/Abs"),
        helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=other),
    ]
    model = made(nodes, weights=[("c", np.array(True))])
    tidy_(model)
    names = {a.name: a.g for a in model.graph.node[1].attribute}
    assert list(names["then_branch"].node[0].input) == ["a/Abs_out"]
    assert list(names["else_branch"].node[0].input) == ["a/Abs_out"]
    assert sorted(n.op_type for n in every_node(model.graph)) == ["Abs", "Identity", "If", "Neg"]
    np.testing.assert_array_equal(run(model, x=X)[0], -np.abs(X))


def test_a_name_that_is_taken_is_not_given_twice():
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="/model/f/Neg"),
        helper.make_node("Neg", ["a"], ["b"], name="/model/f/Neg_1"),
        helper.make_node("Add", ["b", "f/Neg_out"], ["y"], name="/model/f/Add"),
    ]
    model = made(nodes, inputs=("x", "f/Neg_out"))
    tidy_(model)
    names = [name for node in model.graph.node for name in node.output]
    assert names == ["f/Neg_out_2", "f/Neg_2_out", "y"]
    np.testing.assert_array_equal(run(model, **{"x": X, "f/Neg_out": X})[0], X + X)


OPS = st.sampled_from(["Neg", "Abs", "Relu", "Identity", "Add", "Mul", "Constant"])


@st.composite
def graphs(draw):
    """A random graph of element-wise nodes, with names that may clash with those to be given."""
    names, nodes, known = ["x"], [], ["x"]
    for i in range(draw(st.integers(1, 8))):
        op = draw(OPS)
        out = draw(st.sampled_from([f"v{i}", f"{op}_out", f"{op}_{i}_out"]))
        if out in names:
            out = f"v{i}"
        if op == "Constant":
            tensor = numpy_helper.from_array(np.full(4, i, np.float32))
            nodes.append(helper.make_node(op, [], [out], value=tensor))
        else:
            count = 2 if op in ("Add", "Mul") else 1
            args = [draw(st.sampled_from(known)) for _ in range(count)]
            label = draw(st.sampled_from(["", f"/model/block/{op}", f"/model/block.{i}/{op}"]))
            nodes.append(helper.make_node(op, args, [out], name=label))
        names.append(out)
        known.append(out)
    nodes.append(helper.make_node("Add", ["x", known[-1]], ["y"]))
    return made(nodes)


@settings(max_examples=80, deadline=None)
@given(graphs())
def test_it_computes_the_same_under_names_that_are_all_different(model):
    before = run(model, x=X)[0]
    tidy_(model)
    np.testing.assert_array_equal(run(model, x=X)[0], before)
    labels = [node.name for node in model.graph.node]
    assert len(set(labels)) == len(labels)
    assert all(labels)
    assert not any(node.op_type == "Constant" for node in model.graph.node)


# ---------------------------------------------------------------- what the exporters write


def test_the_older_exporter_leaves_a_shortcut_of_option_a_as_the_newer_one_does(tmp_path):
    """Its pads came from a chain of fourteen nodes, which TensorRT 8 would have to compute."""
    model = CifarResNet(1, classes=10).eval()
    value = export(model, tmp_path / "m.onnx", torch.randn(1, 3, 32, 32), target(17))
    graph = onnx.load(value.path).graph
    assert {n.op_type for n in graph.node} == {
        "Conv", "Relu", "Add", "Slice", "Pad", "GlobalAveragePool", "Flatten", "Gemm",
    }  # fmt: skip
    named = {t.name for t in graph.initializer}
    assert {"layer2.0.shortcut/Pad.pads", "layer2.0.shortcut/Slice.starts"} <= named
    assert not {name for name in named if name.startswith(("/", "onnx::", "val_"))}


def test_no_exporters_name_is_left(tmp_path):
    model = nets.build("option_b")[0]
    value = export(model, tmp_path / "m.onnx", samples(1), target(17))
    graph = onnx.load(value.path).graph
    for name in (n for node in graph.node for n in (node.name, *node.input, *node.output)):
        assert not name.startswith(("/", "onnx::", "val_", "getitem", "model."))


@pytest.mark.slow  # minutes, most of them in PyTorch's newer exporter
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    "name", ["resnet20-cifar10", "vgg16-bn-cifar10", "mobilenet-v2", "densenet121"]
)
def test_the_zoo(tmp_path, name, opset, dynamic):
    """Parity at several batches, names of modules, shapes of all values, BatchNorm folded where it can be."""
    from mint_deploy.models import load_model

    loaded = load_model(name)
    nets.enliven(loaded.model)
    x = torch.randn(4, *loaded.input_shape)
    wanted = target(opset)
    made = export(
        loaded.model, tmp_path / "m.onnx", x[:2], wanted, dynamic_batch=dynamic, parity_inputs=x
    )
    assert made.max_error < 1e-4
    assert len(set(made.parity_batches)) == (3 if dynamic else 1)
    graph = onnx.load(made.path).graph
    modules = dict(loaded.model.named_modules())
    layers = [n.name.rpartition("/")[0] for n in graph.node if "/" in n.name]
    assert layers
    assert all(layer in modules for layer in layers)
    assert sum("/" not in n.name for n in graph.node) <= 3, "the functions of the outermost forward"
    written = {o for n in graph.node for o in n.output} - {o.name for o in graph.output}
    assert {v.name for v in graph.value_info} == written
    left = [n for n in graph.node if n.op_type == "BatchNormalization"]
    assert len(left) == (62 if name == "densenet121" else 0)
