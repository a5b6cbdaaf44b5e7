"""Where Q/DQ stands and what it computes, against the arithmetic done by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import quant_nets as qn
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from mint_deploy._signal import snr_db
from mint_deploy.errors import ModelError
from mint_deploy.quantize import qdq
from mint_deploy.quantize.calibration import calibrate
from mint_deploy.quantize.network import Network
from mint_deploy.quantize.schemes import SCHEMES, Scheme
from mint_deploy.quantize.source import Source, read_source
from mint_deploy.values.precision import Calibration

QDQ = ("QuantizeLinear", "DequantizeLinear")


def ranges(source: Source, samples: np.ndarray, scheme: Scheme) -> Calibration:
    return calibrate(
        source.bytes(),
        {"input": samples},
        key="k",
        method="minmax",
        symmetric=scheme.symmetric,
        operators=scheme.watched,
        batch=None,
    )


def placed(path: Path, samples: np.ndarray, name: str, **how: Any) -> bytes:
    source, scheme = read_source(path), SCHEMES[name]
    return qdq.place(source, ranges(source, samples, scheme), scheme, **how)


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qn.residual(tmp_path_factory.mktemp("net") / "net.onnx")


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_one_layer_is_the_arithmetic_done_by_hand(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=4).astype(np.float32)
    x = rng.uniform(-1, 3, (40, 6)).astype(np.float32)
    scheme = SCHEMES[name]
    content = placed(qn.gemm(tmp_path / "net.onnx", weight, bias), x, name)

    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    if scheme.symmetric:
        step, zero, bottom, top = max(-low, high) / 127, 0, -128, 127
    else:
        bottom, top = (0, 255) if scheme.activation == "uint8" else (-128, 127)
        step = (high - low) / 255
        zero = round(bottom - low / step)
    levels = 64 if scheme.reduce_range else 127
    per_channel = np.abs(weight).max(1, keepdims=True) / levels
    wq = np.clip(np.rint(weight / per_channel), -levels, levels) * per_channel
    xq = (np.clip(np.rint(x / step) + zero, bottom, top) - zero) * step
    grid = step * per_channel[:, 0]
    expected = xq @ wq.T + (bias if scheme.lean else np.rint(bias / grid) * grid)

    exact = Network(content).infer({"input": x})["output"]
    np.testing.assert_allclose(exact, expected, rtol=0, atol=2e-5)
    if name == "u8s8-reduced":  # the kernels of the others overflow where there is no VNNI
        runtime = Network(content, as_runtime=True).infer({"input": x})["output"]
        np.testing.assert_allclose(runtime, expected, rtol=0, atol=2e-5)


@given(st.integers(0, 10_000), st.sampled_from(sorted(SCHEMES)), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_each_output_channel_has_its_own_scale(seed: int, name: str, outputs: int) -> None:
    rng = np.random.default_rng(seed)
    spread = 10.0 ** rng.uniform(-3, 3, (outputs, 1))
    weight = (spread * rng.normal(size=(outputs, 5))).astype(np.float32)
    source = Source(model=_gemm_model(weight), macs={})
    scheme = SCHEMES[name]
    samples = rng.normal(size=(8, 5)).astype(np.float32)
    # scales that biases do not stretch: there is none here
    content = qdq.place(source, ranges(source, samples, scheme), scheme)
    scales = qn.initializers(content)["w_scale"]
    levels = 64 if scheme.reduce_range else 127
    np.testing.assert_allclose(scales, np.abs(weight).max(1) / levels, rtol=1e-6)


def _gemm_model(weight: np.ndarray) -> Any:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    node = onnx.helper.make_node("Gemm", ["input", "w"], ["output"], name="fc", transB=1)
    graph = onnx.helper.make_graph(
        [node],
        "net",
        [info("input", kind, ["N", weight.shape[1]])],
        [info("output", kind, ["N", len(weight)])],
        [numpy_helper.from_array(weight, "w")],
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_every_scheme_stays_near_the_float_network(name: str, block: Path) -> None:
    x = qn.images(64)
    reference = Network(block).infer({"input": x})["output"]
    exact = Network(placed(block, x, name)).infer({"input": x})["output"]
    assert snr_db(exact, reference) > 25


# ---------------------------------------------------------------- what the schemes promise


def test_symmetric_has_no_zero_points_and_float_biases(block: Path) -> None:
    content = placed(block, qn.images(32), "symmetric")
    values = qn.initializers(content)
    for operator in QDQ:
        for node in qn.nodes_of(content, operator):
            zero = values[node.input[2]]
            assert zero.dtype == np.int8
            assert not zero.any()
    for node in [*qn.nodes_of(content, "Conv"), *qn.nodes_of(content, "Gemm")]:
        assert values[node.input[2]].dtype == np.float32, "TensorRT takes no quantised bias"


def test_symmetric_keeps_float_weights_behind_a_pair(block: Path) -> None:
    content = placed(block, qn.images(32), "symmetric")
    makers = {n.output[0]: n for op in QDQ for n in qn.nodes_of(content, op)}
    values = qn.initializers(content)
    for node in qn.nodes_of(content, "Conv"):
        back = makers[node.input[1]]
        forth = makers[back.input[0]]
        assert (back.op_type, forth.op_type) == ("DequantizeLinear", "QuantizeLinear")
        assert values[forth.input[0]].dtype == np.float32


def test_symmetric_quantises_the_other_summand_of_a_convolution(block: Path) -> None:
    content = placed(block, qn.images(32), "symmetric")
    for node in qn.nodes_of(content, "Add"):
        through = [name.endswith("_DequantizeLinear_Output") for name in node.input]
        assert sorted(through) == [False, True], "one summand in 8 bits, the kernel's own in float"
    # with a convolution on both sides, the one that runs last keeps its kernel's accuracy
    last = qn.nodes_of(content, "Add")[1]
    assert last.input[0] == "b1"
    assert last.input[1].startswith("side")


def test_residuals_of_a_float_layer_stay_float(block: Path) -> None:
    source = read_source(block)
    assert qdq.residuals(source, ["a2", "b1", "side"]) == ("r0", "side")
    assert qdq.residuals(source, ["b1"]) == ("side",)
    assert qdq.residuals(source, []) == ()


def test_a_sum_whose_layer_is_read_elsewhere_is_not_fused(tmp_path: Path) -> None:
    weights = {"w": np.ones((3, 3, 1, 1), np.float32)}
    nodes: list[qn.Node] = [
        ("Conv", ["input", "w"], "conv", {}),
        ("Add", ["conv", "input"], "sum", {}),
        ("Mul", ["sum", "conv"], "output", {}),
    ]
    source = read_source(qn.save(tmp_path / "net.onnx", nodes, weights, [3, 8, 8]))
    assert qdq.residuals(source, ["conv"]) == ()


def test_symmetric_quantises_no_output_of_a_layer(block: Path) -> None:
    content = placed(block, qn.images(32), "symmetric")
    read = {node.input[0] for node in qn.nodes_of(content, "QuantizeLinear")}
    assert not read & {"stem", "a1", "a2", "b1", "output"}
    assert read >= {"input", "r0", "r1", "r2", "flat", "side"}


def test_u8s8_has_unsigned_activations_and_signed_weights(block: Path) -> None:
    content = placed(block, qn.images(32), "u8s8")
    values = qn.initializers(content)
    stored = {n.input[0] for n in qn.nodes_of(content, "DequantizeLinear")} & set(values)
    weights = {name for name in stored if ".w" in name}
    assert len(weights) == 6
    assert all(values[name].dtype == np.int8 for name in weights)
    for node in qn.nodes_of(content, "QuantizeLinear"):
        assert values[node.input[2]].dtype == np.uint8


def test_reduced_weights_have_seven_bits(block: Path) -> None:
    values = qn.initializers(placed(block, qn.images(32), "u8s8-reduced"))
    stored = [v for n, v in values.items() if n.endswith(".w_quantized")]
    assert len(stored) == 6
    assert max(int(np.abs(v.astype(int)).max()) for v in stored) == 64
    full = qn.initializers(placed(block, qn.images(32), "u8s8"))
    assert np.abs(full["a1.w_quantized"].astype(int)).max() == 127


def test_s8s8_is_signed_with_zero_points(block: Path) -> None:
    content = placed(block, qn.images(32), "s8s8")
    values = qn.initializers(content)
    zeros = [values[n.input[2]] for n in qn.nodes_of(content, "QuantizeLinear")]
    assert all(zero.dtype == np.int8 for zero in zeros)
    assert any(zero.any() for zero in zeros), "what follows a ReLU uses the whole range"


@pytest.mark.parametrize("name", sorted(set(SCHEMES) - {"symmetric"}))
def test_the_answers_leave_the_last_layer_as_floats(name: str, block: Path) -> None:
    content = placed(block, qn.images(32), name)
    last = qn.nodes_of(content, "Gemm")[0]
    assert list(last.output) == ["output"]


def test_an_output_in_the_middle_of_the_network_keeps_its_pair(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {n: rng.normal(size=(6, 6)).astype(np.float32) for n in ("v", "w")}
    nodes: list[qn.Node] = [
        ("Gemm", ["input", "v"], "middle", {}),
        ("Gemm", ["middle", "w"], "output", {}),
    ]
    path = qn.save(tmp_path / "net.onnx", nodes, weights, [6], ["middle", "output"])
    x = qn.images(40, shape=[6])
    content = placed(path, x, "u8s8-reduced")
    found, expected = Network(content).infer({"input": x}), Network(path).infer({"input": x})
    assert set(found) == {"middle", "output"}
    assert min(snr_db(found[n], expected[n]) for n in found) > 25


@pytest.mark.parametrize("shared", [False, True])
def test_an_answer_that_others_read_keeps_its_pair(shared: bool) -> None:
    info, kind, node = (
        onnx.helper.make_tensor_value_info,
        onnx.TensorProto.FLOAT,
        onnx.helper.make_node,
    )
    nodes = [
        node("Gemm", ["input", "w"], ["y"], name="fc"),
        node("QuantizeLinear", ["y", "s", "z"], ["q"], name="q"),
        node("DequantizeLinear", ["q", "s", "z"], ["output"], name="dq"),
        *([node("Relu", ["y"], ["more"], name="relu")] if shared else []),
    ]
    names = ["output", *(["more"] if shared else [])]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [info("input", kind, ["N", 4])],
        [info(name, kind, ["N", 4]) for name in names],
        [numpy_helper.from_array(v, n) for n, v in (
            ("w", np.eye(4, dtype=np.float32)), ("s", np.float32(0.1)), ("z", np.uint8(9)))],
    )  # fmt: skip
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8
    )
    qdq._float_answers_(model)
    onnx.checker.check_model(model, full_check=True)
    assert [n.name for n in model.graph.node] == (["fc", "q", "dq", "relu"] if shared else ["fc"])


# ---------------------------------------------------------------- layers that stay float


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_a_float_layer_has_its_own_weights(name: str, block: Path) -> None:
    content = placed(block, qn.images(32), name, floats=["a1", "output"])
    values, before = qn.initializers(content), qn.initializers(block)
    convs = {n.name: n for op in ("Conv", "Gemm") for n in qn.nodes_of(content, op)}
    for layer, weight in (("a1", "a1.w"), ("output", "fc.w")):
        assert convs[layer].input[1] == weight
        np.testing.assert_array_equal(values[weight], before[weight])
    assert convs["a2"].input[1] != "a2.w"


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_with_every_layer_in_float_nothing_changes(name: str, block: Path) -> None:
    layers = [n for n, _ in read_source(block).nodes(SCHEMES[name].layers)]
    content = placed(block, qn.images(32), name, floats=layers)
    assert not qn.nodes_of(content, "QuantizeLinear")
    x = {"input": qn.images(8, seed=9)}
    found, expected = Network(content).infer(x)["output"], Network(block).infer(x)["output"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(SCHEMES))
def test_one_layer_alone_is_converted(name: str, block: Path) -> None:
    content = placed(block, qn.images(32), name, only="a2")
    changed = [n.name for n in qn.nodes_of(content, "Conv") if not n.input[1].endswith(".w")]
    assert changed == ["a2"]


# ---------------------------------------------------------------- the file


def test_equal_input_gives_equal_bytes_and_the_source_is_left_alone(block: Path) -> None:
    source, scheme = read_source(block), SCHEMES["symmetric"]
    found = ranges(source, qn.images(32), scheme)
    before = source.bytes()
    assert qdq.place(source, found, scheme) == qdq.place(source, found, scheme)
    assert source.bytes() == before


def test_the_file_keeps_versions_notes_and_order(block: Path) -> None:
    content = placed(block, qn.images(32), "u8s8")
    model = onnx.load_from_string(content)
    assert model.ir_version == 8
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert {p.key: p.value for p in model.metadata_props} == {"mint_deploy.mean": "[0.5]"}
    made = {"input", *(t.name for t in model.graph.initializer)}
    for node in model.graph.node:
        assert set(node.input) <= made, f"{node.name} stands before what it reads"
        made |= set(node.output)
    read = {name for node in model.graph.node for name in node.input}
    assert {t.name for t in model.graph.initializer} <= read


def test_a_tensor_without_a_range_is_an_error_not_a_guess(block: Path) -> None:
    source, scheme = read_source(block), SCHEMES["u8s8"]
    whole = ranges(source, qn.images(16), scheme)
    partial = {n: r for n, r in whole.ranges.items() if n != "a1" and n != "r1"}
    broken = Calibration(key="k", method="minmax", samples=16, symmetric=False, ranges=partial)
    with pytest.raises(ModelError, match="cannot quantise the model"):
        qdq.place(source, broken, scheme)
