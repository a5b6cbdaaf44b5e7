"""TensorRT's Python API through its double, for every release: build, load, run, and what goes wrong."""

from __future__ import annotations

import functools
import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from cudart_double import Cudart
from onnx import helper, numpy_helper
from onnx_models import save_conv
from tensorrt_double import VERSIONS, install, names

from mint_deploy import _trt_cuda, engine_file, files, trtexec
from mint_deploy._trt_api import Api
from mint_deploy._trt_cuda import Cuda, CudaError
from mint_deploy._trt_session import Session
from mint_deploy.artifacts import Engine
from mint_deploy.errors import (
    ConfigError,
    DataError,
    EngineMismatch,
    MintDeployError,
    ModelError,
    RuntimeMissing,
)
from mint_deploy.runtimes import DYNAMIC, tensorrt


@pytest.fixture(params=VERSIONS)
def world(request, monkeypatch):
    return install(monkeypatch, request.param)


@pytest.fixture
def ten(monkeypatch):
    return install(monkeypatch, "10.3.0")


@pytest.fixture
def model(tmp_path):
    return save_conv(tmp_path / "model.onnx")


def images(batch=1, seed=0):
    return {"input": np.random.default_rng(seed).standard_normal((batch, 3, 8, 8), np.float32)}


@functools.lru_cache(maxsize=4)
def _session(data):
    import onnxruntime

    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])


def reference(model, inputs):
    """What a plain session of ONNX Runtime gives."""
    return _session(model.read_bytes()).run(None, inputs)[0]


# ---------------------------------------------------------------- build and run, in every release


def test_it_computes_what_onnx_runtime_computes(world, model, tmp_path):
    engine = tensorrt.build(model, {"batch": 2, "max_batch": 4}, tmp_path / "out")
    with tensorrt.runner(engine) as live:
        assert [(s.name, s.shape) for s in live.inputs] == [("input", (DYNAMIC, 3, 8, 8))]
        assert [(s.name, s.shape, s.dtype) for s in live.outputs] == [
            ("output", (DYNAMIC, 8), "float32")
        ]
        for turn, batch in enumerate((1, 4, 2, 4, 1, 4, 2)):
            given = images(batch, turn)
            np.testing.assert_array_equal(live.infer(given)["output"], reference(model, given))
    assert world.cudart.left() == []


def test_every_setting_reaches_the_builder(world, model, tmp_path):
    target = {"batch": 2, "memory_bytes": 4 << 30}
    engine = tensorrt.build(model, target, tmp_path / "out")
    built = world.built
    assert built["pools"] == {"WORKSPACE": 1024 << 20}
    assert not built["tf32"]
    assert built["avg_timing"] == 8
    assert built["verbosity"] == "DETAILED"
    assert built["level"] == (None if world.version.startswith("8.5") else 3)
    assert built["strong"] == (world.number >= (11,))
    assert built["flags"] == []
    assert built["profile"] == {"input": [[2, 3, 8, 8]] * 3}
    assert engine.builder["tensorrt"] == ".".join(world.version.split(".")[:3])
    assert engine.builder["by"] == "python"
    assert (engine.builder["sm"], engine.builder["device"], engine.builder["cuda"]) == (
        "8.7",
        "Orin",
        "12.6",
    )
    assert engine.flags["onnx_sha256"] == files.sha256(model)
    assert engine.flags["timing_cache"]["sha256"] == files.sha256(tmp_path / "out" / "timing.cache")
    assert any(a.startswith("WORKSPACE=1024MiB") for a in engine.flags["arguments"])
    assert files.read_value(tmp_path / "out" / "engine.json", Engine) == engine


def test_precisions_by_flag_or_by_file(world, tmp_path):
    half = save_half(tmp_path / "half.onnx")
    engine = tensorrt.build(half, {"precision": "fp16"}, tmp_path / "h")
    assert engine.precision == "fp16"
    assert world.built["strong"] == (world.number >= (10,))
    assert world.built["flags"] == ([] if world.built["strong"] else ["FP16"])
    quantised = save_quantised(tmp_path / "int8.onnx")
    tensorrt.build(quantised, {"precision": "int8"}, tmp_path / "q")
    assert world.built["flags"] == ([] if world.number >= (11,) else ["FP16", "INT8"])
    plain = save_conv(tmp_path / "plain.onnx")
    with pytest.raises(ConfigError, match="quantisation nodes"):
        tensorrt.build(plain, {"precision": "int8"}, tmp_path / "p")
    if world.number >= (11,):
        with pytest.raises(ConfigError, match="takes the precision from the ONNX file"):
            tensorrt.build(plain, {"precision": "fp16"}, tmp_path / "p")
    assert not (tmp_path / "p" / "engine.json").exists()


def save_half(path):
    model = onnx.load(save_conv(path))
    for weight in model.graph.initializer:
        name, array = weight.name, numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(numpy_helper.from_array(array, f"{name}_half"))
        model.graph.node.insert(0, helper.make_node("Cast", [f"{name}_half"], [name], to=1))
    onnx.save(model, path)
    return path


def save_quantised(path):
    model = onnx.load(save_conv(path))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.float32(0.05), "scale"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ]
    )
    first = model.graph.node[0]
    first.input[0] = "deq"
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["deq"])
    )
    model.graph.node.insert(
        0, helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"])
    )
    onnx.save(model, path)
    return path


def test_the_double_has_no_name_that_its_release_lacks(world):
    """What the double is worth: a call of another release is an AttributeError, as it is there."""
    trt = world.module
    assert hasattr(trt.BuilderFlag, "FP16") == (world.number < (11,))
    assert hasattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") == (world.number >= (10,))
    assert hasattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") == (world.number < (11,))
    config = trt.Builder(Api().logger).create_builder_config()
    for name in ("builder_optimization_level", "max_workspace_size", "no_such_setting"):
        if name in names(world.version)["IBuilderConfig"]:
            setattr(config, name, 3)
        else:
            with pytest.raises(AttributeError, match=name):
                setattr(config, name, 3)


# ---------------------------------------------------------------- what the parser lacks, memory, Ctrl-C


def test_an_operator_that_the_parser_lacks_is_named(monkeypatch, model, tmp_path):
    for version in VERSIONS:
        install(monkeypatch, version, lacks=("GlobalAveragePool",))
        with pytest.raises(ModelError, match=r"has no GlobalAveragePool \(node 4") as caught:
            tensorrt.build(model, None, tmp_path / version)
        assert ".".join(version.split(".")[:3]) in str(caught.value)
        assert list((tmp_path / version).iterdir()) == []


def test_memory_that_ran_out_has_numbers(monkeypatch, model, tmp_path):
    install(monkeypatch, "10.3.0", out_of_memory=True)
    monkeypatch.setattr("mint_deploy._trt_build.memory", lambda: (64 << 30, 0))
    with pytest.raises(MintDeployError, match=r"14\.4 GiB were asked for") as caught:
        tensorrt.build(model, {"memory_bytes": 64 << 30}, tmp_path / "out")
    assert "4096 MiB of scratch memory" in str(caught.value)
    assert "add 16 GiB of swap" in str(caught.value)


def test_a_library_that_does_not_start(monkeypatch, model, tmp_path):
    install(monkeypatch, "8.5.3.1", starts=False)
    with pytest.raises(RuntimeMissing, match="CUDA initialization failure with error: 35"):
        tensorrt.build(model, None, tmp_path / "out")


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"])
def test_ctrl_c_ends_the_build_and_leaves_nothing(monkeypatch, model, tmp_path, version):
    """No exception may pass through TensorRT: the signal is noted and raised when it is back."""
    before = signal.getsignal(signal.SIGINT)
    install(monkeypatch, version, stops=1)
    with pytest.raises(KeyboardInterrupt):
        tensorrt.build(model, None, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_the_builder_tells_its_steps(ten, model, tmp_path):
    said = []
    tensorrt.build(model, None, tmp_path / "out", progress=lambda *step: said.append(step))
    assert (0, 3, "Building Engine") in said
    assert said[0][2] == "build 1 of 1 of model.onnx"
    assert said[-1][:2] == (1, 1)


# ---------------------------------------------------------------- several builds, the cache, the accelerator


def test_several_builds_keep_the_fastest_and_report_the_spread(ten, model, tmp_path):
    times = iter([2.0, 1.0, 1.5])
    original = Api.build

    def build(self, job):
        ten.ms = next(times)
        return original(self, job)

    Api.build = build
    try:
        engine = tensorrt.build(model, {"builds": 3}, tmp_path / "out")
    finally:
        Api.build = original
    found = [b["median_ms"] for b in engine.flags["builds"]]
    assert found == pytest.approx([2.0, 1.0, 1.5])
    assert engine.flags["spread"] == pytest.approx(1.0)
    assert len({b["sha256"] for b in engine.flags["builds"]}) == 3
    assert engine.sha256 == engine.flags["builds"][1]["sha256"] == files.sha256(engine.path)
    assert ten.cudart.left() == []


def test_one_build_has_no_spread_and_several_need_a_number(ten, model, tmp_path):
    engine = tensorrt.build(model, None, tmp_path / "out")
    assert engine.flags["spread"] is None
    assert engine.flags["builds"][0]["median_ms"] is None
    with pytest.raises(ConfigError, match="builds is 0"):
        tensorrt.build(model, None, tmp_path / "out", builds=0)


def test_the_timing_cache_is_kept_and_used_again(ten, model, tmp_path):
    tensorrt.build(model, None, tmp_path / "out")
    assert ten.built["cache"] == b""
    tensorrt.build(model, None, tmp_path / "out")
    assert ten.built["cache"] == b"cache of 10.3.0"
    tensorrt.build(model, {"builds": 2}, tmp_path / "out")
    assert ten.built["cache"] == b"", "several builds start afresh, or they would choose alike"


def test_a_timing_cache_of_another_release_is_not_used(monkeypatch, model, tmp_path):
    install(monkeypatch, "10.3.0")
    tensorrt.build(model, None, tmp_path / "out")
    other = install(monkeypatch, "11.1.0.106")
    tensorrt.build(model, None, tmp_path / "out")
    assert other.built["cache"] == b""
    (tmp_path / "out" / "engine.json").unlink()
    (tmp_path / "out" / "timing.cache").write_bytes(b"of nobody")
    tensorrt.build(model, None, tmp_path / "out")
    assert other.built["cache"] == b"", "TensorRT refused it, and an empty one was given"


def test_the_accelerator_and_what_fell_back(monkeypatch, tmp_path):
    world = install(monkeypatch, "10.3.0", dla_cores=2, not_on_dla=("GlobalAveragePool", "Flatten"))
    model = save_conv(tmp_path / "model.onnx", batch=1)
    engine = tensorrt.build(model, {"precision": "fp16", "dla_core": 1}, tmp_path / "out")
    assert world.built["dla"] == 1
    assert {"GPU_FALLBACK", "FP16"} <= set(world.built["flags"])
    assert engine.flags["fell_back"] == ["pooled", "output"]
    with tensorrt.runner(engine) as live:
        assert live.engine.flags["cuda_graph"] == "off", (
            "graphs and the accelerator do not go together"
        )
        np.testing.assert_array_equal(live.infer(images())["output"], reference(model, images()))
    with pytest.raises(ConfigError, match="core 2 of the Deep Learning Accelerator was asked for"):
        tensorrt.build(model, {"precision": "fp16", "dla_core": 2}, tmp_path / "out")


# ---------------------------------------------------------------- without a folder: kept by hash


def test_without_a_folder_an_engine_is_kept_and_used_again(ten, model):
    first = tensorrt.build(model)
    place = model.parent / "engines"
    (folder,) = place.iterdir()
    assert engine_file.read(folder).sha256 == first.sha256
    ten.built = {}
    again = tensorrt.build(model)
    assert ten.built == {}, "nothing was built"
    assert again.sha256 == first.sha256
    tensorrt.build(model, {"batch": 4})
    assert ten.built["profile"] == {"input": [[4, 3, 8, 8]] * 3}
    save_conv(model, channels=4)
    ten.built = {}
    tensorrt.build(model)
    assert ten.built, "another file of the same name"


def test_a_kept_engine_that_was_damaged_is_built_anew(ten, model):
    engine = tensorrt.build(model)
    plan = Path(engine.path)
    plan.write_bytes(plan.read_bytes() + b" ")
    again = tensorrt.build(model)
    assert ten.builds == 2
    assert again.sha256 == files.sha256(plan)


# ---------------------------------------------------------------- the loader


def test_an_altered_plan_is_refused_with_the_command(ten, model, tmp_path):
    engine = tensorrt.build(model, None, tmp_path / "out")
    plan = tmp_path / "out" / "engine.plan"
    plan.write_bytes(plan.read_bytes()[:-5])
    with pytest.raises(EngineMismatch, match=r"damaged or was replaced; it has \d+ bytes of \d+"):
        tensorrt.runner(engine)


@pytest.mark.parametrize("there", [{"device": "Thor", "sm": (11, 0)}, {"runtime": 13000}])
def test_an_engine_of_another_machine_is_refused(monkeypatch, model, tmp_path, there):
    install(monkeypatch, "10.3.0")
    engine = tensorrt.build(model, None, tmp_path / "out")
    install(monkeypatch, "10.3.0", Cudart(**there))
    with pytest.raises(EngineMismatch) as caught:
        tensorrt.runner(engine)
    text = str(caught.value)
    assert "python3 -c" in text
    if "sm" in there:
        assert "compute capability 8.7, GPU Orin" in text
        assert "compute capability 11.0, GPU Thor" in text
    else:
        assert "CUDA 12.6" in text


def test_an_engine_of_another_version_is_refused_before_it_is_loaded(monkeypatch, model, tmp_path):
    install(monkeypatch, "10.3.0")
    engine = tensorrt.build(model, None, tmp_path / "out")
    install(monkeypatch, "10.13.3.9")
    with pytest.raises(EngineMismatch, match=r"'TensorRT 10\.3\.0', found 'TensorRT 10\.13\.3'"):
        tensorrt.runner(engine)


def test_what_tensorrt_itself_refuses_is_told(monkeypatch, model, tmp_path):
    """A plan whose record says nothing of the version: TensorRT finds out, and its words are read."""
    install(monkeypatch, "10.3.0")
    engine = tensorrt.build(model, None, tmp_path / "out")
    install(monkeypatch, "10.13.3.9")
    with pytest.raises(
        EngineMismatch, match=r"built for TensorRT '10\.3\.0', found '10\.13\.3\.9'"
    ):
        Session(Api(), tmp_path / "out" / "engine.plan").__enter__()
    assert engine.runtime == "tensorrt"


# ---------------------------------------------------------------- the runner


def test_wrong_inputs_are_refused_with_both_sides(ten, model, tmp_path):
    engine = tensorrt.build(model, {"batch": 1, "max_batch": 2}, tmp_path / "out")
    with tensorrt.runner(engine) as live:
        for wrong, said in (
            ({}, "was given nothing"),
            ({"other": images()["input"]}, "was given other"),
            (images(3), r"from \[1, 3, 8, 8\] to \[2, 3, 8, 8\]; was given .*larger max_batch"),
            ({"input": np.zeros((1, 4, 8, 8), np.float32)}, r"\[1, 4, 8, 8\]"),
            ({"input": np.zeros((3, 8, 8), np.float32)}, r"\[3, 8, 8\]"),
            ({"input": np.zeros((1, 3, 8, 8))}, "float64"),
        ):
            with pytest.raises(DataError, match=said):
                live.infer(wrong)
        np.testing.assert_array_equal(live.infer(images(2))["output"], reference(model, images(2)))


def test_a_runner_works_inside_its_with_block_alone_and_again(ten, model, tmp_path):
    runner = tensorrt.runner(tensorrt.build(model, None, tmp_path / "out"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="not open"):
            runner.infer(images())
        with runner as live:
            live.infer(images())
            assert live.device_bytes == 4096
        assert ten.cudart.left() == []
    for name in ("threads", "streams"):
        with pytest.raises(ConfigError, match=f"{name} is 0"):
            tensorrt.runner(runner.engine, **{name: 0})


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("streams", [1, 3])
def test_several_streams_and_graphs_give_the_same(ten, tmp_path, graph, streams):
    model = save_conv(tmp_path / "model.onnx", batch=2)
    engine = tensorrt.build(model, {"batch": 2}, tmp_path / "out")
    with tensorrt.runner(engine, streams=streams, cuda_graph=graph) as live:
        for turn in range(3):
            queries = [images(2, 10 * turn + i) for i in range(5)]
            for given, found in zip(queries, live.burst(queries), strict=True):
                np.testing.assert_array_equal(found["output"], reference(model, given))
        launches = ten.cudart.calls.get("cudaGraphLaunch", 0)
        assert launches == (15 - streams if graph else 0), (
            "the first run of a stream is not recorded"
        )
        assert live.engine.flags["streams"] == str(streams)
        assert live.engine.flags["cuda_graph"] == ("on" if graph else "off")
    assert ten.cudart.left() == []


def test_what_infer_returns_is_the_callers(ten, model, tmp_path):
    with tensorrt.runner(tensorrt.build(model, {"batch": 2}, tmp_path / "out")) as live:
        first = live.infer(images(2, 1))["output"]
        kept = first.copy()
        live.infer(images(2, 2))
        np.testing.assert_array_equal(first, kept)


def test_an_input_that_is_not_contiguous_or_read_only(ten, model, tmp_path):
    with tensorrt.runner(tensorrt.build(model, {"batch": 2}, tmp_path / "out")) as live:
        given = images(4, 1)["input"][::2]
        given.flags.writeable = False
        found = live.infer({"input": given})["output"]
        np.testing.assert_array_equal(
            found, reference(model, {"input": np.ascontiguousarray(given)})
        )


def test_several_threads_do_not_mix_up_their_queries(ten, model, tmp_path):
    """A query that takes its time: others must not write into its memory meanwhile."""
    engine = tensorrt.build(model, {"batch": 1}, tmp_path / "out")
    with tensorrt.runner(engine) as live:
        live.infer(images())
        ten.pause_s = 0.005
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda i: live.infer(images(1, i))["output"], range(16)))
    for i, value in enumerate(found):
        np.testing.assert_array_equal(value, reference(model, images(1, i)))


def test_before_ten_an_open_batch_runs_in_one_stream(monkeypatch, model, tmp_path):
    world = install(monkeypatch, "8.6.1")
    engine = tensorrt.build(model, {"batch": 2}, tmp_path / "out")
    with pytest.raises(ConfigError, match="runs an engine with an open batch in one stream"):
        tensorrt.runner(engine, streams=2).__enter__()
    assert world.cudart.left() == []
    fixed = save_conv(tmp_path / "fixed.onnx", batch=2)
    with tensorrt.runner(tensorrt.build(fixed, None, tmp_path / "f"), streams=2) as live:
        assert len(live.burst([images(2)] * 4)) == 4


def test_more_shapes_than_are_kept_do_not_pile_up(ten, model, tmp_path):
    engine = tensorrt.build(model, {"batch": 1, "max_batch": 16}, tmp_path / "out")
    with tensorrt.runner(engine) as live:
        for batch in (*range(1, 17), *range(16, 0, -1)):
            given = images(batch, batch)
            np.testing.assert_array_equal(live.infer(given)["output"], reference(model, given))
        assert len(ten.cudart.memory) <= 8 * 4


def test_gpu_time_leaves_the_copies_out(ten, model, tmp_path):
    ten.ms = 2.5
    with tensorrt.runner(tensorrt.build(model, {"batch": 2}, tmp_path / "out")) as live:
        before = ten.cudart.calls.get("cudaMemcpyAsync", 0)
        times = live.compute_ns(count=30)
        assert times == [2_500_000] * 30
        assert ten.cudart.calls.get("cudaMemcpyAsync", 0) == before
        assert ten.cudart.calls["cudaGraphLaunch"] == 30 + 20 - 1
    assert ten.cudart.left() == []


def test_layers_of_a_built_engine(ten, model, tmp_path):
    engine = tensorrt.build(model, None, tmp_path / "out")
    found = [
        (layer.name, layer.kind, layer.origins, layer.width) for layer in tensorrt.layers(engine)
    ]
    assert found[0] == ("c0 + r0", "Conv", ("c0", "r0"), 8)
    assert json.loads((tmp_path / "out" / "engine.layers.json").read_text())["Layers"]


def test_the_times_of_the_layers(world, model, tmp_path):
    world.ms = 4.0
    with tensorrt.runner(tensorrt.build(model, {"batch": 2}, tmp_path / "out")) as live:
        rows = live.profile(images(2), calls=3)
        assert [(name, kind) for name, kind, _ in rows] == [
            ("c0", "Conv"), ("c1", "Conv"), ("pooled", "GlobalAveragePool"), ("output", "Flatten"),
        ]  # fmt: skip
        assert [ns for *_, ns in rows] == pytest.approx([1e6] * 4)
        (tmp_path / "out" / "engine.layers.json").unlink()
        assert live.profile(images(2), calls=1)[0][:2] == ("c0 + r0", "")
        live.infer(images(2))
    with pytest.raises(ConfigError, match="not open"):
        live.profile(images(2))
    assert world.cudart.left() == []


def test_where_nobody_says_how_many_samples_sixteen_are_taken(ten, model, tmp_path):
    tensorrt.build(model, None, tmp_path / "out")
    assert ten.built["profile"] == {"input": [[1, 3, 8, 8], [1, 3, 8, 8], [16, 3, 8, 8]]}
    tensorrt.build(model, {"batch": 1}, tmp_path / "out")
    assert ten.built["profile"] == {"input": [[1, 3, 8, 8]] * 3}


def test_weights_outside_of_the_models_folder_are_refused(ten, tmp_path):
    (tmp_path / "in").mkdir()
    loaded = onnx.load(save_conv(tmp_path / "in" / "m.onnx"))
    onnx.save(
        loaded,
        tmp_path / "in" / "e.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="w",
    )
    tensorrt.build(tmp_path / "in" / "e.onnx", None, tmp_path / "out")
    escaped = onnx.load(tmp_path / "in" / "e.onnx", load_external_data=False)
    for weight in escaped.graph.initializer:
        weight.external_data[0].value = "../w"
    onnx.save(escaped, tmp_path / "in" / "e.onnx")
    with pytest.raises(ModelError, match="outside of its folder"):
        tensorrt.build(tmp_path / "in" / "e.onnx", None, tmp_path / "out")


# ---------------------------------------------------------------- CUDA's errors


@pytest.mark.parametrize(
    ("call", "at", "code", "said"),
    [
        ("cudaMalloc", 1, 2, "cudaErrorMemoryAllocation: words for 2 .*smaller batch"),
        ("cudaHostAlloc", 2, 2, "page-locked"),
        ("cudaStreamCreateWithFlags", 1, 2, "cudaStreamCreateWithFlags failed"),
        ("cudaMemcpyAsync", 1, 1, "cudaErrorInvalidValue"),
        ("cudaStreamSynchronize", 1, 700, "cudaErrorUnknown: .*report it"),
        ("cudaStreamBeginCapture", 1, 900, "cudaErrorStreamCaptureUnsupported.*cuda_graph=False"),
        ("cudaGraphLaunch", 1, 400, "cudaErrorInvalidResourceHandle"),
    ],
)
def test_every_cuda_error_has_its_name_and_what_to_do(ten, model, tmp_path, call, at, code, said):
    engine = tensorrt.build(model, {"batch": 1}, tmp_path / "out")
    ten.cudart.calls.clear()
    ten.cudart.fail[call] = (at, code)

    def three():
        with tensorrt.runner(engine) as live:
            for _ in range(3):
                live.infer(images())

    with pytest.raises(CudaError, match=said):
        three()
    assert ten.cudart.left() == [], "nothing is left behind"


def test_a_capture_that_fails_leaves_the_stream_usable(ten, model, tmp_path):
    engine = tensorrt.build(model, {"batch": 1}, tmp_path / "out")
    with tensorrt.runner(engine) as live:
        live.infer(images())
        ten.cudart.fail["cudaMemcpyAsync"] = (ten.cudart.calls["cudaMemcpyAsync"] + 1, 1)
        with pytest.raises(CudaError):
            live.infer(images())
        np.testing.assert_array_equal(live.infer(images())["output"], reference(model, images()))
    assert ten.cudart.left() == []


def test_the_machine_as_cuda_sees_it(monkeypatch):
    install(monkeypatch, "10.3.0", Cudart(device="NVIDIA H100 80GB HBM3", sm=(9, 0), runtime=12080))
    cuda = Cuda()
    assert (cuda.name(), cuda.sm(), cuda.runtime_version()) == (
        "NVIDIA H100 80GB HBM3",
        "9.0",
        "12.8",
    )
    assert cuda.integrated()
    free, total = cuda.memory()
    assert free == total == 8 << 30


def test_no_gpu_and_no_library(monkeypatch):
    install(monkeypatch, "10.3.0", Cudart(count=0))
    with pytest.raises(CudaError, match="cudaErrorNoDevice"):
        Cuda()
    assert "cudaErrorNoDevice" in (tensorrt.missing() or "")
    monkeypatch.undo()
    monkeypatch.setattr(_trt_cuda, "find_library", lambda: ["libnone.so"])
    with pytest.raises(RuntimeMissing, match="libcudart cannot be loaded"):
        Cuda()


def test_the_library_is_looked_for_where_the_toolkit_is(tmp_path):
    place = tmp_path / "usr/local/cuda/lib64"
    place.mkdir(parents=True)
    (place / "libcudart.so.12").touch()
    assert str(place / "libcudart.so.12") in _trt_cuda.find_library(tmp_path)


# ---------------------------------------------------------------- what is missing


def test_missing_says_what_and_how_to_mend_it(monkeypatch, ten):
    assert tensorrt.missing() is None
    monkeypatch.undo()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(trtexec, "find", lambda *_: None)
    assert tensorrt.missing() == "the Python package tensorrt is not installed"
    assert "pip install tensorrt" in tensorrt.MEND
    monkeypatch.setattr(trtexec, "find", lambda *_: "/usr/src/tensorrt/bin/trtexec")
    assert "trtexec is here" in (tensorrt.missing() or "")


def test_a_build_without_either_says_so(monkeypatch, model, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None)
    monkeypatch.setattr(trtexec, "find", lambda *_: None)
    with pytest.raises(RuntimeMissing, match="neither the Python package tensorrt nor trtexec"):
        tensorrt.build(model, None, tmp_path / "out")
    with pytest.raises(ModelError, match="no such file"):
        tensorrt.build(tmp_path / "absent.onnx")


# ---------------------------------------------------------------- the real thing


@pytest.mark.tensorrt
@pytest.mark.parametrize("batch", [None, 2])
def test_the_real_library_builds_and_computes(tmp_path, batch):
    if (reason := tensorrt.missing()) is not None:
        pytest.skip(reason)
    model = save_conv(tmp_path / "model.onnx", batch=batch)
    engine = tensorrt.build(model, {"batch": 2, "builds": 2}, tmp_path / "out")
    assert engine.flags["spread"] >= 0
    given = images(2)
    with tensorrt.runner(engine, streams=1 if batch is None else 2) as live:
        for _ in range(3):
            found = live.infer(given)["output"]
            np.testing.assert_allclose(found, reference(model, given), rtol=1e-4, atol=1e-5)
        assert all(ns > 0 for ns in live.compute_ns(count=20))
    assert tensorrt.layers(engine)


@pytest.mark.tensorrt
def test_the_real_library_is_told_apart_by_its_version(tmp_path):
    if (reason := tensorrt.missing()) is not None:
        pytest.skip(reason)
    engine = tensorrt.build(save_conv(tmp_path / "model.onnx"), None, tmp_path / "out")
    version = engine_file.plan_version(engine.path)
    assert version is None or version.startswith(engine.builder["tensorrt"])
