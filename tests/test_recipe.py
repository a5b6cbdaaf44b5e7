"""Recipes: what build.json of a bundle says, for every kind of target."""

from __future__ import annotations

import dataclasses
import json

import pytest
from trtexec_double import flags

from mint_deploy import _trt_build, files
from mint_deploy.artifacts import ExportedModel, TensorSpec
from mint_deploy.recipe import build_arguments, build_settings, recipe
from mint_deploy.target import Target, load_target


def network(name: str, batch: int = 1, **metadata: str) -> ExportedModel:
    return ExportedModel(
        path=f"some/run/{name}", opset=18, ir_version=8, sha256="0", bytes=1, max_error=0.0,
        parity_batches=(1,), inputs=(TensorSpec(name="input", shape=(batch, 3, 32, 32)),),
        outputs=(TensorSpec(name="logits", shape=(batch, 10)),), metadata=metadata,
    )  # fmt: skip


def names(arguments):
    return {a.partition("=")[0] for a in arguments}


@pytest.mark.parametrize("name", ["jetson", "jetson-agx-orin-64gb", "jetson-thor-t5000"])
def test_the_recipe_of_a_board_names_the_files_of_the_bundle(name):
    target = load_target(name)
    how = recipe(target, {"dense": network("dense.onnx"), "slim": network("model.onnx")})
    assert how["dialect"] == "10"
    assert how["tensorrt"] == target.tensorrt
    build, measure = how["commands"]["slim"]["build"], how["commands"]["slim"]["measure"]
    assert build[:3] == ["trtexec", "--onnx=model.onnx", "--saveEngine=model.plan"]
    assert measure[:2] == ["trtexec", "--loadEngine=model.plan"]
    assert names(build[1:]) | names(measure[1:]) <= flags("10.3")
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


def test_what_the_file_holds_decides():
    board = load_target("jetson")
    typed = recipe(board, {"slim": network("model.onnx", precision="fp16")})
    assert "--stronglyTyped" in typed["commands"]["slim"]["build"]
    quantised = dataclasses.replace(board, precision="int8")
    built = recipe(quantised, {"slim": network("model.onnx", precision="int8")})
    assert {"--int8", "--fp16"} <= set(built["commands"]["slim"]["build"])


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
    inner = dataclasses.replace(networks["slim"], inputs=(TensorSpec(name="x", shape=(1, -1)),))
    assert "leaves dimension 1 open" in recipe(load_target("jetson"), {"slim": inner})["reason"]


# ---------------------------------------------------------------- a target's file and its build


@pytest.mark.parametrize(
    ("said", "settings", "given"),
    [
        ("batch = 4\nmax_batch = 32", {"profile": {"input": ((1, 3, 8, 8), (4, 3, 8, 8), (32, 3, 8, 8))}},
         {"--minShapes=input:1x3x8x8", "--optShapes=input:4x3x8x8", "--maxShapes=input:32x3x8x8"}),
        ("dla_core = 1", {"dla_core": 1}, {"--useDLACore=1", "--allowGPUFallback"}),
        ("workspace_mib = 512", {"workspace_mib": 512}, {"--memPoolSize=workspace:512"}),
        ("typing = 'weak'", {"typing": "weak"}, {"--fp16"}),
        ("typing = 'strong'", {"typing": "strong"}, {"--stronglyTyped"}),
    ],
)  # fmt: skip
def test_what_a_targets_file_says_reaches_the_flags_of_the_build(tmp_path, said, settings, given):
    path = tmp_path / "mine.toml"
    path.write_text(f'extends = "jetson-agx-orin-64gb"\n{said}\n', encoding="utf-8")
    target = load_target(path)
    inputs = (TensorSpec(name="input", shape=(-1, 3, 8, 8)),)
    # the same from the file and from the JSON in which a bundle carries it
    for carried in (target, json.loads(json.dumps(files.encode(target)))):
        found = build_settings("10.3", carried, inputs, ["fp16"])
        assert {key: getattr(found, key) for key in settings} == settings
        assert given <= set(build_arguments("10.3", found, "m.onnx", "m.plan", "t.cache"))
    opened = {"slim": network("model.onnx", batch=-1, precision="fp16")}
    build = recipe(target, opened)["commands"]["slim"]["build"]
    assert {a.partition("=")[0] for a in given} <= names(build)


def test_a_build_takes_from_a_target_all_that_it_says_about_one(tmp_path):
    path = tmp_path / "mine.toml"
    said = {"max_batch": 8, "workspace_mib": 64, "typing": "weak", "builds": 3, "dla_core": 0}
    lines = "\n".join(f"{key} = {value!r}" for key, value in said.items())
    path.write_text(f'extends = "jetson-agx-orin-64gb"\n{lines}\n', encoding="utf-8")
    wanted = _trt_build._wanted(load_target(path))
    assert {key: wanted[key] for key in said} == said
    assert set(_trt_build._TARGET_KEYS) <= {f.name for f in dataclasses.fields(Target)}
    plain = _trt_build._wanted(load_target("jetson-agx-orin-64gb"))
    assert not set(said) & set(plain)
