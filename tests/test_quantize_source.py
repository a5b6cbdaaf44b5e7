"""The float32 file before it is converted: folded, named, with shapes; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_nets as qn
from onnx import helper, numpy_helper

from mint_deploy.errors import ModelError
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.source import LOWEST_OPSET, WEIGHTED, read_source

PADS = {"pads": [1, 1, 1, 1]}


def conv_net(path: Path, *, norm: bool = False, opset: int = 17) -> Path:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    nodes: list[qn.Node] = [("Conv", ["input", "w"], "conv", PADS)]
    last = "conv"
    if norm:
        for name in ("scale", "bias", "mean"):
            weights[name] = rng.normal(size=4).astype(np.float32)
        weights["var"] = rng.uniform(0.5, 2, 4).astype(np.float32)
        nodes.append(("BatchNormalization", ["conv", "scale", "bias", "mean", "var"], "bn", {}))
        last = "bn"
    nodes.append(("Relu", [last], "output", {}))
    return qn.save(path, nodes, weights, [3, 8, 8], opset=opset)


def test_batchnorm_is_folded_and_the_notes_stay(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx", norm=True)
    source = read_source(path)
    assert "BatchNormalization" not in {n.op_type for n in source.model.graph.node}
    assert {p.key: p.value for p in source.model.metadata_props} == {"mint_deploy.mean": "[0.5]"}
    assert source.model.ir_version == 8
    assert {o.domain for o in source.model.opset_import} == {""}
    x = {"input": qn.images(4)}
    found, expected = (Network(m).infer(x)["output"] for m in (source.bytes(), path))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_what_needs_nothing_keeps_its_names(tmp_path: Path) -> None:
    path = qn.residual(tmp_path / "net.onnx")
    source = read_source(path)
    assert [n.name for n in source.model.graph.node] == [n.name for n in onnx.load(path).graph.node]
    assert set(source.macs) == {n for n, _ in source.nodes(WEIGHTED)}
    assert source.macs["stem"] == 8 * 8 * 8 * 27
    assert source.macs["output"] == 16 * 5


def test_weights_in_constant_nodes_become_initializers(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    weight = model.graph.initializer[0]
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(
        numpy_helper.to_array(weight), "w"))  # fmt: skip
    del model.graph.initializer[:]
    model.graph.node.insert(0, constant)
    onnx.save(model, path)
    source = read_source(path)
    assert len(source.model.graph.initializer) == 1
    assert [op for _, op in source.nodes(("Constant", "Conv"))] == ["Conv"]


def test_nodes_get_names_of_their_own(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.name = ""
    twice = helper.make_node("Relu", ["output"], ["again"], name="Conv_0")
    model.graph.node.append(twice)
    model.graph.output.append(
        helper.make_tensor_value_info("again", onnx.TensorProto.FLOAT, ["N", 4, 8, 8])
    )
    onnx.save(model, path)
    names = [node.name for node in read_source(path).model.graph.node]
    assert names == ["Conv_0", "Relu_1", "Conv_0_2"]


def test_an_old_opset_is_raised(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx", opset=11)
    source = read_source(path)
    assert [o.version for o in source.model.opset_import] == [LOWEST_OPSET]
    x = {"input": qn.images(4)}
    found, expected = (Network(m).infer(x)["output"] for m in (source.bytes(), path))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_is_no_float32_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        read_source(tmp_path / "absent.onnx")
    (tmp_path / "text.onnx").write_text("not a protobuf")
    with pytest.raises(ModelError, match=r"text\.onnx"):
        read_source(tmp_path / "text.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="not an ONNX file with a graph"):
        read_source(tmp_path / "empty.onnx")
    relu = qn.save(tmp_path / "relu.onnx", [("Relu", ["input"], "output", {})], {}, [4])
    with pytest.raises(ModelError, match="no layer with weights"):
        read_source(relu)


def test_a_quantised_file_is_not_quantised_again(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "s"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "z"))
    model.graph.node[0].input[0] = "back"
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["back"]))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", ["input", "s", "z"], ["q"]))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"quantised already .*DequantizeLinear"):
        read_source(path)


def test_a_runtimes_own_operator_is_named(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    model = onnx.load(path)
    model.graph.node[1].op_type = "Gelu"
    model.graph.node[1].domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"'output' .*com\.microsoft\.Gelu"):
        read_source(path)


def test_a_half_precision_file_is_named_so(tmp_path: Path) -> None:
    weights = {"w": np.eye(4, dtype=np.float16)}
    path = tmp_path / "half.onnx"
    info, kind = helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["output"])],
        "net",
        [info("input", kind, ["N", 4])],
        [info("output", kind, ["N", 4])],
        [numpy_helper.from_array(v, n) for n, v in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    with pytest.raises(ModelError, match="float16; expected float32"):
        read_source(path)


def test_weights_outside_of_the_files_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    path = conv_net(folder / "net.onnx")
    model = onnx.load(path)
    (tmp_path / "secret.bin").write_bytes(
        numpy_helper.to_array(model.graph.initializer[0]).tobytes()
    )
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    for read in (read_source, Network):
        with pytest.raises(
            ModelError, match=r"tensor 'w' of .*secret\.bin', outside of its folder"
        ):
            read(path)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    path = conv_net(tmp_path / "net.onnx")
    expected = Network(path).infer({"input": qn.images(3)})["output"]
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert (tmp_path / "weights.bin").exists()
    found = Network(read_source(path).bytes()).infer({"input": qn.images(3)})["output"]
    np.testing.assert_array_equal(found, expected)
