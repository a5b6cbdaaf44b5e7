"""Recipes: each TensorRT gets flags that it knows, and a figure means the same under all."""

from __future__ import annotations

import dataclasses

import pytest

from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.errors import ConfigError
from mint_deploy.recipe import build_arguments, dialect_of, measure_arguments, recipe
from mint_deploy.target import load_target

_COMMON = {
    "--onnx", "--saveEngine", "--loadEngine", "--timingCacheFile", "--noTF32", "--avgTiming",
    "--sparsity", "--profilingVerbosity", "--memPoolSize", "--exportLayerInfo", "--minShapes",
    "--optShapes", "--maxShapes", "--shapes", "--exportTimes", "--warmUp", "--duration",
    "--iterations", "--avgRuns", "--percentile",
}  # fmt: skip
_OPT_IN = {"--useCudaGraph", "--useSpinWait", "--noDataTransfers", "--separateProfileRun"}

#: version -> the flags that its trtexec accepts, as far as they matter here; from the help text of 8.5,
#: 8.6 and 10.3 and from the option tables of 11.1. Flags that 11 accepts and ignores are left out.
ACCEPTED = {
    "8.5": _COMMON | _OPT_IN | {"--fp16", "--buildOnly", "--streams"},
    "8.6": _COMMON | _OPT_IN | {"--fp16", "--skipInference", "--infStreams", "--builderOptimizationLevel"},
    "10.3": _COMMON | _OPT_IN | {"--fp16", "--skipInference", "--infStreams", "--builderOptimizationLevel"},
    "11.1": _COMMON | {"--skipInference", "--infStreams", "--builderOptimizationLevel"},
}  # fmt: skip


def flags(arguments):
    return {a.partition("=")[0] for a in arguments}


def network(name: str, batch: int = 1) -> ExportedModel:
    return ExportedModel(
        path=f"some/run/{name}", opset=18, ir_version=8, sha256="0", bytes=1, max_error=0.0,
        parity_batches=(1,), inputs=(TensorSpec(name="input", shape=(batch, 3, 32, 32)),),
        outputs=(TensorSpec(name="logits", shape=(batch, 10)),),
    )  # fmt: skip


@pytest.mark.parametrize("version", ACCEPTED)
def test_no_version_gets_a_flag_that_it_does_not_know(version):
    shapes = network("m.onnx").inputs
    build = build_arguments(
        version, "fp32", "m.onnx", "m.plan", "t", workspace_mib=9, layers="l", shapes=shapes
    )
    assert flags(build) <= ACCEPTED[version]
    assert flags(measure_arguments(version, "m.plan", "t.json", shapes=shapes)) <= ACCEPTED[version]


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.3"])
def test_fp16_is_a_flag_up_to_ten(version):
    build = build_arguments(version, "fp16", "m.onnx", "m.plan", "t")
    assert "--fp16" in build
    assert flags(build) <= ACCEPTED[version]
    assert "--fp16" not in build_arguments(version, "fp32", "m.onnx", "m.plan", "t")


@pytest.mark.parametrize("version", ["8.5", "8.6", "10.3"])
def test_what_is_the_default_of_eleven_is_asked_for_before(version):
    """Else a latency with transfers would stand beside one without."""
    assert set(measure_arguments(version, "m.plan", "t.json")) >= _OPT_IN


def test_versions_find_their_dialect():
    names = {v: dialect_of(v).name for v in ("8.5.2", "8.6.2", "10.3", "10.13.3", "11.4.1")}
    assert names == {"8.5.2": "8.5", "8.6.2": "8.6", "10.3": "10", "10.13.3": "10", "11.4.1": "11"}


@pytest.mark.parametrize("version", ["8.2.1", "9.0", "12.0", "ten", ""])
def test_versions_that_nobody_knows_are_refused(version):
    with pytest.raises(ConfigError, match="TensorRT"):
        dialect_of(version)


def test_precisions_that_no_flag_can_ask_for():
    with pytest.raises(ConfigError, match=r"TensorRT 11\.1 takes the precision from the ONNX file"):
        build_arguments("11.1", "fp16", "m.onnx", "m.plan", "t")
    with pytest.raises(ConfigError, match="quantisation nodes"):
        build_arguments("10.3", "int8", "m.onnx", "m.plan", "t")


@pytest.mark.parametrize("name", ["jetson", "jetson-agx-orin-64gb", "jetson-thor-t5000"])
def test_the_recipe_of_a_board_names_the_files_of_the_bundle(name):
    target = load_target(name)
    how = recipe(target, {"dense": network("dense.onnx"), "slim": network("model.onnx")})
    assert how["dialect"] == "10"
    assert how["tensorrt"] == target.tensorrt
    build, measure = how["commands"]["slim"]["build"], how["commands"]["slim"]["measure"]
    assert build[:3] == ["trtexec", "--onnx=model.onnx", "--saveEngine=model.plan"]
    assert measure[:2] == ["trtexec", "--loadEngine=model.plan"]
    assert flags(build[1:]) <= ACCEPTED["10.3"]
    assert not any("Shapes" in a for a in build), "the batch is fixed in the file"


def test_a_small_board_gives_less_scratch_memory_to_the_build():
    def pool(name):
        target = load_target(name)
        build = recipe(target, {"slim": network("model.onnx")})["commands"]["slim"]["build"]
        return next(a for a in build if a.startswith("--memPoolSize"))

    assert pool("jetson-orin-nano-4gb") == "--memPoolSize=workspace:1024"
    assert pool("jetson") == "--memPoolSize=workspace:2048"
    assert pool("jetson-agx-orin-64gb") == "--memPoolSize=workspace:4096"


def test_an_open_batch_is_given_a_shape():
    target = dataclasses.replace(load_target("jetson"), batch=4)
    steps = recipe(target, {"slim": network("model.onnx", batch=-1)})["commands"]["slim"]
    assert "--optShapes=input:4x3x32x32" in steps["build"]
    assert "--shapes=input:4x3x32x32" in steps["measure"]


def test_other_runtimes_get_their_settings_or_a_reason():
    session = recipe(dataclasses.replace(load_target("cpu"), threads=3), {})["session"]
    assert session["intra_op_threads"] == 3
    plug = dataclasses.replace(load_target("cpu"), runtime="mine.runtime")
    assert "mine.runtime" in recipe(plug, {})["reason"]
    nothing = dataclasses.replace(load_target("jetson"), tensorrt=None)
    assert "does not say which TensorRT" in recipe(nothing, {})["reason"]
    networks = {"slim": network("model.onnx")}
    quantised = dataclasses.replace(load_target("jetson"), precision="int8")
    assert "quantisation nodes" in recipe(quantised, networks)["reason"]
    strong = dataclasses.replace(load_target("jetson"), tensorrt="11.4.1")
    assert "takes the precision from the ONNX file" in recipe(strong, networks)["reason"]
