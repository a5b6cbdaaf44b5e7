"""Predictions: the roofline, what it is from, and the cost of layers read from an ONNX file."""

from __future__ import annotations

import dataclasses

import nets
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mint_deploy import files
from mint_deploy.errors import ModelError, TargetError
from mint_deploy.export import export
from mint_deploy.onnx_cost import layer_costs
from mint_deploy.predict import LABEL, predict
from mint_deploy.target import load_target
from mint_deploy.trace import trace

JETSON = load_target("jetson")


def layer(macs=0, weights=0, activations=0):
    return {
        "name": "l", "macs": macs, "weight_elements": weights, "activation_elements": activations,
    }  # fmt: skip


def ms(target, *layers):
    return predict(target, layers)["networks"]["dense"]["ms"]


# ---------------------------------------------------------------- the roofline


def test_arithmetic_takes_its_time_at_the_peak_rate():
    """10.2 TFLOPS in FP16: 5.1e12 multiply-adds are a second."""
    assert ms(JETSON, layer(macs=5.1e12)) == pytest.approx(1000)


def test_memory_takes_its_time_at_the_full_bandwidth():
    """68 GB/s and two bytes an element: 34e9 elements are a second."""
    assert ms(JETSON, layer(weights=30e9, activations=4e9)) == pytest.approx(1000)


def test_a_layer_takes_the_longer_of_the_two_and_layers_follow_each_other():
    work, move = layer(macs=5.1e12, weights=17e9), layer(macs=2.55e12, weights=34e9)
    body = predict(JETSON, [work, move])["networks"]["dense"]
    assert body["ms"] == pytest.approx(2000)
    assert body["layers_bound_by"] == {"arithmetic": 1, "memory": 1}


def test_weights_are_read_once_a_batch_and_activations_once_a_sample():
    four = dataclasses.replace(JETSON, batch=4)
    assert ms(four, layer(weights=34e9)) == pytest.approx(1000)
    assert ms(four, layer(activations=34e9)) == pytest.approx(4000)
    assert ms(four, layer(macs=5.1e12)) == pytest.approx(4000)


def test_each_precision_has_its_rate_and_its_bytes():
    int8 = dataclasses.replace(JETSON, precision="int8")
    fp32 = dataclasses.replace(JETSON, precision="fp32")
    assert ms(int8, layer(macs=20.5e12 / 2)) == pytest.approx(1000)
    assert ms(fp32, layer(macs=1024 * 625e6)) == pytest.approx(1000)
    assert ms(int8, layer(weights=68e9)) == pytest.approx(1000)
    assert ms(fp32, layer(weights=17e9)) == pytest.approx(1000)


def test_a_faster_power_mode_predicts_less_time():
    slow, fast = load_target("jetson", power_mode="7W"), load_target("jetson", power_mode="25W")
    assert ms(fast, layer(macs=1e9, weights=1e6)) < ms(slow, layer(macs=1e9, weights=1e6))


sizes = st.integers(0, 10**9)


@given(st.lists(st.tuples(sizes, sizes, sizes), min_size=1, max_size=8))
def test_never_below_either_limit_and_never_above_their_sum(rows):
    body = predict(JETSON, [layer(*row) for row in rows])["networks"]["dense"]
    longest = max(body["arithmetic_ms"], body["memory_ms"])
    assert longest <= body["ms"] * (1 + 1e-9)
    assert body["ms"] <= (body["arithmetic_ms"] + body["memory_ms"]) * (1 + 1e-9)


# ---------------------------------------------------------------- what is said with it


def test_every_prediction_says_what_it_is_and_where_it_is_from(tmp_path):
    body = predict(JETSON, [layer(macs=2e9)], [layer(macs=1e9)])
    assert body["label"] == LABEL == "predicted, not measured"
    assert "no launch overhead" in body["basis"]
    assert "lower bound" in body["basis"]
    assert (body["board"], body["power_mode"], body["precision"]) == ("jetson", "15W", "fp16")
    assert "computed" in body["sources"]["fp16_tflops"]
    assert set(body["sources"]) == {"fp16_tflops", "memory_gb_per_s"}
    figures = {f["key"]: f["value"] for f in body["figures"]}
    assert figures["latency_ratio"] == pytest.approx(0.5)
    assert figures["slim_latency_ms"] == pytest.approx(figures["dense_latency_ms"] / 2)
    files.write_json(tmp_path / "predicted.json", body, kind="Prediction")
    assert files.read_json(tmp_path / "predicted.json", kind="Prediction")["board"] == "jetson"


def test_a_network_without_layers_has_no_ratio():
    figure = predict(JETSON, [], [])["figures"][-1]
    assert figure["value"] is None
    assert "no layers" in figure["reason"]


def test_a_target_without_figures_is_refused_with_what_it_lacks():
    with pytest.raises(TargetError, match="'cpu' has no cuda_cores, so no time can be predicted"):
        predict(load_target("cpu"), [])
    with pytest.raises(TargetError, match=r"no fp16_tflops in power mode 70W.*known for MAXN"):
        predict(load_target("jetson-thor-t5000", power_mode="70W"), [])
    thor = dataclasses.replace(load_target("jetson-thor-t5000"), precision="int8")
    with pytest.raises(TargetError, match="no int8_tops"):
        predict(thor, [])


# ---------------------------------------------------------------- costs from the file


@pytest.mark.parametrize(("opset", "dynamic", "batch"), [(17, False, 3), (17, True, 1)])
@pytest.mark.parametrize("name", ["option_b", "grouped", "depthwise", "unet", "resnet20"])
def test_the_macs_of_the_file_are_those_of_the_tracer(tmp_path, name, opset, dynamic, batch):
    model, inputs = nets.build(name)
    target = dataclasses.replace(load_target("jetson"), opset=opset, batch=batch)
    export(model, tmp_path / "m.onnx", inputs, target, dynamic_batch=dynamic)
    costs = layer_costs(tmp_path / "m.onnx")
    assert sum(c["macs"] for c in costs) == trace(model, inputs).cost.macs
    assert len({c["name"] for c in costs}) == len(costs)


def test_weights_and_activations_of_a_layer(tmp_path):
    model, inputs = nets.build("option_b")
    export(model, tmp_path / "m.onnx", inputs, load_target("cpu"))
    first = layer_costs(tmp_path / "m.onnx")[0]
    stem = next(m for m in model.modules() if hasattr(m, "kernel_size"))
    weights = stem.weight.numel() + stem.out_channels  # the folded BatchNorm is the bias
    assert first["weight_elements"] == weights
    assert first["activation_elements"] == 3 * 64 + stem.out_channels * 64
    assert first["macs"] == stem.weight.numel() * 64


def test_what_is_not_onnx_has_no_costs(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff\xff")
    with pytest.raises(ModelError, match="is not an ONNX file"):
        layer_costs(tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="cannot read"):
        layer_costs(tmp_path / "none.onnx")
