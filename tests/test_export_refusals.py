"""Export: what is refused, in one line, with nothing left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import nets
import pytest
import torch
from export_nets import Tiny, samples, target
from torch import Tensor, nn

from mint_deploy.errors import ExportMismatch, ModelError, TargetError, TraceError
from mint_deploy.export import export
from mint_deploy.onnx_file import read_onnx

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
        export(Tiny(), path, samples(1), target(17), tolerance=0.0)
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
