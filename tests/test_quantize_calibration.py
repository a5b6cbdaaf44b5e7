"""Ranges on real samples, by each method, and the file that keeps them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import quant_nets as qn
from onnx import TensorProto, helper

from mint_deploy.errors import DataError, ModelError, UnknownName
from mint_deploy.quantize.calibration import METHODS, Cache, calibrate, calibration_key
from mint_deploy.quantize.source import read_source
from mint_deploy.values.precision import Calibration

OPERATORS = ("Gemm",)


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    return read_source(qn.gemm(path, np.eye(4), np.zeros(4))).bytes()


def ranges_of(model: bytes, x: np.ndarray, method: str = "minmax", **how) -> Calibration:
    settings = {"symmetric": False, "operators": OPERATORS, "batch": None, **how}
    return calibrate(model, {"input": x}, key="k", method=method, **settings)


def test_minmax_is_the_lowest_and_the_highest(layer: bytes) -> None:
    x = qn.images(50, shape=[4]) + 0.7
    found = ranges_of(layer, x)
    assert set(found.ranges) == {"input", "output"}
    for low, high in found.ranges.values():
        assert (low, high) == (float(x.min()), float(x.max()))
    assert (found.samples, found.method, found.key) == (50, "minmax", "k")


def test_symmetric_ranges_have_zero_in_the_middle(layer: bytes) -> None:
    x = qn.images(50, shape=[4]) + 0.7
    for method in METHODS:
        low, high = ranges_of(layer, x, method, symmetric=True).ranges["input"]
        assert low == -high
        assert 0 < high <= float(np.abs(x).max()) + 1e-6


def test_percentile_leaves_the_outlier_out(layer: bytes) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (20_000, 4)).astype(np.float32)
    x[7, 2] = 1000
    assert ranges_of(layer, x, batch=None).ranges["input"][1] == 1000
    assert ranges_of(layer, x, "percentile").ranges["input"][1] < 5


@pytest.mark.parametrize("method", METHODS)
def test_how_the_samples_are_batched_does_not_matter_much(method: str, layer: bytes) -> None:
    x = qn.images(64, shape=[4])
    whole = ranges_of(layer, x, method, batch=64).ranges["input"]
    parts = ranges_of(layer, x, method, batch=8).ranges["input"]
    np.testing.assert_allclose(parts, whole, rtol=0.1 if method != "minmax" else 0)


def test_progress_tells_samples(layer: bytes) -> None:
    told: list[tuple[float, float, str]] = []
    ranges_of(layer, qn.images(40, shape=[4]), progress=lambda *said: told.append(said))
    assert [(done, total) for done, total, _ in told] == [(16, 40), (32, 40), (40, 40)]
    assert "40 of 40 samples" in told[-1][2]


def test_an_interruption_passes_through(layer: bytes) -> None:
    def stop(*said: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ranges_of(layer, qn.images(40, shape=[4]), progress=stop)


def test_nothing_is_said_on_the_terminal(layer: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    for method in METHODS:
        ranges_of(layer, qn.images(20, shape=[4]), method)
    assert capfd.readouterr().out == ""


def test_an_unknown_method_names_the_known_ones(layer: bytes) -> None:
    with pytest.raises(UnknownName, match="did you mean 'percentile'"):
        ranges_of(layer, qn.images(20, shape=[4]), "percentil")


def test_a_tensor_that_overflows_is_named(tmp_path: Path) -> None:
    nodes: list[qn.Node] = [
        ("Gemm", ["input", "w"], "middle", {}),
        ("Exp", ["middle"], "large", {}),
        ("Gemm", ["large", "w"], "output", {}),
    ]
    path = qn.save(tmp_path / "net.onnx", nodes, {"w": np.eye(4, dtype=np.float32)}, [4])
    x = np.full((20, 4), 200, np.float32)
    with pytest.raises(ModelError, match=r"'large' .* is not finite"):
        ranges_of(read_source(path).bytes(), x)


def test_samples_that_the_model_refuses_are_a_model_error(layer: bytes) -> None:
    with pytest.raises(ModelError, match="cannot be calibrated"):
        ranges_of(layer, qn.images(20, shape=[5]))


# ---------------------------------------------------------------- the key and the file


def test_the_key_depends_on_all_that_decides() -> None:
    x = {"input": qn.images(10)}
    other = {"input": qn.images(10, seed=2)}
    given = [
        ("a", x, "minmax", False, ("Conv",)),
        ("b", x, "minmax", False, ("Conv",)),
        ("a", other, "minmax", False, ("Conv",)),
        ("a", x, "entropy", False, ("Conv",)),
        ("a", x, "minmax", True, ("Conv",)),
        ("a", x, "minmax", False, ("Conv", "Add")),
    ]
    assert len({calibration_key(*g) for g in given}) == len(given)
    assert calibration_key("a", x, "minmax", False, ("A", "B")) == calibration_key(
        "a", {"input": qn.images(10)}, "minmax", False, ("B", "A")
    )


def made(key: str) -> Calibration:
    return Calibration(
        key=key,
        method="minmax",
        samples=9,
        symmetric=False,
        ranges={"x": (-0.1, float(np.float32(1) / 3))},
    )


def test_the_cache_gives_back_what_it_was_given(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "calibration.json")
    assert cache.get("a") is None
    cache.put(made("a"))
    cache.put(made("b"))
    again = Cache(tmp_path / "calibration.json")
    assert again.get("a") == made("a")
    assert again.get("b") == made("b")
    assert again.get("c") is None
    assert again.get("a").ranges["x"][1] == float(np.float32(1) / 3)  # to the last digit


def test_no_path_keeps_nothing() -> None:
    cache = Cache(None)
    cache.put(made("a"))
    assert cache.get("a") is None


def test_a_damaged_cache_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    path.write_text('{"kind": "Calibrations", "sch')
    with pytest.raises(DataError, match="damaged"):
        Cache(path).get("a")
    path.write_text('{"kind": "Other", "schema": 1}')
    with pytest.raises(DataError, match="expected a 'Calibrations'"):
        Cache(path).get("a")
    Cache(tmp_path / "good.json").put(made("a"))
    body = json.loads((tmp_path / "good.json").read_text())
    body["calibrations"] = [1]
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match="remove it"):
        Cache(path).get("a")


def test_int_tensors_have_no_range(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Cast", ["ids"], ["x"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("Gemm", ["x", "w"], ["output"], name="fc"),
    ]
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    graph = helper.make_graph(
        nodes,
        "net",
        [info("ids", TensorProto.INT64, ["N", 4])],
        [info("output", TensorProto.FLOAT, ["N", 4])],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    source = read_source(tmp_path / "net.onnx")
    found = calibrate(
        source.bytes(),
        {"ids": np.arange(40).reshape(10, 4)},
        key="k",
        method="minmax",
        symmetric=False,
        operators=("Cast", "Gemm"),
        batch=None,
    )
    assert set(found.ranges) == {"x", "output"}
