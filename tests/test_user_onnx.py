"""An ONNX file that somebody already has: opened, measured and built without a PyTorch model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile_onnx import PLACES, hidden, nested, save_external
from onnx import TensorProto, helper
from onnx_models import save_conv

from mint_deploy import bench, files, plugins
from mint_deploy.errors import EngineMismatch, ModelError
from mint_deploy.onnx_file import load_onnx, open_onnx, read_onnx

ort = plugins.load("runtime", "onnxruntime")


def runtimes():
    """Those that run files and are installed here."""
    return [n for n in ("onnxruntime", "openvino") if plugins.load("runtime", n).missing() is None]


def image(batch=2):
    return {"input": np.random.default_rng(0).standard_normal((batch, 3, 8, 8), np.float32)}


def save_op(path, op, domain="", name="layer1/Foo", opset=17, ir=8):
    nodes = [
        helper.make_node("Relu", ["i"], ["r"], name="first/Relu"),
        helper.make_node(op, ["r"], ["o"], name=name, domain=domain),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("i", "o")]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:])
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = ir
    path.write_bytes(model.SerializeToString())
    return path


# ---------------------------------------------------------------- opening


def test_open_says_what_the_file_is(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=4)
    facts = open_onnx(path)
    assert (facts.opset, facts.ir_version) == (17, 8)
    assert [(s.name, s.shape, s.dtype) for s in facts.inputs] == [
        ("input", (4, 3, 8, 8), "float32")
    ]
    assert [(s.name, s.shape) for s in facts.outputs] == [("output", (4, 8))]
    assert facts.operators == {"Conv": 2, "Flatten": 1, "GlobalAveragePool": 1, "Relu": 2}
    assert (facts.sha256, facts.bytes) == (files.sha256(path), path.stat().st_size)
    assert facts.external == ()
    assert onnx.load(path) == load_onnx(path)


def test_open_dimensions_stay_open(tmp_path):
    assert open_onnx(save_conv(tmp_path / "m.onnx")).inputs[0].shape == (-1, 3, 8, 8)


def test_operators_inside_branches_are_counted(tmp_path):
    assert open_onnx(nested(tmp_path / "n.onnx")).operators["Neg"] == 1


def test_weights_beside_the_file_belong_to_it(tmp_path):
    path = save_external(tmp_path, "sub/w.bin")
    facts = open_onnx(path)
    assert facts.external == ("sub/w.bin",)
    assert facts.bytes == path.stat().st_size + (tmp_path / "sub/w.bin").stat().st_size
    assert facts.sha256 != files.sha256(path)
    plain = onnx.load(save_conv(tmp_path / "plain.onnx"))
    for a, b in zip(load_onnx(path).graph.initializer, plain.graph.initializer, strict=True):
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(a), onnx.numpy_helper.to_array(b))


@pytest.mark.parametrize("cut", [0, 1, 100, -200, -1])
def test_a_file_that_was_cut_short(tmp_path, cut):
    path = save_conv(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        open_onnx(path)


def test_what_is_no_onnx(tmp_path):
    path = tmp_path / "text.onnx"
    path.write_text("once upon a time there was a model\n" * 50)
    with pytest.raises(ModelError, match="is not an ONNX file"):
        open_onnx(path)
    with pytest.raises(ModelError, match="cannot read"):
        open_onnx(tmp_path / "none.onnx")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (
            lambda m: m.graph.node[0].input.__setitem__(0, "nowhere"),
            "is not a valid ONNX model.*nowhere",
        ),
        (lambda m: setattr(m.graph.node[0], "op_type", "Foo"), "is not a valid ONNX model.*Foo"),
        (lambda m: setattr(m, "ir_version", 99), "is not a valid ONNX model.*99"),
        (lambda m: m.ClearField("opset_import"), "is not a valid ONNX model"),
        (lambda m: m.graph.node[0].ClearField("output"), "is not a valid ONNX model"),
    ],
    ids=["input", "operator", "ir", "opset", "outputs"],
)
def test_a_graph_that_breaks_the_rules(tmp_path, change, match):
    path = save_conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    change(model)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=match) as caught:
        open_onnx(path)
    assert "\n" not in str(caught.value)


def test_an_input_that_is_no_tensor(tmp_path):
    sequence = helper.make_tensor_sequence_value_info("many", TensorProto.FLOAT, ["N"])
    node = helper.make_node("SequenceLength", ["many"], ["n"])
    graph = helper.make_graph(
        [node], "g", [sequence], [helper.make_tensor_value_info("n", TensorProto.INT64, [])]
    )
    path = tmp_path / "s.onnx"
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(made, path)
    with pytest.raises(ModelError, match=r"'many' of .* is no tensor"):
        open_onnx(path)
    assert read_onnx(path).inputs[0].dtype == ""


# ---------------------------------------------------------------- hostile files


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "location", ["/etc/passwd", "../secret.bin", "sub/../../secret.bin", "link.bin"]
)
def test_no_runtime_gets_to_see_a_file_that_reads_elsewhere(tmp_path, name, location, monkeypatch):
    plugin = plugins.load("runtime", name)
    if plugin.missing():
        pytest.skip(plugin.missing())
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"s" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    path = save_external(folder, location, data=False)

    def reached(*_, **__):
        raise AssertionError("the runtime was asked to load it")

    monkeypatch.setattr(plugin, "runner", reached)
    for attempt in (plugin.build, open_onnx, load_onnx):
        with pytest.raises(ModelError, match="tensor 'w0'"):
            attempt(path)


@pytest.mark.parametrize("name", runtimes())
def test_nor_does_one_that_was_changed_after_it_was_built(tmp_path, name):
    plugin = plugins.load("runtime", name)
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(b"s" * 4096)
    path = save_external(folder)
    engine = plugin.build(path)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(ModelError, match="a link to"):
        plugin.runner(engine)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").write_bytes(b"t" * 4096)
    with pytest.raises(EngineMismatch, match="build it anew"):
        plugin.runner(engine)


@pytest.mark.parametrize("where", PLACES)
def test_open_finds_a_hostile_tensor_wherever_it_hides(tmp_path, where):
    (tmp_path / "m.onnx").write_bytes(hidden(where))
    with pytest.raises(ModelError, match="tensor 'evil'"):
        open_onnx(tmp_path / "m.onnx")


@pytest.mark.parametrize("name", runtimes())
@pytest.mark.parametrize("dims", [[1 << 40], [1 << 62, 4], [-3], [0], [1 << 20, 1 << 20]])
def test_a_weight_that_says_it_is_larger_than_it_is(tmp_path, name, dims):
    """The library finds out; it neither dies nor takes the memory."""
    path = save_conv(tmp_path / "m.onnx")
    model = onnx.load(path)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    path.write_bytes(model.SerializeToString())
    code = (
        "import re, sys\n"
        "from mint_deploy import plugins\n"
        "from mint_deploy.errors import ModelError\n"
        "try:\n"
        "    plugins.load('runtime', sys.argv[1]).build(sys.argv[2])\n"
        "except ModelError as error:\n"
        "    peak = re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]\n"
        "    print('refused', peak)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(path)], capture_output=True, text=True, check=False
    )
    words = done.stdout.split()
    assert words[:1] == ["refused"], done.stderr[-500:]
    assert int(words[1]) < 1 << 20, "kilobytes"


# ---------------------------------------------------------------- what a runtime lacks


@pytest.mark.parametrize(
    ("op", "domain", "name", "expected"),
    [
        ("Foo", "", "layer1/Foo", r"Foo \(layer1/Foo\)"),
        ("Bar", "com.foo", "layer2/Bar", r"com\.foo\.Bar \(layer2/Bar\)"),
        ("Foo", "", "", r"Foo \(the one that makes o\)"),
    ],
)
def test_an_operator_that_onnxruntime_lacks_is_named_with_its_node(
    tmp_path, op, domain, name, expected
):
    path = save_op(tmp_path / "bad.onnx", op, domain, name)
    with pytest.raises(ModelError, match=f"ONNX Runtime .* has no operator for {expected}, in "):
        ort.build(path)


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"opset": 99}, "Opset 99"), ({"ir": 99}, "Unsupported model IR version: 99")],
)
def test_versions_that_onnxruntime_does_not_read(tmp_path, settings, match):
    path = save_op(tmp_path / "new.onnx", "Relu", **settings)
    with pytest.raises(ModelError, match=match) as caught:
        ort.build(path)
    assert "/onnxruntime_src/" not in str(caught.value)


def test_a_node_in_a_branch_is_named_too(tmp_path):
    path = nested(tmp_path / "n.onnx")
    model = onnx.load(path)
    model.graph.node[0].attribute[0].g.node[0].op_type = "Foo"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"Foo \(branch/"):
        ort.build(path)


# ---------------------------------------------------------------- measured and built


@pytest.mark.parametrize("name", runtimes())
def test_a_file_with_its_weights_beside_it_runs(tmp_path, name):
    plugin = plugins.load("runtime", name)
    path, plain = save_external(tmp_path, "sub/w.bin"), save_conv(tmp_path / "plain.onnx")
    engine = plugin.build(path, None, tmp_path / "out")
    assert engine.sha256 == open_onnx(path).sha256
    with plugin.runner(engine) as live, ort.runner(ort.build(plain)) as other:
        a, b = live.infer(image())["output"], other.infer(image())["output"]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", runtimes())
def test_it_is_measured_in_a_process_of_its_own(tmp_path, name):
    """By the name of the runtime and of the file alone."""
    quick = bench.Settings(warmup_s=0.0, warmup_count=1, min_s=0.0, min_count=3, precision=1e9)
    path = save_external(tmp_path)
    measured, _ = bench.interleave(
        {"mine": path}, runtime=name, restarts=1, budget_s=5.0, settings=quick
    )
    assert measured[0].task.runtime == name
    assert measured[0].task.sha256 == open_onnx(path).sha256
    assert dict(measured[0].task.flags)["intra_op_threads"] == "1"


@pytest.mark.parametrize(
    ("location", "code"), [("weights.bin", 0), ("../weights.bin", 2)], ids=["beside", "elsewhere"]
)
def test_the_command_line_measures_it_or_says_why_not(tmp_path, location, code):
    folder = tmp_path / "model"
    folder.mkdir()
    path = save_external(folder, location)
    done = subprocess.run(
        [sys.executable, "-m", "mint_deploy", "bench", str(path), "--seconds", "2", "--restarts", "1",
         "--quiet", "--json"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    if code:
        assert "tensor 'w0'" in done.stderr
        assert "Traceback" not in done.stderr
    else:
        assert json.loads(done.stdout)
