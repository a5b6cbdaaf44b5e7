"""Export: one ONNX file with pinned versions and readable names that computes what PyTorch does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nets
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_nets import CLASSES, Tiny, run, samples, target
from torch import Tensor, nn

from mint_deploy import export as _verb  # the function, by way of the package's face
from mint_deploy.errors import DataError, ModelError
from mint_deploy.export import export, parity_of
from mint_deploy.face import Face
from mint_deploy.models import state_digest
from mint_deploy.onnx_file import read_onnx
from mint_deploy.parity import read_parity, relative_error, write_parity
from mint_deploy.target import load_target
from mint_deploy.torch_onnx import convert

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A Tiny in train mode, exported at batch 2 with everything that can travel along."""
    folder = tmp_path_factory.mktemp("made")
    model = Tiny().train()
    before = state_digest(model)
    value = export(
        model,
        folder / "model.onnx",
        samples(3),
        target(batch=2),
        plan_digest="abc",
        class_names=CLASSES,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.5, 0.5),
        parity_inputs=samples(5),
        extra_metadata={"note": "mine"},
    )
    return model, before, value


# ---------------------------------------------------------------- what is written


def test_the_file_says_what_the_value_says(made):
    _, _, value = made
    facts = read_onnx(value.path)
    assert (facts.opset, facts.ir_version) == (value.opset, value.ir_version) == (18, 8)
    assert [(s.name, s.shape, s.dtype) for s in facts.inputs] == [
        ("input", (2, 3, 8, 8), "float32")
    ]
    assert [(s.name, s.shape) for s in facts.outputs] == [("logits", (2, 5))]
    assert (value.inputs, value.outputs) == (facts.inputs, facts.outputs)
    assert value.bytes == Path(value.path).stat().st_size
    assert os.listdir(Path(value.path).parent) == ["model.onnx"], "one file"  # noqa: PTH208  names


def test_it_computes_what_pytorch_computes(made):
    model, _, value = made
    x = samples(2, seed=7)
    expected = Tiny().eval()(x).detach().numpy()
    assert relative_error(run(Path(value.path), input=x)[0], expected) < 1e-5
    assert 0 < value.max_error < 1e-5
    # noise three times, the example, and five real samples in batches of two
    assert value.parity_batches == (2,) * 7
    assert model.training


def test_the_users_model_is_left_as_it_is(made):
    model, before, _ = made
    assert model.training
    assert model.block.training
    assert all(p.requires_grad for p in model.parameters())
    assert state_digest(model) == before


def test_what_travels_in_the_file(made):
    model, _, value = made
    facts = read_onnx(value.path)
    assert facts.metadata == value.metadata
    assert facts.metadata["mint_deploy.plan_digest"] == "abc"
    assert json.loads(facts.metadata["mint_deploy.class_names"]) == CLASSES
    assert json.loads(facts.metadata["mint_deploy.mean"]) == [0.1, 0.2, 0.3]
    assert json.loads(facts.metadata["mint_deploy.std"]) == [0.5, 0.5, 0.5]
    assert facts.metadata["mint_deploy.source_digest"] == state_digest(model)
    assert facts.metadata["mint_deploy.target"] == "cpu"
    assert facts.metadata["note"] == "mine"


def test_batchnorm_is_folded_and_said_to_be(made):
    _, _, value = made
    assert "BatchNormalization" not in read_onnx(value.path).operators
    assert value.metadata["mint_deploy.batchnorm"] == "all folded"


def test_nothing_of_the_machine_that_wrote_it_is_in_the_file(made):
    _, _, value = made
    content = Path(value.path).read_bytes()
    assert str(ROOT).encode() not in content
    assert os.fspath(Path(torch.__file__).parent).encode() not in content
    assert b"stack_trace" not in content


@pytest.fixture(scope="module")
def older(tmp_path_factory):
    """The same by the older of PyTorch's two exporters."""
    path = tmp_path_factory.mktemp("older") / "model.onnx"
    export(Tiny(), path, samples(1), target(17, batch=2), class_names=CLASSES)
    return path


@pytest.fixture(params=[17, 18])
def graph(request, made, older):
    """Two exporters, the same names."""
    return onnx.load(made[2].path if request.param == 18 else older).graph


def test_layers_and_weights_have_the_names_of_the_model(graph):
    assert {n.name for n in graph.node} >= {"stem/Conv", "block.0/Conv", "head/Gemm", "Add"}
    layers = {"stem", "block.0", "head"}
    parts = {"weight", "bias"}
    assert {i.name for i in graph.initializer} >= {f"{m}.{p}" for m in layers for p in parts}
    assert len({n.name for n in graph.node}) == len(graph.node)


def test_what_a_node_writes_has_its_name(graph):
    """They stand in calibration tables, in lists of sensitive layers and in profiles."""
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        assert list(node.output) == ["logits"] or list(node.output) == [f"{node.name}_out"]
    assert outputs == {"logits"}


def test_the_shape_of_every_value_is_in_the_file(graph):
    written = {name for node in graph.node for name in node.output}
    known = {value.name: value.type.tensor_type for value in graph.value_info}
    assert set(known) == written - {"logits"}
    for kind in known.values():
        assert kind.elem_type == onnx.TensorProto.FLOAT
        assert [d.HasField("dim_value") for d in kind.shape.dim] == [True] * len(kind.shape.dim)
        assert kind.shape.dim[0].dim_value == 2


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (17, 10), (20, 9),
                                           pytest.param(21, 10, marks=pytest.mark.slow)])  # fmt: skip
def test_opset_and_ir_are_those_of_the_target(tmp_path, opset, ir):
    value = export(Tiny(), tmp_path / "m.onnx", samples(1), target(opset, ir, batch=3))
    loaded = onnx.load(value.path)
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", opset)]
    assert loaded.ir_version == ir
    assert value.inputs[0].shape == (3, 3, 8, 8)
    assert value.outputs[0].shape == (3, 5)
    onnx.checker.check_model(loaded, full_check=True)


@pytest.mark.parametrize(
    "name", ["jetson", *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpu", "arm-cpu"))]
)
def test_a_shipped_target_may_be_named(tmp_path, name):
    value = export(Tiny(), tmp_path / "m.onnx", samples(2), name)
    wanted = load_target(name)
    assert (value.opset, value.ir_version) == (wanted.opset, wanted.ir_version)
    assert value.metadata["mint_deploy.target"] == name


@pytest.mark.parametrize("opset", [17, 20])
def test_an_open_batch_takes_every_batch(tmp_path, opset):
    """One example is the trap: its batch of 1 would be taken for a constant."""
    path = tmp_path / "m.onnx"
    wanted = target(opset, ir_version=9)
    value = export(Tiny(), path, samples(1), wanted, dynamic_batch=True, parity_inputs=samples(5))
    assert value.inputs[0].shape == (-1, 3, 8, 8)
    assert value.outputs[0].shape == (-1, 5)
    assert value.parity_batches == (1, 2, 8, 2, 2, 2, 2)
    assert onnx.load(path).graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    model = Tiny().eval()
    for count in (1, 2, 5, 8, 13):
        x = samples(count)
        assert relative_error(run(path, input=x)[0], model(x).detach().numpy()) < 1e-5


def test_the_bytes_do_not_depend_on_the_process(tmp_path):
    """Another hash seed and another folder, the same file."""
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from export_nets import Tiny, samples, target\nfrom mint_deploy.export import export\n"
        "print(export(Tiny(), sys.argv[2], samples(1), target()).sha256)"
    )
    path = tmp_path / "there" / "model.onnx"
    done = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "tests"), str(path)],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    here = export(Tiny(), tmp_path / "here.onnx", samples(1), target()).sha256
    assert done.stdout.strip() == here
    assert done.stderr == "", "nothing is said in a process of its own either"


def test_nothing_is_said_on_the_terminal(tmp_path, capfd):
    """The older exporter prints from C++; the newer one is listened to in the test before."""
    export(nets.build("option_b")[0], tmp_path / "m.onnx", samples(1), target(17))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [17, pytest.param(18, marks=pytest.mark.slow)])
def test_the_exporter_does_not_change_what_the_copy_computes(opset):
    """The older one puts the mode of the outermost module back: a BatchNorm would learn again."""
    face = Face(Tiny().train(), samples(2))
    noise = face.noise(2, seed=0)
    before = face.run(noise)["output"]
    convert(face, 2, opset, dynamic=False)
    np.testing.assert_array_equal(face.run(noise)["output"], before)


# ---------------------------------------------------------------- what is compared on the board


def test_parity_samples_travel_and_are_compared(tmp_path):
    dense, slim = Tiny().eval(), nets.build("option_b")[0]
    parity = parity_of({"dense": dense, "slim": slim}, samples(5), class_names=CLASSES)
    write_parity(tmp_path / "parity.npz", parity)
    back = read_parity(tmp_path / "parity.npz")
    assert set(back.outputs) == {"dense", "slim"}
    assert back.inputs["input"].shape == (5, 3, 8, 8)
    for label, model in (("dense", dense), ("slim", slim)):
        path = tmp_path / f"{label}.onnx"
        export(model, path, samples(1), target(17, batch=2), class_names=CLASSES)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

        def infer(inputs, session=session):
            return {"logits": session.run(None, dict(inputs))[0]}

        assert back.check(label, infer, batch=2) < 1e-5
    with pytest.raises(DataError, match="no outputs of network 'thin'"):
        back.check("thin", infer, batch=2)


def test_parity_needs_outputs_with_one_row_per_sample():
    class Total(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum()

    with pytest.raises(ModelError, match="one row per sample"):
        parity_of({"dense": Total()}, samples(2))


def test_the_verb_of_the_package_is_this_function():
    assert _verb is export
