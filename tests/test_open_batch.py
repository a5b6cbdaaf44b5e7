"""A copy with an open batch computes the same sample by sample, or there is none."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser
from onnx_models import save_conv
from torch import nn

from mint_deploy.errors import ModelError
from mint_deploy.export import export
from mint_deploy.onnx_figures import figures
from mint_deploy.onnx_layers import read_graph
from mint_deploy.open_batch import open_batch
from mint_deploy.target import load_target

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'


def text(path: Path, graph: str, **weights: np.ndarray) -> Path:
    model = parser.parse_model(f"{HEAD} {graph}")
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in weights.items())
    onnx.save(model, path)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


class Tokens(nn.Module):
    """Attention over the places of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x):
        return self.layer(self.embed(x).flatten(2).transpose(1, 2)).mean(1)


@pytest.mark.parametrize(("opset", "batch"), [(17, 2), (20, 1)])
def test_an_exported_network_is_opened(tmp_path, opset, batch):
    torch.manual_seed(0)
    target = dataclasses.replace(load_target("cpu"), opset=opset, batch=batch)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)
    )
    fixed = tmp_path / "fixed.onnx"
    export(model.eval(), fixed, torch.randn(2, 3, 8, 8), target)
    opened = open_batch(fixed, tmp_path / "open.onnx")
    x = np.random.default_rng(0).standard_normal((6, 3, 8, 8)).astype(np.float32)
    whole = np.concatenate([run(fixed, x[i : i + batch]) for i in range(0, 6, batch)])
    assert np.allclose(run(opened, x), whole, atol=1e-5)
    assert read_graph(opened).open_batch
    one, many = figures(fixed)[0], figures(opened)[0]
    for name in ("params", "macs", "weight_bytes"):
        assert one[name] == many[name]
    assert one["peak_activation_bytes"] == batch * many["peak_activation_bytes"]


def test_attention_that_wrote_the_batch_down_elsewhere_is_refused(tmp_path):
    """It reshapes sequence first, so the batch is not where a copy could let it follow."""
    torch.manual_seed(0)
    fixed, out = tmp_path / "fixed.onnx", tmp_path / "open.onnx"
    export(Tokens().eval(), fixed, torch.randn(2, 3, 8, 8), load_target("cpu"))
    with pytest.raises(ModelError, match=r"cannot be opened.*self_attn/Reshape"):
        open_batch(fixed, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("graph", "weights", "opens"),
    [
        ("y = Reshape(x, to)", {"to": [1, 6]}, True),
        ("y = Reshape<allowzero=1>(x, to)", {"to": [1, 6]}, True),
        ("y = Reshape(x, to)", {"to": [1, -1]}, True),
        ("y = Reshape(x, to)", {"to": [-1, 6]}, True),
        ("y = Reshape(x, to)", {"to": [6]}, False),  # the samples run together
        ("y = Softmax<axis=0>(x)", {}, False),  # a sample depends on the others
        ("y = ReduceMean<axes=[0]>(x)", {}, False),
        ("y = Add(x, w)", {"w": [0, 1, 2, 3, 4, 5]}, True),
    ],
)
def test_what_can_be_opened_and_what_mixes_its_samples(tmp_path, graph, weights, opens):
    arrays = {
        k: np.array(v, np.int64 if k == "to" else np.float32).reshape(
            -1 if k == "to" else (1, 2, 3)
        )
        for k, v in weights.items()
    }
    out = (
        "float[6]"
        if weights.get("to") == [6]
        else "float[1,6]"
        if "to" in weights
        else "float[1,2,3]"
    )
    fixed = text(tmp_path / "m.onnx", f"g (float[1,2,3] x) => ({out} y) {{ {graph} }}", **arrays)
    if not opens:
        with pytest.raises(ModelError, match="cannot be opened"):
            open_batch(fixed, tmp_path / "o.onnx")
        assert not (tmp_path / "o.onnx").exists()
        return
    opened = open_batch(fixed, tmp_path / "o.onnx")
    x = np.random.default_rng(1).standard_normal((4, 2, 3)).astype(np.float32)
    assert np.allclose(run(opened, x), np.concatenate([run(fixed, x[i : i + 1]) for i in range(4)]))


def test_an_open_file_is_copied(tmp_path):
    path = save_conv(tmp_path / "m.onnx")
    opened = open_batch(path, tmp_path / "o.onnx")
    x = np.zeros((3, 3, 8, 8), np.float32)
    assert np.array_equal(run(path, x), run(opened, x))


def test_the_file_itself_is_left_alone(tmp_path):
    path = save_conv(tmp_path / "m.onnx", batch=1)
    before = path.read_bytes()
    open_batch(path, tmp_path / "o.onnx")
    assert path.read_bytes() == before
    with pytest.raises(ModelError, match="cannot read"):
        open_batch(tmp_path / "none.onnx", tmp_path / "o.onnx")
