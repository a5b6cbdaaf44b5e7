"""Export: one ONNX file with pinned versions and readable names that computes what PyTorch does."""

from __future__ import annotations

import dataclasses
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
from torch import Tensor, nn

from mint_deploy import export as _verb  # the function, by way of the package's face
from mint_deploy.errors import DataError, ExportMismatch, ModelError, TargetError, TraceError
from mint_deploy.export import export, parity_of
from mint_deploy.face import Face
from mint_deploy.models import state_digest
from mint_deploy.onnx_file import read_onnx
from mint_deploy.parity import read_parity, relative_error, write_parity
from mint_deploy.target import load_target
from mint_deploy.torch_onnx import convert

ROOT = Path(__file__).parents[1]
CLASSES = ["a", "b", "c", "d", "e"]


class Tiny(nn.Module):
    """Two convolutions with BatchNorm around a residual addition, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 5)
        nets.enliven(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.block(x)).relu()
        return self.head(x.mean((2, 3)))


def target(opset: int = 18, ir_version: int = 8, batch: int = 1):
    return dataclasses.replace(
        load_target("cpu"), opset=opset, ir_version=ir_version, batch=batch, sources={}
    )


def run(path: Path, **inputs: Tensor) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, {name: x.numpy() for name, x in inputs.items()})


def samples(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("opset", [17, 18])
def test_layers_and_weights_have_the_names_of_the_model(tmp_path, opset):
    """Two exporters, the same names."""
    path = tmp_path / "model.onnx"
    export(Tiny(), path, samples(1), target(opset))
    graph = onnx.load(path).graph
    assert {n.name for n in graph.node} >= {"stem/Conv", "block.0/Conv", "head/Gemm", "Add"}
    layers = {"stem", "block.0", "head"}
    parts = {"weight", "bias"}
    assert {i.name for i in graph.initializer} >= {f"{m}.{p}" for m in layers for p in parts}
    assert len({n.name for n in graph.node}) == len(graph.node)
    assert all(value.type.tensor_type.HasField("shape") for value in graph.value_info)


@pytest.mark.parametrize(("opset", "ir"), [(17, 8), (17, 10), (20, 9), (21, 10)])
def test_opset_and_ir_are_those_of_the_target(tmp_path, opset, ir):
    value = export(Tiny(), tmp_path / "m.onnx", samples(1), target(opset, ir, batch=3))
    loaded = onnx.load(value.path)
    assert [(o.domain, o.version) for o in loaded.opset_import] == [("", opset)]
    assert loaded.ir_version == ir
    assert value.inputs[0].shape == (3, 3, 8, 8)
    assert value.outputs[0].shape == (3, 5)
    onnx.checker.check_model(loaded, full_check=True)


@pytest.mark.parametrize("name", ["gpu", "jetson", "arm-cpu"])
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
        "from test_export import Tiny, export, samples, target\n"
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


@pytest.mark.parametrize("opset", [17, 18])
def test_nothing_is_said_on_the_terminal(tmp_path, capfd, opset):
    export(nets.build("option_b")[0], tmp_path / "m.onnx", samples(1), target(opset))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("opset", [17, 18])
def test_the_exporter_does_not_change_what_the_copy_computes(opset):
    """The older one puts the mode of the outermost module back: a BatchNorm would learn again."""
    face = Face(Tiny().train(), samples(2))
    noise = face.noise(2, seed=0)
    before = face.run(noise)["output"]
    convert(face, 2, opset, dynamic=False)
    np.testing.assert_array_equal(face.run(noise)["output"], before)


# ---------------------------------------------------------------- forms of models


class Forms(nn.Module):
    """Two inputs and a constant; a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor | None = None, *, twice: bool = False):
        a, b = self.one(left), self.two(left if right is None else right)
        return {"sum": a + b * (2 if twice else 1), "pair": (a, b)}


@pytest.mark.parametrize("opset", [17, 18])
def test_inputs_and_outputs_are_named_after_the_forward(tmp_path, opset):
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    model, path = Forms(), tmp_path / "m.onnx"
    value = export(model, path, {"left": x, "right": y, "twice": True}, target(opset, batch=2))
    assert [s.name for s in value.inputs] == ["left", "right"]
    assert [s.name for s in value.outputs] == ["sum", "pair_0", "pair_1"]
    expected = model(x, y, twice=True)
    found = run(path, left=x, right=y)
    for a, b in zip(found, (expected["sum"], *expected["pair"]), strict=True):
        assert relative_error(a, b.detach().numpy()) < 1e-6
    both = export(model, path, (x, y), target(opset, batch=2))
    assert [s.name for s in both.inputs] == ["left", "right"]


def test_an_output_is_called_logits_only_where_it_has_one_entry_a_class(tmp_path):
    path = tmp_path / "m.onnx"
    assert export(Tiny(), path, samples(1), target()).outputs[0].name == "output"
    four = export(Tiny(), path, samples(1), target(), class_names=CLASSES[:4])
    assert four.outputs[0].name == "output"


class Ignores(nn.Module):
    """Its second input is not used."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * 2


def test_an_input_that_is_not_used_is_kept_or_refused(tmp_path):
    """The older exporter drops it, and the file would have another face than the model."""
    both = (samples(1), samples(1))
    value = export(Ignores(), tmp_path / "new.onnx", both, target(18))
    assert [s.name for s in value.inputs] == ["x", "y"]
    with pytest.raises(ModelError, match="an input that forward does not use must be left out"):
        export(Ignores(), tmp_path / "old.onnx", both, target(17))
    assert not (tmp_path / "old.onnx").exists()


def test_whole_numbers_as_inputs_stay_in_their_range(tmp_path):
    """Noise would be no index of an embedding."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 2))
    value = export(model, tmp_path / "m.onnx", torch.tensor([[0, 3, 6]]), target(batch=2))
    assert (value.inputs[0].dtype, value.inputs[0].shape) == ("int64", (2, 3))


@pytest.mark.parametrize("name", ["siamese", "two_outputs", "unet", "lstm"])
def test_real_patterns_export(tmp_path, name):
    model, inputs = nets.build(name)
    value = export(model, tmp_path / "m.onnx", inputs, target())
    assert value.max_error < 1e-5
    if name == "two_outputs":
        assert [s.name for s in value.outputs] == ["logits", "features"]
    if name == "siamese":  # the layer is called twice, so the exporter leaves its BatchNorm alone
        assert value.metadata["mint_deploy.batchnorm"].startswith("4 left, 4 of them behind")


def test_batchnorm_that_nothing_can_take_up_is_said_to_be_left(tmp_path):
    """As in a DenseNet, it stands before the ReLU and the convolution."""
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    value = export(model, tmp_path / "m.onnx", samples(1), target(17))
    assert value.metadata["mint_deploy.batchnorm"].startswith("1 left, 0 of them behind")


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("name", list(nets.NETS))
def test_every_net_of_the_tests_exports(tmp_path, name, opset, dynamic):
    model, inputs = nets.build(name)
    value = None
    try:
        value = export(model, tmp_path / "m.onnx", inputs, target(opset, 9), dynamic_batch=dynamic)
    except (ExportMismatch, ModelError) as error:
        # what tracing bakes in, and an operator that the older exporter lacks; both are said
        assert opset == 17, error  # noqa: PT017  the refusal is one of two good outcomes
        assert name in ("item_escape", "shuffle_v2"), error  # noqa: PT017
    assert (value is not None) == (tmp_path / "m.onnx").exists()


# ---------------------------------------------------------------- refusals


def empty(folder: Path) -> bool:
    return not list(folder.iterdir())


def test_a_file_that_computes_something_else_is_not_left(tmp_path):
    """Tracing bakes a value in that depends on the data."""
    model, inputs = nets.build("item_escape")
    with pytest.raises(ExportMismatch) as caught:
        export(model, tmp_path / "m.onnx", inputs, target(17))
    assert caught.value.tensor == "output"
    assert caught.value.error > caught.value.tolerance == 1e-4
    assert "the file was not kept" in str(caught.value)
    assert empty(tmp_path)


def test_a_mismatch_leaves_an_older_file_alone(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"older")
    with pytest.raises(ExportMismatch):
        export(Tiny(), path, samples(1), target(), tolerance=0.0)
    assert path.read_bytes() == b"older"
    assert len(list(tmp_path.iterdir())) == 1


class Two(nn.Module):
    """Its batch is written into the view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 3, 64)


class Counts(nn.Module):
    """Does something else at a batch of two."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if len(x) == 2 else x


class Branch(nn.Module):
    """What it computes depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no way")


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "text"


def with_nan() -> nn.Module:
    model = Tiny()
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (Two(), {"dynamic_batch": True}, r"fails on inputs of shape \(1, 3, 8, 8\): RuntimeErr"),
        (Counts(), {"dynamic_batch": True}, "export it with a fixed batch"),
        (Branch(), {}, r"PyTorch cannot export this model to ONNX \(opset 18\): .*"),
        (Fails(), {}, "RuntimeError: no way"),
        (Nothing(), {}, r"returns no tensor \(found str\)"),
        (with_nan(), {}, "output 'output' is not finite; look for NaN"),
        (Tiny(), {"parity_inputs": torch.zeros(4, 3, 9, 9)}, r"\(4, 3, 9, 9\) do not fit"),
        (nets.build("shuffle_v2")[0], {"opset": 17}, "aten::channel_shuffle"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_what_cannot_be_exported_is_said_in_one_line(tmp_path, capfd, model, options, message):
    options = dict(options)
    wanted = target(options.pop("opset", 18))
    with pytest.raises(ModelError, match=message) as caught:
        export(model, tmp_path / "m.onnx", samples(2), wanted, **options)
    assert "\n" not in str(caught.value)
    assert empty(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_inputs_without_a_tensor_or_a_sample(tmp_path):
    with pytest.raises(TraceError, match="hold no tensor"):
        export(Tiny(), tmp_path / "m.onnx", 3, target())
    with pytest.raises(TraceError, match="hold no sample"):
        export(Tiny(), tmp_path / "m.onnx", samples(0), target())
    assert empty(tmp_path)


def test_a_batch_that_tracing_baked_in_is_noticed(tmp_path):
    with pytest.raises(ExportMismatch, match="at batch 1"):
        export(Counts(), tmp_path / "m.onnx", samples(2), target(17), dynamic_batch=True)
    assert empty(tmp_path)


def test_more_weights_than_one_file_holds(tmp_path, monkeypatch):
    module = sys.modules["mint_deploy.export"]  # as an attribute of the package it is the verb
    monkeypatch.setattr(module, "LARGEST_BYTES", 100)
    with pytest.raises(ModelError, match="one ONNX file holds at most 100"):
        export(Tiny(), tmp_path / "m.onnx", samples(1), target())


def test_an_opset_that_the_exporter_does_not_write_is_refused(tmp_path, monkeypatch):
    """Asked for 17, the newer exporter writes 18 without an error."""
    monkeypatch.setattr("mint_deploy.torch_onnx.LOWEST_NEW", 13)
    with pytest.raises(TargetError, match="asks for opset 17 and PyTorch's exporter wrote 18"):
        export(nets.build("option_b")[0], tmp_path / "m.onnx", samples(1), target(17))
    assert empty(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        export(Tiny(), tmp_path / "m.onnx", samples(1), target(17))
    assert empty(tmp_path)


def test_a_file_that_is_not_onnx_is_refused(tmp_path):
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"\x00\xff not a model")
    with pytest.raises(ModelError, match="is not an ONNX file"):
        read_onnx(bad)
    bad.write_bytes(b"")
    with pytest.raises(ModelError, match="is not an ONNX file"):
        read_onnx(bad)
    with pytest.raises(ModelError, match="cannot read"):
        read_onnx(tmp_path / "none.onnx")


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
