"""What a builder asks of an ONNX file, read without the package onnx, which is the oracle here."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from hostile_onnx import nested
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save_conv

from mint_deploy import _onnx_head
from mint_deploy.errors import ModelError
from mint_deploy.onnx_wire import read_wire

TYPES = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8", TensorProto.INT64: "int64", TensorProto.BOOL: "bool",
}  # fmt: skip
WORDS = st.text("aZ09/._:é", min_size=1, max_size=12)
DIMS = st.lists(st.one_of(st.integers(-(2**40), 2**40), WORDS), max_size=4)


@st.composite
def models(draw):
    """A graph of identities with arbitrary names, types, shapes and weights."""
    names = draw(st.lists(WORDS, min_size=3, max_size=6, unique=True))
    kinds = draw(st.lists(st.sampled_from(sorted(TYPES)), min_size=2, max_size=2))
    dims = draw(st.lists(DIMS, min_size=2, max_size=2))
    values = [
        helper.make_tensor_value_info(n, k, d)
        for n, k, d in zip(names[:2], kinds, dims, strict=True)
    ]
    weights = [
        numpy_helper.from_array(np.zeros(draw(st.integers(0, 3)), draw(st.sampled_from(["f2", "f4", "i8"]))), n)
        for n in names[2:]
    ]  # fmt: skip
    nodes = [
        helper.make_node(draw(st.sampled_from(["Identity", "DequantizeLinear", "Conv"])), [names[0]],
                         [names[1]], name=draw(st.one_of(st.just(""), WORDS)))
        for _ in range(draw(st.integers(0, 3)))
    ]  # fmt: skip
    listed = (
        [helper.make_tensor_value_info(n, 1, []) for n in names[2:]] if draw(st.booleans()) else []
    )
    graph = helper.make_graph(
        nodes, "g", [values[0], *listed], [values[1]], weights, doc_string="x" * 300
    )
    imports = [helper.make_opsetid("", draw(st.integers(1, 25))), helper.make_opsetid("mine", 7)]
    if draw(st.booleans()):
        imports.reverse()
    return helper.make_model(graph, opset_imports=imports, ir_version=draw(st.integers(3, 12)))


@settings(max_examples=150, deadline=None)
@given(models())
def test_it_reads_what_onnx_reads(tmp_path_factory, model):
    path = tmp_path_factory.mktemp("head") / "m.onnx"
    path.write_bytes(model.SerializeToString())
    head, graph = _onnx_head.read(path), model.graph
    weights = {t.name for t in graph.initializer}
    fed = [i for i in graph.input if i.name not in weights]
    for spec, value in zip(head.inputs, fed, strict=True):
        kind = value.type.tensor_type
        assert spec.name == value.name
        assert spec.dtype == TYPES[kind.elem_type]
        assert spec.shape == tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim
        )
    assert [(n.name, n.op_type) for n in head.nodes] == [(n.name, n.op_type) for n in graph.node]
    assert [n.outputs for n in head.nodes] == [tuple(n.output) for n in graph.node]
    half = any(t.data_type == TensorProto.FLOAT16 for t in graph.initializer)
    quantised = any(n.op_type == "DequantizeLinear" for n in graph.node)
    assert head.holds == {name for name, there in (("fp16", half), ("int8", quantised)) if there}


def test_a_real_export(tmp_path):
    head = _onnx_head.read(save_conv(tmp_path / "m.onnx", batch=None))
    assert [(s.name, s.shape, s.dtype) for s in head.inputs] == [
        ("input", (-1, 3, 8, 8), "float32")
    ]
    assert [n.op_type for n in head.nodes][:2] == ["Conv", "Relu"]
    assert head.holds == frozenset()


def test_the_nodes_are_counted_as_the_parser_does(tmp_path):
    """TensorRT's parser says a number within the graph: what lies inside a node is not counted."""
    path = nested(tmp_path / "n.onnx")
    names = [n.name for n in onnx.load(path).graph.node]
    assert [n.name for n in _onnx_head.read(path).nodes] == names
    assert len(read_wire(path).nodes) > len(names)


def test_a_file_without_a_graph_holds_none(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx.ModelProto(ir_version=8).SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx is no ONNX model, .*it holds no graph"):
        _onnx_head.read(path)
    path.write_bytes(b"")
    with pytest.raises(ModelError, match=r"m\.onnx is empty"):
        _onnx_head.read(path)


def test_every_truncation_is_refused_or_read_as_less(tmp_path):
    """A file that ends too early must never end in anything but a ModelError."""
    whole = save_conv(tmp_path / "m.onnx", channels=2).read_bytes()
    path = tmp_path / "cut.onnx"
    refused = 0
    sizes = range(len(whole) - 1, -1, -7)
    for size in sizes:
        path.write_bytes(whole[:size])
        try:
            _onnx_head.read(path)
        except ModelError:
            refused += 1
    assert refused >= len(sizes) - 2, (
        "it is whole between two fields of the outermost message alone"
    )


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("junk") / "x.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.onnx"):
        _onnx_head.read(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(ModelError, match="no such file"):
        _onnx_head.read(tmp_path / "absent.onnx")


def test_it_needs_no_package(tmp_path):
    save_conv(tmp_path / "m.onnx")
    code = (
        "import sys; sys.modules['onnx'] = None; from mint_deploy import _onnx_head; "
        f"print(_onnx_head.read({str(tmp_path / 'm.onnx')!r}).inputs[0].name)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "input"
