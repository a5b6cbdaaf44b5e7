"""float16 as types in the file: casts at the borders, layers that do not fit left in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_nets as qn
from onnx import TensorProto

from mint_deploy._signal import snr_db
from mint_deploy.errors import ModelError
from mint_deploy.quantize import half
from mint_deploy.quantize.calibration import calibrate
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.source import Source, read_source

FP16, FP32 = TensorProto.FLOAT16, TensorProto.FLOAT


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qn.residual(tmp_path_factory.mktemp("net") / "net.onnx")


def types(content: bytes) -> dict[str, int]:
    """Tensor -> element type, as shape inference finds it."""
    model = onnx.shape_inference.infer_shapes(onnx.load_from_string(content), strict_mode=True)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    return found | {t.name: t.data_type for t in model.graph.initializer}


def test_weights_and_activations_are_half_and_the_borders_float(block: Path) -> None:
    content = half.halve(read_source(block))
    found = types(content)
    assert (found["input"], found["output"]) == (FP32, FP32)
    assert {found[n] for n in found if n.endswith((".w", ".b"))} == {FP16}
    for node in [*qn.nodes_of(content, "Conv"), *qn.nodes_of(content, "Gemm")]:
        assert {found[name] for name in (*node.input, *node.output)} == {FP16}
    assert len(qn.nodes_of(content, "Cast")) == 2


def test_the_borders_can_be_half_too(block: Path) -> None:
    content = half.halve(read_source(block), float_borders=False)
    found = types(content)
    assert (found["input"], found["output"]) == (FP16, FP16)
    assert not qn.nodes_of(content, "Cast")
    answer = Network(content).infer({"input": qn.images(3)})["output"]
    assert answer.dtype == np.float16


def test_it_is_as_good_as_eleven_bits(block: Path) -> None:
    x = {"input": qn.images(32)}
    found = Network(half.halve(read_source(block))).infer(x)["output"]
    ratio = snr_db(found, Network(block).infer(x)["output"])
    assert 55 < ratio < 90, "float16 rounds, or nothing was converted"


def test_the_file_is_half_as_large(tmp_path: Path) -> None:
    path = qn.residual(tmp_path / "wide.onnx", width=64)
    content = half.halve(read_source(path))
    assert len(content) < 0.55 * path.stat().st_size


def test_float_layers_keep_their_types_and_values(block: Path) -> None:
    content = half.halve(read_source(block), floats=["a1", "r1", "output"])
    found = types(content)
    for name in ("a1.w", "a1.b", "fc.w", "fc.b"):
        assert found[name] == FP32
        np.testing.assert_array_equal(qn.initializers(content)[name], qn.initializers(block)[name])
    assert found["a2.w"] == FP16
    # between two layers that stay float32 nothing is cast there and back
    convs = {n.name: n for n in qn.nodes_of(content, "Conv")}
    relus = {n.name: n for n in qn.nodes_of(content, "Relu")}
    assert relus["r1"].input[0] == convs["a1"].output[0]
    x = {"input": qn.images(8)}
    assert snr_db(Network(content).infer(x)["output"], Network(block).infer(x)["output"]) > 55


def test_one_layer_alone(block: Path) -> None:
    content = half.halve(read_source(block), only="a2")
    found = types(content)
    assert [n for n in found if n.endswith(".w") and found[n] == FP16] == ["a2.w"]


def test_the_nodes_stand_in_order_and_the_source_is_left_alone(block: Path) -> None:
    source = read_source(block)
    before = source.bytes()
    content = half.halve(source, floats=["a1"])
    assert half.halve(source, floats=["a1"]) == content
    assert source.bytes() == before
    model = onnx.load_from_string(content)
    made = {"input", *(t.name for t in model.graph.initializer)}
    for node in model.graph.node:
        assert set(node.input) <= made, f"{node.name} stands before what it reads"
        made |= set(node.output)
    assert model.ir_version == 8


# ---------------------------------------------------------------- what does not fit


def large(path: Path, factor: float) -> Source:
    """Three layers; the tensors around the second are ``factor`` large."""
    eye = np.eye(4, dtype=np.float32)
    weights = {"u": np.float32(factor) * eye, "v": eye, "w": eye / np.float32(factor), "x": eye}
    nodes: list[qn.Node] = [
        ("MatMul", ["input", "u"], "up", {}),
        ("MatMul", ["up", "v"], "flat", {}),
        ("MatMul", ["flat", "w"], "down", {}),
        ("MatMul", ["down", "x"], "output", {}),
    ]
    return read_source(qn.save(path, nodes, weights, [4]))


def measured(source: Source):
    return calibrate(
        source.bytes(),
        {"input": qn.images(40, shape=[4])},
        key="k",
        method="minmax",
        symmetric=False,
        operators=("MatMul",),
        batch=None,
    )


def test_layers_that_overflow_stay_float_with_the_reason(tmp_path: Path) -> None:
    source = large(tmp_path / "net.onnx", 30_000)
    found = half.too_large(source, measured(source))
    assert [layer.name for layer in found] == ["up", "flat", "down"]
    assert "float16 ends at 65504" in found[0].reason
    assert "'up' reaches" in found[1].reason
    content = half.halve(source, floats=[layer.name for layer in found])
    x = {"input": qn.images(40, shape=[4])}
    expected = Network(source.bytes()).infer(x)["output"]
    assert snr_db(Network(content).infer(x)["output"], expected) > 55


def test_a_weight_that_does_not_fit_is_seen_without_large_activations(tmp_path: Path) -> None:
    eye = np.eye(4, dtype=np.float32)
    weights = {"u": 1e-6 * eye, "v": np.float32(1e6) * eye}
    nodes: list[qn.Node] = [
        ("MatMul", ["input", "u"], "small", {}),
        ("MatMul", ["small", "v"], "output", {}),
    ]
    source = read_source(qn.save(tmp_path / "net.onnx", nodes, weights, [4]))
    found = half.too_large(source, measured(source))
    assert [layer.name for layer in found] == ["output"]
    assert "'v' reaches 1e+06" in found[0].reason


def test_an_ordinary_network_fits(tmp_path: Path) -> None:
    source = large(tmp_path / "net.onnx", 10)
    assert half.too_large(source, measured(source)) == ()


def test_nothing_left_to_convert_is_an_error(tmp_path: Path) -> None:
    source = large(tmp_path / "net.onnx", 2)
    every = [node.name for node in source.model.graph.node]
    with pytest.raises(ModelError, match="stay with float32"):
        half.halve(source, floats=every)
