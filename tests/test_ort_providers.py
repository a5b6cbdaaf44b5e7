"""ONNX Runtime: every flag set and recorded, providers, and what falls back from them.

The Azure provider of the CPU build runs no node of ours, so a session of it is a real fallback; the
GPU's providers are tested by what they are handed, and for real where there is a GPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
from onnx_models import save_conv

from mint_deploy import _ort_providers as providers
from mint_deploy import _ort_session, files, plugins
from mint_deploy._unsupported import first_line
from mint_deploy.artifacts import Engine
from mint_deploy.errors import ConfigError, ModelError, RuntimeMissing, UnknownName

ort = plugins.load("runtime", "onnxruntime")
AZURE = "AzureExecutionProvider"
with_azure = pytest.mark.skipif(
    AZURE not in onnxruntime.get_available_providers(),
    reason="this onnxruntime has no Azure provider",
)


@pytest.fixture
def model(tmp_path):
    return save_conv(tmp_path / "m.onnx")


def image(batch=2):
    return {"input": np.random.default_rng(0).standard_normal((batch, 3, 8, 8), np.float32)}


# ---------------------------------------------------------------- flags


def test_it_sets_every_flag_that_it_records(model):
    engine = ort.build(model)
    settings = {"graph": "basic", "spin": True, "arena": False, "pattern": False}
    with ort.runner(engine, threads=2, **settings) as live:
        options = live._session.get_session_options()
        assert options.intra_op_num_threads == 2
        assert options.inter_op_num_threads == 1
        assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
        assert options.execution_mode.name == "ORT_SEQUENTIAL"
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
        assert not options.enable_cpu_mem_arena
        assert not options.enable_mem_pattern
        flags = live.engine.flags
        assert {flags["spinning"], flags["memory_arena"], flags["memory_pattern"]} == {"on", "off"}
    with ort.runner(engine) as live:
        options = live._session.get_session_options()
        assert options.intra_op_num_threads == 1
        assert options.graph_optimization_level.name == "ORT_ENABLE_ALL"
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.enable_cpu_mem_arena
        assert options.enable_mem_pattern
        assert live._session.get_providers() == ["CPUExecutionProvider"]
        assert live.engine.flags == {
            "provider": "CPUExecutionProvider",
            "graph_optimization": "all",
            "execution_mode": "sequential",
            "intra_op_threads": "1",
            "inter_op_threads": "1",
            "spinning": "off",
            "memory_arena": "on",
            "memory_pattern": "on",
            "optimised_cache": "off",
        }


def test_flags_of_the_engine_hold_unless_a_setting_says_otherwise(model):
    """So a setting reaches a process that gets nothing but the engine."""
    engine = ort.build(model, None, None, graph="basic", spin=True, arena=False)
    sent = files.decode(Engine, files.encode(engine))
    with ort.runner(sent, threads=2) as live:
        flags = live.engine.flags
        assert (flags["graph_optimization"], flags["spinning"]) == ("basic", "on")
        assert (flags["memory_arena"], flags["intra_op_threads"]) == ("off", "2")
    with ort.runner(sent, graph="all", spin=False, arena=True) as live:
        flags = live.engine.flags
        assert (flags["graph_optimization"], flags["spinning"]) == ("all", "off")
        assert flags["memory_arena"] == "on"


def test_the_engine_is_the_file_with_its_hash_and_version(model):
    engine = ort.build(model, {"precision": "fp16"})
    assert engine.path == str(model)
    assert engine.sha256 == files.sha256(model)
    assert engine.precision == "fp16"
    assert engine.builder == {"onnxruntime": onnxruntime.__version__}


def test_outputs_are_those_of_a_plain_session(model):
    plain = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    with ort.runner(ort.build(model)) as live:
        np.testing.assert_array_equal(live.infer(image())["output"], plain.run(None, image())[0])


def test_names_that_are_not_there(model):
    engine = ort.build(model)
    with pytest.raises(RuntimeMissing, match="no provider 'NoSuchExecutionProvider'"):
        ort.runner(engine, provider="NoSuchExecutionProvider")
    with pytest.raises(UnknownName, match="did you mean 'cuda'"):
        ort.runner(engine, provider="cud")
    with pytest.raises(UnknownName, match="did you mean 'extended'"):
        ort.runner(engine, graph="extented")


def test_a_library_that_is_not_installed_says_so_and_how_to_mend_it(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissing, match="pip install onnxruntime"):
        ort.build(model)


# ---------------------------------------------------------------- why a provider cannot be used


@pytest.fixture
def no_driver(monkeypatch):
    def refuse(name, *_, **__):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuse)


@pytest.fixture
def cpu_build(monkeypatch):
    """An onnxruntime as ``pip install onnxruntime`` brings it."""
    had = [AZURE, "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: had)


@pytest.mark.parametrize(
    ("name", "provider"),
    [("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")],
)
def test_a_machine_without_a_gpu_is_told_why(name, provider, model, no_driver, cpu_build):
    plugin = plugins.load("runtime", f"onnxruntime_{name}")
    why = plugin.missing()
    assert f"no provider '{provider}' (it has: {AZURE}, CPUExecutionProvider)" in why
    assert "no NVIDIA driver (libcuda.so.1 does not load)" in why
    assert onnxruntime.__version__ in why
    with pytest.raises(RuntimeMissing) as caught:
        plugin.build(model)
    assert f"runtime 'onnxruntime_{name}' cannot be used here: {why}" in str(caught.value)
    assert caught.value.mend == "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"


def test_the_right_build_without_a_driver_is_told_that_alone(no_driver, monkeypatch):
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [providers.CUDA])
    why = providers.why_not(providers.CUDA)
    assert "no NVIDIA driver" in why
    assert "no provider" not in why
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: None)
    assert providers.why_not(providers.CUDA) is None


def test_the_cpu_provider_is_asked_nothing(no_driver):
    assert providers.why_not(providers.CPU) is None
    assert ort.missing() is None


# ---------------------------------------------------------------- what a provider is handed


def test_float32_is_float32_and_everything_is_said():
    cuda = providers.options(providers.CUDA, "fp32", {})
    assert cuda["use_tf32"] == "0"
    assert {"device_id", "cudnn_conv_algo_search", "arena_extend_strategy"} < set(cuda)
    assert providers.options(providers.CUDA, "fp32", {"use_tf32": "1"})["use_tf32"] == "1"
    assert providers.options(providers.CPU, "fp32", {}) == {}


@pytest.mark.parametrize(
    ("precision", "half", "whole"), [("fp32", "0", "0"), ("fp16", "1", "0"), ("int8", "0", "1")]
)
def test_tensorrt_gets_the_precision_of_the_engine(precision, half, whole):
    got = providers.options(providers.TENSORRT, precision, {})
    assert (got["trt_fp16_enable"], got["trt_int8_enable"]) == (half, whole)
    assert got["trt_sparsity_enable"] == got["trt_dla_enable"] == "0"


def test_what_tensorrt_lacks_goes_to_cuda_on_the_same_gpu_unless_that_is_refused():
    chain = providers.chain(providers.TENSORRT, {"device_id": "1"}, refuse=False)
    assert [name for name, _ in chain] == [providers.TENSORRT, providers.CUDA]
    assert chain[1][1]["device_id"] == "1"
    assert chain[1][1]["use_tf32"] == "0"
    alone = providers.chain(providers.TENSORRT, {}, refuse=True)
    assert alone == [(providers.TENSORRT, {})]


class Gpu:
    """A double of onnxruntime with a GPU: it takes down what a session is made from."""

    def __init__(self, assigned=(), starts=True):
        self.made, self.assigned, self.starts = [], assigned, starts
        self.real = onnxruntime

    def __getattr__(self, name):
        return getattr(self.real, name)

    def get_available_providers(self):
        return [providers.TENSORRT, providers.CUDA, providers.CPU]

    def preload_dlls(self):
        print("what the library says while it looks for CUDA")

    def InferenceSession(self, path, sess_options, providers, enable_fallback):
        self.made.append((path, sess_options, providers, enable_fallback))
        real = self.real.InferenceSession(path, providers=["CPUExecutionProvider"])
        names = [name for name, _ in providers] if self.starts else []
        real.get_providers = lambda: [*names, "CPUExecutionProvider"]
        real.get_provider_graph_assignment_info = lambda: [
            SimpleNamespace(
                ep_name=ep,
                get_nodes=lambda nodes=nodes: [
                    SimpleNamespace(name=n, op_type=t) for n, t in nodes
                ],
            )
            for ep, nodes in self.assigned
        ]
        return real


@pytest.fixture
def gpu(monkeypatch):
    def install(**settings):
        double = Gpu(**settings)
        monkeypatch.setattr(providers, "library", lambda: double)
        monkeypatch.setattr(providers, "_driver", lambda: True)
        return double

    return install


CONVS = (("c0/Conv", "Conv"), ("c1/Conv", "Conv"), ("", "Relu"))


def test_cuda_is_handed_its_options_and_they_are_recorded(model, gpu, capfd):
    double = gpu(assigned=[(providers.CUDA, CONVS)])
    plugin = plugins.load("runtime", "onnxruntime_cuda")
    engine = plugin.build(model, None, None, provider_options={"device_id": 1, "prefer_nhwc": True})
    _, options, chain, fallback = double.made[0]
    wished = {"device_id": "1", "prefer_nhwc": "1"}
    assert chain == [(providers.CUDA, providers.options(providers.CUDA, "fp32", wished))]
    assert fallback == 0, "onnxruntime's own starting over on the CPU is off"
    assert options.get_session_config_entry("session.record_ep_graph_assignment_info") == "1"
    assert engine.runtime == "onnxruntime_cuda"
    flags = engine.flags
    assert flags["provider"] == providers.CUDA
    assert (flags["option.device_id"], flags["option.use_tf32"]) == ("1", "0")
    assert flags["fallback"] == "none"
    assert capfd.readouterr().out == "", "stdout belongs to the result"
    again = files.decode(Engine, files.encode(engine))  # as a measuring process gets it
    with plugin.runner(again) as live:
        assert live.engine.flags == flags


def test_what_falls_back_is_counted_and_named(model, gpu):
    gpu(
        assigned=[
            (providers.CUDA, CONVS),
            (providers.CPU, [("pool/Shape", "Shape"), ("", "Gather")]),
        ]
    )
    engine = plugins.load("runtime", "onnxruntime_cuda").build(model)
    assert engine.flags["fallback"] == (
        "2 of 5 nodes on CPUExecutionProvider: pool/Shape (Shape), no name (Gather)"
    )
    with ort.runner(engine) as live:
        assert live.placement == {
            providers.CPU: ("pool/Shape (Shape)", "no name (Gather)"),
            providers.CUDA: ("c0/Conv (Conv)", "c1/Conv (Conv)", "no name (Relu)"),
        }


def test_a_long_list_of_what_fell_back_is_cut():
    many = {providers.CUDA: ("a (Conv)",), providers.CPU: tuple(f"n{i} (Add)" for i in range(20))}
    said = _ort_session.fallback(providers.CUDA, many)
    assert said.startswith("20 of 21 nodes on CPUExecutionProvider: n0 (Add), ")
    assert said.endswith("n7 (Add) and 12 more")
    assert _ort_session.fallback(providers.CUDA, {providers.CUDA: ("a (Conv)",)}) == "none"


def test_tensorrt_that_leaves_nodes_to_cuda_says_so(model, gpu, tmp_path, monkeypatch):
    monkeypatch.setenv("MINT_DEPLOY_CACHE", str(tmp_path / "cache"))
    double = gpu(
        assigned=[(providers.TENSORRT, CONVS), (providers.CUDA, [("x/NonZero", "NonZero")])]
    )
    engine = plugins.load("runtime", "onnxruntime_tensorrt").build(model, {"precision": "fp16"})
    assert engine.flags["fallback"] == "1 of 4 nodes on CUDAExecutionProvider: x/NonZero (NonZero)"
    assert engine.flags["option.trt_fp16_enable"] == "1"
    (_, handed), (cuda, _) = double.made[0][2]
    assert cuda == providers.CUDA
    assert handed["trt_engine_cache_enable"] == "1"
    place = tmp_path / "cache" / "onnxruntime"
    assert handed["trt_engine_cache_path"].startswith(str(place / "tensorrt-"))
    assert not any(str(tmp_path / "cache") in v for v in engine.flags.values()), (
        "no place is a flag"
    )


def test_tensorrts_engines_lie_under_a_hash_of_all_they_depend_on(model, gpu, tmp_path):
    double = gpu(assigned=[(providers.TENSORRT, CONVS)])
    plugin = plugins.load("runtime", "onnxruntime_tensorrt")

    def place(target=None, **settings):
        plugin.build(model, target, None, cache=tmp_path / "cache", **settings)
        return double.made[-1][2][0][1]["trt_engine_cache_path"]

    first = place()
    assert place() == first
    assert place({"precision": "fp16"}) != first
    assert place(provider_options={"trt_builder_optimization_level": 5}) != first
    save_conv(model, channels=4)
    assert place() != first


def test_a_provider_that_does_not_start_is_not_the_cpu(model, gpu):
    gpu(starts=False)
    with pytest.raises(RuntimeMissing, match="fell back to CPUExecutionProvider"):
        plugins.load("runtime", "onnxruntime_cuda").build(model)


def test_an_older_onnxruntime_does_not_tell_and_that_is_said(model, gpu, monkeypatch):
    gpu(assigned=[(providers.CUDA, CONVS)])
    monkeypatch.setattr(_ort_session, "placement", lambda _: None)
    engine = plugins.load("runtime", "onnxruntime_cuda").build(model)
    assert "not told by this onnxruntime" in engine.flags["fallback"]


def test_an_option_that_a_provider_does_not_know(model, gpu, monkeypatch):
    double = gpu()

    def refuse(*_, **__):
        raise RuntimeError('Unknown provider option: "use_tf23".')

    monkeypatch.setattr(double, "InferenceSession", refuse, raising=False)
    with pytest.raises(ConfigError, match=r"refuses an option of CUDA.*use_tf23"):
        plugins.load("runtime", "onnxruntime_cuda").build(
            model, None, None, provider_options={"use_tf23": 1}
        )


# ---------------------------------------------------------------- a real fallback


@with_azure
def test_a_provider_that_runs_no_node_is_refused_with_the_nodes(model):
    with pytest.raises(ModelError) as caught:
        ort.build(model, None, None, provider=AZURE)
    said = str(caught.value)
    assert f"no node of {model} runs on {AZURE}" in said
    assert "6 of 6 nodes on CPUExecutionProvider: no name (Conv)" in said


@with_azure
def test_a_fallback_can_be_refused_by_onnxruntime_itself(model):
    with pytest.raises(ModelError, match=r"some nodes of .* cannot run on AzureExecutionProvider"):
        ort.build(model, None, None, provider=AZURE, on_fallback="refuse")
    with pytest.raises(UnknownName, match="did you mean 'refuse'"):
        ort.build(model, None, None, provider=AZURE, on_fallback="refus")


# ---------------------------------------------------------------- the time of each node


def test_profile_names_the_nodes_that_ran(model):
    with ort.runner(ort.build(model), graph="none") as live:
        rows = live.profile(image(), 4)
        assert [op for _, op, _ in rows] == ["Conv", "Relu"] * 2 + ["GlobalAveragePool", "Flatten"]
        assert all(isinstance(name, str) and ns >= 0 for name, _, ns in rows)
        assert sum(ns for *_, ns in rows) > 0
    with pytest.raises(ConfigError, match="not open"):
        live.profile(image())


def test_profile_runs_as_often_as_it_is_told_and_knows_each_provider(model):
    engine = ort.build(model)
    with ort.runner(engine) as live:
        rows = _ort_session.profile(live.engine, image(), 3)
    assert {where for _, _, where, _ in rows} == {"CPUExecutionProvider"}


# ---------------------------------------------------------------- what ONNX Runtime says, in words


def test_a_library_is_quoted_without_the_places_in_its_source():
    text = (
        "[ONNXRuntimeError] : 1 : FAIL : Load model from bad.onnx failed:/onnxruntime_src/core/graph/"
        "model.cc:256 onnxruntime::Model::Model(onnx::ModelProto&&, const int&) Unsupported model IR "
        "version: 99"
    )
    assert first_line(text) == "Load model from bad.onnx failed:Unsupported model IR version: 99"
    assert first_line("") == "str"


# ---------------------------------------------------------------- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["onnxruntime_cuda", "onnxruntime_tensorrt"])
def test_a_gpu_computes_what_the_cpu_computes(name, model, tmp_path):
    plugin = plugins.load("runtime", name)
    if plugin.missing():
        pytest.skip(plugin.missing())
    engine = plugin.build(model, None, None, cache=tmp_path / "cache")
    with (
        ort.runner(ort.build(model)) as cpu,
        plugin.runner(engine, cache=tmp_path / "cache") as live,
    ):
        np.testing.assert_allclose(
            live.infer(image())["output"], cpu.infer(image())["output"], rtol=1e-4, atol=1e-5
        )
        assert live.placement
        assert providers.named(name.partition("_")[2]) in live.placement


@pytest.mark.gpu
def test_a_gpu_that_may_not_fall_back(model):
    plugin = plugins.load("runtime", "onnxruntime_cuda")
    if plugin.missing():
        pytest.skip(plugin.missing())
    engine = plugin.build(model, None, None, on_fallback="refuse")
    assert dataclasses.asdict(engine)["flags"]["fallback"] == "none"
