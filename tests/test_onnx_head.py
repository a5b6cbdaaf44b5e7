"""The head of an ONNX file, read without the package onnx, which is the oracle here."""

from __future__ import annotations

import contextlib
import subprocess
import sys

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx_models import save_conv

from mint_deploy import _onnx_head
from mint_deploy._onnx_head import Node
from mint_deploy.errors import ModelError

TYPES = {
    TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8", TensorProto.INT64: "int64", TensorProto.BOOL: "bool",
}  # fmt: skip
WORDS = st.text("aZ09/._:é", min_size=1, max_size=12)
DIMS = st.lists(st.one_of(st.integers(0, 2**40), WORDS), max_size=4)


def shape_of(dims):
    return tuple(d if isinstance(d, int) else -1 for d in dims)


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
    for spec, value in zip((*head.inputs, *head.outputs), (*fed, *graph.output), strict=True):
        kind = value.type.tensor_type
        assert spec.name == value.name
        assert spec.dtype == TYPES[kind.elem_type]
        assert spec.shape == tuple(
            d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim
        )
    assert head.nodes == tuple(Node(n.name, n.op_type) for n in graph.node)
    assert head.ir_version == model.ir_version
    assert head.opset == next(o.version for o in model.opset_import if o.domain == "")
    assert head.quantised == any(n.op_type == "DequantizeLinear" for n in graph.node)
    assert head.half == any(t.data_type == TensorProto.FLOAT16 for t in graph.initializer)
    assert not head.external
    assert head.holds() == {
        name for name, there in (("fp16", head.half), ("int8", head.quantised)) if there
    }


def test_a_real_export(tmp_path):
    head = _onnx_head.read(save_conv(tmp_path / "m.onnx", batch=None))
    assert [(s.name, s.shape, s.dtype) for s in head.inputs] == [
        ("input", (-1, 3, 8, 8), "float32")
    ]
    assert [(s.name, s.shape) for s in head.outputs] == [("output", (-1, 8))]
    assert [n.operator for n in head.nodes][:2] == ["Conv", "Relu"]
    assert (head.opset, head.ir_version) == (17, 8)


def test_weights_in_another_file_are_seen(tmp_path):
    model = onnx.load(save_conv(tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "e.onnx", save_as_external_data=True, size_threshold=0)
    assert _onnx_head.read(tmp_path / "e.onnx").external


def test_every_truncation_is_refused_or_read_as_less(tmp_path):
    """A file that ends too early must never end in anything but a ModelError."""
    whole = save_conv(tmp_path / "m.onnx", channels=2).read_bytes()
    path = tmp_path / "cut.onnx"
    for size in range(len(whole) - 1, -1, -7):
        path.write_bytes(whole[:size])
        with contextlib.suppress(ModelError):
            _onnx_head.read(path)


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
        f"print(_onnx_head.read({str(tmp_path / 'm.onnx')!r}).opset)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "17"
