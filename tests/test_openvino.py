"""OpenVINO: float32 unless something else is chosen, threads and streams as asked, and read back.

Its package is an extra; where it is not installed these tests skip, and so does its part of the
conformance suite.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx_models import save_conv

from mint_deploy import files, plugins
from mint_deploy.artifacts import Engine, TensorSpec
from mint_deploy.errors import ConfigError, DataError, ModelError, RuntimeMissing, UnknownName

openvino = pytest.importorskip("openvino", reason="the package openvino is not installed")
ov = plugins.load("runtime", "openvino")


@pytest.fixture
def model(tmp_path):
    return save_conv(tmp_path / "m.onnx")


def image(batch=2, seed=0):
    return {"input": np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), np.float32)}


def capabilities():
    return ov._core(openvino).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


# ---------------------------------------------------------------- flags


def test_nothing_is_left_to_its_hints(model):
    with ov.runner(ov.build(model)) as live:
        assert live.engine.flags == {
            "device": "CPU",
            "intra_op_threads": "1",
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": "1",
            "NUM_STREAMS": "1",
            "ENABLE_CPU_PINNING": "NO",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
            "ENABLE_HYPER_THREADING": live.engine.flags["ENABLE_HYPER_THREADING"],
            "EXECUTION_MODE_HINT": "PERFORMANCE",
        }


def test_every_flag_is_what_the_compiled_model_says(model):
    settings = {"threads": 2, "hint": "throughput", "streams": 2}
    with ov.runner(ov.build(model), **settings) as live:
        flags, compiled = live.engine.flags, live._compiled
        assert str(compiled.get_property("PERFORMANCE_HINT")) == flags["PERFORMANCE_HINT"]
        assert flags["PERFORMANCE_HINT"] == "THROUGHPUT"
        assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
        assert compiled.get_property("ENABLE_CPU_PINNING") is False
        assert str(compiled.get_property("NUM_STREAMS")) == flags["NUM_STREAMS"]
        assert str(compiled.get_property("INFERENCE_NUM_THREADS")) == flags["INFERENCE_NUM_THREADS"]


def test_more_threads_than_cores_are_recorded_as_what_they_became(model):
    with ov.runner(ov.build(model), threads=5000) as live:
        assert live.engine.flags["intra_op_threads"] == "5000"
        assert 1 <= int(live.engine.flags["INFERENCE_NUM_THREADS"]) < 5000


def test_flags_of_the_engine_hold_unless_a_setting_says_otherwise(model):
    engine = ov.build(model, None, None, hint="throughput", streams=1)
    sent = files.decode(Engine, files.encode(engine))
    with ov.runner(sent, threads=1) as live:
        assert live.engine.flags["PERFORMANCE_HINT"] == "THROUGHPUT"
    with ov.runner(sent, hint="latency") as live:
        assert live.engine.flags["PERFORMANCE_HINT"] == "LATENCY"


def test_the_engine_is_the_file_with_its_hash_and_version(model):
    engine = ov.build(model, {"precision": "int8"})
    assert (engine.path, engine.sha256) == (str(model), files.sha256(model))
    assert engine.precision == "int8"
    assert engine.builder == {"openvino": openvino.__version__.partition("-")[0]}


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"hint": "latenci"}, UnknownName, "did you mean 'latency'"),
        ({"precision": "bf61"}, UnknownName, "did you mean 'bf16'"),
        ({"streams": 0}, ConfigError, "streams is 0"),
        ({"threads": 0}, ConfigError, "threads is 0"),
    ],
)
def test_settings_that_make_no_sense(model, settings, error, match):
    with pytest.raises(error, match=match):
        ov.runner(ov.build(model), **settings)


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize(
    ("precision", "needs", "ours"), [("bf16", "BF16", "bf16"), ("f16", "FP16", "fp16")]
)
def test_a_precision_is_computed_or_refused_and_never_ignored(model, precision, needs, ours):
    """OpenVINO itself takes f32 without a word where the processor lacks it."""
    engine = ov.build(model)
    if needs not in capabilities():
        with pytest.raises(ConfigError, match=f"{precision} is not computed by this CPU"):
            ov.runner(engine, precision=precision)
        return
    with ov.runner(engine, precision=precision) as live, ov.runner(engine) as plain:
        assert live.engine.precision == ours
        assert live.engine.flags["INFERENCE_PRECISION_HINT"] == precision
        a, b = live.infer(image())["output"], plain.infer(image())["output"]
        assert 0 < np.abs(a - b).max() < 0.1


def test_a_device_that_can_and_does_not_is_noticed(model, monkeypatch):
    """As an OpenVINO that says it has bf16 and compiles f32 would be."""
    engine = ov.build(model)
    runner = ov.runner(engine)
    runner._asked = engine.__class__(
        path=engine.path, runtime="openvino", precision="bf16", sha256="",
        flags={**engine.flags, "INFERENCE_PRECISION_HINT": "bf16"},
    )  # fmt: skip
    if "BF16" in capabilities():
        pytest.skip("this CPU computes bf16")
    with pytest.raises(ConfigError, match="bf16 was asked for and OpenVINO took f32"):
        runner.__enter__()


def save_qdq(path):
    """One convolution between quantisation nodes, as the exporters of INT8 write it."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-100, 100, (8, 3, 3, 3)).astype(np.int8)
    scale = [("scale", np.float32(0.05)), ("zero", np.uint8(128)), ("ws", np.full(8, 0.01, np.float32)),
             ("wz", np.zeros(8, np.int8)), ("w", weight)]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"], name="in/Quantize"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"], name="in/Dequantize"),
        helper.make_node(
            "DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="w/Dequantize", axis=0
        ),
        helper.make_node("Conv", ["d", "wd"], ["c"], name="conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["output"], name="relu/Relu"),
    ]
    graph = helper.make_graph(
        nodes, "qdq",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 8, 8, 8])],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in scale],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    onnx.checker.check_model(made)
    onnx.save(made, path)
    return path


def test_a_quantised_file_runs_in_whole_numbers(tmp_path):
    path = save_qdq(tmp_path / "q.onnx")
    with ov.runner(ov.build(path, {"precision": "int8"})) as live:
        found = live.infer(image())["output"]
        kernels = {name: kind for name, kind, _ in live.profile(image(), 2)}
    expected = ReferenceEvaluator(str(path)).run(None, image())[0]
    # its sums are exact, so at most the rounding of an input differs
    assert np.abs(found - expected).max() < 0.06 * np.abs(expected).max()
    conv = next(kind for name, kind in kernels.items() if "conv" in name.lower())
    if "INT8" in capabilities():
        assert "8" in conv.rpartition("_")[2], f"{conv} is no INT8 kernel"


# ---------------------------------------------------------------- what it takes and gives


def test_inputs_and_outputs_have_the_names_of_the_file(tmp_path):
    """OpenVINO may know a value under several names."""
    nodes = [
        helper.make_node("Add", ["b_right", "a_left"], ["sum"]),
        helper.make_node("Identity", ["sum"], ["z_first"]),
        helper.make_node("Mul", ["a_left", "b_right"], ["a_last"]),
    ]
    float32 = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes, "two",
        [helper.make_tensor_value_info(n, float32, ["N", 2]) for n in ("b_right", "a_left")],
        [helper.make_tensor_value_info(n, float32, ["N", 2]) for n in ("z_first", "a_last")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, tmp_path / "two.onnx")
    a, b = np.array([[1, 2]], np.float32), np.array([[3, 5]], np.float32)
    with ov.runner(ov.build(tmp_path / "two.onnx")) as live:
        assert [s.name for s in live.inputs] == ["b_right", "a_left"]
        assert [s.name for s in live.outputs] == ["z_first", "a_last"]
        assert live.inputs[0] == TensorSpec(name="b_right", shape=(-1, 2))
        found = live.infer({"a_left": a, "b_right": b})
    assert found["z_first"].tolist() == [[4, 7]]
    assert found["a_last"].tolist() == [[3, 10]]


def test_an_input_that_is_missing_is_not_the_one_of_the_call_before(model):
    """Which is what OpenVINO itself takes."""
    with ov.runner(ov.build(model)) as live:
        live.infer(image())
        with pytest.raises(Exception, match="was given nothing"):
            live.infer({})


def _seen(x):
    """What the file computes, by a runner that has not seen these arrays before."""
    return {name: array.copy() for name, array in x.items()}


@pytest.mark.parametrize("kind", ["plain", "read only", "every other"])
def test_what_is_written_into_the_same_arrays_is_seen(model, kind):
    """They are not checked and set again, and a copy of what cannot be read in place is made again."""
    whole = image()["input"]
    if kind == "every other":
        whole = np.repeat(whole, 2, axis=3)[..., ::2]
    x = {"input": whole.view()}
    x["input"].flags.writeable = kind != "read only"
    with ov.runner(ov.build(model)) as live, ov.runner(ov.build(model)) as other:
        for _ in range(3):
            whole += 1.0
            (found,), (expected,) = live.infer(x).values(), other.infer(_seen(x)).values()
            np.testing.assert_array_equal(found, expected)
        assert bool(live._free[0]._known) == (kind == "plain")


def test_arrays_that_were_right_and_are_no_longer(model):
    x = image()
    with ov.runner(ov.build(model)) as live:
        live.infer(x)
        x["input"].resize((2, 8, 3, 8), refcheck=False)
        with pytest.raises(DataError, match=r"was given input float32 \[2, 8, 3, 8\]"):
            live.infer(x)
        with pytest.raises(DataError, match="was given input"):
            live.infer({**image(), "more": x["input"]})
        live.infer(image())


def test_arrays_of_a_caller_are_not_kept_for_the_next_one(model):
    """Two with equal values are two: the second's own memory is read."""
    a, b = image(), image()
    with ov.runner(ov.build(model)) as live:
        (first,) = live.infer(a).values()
        b["input"] *= 2
        (second,) = live.infer(b).values()
    assert not np.array_equal(first, second)


def test_each_caller_has_a_request_and_no_more_are_made_than_needed(model):
    with ov.runner(ov.build(model)) as live:
        for _ in range(5):
            live.infer(image())
        assert len(live._free) == 1
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(lambda i: live.infer(image(seed=i)), range(30)))
        assert 1 <= len(live._free) <= 3
    assert live._free == []


def test_it_agrees_with_onnxruntime_on_a_deeper_network(tmp_path):
    path = save_conv(tmp_path / "deep.onnx", channels=16, size=16, depth=8)
    ort = plugins.load("runtime", "onnxruntime")
    x = {"input": np.random.default_rng(0).standard_normal((3, 3, 16, 16), np.float32)}
    with ov.runner(ov.build(path)) as a, ort.runner(ort.build(path)) as b:
        np.testing.assert_allclose(a.infer(x)["output"], b.infer(x)["output"], rtol=1e-4, atol=1e-6)


def test_profile_tells_node_kernel_and_time(model):
    with ov.runner(ov.build(model)) as live:
        rows = live.profile(image(), 3)
        assert any(kind.startswith("Convolution ") and "f32" in kind for _, kind, _ in rows)
        assert all(ns >= 0 for *_, ns in rows)
        with pytest.raises(Exception, match="was given nothing"):
            live.profile({})
    with pytest.raises(ConfigError, match="not open"):
        live.profile(image())


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize(
    ("op", "domain", "name", "expected"),
    [
        ("Foo", "", "layer1/Foo", r"Foo \(layer1/Foo\)"),
        ("Bar", "com.foo", "layer2/Bar", r"com\.foo\.Bar \(layer2/Bar\)"),
        ("Foo", "", "", r"Foo \(the one that makes o\)"),
        ("Det", "", "head/Det", r"Det \(head/Det\)"),
    ],
)
def test_an_operator_that_it_lacks_is_named_with_its_node(tmp_path, op, domain, name, expected):
    path = save_op(tmp_path / "bad.onnx", op, domain, name)
    with pytest.raises(ModelError, match=f"OpenVINO .* cannot run {expected}, in "):
        ov.build(path)


def save_op(path, op, domain, name):
    float32 = TensorProto.FLOAT
    nodes = [
        helper.make_node("Relu", ["i"], ["r"], name="first/Relu"),
        helper.make_node(op, ["r"], ["o"], name=name, domain=domain),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("i", float32, ["N", 3, 3])],
        [helper.make_tensor_value_info("o", float32, None)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def test_a_package_that_is_not_there_says_so_and_how_to_get_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert ov.missing() == "the package openvino is not installed"
    with pytest.raises(RuntimeMissing, match="pip install openvino"):
        ov.build(model)


# ---------------------------------------------------------------- Ctrl-C afterwards

INTERRUPTED = """
import gc, os, signal, sys
from mint_deploy.runtimes import openvino as ov
engine = ov.build(sys.argv[1])
one, two = ov.runner(engine), ov.runner(engine)
one.__enter__(), two.__enter__()
for live in (one, two):  # first in, first out
    live.__exit__(None, None, None)
del one, two, live
gc.collect()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_after_two_sessions_is_still_an_interrupt(model):
    """An alternate signal stack that was unmapped makes a segmentation fault of it."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(model)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr
